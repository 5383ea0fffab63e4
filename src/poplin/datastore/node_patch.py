"""The patch of a Node: annotations and conditions, as we publish them. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from poplin.model.cluster import NodeCondition

TIMES: Final = frozenset({"lastHeartbeatTime", "lastTransitionTime"})


def timestamp(moment: datetime) -> str:
    """A metav1.Time: RFC 3339, whole seconds, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_patch(
    annotations: Mapping[str, str | None], conditions: Sequence[NodeCondition], now: datetime
) -> dict[str, Any]:
    """The strategic merge of annotations (None removes) and conditions (merged by type) of a Node."""
    patch: dict[str, Any] = {"metadata": {"annotations": dict(annotations)}} if annotations else {}
    if conditions:
        patch["status"] = {
            "conditions": [
                {
                    "type": condition.type,
                    "status": condition.status.value,
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastHeartbeatTime": timestamp(now),
                    "lastTransitionTime": timestamp(now),
                }
                for condition in conditions
            ]
        }
    return patch


def merge_node(document: dict[str, Any], patch: Mapping[str, Any]) -> bool:
    """Apply such a patch to a Node as the API server would, in place; tell whether it changed anything.

    A condition that says what it said before keeps its times.
    """
    changed = merge_annotations(document["metadata"], patch.get("metadata", {}).get("annotations", {}))
    for condition in patch.get("status", {}).get("conditions", ()):
        status = document["status"] = document.get("status") or {}
        conditions = status["conditions"] = status.get("conditions") or []
        place = next((i for i, old in enumerate(conditions) if old["type"] == condition["type"]), None)
        if place is None:
            conditions.append(condition)
        elif _said(conditions[place]) == _said(condition):
            continue
        else:
            conditions[place] = condition
        changed = True
    return changed


def merge_annotations(metadata: dict[str, Any], news: Mapping[str, str | None]) -> bool:
    """Set annotations of an object in place, None removes one; tell whether that changed anything."""
    before = metadata.get("annotations") or {}
    annotations = dict(before)
    for key, value in news.items():
        if value is None:
            annotations.pop(key, None)
        else:
            annotations[key] = value
    if annotations == before:
        return False
    metadata["annotations"] = annotations
    return True


def _said(condition: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in condition.items() if key not in TIMES}
