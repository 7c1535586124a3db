"""The probe of speed settings: its interval, its decisions, and that a study chooses once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from scipy.stats import binom

from probatum.bench import speed as chosen
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.measure.cost import Interleaved
from probatum.recipe import Recipe, Training
from probatum.report.commands import repeat_command
from probatum.report.write import render
from probatum.study import Study
from probatum.train import speed
from probatum.engine import Engine
from probatum.train.speed import Probed, as_json, interval, judged, lines, probe

RECIPE = Recipe(training=Training(steps=100, batch_size=16))


def timed(ratios: list[float], seconds: tuple[float, float] = (1.0, 1.0)) -> Interleaved:
    return Interleaved(tuple(math.log(ratio) for ratio in ratios), *seconds)


def test_the_interval_of_the_median_covers_it_as_said() -> None:
    ratios = [0.5, 3.0, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 2.0]
    middle, low, high = interval(timed(ratios))
    assert (middle, low, high) == pytest.approx((0.945, 0.91, 0.98))
    outside = 2 * binom.cdf(speed.RANK, speed.PAIRS, 0.5)  # so many of the 12 below, or above, the true median
    assert 1 - outside == pytest.approx(0.96, abs=0.005)


@pytest.mark.parametrize(("ratio", "taken"), [(0.94, True), (0.96, False), (1.2, False)])
def test_a_setting_is_taken_below_the_threshold(ratio: float, taken: bool) -> None:
    assert judged(timed([ratio] * 12)).taken is taken


def test_a_wide_interval_is_not_taken() -> None:
    assert not judged(timed([0.8] * 9 + [0.99] * 3)).taken


def fixed(answers: dict[str, Probed]) -> Callable[..., Probed]:
    """Answers by the first setting in which the two engines differ."""

    def compared(stepper: object, changed: Engine, plain: Engine) -> Probed:
        ours, theirs = asdict(changed), asdict(plain)
        return answers[next(name for name in ours if ours[name] != theirs[name])]

    return compared


def test_settings_are_taken_one_upon_another(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset("digits").prepare(0)
    monkeypatch.setattr(
        speed, "_compared", fixed({"channels_last": Probed(True, 0.8, 0.7, 0.9), "precision": Probed(True)})
    )
    monkeypatch.setattr(speed, "native_bf16", lambda device: True)
    engine, found = probe(RECIPE, data, 0, None, Engine(), bf16=True)
    assert engine == Engine(channels_last=True, precision="bf16")
    assert "too little for a compiler" in found["compile"].reason
    engine, found = probe(RECIPE, data, 0, None, Engine())
    assert engine == Engine(channels_last=True)
    assert "bf16" not in found  # results may change only where that was allowed
    monkeypatch.setattr(speed, "native_bf16", lambda device: False)
    assert "no bfloat16 arithmetic" in probe(RECIPE, data, 0, None, Engine(), bf16=True)[1]["bf16"].reason


def test_tables_have_no_channels() -> None:
    assert set(probe(RECIPE, open_dataset("iris").prepare(0), 0, None, Engine())[1]) == {"compile"}


def test_a_real_probe_measures_and_decides_by_its_own_rule() -> None:
    engine, found = probe(RECIPE, open_dataset("digits").prepare(0), 0, None, Engine())
    one = found["channels-last"]
    assert 0.05 < one.low <= one.ratio <= one.high < 20
    assert one.taken == (one.high < speed.TAKEN_BELOW) == engine.channels_last


class Steps:
    """Steps that take the seconds told, without taking them: the first call's, then the later ones'."""

    def __init__(self, first: float, later: float) -> None:
        self.first, self.later, self.seconds = first, later, []  # type: ignore[var-annotated]

    def step(self) -> None:
        self.seconds.append(self.later if self.seconds else self.first)


@pytest.mark.parametrize(("trials", "compiles", "taken"), [(10, 20.0, True), (10, 2000.0, False), (1, 20.0, False)])
def test_compilation_must_pay_over_the_study(
    monkeypatch: pytest.MonkeyPatch, trials: int, compiles: float, taken: bool
) -> None:
    def stepper(engine: Engine) -> Steps:
        return Steps(compiles, 0.5 * speed.BLOCK) if engine.compile else Steps(speed.BLOCK, speed.BLOCK)

    monkeypatch.setattr(speed, "interleave", lambda a, b, *_: timed([0.5] * 12, (0.5 * speed.BLOCK, speed.BLOCK)))
    found = speed._compile(stepper, Engine(), 100, trials, 2)  # type: ignore[arg-type]
    assert found.taken is taken
    saved, cost = 0.5 * 100 * trials, (compiles - 2) * (2 + trials)
    assert taken == (saved > cost) or trials == 1
    if trials == 10:
        assert f"saves about {saved:.0f} s of the study and costs {cost:.0f} s" in found.reason


def test_what_fails_is_not_taken() -> None:
    def broken(engine: Engine) -> Steps:
        raise RuntimeError("view size is not compatible")

    found = speed._compared(broken, Engine(channels_last=True), Engine())  # type: ignore[arg-type]
    assert not found.taken
    assert "view size" in found.reason


def test_lines() -> None:
    found = as_json({"channels-last": Probed(False, 0.97, 0.95, 0.99), "compile": Probed(False, reason="no compiler")})
    assert lines(found) == [
        "channels-last: 0.97 of plain (0.95 to 0.99), not taken",
        "compile: no compiler, not taken",
    ]


def test_a_study_chooses_once_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def once(*args: object, **named: object) -> tuple[Engine, dict[str, Probed]]:
        asked.append(named)
        return Engine(channels_last=True), {"channels-last": Probed(True, 0.8, 0.7, 0.9)}

    monkeypatch.setattr(chosen, "probe", once)

    def study(seeds: int, speed: str = "auto") -> Study:
        where = tmp_path / "store.sqlite"
        return Study(
            "digits", ["encouraging-loss"], seeds=seeds, steps=2, store=where, speed=speed, timing=False, confirm=False
        )

    first = study(2)
    first.run()
    again, more, plain = study(2), study(3), study(2, "plain")
    assert len(asked) == 1
    assert again.plan == first.plan
    assert more.plan.engine == Engine(channels_last=True)
    assert (plain.plan.engine, plain.plan.speed) == (Engine(), {})
    assert first.stack == "never"
    text = render(first.results)
    assert "cpu, float32, channels-last" in text
    assert "channels-last: 0.80 of plain (0.70 to 0.90), taken" in text
    assert "--speed auto" in repeat_command(first.results)


def test_words_that_are_not_known() -> None:
    with pytest.raises(InputError, match="speed is 'fast'"):
        Study("iris", ["encouraging-loss"], speed="fast")
