"""Structured logs: one JSON object a line on standard error, one line a state change."""

import json
import logging
import sys
import time
from typing import Final

from poplin.model.errors import InvalidInputError

_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}


class JsonFormatter(logging.Formatter):
    """time (RFC 3339, UTC), level, logger and msg first, then the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the record as one line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("poplin."),
            "msg": record.getMessage(),
            **{key: value for key, value in record.__dict__.items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, separators=(",", ":"))


LEVELS: Final = ("debug", "info", "warning", "error")


def configure(level: str = "info") -> None:
    """Send all logs of level `level` and above to standard error. Raises InvalidInputError."""
    if level.lower() not in LEVELS:
        raise InvalidInputError(
            f"{level!r} is not a level", where="--log-level", remedy=f"use one of: {', '.join(LEVELS)}"
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
