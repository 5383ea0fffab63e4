"""Whole nodes for tests: real agents in network namespaces on one bridge, their pods by the real poplin-cni.

                 outside (198.51.100.9, 2001:db8:100::9)
                    |
    fabric: router and bridge (192.0.2.254, 2001:db8:2::fe)
       |            |            |
      n1           n2           n3          192.0.2.<i>, 2001:db8:2::<i>
      pods         pods         pods        10.244.<i>.0/24, fd00:10:244:<i>::/64

Everything has a unique name, so that several clusters stand at once, and is gone when the cluster closes.
"""

import http.client
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import yaml

from kernel.topology import Host, run
from poplin.agent.install import shim_path

POPLIN = Path(sys.executable).with_name("poplin")
OUTSIDE = {4: "198.51.100.9", 6: "2001:db8:100::9"}
FABRIC = {4: "192.0.2.254", 6: "2001:db8:2::fe"}
NETWORK = {4: "10.244.0.0/16", 6: "fd00:10:244::/48"}
VXLAN: Mapping[str, Any] = {"Type": "vxlan"}
WAIT_S = 20.0
"""How long anything that must come is waited for: a bound for a busy machine, never a measure."""
FORGED = {4: "10.244.77.7", 6: "fd00:10:244:77::7"}


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Poll until the condition gives something true, and give that."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


@dataclass
class Answer:
    """What a program printed and how it ended."""

    status: int
    output: str
    errors: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.output)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=WAIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Pod(Host):
    """A pod's network namespace; `result` is what its ADD printed."""

    container_id: str = ""
    ifname: str = "eth0"
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    @property
    def host_link(self) -> str:
        return self.result["interfaces"][0]["name"]

    def ip(self, *arguments: str) -> Any:
        return ip_json(self.name, *arguments)


