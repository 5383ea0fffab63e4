"""HTTP to the Kubernetes API: one session, credentials, TLS, and errors that say what to do.

Source: Kubernetes API Concepts, and the API reference's "Status" object.
"""

import asyncio
import errno
import logging
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import aiohttp
import msgspec

from poplin.datastore.access import Access
from poplin.datastore.credential import Credential, CredentialSource, open_credentials
from poplin.datastore.tls import make_context
from poplin.model.errors import TemporaryError

log = logging.getLogger(__name__)

Query = Mapping[str, str]

ERROR_BODY_BYTES: Final = 64 << 10
READ_BUFFER_BYTES: Final = 256 << 10
STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
JSON_MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
"""Server-side apply; what is JSON is YAML too."""
JSON: Final = "application/json"


class Unreachable(TemporaryError):  # noqa: N818  - named for the state, as the API names its reasons
    """No answer: the connection failed, broke, or nothing came in time."""


class NonsenseError(TemporaryError):
    """An answer that is not what the API says it should be: rubbish, or something else than an API server."""


class RefusedError(TemporaryError):
    """The server answered with an error. `status` is HTTP's; `reason` the API's word for it, "" if none.

    `retry_after_s` is how long the server asks us to wait, None where it does not say.
    """

    def __init__(
        self, what: str, *, where: str, status: int, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(what, where=where, remedy=REMEDIES.get(status, ""))
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


REMEDIES: Final = {
    401: "renew the credentials",
    403: "grant this verb on the resource to this user by RBAC",
    404: "install what serves this resource (a CRD?), or correct the name",
}


class Status(msgspec.Struct, rename="camel"):
    """The body of an error (API reference, "Status")."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: dict[str, Any] | None = None


def parse_status(body: bytes | msgspec.Raw) -> Status | None:
    """The Status in a body, None where it holds none."""
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError:
        return None


class Stream:
    """The body of an open watch, in pieces."""

    def __init__(self, content: aiohttp.StreamReader, where: str) -> None:
        self._content = content
        self._where = where

    async def read(self, limit_s: float) -> bytes | None:
        """What has arrived; None where nothing did within `limit_s`; b"" at the end, clean or cut.

        A watch may end at any moment and is resumed the same way however it ended, so the ways are told
        apart in the log only.
        """
        try:
            async with asyncio.timeout(limit_s):
                return await self._content.readany()
        except TimeoutError:
            return None
        except (aiohttp.ClientError, OSError) as error:
            log.info("%s: cut: %s", self._where, error)
            return b""


class ApiClient:
    """Requests to one API server. Use as an async context manager, or call `close`.

    `response_s` bounds the wait for an answer to begin and for each further piece of it.
    """

    def __init__(
        self,
        access: Access,
        *,
        credentials: CredentialSource | None = None,
        connect_s: float = 10,
        response_s: float = 30,
    ) -> None:
        self.access = access
        self._credentials = credentials or open_credentials(access)
        self._connect_s = connect_s
        self._response_s = response_s
        self._session: aiohttp.ClientSession | None = None
        self._tls: tuple[Credential, ssl.SSLContext] | None = None
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session and its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def end_stranded(self) -> None:
        """End the connections that come from an address which this host has no more: nothing answers them.

        The kernel leaves them as they are, and a watch would hear of it by `_keepalive_socket` only.
        """
        for connection in list(self._sockets):
            with suppress(OSError):  # closed already
                if not _is_local(connection.family, connection.getsockname()[0]):
                    connection.shutdown(socket.SHUT_RDWR)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        content_type: str = JSON,
    ) -> bytes:
        """The body of a successful answer. Raises Unreachable, RefusedError, or a credential's error."""
        async with self._send(method, path, query, body, content_type) as response:
            return await response.read()

    @asynccontextmanager
    async def stream(self, path: str, query: Query) -> AsyncIterator[Stream]:
        """An answer that goes on: a watch. Raises as `request` does, until it has begun."""
        async with self._send("GET", path, query, None, JSON, endless=True) as response:
            yield Stream(response.content, f"GET {self.access.server}{path}")

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        content_type: str,
        *,
        endless: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        where = f"{method} {self.access.server}{path}"
        data = None if body is None else msgspec.json.encode(body)
        for attempt in (1, 2):
            credential = await self._credentials.current()
            try:
                async with asyncio.timeout(self._response_s):
                    response = await self._open().request(
                        method,
                        self.access.server + path,
                        params=query,
                        data=data,
                        headers=_headers(credential, content_type),
                        ssl=self._tls_context(credential),
                        server_hostname=self.access.tls_server_name or None,
                        proxy=self.access.proxy_url or None,
                        allow_redirects=False,
                        timeout=aiohttp.ClientTimeout(
                            sock_connect=self._connect_s,
                            sock_read=None if endless else self._response_s,
                        ),
                    )
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise self._unreachable(error, where) from None
            # A token renewed behind our back: what we hold may simply be old, so look once.
            if response.status == 401 and attempt == 1:
                response.release()
                self._credentials.invalidate(credential)
                continue
            break
        try:
            if response.status >= 300:
                raise await _refusal(response, where)
            yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreachable(error, where) from None
        finally:
            # Releasing keeps the connection where the answer was read to its end, and closes it otherwise.
            response.release()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, socket_factory=self._make_socket)
            self._session = aiohttp.ClientSession(
                connector=connector,
                read_bufsize=READ_BUFFER_BYTES,
                # Compressing costs the server and us more CPU than a cluster's own network is worth,
                # and watches are never compressed.
                headers={"Accept": JSON, "Accept-Encoding": "identity", "User-Agent": "poplin"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _make_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        made = _keepalive_socket(address)
        self._sockets.add(made)
        return made

    def _tls_context(self, credential: Credential) -> ssl.SSLContext | bool:
        """One context for as long as the certificate stays: connections are pooled by it."""
        if not self.access.server.startswith("https:"):
            return True
        if self._tls is None or not _same_certificate(self._tls[0], credential):
            self._tls = (credential, make_context(self.access, credential))
        return self._tls[1]

    def _unreachable(self, error: Exception, where: str) -> Unreachable:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            self._tls = None  # the authority's file may have been renewed: read it again next time
            return Unreachable(
                f"its certificate is not trusted: {error.certificate_error}",
                where=where,
                remedy=f"correct certificate-authority or tls-server-name in {self.access.origin}",
            )
        if isinstance(error, TimeoutError):
            return Unreachable("no answer in time", where=where, remedy="see whether the server is up")
        return Unreachable(str(error) or repr(error), where=where, remedy="see whether the server is up")


def _headers(credential: Credential, content_type: str) -> dict[str, str]:
    headers = {"Content-Type": content_type}
    if credential.authorization:
        headers["Authorization"] = credential.authorization
    return headers


def _same_certificate(one: Credential, other: Credential) -> bool:
    return one.certificate == other.certificate and one.key == other.key


async def _refusal(response: aiohttp.ClientResponse, where: str) -> RefusedError:
    body = await response.content.read(ERROR_BODY_BYTES)
    status = parse_status(body)
    try:
        retry_after_s = float(response.headers.get("Retry-After", ""))
    except ValueError:
        retry_after_s = None
    return RefusedError(
        (status and status.message) or f"HTTP {response.status} {response.reason or ''}".strip(),
        where=where,
        status=response.status,
        reason=status.reason if status else "",
        retry_after_s=retry_after_s,
    )


def _is_local(family: int, address: str) -> bool:
    """Tell whether this host has the address: by binding to it."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _keepalive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices within half a minute that the other host is gone.

    A watch sends nothing, so without probes a server that vanished looks like one with no news.
    """
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return connection
