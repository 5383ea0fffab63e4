"""Who reaches whom: many connections out of many network namespaces, made by one process.

A socket belongs to the namespace in which it was made, wherever its process goes on. So nothing is started
inside a pod: a socket is made there, and used from here. What a lab's echo server answers says who it is and
whom it sees, so that a probe knows that the right pod answered and that the address was not translated.
"""

import asyncio
import errno
import os
import secrets
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Final

from poplin.dataplane.netns import in_namespace, open_netns
from poplin.model.kernel import IPAddress

TIMEOUT_S: Final = 1.0
CONCURRENCY: Final = 32
"""Enough to wait for many silent addresses at once, few enough to find no queue at one process' sockets."""

_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("=qq")
_ECHO_REQUEST: Final = {4: 8, 6: 128}
_ECHO_REPLY: Final = {4: 0, 6: 129}
_TCP_INFO: Final = struct.Struct("=68xI")
"""Of struct tcp_info (linux/tcp.h) tcpi_rtt: the round trip in microseconds, as TCP itself measures it."""
_TOKEN_BYTES: Final = 16
_ANSWER_BYTES: Final = 4096


class Protocol(StrEnum):
    """How a probe asks."""

    TCP = "TCP"
    UDP = "UDP"
    ICMP = "ICMP"


class Outcome(StrEnum):
    """What became of a probe.

    ANSWERED: what was sent came back. CONNECTED: TCP's handshake was made, and no echo followed. REFUSED: a
    reset, or "port unreachable". UNREACHABLE: another error, `reason` says which. TIMED_OUT: silence.
    """

    ANSWERED = "answered"
    CONNECTED = "connected"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. `netns` is the path of the source's namespace, `source` its name; ICMP has `port` 0."""

    netns: str
    source: str
    address: IPAddress
    port: int
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a probe.

    `latency_s` is the round trip: the kernel's own measure of a TCP handshake, for the others from sending to
    the kernel's receipt of the answer; None without an answer. `name` and `client` are what the echo server
    says of itself and of the address that it sees, "" and None where the answer does not tell.
    """

    probe: Probe
    outcome: Outcome
    latency_s: float | None = None
    name: str = ""
    client: IPAddress | None = None
    reason: str = ""

    @property
    def reached(self) -> bool:
        """Whether the destination took it."""
        return self.outcome in {Outcome.ANSWERED, Outcome.CONNECTED}


def probe(
    probes: Sequence[Probe],
    *,
    timeout_s: float = TIMEOUT_S,
    concurrency: int = CONCURRENCY,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """Ask all, at most `concurrency` at once, each for `timeout_s` at most; the results in the same order.

    `progress` is told how many are done. Raises KernelError where a namespace is not there.
    """
    return asyncio.run(probe_all(probes, timeout_s=timeout_s, concurrency=concurrency, progress=progress))


async def probe_all(
    probes: Sequence[Probe],
    *,
    timeout_s: float = TIMEOUT_S,
    concurrency: int = CONCURRENCY,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """As `probe`, on a running event loop."""
    results: dict[int, Result] = {}
    waiting = iter(enumerate(probes))

    async def work(namespaces: dict[str, int]) -> None:
        for number, one in waiting:
            results[number] = await _ask(namespaces[one.netns], one, timeout_s)
            progress(len(results))

    with ExitStack() as stack:
        namespaces: dict[str, int] = {}
        for path in {one.netns for one in probes}:
            namespaces[path] = open_netns(path)
            stack.callback(os.close, namespaces[path])
        async with asyncio.TaskGroup() as tasks:
            for number in range(min(concurrency, len(probes))):
                tasks.create_task(work(namespaces), name=f"prober {number}")
    return [results[number] for number in range(len(probes))]


async def _ask(netns_fd: int, one: Probe, timeout_s: float) -> Result:
    try:
        with closing(
            in_namespace(netns_fd, lambda: open_socket(one.protocol, one.address.version))
        ) as asking:
            return await _EXCHANGES[one.protocol](asking, one, timeout_s)
    except TimeoutError:
        return Result(one, Outcome.TIMED_OUT)
    except (ConnectionRefusedError, ConnectionResetError) as error:
        return Result(one, Outcome.REFUSED, reason=str(error.strerror))
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            return Result(one, Outcome.TIMED_OUT)
        return Result(one, Outcome.UNREACHABLE, reason=str(error.strerror))


def open_socket(protocol: Protocol, ip_version: int) -> socket.socket:
    """A socket in the thread's namespace that does not block."""
    family = socket.AF_INET6 if ip_version == 6 else socket.AF_INET
    match protocol:
        case Protocol.TCP:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        case Protocol.UDP:
            made = socket.socket(family, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        case Protocol.ICMP:
            number = socket.IPPROTO_ICMPV6 if ip_version == 6 else socket.IPPROTO_ICMP
            made = socket.socket(family, socket.SOCK_RAW, number)
            made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    made.setblocking(False)
    return made


async def _exchange_tcp(asking: socket.socket, one: Probe, timeout_s: float) -> Result:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        await loop.sock_connect(asking, (str(one.address), one.port))
    latency_s = (
        _TCP_INFO.unpack(asking.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))[0] / 1e6
    )
    token = _make_token()
    received = b""
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_sendall(asking, token)
            while token not in received:
                data = await loop.sock_recv(asking, _ANSWER_BYTES)
                if not data:
                    break
                received += data
    except (TimeoutError, ConnectionResetError):
        pass
    if token not in received:
        return Result(one, Outcome.CONNECTED, latency_s)
    name, client = read_answer(received)
    return Result(one, Outcome.ANSWERED, latency_s, name, client)


