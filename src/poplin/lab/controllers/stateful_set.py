"""StatefulSets: pods with names of their own, made and replaced in order.

Source: Kubernetes documentation, "StatefulSets" (deployment and scaling guarantees, update strategies).
Claims made from volumeClaimTemplates are kept for ever, which is the default retention policy.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.object import CLAIMS, PODS, REVISIONS, STATEFUL_SETS, Json, Key, Object
from poplin.lab.controllers.ownership import candidates, claim, owners
from poplin.lab.controllers.pod import is_available, is_finished, is_ready, make_pod, wake_when_available
from poplin.lab.controllers.revision import HASH, forget_old, keep_history, template_of
from poplin.lab.controllers.write import Agenda, Create, Event, Outcome, Write, delete, patch_status

POD_NAME: Final = "statefulset.kubernetes.io/pod-name"
POD_INDEX: Final = "apps.kubernetes.io/pod-index"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a StatefulSet wants, resolved. Pods with an ordinal below `partition` keep `current`."""

    owner: Object
    first: int
    replicas: int
    ordered: bool
    partition: int
    current: str
    update: str
    templates: Mapping[str, Json]
    now: datetime

    @property
    def ordinals(self) -> range:
        return range(self.first, self.first + self.replicas)

    def revision(self, ordinal: int) -> str:
        """The revision that a new pod is made of."""
        held = ordinal < self.first + self.partition and self.current in self.templates
        return self.current if held else self.update

    def serves(self, pod: Object) -> bool:
        """Whether the next pod may follow: this one runs, is ready, and has been for long enough."""
        return not pod.deleting and is_available(pod, self.owner.spec.get("minReadySeconds", 0), self.now)


def order(
    stateful_set: Object,
    pods: Iterable[Object],
    revisions: Iterable[Object],
    claims: Iterable[str],
    now: datetime,
) -> Outcome:
    """The next step towards pods `name-0` ... of the present template.

    `pods` and `revisions` are its own and those without a controller; `claims` are the names of the
    PersistentVolumeClaims in its namespace.
    """
    agenda = Agenda()
    mine, agenda.writes = claim(
        stateful_set, PODS, pods, fits=lambda pod: ordinal_of(stateful_set, pod) is not None
    )
    history = keep_history(stateful_set, revisions)
    agenda.writes += history.writes
    current = stateful_set.status.get("currentRevision") or history.name
    plan = _resolve(stateful_set, current, history.name, history.revisions, now)
    held = {ordinal: pod for pod in mine if (ordinal := ordinal_of(stateful_set, pod)) is not None}
    if not stateful_set.deleting:
        steps = _step(plan, held)
        agenda.writes += _make_claims(stateful_set, steps, frozenset(claims)) + steps
        in_use = {pod.labels.get(HASH, "") for pod in mine} | {current}
        agenda.writes += forget_old(stateful_set, history, in_use)
    agenda.writes += patch_status(STATEFUL_SETS, stateful_set, _describe(plan, held))
    wake_when_available(agenda, mine, stateful_set.spec.get("minReadySeconds", 0), now)
    return agenda.outcome()


def ordinal_of(stateful_set: Object, pod: Object) -> int | None:
    """The number at the end of a pod's name; None where the name is not one of this StatefulSet's."""
    found = re.fullmatch(rf"{re.escape(stateful_set.name)}-(0|[1-9]\d*)", pod.name)
    return int(found[1]) if found else None


def _resolve(owner: Object, current: str, update: str, revisions: Sequence[Object], now: datetime) -> Plan:
    strategy = owner.spec.get("updateStrategy") or {}
    templates = {one.name: template_of(one) for one in revisions}
    templates[update] = owner.spec["template"]
    return Plan(
        owner=owner,
        first=(owner.spec.get("ordinals") or {}).get("start", 0),
        replicas=owner.spec.get("replicas", 1),
        ordered=owner.spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady",
        partition=(strategy.get("rollingUpdate") or {}).get("partition") or 0,
        current=current,
        update=update,
        templates=templates,
        now=now,
    )


def _step(plan: Plan, held: Mapping[int, Object]) -> list[Write]:
    """What may be done now: in order one thing at a time, in parallel all at once."""
    writes: list[Write] = []
    for ordinal in plan.ordinals:
        pod = held.get(ordinal)
        if pod is None:
            writes.append(_make_member(plan, ordinal))
        elif is_finished(pod) and not pod.deleting:
            writes.append(_retire(plan, pod))
        elif plan.serves(pod):
            continue
        if plan.ordered:
            return writes
    surplus = [held[ordinal] for ordinal in sorted(held, reverse=True) if ordinal not in plan.ordinals]
    for pod in surplus:
        if not pod.deleting:
            writes.append(_retire(plan, pod))
        if plan.ordered:
            return writes
    strategy = (plan.owner.spec.get("updateStrategy") or {}).get("type", "RollingUpdate")
    return writes if writes or strategy == "OnDelete" else _update(plan, held)


