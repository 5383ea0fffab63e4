"""The cells of tables that are more than a field: each a function of the object, by its name in data/resources.toml.

The wording follows kubectl's own output, so that people read what they know.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from poplin.apiserver.collection import Object
from poplin.apiserver.resource import lookup

NONE: Final = "<none>"
UNKNOWN: Final = "<unknown>"


def format_age(text: Any) -> str:
    """How long ago, in kubectl's short form: 45s, 3m12s, 5h, 2d4h, 400d."""
    try:
        then = datetime.fromisoformat(str(text))
    except ValueError:
        return UNKNOWN
    return format_duration(max(0, int((datetime.now(UTC) - then).total_seconds())))


def format_duration(seconds: int) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d" if days < 730 else f"{days // 365}y{days % 365}d"


def _age(document: Object) -> str:
    return format_age(lookup(document, "metadata.creationTimestamp") or "")


def _list(document: Any, path: str) -> list[Any]:
    return lookup(document, path) or []


def _join(parts: Sequence[str]) -> str:
    return ",".join(parts) or NONE


def _pod_ready(pod: Object) -> str:
    ready = sum(bool(one.get("ready")) for one in _list(pod, "status.containerStatuses"))
    return f"{ready}/{len(_list(pod, 'spec.containers'))}"


def _pod_status(pod: Object) -> str:
    reason = lookup(pod, "status.reason") or lookup(pod, "status.phase") or UNKNOWN
    for one in _list(pod, "status.containerStatuses"):
        state = one.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif ended:
            reason = ended.get("reason") or f"ExitCode:{ended.get('exitCode', 0)}"
    return "Terminating" if "deletionTimestamp" in pod["metadata"] else str(reason)


def _pod_restarts(pod: Object) -> str:
    return str(sum(one.get("restartCount", 0) for one in _list(pod, "status.containerStatuses")))


def _readiness_gates(pod: Object) -> str:
    gates = [gate.get("conditionType") for gate in _list(pod, "spec.readinessGates")]
    met = {one.get("type") for one in _list(pod, "status.conditions") if one.get("status") == "True"}
    return f"{sum(gate in met for gate in gates)}/{len(gates)}" if gates else NONE


def _node_status(node: Object) -> str:
    ready = next(
        (one.get("status") for one in _list(node, "status.conditions") if one.get("type") == "Ready"), None
    )
    shown = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    return f"{shown},SchedulingDisabled" if lookup(node, "spec.unschedulable") else shown


def _node_roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = lookup(node, "metadata.labels") or {}
    return _join(sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix)))


def _node_address(kind: str) -> Callable[[Object], str]:
    def cell(node: Object) -> str:
        return next(
            (one["address"] for one in _list(node, "status.addresses") if one.get("type") == kind), NONE
        )

    return cell


def _service_external(service: Object) -> str:
    kind = lookup(service, "spec.type")
    if kind == "ExternalName":
        return str(lookup(service, "spec.externalName"))
    balancers = [
        one.get("ip") or one.get("hostname", "") for one in _list(service, "status.loadBalancer.ingress")
    ]
    given = (balancers if kind == "LoadBalancer" else []) + _list(service, "spec.externalIPs")
    return ",".join(given) or ("<pending>" if kind == "LoadBalancer" else NONE)


def _service_ports(service: Object) -> str:
    return _join(
        [
            f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port.get('protocol', 'TCP')}"
            for port in _list(service, "spec.ports")
        ]
    )


def _selector(document: Object) -> str:
    selector = lookup(document, "spec.selector") or {}
    if document["kind"] in {"Service", "ReplicationController"}:
        selector = {"matchLabels": selector}
    return format_selector(selector) or NONE


