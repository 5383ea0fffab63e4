"""The verbs over HTTP, as a client of Kubernetes knows them."""

import json
import ssl

import aiohttp
import pytest

from e2e.apiserver_harness import POD, Client, config_map, pod, running

CORE = "/api/v1/namespaces/default"
MAPS = f"{CORE}/configmaps"
PODS = f"{CORE}/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
DEPLOYMENT = {
    "metadata": {"name": "web"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": POD["spec"]},
    },
}


@pytest.fixture
async def client(tmp_path):
    async with running(tmp_path) as (_, client):
        yield client


async def test_a_created_object_is_read_back_with_what_the_server_adds(client: Client):
    code, made = await client.create(MAPS, config_map("a", k="v"))
    assert code == 201
    assert made["metadata"].keys() == {"name", "namespace", "uid", "creationTimestamp", "resourceVersion"}
    assert await client.get(f"{MAPS}/a") == (200, made)


async def test_a_second_object_of_the_name_is_refused(client: Client):
    await client.create(MAPS, config_map("a"))
    code, status = await client.create(MAPS, config_map("a"))
    assert (code, status["reason"], status["details"]) == (
        409,
        "AlreadyExists",
        {"name": "a", "kind": "configmaps"},
    )


async def test_an_absent_object_and_an_absent_type_differ(client: Client):
    code, status = await client.get(f"{MAPS}/none")
    assert (code, status["reason"]) == (404, "NotFound")
    assert status["message"] == 'configmaps "none" not found'
    code, status = await client.get("/apis/none/v1/things")
    assert (code, status["message"]) == (404, "the server could not find the requested resource")


async def test_generate_name_makes_names_of_its_own(client: Client):
    bodies = [await client.create(MAPS, {"metadata": {"generateName": "g-"}}) for _ in range(5)]
    names = {body["metadata"]["name"] for _, body in bodies}
    assert len(names) == 5
    assert all(name.startswith("g-") and len(name) == 7 for name in names)


async def test_an_update_on_an_old_version_conflicts(client: Client):
    _, first = await client.create(MAPS, config_map("a", k="1"))
    code, second = await client.update(f"{MAPS}/a", {**first, "data": {"k": "2"}})
    assert code == 200
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    code, status = await client.update(f"{MAPS}/a", {**first, "data": {"k": "3"}})
    assert (code, status["reason"]) == (409, "Conflict")
    assert (await client.get(f"{MAPS}/a"))[1] == second


async def test_an_update_without_a_version_wins_and_one_that_changes_nothing_writes_nothing(client: Client):
    _, first = await client.create(MAPS, config_map("a", k="1"))
    code, second = await client.update(f"{MAPS}/a", config_map("a", k="2"))
    assert (code, second["data"]) == (200, {"k": "2"})
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert await client.update(f"{MAPS}/a", config_map("a", k="2")) == (200, second)


async def test_the_three_kinds_of_patch(client: Client):
    await client.create(DEPLOYMENTS, DEPLOYMENT)
    path = f"{DEPLOYMENTS}/web"
    strategic = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}}}
    code, body = await client.patch(path, strategic, "strategic-merge")
    assert code == 200
    assert {one["name"] for one in body["spec"]["template"]["spec"]["containers"]} == {"web", "side"}
    code, body = await client.patch(path, {"metadata": {"labels": {"a": "b"}}}, "merge")
    assert (code, body["metadata"]["labels"], body["metadata"]["generation"]) == (200, {"a": "b"}, 2)
    code, body = await client.patch(path, [{"op": "replace", "path": "/spec/replicas", "value": 4}], "json")
    assert (code, body["spec"]["replicas"], body["metadata"]["generation"]) == (200, 4, 3)
    code, status = await client.patch(path, [{"op": "test", "path": "/spec/replicas", "value": 5}], "json")
    assert (code, status["reason"]) == (422, "Invalid")
    code, status = await client.request("PATCH", path, {}, content_type="application/x-patch")
    assert (code, status["reason"]) == (415, "UnsupportedMediaType")


async def test_unknown_fields_are_errors_warnings_or_nothing(client: Client):
    wrong = {**config_map("a"), "dta": {"k": "v"}}
    code, status = await client.create(MAPS, wrong, fieldValidation="Strict")
    assert (code, status["reason"]) == (400, "BadRequest")
    assert 'strict decoding error: unknown field "dta"' in status["message"]
    url = f"{client.url}{MAPS}"
    async with client.session.post(url, json=wrong, params={"fieldValidation": "Warn"}) as answer:
        assert (answer.status, answer.headers["Warning"]) == (201, '299 - "unknown field \\"dta\\""')
        assert "dta" not in await answer.json()
    async with client.session.post(
        url, json={**wrong, "metadata": {"name": "b"}}, params={"fieldValidation": "Ignore"}
    ) as answer:
        assert answer.status == 201
        assert "Warning" not in answer.headers


