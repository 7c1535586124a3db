"""What is shipped predicts what was tried, in another process, without pickle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_wine

from commands import told
from probatum import Study
from probatum.arenas.predict import arena as predict
from probatum.errors import InputError
from probatum.settings import Judging, Running
from probatum.ship.load import load
from processes import ran

FRAME = load_wine(as_frame=True).frame


def from_the_bench(study: Study, arm: str) -> torch.Tensor:
    """Probabilities on the first seed's test rows, straight from the bench."""
    chosen = next((a for a in study.plan.arms if a.name == arm), None)
    from probatum.recipe import Arm

    work = study.context.work(chosen or Arm(arm, study.plan.base), "" if chosen else arm, 0)
    return predict.fit(work).predict(work.data.test)


def raw_rows(study: Study) -> pl.DataFrame:
    """The first seed's test rows as a user would have them, target left out."""
    rows = study.context.data(0).test.rows.numpy()
    return (
        pl.from_pandas(FRAME.drop(columns="target"))
        .with_row_index()
        .filter(pl.col("index").is_in(rows))
        .drop("index")[np.argsort(np.argsort(rows)).tolist()]
    )


@pytest.mark.parametrize("arm", ["baseline", "encouraging-loss", "h-calibration(window=20, steps=20)"])
def test_round_trip_is_exact(small_study: Study, tmp_path: Path, arm: str) -> None:
    folder = small_study.ship(arm, tmp_path / "model")
    description = json.loads((folder / "model.json").read_text())
    assert description["digest"] == description["digest_in_study"]
    shipped = load(folder)
    part, _ = shipped.encode(raw_rows(small_study))
    torch.testing.assert_close(shipped.predict_part(part), from_the_bench(small_study, arm), atol=1e-6, rtol=0)
    assert not list(folder.rglob("*.pkl"))
    assert not list(folder.rglob("*.pt"))
    card = (folder / "README.md").read_text()
    assert small_study.results.answer() in card
    assert "| accuracy |" in card


def test_onnx_gives_the_same_outputs(small_study: Study, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="compares the export in ONNX Runtime")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    folder = small_study.ship("encouraging-loss", tmp_path / "model")
    assert json.loads((folder / "model.json").read_text())["onnx"]["written"]
    shipped = load(folder)
    part, _ = shipped.encode(raw_rows(small_study))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    theirs = session.run(None, {"x": part.x.numpy()})[0]
    np.testing.assert_allclose(theirs, shipped.predict_part(part).numpy(), atol=1e-5)


def test_predict_command_in_another_process(small_study: Study, tmp_path: Path) -> None:
    folder = small_study.ship("baseline", tmp_path / "model")
    raw_rows(small_study).write_csv(tmp_path / "new.csv")
    command = [sys.executable, "-m", "probatum", "predict", str(folder), "--data", str(tmp_path / "new.csv")]
    run = ran(*command, "--to", tmp_path / "out.parquet")
    assert run.returncode == 0, run.stderr
    frame = pl.read_parquet(tmp_path / "out.parquet")
    probabilities = frame.select(pl.col("^p.*$")).to_numpy()
    np.testing.assert_allclose(probabilities, from_the_bench(small_study, "baseline").numpy(), atol=1e-5)
    missing = raw_rows(small_study).drop("alcohol")
    missing.write_csv(tmp_path / "new.csv")
    run = told(*command[3:])
    assert run.returncode == 2
    assert "alcohol" in run.stderr


def test_learners_ship_too(tmp_path: Path) -> None:
    study = Study(
        "wine",
        ["gbnn(total=8, units=4)"],
        seeds=6,
        steps=2,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
    )
    folder = study.ship("gbnn(total=8, units=4)", tmp_path / "model")
    shipped = load(folder)
    part, _ = shipped.encode(raw_rows(study))
    torch.testing.assert_close(
        shipped.predict_part(part), from_the_bench(study, "gbnn(total=8, units=4)"), atol=1e-6, rtol=0
    )


def test_own_networks_need_their_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(13, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    study = Study(
        "wine",
        ["encouraging-loss"],
        model=network,
        seeds=6,
        steps=5,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
    )
    folder = study.ship("baseline", tmp_path / "model")
    with pytest.raises(InputError, match="network of your own"):
        load(folder)
    shipped = load(folder, model=network)
    part, _ = shipped.encode(raw_rows(study))
    torch.testing.assert_close(shipped.predict_part(part), from_the_bench(study, "baseline"), atol=1e-6, rtol=0)


def test_refusals(small_study: Study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no arm 'tabm'.*baseline"):
        small_study.ship("tabm", tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        small_study.ship("baseline", tmp_path / "full")
    with pytest.raises(InputError, match="not a folder that"):
        load(tmp_path / "full")
