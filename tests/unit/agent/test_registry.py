"""Attachments are durable before the kernel knows of them: what a new agent finds after a crash at each step."""

from ipaddress import ip_address, ip_network

import pytest

from poplin.agent.registry import Registry
from poplin.datastore.attachments import AttachmentStore
from poplin.ipam.pool import PoolExhaustedError
from poplin.model.attachment import Attachment, AttachmentState, host_link_name, pod_mac
from poplin.model.errors import PoplinError, TemporaryError
from poplin.model.kernel import Link
from poplin.plan.operation import Put, Remove

CIDRS = (ip_network("10.244.1.0/29"), ip_network("fd00:10:244:1::/64"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "attachments.db"


@pytest.fixture
def registry(path):
    store = AttachmentStore.open(path)
    registry = Registry(store)
    registry.serve(CIDRS)
    yield registry
    store.close()


def draft(container_id="c1", ifname="eth0"):
    return Attachment(
        container_id,
        ifname,
        f"/run/netns/{container_id}",
        (),
        pod_mac(container_id, ifname),
        1450,
        host_link_name(container_id, ifname),
    )


def after_a_crash(path):
    """What the next agent finds: the first one's connection stays open, as a killed one's files would be."""
    store = AttachmentStore.open(path)
    registry = Registry(store)
    registry.serve(CIDRS)
    return registry, store


def test_a_crash_while_adding_leaves_what_is_to_be_undone(registry, path):
    attachment = registry.reserve(draft(), ())
    fresh, store = after_a_crash(path)
    assert fresh.unfinished() == [attachment]
    assert fresh.snapshot().ready == ()
    assert attachment.host_link in fresh.snapshot().claimed
    assert fresh.standing_on(attachment.host_link) is None
    # Nobody gets its addresses in the meantime.
    assert not set(fresh.reserve(draft("c2"), ()).addresses) & set(attachment.addresses)
    fresh.claim(attachment)
    fresh.release(attachment)
    assert fresh.unfinished() == [fresh.get(("c2", "eth0"))]
    store.close()


def test_a_crash_after_the_pod_stands_leaves_it_standing(registry, path):
    attachment = registry.reserve(draft(), ())
    registry.confirm(attachment)
    fresh, store = after_a_crash(path)
    assert fresh.unfinished() == []
    [ready] = fresh.snapshot().ready
    assert (ready.addresses, ready.state) == (attachment.addresses, AttachmentState.READY)
    assert fresh.standing_on(ready.host_link) == ready
    store.close()


def test_a_crash_while_deleting_leaves_the_pod(registry, path):
    attachment = registry.reserve(draft(), ())
    registry.confirm(attachment)
    registry.claim(attachment)
    fresh, store = after_a_crash(path)
    assert len(fresh) == 1
    store.close()


def test_after_a_release_the_addresses_rest_also_for_the_next_agent(registry, path):
    attachment = registry.reserve(draft(), ())
    registry.confirm(attachment)
    registry.claim(attachment)
    registry.release(attachment)
    fresh, store = after_a_crash(path)
    assert len(fresh) == 0
    assert fresh.reserve(draft("c2"), ()).addresses[0] not in attachment.addresses
    store.close()


def test_a_second_reservation_is_refused_and_takes_nothing(registry):
    registry.reserve(draft(), ())
    with pytest.raises(PoplinError, match="eth0 has been added already; delete the attachment first"):
        registry.reserve(draft(), ())
    registry.reserve(draft(ifname="net1"), ())
    assert len(registry) == 2


def test_a_store_that_fails_gives_the_addresses_back(registry, path, monkeypatch):
    def fail(_):
        raise TemporaryError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(registry._store, "add", fail)
        for _ in range(10):
            with pytest.raises(TemporaryError, match="disk is full"):
                registry.reserve(draft(), ())
    assert len(registry) == 0
    taken = {registry.reserve(draft(f"c{i}"), ()).addresses[0] for i in range(6)}
    assert len(taken) == 6
    with pytest.raises(PoolExhaustedError):
        registry.reserve(draft("c7"), ())


def test_no_address_before_the_network_is_known(path):
    store = AttachmentStore.open(path)
    with pytest.raises(TemporaryError, match="no pod CIDR yet"):
        Registry(store).reserve(draft(), ())
    store.close()


def test_requested_addresses_are_given(registry):
    wanted = (ip_address("10.244.1.4"), ip_address("fd00:10:244:1::4"))
    assert registry.reserve(draft(), wanted).addresses == wanted


def test_other_cidrs_keep_what_is_in_use(registry):
    attachment = registry.reserve(draft(), ())
    registry.confirm(attachment)
    registry.serve((ip_network("10.244.9.0/24"),))
    assert registry.reserve(draft("c2"), ()).addresses == (ip_address("10.244.9.1"),)
    registry.serve(CIDRS)
    assert not set(registry.reserve(draft("c3"), ()).addresses) & set(attachment.addresses)


def test_a_pass_hears_what_was_done_since_it_read_the_kernel(registry):
    attachment = registry.reserve(draft(), ())
    assert registry.snapshot().news == ()
    registry.confirm(attachment)
    news = registry.snapshot().news
    assert isinstance(news[0], Put)
    assert news[0].what.name == attachment.host_link
    assert registry.snapshot().news == ()
    registry.claim(attachment)
    registry.release(attachment)
    gone = [o.what for o in registry.snapshot().news if isinstance(o, Remove) and isinstance(o.what, Link)]
    assert attachment.host_link in {link.name for link in gone}
    registry.forget_news()


def test_a_link_stays_claimed_until_it_is_destroyed_or_made_again(registry):
    attachment = registry.reserve(draft(), ())
    registry.confirm(attachment)
    registry.claim(attachment)
    registry.release(attachment)
    assert attachment.host_link in registry.leaving()
    again = registry.reserve(draft(), ())
    assert attachment.host_link not in registry.leaving()
    registry.reaped({attachment.host_link})
    assert again.host_link in registry.snapshot().claimed
    registry.confirm(again)
    assert again.host_link not in registry.snapshot().claimed