async def test_every_fault_is_told_with_its_path(client: Client):
    service = {"metadata": {"name": "Bad"}, "spec": {"ports": [{"port": 0}, {"name": "x"}], "type": "Nope"}}
    code, status = await client.create(f"{CORE}/services", service)
    assert (code, status["reason"], status["details"]["kind"]) == (422, "Invalid", "Service")
    causes = {(cause["field"], cause["reason"]) for cause in status["details"]["causes"]}
    assert causes >= {
        ("metadata.name", "FieldValueInvalid"),
        ("spec.ports[0].name", "FieldValueRequired"),
        ("spec.ports[0].port", "FieldValueInvalid"),
        ("spec.ports[1].port", "FieldValueRequired"),
        ("spec.type", "FieldValueNotSupported"),
    }


async def test_a_value_of_the_wrong_type_is_a_bad_request(client: Client):
    code, status = await client.create(
        f"{CORE}/services", {"metadata": {"name": "a"}, "spec": {"ports": "80"}}
    )
    assert (code, status["reason"]) == (400, "BadRequest")
    assert "spec.ports" in status["message"]


async def test_a_dry_run_answers_but_stores_nothing(client: Client):
    code, body = await client.create(MAPS, config_map("a", k="v"), dryRun="All")
    assert (code, body["data"]) == (201, {"k": "v"})
    assert (await client.get(f"{MAPS}/a"))[0] == 404
    await client.create(MAPS, config_map("a"))
    assert (await client.patch(f"{MAPS}/a", {"data": {"k": "w"}}, dryRun="All"))[1]["data"] == {"k": "w"}
    assert (await client.delete(f"{MAPS}/a", dryRun="All"))[0] == 200
    assert (
        "data" not in (await client.get(f"{MAPS}/a"))[1] or (await client.get(f"{MAPS}/a"))[1]["data"] == {}
    )


async def test_the_status_is_written_by_its_own_subresource_only(client: Client):
    _, made = await client.create(PODS, {**POD, "status": {"phase": "Running"}})
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    code, body = await client.patch(f"{PODS}/web", {"status": {"phase": "Running"}})
    assert (code, body["status"]["phase"]) == (200, "Pending")
    patch = {"status": {"phase": "Running"}, "spec": {"nodeName": "n"}}
    code, body = await client.patch(f"{PODS}/web/status", patch)
    assert (code, body["status"]["phase"], body["spec"].get("nodeName")) == (200, "Running", None)


async def test_scale_reads_and_writes_the_replicas(client: Client):
    await client.create(DEPLOYMENTS, DEPLOYMENT)
    code, scale = await client.get(f"{DEPLOYMENTS}/web/scale")
    assert (code, scale["kind"], scale["spec"], scale["status"]) == (
        200,
        "Scale",
        {"replicas": 1},
        {"replicas": 0, "selector": "app=web"},
    )
    code, scale = await client.update(f"{DEPLOYMENTS}/web/scale", {**scale, "spec": {"replicas": 3}})
    assert (code, scale["spec"]) == (200, {"replicas": 3})
    code, _ = await client.patch(f"{DEPLOYMENTS}/web/scale", {"spec": {"replicas": 5}})
    assert code == 200
    assert (await client.get(f"{DEPLOYMENTS}/web"))[1]["spec"]["replicas"] == 5


