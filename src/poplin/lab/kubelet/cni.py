"""The runtime's side of CNI: a network configuration list carried out plugin by plugin, as libcni does it.

Source: CNI specification 1.1.0, section 3 "Execution of Network Configurations", and CONVENTIONS.md.
Everything here blocks, and runs in threads.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from poplin.model.errors import PoplinError, TemporaryError

Json = dict[str, Any]
PLUGIN_TIMEOUT_S: Final = 90
IFNAME: Final = "eth0"


@dataclass(frozen=True, slots=True)
class Attachment:
    """What CNI is told of a pod. `capabilities` are runtimeConfig's entries by the capability that takes them."""

    container_id: str
    netns: str
    namespace: str
    name: str
    uid: str
    capabilities: Mapping[str, Any]


def find_conflist(directory: Path) -> Path | None:
    """The configuration that a runtime would use: the first by name, None where there is none."""
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix in {".conflist", ".conf", ".json"})
    except FileNotFoundError:
        return None
    return next(iter(names), None)


def read_conflist(path: Path) -> Json:
    """A list; a single plugin's configuration counts as a list of one. Raises TemporaryError."""
    try:
        conflist: Json = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise TemporaryError(f"cannot read: {error}", where=str(path)) from error
    if "plugins" not in conflist:
        conflist = {key: conflist.get(key, "") for key in ("cniVersion", "name")} | {"plugins": [conflist]}
    return conflist


def add(conflist: Json, attachment: Attachment, bin_dirs: Sequence[Path]) -> Json:
    """Attach; the result of the last plugin. What is half made is deleted again. Raises PoplinError."""
    result: Json | None = None
    try:
        for plugin in conflist["plugins"]:
            config = make_config(conflist, plugin, attachment, result)
            result = msgspec.json.decode(_execute("ADD", plugin["type"], config, attachment, bin_dirs))
    except PoplinError:
        delete(conflist, attachment, bin_dirs, result)
        raise
    return result or {}


def delete(
    conflist: Json, attachment: Attachment, bin_dirs: Sequence[Path], result: Json | None
) -> list[PoplinError]:
    """Detach, the last plugin first, going on past failures, which are returned."""
    failures = []
    for plugin in reversed(conflist["plugins"]):
        config = make_config(conflist, plugin, attachment, result)
        try:
            _execute("DEL", plugin["type"], config, attachment, bin_dirs)
        except PoplinError as error:
            failures.append(error)
    return failures


def make_variables(command: str, attachment: Attachment, bin_dirs: Sequence[Path]) -> dict[str, str]:
    """What a plugin finds in its environment (specification, "Parameters")."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": ":".join(map(str, bin_dirs)),
        "CNI_ARGS": (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={attachment.namespace};K8S_POD_NAME={attachment.name};"
            f"K8S_POD_INFRA_CONTAINER_ID={attachment.container_id};K8S_POD_UID={attachment.uid}"
        ),
    }


def make_config(conflist: Json, plugin: Json, attachment: Attachment, previous: Json | None) -> Json:
    """What a plugin reads from its standard input: its own part of the list, and what the list adds to it."""
    config = {**plugin, "cniVersion": conflist.get("cniVersion", ""), "name": conflist.get("name", "")}
    wanted = {
        capability: attachment.capabilities[capability]
        for capability, on in (config.pop("capabilities", None) or {}).items()
        if on and capability in attachment.capabilities
    }
    if wanted:
        config["runtimeConfig"] = wanted
    if previous is not None:
        config["prevResult"] = previous
    return config


def _execute(
    command: str, kind: str, config: Json, attachment: Attachment, bin_dirs: Sequence[Path]
) -> bytes:
    program = next((path for d in bin_dirs if os.access(path := d / kind, os.X_OK)), None)
    if program is None:
        places = ", ".join(map(str, bin_dirs))
        raise TemporaryError(f"CNI plugin {kind} not found", where=places, remedy="install it there")
    environment = {"PATH": os.environ.get("PATH", ""), **make_variables(command, attachment, bin_dirs)}
    try:
        done = subprocess.run(
            [program],
            input=msgspec.json.encode(config),
            env=environment,
            capture_output=True,
            timeout=PLUGIN_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TemporaryError(str(error), where=f"CNI plugin {kind}, {command}") from error
    if done.returncode != 0:
        raise TemporaryError(_explain(done.stdout, done.stderr), where=f"CNI plugin {kind}, {command}")
    return done.stdout


def _explain(output: bytes, errors: bytes) -> str:
    """The error that a plugin printed (specification, "Error")."""
    try:
        error = msgspec.json.decode(output, type=dict[str, Any])
        text = f"{error.get('msg', '')}: {error.get('details', '')}".strip(": ")
    except msgspec.DecodeError:
        text = ""
    return text or (output + errors).decode(errors="replace").strip() or "failed without a word"
