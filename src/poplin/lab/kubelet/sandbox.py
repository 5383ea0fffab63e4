"""A pod's sandbox: its network namespace and what CNI made in it, remembered in a file for kubelets to come."""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Final

import msgspec

from poplin.agent.install import write_atomically
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import NAMED, create_netns, delete_netns, entered, open_netns
from poplin.lab.directory import Directory
from poplin.lab.kubelet import cni
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.place import NodePlace
from poplin.model.errors import PoplinError, TemporaryError
from poplin.model.kernel import IPAddress, Link
from poplin.plan.operation import Change

SYSTEM_PLUGINS: Final = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
"""Where other plugins of a chain may be."""


class Sandbox(msgspec.Struct, frozen=True, rename="camel"):
    """An attached pod. `addresses` are text, IPv4 first; `conflist` is what it was attached with."""

    uid: str
    node: str
    container_id: str
    netns: str
    namespace: str
    name: str
    conflist: dict[str, Any]
    result: dict[str, Any]
    capabilities: dict[str, Any]

    def addresses(self) -> list[IPAddress]:
        """The pod's addresses, IPv4 first."""
        found = [ip_interface(one["address"]).ip for one in self.result.get("ips") or ()]
        return sorted(found, key=lambda address: address.version)

    def attachment(self) -> cni.Attachment:
        return cni.Attachment(
            self.container_id, self.netns, self.namespace, self.name, self.uid, self.capabilities
        )


def make_sandbox(directory: Directory, place: NodePlace, pod: Pod) -> Sandbox:
    """Make and attach the pod's namespace. Blocks; leaves nothing where it raises PoplinError."""
    path = cni.find_conflist(place.files.cni_conf)
    if path is None:
        raise TemporaryError("network is not ready: cni config uninitialized", where=f"node {place.name}")
    name = directory.pod_namespace(pod.uid)
    with suppress(FileNotFoundError):
        delete_netns(name)
    netns = create_netns(name)
    sandbox = Sandbox(
        uid=pod.uid,
        node=place.name,
        container_id=secrets.token_hex(32),
        netns=str(netns),
        namespace=pod.namespace,
        name=pod.name,
        conflist=cni.read_conflist(path),
        result={},
        capabilities=capabilities_of(pod),
    )
    try:
        _raise_loopback(netns)
        # Kept before the plugin runs: whatever it makes must be found again after a crash.
        _write(directory, sandbox)
        with entered(place.netns_fd):
            result = cni.add(sandbox.conflist, sandbox.attachment(), bin_dirs(place))
        sandbox = msgspec.structs.replace(sandbox, result=result)
        _write(directory, sandbox)
    except PoplinError:
        delete_netns(name)
        _file(directory, pod.uid).unlink(missing_ok=True)
        raise
    return sandbox


def remove_sandbox(directory: Directory, place: NodePlace, sandbox: Sandbox) -> None:
    """Detach and remove the namespace. Blocks. Raises PoplinError where a plugin fails; try again later."""
    with entered(place.netns_fd):
        failures = cni.delete(sandbox.conflist, sandbox.attachment(), bin_dirs(place), sandbox.result or None)
    for failure in failures:
        raise failure
    delete_netns(Path(sandbox.netns).name)
    _file(directory, sandbox.uid).unlink(missing_ok=True)


def read_sandboxes(directory: Directory) -> dict[str, Sandbox]:
    """What an earlier kubelet left, by the pod's uid."""
    found = {}
    for path in directory.sandboxes.glob("*.json"):
        with suppress(OSError, msgspec.DecodeError):
            sandbox = msgspec.json.decode(path.read_bytes(), type=Sandbox)
            found[sandbox.uid] = sandbox
    return found


def capabilities_of(pod: Pod) -> dict[str, Any]:
    """What the runtime passes for capabilities (CONVENTIONS.md, "Dynamic Plugin specific Fields")."""
    mappings = [
        {
            "hostPort": port["hostPort"],
            "containerPort": port["containerPort"],
            "protocol": str(port.get("protocol", "TCP")).lower(),
            "hostIP": port.get("hostIP", ""),
        }
        for container in pod.containers()
        for port in container.get("ports") or ()
        if port.get("hostPort")
    ]
    capabilities: dict[str, Any] = {"io.kubernetes.cri.pod-annotations": dict(pod.annotations)}
    if mappings:
        capabilities["portMappings"] = mappings
    return capabilities


def bin_dirs(place: NodePlace) -> Sequence[Path]:
    """CNI_PATH of a node."""
    return (place.files.cni_bin, *SYSTEM_PLUGINS)


def _raise_loopback(netns: Path) -> None:
    descriptor = open_netns(netns)
    try:
        with entered(descriptor), RouteSocket() as links:
            for failure in links.apply([Change(Link("lo"))]):
                raise failure.error
    finally:
        os.close(descriptor)


def _write(directory: Directory, sandbox: Sandbox) -> None:
    write_atomically(_file(directory, sandbox.uid), msgspec.json.encode(sandbox))


def _file(directory: Directory, uid: str) -> Path:
    return directory.sandboxes / f"{uid}.json"


def stands(sandbox: Sandbox) -> bool:
    """Whether the sandbox was attached to its end and is still there."""
    return bool(sandbox.result) and (NAMED / Path(sandbox.netns).name).exists()
