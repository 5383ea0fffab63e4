"""The server: one value that answers requests, and the sockets it is reached at."""

import asyncio
import base64
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from socket import socket
from typing import Final, Self

import yaml
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from poplin.apiserver import discovery, openapi, review, status
from poplin.apiserver.allocation import ServiceAllocator
from poplin.apiserver.authentication import ANONYMOUS, PUBLIC, Authenticator, TokenIssuer, read_tokens
from poplin.apiserver.certificates import Authority, load_key, write_private
from poplin.apiserver.collection import Object
from poplin.apiserver.customresource import CustomResources
from poplin.apiserver.endpoint import Endpoint, publish
from poplin.apiserver.garbage import Janitor
from poplin.apiserver.lifecycle import Hook, Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.podadmission import PodAdmission
from poplin.apiserver.podrules import SYSTEM_PRIORITIES
from poplin.apiserver.request import Call, Target, parse_path
from poplin.apiserver.resource import Registry
from poplin.apiserver.rest import Rest, respond
from poplin.apiserver.status import StatusError
from poplin.apiserver.store import Store
from poplin.apiserver.subresource import Subresources
from poplin.model.kernel import IPNetwork

log = logging.getLogger(__name__)
BODY_LIMIT_BYTES: Final = 3 << 20
NAMESPACES: Final = ("default", "kube-system", "kube-public", "kube-node-lease")
SHUTDOWN_TIMEOUT_S: Final = 2.0
SERVICE_NETWORKS: Final = (ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112"))
"""Where clusterIPs come from unless others are given."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server keeps its files, and the names and addresses its certificate is good for.

    `tokens` is a static token file (see `authentication.read_tokens`); `endpoint` is what pods are told
    about the server, None where nothing tells them. `service_networks` are what clusterIPs are taken from, at
    most one of each family: a Service that does not ask for a family gets the first one's.
    """

    directory: Path
    names: Sequence[str] = ()
    tokens: Path | None = None
    endpoint: Endpoint | None = None
    service_networks: Sequence[IPNetwork] = SERVICE_NETWORKS


class ApiServer:
    """A Kubernetes API over one directory. Use as an async context; `serve` gives it sockets.

    `hooks` see every object before it is validated and stored (see `lifecycle.Hook`).
    """

    def __init__(self, settings: Settings, hooks: Sequence[Hook] = ()) -> None:
        directory = settings.directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.settings = settings
        self.authority = Authority(directory / "pki")
        self.registry = Registry()
        self.store = Store(directory / "objects.db")
        self.lifecycle = Lifecycle(self.store, self.registry, hooks)
        tokens = TokenIssuer(load_key(directory / "pki" / "sa.key"), self._account_lives)
        static = read_tokens(settings.tokens) if settings.tokens else {}
        self.authenticator = Authenticator(static, tokens)
        definitions = self.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        assert definitions is not None  # noqa: S101  - a row of data/resources.toml
        self._customs = CustomResources(self.lifecycle, definitions)
        self._allocator = ServiceAllocator(self.lifecycle, settings.service_networks)
        self.lifecycle.hooks += [self._customs.prepare, self._allocator, PodAdmission(self.lifecycle)]
        self._rest = Rest(self.lifecycle)
        self.subresources = Subresources(self.lifecycle, self._rest, tokens)
        self._janitor = Janitor(self.lifecycle, self._customs, self.authority.pem.decode())

    async def __aenter__(self) -> Self:
        self._customs.load()
        self._allocator.load()
        self.store.listen(self._customs.observe)
        self._janitor.start()
        await self._bootstrap()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._janitor.stop()
        await self.store.close()

    async def _bootstrap(self) -> None:
        """Make what every cluster has."""
        for name in NAMESPACES:
            await self._ensure("", "namespaces", {"metadata": {"name": name}})
        for name, value in SYSTEM_PRIORITIES.items():
            body = {"metadata": {"name": name}, "value": value}
            await self._ensure("scheduling.k8s.io", "priorityclasses", body)
        if self.settings.endpoint is not None:
            await publish(self.lifecycle, self.settings.endpoint)

    async def _ensure(self, group: str, plural: str, wanted: Object) -> None:
        resource = self.registry.find(group, "v1", plural)
        assert resource is not None  # noqa: S101  - a row of data/resources.toml
        if self.lifecycle.collection(resource).head(("", wanted["metadata"]["name"])) is None:
            await self.lifecycle.create(resource, "", wanted, Options())

    def _account_lives(self, namespace: str, name: str, uid: str) -> bool:
        entry = self.store.open("/serviceaccounts").entries.get((namespace, name))
        return entry is not None and entry.uid == uid and not entry.deleting

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever goes wrong is told as a Status."""
        try:
            return await self._dispatch(request)
        except StatusError as error:
            response = respond(error.document(), error.code)
            if error.code == 401:
                response.headers["WWW-Authenticate"] = 'Bearer realm="poplin"'
            return response
        except web.HTTPRequestEntityTooLarge:
            message = f"Request entity too large: limit is {BODY_LIMIT_BYTES}"
            return respond(StatusError(413, "RequestEntityTooLarge", message).document(), 413)
        except Exception:  # the client and the log are told; the server goes on
            log.exception("%s %s failed", request.method, request.path)
            message = "Internal error occurred: the server met a fault of its own; its log has the details"
            return respond(StatusError(500, "InternalError", message).document(), 500)

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        user = self.authenticator.identify(request)
        if user is None or (user is ANONYMOUS and path.rstrip("/") not in PUBLIC):
            raise status.unauthorized()
        target = parse_path(path)
        if target is None:
            return self._answer_plain(request, path)
        resource = self.registry.find(target.group, target.version, target.plural)
        if resource is None:
            raise status.no_such_path(self._name_versions(target))
        call = Call(request, user, resource, target)
        if target.subresource:
            return await self.subresources.handle(call)
        if resource.verbs == ("create",):
            return await review.answer_review(call, self.authenticator)
        return await self._rest.handle(call)

    def _name_versions(self, target: Target) -> str:
        """Where the type is that somebody asks for in a version that is not served, "" where there is none."""
        versions = self.registry.groups().get(target.group, {})
        served = [version for version in versions if self.registry.find(target.group, version, target.plural)]
        if not served:
            return ""
        return f": {status.qualify(target.plural, target.group)} are served as {', '.join(served)}, not {target.version}"

    def _answer_plain(self, request: web.BaseRequest, path: str) -> web.Response:
        """Health, version, discovery and OpenAPI."""
        path = path.rstrip("/") or "/"
        if request.method not in {"GET", "HEAD"}:
            raise status.method_not_allowed()
        if path in PUBLIC and path != "/version":
            return web.Response(text="ok")
        if path == "/version":
            return respond(discovery.describe_version())
        if path == "/openapi/v3":
            return respond(openapi.list_documents(self.registry))
        if path.startswith("/openapi/v3/"):
            return self._answer_openapi(path.removeprefix("/openapi/v3/"))
        if path == "/":
            roots = ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]
            return respond({"paths": roots})
        accept = request.headers.get("Accept", "")
        aggregated = f"g={discovery.AGGREGATED}" in accept and "v=v2;" in accept + ";"
        document = discovery.answer(self.registry, path, aggregated=aggregated)
        if document is None:
            raise status.no_such_path()
        response = respond(document)
        if document["kind"] == "APIGroupDiscoveryList":
            kind = f"application/json;g={discovery.AGGREGATED};v=v2;as=APIGroupDiscoveryList"
            response.headers["Content-Type"] = kind
        return response

    def _answer_openapi(self, path: str) -> web.Response:
        parts = path.split("/")
        group, version = (parts[1], parts[2]) if parts[0] == "apis" and len(parts) == 3 else ("", parts[-1])
        document = openapi.describe(self.registry, group, version)
        if document is None:
            raise status.no_such_path()
        return respond(document)

    def tls(self) -> ssl.SSLContext:
        """The server's TLS: its own certificate; clients may show one that its authority signed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        certificate, key = self.authority.issue_server(self.settings.names)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(self.authority.certificate_path)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def write_kubeconfig(self, path: Path, server: str, user: str = "kubernetes-admin") -> None:
        """A kubeconfig for `server` ("https://127.0.0.1:6443") with a new client certificate of an administrator."""
        certificate, key = self.authority.issue_client(user, ["system:masters"])
        write_private(
            path, yaml.safe_dump(make_kubeconfig(server, self.authority.pem, certificate, key)).encode()
        )


def make_kubeconfig(server: str, ca: bytes, certificate: bytes, key: bytes) -> Object:
    def encode(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "poplin", "cluster": {"server": server, "certificate-authority-data": encode(ca)}}
        ],
        "users": [
            {
                "name": "poplin-admin",
                "user": {"client-certificate-data": encode(certificate), "client-key-data": encode(key)},
            }
        ],
        "contexts": [{"name": "poplin", "context": {"cluster": "poplin", "user": "poplin-admin"}}],
        "current-context": "poplin",
    }


@contextlib.asynccontextmanager
async def serve(app: ApiServer, sockets: Iterable[socket]) -> AsyncIterator[None]:
    """Answer at every one of the bound `sockets`, which may belong to any network namespace, until the context ends."""

    def make_request(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=BODY_LIMIT_BYTES
        )

    loop = asyncio.get_running_loop()
    server = web.Server(app.handle, request_factory=make_request, handler_cancellation=True, access_log=None)
    context = app.tls()
    listeners = [await loop.create_server(server, sock=one, ssl=context, backlog=1024) for one in sockets]
    try:
        yield
    finally:
        for listener in listeners:
            listener.close()
        app.store.end_watches()
        await server.shutdown(SHUTDOWN_TIMEOUT_S)
