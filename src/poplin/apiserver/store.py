"""Every object of the API in one SQLite file, and in memory for reading.

Writes that arrive together are committed together: one transaction, one fsync (synchronous FULL), by one
thread. A write is acknowledged and shown to readers and watchers only after its commit, so nobody has
seen what a crash could take back. Revisions are one sequence over all types, in the order of commits.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from poplin.apiserver.collection import Collection, Entry, Event, Key, Object, make_entry
from poplin.apiserver.status import StatusError, unavailable
from poplin.model.errors import InvalidInputError

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS objects (
    collection TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    revision INTEGER NOT NULL, data BLOB NOT NULL,
    UNIQUE (collection, namespace, name)
);
CREATE TABLE IF NOT EXISTS revisions (collection TEXT PRIMARY KEY, newest INTEGER NOT NULL);
INSERT OR IGNORE INTO revisions VALUES ('', 1);
"""
UPSERT: Final = """
INSERT INTO objects VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT DO UPDATE SET revision = ?4, data = ?5
"""
ADVANCE: Final = "INSERT OR REPLACE INTO revisions VALUES (?, ?)"
DELETE: Final = "DELETE FROM objects WHERE collection = ? AND namespace = ? AND name = ?"
Listener = Callable[[Collection, Event], None]


class StaleError(Exception):
    """The object changed since it was read: read it again."""


def _connect(path: Path | str) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        # No second process may write here: the memory would not know of it.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(SCHEMA)
    except sqlite3.Error as error:
        remedy = "stop the server that uses it, or choose another directory"
        raise InvalidInputError(
            f"the store cannot be opened: {error}", where=str(path), remedy=remedy
        ) from error
    return database


@dataclass(slots=True)
class _Write:
    collection: Collection
    event: Event
    done: "asyncio.Future[Entry]"


class Store:
    """The objects under one SQLite file. All methods belong to one event loop.

    Raises InvalidInputError where the file cannot be opened, or another process has it.
    """

    def __init__(self, path: Path | str) -> None:
        self._database = _connect(path)
        (self.revision,) = self._database.execute("SELECT max(newest) FROM revisions").fetchone()
        """The newest revision that readers see."""
        self._assigned: int = self.revision
        self._collections: dict[str, Collection] = {}
        self._queue: list[_Write] = []
        self._committer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "store")
        self._listeners: list[Listener] = []

    def open(self, name: str, fields: Sequence[str] = ()) -> Collection:
        """The collection `name`, read from disk when it is first asked for."""
        known = self._collections.get(name)
        if known is not None:
            return known
        collection = Collection(name, tuple(fields))
        collection.load(self._read(collection), self._newest(name))
        self._collections[name] = collection
        return collection

    def _newest(self, name: str) -> int:
        """The newest revision of a collection: who has seen that may go on watching after a restart."""
        query = "SELECT newest FROM revisions WHERE collection IN (?, '') ORDER BY newest DESC"
        (newest,) = self._thread.submit(lambda: self._database.execute(query, (name,)).fetchone()).result()
        return int(newest)

    def _read(self, collection: Collection) -> Iterator[Entry]:
        rows = self._thread.submit(
            lambda: self._database.execute(
                "SELECT namespace, name, revision, data FROM objects WHERE collection = ?", (collection.name,)
            ).fetchall()
        ).result()
        for namespace, name, revision, data in rows:
            document = msgspec.json.decode(data)
            yield make_entry((namespace, name), revision, data, document, collection.fields)

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every change, in order, when it is durable. It must not block or raise."""
        self._listeners.append(listener)

    async def write(
        self, collection: Collection, key: Key, document: Object, previous: Entry | None
    ) -> Entry:
        """Put `document` in the place of `previous`, None for a new object; return when it is durable.

        Sets metadata.resourceVersion. Raises StaleError where `previous` is no longer the newest version.
        """
        return await self._submit(collection, key, document, previous, "MODIFIED" if previous else "ADDED")

    async def delete(self, collection: Collection, document: Object, previous: Entry) -> Entry:
        """Remove `previous`; watchers see `document` go. Raises StaleError as `write` does."""
        return await self._submit(collection, previous.key, document, previous, "DELETED")

    def _submit(
        self, collection: Collection, key: Key, document: Object, previous: Entry | None, kind: str
    ) -> "asyncio.Future[Entry]":
        if collection.head(key) is not previous:
            raise StaleError
        self._assigned += 1
        document["metadata"]["resourceVersion"] = str(self._assigned)
        data = msgspec.json.encode(document)
        entry = make_entry(key, self._assigned, data, document, collection.fields)
        event = collection.pending[key] = Event(kind, entry, previous)
        done: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._queue.append(_Write(collection, event, done))
        if self._committer is None:
            self._committer = asyncio.create_task(self._commit_all(), name="store-commit")
        return done

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                await loop.run_in_executor(self._thread, self._commit, batch)
            except sqlite3.Error as error:
                # Later writes may build on the failed ones, so all that wait fail with them.
                self._reject(batch + self._queue, unavailable(f"the store cannot write: {error}"))
                self._queue = []
                continue
            self._publish(batch)
        self._committer = None

    def _commit(self, batch: Sequence[_Write]) -> None:
        database = self._database
        database.execute("BEGIN")
        try:
            for write in batch:
                event, entry = write.event, write.event.entry
                if event.type == "DELETED":
                    database.execute(DELETE, (write.collection.name, *entry.key))
                else:
                    database.execute(UPSERT, (write.collection.name, *entry.key, entry.revision, entry.data))
            newest = {write.collection.name: write.event.entry.revision for write in batch}
            database.executemany(ADVANCE, newest.items())
            database.execute("COMMIT")
        except sqlite3.Error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _publish(self, batch: Iterable[_Write]) -> None:
        for write in batch:
            self.revision = write.event.entry.revision
            write.collection.publish(write.event)
            for listener in self._listeners:
                listener(write.collection, write.event)
            if not write.done.done():
                write.done.set_result(write.event.entry)

    def _reject(self, batch: Iterable[_Write], error: StatusError) -> None:
        for write in batch:
            write.collection.pending.clear()
            if not write.done.done():
                write.done.set_exception(error)

    def end_watches(self) -> None:
        """Let every watch end now."""
        for collection in self._collections.values():
            collection.close()

    async def close(self) -> None:
        """Wait for what is being written, then let go of the file."""
        if self._committer is not None:
            await self._committer
        self.end_watches()
        self._thread.shutdown()
        self._database.close()
