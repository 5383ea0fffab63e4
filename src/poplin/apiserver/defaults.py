"""Defaults that depend on other fields. Those that do not stand in data/overlay.toml.

Source: the field descriptions of https://kubernetes.io/docs/reference/kubernetes-api/.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from poplin.apiserver import service
from poplin.apiserver.collection import Object
from poplin.apiserver.resource import Resource


def derive(group: str, kind: str, document: Object) -> None:
    """Fill in `document`, in place, what its type derives from what is given."""
    function = DERIVE.get((group, kind))
    if function is not None:
        function(document)


def pod_specs(kind: str, document: Object) -> Iterator[tuple[str, Object]]:
    """The pod specs in a document of any built-in type, each with its path."""
    spec = document.get("spec") or {}
    if kind == "Pod":
        yield "spec", spec
    elif kind in {"Deployment", "ReplicaSet", "DaemonSet", "StatefulSet", "Job", "ReplicationController"}:
        yield "spec.template.spec", (spec.get("template") or {}).get("spec") or {}
    elif kind == "CronJob":
        job = (spec.get("jobTemplate") or {}).get("spec") or {}
        yield "spec.jobTemplate.spec.template.spec", (job.get("template") or {}).get("spec") or {}


def _pod_spec(spec: Object) -> None:
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        image = container.get("image", "")
        untagged = "@" not in image and ":" not in image.rpartition("/")[2]
        container.setdefault(
            "imagePullPolicy", "Always" if untagged or image.endswith(":latest") else "IfNotPresent"
        )
        resources = container.get("resources") or {}
        if resources.get("limits"):
            resources["requests"] = {**resources["limits"], **resources.get("requests", {})}
        if spec.get("hostNetwork"):
            for port in container.get("ports") or ():
                port.setdefault("hostPort", port.get("containerPort"))
    if spec.get("serviceAccountName"):
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]


def _pod(document: Object) -> None:
    for _, spec in pod_specs(document["kind"], document):
        if spec:
            _pod_spec(spec)
    if document["kind"] != "Pod":
        return
    spec = document.setdefault("spec", {})
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    tolerations = spec.setdefault("tolerations", [])
    for state in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{state}"
        if not any(_tolerates(toleration, key) for toleration in tolerations):
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            )


def _tolerates(toleration: Mapping[str, Any], key: str) -> bool:
    """Whether a taint `key` with effect NoExecute is tolerated, whatever for how long."""
    return (toleration.get("key", key), toleration.get("effect", "NoExecute")) == (key, "NoExecute")


def _service(document: Object) -> None:
    spec = document.setdefault("spec", {})
    if spec.get("type") == "ExternalName":
        return
    for port in spec.get("ports") or ():
        if port.get("targetPort") in {None, "", 0}:
            port["targetPort"] = port.get("port")
    if spec.get("sessionAffinity") == "ClientIP":
        configuration = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        configuration.setdefault("timeoutSeconds", 10800)
    else:
        spec.pop("sessionAffinityConfig", None)
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec.get("type") in {"NodePort", "LoadBalancer"}:
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec.get("type") == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _deployment(document: Object) -> None:
    _pod(document)
    strategy = (document.get("spec") or {}).get("strategy") or {}
    if strategy.get("type") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", "25%")
        rolling.setdefault("maxUnavailable", "25%")


def _daemon_set(document: Object) -> None:
    _pod(document)
    strategy = (document.get("spec") or {}).get("updateStrategy") or {}
    if strategy.get("type") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", 0)
        rolling.setdefault("maxUnavailable", 1)


def _stateful_set(document: Object) -> None:
    _pod(document)
    strategy = (document.get("spec") or {}).get("updateStrategy") or {}
    if strategy.get("type") == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)


def _job(document: Object) -> None:
    _pod(document)
    spec = document.get("spec") or {}
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    template = spec.get("template")
    if spec.get("manualSelector") or template is None or "uid" not in document["metadata"]:
        return
    # The server selects a job's pods by the job's own uid.
    uid, name = document["metadata"]["uid"], document["metadata"].get("name", "")
    labels = (template.get("metadata") or {}).get("labels") or {}
    template["metadata"] = {**(template.get("metadata") or {}), "labels": labels}
    labels.update({"batch.kubernetes.io/controller-uid": uid, "controller-uid": uid})
    labels.update({"batch.kubernetes.io/job-name": name, "job-name": name})
    spec.setdefault("selector", {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}})


def _replication_controller(document: Object) -> None:
    _pod(document)
    spec = document.get("spec") or {}
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if labels and not spec.get("selector"):
        spec["selector"] = dict(labels)


def _network_policy(document: Object) -> None:
    spec = document.setdefault("spec", {})
    spec.setdefault("podSelector", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _namespace(document: Object) -> None:
    spec = document.get("spec") or {}
    if "deletionTimestamp" not in document["metadata"]:
        spec.setdefault("finalizers", ["kubernetes"])
    document["spec"] = spec
    labels = document["metadata"].get("labels") or {}
    document["metadata"]["labels"] = {
        **labels,
        "kubernetes.io/metadata.name": document["metadata"].get("name", ""),
    }


def _secret(document: Object) -> None:
    """StringData is written, never read: it becomes data."""
    text = document.pop("stringData", None) or {}
    if text:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in text.items()}
        document["data"] = {**(document.get("data") or {}), **encoded}


def _role_binding(document: Object) -> None:
    for subject in document.get("subjects") or ():
        if subject.get("kind") in {"User", "Group"}:
            subject.setdefault("apiGroup", "rbac.authorization.k8s.io")


def carry(group: str, kind: str, new: Object, old: Object) -> None:
    """Keep what the cluster gave an object where an update leaves it out."""
    if (group, kind) == ("", "Service"):
        service.carry(new, old)


def reset_status(resource: Resource, document: Object) -> None:
    """A new object has no status of its client's, but for a Node's: the kubelet registers with one."""
    kind = (resource.group, resource.kind)
    if resource.status and kind != ("", "Node"):
        document.pop("status", None)
    if kind == ("", "Pod"):
        document["status"] = {"phase": "Pending", "qosClass": _quality(document.get("spec") or {})}
    elif kind == ("", "Namespace"):
        document["status"] = {"phase": "Active"}
    elif kind == ("", "Service"):
        document["status"] = {"loadBalancer": {}}
    elif resource.status and not resource.custom:
        document.setdefault("status", {})


def _quality(spec: Object) -> str:
    """A pod's quality of service class, from its containers' resources."""
    resources = [container.get("resources") or {} for container in spec.get("containers") or ()]
    if not any(one.get("requests") or one.get("limits") for one in resources):
        return "BestEffort"
    for one in resources:
        limits, requests = one.get("limits") or {}, one.get("requests") or {}
        if not {"cpu", "memory"} <= limits.keys() or {**limits, **requests} != limits:
            return "Burstable"
    return "Guaranteed"


def _claim(document: Object) -> None:
    document["status"] = document.get("status") or {"phase": "Pending"}


def _definition(document: Object) -> None:
    spec = document.get("spec") or {}
    names = spec.get("names") or {}
    if names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")


RBAC: Final = "rbac.authorization.k8s.io"
DERIVE: Final[Mapping[tuple[str, str], Callable[[Object], None]]] = {
    ("", "Pod"): _pod,
    ("", "Service"): _service,
    ("", "Namespace"): _namespace,
    ("", "Secret"): _secret,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "ReplicationController"): _replication_controller,
    ("apps", "Deployment"): _deployment,
    ("apps", "ReplicaSet"): _pod,
    ("apps", "DaemonSet"): _daemon_set,
    ("apps", "StatefulSet"): _stateful_set,
    ("batch", "Job"): _job,
    ("batch", "CronJob"): _pod,
    ("networking.k8s.io", "NetworkPolicy"): _network_policy,
    (RBAC, "RoleBinding"): _role_binding,
    (RBAC, "ClusterRoleBinding"): _role_binding,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _definition,
}
