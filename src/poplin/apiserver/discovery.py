"""What the server serves, as clients ask for it: /api, /apis, resource lists, and both at once.

https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from poplin.apiserver.collection import Object
from poplin.apiserver.resource import Registry, Resource

KUBERNETES_VERSION: Final = "v1.32.0"
"""The version of the API that the schemas describe."""

AGGREGATED: Final = "apidiscovery.k8s.io"
SUBRESOURCE_KINDS: Final[Mapping[tuple[str, str], tuple[str, str, str, tuple[str, ...]]]] = {
    ("pods", "binding"): ("", "v1", "Binding", ("create",)),
    ("pods", "eviction"): ("policy", "v1", "Eviction", ("create",)),
    ("pods", "log"): ("", "v1", "Pod", ("get",)),
    ("pods", "exec"): ("", "v1", "PodExecOptions", ("create", "get")),
    ("pods", "attach"): ("", "v1", "PodAttachOptions", ("create", "get")),
    ("pods", "portforward"): ("", "v1", "PodPortForwardOptions", ("create", "get")),
    ("pods", "proxy"): ("", "v1", "PodProxyOptions", ("create", "delete", "get", "patch", "update")),
    ("pods", "ephemeralcontainers"): ("", "v1", "Pod", ("get", "patch", "update")),
    ("services", "proxy"): ("", "v1", "ServiceProxyOptions", ("create", "delete", "get", "patch", "update")),
    ("nodes", "proxy"): ("", "v1", "NodeProxyOptions", ("create", "delete", "get", "patch", "update")),
    ("namespaces", "finalize"): ("", "v1", "Namespace", ("update",)),
    ("serviceaccounts", "token"): ("authentication.k8s.io", "v1", "TokenRequest", ("create",)),
    ("certificatesigningrequests", "approval"): (
        "certificates.k8s.io", "v1", "CertificateSigningRequest", ("get", "patch", "update"),
    ),
}  # fmt: skip


def describe_version() -> Object:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"{KUBERNETES_VERSION}+poplin",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": f"{sys.implementation.name}{platform.python_version()}",
        "platform": f"{sys.platform}/{platform.machine()}",
    }


def answer(registry: Registry, path: str, *, aggregated: bool) -> Object | None:
    """The document at a discovery path, None where there is none."""
    groups = registry.groups()
    parts = path.strip("/").split("/")
    match parts:
        case ["api"] if aggregated:
            return _aggregate({"": groups[""]})
        case ["apis"] if aggregated:
            return _aggregate({group: versions for group, versions in groups.items() if group})
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["apis"]:
            listed = [_describe_group(group, list(versions)) for group, versions in groups.items() if group]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        case ["api", version] if version in groups[""]:
            return _list_resources("", version, groups[""][version])
        case ["apis", group] if group and group in groups:
            return {"kind": "APIGroup", "apiVersion": "v1", **_describe_group(group, list(groups[group]))}
        case ["apis", group, version] if group and version in groups.get(group, {}):
            return _list_resources(group, version, groups[group][version])
    return None


def _describe_group(group: str, versions: Sequence[str]) -> Object:
    listed = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": listed, "preferredVersion": listed[0]}


def subresources(resource: Resource) -> list[tuple[str, Object, tuple[str, ...]]]:
    """The subresources: name, group-version-kind of what they carry, verbs."""
    own = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    found: list[tuple[str, Object, tuple[str, ...]]] = []
    if resource.status:
        found.append(("status", own, ("get", "patch", "update")))
    if resource.scale:
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        found.append(("scale", scale, ("get", "patch", "update")))
    for name in resource.subresources:
        group, version, kind, verbs = SUBRESOURCE_KINDS[resource.plural, name]
        found.append((name, {"group": group, "version": version, "kind": kind}, verbs))
    return found


def _list_resources(group: str, version: str, resources: Sequence[Resource]) -> Object:
    listed: list[Object] = []
    for resource in resources:
        entry: Object = {
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": list(resource.verbs),
        }
        if resource.short_names:
            entry["shortNames"] = list(resource.short_names)
        if resource.categories:
            entry["categories"] = list(resource.categories)
        listed.append(entry)
        for name, kind, verbs in subresources(resource):
            listed.append(
                {
                    "name": f"{resource.plural}/{name}",
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    **kind,
                    "verbs": list(verbs),
                }
            )
    full = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": full, "resources": listed}


def _aggregate(groups: Mapping[str, Mapping[str, Sequence[Resource]]]) -> Object:
    items = [
        {
            "metadata": {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None},
            "versions": [
                {
                    "version": version,
                    "resources": [_aggregate_one(one) for one in resources],
                    "freshness": "Current",
                }
                for version, resources in versions.items()
            ],
        }
        for group, versions in groups.items()
    ]
    return {"kind": "APIGroupDiscoveryList", "apiVersion": f"{AGGREGATED}/v2", "metadata": {}, "items": items}


def _aggregate_one(resource: Resource) -> Object:
    own = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    entry: dict[str, Any] = {
        "resource": resource.plural,
        "responseKind": own,
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    below = [
        {"subresource": name, "responseKind": kind, "verbs": list(verbs)}
        for name, kind, verbs in subresources(resource)
    ]
    if below:
        entry["subresources"] = below
    return entry