async def _exchange_udp(asking: socket.socket, one: Probe, timeout_s: float) -> Result:
    token = _make_token()
    async with asyncio.timeout(timeout_s):
        asking.connect((str(one.address), one.port))
        began_s = time.time()
        asking.send(token)
        while True:
            data, at_s = await _receive(asking)
            if token in data:
                name, client = read_answer(data)
                return Result(one, Outcome.ANSWERED, at_s - began_s, name, client)


async def _exchange_icmp(asking: socket.socket, one: Probe, timeout_s: float) -> Result:
    """One echo request (RFC 792, RFC 4443). A raw socket hears all replies from there, so ours has a token."""
    version = one.address.version
    token = _make_token()
    async with asyncio.timeout(timeout_s):
        asking.connect((str(one.address), 0))
        began_s = time.time()
        asking.send(_encode_echo(version, token))
        while True:
            data, at_s = await _receive(asking)
            # IPv4 raw sockets give the IP header too, IPv6 ones never do.
            message = data[(data[0] & 0x0F) * 4 :] if version == 4 else data
            if message[:1] == bytes((_ECHO_REPLY[version],)) and message.endswith(token):
                return Result(one, Outcome.ANSWERED, at_s - began_s)


_EXCHANGES: Final[dict[Protocol, Callable[[socket.socket, Probe, float], Awaitable[Result]]]] = {
    Protocol.TCP: _exchange_tcp,
    Protocol.UDP: _exchange_udp,
    Protocol.ICMP: _exchange_icmp,
}


def read_answer(data: bytes) -> tuple[str, IPAddress | None]:
    """Who answered, and whom it sees, of an echo server's two lines; "" and None where they are others."""
    name, client = "", None
    for line in data.decode(errors="replace").splitlines()[:2]:
        key, _, value = line.partition(": ")
        if key == "pod":
            name = value
        elif key == "client":
            try:
                client = ip_address(value.rpartition(":")[0].strip("[]"))
            except ValueError:
                return name, None
    return name, client


async def _receive(asking: socket.socket) -> tuple[bytes, float]:
    """A datagram, and when the kernel received it, in seconds since 1970."""
    while True:
        try:
            data, ancillary, _, _ = asking.recvmsg(_ANSWER_BYTES, socket.CMSG_SPACE(_TIMESPEC.size))
        except BlockingIOError:
            await _wait_readable(asking)
        else:
            return data, next(_timestamps(ancillary), time.time())


def _timestamps(ancillary: Sequence[tuple[int, int, bytes]]) -> Iterator[float]:
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
            yield seconds + nanoseconds / 1e9


async def _wait_readable(asking: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(asking, wake)
    try:
        await readable
    finally:
        loop.remove_reader(asking)


def _make_token() -> bytes:
    """Like nothing that HTTP or gRPC begin with, so that the echo server answers at once."""
    return secrets.token_hex(_TOKEN_BYTES // 2).encode()


def _encode_echo(version: int, token: bytes) -> bytes:
    """An echo request; of ICMPv6 the kernel makes the checksum, since it alone knows the source address."""
    # All 16 bits of it: to conntrack an echo of the same identifier is one that it knows.
    identifier = zlib.crc32(token) & 0xFFFF
    message = struct.pack("!BBHHH", _ECHO_REQUEST[version], 0, 0, identifier, 1) + token
    if version == 6:
        return message
    return message[:2] + struct.pack("!H", _checksum(message)) + message[4:]


def _checksum(message: bytes) -> int:
    """The internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
