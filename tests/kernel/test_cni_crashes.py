"""Random ADD, DEL, CHECK and GC with a crash at any step: whatever happens, store, pool and kernel say the same.

A crash ends everything of an agent at once, in between two of its effects: a commit, a netlink operation, a write of
the host ports' table. SOAK_STEPS says how many commands there are, SOAK_SEED where chance begins.
"""

import asyncio
import os
import random
import shutil
from ipaddress import ip_network
from pathlib import Path

import pytest

from poplin.agent import pods as pods_module
from poplin.agent.config import AgentConfig
from poplin.agent.host_ports import HostPorts
from poplin.agent.pods import ATTACHMENTS, Pods
from poplin.agent.reconcile import Inputs, Reconciler
from poplin.agent.registry import Registry
from poplin.agent.wiring import read_state
from poplin.cni.error import CniError
from poplin.cni.protocol import Command, Request
from poplin.compile.pod import compile_pod
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import entered
from poplin.datastore.attachments import AttachmentStore
from poplin.model.attachment import HOST_LINK_PREFIX, AttachmentState, PortMapping
from poplin.model.cluster import TransportProtocol
from poplin.model.errors import PoplinError, TemporaryError
from poplin.model.state import unite
from poplin.plan.network import plan_network

STEPS = int(os.environ.get("SOAK_STEPS", "250"))
SEEDS = [int(os.environ.get("SOAK_SEED", "1")), int(os.environ.get("SOAK_SEED", "1")) + 1]
POD_NAMESPACES = 5
EFFECTS_MAX = 40
"""More effects than a command and what follows it have."""


class Crash(BaseException):
    """The process is gone."""


class Fuse:
    """Burns down with each effect, and lets none happen afterwards. It never burns where `left` is None."""

    def __init__(self):
        self.left = None
        self.dead = False

    def burn(self):
        if self.dead:
            raise Crash
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.dead = True
                raise Crash


@pytest.fixture
def fuse(monkeypatch):
    """A fuse before and after every effect of an agent."""
    made = Fuse()

    def wrap(owner, name):
        whole = getattr(owner, name)

        def burning(self, *arguments, **more):
            made.burn()
            result = whole(self, *arguments, **more)
            made.burn()
            return result

        monkeypatch.setattr(owner, name, burning)

    for name in ("add", "update", "remove", "boot"):
        wrap(AttachmentStore, name)
    wrap(HostPorts, "apply")
    wrap(RouteSocket, "rename")
    wrap(RouteSocket, "delete_group")
    apply = RouteSocket.apply

    def one_by_one(self, operations):
        failures = []
        for operation in operations:
            made.burn()
            failures += apply(self, [operation])
        made.burn()
        return failures

    monkeypatch.setattr(RouteSocket, "apply", one_by_one)
    monkeypatch.setattr(pods_module, "REAP_DELAY_S", 0)
    return made


class Network:
    pod_cidrs = (ip_network("10.244.1.0/28"), ip_network("fd00:10:244:1::/124"))
    pod_mtu_bytes = 1450


class Policies:
    async def admit(self, attachment): ...

    def dismiss(self, attachment): ...


class Life:
    """One agent, from its start to its end."""

    def __init__(self, directory):
        self.store = AttachmentStore.open(directory / ATTACHMENTS)
        self.registry = Registry(self.store)
        self.registry.serve(Network.pod_cidrs)
        self.host_ports = HostPorts(self.registry.mapped)
        self.reconciler = Reconciler(AgentConfig("n1", directory), self.registry, self.host_ports)
        self.pods = Pods(
            self.registry,
            self.host_ports,
            directory,
            Network,
            attached=lambda _: None,
            look=self.reconciler.forget,
            hear=lambda: None,
            policies=Policies(),
        )
        self.reaping = asyncio.create_task(self.pods.reap(), name="reap")

    async def end(self):
        self.reaping.cancel()
        await asyncio.gather(self.reaping, return_exceptions=True)
        self.pods.close()
        self.reconciler.close()
        self.host_ports.close()
        self.store.close()

    async def settle(self):
        """What comes of it when there is time: everything is undone, destroyed and reconciled."""
        while self.registry.leaving():
            if self.reaping.done():
                raise Crash
            await asyncio.sleep(0.001)
        self.reconciler.forget()
        outcome = await asyncio.to_thread(
            self.reconciler.run, Inputs(TemporaryError("no cluster")), self.registry.host_links()
        )
        assert outcome.failures == (), [str(f) for f in outcome.failures]


