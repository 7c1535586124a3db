"""Several processes on this machine that run groups of trials; one that dies is replaced and its work given out again.

Techniques from outside the package have a process of their own for every group (`probatum.bench.isolation.owner_of`); any
other one in which something was changed that is not a trial's own is replaced.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from probatum.arenas.predict.stacks import Choice
from probatum.bench import isolation, rehearsing
from probatum.bench.context import Context, Job, PutOff, lost, put_off, quiet
from probatum.bench.execute import Listener
from probatum.bench.isolation import Printed, Ran, guarded, outsiders, owner_of, took_too_long
from probatum.bench.limits import hold_to
from probatum.bench.nursery import load, nursery, tend
from probatum.bench.parcel import check_versions, pack, unpack
from probatum.bench.plain import plain, received
from probatum.bench.rehearse import try_all
from probatum.bench.speed import measured
from probatum.bench.store import Trial
from probatum.bench.untouched import LISTENER
from probatum.errors import InputError
from probatum.recipe import Arm

AUTO = "auto"
"""As many workers as cores and memory hold, see `probatum.bench.hands`."""
DEATHS = 3
"""How often a trial may take its worker with it before it is recorded as failed."""
LOOK_SECONDS = 1.0
"""How often to look for dead workers whose children still hold their pipes."""
LAST_WORDS_SECONDS = 5.0
SPARE = 3
"""Processes with nothing to do that are kept for the techniques that they belong to."""
REHEARSAL_SECONDS = 600.0
"""How long a technique from outside may take to be rehearsed or probed."""

Ended = tuple[list[Job], list[Trial]]


@dataclass
class Task:
    """A group of jobs and how many workers have died of it."""

    jobs: list[Job]
    deaths: int = 0
    begun: float = 0.0

    def again(self) -> list[Task] | None:
        """What to try after a worker died of it: its jobs one by one, or itself; None = not again."""
        if len(self.jobs) > 1:
            return [Task([job]) for job in self.jobs]
        self.deaths += 1
        return [self] if self.deaths < DEATHS else None


def given_up(context: Context, task: Task, why: str) -> Ended:
    """The failed trial of a task that is not tried again."""
    reason = f"the worker died ({why}) three times"
    return task.jobs, [lost(context, job, "failed", reason, seconds=0.0) for job in task.jobs]


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def checked_workers(workers: int | str, threads: int) -> int:
    """The number of workers: as given, or for 0 and auto what the cores hold; InputError where it is no such number."""
    if threads < 1:
        raise InputError(f"threads is {threads}; give 1 or more torch threads for every trial")
    text = str(workers)
    if isinstance(workers, bool) or not (text == AUTO or text.isdecimal()):
        raise InputError(
            f"workers is {workers!r}; give the number of processes, 1 or more, 0 for what the cores hold, or auto"
        )
    return (0 if text == AUTO else int(text)) or max(1, cores() // threads)


def too_many(workers: int, threads: int) -> str | None:
    """One line of warning where more threads would run at once than there are cores; None otherwise."""
    if workers * threads <= cores():
        return None
    asked = f"{workers} workers" + (f" of {threads} threads" if threads > 1 else "")
    return f"{asked} on {cores()} core{'s' if cores() > 1 else ''} get in each other's way; fewer may be faster"


class Workers:
    """Runs groups in `count` processes, which stay until `close` and are given the data once.

    They end with this process, however it ends. Ctrl-C reaches this process alone, which then stops them.

    Args:
        count: how many groups run at once.
        memory: bytes that each process may take; None = no limit.
        owned: whether techniques from outside have processes of their own.
    """

    def __init__(self, count: int, memory: float | None = None, *, owned: bool = True) -> None:
        self._count, self._memory, self._owned = count, memory, owned
        self._workers: list[_Worker] = []
        self._parcel: tuple[Context, bytes] | None = None
        self._false_starts = 0
        self._well: set[tuple[str, str]] = set()
        self._hopeless: dict[tuple[str, str], str] = {}

    def run(self, context: Context, groups: Iterable[list[Job]], listener: Listener) -> Iterator[Ended]:
        """Run every group, asking for the next when a worker is free; yield jobs with their trials as soon as they have ended.

        Raises:
            InputError: the context cannot be sent, or workers cannot take it in.
        """
        parcel, source = self._packed(context), iter(groups)
        waiting: deque[Task] = deque()
        try:
            while True:
                room = max(0, self._count - self._busy() - len(waiting))
                taken = [Task(list(group)) for group in islice(source, room)]
                waiting.extend(taken)
                yield from self._without_hope(context, waiting)
                self._give_out(parcel, waiting, listener)
                if not waiting and not self._busy():
                    if room and not taken:
                        return
                    continue  # what was taken is given up, and there may be more
                for worker in self._that_speak():
                    yield from self._heard(worker, context, waiting)
                yield from self._overdue(context)
        except KeyboardInterrupt:
            for worker in self._that_speak(0.0):  # what has ended is kept
                yield from self._heard(worker, context, waiting)
            raise

    def probe(self, context: Context, block: list[Job]) -> Choice:
        """Whether seeds of an arm are to be trained as one, timed in a process that may run them.

        Raises:
            InputError: the process died of it, or took too long.
        """
        return self._asked(context, owner_of(block), "probe", block)  # type: ignore[no-any-return]

    def rehearse(self, context: Context, owner: str, arm: Arm | None) -> None:
        """Rehearse an arm (None = the baseline) in the process that it belongs to.

        Raises:
            InputError: it cannot take part, changes what is not its own, or its process died of it.
        """
        self._asked(context, owner, "rehearse", arm)

    def speed(self, context: Context, *, bf16: bool) -> dict[str, Any]:
        """What `probatum.bench.speed.measured` finds in the process that the baseline's techniques belong to.

        Raises:
            InputError: the process died of it, or took too long.
        """
        return self._asked(context, "+".join(outsiders(context.plan.base)), "speed", bf16)  # type: ignore[no-any-return]

    def slots(self, context: Context) -> int:
        """How many groups run at once."""
        return self._count

    def close(self) -> None:
        """Stop all workers at once."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def _packed(self, context: Context) -> bytes:
        if self._parcel is None or self._parcel[0] is not context:
            self._parcel = (context, pack(context))
        return self._parcel[1]

    def _busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def _that_speak(self, seconds: float = LOOK_SECONDS) -> list[_Worker]:
        """Workers that have sent something or are dead."""
        heard = wait([worker.connection for worker in self._workers], timeout=seconds)
        return [w for w in self._workers if w.connection in heard or w.process.poll() is not None]

    def _give_out(self, parcel: bytes, waiting: deque[Task], listener: Listener) -> None:
        """Hand waiting groups to processes that may run them, as far as there is room; start or prepare those that lack."""
        claimed: list[_Worker] = []
        for task in list(waiting)[: max(0, self._count - self._busy())]:
            worker = self._idle(owner_of(task.jobs) if self._owned else "", claimed, fresh=True)
            claimed.append(worker)
            if worker.state != "free":
                continue
            if worker.loaded is not parcel:
                worker.take_in(parcel)
                continue
            waiting.remove(task)
            worker.task, worker.state, task.begun = task, "busy", time.monotonic()
            for job in task.jobs:
                listener.started(job)
            worker.tell("group", task.jobs)

    def _idle(self, owner: str, claimed: list[_Worker], *, fresh: bool = False) -> _Worker:
        """A process of this owner that has nothing to do, started if need be; for it another one may have to go.

        Args:
            owner: whose.
            claimed: those that are spoken for.
            fresh: whether one in which its owner's techniques were tried before is replaced.
        """
        for worker in self._workers:
            if worker.owner == owner and worker.task is None and worker not in claimed:
                if not (fresh and owner and worker.asked):
                    return worker
                self._replaced(worker)
                break
        idle = [w for w in self._workers if w.state == "free" and w not in claimed]
        if idle and len(self._workers) >= self._count + SPARE:
            self._workers.remove(idle[0])
            idle[0].kill()
        worker = _Worker(owner, self._memory)
        self._workers.append(worker)
        return worker

    def _asked(self, context: Context, owner: str, word: str, value: Any) -> Any:
        """What a process of this owner answers, nothing else being done meanwhile."""
        parcel, seconds = self._packed(context), REHEARSAL_SECONDS
        ends = time.monotonic() + seconds
        worker = self._idle(owner, [], fresh=word == "probe")
        while True:
            if worker.state == "free":
                if worker.loaded is parcel:
                    worker.tell(word, value)
                    worker.state, worker.asked = "asked", True
                    seconds = _patience(context, len(value) if word == "probe" else 1)
                    ends = time.monotonic() + seconds
                else:
                    worker.take_in(parcel)
            if not wait([worker.connection], timeout=LOOK_SECONDS) and worker.process.poll() is None:
                if time.monotonic() < ends:
                    continue
                self._replaced(worker)
                raise InputError(f"{owner} was tried on a few rows, and {took_too_long(seconds)}")
            message = worker.hear()
            if message is None:
                why = worker.last_words()
                self._workers.remove(worker)
                raise InputError(f"{owner} does not run on these data: the process that tried it died ({why})")
            word_back, answer = message
            if word_back == "refused":
                self._replaced(worker)  # what it did before it refused is not known
                raise InputError(answer)
            worker.state = "free"
            if word_back == "answer":
                return answer

    def _replaced(self, worker: _Worker) -> None:
        """End a process; another one is started when it is needed."""
        self._workers.remove(worker)
        worker.kill()

    def _without_hope(self, context: Context, waiting: deque[Task]) -> Iterator[Ended]:
        """The failed trials of arms that have taken their process with them as often as is tried."""
        for task in list(waiting):
            reason = self._hopeless.get(_of(context, task))
            if reason is not None:
                waiting.remove(task)
                yield task.jobs, [lost(context, job, "failed", reason, seconds=0.0) for job in task.jobs]

    def _overdue(self, context: Context) -> Iterator[Ended]:
        """Groups that take longer than they may, failed or put off; their processes are ended."""
        limit = context.limit.seconds()
        for worker in list(self._workers):
            if (task := worker.task) is None:
                continue
            seconds = (time.monotonic() - task.begun) / len(task.jobs)
            if limit is not None and seconds >= limit:
                self._replaced(worker)
                why = took_too_long(limit)
                yield task.jobs, [lost(context, job, "failed", why, seconds=seconds) for job in task.jobs]
            elif len(task.jobs) == 1 and seconds >= task.jobs[0].allowance + LAST_WORDS_SECONDS:
                self._replaced(worker)  # what computes outside of Python hears no alarm
                yield task.jobs, [put_off(context, task.jobs[0], PutOff(seconds, passed=True))]

    def _heard(self, worker: _Worker, context: Context, waiting: deque[Task]) -> Iterator[Ended]:
        message = worker.hear()
        if message is None:
            yield from self._buried(worker, context, waiting)
            return
        word, value = message
        if word == "refused":
            raise InputError(value)
        if word == "done":
            task, worker.task = worker.task, None
            ran: Ran = value if task is None else isolation.believed(context, task.jobs, value)
            if ran.touched or worker.owner:  # what a file keeps for itself would be in its next trial, too
                self._replaced(worker)
            if task is not None:
                self._well.add(_of(context, task))
                yield task.jobs, ran.trials
        elif word == "ready":
            self._false_starts = 0
        worker.state = "free"

    def _buried(self, worker: _Worker, context: Context, waiting: deque[Task]) -> Iterator[Ended]:
        why = worker.last_words()
        self._workers.remove(worker)
        if worker.task is not None:
            again = worker.task.again()
            waiting.extendleft(reversed(again or ()))
            if again is None:
                arm, seed = _of(context, worker.task), worker.task.jobs[0].seed
                if arm not in self._well:
                    self._hopeless[arm] = f"the worker died ({why}) three times on seed {seed}"
                yield given_up(context, worker.task, why)
        elif worker.state != "free":
            self._false_starts += 1
            if self._false_starts == DEATHS:
                raise InputError(f"workers die before they have taken in the data ({why}); try fewer workers")


