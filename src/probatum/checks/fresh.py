"""Exercises in another process, which is started when it is first asked and answers for one technique after another.

``python -m probatum.checks.fresh`` is that process: a line of JSON ``{"name": ..., "file": ...}`` on its standard input
is answered by a line ``{"result": ...}`` or ``{"problem": ...}``. It ends when its input does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from probatum import catalogue
from probatum.checks.exercise import exercise
from probatum.checks.subject import Subject, demand, fingerprint


@contextmanager
def kept() -> Iterator[None]:
    """Inside, whoever asks shares one process; it is ended with the outermost."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _end()


def elsewhere(name: str) -> str:
    """The fingerprint of a technique's exercise in a process with hash seeds of its own; asked for once."""
    subject = Subject(name)
    if subject not in _known:
        with kept():
            _known[subject] = _asked(name)
    return _known[subject]


class _Process:
    """The process, and what it writes to its standard error."""

    def __init__(self) -> None:
        self.said = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115 (closed in `end`)
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "probatum.checks.fresh"]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.said, text=True)

    def ask(self, question: str) -> str:
        """The line that answers a line; "" from the dead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        return self.process.stdout.readline()

    def end(self) -> str:
        """Wait until it has ended, for want of questions; the last of what it said."""
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.process.wait()
        self.said.seek(0)
        with self.said:
            return self.said.read().strip()[-400:]


_known: dict[Subject, str] = {}
_depth = 0
_process: _Process | None = None


def _asked(name: str) -> str:
    global _process
    if _process is None:
        _process = _Process()
    place = catalogue.place(name)
    file = str(place.path) if place.module.startswith(catalogue.ADDED) else None
    line = _process.ask(json.dumps({"name": name, "file": file}))
    if not line:
        said = _end()
        demand(False, f"the fresh process failed: {said}")
    answer = json.loads(line)
    demand("result" in answer, f"in a fresh process it fails: {answer.get('problem')}")
    return str(answer["result"])


def _end() -> str:
    global _process
    ended, _process = _process, None
    return "" if ended is None else ended.end()


def _answer(name: str, file: str | None) -> dict[str, str]:
    try:
        if file is not None:
            catalogue.add_file(file)
        return {"result": fingerprint(exercise(Subject(name)))}
    except Exception as problem:  # told, and the next technique is none the worse
        return {"problem": f"{type(problem).__name__}: {problem}"}


def _serve() -> None:
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a technique prints is no answer
    for line in sys.stdin:
        print(json.dumps(_answer(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
