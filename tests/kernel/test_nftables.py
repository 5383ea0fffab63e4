"""nft as the oracle: what we write lists as the text we meant, and what nft writes we read as our values."""

import errno
from dataclasses import replace
from ipaddress import ip_network

import pytest

from poplin.compile.nft_rule import (
    CT_MARK,
    CT_STATE,
    CT_STATUS,
    DADDR_TYPE,
    DPORT,
    IIF,
    IIFGROUP,
    IPV4,
    IPV6,
    L4PROTO,
    MARK,
    OIFGROUP,
    REVERSE_PATH,
    RTN_LOCAL,
    SPORT,
    WAY_BACK,
    clear_bits,
    dispatch,
    equals,
    has_any,
    has_none,
    in_set,
    loads,
    look_up,
    random_below,
    rule,
    set_bits,
    within,
)
from poplin.dataplane.netns import in_namespace
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.errors import KernelError
from poplin.model.nftables import (
    ACCEPT,
    DROP,
    RETURN,
    BaseChain,
    Chain,
    ChainType,
    Counter,
    CtState,
    CtStatus,
    Dynset,
    DynsetOp,
    Element,
    Expression,
    Family,
    Hook,
    IcmpxCode,
    Immediate,
    KeyType,
    Limit,
    Log,
    Masquerade,
    MetaKey,
    MetaSet,
    Nat,
    NatFlag,
    NatKind,
    Notrack,
    Numgen,
    NumgenKind,
    Range,
    Reject,
    RejectKind,
    Rule,
    Set,
    Table,
    TableKey,
    UnknownExpression,
    goto,
    host32,
    jump,
)
from poplin.plan.nftables import AddElements, AddTable, DeleteElements, plan_table

SETS = (
    Set("addresses", (KeyType.IPV4_ADDR,), elements=frozenset({Element(b"\x0a\0\0\1")})),
    Set("six", (KeyType.IPV6_ADDR,), elements=frozenset({Element(bytes(15) + b"\1")})),
    Set("marks", (KeyType.IPV4_ADDR,), (KeyType.MARK,), elements=frozenset({Element(None, host32(9))})),
    Set(
        "outcome", (KeyType.MARK,), (KeyType.VERDICT,), elements=frozenset({Element(host32(1), goto("side"))})
    ),
    Set(
        "endpoints",
        (KeyType.IPV4_ADDR, KeyType.INET_PROTO, KeyType.INET_SERVICE, KeyType.MARK),
        (KeyType.IPV4_ADDR, KeyType.INET_SERVICE),
    ),
    Set("recent", (KeyType.IPV4_ADDR,), (KeyType.MARK,), dynamic=True, timeout_ms=10_000, size=1000),
)
WEB = (equals(L4PROTO, 6), equals(DPORT, 80))