def _update(plan: Plan, held: Mapping[int, Object]) -> list[Write]:
    """Replace the pod of the highest ordinal that is of an older template, once all above it serve again."""
    for ordinal in reversed(plan.ordinals):
        if ordinal < plan.first + plan.partition:
            break
        pod = held[ordinal]
        if pod.labels.get(HASH) != plan.update and not pod.deleting:
            return [_retire(plan, pod)]
        if not plan.serves(pod):
            break
    return []


def _make_member(plan: Plan, ordinal: int) -> Create:
    """The pod with its identity: name, host name, and the claims of its own in the place of the templates'."""
    owner, revision = plan.owner, plan.revision(ordinal)
    name = f"{owner.name}-{ordinal}"
    template = plan.templates[revision]
    spec = template.get("spec") or {}
    claims = [one["metadata"]["name"] for one in owner.spec.get("volumeClaimTemplates") or ()]
    volumes: list[Json] = [one for one in spec.get("volumes") or () if one["name"] not in claims]
    volumes += [{"name": one, "persistentVolumeClaim": {"claimName": f"{one}-{name}"}} for one in claims]
    over: Json = {"hostname": name}
    if owner.spec.get("serviceName"):
        over["subdomain"] = owner.spec["serviceName"]
    if volumes:
        over["volumes"] = volumes
    labels = {POD_NAME: name, POD_INDEX: str(ordinal), HASH: revision}
    return make_pod(owner, template, name=name, labels=labels, spec=over)


def _make_claims(owner: Object, steps: Iterable[Write], present: frozenset[str]) -> list[Write]:
    """The claims that the pods about to be made lack."""
    writes: list[Write] = []
    for step in steps:
        if not isinstance(step, Create):
            continue
        for template in owner.spec.get("volumeClaimTemplates") or ():
            given = template["metadata"]
            name = f"{given['name']}-{step.body['metadata']['name']}"
            if name in present:
                continue
            labels = {**(given.get("labels") or {}), **(owner.spec["selector"].get("matchLabels") or {})}
            metadata = {"name": name, "namespace": owner.namespace, "labels": labels}
            if given.get("annotations"):
                metadata["annotations"] = given["annotations"]
            body = {"metadata": metadata, "spec": template["spec"]}
            event = Event(
                owner, "SuccessfulCreate", f"create Claim {name} in StatefulSet {owner.name} success"
            )
            writes.append(Create(CLAIMS, owner.namespace, body, event))
    return writes


def _retire(plan: Plan, pod: Object) -> Write:
    text = f"delete Pod {pod.name} in StatefulSet {plan.owner.name} successful"
    return delete(PODS, pod, event=Event(plan.owner, "SuccessfulDelete", text))


def _describe(plan: Plan, held: Mapping[int, Object]) -> dict[str, Any]:
    living = [pod for pod in held.values() if not is_finished(pod)]
    staying = [pod for pod in living if not pod.deleting]
    ready = sum(map(is_ready, living))
    updated = sum(pod.labels.get(HASH) == plan.update for pod in staying)
    current = plan.current
    strategy = (plan.owner.spec.get("updateStrategy") or {}).get("type", "RollingUpdate")
    if strategy == "RollingUpdate" and updated == len(living) == ready == plan.replicas:
        current = plan.update
    return {
        "replicas": len(living),
        "readyReplicas": ready or None,
        "availableReplicas": sum(map(plan.serves, living)),
        "currentReplicas": sum(pod.labels.get(HASH) == current for pod in staying) or None,
        "updatedReplicas": updated or None,
        "currentRevision": current,
        "updateRevision": plan.update,
        "observedGeneration": plan.owner.metadata.generation,
    }


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    stateful_set = cluster[STATEFUL_SETS].get(key)
    if stateful_set is None:
        return Outcome()
    claims = [one.name for one in cluster[CLAIMS].find("namespace", key[0])]
    pods, revisions = candidates(cluster, PODS, stateful_set), candidates(cluster, REVISIONS, stateful_set)
    return order(stateful_set, pods, revisions, claims, now)


def _affected(cluster: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    if resource is STATEFUL_SETS:
        return (one.key,)
    return () if resource is CLAIMS else owners(cluster, STATEFUL_SETS, one)


STATEFUL_SET: Final = Controller(
    "statefulset-controller", (STATEFUL_SETS, PODS, REVISIONS, CLAIMS), _affected, _decide
)