@dataclass
class Node(Host):
    """A node's namespace and its agent, which `wrapper` starts if there is one.

    The agent reads the cluster from `kubeconfig`'s API server, or from `state_file` where there is none.
    """

    index: int = 0
    directory: Path = Path()
    state_file: Path = Path()
    kubeconfig: Path | None = None
    options: Sequence[str] = ()
    wrapper: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    pods: list[Pod] = field(default_factory=list)

    @property
    def node_name(self) -> str:
        return f"n{self.index}"

    @property
    def pod_cidrs(self) -> dict[int, str]:
        whole = {4: f"10.244.{self.index}.0/24", 6: f"fd00:10:244:{self.index}::/64"}
        return {version: whole[version] for version in self.addresses}

    @property
    def state_dir(self) -> Path:
        return self.directory / "lib"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def conflist(self) -> Path:
        return self.directory / "net.d" / "10-poplin.conflist"

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    # ---- the agent ----

    def command(self, *options: str) -> list[str]:
        """The command line of this node's agent."""
        own: dict[str, Any] = {
            "--node-name": self.node_name,
            "--kubeconfig" if self.kubeconfig else "--state": self.kubeconfig or self.state_file,
            "--state-dir": self.state_dir,
            "--run-dir": self.run_dir,
            "--cni-conf-dir": self.directory / "net.d",
            "--health-address": "",
        }
        given = [str(part) for pair in own.items() for part in pair]
        return self.inside(*self.wrapper, str(POPLIN), "agent", *given, *self.options, *options)

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    def start(self, *options: str) -> None:
        """Start the agent, and do not wait."""
        assert self.process is None, "the agent runs already"
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(*options), stderr=log, stdout=log)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold the agent's process still."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the agent as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """End the agent as systemd or kubelet would; its exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout=WAIT_S)
        self.process = None
        return status

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Ask the agent over its socket: (HTTP status, body); (0, "") where it does not answer."""
        with closing(UnixConnection(self.run_dir / "agent.sock")) as connection:
            try:
                connection.request(method, path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except OSError:
                return 0, ""

    def status(self) -> dict[str, Any]:
        """The agent's report, empty where it does not answer."""
        _, body = self.get("/status")
        return json.loads(body) if body else {}

    def wait_serving(self) -> dict[str, Any]:
        """Wait until the agent answers at all."""
        return self._wait(bool, "the agent answers")

    def wait_ready(self, peers: int | None = None) -> dict[str, Any]:
        """Wait until the node serves pods and, where it is given, reaches this number of peers."""

        def ready(report: dict[str, Any]) -> bool:
            if not report.get("ready"):
                return False
            return peers is None or report["network"]["routes"] == len(self.addresses) * (peers + 1)

        return self._wait(ready, "the node is ready")

    def wait_condition(self, name: str, *words: str, ok: bool) -> str:
        """Wait until a condition of the report is as given with all the words in its reason; the reason."""

        def found(report: dict[str, Any]) -> bool:
            return any(
                (c["name"], c["ok"]) == (name, ok) and all(word in c["reason"] for word in words)
                for c in report.get("conditions", ())
            )

        report = self._wait(found, f"{name} is {ok}, with {words}")
        return next(c["reason"] for c in report["conditions"] if c["name"] == name)

    def _wait(self, good: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while not good(report := self.status()):
            ended = self.process.poll() if self.process else "not started"
            assert ended is None, f"{self.node_name}: the agent ended ({ended})\n{self.log[-500:]}"
            assert time.monotonic() < deadline, f"{self.node_name}: {what}: {report}\n{self.log[-500:]}"
            time.sleep(0.02)
        return report

    def poplin(self, command: str, *options: str, **run_options: Any) -> Answer:
        """Run `poplin COMMAND` on the node."""
        line = self.inside(str(POPLIN), command, "--run-dir", str(self.run_dir), *options)
        return program(line, **run_options)

    def quiet(self) -> dict[str, Any]:
        """Wait until the agent has nothing to change any more; its report then."""

        def changed_nothing() -> dict[str, Any] | None:
            _, body = self.get("/audit", "POST")
            report = json.loads(body)
            return report if report["mended"] == 0 and report["ready"] else None

        found: dict[str, Any] = wait_for(changed_nothing, f"{self.node_name} comes to rest")
        return found

    # ---- the kernel ----

    def ip(self, *arguments: str) -> Any:
        return ip_json(self.name, *arguments)

    def ip_do(self, *lines: str) -> None:
        ip_batch(self.name, *lines)

    # ---- pods ----

    def config(self, **changes: Any) -> bytes:
        config = {
            "cniVersion": "1.0.0",
            "name": "poplin",
            "type": "poplin-cni",
            "socket": str(self.run_dir / "cni.sock"),
            "stateDir": str(self.state_dir),
        } | changes
        return json.dumps(config).encode()

    def cni(
        self,
        command: str,
        pod: Pod | None = None,
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        plugin: Path | None = None,
        **config: Any,
    ) -> Answer:
        """Run poplin-cni, or another plugin, as a runtime does."""
        environment = {"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}
        if pod is not None:
            environment |= {
                "CNI_CONTAINERID": pod.container_id,
                "CNI_NETNS": pod.path,
                "CNI_IFNAME": pod.ifname,
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.container_id}",
            }
        done = subprocess.run(
            [plugin or shim_path()],
            input=self.config(**config) if stdin is None else stdin,
            env=environment | dict(env or {}),
            capture_output=True,
            timeout=90,
            check=False,
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    def new_pod(self, ifname: str = "eth0") -> Pod:
        """A pod's namespace, with nothing in it yet."""
        name = f"{self.name}-{secrets.token_hex(3)}"
        make_namespace(name)
        pod = Pod(name, {}, container_id=name, ifname=ifname)
        self.pods.append(pod)
        return pod

    def add_pod(self, **config: Any) -> Pod:
        """A pod that is attached."""
        pod = self.new_pod()
        self.attach(pod, **config)
        return pod

    def attach(self, pod: Pod, **config: Any) -> None:
        answer = self.cni("ADD", pod, **config)
        assert answer.status == 0, f"{self.node_name}: ADD: {answer.output}\n{self.log[-4000:]}"
        pod.result = answer.json
        found = [ip_interface(one["address"]) for one in pod.result["ips"]]
        pod.addresses.update({one.version: str(one.ip) for one in found})

    def remove_pod(self, pod: Pod) -> None:
        """Detach a pod, and its namespace with it; its links go a moment after the answer."""
        answer = self.cni("DEL", pod)
        assert (answer.status, answer.output) == (0, "")
        self.drop(pod)
        if pod.result:
            wait_for(lambda: pod.host_link not in self.links(), f"the kernel destroys {pod.host_link}")

    def links(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link", "show")}

    def drop(self, pod: Pod) -> None:
        while pod.sockets:
            pod.sockets.pop().close()
        self.pods.remove(pod)
        run("ip", "netns", "del", pod.name)


class Cluster:
    """`nodes` nodes of the families given, whose agents share one file of Kubernetes objects."""

    def __init__(
        self,
        directory: Path,
        nodes: int,
        versions: Sequence[int],
        backend: Mapping[str, Any],
        conf: Mapping[str, Any],
        options: Sequence[str],
    ) -> None:
        self.directory = directory
        self.versions = tuple(versions)
        self.state_file = directory / "state.yaml"
        self._tag = f"pt{os.getpid()}-{secrets.token_hex(3)}"
        self.fabric = Host(f"{self._tag}-fab", {v: FABRIC[v] for v in versions})
        self.outside = Host(f"{self._tag}-out", {v: OUTSIDE[v] for v in versions})
        self.nodes = [
            Node(
                f"{self._tag}-n{i}",
                {v: {4: f"192.0.2.{i}", 6: f"2001:db8:2::{i}"}[v] for v in versions},
                index=i,
                directory=directory / f"n{i}",
                state_file=self.state_file,
                options=options,
            )
            for i in range(1, nodes + 1)
        ]
        self.conf = {
            "Network": NETWORK[4],
            "EnableIPv4": 4 in versions,
            "EnableIPv6": 6 in versions,
            "IPv6Network": NETWORK[6],
            "Backend": dict(backend),
            **conf,
        }

    @property
    def pods(self) -> list[Pod]:
        return [pod for node in self.nodes for pod in node.pods]

    @property
    def hosts(self) -> list[Host]:
        return [self.fabric, self.outside, *self.nodes, *self.pods]

    def build(self) -> None:
        """Make the namespaces and wires, and write the state file; no agent runs yet."""
        for host in (self.fabric, self.outside, *self.nodes):
            make_namespace(host.name, forwarding=host is self.fabric)
        ports = [f"link add p{n.index} type veth peer name eth0 netns {n.name}" for n in self.nodes]
        ups = [f"link set p{n.index} master br0 up" for n in self.nodes]
        ip_batch(
            self.fabric.name,
            "link add br0 type bridge",
            "link set br0 up",
            f"link add out type veth peer name eth0 netns {self.outside.name}",
            "link set out up",
            *ports,
            *ups,
        )
        far = {4: ("198.51.100.1", 24), 6: ("2001:db8:100::1", 64)}
        for version in self.versions:
            gateway, bits = far[version]
            address = f"{OUTSIDE[version]}/{bits}"
            ip_batch(self.fabric.name, f"addr add {gateway}/{bits} dev out {nodad(version)}")
            ip_batch(
                self.fabric.name,
                f"addr add {self.fabric.addresses[version]}/{bits} dev br0 {nodad(version)}",
            )
            ip_batch(self.outside.name, f"addr add {address} dev eth0 {nodad(version)}", "link set eth0 up")
            ip_batch(self.outside.name, f"-{version} route add default via {gateway}")
        for node in self.nodes:
            self._wire(node)
        self.write_state()

    def _wire(self, node: Node) -> None:
        ip_batch(node.name, "link set eth0 up")
        for version in self.versions:
            bits = {4: 24, 6: 64}[version]
            ip_batch(
                node.name,
                f"addr add {node.addresses[version]}/{bits} dev eth0 {nodad(version)}",
                f"-{version} route add default via {FABRIC[version]}",
            )
            # What a router of the site would have, for destinations that see pods' own addresses.
            to_pods = f"-{version} route add {node.pod_cidrs[version]} via {node.addresses[version]}"
            ip_batch(self.fabric.name, to_pods)

    def objects(self) -> list[dict[str, Any]]:
        """What the state file holds before any agent has written to it."""
        return [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "kube-flannel-cfg", "namespace": "kube-flannel"},
                "data": {"net-conf.json": json.dumps(self.conf)},
            },
            *(node_object(n.node_name, n.pod_cidrs, n.addresses) for n in self.nodes),
        ]

    def write_state(self, objects: Sequence[Mapping[str, Any]] | None = None) -> None:
        write_atomically(self.state_file, yaml.safe_dump_all(self.objects() if objects is None else objects))

    def read_state(self) -> list[dict[str, Any]]:
        return list(yaml.safe_load_all(self.state_file.read_text()))

    def start(self, *options: str) -> None:
        """Start all agents, at once, and wait until every node reaches every other."""
        for node in self.nodes:
            node.start(*options)
        for node in self.nodes:
            node.wait_ready(peers=len(self.nodes) - 1)

    def close_sockets(self) -> None:
        for host in self.hosts:
            while host.sockets:
                host.sockets.pop().close()

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        self.close_sockets()
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)

    def check_logs(self) -> None:
        """No agent met a defect of its own."""
        for node in self.nodes:
            assert "raceback" not in node.log, node.log[-8000:]
            assert "defect of ours" not in node.log, node.log[-8000:]