# The chain's type and hook, what we mean, what nft says.
RULES = {
    "verdicts": (rule(ACCEPT), "accept"),
    "drop": (rule(Counter(), DROP), "counter packets 0 bytes 0 drop"),
    "return": (rule(RETURN), "return"),
    "jump": (rule(jump("side")), "jump side"),
    "goto": (rule(goto("side"), comment="over there"), 'goto side comment "over there"'),
    "address": (rule(IPV4.only, within(IPV4.saddr, ip_network("10.0.0.1/32"))), "ip saddr 10.0.0.1"),
    "network": (rule(IPV4.only, within(IPV4.saddr, ip_network("10.32.0.0/11"))), "ip saddr 10.32.0.0/11"),
    "not": (
        rule(IPV6.only, within(IPV6.daddr, ip_network("fd00::/8"), negate=True), DROP),
        "ip6 daddr != fd00::/8 drop",
    ),
    "ports": (rule(*WEB, equals(SPORT, 1024, negate=True)), "tcp dport 80 tcp sport != 1024"),
    "port range": (
        rule(equals(L4PROTO, 17), DPORT.load(0), Range(0, b"\0\x50", b"\0\x5a", negate=True)),
        "udp dport != 80-90",
    ),
    "set": (rule(IPV6.only, in_set([IPV6.saddr], "six"), ACCEPT), "ip6 saddr @six accept"),
    "not in set": (rule(IPV4.only, in_set([IPV4.saddr], "addresses", negate=True)), "ip saddr != @addresses"),
    "state": (
        rule(has_any(CT_STATE, CtState.ESTABLISHED | CtState.RELATED), ACCEPT),
        "ct state established,related accept",
    ),
    "status": (rule(has_any(CT_STATUS, CtStatus.DNAT), ACCEPT), "ct status dnat accept"),
    "original": (
        rule(
            IPV4.only,
            IPV4.original_daddr.load(0),
            equals(IPV4.daddr, ip_network("10.0.0.1").network_address)[1],
        ),
        "meta nfproto ipv4 ct original ip daddr 10.0.0.1",
    ),
    "cut": (rule(has_any(CT_MARK, 0x10), DROP), "ct mark & 0x00000010 != 0x00000000 drop"),
    "not cut": (rule(has_none(CT_MARK, 0x10), ACCEPT), "ct mark & 0x00000010 == 0x00000000 accept"),
    "set ct mark": (rule(set_bits(CT_MARK, 0x10)), "ct mark set ct mark | 0x00000010"),
    "clear mark": (rule(clear_bits(MARK, 0x10)), "meta mark set meta mark & 0xffffffef"),
    "mark from map": (
        rule(IPV4.only, look_up([IPV4.saddr], "marks"), MetaSet(0, MetaKey.MARK)),
        "meta mark set ip saddr map @marks",
    ),
    "mark": (rule(Immediate(0, host32(7)), MetaSet(0, MetaKey.MARK)), "meta mark set 0x00000007"),
    "dispatch": (rule(dispatch([MARK], "outcome")), "meta mark vmap @outcome"),
    "interface": (rule(equals(IIF, 1), equals(OIFGROUP, 5)), 'iif "lo" oifgroup 5'),
    "reverse path": (
        rule(equals(IIFGROUP, 28783), equals(REVERSE_PATH, 0), DROP),
        "iifgroup 28783 fib saddr . iif oif missing drop",
    ),
    "way back": (rule(equals(WAY_BACK, 1), ACCEPT), "fib daddr . iif oif exists accept"),
    "local": (rule(equals(DADDR_TYPE, RTN_LOCAL), ACCEPT), "fib daddr type local accept"),
    "dnat": (
        rule(
            IPV4.only,
            look_up([IPV4.daddr, L4PROTO, DPORT, random_below(2)], "endpoints"),
            Nat(NatKind.DNAT, Family.IPV4, 0, 1),
        ),
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints",
    ),
    "dnat to one": (
        rule(
            *WEB,
            Immediate(0, b"\x0a\0\0\5"),
            Immediate(1, b"\x1f\x90"),
            Nat(NatKind.DNAT, Family.IPV4, 0, 1, NatFlag.PERSISTENT),
        ),
        "tcp dport 80 dnat ip to 10.0.0.5:8080 persistent",
    ),
    "snat": (
        rule(Immediate(0, bytes(15) + b"\5"), Nat(NatKind.SNAT, Family.IPV6, 0, flags=NatFlag.RANDOM)),
        "snat ip6 to ::5 random",
    ),
    "masquerade": (rule(Masquerade(NatFlag.FULLY_RANDOM)), "masquerade fully-random"),
    "masquerade plainly": (rule(Masquerade()), "masquerade"),
    "numbers": (
        rule(Numgen(0, 4, NumgenKind.INCREMENTAL), MetaSet(0, MetaKey.MARK)),
        "meta mark set numgen inc mod 4",
    ),
    "log": (rule(Log(7, "p1|drop", 128)), 'log prefix "p1|drop" group 7 snaplen 128'),
    "limit": (rule(Limit(50, 100)), "limit rate 50/second burst 100 packets"),
    "reject": (rule(Reject(code=IcmpxCode.ADMIN_PROHIBITED)), "reject with icmpx admin-prohibited"),
    "reset": (
        rule(equals(L4PROTO, 6), Reject(RejectKind.TCP_RESET, 0)),
        "meta l4proto tcp reject with tcp reset",
    ),
    "remember": (
        rule(
            IPV4.only,
            *loads([IPV4.saddr]),
            Immediate(4, host32(3)),
            Dynset(DynsetOp.UPDATE, "recent", 0, 4, 60_000),
        ),
        "update @recent { ip saddr timeout 1m : 0x00000003 }",
    ),
    "untracked": (rule(Notrack()), "notrack"),
}
HOOKS = {
    "dnat": (ChainType.NAT, Hook.PREROUTING, -110),
    "dnat to one": (ChainType.NAT, Hook.OUTPUT, -100),
    "snat": (ChainType.NAT, Hook.POSTROUTING, 100),
    "masquerade": (ChainType.NAT, Hook.POSTROUTING, 100),
    "masquerade plainly": (ChainType.NAT, Hook.POSTROUTING, 90),
    "untracked": (ChainType.FILTER, Hook.PREROUTING, -300),
    "reverse path": (ChainType.FILTER, Hook.PREROUTING, -300),
}


