"""Credentials that change under us: token files that kubelet renews, exec plugins whose tokens expire."""

import asyncio
import base64
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from poplin.datastore.access import Access, ExecPlugin, Identity
from poplin.datastore.parse import describe
from poplin.model.errors import PoplinError, TemporaryError

REREAD_S: Final = 60
"""Age at which files are read again. Kubelet renews a token at 80% of its life, ten minutes at least."""

PLUGIN_TIMEOUT_S: Final = 60
EXPIRY_MARGIN_S: Final = 10
"""A credential this near its end is fetched anew: the request under way must still find it valid."""


class CredentialError(TemporaryError):
    """Credentials that cannot be had now: a file is away, a plugin failed."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request carries: an Authorization header ("" for none), a client certificate and key as PEM."""

    authorization: str = field(default="", repr=False)
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)


class CredentialSource(Protocol):
    """Gives the credential of the moment."""

    async def current(self) -> Credential:
        """The credential to use now. Raises CredentialError."""
        ...

    def invalidate(self, refused: Credential) -> None:
        """The server did not know this one (401): where it is still the current one, get another."""
        ...


def open_credentials(access: Access, *, now: Callable[[], float] = time.time) -> CredentialSource:
    """The source of an access' credentials; `now` is seconds since the epoch."""
    plugin = access.identity.plugin
    if plugin is not None:
        return PluginCredentials(plugin, where=access.origin, now=now)
    return StoredCredentials(access.identity, where=access.origin, now=now)


class StoredCredentials:
    """Credentials from the kubeconfig itself or from the files it names, read again from time to time."""

    def __init__(self, identity: Identity, *, where: str, now: Callable[[], float]) -> None:
        self._identity = identity
        self._where = where
        self._now = now
        self._credential = Credential()
        self._read_at: float | None = None

    async def current(self) -> Credential:
        if self._read_at is None or not 0 <= self._now() - self._read_at < REREAD_S:
            self._credential = self._read()
            self._read_at = self._now()
        return self._credential

    def invalidate(self, refused: Credential) -> None:
        if refused is self._credential:
            self._read_at = None

    def _read(self) -> Credential:
        identity = self._identity
        authorization = ""
        if identity.token_file is not None:
            token = self._content(identity.token_file, "token").decode("ascii", "replace").strip()
            if not token:
                raise CredentialError(
                    f"token file {identity.token_file} is empty", where=self._where, remedy="renew the token"
                )
            authorization = f"Bearer {token}"
        elif identity.token:
            authorization = f"Bearer {identity.token}"
        elif identity.username:
            pair = f"{identity.username}:{identity.password}".encode()
            authorization = f"Basic {base64.b64encode(pair).decode()}"
        return Credential(
            authorization=authorization,
            certificate=self._content(identity.certificate, "client certificate"),
            key=self._content(identity.key, "client key"),
        )

    def _content(self, place: bytes | Path | None, name: str) -> bytes:
        if place is None or isinstance(place, bytes):
            return place or b""
        try:
            return place.read_bytes()
        except OSError as error:
            raise CredentialError(
                f"cannot read the {name} {place}: {error.strerror}",
                where=self._where,
                remedy="restore the file or name another in the kubeconfig",
            ) from None


class ExecStatus(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    status: ExecStatus


class PluginCredentials:
    """Credentials printed by a program ("Client Authentication (v1)"), kept until they expire.

    A credential without expirationTimestamp is kept until the server refuses it. Requests that come
    while the plugin runs wait for the one run.
    """

    def __init__(self, plugin: ExecPlugin, *, where: str, now: Callable[[], float]) -> None:
        self._plugin = plugin
        self._where = where
        self._now = now
        self._credential: Credential | None = None
        self._expires_at: float | None = None
        self._running = asyncio.Lock()

    async def current(self) -> Credential:
        async with self._running:
            expired = self._expires_at is not None and self._now() > self._expires_at - EXPIRY_MARGIN_S
            if self._credential is None or expired:
                status = self._parse(await self._run())
                self._expires_at = (
                    status.expiration_timestamp.timestamp() if status.expiration_timestamp else None
                )
                self._credential = Credential(
                    authorization=f"Bearer {status.token}" if status.token else "",
                    certificate=status.client_certificate_data.encode(),
                    key=status.client_key_data.encode(),
                )
            return self._credential

    def invalidate(self, refused: Credential) -> None:
        # Of several requests refused at once, the first has brought a new one by now.
        if refused is self._credential:
            self._credential = None

    async def _run(self) -> bytes:
        plugin = self._plugin
        info = {
            "apiVersion": plugin.api_version,
            "kind": "ExecCredential",
            "spec": {"interactive": False} | ({"cluster": plugin.cluster} if plugin.cluster else {}),
        }
        environment = os.environ | dict(plugin.environment)
        environment["KUBERNETES_EXEC_INFO"] = msgspec.json.encode(info).decode()
        try:
            process = await asyncio.create_subprocess_exec(
                plugin.command,
                *plugin.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise self._failure(error.strerror or str(error), plugin.install_hint) from None
        try:
            async with asyncio.timeout(PLUGIN_TIMEOUT_S):
                output, complaint = await process.communicate()
        except TimeoutError:
            raise self._failure(f"no answer within {PLUGIN_TIMEOUT_S} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = complaint.decode("utf-8", "replace").strip()[-500:]
            raise self._failure(f"exit status {process.returncode}: {said}", plugin.install_hint)
        return output

    def _parse(self, output: bytes) -> ExecStatus:
        try:
            credential = msgspec.json.decode(output, type=ExecCredential)
        except msgspec.ValidationError as error:
            raise self._failure(f"its output: {describe(error)}") from None
        except msgspec.DecodeError as error:
            raise self._failure(f"its output is not JSON: {error}") from None
        if (credential.api_version, credential.kind) != (self._plugin.api_version, "ExecCredential"):
            raise self._failure(
                f"it printed a {credential.api_version} {credential.kind}"
                f" where {self._plugin.api_version} ExecCredential was asked for"
            )
        status = credential.status
        if bool(status.client_certificate_data) != bool(status.client_key_data):
            raise self._failure("it printed a client certificate or key without the other")
        if not status.token and not status.client_certificate_data:
            raise self._failure("it printed neither a token nor a client certificate")
        return status

    def _failure(self, what: str, hint: str = "") -> PoplinError:
        return CredentialError(
            f"exec plugin {self._plugin.command}: {what}",
            where=self._where,
            remedy=hint or "run the plugin by hand to see why",
        )
