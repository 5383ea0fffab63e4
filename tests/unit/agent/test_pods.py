"""What Pods does where the kernel or the store refuses: nothing is lost, and nothing is given twice."""

import asyncio
from dataclasses import replace
from ipaddress import ip_network

import pytest

from poplin.agent import pods as module
from poplin.agent.pods import ATTACHMENTS, Pods
from poplin.agent.registry import Registry
from poplin.cni.protocol import Command, Request
from poplin.datastore.attachments import AttachmentStore
from poplin.model.errors import KernelError, TemporaryError

CIDRS = (ip_network("10.244.1.0/29"),)


class StandInNetwork:
    pod_cidrs = CIDRS
    pod_mtu_bytes = 1450


class StandInHostPorts:
    def publish(self, attachment): ...
    def withdraw(self, attachment): ...


class StandInPolicies:
    async def admit(self, attachment): ...
    def dismiss(self, attachment): ...


class StandInWirer:
    """A kernel that refuses what `broken` names."""

    ports = frozenset()

    def __init__(self, _threads):
        self.broken = set()
        self.standing = set()

    def _may(self, what):
        if what in self.broken:
            raise KernelError(f"no {what}", errno=16)

    def wire(self, attachment, _netns_fd):
        self.standing.add(attachment.key)
        self._may("wire")
        return 4711

    def unwire(self, attachment):
        self._may("unwire")
        self.standing.discard(attachment.key)

    def detach(self, attachment, _netns_fd):
        self._may("detach")
        self.standing.discard(attachment.key)

    def is_gone(self, attachment):
        return attachment.key not in self.standing

    def reap(self): ...

    def close(self): ...


def request(container_id):
    return Request(
        Command.ADD, "1.0.0", container_id=container_id, ifname="eth0", netns=f"/run/netns/{container_id}"
    )


class Bench:
    def __init__(self, directory, monkeypatch):
        monkeypatch.setattr(module, "Wirer", StandInWirer)
        monkeypatch.setattr(module, "BOOT_ID", directory / "boot_id")
        (directory / "boot_id").write_text("one\n")
        self.directory = directory
        self.looks = 0
        self.heard = []
        self.open()

    def open(self):
        """Begin anew, as an agent does that finds the directory and the kernel as they are."""
        kernel = getattr(self, "wirer", None)
        self.store = AttachmentStore.open(self.directory / ATTACHMENTS)
        self.registry = Registry(self.store)
        self.registry.serve(CIDRS)
        self.pods = Pods(
            self.registry,
            StandInHostPorts(),
            self.directory,
            StandInNetwork,
            attached=lambda _: None,
            look=self._look,
            hear=self._hear,
            policies=StandInPolicies(),
        )
        self.wirer = self.pods._wirer
        self.wirer.standing = kernel.standing if kernel else set()

    def close(self):
        self.pods.close()
        self.store.close()

    def _hear(self):
        self.heard.append(
            [a.host_link for a in self.registry.all() if self.registry.standing_on(a.host_link)]
        )

    def _look(self):
        self.looks += 1

    async def reap(self):
        task = asyncio.create_task(self.pods.reap(), name="reap")
        await asyncio.sleep(module.REAP_DELAY_S * 3)
        task.cancel()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.close()


def test_the_kernels_words_of_a_pods_making_are_heard_before_it_stands(bench):
    async def steps():
        for number in range(2):
            await bench.pods.add(request(f"c{number}"), 0)
            await asyncio.sleep(0)

    asyncio.run(steps())
    first = bench.registry.all()[0].host_link
    assert bench.heard == [[], [first]]


def test_an_add_that_cannot_be_undone_gives_its_address_back_and_has_the_kernel_looked_at(bench):
    bench.wirer.broken = {"wire", "unwire"}

    async def steps():
        for number in range(20):  # more than there are addresses
            with pytest.raises(KernelError, match="no wire"):
                await bench.pods.add(request(f"c{number}"), 0)
        await bench.reap()

    asyncio.run(steps())
    assert len(bench.registry) == 0
    assert bench.looks > 0
    assert bench.registry.leaving() == set()


def test_an_add_that_cannot_be_stored_as_ready_is_undone(bench, monkeypatch):
    def full(_):
        raise TemporaryError("the disk is full")

    monkeypatch.setattr(bench.store, "update", full)
    with pytest.raises(TemporaryError, match="disk is full"):
        asyncio.run(bench.pods.add(request("c1"), 0))
    assert len(bench.registry) == 0
    assert bench.wirer.standing == set()


def test_an_add_that_cannot_be_forgotten_is_forgotten_later(bench, monkeypatch):
    def full(*_):
        raise TemporaryError("the disk is full")

    async def steps():
        bench.wirer.broken = {"wire"}
        with monkeypatch.context() as patch:
            patch.setattr(bench.store, "remove", full)
            with pytest.raises(KernelError, match="no wire"):
                await bench.pods.add(request("c1"), 0)
            await bench.pods.tidy()
            assert len(bench.registry) == 1
        await bench.pods.tidy()

    asyncio.run(steps())
    assert len(bench.registry) == 0


def test_what_cannot_be_put_in_order_at_the_start_keeps_no_agent_from_starting(bench):
    async def steps():
        bench.registry.reserve(module.Attachment("c1", "eth0", "", (), "", 1450, "pop1"), ())
        bench.close()
        bench.open()
        bench.wirer.broken = {"detach"}
        await bench.pods.settle()
        assert len(bench.registry) == 1
        bench.wirer.broken = set()
        await bench.pods.tidy()

    asyncio.run(steps())
    assert len(bench.registry) == 0


def test_after_a_boot_all_attachments_are_forgotten_and_before_one_none(bench):
    async def steps():
        await bench.pods.settle()
        await bench.pods.add(request("c1"), 0)
        bench.close()
        bench.open()
        await bench.pods.settle()
        assert len(bench.registry) == 1
        bench.close()
        bench.open()
        (bench.directory / "boot_id").write_text("two\n")
        await bench.pods.settle()

    asyncio.run(steps())
    assert len(bench.registry) == 0


def test_a_pod_whose_namespace_went_with_its_link_is_forgotten_at_the_start(bench):
    async def steps():
        await bench.pods.settle()
        await bench.pods.add(request("c1"), 0)
        await bench.pods.add(request("c2"), 0)
        bench.wirer.standing.discard(("c1", "eth0"))
        bench.close()
        bench.open()
        await bench.pods.settle()

    asyncio.run(steps())
    assert [one.container_id for one in bench.registry.all()] == ["c2"]


def test_a_store_that_cannot_be_written_is_told_by_status_until_it_can(bench):
    long = replace(request("c1"), netns="/run/netns/" + "n" * 10_000)  # more than a page

    async def steps():
        await bench.pods.settle()
        pages = bench.store._connection.execute("PRAGMA page_count").fetchone()[0]
        bench.store._connection.execute(f"PRAGMA max_page_count = {pages}")
        await bench.pods.status()
        with pytest.raises(TemporaryError, match="cannot be written"):
            await bench.pods.add(long, 0)
        with pytest.raises(TemporaryError, match="cannot be written"):
            await bench.pods.status()
        assert len(bench.registry) == 0
        bench.store._connection.execute("PRAGMA max_page_count = 100000")
        await bench.pods.tidy()
        await bench.pods.status()
        await bench.pods.add(long, 0)

    asyncio.run(steps())
