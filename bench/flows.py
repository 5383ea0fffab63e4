"""A flood of denied packets, beside an event loop that must go on with its work.

The rule that drops them tells of each, without the limit that the policy table's own rules have: the worst that a
node can meet. Beside it, the same flood with a rule that only drops says what telling costs the sender.
"""

import asyncio
import resource
import subprocess
import sys
import time
from contextlib import suppress

from bench.node import namespace, run_in
from bench.report import Figure, main, percentile, within
from poplin.agent.flows import Flows, Lost
from poplin.compile.policy.denial import NFLOG_GROUP
from poplin.compile.policy.flow import logged_flow
from poplin.dataplane.netns import entered
from poplin.model.flow import FlowEnd, FlowVerdict

FLOOD_S = 3.0
TICK_S = 0.001
CPU_LIMIT_PERCENT = 15.0

RULES = """
table inet flood {
  chain out {
    type filter hook output priority 0
    udp dport 9 log prefix "deny ingress - NetworkPolicy shop/back" group %d snaplen 128 drop
    udp dport 10 drop
  }
}
"""
SENDER = """
import socket, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
one, sent, end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0, time.monotonic() + seconds
while time.monotonic() < end:
    for _ in range(100):
        try:
            one.sendto(b"x" * 64, ("127.0.0.1", port))
        except OSError:
            pass
        sent += 1
print(sent / seconds)
"""


async def measure(port: int) -> list[Figure]:
    """Follow the node's denials while a process sends as fast as it can."""

    async def describe(seen, time_s):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return [logged_flow(one, time_s, FlowEnd) for one in seen]

    flows, told, lost, lags = Flows(describe), 0, 0, []

    async def follow() -> None:
        nonlocal told, lost
        async for one in flows.follow([FlowVerdict.DENIED], 1):
            told += one is not None and not isinstance(one, Lost)
            lost += one.flows if isinstance(one, Lost) else 0

    async def tick() -> None:
        while True:
            due_s = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            lags.append((time.perf_counter() - due_s) * 1000)

    tasks = [
        asyncio.create_task(one, name=name)
        for one, name in ((flows.run(), "flows"), (follow(), "follower"), (tick(), "ticks"))
    ]
    await asyncio.sleep(0.1)
    began_s, cpu_s = time.monotonic(), time.process_time()
    sender = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SENDER, str(port), str(FLOOD_S), stdout=subprocess.PIPE
    )
    output, _ = await sender.communicate()
    cpu_percent = (time.process_time() - cpu_s) / (time.monotonic() - began_s) * 100
    await asyncio.sleep(1.5)
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    sent = float(output)
    if port == 10:
        return [
            Figure("sent, dropped without a word", sent, "/s"),
            Figure("loop's lag p99, dropped without a word", percentile(lags, 99), "ms"),
        ]
    return [
        Figure("sent, each told of", sent, "/s"),
        Figure("told to a follower", told / FLOOD_S, "/s", note=f"{lost} told as lost"),
        within("CPU of the loop", cpu_percent, "%", CPU_LIMIT_PERCENT, "1,000 ticks a second among it"),
        Figure("loop's lag p99, each told of", percentile(lags, 99), "ms"),
        Figure("resident", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, "MB"),
    ]


def run() -> list[Figure]:
    """Give all figures."""
    with namespace("flood") as (_, fd), entered(fd):
        run_in(fd, "ip", "link", "set", "lo", "up")
        subprocess.run(["nft", "-f", "-"], input=RULES % NFLOG_GROUP, text=True, check=True)
        return [figure for port in (10, 9) for figure in asyncio.run(measure(port))]


if __name__ == "__main__":
    main("A flood of denied packets", run)
