"""Where nothing could be judged it is said, and never that nothing tried improves; one order of what is found."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import told
from loosely import study_of
from probatum.bench.budget import confirmation, in_order, whole
from probatum.bench.plan import DataPlan, StudyPlan
from probatum.bench.results import Results
from probatum.bench.store import Trial
from probatum.bench.unjudged import why_no_probe, why_not
from probatum.bench.verdict import Verdict
from probatum.recipe import Arm, Recipe
from probatum.ship.card import unbacked

NAN = math.nan
QUICK: dict[str, Any] = {"steps": 4, "timing": False, "references": False, "confirm": False}


def verdict(word: str, n: int = 8, note: str = "", needed: int | None = None, arm: str = "a") -> Verdict:
    return Verdict(
        arm, "accuracy", "quality", word, 0.0, -0.1, 0.1, n, NAN, NAN, 0.01, needed, 0.5, 0.5, note
    )  # fmt: skip


def why(*found: Verdict, unmeasured: bool = False, one_answer: str = "") -> str:
    return why_not(found, "accuracy", unmeasured=unmeasured, one_answer=one_answer)


@pytest.mark.fast
def test_what_is_a_judgement_and_what_is_none() -> None:
    few = "2 paired seeds; a verdict needs 6"
    for word in ("helps", "hurts", "no material difference", "undecided"):
        assert why(verdict(word), verdict("failed", 0)) == ""
    assert why() == why(verdict("not applicable", 0)) == "nothing tried here applies"
    assert why(unmeasured=True) == "no seed has accuracy for both an arm and the baseline"
    assert why(verdict("failed", 0, "seed 0: lost"), verdict("not applicable", 0)) == "1 of 1 failed (a: seed 0: lost)"
    assert (
        why(verdict("undecided", 2, few, needed=9)) == f"{few}; 9 seeds would decide the nearest with a chance of 80 %"
    )
    assert why(verdict("undecided", 2, "the baseline failed on 4 of 6 seeds")).startswith(f"{few}; the baseline failed")
    assert why(verdict("undecided", 0, "not begun"), verdict("failed", 0, "x")) == "not begun; 1 of 2 failed (a: x)"
    assert (
        why(verdict("undecided"), one_answer="answers 'no'")
        == "the baseline answers 'no', so that there is nothing to improve"
    )
    assert why(verdict("helps"), one_answer="answers 'no'") == ""


@pytest.mark.fast
def test_probes_of_which_none_went_well() -> None:
    lost = Trial("k", "s", "probe", 0, "fit", "failed", {}, {"reason": "no memory"})
    assert why_no_probe([lost, lost]) == "none of 2 trials went well (probe: no memory)"
    assert why_no_probe([lost, replace(lost, status="ok")]) == ""


def plan_of(arms: tuple[str, ...] = ("a", "b"), **said: Any) -> StudyPlan:
    data = DataPlan("made up", "0", "table", "classes", "y", 100, (0.6, 0.2, 0.2), True)
    made = tuple(Arm(name, Recipe(), salt=name) for name in arms)
    seeds = tuple(range(6))
    return StudyPlan(
        arena="predict",
        data=data,
        base=Recipe(),
        arms=made,
        references=("plain",),
        seeds=seeds,
        primary="accuracy",
        **said,
    )


def trials(status: str = "ok", **record: Any) -> tuple[Trial, ...]:
    names = ("baseline", "a", "b", "plain")
    return tuple(
        Trial(f"{name}{seed}", "s", name, seed, "fit", status, {}, record) for seed in range(6) for name in names
    )


@pytest.mark.fast
def test_records_without_the_measure_and_failures_of_all() -> None:
    plan = plan_of()
    empty = Results(plan, trials(measures={}), (), (), {})
    assert empty.answer() == "Nothing could be judged: no seed has accuracy for both an arm and the baseline."
    broken = Results(plan, trials("failed", reason="it burst"), (), (), {})
    assert broken.answer().startswith("Nothing could be judged: 2 of 2 failed (a: seed 0: it burst")
    assert broken.answer().endswith(" The baseline failed on 6 of 6 seeds.")
    for results in (empty, broken):
        assert results.as_json()["unjudged"] == results.unjudged() != ""
        assert unbacked(results, "baseline") == unbacked(results, "a") == results.unjudged()


@pytest.mark.fast
def test_an_arm_that_a_verdict_backs_is_backed() -> None:
    results = Results(plan_of(), trials(measures={"accuracy": 0.5}), (), (), {})
    assert results.unjudged() == unbacked(results, "a") == unbacked(results, "baseline") == ""
    lost = tuple(replace(t, status="failed") if t.arm == "a" else t for t in results.trials)
    results = replace(results, trials=lost)
    assert results.unjudged() == unbacked(results, "b") == ""
    assert unbacked(results, "a").startswith("failed: seed 0")


@pytest.mark.fast
def test_trials_stand_in_the_plans_order_whichever_ended_first() -> None:
    plan = plan_of(race=(6,), minutes=1.0, confirm=(100, 101))
    wanted = trials(measures={"accuracy": 0.5})
    ended = random.Random(0).sample(wanted, len(wanted))
    assert in_order(plan, ended) == whole(plan, ended) == wanted
    fresh = [replace(trial, seed=100 + trial.seed) for trial in ended if trial.seed < 2]
    told_of = [(t.arm, t.seed) for t in confirmation(plan, fresh, "a")]
    assert told_of == [("baseline", 100), ("a", 100), ("baseline", 101), ("a", 101)]


def test_a_study_that_was_stored_says_the_same_byte_for_byte(tmp_path: Path) -> None:
    def found(arms: list[str], store: str) -> tuple[str, list[str]]:
        study = study_of("iris", arms, seeds=1, store=tmp_path / store, **QUICK)
        results = study.run()
        study.store.close()
        return json.dumps(results.as_json()), results.measured()

    calm = found(["encouraging-loss", "selu-snn"], "a.sqlite")
    assert found(["encouraging-loss", "selu-snn"], "a.sqlite") == calm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a study of two seeds was tried."""
    made = tmp_path_factory.mktemp("few")
    words = ["encouraging-loss", "--data", "iris", "--seeds", "2", "--steps", "4", "--workers", "1", "--no-confirm"]
    words += ["--no-timing", "--no-references", "--store", "s.sqlite", "--report", "r.html", "--json", "r.json"]
    run = told("try", *words, cwd=made)
    assert run.returncode == 4, run.stderr
    assert "Nothing could be judged: 2 paired seeds; a verdict needs 6" in " ".join(run.stdout.split())
    assert "Nothing tried" not in run.stdout
    return made


def test_too_few_seeds_have_an_exit_code_of_their_own(folder: Path) -> None:
    held = json.loads((folder / "r.json").read_text())
    assert held["unjudged"].startswith("2 paired seeds; a verdict needs 6")
    assert "Nothing could be judged: 2 paired seeds" in (folder / "r.html").read_text()
    again = told("report", "s.sqlite", cwd=folder)
    assert again.returncode == 4
    assert "Nothing could be judged" in again.stdout


def test_what_no_verdict_backs_is_shipped_with_a_word_and_that_code(folder: Path) -> None:
    run = told("ship", "s.sqlite", "--arm", "encouraging-loss", "--to", "model", cwd=folder)
    assert run.returncode == 4, run.stderr
    assert "no verdict backs it: 2 paired seeds; a verdict needs 6" in run.stderr
    assert "No verdict backs this model: 2 paired seeds" in (folder / "model" / "README.md").read_text()
