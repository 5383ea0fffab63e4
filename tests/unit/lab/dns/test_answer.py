"""Names of a cluster, asked for as resolvers ask: by messages."""

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.reversename
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.lab.controllers.object import ENDPOINT_SLICES, SERVICES
from poplin.lab.dns.answer import TCP_BYTES, TTL_S, answer
from poplin.lab.dns.feed import NAMESPACES
from poplin.lab.dns.zone import Zone
from unit.lab.controllers.objects import make

HTTP = {"name": "http", "port": 80, "protocol": "TCP"}
Z = "svc.cluster.local."


def service(name, *addresses, ports=(HTTP,), namespace="default", **spec):
    spec = {
        "clusterIP": addresses[0] if addresses else "",
        "clusterIPs": list(addresses),
        "ports": list(ports),
        **spec,
    }
    return make(SERVICES, name, spec=spec, namespace=namespace)


def slice_of(name, *endpoints, family="IPv4", ports=(HTTP,), suffix="1", namespace="default"):
    made = [
        {
            "addresses": [address],
            "conditions": {"ready": ready},
            **({"hostname": hostname} if hostname else {}),
        }
        for address, hostname, ready in endpoints
    ]
    labels = {"kubernetes.io/service-name": name}
    fields = {"addressType": family, "endpoints": made, "ports": list(ports), "namespace": namespace}
    return make(ENDPOINT_SLICES, f"{name}-{suffix}", labels=labels, **fields)


@pytest.fixture
def zone():
    made = Zone()
    for name in ("default", "kube-system", "empty"):
        made.put_namespace(make(NAMESPACES, name))
    for one in (
        service("kubernetes", "10.96.0.1", ports=[{"name": "https", "port": 443, "protocol": "TCP"}]),
        service("kube-dns", "10.96.0.10", "fd00:10:96::a", namespace="kube-system"),
        service(
            "dual",
            "10.96.0.20",
            "fd00:10:96::20",
            ports=[HTTP, {"name": "dns", "port": 53, "protocol": "UDP"}],
        ),
        service("plain", "10.96.0.30", ports=[{"port": 80, "protocol": "TCP"}]),
        service("db", "None"),
        service("nobody", "None"),
        service("away", type="ExternalName", externalName="www.example.org"),
        service("alias", type="ExternalName", externalName="dual.default.svc.cluster.local"),
        service("circle", type="ExternalName", externalName="circle.default.svc.cluster.local"),
    ):
        made.put_service(one)
    for one in (
        slice_of("db", ("10.244.1.5", "db-0", True), ("10.244.2.5", "db-1", True), ("10.244.3.5", "db-2", False), ("10.244.4.5", "", None)),
        slice_of("db", ("fd00:10:244:1::5", "db-0", True), family="IPv6", suffix="2"),
        slice_of("nobody", ("10.244.9.9", "", False)),
        slice_of("dual", ("10.244.1.6", "", True)),
    ):  # fmt: skip
        made.put_slice(one)
    return made


def ask(zone, name, kind="A", *, limit=None, edns=None, **more):
    query = dns.message.make_query(name, kind, use_edns=edns, **more)
    reply = dns.message.from_wire(answer(zone, query.to_wire(), limit))
    assert reply.id == query.id
    assert reply.flags & dns.flags.QR
    return reply


def data(section):
    return sorted(f"{one.rdtype.name} {item}" for one in section for item in one)