def _patience(context: Context, trials: int) -> float:
    """How long what stands before so many trials may take: no longer than these, or than the whole study."""
    given, minutes = context.limit.given, context.plan.minutes
    return min(REHEARSAL_SECONDS, given * trials if given else math.inf, 60 * minutes or math.inf)


def _of(context: Context, task: Task) -> tuple[str, str]:
    """The study and the arm that a task is of."""
    return context.study_key(), task.jobs[0].arm.name


class _Worker:
    """One process and the pipe to it; with an owner it runs nothing else, and is not heard on the terminal."""

    def __init__(self, owner: str = "", memory: float | None = None) -> None:
        self.owner = owner
        self.connection, theirs = Pipe()
        self.task: Task | None = None
        self.loaded: bytes | None = None
        self.state = "starting"
        self.wrong = ""
        self.asked = False
        with theirs:
            self.process = nursery().born(theirs.fileno(), silent=bool(owner), memory=memory)

    def take_in(self, parcel: bytes) -> None:
        """Send a study's context."""
        self.loaded, self.state = parcel, "loading"
        self.tell("context", parcel)

    def tell(self, word: str, value: Any) -> None:
        """Send a message; a process that is dead is found so when it is listened to."""
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps((word, value)))

    def hear(self) -> tuple[str, Any] | None:
        """The next message, or None from the dead."""
        try:
            return received(self.connection.recv_bytes()) if self.connection.poll() else None
        except (EOFError, OSError):
            return None
        except Exception as problem:  # what was sent may be anything
            self.process.kill(LAST_WORDS_SECONDS)
            self.wrong = f"what it sent cannot be read, {problem}"
            return None

    def last_words(self) -> str:
        """How a process that has closed its pipe came to its end."""
        try:
            code = self.process.wait(LAST_WORDS_SECONDS)
            return self.wrong or _how(code)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and its children at once."""
        self.connection.close()  # of which one that is not up yet ends by itself
        self.process.kill(LAST_WORDS_SECONDS)


def _how(code: int) -> str:
    """A process's exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    if -code == signal.SIGKILL:
        return "signal 9: killed, perhaps for lack of memory"
    return f"signal {-code}: {(signal.strsignal(-code) or 'unknown').lower()}"


