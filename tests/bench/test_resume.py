"""kill -9 at random moments: the same command goes on, repeats nothing, and ends with the undisturbed records."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

from loosely import study_of
from probatum.bench.store import Store
from probatum.bench.stored import find_study, results_of
from probatum.settings import Judging, Running
from processes import PATIENCE

KILLS = 20


def study(store: str, clock: str, seconds: float) -> None:
    """What runs, again and again, in a process of its own; it is killed when it has computed for so long, 0 = never."""
    import torch

    torch.set_num_threads(1)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # the system ends it at once; a busy machine makes it no longer
    arms = ["encouraging-loss", "gradient-noise", "h-calibration(window=10, steps=20)"]
    budget = {"seeds": 6, "steps": 150, "batch_size": 16}
    begun = time.process_time()
    study_of(
        "iris",
        arms,
        store=store,
        **budget,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
    ).run()
    signal.setitimer(signal.ITIMER_PROF, 0)
    Path(clock).write_text(str(time.process_time() - begun))


def run(store: Path, seconds: float = 0.0) -> tuple[int, float]:
    """Exit code of a run, and how long it computed if it came to its end.

    The process has the imports behind it already, so that kills meet work rather than imports.
    """
    clock = store.with_suffix(".clock")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["probatum.study", "probatum.report.write"])
    process = context.Process(target=study, args=(str(store), str(clock), seconds))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process.exitcode, float(clock.read_text()) if process.exitcode == 0 else seconds


def records(store: Path) -> dict[str, str]:
    """Key -> deterministic record, of every trial of the only study."""
    with Store(store) as opened:
        found = find_study(opened)
        assert len(opened.studies()) == 1
        trials = [opened.get(key) for key in found.plan["keys"]["fit"]]
        assert results_of(opened, found).answer()
        return {t.key: json.dumps([t.arm, t.seed, t.status, t.record], sort_keys=True) for t in trials if t is not None}


def test_killed_twenty_times_and_resumed(tmp_path: Path) -> None:
    calm, wild = tmp_path / "calm.sqlite", tmp_path / "wild.sqlite"
    (ended, whole), (again, setting_up) = (run(calm) for _ in range(2))  # the second finds everything in the store
    assert ended == again == 0
    kills, draw = 0, random.Random(4)
    for _ in range(KILLS):
        killed, _ = run(wild, draw.uniform(0.001, setting_up + (whole - setting_up) / 10))
        assert killed in (-signal.SIGPROF, 0)
        kills += killed != 0
    assert kills >= KILLS // 2, f"only {kills} of {KILLS} kills met a running study"
    assert run(wild)[0] == 0
    assert records(wild) == records(calm)
