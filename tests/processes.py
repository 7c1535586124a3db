"""Processes that tests start: waited for on what they do, never for a while, and ended with all that they started.

No test counts on how fast a machine is. What it waits for is an event: a line, a row in a store, a file, the end of a
process. `PATIENCE` is for what hangs, and says nothing of what is slow.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 900.0
"""Seconds until something that a test waits for counts as hanging."""
LOOK = 0.02
"""Seconds between two looks at a file or a store, which cannot be listened to."""


@contextmanager
def started(
    *words: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, with these variables besides this process's; at the end nothing of it is left.

    It is ended after `PATIENCE`, so that whoever waits for it, or reads from it, comes to an end too.
    """
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    overdue = threading.Timer(PATIENCE, end_session, [process.pid])
    overdue.daemon = True
    overdue.start()
    try:
        yield process
    finally:
        overdue.cancel()
        end_session(process.pid)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):  # what was still to be written to it
                    pipe.close()


def ran(
    *words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A process's exit code and what it said, once it and all that it started have ended."""
    with started(*words, cwd=cwd, env=env) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def at_once(writers: Mapping[str, subprocess.Popen[str]]) -> dict[str, int]:
    """Let processes that have said "ready" go on together, by a line on their standard input; the number each then prints."""
    for writer in writers.values():
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "ready"
    for writer in writers.values():
        writer.stdin.write("go\n")  # type: ignore[union-attr]
        writer.stdin.flush()  # type: ignore[union-attr]
    found = {name: int(writer.communicate()[0]) for name, writer in writers.items()}
    assert {writer.returncode for writer in writers.values()} == {0}
    return found


def until(what: Callable[[], Any], *processes: subprocess.Popen[str]) -> Any:
    """What it says as soon as it says something true; the test fails where a process that should bring it about ends."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        for process in processes:
            if process.poll() is not None and not (found := what()):
                told = process.stderr.read() if process.stderr is not None else ""
                pytest.fail(
                    f"{process.args} ended with {process.returncode} before what was waited for: {told[-2000:]}"
                )
        if found:
            break
        if time.monotonic() > end:
            pytest.fail(f"waited {PATIENCE:.0f} s in vain")
        time.sleep(LOOK)
    return found


def end_session(session: int) -> None:
    """Kill a process that began a session, and every process in it, whatever group it is in."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    while members := alive(process for process, its in _sessions() if its == session):
        for process in members:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(LOOK)


def alive(processes: Iterator[int] | set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    return {process for process in processes if _stat(process)[:1] not in ([], ["Z"], ["X"])}


def children(parent: int, running: bytes = b"") -> set[int]:
    """A process's children in whose command line this stands."""
    found = set()
    for process in _all():
        if _stat(process)[1:2] == [str(parent)]:
            with suppress(OSError):
                if running in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.add(process)
    return found


def _all() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _sessions() -> list[tuple[int, int]]:
    found = [(process, _stat(process)) for process in _all()]
    return [(process, int(fields[3])) for process, fields in found if len(fields) > 3]


def _stat(process: int) -> list[str]:
    """State, parent, group, session, ... of a process; nothing where there is none, or no /proc."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []
