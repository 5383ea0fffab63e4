"""What every benchmark prints: figures beside a peer's or a budget, as a table or as JSON."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `peer` is another's number from the same run, `budget` what `ratio` may be.

    `ratio` is value / peer, or value / limit where the budget is a limit; None where there is neither.
    `higher_is_better` turns the budget into a least ratio.
    """

    what: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    budget: float | None = None
    higher_is_better: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the budget is kept; None where there is none."""
        if self.ratio is None or self.budget is None:
            return None
        return self.ratio >= self.budget if self.higher_is_better else self.ratio <= self.budget


def against(
    what: str,
    value: float,
    unit: str,
    peer: str,
    peer_value: float,
    budget: float | None = None,
    *,
    higher_is_better: bool = False,
) -> Figure:
    """Give a figure beside a peer's; without a budget it is only told."""
    return Figure(
        what, value, unit, peer, peer_value, value / peer_value, budget, higher_is_better=higher_is_better
    )


def within(what: str, value: float, unit: str, limit: float, note: str = "") -> Figure:
    """Give a figure beside a limit that it must not exceed."""
    return Figure(what, value, unit, "limit", limit, value / limit, 1.0, note=note)


def at_least(what: str, value: float, unit: str, limit: float, note: str = "") -> Figure:
    """Give a figure beside a limit that it must reach."""
    return Figure(what, value, unit, "limit", limit, value / limit, 1.0, higher_is_better=True, note=note)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Give the sample that `percent` of them do not exceed."""
    if percent == 50:
        return statistics.median(samples)
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def print_table(title: str, figures: Sequence[Figure]) -> None:
    """Print figures with their budgets beside them."""
    print(f"\n{title}")
    print(f"  {'what':<46} {'ours':>16} {'beside':>24} {'ratio':>7} {'budget':>7}")
    for f in figures:
        beside = f"{f.peer} {_number(f.peer_value)}" if f.peer_value is not None else ""
        ratio = f"{f.ratio:.2f}" if f.ratio is not None else ""
        budget = (f"{'>=' if f.higher_is_better else '<='}{f.budget:g}") if f.budget is not None else ""
        mark = {True: "ok", False: "MISSED", None: ""}[f.met]
        value = f"{_number(f.value)} {f.unit}"
        print(f"  {f.what:<46} {value:>16} {beside:>24} {ratio:>7} {budget:>7} {mark} {f.note}".rstrip())


def _number(value: float) -> str:
    """Four digits, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def main(title: str, run: Callable[[], list[Figure]]) -> None:
    """Run one benchmark from the command line; --json prints JSON alone."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    figures = run()
    if options.json:
        json.dump(as_json(figures), sys.stdout, indent=1)
        print()
    else:
        print_table(title, figures)


def as_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Give the figures as JSON values."""
    return [{**asdict(figure), "met": figure.met} for figure in figures]
