"""Reviews: questions answered at once and never stored. Every authenticated user may do everything."""

from typing import Any

from aiohttp import web

from poplin.apiserver import status
from poplin.apiserver.authentication import Authenticator
from poplin.apiserver.request import Call
from poplin.apiserver.rest import respond

WHY = "RBAC is not evaluated: every authenticated user may do everything"


async def answer_review(call: Call, authenticator: Authenticator) -> web.StreamResponse:
    """The answer to a SelfSubjectReview, TokenReview or one of the access reviews."""
    if call.request.method != "POST":
        raise status.method_not_allowed()
    review = await call.document()
    answers: dict[str, Any]
    match call.resource.kind:
        case "SelfSubjectReview":
            answers = {"userInfo": call.user.document()}
        case "TokenReview":
            user = authenticator.check((review.get("spec") or {}).get("token", ""))
            answers = {"authenticated": True, "user": user.document()} if user else {"authenticated": False}
        case "SelfSubjectRulesReview":
            everything = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
            urls = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]
            answers = {"resourceRules": everything, "nonResourceRules": urls, "incomplete": False}
        case "Binding":
            raise status.method_not_allowed()
        case _:
            answers = {"allowed": True, "reason": WHY}
    metadata = review.get("metadata") or {}
    body = {"kind": call.resource.kind, "apiVersion": call.resource.api_version, "metadata": metadata}
    return respond({**body, "spec": review.get("spec") or {}, "status": answers}, 201)
