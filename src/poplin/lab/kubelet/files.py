"""The files that a container gets of its pod: /etc/hosts, /etc/hostname, /etc/resolv.conf.

Source: Kubernetes documentation, "DNS for Services and Pods" and "Adding entries to Pod /etc/hosts".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from poplin.lab.addressing import Addressing
from poplin.lab.container import Binding
from poplin.lab.kubelet.document import Pod
from poplin.model.kernel import IPAddress

DOMAIN: Final = "cluster.local"
SERVERS: Final = 3
SEARCHES: Final = 32
"""Limits of the API (reference, "PodDNSConfig"), which are those of resolvers."""


def make_files(pod: Pod, addresses: Sequence[IPAddress], addressing: Addressing) -> dict[str, str]:
    """Contents by path. A pod on the host's network with dnsPolicy Default sees the machine's own resolv.conf."""
    files = {"/etc/hostname": f"{pod.hostname}\n", "/etc/hosts": make_hosts(pod, addresses)}
    resolver = make_resolv_conf(pod, addressing)
    if resolver is not None:
        files["/etc/resolv.conf"] = resolver
    return files


def write_files(directory: Path, files: Mapping[str, str]) -> list[Binding]:
    """Write the files below a directory, and say what a container mounts of it."""
    directory.mkdir(parents=True, exist_ok=True)
    bindings = []
    for path, content in files.items():
        source = directory / Path(path).name
        if not source.exists() or source.read_text() != content:
            source.write_text(content)
        bindings.append(Binding(str(source), path))
    return bindings


def make_hosts(pod: Pod, addresses: Sequence[IPAddress]) -> str:
    """The text of /etc/hosts."""
    lines = [
        "# Managed by the lab's kubelet.",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
    ]
    subdomain = pod.spec.get("subdomain")
    names = pod.hostname
    if subdomain:
        names = f"{pod.hostname}.{subdomain}.{pod.namespace}.svc.{DOMAIN}\t{pod.hostname}"
    lines += [f"{address}\t{names}" for address in addresses]
    lines += [
        f"{alias['ip']}\t{' '.join(alias.get('hostnames') or ())}"
        for alias in pod.spec.get("hostAliases") or ()
    ]
    return "\n".join(lines) + "\n"


def make_resolv_conf(pod: Pod, addressing: Addressing) -> str | None:
    """The text of /etc/resolv.conf, None where the pod takes its node's.

    What dnsConfig says comes after what the policy says, its options in place of those of the same name.
    """
    policy = pod.spec.get("dnsPolicy") or "ClusterFirst"
    extra = pod.spec.get("dnsConfig") or {}
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    if policy == "Default" or (policy == "ClusterFirst" and pod.host_network):
        return None
    if policy != "None":
        servers = [str(address) for address in addressing.dns_addresses()]
        searches = [f"{pod.namespace}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN]
        options = {"ndots": "5"}
    servers += extra.get("nameservers") or []
    searches += extra.get("searches") or []
    options |= {one["name"]: str(one.get("value") or "") for one in extra.get("options") or ()}
    lines = [f"nameserver {server}" for server in list(dict.fromkeys(servers))[:SERVERS]]
    if searches:
        lines.append(f"search {' '.join(list(dict.fromkeys(searches))[:SEARCHES])}")
    if options:
        words = (f"{name}:{value}" if value else name for name, value in options.items())
        lines.append(f"options {' '.join(words)}")
    return "\n".join(lines) + "\n"
