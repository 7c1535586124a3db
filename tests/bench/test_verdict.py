"""Verdicts: each word on hand-made records, and error rate and power by simulation."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from probatum.bench.packed_rows import gather
from probatum.bench.pairing import COSTS, differences
from probatum.bench.statistics import power
from probatum.bench.verdict import CANNOT, NO_EFFECT, Verdict, verdicts
from probatum.measure import cost, row_values
from probatum.measure.base import Measure, all_measures

pytestmark = pytest.mark.fast

ACCURACY = Measure("accuracy", "quality", True, 0.01)
RMSE = Measure("rmse", "quality", False, math.log(1.1), kind="ratio")
WIGGLE = [0.001, -0.002, 0.003, 0.0, -0.001, 0.002, -0.003, 0.001]


def record(arm: str, seed: int, name: str = "accuracy", value: float | None = None, **more: Any) -> dict[str, Any]:
    values = {"arm": arm, "seed": seed, "status": "ok", "measures": {}, "reason": "", "digest": f"{arm}{seed}"}
    return values | ({"measures": {name: value}} if value is not None else {}) | more


def records(deltas: dict[str, list[float]], base: float = 0.8) -> list[dict[str, Any]]:
    longest = max(len(values) for values in deltas.values())
    found = [record("baseline", seed, value=base + 0.01 * seed) for seed in range(longest)]
    for arm, values in deltas.items():
        found += [record(arm, seed, value=base + 0.01 * seed + delta) for seed, delta in enumerate(values)]
    return found


def one(deltas: list[float], measure: Measure = ACCURACY, **options: Any) -> Verdict:
    (verdict,) = verdicts(records({"arm": deltas}), "baseline", [measure], **({"ratio": None} | options))
    return verdict


def test_helps_and_hurts() -> None:
    better = one([0.05 + w for w in WIGGLE])
    worse = one([-0.05 + w for w in WIGGLE])
    assert (better.word, worse.word) == ("helps", "hurts")
    assert better.mean == pytest.approx(0.05 + np.mean(WIGGLE))
    assert better.low < better.mean < better.high
    assert better.arm_mean - better.baseline_mean == pytest.approx(better.mean)
    assert better.p_adjusted == better.p < 1e-4
    assert better.n == 8
    assert better.seeds_needed is None


def test_direction_is_turned_where_lower_is_better() -> None:
    error = Measure("accuracy", "quality", False, 0.01)
    verdict = one([0.05 + w for w in WIGGLE], error)
    assert verdict.word == "hurts"
    assert verdict.mean < 0 < verdict.arm_mean - verdict.baseline_mean


def test_no_material_difference_inside_the_margin_even_if_significant() -> None:
    verdict = one([0.005 + w / 10 for w in WIGGLE])
    assert verdict.word == "no material difference"
    assert verdict.p < 0.001
    assert one([0.005 + w / 10 for w in WIGGLE], margins={"accuracy": 0.004}).word == "helps"


def test_undecided_says_how_many_seeds_would_decide() -> None:
    wide = [0.02 + 15 * w for w in WIGGLE]
    verdict = one(wide)
    assert verdict.word == "undecided"
    assert verdict.seeds_needed > 8
    assert one(wide * (1 + verdict.seeds_needed // 8)).word == "helps"


def test_undecided_for_ever_under_resplits_says_what_is_too_wide() -> None:
    verdict = one([0.001 + 30 * w for w in WIGGLE], ratio=0.5)
    assert (verdict.word, verdict.seeds_needed, verdict.note) == ("undecided", None, CANNOT)


def test_undecided_beyond_the_cap() -> None:
    verdict = one([50 * w for w in [*WIGGLE[:6], -0.003]])
    assert (verdict.word, verdict.seeds_needed) == ("undecided", None)
    assert re.fullmatch(r"200 seeds would decide with a chance of [1-7]?\d%", verdict.note)


def test_equal_differences_are_no_certainty_but_for_costs() -> None:
    deltas = [0.05] * 8
    verdict = one([round(0.1 * seed, 1) for seed in [1] * 8])
    assert verdict.word == "undecided"
    assert "same amount" in verdict.note
    base = [record("baseline", seed, "size", 100.0) for seed in range(len(deltas))]
    half = [record("arm", seed, "size", 50.0) for seed in range(len(deltas))]
    size = Measure("size", "size", False, 0.01, kind="ratio")
    assert verdicts([*base, *half], "baseline", [size], ratio=0.25)[0].word == "helps"


def test_axes_of_costs_are_those_of_measures() -> None:
    assert {measure.axis for measure in cost.MEASURES} == COSTS


def test_no_difference_on_any_seed_is_no_certainty_and_says_so_but_for_costs() -> None:
    for primary in ("accuracy", "other"):
        (verdict,) = verdicts(records({"arm": [0.0] * 8}), "baseline", [ACCURACY], ratio=0.25, primary=primary)
        assert (verdict.word, verdict.seeds_needed, verdict.p) == ("undecided", None, 1.0)
        assert "same amount" in verdict.note
        assert math.isinf(verdict.high)
    size = Measure("accuracy", "size", False, 0.01)
    assert one([0.0] * 8, size).word == "no material difference"


def test_five_seeds_are_too_few_however_clear() -> None:
    verdict = one([0.2, 0.21, 0.2, 0.19, 0.2])
    assert verdict.word == "undecided"
    assert "5 paired seeds" in verdict.note
    assert verdict.seeds_needed == 6
    assert one([0.2, 0.21, 0.2, 0.19, 0.2, 0.2]).word == "helps"
    assert one([0.2]).seeds_needed == 6


def test_bit_identical_arm_is_said_to_have_no_effect() -> None:
    base = [record("baseline", seed, value=0.8, digest=str(seed)) for seed in range(6)]
    same = [record("same", seed, value=0.8, digest=str(seed)) for seed in range(6)]
    tied = [record("tied", seed, value=0.8, digest="other") for seed in range(6)]
    blank = [record("blank", seed, value=0.8, digest="") for seed in range(6)]
    found = {v.arm: v for v in verdicts([*base, *same, *tied, *blank], "baseline", [ACCURACY], ratio=0.2)}
    assert (found["same"].word, found["same"].note) == ("no material difference", NO_EFFECT)
    assert {found[arm].word for arm in ("tied", "blank")} == {"undecided"}  # equal numbers of other answers


def class_record(arm: str, seed: int, guesses: np.ndarray, y: np.ndarray, support: bool, **more: Any) -> dict[str, Any]:
    """A trial on 20 of 100 rows, from the answers (n,) and the classes (n,)."""
    p = np.eye(3)[guesses] * 0.6 + 0.1
    rows = row_values.of_classes(torch.tensor(p / p.sum(1, keepdims=True)), torch.tensor(y))
    kept = gather(rows, np.arange(20) + 20 * (seed % 5), 100)
    values = {name: float(value.mean()) for name, value in rows.items()}
    counts = {"support": np.bincount(y, minlength=3).tolist()} if support else {}
    return record(arm, seed) | {"measures": values, "rows": kept} | counts | more


@pytest.mark.parametrize("name", ["balanced-accuracy", "macro-f1"])
def test_equal_answers_are_no_certainty_where_classes_are_averaged(name: str) -> None:
    """17 rows of two classes and 3 of a third: one row moves the mean over classes by 1/9, 1/8 or 1/3 of a third."""
    y = np.repeat([0, 1, 2], [9, 8, 3])
    guesses = np.where(np.arange(20) == 0, 1, y)
    measures = [all_measures()[one] for one in ("accuracy", name)]

    def judged(support: bool, **more: Any) -> list[Verdict]:
        arms = ("baseline", "arm")
        found = [class_record(arm, seed, guesses, y, support, **more) for arm in arms for seed in range(8)]
        return verdicts(found, "baseline", measures, ratio=None, primary=name)

    accuracy, known = judged(support=True)
    assert known.mean == 0
    row = math.sqrt((9 / 27**2 + 8 / 24**2 + 3 / 9**2) / 20)
    assert known.error == pytest.approx(accuracy.error * 20 * row)
    assert (known.word, known.high > known.margin) == ("undecided", True)
    _, unknown = judged(support=False)
    assert (unknown.word, unknown.high) == ("undecided", math.inf)
    assert "same amount" in unknown.note
    for support in (True, False):
        _, same = judged(support, digest="same")
        assert (same.word, same.note.split(";")[0]) == ("no material difference", NO_EFFECT)


def test_not_applicable_and_failed_keep_their_reasons() -> None:
    found = records({"fine": [0.05 + w for w in WIGGLE]})
    found += [record("na", seed, status="not applicable", reason="needs images") for seed in range(8)]
    found += [record("bad", seed, status="failed", reason="loss is nan") for seed in range(8)]
    by_arm = {v.arm: v for v in verdicts(found, "baseline", [ACCURACY], ratio=None)}
    assert (by_arm["na"].word, by_arm["na"].note) == ("not applicable", "needs images")
    assert by_arm["bad"].word == "failed"
    assert "loss is nan" in by_arm["bad"].note
    assert math.isnan(by_arm["bad"].mean)
    assert by_arm["fine"].word == "helps"


@pytest.mark.parametrize(("failures", "word"), [(2, "undecided"), (3, "failed")])
def test_failures_are_losses_and_too_many_fail_the_arm(failures: int, word: str) -> None:
    found = records({"arm": [0.05 + w for w in WIGGLE]})
    for row in found:
        if row["arm"] == "arm" and row["seed"] < failures:
            row["measures"]["accuracy"] = math.nan
    (verdict,) = verdicts(found, "baseline", [ACCURACY], ratio=None)
    assert verdict.word == word
    assert "accuracy is nan" in verdict.note
    assert verdict.n == 8 - failures


def test_what_failures_are_worth() -> None:
    deltas = [0.05 + w for w in WIGGLE * 5]
    found = records({"arm": deltas, "worse": [-d for d in deltas], "same": [w / 10 for w in WIGGLE * 5]})
    for row in found:
        if row["arm"] != "baseline" and row["seed"] < 4:
            row.update(status="failed", reason="loss is nan")
    words = {v.arm: (v.word, v.note) for v in verdicts(found, "baseline", [ACCURACY], ratio=None)}
    assert words["arm"][0] == "helps"  # 36 gains outweigh 4 losses of the same size
    assert words["worse"][0] == "hurts"
    assert words["same"][0] == "undecided"  # it failed four times
    assert words["same"][1].startswith("no material difference where it finishes, but it does not always")


def test_failures_that_keep_an_arm_undecided_are_the_reason_and_no_seeds_are_named() -> None:
    found = records({"clear": [0.05 + w for w in WIGGLE], "open": [0.01 + 10 * w for w in WIGGLE]})
    for row in found:
        if row["arm"] != "baseline" and row["seed"] < 2:
            row.update(status="failed", reason="loss is nan")
    by_arm = {v.arm: v for v in verdicts(found, "baseline", [ACCURACY], ratio=None)}
    clear, open_ = by_arm["clear"], by_arm["open"]
    assert (clear.low > 0, clear.p < 0.001, clear.p_adjusted > 0.05) == (True, True, True)
    assert (clear.word, clear.seeds_needed) == ("undecided", None)
    assert clear.note.startswith("with failures as losses it is not shown: helps; 2 of 8 seeds left out")
    assert (open_.word, open_.seeds_needed) == ("undecided", None)
    assert open_.note.startswith("how many seeds would decide is not known where some are lost")


@pytest.mark.parametrize("axis", ["quality", "speed"])
def test_seeds_without_a_measure_that_the_other_has_are_told_and_losses_but_of_costs(axis: str) -> None:
    deltas = [0.05 + w for w in WIGGLE]
    measure = Measure("accuracy", axis, True, 0.01)
    found = records({"arm": deltas * 2, "worse": [-d for d in deltas * 2]})
    for row in found:
        lacks = (row["arm"] == "arm" and row["seed"] % 2) or (row["arm"] == "baseline" and row["seed"] == 2)
        row["measures"] = {} if lacks else row["measures"]
    better, worse = verdicts(found, "baseline", [measure], ratio=None)
    assert better.n == 7
    assert better.note.endswith("8 of 16 seeds without accuracy; the baseline: 1 of 16 seeds without accuracy")
    assert worse.note == "the baseline: 1 of 16 seeds without accuracy"
    assert worse.word == "hurts"
    if axis == "quality":
        assert (better.word, better.seeds_needed) == ("undecided", None)
        assert better.note.startswith("with seeds without it as losses it is not shown: helps")
    else:
        assert better.word == "helps"


def test_an_equal_arm_that_fails_on_its_worse_half_does_not_help() -> None:
    generator, wrong, studies = np.random.default_rng(7), 0, 300
    for _ in range(studies):
        base, mine = 0.8 + 0.02 * generator.normal(size=(2, 24))
        rows = [record("baseline", s, value=v) for s, v in enumerate(base)]
        rows += [
            record("arm", s, value=v) if v > 0.8 else record("arm", s, status="failed", reason="nan")
            for s, v in enumerate(mine)
        ]
        wrong += verdicts(rows, "baseline", [ACCURACY], ratio=None)[0].word == "helps"
    assert wrong <= stats.binom.ppf(0.999, studies, 0.05)


def test_failures_of_the_baseline_are_named_as_its_own() -> None:
    found = records({"arm": [0.05 + w for w in WIGGLE]})
    for row in found[:8]:
        row.update(status="failed", reason="out of memory")
    (verdict,) = verdicts(found, "baseline", [ACCURACY], ratio=None)
    assert verdict.word == "undecided"  # nothing is said against the arm
    assert verdict.note.startswith("the baseline failed on 8 of 8 seeds, so that 0 pairs are left")
    assert "out of memory" in verdict.note


@pytest.mark.parametrize(("own", "word"), [(1, "undecided"), (3, "failed")])
def test_an_arm_has_failed_only_by_its_own_failures(own: int, word: str) -> None:
    """The baseline lost three of eight seeds and the arm others: what is left is too little, but by whose fault?"""
    found = records({"arm": [0.05 + w for w in WIGGLE]})
    for row in found:
        if row["arm"] == "baseline" and row["seed"] < 3:
            row.update(status="failed", reason="out of memory")
        if row["arm"] == "arm" and 3 <= row["seed"] < 3 + own:
            row.update(status="failed", reason="loss is nan")
    (verdict,) = verdicts(found, "baseline", [ACCURACY], ratio=None)
    assert verdict.word == word
    assert "seed 3: loss is nan" in verdict.note
    assert "the baseline failed on 3 of 8 seeds" in verdict.note


def test_failures_are_told_on_the_primary_measure_even_where_nothing_is_reported() -> None:
    found = [record(arm, s, status="failed", reason="loss is nan") for arm in ("baseline", "arm") for s in range(6)]
    for row in found:
        row["measures"] = {}
    assert verdicts(found, "baseline", [ACCURACY], ratio=None) == []
    (verdict,) = verdicts(found, "baseline", [ACCURACY], ratio=None, primary="accuracy")
    assert verdict.word == "failed"


def test_pairs_are_made_by_seed_not_by_position() -> None:
    found = records({"arm": [0.05 + w for w in WIGGLE]})
    shuffled = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    assert verdicts(shuffled, "baseline", [ACCURACY], ratio=None) == verdicts(found, "baseline", [ACCURACY], ratio=None)


def test_ratio_measures_are_compared_on_logs() -> None:
    found = [record("baseline", s, "rmse", 2.0 * 1.5**s) for s in range(6)]
    found += [record("arm", s, "rmse", 1.01 ** (s % 2) * 1.5**s) for s in range(6)]
    (verdict,) = verdicts(found, "baseline", {"rmse": RMSE}, ratio=0.25)
    assert verdict.word == "helps"
    assert verdict.mean == pytest.approx(math.log(2) - math.log(1.01) / 2)
    assert verdict.baseline_mean / verdict.arm_mean == pytest.approx(2 / 1.01**0.5)
    better = [record("other", s, "rmse", row["measures"]["rmse"]) for s, row in enumerate(found[6:])]
    better[-1]["measures"]["rmse"] = 0.0
    first, other = verdicts([*found, *better], "baseline", [RMSE], ratio=0.25)
    assert first == verdict, "an arm without any error keeps the others from being judged"
    assert (other.word, other.note) == ("undecided", "rmse is 0 on seed 5; a ratio needs positive numbers")
    assert math.isnan(other.mean)
    found[2]["measures"]["rmse"] = 0.0
    (verdict,) = verdicts(found, "baseline", [RMSE], ratio=0.25)
    assert verdict.note == "the baseline: rmse is 0 on seed 2; a ratio needs positive numbers"
    with pytest.raises(ValueError, match=r"rmse.*0\.0.*positive"):
        differences([1.0], [0.0], RMSE)


def test_p_values_are_adjusted_over_arms_within_a_measure() -> None:
    generator = np.random.default_rng(3)
    deltas = {f"arm{k}": (0.014 + 0.02 * generator.normal(size=8)).tolist() for k in range(12)}
    found = verdicts(records(deltas), "baseline", [ACCURACY], ratio=None)
    expected = stats.false_discovery_control([v.p for v in found])
    assert [v.p_adjusted for v in found] == pytest.approx(expected.tolist())
    doubtful = [v for v in found if v.low > 0 and v.mean >= v.margin and v.p_adjusted > 0.05]
    assert doubtful  # significant alone, not among twelve
    assert all(v.word == "undecided" and v.seeds_needed > 8 for v in doubtful)


def test_p_values_of_measures_beside_the_primary_one_are_adjusted_together() -> None:
    generator = np.random.default_rng(4)
    sizes = {"accuracy": 0.01, "f1": 0.01, "ece": 0.01, "size": 0.01}
    measures = [Measure(name, "size" if name == "size" else "quality", True, size) for name, size in sizes.items()]
    rows = []
    for arm in ("baseline", "one", "two"):
        values = 0.8 + 0.02 * generator.normal(size=(8, 4)) + (0.02 if arm == "two" else 0.0)
        rows += [record(arm, s) | {"measures": dict(zip(sizes, v, strict=True))} for s, v in enumerate(values)]
    found = {(v.measure, v.arm): v for v in verdicts(rows, "baseline", measures, ratio=None, primary="accuracy")}
    for family in (["accuracy"], ["size"], ["f1", "ece"]):
        mine = [found[name, arm] for name in family for arm in ("one", "two")]
        assert [v.p_adjusted for v in mine] == pytest.approx(
            stats.false_discovery_control([v.p for v in mine]).tolist()
        )


def test_measures_nobody_reports_are_skipped_and_mistakes_named() -> None:
    found = records({"arm": [0.0] * 6})
    assert verdicts(found, "baseline", [RMSE], ratio=None) == []
    with pytest.raises(ValueError, match="'accurcy'"):
        verdicts(found, "baseline", [ACCURACY], margins={"accurcy": 0.1}, ratio=None)
    with pytest.raises(ValueError, match="'base'"):
        verdicts(found, "base", [ACCURACY], ratio=None)
    with pytest.raises(ValueError, match="two records for seed 0"):
        verdicts([*found, found[0]], "baseline", [ACCURACY], ratio=None)
    with pytest.raises(ValueError, match="'done'"):
        verdicts([record("baseline", 0, value=0.5, status="done")], "baseline", [ACCURACY], ratio=None)


def studies(generator: np.random.Generator, effect: float, n: int, ratio: float | None, count: int) -> list[Verdict]:
    """Many studies of one arm; resplits correlate the differences by n_test/(n_test + n_train)."""
    rho = 0.0 if ratio is None else ratio / (1 + ratio)
    found = []
    for _ in range(count):
        # a common level, a seed's luck that both arms share, and what belongs to the arm alone
        base = 0.7 + 0.05 * generator.normal(size=n)
        own = math.sqrt(rho) * generator.normal() + math.sqrt(1 - rho) * generator.normal(size=n)
        rows = [record("baseline", s, value=v) for s, v in enumerate(base)]
        rows += [record("arm", s, value=v) for s, v in enumerate(base + effect + 0.02 * own)]
        found += verdicts(rows, "baseline", [ACCURACY], margins={"accuracy": 0.001}, ratio=ratio)
    return found


@pytest.mark.parametrize("ratio", [None, 0.25])
def test_arms_without_effect_are_rarely_judged(ratio: float | None) -> None:
    generator = np.random.default_rng(5)
    for n in (6, 10, 20):
        words = [v.word for v in studies(generator, 0.0, n, ratio, 1500)]
        wrong = sum(word in ("helps", "hurts") for word in words)
        print(f"A/A, ratio {ratio}, {n} seeds: {wrong / len(words):.3f} judged to help or hurt")
        assert wrong <= stats.binom.ppf(0.999, len(words), 0.05)


@pytest.mark.parametrize("ratio", [None, 0.25])
@pytest.mark.parametrize(("effect", "n"), [(0.02, 8), (0.02, 20), (-0.03, 8)])
def test_planted_effect_is_found_at_the_planned_power(effect: float, n: int, ratio: float | None) -> None:
    count, rho = 700, 0.0 if ratio is None else ratio / (1 + ratio)
    expected = power(effect, 0.02 * math.sqrt(1 - rho), n, ratio)
    words = [v.word for v in studies(np.random.default_rng(6), effect, n, ratio, count)]
    found = words.count("helps" if effect > 0 else "hurts") / count
    print(f"effect {effect}, ratio {ratio}, {n} seeds: planned {expected:.3f}, found {found:.3f}")
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / count) + 0.002


@pytest.mark.parametrize("count", [15, 30])
def test_differences_that_are_equal_but_for_rounding_are_no_certainty(count: int) -> None:
    values = {"baseline": [(8 + s % 5) / count for s in range(8)], "arm": [(9 + s % 5) / count for s in range(8)]}
    assert len({b - a for a, b in zip(values["baseline"], values["arm"], strict=True)}) > 1
    records = [
        {"arm": arm, "seed": s, "status": "ok", "measures": {"accuracy": v}}
        for arm, own in values.items()
        for s, v in enumerate(own)
    ]
    (found,) = verdicts(records, "baseline", [all_measures()["accuracy"]], ratio=1 / 3)
    assert found.word == "undecided"
    assert math.isinf(found.high)


def test_an_arm_that_fails_and_once_has_nothing_to_divide_by_has_failed() -> None:
    measure = all_measures()["rmse"]
    records = [{"arm": "baseline", "seed": s, "status": "ok", "measures": {"rmse": 1.0 + 0.1 * s}} for s in range(8)]
    records += [
        {"arm": "arm", "seed": s, "status": "failed", "reason": "out of memory", "measures": {}} for s in range(6)
    ]
    records += [{"arm": "arm", "seed": s, "status": "ok", "measures": {"rmse": s - 6.0}} for s in (6, 7)]
    (found,) = verdicts(records, "baseline", [measure], ratio=1 / 3)
    assert found.word == "failed"
    assert "out of memory" in found.note