def format_selector(selector: Mapping[str, Any]) -> str:
    """A LabelSelector as text: app=web,tier in (a,b)."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for term in selector.get("matchExpressions") or ():
        values = ",".join(term.get("values") or ())
        match term["operator"]:
            case "In" | "NotIn":
                parts.append(f"{term['key']} {term['operator'].lower()} ({values})")
            case "Exists":
                parts.append(term["key"])
            case _:
                parts.append("!" + term["key"])
    return ",".join(parts)


def _template(key: str, path: str = "spec.template.spec.containers") -> Callable[[Object], str]:
    return lambda document: _join([container.get(key, "") for container in _list(document, path)])


def _pairs(path: str) -> Callable[[Object], str]:
    return lambda document: _join(
        [f"{key}={value}" for key, value in sorted((lookup(document, path) or {}).items())]
    )


def _ready_of_desired(document: Object) -> str:
    return f"{lookup(document, 'status.readyReplicas') or 0}/{lookup(document, 'spec.replicas') or 0}"


def _endpoints(document: Object) -> str:
    pairs = [
        f"{address['ip']}:{port['port']}"
        for subset in document.get("subsets") or ()
        for address in subset.get("addresses") or ()
        for port in subset.get("ports") or ()
    ]
    return _shorten(pairs)


def _shorten(parts: Sequence[str]) -> str:
    more = f" + {len(parts) - 3} more..." if len(parts) > 3 else ""
    return _join(parts[:3]) + more


def _slice_ports(document: Object) -> str:
    return _shorten([str(port.get("port", "*")) for port in document.get("ports") or ()])


def _slice_endpoints(document: Object) -> str:
    return _shorten(
        [address for one in document.get("endpoints") or () for address in one.get("addresses") or ()]
    )


def _event_object(event: Object) -> str:
    subject = event.get("involvedObject") or event.get("regarding") or {}
    return f"{subject.get('kind', '').lower()}/{subject.get('name', '')}"


def _event_time(*keys: str) -> Callable[[Object], str]:
    def cell(event: Object) -> str:
        return format_age(
            next((event[key] for key in keys if event.get(key)), event["metadata"].get("creationTimestamp"))
        )

    return cell


def _job_status(job: Object) -> str:
    for one in _list(job, "status.conditions"):
        if one.get("status") == "True" and one.get("type") in {"Complete", "Failed", "Suspended"}:
            return str(one["type"])
    return "Terminating" if "deletionTimestamp" in job["metadata"] else "Running"


def _job_completions(job: Object) -> str:
    wanted = lookup(job, "spec.completions")
    done = lookup(job, "status.succeeded") or 0
    return f"{done}/{wanted}" if wanted is not None else f"{done}/1 of {lookup(job, 'spec.parallelism') or 0}"


def _job_duration(job: Object) -> str:
    started, ended = lookup(job, "status.startTime"), lookup(job, "status.completionTime")
    if not started:
        return ""
    if not ended:
        return format_age(started)
    return format_duration(
        int((datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds())
    )


def _last_schedule(job: Object) -> str:
    last = lookup(job, "status.lastScheduleTime")
    return format_age(last) if last else NONE


def _controller(document: Object) -> str:
    owners = _list(document, "metadata.ownerReferences")
    return next((f"{one['kind'].lower()}/{one['name']}" for one in owners if one.get("controller")), NONE)


def _role_reference(document: Object) -> str:
    role = document.get("roleRef") or {}
    return f"{role.get('kind')}/{role.get('name')}"


def _scale_target(document: Object) -> str:
    target = lookup(document, "spec.scaleTargetRef") or {}
    return f"{target.get('kind')}/{target.get('name')}"


SHORT_MODES: Final = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


CELLS: Final[Mapping[str, Callable[[Object], Any]]] = {
    "age": _age,
    "access_modes": lambda one: ",".join(
        SHORT_MODES.get(mode, mode) for mode in _list(one, "spec.accessModes")
    ),
    "containers": _template("name"),
    "controller": _controller,
    "count_active": lambda one: len(_list(one, "status.active")),
    "count_data": lambda one: str(len(one.get("data") or {}) + len(one.get("binaryData") or {})),
    "count_secrets": lambda one: str(len(one.get("secrets") or ())),
    "endpoints": _endpoints,
    "event_age": _event_time("lastTimestamp", "deprecatedLastTimestamp", "eventTime"),
    "event_count": lambda one: str(one.get("count") or one.get("deprecatedCount") or 1),
    "event_first": _event_time("firstTimestamp", "deprecatedFirstTimestamp", "eventTime"),
    "event_object": _event_object,
    "images": _template("image"),
    "ingress_address": lambda one: ",".join(
        address.get("ip") or address.get("hostname", "")
        for address in _list(one, "status.loadBalancer.ingress")
    ),
    "ingress_hosts": lambda one: (
        ",".join(rule["host"] for rule in _list(one, "spec.rules") if rule.get("host")) or "*"
    ),
    "ingress_ports": lambda one: "80, 443" if _list(one, "spec.tls") else "80",
    "job_completions": _job_completions,
    "job_duration": _job_duration,
    "job_status": _job_status,
    "last_schedule": _last_schedule,
    "node_external_ip": _node_address("ExternalIP"),
    "node_internal_ip": _node_address("InternalIP"),
    "node_roles": _node_roles,
    "node_selector": _pairs("spec.template.spec.nodeSelector"),
    "node_status": _node_status,
    "pod_ready": _pod_ready,
    "pod_restarts": _pod_restarts,
    "pod_selector": lambda one: format_selector(lookup(one, "spec.podSelector") or {}) or NONE,
    "pod_status": _pod_status,
    "readiness_gates": _readiness_gates,
    "ready_of_desired": _ready_of_desired,
    "ready_replicas": lambda one: lookup(one, "status.readyReplicas") or 0,
    "role_reference": _role_reference,
    "scale_target": _scale_target,
    "selector": _selector,
    "service_external": _service_external,
    "service_ports": _service_ports,
    "slice_endpoints": _slice_endpoints,
    "slice_ports": _slice_ports,
    "template_containers": _template("name", "template.spec.containers"),
    "template_images": _template("image", "template.spec.containers"),
    "template_labels": _pairs("template.metadata.labels"),
}
