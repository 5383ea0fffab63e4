"""The wall clock jumps by a year, either way: nothing that the agent does depends on it."""

import asyncio
import time
from ipaddress import ip_address, ip_network

import pytest

from poplin.agent.loop import Loop
from poplin.agent.reconcile import Inputs, Outcome
from poplin.agent.registry import Registry
from poplin.datastore.attachments import AttachmentStore
from poplin.model.attachment import Attachment, host_link_name, pod_mac
from poplin.model.errors import TemporaryError
from unit.agent.waiting import until

YEAR_S = 365 * 86400.0
LONG_S = 3600.0
CIDRS = (ip_network("10.244.1.0/29"),)
LAST = ip_address("10.244.1.6")
BOTH_WAYS = pytest.mark.parametrize("jump_s", [-YEAR_S, YEAR_S], ids=["back", "forward"])


@pytest.fixture
def jump(monkeypatch):
    """Set the wall clock otherwise from now on."""
    true, true_ns = time.time, time.time_ns

    def by(jump_s):
        monkeypatch.setattr(time, "time", lambda: true() + jump_s)
        monkeypatch.setattr(time, "time_ns", lambda: true_ns() + int(jump_s * 1e9))

    return by


class Reconciler:
    """Counts its passes, of which the first few fail."""

    def __init__(self, failing=0):
        self.passes = 0
        self.failing = failing

    def forget(self):
        pass

    def run(self, _inputs, _pods):
        self.passes += 1
        failed = self.passes <= self.failing
        return Outcome(None, failures=(TemporaryError("EBUSY"),) if failed else ())


async def passes_around_a_jump(jump, reconciler, audit_s, passes):
    """Run a loop until there were `passes`, with a jump and a wish after the first; and a moment longer."""
    loop = Loop(
        reconciler,
        inputs=lambda: Inputs(TemporaryError("no matter")),
        pods=lambda: (),
        done=lambda _: None,
        coalesce_s=0.0,
        audit_s=audit_s,
    )
    running = asyncio.create_task(loop.run())
    try:
        await until(lambda: loop.passes >= 1)
        jump()
        loop.wake()
        await until(lambda: loop.passes >= passes)
        await asyncio.sleep(0.05)
        return loop.passes
    finally:
        running.cancel()
        await asyncio.wait([running])
        loop.close()


@BOTH_WAYS
async def test_wishes_audits_and_retries_come_as_before_and_no_other_passes(jump, jump_s):
    async def passes(reconciler, audit_s, wanted):
        return await passes_around_a_jump(lambda: jump(jump_s), reconciler, audit_s, wanted)

    assert await passes(Reconciler(), LONG_S, 2) == 2
    assert await passes(Reconciler(failing=2), LONG_S, 3) >= 3
    assert await passes(Reconciler(), 0.01, 4) >= 4


def attach(registry, number, *requested):
    name = f"c{number}"
    draft = Attachment(
        name, "eth0", f"/run/netns/{name}", (), pod_mac(name, "eth0"), 1450, host_link_name(name, "eth0")
    )
    attachment = registry.reserve(draft, requested)
    registry.confirm(attachment)
    return attachment


def detach(registry, attachment):
    registry.claim(attachment)
    registry.release(attachment)


@BOTH_WAYS
def test_addresses_rest_and_none_is_anothers(tmp_path, jump, jump_s):
    store = AttachmentStore.open(tmp_path / "attachments.db")
    registry = Registry(store)
    registry.serve(CIDRS)
    gone = attach(registry, 1)
    detach(registry, gone)
    # Addresses are given in turn; after the last one it would be that of the first pod again.
    standing = attach(registry, 2, LAST)
    jump(jump_s)
    after = attach(registry, 3)
    assert after.addresses not in {standing.addresses, gone.addresses}
    detach(registry, after)
    store.close()
    # The next agent has the wall clock alone to go by for what rested. All addresses are there, each once.
    store = AttachmentStore.open(tmp_path / "attachments.db")
    registry = Registry(store)
    registry.serve(CIDRS)
    owners = [standing, *(attach(registry, number) for number in range(4, 9))]
    assert len({one.addresses for one in owners}) == len(owners) == 6
    assert owners[1].addresses != after.addresses
    store.close()
