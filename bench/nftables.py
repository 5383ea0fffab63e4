"""nftables: writing and reading large sets, one element more, beside `nft -f -`; and what rules cost a packet.

    python -m bench.nftables [--json]

Everything happens in network namespaces of its own. Times are medians; what is compared is interleaved.
"""

import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from statistics import median
from time import perf_counter

from bench.report import Figure, main, within
from poplin.compile.nft_rule import (
    DPORT,
    IIF,
    IIFGROUP,
    IPV4,
    L4PROTO,
    NUMBER,
    REVERSE_PATH,
    encode_number,
    equals,
    in_set,
    loads,
    look_up_number,
    rule,
)
from poplin.dataplane.netns import create_netns, delete_netns, entered, open_netns
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.kernel import POD_LINK_GROUP
from poplin.model.nftables import (
    ACCEPT,
    DROP,
    BaseChain,
    Chain,
    ChainType,
    Element,
    Expression,
    Hook,
    KeyType,
    Lookup,
    Rule,
    Set,
    Table,
    Verdict,
    host32,
    jump,
)
from poplin.plan.nftables import plan_table

ROUNDS = 11
SIZES = (10, 10_000, 45_000)
PACKETS = 4000
CHAINS = tuple(Chain(f"chain-{number}") for number in range(5))
FORWARD = BaseChain(ChainType.FILTER, Hook.FORWARD, 0)
FRONTEND = (KeyType.IPV4_ADDR, KeyType.INET_PROTO, KeyType.INET_SERVICE)

BUDGETS_MS = {
    "write 10000, ours": 50,
    "write 45000, ours": 500,
    "resync 10000": 50,
    "resync 45000": 150,
    "+1 in a data map of 10": 1,
    "+1 in a data map of 10000": 1,
    "+1 in a data map of 45000": 1,
}


def run() -> list[Figure]:
    """Milliseconds of transactions; and what rules cost a packet, over the same path without the rule."""
    with namespace() as netns_fd, entered(netns_fd), NftSocket() as nft:
        results = writes(nft) | resyncs(nft) | additions(nft)
    figures = [
        within(name, spent, "ms", BUDGETS_MS[name]) if name in BUDGETS_MS else Figure(name, spent, "ms")
        for name, spent in results.items()
    ]
    return figures + [Figure(f"a packet: {name}", cost, "ns") for name, cost in packets().items()]


@contextmanager
def namespace() -> Iterator[int]:
    name = f"poplin-bench-{secrets.token_hex(4)}"
    netns_fd = open_netns(create_netns(name))
    try:
        yield netns_fd
    finally:
        os.close(netns_fd)
        delete_netns(name)


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return (perf_counter() - start) * 1000


def frontends(size: int, values: Sequence[bytes | Verdict | None]) -> frozenset[Element]:
    """`size` services, each on an address of its own."""
    return frozenset(
        Element(IPv4Address((10 << 24) + place).packed + b"\6\0\0\0\0\x50\0\0", values[place % len(values)])
        for place in range(size)
    )


def data_map(size: int) -> Table:
    values = [encode_number(count) for count in range(5)]
    return table_of(Set("services", FRONTEND, NUMBER, elements=frontends(size, values)))


def verdict_map(size: int) -> Table:
    verdicts = [jump(chain.name) for chain in CHAINS]
    return table_of(Set("services", FRONTEND, (KeyType.VERDICT,), elements=frontends(size, verdicts)))


def ranges(size: int) -> Table:
    """The same keys in a set that could hold ranges of each field (nft_set_pipapo)."""
    elements = frozenset(Element(element.key, None, element.key) for element in frontends(size, [None]))
    return table_of(Set("services", FRONTEND, intervals=True, elements=elements))


def table_of(one: Set) -> Table:
    """A base chain uses the map, as it does in earnest: only then does the kernel check its chains for loops."""
    verdict = one.data == (KeyType.VERDICT,)
    match = (
        *loads([IPV4.daddr, L4PROTO, DPORT], 1),
        Lookup(1, one.name, 0 if one.data and not verdict else None, verdict=verdict),
    )
    return Table("poplin", (*CHAINS, Chain("forward", (rule(IPV4.only, match),), FORWARD)), (one,))


def writes(nft: NftSocket) -> dict[str, float]:
    results: dict[str, float] = {}
    for size in SIZES[1:]:
        ours, theirs = [], []
        table = data_map(size)
        text = nft_text(table.sets[0])
        for _ in range(ROUNDS):
            ours.append(timed(partial(write, nft, table)))
            nft.apply(plan_table(None, table))
            theirs.append(timed(partial(subprocess.run, ["nft", "-f", "-"], input=text, check=True)))
            nft.apply(plan_table(None, table))
        results |= {f"write {size}, ours": median(ours), f"write {size}, nft -f": median(theirs)}
    return results


def write(nft: NftSocket, table: Table) -> None:
    nft.apply(plan_table(table, None))


def nft_text(one: Set) -> bytes:
    elements = ", ".join(
        f"{IPv4Address(element.key[:4])} . tcp . 80 : 0 . {element.data[4]}"
        for element in one.elements
        if element.key and isinstance(element.data, bytes)
    )
    kinds = "ipv4_addr . inet_proto . inet_service : mark . mark"
    return f"table inet poplin {{\n map services {{\n type {kinds}\n elements = {{ {elements} }}\n }}\n}}\n".encode()


