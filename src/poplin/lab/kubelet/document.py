"""Pods as the kubelet reads them: whole, since it needs most of a pod's fields and changes none."""

from typing import Any, Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.object import Json, Object, ObjectMetadata


class PodMetadata(ObjectMetadata, rename="camel", gc=False):
    """ObjectMeta with what a deletion asks for."""

    deletion_grace_period_seconds: int | None = None


class Pod(Object, rename="camel", gc=False):
    """A pod."""

    metadata: PodMetadata

    @property
    def node_name(self) -> str:
        return str(self.spec.get("nodeName") or "")

    @property
    def host_network(self) -> bool:
        return bool(self.spec.get("hostNetwork"))

    @property
    def restart_policy(self) -> str:
        return str(self.spec.get("restartPolicy") or "Always")

    @property
    def hostname(self) -> str:
        """What `hostname` says inside: spec.hostname or the pod's name, as a DNS label."""
        return str(self.spec.get("hostname") or self.name)[:63].rstrip(".-")

    @property
    def grace_s(self) -> int:
        """Seconds from SIGTERM to SIGKILL."""
        asked = self.metadata.deletion_grace_period_seconds
        return int(asked if asked is not None else self.spec.get("terminationGracePeriodSeconds", 30))

    @property
    def finished(self) -> bool:
        """Whether the API has it as ended for good."""
        return self.status.get("phase") in {"Succeeded", "Failed"}

    def containers(self) -> list[Json]:
        return list(self.spec.get("containers") or ())

    def init_containers(self) -> list[Json]:
        return list(self.spec.get("initContainers") or ())

    def is_of_job(self) -> bool:
        """Whether somebody waits for it to end."""
        return any(owner.get("kind") == "Job" for owner in self.metadata.owner_references or ())

    def statuses(self) -> dict[str, Json]:
        """What the API holds of each container, by name."""
        lists: tuple[list[Any], ...] = (
            self.status.get("initContainerStatuses") or [],
            self.status.get("containerStatuses") or [],
        )
        return {one["name"]: one for group in lists for one in group}


def _complete(pod: Pod) -> Pod:
    pod.kind, pod.api_version = "Pod", "v1"
    return pod


PODS: Final[Resource[Pod]] = Resource(
    "", "v1", "pods", "Pod", namespaced=True, struct=Pod, to_model=_complete
)
