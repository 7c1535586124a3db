"""`probatum check`: the contract suite on the terminal."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack

from rich.console import Console
from rich.text import Text

from probatum import catalogue
from probatum.checks import fresh
from probatum.checks.run import KIND, Result, check
from probatum.rooms import find

STYLES = {
    "passed": "green",
    "failed": "bold red",
    "not applicable": "dim",
    "expected to fail": "yellow",
    "to do": "cyan",
}
TOLD = ("failed", "to do")
"""What is told also where everything is checked."""
_HELD = ExitStack()
"""What a process keeps until it ends."""
MANY = 4
"""Names from which on processes are started, as many as there are cores."""


def print_checks(what: list[str] | None) -> None:
    """Check the named techniques, files or kinds of data (without a name all of them); exit code 1 where a check fails.

    What is still to be done, such as evidence that was not recorded yet, is told and counted, and is no failure.
    """
    console, failures = Console(), 0
    names = what or [*catalogue.names(), *(f"{KIND}{kind}" for kind in find.names("kind"))]
    for name, results in zip(names, checked(names), strict=True):
        count = {status: sum(result.status == status for result in results) for status in STYLES}
        failures += count["failed"]
        told = f": {count['passed']} passed, {count['failed']} failed" + (
            f", {n} to do" if (n := count["to do"]) else ""
        )
        console.print(Text.assemble((name, "bold"), told))
        for result in results:
            if what or result.status in TOLD:
                console.print(
                    Text(f"  {result.status:16} ", style=STYLES[result.status])
                    + Text(result.check.replace("_", " "))
                    + Text(f"  {result.detail}" if result.detail else "", style="dim")
                )
    if failures:
        raise SystemExit(1)


def checked(names: Sequence[str], processes: int | None = None) -> Iterator[list[Result]]:
    """The results of each name, in their order; of many names side by side.

    Where a process dies, those that may have been running are checked again, each in a process of its own, and fail where that
    dies too; the others go on in new ones.

    Args:
        names: as `probatum.checks.run.check` takes them.
        processes: how many; None = as many as there are cores, one for few names.
    """
    if processes is None:
        processes = min(os.cpu_count() or 1, len(names)) if len(names) >= MANY else 1
    if processes < 2:
        with fresh.kept():  # one more process answers for all of them
            yield from map(check, names)
        return
    added = [str(room.folder) for room in find.added() if room.sort == "kind"]
    found: dict[int, list[Result]] = {}
    waiting, suspects, told = list(range(len(names))), list[int](), 0
    while told < len(names):
        batch, count = ([suspects.pop(0)], 1) if suspects else (waiting, processes)
        for k, results in _side_by_side(names, batch, count, added):
            found[k] = results
            while told in found:
                yield found[told]
                told += 1
        left = [k for k in batch if k not in found]
        if count > 1:  # names begin in order: the one that was running when a process died is among the first
            suspects, waiting = left[:count], left[count:]


def _side_by_side(
    names: Sequence[str], batch: Sequence[int], processes: int, added: Sequence[str]
) -> Iterator[tuple[int, list[Result]]]:
    """Positions in `names` and their results, in order; those that are missing were not done when a process died.

    A name that has its process for itself fails where that dies.
    """
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(batch)), spawned, _begin, (added,)) as pool:
        futures: dict[int, Future[list[Result]]] = {}
        try:
            try:
                for k in batch:
                    futures[k] = pool.submit(check, names[k])
            except BrokenProcessPool:  # while names were still being handed out
                pass
            for k, future in futures.items():
                try:
                    results = future.result()
                except BrokenProcessPool:
                    if len(batch) > 1:
                        continue
                    results = [
                        Result(
                            "runs", "failed", f"a process that checked died, and had nothing but {names[k]} to check"
                        )
                    ]
                yield k, results
        except BaseException:  # a name that is none, or whoever asks has enough
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(kinds: Sequence[str]) -> None:
    """What a process knows before its first name: kinds from outside; its own second process stays as long as it."""
    for folder in kinds:
        find.add(folder)
    _HELD.enter_context(fresh.kept())
