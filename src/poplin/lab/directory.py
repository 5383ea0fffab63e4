"""Where the things of a lab are: one directory for each lab, and names of network namespaces made from its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poplin.dataplane.netns import NAMED

LABS: Final = Path("/run/poplin/labs")


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    """One node's files: what /var/lib/poplin, /run/poplin and /etc/cni/net.d are on a real one."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def cni_conf(self) -> Path:
        return self.root / "net.d"

    @property
    def cni_bin(self) -> Path:
        return self.root / "bin"


@dataclass(frozen=True, slots=True)
class Directory:
    """A lab's files. All of it is root's alone."""

    name: str

    @property
    def root(self) -> Path:
        return LABS / self.name

    @property
    def lock(self) -> Path:
        """Held while a lab is made or unmade; beside the lab's directory, which comes and goes under it."""
        return LABS / f".{self.name}.lock"

    @property
    def settings(self) -> Path:
        return self.root / "lab.json"

    @property
    def net_conf(self) -> Path:
        return self.root / "net-conf.json"

    @property
    def kubeconfig(self) -> Path:
        """The embedded server's, for people: it names 127.0.0.1."""
        return self.root / "kubeconfig"

    @property
    def fabric_kubeconfig(self) -> Path:
        """For agents: it names the gateway of the fabric."""
        return self.root / "kubeconfig.fabric"

    @property
    def api(self) -> Path:
        return self.root / "api"

    @property
    def init_pid(self) -> Path:
        """Identity of the lab's init."""
        return self.root / "init.pid"

    @property
    def socket(self) -> Path:
        """Where init listens."""
        return self.root / "init.sock"

    @property
    def pods(self) -> Path:
        return self.root / "pods"

    @property
    def sandboxes(self) -> Path:
        """One file for each attached pod, as a runtime keeps them."""
        return self.root / "sandboxes"

    @property
    def scratch(self) -> Path:
        """An empty directory; each container mounts its own file system over it, in its own mount namespace."""
        return self.root / "scratch"

    def log(self, process: str) -> Path:
        return self.root / "logs" / f"{process}.log"

    def node(self, node: str) -> NodeDirectory:
        return NodeDirectory(self.root / "nodes" / node)

    @property
    def prefix(self) -> str:
        """What the name of every network namespace of the lab begins with.

        The name of a lab may begin as another's ("a", "a-b"), but none has a double hyphen.
        """
        return f"poplin-{self.name}--"

    def fabric_namespace(self) -> str:
        return f"{self.prefix}fabric"

    def node_namespace(self, node: str) -> str:
        return f"{self.prefix}{node}"

    def pod_namespace(self, uid: str) -> str:
        return f"{self.prefix}pod-{uid}"

    def namespaces(self) -> list[str]:
        """The lab's network namespaces that stand now."""
        if not NAMED.is_dir():
            return []
        return sorted(path.name for path in NAMED.iterdir() if path.name.startswith(self.prefix))


def list_labs() -> list[str]:
    """Names of the labs that have a directory."""
    if not LABS.is_dir():
        return []
    return sorted(path.name for path in LABS.iterdir() if path.is_dir())
