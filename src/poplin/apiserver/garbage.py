"""What the server itself carries out: garbage collection, namespace ends, and what every namespace has.

One task works through a queue of subjects; each step looks at the present state and does what is left to do,
so that nothing depends on the order of events.
https://kubernetes.io/docs/concepts/architecture/garbage-collection/
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from poplin.apiserver.collection import Collection, Entry, Event, Key, Object
from poplin.apiserver.customresource import DEFINITIONS, CustomResources
from poplin.apiserver.deletion import FOREGROUND, ORPHAN, DeleteOptions
from poplin.apiserver.expiry import sweep_events
from poplin.apiserver.lifecycle import NAMESPACES, Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.resource import Resource
from poplin.apiserver.status import StatusError

Subject = tuple[str, Key]
"""A collection's name and a key in it."""

ACCOUNTS: Final = "/serviceaccounts"
CONFIG_MAPS: Final = "/configmaps"
ROOT_CA: Final = "kube-root-ca.crt"
BATCH: Final = 256
"""How many subjects are settled together, so that their writes share commits."""
RETRY_S: Final = 0.1


class Janitor:
    """Follows ownership and namespaces. `ca` is the certificate every namespace publishes to its pods."""

    def __init__(self, lifecycle: Lifecycle, customs: CustomResources, ca: str) -> None:
        self._lifecycle = lifecycle
        self._customs = customs
        self._ca = ca
        self._living: dict[str, Subject] = {}
        self._dependents: dict[str, set[Subject]] = {}
        self._queue: asyncio.Queue[Subject] = asyncio.Queue()
        self._queued: set[Subject] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Take in what is stored, then work until `stop`."""
        for resource in self._lifecycle.registry.stored():
            collection = self._lifecycle.collection(resource)
            for entry in collection.slice(None):
                self._index((collection.name, entry.key), None, entry)
        for resource in self._lifecycle.registry.stored():
            collection = self._lifecycle.collection(resource)
            for entry in collection.slice(None):
                self._notice((collection.name, entry.key), entry)
        self._lifecycle.store.listen(self._observe)
        self._tasks = [
            asyncio.create_task(self._work(), name="janitor"),
            asyncio.create_task(sweep_events(self._lifecycle), name="event-expiry"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _observe(self, collection: Collection, event: Event) -> None:
        subject = (collection.name, event.entry.key)
        if event.type != "DELETED":
            self._index(subject, event.previous, event.entry)
            self._notice(subject, event.entry)
            return
        self._index(subject, event.entry, None)
        if event.previous is not None:
            self._index(subject, event.previous, None)
        for dependent in self._dependents.get(event.entry.uid, ()):
            self._add(dependent)
        for owner in event.entry.owners:
            # An owner deleted in the foreground may have waited for this one.
            if owner in self._living:
                self._add(self._living[owner])
        namespace = self._lifecycle.store.open(NAMESPACES).entries.get(("", event.entry.key[0]))
        if namespace is not None and (namespace.deleting or event.entry.key[1] in {"default", ROOT_CA}):
            self._add((NAMESPACES, namespace.key))
        self._notice_definition(collection.name)

    def _notice_definition(self, name: str) -> None:
        group, _, plural = name.partition("/")
        entry = self._lifecycle.store.open(DEFINITIONS).entries.get(("", f"{plural}.{group}"))
        if entry is not None and entry.deleting:
            self._add((DEFINITIONS, entry.key))

    def _index(self, subject: Subject, before: Entry | None, after: Entry | None) -> None:
        if before is not None:
            for owner in before.owners:
                self._dependents.get(owner, set()).discard(subject)
                if not self._dependents.get(owner, True):
                    del self._dependents[owner]
            if after is None or after.uid != before.uid:
                self._living.pop(before.uid, None)
        if after is not None:
            self._living[after.uid] = subject
            for owner in after.owners:
                self._dependents.setdefault(owner, set()).add(subject)

    def _notice(self, subject: Subject, entry: Entry) -> None:
        """Queue what an object's present version calls for."""
        name = subject[0]
        if entry.deleting or entry.owners or name == NAMESPACES:
            self._add(subject)

    def _add(self, subject: Subject) -> None:
        if subject not in self._queued:
            self._queued.add(subject)
            self._queue.put_nowait(subject)

    async def _work(self) -> None:
        while True:
            subjects = [await self._queue.get()]
            while not self._queue.empty() and len(subjects) < BATCH:
                subjects.append(self._queue.get_nowait())
            self._queued.difference_update(subjects)
            await asyncio.gather(*map(self._try_settle, subjects))

    async def _try_settle(self, subject: Subject) -> None:
        try:
            await self._settle(subject)
        except StatusError as error:
            # Someone else was first, or the store cannot write now: look again, but do not spin.
            if error.code != 404:
                await asyncio.sleep(RETRY_S)
                self._add(subject)

    def _resource(self, name: str) -> Resource | None:
        return self._lifecycle.registry.stored_as(name)

    async def _settle(self, subject: Subject) -> None:
        name, key = subject
        resource = self._resource(name)
        entry = self._lifecycle.collection(resource).entries.get(key) if resource else None
        if resource is None or entry is None:
            return
        if entry.owners and not entry.deleting:
            await self._check_owners(resource, entry)
        if entry.deleting:
            await self._finish_policy(resource, entry)
        if name == NAMESPACES:
            await (self._end_namespace(key) if entry.deleting else self._furnish(key[1]))
        elif name == DEFINITIONS and entry.deleting:
            await self._customs.finish(key[1])

    async def _check_owners(self, resource: Resource, entry: Entry) -> None:
        """Delete an object whose owners are all gone; drop the references to those that are."""
        living = [uid for uid in entry.owners if self._owns(uid, entry)]
        if not living:
            await self._lifecycle.delete(
                resource, entry.key, DeleteOptions(policy="Background", uid=entry.uid)
            )
            return
        waiting = [uid for uid in living if self._is_foreground(uid)]
        if waiting and len(waiting) == len(living):
            policy = "Foreground" if self._dependents.get(entry.uid) else "Background"
            await self._lifecycle.delete(resource, entry.key, DeleteOptions(policy=policy, uid=entry.uid))
        elif len(living) < len(entry.owners):
            await self._drop_owners(resource, entry.key, set(entry.owners) - set(living))

    def _owns(self, uid: str, dependent: Entry) -> bool:
        """Whether the owner lives where it may own: in the dependent's namespace, or in none."""
        subject = self._living.get(uid)
        return subject is not None and subject[1][0] in {"", dependent.key[0]}

    def _is_foreground(self, uid: str) -> bool:
        name, key = self._living[uid]
        entry = self._lifecycle.store.open(name).entries.get(key)
        return (
            entry is not None
            and entry.deleting
            and FOREGROUND in entry.decode()["metadata"].get("finalizers", ())
        )

    async def _drop_owners(self, resource: Resource, key: Key, gone: set[str]) -> None:
        def change(document: Object) -> Object:
            references = document["metadata"].get("ownerReferences", ())
            document["metadata"]["ownerReferences"] = [one for one in references if one["uid"] not in gone]
            return document

        await self._lifecycle.update(resource, key, change, Options())

    async def _finish_policy(self, resource: Resource, entry: Entry) -> None:
        """Carry out the orphan and foreground finalizers of an object that is being deleted."""
        finalizers = entry.decode()["metadata"].get("finalizers", ())
        if ORPHAN in finalizers:
            for below, key in self._below(entry.uid):
                await self._drop_owners(below, key, {entry.uid})
            await self._drop_finalizer(resource, entry.key, ORPHAN)
        elif FOREGROUND in finalizers:
            blocking = False
            for below, key in self._below(entry.uid):
                found = self._lifecycle.collection(below).entries.get(key)
                if found is None:
                    continue
                references = found.decode()["metadata"].get("ownerReferences", ())
                blocking |= any(
                    one["uid"] == entry.uid and one.get("blockOwnerDeletion") for one in references
                )
                self._add((below.store, key))
            if not blocking:
                await self._drop_finalizer(resource, entry.key, FOREGROUND)

    def _below(self, uid: str) -> Iterator[tuple[Resource, Key]]:
        for name, key in list(self._dependents.get(uid, ())):
            resource = self._resource(name)
            if resource is not None:
                yield resource, key

    async def _drop_finalizer(self, resource: Resource, key: Key, finalizer: str) -> None:
        def change(document: Object) -> Object:
            kept = [one for one in document["metadata"].get("finalizers", ()) if one != finalizer]
            document["metadata"]["finalizers"] = kept
            return document

        await self._lifecycle.update(resource, key, change, Options())

    async def _end_namespace(self, key: Key) -> None:
        """Delete all that is in a namespace, then let it go."""
        remaining = 0
        namespaces = self._resource(NAMESPACES)
        for resource in self._lifecycle.registry.stored():
            if not resource.namespaced:
                continue
            collection = self._lifecycle.collection(resource)
            living = [entry for entry in collection.slice(key[1]) if not entry.deleting]
            await self._lifecycle.delete_all(resource, living, DeleteOptions(policy="Background"))
            remaining += len(collection.slice(key[1]))
        if remaining or namespaces is None:
            return

        def release(document: Object) -> Object:
            kept = [one for one in document["spec"].get("finalizers", ()) if one != "kubernetes"]
            document["spec"]["finalizers"] = kept
            return document

        await self._lifecycle.update(namespaces, key, release, Options(), part="finalize")

    async def _furnish(self, namespace: str) -> None:
        """Every namespace has a default service account and the cluster's root certificate."""
        for store, name, body in (
            (ACCOUNTS, "default", {}),
            (CONFIG_MAPS, ROOT_CA, {"data": {"ca.crt": self._ca}}),
        ):
            resource = self._resource(store)
            if resource is None or self._lifecycle.collection(resource).head((namespace, name)):
                continue
            with contextlib.suppress(StatusError):
                await self._lifecycle.create(
                    resource, namespace, {"metadata": {"name": name}, **body}, Options()
                )
