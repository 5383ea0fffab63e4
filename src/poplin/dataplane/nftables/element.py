"""Set elements <-> NFTA_SET_ELEM_* attributes.

Tens of thousands pass here, so the common kind (a key of fixed length, with a value of fixed length in a
map) is one precompiled Struct for the whole attribute, and a dump's list of them one `iter_unpack`.

In a set of intervals over one field the kernel (nft_set_rbtree) keeps two elements for each interval, its
first key and, flagged as an end, the key past its last; none at the top of the key space. Over a
concatenation (nft_set_pipapo) an element has both bounds (KEY, KEY_END), inclusive.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from struct import Struct
from typing import Final

from poplin.dataplane.netlink.attribute import MalformedMessageError, pack, parse, walk
from poplin.dataplane.nfnetlink import decode_number, encode_number
from poplin.dataplane.nftables.expression import decode_data, encode_data, encode_expression
from poplin.model.nftables import Counter, Element, KeyType, Set, Verdict, size_bytes

KEY: Final = 1
DATA: Final = 2
FLAGS: Final = 3
EXPRESSION: Final = 7
KEY_END: Final = 10
COUNTER_PACKETS: Final = 2
INTERVAL_END: Final = 1
CATCHALL: Final = 2

_COUNTER: Final = pack(EXPRESSION, encode_expression(Counter()))

LIST_BYTES: Final = 60_000
"""Of one NFTA_SET_ELEM_LIST_ELEMENTS, whose length has 16 bits."""


def decode_counts(lists: Iterable[bytes]) -> dict[bytes, int]:
    """How many packets have found each element, by its key: of a dump of a counted set without intervals."""
    counts = {}
    for content in lists:
        for _, value in walk(content):
            fields = parse(value)
            expression = parse(fields.get(EXPRESSION, b""))
            counter = parse(expression.get(2, b""))
            counts[_key(fields, KEY)] = decode_number(counter.get(COUNTER_PACKETS, b""))
    return counts


def encode_lists(one: Set, elements: Iterable[Element]) -> Iterator[bytes]:
    """The elements as contents of NFTA_SET_ELEM_LIST_ELEMENTS, each within its limit of 64 KiB."""
    chunk: list[bytes] = []
    size = 0
    for packed in _encoded(one, elements):
        if size + len(packed) > LIST_BYTES:
            yield b"".join(chunk)
            chunk, size = [], 0
        chunk.append(packed)
        size += len(packed)
    if chunk:
        yield b"".join(chunk)


def decode_lists(one: Set, lists: Iterable[bytes]) -> list[Element]:
    """The inverse, of all the lists of one set, in the order of the dump."""
    if one.intervals and len(one.key) == 1:
        return _join(one, [parse(value) for content in lists for _, value in walk(content)])
    layout = _Layout(one) if _is_plain(one) else None
    found: list[Element] = []
    for content in lists:
        found += (layout and layout.elements(content)) or [_decode(one, value) for _, value in walk(content)]
    return found


class _Layout:
    """A plain element's whole attribute as one Struct: constant headers around the key and the value.

    What a counted set's elements carry beside these, in a dump, lies behind them and is skipped.
    """

    def __init__(self, one: Set) -> None:
        key_bytes, data_bytes = size_bytes(one.key), size_bytes(one.data)
        self.key_bytes, self.data_bytes = key_bytes, data_bytes
        template = _encode(Element(bytes(key_bytes), bytes(data_bytes) if one.data else None))
        key_pad, data_pad = -key_bytes % 4, -data_bytes % 4
        self.before = template[:12]
        self.between = b""
        if one.data:
            self.between = template[12 + key_bytes + key_pad : -(data_bytes + data_pad)]
            value = f"8s {data_bytes}s {data_pad}x"
        else:
            value = ""
        self.struct = Struct(f"12s {key_bytes}s {key_pad}x {value}")
        self.dumped, self.dumped_before = self.struct, self.before
        if one.counted:
            self.dumped = Struct(f"{self.struct.format} {len(_COUNTER)}x")
            length = self.dumped.size
            self.dumped_before = Struct("=H").pack(length) + self.before[2:]

    def pack(self, element: Element) -> bytes:
        """Raises ValueError where the lengths are not the set's (Struct would pad or cut in silence)."""
        key, data = element.key, element.data
        if key is None or len(key) != self.key_bytes or isinstance(data, Verdict):
            raise ValueError(f"element {element} does not fit its set")
        if len(data or b"") != self.data_bytes or element.last is not None:
            raise ValueError(f"element {element} does not fit its set")
        if data is None:
            return self.struct.pack(self.before, key)
        return self.struct.pack(self.before, key, self.between, data)

    def elements(self, content: bytes) -> list[Element] | None:
        """All of a list; None where one of them is not plain."""
        if len(content) % self.dumped.size:
            return None
        rows = self.dumped.iter_unpack(content)
        if self.between:
            found = [
                Element(key, data)
                for before, key, between, data in rows
                if before == self.dumped_before and between == self.between
            ]
        else:
            found = [Element(key) for before, key in rows if before == self.dumped_before]
        return found if len(found) * self.dumped.size == len(content) else None


