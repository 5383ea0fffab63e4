"""The addresses of one node's pods: who has which, and which comes next.

Nothing here touches a clock, a file or the kernel. Time is a parameter, in seconds of any clock that does not
go backwards. Every operation is independent of the size of the CIDR, so that an IPv6 /64 costs what an IPv4
/24 does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Self

from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError
from poplin.model.kernel import IPAddress, IPNetwork

REST_S: Final = 30.0
"""How long a freed address is left alone where others are free: caches of its last owner run out meanwhile."""


Span = tuple[int, int]
"""The first and the last of addresses that follow each other, as integers."""

AddressRange = tuple[IPAddress, IPAddress]
"""The first and the last address that are allowed, of one family."""


class PoolExhaustedError(TemporaryError):
    """Every address of a family is in use; one comes back when a pod goes."""


class AddressInUseError(TemporaryError):
    """The address that was asked for belongs to another attachment."""


@dataclass(slots=True)
class _Range:
    """One CIDR, its addresses as integers. `resting` is in the order in which they were freed."""

    cidr: IPNetwork
    first: int
    last: int
    next: int
    owners: dict[int, str] = field(default_factory=dict)
    resting: dict[int, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def wake(self, now_s: float, rest_s: float) -> None:
        """End the rest of those that have rested long enough."""
        while self.resting:
            oldest = self.oldest()
            if now_s - self.resting[oldest] < rest_s:
                return
            del self.resting[oldest]

    def oldest(self) -> int:
        """The address that has rested longest, of one or more."""
        return next(iter(self.resting))

    def clip(self, span: Span) -> Span | None:
        """What of a span is in this range, None for nothing."""
        first, last = max(self.first, span[0]), min(self.last, span[1])
        return (first, last) if first <= last else None

    def find_free(self, span: Span) -> int | None:
        """The next address of the span, in turn, that is neither in use nor resting; None where there is none."""
        if len(self.owners) + len(self.resting) >= self.size:
            return None
        first, last = span
        start = candidate = self.next if first <= self.next <= last else first
        while candidate in self.owners or candidate in self.resting:
            candidate = candidate + 1 if candidate < last else first
            if candidate == start:
                return None
        return candidate

    def find_resting(self, span: Span) -> int | None:
        """The address of the span that has rested longest, None where none rests."""
        first, last = span
        return next((number for number in self.resting if first <= number <= last), None)

    def after(self, address: int) -> int:
        return address + 1 if address < self.last else self.first

    def take(self, address: int, owner: str) -> None:
        self.resting.pop(address, None)
        self.owners[address] = owner
        self.next = self.after(address)


class NodePool:
    """The pod CIDRs of a node, one or several of each family, and the owners of their addresses.

    An owner is any string that names an attachment. The network address and the last one of a CIDR are never
    given: IPv4 networks reserve them, and IPv6 routers answer the first (RFC 4291, 2.6.1).
    """

    def __init__(self, cidrs: Sequence[IPNetwork], *, rest_s: float = REST_S) -> None:
        """Make a pool with every address free. Raises InvalidInputError for CIDRs too small or overlapping."""
        self._rest_s = rest_s
        self._ranges: list[_Range] = []
        for cidr in cidrs:
            for other in self._ranges:
                if cidr.version == other.cidr.version and cidr.overlaps(other.cidr):
                    raise InvalidInputError(f"pod CIDR overlaps {other.cidr}", where=str(cidr))
            if cidr.num_addresses < 4:
                raise InvalidInputError(
                    "pod CIDR has no address to give: its first and last are not used", where=str(cidr)
                )
            first = int(cidr.network_address) + 1
            self._ranges.append(_Range(cidr, first, first + cidr.num_addresses - 3, first))
        self._ranges.sort(key=lambda found: found.cidr.version)  # stable: the order given, IPv4 first
        self._versions = tuple(dict.fromkeys(found.cidr.version for found in self._ranges))

    @classmethod
    def restore(
        cls,
        cidrs: Sequence[IPNetwork],
        owners: Mapping[IPAddress, str],
        freed: Iterable[tuple[IPAddress, float]],
        *,
        now_s: float,
        rest_s: float = REST_S,
    ) -> Self:
        """A pool as it was: addresses in use, and (address, seconds since it was freed) of those resting.

        Addresses that are in no CIDR any more are passed over: they cannot be given twice.
        """
        pool = cls(cidrs, rest_s=rest_s)
        for address, owner in owners.items():
            if (found := pool._range_of(address)) is not None:
                found.owners[int(address)] = owner
        for address, age_s in sorted(freed, key=lambda one: -one[1]):
            found = pool._range_of(address)
            if found is not None and int(address) not in found.owners:
                found.resting[int(address)] = now_s - max(age_s, 0.0)
        for found in pool._ranges:
            found.next = found.after(max([*found.owners, *found.resting], default=found.last))
        return pool

    def allocate(
        self,
        owner: str,
        *,
        now_s: float,
        requested: Sequence[IPAddress] = (),
        within: Sequence[AddressRange] = (),
    ) -> tuple[IPAddress, ...]:
        """Take one address of each family of the pool, IPv4 first; of `requested` where it has that family.

        Of a family that `within` has, another address is taken from those ranges only. All or none is taken. Raises PoolExhaustedError; for a requested address AddressInUseError where it is
        another's, InvalidInputError where the pool cannot give it.
        """
        wanted: dict[int, IPAddress] = {address.version: address for address in requested}
        allowed: dict[int, list[AddressRange]] = {}
        for first, last in within:
            allowed.setdefault(first.version, []).append((first, last))
        for address in [*requested, *(first for first, _ in within)]:
            if address.version not in self._versions:
                raise InvalidInputError(f"this node has no IPv{address.version} pod CIDR", where=str(address))
        for found in self._ranges:
            found.wake(now_s, self._rest_s)
        chosen = [
            self._find_requested(wanted[version])
            if version in wanted
            else self._find_any(version, allowed.get(version))
            for version in self._versions
        ]
        for found, number in chosen:
            found.take(number, owner)
        return tuple(_address(found.cidr, number) for found, number in chosen)

    def release(self, addresses: Iterable[IPAddress], *, now_s: float) -> None:
        """Put addresses to rest. One that is not in use stays as it is."""
        for address in addresses:
            found = self._range_of(address)
            if found is not None and found.owners.pop(int(address), None) is not None:
                found.resting[int(address)] = now_s

    def owners(self) -> dict[IPAddress, str]:
        """Every address in use, with its owner."""
        return {
            _address(found.cidr, number): owner
            for found in self._ranges
            for number, owner in found.owners.items()
        }

    def free_count(self, version: int) -> int:
        """How many addresses of a family can be given, those that rest included."""
        return sum(found.size - len(found.owners) for found in self._ranges if found.cidr.version == version)

    def _range_of(self, address: IPAddress) -> _Range | None:
        for found in self._ranges:
            if found.cidr.version == address.version and found.first <= int(address) <= found.last:
                return found
        return None

    def _find_requested(self, address: IPAddress) -> tuple[_Range, int]:
        found = self._range_of(address)
        if found is None:
            cidrs = ", ".join(str(one.cidr) for one in self._ranges if one.cidr.version == address.version)
            raise InvalidInputError(
                f"not an address that this node can give a pod: its pod CIDRs are {cidrs}, less first and last",
                where=str(address),
            )
        if (owner := found.owners.get(int(address))) is not None:
            raise AddressInUseError(f"in use by {owner}", where=str(address))
        return found, int(address)

    def _find_any(self, version: int, allowed: Sequence[AddressRange] | None) -> tuple[_Range, int]:
        ranges = [found for found in self._ranges if found.cidr.version == version]
        if allowed is None:
            spans = [(found, (found.first, found.last)) for found in ranges]
        else:
            clipped = [(found, found.clip((int(a), int(b)))) for a, b in allowed for found in ranges]
            spans = [(found, span) for found, span in clipped if span is not None]
        for found, span in spans:
            if (number := found.find_free(span)) is not None:
                return found, number
        # Reuse before its time rather than fail.
        resting = [
            (found, number) for found, span in spans if (number := found.find_resting(span)) is not None
        ]
        if resting:
            return min(resting, key=lambda one: one[0].resting[one[1]])
        raise _none_is_free(version, ranges, allowed, possible=bool(spans))


def _none_is_free(
    version: int, ranges: Sequence[_Range], allowed: Sequence[AddressRange] | None, *, possible: bool
) -> PoplinError:
    cidrs = ", ".join(str(found.cidr) for found in ranges)
    asked = ", ".join(f"{first}-{last}" for first, last in allowed or ())
    if not possible:
        return InvalidInputError(
            f"no address that this node can give a pod: its pod CIDRs are {cidrs}, less first and last",
            where=asked,
        )
    if allowed is not None:
        return PoolExhaustedError(
            f"every IPv{version} address that was asked for is in use",
            where=asked,
            remedy="ask for a larger range",
        )
    in_use, size = sum(len(found.owners) for found in ranges), sum(found.size for found in ranges)
    return PoolExhaustedError(
        f"no IPv{version} address is free: {in_use} of {size} are in use",
        where=cidrs,
        remedy="move pods to other nodes, or give this node a larger pod CIDR",
    )


def _address(cidr: IPNetwork, number: int) -> IPAddress:
    return IPv4Address(number) if cidr.version == 4 else IPv6Address(number)
