"""A cluster's objects as a case changes them. Pure: objects are never changed in place."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from ipaddress import ip_network
from itertools import count
from typing import Final

from poplin.lab.conformance.case import Json, Step
from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress, IPNetwork

Key = tuple[str, str, str]
"""Kind, namespace ("" for none) and name."""

Objects = dict[Key, Json]

KINDS: Final = {"policy": "NetworkPolicy", "pod": "Pod", "namespace": "Namespace"}
CLUSTER_WIDE: Final = frozenset(
    {"Namespace", "Node", "PersistentVolume", "ClusterRole", "CustomResourceDefinition"}
)
FIRST_ADDRESS: Final = 256
"""Of a cluster that nobody runs: the first pod's within the pods' range."""

ANYWHERE: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def key_of(one: Json) -> Key:
    """What names the object."""
    kind, metadata = one["kind"], one["metadata"]
    return kind, "" if kind in CLUSTER_WIDE else metadata.get("namespace") or "default", metadata["name"]


def collect(objects: Iterable[Json]) -> Objects:
    """The objects by their keys; each says its namespace."""
    found: Objects = {}
    for one in objects:
        key = key_of(one)
        found[key] = {**one, "metadata": {**one["metadata"], "namespace": key[1]}} if key[1] else one
    return found


def pods_of(objects: Objects) -> list[str]:
    """The pods' names as tables have them, in order."""
    return [f"{key[1]}/{key[2]}" for key in sorted(objects) if key[0] == "Pod"]


def take_step(objects: Objects, step: Step, where: str) -> Objects:
    """The objects after a step. Raises InvalidInputError for what is not there."""
    after = dict(objects)
    for text in step.delete:
        del after[_find(after, text, where)]
    for one in step.apply:
        whole = _expand(one, where)
        after |= collect([whole])
    for text, labels in step.label.items():
        key = _find(after, text, where)
        one = deepcopy(after[key])
        present = one["metadata"].get("labels") or {}
        one["metadata"]["labels"] = {
            name: value for name, value in {**present, **labels}.items() if value is not None
        }
        after[key] = one
    return after


def _expand(one: Json, where: str) -> Json:
    """A whole object, also of the short form of a policy."""
    if "policy" not in one:
        if not isinstance(one.get("metadata"), dict) or "kind" not in one or "name" not in one["metadata"]:
            raise InvalidInputError("apply: neither a policy nor an object with kind and name", where=where)
        return one
    namespace, _, name = str(one["policy"]).partition("/")
    if not name or set(one) != {"policy", "spec"}:
        raise InvalidInputError(
            f"apply: {one['policy']!r}", where=where, remedy="write policy: NAMESPACE/NAME and its spec"
        )
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": one["spec"],
    }


def _find(objects: Objects, text: str, where: str) -> Key:
    word, _, rest = text.partition(" ")
    namespace, _, name = rest.rpartition("/")
    key = KINDS.get(word, word), namespace, name
    if key not in objects:
        raise InvalidInputError(
            f"{text!r} is not there", where=where, remedy="write policy, pod or namespace, and its name"
        )
    return key


def resolve_blocks(
    policy: Json, addresses: Mapping[str, Sequence[IPAddress]], networks: Sequence[IPNetwork], where: str
) -> Json:
    """The policy with addresses in place of words, for what nobody knows before the pods have their addresses.

    In an ipBlock "pod x/a" is that pod's address, "pods" the range of all pods and "anywhere" every address.
    Such a block becomes one for each family, with those of its exceptions that are of it.
    """

    def networks_of(text: str) -> Sequence[IPNetwork]:
        word, _, name = text.partition(" ")
        if word == "pod" and name in addresses:
            return [ip_network(address) for address in addresses[name]]
        if text in {"pods", "anywhere"}:
            return networks if text == "pods" else ANYWHERE
        try:
            return [ip_network(text)]
        except ValueError as error:
            raise InvalidInputError(f"ipBlock: {error}", where=where) from error

    def peers(some: Sequence[Json]) -> list[Json]:
        found: list[Json] = []
        for peer in some:
            block = peer.get("ipBlock")
            if block is None:
                found.append(peer)
                continue
            excepts = [net for text in block.get("except") or () for net in networks_of(text)]
            for net in networks_of(block["cidr"]):
                holes = [str(hole) for hole in excepts if hole.version == net.version]
                found.append({"ipBlock": {"cidr": str(net)} | ({"except": holes} if holes else {})})
        return found

    spec = dict(policy["spec"])
    for direction, word in (("ingress", "from"), ("egress", "to")):
        if direction in spec:
            spec[direction] = [
                {**rule, word: peers(rule[word])} if rule.get(word) else rule
                for rule in spec[direction] or ()
            ]
    return {**policy, "spec": spec}


def give_addresses(objects: Objects, networks: Sequence[IPNetwork]) -> Objects:
    """The objects with addresses for all pods that have none, for a cluster that nobody runs."""
    after = dict(objects)
    taken = {address for some in addresses_of(objects).values() for address in some}
    numbers = count(FIRST_ADDRESS)
    for key in sorted(key for key in objects if key[0] == "Pod"):
        pod = objects[key]
        if (pod.get("status") or {}).get("podIPs"):
            continue
        number = next(one for one in numbers if networks[0].network_address + one not in taken)
        given = [{"ip": str(network.network_address + number)} for network in networks]
        after[key] = {**pod, "status": {"phase": "Running", "podIPs": given}}
    return after


def addresses_of(objects: Objects) -> dict[str, list[IPAddress]]:
    """The pods' addresses by the pods' names."""
    return {
        f"{key[1]}/{key[2]}": [
            ip_network(entry["ip"]).network_address for entry in (one.get("status") or {}).get("podIPs") or ()
        ]
        for key, one in objects.items()
        if key[0] == "Pod"
    }


def resolved(objects: Objects, networks: Sequence[IPNetwork], where: str) -> Objects:
    """The objects as the cluster shall have them: every policy without words."""
    addresses = addresses_of(objects)
    return {
        key: resolve_blocks(one, addresses, networks, where) if key[0] == "NetworkPolicy" else one
        for key, one in objects.items()
    }
