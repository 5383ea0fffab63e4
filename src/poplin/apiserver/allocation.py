"""Cluster addresses and node ports: each is held by one Service, and the Services themselves are the record of it.

What is kept beside them is a hint, a number and who asked for it: whether that Service holds it, is read in its
newest version. So a write that fails, a dry run or a deletion has nothing to give back, and a restart nothing
to restore. The server decides and stores in one step of its event loop, so no two decisions can cross.

Ranges have a lower part for numbers that people choose, which automatic ones use last (KEP-3070, KEP-3668).
"""

import random
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain
from typing import Final

from poplin.apiserver.collection import Key, Object
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.resource import Resource
from poplin.apiserver.service import (
    EXPOSED,
    complete_families,
    drop_dependent,
    has_cluster_ip,
    has_health_check,
    is_headless,
    normalize_addresses,
)
from poplin.apiserver.status import Cause, StatusError
from poplin.model.kernel import IPNetwork

SERVICES: Final = "/services"
NODE_PORTS: Final = range(30000, 32768)


class Pool:
    """The numbers of `span`; `holds` says whether a Service has one."""

    def __init__(self, span: range, band: int, holds: Callable[[Key, int], bool]) -> None:
        self._span = span
        self._dynamic = span.start + band
        self._holds = holds
        self._claims: dict[int, Key] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._span

    def holder(self, number: int) -> Key | None:
        """The Service that has it, None where it is free."""
        key = self._claims.get(number)
        if key is None or self._holds(key, number):
            return key
        del self._claims[number]
        return None

    def claim(self, number: int, key: Key) -> None:
        """Remember who is about to have it."""
        self._claims[number] = key

    def choose(self, avoid: Sequence[int]) -> int | None:
        """Any free number that is none of `avoid`, None where there is none."""
        for part in (range(self._dynamic, self._span.stop), range(self._span.start, self._dynamic)):
            if not part:
                continue
            start = random.randrange(part.start, part.stop)  # noqa: S311  - to spread them, not to hide them
            for number in chain(range(start, part.stop), range(part.start, start)):
                if number not in avoid and self.holder(number) is None:
                    return number
        return None


