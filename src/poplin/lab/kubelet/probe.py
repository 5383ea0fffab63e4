"""Probes: what each asks, asked from the node as the kubelet does, and how many answers make a verdict.

Source: Kubernetes documentation, "Configure Liveness, Readiness and Startup Probes".
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from poplin.dataplane.netns import in_namespace
from poplin.lab.controllers.object import Json
from poplin.lab.http2 import SERVING, Frame, FrameReader, encode_check, read_health
from poplin.model.kernel import IPAddress

_CHUNK_BYTES: Final = 64 << 10

Execute = Callable[[list[str]], Awaitable[int]]
"""Runs a command in the container; its exit status."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times of a probe, in seconds, and how many answers in a row change the verdict."""

    initial_delay_s: float
    period_s: float
    timeout_s: float
    successes: int
    failures: int


def read_schedule(probe: Mapping[str, Any]) -> Schedule:
    """A Probe's numbers, with the API's defaults."""
    return Schedule(
        float(probe.get("initialDelaySeconds") or 0),
        float(probe.get("periodSeconds") or 10),
        float(probe.get("timeoutSeconds") or 1),
        int(probe.get("successThreshold") or 1),
        int(probe.get("failureThreshold") or 3),
    )


@dataclass(slots=True)
class Verdict:
    """What the answers so far come to: None while they have come to nothing yet."""

    schedule: Schedule
    holds: bool | None = None
    _latest: bool | None = None
    _run: int = 0

    def add(self, answer: bool) -> bool:
        """Take an answer in; tell whether the verdict is another now."""
        self._run = self._run + 1 if answer == self._latest else 1
        self._latest = answer
        needed = self.schedule.successes if answer else self.schedule.failures
        if self._run < needed or self.holds == answer:
            return False
        self.holds = answer
        return True

    def starts_over(self) -> None:
        """Forget a failure that has been acted upon."""
        self.holds, self._latest, self._run = None, None, 0


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a probe asks: a container of the pod at `address`, from the node's namespace."""

    netns_fd: int
    address: IPAddress
    ports: Mapping[str, int]
    execute: Execute


async def ask(probe: Json, target: Target, timeout_s: float) -> str:
    """Ask once. "" is a good answer, other text says what was wrong."""
    try:
        async with asyncio.timeout(timeout_s):
            if "exec" in probe:
                code = await target.execute(list(probe["exec"].get("command") or ()))
                return f"command exited with {code}" if code else ""
            if "tcpSocket" in probe:
                await _ask_tcp(probe["tcpSocket"], target)
                return ""
            if "httpGet" in probe:
                return await _ask_http(probe["httpGet"], target)
            if "grpc" in probe:
                return await _ask_grpc(probe["grpc"], target)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        # asyncio's own text does not say what the kernel said.
        return os.strerror(error.errno) if error.errno else str(error)
    except ValueError as error:
        return str(error)
    return "the probe asks for nothing"


async def _ask_tcp(action: Json, target: Target) -> None:
    with await _connect(target, action.get("host", ""), action["port"]):
        pass


async def _ask_http(action: Json, target: Target) -> str:
    host = action.get("host", "")
    headers = {one["name"]: one["value"] for one in action.get("httpHeaders") or ()}
    port = _port(target, action["port"])
    address = f"[{target.address}]" if target.address.version == 6 else str(target.address)
    headers = {"Host": f"{host or address}:{port}", "User-Agent": "kube-probe/1.0", "Accept": "*/*"} | headers
    request = f"GET {action.get('path') or '/'} HTTP/1.1\r\n"
    request += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    tls = _unverified() if action.get("scheme") == "HTTPS" else None
    connection = await _connect(target, host, port)
    reader, writer = await asyncio.open_connection(
        sock=connection, ssl=tls, server_hostname="" if tls else None
    )
    try:
        writer.write(f"{request}Connection: close\r\n\r\n".encode())
        line = (await reader.readline()).decode("latin-1").split()
    finally:
        await _close(writer)
    if len(line) < 2 or not line[0].startswith("HTTP/") or not line[1].isdecimal():
        return "no HTTP answer"
    return "" if 200 <= int(line[1]) < 400 else f"HTTP probe failed with statuscode: {line[1]}"


async def _ask_grpc(action: Json, target: Target) -> str:
    port = int(action["port"])
    reader, writer = await asyncio.open_connection(sock=await _connect(target, "", port))
    try:
        writer.write(encode_check(f"{target.address}:{port}", action.get("service") or ""))
        frames, received, answer = FrameReader(), list[Frame](), None
        while answer is None and (data := await reader.read(_CHUNK_BYTES)):
            received += frames.feed(data)
            answer = read_health(received)
    finally:
        await _close(writer)
    if answer is None:
        return "no answer to the health check"
    return "" if answer == SERVING else f"health check answered status {answer}"


async def _connect(target: Target, host: str, port: int | str) -> socket.socket:
    """A connection from the node. A host of the probe's own must be an address: nodes have no resolver."""
    family = socket.AF_INET6 if ":" in (host or str(target.address)) else socket.AF_INET
    connection = in_namespace(target.netns_fd, lambda: socket.socket(family, socket.SOCK_STREAM))
    try:
        connection.setblocking(False)
        where = (host or str(target.address), _port(target, port))
        await asyncio.get_running_loop().sock_connect(connection, where)
    except BaseException:
        connection.close()
        raise
    return connection


def _port(target: Target, port: int | str) -> int:
    """A port by number or by the name it has in the container. Raises ValueError for an unknown name."""
    if isinstance(port, int) or port.isdecimal():
        return int(port)
    if port not in target.ports:
        raise ValueError(f"the container has no port {port!r}")
    return target.ports[port]


def _unverified() -> ssl.SSLContext:
    """Probes do not look at certificates (the documentation's "HTTP probes")."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
