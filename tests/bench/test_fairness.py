"""The fairness rules of the design, each by its number, on real training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loosely import study_of
from probatum import catalogue
from probatum.arenas.predict import arena as predict
from probatum.arenas.predict import fit as fitting
from probatum.arenas.predict import timing
from probatum.bench.honesty import FRACTIONS, Known, Rate, design_effect, equal_arms, simulated
from probatum.bench.splits import Splits
from probatum.bench.statistics import Interval
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work, alone
from probatum.spec import Data, Part
from probatum.train.assemble import assemble, budget_for
from probatum.train.compute import equal_steps
from probatum.train.loop import train

SHORT = {"seeds": 6, "epochs": 2, "timing": False, "references": False, "confirm": False}

GREEDY = '''"""Greedy: draws many random numbers and changes nothing.

Paper     nobody
Computes  nothing
Shapes    none
Departs   none
"""
import torch

from probatum.card import Card
from probatum.rooms.arena import Terms
from probatum.rooms.arena import alone

CARD = Card(paper="none", title="Greedy", entry="Greedy", slot="method", tags=("own",))


class Greedy:
    """Draws a thousand numbers from its own stream in every step and changes nothing at all."""

    reads = ("batch",)
    writes = ()

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.seen = []

    def batch(self, run, batch):
        torch.randn(1000, generator=self.generator)
        self.seen.append(batch.index.tolist())
        return batch
'''


@pytest.fixture
def greedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(catalogue, "_added", {})
    path = tmp_path / "greedy.py"
    path.write_text(GREEDY)
    return catalogue.add_file(path)


def work(arm: str | None = None, dataset: str = "iris", steps: int = 20, **more: Any) -> Work:
    base = Recipe(training=Training(steps=steps, batch_size=16))
    data = open_dataset(dataset).prepare(0)
    chosen = Arm("baseline", base) if arm is None else make_arm(arm, base)
    return Work(chosen, "baseline" if arm is None else "", Terms(base=base, **more), data, 0)


def test_rule_1_arms_share_weights_and_order_and_cannot_disturb_each_other(greedy: str) -> None:
    plain, other = work(), work("encouraging-loss")
    first, second = (assemble(alone(w.arm.recipe, w.data, 0)).run.model.state_dict() for w in (plain, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert predict.trial(plain).digest == predict.trial(work(greedy)).digest

    seen = []
    for loss in ("", "encouraging-loss+"):
        w = work(loss + greedy)
        parts = assemble(alone(w.arm.recipe, w.data, 0))
        train(parts.run, parts.methods, torch.Generator().manual_seed(5))
        seen.append(next(m for m in parts.methods if hasattr(m, "seen")).seen)
    assert seen[0] == seen[1]


def test_rule_1_a_salted_arm_keeps_the_split_but_not_the_weights() -> None:
    w = work()
    again = replace(w, arm=replace(w.arm, salt="again"))
    assert predict.trial(w).digest != predict.trial(again).digest
    assert torch.equal(w.data.test.x, again.data.test.x)


def test_rule_2_equal_steps_by_default() -> None:
    results = study_of("iris", ["encouraging-loss", "gradient-noise"], **SHORT).run()
    passes = {trial.arm: trial.record["measures"]["training-passes"] for trial in results.trials}
    assert len(set(passes.values())) == 1


def test_rule_2_equal_compute_gives_a_dearer_arm_fewer_steps() -> None:
    dearer, as_dear = (work(arm, steps=200) for arm in ("tabm(k=4)", "encouraging-loss"))
    assert 1 <= equal_steps(dearer, dearer.recipe) < 200
    assert equal_steps(as_dear, as_dear.recipe) == 200
    equal = predict.trial(work("tabm(k=4)", equal_compute=True)).measures["training-passes"]
    plain = predict.trial(work("tabm(k=4)")).measures["training-passes"]
    assert equal < plain


def test_rule_3_every_arm_gets_the_same_tuner_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[str] = []
    original = fitting.run_training
    monkeypatch.setattr(
        fitting, "run_training", lambda *a, **k: (trainings.append(a[0].arm.name), original(*a, **k))[1]
    )
    for arm in (None, "encouraging-loss"):
        predict.trial(work(arm, tune=4))
    assert trainings.count("baseline") == trainings.count("encouraging-loss") == 5  # four candidates, one final


def test_rule_3_tuning_is_a_pure_function_of_the_plan() -> None:
    assert (
        predict.trial(work("encouraging-loss", tune=3)).digest == predict.trial(work("encouraging-loss", tune=3)).digest
    )


class _Sealed(Part):
    """Test rows that may only be read once the training is over, and then by one prediction."""

    broken = False
    sealed = True

    def __getattribute__(self, name: str) -> Any:
        if name in ("x", "y", "text") and type(self).sealed:
            raise AssertionError(f"test rows were read ({name}) before the training was over")
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    "arm", [None, "encouraging-loss", "h-calibration(steps=2, window=10)", "gbnn(total=4, units=2)"]
)
@pytest.mark.parametrize("tune", [0, 2])
def test_rule_4_test_rows_are_read_after_all_choices(
    arm: str | None, tune: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = work(arm, tune=tune)
    _Sealed.sealed = False
    test = _Sealed(w.data.test.x, w.data.test.y, w.data.test.rows)
    sealed = replace(w, data=Data(w.data.spec, w.data.train, w.data.valid, test, w.data.pipeline))
    _Sealed.sealed = True
    monkeypatch.setattr(fitting, "no_rows", lambda part: w.data.test)  # learners get no rows; the seal is not broken
    with pytest.raises(AssertionError, match="before the training was over"):
        _ = sealed.data.test.x
    predict.fit(sealed)


def test_rule_5_no_verdict_from_five_seeds() -> None:
    results = study_of("iris", ["encouraging-loss"], **{**SHORT, "seeds": 5}).run()
    assert {v.word for v in results.verdicts() if v.measure == "accuracy"} == {"undecided"}


def test_rule_6_the_winner_is_confirmed_on_fresh_seeds() -> None:
    short = {"seeds": 6, "steps": 1, "timing": False, "references": False}
    results = study_of("wine", ["gbnn(total=20, units=10)"], primary="log-loss", **short).run()
    assert results.winner() == "gbnn(total=20, units=10)"  # after one step the baseline knows next to nothing
    assert not {t.seed for t in results.trials} & {t.seed for t in results.confirmation}
    confirmed = results.confirmed()
    assert confirmed is not None
    assert confirmed.word == "helps"
    assert "confirmed on 6 fresh seeds" in results.answer()


@pytest.mark.parametrize("arm", ["encouraging-loss(log_end=None)", "gradient-noise(eta=0.0)"])
def test_rule_8_neutral_points_equal_the_baseline_bit_for_bit(arm: str) -> None:
    results = study_of("iris", [arm], **SHORT).run()
    digests = {(t.arm, t.seed): t.record["digest"] for t in results.trials}
    for (name, seed), digest in digests.items():
        assert digest == digests["baseline", seed], name
    assert all(v.word == "no material difference" for v in results.verdicts() if v.measure == "accuracy")


def test_rule_8_error_rates_are_those_stated_and_a_broken_rule_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        found = simulated(60, 20, tell=lambda line: print(f"\n{line}", end=""), rows=4_000)
    assert all(rate.holds for rate in found)
    assert sum(rate.mutant for rate in found) == 2  # of which more than the stated 5 % are wrong
    assert len({rate.name for rate in found}) == len(found)


def test_rule_8_a_rate_fails_by_its_lower_limit() -> None:
    assert Rate("", 5, 100).holds
    assert not Rate("", 12, 100).holds
    assert Rate("", 12, 100, mutant=True).holds
    assert not Rate("", 5, 100, mutant=True).holds
    assert not Rate("", 1, 300, most=0.0).holds
    assert "FAILS" in Rate("x", 12, 100).line()
    assert Rate("", 12, 100, alike=3.0).holds  # as of 33 studies


def test_rule_8_arms_of_one_table_are_no_studies_of_their_own() -> None:
    draws = np.random.default_rng(0).random((3, 20_000)) < 0.05
    assert design_effect(draws) == pytest.approx(1.0, abs=0.03)
    assert design_effect(np.repeat(draws[:1], 3, axis=0)) == pytest.approx(3.0, abs=0.03)
    assert design_effect(np.zeros((3, 10))) == 1.0
    told = Known.told([], [0.1, 0.2, 0.3, 0.4])
    assert (told.truth, told.error) == (pytest.approx(0.25), pytest.approx(0.129099 / 2, rel=1e-4))
    near = Interval(0.0, -0.22, 0.22, 0.1, 6, 0.5)
    assert not told.missed(near)  # 0.25 is off by less than the square root of 0.22^2 and (1.96 * 0.0645)^2
    assert Known([], 0.25).missed(near)


def test_rule_8_equal_arms_on_real_data() -> None:
    torch.set_num_threads(1)
    training = Training(steps=20, batch_size=32)
    assert equal_arms(Splits(open_dataset("wine"), FRACTIONS), 20, 6, training).holds


def test_rule_9_no_effect_is_said() -> None:
    results = study_of("iris", ["sparsemax"], **SHORT).run()
    verdict = next(v for v in results.verdicts() if v.measure == "accuracy")
    assert "no effect" in verdict.note


def test_rule_10_speed_is_measured_against_the_baseline_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = timing.cost.interleave

    def spy(a: Any, b: Any, **settings: Any) -> Any:
        marked = (lambda: (calls.append("a"), a())[1], lambda: (calls.append("b"), b())[1])
        return original(*marked, **settings)

    monkeypatch.setattr(timing.cost, "interleave", spy)
    found = predict.timings(work("tabm(k=4)"))
    assert set(found) == {"step-time-ratio", "latency-ratio"}
    assert all(calls[i : i + 2] == ["a", "b"] for i in range(0, len(calls), 2))


def test_budget_of_odd_rows_leaves_no_batch_of_one() -> None:
    assert budget_for(Training(epochs=1, batch_size=16), 33).steps_per_epoch == 2
    assert budget_for(Training(epochs=3, batch_size=64), 10).batch_size == 10


def test_unequal_model_output_is_named_before_the_study() -> None:
    with pytest.raises(InputError, match=r"outputs of shape \(2, 7\).*3 classes"):
        study_of("iris", ["encouraging-loss"], model=lambda: torch.nn.Linear(4, 7), **SHORT)
