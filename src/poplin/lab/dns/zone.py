"""The names of a cluster: what its Services and their endpoints are called. Pure.

Names are tuples of labels in small letters, without the root: ("web", "default", "svc", "cluster", "local").
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from poplin.lab.controllers.object import Json, Key, Object

DOMAIN: Final = ("cluster", "local")
SCHEMA: Final = "1.1.0"
SERVICE_NAME: Final = "kubernetes.io/service-name"
REVERSE: Final = {("in-addr", "arpa"): 4, ("ip6", "arpa"): 6}
_DIGITS: Final = {4: 4, 6: 32}
_PROTOCOLS: Final = {"_tcp": "TCP", "_udp": "UDP", "_sctp": "SCTP"}

Name = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A resource record; `data` as a zone file writes it."""

    name: Name
    type: str
    data: str


@dataclass(frozen=True, slots=True)
class Found:
    """What stands at a name. `exists` False is NXDOMAIN; without records of the type asked for it is NODATA.

    `apex` is the zone that the name is in, () where it is in none of ours. `more` are addresses that the
    records' readers will ask for next.
    """

    apex: Name
    exists: bool = False
    records: Sequence[Record] = ()
    more: Sequence[Record] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A ready endpoint of a Service: what it is called below it, its address and its ports."""

    label: str
    address: str
    ports: Sequence[Json]


def text(name: Name) -> str:
    """As a zone file writes a name."""
    return ".".join(name) + "."


class Zone:
    """Services, EndpointSlices and Namespaces by key, and what they are called."""

    def __init__(self, domain: Name = DOMAIN) -> None:
        self._domain = domain
        self._services: dict[Key, Object] = {}
        self._namespaces: set[str] = set()
        self._slices: dict[Key, Object] = {}
        self._of_service: dict[Key, set[Key]] = {}
        self._reverse: dict[str, list[Name]] | None = None

    def put_namespace(self, namespace: Object) -> None:
        self._namespaces.add(namespace.name)

    def remove_namespace(self, key: Key) -> None:
        self._namespaces.discard(key[1])

    def put_service(self, service: Object) -> None:
        self._services[service.key] = service
        self._reverse = None

    def remove_service(self, key: Key) -> None:
        self._services.pop(key, None)
        self._reverse = None

    def put_slice(self, one: Object) -> None:
        self.remove_slice(one.key)
        self._slices[one.key] = one
        owner = (one.namespace, one.labels.get(SERVICE_NAME, ""))
        self._of_service.setdefault(owner, set()).add(one.key)

    def remove_slice(self, key: Key) -> None:
        old = self._slices.pop(key, None)
        self._reverse = None
        if old is not None:
            owner = (old.namespace, old.labels.get(SERVICE_NAME, ""))
            self._of_service[owner].discard(key)
            if not self._of_service[owner]:
                del self._of_service[owner]

    def look_up(self, name: Name) -> Found:
        """Everything at a name, of every type."""
        size = len(self._domain)
        if name[-size:] == self._domain:
            return self._look_up_own(name, name[:-size])
        for apex, version in REVERSE.items():
            if name[-2:] == apex:
                return self._look_up_address(name, name[:-2], apex, version)
        return Found(())

    # ---- names of the cluster ----

    def _look_up_own(self, name: Name, labels: Name) -> Found:
        apex = self._domain
        match labels[::-1]:
            case () | ("svc",) | ("pod",) | ("dns",):
                return Found(apex, exists=True)
            case ("dns-version",):
                return Found(apex, exists=True, records=[Record(name, "TXT", f'"{SCHEMA}"')])
            case ("dns", "ns"):
                return Found(apex, exists=True, records=self._own_addresses(name))
            case ("svc" | "pod", namespace):
                return Found(apex, exists=namespace in self._namespaces)
            case ("svc", namespace, service, *rest):
                found = self._services.get((namespace, service))
                return self._look_up_service(name, found, tuple(rest)) if found else Found(apex)
            case ("pod", namespace, label) if namespace in self._namespaces:
                address = read_label(label)
                return Found(apex, bool(address), _addresses(name, [address] if address else []))
        return Found(apex)

    def _own_addresses(self, name: Name) -> list[Record]:
        """Where this server is asked: the Service that leads to it."""
        service = self._services.get(("kube-system", "kube-dns"))
        return _addresses(name, cluster_ips(service)) if service else []

    def _look_up_service(self, name: Name, service: Object, rest: Name) -> Found:
        """`rest` is what stands before the Service's name, the nearest label first."""
        apex = self._domain
        if service.spec.get("type") == "ExternalName":
            target = str(service.spec.get("externalName") or "").rstrip(".")
            records = [Record(name, "CNAME", f"{target}.")]
            return Found(apex, exists=True, records=records) if not rest else Found(apex)
        match rest:
            case ():
                addresses = cluster_ips(service) or [one.address for one in self._members(service)]
                return Found(apex, bool(addresses), _addresses(name, addresses))
            case (label,) if label in _PROTOCOLS:
                ports = (self._look_up_port(name, service, label, port) for port in _port_names(service))
                return Found(apex, exists=any(found.exists for found in ports))
            case (label,):
                addresses = [one.address for one in self._members(service) if one.label == label]
                return Found(apex, bool(addresses), _addresses(name, addresses))
            case (protocol, port) if protocol in _PROTOCOLS and port.startswith("_"):
                return self._look_up_port(name, service, protocol, port[1:])
        return Found(apex)

    def _look_up_port(self, name: Name, service: Object, protocol: str, port: str) -> Found:
        """The SRV records of a named port (RFC 2782)."""
        base = self._name(service)
        if addresses := cluster_ips(service):
            numbers = _numbers(service.spec.get("ports"), port, _PROTOCOLS[protocol])
            records = [Record(name, "SRV", f"0 100 {number} {text(base)}") for number in numbers]
            more = _addresses(base, addresses)
        else:
            members = self._members(service)
            records = [
                Record(name, "SRV", f"0 100 {number} {text((one.label, *base))}")
                for one in members
                for number in _numbers(one.ports, port, _PROTOCOLS[protocol])
            ]
            more = [record for one in members for record in _addresses((one.label, *base), [one.address])]
        # An endpoint with two families has one name.
        records = list(dict.fromkeys(records))
        return Found(self._domain, bool(records), records, more if records else ())

    def _name(self, service: Object) -> Name:
        return (service.name, service.namespace, "svc", *self._domain)

    def _members(self, service: Object) -> list[Member]:
        """The Service's endpoints that are ready, or say nothing about it."""
        found: dict[tuple[str, str], Member] = {}
        for key in sorted(self._of_service.get(service.key, ())):
            one = self._slices[key]
            for endpoint in one.endpoints or () if one.address_type in {"IPv4", "IPv6"} else ():
                if (endpoint.get("conditions") or {}).get("ready") is False:
                    continue
                for address in endpoint.get("addresses") or ():
                    label = str(endpoint.get("hostname") or make_label(address)).lower()
                    found[label, address] = Member(label, address, one.ports or ())
        return list(found.values())

    # ---- names of addresses ----

    def _look_up_address(self, name: Name, labels: Name, apex: Name, version: int) -> Found:
        if len(labels) < _DIGITS[version]:
            # Something may stand below it.
            return Found(apex, exists=True)
        address = read_reversed(labels, version)
        if self._reverse is None:
            self._reverse = self._index()
        names = self._reverse.get(address, []) if address else []
        return Found(apex, bool(names), [Record(name, "PTR", text(one)) for one in names])

    def _index(self) -> dict[str, list[Name]]:
        index: dict[str, list[Name]] = {}
        for service in self._services.values():
            base = self._name(service)
            for address in cluster_ips(service):
                index.setdefault(address, []).append(base)
            if service.spec.get("clusterIP") == "None":
                for one in self._members(service):
                    index.setdefault(one.address, []).append((one.label, *base))
        return index


