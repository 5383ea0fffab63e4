"""The echo server: what a container runs whose image is not here. Says who it is and whom it sees.

Every TCP port speaks HTTP/1.1, gRPC's health check, and plain TCP, told apart by the first bytes; UDP answers
each datagram. The text is always two lines, "pod: NAME" and "client: ADDRESS:PORT", then what was sent.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, cast

from poplin.lab.http2 import PREFACE, HealthServer
from poplin.model.errors import InvalidInputError

SILENCE_S: Final = 0.2
"""How long a client may take to say what it speaks before the server speaks first, as plain TCP may want."""

_METHODS: Final = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")
_BACKLOG: Final = 1024
_MAX_HEAD_BYTES: Final = 64 << 10


def listen(ports: Iterable[tuple[int, str]]) -> list[socket.socket]:
    """Open (port, "TCP" or "UDP") on every address, of both families where the kernel has IPv6.

    Raises OSError where a port is taken, InvalidInputError for a protocol that is not spoken here.
    """
    return [_bind(port, protocol) for port, protocol in ports]


def serve(name: str, sockets: Sequence[socket.socket]) -> None:
    """Serve what `listen` has opened, as the pod `name`, until SIGTERM."""
    asyncio.run(_serve(name, sockets))


async def _serve(name: str, sockets: Sequence[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    # Process 1 of a PID namespace has no default action for a signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    for one in sockets:
        if one.type == socket.SOCK_STREAM:
            await loop.create_server(lambda: Stream(name), sock=one, backlog=_BACKLOG)
        else:
            await loop.create_datagram_endpoint(lambda: Datagrams(name), sock=one)
    await stopped.wait()


def _bind(port: int, protocol: str) -> socket.socket:
    kinds = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
    if protocol not in kinds:
        raise InvalidInputError(f"the echo server does not speak {protocol}", where=f"port {port}")
    try:
        one = socket.socket(socket.AF_INET6, kinds[protocol])
    except OSError:
        one = socket.socket(socket.AF_INET, kinds[protocol])
    else:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if protocol == "TCP":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("", port))
    # Before the container counts as started, so that nobody who comes then is refused.
    if protocol == "TCP":
        one.listen(_BACKLOG)
    return one


def describe(name: str, peer: tuple[Any, ...]) -> bytes:
    """The two lines."""
    address = ip_address(peer[0].partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    client = f"[{address}]:{peer[1]}" if address.version == 6 else f"{address}:{peer[1]}"
    return f"pod: {name}\nclient: {client}\n".encode()


class Datagrams(asyncio.DatagramProtocol):
    """One UDP port."""

    def __init__(self, name: str) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Python 3.11's own transport of datagrams is no subclass of DatagramTransport.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._transport.sendto(describe(self._name, addr) + data, addr)


class Stream(asyncio.Protocol):
    """One TCP connection. `_speak` is what it does with bytes, once it knows what the client speaks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._buffer = b""
        self._speak: Callable[[bytes], None] = self._tell_apart

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  - what the loop promises
        self._transport = transport
        # A client may be gone again by now.
        peer = transport.get_extra_info("peername") or ("::", 0)
        self._text = describe(self._name, peer)
        self._silence = asyncio.get_running_loop().call_later(SILENCE_S, self._speak_first)

    def data_received(self, data: bytes) -> None:
        self._speak(data)

    def eof_received(self) -> bool:
        self._speak_first()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  - asyncio's name for it
        self._silence.cancel()

    def _speak_first(self) -> None:
        if self._speak == self._tell_apart:
            self._become_plain()

    def _become_plain(self) -> None:
        self._silence.cancel()
        self._speak = self._transport.write
        self._transport.write(self._text + self._buffer)
        self._buffer = b""

    def _tell_apart(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer.startswith(PREFACE):
            self._silence.cancel()
            self._health = HealthServer()
            self._transport.write(self._health.start())
            self._speak = self._speak_http2
            self._speak(self._buffer[len(PREFACE) :])
        elif self._buffer.startswith(_METHODS):
            self._silence.cancel()
            self._speak = self._speak_http
            rest, self._buffer = self._buffer, b""
            self._speak(rest)
        elif not any(known.startswith(self._buffer) for known in (PREFACE, *_METHODS)):
            self._become_plain()

    def _speak_http2(self, data: bytes) -> None:
        try:
            self._transport.write(self._health.feed(data))
        except ValueError:
            self._transport.close()

    def _speak_http(self, data: bytes) -> None:
        """Answer every request that is there as a whole."""
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            request, *fields = head.split(b"\r\n")
            headers = {
                key.strip().lower(): value.strip() for key, _, value in (f.partition(b":") for f in fields)
            }
            length = 0
            with suppress(ValueError):
                length = int(headers.get(b"content-length", b"0"))
            if len(rest) < length:
                break
            body, self._buffer = rest[:length], rest[length:]
            self._answer(request, headers, body)
        if len(self._buffer) > _MAX_HEAD_BYTES and b"\r\n\r\n" not in self._buffer:
            self._transport.close()

    def _answer(self, request: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        asked = headers.get(b"connection", b"").lower()
        keep = asked == b"keep-alive" if request.endswith(b"HTTP/1.0") else asked != b"close"
        text = self._text + request + b"\n" + body
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
            + b"Content-Length: %d\r\nConnection: %s\r\n\r\n"
            % (len(text), b"keep-alive" if keep else b"close")
            + (b"" if request.startswith(b"HEAD ") else text)
        )
        if not keep:
            self._transport.close()
