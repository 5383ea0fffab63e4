"""Namespaces, owners, finalizers and custom resources over HTTP."""

import pytest

from e2e.apiserver_harness import POD, Client, config_map, running

MAPS = "/api/v1/namespaces/default/configmaps"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.org/v1/namespaces/default/widgets"
SCHEMA = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 9},
                "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                "port": {"x-kubernetes-int-or-string": True},
                "label": {"type": "string", "pattern": "^[a-z]+$"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "replicas": {"type": "integer"},
            },
        },
        "status": {
            "type": "object",
            "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}},
        },
    },
}
SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.org"},
    "spec": {
        "group": "example.org",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
        "versions": [
            {
                "name": name,
                "served": True,
                "storage": name == "v1",
                "schema": {"openAPIV3Schema": SCHEMA},
                "subresources": {"status": {}, "scale": SCALE},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
            }
            for name in ("v1", "v1beta1")
        ],
    },
}


def widget(name: str, **spec: object) -> dict:
    return {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def owned(name: str, owner: dict, *, block: bool = False) -> dict:
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"]}
    reference |= {"uid": owner["metadata"]["uid"], "blockOwnerDeletion": block}
    return {**config_map(name), "metadata": {"name": name, "ownerReferences": [reference]}}


@pytest.fixture
async def client(tmp_path):
    async with running(tmp_path) as (_, client):
        yield client


async def test_every_namespace_is_furnished(client: Client):
    await client.create("/api/v1/namespaces", {"metadata": {"name": "team"}})
    account = "/api/v1/namespaces/team/serviceaccounts/default"
    for path in (account, "/api/v1/namespaces/team/configmaps/kube-root-ca.crt"):
        await client.until(path, lambda code, _: code == 200)
    _, first = await client.get(account)
    await client.delete(account)
    await client.until(
        account, lambda code, body: code == 200 and body["metadata"]["uid"] != first["metadata"]["uid"]
    )


async def test_a_namespace_goes_with_all_it_holds(client: Client):
    team = "/api/v1/namespaces/team"
    await client.create("/api/v1/namespaces", {"metadata": {"name": "team"}})
    held = {**config_map("held"), "metadata": {"name": "held", "finalizers": ["example.org/hold"]}}
    await client.create(f"{team}/configmaps", held)
    await client.create(f"{team}/pods", POD)
    code, body = await client.delete(team)
    assert (code, body["status"]["phase"]) == (200, "Terminating")
    await client.until_gone(f"{team}/pods/web")
    code, status = await client.create(f"{team}/configmaps", config_map("late"))
    assert (code, status["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    assert (await client.get(team))[0] == 200
    await client.patch(f"{team}/configmaps/held", {"metadata": {"finalizers": None}})
    await client.until_gone(team)
    assert (await client.get("/api/v1/configmaps", fieldSelector="metadata.namespace=team"))[1]["items"] == []


async def test_some_namespaces_stay(client: Client):
    code, status = await client.delete("/api/v1/namespaces/default")
    assert (code, status["reason"]) == (403, "Forbidden")


async def test_a_finalizer_holds_an_object(client: Client):
    body = {**config_map("a"), "metadata": {"name": "a", "finalizers": ["example.org/hold"]}}
    await client.create(MAPS, body)
    code, held = await client.delete(f"{MAPS}/a")
    assert (code, "deletionTimestamp" in held["metadata"]) == (200, True)
    added = {"metadata": {"finalizers": ["example.org/hold", "example.org/more"]}}
    assert (await client.patch(f"{MAPS}/a", added))[0] == 422
    assert (await client.patch(f"{MAPS}/a", {"metadata": {"finalizers": []}}))[0] == 200
    assert (await client.get(f"{MAPS}/a"))[0] == 404


async def test_background_deletion_takes_dependents_of_dependents(client: Client):
    _, owner = await client.create(MAPS, config_map("owner"))
    _, child = await client.create(MAPS, owned("child", owner))
    await client.create(MAPS, owned("grandchild", child))
    await client.delete(f"{MAPS}/owner")
    await client.until_gone(f"{MAPS}/child")
    await client.until_gone(f"{MAPS}/grandchild")


async def test_orphaned_dependents_stay_without_their_owner(client: Client):
    _, owner = await client.create(MAPS, config_map("owner"))
    await client.create(MAPS, owned("child", owner))
    await client.delete(f"{MAPS}/owner", propagationPolicy="Orphan")
    await client.until_gone(f"{MAPS}/owner")
    code, child = await client.get(f"{MAPS}/child")
    assert (code, child["metadata"].get("ownerReferences")) == (200, None)


async def test_foreground_deletion_waits_for_blocking_dependents(client: Client):
    _, owner = await client.create(MAPS, config_map("owner"))
    child = owned("child", owner, block=True)
    child["metadata"]["finalizers"] = ["example.org/hold"]
    await client.create(MAPS, child)
    code, body = await client.delete(f"{MAPS}/owner", propagationPolicy="Foreground")
    assert (code, body["metadata"]["finalizers"]) == (200, ["foregroundDeletion"])
    await client.until(f"{MAPS}/child", lambda _, body: "deletionTimestamp" in body["metadata"])
    assert (await client.get(f"{MAPS}/owner"))[0] == 200
    await client.patch(f"{MAPS}/child", {"metadata": {"finalizers": None}})
    await client.until_gone(f"{MAPS}/child")
    await client.until_gone(f"{MAPS}/owner")


async def test_a_dependent_of_an_owner_that_never_was_is_collected(client: Client):
    nobody = {"metadata": {"name": "nobody", "uid": "00000000-0000-0000-0000-000000000000"}}
    await client.create(MAPS, owned("child", nobody))
    await client.until_gone(f"{MAPS}/child")


async def test_a_dependent_with_a_living_owner_loses_only_the_dead_reference(client: Client):
    _, one = await client.create(MAPS, config_map("one"))
    _, two = await client.create(MAPS, config_map("two"))
    child = owned("child", one)
    child["metadata"]["ownerReferences"] += owned("child", two)["metadata"]["ownerReferences"]
    await client.create(MAPS, child)
    await client.delete(f"{MAPS}/one")
    await client.until(f"{MAPS}/child", lambda _, body: len(body["metadata"]["ownerReferences"]) == 1)
    assert (await client.get(f"{MAPS}/child"))[1]["metadata"]["ownerReferences"][0]["name"] == "two"


async def test_a_definition_serves_its_type_at_once(client: Client):
    code, made = await client.create(DEFINITIONS, DEFINITION)
    conditions = {one["type"]: one["status"] for one in made["status"]["conditions"]}
    assert (code, conditions) == (201, {"NamesAccepted": "True", "Established": "True"})
    assert made["status"]["storedVersions"] == ["v1"]
    code, body = await client.create(WIDGETS, widget("a", size=3, port="http", free={"any": [1]}, odd=1))
    assert (code, body["spec"]) == (201, {"size": 3, "color": "red", "port": "http", "free": {"any": [1]}})
    assert body["metadata"]["generation"] == 1
    _, listed = await client.get("/apis/example.org/v1")
    assert {one["name"] for one in listed["resources"]} == {"widgets", "widgets/status", "widgets/scale"}
    assert (await client.get("/apis/example.org"))[1]["preferredVersion"]["version"] == "v1"


async def test_the_schema_of_a_custom_resource_is_enforced(client: Client):
    await client.create(DEFINITIONS, DEFINITION)
    wrong = widget("a", size=10, color="green", port=[], label="UPPER")
    code, status = await client.create(WIDGETS, wrong)
    causes = {cause["field"]: cause["reason"] for cause in status["details"]["causes"]}
    assert (code, causes) == (
        422,
        {
            "spec.size": "FieldValueInvalid",
            "spec.color": "FieldValueNotSupported",
            "spec.port": "FieldValueTypeInvalid",
            "spec.label": "FieldValueInvalid",
        },
    )
    code, status = await client.create(WIDGETS, {"metadata": {"name": "a"}, "spec": {}})
    assert [cause["field"] for cause in status["details"]["causes"]] == ["spec.size"]
    code, status = await client.create(WIDGETS, widget("a", size=1, odd=1), fieldValidation="Strict")
    assert (code, 'unknown field "spec.odd"' in status["message"]) == (400, True)


async def test_status_and_scale_of_a_custom_resource(client: Client):
    await client.create(DEFINITIONS, DEFINITION)
    _, made = await client.create(WIDGETS, {**widget("a", size=1, replicas=2), "status": {"replicas": 7}})
    assert "status" not in made
    state = {"replicas": 2, "selector": "a=b"}
    code, body = await client.patch(f"{WIDGETS}/a/status", {"status": state, "spec": {"size": 5}})
    assert (code, body["status"], body["spec"]["size"], body["metadata"]["generation"]) == (200, state, 1, 1)
    _, scale = await client.get(f"{WIDGETS}/a/scale")
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, state)
    assert (await client.patch(f"{WIDGETS}/a/scale", {"spec": {"replicas": 4}}))[0] == 200
    code, body = await client.get(f"{WIDGETS}/a")
    assert (body["spec"]["replicas"], body["metadata"]["generation"]) == (4, 2)


async def test_every_version_shows_the_same_objects(client: Client):
    await client.create(DEFINITIONS, DEFINITION)
    await client.create(WIDGETS, widget("a", size=1))
    older = WIDGETS.replace("/v1/", "/v1beta1/")
    async with client.watch(older) as watch:
        kind, body = await watch.next()
        assert (kind, body["apiVersion"]) == ("ADDED", "example.org/v1beta1")
        code, body = await client.patch(f"{older}/a", {"spec": {"size": 2}})
        assert (code, body["apiVersion"], body["spec"]["size"]) == (200, "example.org/v1beta1", 2)
        assert (await watch.next())[1]["apiVersion"] == "example.org/v1beta1"
    _, body = await client.get(f"{WIDGETS}/a")
    assert (body["apiVersion"], body["spec"]["size"]) == ("example.org/v1", 2)
    # Writing back what another version shows changes nothing.
    _, same = await client.get(f"{older}/a")
    assert (await client.update(f"{older}/a", same))[1]["metadata"] == body["metadata"]


async def test_a_definition_goes_with_its_objects(client: Client):
    await client.create(DEFINITIONS, DEFINITION)
    await client.create(WIDGETS, widget("a", size=1))
    async with client.watch(WIDGETS) as watch:
        await client.delete(f"{DEFINITIONS}/widgets.example.org")
        assert await watch.names(2) == [("ADDED", "a"), ("DELETED", "a")]
        assert await watch.next() == ("END", None)
    await client.until_gone(f"{DEFINITIONS}/widgets.example.org")
    assert (await client.get(WIDGETS))[0] == 404
    assert (await client.create(DEFINITIONS, DEFINITION))[0] == 201
    assert (await client.get(WIDGETS))[1]["items"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metadata": {"name": "other"}}, "metadata.name"),
        ({"spec": {**DEFINITION["spec"], "conversion": {"strategy": "Webhook"}}}, "spec.conversion.strategy"),
        (
            {"spec": {**DEFINITION["spec"], "versions": [{"name": "v1", "served": True, "storage": True}]}},
            "spec.versions[0].schema.openAPIV3Schema",
        ),
    ],
)
async def test_a_bad_definition_is_refused(client: Client, change: dict, field: str):
    code, status = await client.create(DEFINITIONS, {**DEFINITION, **change})
    assert (code, field in [cause["field"] for cause in status["details"]["causes"]]) == (422, True)


async def test_custom_resources_are_there_after_a_restart(tmp_path):
    async with running(tmp_path) as (_, client):
        await client.create(DEFINITIONS, DEFINITION)
        _, made = await client.create(WIDGETS, widget("a", size=1))
    async with running(tmp_path) as (_, client):
        assert await client.get(f"{WIDGETS}/a") == (200, made)
