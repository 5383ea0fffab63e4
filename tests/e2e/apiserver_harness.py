"""An API server in the test's own event loop, and a client for it with an administrator's certificate."""

import asyncio
import contextlib
import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

from poplin.apiserver.server import ApiServer, Settings, serve

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {"containers": [{"name": "web", "image": "example.org/web:1"}]},
}


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {**POD, "metadata": {"name": name, "labels": labels}}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


class Client:
    """Requests by path; each answers (code, decoded body)."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        **query: Any,
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if body is not None else {}
        async with self.session.request(
            method, self.url + path, data=data, headers=headers, params=query
        ) as answer:
            return answer.status, json.loads(await answer.read())

    async def get(self, path: str, **query: Any) -> tuple[int, Any]:
        return await self.request("GET", path, **query)

    async def create(self, path: str, body: Any, **query: Any) -> tuple[int, Any]:
        return await self.request("POST", path, body, **query)

    async def update(self, path: str, body: Any, **query: Any) -> tuple[int, Any]:
        return await self.request("PUT", path, body, **query)

    async def patch(self, path: str, body: Any, kind: str = "merge", **query: Any) -> tuple[int, Any]:
        return await self.request("PATCH", path, body, content_type=f"application/{kind}-patch+json", **query)

    async def delete(self, path: str, body: Any = None, **query: Any) -> tuple[int, Any]:
        return await self.request("DELETE", path, body, **query)

    async def until(self, path: str, holds: Callable[[int, Any], bool]) -> None:
        """Return when what is at `path` is as wished."""
        async with asyncio.timeout(10):
            while not holds(*await self.get(path)):  # noqa: ASYNC110  - another process' state has no event
                await asyncio.sleep(0.01)

    async def until_gone(self, path: str) -> None:
        await self.until(path, lambda code, _: code == 404)

    @contextlib.asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator["Watch"]:
        async with self.session.get(self.url + path, params={"watch": "true", **query}) as answer:
            assert answer.status == 200, await answer.text()
            yield Watch(answer)


class Watch:
    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> tuple[str, Any]:
        """The next event: its type and object."""
        async with asyncio.timeout(10):
            line = await self.answer.content.readline()
        if not line:
            return "END", None
        event = json.loads(line)
        return event["type"], event["object"]

    async def names(self, count: int) -> list[tuple[str, str]]:
        return [(kind, body["metadata"]["name"]) for kind, body in [await self.next() for _ in range(count)]]


@contextlib.asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[tuple[ApiServer, Client]]:
    server = ApiServer(Settings(directory, **settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        async with server, serve(server, [listener]), connected(server, url) as client:
            yield server, client


@contextlib.asynccontextmanager
async def connected(server: ApiServer, url: str) -> AsyncIterator[Client]:
    certificate, key = server.authority.issue_client("admin", ["system:masters"])
    context = ssl.create_default_context(cafile=str(server.authority.certificate_path))
    with tempfile.NamedTemporaryFile(suffix=".pem") as pem:
        pem.write(certificate + key)
        pem.flush()
        context.load_cert_chain(pem.name)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as session:
        yield Client(url, session)
