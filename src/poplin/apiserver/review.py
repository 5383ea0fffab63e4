"""Reviews: questions answered at once and never stored. Every authenticated user may do everything.

https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access
"""

from typing import Any, Final

from aiohttp import web

from poplin.apiserver import status
from poplin.apiserver.admission import check_types
from poplin.apiserver.authentication import ANONYMOUS, PUBLIC, Authenticator, User
from poplin.apiserver.collection import Object
from poplin.apiserver.request import Call
from poplin.apiserver.rest import respond
from poplin.apiserver.status import Cause

GRANTED: Final = "RBAC is not evaluated: every authenticated user may do everything"
DENIED: Final = "a request without credentials reaches health and version only"


async def answer_review(call: Call, authenticator: Authenticator) -> web.StreamResponse:
    """The answer to a SelfSubjectReview, TokenReview or one of the access reviews. Raises StatusError."""
    kind = call.resource.kind
    if call.request.method != "POST" or kind == "Binding":
        raise status.method_not_allowed()
    review = await call.document()
    check_types(review, call.resource.schema)
    spec = review.get("spec") or {}
    match kind:
        case "SelfSubjectReview":
            answer: Object = {"userInfo": call.user.document()}
        case "TokenReview":
            user = authenticator.check(spec.get("token") or "")
            answer = {"authenticated": True, "user": user.document()} if user else {"authenticated": False}
        case "SelfSubjectRulesReview":
            everything = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
            urls = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]
            answer = {"resourceRules": everything, "nonResourceRules": urls, "incomplete": False}
        case _:
            answer = _answer_access(call, spec)
    metadata = review.get("metadata") or {}
    body = {"kind": kind, "apiVersion": call.resource.api_version, "metadata": metadata}
    return respond({**body, "spec": spec, "status": answer}, 201)


def _answer_access(call: Call, spec: Object) -> dict[str, Any]:
    """SubjectAccessReviewStatus: whether the user of the question may do it."""
    if causes := list(_check_access(call, spec)):
        raise status.invalid(call.resource.kind, call.resource.group, "", causes)
    user = call.user
    if call.resource.kind != "SelfSubjectAccessReview":
        user = User(spec.get("user") or "", tuple(spec.get("groups") or ()))
    unknown = user.name == ANONYMOUS.name or not set(ANONYMOUS.groups).isdisjoint(user.groups)
    path = (spec.get("nonResourceAttributes") or {}).get("path", "")
    if unknown and path.rstrip("/") not in PUBLIC:
        return {"allowed": False, "reason": DENIED}
    return {"allowed": True, "reason": GRANTED}


def _check_access(call: Call, spec: Object) -> list[Cause]:
    causes: list[Cause] = []
    attributes = spec.get("resourceAttributes")
    if (attributes is None) == (spec.get("nonResourceAttributes") is None):
        message = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        causes.append(Cause("spec.resourceAttributes", f"Invalid value: null: {message}"))
    if call.resource.kind != "SelfSubjectAccessReview" and not spec.get("user") and not spec.get("groups"):
        message = 'Invalid value: "": at least one of user or group must be specified'
        causes.append(Cause("spec.user", message))
    if call.resource.kind == "LocalSubjectAccessReview":
        namespace = (attributes or {}).get("namespace", "")
        if namespace != call.target.namespace:
            message = f'Invalid value: "{namespace}": must match metadata.namespace'
            causes.append(Cause("spec.resourceAttributes.namespace", message))
    return causes
