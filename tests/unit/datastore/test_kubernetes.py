"""The API server as a source: single requests, what is written, TLS, and errors."""

import asyncio
import socket
import ssl
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from poplin.datastore import client
from poplin.datastore.access import Identity
from poplin.datastore.client import ApiClient, NonsenseError, RefusedError, Unreachable
from poplin.datastore.core import CONFIG_MAPS, PODS
from poplin.datastore.kubeconfig import KubeconfigError
from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.parse import InvalidObjectError
from poplin.datastore.source import Replaced, Unavailable
from poplin.model.cluster import ConditionStatus, NodeCondition, ObjectReference
from unit.datastore.authority import Authority
from unit.datastore.stand_in_api import FAST, Failure, StandInApi, pod

UP = NodeCondition("NetworkUnavailable", ConditionStatus.FALSE, "PoplinIsUp", "the pod network is up")
NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.fixture
async def api():
    server = StandInApi()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def source(api):
    async with KubernetesSource(api.access(), component="poplin", host="worker-1", now=lambda: NOW) as it:
        yield it


async def test_annotate_pod_is_a_merge_of_its_status_under_its_uid(api, source):
    await source.annotate_pod("shop", "web", {"a": "1"}, uid="u1")
    ((method, path, content_type, body),) = api.bodies
    assert (method, path) == ("PATCH", "/api/v1/namespaces/shop/pods/web/status")
    assert content_type == "application/merge-patch+json"
    assert body == {"metadata": {"annotations": {"a": "1"}, "uid": "u1"}}


@pytest.mark.parametrize(("code", "reason"), [(404, "NotFound"), (409, "Conflict")])
async def test_annotate_pod_of_one_that_is_gone_is_success(api, source, code, reason):
    api.failures["write"].append(Failure(code, reason))
    await source.annotate_pod("shop", "web", {"a": "1"}, uid="u1")
    assert api.bodies == []


async def test_patch_node_is_a_strategic_merge_of_its_status(api, source):
    await source.patch_node("worker-1", {"a": "1", "b": None}, [UP])
    ((method, path, content_type, body),) = api.bodies
    assert (method, path) == ("PATCH", "/api/v1/nodes/worker-1/status")
    assert content_type == "application/strategic-merge-patch+json"
    assert body == {
        "metadata": {"annotations": {"a": "1", "b": None}},
        "status": {
            "conditions": [
                {
                    "type": "NetworkUnavailable",
                    "status": "False",
                    "reason": "PoplinIsUp",
                    "message": "the pod network is up",
                    "lastHeartbeatTime": "2026-01-02T03:04:05Z",
                    "lastTransitionTime": "2026-01-02T03:04:05Z",
                }
            ]
        },
    }
    assert api.requests[0].headers["Authorization"] == "Bearer secret"


async def test_create_and_merge(api, source):
    await source.create(CONFIG_MAPS, {"metadata": {"name": "c"}}, namespace="web")
    await source.merge(CONFIG_MAPS, "c", {"data": {"x": None}}, namespace="web")
    assert api.bodies == [
        ("POST", "/api/v1/namespaces/web/configmaps", "application/json", {"metadata": {"name": "c"}}),
        ("PATCH", "/api/v1/namespaces/web/configmaps/c", "application/merge-patch+json", {"data": {"x": None}}),
    ]  # fmt: skip


async def test_event(api, source):
    about = ObjectReference("Pod", "a", "web", "uid-a")
    await source.create_event(about, reason="NoAddress", message="x" * 2000, warning=True)
    ((method, path, _, body),) = api.bodies
    assert (method, path) == ("POST", "/api/v1/namespaces/web/events")
    assert body["metadata"]["name"].startswith("a.")
    assert body["metadata"]["namespace"] == "web"
    assert body["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "web", "uid": "uid-a",
    }  # fmt: skip
    assert (body["type"], body["reason"], body["count"]) == ("Warning", "NoAddress", 1)
    assert len(body["message"]) == 1024
    assert body["source"] == {"component": "poplin", "host": "worker-1"}
    assert body["firstTimestamp"] == body["lastTimestamp"] == "2026-01-02T03:04:05Z"


async def test_event_about_a_node_lives_in_default(api, source):
    await source.create_event(ObjectReference("Node", "worker-1"), reason="R", message="m")
    assert api.bodies[0][1] == "/api/v1/namespaces/default/events"
    assert api.bodies[0][3]["type"] == "Normal"


async def test_event_said_again_is_counted_and_begun_anew_when_it_is_gone(api, source):
    about = ObjectReference("Node", "worker-1")
    for _ in range(3):
        await source.create_event(about, reason="R", message="m")
    assert [body[0] for body in api.bodies] == ["POST", "PATCH", "PATCH"]
    assert api.bodies[2][3] == {"count": 3, "lastTimestamp": "2026-01-02T03:04:05Z"}
    assert api.bodies[2][1].endswith(api.bodies[0][3]["metadata"]["name"])
    api.failures["write"].append(Failure(404, "NotFound"))
    await source.create_event(about, reason="R", message="m")
    assert (api.bodies[3][0], api.bodies[3][3]["count"]) == ("POST", 1)
    await source.create_event(about, reason="R", message="another")
    assert api.bodies[4][0] == "POST"


