"""What a probe leaves behind and measures, and trials that go wrong only after they were trained as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loosely import study_of
from probatum.arenas.predict import stacks
from probatum.arenas.predict.stacks import Choice
from probatum.bench import grouping
from probatum.engine import Engine
from probatum.settings import Judging, Running
from probatum.study import Study
from probatum.techniques.method import gradient_noise
from probatum.train.loop import Single
from probatum.train.replicas import Stacked
from probatum.train.run import Run

SEEDS = 4


def study(stack: str = "always", **options: Any) -> Study:
    return study_of(
        "iris",
        ["gradient-noise"],
        seeds=SEEDS,
        **{"steps": 400, **options},
        judging=Judging(confirm=False, references=False),
        running=Running(timing=False, stack=stack),
    )


def works(found: Study) -> list[Any]:
    return [found.context.work(found.plan.arms[0], "", seed) for seed in range(SEEDS)]


def test_a_probe_detaches_methods_and_leaves_threads_and_the_global_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    finished: list[int] = []

    def prepare(self: Any, run: Run) -> None:
        torch.rand(3)  # a method that draws from where it should not

    seeds = works(study())
    monkeypatch.setattr(gradient_noise.GradientNoise, "prepare", prepare, raising=False)
    monkeypatch.setattr(gradient_noise.GradientNoise, "detach", lambda self: left.append(1), raising=False)
    monkeypatch.setattr(gradient_noise.GradientNoise, "finish", lambda self, run: finished.append(1), raising=False)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    choice = stacks.probe(seeds, threads, threads)
    assert "global random stream" in choice.reason
    assert not choice.stack
    assert len(left) == 2 * SEEDS
    assert not finished  # a method that has finished would be timed in another state
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_probe_times_steps_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    seeds = works(study())
    for session in (Single, Stacked):
        monkeypatch.setattr(session, "looks", lambda self: looks.append(1) or [])
    choice = stacks.probe(seeds, 1, 1)
    assert choice.ratio > 0
    assert not looks


def test_a_seed_that_cannot_be_measured_after_a_stack_is_run_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = study("never").run()
    measured, calls = stacks.measured, []

    def once(work: Any, *given: Any) -> Any:
        calls.append(work.seed)
        if work.seed == 2:
            raise RuntimeError("on purpose")
        return measured(work, *given)

    monkeypatch.setattr(stacks, "measured", once)
    found = study().run()
    assert len(calls) == 2 * SEEDS
    assert [trial.status for trial in found.trials] == [trial.status for trial in wanted.trials]
    alone = {(t.arm, t.seed): t.record["digest"] for t in wanted.trials}
    assert all(t.record["digest"] == alone[t.arm, t.seed] for t in found.trials if t.seed == 2)


def test_settings_that_do_not_stack_are_not_stacked_whoever_asks() -> None:
    one = study()
    bench = one.bench()
    jobs = bench.jobs(one.plan.seeds, one.plan.arms, with_references=False)
    context = replace(one.context, plan=replace(one.plan, engine=Engine(precision="bf16")), stack="always")
    assert {len(group) for group in grouping.groups(context, jobs, one.store)} == {1}


class Stateful(nn.Module):
    """Counts its passes: what it answers after training depends on a number that no stack hands back."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.line, self.passes = nn.Linear(spec.shape[0], spec.outputs), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        return self.line(x) * (1 + self.passes / 100)


def test_networks_that_count_their_passes_come_out_as_alone() -> None:
    one, other = (study(stack, model=Stateful, epochs=3, steps=None).run() for stack in ("never", "always"))
    assert [t.record for t in other.trials] == [t.record for t in one.trials]


def test_splits_are_let_go_when_a_stack_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that are run alone after a failed attempt must not keep all splits of the attempt alive."""
    import gc
    import weakref

    one = study(epochs=1, steps=None)
    bench = one.bench()
    jobs = bench.jobs(one.plan.seeds, one.plan.arms, with_references=False)[:SEEDS]
    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def refuse(given: Any, *rest: Any) -> Any:
        kept.extend(weakref.ref(work) for work in given)
        raise RuntimeError("on purpose")

    run_job = grouping.run_job

    def watch(*given: Any) -> Any:
        gc.collect()
        alive.append(sum(ref() is not None for ref in kept))
        return run_job(*given)

    monkeypatch.setattr(stacks, "trials", refuse)
    monkeypatch.setattr(grouping, "run_job", watch)
    group = [replace(job, stacking=Choice(True)) for job in jobs]
    assert len(grouping.run_group(one.context, group)) == SEEDS
    assert alive == [0] * SEEDS
