"""A process that has loaded everything and run nothing; workers branch off from it, within milliseconds instead of seconds.

Each is clean: what techniques did in others is not in it. The nursery ends when this process does, however it ends, and its
workers end with it. What a worker leaves behind when it ends, processes of its own included, is ended too, and its folder
for temporary files, which no other has, is removed.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

REQUEST = struct.Struct("!i?d")
"""Number of the child, whether it is silent, bytes that it may take (0 = no limit)."""
LIBRARIES = ("torch", "numpy", "scipy", "sklearn", "sympy", "pandas", "polars", "probatum")
"""Packages of which it loads what this process has loaded, as workers will."""
REFERENCES = ("sklearn.linear_model", "sklearn.ensemble", "sklearn.neighbors", "sklearn.svm", "sklearn.pipeline")
"""What the classical references need besides."""
REAP_SECONDS = 0.05
"""How often the nursery looks for children that have ended."""
PASSING = {"PYTEST_CURRENT_TEST"}
"""Names in the environment that change all the time and that nothing goes by."""
LEAVE_SECONDS = 3.0
"""How long it waits at most for what it has ended."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux's prctl."""


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
            if left <= 0 or (self.pid is not None and self.nursery.gone()):  # nobody is left to tell
                raise subprocess.TimeoutExpired(f"worker {self.number}", seconds)
            self.nursery.listen(left)
        return self.code

    def kill(self, seconds: float) -> None:
        """End it at once; the nursery ends whatever it has left."""
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
            if not heard:  # it is gone, and so are those not born yet, for their pipes had no other holder
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
        """End it and the workers that it has."""
        self._socket.close()
        self.process.wait()


_nursery: dict[tuple[object, ...], Nursery] = {}
"""The last one, and those before that have workers still, by what a process inherits."""


def nursery() -> Nursery:
    """The nursery of this process, made when it is first asked for, and anew when what it would inherit has changed."""
    environment = tuple(sorted(pair for pair in os.environ.items() if pair[0] not in PASSING))
    key = (os.getpid(), sys.executable, tuple(sys.path), os.getcwd(), environment)
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
    scratch = Scratch()
    adopt()
    going = True
    with suppress(OSError):  # whom it serves may go without a word
        while going:
            going = _served(line, numbers, scratch, work)
    _leave(numbers, scratch)


def _served(
    line: socket.socket, numbers: dict[int, int], scratch: Scratch, work: Callable[[int, bool, float | None], None]
) -> bool:
    """Tell of children that have ended and take a request, if there is one; False where there will be none."""
    strays = end_strays(numbers)
    ready = select.select([line], [], [], REAP_SECONDS if numbers or strays else None)[0]
    for pid in ended():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # its number is nobody else's as long as it was not waited for
        _, status = os.waitpid(pid, 0)
        scratch.remove(pid)
        if pid in numbers:
            line.sendall(f"ended {numbers.pop(pid)} {os.waitstatus_to_exitcode(status)}\n".encode())
    if not ready:
        return True
    request, descriptors, _, _ = socket.recv_fds(line, REQUEST.size, 1)
    if not request:
        return False
    number, silent, memory = REQUEST.unpack(request)
    (pipe,) = descriptors
    scratch.begin()
    pid = os.fork()
    if not pid:
        line.close()
        _child(pipe, silent, memory or None, scratch, work)
    with suppress(OSError):  # it may have done so itself
        os.setpgid(pid, pid)
    os.close(pipe)
    numbers[pid] = number
    line.sendall(f"born {number} {pid}\n".encode())
    return True


def adopt() -> None:
    """Have what workers leave behind come to this process when they end, in whichever group or session it is; on Linux."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0)


def ended() -> Iterator[int]:
    """Children that have ended and were not waited for."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        yield found.si_pid


def end_strays(own: Collection[int]) -> int:
    """End children that are none of these, which a worker has left behind; how many there were."""
    try:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    except OSError:
        return 0
    strays = {int(pid) for pid in children} - {*own}
    for pid in strays:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(strays)


def _leave(numbers: Collection[int], scratch: Scratch) -> None:
    """End all workers and what they have left; never returns."""
    for pid in numbers:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    ends = time.monotonic() + LEAVE_SECONDS
    with suppress(ChildProcessError):
        while time.monotonic() < ends:
            end_strays(())  # what was a worker's comes here once that has ended
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.005)
    scratch.end()
    os._exit(0)


class Scratch:
    """Folders for temporary files, one for each worker, in one of the nursery's own.

    Its name is drawn: numbers of processes come again, and on a shared disk other machines and containers have them too.
    """

    def __init__(self) -> None:
        self._home: Path | None = None

    def begin(self) -> None:
        """Make the nursery's own, where there is none yet and there can be one: a full disk is for the study to tell of."""
        if self._home is None:
            with suppress(OSError):
                self._home = Path(tempfile.mkdtemp(prefix="probatum-workers-"))

    def enter(self) -> None:
        """In the worker: what it and its processes keep in temporary files, no other worker finds by looking there."""
        if self._home is not None:
            with suppress(OSError):
                folder = self._home / str(os.getpid())
                folder.mkdir(mode=0o700)
                os.environ["TMPDIR"] = tempfile.tempdir = str(folder)

    def remove(self, pid: int) -> None:
        """In the nursery: that of a worker that has ended."""
        if self._home is not None:
            shutil.rmtree(self._home / str(pid), ignore_errors=True)

    def end(self) -> None:
        """Remove all."""
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)


def _child(
    pipe: int, silent: bool, memory: float | None, scratch: Scratch, work: Callable[[int, bool, float | None], None]
) -> None:
    """Never returns."""
    try:
        os.setpgid(0, 0)
        if silent:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        scratch.enter()
        work(pipe, silent, memory)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