def address_span(network: IPNetwork) -> tuple[range, int]:
    """The addresses of a range that Services may have, and how many of them are for people to choose."""
    first, last = int(network.network_address), int(network.broadcast_address)
    # An IPv6 network has no broadcast address.
    span = range(first + 1, last if network.version == 4 else last + 1)
    size = last - first + 1
    return span, min(max(16, size // 16), 256) if size > 16 else 0


class ServiceAllocator:
    """A `lifecycle.Hook` that completes Services. `networks` are the cluster's, the default family's first."""

    def __init__(self, lifecycle: Lifecycle, networks: Sequence[IPNetwork]) -> None:
        self._lifecycle = lifecycle
        self._networks = {f"IPv{network.version}": network for network in networks}
        self._addresses = {
            family: Pool(*address_span(network), self._holds_address)
            for family, network in self._networks.items()
        }
        band = min(max(16, len(NODE_PORTS) // 32), 128)
        self._ports = Pool(NODE_PORTS, band, self._holds_port)

    def load(self) -> None:
        """Learn from the store who has what."""
        collection = self._lifecycle.store.open(SERVICES)
        for key, entry in collection.entries.items():
            spec = entry.decode().get("spec") or {}
            for address in _addresses(spec):
                self._addresses_of(address).claim(int(address), key)
            for number in _ports(spec):
                self._ports.claim(number, key)

    def __call__(self, resource: Resource, document: Object, old: Object | None, options: Options) -> None:
        """See `lifecycle.Hook`."""
        if (resource.group, resource.kind) != ("", "Service"):
            return
        after, before = document.setdefault("spec", {}), (old or {}).get("spec")
        if before is not None and after == before:
            return
        if before is not None:
            drop_dependent(after, before)
        normalize_addresses(after, before)
        causes = complete_families(after, before, list(self._networks))
        metadata = document["metadata"]
        key = (metadata.get("namespace", ""), metadata.get("name", ""))
        if not causes:
            causes = self._allot_addresses(after, key) + self._allot_ports(after, key)
        options.faults = [*options.faults, *causes]

    def _allot_addresses(self, spec: Object, key: Key) -> list[Cause]:
        if not has_cluster_ip(spec) or is_headless(spec):
            return []
        causes = []
        addresses = list(spec.get("clusterIPs") or ())
        for index, family in enumerate(spec["ipFamilies"]):
            pool = self._addresses.get(family)
            if index < len(addresses):
                wrong = self._ask(pool, addresses[index], family, key)
                if wrong:
                    listed = ",".join(f'"{address}"' for address in addresses)
                    message = f"failed to allocate IP {addresses[index]}: {wrong}"
                    causes.append(Cause("spec.clusterIPs", f"Invalid value: [{listed}]: {message}"))
            elif pool is not None:
                number = pool.choose(())
                if number is None:
                    raise _exhausted("a serviceIP")
                pool.claim(number, key)
                addresses.append(str((IPv4Address if family == "IPv4" else IPv6Address)(number)))
        spec["clusterIPs"], spec["clusterIP"] = addresses, addresses[0]
        return causes

    def _ask(self, pool: Pool | None, text: str, family: str, key: Key) -> str:
        """Why a Service cannot have an address, "" where it can, and has it from now on."""
        number = int(ip_address(text))
        if pool is not None:
            holder = pool.holder(number)
            if holder == key:
                return ""
            if number in pool:
                if holder is not None:
                    return "provided IP is already allocated"
                pool.claim(number, key)
                return ""
        network = self._networks.get(family)
        return f"provided IP is not in the valid range. The range of valid IPs is {network}"

    def _allot_ports(self, spec: Object, key: Key) -> list[Cause]:
        causes: list[Cause] = []
        ports = spec.get("ports") or [] if spec.get("type") in EXPOSED else []
        taken: list[int] = [port["nodePort"] for port in ports if port.get("nodePort")]
        for index, port in enumerate(ports):
            if port.get("nodePort"):
                causes += self._claim_port(port["nodePort"], f"spec.ports[{index}].nodePort", key)
        allots = spec.get("type") == "NodePort" or spec.get("allocateLoadBalancerNodePorts") is not False
        shared = {port["port"]: port["nodePort"] for port in ports if port.get("nodePort")}
        for port in ports if allots else ():
            if port.get("nodePort"):
                continue
            # One number serves the same port over several protocols.
            number = shared.get(port.get("port"))
            used = {(one.get("nodePort"), one.get("protocol")) for one in ports}
            if number is None or (number, port.get("protocol")) in used:
                number = self._choose_port(taken, key)
            port["nodePort"] = shared[port.get("port")] = number
            taken.append(number)
        if has_health_check(spec):
            if spec.get("healthCheckNodePort"):
                causes += self._claim_port(spec["healthCheckNodePort"], "spec.healthCheckNodePort", key)
            else:
                spec["healthCheckNodePort"] = self._choose_port(taken, key)
        return causes

    def _choose_port(self, taken: Sequence[int], key: Key) -> int:
        number = self._ports.choose(taken)
        if number is None:
            raise _exhausted("a nodePort")
        self._ports.claim(number, key)
        return number

    def _claim_port(self, number: int, field: str, key: Key) -> list[Cause]:
        holder = self._ports.holder(number)
        if holder == key:
            return []
        if number in self._ports and holder is None:
            self._ports.claim(number, key)
            return []
        why = "provided port is already allocated"
        if number not in self._ports:
            valid = f"{NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
            why = f"provided port is not in the valid range. The range of valid ports is {valid}"
        return [Cause(field, f"Invalid value: {number}: {why}")]

    def _addresses_of(self, address: IPv4Address | IPv6Address) -> Pool:
        """The pool of an address' family; one of a family that is no longer served has none that matters."""
        family = f"IPv{address.version}"
        return self._addresses.get(family) or Pool(range(0), 0, self._holds_address)

    def _spec(self, key: Key) -> Object:
        entry = self._lifecycle.store.open(SERVICES).head(key)
        return (entry.decode().get("spec") or {}) if entry is not None else {}

    def _holds_address(self, key: Key, number: int) -> bool:
        return any(int(address) == number for address in _addresses(self._spec(key)))

    def _holds_port(self, key: Key, number: int) -> bool:
        return number in _ports(self._spec(key))


def _addresses(spec: Object) -> list[IPv4Address | IPv6Address]:
    if not has_cluster_ip(spec) or is_headless(spec):
        return []
    return [ip_address(text) for text in spec.get("clusterIPs") or ()]


def _ports(spec: Object) -> set[int]:
    numbers = {port.get("nodePort") or 0 for port in spec.get("ports") or ()}
    return (numbers | {spec.get("healthCheckNodePort") or 0}) - {0}


def _exhausted(what: str) -> StatusError:
    message = f"Internal error occurred: failed to allocate {what}: range is full"
    return StatusError(500, "InternalError", message)
