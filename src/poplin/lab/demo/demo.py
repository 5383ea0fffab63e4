"""The demonstration's parts: a lab that goes again, and every pod probed from every other."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from poplin.lab.demo.crossing import Crossing, judge
from poplin.lab.demo.member import Member, make_probes
from poplin.lab.demo.path import find_paths
from poplin.lab.directory import Directory
from poplin.lab.lifecycle import Step, bring_up, take_down
from poplin.lab.probing import probe_all
from poplin.lab.settings import Settings

EXAMPLE: Final = Path(__file__).parent / "library.yaml"
"""The application that is carried along."""

DEFAULT_NAME: Final = "demo"


@contextmanager
def standing(settings: Settings, step: Step, *, keep: bool) -> Iterator[Directory]:
    """A lab for the time of the block; one that stood before, or with `keep`, stays. Raises PoplinError.

    However the block ends, by Ctrl-C and SIGTERM too, the lab is gone afterwards; nothing interrupts that.
    """
    directory = Directory(settings.name)
    stood = directory.settings.exists()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        bring_up(settings, step)
        yield directory
    finally:
        deaf = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            if not stood and not keep:
                with step("everything taken down"):
                    take_down(settings.name)
        finally:
            signal.signal(signal.SIGINT, deaf[0])
            signal.signal(signal.SIGTERM, before)


async def cross(
    directory: Directory, members: Sequence[Member], progress: Callable[[int], None] = lambda _: None
) -> list[Crossing]:
    """Probe every pair, and ask the kernel for the path of each. Raises KernelError."""
    asked = make_probes(members)
    results = await probe_all([probe for _, _, probe in asked], progress=progress)
    # Thousands of questions to the kernel: what else the loop does shall not wait for them.
    paths = await asyncio.to_thread(find_paths, directory, members)
    crossings = []
    for (source, target, probe), result in zip(asked, results, strict=True):
        path = paths[source.uid, probe.address]
        crossings.append(Crossing(source, target, result, path, judge(source, target, result, path)))
    return crossings


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
