"""`poplin explain`: who may reach whom, and which policy says so."""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from poplin.cli.output import Format, Output
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
from poplin.datastore.core import NAMESPACES, NODES, PODS
from poplin.datastore.documents import flatten
from poplin.datastore.kubeconfig import find_access
from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.offline import is_stand_in, read_documents, to_policy_state
from poplin.model.errors import InvalidInputError
from poplin.model.policy import Verdict, protocol_name

Answers = Sequence[Answer]
WORDS = {True: "allowed", False: "denied"}
COLOURS = {True: "green", False: "red"}


def explain(
    source: Annotated[str, typer.Argument(help="NAMESPACE/POD, POD, node/NAME or an address.")] = "",
    destination: Annotated[
        str, typer.Argument(help="The same, with :PORT[/PROTO]. PORT may be a port's name, or icmp.")
    ] = "",
    files: Annotated[
        list[Path] | None,
        typer.Option("-f", "--filename", help="YAML of pods, namespaces, policies. [default: the cluster]"),
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

    Example: poplin explain shop/web shop/db:5432

    Example: poplin explain --all -f cluster.yaml --with new-policy.yaml
    """
    if whole == bool(source and destination):
        raise InvalidInputError(
            "give SRC and DST, or --all", where="poplin explain", remedy="see poplin explain --help"
        )
    documents = read_documents(files) if files else asyncio.run(_read_cluster(kubeconfig))
    state, problems = to_policy_state(documents)
    after: PolicyState | None = None
    if changes:
        after, problems = to_policy_state([*documents, *read_documents(changes)])
    answer = _all_questions(port) if whole else _question(source, destination, namespace)
    answers = answer(state)
    later = answer(after) if after is not None else None
    if output is Format.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode(_to_json(answers, later))))
    else:
        _print(Console(highlight=False, soft_wrap=True), answers, later, whole=whole)
    for text in [*map(str, problems), *_policy_problems(after or state)]:
        typer.echo(f"poplin: {text}", err=True)


async def _read_cluster(kubeconfig: Path | None) -> list[dict[str, Any]]:
    """The objects that policy depends on, as the API server has them now."""
    documents: list[dict[str, Any]] = []
    async with KubernetesSource(find_access(os.environ, kubeconfig=kubeconfig)) as source:
        for resource in (NAMESPACES, NODES, PODS, NETWORK_POLICIES):
            body = await source.client.request("GET", resource.path())
            documents += flatten([msgspec.json.decode(body)], resource.path())
    return documents


def _question(source: str, destination: str, namespace: str) -> Callable[[PolicyState], Answers]:
    def answer(state: PolicyState) -> Answers:
        name, port = split_target(destination)
        ends = find_end(state, source, namespace), find_end(state, name, namespace)
        world = build_world(state)
        return [ask(world, *ends, service) for service in find_services(ends[1], port)]

    return answer


def _all_questions(port: str) -> Callable[[PolicyState], Answers]:
    def answer(state: PolicyState) -> Answers:
        ends = sorted(map(to_end, living(state.pods)), key=lambda end: end.title)
        return ask_all(build_world(state), ends, port)

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


def _print(console: Console, answers: Answers, later: Answers | None, *, whole: bool) -> None:
    if not whole:
        for one in answers:
            _print_answer(console, one)
        for one in later or ():
            console.print("[bold]with the change[/]")
            _print_answer(console, one)
        return
    _print_matrix(console, later if later is not None else answers)
    if later is not None:
        changed = _changed(answers, later)
        console.print(f"\n[bold]{len(changed)} of {len(later)} connections would change[/]")
        for old, new in changed:
            was = "new" if old is None else WORDS[old.allowed]
            console.print(" -> ".join(_name(new)[:2]), f"{new.service}: {was}, then {_coloured(new.allowed)}")
            _print_verdicts(console, new.explanations)


def _coloured(allowed: bool) -> str:
    return f"[{COLOURS[allowed]}]{WORDS[allowed]}[/]"


def _print_answer(console: Console, answer: Answer) -> None:
    ends = f"{_end(answer.source)} -> {_end(answer.destination)} {answer.service}"
    console.print(f"{ends}: {_coloured(answer.allowed)}")
    _print_verdicts(console, answer.explanations)


def _end(end: End) -> str:
    addresses = ", ".join(str(one) for one in end.addresses if not is_stand_in(one))
    return f"{end.title} ({addresses})" if addresses and addresses != end.title else end.title


def _print_verdicts(console: Console, explanations: Sequence[Explanation]) -> None:
    """Both directions; once for both families where these agree."""
    groups: dict[tuple[Verdict, Verdict], list[int]] = {}
    for one in explanations:
        groups.setdefault((one.egress, one.ingress), []).append(one.packet.source.version)
    for verdicts, versions in groups.items():
        family = f" IPv{versions[0]}" if len(groups) > 1 else ""
        for verdict in verdicts:
            line = f"{_coloured(verdict.allowed)} by {_reason(verdict)}"
            console.print(f"  {verdict.direction + family:8} {line}")


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


def _to_json(answers: Answers, later: Answers | None) -> dict[str, Any]:
    found: dict[str, Any] = {"connections": list(map(_answer_json, answers))}
    if later is not None:
        found["changes"] = [
            {"before": None if old is None else _answer_json(old), "after": _answer_json(new)}
            for old, new in _changed(answers, later)
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
