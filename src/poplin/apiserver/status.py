"""Failures as Kubernetes tells them: a `Status` object with code, reason, message and causes.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poplin.model.errors import PoplinError


@dataclass(frozen=True, slots=True)
class Cause:
    """One fault of an object: `field` is its path ("spec.ports[0].port"), `reason` a CauseType."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class StatusError(PoplinError):
    """A refused request. `code` is the HTTP status, `reason` the machine-readable StatusReason."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


def success(details: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def qualify(plural: str, group: str) -> str:
    """How messages name a resource: "pods", "deployments.apps"."""
    return f"{plural}.{group}" if group else plural


def details(plural: str, group: str, name: str, **more: Any) -> dict[str, Any]:
    parts = {"name": name, "group": group, "kind": plural, **more}
    return {key: value for key, value in parts.items() if value}


def not_found(plural: str, group: str, name: str) -> StatusError:
    message = f'{qualify(plural, group)} "{name}" not found'
    return StatusError(404, "NotFound", message, details(plural, group, name))


def no_such_path(more: str = "") -> StatusError:
    return StatusError(404, "NotFound", f"the server could not find the requested resource{more}", {})


def already_exists(plural: str, group: str, name: str) -> StatusError:
    message = f'{qualify(plural, group)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, details(plural, group, name))


def conflict(plural: str, group: str, name: str, why: str = "") -> StatusError:
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try again"
    )
    message = f'Operation cannot be fulfilled on {qualify(plural, group)} "{name}": {why}'
    return StatusError(409, "Conflict", message, details(plural, group, name))


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def forbidden(plural: str, group: str, name: str, why: str, causes: Sequence[Cause] = ()) -> StatusError:
    message = f'{qualify(plural, group)} "{name}" is forbidden: {why}'
    more = {"causes": encode_causes(causes)} if causes else {}
    return StatusError(403, "Forbidden", message, details(plural, group, name, **more))


def method_not_allowed() -> StatusError:
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, {})


def unsupported_media_type(message: str) -> StatusError:
    return StatusError(415, "UnsupportedMediaType", message, {})


def not_acceptable(message: str) -> StatusError:
    return StatusError(406, "NotAcceptable", message, {})


def expired(message: str) -> StatusError:
    return StatusError(410, "Expired", message)


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def unavailable(message: str) -> StatusError:
    return StatusError(503, "ServiceUnavailable", message)


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> StatusError:
    """Object `name` is refused for `causes`, of which there is at least one."""
    faults = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = faults[0] if len(faults) == 1 else "[" + ", ".join(faults) + "]"
    subject = f"{kind}.{group}" if group else kind
    message = f'{subject} "{name}" is invalid: {listed}'
    return StatusError(422, "Invalid", message, details(kind, group, name, causes=encode_causes(causes)))


def encode_causes(causes: Sequence[Cause]) -> list[dict[str, str]]:
    return [{"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes]