def raise_children(descriptor: int) -> None:
    """What the nursery does, all that workers need being loaded by now: watch over what is to stay, and branch them off."""
    load()
    isolation.begin()
    tend(descriptor, serve)


def serve(descriptor: int, silent: bool = False, memory: float | None = None) -> None:
    """What a worker process does: take in the context, then run groups until the pipe closes.

    Args:
        descriptor: of the pipe.
        silent: whether what is printed is counted and goes nowhere.
        memory: bytes that it may take; None = no limit.
    """
    connection: Connection = Connection(descriptor)
    printed = Printed() if silent else None
    if printed is not None:
        sys.stdout = sys.stderr = printed
    if memory is not None:
        hold_to(memory)
    inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), name=LISTENER, daemon=True).start()
    context: Context | None = None
    _say(connection, "up", None)
    while True:
        word, value = inbox.get()
        try:
            if word == "context":
                context = unpack(value)
                _warm(context)
                _say(connection, "ready", None)
            elif context is not None and word == "group":
                check_versions(value)
                ran = _ran(context, value)
                if printed is not None:
                    ran = replace(ran, trials=printed.told(ran.trials))
                _say(connection, "done", ran)
            elif context is not None:
                _say(connection, "answer", _answer(context, word, value))
        except InputError as problem:
            _say(connection, "refused", str(problem))