def resyncs(nft: NftSocket) -> dict[str, float]:
    """Reading all and finding that nothing differs."""
    results: dict[str, float] = {}
    for size in SIZES[1:]:
        table = data_map(size)
        nft.apply(plan_table(table, None))

        def resync(table: Table = table) -> None:
            if plan_table(table, nft.read_table(table.key)):
                raise AssertionError("what was read is not what was written")

        results[f"resync {size}"] = median(timed(resync) for _ in range(ROUNDS))
        nft.apply(plan_table(None, table))
    return results


def additions(nft: NftSocket) -> dict[str, float]:
    """The transaction that adds one element: encoding, and the kernel's work within sendmsg."""
    results: dict[str, float] = {}
    for kind, make in (("data map", data_map), ("verdict map", verdict_map), ("set of ranges", ranges)):
        for size in SIZES:
            table = make(size)
            nft.apply(plan_table(table, None))
            sample = next(iter(table.sets[0].elements))
            times = []
            for number in range(3 * ROUNDS):
                key = IPv4Address((11 << 24) + number).packed + b"\6\0\0\0\0\x50\0\0"
                more = Element(key, sample.data, sample.last and key)
                one = replace(table.sets[0], elements=table.sets[0].elements | {more})
                after = replace(table, sets=(one,))
                operations = plan_table(after, table)
                times.append(timed(partial(nft.apply, operations)))
                table = after
            results[f"+1 in a {kind} of {size}"] = median(times)
            nft.apply(plan_table(None, table))
    return results


def packets() -> dict[str, float]:
    """A pod's datagrams that the node drops right after the rule in question."""
    with namespace() as node, namespace() as pod:
        wire(node, pod)
        with entered(node), NftSocket() as nft, entered(pod):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sender.connect(("198.51.100.1", 9))
            with sender:
                return rule_costs(nft, sender)


def wire(node: int, pod: int) -> None:
    pod_path = f"/proc/{os.getpid()}/fd/{pod}"
    with entered(node):
        for line in (
            f"link add pod0 address ee:ee:ee:ee:ee:ee group {POD_LINK_GROUP} type veth peer name eth0 netns {pod_path}",
            "link set pod0 up",
            "route add 10.244.1.10/32 dev pod0",
        ):
            subprocess.run(["ip", *line.split()], check=True)
    with entered(pod):
        for line in (
            "link set eth0 up",
            "addr add 10.244.1.10/32 dev eth0",
            "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0",
            "route add default via 169.254.1.1 dev eth0 onlink",
        ):
            subprocess.run(["ip", *line.split()], check=True)


def rule_costs(nft: NftSocket, sender: socket.socket) -> dict[str, float]:
    address = IPv4Address("10.244.1.10").packed
    pods = frozenset(
        {Element(host32(index) + address) for index in range(1, 100)}
        | {Element(host32(1) + IPv4Address((10 << 24) + place).packed) for place in range(110)}
    )
    known = frozenset(
        Element(IPv4Address((10 << 24) + place).packed, encode_number(place)) for place in range(10_000)
    )
    known |= {Element(address, encode_number(1)), Element(None, encode_number(2))}
    openings = frozenset(
        Element(host32(1) + b"\x11\0\0\0" + host32(2) + place.to_bytes(2, "big") + b"\0\0")
        for place in range(1000)
    )
    sets = (
        Set("pods", (KeyType.IFINDEX, KeyType.IPV4_ADDR), elements=pods),
        Set("identity", (KeyType.IPV4_ADDR,), NUMBER, elements=known),
        Set(
            "openings",
            (KeyType.MARK, KeyType.INET_PROTO, KeyType.MARK, KeyType.INET_SERVICE),
            elements=openings,
        ),
    )
    pod_link = equals(IIFGROUP, POD_LINK_GROUP)
    pair: tuple[Expression, ...] = (
        *look_up_number([IPV4.saddr], "identity", 1),
        *look_up_number([IPV4.daddr], "identity", 3),
        *loads([L4PROTO], 2),
        *loads([DPORT], 4),
    )
    variants: dict[str, tuple[Rule, ...]] = {
        "nothing": (),
        "reverse path": (rule(pod_link, equals(REVERSE_PATH, 0), DROP),),
        "set of (iif . saddr)": (
            rule(pod_link, IPV4.only, in_set([IIF, IPV4.saddr], "pods", negate=True), DROP),
        ),
        "identities and openings": (rule(IPV4.only, pair, Lookup(1, "openings"), ACCEPT),),
    }
    end = Chain(
        "end",
        (rule(equals(IIFGROUP, POD_LINK_GROUP), DROP),),
        BaseChain(ChainType.FILTER, Hook.PREROUTING, -290),
    )
    times: dict[str, list[float]] = {name: [] for name in variants}
    datagram = b"x" * 64
    for _ in range(ROUNDS):
        for name, rules in variants.items():
            chain = Chain("rule", rules, BaseChain(ChainType.FILTER, Hook.PREROUTING, -300))
            table = Table("poplin", (chain, end), sets)
            nft.apply(plan_table(table, None))
            times[name].append(timed(lambda: [sender.send(datagram) for _ in range(PACKETS)]) / PACKETS * 1e6)
            nft.apply(plan_table(None, table))
    without = times["nothing"]
    return {
        name: median(one - other for one, other in zip(times[name], without, strict=True))
        for name in variants
        if name != "nothing"
    }


if __name__ == "__main__":
    main("nftables: transactions, and what a rule costs a packet", run)
