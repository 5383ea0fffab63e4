"""Semantic validation: what the schemas cannot say and users meet daily.

A rule takes the object and, for an update, its old version; it yields causes. The list is not all of
Kubernetes' validation: it has names, ports, selectors, addresses and what must not change.
"""

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final

from poplin.apiserver.collection import Object
from poplin.apiserver.defaults import pod_specs
from poplin.apiserver.status import Cause
from poplin.apiserver.syntax import check, check_labels

Rule = Callable[[Object, Object | None], Iterator[Cause]]
IMMUTABLE: Final = "field is immutable"


def validate(group: str, kind: str, new: Object, old: Object | None) -> Iterator[Cause]:
    """Every fault of `new`; `old` is None for a new object."""
    for rule in RULES.get((group, kind), ()):
        yield from rule(new, old)


def _immutable(*paths: str) -> Rule:
    def rule(new: Object, old: Object | None) -> Iterator[Cause]:
        if old is None:
            return
        for path in paths:
            if _get(new, path) != _get(old, path):
                yield Cause(path, f"Invalid value: {_get(new, path)}: {IMMUTABLE}")

    return rule


def _get(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _immutable_if_marked(new: Object, old: Object | None) -> Iterator[Cause]:
    """ConfigMaps and Secrets with `immutable: true`."""
    if old is None or not old.get("immutable"):
        return
    for key in ("data", "binaryData", "immutable"):
        if new.get(key) != old.get(key):
            yield Cause(key, f"Forbidden: {IMMUTABLE} when `immutable` is set", "FieldValueForbidden")


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


def _pod_update(new: Object, old: Object | None) -> Iterator[Cause]:
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


def _check_selector(new: Object, old: Object | None) -> Iterator[Cause]:
    """The selector of a workload is not empty and selects its own template's pods."""
    del old
    selector, template = _get(new, "spec.selector") or {}, _get(new, "spec.template.metadata.labels") or {}
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


def _restart_policy(*allowed: str) -> Rule:
    def rule(new: Object, old: Object | None) -> Iterator[Cause]:
        del old
        for path, spec in pod_specs(new["kind"], new):
            policy = spec.get("restartPolicy")
            if policy and policy not in allowed:
                choices = ", ".join(f'"{choice}"' for choice in allowed)
                message = f'Unsupported value: "{policy}": supported values: {choices}'
                yield Cause(f"{path}.restartPolicy", message, "FieldValueNotSupported")

    return rule


def _check_service(new: Object, old: Object | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    ports = spec.get("ports") or []
    kind, cluster_ip = spec.get("type"), spec.get("clusterIP")
    if kind == "ExternalName":
        if not spec.get("externalName"):
            yield Cause("spec.externalName", "Required value", "FieldValueRequired")
    elif not ports and cluster_ip != "None":
        yield Cause("spec.ports", "Required value", "FieldValueRequired")
    yield from _check_service_ports(ports)
    yield from check_labels(spec.get("selector"), "spec.selector")
    if cluster_ip == "None" and kind in {"NodePort", "LoadBalancer"}:
        message = f"Invalid value: \"None\": may not be set to 'None' for {kind} services"
        yield Cause("spec.clusterIPs[0]", message)
    for index, address in enumerate(spec.get("clusterIPs") or ()):
        if address != "None" and not _is_address(address):
            yield Cause(
                f"spec.clusterIPs[{index}]", f'Invalid value: "{address}": must be a valid IP address'
            )
    for index, address in enumerate(spec.get("externalIPs") or ()):
        if not _is_address(address):
            yield Cause(
                f"spec.externalIPs[{index}]", f'Invalid value: "{address}": must be a valid IP address'
            )
    for index, network in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        if not _is_network(network.strip()):
            where = f"spec.loadBalancerSourceRanges[{index}]"
            yield Cause(where, f'Invalid value: "{network}": must be a valid CIDR value')
    before = _get(old, "spec.clusterIP")
    if (
        before
        and cluster_ip != before
        and kind != "ExternalName"
        and _get(old, "spec.type") != "ExternalName"
    ):
        yield Cause("spec.clusterIPs[0]", f'Invalid value: ["{cluster_ip}"]: may not change once set')


def _check_service_ports(ports: list[Object]) -> Iterator[Cause]:
    names: set[str] = set()
    pairs: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        where, name = f"spec.ports[{index}]", port.get("name")
        if not name and len(ports) > 1:
            yield Cause(f"{where}.name", "Required value", "FieldValueRequired")
        elif name:
            yield from check(name, "label", f"{where}.name")
            if name in names:
                yield Cause(f"{where}.name", f'Duplicate value: "{name}"', "FieldValueDuplicate")
            names.add(name)
        pair = (port.get("protocol"), port.get("port"))
        if pair in pairs:
            message = f'Duplicate value: {{"port":{pair[1]},"protocol":"{pair[0]}"}}'
            yield Cause(where, message, "FieldValueDuplicate")
        pairs.add(pair)
        yield from _check_port(port.get("targetPort"), f"{where}.targetPort")


def _check_port(port: Any, where: str) -> Iterator[Cause]:
    """A port number or the name of a container's port."""
    if isinstance(port, int) and not 1 <= port <= 65535:
        yield Cause(where, f"Invalid value: {port}: must be between 1 and 65535, inclusive")
    if isinstance(port, str):
        yield from check(port, "port", where)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def _check_network_policy(new: Object, old: Object | None) -> Iterator[Cause]:
    del old
    spec = new.get("spec") or {}
    for index, kind in enumerate(spec.get("policyTypes") or ()):
        if kind not in {"Ingress", "Egress"}:
            message = f'Unsupported value: "{kind}": supported values: "Ingress", "Egress"'
            yield Cause(f"spec.policyTypes[{index}]", message, "FieldValueNotSupported")
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or ()):
            where = f"spec.{direction}[{index}]"
            for number, peer in enumerate(rule.get(peers) or ()):
                yield from _check_peer(peer, f"{where}.{peers}[{number}]")
            for number, port in enumerate(rule.get("ports") or ()):
                yield from _check_policy_port(port, f"{where}.ports[{number}]")


def _check_peer(peer: Object, where: str) -> Iterator[Cause]:
    block = peer.get("ipBlock")
    if not peer:
        yield Cause(where, "Required value: must specify a peer", "FieldValueRequired")
    if block is None:
        return
    if len(peer) > 1:
        message = "Forbidden: may not specify both ipBlock and another peer"
        yield Cause(where, message, "FieldValueForbidden")
    cidr = block.get("cidr", "")
    if not _is_network(cidr):
        message = f'Invalid value: "{cidr}": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)'
        yield Cause(f"{where}.ipBlock.cidr", message)
        return
    outer = ip_network(cidr, strict=False)
    for index, text in enumerate(block.get("except") or ()):
        field = f"{where}.ipBlock.except[{index}]"
        if not _is_network(text):
            yield Cause(field, f'Invalid value: "{text}": must be a valid CIDR value')
            continue
        inner = ip_network(text, strict=False)
        inside = inner.version == outer.version and inner != outer and inner.subnet_of(outer)  # type: ignore[arg-type]  # one version
        if not inside:
            yield Cause(field, f'Invalid value: "{text}": must be a strict subset of `cidr`')


def _check_policy_port(port: Object, where: str) -> Iterator[Cause]:
    number, end = port.get("port"), port.get("endPort")
    yield from _check_port(number, f"{where}.port")
    if end is None:
        return
    if not isinstance(number, int):
        message = f"Invalid value: {end}: may not be specified when `port` is not specified or not a number"
        yield Cause(f"{where}.endPort", message)
    elif end < number:
        yield Cause(f"{where}.endPort", f"Invalid value: {end}: must be greater than or equal to `port`")


def _check_slice(new: Object, old: Object | None) -> Iterator[Cause]:
    del old
    version = {"IPv4": 4, "IPv6": 6}.get(new.get("addressType", ""))
    for index, endpoint in enumerate(new.get("endpoints") or ()):
        for number, address in enumerate(endpoint.get("addresses") or ()):
            if version and not (_is_address(address) and ip_address(address).version == version):
                where = f"endpoints[{index}].addresses[{number}]"
                yield Cause(where, f'Invalid value: "{address}": must be a valid IPv{version} address')


def _node_cidrs(new: Object, old: Object | None) -> Iterator[Cause]:
    for index, text in enumerate(_get(new, "spec.podCIDRs") or ()):
        if not _is_network(text):
            yield Cause(f"spec.podCIDRs[{index}]", f'Invalid value: "{text}": must be a valid CIDR value')
    before = _get(old, "spec.podCIDRs")
    if before and before != _get(new, "spec.podCIDRs"):
        message = 'Forbidden: node updates may not change podCIDR except from "" to valid'
        yield Cause("spec.podCIDRs", message, "FieldValueForbidden")


WORKLOAD: Final = (_check_selector, check_pod_spec, _restart_policy("Always"), _immutable("spec.selector"))
RULES: Final[Mapping[tuple[str, str], tuple[Rule, ...]]] = {
    ("", "Pod"): (check_pod_spec, _pod_update),
    ("", "Service"): (_check_service,),
    ("", "ConfigMap"): (_immutable_if_marked,),
    ("", "Secret"): (_immutable_if_marked, _immutable("type")),
    ("", "Node"): (_node_cidrs,),
    ("", "ReplicationController"): (check_pod_spec, _restart_policy("Always")),
    ("apps", "Deployment"): WORKLOAD,
    ("apps", "ReplicaSet"): WORKLOAD,
    ("apps", "DaemonSet"): WORKLOAD,
    ("apps", "StatefulSet"): (*WORKLOAD, _immutable("spec.serviceName", "spec.podManagementPolicy")),
    ("batch", "Job"): (check_pod_spec, _restart_policy("OnFailure", "Never"), _immutable("spec.selector", "spec.completions")),
    ("batch", "CronJob"): (check_pod_spec, _restart_policy("OnFailure", "Never")),
    ("discovery.k8s.io", "EndpointSlice"): (_check_slice, _immutable("addressType")),
    ("networking.k8s.io", "NetworkPolicy"): (_check_network_policy,),
    ("rbac.authorization.k8s.io", "RoleBinding"): (_immutable("roleRef"),),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): (_immutable("roleRef"),),
    ("scheduling.k8s.io", "PriorityClass"): (_immutable("value", "preemptionPolicy"),),
    ("storage.k8s.io", "StorageClass"): (_immutable("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"),),
}  # fmt: skip
