"""Rules for pods and for the workloads that make them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from poplin.apiserver.collection import Object
from poplin.apiserver.defaults import pod_specs
from poplin.apiserver.resource import lookup
from poplin.apiserver.status import Cause
from poplin.apiserver.syntax import check, check_labels

Rule = Callable[[Object, Object | None], Iterator[Cause]]
"""Takes an object and, for an update, its old version; yields what is wrong."""


def check_pod_spec(new: Object, old: Object | None) -> Iterator[Cause]:
    del old
    for path, spec in pod_specs(new["kind"], new):
        names: set[str] = set()
        volumes = {volume.get("name") for volume in spec.get("volumes") or ()}
        for key in ("initContainers", "containers"):
            for index, container in enumerate(spec.get(key) or ()):
                yield from _check_container(container, f"{path}.{key}[{index}]", names, volumes)
        for index, volume in enumerate(spec.get("volumes") or ()):
            yield from check(volume.get("name"), "label", f"{path}.volumes[{index}].name")
        yield from check_labels(spec.get("nodeSelector"), f"{path}.nodeSelector")


def _check_container(container: Object, path: str, names: set[str], volumes: set[Any]) -> Iterator[Cause]:
    name = container.get("name", "")
    yield from check(name, "label", f"{path}.name")
    if name in names:
        yield Cause(f"{path}.name", f'Duplicate value: "{name}"', "FieldValueDuplicate")
    names.add(name)
    if not container.get("image"):
        yield Cause(f"{path}.image", "Required value", "FieldValueRequired")
    ports: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        if port_name := port.get("name"):
            yield from check(port_name, "port", f"{path}.ports[{index}].name")
            if port_name in ports:
                where = f"{path}.ports[{index}].name"
                yield Cause(where, f'Duplicate value: "{port_name}"', "FieldValueDuplicate")
            ports.add(port_name)
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        if mount.get("name") not in volumes:
            where = f"{path}.volumeMounts[{index}].name"
            yield Cause(where, f'Not found: "{mount.get("name")}"', "FieldValueNotFound")


MUTABLE_POD_FIELDS: Final = (
    "activeDeadlineSeconds",
    "terminationGracePeriodSeconds",
    "tolerations",
    "schedulingGates",
)


def check_pod_update(new: Object, old: Object | None) -> Iterator[Cause]:
    if old is None:
        return
    before, after = _frozen_pod_spec(old), _frozen_pod_spec(new)
    if before != after and not (
        not before.get("nodeName") and {**before, "nodeName": after.get("nodeName")} == after
    ):
        yield Cause(
            "spec",
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
            "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
            "previously negative)",
            "FieldValueForbidden",
        )


def _frozen_pod_spec(pod: Object) -> Object:
    spec = {key: value for key, value in (pod.get("spec") or {}).items() if key not in MUTABLE_POD_FIELDS}
    for key in ("initContainers", "containers"):
        if key in spec:
            spec[key] = [{**container, "image": None} for container in spec[key]]
    # Added by `kubectl debug` through its own subresource.
    spec.pop("ephemeralContainers", None)
    return spec


def check_selector(new: Object, old: Object | None) -> Iterator[Cause]:
    """The selector of a workload is not empty and selects its own template's pods."""
    del old
    selector, template = (
        lookup(new, "spec.selector") or {},
        lookup(new, "spec.template.metadata.labels") or {},
    )
    terms = selector.get("matchLabels") or {}
    yield from check_labels(terms, "spec.selector.matchLabels")
    yield from check_labels(template, "spec.template.metadata.labels")
    if not terms and not selector.get("matchExpressions"):
        yield Cause(
            "spec.selector", "Invalid value: {}: empty selector is invalid for " + new["kind"].lower()
        )
    elif not selects(selector, template):
        message = f"Invalid value: {template}: `selector` does not match template `labels`"
        yield Cause("spec.template.metadata.labels", message)


SYSTEM_PRIORITIES: Final[Mapping[str, int]] = {
    "system-cluster-critical": 2_000_000_000,
    "system-node-critical": 2_000_001_000,
}
"""The PriorityClasses that every cluster has, and nobody else may make."""
HIGHEST_USER_PRIORITY: Final = 1_000_000_000


def check_priority_class(new: Object, old: Object | None) -> Iterator[Cause]:
    del old
    name, value = new["metadata"].get("name", ""), new.get("value", 0)
    if SYSTEM_PRIORITIES.get(name) == value:
        return
    if name.startswith("system-"):
        message = "Forbidden: priority class names with 'system-' prefix are reserved for system use only"
        yield Cause("metadata.name", message, "FieldValueForbidden")
    if value > HIGHEST_USER_PRIORITY:
        message = f"Forbidden: maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
        yield Cause("value", message, "FieldValueForbidden")


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector matches `labels`."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions") or ():
        value, values = labels.get(term.get("key", "")), term.get("values") or ()
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds.get(term.get("operator", ""), False):
            return False
    return True


def restart_policy(*allowed: str) -> Rule:
    def rule(new: Object, old: Object | None) -> Iterator[Cause]:
        del old
        for path, spec in pod_specs(new["kind"], new):
            policy = spec.get("restartPolicy")
            if policy and policy not in allowed:
                choices = ", ".join(f'"{choice}"' for choice in allowed)
                message = f'Unsupported value: "{policy}": supported values: {choices}'
                yield Cause(f"{path}.restartPolicy", message, "FieldValueNotSupported")

    return rule
