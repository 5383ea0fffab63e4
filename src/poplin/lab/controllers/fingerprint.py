"""Short names for templates: what ends in the names of ReplicaSets and ControllerRevisions."""

from typing import Any, Final

import msgspec

ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
"""Kubernetes' alphabet for generated names: no vowels, so no words."""


def fingerprint(value: Any, collisions: int = 0) -> str:
    """32-bit FNV-1a of the canonical JSON, in safe letters; `collisions` makes another of the same value.

    Kubernetes hashes a Go dump of the value instead. Nobody compares: templates are told apart by themselves.
    """
    digest = 0x811C9DC5
    for byte in msgspec.json.encode([value, collisions], order="deterministic"):
        digest = (digest ^ byte) * 0x01000193 & 0xFFFFFFFF
    return "".join(ALPHABET[ord(digit) % len(ALPHABET)] for digit in str(digest))
