"""What the kernel tells of by itself over nfnetlink, read no faster than the event loop can bear.

A flood of packets makes a flood of messages. A socket here reads a few datagrams, then leaves the event loop alone
for a while: what it does not read in time the kernel drops, at the cost of a refused copy. So the loop's
share is bounded whatever comes, and what is lost is counted.
"""

import asyncio
import errno
import socket
from abc import abstractmethod
from typing import Final

from poplin.dataplane.netlink.attribute import MalformedMessageError
from poplin.dataplane.netlink.frame import Message, decode_messages
from poplin.dataplane.nfnetlink import RECEIVE_BYTES, SO_RCVBUFFORCE, NfnetlinkSocket

PAUSE_S: Final = 0.02


class EventSocket(NfnetlinkSocket):
    """Bound to the namespace of the thread that makes it; needs a running event loop.

    Reads `datagrams` of them every PAUSE_S at most, and lets `buffer_bytes` wait in the kernel: more would bear a
    longer burst, and make all that is told in a flood older. `overruns` counts how often the kernel said that it had
    dropped some, and `malformed` the datagrams that were not understood.
    """

    def __init__(self, datagrams: int, buffer_bytes: int) -> None:
        super().__init__()
        self._datagrams = datagrams
        self.overruns = 0
        self.malformed = 0
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to read."""
        self._pause = None
        self._loop.add_reader(self._socket, self._receive)

    def close(self) -> None:
        """Stop reading and close the socket."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        super().close()

    @abstractmethod
    def _take(self, message: Message) -> None:
        """Take one message in. Raises MalformedMessageError."""

    def _receive(self) -> None:
        for _ in range(self._datagrams):
            try:
                datagram = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            try:
                for message in decode_messages(datagram):
                    self._take(message)
            except MalformedMessageError:
                self.malformed += 1
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(PAUSE_S, self.start)