def _ran(context: Context, group: list[Job]) -> Ran:
    """A group that was run; what no trial may raise has failed it. The terminal's Ctrl-C does not come here."""
    try:
        return guarded(context, group)
    except InputError:
        raise
    except BaseException as problem:
        reason = f"it raised {type(problem).__name__}: {problem}"
        return Ran([lost(context, job, "failed", reason, seconds=0.0) for job in group], touched=True)


def _answer(context: Context, word: str, value: Any) -> Any:
    """What is asked before trials are run."""
    if word == "probe":
        return isolation.probed(context, value)
    if word == "speed":
        return plain(measured(context, bf16=value))
    return rehearsing.apart(context, value)


def _warm(context: Context) -> None:
    """Load what trials need, so that the first one takes no longer than the others, by which times are foretold.

    Raises:
        InputError: the baseline, or what it is made of, changes what belongs to all trials.
    """

    def once() -> None:
        with suppress(Exception), quiet(context.plan.threads):  # what is wrong with it shows in the trials
            try_all(context.baseline(), context.plan.arena)

    _, found = isolation.watching(context, {0}, once)
    if found.what:
        raise InputError(f"the baseline cannot take part: {found.words()}")


def _listen(connection: Connection, inbox: SimpleQueue[tuple[str, Any]]) -> None:
    """Pass messages on; when the parent is gone, so is this process, in the middle of its work and with its children."""
    while True:
        try:
            message = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os.killpg(0, signal.SIGKILL)
        inbox.put(message)


def _say(connection: Connection, word: str, value: Any) -> None:
    connection.send_bytes(pickle.dumps((word, value)))
