"""Semantic validation: what the schemas cannot say and users meet daily.

A rule takes the object and, for an update, its old version; it yields causes. The list is not all of
Kubernetes' validation: it has names, ports, selectors, addresses and what must not change.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from poplin.apiserver.collection import Object
from poplin.apiserver.netrules import check_network_policy, check_node, check_slice
from poplin.apiserver.podrules import (
    Rule,
    check_pod_spec,
    check_pod_update,
    check_priority_class,
    check_selector,
    restart_policy,
)
from poplin.apiserver.resource import lookup
from poplin.apiserver.servicerules import check_service
from poplin.apiserver.status import Cause

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
            if lookup(new, path) != lookup(old, path):
                yield Cause(path, f"Invalid value: {lookup(new, path)}: {IMMUTABLE}")

    return rule


def _immutable_if_marked(new: Object, old: Object | None) -> Iterator[Cause]:
    """ConfigMaps and Secrets with `immutable: true`."""
    if old is None or not old.get("immutable"):
        return
    for key in ("data", "binaryData", "immutable"):
        if new.get(key) != old.get(key):
            yield Cause(key, f"Forbidden: {IMMUTABLE} when `immutable` is set", "FieldValueForbidden")


WORKLOAD: Final = (check_selector, check_pod_spec, restart_policy("Always"), _immutable("spec.selector"))
RULES: Final[Mapping[tuple[str, str], tuple[Rule, ...]]] = {
    ("", "Pod"): (check_pod_spec, check_pod_update),
    ("", "Service"): (check_service,),
    ("", "ConfigMap"): (_immutable_if_marked,),
    ("", "Secret"): (_immutable_if_marked, _immutable("type")),
    ("", "Node"): (check_node,),
    ("", "ReplicationController"): (check_pod_spec, restart_policy("Always")),
    ("apps", "Deployment"): WORKLOAD,
    ("apps", "ReplicaSet"): WORKLOAD,
    ("apps", "DaemonSet"): WORKLOAD,
    ("apps", "StatefulSet"): (*WORKLOAD, _immutable("spec.serviceName", "spec.podManagementPolicy")),
    ("batch", "Job"): (check_pod_spec, restart_policy("OnFailure", "Never"), _immutable("spec.selector", "spec.completions")),
    ("batch", "CronJob"): (check_pod_spec, restart_policy("OnFailure", "Never")),
    ("discovery.k8s.io", "EndpointSlice"): (check_slice, _immutable("addressType")),
    ("networking.k8s.io", "NetworkPolicy"): (check_network_policy,),
    ("rbac.authorization.k8s.io", "RoleBinding"): (_immutable("roleRef"),),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): (_immutable("roleRef"),),
    ("scheduling.k8s.io", "PriorityClass"): (check_priority_class, _immutable("value", "preemptionPolicy")),
    ("storage.k8s.io", "StorageClass"): (_immutable("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"),),
}  # fmt: skip
