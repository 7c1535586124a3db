"""Studies from Python: what is planned, resumed, judged and shown."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.datasets import load_wine
from torch import nn

from loosely import study_of
from probatum import Study, catalogue
from probatum.bench import rehearsing
from probatum.bench.plan import key_of, plan_from
from probatum.bench.store import Store
from probatum.bench.stored import find_study, results_of
from probatum.errors import InputError
from probatum.rooms.arena import Work

SHORT = {"seeds": 6, "steps": 4, "timing": False, "references": False, "confirm": False}


def test_results_and_frame(small_study: Study) -> None:
    frame = small_study.frame()
    assert isinstance(frame, pl.DataFrame)
    assert set(frame["arm"]) >= {"baseline", "encouraging-loss", "logistic regression"}
    assert {"step-time-ratio", "accuracy", "macs"} <= set(frame["measure"])
    words = {(v.arm, v.measure): v.word for v in small_study.verdicts()}
    assert words["h-calibration(window=20, steps=20)", "accuracy"] == "no material difference"
    assert "<table>" in small_study._repr_html_()
    json.dumps(small_study.results.as_json(), allow_nan=False)


def test_running_again_repeats_nothing(small_study: Study) -> None:
    class Counter:
        stored = 0

        def planned(self, jobs: list[Any], done: int) -> None:
            Counter.stored += done

        def started(self, job: Any) -> None:
            raise AssertionError(f"{job.arm.name} was run again")

        def stepped(self, step: int, steps: int) -> None:
            return

        def ended(self, job: Any, trial: Any) -> None:
            return

    again = small_study.run(Counter())
    assert again.answer() == small_study.results.answer()
    assert Counter.stored == len(again.trials) + len(again.timings) + len(again.confirmation)


def test_a_stored_study_reads_the_same(small_study: Study) -> None:
    assert key_of(plan_from(small_study.plan.describe()).describe()) == key_of(small_study.plan.describe())
    with Store(small_study.store._name) as store:
        held = results_of(store, find_study(store))
    assert held.answer() == small_study.results.answer()
    first, second = (
        [(v.arm, v.measure, v.word, str(v.mean)) for v in r.verdicts()] for r in (held, small_study.results)
    )
    assert first == second


def test_frames_arrays_and_tensors_are_one_dataset() -> None:
    x, y = load_wine(return_X_y=True)
    frame = load_wine(as_frame=True).frame
    studies = [
        study_of(source, ["encouraging-loss"], target=target, **SHORT)
        for source, target in (
            (frame, "target"),
            (pl.from_pandas(frame), "target"),
            ((x, y), None),
            ((torch.tensor(x), torch.tensor(y)), None),
        )
    ]
    pandas, polars, arrays, tensors = (
        [t.record["measures"]["accuracy"] for t in study.run().trials] for study in studies
    )
    assert pandas == polars
    assert arrays == tensors
    np.testing.assert_allclose(pandas, arrays, atol=0.2)


def test_no_ids_means_all_that_apply_and_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm is rehearsed; what the rehearsal refuses is left out and told of. (Real rehearsals are tried by name.)"""
    rehearsed: list[str] = []

    def rehearse(work: Work, where: str) -> None:
        rehearsed.append(work.arm.name)
        if work.arm.name == "selu-snn":
            raise InputError("refused on purpose")

    monkeypatch.setattr(rehearsing, "rehearse", rehearse)
    study = study_of("iris", **SHORT)
    tried = {arm.name for arm in study.plan.arms}
    assert {"encouraging-loss", "tabm", "gbnn"} <= tried
    assert sorted(rehearsed) == sorted({*tried, "baseline", "selu-snn"})
    assert study.plan.skipped["selu-snn"] == "refused on purpose"
    assert "text" in study.plan.skipped["text-cnn"]
    slots = {catalogue.place(name).slot for name in tried}
    assert not slots & {"explain", "attack", "select", "probe"}


def test_model_by_id_and_the_technique_that_is_the_baseline() -> None:
    study = study_of("iris", ["encouraging-loss", "tabm"], model="tabm", **SHORT)
    assert study.plan.skipped["tabm"] == "it is the baseline here"


def test_own_module_starts_afresh_for_every_seed() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    before = network[0].weight.clone()
    trials = study_of("iris", ["encouraging-loss"], model=network, **SHORT).run().trials
    assert torch.equal(network[0].weight, before), "the user's own module was trained"
    assert len({t.record["digest"] for t in trials if t.arm == "baseline"}) == 6