async def test_a_pod_is_bound_once(client: Client):
    await client.create(PODS, POD)
    binding = {"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "node-1"}}
    assert (await client.create(f"{PODS}/web/binding", binding))[0] == 201
    assert (await client.get(f"{PODS}/web"))[1]["spec"]["nodeName"] == "node-1"
    code, status = await client.create(f"{PODS}/web/binding", binding)
    assert (code, status["reason"]) == (409, "Conflict")
    listed = await client.get("/api/v1/pods", fieldSelector="spec.nodeName=node-1")
    assert [one["metadata"]["name"] for one in listed[1]["items"]] == ["web"]


async def test_a_bound_pod_is_deleted_in_two_steps(client: Client):
    await client.create(PODS, {**POD, "spec": {**POD["spec"], "nodeName": "node-1"}})
    code, body = await client.delete(f"{PODS}/web", gracePeriodSeconds=7)
    assert (code, body["metadata"]["deletionGracePeriodSeconds"]) == (200, 7)
    assert "deletionTimestamp" in (await client.get(f"{PODS}/web"))[1]["metadata"]
    assert (await client.delete(f"{PODS}/web", gracePeriodSeconds=0))[0] == 200
    assert (await client.get(f"{PODS}/web"))[0] == 404


async def test_an_eviction_respects_a_disruption_budget(client: Client):
    await client.create(PODS, POD)
    budget = {
        "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    await client.create(budgets, budget)
    eviction = {"metadata": {"name": "web"}}
    assert (await client.create(f"{PODS}/web/eviction", eviction))[0] == 429
    await client.patch(f"{budgets}/b/status", {"status": {"disruptionsAllowed": 1}})
    assert (await client.create(f"{PODS}/web/eviction", eviction))[0] == 201
    assert (await client.get(f"{PODS}/web"))[0] == 404


async def test_preconditions_of_a_deletion(client: Client):
    _, made = await client.create(MAPS, config_map("a"))
    code, status = await client.delete(f"{MAPS}/a", {"preconditions": {"uid": "other"}})
    assert (code, status["reason"]) == (409, "Conflict")
    code, status = await client.delete(f"{MAPS}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert (code, status["status"]) == (200, "Success")


async def test_a_collection_is_deleted_by_selector(client: Client):
    for name in "abc":
        await client.create(PODS, pod(name, group="x" if name < "c" else "y"))
    code, body = await client.delete(PODS, labelSelector="group=x")
    assert (code, len(body["items"])) == (200, 2)
    assert [one["metadata"]["name"] for one in (await client.get(PODS))[1]["items"]] == ["c"]


async def test_lists_come_in_pages_of_one_snapshot(client: Client):
    for index in range(7):
        await client.create(PODS, pod(f"p{index}"))
    _, first = await client.get(PODS, limit=3)
    assert first["metadata"]["remainingItemCount"] == 4
    await client.delete(f"{PODS}/p5")
    await client.create(PODS, pod("p4-new"))
    names, page = [], first
    while True:
        names += [one["metadata"]["name"] for one in page["items"]]
        if "continue" not in page["metadata"]:
            break
        _, page = await client.get(PODS, limit=3, **{"continue": page["metadata"]["continue"]})
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert names == [f"p{index}" for index in range(7)]


async def test_a_forgotten_snapshot_is_gone(tmp_path):
    async with running(tmp_path) as (server, client):
        for index in range(3):
            await client.create(PODS, pod(f"p{index}"))
        _, page = await client.get(PODS, limit=1)
        server._rest._snapshots._kept.clear()
        code, status = await client.get(PODS, limit=1, **{"continue": page["metadata"]["continue"]})
        assert (code, status["reason"]) == (410, "Expired")


async def test_events_are_the_same_objects_in_both_groups(client: Client):
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "web", "namespace": "default"},
        "message": "said",
        "reason": "R",
        "type": "Normal",
    }
    assert (await client.create(f"{CORE}/events", event))[0] == 201
    code, body = await client.get("/apis/events.k8s.io/v1/namespaces/default/events/e")
    assert (code, body["apiVersion"], body["note"], body["regarding"]["name"]) == (
        200,
        "events.k8s.io/v1",
        "said",
        "web",
    )
    newer = {
        "metadata": {"name": "f"},
        "regarding": {"kind": "Pod", "name": "web"},
        "note": "n",
        "eventTime": "2026-01-01T00:00:00.000000Z",
    }
    code, _ = await client.create("/apis/events.k8s.io/v1/namespaces/default/events", newer)
    assert code == 201
    _, listed = await client.get(f"{CORE}/events", fieldSelector="involvedObject.name=web")
    assert [(one["apiVersion"], one["message"]) for one in listed["items"]] == [("v1", "said"), ("v1", "n")]


async def test_tables_and_metadata(client: Client):
    await client.create(PODS, POD)
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    async with client.session.get(f"{client.url}{PODS}", headers={"Accept": accept}) as answer:
        table = await answer.json()
    assert [column["name"] for column in table["columnDefinitions"]][:4] == [
        "Name",
        "Ready",
        "Status",
        "Restarts",
    ]
    assert table["rows"][0]["cells"][:4] == ["web", "0/1", "Pending", "0"]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    async with client.session.get(f"{client.url}{PODS}", headers={"Accept": accept}) as answer:
        assert [sorted(one) for one in (await answer.json())["items"]] == [["apiVersion", "kind", "metadata"]]
    async with client.session.get(f"{client.url}{PODS}", headers={"Accept": "text/html"}) as answer:
        assert answer.status == 406


async def test_yaml_bodies_are_read(client: Client):
    body = b"metadata:\n  name: a\ndata:\n  k: v\n"
    code, made = await client.request("POST", MAPS, body, content_type="application/yaml")
    assert (code, made["data"]) == (201, {"k": "v"})


async def test_a_service_account_token_is_good_until_its_account_goes(client: Client):
    accounts = f"{CORE}/serviceaccounts"
    await client.create(accounts, {"metadata": {"name": "robot"}})
    code, review = await client.create(f"{accounts}/robot/token", {"spec": {"expirationSeconds": 600}})
    assert code == 201
    question = {"spec": {"token": review["status"]["token"]}}
    reviews = "/apis/authentication.k8s.io/v1/tokenreviews"
    _, answer = await client.create(reviews, question)
    assert answer["status"]["user"]["username"] == "system:serviceaccount:default:robot"
    await client.delete(f"{accounts}/robot")
    assert (await client.create(reviews, question))[1]["status"] == {"authenticated": False}


async def test_who_may_enter(tmp_path):
    tokens = tmp_path / "tokens.csv"
    tokens.write_text('secret,alice,1,"dev,ops"\n')
    async with running(tmp_path / "data", tokens=tokens) as (server, client):
        context = ssl.create_default_context(cafile=str(server.authority.certificate_path))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as stranger:
            for path, code in (
                ("/healthz", 200),
                ("/readyz", 200),
                ("/version", 200),
                ("/api", 401),
                (PODS, 401),
            ):
                async with stranger.get(client.url + path) as answer:
                    assert answer.status == code, path
            headers = {"Authorization": "Bearer secret"}
            url = f"{client.url}/apis/authentication.k8s.io/v1/selfsubjectreviews"
            async with stranger.post(url, json={}, headers=headers) as answer:
                user = (await answer.json())["status"]["userInfo"]
            assert user == {"username": "alice", "uid": "1", "groups": ["dev", "ops", "system:authenticated"]}
            async with stranger.get(client.url + PODS, headers={"Authorization": "Bearer wrong"}) as answer:
                assert answer.status == 401


async def test_discovery_tells_every_type_both_ways(client: Client):
    _, listed = await client.get("/apis/apps/v1")
    names = {one["name"] for one in listed["resources"]}
    assert {"deployments", "deployments/status", "deployments/scale"} <= names
    kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    async with client.session.get(f"{client.url}/apis", headers={"Accept": kind}) as answer:
        assert answer.headers["Content-Type"] == kind
        document = await answer.json()
    groups = {item["metadata"]["name"]: item["versions"] for item in document["items"]}
    apps = {one["resource"]: one for one in groups["apps"][0]["resources"]}
    assert {one["subresource"] for one in apps["deployments"]["subresources"]} == {"status", "scale"}
    _, plain = await client.get("/apis")
    assert {group["name"] for group in plain["groups"]} == set(groups)


async def test_every_openapi_document_holds_what_it_refers_to(client: Client):
    _, index = await client.get("/openapi/v3")
    assert {"api/v1", "apis/apps/v1"} <= set(index["paths"])
    for entry in index["paths"].values():
        path, _, digest = entry["serverRelativeURL"].partition("?hash=")
        code, document = await client.get(path, hash=digest)
        assert code == 200
        text, schemas = json.dumps(document), document["components"]["schemas"]
        for part in text.split('"#/components/schemas/')[1:]:
            assert part.split('"', 1)[0] in schemas


async def test_an_object_of_a_missing_namespace_is_refused(client: Client):
    code, status = await client.create("/api/v1/namespaces/none/configmaps", config_map("a"))
    assert (code, status["message"]) == (404, 'namespaces "none" not found')


async def test_what_must_not_change_does_not(client: Client):
    await client.create(DEPLOYMENTS, DEPLOYMENT)
    labels = {"app": "other"}
    change = {"spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}}
    code, status = await client.patch(f"{DEPLOYMENTS}/web", change)
    assert (code, status["details"]["causes"][0]["field"]) == (422, "spec.selector")
    await client.create(PODS, POD)
    change = [{"op": "replace", "path": "/spec/restartPolicy", "value": "Never"}]
    assert (await client.patch(f"{PODS}/web", change, "json"))[0] == 422
    change = [{"op": "replace", "path": "/spec/containers/0/image", "value": "example.org/web:2"}]
    assert (await client.patch(f"{PODS}/web", change, "json"))[0] == 200


async def test_a_replaced_service_keeps_its_addresses(client: Client):
    service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "type": "NodePort"}}
    path = f"{CORE}/services/s"
    given = {"metadata": {"name": "s"}, "spec": {**service["spec"], "clusterIP": "10.96.0.9"}}
    assert (await client.create(f"{CORE}/services", given))[0] == 201
    ports = [{"op": "add", "path": "/spec/ports/0/nodePort", "value": 30123}]
    assert (await client.patch(path, ports, "json"))[0] == 200
    _, after = await client.update(path, service)
    assert (after["spec"]["clusterIP"], after["spec"]["ports"][0]["nodePort"]) == ("10.96.0.9", 30123)
    code, status = await client.patch(path, {"spec": {"clusterIP": "10.96.0.10"}})
    assert (code, status["details"]["causes"][0]["field"]) == (422, "spec.clusterIPs[0]")
