"""A Ray cluster that runs groups of trials; work that is lost with a node or a process is given out again."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from itertools import islice
from typing import Any

from probatum.bench.context import Context, Job
from probatum.bench.execute import Listener, Silent
from probatum.bench.isolation import guarded, owner_of
from probatum.bench.parcel import check_versions, pack, unpack
from probatum.bench.store import Trial
from probatum.bench.workers import Ended, Task, Workers, cores, given_up
from probatum.errors import InputError

LOCAL = "ray"
REMOTE = "ray://"
ANSWER_SECONDS = 5.0
LOOK_SECONDS = 2.0
AHEAD = 2
"""Tasks given out for every one that can run at once, so that no node waits for the next."""


def check_cluster(on: str) -> None:
    """Before any long work: InputError where Ray is missing, or nothing answers at the address."""
    _ray()
    if on == LOCAL:
        return
    host, _, port = on.removeprefix(REMOTE).rpartition(":")
    if not on.startswith(REMOTE) or not host or not port.isdigit():
        raise InputError(
            f"on is {on!r}; give ray://HOST:PORT (port 10001 unless told otherwise), or ray for this machine"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as problem:
        raise InputError(
            f"{on}: nothing answers there ({problem}); start the cluster with `ray start --head` and give its Ray Client "
            "port, 10001 unless told otherwise"
        ) from problem


class Cluster:
    """Runs groups as tasks of a Ray cluster, to which the data are sent once.

    Args:
        on: ``ray://host:port``, or ``ray`` for the cluster that runs on this machine or else a new one on its cores.
            A process that is connected to Ray already stays with the cluster it has.
        apart: whether techniques from outside have processes of their own.
    """

    def __init__(self, on: str, *, apart: bool = True) -> None:
        self._on, self._apart = on, apart
        self._mine = False
        self._flying: dict[Any, Task] = {}
        self._parcel: tuple[Context, bytes, str] | None = None
        self._sent: Any = None

    def run(self, context: Context, groups: Iterable[list[Job]], listener: Listener) -> Iterator[Ended]:
        """Run every group; yield jobs with their trials as soon as they have ended.

        Raises:
            InputError: no connection, no node that is large enough, or nodes that lack what the study needs.
        """
        ray = self._connected()
        threads = context.plan.threads
        if not _slots(ray, threads):
            raise InputError(
                f"{self._on}: no node of the cluster has {threads} CPUs; add nodes, or ask for fewer threads"
            )
        remote = ray.remote(num_cpus=threads, max_retries=0)(run_remotely)
        self._send(ray, context)
        source, waiting = iter(groups), deque[Task]()
        try:
            while True:
                room = max(1, AHEAD * _slots(ray, threads)) - len(self._flying)
                waiting.extend(Task(list(group)) for group in islice(source, max(0, room - len(waiting))))
                if not (waiting or self._flying):
                    return
                for task in [waiting.popleft() for _ in range(min(room, len(waiting)))]:
                    for job in task.jobs:
                        listener.started(job)
                    self._flying[remote.remote(*self._sent, task.jobs, apart=self._apart)] = task
                yield from self._landed(ray, context, waiting, LOOK_SECONDS)
        except KeyboardInterrupt:
            yield from self._landed(ray, context, waiting, 0)  # what has ended is kept
            raise
        except ConnectionError as problem:
            raise InputError(
                f"{self._on}: the connection is lost ({problem}); what has ended is stored, and the same command goes on"
            ) from problem

    def slots(self, context: Context) -> int:
        """How many groups run at once."""
        return max(1, _slots(self._connected(), context.plan.threads))

    def close(self) -> None:
        """Cancel what is still running, and stop the cluster if it was started here."""
        if self._flying:
            ray = _ray()
            for flight in self._flying:
                with suppress(Exception):  # a cluster that is gone has nothing to cancel
                    ray.cancel(flight, force=True)
            self._flying.clear()
        self._sent = None
        if self._mine:
            _ray().shutdown()
            self._mine = False

    def _connected(self) -> Any:
        ray = _ray()
        if ray.is_initialized():
            return ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of a default that will change
        told: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self._on == LOCAL:
                try:
                    ray.init("auto", **told)
                except ConnectionError:  # none is running
                    ray.init(num_cpus=cores(), include_dashboard=False, **told)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what it warns of is said below
                    ray.init(self._on, **told)
        except (ConnectionError, RuntimeError, ValueError, OSError) as problem:
            line = " ".join(str(problem).split())
            raise InputError(
                f"{self._on}: no connection to Ray: {line}; where the cluster asks for a token, set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN"
            ) from problem
        self._mine = True
        return ray

    def _send(self, ray: Any, context: Context, *, again: bool = False) -> None:
        """Put the context into the cluster's object store, once."""
        if self._parcel is None or self._parcel[0] is not context:
            parcel = pack(context)
            self._parcel, again = (context, parcel, hashlib.sha256(parcel).hexdigest()), True
        if again or self._sent is None:
            self._sent = (ray.put(self._parcel[1]), self._parcel[2])

    def _landed(self, ray: Any, context: Context, waiting: deque[Task], seconds: float) -> Iterator[Ended]:
        """What has ended within some seconds; what was lost goes back to `waiting`."""
        if not self._flying:
            return
        ready, _ = ray.wait(list(self._flying), num_returns=1 if seconds else len(self._flying), timeout=seconds)
        for flight in ready:
            task = self._flying.pop(flight)
            try:
                trials = ray.get(flight)
            except ray.exceptions.RayTaskError as problem:
                raise _told(self._on, problem) from problem
            except ray.exceptions.RayError as problem:  # the process, the node or an object on it is gone
                if isinstance(problem, ray.exceptions.ObjectLostError):
                    self._send(ray, context, again=True)
                again = task.again()
                waiting.extendleft(reversed(again or ()))
                if again is None:
                    yield given_up(context, task, type(problem).__name__)
            else:
                yield task.jobs, trials


_unpacked: dict[str, Context] = {}
"""The context this process has taken in, by its parcel's digest; one at most."""


def run_remotely(parcel: bytes, digest: str, jobs: list[Job], *, apart: bool = True) -> list[Trial]:
    """What a task does, in a process of the cluster; with techniques from outside, in one that it starts for them."""
    if digest not in _unpacked:
        _unpacked.clear()
        _unpacked[digest] = unpack(parcel)
    check_versions(jobs)
    if not apart or not owner_of(jobs):
        return guarded(_unpacked[digest], jobs).trials
    with closing(Workers(1)) as own:
        return [trial for _, trials in own.run(_unpacked[digest], [jobs], Silent()) for trial in trials]


def _ray() -> Any:
    try:
        import ray
    except ImportError as problem:
        raise InputError("Ray is not installed here; pip install 'probatum[cluster]'") from problem
    return ray


def _slots(ray: Any, threads: int) -> int:
    """How many tasks can run at once."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(resources.get("CPU", 0) // threads) for resources in alive)


def _told(on: str, problem: Any) -> InputError:
    """What went wrong on a node outside any trial, in one line."""
    if isinstance(problem.cause, InputError):
        return InputError(f"{on}: {problem.cause}")
    last = str(problem).strip().splitlines()[-1]
    return InputError(
        f"{on}: a node cannot run trials ({last}); every node needs the same Probatum, 'probatum[cluster]'"
    )
