"""The network configuration list that makes the runtime use us."""

from collections.abc import Iterable
from typing import Final

import msgspec

NAME: Final = "10-poplin.conflist"
"""The file's name in /etc/cni/net.d: the runtime takes the first by name, so it sorts before rivals."""

# Debian's containerd 1.6.20 refuses a result of 1.1.0.
_CNI_VERSION: Final = "1.0.0"

CAPABILITIES: Final = ("ips", "ipRanges", "mac", "portMappings", "bandwidth")
"""What the runtime may pass in runtimeConfig (CONVENTIONS.md of CNI)."""


def encode_conflist(*, socket: str, state_dir: str, capabilities: Iterable[str] = CAPABILITIES) -> str:
    """Text of the conflist. `socket` and `state_dir` are the agent's, as the runtime's mount namespace has them.

    `capabilities` (CONVENTIONS.md of CNI) are what the runtime may ask of us beyond a plain attachment.
    """
    plugin = {
        "type": "poplin-cni",
        "socket": socket,
        "stateDir": state_dir,
        "capabilities": dict.fromkeys(capabilities, True),
    }
    conflist = {"cniVersion": _CNI_VERSION, "name": "poplin", "plugins": [plugin]}
    return msgspec.json.format(msgspec.json.encode(conflist), indent=2).decode() + "\n"
