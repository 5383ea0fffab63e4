"""Table `inet poplin`: what every node does to its pods' packets, whatever features are on.

Pods' sources are bound to their interfaces, and what leaves the cluster gets the node's address.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Final

from poplin.compile.nft_rule import (
    IIFGROUP,
    IIFNAME,
    IPV4,
    IPV6,
    REVERSE_PATH,
    Network,
    equals,
    in_set,
    loads,
    network,
    rule,
    within,
)
from poplin.model.kernel import POD_LINK_GROUP, IPNetwork
from poplin.model.netconf import NetConf
from poplin.model.nftables import (
    DROP,
    RETURN,
    BaseChain,
    Chain,
    ChainType,
    Counter,
    Dynset,
    DynsetOp,
    Element,
    Hook,
    Masquerade,
    NatFlag,
    Rule,
    Set,
    Table,
    goto,
)

TABLE: Final = "poplin"
RAW: Final = -300
"""Priority NF_IP_PRI_RAW: before connection tracking, so that a forged packet makes no entry."""
SRCNAT: Final = 100
"""Priority NF_IP_PRI_NAT_SRC."""

BOUND_MS: Final = 5000
"""How long the route of a pod's source is not asked for again; a veth's name is of one container alone."""
BOUND_SOURCES: Final = 4096
"""Of each family; what is more is asked for every time."""

_FROM_PODS: Final = "from-pods"
_FAMILIES: Final = {4: IPV4, 6: IPV6}

MULTICAST: Final = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}


def compile_node_table(conf: NetConf | None, *, masquerade: bool = True) -> Table:
    """Give the table; without a configuration, or with `masquerade` off, sources are bound and no more."""
    networks = conf.networks if conf is not None and masquerade else ()
    non_masquerade = conf.non_masquerade if conf is not None else ()
    return Table(
        TABLE,
        chains=(
            Chain(
                "anti-spoofing",
                (rule(equals(IIFGROUP, POD_LINK_GROUP), goto(_FROM_PODS)),),
                BaseChain(ChainType.FILTER, Hook.PREROUTING, RAW),
            ),
            Chain(_FROM_PODS, tuple(_bind_sources())),
            Chain(
                # Not "masquerade": nft would print that, and then not read it back.
                "masquerading",
                tuple(_masquerade(pods) for pods in networks),
                BaseChain(ChainType.NAT, Hook.POSTROUTING, SRCNAT),
            ),
        ),
        sets=(
            *(_bound(family, version) for version, family in _FAMILIES.items()),
            *(_direct_destinations(pods, non_masquerade) for pods in networks),
        ),
    )


def _bind_sources() -> Iterator[Rule]:
    """Drop what comes from a pod's veth with a source whose route does not lead back there.

    The pod's own /32 or /128 route is the binding: there is no element for each pod to keep in step. What it has
    said is remembered for a while, by packets, since in IPv6 to ask a route takes three times as long as a set.
    """
    bound = [(family, [IIFNAME, family.saddr], _bound_name(version)) for version, family in _FAMILIES.items()]
    for family, source, name in bound:
        yield rule(family.only, in_set(source, name), RETURN)
    yield rule(equals(REVERSE_PATH, 0), Counter(), DROP, comment="source is not the pod's own address")
    for family, source, name in bound:
        yield rule(family.only, loads(source), Dynset(DynsetOp.ADD, name, 0))


def _bound(family: Network, version: int) -> Set:
    """A set that forgets: never refreshed, so that each source is looked up again.

    By the interface's name: nft would not read back a listing with the index of one that is gone.
    """
    key = (IIFNAME.type, family.address)
    return Set(_bound_name(version), key, dynamic=True, timeout_ms=BOUND_MS, size=BOUND_SOURCES)


def _bound_name(version: int) -> str:
    return f"bound-{version}"


def _masquerade(pods: IPNetwork) -> Rule:
    """Give pods' packets to destinations outside the cluster the address of the interface they leave by."""
    family = network(pods.version)
    return rule(
        family.only,
        within(family.saddr, pods),
        in_set([family.daddr], _set_name(pods.version), negate=True),
        Masquerade(NatFlag.FULLY_RANDOM),
        comment="from a pod to outside the cluster",
    )


def _direct_destinations(pods: IPNetwork, non_masquerade: tuple[IPNetwork, ...]) -> Set:
    blocks = [pods, MULTICAST[pods.version], *(n for n in non_masquerade if n.version == pods.version)]
    return Set(
        _set_name(pods.version),
        (network(pods.version).address,),
        intervals=True,
        elements=frozenset(merge_blocks(blocks)),
    )


def _set_name(version: int) -> str:
    return f"direct-{version}"


def merge_blocks(blocks: Iterable[IPNetwork]) -> list[Element]:
    """Give disjoint intervals that do not touch, as an interval set wants them."""
    spans: list[list[int]] = []
    size = 0
    for block in sorted(blocks, key=lambda b: int(b.network_address)):
        first, last = int(block.network_address), int(block.broadcast_address)
        size = block.max_prefixlen // 8
        if spans and first <= spans[-1][1] + 1:
            spans[-1][1] = max(spans[-1][1], last)
        else:
            spans.append([first, last])
    return [Element(first.to_bytes(size), last=last.to_bytes(size)) for first, last in spans]
