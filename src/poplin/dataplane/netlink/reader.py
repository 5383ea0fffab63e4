"""Reading the routes of one protocol again and again, at the cost of what changed.

A dump of 64k routes is 4 MB of which an audit finds every byte known. So messages are compared as bytes, at
the speed of C, and only those that are new become Route values.
"""

from collections.abc import Iterable
from typing import Final

from poplin.dataplane.netlink.route import decode_route
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.model.kernel import PROTOCOL, Route

_NO_ROUTES: Final[frozenset[Route]] = frozenset()


class RouteReader:
    """Remembers the last dump; one thread at a time, the socket's."""

    def __init__(self, socket: RouteSocket, *, protocol: int = PROTOCOL, table: int = 0) -> None:
        self._socket = socket
        self._protocol = protocol
        self._table = table
        self._bodies: frozenset[bytes] = frozenset()
        self._routes = _NO_ROUTES
        self._names: dict[int, str] = {}

    def read(self, desired: frozenset[Route] = _NO_ROUTES) -> frozenset[Route]:
        """The routes that stand; the same object as before where nothing changed.

        Routes that equal one of `desired` are that very object, which makes `desired - actual` a comparison
        of pointers and keeps one copy in memory.
        """
        bodies = frozenset(self._socket.route_bodies(protocol=self._protocol, table=self._table))
        if any(self._socket.names.name_of(index) != name for index, name in self._names.items()):
            self._bodies, self._routes, self._names = frozenset(), _NO_ROUTES, {}
        # Where two messages mean one route, the loss of one of them does not mean that the route is gone.
        one_to_one = len(self._bodies) == len(self._routes)
        if bodies != self._bodies:
            kept = self._routes - self._decode(self._bodies - bodies) if one_to_one else _NO_ROUTES
            fresh = self._decode(bodies - self._bodies if one_to_one else bodies)
            # The elements of a difference are those of its left side.
            wanted = desired - (desired - fresh)
            self._routes = kept | wanted | (fresh - wanted)
            self._bodies = bodies
        return self._routes

    def _decode(self, bodies: Iterable[bytes]) -> frozenset[Route]:
        routes = (decode_route(body, self._name_of) for body in bodies)
        return frozenset(route for route in routes if route is not None)

    def _name_of(self, index: int) -> str:
        name = self._names[index] = self._socket.names.name_of(index)
        return name