def _is_plain(one: Set) -> bool:
    return not one.intervals and not one.dynamic and one.data != (KeyType.VERDICT,)


def _encoded(one: Set, elements: Iterable[Element]) -> Iterator[bytes]:
    if one.intervals and len(one.key) == 1:
        for element in elements:
            yield _encode(Element(element.key, element.data))
            end = None if element.key is None else _past(one, element)
            if end is not None:
                yield pack(1, encode_data(KEY, end) + encode_number(FLAGS, INTERVAL_END))
    elif _is_plain(one):
        layout = _Layout(one)
        yield from (_encode(element) if element.key is None else layout.pack(element) for element in elements)
    else:
        yield from map(_encode, elements)


def _past(one: Set, element: Element) -> bytes | None:
    """The first key past the interval, None where it reaches the last key there is."""
    if element.last is None:
        raise ValueError(f"element {element} of {one.name}, a set of intervals, has no end")
    return _step(element.last, 1) if element.last.strip(b"\xff") else None


def _step(key: bytes, by: int) -> bytes:
    return (int.from_bytes(key, "big") + by).to_bytes(len(key), "big")


def _encode(element: Element) -> bytes:
    """In the order the kernel dumps: KEY, KEY_END, DATA, FLAGS."""
    key = b"" if element.key is None else encode_data(KEY, element.key)
    last = b"" if element.last is None else encode_data(KEY_END, element.last)
    data = b"" if element.data is None else encode_data(DATA, element.data)
    flags = encode_number(FLAGS, CATCHALL) if element.key is None else b""
    return pack(1, key + last + data + flags)


def _decode(one: Set, value: bytes) -> Element:
    fields = parse(value)
    data = decode_data(fields[DATA]) if DATA in fields else None
    if decode_number(fields.get(FLAGS, b"")) & CATCHALL:
        return Element(None, data)
    key = _key(fields, KEY)
    if not one.intervals:
        return Element(key, data)
    return Element(key, data, _key(fields, KEY_END) if KEY_END in fields else key)


def _key(fields: dict[int, bytes], kind: int) -> bytes:
    data = decode_data(fields.get(kind, b""))
    if isinstance(data, Verdict):
        raise MalformedMessageError("a verdict as the key of an nftables set")
    return data


def _join(one: Set, decoded: list[dict[int, bytes]]) -> list[Element]:
    """Bounds paired into intervals: each runs from its start to the next bound, of whatever kind."""
    joined = []
    bounds = []
    for fields in decoded:
        flags = decode_number(fields.get(FLAGS, b""))
        data = decode_data(fields[DATA]) if DATA in fields else None
        if flags & CATCHALL:
            joined.append(Element(None, data))
        else:
            bounds.append((_key(fields, KEY), not flags & INTERVAL_END, data))
    bounds.sort(key=lambda bound: bound[:2])  # where one ends and the next starts, the end goes first
    top = b"\xff" * size_bytes(one.key)
    for (key, starts, data), following in zip_longest(bounds, bounds[1:]):
        if starts:
            last = _step(following[0], -1) if following else top
            joined.append(Element(key, data, last))
    return joined
