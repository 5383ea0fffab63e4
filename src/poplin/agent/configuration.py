"""Where the agent's net-conf.json comes from: a file that is looked at, or a ConfigMap that is watched."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from poplin.agent.cluster import View
from poplin.datastore.core import CONFIG_MAPS
from poplin.datastore.netconf import parse_netconf
from poplin.datastore.source import Source
from poplin.model.cluster import ConfigMap
from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError
from poplin.model.netconf import NetConf

log = logging.getLogger(__name__)

NET_CONF_KEY: Final = "net-conf.json"
FILE_POLL_S: Final = 1.0


class Configuration:
    """The network configuration as last read. A bad one never takes the place of a good one.

    `conf` is None until there is one; `problem` says why there is none, or why the newest is not in force.
    `changed` is called after each change.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._text: str | None = None
        self._away = False  # no text was there when it was last looked for
        self.conf: NetConf | None = None
        self.problem: PoplinError | None = TemporaryError("the network configuration is not read yet")

    async def follow_file(self, path: Path) -> None:
        """Read the file again whenever it differs."""
        while True:
            try:
                self._take(path.read_text(), str(path))
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                self._miss(
                    InvalidInputError(
                        f"cannot read: {reason}",
                        where=str(path),
                        remedy="give the path of a net-conf.json with --net-conf",
                    )
                )
            await asyncio.sleep(FILE_POLL_S)

    async def follow_map(self, source: Source, namespace: str, name: str) -> None:
        """Watch the ConfigMap."""
        where = f"ConfigMap {namespace}/{name}"
        view: View[ConfigMap] = View(where)
        watch = source.watch(CONFIG_MAPS, namespace=namespace, field_selector=f"metadata.name={name}")
        async with aclosing(watch) as events:
            async for event in events:
                view.apply(event)
                found = view.objects.get((namespace, name))
                if found is not None and NET_CONF_KEY in found.data:
                    self._take(found.data[NET_CONF_KEY], f"{where}: {NET_CONF_KEY}")
                elif view.not_in_sync is not None:
                    self._miss(view.not_in_sync)
                else:
                    what = f"has no {NET_CONF_KEY}" if found else "does not exist"
                    self._miss(
                        TemporaryError(
                            what,
                            where=where,
                            remedy="create it (deploy/net-conf.yaml), or give a file with --net-conf",
                        )
                    )

    def _take(self, text: str, where: str) -> None:
        if text == self._text and not self._away:
            return
        self._text, self._away = text, False
        try:
            conf = parse_netconf(text, where)
        except InvalidInputError as error:
            self._refuse(error)
            return
        log.info("network configuration read", extra={"from": where, "backend": conf.backend.type})
        self.conf, self.problem = conf, None
        self._changed()

    def _miss(self, error: PoplinError) -> None:
        self._away = True
        self._refuse(error)

    def _refuse(self, error: PoplinError) -> None:
        if str(error) != str(self.problem):
            log.error("network configuration not in force", extra={"error": str(error)})
            self.problem = error
            self._changed()
