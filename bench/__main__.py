"""All benchmarks, or those named: tables with the budgets beside the figures.

    python -m bench [NAME ...] [--json FILE]

Exit status 0 even where budgets are missed: it measures, and judges nothing. 1 where a benchmark did not run.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from bench.report import Figure, as_json, print_table

TITLES = {
    "cni": "CNI ADD and DEL, from process start to end",
    "crowd": "250 pods on one node, 200 of them at once",
    "throughput": "Pod to pod across two nodes, beside the same path by hand",
    "agent": "The agent at rest, and how things start",
    "netlink": "rtnetlink: routes and pods, beside pyroute2",
    "nftables": "nftables: transactions, and what a rule costs a packet",
    "flows": "A flood of denied packets, and the agent's event loop",
    "services": "Services: first packet, loading, changes, throughput",
    "policy": "NetworkPolicy: first packets, changes, calculation",
    "bandwidth": "Bandwidth limits, beside Go's plugin",
    "scale": "The agent in simulated clusters of 100, 500 and 5,000 nodes",
    "chaos": "Random faults: repair times, and restarts under traffic",
    "reflector": "The reflector: 10,000 pods listed, 40,000 changes followed",
    "apiserver": "The embedded API server with 10,000 pods",
    "lab": "The lab: up, down, and 200 pods on 20 nodes",
    "runtimes": "What runs a lab's pods: processes beside containerd",
}
"""Modules of this package, each with a function `run` that gives its figures."""


def main() -> int:
    """Run, print, write. Give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, beside peers and budgets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TITLES)}; none for all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args()
    unknown = set(options.names) - set(TITLES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}")
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, kernel {os.uname().release}")
    results: dict[str, Sequence[Figure]] = {}
    failed = []
    for name in options.names or TITLES:
        run: Callable[[], Sequence[Figure]] = import_module(f"bench.{name}").run
        try:
            results[name] = run()
        except Exception:  # noqa: BLE001  - one that fails is reported, and the others are still of use
            traceback.print_exc()
            failed.append(name)
        else:
            print_table(TITLES[name], results[name])
    if options.json:
        figures = {name: as_json(found) for name, found in results.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{verdict(results)}")
    if failed:
        print(f"did not run: {', '.join(failed)}")
    return 1 if failed else 0


def verdict(results: dict[str, Sequence[Figure]]) -> str:
    """Name the budgets that were missed."""
    judged = [(name, f) for name, found in results.items() for f in found if f.met is not None]
    missed = [f"{name}: {f.what.strip()}" for name, f in judged if not f.met]
    if missed:
        return f"{len(missed)} of {len(judged)} budgets missed: {'; '.join(missed)}"
    return f"all {len(judged)} budgets kept" if judged else "no budget was judged"


if __name__ == "__main__":
    sys.exit(main())
