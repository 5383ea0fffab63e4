"""What a new pod gets from other objects: its priority from a PriorityClass, its credentials from a ServiceAccount.

https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/ and
https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#serviceaccount-admission-controller
"""

import secrets
from collections.abc import Iterable
from typing import Final

from poplin.apiserver import status
from poplin.apiserver.collection import Object
from poplin.apiserver.lifecycle import SUFFIX_ALPHABET, Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.resource import Resource

ACCOUNTS: Final = "/serviceaccounts"
CLASSES: Final = "scheduling.k8s.io/priorityclasses"
ACCOUNT_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_LIFETIME_S: Final = 3607
SOURCES: Final[list[Object]] = [
    {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_LIFETIME_S}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {
        "downwardAPI": {
            "items": [
                {
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }
            ]
        }
    },
]


class PodAdmission:
    """A `lifecycle.Hook` for pods, and for the PriorityClasses that they name."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._store = lifecycle.store

    def __call__(self, resource: Resource, document: Object, old: Object | None, options: Options) -> None:
        """See `lifecycle.Hook`."""
        del options
        match (resource.group, resource.kind):
            case ("", "Pod") if old is None:
                self._give_priority(resource, document)
                self._give_account(resource, document)
            case ("scheduling.k8s.io", "PriorityClass") if document.get("globalDefault"):
                self._check_default(resource, document["metadata"].get("name", ""))

    def _classes(self) -> Iterable[Object]:
        return (entry.decode() for entry in self._store.open(CLASSES).slice(None))

    def _give_priority(self, resource: Resource, pod: Object) -> None:
        spec = pod["spec"]
        if name := spec.get("priorityClassName"):
            entry = self._store.open(CLASSES).head(("", name))
            if entry is None:
                raise _forbidden(resource, pod, f"no PriorityClass with name {name} was found")
            chosen = entry.decode()
        else:
            chosen = next((one for one in self._classes() if one.get("globalDefault")), {})
            if chosen:
                spec["priorityClassName"] = chosen["metadata"]["name"]
        priority = chosen.get("value", 0)
        policy = chosen.get("preemptionPolicy") or "PreemptLowerPriority"
        for key, value, what in (
            ("priority", priority, "integer value of priority"),
            ("preemptionPolicy", policy, "string value of PreemptionPolicy"),
        ):
            if spec.get(key) not in {None, value}:
                why = f"the {what} ({spec[key]}) must not be provided in pod spec; priority admission controller"
                raise _forbidden(resource, pod, f"{why} computed {value} from the given PriorityClass name")
            spec[key] = value

    def _check_default(self, resource: Resource, name: str) -> None:
        for one in self._classes():
            other = one["metadata"]["name"]
            if one.get("globalDefault") and other != name:
                why = f"PriorityClass {other} is already marked as default. Only one default can exist"
                raise status.forbidden(resource.plural, resource.group, name, why)

    def _give_account(self, resource: Resource, pod: Object) -> None:
        spec, name = pod["spec"], pod["spec"]["serviceAccountName"]
        entry = self._store.open(ACCOUNTS).head((pod["metadata"]["namespace"], name))
        # Every namespace gets the account "default", a moment after it is made.
        if entry is None and name != "default":
            what = f'{pod["metadata"]["namespace"]}/{name}: serviceaccount "{name}" not found'
            raise _forbidden(resource, pod, f"error looking up service account {what}")
        account = entry.decode() if entry is not None else {}
        if account.get("imagePullSecrets"):
            spec.setdefault("imagePullSecrets", account["imagePullSecrets"])
        if spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True)):
            _mount_token(spec)


def _mount_token(spec: Object) -> None:
    """Mount the account's token in every container that has nothing in its place."""
    suffix = "".join(secrets.choice(SUFFIX_ALPHABET) for _ in range(5))
    name = f"kube-api-access-{suffix}"
    mounted = False
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        mounts = container.get("volumeMounts") or []
        if any(mount.get("mountPath") == ACCOUNT_PATH for mount in mounts):
            continue
        mount = {"name": name, "readOnly": True, "mountPath": ACCOUNT_PATH}
        container["volumeMounts"] = [*mounts, mount]
        mounted = True
    if mounted:
        volume = {"name": name, "projected": {"sources": SOURCES, "defaultMode": 0o644}}
        spec["volumes"] = [*(spec.get("volumes") or ()), volume]


def _forbidden(resource: Resource, pod: Object, why: str) -> status.StatusError:
    metadata = pod["metadata"]
    return status.forbidden(resource.plural, resource.group, metadata.get("name", ""), why)
