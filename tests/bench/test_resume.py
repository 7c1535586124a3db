"""kill -9 at random moments: the same command goes on, repeats nothing, and ends with the undisturbed records."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from loosely import study_of
from probatum.bench.store import Store
from probatum.bench.stored import find_study, results_of
from probatum.settings import Judging, Running

KILLS = 20


def study(store: str) -> None:
    """What runs, again and again, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    arms = ["encouraging-loss", "gradient-noise", "h-calibration(window=10, steps=20)"]
    budget = {"seeds": 6, "steps": 150, "batch_size": 16}
    study_of(
        "iris",
        arms,
        store=store,
        **budget,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
    ).run()


def start(store: Path) -> ForkServerProcess:
    """A fresh process that has the imports behind it already, so that kills meet work rather than imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["probatum.study", "probatum.report.write"])
    process = context.Process(target=study, args=(str(store),))
    process.start()
    return process


def records(store: Path) -> dict[str, str]:
    """Key -> deterministic record, of every trial of the only study."""
    with Store(store) as opened:
        found = find_study(opened)
        assert len(opened.studies()) == 1
        trials = [opened.get(key) for key in found.plan["keys"]["fit"]]
        assert results_of(opened, found).answer()
        return {t.key: json.dumps([t.arm, t.seed, t.status, t.record], sort_keys=True) for t in trials if t is not None}


def undisturbed(store: Path) -> float:
    """Run the study to its end and return the seconds it took."""
    begun = time.monotonic()
    process = start(store)
    process.join(300)
    assert process.exitcode == 0
    return time.monotonic() - begun


def test_killed_twenty_times_and_resumed(tmp_path: Path) -> None:
    calm, wild = tmp_path / "calm.sqlite", tmp_path / "wild.sqlite"
    whole, setting_up = (undisturbed(calm) for _ in range(2))  # the second finds everything in the store
    draw = random.Random(4)
    alive = 0
    for _ in range(KILLS):
        process = start(wild)
        time.sleep(draw.uniform(0, setting_up + (whole - setting_up) / 10))
        alive += process.is_alive()
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert alive >= KILLS // 2, f"only {alive} of {KILLS} kills met a running study"
    final = start(wild)
    final.join(300)
    assert final.exitcode == 0
    assert records(wild) == records(calm)
