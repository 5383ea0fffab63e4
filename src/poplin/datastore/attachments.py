"""The attachments of this node and the addresses that rest, in SQLite under the agent's state directory.

One commit writes to the log in the page cache and waits for no disk (WAL, synchronous NORMAL): a killed agent
loses nothing, and a machine that lost its power has lost its pods too. An address has one row, whose owner is
an attachment or nobody; so the database itself refuses a second owner.

The schema grows by steps, and a database of an older one is brought up to date when it is opened. A step only adds
what has a default, and what is read or written is named: so the version of the program before can go on with the
database of the one after, when a node goes back.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self

from poplin.ipam.pool import REST_S
from poplin.model.attachment import Attachment, AttachmentState, Limit, PortMapping
from poplin.model.cluster import TransportProtocol
from poplin.model.errors import PoplinError, TemporaryError
from poplin.model.kernel import IPAddress

Key = tuple[str, str]
"""(container id, interface name)."""

_STEPS: Final = (
    """
CREATE TABLE attachment (
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    netns TEXT NOT NULL,
    mac TEXT NOT NULL,
    mtu_bytes INTEGER NOT NULL,
    host_link TEXT NOT NULL,
    pod_namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL,
    pod_uid TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (container_id, ifname)
) WITHOUT ROWID;
CREATE TABLE address (
    address TEXT NOT NULL PRIMARY KEY,
    container_id TEXT,
    ifname TEXT,
    freed_at_s REAL
) WITHOUT ROWID;
CREATE INDEX address_owner ON address (container_id, ifname);
""",
    """
ALTER TABLE attachment ADD COLUMN ingress_rate_bits_s INTEGER;
ALTER TABLE attachment ADD COLUMN ingress_burst_bits INTEGER;
ALTER TABLE attachment ADD COLUMN egress_rate_bits_s INTEGER;
ALTER TABLE attachment ADD COLUMN egress_burst_bits INTEGER;
CREATE TABLE port_mapping (
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    protocol TEXT NOT NULL,
    host_address TEXT NOT NULL,
    host_port INTEGER NOT NULL,
    container_port INTEGER NOT NULL,
    PRIMARY KEY (container_id, ifname, protocol, host_address, host_port)
) WITHOUT ROWID;
""",
    """
ALTER TABLE attachment ADD COLUMN netns_cookie INTEGER NOT NULL DEFAULT 0;
CREATE TABLE boot (boot_id TEXT NOT NULL);
""",
)
"""What makes each version of the schema from the one before; `user_version` counts those that are done."""

_ATTACHMENT_COLUMNS: Final = (
    "container_id, ifname, netns, mac, mtu_bytes, host_link, pod_namespace, pod_name, pod_uid, state, netns_cookie,"
    " ingress_rate_bits_s, ingress_burst_bits, egress_rate_bits_s, egress_burst_bits"
)
_MAPPING_COLUMNS: Final = "container_id, ifname, protocol, host_address, host_port, container_port"
_INSERT_ATTACHMENT: Final = (
    f"INSERT INTO attachment ({_ATTACHMENT_COLUMNS})"  # noqa: S608  - the columns are the constant above
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SELECT_ATTACHMENTS: Final = (
    f"SELECT {_ATTACHMENT_COLUMNS} FROM attachment"  # noqa: S608  - the columns are the constant above
    " ORDER BY container_id, ifname"
)
_INSERT_MAPPING: Final = (
    f"INSERT INTO port_mapping ({_MAPPING_COLUMNS})"  # noqa: S608  - the columns are the constant above
    " VALUES (?, ?, ?, ?, ?, ?)"
)
_SELECT_MAPPINGS: Final = (
    f"SELECT {_MAPPING_COLUMNS} FROM port_mapping"  # noqa: S608  - the columns are the constant above
    " ORDER BY protocol, host_port, host_address"
)
# The log is folded into the database by `checkpoint`, off the path of an ADD; this only bounds it (16 MiB).
_WAL_BOUND_PAGES: Final = 4000
_BUSY_TIMEOUT_S: Final = 1.0


class DamagedError(PoplinError):
    """The database's file is not what was written there."""


