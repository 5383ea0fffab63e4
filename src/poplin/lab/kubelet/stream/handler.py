"""The API server's requests that only a kubelet can answer: pods/log, exec, attach and portforward."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from aiohttp import WSMsgType, web

from poplin.apiserver import status
from poplin.apiserver.collection import Object
from poplin.apiserver.request import Call
from poplin.apiserver.server import ApiServer
from poplin.apiserver.status import StatusError
from poplin.dataplane.netns import open_netns
from poplin.lab.directory import Directory
from poplin.lab.kubelet.container import Container
from poplin.lab.kubelet.kubelet import Kubelet
from poplin.lab.kubelet.pod import PodWorker
from poplin.lab.kubelet.status import Waiting
from poplin.lab.kubelet.stream import channel, forward
from poplin.lab.kubelet.stream.console import Console
from poplin.lab.kubelet.stream.log import LogFile, LogOptions
from poplin.lab.kubelet.stream.session import carry
from poplin.lab.kubelet.stream.spdy import SpdyError
from poplin.model.errors import KernelError

FORWARD_PROTOCOL: Final = f"SPDY/3.1+{forward.PROTOCOL}"
WEBSOCKET_NEEDED: Final = (
    "this server streams over WebSockets only, and the client asks for SPDY: use kubectl 1.31 or newer"
)


class StreamHandler:
    """Answers for the pods of `kubelet`; `serve` tells the API server so."""

    def __init__(self, directory: Directory, kubelet: Kubelet, api: ApiServer) -> None:
        self._directory = directory
        self._kubelet = kubelet
        self._api = api

    def serve(self) -> None:
        """Take over what the API server leaves to a kubelet."""
        handlers = self._api.subresources.handlers
        handlers["pods", "log"] = self.log
        handlers["pods", "exec"] = self.execute
        handlers["pods", "attach"] = self.attach
        handlers["pods", "portforward"] = self.forward
        handlers["pods", "ephemeralcontainers"] = refuse_ephemeral

    async def log(self, call: Call) -> web.StreamResponse:
        """GET pods/log: text, as it comes."""
        if call.request.method != "GET":
            raise status.method_not_allowed()
        pod = self._pod(call)
        options = read_log_options(call.query)
        name = _container_name(pod, call.query.get("container", ""))
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        worker = self._kubelet.find(*call.key)
        if worker is None and not (pod.get("spec") or {}).get("nodeName"):
            # Nobody runs it yet: it has written nothing.
            await response.prepare(call.request)
            return response
        worker, container = self._running(call, worker, name)
        number = _choose_run(worker, container, previous=call.flag("previous"))
        path = worker.log_directory(name) / f"{number}.log"

        def ended() -> bool:
            running = container.process
            return running is None or container.attempt != number

        await response.prepare(call.request)
        with suppress(FileNotFoundError, ConnectionError):
            async for piece in LogFile(path, ended).read(options):
                await response.write(piece)
        return response

    async def execute(self, call: Call) -> web.StreamResponse:
        """GET pods/exec: a command in a container."""
        worker, container, process = self._open_container(call)
        command = call.query.getall("command", [])  # type: ignore[attr-defined]  # a MultiDict
        if not command:
            raise status.bad_request("you must specify at least one command for the container")
        console = await worker.runtime.open_command(
            process, command, container.environment, stdin=call.flag("stdin"), tty=call.flag("tty")
        )
        return await self._stream(call, console)

    async def attach(self, call: Call) -> web.StreamResponse:
        """GET pods/attach: the standard streams of a container's own process."""
        worker, container, process = self._open_container(call)
        order = await worker.make_order(container.spec, container.attempt, container.environment)
        return await self._stream(call, await worker.runtime.attach(process, order, stdin=call.flag("stdin")))

    async def forward(self, call: Call) -> web.StreamResponse:
        """GET pods/portforward: connections to ports of the pod."""
        pod = self._pod(call)
        worker = self._kubelet.find(*call.key)
        phase = (pod.get("status") or {}).get("phase")
        if worker is None or worker.netns is None or phase != "Running":
            raise status.bad_request(
                f"unable to forward port because pod is not running. Current status={phase}"
            )
        self._require_websocket(call)
        try:
            netns_fd = open_netns(Path(worker.netns))
        except KernelError as error:
            raise StatusError(500, "InternalError", f"the pod's network is gone: {error}") from error
        try:
            socket = web.WebSocketResponse(protocols=[FORWARD_PROTOCOL], compress=False)
            await socket.prepare(call.request)
            with suppress(SpdyError):
                await forward.Forwarder(netns_fd, socket.send_bytes).run(_messages(socket))
            await socket.close()
        finally:
            os.close(netns_fd)
        return socket

    def _require_websocket(self, call: Call) -> None:
        upgrade = call.request.headers.get("Upgrade", "").lower()
        if upgrade.startswith("spdy"):
            raise status.bad_request(WEBSOCKET_NEEDED)
        if call.request.method != "GET" or upgrade != "websocket":
            raise status.bad_request("Upgrade request required")

    async def _stream(self, call: Call, console: Console) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=channel.PROTOCOLS, compress=False)
        try:
            await socket.prepare(call.request)
        except BaseException:
            console.close()
            raise
        await carry(socket, console)
        return socket

    def _pod(self, call: Call) -> Object:
        return self._api.lifecycle.get(call.resource, call.key).decode()

    def _open_container(self, call: Call) -> tuple[PodWorker, Container, str]:
        """The container that exec or attach is about, and the id of its process. Raises StatusError."""
        pod = self._pod(call)
        name = _container_name(pod, call.query.get("container", ""))
        phase = (pod.get("status") or {}).get("phase")
        if phase in {"Succeeded", "Failed"}:
            raise status.bad_request(
                f"cannot exec into a container in a completed pod; current phase is {phase}"
            )
        if not (pod.get("spec") or {}).get("nodeName"):
            raise status.bad_request(f"pod {call.target.name} does not have a host assigned")
        worker, container = self._running(call, self._kubelet.find(*call.key), name)
        if container.process is None:
            raise _not_running(name)
        # Last: kubectl tries SPDY after any refusal, and shows what that is answered.
        self._require_websocket(call)
        return worker, container, container.process.id

    def _running(self, call: Call, worker: PodWorker | None, name: str) -> tuple[PodWorker, Container]:
        container = worker.find_container(name) if worker is not None else None
        if worker is None or container is None:
            node = f"pod {call.target.name} is on a node that this lab's kubelet does not run"
            raise StatusError(501, "NotImplemented", f"{node}; its streams are not served here")
        return worker, container


