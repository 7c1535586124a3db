"""Step times and latencies are those of techniques at work, and a timing that failed is told of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from probatum import catalogue
from probatum.arenas.predict import timing
from probatum.arenas.predict.fit import run_training
from probatum.checks.subject import Subject
from probatum.checks.trained import prepared
from probatum.data.open import open_dataset
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.settings import Judging
from probatum.study import Study
from probatum.train.assemble import assemble
from probatum.train.loop import Single
from probatum.train.rng import generator_for, seeded
from probatum.train.stepper import stepping

pytestmark = pytest.mark.filterwarnings("ignore:dropout of p=0.5 is for pretrained networks")

TIMED = 32
ATTACHED = [name for slot in ("method", "compress") for name in catalogue.names(slot)]


def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer calls where that changes nothing but how exact a time is."""
    original = timing.cost.interleave
    monkeypatch.setattr(timing.cost, "interleave", lambda a, b, pairs, warmup: original(a, b, pairs=pairs, warmup=0))
    monkeypatch.setattr(timing, "ROUNDS", 1)


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
    parts = assemble(work, steps=TIMED)
    with seeded(work.seed, "timing"):
        return Single(parts.run, parts.methods, generator_for(work.seed, "timing order"))


def _timed(name: str, calls: list[int]) -> list[int]:
    seen: list[int] = []
    work = work_of(name)
    with stepping(work, work.recipe, TIMED) as stepper:
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


def latencies_of(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[nn.Module], list[int]]:
    """The networks whose predictions are timed, the arm's first, and how many hooks each had meanwhile."""
    few_pairs(monkeypatch)
    seen: dict[int, nn.Module] = {}
    hooks: dict[int, int] = {}
    original = timing.outputs

    def watched(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        seen[id(model)] = model
        hooks[id(model)] = hooks_of(model)
        return original(model, x)

    monkeypatch.setattr(timing, "outputs", watched)
    timing.timings(work_of(name))
    return list(seen.values()), list(hooks.values())


def test_latency_is_of_the_network_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut network of a compressor, and one without hooks where a method had put them."""
    (mine, base), _ = latencies_of("sorted-net", monkeypatch)
    work = work_of("sorted-net")
    shapes = [p.shape for p in mine.parameters()]
    assert shapes == [p.shape for p in run_training(work).run.model.parameters()]
    assert sum(s.numel() for s in shapes) < 0.7 * sum(p.numel() for p in base.parameters())
    (pruned, _), _ = latencies_of("gradual-magnitude-pruning", monkeypatch)
    zeros = sum(float((p == 0).sum()) for p in pruned.parameters())
    assert zeros >= 0.4 * sum(p.numel() for p in pruned.parameters())


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_methods_are_off_the_network_when_its_latency_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (mine, base) = latencies_of("very-large-dropout", monkeypatch)
    assert mine == base


def test_methods_are_off_the_network_after_steps_that_were_broken_off() -> None:
    work = work_of("very-large-dropout")
    plain = hooks_of(prepared(Subject("very-large-dropout")).run.model)
    with stepping(work, work.recipe) as stepper:
        stepper.step()
        assert hooks_of(stepper.model) > plain
    assert hooks_of(stepper.model) == plain


OWN = '''"""own: fails when taken past its schedule.

Paper     none
Computes  nothing
Shapes    as its slot has it
Departs   none
"""

from probatum.card import Card

CARD = Card(paper="unpublished", title="own", entry="Own", slot="method", tags=("own",))


class Own:
    """Counts steps; past the end of its schedule it has nothing to do and says so."""

    reads, writes = (), ()
    ends = []

    def __init__(self, total_steps: int) -> None:
        self.total, self.steps = total_steps, 0

    def step_end(self, run) -> None:
        self.steps += 1
        if self.steps > self.total:
            raise IndexError(f"step {self.steps} of {self.total}")

    def finish(self, run) -> None:
        self.ends.append((self.steps, self.total))
'''


@pytest.mark.parametrize(("steps", "timed"), [(3, 32), (50, 48), (1000, 128)])
def test_a_timed_training_is_a_whole_one(
    steps: int, timed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    (tmp_path / "own_schedule.py").write_text(OWN)
    name = catalogue.add_file(tmp_path / "own_schedule.py")
    base = Recipe(training=Training(steps=steps, batch_size=16))
    work = Work(make_arm(name, base), "", Terms(base=base), open_dataset("iris").prepare(0), 0)
    assert set(timing.timings(work)) == {"step-time-ratio", "latency-ratio"}
    assert catalogue.entry(name).ends == [(timed, timed)]
    with stepping(work, work.recipe, 6) as stepper:
        stepper.step()
        with pytest.raises(RuntimeError, match="4 of 6 steps are done"):
            stepper.step()


def test_blocks_of_a_timed_training_draw_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of("gradient-noise")
    drawn: list[float] = []
    with stepping(work, work.recipe, 8) as stepper:
        original = stepper.session.step

        def step(index: torch.Tensor, factor: float, *, each: bool = True) -> torch.Tensor:
            drawn.append(float(torch.rand(())))
            return original(index, factor, each=each)

        stepper.session.step = step  # type: ignore[method-assign]
        stepper.step()
        stepper.step()
    assert len(set(drawn)) == 8


def test_a_hiccup_in_one_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([[1.0, 9.0], [1.0, 1.0], [2.0, 1.0], [1.0, 1.0]])  # arm, baseline, arm, baseline

    def timed(*calls: Any, **settings: Any) -> Any:
        for call in calls:
            call.__self__.seconds = next(times)

    monkeypatch.setattr(timing.cost, "interleave", timed)
    monkeypatch.setattr(timing, "_latency", lambda *given: 1.0)
    assert timing.timings(work_of("gradient-noise"))["step-time-ratio"] == 1.0


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
    named = {line.plain.split(":")[0].strip(): line for line in remarks(results)}
    assert set(named) <= {"baseline", "gradient-noise"}, "the baseline may be told of besides"
    line = named["gradient-noise"]
    assert "not timed on 2 of 2 seeds (RuntimeError: the clock stood still" in line.plain
