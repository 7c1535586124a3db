"""What racing saves and how often it is wrong, beside the full grid, on a few simulated studies."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from probatum.bench import race_simulation as racing
from probatum.bench.plan import DataPlan, StudyPlan
from probatum.bench.race import Race, looks_to
from probatum.bench.race_run import race_through
from probatum.bench.race_simulation import (
    HELPS,
    HURTS,
    SAME,
    SHARES,
    UNDECIDED,
    draw_differences,
    draw_effects,
    screen,
    simulate,
)
from probatum.bench.results import Results
from probatum.bench.statistics import adjust, binomial_upper
from probatum.bench.store import Trial
from probatum.recipe import Arm, Recipe

STUDIES = 200
WORDS = {UNDECIDED: "undecided", HELPS: "helps", HURTS: "hurts", SAME: "no material difference"}


def refuted(k: int, n: int, rate: float) -> bool:
    """Whether `k` in `n` refutes that the true rate is at most `rate`, at the 0.1 % level, exactly."""
    return 1 - binomial_upper(n - k, n, 0.999) > rate


@pytest.mark.parametrize("shared", SHARES)
def test_error_rates_without_any_effect(shared: float) -> None:
    found = simulate(STUDIES, shared=shared, effects="zero", seed=4)
    for errors in (found.race, found.grid):
        wrong = round(errors.false_discovery_rate * STUDIES)  # every claim is false, so a study's share is 0 or 1
        assert wrong / STUDIES == pytest.approx(errors.false_discovery_rate)
        assert not refuted(wrong, STUDIES, 0.05)
        assert errors.false_discovery_upper == binomial_upper(wrong, STUDIES)
        assert not refuted(errors.false_verdicts, STUDIES * 20, 0.05)
    assert found.race.false_discovery_rate > 0, "nothing was ever claimed: no test of anything"


@pytest.mark.parametrize(("shared", "share", "same", "won"), [(0.005, 0.5, 0.88, 0.9), (0.2, 0.58, 0.85, 0.85)])
def test_savings_and_agreement_on_realistic_effects(shared: float, share: float, same: float, won: float) -> None:
    found = simulate(STUDIES, shared=shared, seed=5)
    assert found.race.false_discovery_upper < 0.05
    assert not refuted(found.race.false_verdicts, STUDIES * 20, 0.05)
    assert found.high < share
    assert found.low < found.trial_share < found.high
    assert found.same_words > same
    assert found.winners_kept > won
    assert found.race.power > found.grid.power - 0.08
    assert found.contradicted < 0.005


@pytest.mark.parametrize("ratio", [1 / 3, None])
def test_the_simulation_is_the_bench(ratio: float | None) -> None:
    generator = np.random.default_rng(7)
    studies, arms, cap = 6, 8, 14
    margin, sd = 0.012, 0.01
    differences = draw_differences(draw_effects((studies, arms), generator), cap, ratio, generator)
    race = Race(looks_to(cap), ratio)
    found = screen(differences, np.full((studies, arms), margin / sd), race)
    data = DataPlan("made up", "0", "table", "classes", "y", 9, (0.6, 0.2, 0.2), ratio is None)
    players = tuple(Arm(f"a{i}", Recipe()) for i in range(arms))
    plan = StudyPlan(
        arena="predict",
        data=data,
        base=Recipe(),
        arms=players,
        references=(),
        seeds=tuple(range(cap)),
        primary="accuracy",
        race=race.looks,
        margins={"accuracy": margin},
    )
    for study in range(studies):

        def ask(seeds: tuple[int, ...], living: tuple[Arm, ...], first: bool, study: int = study) -> list[Trial]:
            values = {(f"a{i}", s): sd * differences[study, i, s] for i in range(arms) for s in seeds}
            return [
                Trial("", "", name, s, "fit", "ok", {}, {"measures": {"accuracy": values.get((name, s), 0.0)}})
                for s in seeds
                for name in ("baseline", *(arm.name for arm in living))
            ]

        results = Results(plan, race_through(plan, ask), (), (), {})
        words = {v.arm: v.word for v in results.primary_verdicts()}
        assert [words[f"a{i}"] for i in range(arms)] == [WORDS[word] for word in found.words[study]]
        ran = results.seeds_run()
        assert [ran[f"a{i}"] for i in range(arms)] == found.seeds[study].tolist()
        assert sum(ran.values()) == found.trials()[study]
    assert len(set(found.seeds.ravel())) > 2
    assert len(set(found.words.ravel())) > 2


def test_adjusted_p_values_are_those_of_the_bench() -> None:
    p = np.random.default_rng(0).uniform(size=(5, 9)) ** 2
    np.testing.assert_allclose(racing._adjusted(p), [adjust(row) for row in p.tolist()], rtol=1e-14)


def test_a_grid_is_a_race_with_one_look() -> None:
    found = simulate(20, looks=(24,))
    assert found.trial_share == 1
    assert found.same_words == 1
    assert found.race == found.grid


def test_giving_up_saves_trials_and_costs_no_errors() -> None:
    given_up, never = (simulate(60, futile=futile, seed=9) for futile in (0.2, 0.0))
    assert given_up.trial_share < 0.8 * never.trial_share
    assert given_up.race.false_verdicts <= never.race.false_verdicts


def test_printed_and_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["racing", "--studies", "6", "--arms", "4", "--seeds", "9"])
    racing.main()
    told = capsys.readouterr().out
    assert told.count("false discovery rate") == 4
    monkeypatch.setattr(sys, "argv", ["racing", "--studies", "6", "--arms", "4", "--seeds", "9", "--json"])
    racing.main()
    found = json.loads(capsys.readouterr().out)
    assert [one["effects"] for one in found] == ["spread", "spread", "zero", "zero"]
    assert found[2]["race"]["power"] is None


@pytest.mark.parametrize("wrong", [{"studies": 1}, {"effects": "none"}])
def test_simulations_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needs|use"):
        simulate(**wrong)  # type: ignore[arg-type]