class _NoReset(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def test_modules_that_cannot_start_afresh_are_refused() -> None:
    with pytest.raises(InputError, match=r"_NoReset.*reset_parameters"):
        study_of("iris", ["encouraging-loss"], model=_NoReset(), **SHORT)
    assert study_of("iris", ["encouraging-loss"], model=_NoReset, **SHORT).plan.model


def test_one_broken_arm_does_not_take_the_study_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    path = tmp_path / "fragile.py"
    path.write_text(
        '"""Fragile: breaks in the fourth step.\n\nPaper     none\nComputes  x\nShapes    x\nDeparts   none\n"""\n'
        "from probatum.card import Card\n"
        'CARD = Card(\n    paper="none", title="x", entry="Fragile", slot="method", tags=("own",),\n)\n\n\n'
        "class Fragile:\n    reads = ('batch',)\n    writes = ()\n\n    def step_end(self, run):\n"
        "        if run.step == 4:\n            raise ZeroDivisionError('on purpose')\n"
    )
    catalogue.add_file(path)
    results = study_of("iris", ["fragile", "encouraging-loss"], **SHORT).run()
    words = {v.arm: v for v in results.primary_verdicts()}
    assert words["fragile"].word == "failed"
    assert "on purpose" in words["fragile"].note
    assert words["encouraging-loss"].n == 6


def test_diverging_training_is_a_failed_trial_with_its_reason() -> None:
    results = study_of("diabetes", ["conda(lr=1e30)"], **{**SHORT, "steps": 20}).run()
    verdict = results.primary_verdicts()[0]
    assert verdict.word == "failed"
    assert "loss" in verdict.note or "finite" in verdict.note


def test_every_technique_that_applies_passes_a_real_rehearsal() -> None:
    """On a small table; what is left out is left out for the kind of data, the task, or what only a user can say."""
    skipped = Study("iris", seeds=2, steps=4).plan.skipped
    known = re.compile(
        r"takes .*; these data are|needs task|adapts a pretrained|give it as a setting|method is for two"
    )
    assert not {name: why for name, why in skipped.items() if not known.search(why)}


class Diverges(nn.Module):
    """Its training loss is no number, in training proper (batches are smaller in a rehearsal)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * (math.nan if self.training and len(x) > 40 else 1)


def test_where_every_trial_fails_the_answer_says_so() -> None:
    results = study_of("iris", ["encouraging-loss", "gradient-noise"], model=Diverges, **SHORT).run()
    assert {v.arm: v.word for v in results.primary_verdicts()} == {
        "encouraging-loss": "failed",
        "gradient-noise": "failed",
    }
    answer = results.answer()
    assert answer.startswith(
        "Nothing could be judged: 2 of 2 failed (encouraging-loss: seed 0: the training loss is nan"
    )
    assert "The baseline failed on 6 of 6 seeds." in answer


@pytest.mark.parametrize(
    ("arms", "data", "measure"),
    [
        (["integrated-gradients(steps=10)", "deeplift"], "iris", "deletion-drop"),
        (["deepfool"], "iris", "adversarial-distance"),
        (["outlier-scores"], "iris", "flip-auroc"),
    ],
)
def test_other_arenas_give_verdicts(arms: list[str], data: str, measure: str) -> None:
    tiny = {name: catalogue.card(name).tiny for name in ("outlier-scores",)}
    arms = [f"{arm}({', '.join(f'{k}={v!r}' for k, v in tiny[arm].items())})" if arm in tiny else arm for arm in arms]
    results = study_of(data, arms, **{**SHORT, "steps": 30}).run()
    assert results.plan.primary == measure
    assert {t.status for t in results.trials} == {"ok"}, [t.record for t in results.trials if t.status != "ok"]
    assert all(v.n == 6 for v in results.primary_verdicts())
    assert results.answer()


def test_probes_measure_and_do_not_compete() -> None:
    tiny = catalogue.card("randomization-tests").tiny
    arm = f"randomization-tests({', '.join(f'{k}={v!r}' for k, v in tiny.items())})"
    results = study_of("iris", [arm], **SHORT).run()
    assert {t.status for t in results.trials} == {"ok"}, [t.record for t in results.trials if t.status != "ok"]
    assert not results.primary_verdicts()
    assert "see the measurements" in results.answer()


def test_pandas_index_and_dtype_do_not_matter() -> None:
    frame = load_wine(as_frame=True).frame
    other = frame.copy()
    other.index = pd.Index(range(1000, 1000 + len(frame)))
    first, second = (
        study_of(f, ["encouraging-loss"], target="target", **SHORT).plan.data.fingerprint for f in (frame, other)
    )
    assert first == second
