"""What others change in our tables, as events on an event loop."""

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import AsyncIterator, Collection
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import MalformedMessageError, parse
from poplin.dataplane.netlink.frame import decode_messages, unpack_text
from poplin.dataplane.nfnetlink import RECEIVE_BYTES, NfnetlinkSocket, decode_body
from poplin.dataplane.nftables.message import SUBSYSTEM, Kind
from poplin.model.nftables import Family, TableKey

NFNLGRP_NFTABLES: Final = 7
SO_ATTACH_FILTER: Final = 26
DATAGRAMS_AT_ONCE: Final = 256
"""About a millisecond of the event loop; what is left over is read in the loop's next turn."""

_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_PORT_OFFSET: Final = 12  # of nlmsg_pid in struct nlmsghdr


class NftMonitor(NfnetlinkSocket):
    """Bound to the namespace in which the thread is at its making; needs a running event loop.

    Tells of the inet tables whose names start with `prefix`. What the sockets of `ignored_ports` (an
    NftSocket's `port`) did never reaches this one: a set filled by us would overrun its buffer.
    """

    def __init__(self, *, prefix: str = "poplin", ignored_ports: Collection[int] = ()) -> None:
        super().__init__()
        self._prefix = prefix
        self._changed: set[TableKey] = set()
        self._overrun = False
        self._arrived = asyncio.Event()
        self._socket.setblocking(False)
        if ignored_ports:
            self._ignore(ignored_ports)
        self._socket.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)

    def close(self) -> None:
        """Leave the loop and close the socket; a reader waits for ever, so cancel it first."""
        self._loop.remove_reader(self._socket)
        super().close()

    async def events(self) -> AsyncIterator[TableKey | None]:
        """Tables that others changed, each once however much changed; None: changes were lost, of any of them."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            changed, self._changed = self._changed, set()
            overrun, self._overrun = self._overrun, False
            if overrun:
                yield None
                continue
            for key in sorted(changed):
                yield key

    def _ignore(self, ports: Collection[int]) -> None:
        """A filter in the kernel: all messages of one datagram come from one transaction, so from one port."""
        program = [_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _PORT_OFFSET)]
        program += [
            # Over the rest of the comparisons and one return; the filter loads in network order.
            _INSTRUCTION.pack(_JUMP_EQUAL, len(ports) - place, 0, socket.htonl(port))
            for place, port in enumerate(ports)
        ]
        program += [_INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFFFFFF), _INSTRUCTION.pack(_RETURN, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )

    def _receive(self) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                self._read(self._socket.recv(RECEIVE_BYTES))
            except BlockingIOError:
                break
            except MalformedMessageError:
                self._overrun = True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun = True
        if self._changed or self._overrun:
            self._arrived.set()

    def _read(self, datagram: bytes) -> None:
        for message in decode_messages(datagram):
            if message.kind >> 8 != SUBSYSTEM or message.kind == Kind.NEWGEN:
                continue
            family, attributes = decode_body(message)
            name = unpack_text(parse(attributes).get(1, b""))
            if family == Family.INET and name.startswith(self._prefix):
                self._changed.add(TableKey(Family.INET, name))
