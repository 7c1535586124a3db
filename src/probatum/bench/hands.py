"""How many processes a study gets where nobody says it: all cores, as far as memory holds them; none for what is soon over."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from probatum.bench.context import Context, Job, quiet
from probatum.bench.execute import Elsewhere, Executor, Here, Listener
from probatum.bench.isolation import outsiders
from probatum.bench.rehearse import rehearse
from probatum.bench.rehearsing import Elsewhere as Rehearsed
from probatum.bench.workers import Ended, Workers
from probatum.data.lazy.memory import available

START_SECONDS = 5.0
"""About what it takes until processes have started and taken in the data."""


@dataclass(frozen=True)
class Hands:
    """Who runs a study's trials.

    Attributes:
        workers: processes side by side; 1 = this process alone.
        later: whether this process begins, and the others join only if it takes longer than `START_SECONDS`.
    """

    workers: int = 1
    later: bool = False

    def executor(self, memory: float | None = None, apart: Workers | None = None) -> Executor:
        """To be closed after use.

        Args:
            memory: bytes that each process may take.
            apart: processes for techniques from outside; None = these are run as all others.
        """
        if self.workers == 1:
            return Here(apart)
        if self.later:
            return HereFirst(
                self.workers, pool=lambda count: Workers(count, memory, owned=apart is not None), apart=apart
            )
        return Workers(self.workers, memory, owned=apart is not None)

    def words(self) -> str:
        """For the line that tells the plan; "" for this process alone."""
        if self.workers == 1:
            return ""
        after = f" once it has run for {START_SECONDS:.0f} s" if self.later else ""
        return f"{self.workers} workers{after}"


def automatic(context: Context, cores: int, elsewhere: Rehearsed | None = None) -> Hands:
    """The hands for a study on so many cores.

    A process needs about as much memory as this one has taken so far, which holds the data and has rehearsed every arm. A
    trial takes at least as long as a rehearsal of the baseline: if all of them, that long, take longer than processes need
    to start, these are started at once.
    """
    workers = max(1, min(cores, 1 + int(available() / taken())))
    if workers == 1:
        return Hands()
    plan = context.plan
    trials = (1 + len(plan.arms)) * len(plan.seeds)
    return Hands(workers, later=trials * rehearsal_seconds(context, elsewhere) < START_SECONDS)


def taken() -> float:
    """The most memory that this process has taken, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rehearsal_seconds(context: Context, elsewhere: Rehearsed | None = None) -> float:
    """How long a rehearsal of the baseline takes when nothing has to be loaded for it any more; elsewhere, if it is from outside."""
    begun, owner = time.monotonic(), "+".join(outsiders(context.plan.base))
    if owner and elsewhere is not None:
        elsewhere(context, owner, None)
    else:
        with quiet(context.plan.threads):
            rehearse(context.baseline(), context.plan.arena)
    return time.monotonic() - begun


class HereFirst:
    """Runs groups in this process, until they have taken as long as processes need to start; then in `count` of these."""

    def __init__(
        self,
        count: int,
        clock: Callable[[], float] = time.monotonic,
        pool: Callable[[int], Executor] = Workers,
        apart: Elsewhere | None = None,
    ) -> None:
        self._count, self._clock, self._make = count, clock, pool
        self._here = Here(apart)
        self._spent = 0.0
        self._pool: Executor | None = None

    def run(self, context: Context, groups: Iterable[list[Job]], listener: Listener) -> Iterator[Ended]:
        """Run every group, asking for the next when there is room; yield jobs with their trials once they have ended."""
        source = iter(groups)
        while self._pool is None:
            begun = self._clock()
            group = next(source, None)
            if group is None:
                return
            yield from self._here.run(context, [group], listener)
            self._spent += self._clock() - begun
            if self._spent >= START_SECONDS:
                self._pool = self._make(self._count)
        yield from self._pool.run(context, source, listener)

    def slots(self, context: Context) -> int:
        """How many groups run at once, when the processes are there."""
        return self._count

    def close(self) -> None:
        """Stop the processes."""
        self._here.close()
        if self._pool is not None:
            self._pool.close()
