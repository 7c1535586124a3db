"""What a user sees while a study runs: a live table, or without a terminal a line now and then."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from math import fsum

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from probatum.bench.budget import account
from probatum.bench.costs import Costs
from probatum.bench.execute import Job
from probatum.bench.store import Trial
from probatum.bench.time_words import clock_words

NAMED = 4
"""Running trials that are named."""
FIRST, AGAIN = 15.0, 30.0
"""Seconds until the first line without a terminal, and from one line to the next."""


class Ticker:
    """Calls a function every second from a thread of its own, as a context manager; long trials do not hold it up."""

    def __init__(self, beat: Callable[[], None], seconds: float = 1.0) -> None:
        self._beat, self._seconds, self._over = beat, seconds, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            with suppress(OSError):  # of an output that takes no more, which the command itself finds out
                self._beat()


class Waiting:
    """Tells now and then that something goes on, where there is no terminal on which a wheel turns."""

    def __init__(self, console: Console, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._what, self._clock = console, what, clock
        self._begun = self._told = clock()
        if not console.is_terminal:
            console.print(f"{what} ...", highlight=False)

    def beat(self) -> None:
        """Once a second."""
        if not self._console.is_terminal and self._clock() - self._told >= AGAIN:
            self._told = self._clock()
            self._console.print(f"{self._what}, for {clock_words(self._told - self._begun)}", highlight=False)


class LiveTable:
    """A table that follows the trials; without a terminal, a line at least every half minute instead.

    Args:
        console: where it is shown.
        primary: the measure whose means are shown.
        race: the looks of a race, for lines that tell of its stages.
        slots: trials that run at once.
        end: when a budget of time is over, by the clock; None = there is none.
        clock: seconds that pass.
    """

    def __init__(
        self,
        console: Console,
        primary: str,
        race: tuple[int, ...] = (),
        *,
        slots: int = 1,
        end: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.primary, self.race = console, primary, race if end is None else ()
        self.slots, self.end, self.clock = slots, end, clock
        self.racing: set[str] = set()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.values: dict[str, list[float]] = defaultdict(list)
        self.failed: dict[str, int] = defaultdict(int)
        self.costs = Costs()
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, tuple[Job, float]] = {}
        self.total = self.done = self.stored = 0
        self.told = clock() - AGAIN + FIRST
        self.share = ""
        self._ticker = Ticker(self.beat)

    def __enter__(self) -> LiveTable:
        if self.live is not None:
            self.live.start()
        self._ticker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._ticker.__exit__()
        if self.live is not None:
            self.live.stop()

    def planned(self, jobs: list[Job], done: int) -> None:
        """A batch of trials is about to run; `done` of them are in the store. In a budget of time many follow one another."""
        if self.race:
            self._tell_stage(jobs)
        if self.end is None:
            self.total = self.done = self.stored = 0
            self.waiting.clear()
            self.running.clear()
        self.total += len(jobs)
        self.stored += done
        self.waiting |= {job.key: job for job in jobs}
        if done:
            self.console.print(Text(f"{done} of {len(jobs)} trials are in the store already", style="dim"))

    def started(self, job: Job) -> None:
        """A trial begins; others may be under way."""
        self.running[job.key] = (job, self.clock())
        self._show()

    def stepped(self, step: int, steps: int) -> None:
        """The trial has taken `step` of `steps` updates."""
        self.share = f" {100 * step // steps} %"
        self._show()

    def ended(self, job: Job, trial: Trial) -> None:
        """A trial ended, or was found in the store."""
        self.done += 1
        self.waiting.pop(job.key, None)
        self.running.pop(job.key, None)
        self.share = ""
        self.costs.add(account(job), float(trial.timing.get("seconds", 0.0)))
        if trial.status != "ok":
            self.failed[job.arm.name] += 1
        elif self.primary in trial.record.get("measures", {}):
            self.values[job.arm.name].append(trial.record["measures"][self.primary])
        self._show()
        last = self.done == self.total and self.end is None
        if self.live is None and self._ran() and (last or self._tenth()):
            self._tell()

    def said(self, line: str) -> None:
        """A line about what comes next."""
        self.console.print(Text(line, style="dim"))
        self.told = self.clock()

    def beat(self) -> None:
        """Once a second: the clock goes on; without a terminal a line where none was printed for long."""
        if self.live is not None:
            self._show()
        elif self.clock() - self.told >= AGAIN:
            self._tell()

    def left(self) -> float | None:
        """Seconds until all is done, from what trials of the same arms took; None where no trial has ended.

        What the store held is done and takes no time. Timings are taken one at a time.
        """
        if self.end is not None:
            return max(0.0, self.end - self.clock())
        jobs = list(self.waiting.values())
        if not self.costs or not jobs:
            return 0.0 if not jobs else None
        fits = [job for job in jobs if job.kind != "timing"]
        work = fsum(self._cost(job) for job in fits)
        under_way = [(job, begun) for job, begun in list(self.running.values()) if job.kind != "timing"]
        if under_way:  # seeds that are trained as one begin together
            elapsed = self.slots * (self.clock() - min(begun for _, begun in under_way))
            work -= min(elapsed, fsum(self._cost(job) for job, _ in under_way))
        return work / self.slots + fsum(self._cost(job) for job in jobs if job.kind == "timing")

    def line(self) -> str:
        """Trials done of all, time left, and what runs for how long."""
        done = f"{self.done} trials" if self.end is not None else f"{self.done}/{self.total} trials"
        left = self.left()
        about = "" if not left else f", {clock_words(left)} left" if self.end else f", about {clock_words(left)} left"
        return f"{done}{about}" + (f"; {self._now()}" if self.running else "")

    def _cost(self, job: Job) -> float:
        known = account(job)
        return self.costs.of(known if self.costs.knows(known) else job.arm.name)

    def _now(self) -> str:
        """What runs, the longest first, and for how long it has."""
        now = list(self.running.values())
        names = [f"{job.arm.name}, seed {job.seed}" + (" (timing)" if job.kind == "timing" else "") for job, _ in now]
        told = "; ".join(names[:NAMED]) + (f"; {len(now) - NAMED} more" if len(now) > NAMED else "")
        longest = self.clock() - min(begun for _, begun in now) if now else 0.0
        return told + (f" for {clock_words(longest)}" if longest >= FIRST else "")

    def _tell(self) -> None:
        self.told = self.clock()
        self.console.print(Text(self.line()), soft_wrap=False)

    def _tenth(self) -> bool:
        """Whether a tenth of the trials more has ended."""
        return self.end is None and self.done % max(1, self.total // 10) == 0

    def _tell_stage(self, jobs: list[Job]) -> None:
        """A line when a race goes on: which arms stopped at the look before."""
        fits = [job for job in jobs if job.kind == "fit"]
        look = max((job.seed for job in fits), default=-1) + 1
        if look not in self.race:  # timings, or the winner's fresh seeds
            return
        arms = {job.arm.name for job in fits if not job.builtin}
        stopped = sorted(self.racing - arms)
        told = f"; stopped: {', '.join(stopped)}" if stopped else ""
        line = f"race to {look} of {self.race[-1]} seeds: {len(arms)} arm(s){told}"
        self.console.print(Text(line, style="dim"), soft_wrap=False)
        self.racing = arms

    def _ran(self) -> int:
        """Trials that have ended here; the stored ones are told of before them."""
        return max(0, self.done - self.stored)

    def _show(self) -> None:
        if self.live is None:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("arm", overflow="fold")
        table.add_column("seeds", justify="right")
        table.add_column(f"mean {self.primary}", justify="right")
        for arm, values in list(self.values.items()):
            lost = f" ({self.failed[arm]} lost)" if self.failed[arm] else ""
            table.add_row(arm, f"{len(values)}{lost}", f"{sum(values) / len(values):.4f}")
        self.live.update(Group(table, Text(self.line() + self.share, style="dim")))