def cluster_ips(service: Object) -> list[str]:
    """A Service's own addresses in canonical form, none for a headless one."""
    given = service.spec.get("clusterIPs") or [service.spec.get("clusterIP")]
    return [str(ip_address(one)) for one in given if one and one != "None"]


def make_label(address: str) -> str:
    """What an endpoint without a name is called."""
    return address.replace(".", "-").replace(":", "-")


def read_label(label: str) -> str:
    """The address in such a name, "" where it holds none."""
    for separator in (".", ":"):
        try:
            return str(ip_address(label.replace("-", separator)))
        except ValueError:
            continue
    return ""


def read_reversed(labels: Name, version: int) -> str:
    """The address that a name below in-addr.arpa or ip6.arpa means (RFC 1035, RFC 3596), "" for none."""
    if len(labels) != _DIGITS[version]:
        return ""
    digits = labels[::-1]
    whole = (
        ".".join(digits) if version == 4 else ":".join("".join(digits[i : i + 4]) for i in range(0, 32, 4))
    )
    try:
        return str(ip_address(whole))
    except ValueError:
        return ""


def _addresses(name: Name, addresses: Sequence[str]) -> list[Record]:
    return [Record(name, "AAAA" if ":" in address else "A", address) for address in dict.fromkeys(addresses)]


def _port_names(service: Object) -> Iterator[str]:
    return (port["name"] for port in service.spec.get("ports") or () if port.get("name"))


def _numbers(ports: Sequence[Mapping[str, object]] | None, name: str, protocol: str) -> list[object]:
    return [
        one["port"]
        for one in ports or ()
        if one.get("name") == name and (one.get("protocol") or "TCP") == protocol
    ]
