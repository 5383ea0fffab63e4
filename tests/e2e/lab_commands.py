"""`poplin lab` as a user runs it, and the API of the lab it made."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POPLIN = str(Path(sys.executable).parent / "poplin")
PYTHON = str(Path(sys.executable).resolve())
"""What a .venv stands on: a checkout may be under /tmp, which a container has for itself."""
NETNS = Path("/run/netns")
LABS = Path("/run/poplin/labs")
WAIT_S = 30


def unique_name() -> str:
    """A name for a lab that no other test has."""
    return f"t{os.getpid()}-{secrets.token_hex(3)}"


def poplin(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [POPLIN, "lab", *arguments], capture_output=True, text=True, timeout=110, check=False
    )
    assert not check or done.returncode == 0, f"poplin lab {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done


def traces(name: str) -> list[str]:
    """What is left of a lab: namespaces, files, processes."""
    left = [path.name for path in NETNS.glob(f"poplin-{name}--*")] if NETNS.is_dir() else []
    left += [str(path) for path in LABS.glob(f"{name}*")] + [str(path) for path in LABS.glob(f".{name}*")]
    return left


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "State:\tZ" not in _status(pid)]


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true value of `holds`."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return value


def container(**fields: Any) -> dict[str, Any]:
    return {"name": "main", "image": "example.org/app:1", **fields}


def shell(script: str, **fields: Any) -> dict[str, Any]:
    return container(command=["sh", "-c", script], **fields)


class Lab:
    """A lab that stands, as kubectl's stand-in sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kubeconfig = poplin("kubeconfig", "--name", name).stdout.strip()

    def status(self) -> dict[str, Any]:
        return json.loads(poplin("status", "--name", self.name, "-o", "json", check=False).stdout)

    def pid(self, process: str) -> int:
        return next(p["pid"] for p in self.status()["processes"] if p["name"] == process)

    def pids(self) -> list[int]:
        return [process["pid"] for process in self.status()["processes"]]

    def kubectl(self, *arguments: str, given: str = "", check: bool = True) -> str:
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "HOME": "/nonexistent"},
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def create(self, name: str, *containers: dict[str, Any], node: str = "node-1", **spec: Any) -> None:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "containers": list(containers),
                **spec,
            },
        }
        self.kubectl("create", "--validate=false", "-f", "-", given=json.dumps(pod))

    def pod(self, name: str) -> dict[str, Any] | None:
        text = self.kubectl("get", "pod", name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def wait_for(self, name: str, holds: Callable[[dict[str, Any]], Any], what: str) -> Any:
        """The first true value of `holds` for the pod."""
        seen: list[Any] = [None]

        def look() -> Any:
            seen[0] = self.pod(name)
            return seen[0] is not None and holds(seen[0])

        try:
            return wait_until(look, f"{name}: {what}")
        except AssertionError as error:
            log = (LABS / self.name / "logs" / "server.log").read_text()[-2000:]
            raise AssertionError(f"{error}: {seen[0] and seen[0].get('status')}\n{log}") from None

    def wait_ready(self, name: str) -> list[str]:
        """The pod's addresses, once it is ready."""
        self.wait_for(name, lambda pod: condition(pod, "Ready") == "True", "ready")
        pod = self.pod(name)
        assert pod is not None
        return [one["ip"] for one in pod["status"]["podIPs"]]

    def execute(self, pod: str, *command: str, check: bool = True) -> str:
        return poplin("exec", "--name", self.name, pod, "--", *command, check=check).stdout

    def events(self, name: str) -> list[str]:
        text = self.kubectl("get", "events", f"--field-selector=involvedObject.name={name}", "-o", "json")
        return [f"{event['reason']}: {event['message']}" for event in json.loads(text)["items"]]


def condition(pod: dict[str, Any], kind: str) -> str:
    found = [one["status"] for one in pod.get("status", {}).get("conditions", ()) if one["type"] == kind]
    return found[0] if found else ""


def status_of(pod: dict[str, Any], name: str = "main") -> dict[str, Any]:
    groups = ("initContainerStatuses", "containerStatuses")
    statuses = [one for group in groups for one in pod.get("status", {}).get(group, ())]
    return next((one for one in statuses if one["name"] == name), {"state": {}, "restartCount": -1})
