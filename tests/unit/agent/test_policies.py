"""Who waits for policy, for how long, and what is written when."""

import asyncio
from ipaddress import ip_address

import pytest

from poplin.agent import policies as module
from poplin.agent.enforcer import Enforcer, Written
from poplin.agent.policies import Policies
from poplin.datastore.core import NODES, POD_IPS
from poplin.datastore.parse import InvalidObjectError
from poplin.datastore.resource import Metadata
from poplin.datastore.source import Put, Rejected, Replaced, Unavailable
from poplin.model.attachment import Attachment, AttachmentState
from poplin.model.cluster import Namespace, NetworkPolicy, Node, Pod
from poplin.model.errors import KernelError, TemporaryError
from unit.agent.waiting import until

POLICY = NetworkPolicy("default", "p")
ATTACHMENT = Attachment(
    container_id="c",
    ifname="eth0",
    netns="/run/netns/x",
    addresses=(ip_address("10.244.1.2"),),
    mac="02:00:00:00:00:01",
    mtu_bytes=1450,
    host_link="pop1",
    pod_namespace="default",
    pod_name="web",
    pod_uid="u1",
    state=AttachmentState.READY,
)


class StandInEnforcer:
    """Remembers what it is told, and when it was to write."""

    ports = frozenset()

    def __init__(self, _node):
        self.told = []
        self.written = []
        self.failures = []
        self.sweeps = 0

    def close(self): ...

    def write(self):
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(list(self.told))
        return Written(1, concerns_standing=True)

    def sweep(self, _budget_s):
        self.sweeps += 1
        return True


def remembering(name):
    return lambda self, *arguments: self.told.append((name, *arguments))


for _name in [
    name for name in vars(Enforcer) if not name.startswith("_") and name not in vars(StandInEnforcer)
]:
    setattr(StandInEnforcer, _name, remembering(_name))


class StandInSource:
    def __init__(self):
        self.queues = {}
        self.pods = {}
        self.annotated = []
        self.asked = 0
        self.node = Node("n1")

    async def watch(self, resource):
        queue = self.queues.setdefault(resource.plural, asyncio.Queue())
        while True:
            yield await queue.get()

    def tell(self, plural, event):
        self.queues.setdefault(plural, asyncio.Queue()).put_nowait(event)

    def fill(self, *policies):
        self.tell("namespaces", Replaced((Namespace("default"),)))
        self.tell("pods", Replaced(()))
        self.tell("networkpolicies", Replaced(policies))

    async def get(self, resource, name, *, namespace=""):
        if resource is NODES:
            return self.node
        self.asked += 1
        return self.pods.get((namespace, name))

    async def annotate_pod(self, namespace, name, annotations, *, uid=""):
        self.annotated.append((namespace, name, annotations, uid))


@pytest.fixture
async def running(monkeypatch):
    monkeypatch.setattr(module, "Enforcer", StandInEnforcer)
    monkeypatch.setattr(module, "RETRY_S", (0.001,))
    source = StandInSource()
    policies = Policies(source, "n1", list)
    task = asyncio.create_task(policies.run())
    yield policies, source, policies._enforcer
    task.cancel()
    await asyncio.wait([task])
    policies.close()


async def test_nothing_is_written_before_all_watches_are_filled(running):
    policies, source, enforcer = running
    source.tell("pods", Replaced(()))
    source.tell("networkpolicies", Replaced((POLICY,)))
    await asyncio.sleep(0.02)
    assert enforcer.told == []
    assert "first list" in str(policies.not_in_force)
    source.tell("namespaces", Replaced(()))
    await until(lambda: enforcer.written)
    assert policies.not_in_force is None
    await until(lambda: enforcer.sweeps)


