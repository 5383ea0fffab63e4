"""A file of Kubernetes objects as a source: for an agent without a cluster, and for its tests.

The file is YAML of many documents, or JSON of one List. Replace it by a rename: a file written in place
may be read half-written. Several agents may share one and publish to each other through it.

Changes are found by looking at the file's status every 100 ms. That costs two microseconds a look, sees a
rename, works on every file system and in every mount, and needs no descriptor that follows the directory;
inotify would be sooner by 50 ms and sees nothing of another host's writes.
"""

import asyncio
import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from poplin.datastore.core import NODES, PODS
from poplin.datastore.documents import dump_documents, flatten, is_json, load_documents
from poplin.datastore.node_patch import merge_annotations, merge_node, node_patch
from poplin.datastore.parse import InvalidObjectError, convert_object
from poplin.datastore.resource import ClusterObject, Resource
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Unavailable, WatchEvent
from poplin.model.cluster import NodeCondition, ObjectReference
from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError

log = logging.getLogger(__name__)

T = TypeVar("T", bound=ClusterObject)
Key = tuple[str, str]

LOCK_WAIT_S: Final = 5
RACY_NS: Final = 50_000_000
"""A file changed this lately may change again without its times showing it: they move by the kernel's tick."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The file's objects, or why it has none."""

    objects: tuple[dict[str, Any], ...] = ()
    error: PoplinError | None = None


