"""What the agent answers over HTTP: is it alive, is it ready and if not why, and its whole state.

/healthz and /livez say that the event loop turns, /readyz that the node serves pods (503 with the reasons
where it does not). On the unix socket alone, which is root's: /status is the report as JSON, /services what
the kernel serves; POST /audit has the kernel compared with what is wanted, and adds how much it `mended`.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from aiohttp import web

from poplin.agent.report import Report, encode_report
from poplin.model.errors import InvalidInputError, PoplinError

MAX_PORT: Final = 65535


class Endpoints:
    """The agent's HTTP server, on a unix socket for the command line and on an address for kubelet."""

    def __init__(
        self,
        report: Callable[[], Report],
        audit: Callable[[], Awaitable[int]],
        services: Callable[[], Awaitable[bytes]],
        routes: Sequence[web.RouteDef] = (),
    ) -> None:
        """`routes` are others' that are served on the unix socket."""
        self._report = report
        self._run_audit = audit
        self._list_services = services
        health = [
            web.get("/healthz", self._alive),
            web.get("/livez", self._alive),
            web.get("/readyz", self._ready),
        ]
        control = [
            web.get("/status", self._status),
            web.post("/audit", self._audit),
            web.get("/services", self._services),
            *routes,
        ]
        self._probes = _runner(health)
        self._runner = _runner([*health, *control])

    async def open(self, socket: Path, address: str) -> None:
        """Listen. `address` is "host:port", "" for none. Raises PoplinError."""
        await self._runner.setup()
        await self._probes.setup()
        try:
            socket.unlink(missing_ok=True)
            await web.UnixSite(self._runner, str(socket)).start()
            socket.chmod(0o600)
        except OSError as error:
            raise PoplinError(
                f"cannot listen: {error.strerror}", where=str(socket), remedy="choose another --run-dir"
            ) from error
        if not address:
            return
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or int(port) > MAX_PORT:
            raise InvalidInputError(
                f"{address!r} is not host:port", where="--health-address", remedy="write 127.0.0.1:9099"
            )
        try:
            await web.TCPSite(self._probes, host.strip("[]"), int(port)).start()
        except OSError as error:
            raise PoplinError(
                f"cannot listen: {error.strerror}",
                where=f"--health-address {address}",
                remedy="choose a free port, or '' for none",
            ) from error

    async def close(self) -> None:
        """Stop listening."""
        await self._probes.cleanup()
        await self._runner.cleanup()

    async def _alive(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        report = self._report()
        lines = [f"[{'+' if c.ok else '-'}] {c.name} {c.reason}".rstrip() for c in report.conditions]
        return web.Response(text="\n".join(lines) + "\n", status=200 if report.ready else 503)

    async def _status(self, _request: web.Request) -> web.Response:
        return web.Response(body=encode_report(self._report()), content_type="application/json")

    async def _audit(self, _request: web.Request) -> web.Response:
        mended = await self._run_audit()
        return web.Response(
            body=encode_report(self._report(), mended=mended), content_type="application/json"
        )

    async def _services(self, _request: web.Request) -> web.Response:
        """What Services the kernel serves; 409 where they are left to another proxy, 503 where it cannot be read."""
        try:
            return web.Response(body=await self._list_services(), content_type="application/json")
        except InvalidInputError as error:
            return web.json_response({"error": str(error)}, status=409)
        except PoplinError as error:
            return web.json_response({"error": str(error)}, status=503)


def _runner(routes: Sequence[web.RouteDef]) -> web.AppRunner:
    app = web.Application()
    app.add_routes(routes)
    return web.AppRunner(app, access_log=None, handle_signals=False)
