"""How many pods each ReplicaSet of a Deployment should have: the arithmetic of rollouts, on numbers only.

Source: Kubernetes documentation, "Deployments" (max unavailable, max surge, proportional scaling).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from poplin.lab.controllers.pod import resolve_count


@dataclass(frozen=True, slots=True)
class Scale:
    """One ReplicaSet: what it is told to have, how many of those serve, and what it may reach at most.

    `limit` is the total, surge included, that the Deployment had when the size was set; 0 where unknown.
    """

    replicas: int
    available: int
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a rollout must keep to: `replicas` wanted, `most` pods in all, and `least` of them available."""

    replicas: int
    most: int
    least: int


def resolve_bounds(replicas: int, surge: int | str | None, unavailable: int | str | None) -> Bounds:
    """Bounds of a rolling update. Where both resolve to none, one may be unavailable: else nothing could move."""
    extra = resolve_count(surge, replicas, up=True)
    missing = resolve_count(unavailable, replicas, up=False)
    if not extra and not missing:
        missing = 1
    return Bounds(replicas, replicas + extra if replicas else 0, replicas - min(missing, replicas))


def roll(new: Scale, old: Sequence[Scale], bounds: Bounds) -> tuple[int, list[int]]:
    """The next sizes of the new ReplicaSet and of the old ones, the oldest first."""
    total = new.replicas + sum(one.replicas for one in old)
    grown = bounds.replicas
    if new.replicas < bounds.replicas:
        grown = new.replicas + max(0, min(bounds.most - total, bounds.replicas - new.replicas))
    serving = sum(min(one.available, one.replicas) for one in old)
    # What the new one lacks may come to nothing, so it does not count for the minimum.
    spare = serving + min(new.available, new.replicas, grown) - bounds.least
    idle = sum(one.replicas for one in old) - serving
    sizes = []
    # Pods that do not serve go first: their end changes nothing, as long as there is room for the change.
    removable = max(0, min(idle, idle + spare))
    for one in old:
        cut = min(removable, one.replicas - min(one.available, one.replicas))
        removable -= cut
        sizes.append(one.replicas - cut)
    for index, size in enumerate(sizes):
        cut = max(0, min(spare, size))
        spare -= cut
        sizes[index] -= cut
    return grown, sizes


def resize(scales: Sequence[Scale], bounds: Bounds) -> list[int]:
    """Share a change of the Deployment's size among its ReplicaSets in proportion, the largest first.

    The rest of the division goes to the first that can take it, so that the total is exact.
    """
    total = sum(one.replicas for one in scales)
    left = change = bounds.most - total
    sizes = [one.replicas for one in scales]
    for index, one in enumerate(scales):
        if not one.replicas or not left:
            continue
        limit = one.limit or total
        fair = (2 * one.replicas * bounds.most + limit) // (2 * limit) - one.replicas  # to the nearest
        share = max(left, min(0, fair)) if change < 0 else min(left, max(0, fair))
        sizes[index] += share
        left -= share
    for index, size in enumerate(sizes):
        share = max(left, -size)
        sizes[index] += share
        left -= share
    return sizes
