"""A CNI error as a value: what a plugin prints where it fails."""

from enum import IntEnum

import msgspec

from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError


class ErrorCode(IntEnum):
    """Codes of the specification (section "Error"); `BAD_NETNS` is libcni's, from 100 on they are ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    BAD_CONFIG = 7
    BAD_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    FAILED = 100
    INTERNAL = 999


class CniError(PoplinError):
    """A failure with the code that the runtime is to see; `details` may be ""."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


def as_cni_error(error: PoplinError) -> CniError:
    """The error in CNI's terms: wrong input is code 7, what time may mend 11, anything else 100."""
    match error:
        case CniError():
            return error
        case InvalidInputError():
            code = ErrorCode.BAD_CONFIG
        case TemporaryError():
            code = ErrorCode.TRY_AGAIN_LATER
        case _:
            code = ErrorCode.FAILED
    return CniError(code, str(error))


def encode_error(error: CniError, cni_version: str) -> bytes:
    """The JSON that a failing plugin prints, in the protocol version `cni_version`."""
    text = {"cniVersion": cni_version, "code": int(error.code), "msg": error.msg, "details": error.details}
    return msgspec.json.encode(text) + b"\n"
