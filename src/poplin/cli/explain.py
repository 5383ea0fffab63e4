"""`poplin explain`: who may reach whom, and which policy says so."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import typer
from rich.console import Console

from poplin.cli.output import Format, Output
from poplin.cli.passage import Passage, describe, follow, passage_json, read_services
from poplin.compile.policy.question import (
    Answer,
    End,
    ask,
    ask_all,
    find_end,
    find_services,
    living,
    split_target,
    to_end,
)
from poplin.compile.policy.world import Explanation, PolicyState, build_world
from poplin.compile.services.listing import KINDS
from poplin.datastore.core import NAMESPACES, NODES, PODS
from poplin.datastore.documents import flatten
from poplin.datastore.kubeconfig import find_access
from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.offline import is_stand_in, read_documents, to_policy_state
from poplin.datastore.service import ENDPOINT_SLICES, SERVICES
from poplin.model.errors import InvalidInputError, PoplinError
from poplin.model.policy import Verdict, protocol_name

Answers = Sequence[Answer]
WORDS = {True: "allowed", False: "denied"}
COLOURS = {True: "green", False: "red"}
Documents = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Found:
    """What was asked of a cluster: the connections, and the ways through a Service that lead to them."""

    answers: Answers
    passages: Sequence[Passage] = ()
    problems: Sequence[PoplinError] = ()


class Question(Protocol):
    """`derive`: Services may lack clusterIPs and slices, see `read_services`."""

    def __call__(self, state: PolicyState, documents: Documents, *, derive: bool) -> Found: ...


def explain(
    source: Annotated[str, typer.Argument(help="NAMESPACE/POD, POD, node/NAME or an address.")] = "",
    destination: Annotated[
        str,
        typer.Argument(
            help="The same, or a Service (SERVICE, svc/SERVICE), with :PORT[/PROTO]. PORT may be a port's name, or icmp."
        ),
    ] = "",
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "-f", "--filename", help="YAML of pods, namespaces, policies, Services. [default: the cluster]"
        ),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Every pod to every other, as a matrix.")] = False,
    port: Annotated[
        str, typer.Option(help="PORT[/PROTO] for --all. [default: each pod's declared ports]")
    ] = "",
    changes: Annotated[
        list[Path] | None,
        typer.Option("--with", help="YAML not yet applied: show what it would change."),
    ] = None,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", help="Of pods named without one.")
    ] = "default",
    kubeconfig: Annotated[
        Path | None, typer.Option(help="How to reach the API server. [default: as kubectl]")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Say whether a connection is allowed, in each direction, and which policy and rule says so.

    A Service, by its name or an address, is followed to its endpoints: which may be drawn from where the
    source is, and why the others may not; and what policy says of each. Where a pod has the same name, write svc/SERVICE.

    Example: poplin explain shop/web shop/db:5432

    Example: poplin explain --all -f cluster.yaml --with new-policy.yaml
    """
    if whole == bool(source and destination):
        raise InvalidInputError(
            "give SRC and DST, or --all", where="poplin explain", remedy="see poplin explain --help"
        )
    documents = read_documents(files) if files else asyncio.run(_read_cluster(kubeconfig))
    state, problems = to_policy_state(documents)
    answer = _all_questions(port) if whole else _question(source, destination, namespace)
    try:
        now = last = answer(state, documents, derive=bool(files))
    except InvalidInputError:
        if not changes:
            raise
        now = last = Found(())  # an end, perhaps, that is yet to be applied
    later: Found | None = None
    if changes:
        documents = [*documents, *read_documents(changes)]
        state, problems = to_policy_state(documents)
        # A Service that is not applied yet has no slices in the cluster either.
        later = last = answer(state, documents, derive=True)
    if output is Format.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode(_to_json(now, later))))
    else:
        _print(Console(highlight=False, soft_wrap=True), now, later, whole=whole)
    for text in [*map(str, (*problems, *last.problems)), *_policy_problems(state)]:
        typer.echo(f"poplin: {text}", err=True)


async def _read_cluster(kubeconfig: Path | None) -> Documents:
    """The objects that policy and Services depend on, as the API server has them now."""
    documents: Documents = []
    async with KubernetesSource(find_access(os.environ, kubeconfig=kubeconfig)) as source:
        for resource in (NAMESPACES, NODES, PODS, NETWORK_POLICIES, SERVICES, ENDPOINT_SLICES):
            body = await source.client.request("GET", resource.path())
            documents += flatten([msgspec.json.decode(body)], resource.path())
    return documents


def _question(source: str, destination: str, namespace: str) -> Question:
    def answer(state: PolicyState, documents: Documents, *, derive: bool) -> Found:
        name, port = split_target(destination)
        start, world = find_end(state, source, namespace), build_world(state)
        services, problems = read_services(documents, derive=derive)
        passages = follow(services, state, world, start, (name, port), namespace)
        if passages:
            return Found([one for way in passages for one in way.answers.values()], passages, problems)
        end = find_end(state, name, namespace)
        return Found(
            [ask(world, start, end, service) for service in find_services(end, port)], problems=problems
        )

    return answer


def _all_questions(port: str) -> Question:
    def answer(state: PolicyState, documents: Documents, *, derive: bool) -> Found:
        del documents, derive  # pods alone are asked for
        ends = sorted(map(to_end, living(state.pods)), key=lambda end: end.title)
        return Found(ask_all(build_world(state), ends, port))

    return answer


def _policy_problems(state: PolicyState) -> Iterator[str]:
    for policy in state.network_policies:
        yield from (f"NetworkPolicy {policy.namespace}/{policy.name}: {one}" for one in policy.problems)


def _name(answer: Answer) -> tuple[str, str, str]:
    return answer.source.title, answer.destination.title, str(answer.service)


def _changed(before: Answers, after: Answers) -> list[tuple[Answer | None, Answer]]:
    """The connections whose verdict differs, or that were not there before."""
    known = {_name(one): one for one in before}
    pairs = [(known.get(_name(one)), one) for one in after]
    return [(old, new) for old, new in pairs if old is None or old.allowed != new.allowed]


# Text


def _print(console: Console, now: Found, later: Found | None, *, whole: bool) -> None:
    if not whole:
        _print_found(console, now)
        if later is not None:
            console.print("[bold]with the change[/]")
            _print_found(console, later)
        return
    _print_matrix(console, (later or now).answers)
    if later is not None:
        changed = _changed(now.answers, later.answers)
        console.print(f"\n[bold]{len(changed)} of {len(later.answers)} connections would change[/]")
        for old, new in changed:
            was = "new" if old is None else WORDS[old.allowed]
            console.print(" -> ".join(_name(new)[:2]), f"{new.service}: {was}, then {_coloured(new.allowed)}")
            _print_verdicts(console, new.explanations)


def _coloured(allowed: bool) -> str:
    return f"[{COLOURS[allowed]}]{WORDS[allowed]}[/]"


def _print_found(console: Console, found: Found) -> None:
    for way in found.passages:
        _print_passage(console, way)
    for one in () if found.passages else found.answers:
        _print_answer(console, one)


def _print_passage(console: Console, passage: Passage) -> None:
    route, frontend = passage.route, passage.route.frontend
    service = f"Service {route.service.namespace}/{route.service.name}"
    address = "" if is_stand_in(frontend.address) else f" {frontend.address}"
    way = f"{KINDS[frontend.kind]}{address} {frontend.port.protocol} {frontend.number}"
    colour = {"allowed": "green", "partly allowed": "yellow"}.get(passage.outcome, "red")
    at = f", at {route.place.node_name}" if route.from_outside else ""
    console.print(
        f"{_end(passage.source)} -> {service} ({way}){at}: [{colour}]{passage.outcome}[/]", markup=True
    )
    for line in describe(passage):
        console.print(f"  {line}", markup=False)
    for one in route.candidates:
        answer = passage.answers.get(one)
        node = f" on {one.node_name}" if one.node_name else ""
        verdict = f": {_coloured(answer.allowed)}" if answer else ""
        drawn = "drawn" if one.drawn else "not drawn"
        console.print(f"  {_end(passage.ends[one])} {one.port}{node} {drawn} ({one.reason}){verdict}")
        if answer:
            _print_verdicts(console, answer.explanations, "    ")


