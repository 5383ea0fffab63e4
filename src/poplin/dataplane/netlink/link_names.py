"""Names and indices of the links in a socket's namespace (man 7 netdevice, SIOCGIFNAME and SIOCGIFINDEX).

An ioctl on any socket answers in 2 us without the kernel's RTNL lock, so nothing needs to be remembered
beyond one run, and nothing goes stale.
"""

import errno
import socket
from fcntl import ioctl
from struct import Struct

from poplin.model.errors import KernelError

_IFREQ = Struct("=16si20x")
_SIOCGIFNAME = 0x8910
_SIOCGIFINDEX = 0x8933


class LinkNames:
    """Both directions, each link asked for once until `forget`."""

    def __init__(self, netlink: socket.socket) -> None:
        self._socket = netlink
        self._names: dict[int, str] = {}
        self._indices: dict[str, int] = {}

    def forget(self) -> None:
        """Ask again from here on: a link was made, renamed or deleted."""
        self._names.clear()
        self._indices.clear()

    def learn(self, index: int, name: str) -> None:
        """What a notification told: the link's name from here on, "" where it is gone."""
        if name:
            self._names[index] = name
        else:
            self._names.pop(index, None)

    def name_of(self, index: int) -> str:
        """The link's name; "if7" for index 7 where no such link is left."""
        name = self._names.get(index)
        if name is None:
            name = self._names[index] = self._ask_name(index)
        return name

    def index_of(self, name: str) -> int:
        """The link's index. Raises KernelError (ENODEV) where there is none."""
        index = self._indices.get(name)
        if index is None:
            index = self._indices[name] = self._ask_index(name)
        return index

    def _ask_name(self, index: int) -> str:
        try:
            answer = ioctl(self._socket, _SIOCGIFNAME, _IFREQ.pack(b"", index))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return f"if{index}"
            raise
        return answer[:16].partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def _ask_index(self, name: str) -> int:
        encoded = name.encode("utf-8", "surrogateescape")
        # A longer name would be cut to some other link's.
        if len(encoded) > 15:
            raise KernelError(f"no such link: {name} has more than 15 bytes", errno=errno.ENODEV)
        try:
            answer = ioctl(self._socket, _SIOCGIFINDEX, _IFREQ.pack(encoded, 0))
        except OSError as error:
            raise KernelError(f"no such link: {name}", errno=error.errno or errno.ENODEV) from error
        index: int = _IFREQ.unpack(answer)[1]
        return index
