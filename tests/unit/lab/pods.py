"""Pods for tests."""

import json
from typing import Any

import msgspec

from poplin.lab.kubelet.document import Pod


def make_pod(name: str, *containers: dict[str, Any], **spec: Any) -> Pod:
    """A pod as the API gives it."""
    document = {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": "1"},
        "spec": {"containers": list(containers), **spec},
    }
    return msgspec.json.decode(json.dumps(document), type=Pod)