class FileSource:
    """A `Source` over the file at `path`, looked at every `poll_s`. It need not exist yet."""

    def __init__(
        self, path: Path, *, poll_s: float = 0.1, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._path = path
        self._poll_s = poll_s
        self._now = now
        self._snapshot = Snapshot()
        self._origin: bytes | str | None = None  # what the snapshot was made of: content, or a failure
        self._signature: tuple[int, ...] | None = None  # of the file's status then; None to read again

    async def watch(
        self, resource: Resource[T], *, namespace: str | None = None, field_selector: str | None = None
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """See `Source.watch`. Content that cannot be read leaves what was told before standing."""
        known: dict[Key, T | InvalidObjectError] | None = None
        seen: Snapshot | None = None
        while True:
            snapshot = self._look()
            if snapshot is not seen:
                seen = snapshot
                if snapshot.error is not None:
                    known = None
                    yield Unavailable(snapshot.error)
                else:
                    found = select(snapshot.objects, resource, namespace, field_selector)
                    for event in changes(known, found):
                        yield event
                    known = found
            await asyncio.sleep(self._poll_s)

    async def get(self, resource: Resource[T], name: str, *, namespace: str = "") -> T | None:
        """See `Source.get`."""
        snapshot = self._look()
        if snapshot.error is not None:
            raise snapshot.error
        value = select(snapshot.objects, resource, None, None).get((namespace, name))
        if isinstance(value, InvalidObjectError):
            raise value
        return value

    def end_stranded(self) -> None:
        """See `Source.end_stranded`: a file is asked from no address."""

    async def patch_node(
        self, name: str, annotations: Mapping[str, str | None], conditions: Sequence[NodeCondition] = ()
    ) -> None:
        """See `Source.patch_node`: the file is written anew, without its comments, where this changes it."""
        await asyncio.to_thread(self._patch_node, name, annotations, conditions)

    async def annotate_pod(
        self, namespace: str, name: str, annotations: Mapping[str, str], *, uid: str = ""
    ) -> None:
        """See `Source.annotate_pod`."""

        def annotate(document: dict[str, Any]) -> bool:
            if uid and document["metadata"].get("uid") not in {None, uid}:
                return False
            return merge_annotations(document["metadata"], annotations)

        await asyncio.to_thread(self._rewrite, PODS.kind, namespace, name, annotate)

    async def create_event(
        self, about: ObjectReference, *, reason: str, message: str, warning: bool = False
    ) -> None:
        """See `Source.create_event`: nobody runs `kubectl describe` on a file, so it goes to the log."""
        log.log(
            logging.WARNING if warning else logging.INFO,
            "%s %s: %s: %s",
            about.kind,
            f"{about.namespace}/{about.name}" if about.namespace else about.name,
            reason,
            message,
        )

    def _look(self) -> Snapshot:
        """The file as it is; the same value for as long as its content stays the same."""
        origin: bytes | str
        try:
            status = self._path.stat()
            signature = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if signature == self._signature:
                return self._snapshot
            settled = time.time_ns() - status.st_mtime_ns > RACY_NS
            self._signature = signature if settled else None
            origin = self._path.read_bytes()
        except OSError as error:
            self._signature = None
            origin = error.strerror or str(error)
        if origin != self._origin:
            self._origin = origin
            self._snapshot = self._read(origin)
        return self._snapshot

    def _read(self, origin: bytes | str) -> Snapshot:
        if isinstance(origin, str):
            return Snapshot(
                error=TemporaryError(
                    origin, where=str(self._path), remedy="write the file, or name one that can be read"
                )
            )
        try:
            objects = flatten(load_documents(origin, str(self._path)), str(self._path))
            refuse_twins(objects, str(self._path))
        except InvalidInputError as error:
            return Snapshot(error=error)
        return Snapshot(objects=tuple(objects))

    def _patch_node(
        self, name: str, annotations: Mapping[str, str | None], conditions: Sequence[NodeCondition]
    ) -> None:
        def merge(document: dict[str, Any]) -> bool:
            node = convert_object(NODES, document).value
            if isinstance(node, InvalidObjectError):
                raise node
            return merge_node(document, node_patch(annotations, conditions, self._now()))

        if not self._rewrite(NODES.kind, "", name, merge):
            raise TemporaryError(
                f"no Node is named {name}",
                where=str(self._path),
                remedy="add the Node, or correct the agent's",
            )

    def _rewrite(
        self, kind: str, namespace: str, name: str, change: Callable[[dict[str, Any]], bool]
    ) -> bool:
        """Write the file anew where `change` changes the object. Tell whether there is such an object."""
        with self._locked():
            try:
                content = self._path.read_bytes()
            except OSError as error:
                raise TemporaryError(error.strerror or str(error), where=str(self._path)) from None
            documents = load_documents(content, str(self._path))
            for document in flatten(documents, str(self._path)):
                metadata = document["metadata"]
                own = (metadata.get("namespace") or "default") if namespace else ""
                if (document["kind"], own, metadata["name"]) == (kind, namespace, name):
                    if change(document):
                        replace_file(self._path, dump_documents(documents, as_json=is_json(content)))
                    return True
        return False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock that all writers of the file take: on a file beside it, since it is itself replaced."""
        with self._path.with_name(f".{self._path.name}.lock").open("ab") as lock:
            deadline = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TemporaryError(
                            f"locked for more than {LOCK_WAIT_S} s",
                            where=lock.name,
                            remedy="see which process holds it (lslocks)",
                        ) from None
                    time.sleep(0.005)
            yield


def select(
    objects: Sequence[dict[str, Any]],
    resource: Resource[T],
    namespace: str | None,
    field_selector: str | None,
) -> dict[Key, T | InvalidObjectError]:
    """The objects of one resource by (namespace, name); without a namespace of its own an object is in "default"."""
    found: dict[Key, T | InvalidObjectError] = {}
    for document in objects:
        if (document["apiVersion"], document["kind"]) != (resource.api_version, resource.kind):
            continue
        own = (document["metadata"].get("namespace") or "default") if resource.namespaced else ""
        if namespace not in {None, own} or not matches_fields(document, field_selector or ""):
            continue
        placed = document | {"metadata": document["metadata"] | {"namespace": own}}
        found[own, document["metadata"]["name"]] = convert_object(resource, placed).value
    return found


def changes(
    known: Mapping[Key, T | InvalidObjectError] | None, found: Mapping[Key, T | InvalidObjectError]
) -> Iterator[WatchEvent[T]]:
    """What turns one view into the next; from None, the whole of it."""
    if known is None:
        good = tuple(value for value in found.values() if not isinstance(value, InvalidObjectError))
        bad = tuple(value for value in found.values() if isinstance(value, InvalidObjectError))
        yield Replaced(good, bad)
        return
    for namespace, name in known.keys() - found.keys():
        yield Deleted(namespace, name)
    for key, value in found.items():
        before = known.get(key)
        if isinstance(value, InvalidObjectError):
            if str(before) != str(value):
                yield Rejected(value)
        elif before != value:
            yield Put(value)


def matches_fields(document: Mapping[str, Any], selector: str) -> bool:
    """Whether a document has the fields that a selector asks for; an absent field is "".

    Source: Kubernetes documentation, "Field Selectors". Any path may be asked for here.
    """
    for term in filter(None, selector.split(",")):
        path, operator, wanted = re.split(r"(!=|==|=)", term, maxsplit=1)
        value: Any = document
        for part in path.strip().split("."):
            value = value.get(part) if isinstance(value, dict) else None
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        if (text == wanted.strip()) != (operator != "!="):
            return False
    return True


def refuse_twins(objects: Sequence[dict[str, Any]], where: str) -> None:
    """Raise InvalidInputError where an object stands twice: no one could say which is meant."""
    seen: set[tuple[str, ...]] = set()
    for document in objects:
        metadata = document["metadata"]
        key = (document["apiVersion"], document["kind"], metadata.get("namespace") or "", metadata["name"])
        if key in seen:
            raise InvalidInputError(
                f"{document['kind']} {metadata['name']} stands twice", where=where, remedy="remove one"
            )
        seen.add(key)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by a rename: who reads sees the old or the new, also after a crash. The mode is kept."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