def table_of(name: str) -> Table:
    base = BaseChain(*HOOKS.get(name, (ChainType.FILTER, Hook.FORWARD, 0)))
    return Table("poplin", (Chain("main", (RULES[name][0],), base), Chain("side")), SETS)


@pytest.fixture
def namespace(netns):
    return netns()


@pytest.fixture
def nft(namespace):
    with in_namespace(namespace.fd, NftSocket) as made:
        yield made


def test_every_expression_has_a_rule():
    used = {type(expression) for written, _ in RULES.values() for expression in written.expressions}
    assert used == set(Expression.__args__) - {UnknownExpression}


@pytest.mark.parametrize("name", RULES)
def test_rules_list_as_meant(namespace, nft, name):
    table = table_of(name)
    nft.apply(plan_table(table, None))
    assert nft.read_table(table.key) == table
    listing = namespace.run("nft", "list", "chain", "inet", "poplin", "main").splitlines()
    assert [line.strip() for line in listing[3:-2]] == [RULES[name][1]]


DIFFERENTLY = {
    "not": "nft compares whole bytes of a prefix by a shorter load",
    "dnat to one": "nft puts every constant at a register of 16 bytes",
    "dnat": "the drawn number is a mark in the map's type, which prints, where nft would have an integer",
}


@pytest.mark.parametrize("name", sorted(RULES.keys() - DIFFERENTLY.keys()))
def test_rules_of_nft_read_as_ours(namespace, nft, name):
    """nft's own coding of the text is the value that we would have written."""
    table = table_of(name)
    bare = replace(table, chains=tuple(replace(chain, rules=()) for chain in table.chains))
    nft.apply(plan_table(bare, None))
    namespace.run(
        "nft", "add", "rule", "inet", "poplin", "main", RULES[name][1].replace("packets 0 bytes 0 ", "")
    )
    assert nft.read_table(table.key) == table


SETS_AS_TEXT = {
    "type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 }": Set(
        "s", (KeyType.IPV4_ADDR,), elements=frozenset({Element(b"\x0a\0\0\1"), Element(b"\x0a\0\0\2")})
    ),
    "type ipv6_addr; flags interval; elements = { fd00::/8, ::1, ff00::/8 }": Set(
        "s",
        (KeyType.IPV6_ADDR,),
        intervals=True,
        elements=frozenset(
            {
                Element(b"\xfd" + bytes(15), None, b"\xfd" + b"\xff" * 15),
                Element(bytes(15) + b"\1", None, bytes(15) + b"\1"),
                Element(b"\xff" + bytes(15), None, b"\xff" * 16),
            }
        ),
    ),
    "type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90, 10.1.1.1 . 443 }": Set(
        "s",
        (KeyType.IPV4_ADDR, KeyType.INET_SERVICE),
        intervals=True,
        elements=frozenset(
            {
                Element(b"\x0a\0\0\0\0\x50\0\0", None, b"\x0a\xff\xff\xff\0\x5a\0\0"),
                Element(b"\x0a\1\1\1\1\xbb\0\0", None, b"\x0a\1\1\1\1\xbb\0\0"),
            }
        ),
    ),
    "type mark . inet_proto . mark . inet_service; elements = { 1 . tcp . 2 . 80 }": Set(
        "s",
        (KeyType.MARK, KeyType.INET_PROTO, KeyType.MARK, KeyType.INET_SERVICE),
        elements=frozenset({Element(host32(1) + b"\6\0\0\0" + host32(2) + b"\0\x50\0\0")}),
    ),
    "type ipv4_addr; flags dynamic,timeout; timeout 1m; size 500": Set(
        "s", (KeyType.IPV4_ADDR,), dynamic=True, timeout_ms=60_000, size=500
    ),
    'type ipv4_addr; comment "who"': Set("s", (KeyType.IPV4_ADDR,), comment="who"),
}
MAPS_AS_TEXT = {
    "type ipv4_addr : mark; elements = { 10.0.0.1 : 7, * : 9 }": Set(
        "s",
        (KeyType.IPV4_ADDR,),
        (KeyType.MARK,),
        elements=frozenset({Element(b"\x0a\0\0\1", host32(7)), Element(None, host32(9))}),
    ),
    "type inet_proto . inet_service : ipv4_addr . inet_service; elements = { tcp . 80 : 10.0.0.1 . 8080 }": Set(
        "s",
        (KeyType.INET_PROTO, KeyType.INET_SERVICE),
        (KeyType.IPV4_ADDR, KeyType.INET_SERVICE),
        elements=frozenset({Element(b"\6\0\0\0\0\x50\0\0", b"\x0a\0\0\1\x1f\x90\0\0")}),
    ),
    "type mark : verdict; elements = { 1 : jump side, 2 : drop, 3 : accept }": Set(
        "s",
        (KeyType.MARK,),
        (KeyType.VERDICT,),
        elements=frozenset(
            {Element(host32(1), jump("side")), Element(host32(2), DROP), Element(host32(3), ACCEPT)}
        ),
    ),
    "type ipv4_addr : mark; flags interval; elements = { 10.0.0.0/8 : 1, 11.0.0.0/8 : 2 }": Set(
        "s",
        (KeyType.IPV4_ADDR,),
        (KeyType.MARK,),
        intervals=True,
        elements=frozenset(
            {
                Element(b"\x0a\0\0\0", host32(1), b"\x0a\xff\xff\xff"),
                Element(b"\x0b\0\0\0", host32(2), b"\x0b\xff\xff\xff"),
            }
        ),
    ),
}


