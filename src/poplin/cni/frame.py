"""The frames between poplin-cni and the agent: one request and one answer on each connection.

All integers are big-endian.

    request  "POPL" version:u16 reserved:u16 environment_bytes:u32 config_bytes:u32 environment config
    answer   "POPL" version:u16 exit_code:u16 output_bytes:u32 output

`environment` is the CNI_* variables as NUL-terminated NAME=VALUE strings; `config` what the runtime wrote to
stdin. The pod's network namespace, where the command has one, comes with the first byte as SCM_RIGHTS.
`output` goes to stdout as it is. The shim and the agent come from one image, so there is one version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final

from poplin.cni.error import CniError, ErrorCode

MAGIC: Final = b"POPL"
VERSION: Final = 1
ENVIRONMENT_MAX_BYTES: Final = 256 << 10
CONFIG_MAX_BYTES: Final = 1 << 20
OUTPUT_MAX_BYTES: Final = 1 << 20

_REQUEST: Final = Struct("!4sHHII")
_ANSWER: Final = Struct("!4sHHI")
REQUEST_HEADER_BYTES: Final = _REQUEST.size
ANSWER_HEADER_BYTES: Final = _ANSWER.size


@dataclass(frozen=True, slots=True)
class Answer:
    """What the shim prints, and its exit status: 0, or 1 with an error as output."""

    exit_code: int
    output: bytes = b""


def encode_request(environment: Mapping[str, str], config: bytes) -> bytes:
    """The frame that the shim sends."""
    block = b"".join(f"{name}={value}\0".encode() for name, value in environment.items())
    return _REQUEST.pack(MAGIC, VERSION, 0, len(block), len(config)) + block + config


def request_length(head: bytes | bytearray) -> int:
    """Bytes of the whole request whose first `REQUEST_HEADER_BYTES` are `head`.

    Raises CniError (5) where it is not a request of this version or exceeds the bounds.
    """
    magic, version, _, environment_bytes, config_bytes = _REQUEST.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise CniError(
            ErrorCode.IO_FAILURE,
            "not a request of this agent's poplin-cni; install the one of the running agent",
        )
    if environment_bytes > ENVIRONMENT_MAX_BYTES or config_bytes > CONFIG_MAX_BYTES:
        raise CniError(
            ErrorCode.IO_FAILURE,
            f"request of {environment_bytes} + {config_bytes} bytes is too large",
            f"the bounds are {ENVIRONMENT_MAX_BYTES} bytes of environment and {CONFIG_MAX_BYTES} of configuration",
        )
    return REQUEST_HEADER_BYTES + int(environment_bytes) + int(config_bytes)


def decode_request(frame: bytes | bytearray) -> tuple[dict[str, str], bytes]:
    """Environment and configuration of a whole request, inverse of `encode_request`.

    Raises CniError: 5 for a bad frame, 4 for an environment that is not NAME=VALUE strings in UTF-8.
    """
    if len(frame) < REQUEST_HEADER_BYTES or len(frame) != request_length(frame):
        raise CniError(ErrorCode.IO_FAILURE, "request is not of the length that its header says")
    environment_bytes = _REQUEST.unpack_from(frame)[3]
    split = REQUEST_HEADER_BYTES + environment_bytes
    try:
        block = frame[REQUEST_HEADER_BYTES:split].decode()
    except UnicodeDecodeError as error:
        raise CniError(ErrorCode.BAD_ENVIRONMENT, "the CNI_ variables are not UTF-8", str(error)) from None
    environment: dict[str, str] = {}
    if block and not block.endswith("\0"):
        raise CniError(ErrorCode.BAD_ENVIRONMENT, "the last CNI_ variable is cut short")
    for variable in block.split("\0")[:-1]:
        name, equals, value = variable.partition("=")
        if not equals:
            raise CniError(ErrorCode.BAD_ENVIRONMENT, "not a NAME=VALUE variable", variable)
        environment[name] = value
    return environment, bytes(frame[split:])


def encode_answer(answer: Answer) -> bytes:
    """The frame that the agent sends back."""
    return _ANSWER.pack(MAGIC, VERSION, answer.exit_code, len(answer.output)) + answer.output


def decode_answer(frame: bytes) -> Answer:
    """Inverse of `encode_answer`. Raises CniError (5) for anything else."""
    if len(frame) >= ANSWER_HEADER_BYTES:
        magic, version, exit_code, output_bytes = _ANSWER.unpack_from(frame)
        if magic == MAGIC and version == VERSION and len(frame) == ANSWER_HEADER_BYTES + output_bytes:
            return Answer(exit_code, frame[ANSWER_HEADER_BYTES:])
    raise CniError(ErrorCode.IO_FAILURE, "not an answer of a poplin agent of this version")
