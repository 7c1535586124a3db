"""Racing: p-values and intervals at any stopping time, against other derivations; the stages; a raced study for real."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from loosely import study_of
from probatum import Study
from probatum.bench.execute import Silent
from probatum.bench.packed_rows import gather, pack
from probatum.bench.plan import DataPlan, StudyPlan, plan_from
from probatum.bench.race import Race, half_widths, law, looks_to, moments, nominal_p
from probatum.bench.race_run import race_through
from probatum.bench.results import Results
from probatum.bench.statistics import Interval, binomial_upper, paired
from probatum.bench.store import Store, Trial
from probatum.bench.stored import find_study, progress_of, results_of
from probatum.bench.verdict import decide, verdicts
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe
from probatum.settings import Judging

LOOKS = (6, 8, 11, 15, 20, 24)
RATIOS = (None, 1 / 3)


def series(size: int, ratio: float | None, seed: int, n: int = 24) -> np.ndarray:
    """Differences without an effect, (size, n), drawn one by one."""
    generator = np.random.default_rng(seed)
    shared = math.sqrt(ratio or 0.0) * generator.standard_normal((size, 1))
    return shared + generator.standard_normal((size, n))


def at_looks(x: np.ndarray, looks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    means = np.stack([x[:, :n].mean(axis=1) for n in looks], axis=1)
    return means, np.stack([x[:, :n].std(axis=1, ddof=1) for n in looks], axis=1)


def lower(k: int, n: int) -> float:
    """The exact one-sided lower limit of a rate; a stated rate below it is refuted at the 0.1 % level."""
    return 1 - binomial_upper(n - k, n, 0.999)


def test_looks_grow_to_the_cap() -> None:
    assert looks_to(24) == (6, 7, 8, 9, 10, 12, 14, 16, 19, 22, 24)
    assert looks_to(7) == (6, 7)
    assert looks_to(6) == (6,)
    for cap in range(6, 80):
        looks = looks_to(cap)
        assert looks[-1] == cap
        assert list(looks) == sorted(set(looks))
    assert Race(LOOKS, None).weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "wrong", [{"looks": ()}, {"looks": (8, 6)}, {"looks": (1, 6)}, {"ratio": -1}, {"confidence": 1}]
)
def test_rules_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|use"):
        Race(**({"looks": LOOKS, "ratio": None} | wrong))


@pytest.mark.parametrize("ratio", RATIOS)
def test_p_values_hold_at_any_stopping_time(ratio: float | None) -> None:
    size, race = 20_000, Race(LOOKS, ratio)
    mean, sd = at_looks(series(size, ratio, 3), LOOKS)
    p = race.p_values(nominal_p(mean, sd, np.asarray(LOOKS), ratio))
    assert (np.diff(p, axis=1) <= 0).all()
    for alpha in (0.5, 0.2, 0.05, 0.01, 0.0025):  # the last look's is the smallest, whatever one stops by
        rejected = int((p[:, -1] <= alpha).sum())
        assert lower(rejected, size) <= alpha
        assert alpha < 0.01 or rejected / size >= 0.75 * alpha, "far too cautious"
    plain = int((nominal_p(mean, sd, np.asarray(LOOKS), ratio).min(axis=1) <= 0.05).sum())
    assert lower(plain, size) > 0.07, "looking again and again without a correction is not what it was"


@pytest.mark.parametrize("ratio", RATIOS)
def test_intervals_cover_at_all_looks_together(ratio: float | None) -> None:
    size, race = 20_000, Race(LOOKS, ratio)
    mean, sd = at_looks(0.7 + series(size, ratio, 5), LOOKS)
    half = half_widths(np.asarray(LOOKS), ratio, race.levels()) * sd
    missed = int((np.abs(mean - 0.7) > half).any(axis=1).sum())
    assert lower(missed, size) <= 0.05
    assert missed / size > 0.04


def test_interval_excludes_zero_exactly_when_the_p_value_is_small() -> None:
    race = Race(LOOKS, 1 / 3)
    mean, sd = at_looks(1.5 + series(2000, 1 / 3, 6), LOOKS)
    p = race.p_values(nominal_p(mean, sd, np.asarray(LOOKS), 1 / 3))
    excludes = (np.abs(mean) > half_widths(np.asarray(LOOKS), 1 / 3, race.levels()) * sd).cumsum(axis=1) > 0
    assert ((p <= 0.05) == excludes).mean() > 0.999  # the boundary is found to 9 digits
    assert excludes.any()
    assert not excludes.all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_never_above_the_union_bound(ratio: float | None) -> None:
    race = Race(LOOKS, ratio)
    nominal = np.random.default_rng(0).uniform(size=(500, len(LOOKS))) ** 3
    assert (race.p_values(nominal) <= race.p_union(nominal)).all()
    assert (race.p_union(nominal)[:, -1] == np.minimum((nominal / race.weights).min(axis=1), 1)).all()
    assert (race.levels() <= race.levels(complete=False) + 1e-15).all()
    assert race.levels(complete=False) == pytest.approx(1 - 0.05 * race.weights)
    tiny = np.array([1e-9])
    assert race.p_values(tiny) == pytest.approx(tiny / race.weights[0]), "where no draw reaches, the union bound stays"


def test_a_single_look_is_the_plain_test() -> None:
    for ratio in RATIOS:
        race, p = Race((12,), ratio), np.linspace(0, 1, 101)[:, None]
        found = race.p_values(p)
        assert (found <= p).all()
        np.testing.assert_allclose(found, p, atol=0.005)
        assert race.levels()[0] == pytest.approx(0.95, abs=0.002)


@pytest.mark.parametrize("ratio", [0.0, 0.001])
def test_law_of_two_large_looks_is_the_bivariate_normal(ratio: float) -> None:
    looks = (1000, 2000)
    variances = ratio + 1 / np.asarray(looks)
    correlation = variances[1] / math.sqrt(variances.prod())
    normal = stats.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]])
    for minimum in (0.02, 0.06, 0.3):
        bounds = stats.norm.isf(minimum * np.array([1 / 3, 2 / 3]) / 2)
        corners = [
            normal.cdf(bounds * sign) * sign[0] * sign[1] for sign in np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        ]
        exact = 1 - sum(corners)
        assert exact < law(looks, ratio).p(np.array(minimum)) < exact + 0.005


def test_moments_are_those_of_growing_samples() -> None:
    means, squares = moments((6, 7, 15), 40_000, np.random.default_rng(1))
    np.testing.assert_allclose(means.var(axis=0), [1 / 6, 1 / 7, 1 / 15], rtol=0.04)
    np.testing.assert_allclose(squares.mean(axis=0), [5, 6, 14], rtol=0.02)
    np.testing.assert_allclose(np.cov(means.T)[0, 2], 1 / 15, rtol=0.06)  # cov(mean of m, mean of n) = 1/n, m <= n
    x = series(40_000, None, 2, 15)
    _, sd = at_looks(x, (6, 7, 15))
    now, then = (np.corrcoef(s[:, 0], s[:, 2])[0, 1] for s in (squares, sd**2))
    assert now == pytest.approx(then, abs=0.02)
    assert (np.diff(squares, axis=1) >= 0).all()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("mean", "sd", "margin"), [(0.6, 1.0, 0.2), (0.1, 1.0, 1.8), (-1.5, 1.0, 0.5)])
def test_chance_against_brute_force(ratio: float | None, mean: float, sd: float, margin: float) -> None:
    race, look, size = Race((6, 9, 14), ratio), 0, 20_000
    generator = np.random.default_rng(8)
    old = np.array([-1.0, -0.5, 0, 0, 0.5, 1.0])
    old = mean + (old - old.mean()) * sd / old.std(ddof=1)
    sigma = sd * np.sqrt(5 / generator.chisquare(5, (size, 1)))
    centre = mean + sigma * generator.standard_normal((size, 1)) / math.sqrt(6)
    x = np.hstack([np.tile(old, (size, 1)), centre + sigma * generator.standard_normal((size, 8))])
    decided = np.zeros(size, dtype=bool)
    for n, level in zip(race.looks, race.levels(), strict=True):
        m, half = x[:, :n].mean(axis=1), x[:, :n].std(axis=1, ddof=1) * half_widths(np.array(n), ratio, level)
        decided |= (np.abs(m) + half < margin) | ((np.abs(m) > half) & (np.abs(m) >= margin))
    found = race.chance(look, np.array([mean]), np.array([sd]), np.array([margin]))[0]
    assert found == pytest.approx(decided.mean(), abs=0.05)


def plan_of(arms: Sequence[str], looks: tuple[int, ...] = LOOKS, fixed_split: bool = False) -> StudyPlan:
    data = DataPlan("made up", "0", "table", "classes", "y", 100, (0.6, 0.2, 0.2), fixed_split)
    players = tuple(Arm(name, Recipe()) for name in arms)
    seeds = tuple(range(looks[-1]))
    return StudyPlan(
        arena="predict",
        data=data,
        base=Recipe(),
        arms=players,
        references=("reference",),
        seeds=seeds,
        primary="accuracy",
        race=looks,
    )


class Made:
    """Trials made up from given differences; None = the trial fails, nan = it does not apply."""

    def __init__(self, differences: dict[str, Sequence[float | None]]) -> None:
        self.differences = differences
        self.asked: list[tuple[str, int]] = []

    def __call__(self, seeds: tuple[int, ...], arms: tuple[Arm, ...], first: bool) -> list[Trial]:
        names = ["baseline", *(arm.name for arm in arms), *(["reference"] if first else [])]
        self.asked += [(name, seed) for seed in seeds for name in names]
        return [self.trial(name, seed) for seed in seeds for name in names]

    def trial(self, name: str, seed: int) -> Trial:
        value = self.differences[name][seed] if name in self.differences else 0.0
        status = "failed" if value is None else "not applicable" if math.isnan(value) else "ok"
        base = 0.5 + 0.001 * (seed % 7)
        record = {"measures": {"accuracy": base + value}} if status == "ok" else {"reason": "on purpose"}
        return Trial(f"{name}-{seed}", "", name, seed, "fit", status, {}, record)


def raced(differences: dict[str, Sequence[float | None]], **options: Any) -> tuple[Results, Made]:
    made, plan = Made(differences), plan_of(list(differences), **options)
    return Results(plan, race_through(plan, made), (), (), {}), made


def noise(effect: float, sd: float, seed: int, n: int = 24) -> list[float]:
    return (effect + sd * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_clear_arms_stop_at_once_and_open_ones_go_on() -> None:
    results, made = raced({"loser": noise(-0.2, 0.01, 0), "open": noise(0.025, 0.015, 1), "twin": noise(0, 1e-4, 2)})
    words = {v.arm: v for v in results.primary_verdicts()}
    assert (words["loser"].word, words["twin"].word) == ("hurts", "no material difference")
    ran = results.seeds_run()
    assert ran["loser"] == ran["twin"] == 6 < ran["open"] <= ran["baseline"]
    assert "stopped after 6 of 24 seeds" in words["loser"].note
    assert sum(name == "reference" for name, _ in made.asked) == 6
    assert len(set(made.asked)) == len(made.asked)
    assert f"{sum(ran.values())} of 96 trials" in results.race_note()
    stored = json.loads(json.dumps(results.as_json(), allow_nan=False))["race"]
    assert [look["seeds"] for look in stored["looks"]] == list(LOOKS)
    assert stored["seeds_run"] == ran
    assert plan_from(results.plan.describe()).race == LOOKS
    old = {key: value for key, value in results.plan.describe().items() if key != "race"}
    assert plan_from(old).race == ()


def test_what_is_decided_stays_so_and_the_hopeless_are_not_decided() -> None:
    generator = np.random.default_rng(11)
    stops = gaps = 0
    for study in range(12):
        effects = generator.choice([0.0, 0.0, 0.01, 0.03, -0.05], size=8)
        differences = {f"a{i}": noise(effect, 0.012, 100 * study + i) for i, effect in enumerate(effects)}
        results, _ = raced(differences, fixed_split=study % 2 == 0)
        ran, plan = results.seeds_run(), results.plan
        final = {v.arm: v for v in results.primary_verdicts()}
        before: dict[str, Any] = {}
        for look in LOOKS:
            trials = tuple(trial for trial in results.trials if trial.seed < look)
            now = {v.arm: v for v in Results(plan, trials, (), (), {}).primary_verdicts()}
            for arm, verdict in now.items():
                if arm in before:
                    assert verdict.p <= before[arm].p
                    assert verdict.p_adjusted <= before[arm].p_adjusted
                    if before[arm].word != "undecided":
                        assert verdict.word == before[arm].word
                        assert verdict.n == before[arm].n
                if ran[arm] == look < plan.race[-1] and verdict.word == "undecided":  # given up here
                    interval = Interval(verdict.mean, verdict.low, verdict.high, verdict.sd, verdict.n, 0.0)
                    alone = decide(interval, margin=verdict.margin, p_adjusted=0.0, ratio=plan.data.ratio)
                    assert alone.word == final[arm].word == "undecided"
                    stops += 1
                gaps += ran[arm] > 6
            before = now
    assert stops > 5
    assert gaps > 5


def test_lost_seeds_cost_the_union_bound_and_hopeless_failures_stop() -> None:
    values = noise(0.1, 0.03, 2)
    holed: list[float | None] = [None, *values[1:]]
    results, _ = raced({"holed": holed, "broken": [None] * 24, "absent": [math.nan] * 24, "few": [0.0, *[None] * 23]})
    ran = results.seeds_run()
    assert ran["broken"] == ran["absent"] == 6
    assert ran["few"] == 8, "one more look brings no pair"
    words = {v.arm: v for v in results.primary_verdicts()}
    assert words["broken"].word == words["few"].word == "failed"
    assert words["absent"].word == "not applicable"
    verdict, race = words["holed"], Race(LOOKS, 1 / 3)
    look = LOOKS.index(ran["holed"])
    delta = values[1 : ran["holed"]]
    level = race.levels(complete=False)[look]
    plain = paired(delta, test_fraction_ratio=1 / 3, confidence=level)
    assert (verdict.low, verdict.high) == pytest.approx((plain.low, plain.high), abs=1e-12)
    nominal = [1.0] + [paired(values[1:n], test_fraction_ratio=1 / 3).p for n in LOOKS[1 : look + 1]]
    assert verdict.p == pytest.approx((nominal / race.weights[: look + 1]).min(), rel=1e-6)


LOSER = "gradient-noise(eta=30.0)"
ARMS = ["encouraging-loss", LOSER]
SMALL: dict[str, Any] = {"seeds": 8, "steps": 25, "batch_size": 16, "race": True, "margin": 0.03}


class Cut(Silent):
    """Breaks the study off after some trials, as Ctrl-C does, and counts what was run."""

    def __init__(self, after: int) -> None:
        self.after, self.ran = after, 0

    def started(self, job: Any) -> None:
        self.ran += 1

    def ended(self, job: Any, trial: Trial) -> None:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt


def words_of(results: Results, timed: bool = True) -> list[tuple[str, ...]]:
    return sorted(
        (v.arm, v.measure, v.word, repr(v.mean), repr(v.low), repr(v.p_adjusted), v.note)
        for v in results.verdicts()
        if timed or "-ratio" not in v.measure
    )


def test_a_raced_study_for_real(tmp_path: Path) -> None:
    calm = study_of("wine", ARMS, store=tmp_path / "calm.sqlite", **SMALL)
    whole = calm.run()
    ran = whole.seeds_run()
    assert calm.plan.race == (6, 7, 8)
    assert ran[LOSER] == 6
    losers = [v for v in whole.primary_verdicts() if v.arm == LOSER]
    assert losers[0].word == "hurts"
    assert "stopped after 6 of 8 seeds" in losers[0].note
    assert {t.seed for t in whole.trials if t.arm in calm.plan.references} == set(range(6))
    assert {t.seed for t in whole.timings} == set(range(6))
    assert len(whole.timings) == 6 * len(ARMS)
    with Store(tmp_path / "calm.sqlite") as store:
        held = results_of(store, find_study(store))
        progress = progress_of(store, find_study(store))
    assert words_of(held) == words_of(whole)
    assert progress == {"done": len(whole.trials), "total": len(whole.trials)}

    wild, untimed = tmp_path / "wild.sqlite", SMALL | {"timing": False}
    for after in (4, 25):
        with pytest.raises(KeyboardInterrupt):
            study_of("wine", ARMS, store=wild, **untimed).run(Cut(after))
        with Store(wild) as store:
            stored = len(store.trials(find_study(store).key))
            with pytest.raises(InputError, match="lacks"):
                results_of(store, find_study(store))
    last = Cut(10_000)
    resumed = study_of("wine", ARMS, store=wild, **untimed).run(last)
    assert stored >= 25
    assert last.ran == len(whole.trials) + len(whole.confirmation) - stored
    assert words_of(resumed, timed=False) == words_of(whole, timed=False)
    again = Cut(10_000)
    assert words_of(study_of("wine", ARMS, store=wild, **untimed).run(again)) == words_of(resumed)
    assert again.ran == 0


def test_trials_of_a_full_study_do_not_change_a_race_in_the_same_store(tmp_path: Path) -> None:
    options = SMALL | {"timing": False, "references": False, "confirm": False}
    alone = study_of("wine", ARMS, **options).run()
    path = tmp_path / "store.sqlite"
    full = study_of("wine", ARMS, store=path, **(options | {"race": False})).run()
    counted = Cut(10_000)
    beside = study_of("wine", ARMS, store=path, **options)
    assert words_of(beside.run(counted)) == words_of(alone), "a race looked at trials it had not asked for"
    assert counted.ran == 0
    with Store(path) as store:
        raced_one = next(study for study in store.studies() if study.plan["plan"]["race"])
        other = next(study for study in store.studies() if not study.plan["plan"]["race"])
        assert words_of(results_of(store, raced_one)) == words_of(alone)
        assert words_of(results_of(store, other)) == words_of(full)
    assert not full.race_note()
    assert full.as_json()["race"] is None


def test_levels_that_are_shown_are_those_of_verdicts_with_and_without_rows() -> None:
    results, _ = raced({"open": noise(0.025, 0.015, 1)})
    assert [level for _, level in results.race_looks()] == Race(LOOKS, results.plan.data.ratio).levels().tolist()
    answers = np.random.default_rng(0).integers(0, 2, (len(results.trials), 20)).astype(float)
    kept = [pack(gather({results.plan.primary: row}, np.arange(20), 20)) for row in answers]
    known = replace(results, trials=tuple(replace(t, rows=rows) for t, rows in zip(results.trials, kept, strict=True)))
    levels = Race(LOOKS, None).levels().tolist()
    assert [level for _, level in known.race_looks()] == levels
    assert [look["level"] for look in known.as_json()["race"]["looks"]] == levels
    (verdict,) = known.primary_verdicts()
    look = LOOKS.index(known.seeds_run()["open"])
    records = [r for r in known._records(known.trials, ()) if r["arm"] in ("baseline", "open")]
    one_look = verdicts(records, "baseline", [known.measure(known.plan.primary)], ratio=None, confidence=levels[look])
    assert (verdict.low, verdict.high) == (one_look[0].low, one_look[0].high)


def test_report_and_command_say_that_it_was_raced(tmp_path: Path) -> None:
    from probatum.report.commands import repeat_command
    from probatum.report.write import render

    results, _ = raced({"loser": noise(-0.2, 0.01, 0), "open": noise(0.025, 0.015, 1)})
    page = render(replace(results, summary={"name": "made up"}))
    assert results.race_note() in page
    for seeds, level in results.race_looks():
        assert f'<td class="num">{seeds}</td><td class="num">{100 * level:.2f} %</td>' in page
    assert "stopped after 6 of 24 seeds" in page
    assert "--race" in repeat_command(results)


@pytest.mark.parametrize(
    ("arms", "seeds", "told"),
    [
        (["encouraging-loss"], 6, "more than 6"),
        (["randomization-tests"], 9, "arena probe measures and does not compete"),
    ],
)
def test_races_that_cannot_be_are_refused(arms: list[str], seeds: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Study("iris", arms, seeds=seeds, judging=Judging(race=True))