@pytest.mark.parametrize(
    ("kind", "text", "one"),
    [("set", *pair) for pair in SETS_AS_TEXT.items()] + [("map", *pair) for pair in MAPS_AS_TEXT.items()],
)
def test_sets_both_ways(namespace, nft, kind, text, one):
    """nft's set reads as our value; our value lists as nft's own does, and lists so again after each change."""
    namespace.run("nft", f"table inet theirs {{ chain side {{ }}; {kind} s {{ {text}; }}; }}")
    theirs = nft.read_table(TableKey(Family.INET, "theirs"))
    assert theirs == Table("theirs", (Chain("side"),), (one,))
    ours = replace(theirs, name="ours")
    nft.apply(plan_table(ours, None))
    assert nft.read_table(ours.key) == ours
    assert listed(namespace, kind, "ours") == listed(namespace, kind, "theirs")
    empty = replace(ours, sets=(replace(one, elements=frozenset()),))
    nft.apply(plan_table(empty, ours))
    assert nft.read_table(ours.key) == empty
    nft.apply(plan_table(ours, empty))
    assert nft.read_table(ours.key) == ours


def listed(namespace, kind, table):
    return "".join(sorted(namespace.run("nft", "-s", "list", kind, "inet", table, "s").replace(table, "")))


def test_values_change_under_their_keys(nft):
    one = Set(
        "s", (KeyType.IPV4_ADDR,), (KeyType.MARK,), elements=frozenset({Element(b"\1\1\1\1", host32(1))})
    )
    before = Table("poplin", (), (one,))
    after = Table("poplin", (), (replace(one, elements=frozenset({Element(b"\1\1\1\1", host32(2))})),))
    nft.apply(plan_table(before, None))
    nft.apply(plan_table(after, before))
    assert nft.read_table(after.key) == after


def test_packets_elements_are_left_alone(namespace, nft):
    """A dynamic set's elements are not ours to plan."""
    table = table_of("remember")
    nft.apply(plan_table(table, None))
    namespace.run("nft", "add", "element", "inet", "poplin", "recent", "{ 10.0.0.1 : 5 }")
    assert nft.read_table(table.key) == table
    assert plan_table(table, nft.read_table(table.key)) == ()
    assert "10.0.0.1" in namespace.run("nft", "list", "map", "inet", "poplin", "recent")


