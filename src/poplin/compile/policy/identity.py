"""Identities: pods that nothing in use can tell apart share a number.

Three steps lead there. Pods of one namespace and service account, with the same of the labels that any policy
mentions and the same named ports, are a cohort. What a cohort is to the rules in use (the peers' selectors
that match it, the numbers of its named ports, the chains of its own packets at this node) is its signature.
Cohorts of one signature are an identity. Pods that no rule means and that have no chain here have none: for
them the number is UNKNOWN, as for any address.

Numbers say nothing but who is who. An identity keeps its number for as long as any of its cohorts does, and an
agent that starts takes up those that the kernel holds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

from poplin.model.cluster import ContainerPort
from poplin.model.kernel import IPAddress
from poplin.model.selector import Labels

UNKNOWN: Final = 0
"""The number of every address that has no identity."""


class CohortKey(NamedTuple):
    """`labels` are (key, value) in order; `local` says that the pods are this node's."""

    namespace: str
    account: str
    labels: tuple[tuple[str, str], ...]
    ports: tuple[tuple[str, str, int], ...]
    local: bool


class Signature(NamedTuple):
    """What an identity is to the rules in use.

    `selectors` by their texts; `named` are (set, number) of the named ports in use; `chains` are the chains
    of ingress and egress, "" where no policy applies, None for pods of other nodes.
    """

    selectors: frozenset[str] = frozenset()
    named: frozenset[tuple[str, int]] = frozenset()
    chains: tuple[str, str] | None = None


NOBODY: Final = Signature()


@dataclass(slots=True, eq=False)
class Identity:
    number: int
    signature: Signature
    cohorts: set[CohortKey] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Cohort:
    """`members` are its pods' addresses by the pods' (namespace, name)."""

    key: CohortKey
    labels: Labels
    ports: tuple[ContainerPort, ...]
    members: dict[tuple[str, str], tuple[IPAddress, ...]] = field(default_factory=dict)
    identity: Identity | None = None

    @property
    def number(self) -> int:
        return UNKNOWN if self.identity is None else self.identity.number


@dataclass(slots=True)
class Moves:
    """What a new assignment changes: identities that are gone or new, and cohorts whose number is another."""

    gone: list[Identity] = field(default_factory=list)
    new: list[Identity] = field(default_factory=list)
    moved: list[Cohort] = field(default_factory=list)


class Identities:
    """The identities in use. `held` are the numbers that addresses have in the kernel, to be kept where they can."""

    def __init__(self, held: Mapping[IPAddress, int]) -> None:
        self._by_signature: dict[Signature, Identity] = {}
        self._numbers: set[int] = set()
        self._held = held
        self._next = count(max(held.values(), default=UNKNOWN) + 1)

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._by_signature.values())

    def assign(self, signed: Iterable[tuple[Cohort, Signature]]) -> Moves:
        """Give cohorts their signatures anew. A cohort without members loses its identity.

        An identity whose cohorts all take one new signature keeps its number. Where it is split, the number
        stays with the cohorts that did not change, or else with the first of those that did.
        """
        moves = Moves()
        pending: list[tuple[Cohort, Signature, int]] = []
        for cohort, signature in signed:
            old = cohort.identity
            wanted = signature if cohort.members and signature != NOBODY else None
            if (old.signature if old is not None else None) == wanted:
                continue
            pending.append((cohort, wanted or NOBODY, cohort.number))
            if old is not None:
                self._leave(old, cohort, moves)
        for cohort, signature, number in sorted(pending, key=_largest_first):
            self._enter(cohort, signature, number, moves)
            if cohort.number != number:
                moves.moved.append(cohort)
        return moves

    def _leave(self, old: Identity, cohort: Cohort, moves: Moves) -> None:
        old.cohorts.discard(cohort.key)
        cohort.identity = None
        if not old.cohorts:
            del self._by_signature[old.signature]
            self._numbers.discard(old.number)
            moves.gone.append(old)

    def _enter(self, cohort: Cohort, signature: Signature, number: int, moves: Moves) -> None:
        if signature == NOBODY:
            return
        identity = self._by_signature.get(signature)
        if identity is None:
            identity = Identity(self._choose(cohort, number), signature)
            self._by_signature[signature] = identity
            self._numbers.add(identity.number)
            moves.new.append(identity)
        identity.cohorts.add(cohort.key)
        cohort.identity = identity

    def _choose(self, cohort: Cohort, number: int) -> int:
        if number != UNKNOWN and number not in self._numbers:
            return number
        for addresses in cohort.members.values() if self._held else ():
            for address in addresses:
                held = self._held.get(address, UNKNOWN)
                if held != UNKNOWN and held not in self._numbers:
                    return held
        return next(self._next)

    def forget_held(self) -> None:
        """After the first assignment every number is known; what the kernel held says no more."""
        self._held = {}


def _largest_first(one: tuple[Cohort, Signature, int]) -> tuple[int, CohortKey]:
    return -len(one[0].members), one[0].key
