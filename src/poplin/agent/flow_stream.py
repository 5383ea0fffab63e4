"""GET /flows on the agent's socket: a JSON object a line.

?verdict=denied (or allowed; repeatable, all without) chooses; with ?follow=true come those from now on, until
the client leaves, and {"lost": N} where some could not be told. Without it come what was denied of late, and the
connections that stand.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import aclosing, suppress
from typing import Final

import msgspec
from aiohttp import web

from poplin.agent.flows import Flows, Lost, encode
from poplin.model.errors import PoplinError
from poplin.model.flow import Flow, FlowVerdict

IDLE_S: Final = 1.0
"""A client that has left is noticed after so long."""


def flow_routes(flows: Flows) -> list[web.RouteDef]:
    """What the agent serves of its flows."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            verdicts = [FlowVerdict(text) for text in request.query.getall("verdict", [])] or list(
                FlowVerdict
            )
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        if request.query.get("follow") != "true":
            try:
                return _give(await _present(flows, verdicts))
            except PoplinError as error:
                raise web.HTTPServiceUnavailable(text=str(error)) from None
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        with suppress(ConnectionError):
            async with aclosing(flows.follow(verdicts, IDLE_S)) as following:
                await _send(request, response, following)
        return response

    return [web.get("/flows", answer)]


async def _present(flows: Flows, verdicts: Collection[FlowVerdict]) -> list[Flow]:
    told = [flow for flow in flows.recent() if flow.verdict in verdicts]
    if FlowVerdict.ALLOWED in verdicts:
        told += await flows.current()
    return told


def _give(told: list[Flow]) -> web.Response:
    lines = b"".join(msgspec.json.encode(encode(flow)) + b"\n" for flow in told)
    return web.Response(body=lines, content_type="application/x-ndjson")


async def _send(
    request: web.Request, response: web.StreamResponse, following: AsyncIterator[Flow | Lost | None]
) -> None:
    async for one in following:
        if request.transport is None or request.transport.is_closing():
            return
        if one is not None:
            await response.write(msgspec.json.encode(encode(one)) + b"\n")
