"""A pod's volumes: what the API says of them -> files on the node, and where each container has them.

Supported: emptyDir, hostPath, configMap, secret, downwardAPI and projected, with the service account's token.
Source: API reference, "Volume"; Kubernetes documentation, "Projected Volumes".
"""

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from poplin.lab.container import Binding
from poplin.lab.controllers.object import Json
from poplin.lab.kubelet.command import expand, read_field
from poplin.lab.kubelet.document import Pod
from poplin.model.errors import InvalidInputError, TemporaryError
from poplin.model.kernel import IPAddress

TOKEN_S: Final = 3600
"""A token's life where the volume does not say one."""

Read = Callable[[str, str], Awaitable[Mapping[str, bytes] | None]]
"""("configmaps" or "secrets", name) -> its decoded data, None where there is no such object."""
IssueToken = Callable[[str, int], Awaitable[str]]
"""(audience, seconds) -> a token of the pod's service account; audience "" is the API server."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a volume; its path is relative and may have directories."""

    content: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Volumes:
    """The volumes of one pod, below `directory`, which is the pod's alone."""

    pod: Pod
    directory: Path
    addresses: Sequence[IPAddress]
    host_addresses: Sequence[IPAddress]

    async def prepare(self, read: Read, issue_token: IssueToken) -> None:
        """Make or refresh all of them.

        Raises TemporaryError for an object that is not there (yet), InvalidInputError for a volume that a lab
        cannot have.
        """
        for volume in self.pod.spec.get("volumes") or ():
            match volume:
                case {"hostPath": dict(source)}:
                    _prepare_host_path(Path(source["path"]), str(source.get("type") or ""))
                case {"emptyDir": _}:
                    self._path(volume).mkdir(parents=True, exist_ok=True)
                    self._path(volume).chmod(0o777)
                case _:
                    files = {path: f async for path, f in self._files(volume, read, issue_token)}
                    write_atomically(self._path(volume), files)

    def bindings(self, container: Json, environment: Mapping[str, str]) -> list[Binding]:
        """What a container mounts. Raises InvalidInputError for a volume that the pod has not."""
        volumes = {volume["name"]: volume for volume in self.pod.spec.get("volumes") or ()}
        found = []
        for mount in container.get("volumeMounts") or ():
            volume = volumes.get(mount["name"])
            if volume is None:
                raise InvalidInputError("the pod has no such volume", where=f"volumeMount {mount['name']}")
            source = self._path(volume)
            writable = bool({"emptyDir", "hostPath"} & volume.keys())
            below = mount.get("subPath") or expand(mount.get("subPathExpr") or "", environment)
            if below:
                source = _below(source, below)
                if writable and not source.exists():
                    source.mkdir(parents=True)
            read_only = bool(mount.get("readOnly")) or not writable
            found.append(Binding(str(source), mount["mountPath"], read_only))
        return found

    def _path(self, volume: Json) -> Path:
        if "hostPath" in volume:
            return Path(str(volume["hostPath"]["path"]))
        return self.directory / str(volume["name"])

    async def _files(self, volume: Json, read: Read, issue: IssueToken) -> AsyncIterator[tuple[str, File]]:
        kind = next((key for key in volume if key != "name"), "")
        source = volume.get(kind) or {}
        mode = int(source.get("defaultMode") or 0o644)
        for one in source.get("sources") or () if kind == "projected" else ({kind: source},):
            for key, part in one.items():
                async for item in self._project(key, part, mode, read, issue):
                    yield item

    async def _project(
        self, kind: str, source: Json, mode: int, read: Read, issue: IssueToken
    ) -> AsyncIterator[tuple[str, File]]:
        match kind:
            case "configMap" | "secret":
                plural = f"{kind.lower()}s"
                name = source.get("name") or source.get("secretName") or ""
                data = await read(plural, name)
                if data is None and not source.get("optional"):
                    raise TemporaryError(f'{plural} "{name}" not found')
                for item in _choose(data or {}, source, mode, f"{plural} {name}"):
                    yield item
            case "downwardAPI":
                for item in source.get("items") or ():
                    yield item["path"], File(self._read_field(item), int(item.get("mode") or mode))
            case "serviceAccountToken":
                token = await issue(
                    source.get("audience") or "", int(source.get("expirationSeconds") or TOKEN_S)
                )
                yield source["path"], File(token.encode(), mode)
            case _:
                raise InvalidInputError(
                    f"volumes of type {kind or 'none'} are not to be had in a lab",
                    remedy="use emptyDir, hostPath, configMap, secret, downwardAPI or projected",
                )

    def _read_field(self, item: Json) -> bytes:
        if "fieldRef" not in item:
            raise InvalidInputError(
                "only fieldRef can be had in a volume of a lab", where=f"file {item['path']}"
            )
        path = item["fieldRef"]["fieldPath"]
        if path in {"metadata.labels", "metadata.annotations"}:
            values = self.pod.labels if path.endswith("labels") else self.pod.annotations
            lines = [f"{key}={msgspec.json.encode(value).decode()}" for key, value in sorted(values.items())]
            return "\n".join(lines).encode()
        return read_field(path, self.pod, list(self.addresses), list(self.host_addresses)).encode()


def _choose(data: Mapping[str, bytes], source: Json, mode: int, where: str) -> Iterator[tuple[str, File]]:
    """All keys as files, or those that `items` names. Raises TemporaryError for one that is not there."""
    items = source.get("items")
    if items is None:
        yield from ((key, File(content, mode)) for key, content in data.items())
        return
    for item in items:
        if item["key"] in data:
            yield item["path"], File(data[item["key"]], int(item.get("mode") or mode))
        elif not source.get("optional"):
            raise TemporaryError(f"references non-existent key: {item['key']}", where=where)


def write_atomically(directory: Path, files: Mapping[str, File]) -> None:
    """Let a directory hold these files and no others, all of them changing at once.

    The files are in a hidden directory to which `..data` points; each name in sight is a link through it, so
    that renaming one link changes all (as kubelet does it; programs watch for just that).
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "..data"
    if data.exists() and read_files(data) == dict(files):
        return
    fresh = Path(tempfile.mkdtemp(dir=directory, prefix=".."))
    fresh.chmod(0o755)
    for path, file in files.items():
        target = _below(fresh, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
        target.chmod(file.mode)
    old = data.resolve() if data.is_symlink() else None
    link = directory / "..data_new"
    link.symlink_to(fresh.name)
    link.rename(data)
    names = {Path(path).parts[0] for path in files}
    shown = {path.name for path in directory.iterdir() if not path.name.startswith("..")}
    for name in names - shown:
        (directory / name).symlink_to(f"..data/{name}")
    for name in shown - names:
        (directory / name).unlink()
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def read_files(directory: Path) -> dict[str, File]:
    """All files below a directory by relative path."""
    return {
        str(path.relative_to(directory)): File(path.read_bytes(), path.stat().st_mode & 0o7777)
        for path in directory.rglob("*")
        if path.is_file()
    }


def _below(directory: Path, path: str) -> Path:
    """A path that stays below the directory. Raises InvalidInputError."""
    if path.startswith("/") or ".." in Path(path).parts:
        raise InvalidInputError("leads out of the volume", where=f"path {path!r}")
    return directory / path


def _prepare_host_path(path: Path, kind: str) -> None:
    """Make what the type asks to be made. Raises TemporaryError for what is not there."""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(exist_ok=True)
    elif kind and not path.exists():
        raise TemporaryError("is not there", where=f"hostPath {path}")
