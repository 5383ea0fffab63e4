import sqlite3
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.datastore import attachments
from poplin.datastore.attachments import AttachmentStore, DamagedError, checkpoint
from poplin.ipam.pool import REST_S, NodePool
from poplin.model.attachment import Attachment, AttachmentState, Limit, PortMapping
from poplin.model.cluster import TransportProtocol
from poplin.model.errors import PoplinError, TemporaryError


def attachment(container_id="c1", *addresses, ifname="eth0", state=AttachmentState.ADDING):
    return Attachment(
        container_id=container_id,
        ifname=ifname,
        netns="/run/netns/c1",
        addresses=tuple(ip_address(a) for a in addresses or ("10.0.0.1", "fd00::1")),
        mac="0a:00:00:00:00:01",
        mtu_bytes=1450,
        host_link="pop0123456789ab",
        pod_namespace="default",
        pod_name="web",
        pod_uid="u",
        state=state,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "attachments.db"


@pytest.fixture
def store(path):
    store = AttachmentStore.open(path)
    yield store
    store.close()


def reopen(store, path):
    """What an agent sees that starts after this one was killed: the files as they are, nothing closed."""
    again = AttachmentStore.open(path)
    try:
        return again.all(), again.resting(1000)
    finally:
        again.close()


def test_what_is_added_is_there_after_a_restart(store, path):
    one, two = attachment("c1"), attachment("c2", "10.0.0.2", state=AttachmentState.READY)
    store.add(two)
    store.add(one)
    assert store.all() == [one, two]
    assert reopen(store, path) == ([one, two], [])


def test_ready_and_remove_and_remove_again(store, path):
    store.add(attachment("c1"))
    store.update(replace(attachment("c1"), state=AttachmentState.READY, netns_cookie=7))
    store.update(attachment("c1", ifname="eth9"))
    ready = replace(attachment("c1"), state=AttachmentState.READY, netns_cookie=7)
    assert store.all() == [ready]
    # A MAC or an MTU that others have set on the interface.
    adopted = replace(ready, mac="0a:00:00:00:00:99", mtu_bytes=1400)
    store.update(adopted)
    assert reopen(store, path)[0] == [adopted]
    store.remove(("c1", "eth0"), 990)
    store.remove(("c1", "eth0"), 999)
    assert store.all() == []
    assert sorted(map(str, store.resting(1000))) == sorted(map(str, reopen(store, path)[1]))
    assert dict(store.resting(1000)) == {ip_address("10.0.0.1"): 10, ip_address("fd00::1"): 10}


def with_everything(container_id="c1"):
    """An attachment with all that one may have."""
    return replace(
        attachment(container_id),
        port_mappings=(
            PortMapping(TransportProtocol.TCP, 80, 8080),
            PortMapping(TransportProtocol.TCP, 443, 8443, ip_address("192.0.2.1")),
            PortMapping(TransportProtocol.UDP, 53, 5353, ip_address("::")),
        ),
        ingress=Limit(10**6),
        egress=Limit(10**15, 2**40),
    )


def test_port_mappings_and_limits_outlive_a_restart_and_go_with_their_attachment(store, path):
    whole, plain = with_everything("c1"), attachment("c2", "10.0.0.9")
    store.add(whole)
    store.add(plain)
    assert reopen(store, path)[0] == [whole, plain]
    store.remove(("c1", "eth0"), 0)
    assert reopen(store, path)[0] == [plain]
    store.add(with_everything("c1"))
    assert store.all() == [whole, plain]


V1 = """
CREATE TABLE attachment (
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    netns TEXT NOT NULL,
    mac TEXT NOT NULL,
    mtu_bytes INTEGER NOT NULL,
    host_link TEXT NOT NULL,
    pod_namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL,
    pod_uid TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (container_id, ifname)
) WITHOUT ROWID;
CREATE TABLE address (
    address TEXT NOT NULL PRIMARY KEY,
    container_id TEXT,
    ifname TEXT,
    freed_at_s REAL
) WITHOUT ROWID;
CREATE INDEX address_owner ON address (container_id, ifname);
INSERT INTO attachment VALUES
    ('c1', 'eth0', '/run/netns/c1', '0a:00:00:00:00:01', 1450, 'pop0123456789ab', 'default', 'web', 'u', 'ready');
INSERT INTO address VALUES ('10.0.0.1', 'c1', 'eth0', NULL), ('fd00::1', 'c1', 'eth0', NULL);
INSERT INTO address VALUES ('10.0.0.7', NULL, NULL, 995);
PRAGMA user_version = 1;
"""
"""What the first version of the program wrote."""


def test_a_database_of_the_first_version_is_brought_up_to_date(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(V1)
    old = attachment("c1", state=AttachmentState.READY)
    for _ in range(2):  # the second time there is nothing left to do
        store = AttachmentStore.open(path)
        assert store.all() == [old]
        assert store.resting(1000) == [(ip_address("10.0.0.7"), 5)]
        store.close()
    store = AttachmentStore.open(path)
    more = replace(with_everything("c2"), addresses=(ip_address("10.0.0.2"),))
    store.add(more)
    assert reopen(store, path)[0] == [old, more]
    store.close()


def test_an_update_that_is_cut_short_leaves_the_old_database(path, monkeypatch):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(V1)
    with monkeypatch.context() as patched:
        patched.setattr(attachments, "_STEPS", (*attachments._STEPS, "CREATE TABLE attachment (again);"))
        with pytest.raises(PoplinError):
            AttachmentStore.open(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    store = AttachmentStore.open(path)
    assert store.all() == [attachment("c1", state=AttachmentState.READY)]
    store.close()


def test_two_interfaces_of_one_container_are_two_attachments(store):
    store.add(attachment("c1", "10.0.0.1"))
    store.add(attachment("c1", "10.0.0.2", ifname="net1"))
    store.remove(("c1", "eth0"), 0)
    assert [(a.ifname, a.addresses) for a in store.all()] == [("net1", (ip_address("10.0.0.2"),))]


def test_a_second_attachment_of_the_key_and_a_second_owner_of_an_address_are_refused(store):
    store.add(attachment("c1"))
    with pytest.raises(PoplinError, match="attachment c1 eth0 stands already"):
        store.add(attachment("c1", "10.0.0.9"))
    with pytest.raises(PoplinError, match=r"address 10\.0\.0\.1 belongs to another attachment"):
        store.add(attachment("c2", "fd00::2", "10.0.0.1"))
    assert store.all() == [attachment("c1")]
    assert store.resting(1000) == []
    store.add(attachment("c2", "10.0.0.9", "fd00::2"))


def test_an_address_that_rested_has_its_new_owner_only(store):
    store.add(attachment("c1"))
    store.remove(("c1", "eth0"), 100)
    store.add(attachment("c2"))
    store.remove(("c1", "eth0"), 101)
    assert store.resting(101) == []
    assert store.all() == [attachment("c2")]


@pytest.mark.parametrize(
    ("now_s", "age_s"),
    [(100, 0), (100 + REST_S / 2, REST_S / 2), (100 + REST_S, None), (1e9, None), (50, 0), (-1e9, 0)],
)
def test_a_clock_that_jumps_neither_lengthens_a_rest_nor_fails(store, now_s, age_s):
    store.add(attachment("c1", "10.0.0.1"))
    store.remove(("c1", "eth0"), 100)
    assert store.resting(now_s) == ([] if age_s is None else [(ip_address("10.0.0.1"), age_s)])


def test_rested_addresses_do_not_pile_up(store, path):
    for n in range(1, 50):
        store.add(attachment(f"c{n}", f"10.0.0.{n}"))
        store.remove((f"c{n}", "eth0"), n * REST_S)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM address").fetchone() == (1,)
    connection.close()


def test_a_pool_restored_from_the_store_gives_no_address_twice(store):
    cidrs = [ip_network("10.0.0.0/29")]
    store.add(attachment("c1", "10.0.0.1"))
    store.add(attachment("c2", "10.0.0.2"))
    store.remove(("c2", "eth0"), 90)
    owners = {address: a.container_id for a in store.all() for address in a.addresses}
    pool = NodePool.restore(cidrs, owners, store.resting(100), now_s=5)
    assert [str(pool.allocate("x", now_s=5)[0]) for _ in range(5)] == [f"10.0.0.{n}" for n in (3, 4, 5, 6, 2)]


# No deadline: each example makes a database, which syncs it to the disk.
@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "ready", "remove"]), st.integers(0, 4), st.integers(0, 4)),
        max_size=25,
    )
)
def test_the_store_equals_a_dictionary_at_every_step_and_after_a_restart(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("store") / "attachments.db"
    store = AttachmentStore.open(path)
    model: dict = {}
    for verb, container, address in steps:
        one = attachment(f"c{container}", f"10.0.0.{address}")
        key = (one.container_id, one.ifname)
        match verb:
            case "add" if key in model or any(one.addresses == other.addresses for other in model.values()):
                with pytest.raises(PoplinError):
                    store.add(one)
            case "add":
                store.add(one)
                model[key] = one
            case "ready":
                if key in model:
                    model[key] = replace(model[key], state=AttachmentState.READY, netns_cookie=container + 1)
                    store.update(model[key])
            case "remove":
                store.remove(key, 0)
                model.pop(key, None)
        assert store.all() == [model[key] for key in sorted(model)]
    assert reopen(store, path)[0] == store.all()
    store.close()


def test_a_full_disk_is_a_temporary_error_and_loses_nothing(store, path):
    stored = []
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    def fill():
        for n in range(1, 200):
            one = attachment(f"c{n:03}", f"10.0.0.{n}")
            store.add(one)
            stored.append(one)

    with pytest.raises(TemporaryError, match=r"attachments\.db: .*full.*free space"):
        fill()
    assert 0 < len(stored) < 199
    assert store.all() == stored
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.add(attachment("z", "10.1.0.0"))
    assert reopen(store, path)[0] == [*stored, attachment("z", "10.1.0.0")]


@pytest.mark.parametrize(
    "damage", [lambda text: b"nonsense " * 1000, lambda text: text[:4096] + b"\xff" * (len(text) - 4096)]
)
def test_a_damaged_database_is_one_clear_error_and_stays_as_it_is(path, damage):
    store = AttachmentStore.open(path)
    for n in range(1, 100):
        store.add(attachment(f"c{n}", f"10.0.0.{n}"))
    store.close()
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(
        PoplinError, match=r"attachments\.db: the attachment database is damaged .*restart the agent"
    ):
        AttachmentStore.open(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "garble", ["UPDATE attachment SET state = 'neither'", "UPDATE address SET address = '10.0.0'"]
)
def test_a_row_that_says_nothing_is_damage(path, garble):
    store = AttachmentStore.open(path)
    store.add(attachment("a", "10.1.0.0"))
    store._connection.execute(garble)
    with pytest.raises(DamagedError, match=r"the attachment database is damaged .*restart the agent"):
        store.all()
    store.close()


def test_a_database_of_another_version_is_left_alone(path):
    AttachmentStore.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(PoplinError, match="of schema 7, this program knows 3; run the version"):
        AttachmentStore.open(path)


def test_a_database_of_the_next_version_serves_a_node_that_goes_back(path, monkeypatch):
    step = "ALTER TABLE attachment ADD COLUMN colour TEXT NOT NULL DEFAULT ''; CREATE TABLE other (x TEXT);"
    with monkeypatch.context() as patch:
        patch.setattr(attachments, "_STEPS", (*attachments._STEPS, step))
        newer = AttachmentStore.open(path)
        newer.add(with_everything("c1"))
        newer.close()
    older = AttachmentStore.open(path)
    older.add(attachment("c2", "10.0.0.9"))
    older.update(replace(attachment("c2", "10.0.0.9"), state=AttachmentState.READY))
    assert [one.container_id for one in older.all()] == ["c1", "c2"]
    older.remove(("c1", "eth0"), 0)
    older.close()
    with monkeypatch.context() as patch:
        patch.setattr(attachments, "_STEPS", (*attachments._STEPS, step))
        newer = AttachmentStore.open(path)
        assert newer.all() == [replace(attachment("c2", "10.0.0.9"), state=AttachmentState.READY)]
        newer.close()


def test_another_boot_is_told(store):
    assert not store.boot("one")
    assert not store.boot("one")
    assert store.boot("two")
    assert not store.boot("two")


def test_a_place_that_cannot_be_opened_is_a_clear_error(tmp_path):
    with pytest.raises(PoplinError, match="check that its directory exists"):
        AttachmentStore.open(tmp_path / "missing" / "attachments.db")


def test_another_writer_is_a_temporary_error(store, path):
    store._connection.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TemporaryError, match="another process holds"):
        store.add(attachment())
    other.execute("ROLLBACK")
    other.close()
    store.add(attachment())


def test_a_checkpoint_empties_the_log_beside_an_open_store(store, path):
    store.add(attachment())
    checkpoint(path)
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())  # without its log
    other = AttachmentStore.open(copy)
    assert other.all() == [attachment()]
    other.close()
