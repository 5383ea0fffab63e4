"""What a new pod gets from other objects: its priority, and its service account's token."""

import pytest

from e2e.apiserver_harness import POD, Client, running

PODS = "/api/v1/namespaces/default/pods"
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


@pytest.fixture
async def client(tmp_path):
    async with running(tmp_path) as (_, one):
        yield one


def pod(**spec):
    return {**POD, "spec": {**POD["spec"], **spec}}


def priority_class(name, value, **more):
    return {"metadata": {"name": name}, "value": value, **more}


async def priority(client: Client, **spec):
    """Priority, class and policy of a new pod."""
    code, made = await client.create(PODS, pod(**spec), dryRun="All")
    assert code == 201, made
    return tuple(made["spec"].get(key) for key in ("priority", "priorityClassName", "preemptionPolicy"))


async def test_priority(client: Client):
    assert await priority(client) == (0, None, "PreemptLowerPriority")
    assert (await client.create(CLASSES, priority_class("high", 7, preemptionPolicy="Never")))[0] == 201
    assert await priority(client, priorityClassName="high") == (7, "high", "Never")
    system = await priority(client, priorityClassName="system-node-critical")
    assert system[0] == 2_000_001_000
    assert (await client.create(CLASSES, priority_class("usual", 3, globalDefault=True)))[0] == 201
    assert await priority(client) == (3, "usual", "PreemptLowerPriority")
    assert await priority(client, priority=3) == (3, "usual", "PreemptLowerPriority")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"priorityClassName": "no"}, "no PriorityClass with name no was found"),
        ({"priority": 5}, "the integer value of priority (5) must not be provided in pod spec"),
        ({"serviceAccountName": "no"}, 'error looking up service account default/no: serviceaccount "no" not found'),
    ],
)  # fmt: skip
async def test_a_pod_that_asks_for_what_there_is_not(client: Client, spec, why):
    code, answer = await client.create(PODS, pod(**spec))
    assert (code, answer["reason"]) == (403, "Forbidden")
    assert f'pods "web" is forbidden: {why}' in answer["message"]


@pytest.mark.parametrize(
    ("body", "code", "why"),
    [
        (priority_class("system-mine", 1), 422, "reserved for system use"),
        (priority_class("top", 1_000_000_001), 422, "maximum allowed value"),
        (priority_class("second", 1, globalDefault=True), 403, "PriorityClass first is already marked as default"),
    ],
)  # fmt: skip
async def test_priority_classes_that_cannot_be(client: Client, body, code, why):
    assert (await client.create(CLASSES, priority_class("first", 1, globalDefault=True)))[0] == 201
    answered, answer = await client.create(CLASSES, body)
    assert (answered, why in answer["message"]) == (code, True)


def mounts(made):
    return [one.get("volumeMounts", []) for one in made["spec"]["containers"]]


async def test_the_token_is_mounted_where_nothing_else_is(client: Client):
    own = {"name": "mine", "mountPath": TOKEN_PATH}
    containers = [{"name": "a", "image": "x"}, {"name": "b", "image": "x", "volumeMounts": [own]}]
    volumes = [{"name": "mine", "emptyDir": {}}]
    code, made = await client.create(PODS, pod(containers=containers, volumes=volumes))
    assert code == 201, made
    mine, token = made["spec"]["volumes"]
    assert mine["name"] == "mine"
    assert [next(iter(source)) for source in token["projected"]["sources"]] == [
        "serviceAccountToken", "configMap", "downwardAPI",
    ]  # fmt: skip
    assert mounts(made) == [[{"name": token["name"], "readOnly": True, "mountPath": TOKEN_PATH}], [own]]
    # What it was given is part of it from then on: nothing is added a second time.
    code, again = await client.update(f"{PODS}/web", made)
    assert (code, again["spec"]) == (200, made["spec"])


@pytest.mark.parametrize(
    ("of_account", "of_pod", "mounted"),
    [(None, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
async def test_whether_the_token_is_wanted(client: Client, of_account, of_pod, mounted):
    account = {"metadata": {"name": "robot"}, "imagePullSecrets": [{"name": "key"}]}
    if of_account is not None:
        account["automountServiceAccountToken"] = of_account
    assert (await client.create(ACCOUNTS, account))[0] == 201
    wanted = {} if of_pod is None else {"automountServiceAccountToken": of_pod}
    code, made = await client.create(PODS, pod(serviceAccountName="robot", **wanted))
    assert code == 201, made
    assert bool(mounts(made)[0]) == mounted
    assert ("volumes" in made["spec"]) == mounted
    assert made["spec"]["imagePullSecrets"] == [{"name": "key"}]
