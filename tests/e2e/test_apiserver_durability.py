"""What was acknowledged is there after kill -9."""

import asyncio
import json
import os
import random
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from e2e.apiserver_harness import config_map, running

MAPS = "/api/v1/namespaces/default/configmaps"
PROGRAM = """
import asyncio, socket, sys
from pathlib import Path
from poplin.apiserver.server import ApiServer, Settings, serve
async def main():
    directory, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    server = ApiServer(Settings(directory, tokens=directory.parent / "tokens.csv"))
    async with server, serve(server, [socket.socket(fileno=descriptor)]):
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("seed", [1, 2])
async def test_kill_9_loses_no_acknowledged_write(tmp_path: Path, seed: int):
    (tmp_path / "tokens.csv").write_text("token,writer,1\n")
    acknowledged: dict[str, dict] = {}
    attempted: dict[str, str] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM,
            str(tmp_path / "data"),
            str(listener.fileno()),
            pass_fds=[listener.fileno()],
        )
    connector = aiohttp.TCPConnector(ssl=False, limit=0)
    headers = {"Authorization": "Bearer token"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await until_ready(session, url)

        async def write(index: int) -> None:
            """Create, then update for ever; remember what was answered."""
            name, step = f"m{index}", 0
            while True:
                attempted[name] = str(step)
                body = config_map(name, step=str(step))
                method, path = ("POST", MAPS) if step == 0 else ("PUT", f"{MAPS}/{name}")
                async with session.request(method, url + path, data=json.dumps(body)) as answer:
                    assert answer.status in {200, 201}
                    acknowledged[name] = await answer.json()
                step += 1

        writers = [asyncio.create_task(write(index)) for index in range(16)]
        wanted = random.Random(seed).randrange(200, 600)
        async with asyncio.timeout(60):
            while count_steps(acknowledged) < wanted:  # noqa: ASYNC110  - counted by another task
                await asyncio.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*writers, return_exceptions=True)
    async with running(tmp_path / "data") as (_, client):
        for name, answered in acknowledged.items():
            code, found = await client.get(f"{MAPS}/{name}")
            assert code == 200
            # The very last write may have been committed without its answer; nothing older may be there.
            if found != answered:
                assert found["data"]["step"] == attempted[name]
                assert int(attempted[name]) == int(answered["data"]["step"]) + 1


def count_steps(acknowledged: dict[str, dict]) -> int:
    return sum(int(one["data"]["step"]) for one in acknowledged.values())


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
