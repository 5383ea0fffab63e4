"""A cluster as files have it: pods may be without addresses, or stand as the workloads that make them."""

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
from poplin.datastore.service import ENDPOINT_SLICES, SERVICES
from poplin.model.errors import InvalidInputError, PoplinError
from poplin.model.kernel import IPAddress
from poplin.model.service import EndpointSlice, Service

T = TypeVar("T", bound=ClusterObject)

WORKLOADS: Final = frozenset(
    {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"}
)
STAND_INS: Final = (IPv4Address("240.0.0.0"), IPv6Address("100::"))
"""What pods without addresses count on from: reserved (RFC 1112, 6666), so that no ipBlock means them."""
SERVICE_STAND_INS: Final = tuple(base + (1 << 23) for base in STAND_INS)
"""The same for Services."""


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
    state = PolicyState(
        namespaces=tuple(_read(NAMESPACES, documents, problems)),
        pods=tuple(_read(PODS, list_pods(documents), problems)),
        nodes=tuple(_read(NODES, documents, problems)),
        network_policies=tuple(_read(NETWORK_POLICIES, documents, problems)),
    )
    return state, problems


def to_services(
    documents: Sequence[dict[str, Any]],
) -> tuple[tuple[Service, ...], tuple[EndpointSlice, ...], list[PoplinError]]:
    """Read Services and EndpointSlices; what cannot be read is told of."""
    problems: list[PoplinError] = []
    services = tuple(_read(SERVICES, documents, problems))
    return services, tuple(_read(ENDPOINT_SLICES, documents, problems)), problems


def _read(
    resource: Resource[T], documents: Sequence[dict[str, Any]], problems: list[PoplinError]
) -> Iterator[T]:
    for value in select(documents, resource, None, None).values():
        if isinstance(value, InvalidObjectError):
            problems.append(value)
        else:
            yield value


def list_pods(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods of files, one in place of each workload's, all with addresses."""
    documents = list(documents)
    stand_ins = [pod for document in documents if (pod := _stand_in(document))]
    return _with_addresses([*stand_ins, *(one for one in documents if one["kind"] == PODS.kind)])


def list_services(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Services of files, all with clusterIPs but those that have said to want none.

    Of which families, where a Service does not say so: of that of the first pod's first address.
    """
    documents = list(documents)
    first = next((pod["status"]["podIPs"][0]["ip"] for pod in list_pods(documents) if _has_ips(pod)), "")
    default = ["IPv6" if ":" in first else "IPv4"]
    given = []
    services = [one for one in documents if (one["apiVersion"], one["kind"]) == ("v1", SERVICES.kind)]
    for number, service in enumerate(services, start=1):
        spec = service.get("spec") or {}
        if not spec.get("clusterIP") and not spec.get("clusterIPs") and spec.get("type") != "ExternalName":
            dual = spec.get("ipFamilyPolicy") in {"PreferDualStack", "RequireDualStack"}
            families = spec.get("ipFamilies") or (["IPv4", "IPv6"] if dual else default)
            ips = {f"IPv{base.version}": str(base + number) for base in SERVICE_STAND_INS}
            spec = spec | {"clusterIPs": [ips[family] for family in families]}
        given.append(service | {"spec": spec})
    return given


def _has_ips(pod: Mapping[str, Any]) -> bool:
    return bool(pod["status"].get("podIPs"))


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