ANSWERS = [
    ("kubernetes.default." + Z, "A", ["A 10.96.0.1"]),
    ("KuberNetes.Default." + Z, "A", ["A 10.96.0.1"]),
    ("dual.default." + Z, "A", ["A 10.96.0.20"]),
    ("dual.default." + Z, "AAAA", ["AAAA fd00:10:96::20"]),
    ("dual.default." + Z, "ANY", ["A 10.96.0.20", "AAAA fd00:10:96::20"]),
    ("10-244-1-6.dual.default." + Z, "A", ["A 10.244.1.6"]),
    ("db.default." + Z, "A", ["A 10.244.1.5", "A 10.244.2.5", "A 10.244.4.5"]),
    ("db.default." + Z, "AAAA", ["AAAA fd00:10:244:1::5"]),
    ("db-0.db.default." + Z, "A", ["A 10.244.1.5"]),
    ("db-0.db.default." + Z, "AAAA", ["AAAA fd00:10:244:1::5"]),
    ("10-244-4-5.db.default." + Z, "A", ["A 10.244.4.5"]),
    ("_http._tcp.dual.default." + Z, "SRV", [f"SRV 0 100 80 dual.default.{Z}"]),
    ("_dns._udp.dual.default." + Z, "SRV", [f"SRV 0 100 53 dual.default.{Z}"]),
    (
        "_http._tcp.db.default." + Z,
        "SRV",
        [f"SRV 0 100 80 {host}.db.default.{Z}" for host in ("10-244-4-5", "db-0", "db-1")],
    ),
    ("away.default." + Z, "A", ["CNAME www.example.org."]),
    ("away.default." + Z, "CNAME", ["CNAME www.example.org."]),
    ("alias.default." + Z, "A", ["A 10.96.0.20", f"CNAME dual.default.{Z}"]),
    ("circle.default." + Z, "A", [f"CNAME circle.default.{Z}"]),
    ("10-1-2-3.default.pod.cluster.local.", "A", ["A 10.1.2.3"]),
    ("fd00--7.default.pod.cluster.local.", "AAAA", ["AAAA fd00::7"]),
    ("dns-version.cluster.local.", "TXT", ['TXT "1.1.0"']),
    ("cluster.local.", "NS", ["NS ns.dns.cluster.local."]),
    ("ns.dns.cluster.local.", "A", ["A 10.96.0.10"]),
    (str(dns.reversename.from_address("10.96.0.20")), "PTR", [f"PTR dual.default.{Z}"]),
    (str(dns.reversename.from_address("fd00:10:96::20")), "PTR", [f"PTR dual.default.{Z}"]),
    (str(dns.reversename.from_address("10.244.1.5")), "PTR", [f"PTR db-0.db.default.{Z}"]),
    (str(dns.reversename.from_address("10.244.4.5")), "PTR", [f"PTR 10-244-4-5.db.default.{Z}"]),
]


@pytest.mark.parametrize(("name", "kind", "wanted"), ANSWERS)
def test_names_and_what_they_stand_for(zone, name, kind, wanted):
    reply = ask(zone, name, kind)
    assert (reply.rcode(), data(reply.answer)) == (dns.rcode.NOERROR, wanted)
    assert reply.flags & dns.flags.AA
    assert all(one.ttl == TTL_S for one in reply.answer)


EMPTY = [
    ("kubernetes.default." + Z, "AAAA"),
    ("kubernetes.default." + Z, "MX"),
    ("db-1.db.default." + Z, "AAAA"),
    ("default." + Z, "A"),
    ("empty." + Z, "A"),
    ("svc.cluster.local.", "A"),
    ("cluster.local.", "A"),
    ("default.pod.cluster.local.", "A"),
    ("_tcp.dual.default." + Z, "SRV"),
    ("_http._tcp.dual.default." + Z, "A"),
    ("10-1-2-3.default.pod.cluster.local.", "AAAA"),
    ("96.10.in-addr.arpa.", "PTR"),
    (str(dns.reversename.from_address("10.96.0.20")), "A"),
]


@pytest.mark.parametrize(("name", "kind"), EMPTY)
def test_names_that_have_other_records_or_others_below_them(zone, name, kind):
    reply = ask(zone, name, kind)
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert [one.rdtype.name for one in reply.authority] == ["SOA"]


MISSING = [
    "none.default." + Z,
    "kubernetes.other." + Z,
    "other." + Z,
    "nobody.default." + Z,
    "db-2.db.default." + Z,
    "db-9.db.default." + Z,
    "x.y.z.dual.default." + Z,
    "_udp.db.default." + Z,
    "_http._udp.dual.default." + Z,
    "_none._tcp.dual.default." + Z,
    "_._tcp.plain.default." + Z,
    "x.away.default." + Z,
    "x.cluster.local.",
    "kubernetes.default.svc.cluster.local.default." + Z,
    "www.example.org.default." + Z,
    "10-1-2-3.other.pod.cluster.local.",
    "nonsense.default.pod.cluster.local.",
    str(dns.reversename.from_address("10.96.9.9")),
    str(dns.reversename.from_address("10.244.1.6")),
    "1.2.3.4.5.in-addr.arpa.",
    "x.y.z.w.in-addr.arpa.",
]


@pytest.mark.parametrize("name", MISSING)
def test_names_that_there_are_none_of(zone, name):
    reply = ask(zone, name, "PTR" if "arpa" in name else "A")
    assert (reply.rcode(), reply.answer) == (dns.rcode.NXDOMAIN, [])
    assert [one.rdtype.name for one in reply.authority] == ["SOA"]
    # How long nobody asks again (RFC 2308).
    assert reply.authority[0][0].minimum == TTL_S


