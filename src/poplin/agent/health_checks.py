"""healthCheckNodePort: what a load balancer outside the cluster asks this node about a Service.

The answer is 200 where the node has ready endpoints of its own and serves Services, else 503; in JSON as
kube-proxy gives it.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import web

from poplin.compile.services.health import HealthCheck

Name = tuple[str, str]

RETRY_S: Final = 5.0
"""Wait before a port that was taken is tried again."""


class HealthChecks:
    """A listener for each port that is wanted. `healthy` tells whether Services are served at all."""

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy
        self._wanted: dict[int, HealthCheck] = {}
        self._runners: dict[int, web.AppRunner] = {}
        self._refused: dict[int, str] = {}
        self._news = asyncio.Event()

    def want(self, checks: Iterable[HealthCheck]) -> None:
        """Answer these from now on, and no others. Of two that want one port the first by name has it."""
        ordered = sorted(checks, key=lambda check: (check.namespace, check.name), reverse=True)
        self._wanted = {check.port: check for check in ordered}
        if self._wanted.keys() != self._runners.keys():
            self._news.set()

    def problems(self) -> dict[Name, str]:
        """Give the Services whose port cannot be had, and why."""
        return {
            (check.namespace, check.name): f"healthCheckNodePort {port}: {self._refused[port]}"
            for port, check in self._wanted.items()
            if port in self._refused
        }

    async def run(self) -> None:
        """Open and close ports as they are wanted, for ever."""
        while True:
            try:
                async with asyncio.timeout(RETRY_S if self._refused else None):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            for port in self._runners.keys() - self._wanted.keys():
                await self._runners.pop(port).cleanup()
            self._refused = {port: why for port, why in self._refused.items() if port in self._wanted}
            for port in sorted(self._wanted.keys() - self._runners.keys()):
                await self._open(port)

    async def close(self) -> None:
        """Stop listening."""
        for runner in self._runners.values():
            await runner.cleanup()
        self._runners.clear()

    async def _open(self, port: int) -> None:
        app = web.Application()
        app.add_routes([web.get("/{path:.*}", lambda _request: self._answer(port))])
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, port).start()
        except OSError as error:
            await runner.cleanup()
            self._refused[port] = error.strerror or str(error)
        else:
            self._runners[port] = runner
            self._refused.pop(port, None)

    async def _answer(self, port: int) -> web.Response:
        check = self._wanted.get(port)
        if check is None:
            return web.Response(status=503)
        healthy = self._healthy()
        body = {
            "service": {"namespace": check.namespace, "name": check.name},
            "localEndpoints": check.local_endpoints,
            "serviceProxyHealthy": healthy,
        }
        return web.json_response(
            body,
            status=200 if healthy and check.local_endpoints else 503,
            headers={"X-Load-Balancing-Endpoint-Weight": str(check.local_endpoints)},
        )
