"""What a plan is made of: operations on kernel objects of one network namespace, in the order they go."""

from dataclasses import dataclass, field

from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Redirect, Route, TokenBucket, Veth

KernelObject = Link | Veth | Address | Route | Neighbour | FdbEntry | TokenBucket | Redirect


@dataclass(frozen=True, slots=True)
class Put:
    """Make the object. `replace` says that one of ours stands under the same key and gives way to it.

    Without `replace` an object of the same key is somebody else's: the kernel answers EEXIST and it stays.
    `over` is all that stands under its key, None where that is not known; it only saves a search (`fold`).
    """

    what: KernelObject
    replace: bool = False
    over: tuple[KernelObject, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Change:
    """Bring the attributes of the link of this name to what `link` says ("as it is" values stay)."""

    link: Link


@dataclass(frozen=True, slots=True)
class Remove:
    """Take the object away. That it is gone already is success."""

    what: KernelObject


Operation = Put | Change | Remove
