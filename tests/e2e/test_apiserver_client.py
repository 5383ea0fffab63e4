"""Poplin's own client against Poplin's own server: what the agent does in a lab."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

from e2e.apiserver_harness import running
from poplin.apiserver.expiry import delete_expired
from poplin.apiserver.server import ApiServer, Settings, serve
from poplin.datastore.core import NODES
from poplin.datastore.kubeconfig import read_kubeconfig
from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.source import Put, Replaced, Resumed, Unavailable
from poplin.model.cluster import ObjectReference

EVENTS = "/api/v1/namespaces/default/events"


async def test_a_reflector_follows_over_a_restart_of_the_server(tmp_path: Path):
    data, kubeconfig = tmp_path / "data", tmp_path / "kubeconfig"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with ApiServer(Settings(data)) as server, serve(server, [listener]):
            server.write_kubeconfig(kubeconfig, f"https://127.0.0.1:{port}")
            source = KubernetesSource(read_kubeconfig([kubeconfig]))
            await source.create(NODES, {"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.0.0/24"}})
            events = source.watch(NODES)
            async with asyncio.timeout(20):
                first = await anext(events)
                assert isinstance(first, Replaced)
                assert [node.name for node in first.objects] == ["n1"]
                await source.patch_node("n1", {"example.org/a": "1"})
                change = await anext(events)
            assert isinstance(change, Put)
            assert change.object.name == "n1"
    async with asyncio.timeout(30):
        assert isinstance(await anext(events), Unavailable)
        with socket.create_server(("127.0.0.1", port)) as listener:
            async with ApiServer(Settings(data)) as server, serve(server, [listener]):
                # Nothing was missed, so nothing is listed again.
                assert isinstance(await anext(events), Resumed)
                await source.create(NODES, {"metadata": {"name": "n2"}})
                added = await anext(events)
                assert isinstance(added, Put)
                assert added.object.name == "n2"
                await events.aclose()
                await source.close()


async def test_an_event_is_told_counted_and_forgotten_after_an_hour(tmp_path: Path):
    async with running(tmp_path / "data") as (server, client):
        server.write_kubeconfig(tmp_path / "kubeconfig", client.url)
        async with KubernetesSource(read_kubeconfig([tmp_path / "kubeconfig"])) as source:
            about = ObjectReference(api_version="v1", kind="Pod", namespace="default", name="web", uid="u")
            for _ in range(3):
                await source.create_event(about, reason="R", message="m")
        _, listed = await client.get(EVENTS)
        assert [(event["count"], event["message"]) for event in listed["items"]] == [(3, "m")]
        await delete_expired(server.lifecycle, datetime.now(UTC) + timedelta(minutes=59))
        assert len((await client.get(EVENTS))[1]["items"]) == 1
        await delete_expired(server.lifecycle, datetime.now(UTC) + timedelta(minutes=61))
        assert (await client.get(EVENTS))[1]["items"] == []