async def refuse_ephemeral(call: Call) -> web.StreamResponse:
    """`kubectl debug` would wait for ever for a container that nobody starts."""
    del call
    remedy = "use kubectl exec, or kubectl debug --copy-to"
    raise StatusError(501, "NotImplemented", f"this lab's kubelet runs no ephemeral containers: {remedy}")


async def _messages(socket: web.WebSocketResponse) -> AsyncIterator[bytes]:
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            yield message.data


def _container_name(pod: Object, asked: str) -> str:
    """The container that a request means, "" for the only one. Raises StatusError."""
    spec, name = pod.get("spec") or {}, pod["metadata"]["name"]
    main = [one["name"] for one in spec.get("containers") or ()]
    init = [one["name"] for one in spec.get("initContainers") or ()]
    if not asked:
        if len(main) == 1 and not init:
            return str(main[0])
        choices = f"choose one of: [{' '.join(main)}]"
        if init:
            choices += f" or one of the init containers: [{' '.join(init)}]"
        raise status.bad_request(f"a container name must be specified for pod {name}, {choices}")
    if asked not in {*main, *init}:
        raise status.bad_request(f"container {asked} is not valid for pod {name}")
    return asked


def _choose_run(worker: PodWorker, container: Container, *, previous: bool) -> int:
    """The number of the run whose log is meant. Raises StatusError."""
    numbers = sorted(
        int(path.stem) for path in worker.log_directory(container.name).glob("*.log") if path.stem.isdecimal()
    )
    if previous:
        numbers = [number for number in numbers if number < container.attempt]
        if not numbers:
            raise status.bad_request(
                f'previous terminated container "{container.name}" in pod "{worker.pod.name}" not found'
            )
    if not numbers:
        state = container.view.state
        reason = state.reason if isinstance(state, Waiting) else "its image is not here: nothing was run"
        raise status.bad_request(
            f'container "{container.name}" in pod "{worker.pod.name}" is waiting to start: {reason}'
        )
    return numbers[-1]


def _not_running(container: str) -> StatusError:
    return StatusError(500, "InternalError", f'container not found ("{container}")')


def read_log_options(query: Mapping[str, str]) -> LogOptions:
    """PodLogOptions of a request. Raises StatusError."""

    def number(name: str, least: int) -> int | None:
        text = query.get(name)
        if text is None:
            return None
        if not text.lstrip("-").isdecimal() or int(text) < least:
            cause = status.Cause(name, f"Invalid value: {text}: must be greater than or equal to {least}")
            raise status.invalid("PodLogOptions", "", "", [cause])
        return int(text)

    since_s = number("sinceSeconds", 1)
    since = None if since_s is None else datetime.now(UTC) - timedelta(seconds=since_s)
    if text := query.get("sinceTime"):
        try:
            since = datetime.fromisoformat(text).astimezone(UTC)
        except ValueError:
            raise status.bad_request(f"sinceTime is no time: {text!r}") from None
    return LogOptions(
        follow=query.get("follow") in {"true", "1"},
        timestamps=query.get("timestamps") in {"true", "1"},
        tail_lines=number("tailLines", 0),
        limit_bytes=number("limitBytes", 1),
        since=since,
    )