@contextmanager
def cluster(
    directory: Path,
    *,
    nodes: int = 3,
    versions: Sequence[int] = (4, 6),
    backend: Mapping[str, Any] = VXLAN,
    conf: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
    started: bool = True,
) -> Iterator[Cluster]:
    """A cluster, gone again on the way out. `conf` adds to net-conf.json, `options` to each agent's."""
    made = Cluster(directory, nodes, versions, backend, conf or {}, options)
    try:
        made.build()
        if started:
            made.start()
        yield made
        made.check_logs()
    finally:
        made.close()


def node_object(
    name: str,
    pod_cidrs: Mapping[int, str],
    addresses: Mapping[int, str],
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A Node as the cluster has it."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": dict(annotations or {})},
        "spec": {"podCIDR": next(iter(pod_cidrs.values()), ""), "podCIDRs": list(pod_cidrs.values())},
        "status": {"addresses": [{"type": "InternalIP", "address": a} for a in addresses.values()]},
    }


def program(line: Sequence[str], **options: Any) -> Answer:
    """Run a program to its end."""
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)
    return Answer(done.returncode, done.stdout, done.stderr)


def write_atomically(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.test")
    fresh.write_text(text)
    fresh.rename(path)


def make_namespace(name: str, *, forwarding: bool = False) -> None:
    run("ip", "netns", "add", name)
    ip_batch(name, "link set lo up")
    sysctls = ["net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0"]
    sysctls += ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]
    if forwarding:
        sysctls += ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
    run("ip", "netns", "exec", name, "sysctl", "-q", "-w", *sysctls)