@pytest.mark.parametrize("name", ["www.example.org.", "local.", "arpa.", ".", "xcluster.local."])
def test_what_is_beyond_the_cluster_fails_at_once(zone, name):
    reply = ask(zone, name, edns=0)
    assert (reply.rcode(), reply.answer, reply.authority) == (dns.rcode.SERVFAIL, [], [])
    assert [one.code for one in reply.options] == [dns.edns.EDECode.NO_REACHABLE_AUTHORITY] or reply.options
    assert ask(zone, name).edns == -1


def test_addresses_that_a_port_leads_to_come_along(zone):
    reply = ask(zone, "_http._tcp.db.default." + Z, "SRV")
    assert data(reply.additional) == [
        "A 10.244.1.5", "A 10.244.2.5", "A 10.244.4.5", "AAAA fd00:10:244:1::5",
    ]  # fmt: skip


def test_names_are_written_as_they_were_asked(zone):
    assert str(ask(zone, "DuAl.default." + Z).answer[0].name) == "DuAl.default." + Z


def test_a_long_answer_is_cut_for_udp_and_whole_over_tcp(zone):
    endpoints = [(f"10.9.{n // 200}.{n % 200 + 1}", "", True) for n in range(300)]
    zone.put_slice(slice_of("db", *endpoints, suffix="3"))
    name = "db.default." + Z
    short, long = ask(zone, name), ask(zone, name, edns=0, payload=1232)
    assert short.flags & long.flags & dns.flags.TC
    assert 0 < len(data(short.answer)) < len(data(long.answer)) < 303
    whole = ask(zone, name, limit=TCP_BYTES)
    assert not whole.flags & dns.flags.TC
    assert len(data(whole.answer)) == 303


def test_the_first_of_many_is_not_always_the_same(zone):
    first = {str(ask(zone, "db.default." + Z).answer[0][0]) for _ in range(100)}
    assert len(first) == 3


def test_what_is_no_question_is_refused(zone):
    name = "dual.default." + Z
    assert ask(zone, name, "AXFR").rcode() == dns.rcode.REFUSED
    assert ask(zone, name, "TXT", rdclass="CH").rcode() == dns.rcode.REFUSED
    assert ask(zone, name, edns=1).rcode() == dns.rcode.BADVERS
    notify = dns.message.make_query(name, "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    assert dns.message.from_wire(answer(zone, notify.to_wire())).rcode() == dns.rcode.NOTIMP
    none = dns.message.Message(7)
    assert dns.message.from_wire(answer(zone, none.to_wire())).rcode() == dns.rcode.FORMERR
    reply = dns.message.make_response(dns.message.make_query(name, "A"))
    assert answer(zone, reply.to_wire()) is None
    assert answer(zone, b"short") is None
    broken = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff"
    assert answer(zone, broken) == b"\x12\x34\x81\x01" + bytes(8)


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: b"\0\1\1\0\0\1\0\0\0\0\0\0" + tail))
@settings(max_examples=400)
def test_no_message_is_too_strange(wire):
    reply = answer(Zone(), wire)
    if reply is not None:
        assert reply[:2] == wire[:2]
        assert reply[2] & 0x80


def test_what_goes_is_forgotten(zone):
    reverse = str(dns.reversename.from_address("10.244.1.5"))
    assert ask(zone, reverse, "PTR").answer
    zone.remove_slice(("default", "db-1"))
    assert ask(zone, reverse, "PTR").rcode() == dns.rcode.NXDOMAIN
    assert data(ask(zone, "db.default." + Z, "AAAA").answer) == ["AAAA fd00:10:244:1::5"]
    zone.remove_slice(("default", "db-2"))
    assert ask(zone, "db.default." + Z).rcode() == dns.rcode.NXDOMAIN
    zone.remove_service(("default", "dual"))
    assert ask(zone, "dual.default." + Z).rcode() == dns.rcode.NXDOMAIN
    zone.remove_namespace(("", "empty"))
    assert ask(zone, "empty." + Z).rcode() == dns.rcode.NXDOMAIN


def test_a_slice_may_pass_to_another_service(zone):
    zone.put_slice(slice_of("nobody", ("10.244.7.7", "", True)))
    moved = slice_of("db", ("10.244.7.7", "", True))
    moved.metadata.name = "nobody-1"
    zone.put_slice(moved)
    assert ask(zone, "nobody.default." + Z).rcode() == dns.rcode.NXDOMAIN
    assert "A 10.244.7.7" in data(ask(zone, "db.default." + Z).answer)
