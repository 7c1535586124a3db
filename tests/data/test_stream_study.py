"""Whole studies on streamed data: the bench, refusals before long work, timings, references."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from loosely import study_of
from probatum.arenas.predict.arena import trial
from probatum.bench.making import rehearsed
from probatum.data import open_dataset
from probatum.data.lazy.few import drawn_rows, first_rows
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.settings import Judging, Reading, Running
from probatum.study import Study
from probatum.tasks import classical as references
from probatum.train.baselines import training_for


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    n = 1200
    x = rng.normal(size=(n, 4))
    word = np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    y = np.where(x[:, 0] + (word == "a") + 0.3 * rng.normal(size=n) > 0.3, "yes", "no")
    columns = {f"x{j}": pa.array(x[:, j], mask=rng.random(n) < 0.05) for j in range(4)}
    path = tmp_path_factory.mktemp("study") / "data.parquet"
    pq.write_table(pa.table(columns | {"word": word, "y": y}), path, row_group_size=170)
    return path


def study(
    path: Path, *techniques: str, memory: int | str | None = None, timing: bool = True, references: bool = True
) -> Study:
    shared = {
        "judging": Judging(confirm=False, references=references),
        "running": Running(timing=timing),
        "reading": Reading(memory=memory),
    }
    return study_of(path, list(techniques), seeds=1, steps=30, **shared)


def test_a_study_on_streamed_data_runs_and_can_be_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBATUM_MEMORY", "1kB")
    found = study(path, "encouraging-loss", "h-calibration")
    assert found.dataset.streamed
    monkeypatch.delenv("PROBATUM_MEMORY")
    results = found.run()
    status = {(run.arm, run.kind): run.status for run in results.trials}
    assert status.pop(("nearest neighbours", "fit")) == "not applicable"
    assert set(status.values()) == {"ok"}
    assert {"baseline", "logistic regression", "gradient boosting", "temperature scaling"} <= {arm for arm, _ in status}
    again = study(path, "encouraging-loss", memory="1kB", timing=False).run()
    digests = {run.arm: run.record.get("digest") for run in results.trials if run.kind == "fit"}
    repeated = {run.arm: run.record.get("digest") for run in again.trials}
    assert repeated["baseline"] == digests["baseline"]
    assert repeated["encouraging-loss"] == digests["encouraging-loss"]
    source = found.summary()["source"]
    assert open_dataset(source["data"], Reading(memory=source["memory"]), target=source["target"]).streamed
    assert "row groups" not in {thread.name for thread in threading.enumerate()}


def test_what_reads_all_training_rows_is_refused_before_the_long_work(path: Path) -> None:
    for technique in ("gbnn", "cyclical-curriculum", "randomization-tests"):
        with pytest.raises(InputError, match=rf"{technique}.*streamed from disk.*--memory above"):
            study(path, technique, memory=1000)
    with pytest.raises(InputError, match=r"held-out loss: .*rows at once"):
        study(path, "outlier-scores", memory=1000)


def test_all_that_apply_leaves_out_what_does_not(path: Path) -> None:
    found = study(path, "gradient-noise", memory=1000)
    arms = (*found.plan.arms, make_arm("gbnn", found.plan.base))
    less = rehearsed(replace(found.context, plan=replace(found.plan, arms=arms)), auto=True)
    assert [arm.name for arm in less.arms] == ["gradient-noise"]
    assert "streamed from disk" in less.skipped["gbnn"]


def test_explainers_take_the_first_test_rows(path: Path) -> None:
    results = study(path, "integrated-gradients", memory=1000, timing=False).run()
    assert {run.status for run in results.trials} == {"ok"}


def test_references_are_those_of_the_rows_they_were_fitted_on(path: Path) -> None:
    a, b = (open_dataset(path, Reading(memory=memory)).prepare(0) for memory in (None, 1000))
    for name in ("logistic regression", "gradient boosting"):
        mine, theirs = (references.fit(name, data, 0).predict(data.test) for data in (a, b))
        assert torch.equal(mine, theirs)
    with pytest.raises(InputError, match="left out for data streamed"):
        references.fit("nearest neighbours", b, 0)
    few = drawn_rows(b.train, 50, 3)
    assert torch.equal(few.x, a.train.x[(a.train.rows[:, None] == few.rows).any(dim=1)])
    assert torch.equal(first_rows(b.test, 10).x, a.test.x[:10])


def test_streamed_and_resident_training_differ_only_in_the_order(path: Path) -> None:
    recipe = Recipe(training=training_for("table", "classes"))
    work = Work(
        Arm("baseline", recipe), "baseline", Terms(base=recipe), open_dataset(path, Reading(memory=1000)).prepare(0), 0
    )
    streamed = trial(work)
    resident = open_dataset(path).prepare(0)
    lazy = work.data.train.x

    class Same:
        """A tensor that is visited as the streamed rows are."""

        def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
            return resident.train.x[index]

        def order(self, generator: torch.Generator) -> torch.Tensor:
            return lazy.order(generator)  # type: ignore[attr-defined]

        def ahead(self, batches: object) -> None:
            pass

    data = replace(resident, train=replace(resident.train, x=Same()))  # type: ignore[arg-type]
    assert trial(replace(work, data=data)).digest == streamed.digest


def test_a_study_on_a_folder_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for code, kind in enumerate(("dark", "light")):
        (tmp_path / kind).mkdir()
        for number in range(40):
            pixels = rng.integers(100 * code, 156 + 100 * code, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    found = study(tmp_path, "gradient-noise", memory=1000, timing=False, references=False)
    assert found.dataset.streamed
    results = found.run()
    assert {run.status for run in results.trials} == {"ok"}
    resident = study(tmp_path, "gradient-noise", timing=False, references=False).run()
    # Images may be visited in any order, so it is the same one, and so are the weights.
    assert [t.record["digest"] for t in results.trials] == [t.record["digest"] for t in resident.trials]
    assert not multiprocessing.active_children()