def nodad(version: int) -> str:
    return "nodad" if version == 6 else ""


def ip_batch(namespace: str, *lines: str) -> None:
    for line in lines:
        run("ip", "-n", namespace, *line.split())


def ip_json(namespace: str, *arguments: str) -> Any:
    """What `ip -j` says; an empty list where there is nothing."""
    text = run("ip", "-n", namespace, "-d", "-j", *arguments)
    return json.loads(text or "[]")


# ---- probes: one process holds both ends, whose sockets were opened in their own namespaces ----


def probe_tcp(source: Host, target: Host, version: int, address: str = "") -> str:
    """Send a line and have it back; the source address that the target saw. Raises OSError."""
    address = address or target.addresses[version]
    with target.listen(version, 0, address) as listener, listener:
        port = listener.getsockname()[1]
        with source.connect(address, port) as near, listener.accept()[0] as far:
            near.settimeout(2)
            far.settimeout(2)
            near.sendall(b"there")
            assert far.recv(16) == b"there"
            far.sendall(b"and back")
            assert near.recv(16) == b"and back"
            return str(far.getpeername()[0])


def probe_udp(source: Host, target: Host, version: int, address: str = "") -> str:
    """Send a datagram and have an answer; the source address that the target saw. Raises OSError."""
    address = address or target.addresses[version]
    with target.udp(version, 0, address) as far, source.open(version, socket.SOCK_DGRAM) as near:
        near.settimeout(2)
        far.settimeout(2)
        near.sendto(b"there", (address, far.getsockname()[1]))
        data, peer = far.recvfrom(64)
        assert data == b"there"
        far.sendto(b"and back", peer)
        data, answered = near.recvfrom(64)
        assert (data, answered[0]) == (b"and back", address)
        return str(peer[0])