async def test_lists_of_a_server_that_does_not_know_the_node_are_not_written_before_better_ones_come(running):
    policies, source, enforcer = running
    source.fill(POLICY)
    await until(lambda: enforcer.written)
    source.node = None
    source.tell("networkpolicies", Replaced(()))
    await until(lambda: policies.not_in_force)
    assert "node n1: is not among the cluster's nodes: policy stays" in str(policies.not_in_force)
    written = len(enforcer.written)
    # The server is back before its lists are.
    source.tell("networkpolicies", Unavailable(TemporaryError("connection lost")))
    await until(lambda: "connection lost" in str(policies.policies.not_in_sync))
    source.node = Node("n1")
    await until(lambda: "connection lost" in str(policies.failure))
    assert len(enforcer.written) == written
    source.tell("networkpolicies", Replaced((POLICY,)))
    await until(lambda: policies.not_in_force is None)
    assert [len(told[1]) for told in enforcer.written[written] if told[0] == "replace_policies"] == [1, 0, 1]


async def test_without_policies_nobody_waits(running):
    policies, source, enforcer = running
    source.fill()
    await until(lambda: enforcer.written)
    await policies.admit(ATTACHMENT)
    assert (source.asked, source.annotated) == (0, [])
    await until(lambda: ("attach", ATTACHMENT) in enforcer.told)


async def test_admit_returns_when_the_pod_is_written_with_its_labels(running):
    policies, source, enforcer = running
    source.fill(POLICY)
    pod = Pod("default", "web", uid="u1", labels={"a": "b"})
    source.pods["default", "web"] = pod
    await policies.admit(ATTACHMENT)
    assert ("put_pod", pod) in enforcer.written[-1]
    assert ("attach", ATTACHMENT) in enforcer.written[-1]
    await until(lambda: source.annotated)
    assert source.annotated == [("default", "web", {POD_IPS: "10.244.1.2"}, "u1")]


async def test_a_pod_that_the_watch_has_shown_is_not_asked_for(running):
    policies, source, _ = running
    source.fill(POLICY)
    source.tell("pods", Put(Pod("default", "web", uid="u1")))
    await until(lambda: policies.pods.objects)
    await policies.admit(ATTACHMENT)
    assert source.asked == 0
    source.tell("pods", Put(Pod("default", "web", uid="u0")))  # the one before it, of the same name
    await until(lambda: policies.pods.objects["default", "web"].uid == "u0")
    await policies.admit(ATTACHMENT)
    assert source.asked == 1


async def test_admit_says_what_keeps_policy_from_being_in_force(running, monkeypatch):
    policies, source, enforcer = running
    monkeypatch.setattr(module, "ADMIT_S", 0.05)
    source.tell("networkpolicies", Unavailable(TemporaryError("forbidden")))
    with pytest.raises(TemporaryError, match="not in force after 0 s"):
        await policies.admit(ATTACHMENT)
    source.fill(POLICY)
    await until(lambda: enforcer.written)
    enforcer.failures.append(KernelError("no memory", errno=12))
    with pytest.raises(KernelError, match="no memory"):
        await policies.admit(ATTACHMENT)
    # It is tried again, and no change is lost.
    await until(lambda: policies.failure is None and ("attach", ATTACHMENT) in enforcer.written[-1])


async def test_a_policy_that_cannot_be_read_is_a_problem_and_a_change(running):
    policies, source, enforcer = running
    error = InvalidObjectError("spec: wrong", kind="NetworkPolicy", metadata=Metadata("bad", "default"))
    source.fill(NetworkPolicy("default", "p", problems=("spec.x: 1 is not y",)))
    source.tell("networkpolicies", Rejected(error))
    await until(lambda: ("put_policy", error) in enforcer.told)
    assert sorted(policies.problems) == [
        "NetworkPolicy default/bad: spec: wrong; correct this NetworkPolicy",
        "NetworkPolicy default/p: spec.x: 1 is not y",
    ]


async def test_an_audit_reads_the_table_and_looks_at_all_connections(running):
    policies, source, enforcer = running
    source.fill(POLICY)
    await until(lambda: enforcer.sweeps)
    before = enforcer.sweeps
    await policies.audit()
    assert ("forget",) in enforcer.told
    await until(lambda: enforcer.sweeps > before)


async def test_what_is_dismissed_is_forgotten(running):
    policies, source, enforcer = running
    source.fill(POLICY)
    await policies.admit(ATTACHMENT)
    policies.dismiss(ATTACHMENT)
    await until(lambda: ("detach", ATTACHMENT) in enforcer.told)
