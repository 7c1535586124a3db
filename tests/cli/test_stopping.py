"""SIGTERM, SIGHUP and output that nobody reads stop a command as Ctrl-C does."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import told
from holding import Holding
from probatum.bench import nursery
from probatum.cli import main, stopping
from processes import alive, children, started, until

pytestmark = pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="signals and children are looked at as Linux has them"
)
HEARD = (signal.SIGTERM, signal.SIGHUP)


def gone_reader() -> io.TextIOWrapper:
    """A stream into a pipe of which the other end is closed."""
    reads, writes = os.pipe()
    os.close(reads)
    return os.fdopen(writes, "w")


@pytest.fixture
def usual() -> Iterator[None]:
    """Signals as a shell's command has them, whatever these tests were started by."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in HEARD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.fast
@pytest.mark.parametrize("number", HEARD)
def test_a_signal_is_heard_once_and_the_handler_put_back(number: signal.Signals, usual: None) -> None:
    with stopping.heard() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # `timeout` sends its own twice
        assert (stop.signal, stop.code()) == (number, 128 + number)
        assert stop.line().startswith(f"stopped by {number.name}; what has ended is stored")
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.fast
def test_a_signal_that_was_swallowed_is_heard_again(monkeypatch: pytest.MonkeyPatch, usual: None) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.0)
    with stopping.heard():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.fast
def test_what_nohup_ignores_stays_ignored(usual: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping.heard():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _from_a_thread(write: Callable[[], Any]) -> None:
    """Wait in the main thread for what another thread brings about."""
    threading.Thread(target=write).start()
    time.sleep(60)


@pytest.mark.fast
@pytest.mark.parametrize("aside", [False, True], ids=["main thread", "another thread"])
def test_a_reader_that_has_gone(aside: bool, monkeypatch: pytest.MonkeyPatch, usual: None) -> None:
    with gone_reader() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with stopping.heard() as stop:

            def write() -> None:
                print("to nobody", flush=True)

            with pytest.raises(KeyboardInterrupt):
                _from_a_thread(write) if aside else write()
            write()  # goes nowhere
        assert stop.code() == 141


@pytest.mark.fast
def test_other_faults_of_output_are_faults() -> None:
    with pytest.raises(OSError, match="full"):
        stopping.Stop().unread(OSError(errno.ENOSPC, "full"))


@pytest.mark.fast
def test_a_list_of_which_one_line_is_read_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["probatum", "list"])
    with gone_reader() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as end:
            main.main()
        monkeypatch.undo()
    assert end.value.code == 141
    assert capsys.readouterr().err == ""


def test_a_nursery_that_is_interrupted_at_birth_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(nursery, "_loaded", interrupted)
    before = children(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        nursery.Nursery()
    assert children(os.getpid()) <= before


def without_seconds(path: Path) -> str:
    """A JSON file as it is, but for what was measured by the clock."""

    def hooked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: None if key.endswith("seconds") else value for key, value in pairs}

    return json.dumps(json.loads(path.read_text(), object_pairs_hook=hooked))


def test_a_study_stopped_by_sigterm_goes_on_and_says_the_same(holding: Holding, tmp_path: Path) -> None:
    words = ["encouraging-loss", holding.arm(), "--data", "iris", "--seeds", "2", "--steps", "101", "--stack", "never"]
    words += ["--no-timing", "--no-references", "--no-confirm", "--technique", str(holding.file), "--workers", "2"]

    def files(name: str) -> list[str]:
        return ["--store", f"{name}.sqlite", "--report", f"{name}.html", "--json", f"{name}.json"]

    nowhere = {"HOME": "/proc/nowhere", "TMPDIR": "/proc"}  # neither is there to be written to
    command = [sys.executable, "-m", "probatum", "try", *words, *files("stopped")]
    with started(*command, cwd=tmp_path, env=nowhere, stdout=subprocess.DEVNULL) as process:
        until(holding.held, process)
        (parent,) = children(process.pid, b"probatum.bench.workers")
        known = {parent, *children(parent)}
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        until(lambda: not alive(known))
    assert process.returncode == 143
    assert err.strip() == "stopped by SIGTERM; what has ended is stored, and the same command goes on from there"
    holding.let_go()
    resumed, calm = (told("try", *words, *files(name), cwd=tmp_path) for name in ("stopped", "calm"))
    assert (resumed.returncode, calm.returncode) == (4, 4), resumed.stderr + calm.stderr
    assert "of 6 trials are in the store already" in resumed.stdout
    assert without_seconds(tmp_path / "stopped.json") == without_seconds(tmp_path / "calm.json")


def test_a_study_whose_reader_has_gone(tmp_path: Path) -> None:
    words = ["encouraging-loss", "--data", "iris", "--seeds", "2", "--steps", "4", "--no-timing", "--store", "s.sqlite"]
    with gone_reader() as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["probatum", "try", *words, "--report", "r.html"])
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", said := io.StringIO())
        patch.chdir(tmp_path)
        with pytest.raises(SystemExit) as end:
            main.main()
    assert end.value.code == 141
    assert said.getvalue() == (
        "stopped, for nobody reads its output any more; what has ended is stored, and the same command goes on from there\n"
    )
