"""What a container runs and in which environment: a pod's spec -> arguments and variables. Pure but for `which`.

Source: API reference, "Container": command, args, env, envFrom; "Define Dependent Environment Variables".
"""

import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Final

from poplin.lab.container import DEFAULT_PATH
from poplin.lab.controllers.object import Json
from poplin.lab.kubelet.document import Pod
from poplin.model.errors import TemporaryError
from poplin.model.kernel import IPAddress

_REFERENCE: Final = re.compile(r"\$(?:\$|\(([^()]*)\))")

Lookup = Callable[[str, str], Mapping[str, str] | None]
"""("configmaps" or "secrets", name) -> its decoded data, None where there is no such object."""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME) where it is known; $$ is a dollar."""

    def replaced(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return _REFERENCE.sub(replaced, text)


def find_arguments(container: Json, variables: Mapping[str, str]) -> tuple[str, ...]:
    """The program and its arguments, or nothing where this machine cannot run what is asked for.

    There are no images, so a program counts as the image's if the machine has one of that name.
    """
    given = [*(container.get("command") or ()), *(container.get("args") or ())]
    arguments = tuple(expand(str(word), variables) for word in given)
    path = variables.get("PATH", DEFAULT_PATH)
    if not arguments or shutil.which(arguments[0], path=path) is None:
        return ()
    return arguments


def references(container: Json) -> set[tuple[str, str]]:
    """The ("configmaps" or "secrets", name) that the container's variables come from."""
    sources = [
        *(container.get("envFrom") or ()),
        *(one.get("valueFrom") or {} for one in container.get("env") or ()),
    ]
    kinds = {
        "configMapRef": "configmaps",
        "configMapKeyRef": "configmaps",
        "secretRef": "secrets",
        "secretKeyRef": "secrets",
    }
    return {
        (kinds[key], source[key].get("name", ""))
        for source in sources
        for key in kinds.keys() & source.keys()
    }


def make_environment(
    pod: Pod,
    container: Json,
    addresses: list[IPAddress],
    host_addresses: list[IPAddress],
    lookup: Lookup,
    services: Mapping[str, str],
) -> dict[str, str]:
    """The variables of a container: its own over those of `services`.

    Raises TemporaryError for an object or key that is not there (yet).
    """
    variables = dict(services)
    for source in container.get("envFrom") or ():
        for kind, key in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
            if key in source:
                data = _require(lookup, kind, source[key])
                variables |= {source.get("prefix", "") + name: value for name, value in data.items()}
    for one in container.get("env") or ():
        if "value" in one or "valueFrom" not in one:
            variables[one["name"]] = expand(one.get("value") or "", variables)
            continue
        value = _value_from(one["valueFrom"], pod, container, addresses, host_addresses, lookup)
        if value is not None:
            variables[one["name"]] = value
    return variables


def _value_from(
    source: Json,
    pod: Pod,
    container: Json,
    addresses: list[IPAddress],
    host_addresses: list[IPAddress],
    lookup: Lookup,
) -> str | None:
    if "fieldRef" in source:
        return read_field(source["fieldRef"]["fieldPath"], pod, addresses, host_addresses)
    if "resourceFieldRef" in source:
        path: str = source["resourceFieldRef"]["resource"]
        group, _, name = path.partition(".")
        return str(((container.get("resources") or {}).get(group) or {}).get(name, "0"))
    for kind, key in (("configmaps", "configMapKeyRef"), ("secrets", "secretKeyRef")):
        if key in source:
            data = _require(lookup, kind, source[key])
            if source[key]["key"] in data:
                return data[source[key]["key"]]
            if not source[key].get("optional"):
                raise TemporaryError(
                    f"couldn't find key {source[key]['key']} in {kind} {source[key]['name']}"
                )
    return None


def read_field(path: str, pod: Pod, addresses: list[IPAddress], host_addresses: list[IPAddress]) -> str:
    """A field of the pod, as the downward API names it. Raises TemporaryError for one that it has not."""
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if keyed:
        return dict(pod.labels if keyed[1] == "labels" else pod.annotations).get(keyed[2], "")
    fields: dict[str, Any] = {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "metadata.uid": pod.uid,
        "spec.nodeName": pod.node_name,
        "spec.serviceAccountName": pod.spec.get("serviceAccountName", "default"),
        "status.podIP": next(iter(addresses), ""),
        "status.podIPs": ",".join(map(str, addresses)),
        "status.hostIP": next(iter(host_addresses), ""),
        "status.hostIPs": ",".join(map(str, host_addresses)),
    }
    if path not in fields:
        raise TemporaryError(f"unsupported fieldPath: {path}")
    return str(fields[path])


def _require(lookup: Lookup, kind: str, reference: Json) -> Mapping[str, str]:
    data = lookup(kind, reference.get("name", ""))
    if data is None:
        if reference.get("optional"):
            return {}
        raise TemporaryError(f'{kind} "{reference.get("name")}" not found')
    return data
