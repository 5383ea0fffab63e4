"""The nftables codec: what is encoded decodes as it was, and no bytes at all do harm."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poplin.dataplane.netlink.attribute import MalformedMessageError, parse
from poplin.dataplane.netlink.frame import decode_messages
from poplin.dataplane.nfnetlink import decode_body
from poplin.dataplane.nftables import element, expression, message
from poplin.model.nftables import (
    ACCEPT,
    Bitwise,
    Chain,
    Compare,
    Counter,
    Ct,
    CtSet,
    Dynset,
    Element,
    Family,
    Fib,
    Immediate,
    KeyType,
    Log,
    Lookup,
    Masquerade,
    Meta,
    MetaSet,
    Nat,
    NatFlag,
    Notrack,
    Numgen,
    Payload,
    Range,
    Reject,
    Rule,
    Set,
    TableKey,
    UnknownExpression,
    Verdict,
    VerdictCode,
    host32,
    jump,
    size_bytes,
)
from poplin.plan.nftables import AddElements

registers = st.integers(0, 15)
words = st.integers(0, 2**32 - 1)
data = st.binary(min_size=1, max_size=16)
names = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=30)
nat_flags = st.sampled_from([NatFlag.NONE, NatFlag.RANDOM, NatFlag.PERSISTENT | NatFlag.FULLY_RANDOM])
maybe_registers = st.none() | registers

expressions = st.one_of(
    st.builds(Payload, registers, offset=words, length=words),
    st.builds(Meta, registers),
    st.builds(MetaSet, registers),
    st.builds(Ct, registers),
    st.builds(CtSet, registers),
    st.builds(Compare, registers, data=data),
    st.builds(Range, registers, data, data, st.booleans()),
    data.flatmap(
        lambda mask: st.builds(Bitwise, registers, registers, st.just(mask), st.just(bytes(len(mask))))
    ),
    st.builds(Lookup, registers, names, maybe_registers, st.just(False), st.booleans()),
    st.builds(Lookup, registers, names, verdict=st.just(True)),
    st.builds(Immediate, registers, data),
    st.builds(Numgen, registers, words, offset=words),
    st.builds(Fib, registers),
    st.builds(Nat, address=registers, port=maybe_registers, flags=nat_flags),
    st.builds(Masquerade, nat_flags),
    st.builds(Log, st.integers(0, 2**16 - 1), names | st.just(""), words),
    st.builds(Reject, code=st.integers(0, 255)),
    st.builds(Counter),
    st.builds(Dynset, set=names, key=registers, data=maybe_registers, timeout_ms=words),
    st.builds(Notrack),
    st.sampled_from([code for code in VerdictCode if code not in {VerdictCode.JUMP, VerdictCode.GOTO}]).map(
        Verdict
    ),
    names.map(jump),
)


@given(expressions)
def test_expressions_come_back(one):
    assert expression.decode_expression(expression.encode_expression(one)) == one


@given(st.lists(expressions, max_size=8), names | st.just(""))
def test_rules_come_back(parts, comment):
    rule = Rule(tuple(parts), comment)
    assert message.decode_rule(message.encode_rule(rule)) == ("", rule)


@given(st.binary(max_size=200))
@example(b"\x0a\x00\x01\x00limit\x00\x00\x00")
def test_any_bytes_are_an_expression_or_malformed(content):
    try:
        expression.decode_expression(content)
    except MalformedMessageError:
        return


@given(expressions, st.data())
def test_a_damaged_expression_is_another_or_malformed(one, draw):
    content = bytearray(expression.encode_expression(one))
    content[draw.draw(st.integers(0, len(content) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        expression.decode_expression(bytes(content))
    except MalformedMessageError:
        return


@given(st.binary(max_size=300))
def test_any_bytes_are_an_object_or_malformed(attributes):
    kinds = (ADDRESSES, PORTS, VERDICTS, BLOCKS)
    decoders = [message.decode_chain, message.decode_rule, message.decode_set]
    decoders += [lambda content, one=one: element.decode_lists(one, [content]) for one in kinds]
    for decode in decoders:
        try:
            decode(attributes)
        except MalformedMessageError:
            continue


def test_an_expression_of_others_is_kept_as_it_is():
    limit = UnknownExpression("limit", bytes.fromhex("0c0001000000000000000005"))
    assert expression.decode_expression(expression.encode_expression(limit)) == limit


@pytest.mark.parametrize("extra", [b"\x08\x00\x07\x00\x00\x00\x00\x01", b"\x08\x00\x05\x00\x00\x00\x00\x01"])
def test_an_attribute_that_no_field_holds_makes_it_anothers(extra):
    """A payload expression that writes is no load."""
    content = parse(expression.encode_expression(Payload(0, 1, 12, 4)))[2]
    whole = expression.encode_expression(UnknownExpression("payload", content + extra))
    assert isinstance(expression.decode_expression(whole), UnknownExpression)


ADDRESSES = Set("addresses", (KeyType.IPV4_ADDR,), (KeyType.MARK,))
PORTS = Set("ports", (KeyType.IPV6_ADDR, KeyType.INET_PROTO, KeyType.INET_SERVICE))
LONE_PORT = Set("lone", (KeyType.INET_SERVICE,), (KeyType.IPV4_ADDR, KeyType.INET_SERVICE))
VERDICTS = Set("verdicts", (KeyType.MARK,), (KeyType.VERDICT,))
BLOCKS = Set("blocks", (KeyType.IPV4_ADDR,), intervals=True)
PAIRS = Set("pairs", (KeyType.IPV4_ADDR, KeyType.INET_SERVICE), intervals=True)


def plain_elements(one: Set):
    keys = st.none() | st.binary(min_size=size_bytes(one.key), max_size=size_bytes(one.key))
    size = size_bytes(one.data)
    values = st.binary(min_size=size, max_size=size) if one.data else st.none()
    return st.builds(Element, keys, values, st.none())


def around(one: Set, elements: list[Element]) -> frozenset[Element]:
    """Through the messages of an operation and back."""
    operation = AddElements(TableKey(Family.INET, "t"), one, frozenset(elements))
    contents = []
    for request in message.encode_operation(operation, 1):
        (decoded,) = decode_messages(request)
        contents.append(parse(decode_body(decoded)[1])[3])
        assert len(contents[-1]) <= element.LIST_BYTES
    decoded = element.decode_lists(one, contents)
    assert len(decoded) == len(set(decoded))
    return frozenset(decoded)


@pytest.mark.parametrize("one", [ADDRESSES, PORTS, LONE_PORT], ids=lambda one: one.name)
@given(st.data())
def test_elements_come_back(one, draw):
    elements = draw.draw(st.lists(plain_elements(one), max_size=20))
    assert around(one, elements) == frozenset(elements)


@given(st.dictionaries(st.binary(min_size=4, max_size=4), st.just(ACCEPT) | names.map(jump)))
def test_verdicts_come_back(verdicts):
    elements = [Element(key, verdict) for key, verdict in verdicts.items()]
    assert around(VERDICTS, elements) == frozenset(elements)


@given(st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=20))
@example([0, 2**32 - 1])
@example([0, 0xFFFFFFFE])
def test_intervals_come_back(bounds):
    """Disjoint intervals, some of one address, the whole space among them."""
    bounds = sorted(bounds)[: len(bounds) // 2 * 2]
    elements = [
        Element(first.to_bytes(4, "big"), None, last.to_bytes(4, "big"))
        for first, last in zip(bounds[::2], bounds[1::2], strict=True)
    ]
    assert around(BLOCKS, elements) == frozenset(elements)


@given(st.dictionaries(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8)))
def test_concatenated_intervals_come_back(pairs):
    elements = [Element(first, None, last) for first, last in pairs.items()]
    assert around(PAIRS, elements) == frozenset(elements)


def test_many_elements_take_several_messages():
    elements = [Element(number.to_bytes(4, "big"), host32(number)) for number in range(5000)]
    operation = AddElements(TableKey(Family.INET, "t"), ADDRESSES, frozenset(elements))
    assert len(list(message.encode_operation(operation, 1))) > 1
    assert around(ADDRESSES, elements) == frozenset(elements)


@pytest.mark.parametrize(
    "wrong",
    [
        Element(b"\1\2\3", b"\0\0\0\1"),
        Element(b"\1\2\3\4"),
        Element(b"\1\2\3\4", b"\1"),
        Element(b"\1\2\3\4", ACCEPT),
    ],
)
def test_an_element_of_another_size_is_refused(wrong):
    with pytest.raises(ValueError, match="does not fit"):
        around(ADDRESSES, [wrong])


@pytest.mark.parametrize(
    "one",
    [
        ADDRESSES,
        PORTS,
        LONE_PORT,
        VERDICTS,
        BLOCKS,
        PAIRS,
        Set("dynamic", (KeyType.IPV4_ADDR,), dynamic=True, timeout_ms=5000, size=100, comment="for a while"),
        Set("timeouts", (KeyType.IPV4_ADDR,), timeout_ms=0),
    ],
    ids=lambda one: one.name,
)
def test_sets_come_back(one):
    assert message.decode_set(message.encode_set(one, 1)) == one


def test_a_foreign_type_is_no_type_of_ours():
    """nft's `integer` of a typeof declaration, which has no number of ours."""
    content = message.encode_set(ADDRESSES, 1).replace(
        b"\x08\x00\x04\x00\x00\x00\x00\x07", b"\x08\x00\x04\x00\x00\x00\x00\x04"
    )
    assert message.decode_set(content).key == ()


@given(names)
def test_chains_come_back(name):
    assert message.decode_chain(message.encode_chain(Chain(name))) == Chain(name)
