"""Stand-in for kube-apiserver: lists and watches as it does, and every way a server fails, on demand.

Objects live in a log of changes numbered by resourceVersion, so that a watch can begin anywhere that has
not been compacted away.
"""

import asyncio
import json
import ssl
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from poplin.datastore.access import Access, Identity
from poplin.datastore.backoff import Pace

FAST = Pace(
    page_size=3,
    watch_s=30,
    idle_s=5,
    initial_idle_s=2,
    settle_s=0.05,
    backoff_first_s=0.001,
    backoff_max_s=0.01,
    refused_retry_s=0.02,
)


def status_body(code: int, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message or reason.lower(),
    }


def pod(name: str, namespace: str = "default", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": labels},
        "spec": {"nodeName": "worker-1", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.5"}]},
    }


@dataclass
class Failure:
    """What to answer instead of the truth, once. `hang` answers nothing at all; `body` raw bytes."""

    status: int = 200
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    hang: bool = False


@dataclass
class Cut:
    """End a watch after this many events; `mid_line` sends half of the next one first."""

    after: int = 0
    mid_line: bool = False


class StandInApi:
    """One collection of pods (and whatever is written elsewhere, recorded in `requests`)."""

    def __init__(self) -> None:
        self.version = 100
        self._snapshots: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.log: list[tuple[int, str, dict[str, Any]]] = []
        self.compacted = 0  # a watch from below this version has expired
        self.watch_list = False
        self.tokens: set[str] | None = None
        self.failures: dict[str, deque[Failure]] = {"list": deque(), "watch": deque(), "write": deque()}
        self.always: dict[str, Failure] = {}
        self.cuts: deque[Cut] = deque()
        self.expired_continues = 0
        self.fragment_bytes = 0  # watches send their lines in pieces of this size; 0 for whole ones
        self.pages_between: list[Any] = []  # callables run before each further page
        self.requests: list[web.Request] = []
        self.peers: list[dict[str, Any] | None] = []  # the client certificate of each request
        self.bodies: list[tuple[str, str, str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.watches_open = 0
        self._changed = asyncio.Event()
        self._closing = False
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.scheme = "http"

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self.scheme = "https" if tls else "http"

    async def stop(self) -> None:
        self._closing = True
        self._changed.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def access(self, **changes: Any) -> Access:
        identity = Identity(token="secret")
        return Access(
            **({"server": f"{self.scheme}://127.0.0.1:{self.port}", "origin": "test", "identity": identity}
               | changes)
        )  # fmt: skip

    def put(self, obj: dict[str, Any]) -> None:
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        self.version += 1
        obj = json.loads(json.dumps(obj))
        obj["metadata"]["resourceVersion"] = str(self.version)
        kind = "MODIFIED" if key in self.objects else "ADDED"
        self.objects[key] = obj
        self._append(kind, obj)

    def delete(self, name: str, namespace: str = "default") -> None:
        self.version += 1
        obj = json.loads(json.dumps(self.objects.pop((namespace, name))))
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._append("DELETED", obj)

    def bookmark(self, *, end: bool = False) -> None:
        self._append("BOOKMARK", self._bookmark(end=end))

    def error_event(self, code: int, reason: str) -> None:
        """Every open watch, and none that begins later, gets this."""
        self._append("ERROR", status_body(code, reason))

    def raw(self, line: bytes) -> None:
        """Every open watch, and none that begins later, gets these bytes as a line."""
        self._append("RAW", {"line": line})

    def compact(self) -> None:
        """Forget the log: a watch from before now is answered 410."""
        self.compacted = self.version
        self.log = []  # open watches see that theirs is another, and end
        self.wake()

    def _bookmark(self, *, end: bool) -> dict[str, Any]:
        metadata: dict[str, Any] = {"resourceVersion": str(self.version), "creationTimestamp": None}
        if end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {"containers": None}}

    def _append(self, kind: str, obj: dict[str, Any]) -> None:
        self.log.append((self.version, kind, obj))
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again: watches at the log, `until` at its condition."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when the condition, on what the server has seen and has open, is true."""
        async with asyncio.timeout(10):
            while not condition():
                await self._changed.wait()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.peers.append(request.transport.get_extra_info("peercert"))
        what = "write" if request.method != "GET" else "watch" if "watch" in request.query else "list"
        self.counts[what] += 1
        self.wake()
        if self.tokens is not None:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in self.tokens:
                self.counts["unauthorized"] += 1
                return web.json_response(status_body(401, "Unauthorized"), status=401)
        waiting = self.failures[what]
        failure = waiting.popleft() if waiting else self.always.get(what)
        if failure is not None:
            self.counts[f"failed {what}"] += 1
            return await self._fail(failure)
        if what == "write":
            body = await request.json()
            content_type = request.headers["Content-Type"]
            self.bodies.append((request.method, request.path, content_type, body))
            return web.json_response(body)
        if what == "watch":
            return await self._watch(request)
        return await self._list(request)

    async def _fail(self, failure: Failure) -> web.StreamResponse:
        if failure.hang:
            while not self._closing:
                await self._changed.wait()
        if failure.body is not None:
            return web.Response(status=failure.status, body=failure.body, headers=failure.headers)
        return web.json_response(
            status_body(failure.status, failure.reason), status=failure.status, headers=failure.headers
        )

    def _selected(self, request: web.Request) -> list[dict[str, Any]]:
        parts = request.path.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else None
        selector = request.query.get("fieldSelector", "")
        node = selector.removeprefix("spec.nodeName=") if selector else None
        return [
            obj
            for key, obj in sorted(self.objects.items())
            if (namespace is None or key[0] == namespace)
            and (node is None or obj["spec"].get("nodeName") == node)
        ]

    async def _list(self, request: web.Request) -> web.StreamResponse:
        limit = int(request.query.get("limit", "0")) or 1 << 30
        token = request.query.get("continue", "")
        if token:
            if self.expired_continues:
                self.expired_continues -= 1
                return web.json_response(status_body(410, "Expired"), status=410)
            for action in self.pages_between:
                action()
            snapshot = self._snapshots[token]
        else:
            snapshot = (self.version, self._selected(request))
        version, objects = snapshot
        page, rest = objects[:limit], objects[limit:]
        metadata = {"resourceVersion": str(version)}
        if rest:
            token = f"token-{len(self._snapshots)}"
            self._snapshots[token] = (version, rest)
            metadata["continue"] = token
        items = [{k: v for k, v in obj.items() if k not in {"apiVersion", "kind"}} for obj in page]
        return web.json_response(
            {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items or None}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        initial = request.query.get("sendInitialEvents") == "true"
        if initial and not self.watch_list:
            return web.json_response(
                status_body(422, "Invalid", "sendInitialEvents is forbidden for watch"), status=422
            )
        response = web.StreamResponse()
        await response.prepare(request)
        self.watches_open += 1
        self.wake()
        try:
            with suppress(ConnectionError):  # the client may leave at any moment
                await self._write_events(request, response, initial=initial)
        finally:
            self.watches_open -= 1
            self.wake()
        return response

    async def _write_events(
        self, request: web.Request, response: web.StreamResponse, *, initial: bool
    ) -> None:
        cut = self.cuts.popleft() if self.cuts else None
        sent = 0

        async def send(kind: str, obj: dict[str, Any]) -> bool:
            nonlocal sent
            line = obj["line"] if kind == "RAW" else json.dumps({"type": kind, "object": obj}).encode()
            if cut is not None and sent >= cut.after:
                if cut.mid_line:
                    await response.write(line[: len(line) // 2])
                    request.transport.abort() if sent % 2 else request.transport.close()
                return False
            sent += 1
            size = self.fragment_bytes or len(line) + 1
            for start in range(0, len(line) + 1, size):
                await response.write((line + b"\n")[start : start + size])
                await asyncio.sleep(0)
            self.counts["sent"] += 1
            self.wake()
            return kind != "ERROR"

        if initial:
            position, at = self.version, len(self.log)
            snapshot = self._selected(request)
            for obj in snapshot:
                if not await send("ADDED", obj):
                    return
            bookmark = self._bookmark(end=True)
            bookmark["metadata"]["resourceVersion"] = str(position)
            if not await send("BOOKMARK", bookmark):
                return
        else:
            position = int(request.query["resourceVersion"])
            if position < self.compacted:
                await send("ERROR", status_body(410, "Expired", "too old resource version"))
                return
            at = len(self.log)
            for version, kind, obj in self.log[:at]:
                if (
                    version > position
                    and kind in {"ADDED", "MODIFIED", "DELETED"}
                    and not await send(kind, obj)
                ):
                    return
        log = self.log
        while not self._closing and log is self.log:
            while at < len(log):
                _, kind, obj = log[at]
                at += 1
                if not await send(kind, obj):
                    return
            changed = self._changed
            if at == len(log):
                await changed.wait()
