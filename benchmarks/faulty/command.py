"""The command line in a process of its own, branched off one that has loaded everything: a real one, without seconds of imports."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 900.0
"""Seconds until a command counts as hanging."""
LOADED = ("probatum.cli.try_view", "probatum.cli.ship_view", "probatum.cli.audit_view", "probatum.study")
LOOK = 0.02


@dataclass(frozen=True)
class Ended:
    """How a command came to its end: exit code (negative = by that signal), what it said, seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def plain(self) -> bool:
        """Whether it was refused in one line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.code == 2 and len(lines) == 1 and self.err.rstrip().endswith(lines[0]) and not self.raw

    @property
    def raw(self) -> bool:
        """Whether it told of itself as only a program's fault should."""
        return "Traceback" in self.err or "Exception ignored" in self.err or self.code not in (0, 2, -signal.SIGKILL)

    def words(self) -> str:
        """Exit code and the last line of what it said."""
        return f"exit code {self.code}: {(self.err.strip().splitlines() or [''])[-1][:300]}"


class Command:
    """``probatum WORDS``, running in a session of its own.

    Args:
        words: of the command line.
        home: the folder in which it runs and where what it says is kept.
        env: variables beside those of this process.
        out: the file that is its standard output; None = one in `home`.
        most: bytes that a file may have, as by ``ulimit -f``; None = no limit.
    """

    def __init__(
        self,
        words: Sequence[str],
        home: Path,
        env: Mapping[str, str] | None = None,
        *,
        out: Path | None = None,
        most: int | None = None,
    ) -> None:
        said = Path(tempfile.mkdtemp(prefix="said-", dir=home.parent))
        self._out, self._err = out or said / "out", said / "err"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*LOADED, __name__])
        given = (list(words), str(home), dict(env or {}), str(self._out), str(self._err), most)
        self._begun = time.monotonic()
        self._process = context.Process(target=act, args=given)
        self._process.start()
        self.spent = 0.0

    @property
    def pid(self) -> int:
        """Of the process and of its session."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, seconds: float = PATIENCE) -> Ended | None:
        """How it ended; None where it has not within so many seconds."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            return None
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in (self._out, self._err)]
        return Ended(code, texts[0], texts[1], time.monotonic() - self._begun)

    def until(self, spent: float) -> Ended | None:
        """How it ended, or None as soon as it and what it started have computed for so many seconds.

        A busy machine makes a moment no earlier in its life, as the clock would.
        """
        while True:
            self.spent = max(self.spent, computed(self.pid))
            ended = self.wait(LOOK)
            if ended is not None or self.spent >= spent:
                return ended

    def kill(self) -> None:
        """SIGKILL to the process alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.join()

    def beside(self) -> list[int]:
        """Other processes of its session that run, the youngest first."""
        return sorted((pid for pid in members(self.pid) if pid != self.pid), reverse=True)

    def left(self, seconds: float) -> tuple[float, int]:
        """How long it takes until nothing of its session runs, at most so long; and how many do then."""
        begun = time.monotonic()
        while (found := members(self.pid)) and time.monotonic() - begun < seconds:
            time.sleep(LOOK)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return time.monotonic() - begun, len(found)


def ran(words: Sequence[str], home: Path, env: Mapping[str, str] | None = None, **how: object) -> Ended:
    """A command, waited for."""
    command = Command(words, home, env, **how)  # type: ignore[arg-type]
    ended = command.wait()
    if ended is None:
        command.kill()
        command.left(0.0)
        raise SystemExit(f"probatum {' '.join(words)} has not ended within {PATIENCE:.0f} s")
    return ended


def members(session: int) -> set[int]:
    """Processes of a session that run; a zombie does not."""
    return set(_ticks(session))


def computed(session: int) -> float:
    """Seconds that the processes of a session have computed, those that have ended left out."""
    return sum(_ticks(session).values()) / os.sysconf("SC_CLK_TCK")


def _ticks(session: int) -> dict[int, int]:
    """What each process of a session has computed, in ticks of the system's clock."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    return found


def act(words: list[str], home: str, env: dict[str, str], out: str, err: str, most: int | None) -> None:
    """What runs in the process."""
    os.setsid()
    os.chdir(home)
    os.environ.update(env)
    tempfile.tempdir = None
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    if most is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    import torch

    from probatum.cli.main import main

    torch.set_num_threads(1)
    sys.argv = ["probatum", *words]
    try:
        main()
    finally:
        gc.collect()  # as at an interpreter's end, which this process does without: stores are closed
