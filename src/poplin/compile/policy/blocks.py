"""Blocks of addresses with holes, as the disjoint intervals that a set of the kernel holds."""

from collections.abc import Iterable

from poplin.model.kernel import IPNetwork
from poplin.model.nftables import Element

Interval = tuple[int, int]
"""The first and the last address, as numbers."""


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same addresses in intervals that neither overlap nor touch, in their order."""
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def subtract(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """The addresses of the intervals that lie in none of the holes."""
    closed = merge(holes)
    left: list[Interval] = []
    for first, last in merge(intervals):
        start = first
        for hole_first, hole_last in closed:
            if hole_last < start or hole_first > last:
                continue
            if hole_first > start:
                left.append((start, hole_first - 1))
            start = hole_last + 1
        if start <= last:
            left.append((start, last))
    return left


def intervals(nets: Iterable[IPNetwork], holes: Iterable[IPNetwork], version: int) -> list[Interval]:
    """Those of one family."""
    return subtract(_of_family(nets, version), _of_family(holes, version))


def _of_family(nets: Iterable[IPNetwork], version: int) -> list[Interval]:
    return [(int(net.network_address), int(net.broadcast_address)) for net in nets if net.version == version]


def elements(some: Iterable[Interval], version: int) -> frozenset[Element]:
    size = 4 if version == 4 else 16
    return frozenset(Element(first.to_bytes(size), last=last.to_bytes(size)) for first, last in merge(some))
