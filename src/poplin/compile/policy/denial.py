"""How the kernel tells of packets that policy denies or logs: an nflog group, and a prefix that says why.

    deny ingress 2 GlobalNetworkPolicy no-telnet
    deny egress - NetworkPolicy shop/backend
    log ingress 0 NetworkPolicy shop/audit
    deny egress - Pod

The words are what happened, the direction, the index of the rule that says so ("-" where none of a pod's
policies has a rule that allows the packet), and the policy: its kind, and its name, with its namespace if it
has one. Where many policies select a pod, the first of them stands for all: `World.evaluate` names them. The
kind Pod, without a name, is a pod of this node whose labels are not known yet.

Each rule tells of LOG_RATE_PER_S packets a second and no more, so that a flood of denied ones costs no more
than their drop. A packet is told of with its first SNAPLEN_BYTES.
"""

from typing import Final, NamedTuple

from poplin.model.nftables import Expression, Limit, Log
from poplin.model.policy import Direction, PolicyKey

NFLOG_GROUP: Final = 112
SNAPLEN_BYTES: Final = 128
LOG_RATE_PER_S: Final = 100
LOG_BURST: Final = 500

DENY: Final = "deny"
LOG: Final = "log"
UNKNOWN_POD: Final = PolicyKey("Pod", "", "")

MAX_PREFIX_BYTES: Final = 127
"""What the kernel keeps (NF_LOG_PREFIXLEN less its end); a name that is cut off ends in CUT_OFF."""
CUT_OFF: Final = "~"


class Notice(NamedTuple):
    """What a prefix says. `rule` None: the packet was denied because no rule allows it."""

    word: str
    direction: Direction
    rule: int | None
    policy: PolicyKey


def encode_prefix(notice: Notice) -> str:
    word, direction, index, key = notice
    name = f"{key.namespace}/{key.name}" if key.namespace else key.name
    text = f"{word} {direction} {'-' if index is None else index} {key.kind} {name}".rstrip()
    return text if len(text) <= MAX_PREFIX_BYTES else text[: MAX_PREFIX_BYTES - 1] + CUT_OFF


def parse_prefix(text: str) -> Notice | None:
    """The inverse; None where the text is none of ours."""
    words = text.split(" ")
    if not 4 <= len(words) <= 5 or words[0] not in {DENY, LOG} or words[1] not in set(Direction):
        return None
    word, direction, index, kind, name = (*words, "")[:5]
    if not (index == "-" or index.isdecimal()):
        return None
    namespace, _, own = name.rpartition("/")
    rule = None if index == "-" else int(index)
    return Notice(word, Direction(direction), rule, PolicyKey(kind, namespace, own))


def tell(notice: Notice) -> tuple[Expression, ...]:
    """The expressions that tell of a packet. They end the rule where there are too many to tell of."""
    return Limit(LOG_RATE_PER_S, LOG_BURST), Log(NFLOG_GROUP, encode_prefix(notice), SNAPLEN_BYTES)
