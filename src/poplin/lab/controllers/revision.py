"""ControllerRevisions: the templates that a DaemonSet or StatefulSet has had.

Source: the API reference's "ControllerRevision"; `kubectl rollout history` and `undo` read them.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from poplin.lab.controllers.fingerprint import fingerprint
from poplin.lab.controllers.object import REVISIONS, Json, Object, owner_reference
from poplin.lab.controllers.ownership import claim
from poplin.lab.controllers.write import Create, Write, delete, patch

HASH: Final = "controller-revision-hash"


class History(NamedTuple):
    """The revision of the present template, all of them the oldest first, and the writes that make it so."""

    name: str
    hash: str
    revisions: Sequence[Object]
    writes: list[Write]


def keep_history(owner: Object, found: Iterable[Object]) -> History:
    """See that there is a revision of the owner's template, and that it is the newest.

    `found` are the owner's revisions and those without a controller.
    """
    mine, writes = claim(owner, REVISIONS, found)
    revisions = sorted(mine, key=lambda one: (one.revision, one.created, one.name))
    data = _data_of(owner)
    newest = revisions[-1].revision if revisions else 0
    for one in reversed(revisions):
        if one.data == data:
            if one.revision < newest:
                writes.append(patch(REVISIONS, one, {"revision": newest + 1}))
            return History(one.name, one.labels.get(HASH, ""), revisions, writes)
    digest = fingerprint(data, owner.status.get("collisionCount", 0))
    name = f"{owner.name}-{digest}"
    labels = (owner.spec["template"].get("metadata") or {}).get("labels") or {}
    body = {
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": {**labels, HASH: digest},
            "ownerReferences": [owner_reference(owner)],
        },
        "data": data,
        "revision": newest + 1,
    }
    if not owner.deleting:
        writes.append(Create(REVISIONS, owner.namespace, body))
    return History(name, digest, revisions, writes)


def forget_old(owner: Object, history: History, in_use: Collection[str]) -> list[Write]:
    """Delete what exceeds revisionHistoryLimit, the oldest first; never the revisions whose names are `in_use`."""
    idle = [one for one in history.revisions if one.name not in in_use and one.name != history.name]
    surplus = len(idle) - owner.spec.get("revisionHistoryLimit", 10)
    return [delete(REVISIONS, one) for one in idle[: max(0, surplus)]]


def template_of(revision: Object) -> Json:
    """The template that a revision holds."""
    template = revision.data["spec"]["template"]
    return {key: value for key, value in template.items() if key != "$patch"}


def _data_of(owner: Object) -> Json:
    """As a strategic merge patch, which is what an undo sends."""
    return {"spec": {"template": {**owner.spec["template"], "$patch": "replace"}}}