def _print_answer(console: Console, answer: Answer) -> None:
    ends = f"{_end(answer.source)} -> {_end(answer.destination)} {answer.service}"
    console.print(f"{ends}: {_coloured(answer.allowed)}")
    _print_verdicts(console, answer.explanations)


def _end(end: End) -> str:
    addresses = ", ".join(str(one) for one in end.addresses if not is_stand_in(one))
    return f"{end.title} ({addresses})" if addresses and addresses != end.title else end.title


def _print_verdicts(console: Console, explanations: Sequence[Explanation], indent: str = "  ") -> None:
    """Both directions; once for both families where these agree."""
    groups: dict[tuple[Verdict, Verdict], list[int]] = {}
    for one in explanations:
        groups.setdefault((one.egress, one.ingress), []).append(one.packet.source.version)
    for verdicts, versions in groups.items():
        family = f" IPv{versions[0]}" if len(groups) > 1 else ""
        for verdict in verdicts:
            line = f"{_coloured(verdict.allowed)} by {_reason(verdict)}"
            console.print(f"{indent}{verdict.direction + family:8} {line}")


def _reason(verdict: Verdict) -> str:
    policies = ", ".join(map(str, verdict.policies))
    place = f" (tier {verdict.tier})" if verdict.tier else ""
    if verdict.rule is not None:
        return f"{policies}, {verdict.direction} rule {verdict.rule}{place}"
    return f"{policies}{place}: {verdict.reason}" if policies else f"default: {verdict.reason}"


def _print_matrix(console: Console, answers: Answers) -> None:
    """Rows are sources, columns destinations."""
    cells: dict[tuple[str, str], list[bool]] = {}
    for one in answers:
        cells.setdefault((one.source.title, one.destination.title), []).append(one.allowed)
    names = sorted({name for pair in cells for name in pair})
    width, digits = max(map(len, names), default=0), len(str(len(names)))
    console.print(" " * (width + digits + 2) + " ".join(f"{i:>{digits}}" for i in range(1, len(names) + 1)))
    for number, name in enumerate(names, start=1):
        row = " ".join(_cell(cells.get((name, other)), digits) for other in names)
        console.print(f"{number:>{digits}} {name:{width}} {row}")
    console.print("[dim]row to column: [green]✓[/] allowed, [red]✗[/] denied, ~ at some of its ports[/]")


def _cell(allowed: Iterable[bool] | None, width: int) -> str:
    if allowed is None:
        return f"{'·':>{width}}"
    found = set(allowed)
    if len(found) > 1:
        return f"{'~':>{width}}"
    return f"[green]{'✓':>{width}}[/]" if True in found else f"[red]{'✗':>{width}}[/]"


# JSON


def _to_json(now: Found, later: Found | None) -> dict[str, Any]:
    found: dict[str, Any] = {"connections": list(map(_answer_json, now.answers))}
    if now.passages:
        found["services"] = list(map(passage_json, now.passages))
    if later is not None and later.passages:
        found["services_after"] = list(map(passage_json, later.passages))
    if later is not None:
        found["changes"] = [
            {"before": None if old is None else _answer_json(old), "after": _answer_json(new)}
            for old, new in _changed(now.answers, later.answers)
        ]
    return found


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "source": answer.source.title,
        "destination": answer.destination.title,
        "protocol": protocol_name(answer.service.protocol),
        "port": answer.service.port or None,
        "allowed": answer.allowed,
        "families": [
            {
                "family": f"IPv{one.packet.source.version}",
                "source": str(one.packet.source),
                "destination": str(one.packet.destination),
                "allowed": one.allowed,
                "egress": _verdict_json(one.egress),
                "ingress": _verdict_json(one.ingress),
            }
            for one in answer.explanations
        ],
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "allowed": verdict.allowed,
        "reason": verdict.reason.name,
        "message": verdict.reason.value,
        "tier": verdict.tier or None,
        "policies": [key._asdict() for key in verdict.policies],
        "rule": verdict.rule,
    }
