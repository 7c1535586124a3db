"""Degenerate answers are told, and which measure chooses the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from loosely import study_of
from probatum.bench.degenerate import degenerate
from probatum.bench.store import Trial
from probatum.cli.try_view import print_results
from probatum.report.table import remarks
from probatum.report.write import render

SHORT: dict[str, Any] = {"seeds": 6, "steps": 6, "timing": False, "references": False, "confirm": False}


def trial(arm: str, seed: int, confusion: list[list[int]] | None = None, **details: Any) -> Trial:
    if confusion is not None:
        details["per_class"] = {"confusion": confusion}
    right = 0.0 if confusion is None else float(np.trace(confusion)) / float(np.sum(confusion))
    record = {"measures": {"accuracy": right}, "details": details}
    return Trial(f"{arm}{seed}", "study", arm, seed, "fit", "ok", {}, record)


@pytest.mark.fast
def test_one_class_one_value_and_a_perfect_baseline() -> None:
    found = degenerate(
        [
            trial("baseline", 0, [[5, 0], [0, 4]]),
            trial("baseline", 1, [[5, 0], [0, 4]]),
            trial("baseline", 2, [[5, 0], [1, 3]]),
            trial("says no", 0, [[5, 0], [4, 0]]),
            trial("says no", 1, [[5, 0], [3, 1]]),
            trial("says no", 2, [[5, 0], [4, 0]]),
            trial("says either", 0, [[5, 0], [4, 0]]),
            trial("says either", 1, [[0, 5], [0, 4]]),
            trial("always right", 0, [[5, 0], [0, 4]]),
            trial("of one class", 0, [[5, 0], [0, 0]]),  # the rows are, so that the answer may be
            trial("mean", 0, constant=True),
            Trial("lost", "study", "lost", 0, "fit", "failed", {}, {"reason": "x"}),
        ],
        ("no", "yes"),
        "baseline",
    )
    assert found == {
        "baseline": "is right on every test row on 2 of 3 seeds: nothing can improve its accuracy there",
        "says no": "answers 'no' for every row on 2 of 3 seeds",
        "says either": "answers one class for every row on 2 of 2 seeds",
        "mean": "answers the same value for every row on 1 of 1 seeds",
    }


def rare(rows: int = 200) -> pd.DataFrame:
    """A tenth of the rows is of a class that nothing tells."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"a": rng.normal(size=rows), "b": rng.normal(size=rows), "ill": np.where(np.arange(rows) % 10, "no", "yes")}
    )


def test_a_study_tells_everywhere(tmp_path: Path) -> None:
    study = study_of(rare(), ["encouraging-loss"], target="ill", **SHORT)
    results = study.run()
    told = "answers 'no' for every row on 6 of 6 seeds"
    nothing = f"the baseline {told}, so that there is nothing to improve"
    assert results.answer() == f"Nothing could be judged: {nothing}."
    assert results.as_json()["unjudged"] == nothing
    assert results.as_json()["degenerate"] == {"baseline": told, "encouraging-loss": told}
    lines = [line.plain for line in remarks(results)]
    assert lines[0] == f"  baseline: {told}"
    assert any(line.startswith("  encouraging-loss: ") and line.endswith(told) for line in lines)
    assert study._repr_html_().count("answers &#x27;no&#x27;") >= 3
    assert render(results).count("answers &#39;no&#39;") >= 3


def test_the_measure_that_decides_chooses_the_weights_or_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    balanced = study_of(rare(), ["encouraging-loss"], target="ill", primary="balanced-accuracy", **SHORT | {"seeds": 1})
    assert balanced.plan.base.training.select == "balanced-accuracy"
    curve = balanced.run().trials[0].record["details"]["curve"]
    assert all("valid_balanced_error" in point for point in curve)
    assert balanced.results.choice_note() == ""
    brier = study_of(rare(), ["encouraging-loss"], target="ill", primary="brier", **SHORT | {"seeds": 1})
    told = "Weights are chosen by log-loss on validation rows: brier, which decides, cannot be used there."
    assert brier.results.choice_note() == brier.results.as_json()["choice_note"] == told
    print_results(Console(width=200), brier.results)
    assert told in capsys.readouterr().out
    assert told in render(brier.results)


def test_weights_are_the_best_by_the_measure_in_stacks_too() -> None:
    from probatum.settings import Judging, Running
    from probatum.study import Study

    found = []
    for stack in ("never", "always"):
        study = Study(
            rare(), ["encouraging-loss"], target="ill", primary="auroc", seeds=2, steps=30,
            judging=Judging(references=False, confirm=False), running=Running(timing=False, stack=stack),
        )  # fmt: skip
        found.append([t.record["details"]["curve"] for t in study.run().trials])
    for alone, stacked in zip(*found, strict=True):
        assert len(alone) > 5
        for one, other in zip(alone, stacked, strict=True):
            assert one["valid_auroc_error"] == pytest.approx(other["valid_auroc_error"], abs=0.02)
