"""Subresources: status, scale, and those of pods, namespaces and service accounts.

A subresource that needs a kubelet (log, exec, ...) is answered by whoever registers itself for it.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from poplin.apiserver import status
from poplin.apiserver.admission import check_types
from poplin.apiserver.authentication import TokenIssuer
from poplin.apiserver.cells import format_selector
from poplin.apiserver.collection import Object
from poplin.apiserver.deletion import DeleteOptions
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.podrules import selects
from poplin.apiserver.request import Call
from poplin.apiserver.resource import Resource, Scale, builtin_compiler, lookup
from poplin.apiserver.rest import Rest, prepare_patch, respond

Handler = Callable[[Call], Awaitable[web.StreamResponse]]
LEAST_TOKEN_LIFETIME_S = 600


class Subresources:
    """Dispatch by name. `handlers` may be added to: ("pods", "log") and the like, by plural and name."""

    def __init__(self, lifecycle: Lifecycle, rest: Rest, tokens: TokenIssuer) -> None:
        self._lifecycle = lifecycle
        self._rest = rest
        self._tokens = tokens
        self.handlers: dict[tuple[str, str], Handler] = {
            ("pods", "binding"): self._bind,
            ("pods", "eviction"): self._evict,
            ("pods", "ephemeralcontainers"): self._write_part,
            ("namespaces", "finalize"): self._write_part,
            ("certificatesigningrequests", "approval"): self._write_part,
            ("serviceaccounts", "token"): self._issue_token,
        }

    async def handle(self, call: Call) -> web.StreamResponse:
        resource, name = call.resource, call.target.subresource.partition("/")[0]
        if name == "status" and resource.status:
            return await self._write_part(call)
        if name == "scale" and resource.scale:
            return await self._scale(call, resource.scale)
        if name not in resource.subresources:
            raise status.no_such_path()
        handler = self.handlers.get((resource.plural, name))
        if handler is None:
            why = (
                "is not served: use port-forward"
                if name == "proxy"
                else "needs a kubelet, and none serves it here"
            )
            raise status.StatusError(501, "NotImplemented", f"{resource.plural}/{name} {why}")
        return await handler(call)

    async def _write_part(self, call: Call) -> web.StreamResponse:
        """GET, PUT or PATCH a subresource that has the form of its object."""
        part = "status" if call.target.subresource == "approval" else call.target.subresource
        part = "" if part == "ephemeralcontainers" else part
        match call.request.method:
            case "GET":
                return respond(call.resource.view(self._lifecycle.get(call.resource, call.key).data))
            case "PUT":
                return await self._rest.update(call, part)
            case "PATCH":
                return await self._rest.patch(call, part)
        raise status.method_not_allowed()

    async def _scale(self, call: Call, paths: Scale) -> web.StreamResponse:
        if call.request.method == "GET":
            entry = self._lifecycle.get(call.resource, call.key)
            return respond(_make_scale(call.resource, entry.decode(), paths))
        options = call.options()
        if call.request.method == "PUT":
            given = await call.document()
            wish: Callable[[Object], Object] = lambda _: given  # noqa: E731  - one of two changes
        elif call.request.method == "PATCH":
            body, kind = await call.body(), call.request.content_type
            if kind == "application/strategic-merge-patch+json":
                kind = "application/merge-patch+json"  # a Scale has no lists to merge
            wish = prepare_patch(kind, body, call.resource)
        else:
            raise status.method_not_allowed()

        def change(document: Object) -> Object:
            scale = wish(_make_scale(call.resource, document, paths))
            check_types(scale, builtin_compiler().definition("io.k8s.api.autoscaling.v1.Scale"))
            replicas = lookup(scale, "spec.replicas") or 0
            if replicas < 0:
                cause = status.Cause(
                    "spec.replicas", f"Invalid value: {replicas}: must be greater than or equal to 0"
                )
                raise status.invalid("Scale", "autoscaling", call.target.name, [cause])
            revision = (scale.get("metadata") or {}).get("resourceVersion")
            if revision and revision != document["metadata"]["resourceVersion"]:
                raise status.conflict(call.resource.plural, call.resource.group, call.target.name)
            _put(document, paths.replicas, replicas)
            return document

        entry = await self._lifecycle.update(call.resource, call.key, change, options)
        return respond(_make_scale(call.resource, entry.decode(), paths), 200, options)

    async def _read(self, call: Call, definition: str) -> Object:
        """The body of a subresource that has a type of its own. Raises StatusError."""
        document = await call.document()
        check_types(document, builtin_compiler().definition(f"io.k8s.api.{definition}"))
        return document

    async def _bind(self, call: Call) -> web.StreamResponse:
        """The scheduler's word: pods/binding sets spec.nodeName once."""
        _require_post(call)
        binding = await self._read(call, "core.v1.Binding")
        node = lookup(binding, "target.name")
        if not node:
            cause = status.Cause("target.name", "Required value", "FieldValueRequired")
            raise status.invalid("Binding", "", call.target.name, [cause])

        def change(pod: Object) -> Object:
            spec = pod.setdefault("spec", {})
            if spec.get("nodeName"):
                why = f'pod {call.target.name} is already assigned to node "{spec["nodeName"]}"'
                raise status.conflict("pods/binding", "", call.target.name, why)
            if "deletionTimestamp" in pod["metadata"]:
                why = f"pod {call.target.name} is being deleted, cannot be assigned to a host"
                raise status.conflict("pods/binding", "", call.target.name, why)
            spec["nodeName"] = node
            return pod

        await self._lifecycle.update(call.resource, call.key, change, call.options())
        return respond({**status.success({}), "code": 201}, 201)

    async def _evict(self, call: Call) -> web.StreamResponse:
        """pods/eviction: a deletion that a PodDisruptionBudget may refuse (429)."""
        _require_post(call)
        eviction = await self._read(call, "policy.v1.Eviction")
        self._check_budgets(call)
        given = eviction.get("deleteOptions") or {}
        options = DeleteOptions(given.get("gracePeriodSeconds"), given.get("propagationPolicy"))
        await self._lifecycle.delete(call.resource, call.key, options, dry_run=call.options().dry_run)
        return respond({**status.success({}), "code": 201}, 201)

    def _check_budgets(self, call: Call) -> None:

        pod = self._lifecycle.get(call.resource, call.key)
        for entry in self._lifecycle.store.open("policy/poddisruptionbudgets").slice(call.target.namespace):
            budget = entry.decode()
            if not selects(lookup(budget, "spec.selector") or {}, pod.labels):
                continue
            if (lookup(budget, "status.disruptionsAllowed") or 0) <= 0:
                message = "Cannot evict pod as it would violate the pod's disruption budget."
                raise status.StatusError(
                    429, "TooManyRequests", message, {"name": entry.key[1], "kind": "poddisruptionbudgets"}
                )

    async def _issue_token(self, call: Call) -> web.StreamResponse:
        _require_post(call)
        review = await self._read(call, "authentication.v1.TokenRequest")
        account = self._lifecycle.get(call.resource, call.key)
        spec = review.setdefault("spec", {})
        lifetime_s = int(spec.get("expirationSeconds") or 3600)
        if lifetime_s < LEAST_TOKEN_LIFETIME_S:
            message = f"Invalid value: {lifetime_s}: may not specify a duration less than 10 minutes"
            raise status.invalid(
                "TokenRequest", "authentication.k8s.io", "", [status.Cause("spec.expirationSeconds", message)]
            )
        namespace, name = call.key
        token, expires = self._tokens.issue(
            namespace, name, account.uid, lifetime_s, spec.get("audiences") or []
        )
        review.update(kind="TokenRequest", apiVersion="authentication.k8s.io/v1")
        review["metadata"] = {**(review.get("metadata") or {}), "name": name, "namespace": namespace}
        review["status"] = {
            "token": token,
            "expirationTimestamp": datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return respond(review, 201)


def _require_post(call: Call) -> None:
    if call.request.method != "POST":
        raise status.method_not_allowed()


def _make_scale(resource: Resource, document: Object, paths: Scale) -> Object:
    """The Scale of a workload. A custom resource keeps its selector as text already."""
    metadata = document["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    state: dict[str, Any] = {"replicas": lookup(document, paths.status) or 0}
    selector = lookup(document, paths.selector) if paths.selector else None
    if isinstance(selector, dict):
        terms = selector if resource.group else {"matchLabels": selector}
        selector = format_selector(terms)
    if selector:
        state["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": {"replicas": lookup(document, paths.replicas) or 0},
        "status": state,
    }


def _put(document: Object, path: str, value: Any) -> None:
    *parents, last = path.removeprefix(".").split(".")
    for part in parents:
        document = document.setdefault(part, {})
        if not isinstance(document, dict):
            raise status.bad_request(f"{path} cannot be set: {part} is not an object")
    document[last] = value
