"""nfnetlink, what nftables and conntrack share: the message's head, numbers in network order, the socket.

Source: include/uapi/linux/netfilter/nfnetlink.h. Attribute headers are in the host's byte order; the
numbers inside are big-endian.
"""

import errno as codes
import os
import socket
from collections.abc import Iterator
from struct import Struct
from typing import Final, Self

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import MalformedMessageError, pack
from poplin.dataplane.netlink.frame import Answer, Message, decode_answer, decode_messages, encode_message
from poplin.model.errors import KernelError

NETLINK_NETFILTER: Final = 12
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33

RECEIVE_BYTES: Final = 64 * 1024
"""More than one datagram of any dump: the kernel fills at most 32 KiB."""

RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024

_NFGENMSG: Final = Struct(">BBH")


def encode_request(
    kind: int, flags: int, sequence: int, family: int, attributes: bytes = b"", *, resource: int = 0
) -> bytes:
    """A message of type (subsystem << 8 | message). `resource` is what a batch says it is for."""
    return encode_message(kind, flags, sequence, _NFGENMSG.pack(family, 0, resource) + attributes)


def decode_body(message: Message) -> tuple[int, bytes]:
    """The family, and the attributes."""
    if len(message.body) < _NFGENMSG.size:
        raise MalformedMessageError(f"nfnetlink message of type {message.kind} without its head")
    return message.body[0], message.body[_NFGENMSG.size :]


def encode_number(kind: int, number: int) -> bytes:
    """An attribute of one big-endian number of 32 bits; a negative one in two's complement."""
    return pack(kind, (number & 0xFFFFFFFF).to_bytes(4, "big"))


def decode_number(data: bytes) -> int:
    """A big-endian number of any size, 0 for no bytes."""
    return int.from_bytes(data, "big")


class NfnetlinkSocket:
    """A blocking socket, bound for good to the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        for option in (uapi.NETLINK_EXT_ACK, uapi.NETLINK_CAP_ACK):
            self._socket.setsockopt(uapi.SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self._socket.bind((0, 0))
        self._sequence = 0

    @property
    def port(self) -> int:
        """Names this socket in the notifications of what it did."""
        port: int = self._socket.getsockname()[0]
        return port

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_sequence(self) -> int:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        return self._sequence

    def send(self, request: bytes) -> None:
        """One sendmsg: the kernel takes a batch from a single datagram only, of whatever size."""
        needed = len(request) + 4096
        if needed > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, needed)
        self._socket.send(request)

    def pending_answers(self) -> Iterator[tuple[int, Answer]]:
        """The answers that wait, by sequence number, without blocking for more.

        The kernel handles a request within sendmsg, so that after it no answer is still on its way.
        """
        while True:
            try:
                datagram = self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != codes.ENOBUFS:
                    raise
                # More refusals than the buffer holds: those that were dropped say nothing that the first do not.
                continue
            for message in decode_messages(datagram):
                if message.kind == uapi.NLMSG_ERROR:
                    yield message.sequence, decode_answer(message)

    def query(
        self, kind: int, flags: int, family: int, attributes: bytes = b"", *, where: str
    ) -> Iterator[Message]:
        """Send one request and give what it answers: one object, a dump, or nothing.

        Raises KernelError with the kernel's errno; EINTR where the objects changed under a dump.
        """
        sequence = self.next_sequence()
        self.send(encode_request(kind, flags | uapi.NLM_F_ACK, sequence, family, attributes))
        interrupted = False
        while True:
            for message in decode_messages(self._socket.recv(RECEIVE_BYTES)):
                if message.sequence != sequence:
                    continue
                interrupted |= bool(message.flags & uapi.NLM_F_DUMP_INTR)
                if message.kind not in {uapi.NLMSG_ERROR, uapi.NLMSG_DONE}:
                    yield message
                    continue
                answer = decode_answer(message)
                if answer.errno or interrupted:
                    raise kernel_error(answer if answer.errno else Answer(codes.EINTR, ""), where=where)
                return


def kernel_error(answer: Answer, *, where: str, remedy: str = "") -> KernelError:
    """What the kernel refused, with its own words where it has some."""
    what = os.strerror(answer.errno) + (f" ({answer.text})" if answer.text else "")
    return KernelError(what, errno=answer.errno, where=where, remedy=remedy)