class AttachmentStore:
    """An open database. It belongs to the thread that opened it; one commit takes some 50 microseconds.

    Every method raises PoplinError where the database cannot be read or written; a failed write has changed
    nothing, and is in `problem` until a write succeeds.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self.problem: PoplinError | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the database, or make it in an existing directory. A damaged one is an error, never replaced."""
        with _explained(path):
            store = cls(path, sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None))
        try:
            with _explained(path):
                store._prepare()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the database; the log is folded into it if nobody else has it open."""
        self._connection.close()

    def add(self, attachment: Attachment) -> None:
        """Store an attachment, its addresses and port mappings, as ADDING or READY.

        Raises PoplinError where the attachment stands already or an address is another's.
        """
        a = attachment
        key = (a.container_id, a.ifname)
        identity = (*key, a.netns, a.mac, a.mtu_bytes, a.host_link, a.pod_namespace, a.pod_name, a.pod_uid)
        limits = (*_columns(a.ingress), *_columns(a.egress))
        with self._transaction() as execute:
            try:
                execute(_INSERT_ATTACHMENT, (*identity, a.state, a.netns_cookie, *limits))
            except sqlite3.IntegrityError:
                raise self._error(f"attachment {a.container_id} {a.ifname} stands already") from None
            for address in a.addresses:
                taken = execute(
                    "INSERT INTO address (address, container_id, ifname) VALUES (?, ?, ?) ON CONFLICT (address) DO UPDATE SET"
                    " container_id = excluded.container_id, ifname = excluded.ifname, freed_at_s = NULL"
                    " WHERE container_id IS NULL",
                    (str(address), *key),
                )
                if taken.rowcount != 1:
                    raise self._error(f"address {address} belongs to another attachment")
            for m in a.port_mappings:
                host_address = str(m.host_address) if m.host_address is not None else ""
                execute(
                    _INSERT_MAPPING,
                    (*key, m.protocol, host_address, m.host_port, m.container_port),
                )

    def update(self, attachment: Attachment) -> None:
        """Store the attachment's state, namespace, MAC and MTU as they are now. One not stored stays so."""
        a = attachment
        with self._transaction() as execute:
            execute(
                "UPDATE attachment SET state = ?, netns_cookie = ?, mac = ?, mtu_bytes = ?"
                " WHERE container_id = ? AND ifname = ?",
                (a.state, a.netns_cookie, a.mac, a.mtu_bytes, a.container_id, a.ifname),
            )

    def boot(self, boot_id: str) -> bool:
        """Tell whether the attachments are of another boot of the machine than this, and that this one is seen.

        It also shows whether the database can be written.
        """
        with self._transaction() as execute:
            seen = execute("SELECT boot_id FROM boot").fetchone()
            execute("DELETE FROM boot")
            execute("INSERT INTO boot (boot_id) VALUES (?)", (boot_id,))
        return seen is not None and seen[0] != boot_id

    def remove(self, key: Key, now_s: float) -> None:
        """Forget the attachment and let its addresses rest from `now_s` (Unix time). None there is success."""
        with self._transaction() as execute:
            execute("DELETE FROM attachment WHERE container_id = ? AND ifname = ?", key)
            execute("DELETE FROM port_mapping WHERE container_id = ? AND ifname = ?", key)
            execute(
                "UPDATE address SET container_id = NULL, ifname = NULL, freed_at_s = ?"
                " WHERE container_id = ? AND ifname = ?",
                (now_s, *key),
            )
            execute("DELETE FROM address WHERE container_id IS NULL AND freed_at_s <= ?", (now_s - REST_S,))

    def all(self) -> list[Attachment]:
        """Every attachment, in order of its key. Raises DamagedError for a row that says nothing."""
        with _explained(self._path):
            rows = self._connection.execute(_SELECT_ATTACHMENTS).fetchall()
            owned = self._connection.execute(
                "SELECT container_id, ifname, address FROM address WHERE container_id IS NOT NULL"
            ).fetchall()
            mapped = self._connection.execute(_SELECT_MAPPINGS).fetchall()
        try:
            return _read_attachments(rows, owned, mapped)
        except ValueError as error:
            raise _damage(self._path, str(error)) from error

    def resting(self, now_s: float) -> list[tuple[IPAddress, float]]:
        """(address, seconds since it was freed) of each that still rests at `now_s` (Unix time).

        A wall clock jumps. One set back leaves an age of 0, so that nothing rests longer than it should from
        now; one set forward ends rests early, which the pool would do under pressure anyway.
        """
        with _explained(self._path):
            rows = self._connection.execute(
                "SELECT address, freed_at_s FROM address WHERE container_id IS NULL AND freed_at_s > ?",
                (now_s - REST_S,),
            ).fetchall()
        return [(ip_address(address), max(now_s - freed_at_s, 0.0)) for address, freed_at_s in rows]

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute(f"PRAGMA wal_autocheckpoint = {_WAL_BOUND_PAGES}")
        damage = execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(" ".join(damage.split()))
        version = execute("PRAGMA user_version").fetchone()[0]
        if version < len(_STEPS):
            # One script is one transaction: an agent killed here leaves the old schema, not half of the new.
            steps = "".join(_STEPS[version:])
            self._connection.executescript(f"BEGIN; {steps} PRAGMA user_version = {len(_STEPS)}; COMMIT;")
        elif version > len(_STEPS) + 1:
            raise self._error(
                f"the database is of schema {version}, this program knows {len(_STEPS)}",
                remedy="run the version of poplin that wrote it",
            )

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        try:
            with self._attempt() as execute:
                yield execute
        except PoplinError as error:
            if isinstance(error.__cause__, sqlite3.Error):
                self.problem = error
            raise
        self.problem = None

    @contextmanager
    def _attempt(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        with _explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors roll back by themselves
                    self._connection.execute("ROLLBACK")
                raise

    def _error(self, what: str, remedy: str = "") -> PoplinError:
        return PoplinError(what, where=str(self._path), remedy=remedy)


def _damage(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"the attachment database is damaged ({why})",
        where=str(path),
        remedy="restart the agent: it sets the file aside and takes the pods over from the kernel",
    )


def _read_attachments(
    rows: list[tuple[Any, ...]], owned: list[tuple[Any, ...]], mapped: list[tuple[Any, ...]]
) -> list[Attachment]:
    mappings: dict[Key, list[PortMapping]] = {}
    for container_id, ifname, *columns in mapped:
        mappings.setdefault((container_id, ifname), []).append(_port_mapping(*columns))
    addresses: dict[Key, list[IPAddress]] = {}
    for container_id, ifname, address in owned:
        addresses.setdefault((container_id, ifname), []).append(ip_address(address))
    return [
        Attachment(
            container_id=container_id,
            ifname=ifname,
            netns=netns,
            addresses=tuple(sorted(addresses.get((container_id, ifname), ()), key=lambda a: a.version)),
            mac=mac,
            mtu_bytes=mtu_bytes,
            host_link=host_link,
            pod_namespace=pod_namespace,
            pod_name=pod_name,
            pod_uid=pod_uid,
            state=AttachmentState(state),
            netns_cookie=netns_cookie,
            port_mappings=tuple(mappings.get((container_id, ifname), ())),
            ingress=_limit(*limits[:2]),
            egress=_limit(*limits[2:]),
        )
        for (
            container_id,
            ifname,
            netns,
            mac,
            mtu_bytes,
            host_link,
            pod_namespace,
            pod_name,
            pod_uid,
            state,
            netns_cookie,
            *limits,
        ) in rows
    ]


def _columns(limit: Limit | None) -> tuple[int | None, int | None]:
    return (limit.rate_bits_s, limit.burst_bits) if limit is not None else (None, None)


def _limit(rate_bits_s: int | None, burst_bits: int | None) -> Limit | None:
    return Limit(rate_bits_s, burst_bits or 0) if rate_bits_s is not None else None


def _port_mapping(protocol: str, host_address: str, host_port: int, container_port: int) -> PortMapping:
    address = ip_address(host_address) if host_address else None
    return PortMapping(TransportProtocol(protocol), host_port, container_port, address)


def checkpoint(path: Path) -> None:
    """Fold the log into the database: some milliseconds of disk, so for a thread of its own; any time will do."""
    with _explained(path), closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors (https://sqlite.org/rescode.html) into what an operator can act on."""
    try:
        yield
    except sqlite3.Error as error:
        # Errors of ours and of the module itself have no code.
        match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise _damage(path, str(error)) from error
            case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
                raise TemporaryError(
                    f"the attachment database cannot be written ({error})",
                    where=str(path),
                    remedy="free space on its file system and see the kernel log for disk errors",
                ) from error
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise TemporaryError(
                    "another process holds the attachment database",
                    where=str(path),
                    remedy="see that one agent runs on this node",
                ) from error
            case _:
                raise PoplinError(
                    f"the attachment database cannot be used ({error})",
                    where=str(path),
                    remedy="check that its directory exists and is writable",
                ) from error