class Soak:
    def __init__(self, seed, node, netns, directory, fuse):
        self.chance = random.Random(seed)
        self.node = node
        self.namespaces = [netns() for _ in range(POD_NAMESPACES)]
        self.directory = directory
        self.fuse = fuse
        self.crashes = 0
        self.life = None
        self.answered = {}
        """What a runtime knows to be attached: addresses by key."""
        self.doubtful = set()
        """Keys of commands that ended without an answer."""

    async def run(self, steps):
        self.life = Life(self.directory)
        await self.life.pods.settle()
        for _ in range(steps):
            self.fuse.left = self.chance.randrange(1, EFFECTS_MAX) if self.chance.random() < 0.3 else None
            try:
                await self.step()
                await self.life.settle()
            except Crash:
                await self.restart()
            self.fuse.left = None
            self.check()
        await self.life.pods.gc(self.request(Command.GC, 0))
        await self.life.settle()
        self.answered, self.doubtful = {}, set()
        self.check()
        await self.life.end()

    async def restart(self):
        """Agents die and start until one does not die while it starts."""
        while True:
            self.crashes += 1
            self.fuse.dead = True
            await self.life.end()
            self.fuse.dead = False
            self.check_copy()
            self.fuse.left = self.chance.randrange(1, EFFECTS_MAX) if self.chance.random() < 0.2 else None
            self.life = Life(self.directory)
            try:
                await self.life.pods.settle()
                await self.life.settle()
            except Crash:
                continue
            return

    def request(self, command, number, **more):
        return Request(
            command,
            "1.1.0",
            container_id=f"c{number}",
            ifname="eth0",
            netns=self.namespaces[number].path,
            **more,
        )

    async def step(self):
        number = self.chance.randrange(POD_NAMESPACES)
        key = (f"c{number}", "eth0")
        fd = self.namespaces[number].fd
        match self.chance.choices(["add", "del", "check", "gc"], [5, 4, 2, 1])[0]:
            case "add":
                await self.add(number, key, fd)
            case "del":
                self.doubtful.add(key)
                self.answered.pop(key, None)
                await self.life.pods.delete(
                    self.request(Command.DEL, number), fd if self.chance.random() < 0.8 else None
                )
                self.doubtful.discard(key)
            case "check" if key in self.answered:
                await self.life.pods.check(self.request(Command.CHECK, number), fd)
            case "check" if key not in self.doubtful:
                with pytest.raises(CniError):
                    await self.life.pods.check(self.request(Command.CHECK, number), fd)
            case "gc":
                valid = frozenset(key for key in self.answered if self.chance.random() < 0.7)
                self.doubtful |= self.answered.keys() - valid
                self.answered = {key: self.answered[key] for key in valid}
                await self.life.pods.gc(self.request(Command.GC, 0, valid_attachments=valid))
                self.doubtful.clear()

    async def add(self, number, key, fd):
        mappings = (PortMapping(TransportProtocol.TCP, 8000 + number, 80),) if number % 2 else ()
        request = self.request(Command.ADD, number, port_mappings=mappings)
        if key in self.answered:
            with pytest.raises(PoplinError, match="added already"):
                await self.life.pods.add(request, fd)
            return
        if key in self.doubtful:
            # A runtime deletes what it could not add.
            await self.life.pods.delete(self.request(Command.DEL, number), fd)
        self.doubtful.add(key)
        result = await self.life.pods.add(request, fd)
        self.answered[key] = tuple(ip.address.ip for ip in result.ips)
        self.doubtful.discard(key)

    def check(self):
        attachments = self.life.registry.all()
        by_key = {a.key: a for a in attachments}
        assert {a.state for a in attachments} <= {AttachmentState.READY}
        # Every pod that a runtime has stands with its addresses, and no other but those it has no answer of.
        assert {key: by_key[key].addresses for key in self.answered} == self.answered
        assert by_key.keys() <= self.answered.keys() | self.doubtful
        addresses = [address for a in attachments for address in a.addresses]
        assert len(set(addresses)) == len(addresses)
        assert self.life.store.all() == sorted(attachments, key=lambda a: a.key)
        self.check_pool(addresses)
        self.check_kernel(attachments)

    def check_pool(self, addresses):
        """Neither more nor less than what attachments have is in use."""
        pool = self.life.registry._pool
        assert set(pool.owners()) == set(addresses)

    def check_kernel(self, attachments):
        wirings = {a.container_id: compile_pod(a) for a in attachments}
        state = read_state(self.node.socket)
        assert plan_network(unite([w.host for w in wirings.values()]), state) == []
        links = {name for name in state.links if name.startswith(HOST_LINK_PREFIX)}
        assert links == {a.host_link for a in attachments}
        for number, namespace in enumerate(self.namespaces):
            inside = read_state(namespace.socket)
            wiring = wirings.get(f"c{number}")
            if wiring is None:
                assert inside.links.keys() == {"lo"}
            else:
                assert plan_network(wiring.pod, inside) == []
        assert self.life.host_ports.apply() == 0

    def check_copy(self):
        """A copy of the state directory, taken at the moment of the crash, opens."""
        copy = self.directory.with_name("copy")
        shutil.copytree(self.directory, copy)
        store = AttachmentStore.open(copy / ATTACHMENTS)
        assert len(store.all()) <= POD_NAMESPACES
        store.close()
        shutil.rmtree(copy)


@pytest.mark.parametrize("seed", SEEDS)
def test_store_pool_and_kernel_agree_whatever_crashes(seed, netns, tmp_path, fuse):
    node = netns()
    directory = tmp_path / "lib"
    directory.mkdir()
    soak = Soak(seed, node, netns, directory, fuse)
    with entered(node.fd):
        asyncio.run(soak.run(STEPS))
    assert soak.crashes > STEPS / 20
    assert Path(directory / ATTACHMENTS).exists()
