"""A process that has loaded everything and run nothing; workers branch off from it, within milliseconds instead of seconds.

Each is clean: what techniques did in others is not in it. The nursery ends when this process does, however it ends, and its
workers end when the pipes to them close.
"""

from __future__ import annotations

import atexit
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

REQUEST = struct.Struct("!i?d")
"""Number of the child, whether it is silent, bytes that it may take (0 = no limit)."""
LIBRARIES = ("torch", "numpy", "scipy", "sklearn", "sympy", "pandas", "polars", "probatum")
"""Packages of which it loads what this process has loaded, as workers will."""
REFERENCES = ("sklearn.linear_model", "sklearn.ensemble", "sklearn.neighbors", "sklearn.svm", "sklearn.pipeline")
"""What the classical references need besides."""
REAP_SECONDS = 0.05
"""How often the nursery looks for children that have ended."""


@dataclass
class Child:
    """A process that has branched off.

    Attributes:
        number: by which the nursery knows it.
        pid: known as soon as the nursery has told.
        code: exit code, negative = by that signal, once it has ended and was told.
    """

    nursery: Nursery
    number: int
    pid: int | None = None
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, None as long as it lives."""
        self.nursery.listen(0.0)
        return self.code

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it lives on.
        """
        ends = time.monotonic() + seconds
        while self.code is None:
            left = ends - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(f"worker {self.number}", seconds)
            self.nursery.listen(left)
        return self.code

    def kill(self, seconds: float) -> None:
        """End it and its own children at once."""
        self.nursery.listen(0.0)
        if self.code is None and self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.wait(seconds)


@dataclass
class Nursery:
    """This process's end of it."""

    _children: dict[int, Child] = field(default_factory=dict)
    _told: bytes = b""
    _count: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        # the user's script is not imported again, and a terminal's Ctrl-C does not reach the process group
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from probatum.bench.workers import raise_children; raise_children({theirs.fileno()})"
        )
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], process_group=0
            )
        try:
            with suppress(OSError), self.process.stdin or nullcontext():  # one that cannot begin does not read
                self.process.stdin.write("\n".join((*_loaded(), *REFERENCES)).encode())  # type: ignore[union-attr]
        except BaseException:  # nobody would know of it, and it would live on until all is loaded
            self._socket.close()
            self.process.kill()
            self.process.wait()
            raise

    def born(self, descriptor: int, *, silent: bool, memory: float | None) -> Child:
        """A new worker at the other end of a pipe, of which the descriptor is handed over; it need not be up yet."""
        with self._lock:
            self._count += 1
            child = self._children[self._count] = Child(self, self._count)
            with suppress(OSError):  # a nursery that is gone is found so when its child is listened to
                socket.send_fds(self._socket, [REQUEST.pack(child.number, silent, memory or 0.0)], [descriptor])
            return child

    def listen(self, seconds: float) -> None:
        """Take in what the nursery tells within so many seconds."""
        with self._lock:
            try:
                ready = select.select([self._socket], [], [], seconds)[0]
                heard = self._socket.recv(65536) if ready else None
            except (OSError, ValueError):
                heard = b""
            if heard is None:
                return
            if not heard:  # it is gone, and so are they, for their pipes had no other holder
                code = self.process.wait()
                for child in self._children.values():
                    child.code = code if child.code is None and child.pid is None else child.code
                return
            *lines, self._told = (self._told + heard).split(b"\n")
            for line in lines:
                word, number, value = line.decode().split()
                child = self._children[int(number)]
                if word == "born":
                    child.pid = int(value)
                else:
                    child.code = int(value)
                    del self._children[child.number]

    def gone(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def close(self) -> None:
        """End it; workers that it has live on until their pipes close, and how they end is not told any more."""
        self._socket.close()
        self.process.wait()


_nursery: dict[tuple[object, ...], Nursery] = {}
"""The last one, and those before that have workers still, by what a process inherits."""


def nursery() -> Nursery:
    """The nursery of this process, made when it is first asked for, and anew when what it would inherit has changed."""
    key = (os.getpid(), sys.executable, tuple(sys.path), os.getcwd(), tuple(sorted(os.environ.items())))
    found = _nursery.get(key)
    if found is None or found.gone():
        for old in [key for key, one in _nursery.items() if one.gone() or not one._children]:
            _nursery.pop(old).close()
        if not _nursery:
            atexit.register(_close_all)
        found = _nursery[key] = Nursery()
    return found


def _close_all() -> None:
    while _nursery:
        _nursery.popitem()[1].close()


def _loaded() -> list[str]:
    """Modules of the libraries that this process has loaded, in their order; techniques are each worker's own affair."""
    names = [name for name in list(sys.modules) if name.partition(".")[0] in LIBRARIES]
    return [name for name in names if not name.startswith(("probatum.techniques", "probatum.claims"))]


def load() -> None:
    """Load what standard input names; what cannot be, a worker will miss when it needs it."""
    for name in sys.stdin.read().split():
        with suppress(Exception):
            importlib.import_module(name)


def tend(descriptor: int, work: Callable[[int, bool, float | None], None]) -> None:
    """What the nursery does: branch off a child for every request, which calls `work(pipe, silent, memory)`; tell of ends."""
    line = socket.socket(fileno=descriptor)
    numbers: dict[int, int] = {}
    while True:
        ready = select.select([line], [], [], REAP_SECONDS if numbers else None)[0]
        while numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            line.sendall(f"ended {numbers.pop(pid)} {os.waitstatus_to_exitcode(status)}\n".encode())
        if not ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(line, REQUEST.size, 1)
        if not request:
            os._exit(0)
        number, silent, memory = REQUEST.unpack(request)
        (pipe,) = descriptors
        pid = os.fork()
        if not pid:
            line.close()
            _child(pipe, silent, memory or None, work)
        with suppress(OSError):  # it may have done so itself
            os.setpgid(pid, pid)
        os.close(pipe)
        numbers[pid] = number
        line.sendall(f"born {number} {pid}\n".encode())


def _child(pipe: int, silent: bool, memory: float | None, work: Callable[[int, bool, float | None], None]) -> None:
    """Never returns."""
    try:
        os.setpgid(0, 0)
        if silent:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        work(pipe, silent, memory)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
