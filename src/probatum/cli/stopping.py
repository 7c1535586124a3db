"""How the command line is told to stop: Ctrl-C, SIGTERM, SIGHUP, and a reader of its output that has gone, all alike."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from probatum.errors import InputError
from probatum.files import no_room

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C; after other signals it is 128 and theirs."""
GRACE = 5.0
"""Seconds in which further signals change nothing: `timeout` sends its own twice. Later ones are for what did not stop."""
SIGNALS = ("SIGTERM", "SIGHUP")
PIPE = int(getattr(signal, "SIGPIPE", 13))
GONE = {errno.EPIPE: PIPE, errno.EIO: int(getattr(signal, "SIGHUP", 1))}
"""By which signal other programs end where their output cannot be written: to a closed pipe, to a terminal that is gone."""


class Stop:
    """Whether and why this process is to stop.

    Attributes:
        signal: of what asked first; 0 = nothing did, or Ctrl-C, which Python itself hears.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._gone, self._since = 0, 0.0

    def hear(self, number: int, frame: Any = None) -> None:
        """Stop as by Ctrl-C; the handler of signals."""
        now = time.monotonic()
        if self.signal and now - self._since < GRACE:
            return
        self.signal, self._since = self.signal or self._gone or number, now
        raise KeyboardInterrupt

    def unread(self, problem: OSError) -> None:
        """Stop because output cannot be written any more, whichever thread found it; raise what is another fault."""
        if problem.errno not in GONE:
            raise problem
        silence(sys.stdout)
        if self.signal or self._gone:
            return
        self._gone = GONE[problem.errno]
        if threading.current_thread() is threading.main_thread():
            self.hear(self._gone)
        if signal.getsignal(signal.SIGTERM) == self.hear:  # it wakes the main thread, whatever that waits for
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def line(self) -> str:
        """What the user is told."""
        by = f" by {signal.Signals(self.signal).name}" if self.signal else ""
        by = ", for nobody reads its output any more" if self.signal and self.signal == self._gone else by
        return f"stopped{by}; what has ended is stored, and the same command goes on from there"

    def code(self) -> int:
        """The exit code."""
        return 128 + self.signal if self.signal else INTERRUPTED


class Output:
    """A stream that tells of it when nobody reads it any more; it is silent from then on."""

    def __init__(self, stream: Any, unread: Callable[[OSError], None]) -> None:
        self._stream, self._unread = stream, unread

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write it, or stop."""
        try:
            return int(self._stream.write(text))
        except OSError as problem:
            self._unread(problem)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or stop."""
        try:
            self._stream.flush()
        except OSError as problem:
            self._unread(problem)


@contextmanager
def heard() -> Iterator[Stop]:
    """A block that stops as by Ctrl-C on SIGTERM and SIGHUP, and where nobody reads what it prints.

    Signals that are ignored, as `nohup` has it, stay ignored.
    """
    stop, before, stdout = Stop(), {}, sys.stdout
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        for number in (number for number, handler in before.items() if handler is signal.SIG_DFL):
            signal.signal(number, stop.hear)
    if stdout is not None:  # it is None where it was closed from the beginning
        sys.stdout = Output(stdout, stop.unread)  # type: ignore[assignment]
    try:
        yield stop
    finally:
        sys.stdout = stdout
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, handler)


def ended(command: Callable[[], Any], stop: Stop) -> Any:
    """Run a command; its exit code. Mistakes of the user's and full disks are one line."""
    try:
        try:
            command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except SystemExit as end:  # Typer turns Ctrl-C into one
        return end.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except InputError as problem:
        if not stop.signal:
            say(f"error: {' '.join(str(problem).split())}")
        return 2
    except Exception as problem:
        said = no_room(problem)
        if said and not stop.signal:
            silence(sys.stdout)
            say(
                f"error: there is no room left ({said}); what has ended is stored, and the same command goes on when there is"
            )
            return 2
        if not stop.signal:  # what is interrupted in the middle may say so in its own way
            raise
    return 0


def buffered() -> None:
    """Hold back what is printed where Python does not (``python -u``, as in containers): a full disk would cut it off unsaid."""
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, io.RawIOBase):
        held = io.BufferedWriter(raw)
        sys.stdout = io.TextIOWrapper(held, sys.stdout.encoding, sys.stdout.errors, line_buffering=True)


def say(line: str) -> None:
    """A last line, where there is somebody to read it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: Any) -> None:
    """Let what a stream still holds go nowhere, so that the end of the process has no fault to tell of."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