async def test_two_events_have_two_names(api):
    moments = iter(NOW + timedelta(microseconds=i) for i in range(9))
    async with KubernetesSource(api.access(), now=lambda: next(moments)) as source:
        for message in "ab":
            await source.create_event(ObjectReference("Node", "n"), reason="R", message=message)
    assert api.bodies[0][3]["metadata"]["name"] != api.bodies[1][3]["metadata"]["name"]


@pytest.mark.parametrize(
    ("failure", "error", "expected"),
    [
        (Failure(403, "Forbidden"), RefusedError, "forbidden; grant this verb"),
        (Failure(409, "Conflict"), RefusedError, "conflict"),
        (Failure(502, body=b"<html>"), RefusedError, "HTTP 502 Bad Gateway"),
        (Failure(302, headers={"Location": "http://192.0.2.9/"}, body=b""), RefusedError, "HTTP 302 Found"),
    ],
)
async def test_refused_writes(api, source, failure, error, expected):
    api.failures["write"].append(failure)
    with pytest.raises(error) as raised:
        await source.patch_node("worker-1", {"a": "1"})
    assert expected in str(raised.value)
    assert "/api/v1/nodes/worker-1/status" in str(raised.value)
    assert raised.value.status == failure.status


async def test_retry_after_is_carried(api, source):
    api.failures["write"].append(Failure(429, "TooManyRequests", {"Retry-After": "7"}))
    with pytest.raises(RefusedError) as raised:
        await source.patch_node("worker-1", {"a": "1"})
    assert raised.value.retry_after_s == 7


async def test_get(api, source):
    api.failures["list"] += [
        Failure(body=b'{"metadata": {"name": "c", "namespace": "d"}, "data": {"k": "v"}}'),
        Failure(404, "NotFound"),
        Failure(404, "", body=b"no such page"),
        Failure(body=b"rubbish"),
        Failure(body=b'{"metadata": {"name": "c"}, "data": []}'),
    ]
    assert (await source.get(CONFIG_MAPS, "c", namespace="d")).data == {"k": "v"}
    assert api.requests[0].path == "/api/v1/namespaces/d/configmaps/c"
    assert await source.get(CONFIG_MAPS, "c", namespace="d") is None
    # The group or the path is missing, which says nothing of the object.
    with pytest.raises(RefusedError):
        await source.get(CONFIG_MAPS, "c", namespace="d")
    with pytest.raises(NonsenseError):
        await source.get(CONFIG_MAPS, "c", namespace="d")
    with pytest.raises(InvalidObjectError, match="ConfigMap c: data: expected"):
        await source.get(CONFIG_MAPS, "c", namespace="d")


async def test_watches_of_one_source_stop_none_of_each_other(api):
    api.put(pod("a"))
    async with (
        KubernetesSource(api.access(), pace=FAST) as source,
        aclosing(source.watch(PODS)) as one,
        aclosing(source.watch(PODS)) as other,
        asyncio.timeout(10),
    ):
        assert isinstance(await anext(one), Replaced)
        api.failures["list"].append(Failure(403, "Forbidden"))
        assert isinstance(await anext(other), Unavailable)
        waiting = asyncio.create_task(anext(one))
        await api.until(lambda: api.watches_open)
        api.put(pod("b"))
        assert (await waiting).object.name == "b"


@pytest.mark.parametrize(("here", "more"), [(False, 1), (True, 0)])
async def test_a_watch_from_an_address_that_is_gone_is_begun_anew(api, monkeypatch, here, more):
    """It would be heard of by keepalives only. The address stands; that it is gone is said in its place."""
    api.put(pod("a"))
    async with (
        KubernetesSource(api.access(), pace=FAST) as source,
        aclosing(source.watch(PODS)) as events,
        asyncio.timeout(10),
    ):
        assert isinstance(await anext(events), Replaced)
        waiting = asyncio.create_task(anext(events))
        await api.until(lambda: api.watches_open)
        before = api.counts["watch"]
        if not here:
            monkeypatch.setattr(client, "_is_local", lambda *_: False)
        source.end_stranded()
        await api.until(lambda: api.counts["watch"] == before + more and api.watches_open)
        api.put(pod("b"))
        assert (await waiting).object.name == "b"
        assert api.counts["watch"] == before + more


@pytest.mark.parametrize(
    ("family", "address", "local"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "0.0.0.0", True),  # a socket that is not connected yet
        (socket.AF_INET, "192.0.2.1", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "2001:db8::1", False),
    ],
)
def test_whether_an_address_is_local(family, address, local):
    assert client._is_local(family, address) == local


AUTHORITY = Authority()
SERVER = AUTHORITY.issue("server", "127.0.0.1", "kubernetes.example")
CLIENT = AUTHORITY.issue("client")


@asynccontextmanager
async def tls_server(tmp_path, *names, client_certificates=False):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    (tmp_path / "server.pem").write_bytes(b"".join(AUTHORITY.issue("server", *names) if names else SERVER))
    context.load_cert_chain(tmp_path / "server.pem")
    if client_certificates:
        context.load_verify_locations(cadata=AUTHORITY.pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    api = StandInApi()
    await api.start(context)
    try:
        yield api
    finally:
        await api.stop()


async def get_once(access):
    async with ApiClient(access) as client:
        return await client.request("GET", "/api/v1/pods")


async def test_tls_with_the_clusters_authority(tmp_path):
    async with tls_server(tmp_path) as api:
        await get_once(api.access(certificate_authority=AUTHORITY.pem))
        (tmp_path / "ca.crt").write_bytes(AUTHORITY.pem)
        await get_once(api.access(certificate_authority=tmp_path / "ca.crt"))
        await get_once(api.access(verify=False))


async def test_server_of_another_authority_is_refused(tmp_path):
    async with tls_server(tmp_path) as api:
        with pytest.raises(Unreachable, match=r"certificate is not trusted.*correct certificate-authority"):
            await get_once(api.access(certificate_authority=Authority("another").pem))
        with pytest.raises(Unreachable, match="certificate is not trusted"):
            await get_once(api.access())


async def test_renewed_authority_is_read_after_a_refusal(tmp_path):
    path = tmp_path / "ca.crt"
    path.write_bytes(Authority("old").pem)
    async with tls_server(tmp_path) as api, ApiClient(api.access(certificate_authority=path)) as client:
        with pytest.raises(Unreachable):
            await client.request("GET", "/api/v1/pods")
        path.write_bytes(AUTHORITY.pem)
        await client.request("GET", "/api/v1/pods")


async def test_tls_server_name(tmp_path):
    async with tls_server(tmp_path, "kubernetes.example") as api:
        access = api.access(certificate_authority=AUTHORITY.pem)
        with pytest.raises(Unreachable, match="certificate is not trusted"):
            await get_once(access)
        await get_once(replace(access, tls_server_name="kubernetes.example"))


async def test_client_certificates(tmp_path):
    certificate, key = CLIENT
    async with tls_server(tmp_path, client_certificates=True) as api:
        access = api.access(certificate_authority=AUTHORITY.pem)
        with pytest.raises(Unreachable):
            await get_once(access)
        await get_once(replace(access, identity=Identity(certificate=certificate, key=key)))
        (tmp_path / "me.crt").write_bytes(certificate)
        (tmp_path / "me.key").write_bytes(key)
        identity = Identity(certificate=tmp_path / "me.crt", key=tmp_path / "me.key")
        await get_once(replace(access, identity=identity))


async def test_renewed_client_certificate_is_used_after_a_refusal(tmp_path):
    paths = tmp_path / "me.crt", tmp_path / "me.key"
    async with tls_server(tmp_path, client_certificates=True) as api:
        for path, pem in zip(paths, CLIENT, strict=True):
            path.write_bytes(pem)
        identity = Identity(certificate=paths[0], key=paths[1])
        async with ApiClient(api.access(certificate_authority=AUTHORITY.pem, identity=identity)) as client:
            await client.request("GET", "/api/v1/pods")
            for path, pem in zip(paths, AUTHORITY.issue("renewed"), strict=True):
                path.write_bytes(pem)
            api.failures["list"].append(Failure(401, "Unauthorized"))
            await client.request("GET", "/api/v1/pods")
        shown = [dict(part[0] for part in peer["subject"]) for peer in api.peers]
        assert [one["commonName"] for one in shown] == ["client", "client", "renewed"]


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ({"certificate_authority": b"-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n"}, "certificate-authority: "),
        ({"certificate_authority": b"\xff"}, "certificate-authority: "),
        ({"identity": Identity(certificate=b"junk", key=b"junk")}, "client certificate and key: "),
        ({"identity": Identity(certificate=CLIENT[0], key=SERVER[1])}, "client certificate and key: "),
        (
            {"identity": Identity(certificate=CLIENT[0], key=AUTHORITY.issue("x", passphrase=b"p")[1])},
            "the key has a passphrase",
        ),
    ],
)  # fmt: skip
async def test_bad_tls_material(access, expected):
    api = StandInApi()
    api.scheme, api.port = "https", 1
    with pytest.raises(KubeconfigError) as raised:
        await get_once(api.access(**access))
    assert expected in str(raised.value)


async def test_proxy(api):
    """A plain-HTTP request through a proxy names the whole URL: the stand-in serves as the proxy."""
    access = replace(api.access(), server="http://kubernetes.example", proxy_url=api.access().server)
    await get_once(access)
    assert api.requests[0].headers["Host"] == "kubernetes.example"
