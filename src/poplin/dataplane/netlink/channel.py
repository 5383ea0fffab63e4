"""A blocking NETLINK_ROUTE socket: requests in batches, dumps, and nothing of what they mean.

The kernel works a request off inside our `send`, so that its answers wait for us when `send` returns: to
receive never blocks, and an answer that is not there was lost.
"""

import errno
import os
import socket
from collections.abc import Iterator, Sequence

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.frame import (
    NLMSGHDR,
    Answer,
    Message,
    decode_answer,
    decode_messages,
    encode_message,
)
from poplin.dataplane.netlink.request import Request
from poplin.model.errors import KernelError

BATCH_BYTES = 64 * 1024
"""A batch is one datagram, which must fit the send buffer (net.core.wmem_default, 208 KiB)."""

BATCH_MESSAGES = 1024
"""If every request fails, that many errors with their text (under 1.3 KB each) fit the receive buffer."""

RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024

DATAGRAM_BYTES = 64 * 1024
"""Above the 32 KiB that the kernel fills at most (linux/netlink.h, NLMSG_GOODSIZE; af_netlink.c)."""

DUMP_ATTEMPTS = 10

_SO_RCVBUFFORCE = 33

_REMEDIES = {
    errno.EEXIST: "it belongs to somebody else: remove it, or choose what does not collide with it",
    errno.EPERM: "run with CAP_NET_ADMIN in this network namespace",
}


class Channel:
    """Owns the socket that `open_socket` made. One thread at a time."""

    def __init__(self, netlink: socket.socket) -> None:
        self.socket = netlink
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def transact(self, requests: Sequence[Request]) -> dict[int, Answer]:
        """Send the requests in order and return those that failed, by position. The others went on.

        Only failures and the last request of a datagram are answered (NLM_F_ACK on that one alone). What was
        not told for want of memory is ENOBUFS: it may have happened or not.
        """
        failed: dict[int, Answer] = {}
        for start, batch in _batches(requests):
            first = self._sequence + 1
            for sequence, answer in self._send_batch(batch).items():
                failed[start + sequence - first] = answer
        return failed

    def _send_batch(self, batch: Sequence[Request]) -> dict[int, Answer]:
        """Failures by sequence number."""
        first, last = self._sequence + 1, self._sequence + len(batch)
        self._sequence = last
        messages = [
            encode_message(kind, flags, number, body)
            for number, (kind, flags, body) in enumerate(batch, first)
        ]
        kind, flags, body = batch[-1]
        messages[-1] = encode_message(kind, flags | uapi.NLM_F_ACK, last, body)
        self.socket.send(b"".join(messages))
        failed: dict[int, Answer] = {}
        try:
            for message in self._receive_until(last):
                answer = decode_answer(message)
                if answer.errno and message.sequence >= first:
                    failed[message.sequence] = answer
        except BlockingIOError:
            lost = Answer(errno.ENOBUFS, "the kernel's answer was lost for want of memory")
            failed = dict.fromkeys(range(first, last + 1), lost) | failed
        return failed

    def _receive_until(self, last: int) -> Iterator[Message]:
        """What is received up to the answer of `last`. Raises BlockingIOError where that never came."""
        while True:
            try:
                data = self.socket.recv(DATAGRAM_BYTES)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise
            for message in decode_messages(data):
                yield message
                if message.sequence == last:
                    return

    def ask(self, kind: int, body: bytes) -> Message | Answer:
        """The one object that the query means, or why there is none."""
        self._sequence += 1
        self.socket.send(encode_message(kind, 0, self._sequence, body))
        for message in self._receive_until(self._sequence):
            if message.sequence == self._sequence:
                return decode_answer(message) if message.kind == uapi.NLMSG_ERROR else message
        raise AssertionError("unreachable: the loop ends with the answer")

    def dump(self, kind: int, body: bytes, *, where: str) -> list[bytes]:
        """The bodies of a consistent dump. `where` names it in an error.

        What changed while it was read (NLM_F_DUMP_INTR) is read again, at most DUMP_ATTEMPTS times. Raises
        KernelError: EINTR where the tables never stood still, or the kernel's own refusal.
        """
        for _ in range(DUMP_ATTEMPTS):
            bodies: list[bytes] = []
            if self._dump_into(bodies, kind, body, where):
                return bodies
        raise KernelError(
            "the kernel's tables change faster than they can be read", errno=errno.EINTR, where=where
        )

    def _dump_into(self, bodies: list[bytes], kind: int, body: bytes, where: str) -> bool:
        """Whether the dump is whole and consistent. The loop runs once for each of 64k routes: no calls in it."""
        self._sequence += 1
        self.socket.send(encode_message(kind, uapi.NLM_F_DUMP, self._sequence, body))
        unpack_header, header_bytes = NLMSGHDR.unpack_from, NLMSGHDR.size
        intact = True
        while True:
            try:
                data = self.socket.recv(DATAGRAM_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                intact = False
                continue
            offset, end = 0, len(data)
            while offset < end:
                length, what, flags, _, _ = unpack_header(data, offset)
                if flags & uapi.NLM_F_DUMP_INTR:
                    intact = False
                if what in (uapi.NLMSG_DONE, uapi.NLMSG_ERROR):
                    answer = decode_answer(next(decode_messages(data[offset:])))
                    if answer.errno:
                        raise kernel_error(answer, where=where)
                    return intact
                bodies.append(data[offset + header_bytes : offset + length])
                offset += (length + 3) & ~3


def open_socket() -> socket.socket:
    """A NETLINK_ROUTE socket in the thread's network namespace, where it stays.

    Its dumps are filtered in the kernel, and its errors carry the kernel's own text.
    """
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    for option in (uapi.NETLINK_GET_STRICT_CHK, uapi.NETLINK_EXT_ACK, uapi.NETLINK_CAP_ACK):
        netlink.setsockopt(uapi.SOL_NETLINK, option, 1)
    netlink.bind((0, 0))
    return netlink


def kernel_error(answer: Answer, *, where: str) -> KernelError:
    """The failed answer as an error: the kernel's own text first, where it gave one."""
    reason = os.strerror(answer.errno)
    what = f"{answer.text} ({reason})" if answer.text else reason
    return KernelError(what, errno=answer.errno, where=where, remedy=_REMEDIES.get(answer.errno, ""))


def _batches(requests: Sequence[Request]) -> Iterator[tuple[int, Sequence[Request]]]:
    """Runs of requests within BATCH_MESSAGES and BATCH_BYTES, each with the position of its first."""
    start = size = 0
    for position, request in enumerate(requests):
        length = NLMSGHDR.size + len(request.body)
        if position - start == BATCH_MESSAGES or (size + length > BATCH_BYTES and position > start):
            yield start, requests[start:position]
            start, size = position, 0
        size += length
    if start < len(requests):
        yield start, requests[start:]