TAMPERING = {
    "a chain on a device": "add chain inet poplin wire { type filter hook ingress device lo priority 0; }",
    "a set within a rule": "add rule inet poplin main tcp dport { 80, 443 } accept",
    "a chain within a rule": "add rule inet poplin main jump { accept; drop; }",
    "an expression of another kind": "add rule inet poplin main limit rate 5/second accept",
    "a rate of bytes": "add rule inet poplin side quota over 5 mbytes drop",
    "a set of others": "add set inet poplin extra { type ether_addr . mark; elements = { 0a:00:00:00:00:01 . 7 }; }",
    "a map of objects": (
        "add counter inet poplin hits; "
        'add map inet poplin objects { type ipv4_addr : counter; elements = { 10.0.0.1 : "hits" }; }; '
        "add rule inet poplin side counter name ip saddr map @objects"
    ),
    "a chain that leads to ours": "add chain inet poplin extra; add rule inet poplin extra goto side",
    "a verdict of others": "add element inet poplin outcome { 5 : accept }",
    "another policy": "add chain inet poplin main { policy drop; }",
    "a policy elsewhere": "delete chain inet poplin main; add chain inet poplin main",
    "an emptied set": "flush set inet poplin addresses",
    "an emptied table": "flush table inet poplin",
    "no table": "delete table inet poplin",
}


@pytest.mark.parametrize("how", TAMPERING)
def test_whatever_stands_in_our_table_is_put_right(namespace, nft, how):
    table = table_of("state")
    nft.apply(plan_table(table, None))
    namespace.run("nft", TAMPERING[how])
    operations = plan_table(table, nft.read_table(table.key))
    assert operations
    nft.apply(operations)
    assert nft.read_table(table.key) == table


def test_a_transaction_is_all_or_nothing(nft):
    """And the error names the object that was refused."""
    table = Table("poplin", (Chain("main", (Rule((ACCEPT,)), rule(jump("nowhere"), comment="lost"))),))
    with pytest.raises(KernelError) as refused:
        nft.apply(plan_table(table, None))
    assert refused.value.errno == errno.ENOENT
    assert refused.value.where == "rule [lost] in chain main of nftables table inet poplin"
    assert nft.read_table(table.key) is None


def test_a_missing_element_is_named(nft):
    one = Set("s", (KeyType.IPV4_ADDR,))
    nft.apply(plan_table(Table("poplin", (), (one,)), None))
    gone = frozenset({Element(b"\1\1\1\1")})
    with pytest.raises(KernelError, match="set s of nftables table inet poplin") as refused:
        nft.apply((DeleteElements(TableKey(Family.INET, "poplin"), one, gone),))
    assert refused.value.errno == errno.ENOENT


def test_a_generation_guards_a_transaction(namespace, nft):
    generation = nft.read_generation()
    namespace.run("nft", "add", "table", "inet", "other")
    operations = (AddTable(TableKey(Family.INET, "poplin")),)
    with pytest.raises(KernelError, match="transaction") as refused:
        nft.apply(operations, generation=generation)
    assert refused.value.errno == errno.ERESTART
    nft.apply(operations, generation=nft.read_generation())


def test_others_tables_stay(namespace, nft):
    namespace.run("nft", "table inet other { chain main { accept; }; }")
    namespace.run("nft", "table ip poplin { chain main { drop; }; }")
    before = namespace.run("nft", "list", "ruleset")
    table = table_of("goto")
    nft.apply(plan_table(table, None))
    nft.apply(plan_table(None, table))
    assert namespace.run("nft", "list", "ruleset") == before


def test_forty_five_thousand_elements(nft):
    """Several megabytes in one transaction, with values that change."""
    one = Set("s", (KeyType.IPV6_ADDR, KeyType.INET_PROTO, KeyType.INET_SERVICE), (KeyType.MARK,))
    keys = [number.to_bytes(16, "big") + b"\6\0\0\0\0\x50\0\0" for number in range(45_000)]
    first = Table("poplin", (), (replace(one, elements=frozenset(Element(key, host32(1)) for key in keys)),))
    second = Table("poplin", (), (replace(one, elements=frozenset(Element(key, host32(2)) for key in keys)),))
    nft.apply(plan_table(first, None))
    assert nft.read_table(first.key) == first
    nft.apply(plan_table(second, first))
    assert nft.read_table(first.key) == second


def test_thousands_of_refusals_are_one_error(nft):
    """More answers than a receive buffer holds still end as the first one's error."""
    key, one = TableKey(Family.INET, "nowhere"), Set("s", (KeyType.IPV4_ADDR,))
    element = frozenset({Element(b"\1\1\1\1")})
    with pytest.raises(KernelError, match="set s of nftables table inet nowhere"):
        nft.apply([AddElements(key, one, element)] * 50_000)
    assert nft.read_table(key) is None
