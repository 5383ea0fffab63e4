"""What a request asks beside its object, and what is found on the way."""

from dataclasses import dataclass, field

from poplin.apiserver.collection import Object
from poplin.apiserver.status import Cause


@dataclass(slots=True)
class Options:
    """`manager` is who writes. `warnings` and `faults` collect what is found on the way.

    `managed` is what metadata.managedFields shall be, None where it follows from the write.
    """

    dry_run: bool = False
    field_validation: str = "Warn"
    manager: str = "poplin-apiserver"
    warnings: list[str] = field(default_factory=list)
    faults: list[Cause] = field(default_factory=list)
    managed: list[Object] | None = None
