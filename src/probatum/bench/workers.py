"""Several processes on this machine that run groups of trials; one that dies is replaced and its work given out again."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from probatum.bench.context import Context, Job, lost, quiet
from probatum.bench.execute import Listener
from probatum.bench.grouping import run_group
from probatum.bench.parcel import check_versions, pack, unpack
from probatum.bench.rehearse import try_all
from probatum.bench.store import Trial
from probatum.errors import InputError

AUTO = "auto"
"""As many workers as cores and memory hold, see `probatum.bench.hands`."""
DEATHS = 3
"""How often a trial may take its worker with it before it is recorded as failed."""
LOOK_SECONDS = 1.0
"""How often to look for dead workers whose children still hold their pipes."""
LAST_WORDS_SECONDS = 5.0

Ended = tuple[list[Job], list[Trial]]


@dataclass
class Task:
    """A group of jobs and how many workers have died of it."""

    jobs: list[Job]
    deaths: int = 0

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
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[_Worker] = []
        self._parcel: tuple[Context, bytes] | None = None
        self._false_starts = 0

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
                waiting.extend(Task(list(group)) for group in islice(source, room))
                while len(self._workers) < min(self._count, len(waiting) + self._busy()):
                    self._workers.append(_Worker())
                for worker in self._workers:
                    if worker.state == "free" and waiting:
                        self._feed(worker, parcel, waiting, listener)
                if not waiting and not self._busy():
                    return
                for worker in self._that_speak():
                    yield from self._heard(worker, context, parcel, waiting)
        except KeyboardInterrupt:
            for worker in self._that_speak(0.0):  # what has ended is kept
                yield from self._heard(worker, context, parcel, waiting)
            raise

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

    def _feed(self, worker: _Worker, parcel: bytes, waiting: deque[Task], listener: Listener) -> None:
        if worker.loaded is not parcel:
            worker.loaded, worker.state = parcel, "loading"
            worker.tell("context", parcel)
            return
        task = waiting.popleft()
        worker.task, worker.state = task, "busy"
        for job in task.jobs:
            listener.started(job)
        worker.tell("group", task.jobs)

    def _heard(self, worker: _Worker, context: Context, parcel: bytes, waiting: deque[Task]) -> Iterator[Ended]:
        message = worker.hear()
        if message is None:
            yield from self._buried(worker, context, waiting)
            return
        word, value = message
        if word == "refused":
            raise InputError(value)
        if word == "done":
            task, worker.task = worker.task, None
            if task is not None:
                yield task.jobs, value
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
                yield given_up(context, worker.task, why)
        elif worker.state != "free":
            self._false_starts += 1
            if self._false_starts == DEATHS:
                raise InputError(f"workers die before they have taken in the data ({why}); try fewer workers")


class _Worker:
    """One process and the pipe to it."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        self.task: Task | None = None
        self.loaded: bytes | None = None
        self.state = "starting"
        # the user's script is not imported again, and a terminal's Ctrl-C does not reach the process group
        code = f"import sys; sys.path[:] = {sys.path!r}; from probatum.bench.workers import serve; serve({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0
            )

    def tell(self, word: str, value: Any) -> None:
        """Send a message; a process that is dead is found so when it is listened to."""
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps((word, value)))

    def hear(self) -> tuple[str, Any] | None:
        """The next message, or None from the dead."""
        try:
            return pickle.loads(self.connection.recv_bytes()) if self.connection.poll() else None
        except (EOFError, OSError):
            return None

    def last_words(self) -> str:
        """How a process that has closed its pipe came to its end."""
        try:
            return _how(self.process.wait(LAST_WORDS_SECONDS))
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and its children at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


def _how(code: int) -> str:
    """A process's exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    if -code == signal.SIGKILL:
        return "signal 9: killed, perhaps for lack of memory"
    return f"signal {-code}: {(signal.strsignal(-code) or 'unknown').lower()}"


def serve(descriptor: int) -> None:
    """What a worker process does: take in the context, then run groups until the pipe closes."""
    connection: Connection = Connection(descriptor)
    inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    context: Context | None = None
    _say(connection, "up", None)
    while True:
        word, value = inbox.get()
        try:
            if word == "context":
                context = unpack(value)
                _warm(context)
                _say(connection, "ready", None)
            elif context is not None:
                check_versions(value)
                _say(connection, "done", run_group(context, value))
        except InputError as problem:
            _say(connection, "refused", str(problem))


def _warm(context: Context) -> None:
    """Load what trials need, so that the first one takes no longer than the others, by which times are foretold."""
    with suppress(Exception), quiet(context.plan.threads):  # what is wrong shows in the trials
        try_all(context.baseline(), context.plan.arena)


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
