"""A cluster's policy as files have it: pods may be without addresses, or stand as the workloads that make them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final, TypeVar

from poplin.compile.policy.world import PolicyState
from poplin.datastore.core import NAMESPACES, NODES, PODS
from poplin.datastore.documents import load_objects
from poplin.datastore.file import select
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.parse import InvalidObjectError
from poplin.datastore.resource import ClusterObject, Resource
from poplin.model.errors import InvalidInputError, PoplinError
from poplin.model.kernel import IPAddress

T = TypeVar("T", bound=ClusterObject)

WORKLOADS: Final = frozenset(
    {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"}
)
STAND_INS: Final = (IPv4Address("240.0.0.0"), IPv6Address("100::"))
"""What pods without addresses count on from: reserved (RFC 1112, 6666), so that no ipBlock means them."""


def read_documents(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The objects of files. Raises InvalidInputError."""
    documents: list[dict[str, Any]] = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidInputError(
                error.strerror or str(error), where=str(path), remedy="name a file that can be read"
            ) from None
        documents += load_objects(content, str(path))
    return documents


def to_policy_state(documents: Sequence[dict[str, Any]]) -> tuple[PolicyState, list[PoplinError]]:
    """Read them; what cannot be read is told of. Of an object that stands twice the last is meant."""
    problems: list[PoplinError] = []

    def read(resource: Resource[T], some: Sequence[dict[str, Any]]) -> Iterator[T]:
        for value in select(some, resource, None, None).values():
            if isinstance(value, InvalidObjectError):
                problems.append(value)
            else:
                yield value

    stand_ins = [pod for document in documents if (pod := _stand_in(document))]
    pods = [document for document in documents if document["kind"] == PODS.kind]
    state = PolicyState(
        namespaces=tuple(read(NAMESPACES, documents)),
        pods=tuple(read(PODS, _with_addresses([*stand_ins, *pods]))),
        nodes=tuple(read(NODES, documents)),
        network_policies=tuple(read(NETWORK_POLICIES, documents)),
    )
    return state, problems


def _stand_in(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """One pod in place of all that a workload makes, by the workload's name."""
    if document["kind"] not in WORKLOADS:
        return None
    metadata = document["metadata"]
    template = (document.get("spec") or {}).get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    return {
        "apiVersion": "v1",
        "kind": PODS.kind,
        "metadata": {"name": metadata["name"], "namespace": metadata.get("namespace"), "labels": labels},
        "spec": template.get("spec") or {},
    }


def _with_addresses(pods: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    given = []
    for number, pod in enumerate(pods, start=1):
        status = pod.get("status") or {}
        if status.get("podIP") or status.get("podIPs"):
            given.append(pod)
        else:
            ips = [{"ip": str(base + number)} for base in STAND_INS]
            given.append(pod | {"status": status | {"podIPs": ips}})
    return given


def is_stand_in(address: IPAddress) -> bool:
    """Whether an address is one that a pod without any was given here."""
    return any(
        base.version == address.version and 0 < int(address) - int(base) < 1 << 24 for base in STAND_INS
    )
