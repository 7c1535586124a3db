"""Step times and latencies are those of techniques at work, and a timing that failed is told of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from probatum import catalogue
from probatum.arenas.predict import timing
from probatum.checks.subject import Subject
from probatum.checks.trained import prepared
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.settings import Judging
from probatum.study import Study
from probatum.train.assemble import assemble
from probatum.train.loop import Single
from probatum.train.rng import generator_for, seeded
from probatum.train.stepper import stepping

pytestmark = pytest.mark.filterwarnings("ignore:dropout of p=0.5 is for pretrained networks")

ATTACHED = [name for slot in ("method", "compress") for name in catalogue.names(slot)]


def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    original = timing.cost.interleave
    monkeypatch.setattr(
        timing.cost, "interleave", lambda a, b, pairs, warmup: original(a, b, pairs=min(pairs, 2), warmup=1)
    )


def work_of(name: str) -> Work:
    subject = Subject(name)
    base = Recipe(training=Training(steps=24, batch_size=16, lr=1e-2))
    arm = make_arm(name, base)
    use = replace(arm.recipe.uses()[0], settings=dict(subject.card.tiny))
    return Work(replace(arm, recipe=base.filled(use)), "", Terms(base=base), subject.data(), 0)


@pytest.mark.parametrize("name", ATTACHED)
def test_every_method_and_compressor_can_be_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_pairs(monkeypatch)
    found = timing.timings(work_of(name))
    assert set(found) == {"step-time-ratio", "latency-ratio"}
    assert all(0 < value < 1e6 for value in found.values())


@pytest.mark.parametrize("name", ATTACHED)
def test_the_timed_steps_do_what_the_steps_of_a_training_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls of modules in the tenth timed step as in the tenth step of a training."""
    calls: list[int] = []

    def count(module: nn.Module, *given: Any) -> None:
        if calls:  # a technique may run the network before the first step
            calls[-1] += 1

    def steps(session: Single) -> list[int]:
        seen: list[int] = []
        while len(seen) < 10:
            for index in session.epoch():
                calls.append(0)
                session.step(index, 1.0)
                seen.append(calls[-1])
                if len(seen) == 10:
                    break
            else:
                session.epoch_end()
        return seen

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        wanted = steps(_session(name))
        calls.clear()
        stepper = _timed(name, calls)
    finally:
        hook.remove()
    assert stepper == wanted


def _session(name: str) -> Single:
    work = work_of(name)
    parts = assemble(work)
    with seeded(work.seed, "timing"):
        return Single(parts.run, parts.methods, generator_for(work.seed, "timing order"))


def _timed(name: str, calls: list[int]) -> list[int]:
    seen: list[int] = []
    work = work_of(name)
    with stepping(work, work.recipe) as stepper:
        original = stepper.session.step

        def step(index: torch.Tensor, factor: float, *, each: bool = True) -> torch.Tensor:
            calls.append(0)
            loss = original(index, factor, each=each)
            seen.append(calls[-1])
            return loss

        stepper.session.step = step  # type: ignore[method-assign]
        while len(seen) < 10:
            stepper.step()
    return seen[:10]


def test_methods_are_off_the_network_after_a_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    few_pairs(monkeypatch)
    made: list[Any] = []
    original = timing.stepping

    def watched(*given: Any) -> Any:
        context = original(*given)
        enter = context.__enter__

        class Kept:
            def __enter__(self) -> Any:
                made.append(enter())
                return made[-1]

            def __exit__(self, *told: Any) -> Any:
                return context.__exit__(*told)

        return Kept()

    monkeypatch.setattr(timing, "stepping", watched)
    timing.timings(work_of("deeply-supervised-nets"))
    plain = prepared(Subject("deeply-supervised-nets")).run.model
    hooks = [len(module._forward_hooks) for module in plain.modules()]
    assert [len(module._forward_hooks) for module in made[0].model.modules()] == hooks


def test_a_median_is_called_one() -> None:
    assert timing.median_ratio((0.0, 1.0, 100.0)) == pytest.approx(2.718281828)


def test_failed_timings_are_told_in_table_and_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from probatum.report.table import remarks, verdict_table_html
    from probatum.report.write import render

    def broken(work: Work) -> dict[str, float]:
        raise RuntimeError("the clock stood still")

    monkeypatch.setattr("probatum.arenas.predict.arena.timings", broken)
    results = Study(
        "iris", ["gradient-noise"], seeds=2, steps=4, judging=Judging(references=False, confirm=False)
    ).run()
    assert {trial.status for trial in results.timings} == {"failed"}
    assert "the clock stood still" in render(results)
    assert "the clock stood still" in verdict_table_html(results)
    (line,) = remarks(results)
    assert "not timed on 2 of 2 seeds (RuntimeError: the clock stood still" in line.plain