def probe_icmp(source: Host, address: str) -> None:
    """Have an echo request answered. Raises OSError."""
    version = ip_address(address).version
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.getprotobyname("ipv6-icmp")
    ident, sequence = secrets.randbelow(65536), 1
    kind, reply = (8, 0) if version == 4 else (128, 129)
    body = struct.pack("!BBHHH", kind, 0, 0, ident, sequence) + b"poplin"
    if version == 4:  # the kernel sums ICMPv6 itself (RFC 3542, 3.1)
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    deadline = time.monotonic() + 2
    with source.open(version, socket.SOCK_RAW, protocol) as raw:
        raw.sendto(body, (address, 0))
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                packet, _ = raw.recvfrom(2048)
                message = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
                if message[0] == reply and message[4:6] == struct.pack("!H", ident):
                    return
    raise TimeoutError(f"no echo reply from {address}")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def probe_pairs(hosts: Sequence[Host], versions: Sequence[int]) -> list[str]:
    """Try every ordered pair in every family and protocol; what failed, "" for nothing."""
    failed = []
    for source in hosts:
        for target in hosts:
            for version in versions:
                if source is target:
                    continue
                for name, attempt in (
                    ("TCP", lambda s=source, t=target, v=version: probe_tcp(s, t, v)),
                    ("UDP", lambda s=source, t=target, v=version: probe_udp(s, t, v)),
                    ("ICMP", lambda s=source, t=target, v=version: probe_icmp(s, t.addresses[v])),
                ):
                    try:
                        seen = attempt()
                    except OSError as error:
                        failed.append(f"{name} IPv{version} {source.name} -> {target.name}: {error}")
                    else:
                        if seen not in {None, source.addresses[version]}:
                            failed.append(
                                f"{name} IPv{version} {source.name} -> {target.name}: came from {seen}"
                            )
    return failed


# ---- what stands ----


_PASSING = r"packets \d+ bytes \d+|\n\s*elements = \{[^}]*expires[^}]*\}"
"""What packets change in a listing: counts, and sets that they fill."""


def kernel_state(host: Host) -> dict[str, Any]:
    """All that stands in a namespace and does not come and go by itself: everybody's, not ours alone."""
    name = host.name
    links = {link["ifname"]: _link(link) for link in ip_json(name, "link", "show")}
    addresses = {
        (link["ifname"], a["local"], a["prefixlen"], a["scope"])
        for link in ip_json(name, "addr", "show")
        for a in link["addr_info"]
    }
    routes = {
        tuple(sorted((key, str(value)) for key, value in route.items() if key not in {"flags", "pref"}))
        for family in ("-4", "-6")
        for route in ip_json(name, family, "route", "show", "table", "all")
        if route.get("table") not in {"local", "255"} and route["type"] != "multicast"
    }
    neighbours = {
        (n["dev"], n["dst"], n["lladdr"]) for n in ip_json(name, "neigh", "show", "nud", "permanent")
    }
    fdb = {
        (f["ifname"], f["mac"], f["dst"])
        for f in json.loads(run("bridge", "-n", name, "-j", "fdb", "show") or "[]")
        if "dst" in f
    }
    return {
        "links": links,
        "addresses": addresses,
        "routes": routes,
        "neighbours": neighbours,
        "fdb": fdb,
        "rules": re.sub(_PASSING, "", host.run("nft", "list", "ruleset")),
        "forwarding": host.run("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"),
    }


def _link(link: dict[str, Any]) -> tuple[Any, ...]:
    info = link.get("linkinfo", {})
    tunnel = info.get("info_data", {}) if info.get("info_kind") == "vxlan" else {}
    kept = ("id", "link", "local", "local6", "port", "learning")
    return (
        link["address"],
        link["mtu"],
        "UP" in link["flags"],
        link["group"],
        link.get("ifalias"),
        info.get("info_kind"),
        tuple((key, tunnel[key]) for key in kept if key in tunnel),
    )


# ---- things of others, which no agent may touch ----

STRANGERS = (
    "link add other0 type veth peer name other1",
    "link set other0 up",
    "link set other1 up alias mine",
    "link add other-br type bridge",
    "link add flannel.7 type vxlan id 7 dstport 4789 dev eth0",
    "addr add 203.0.113.1/24 dev other0",
    "route add 203.0.113.128/25 via 192.0.2.254 proto static",
    "-6 route add 2001:db8:77::/48 via 2001:db8:2::fe proto static",
    "route add 10.244.2.0/24 via 192.0.2.254 table 1234",
    "route add 10.244.99.0/24 via 192.0.2.254 proto bird",
    "neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev other0 nud permanent",
)
OTHERS_TABLES = """
add table ip others
add chain ip others forward { type filter hook forward priority 5; policy accept; }
add rule ip others forward counter accept
add table inet poplin-not
add set inet poplin-not s { type ipv4_addr; }
add element inet poplin-not s { 192.0.2.77 }
"""


def plant_strangers(node: Node) -> None:
    """Put links, addresses, routes, neighbours and tables of others on a node, some of them close to ours."""
    node.ip_do(*STRANGERS)
    node.run("nft", "-f", "-", stdin=OTHERS_TABLES)
