"""Cluster DNS in a pod, until SIGTERM. The API server is the pod's own (KUBERNETES_SERVICE_HOST and a token)."""

import asyncio
import os
import sys

from poplin.agent import log
from poplin.agent.process import serve_until_signal
from poplin.datastore.kubeconfig import find_access
from poplin.datastore.kubernetes import KubernetesSource
from poplin.lab.dns.feed import Feed
from poplin.lab.dns.server import serving
from poplin.lab.dns.zone import Zone
from poplin.model.errors import PoplinError


async def run() -> None:
    """Serve until cancelled. Nobody is answered before everything has been read once."""
    zone = Zone()
    async with KubernetesSource(find_access(os.environ), component="kube-dns") as source:
        feed = Feed(source, zone)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(feed.run(), name="feed")
            await feed.ready.wait()
            async with serving(zone):
                await asyncio.Event().wait()


if __name__ == "__main__":
    log.configure("info")
    try:
        asyncio.run(serve_until_signal(run()))
    except PoplinError as error:
        sys.exit(f"poplin: {error}")
