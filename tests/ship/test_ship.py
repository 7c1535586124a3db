"""What is shipped predicts what was tried, in another process, without pickle."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_wine

from commands import told
from probatum import Study
from probatum.arenas.predict import arena as predict
from probatum.arenas.predict import fit
from probatum.errors import InputError
from probatum.recipe import Recipe
from probatum.settings import Judging, Running
from probatum.ship import write
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


def quick(arm: str, **settings: object) -> Study:
    """A study of one arm on wine, a few steps long."""
    return Study(
        "wine",
        [arm],
        seeds=6,
        steps=8,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("arm", "chosen"), [("gbnn(total=8)", {"units": 1}), ("tabm", {"width": 16})])
def test_tuned_settings_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, chosen: dict[str, int]
) -> None:
    """A learner is fitted and a network built by what the tuner chose, not by what the arm began with."""

    def tuned(recipe: Recipe, *_: object) -> Recipe:
        return replace(
            recipe,
            **{
                slot: replace(use, settings={**use.settings, **chosen})
                for slot in ("model", "learner")
                if (use := getattr(recipe, slot)) is not None
            },
        )

    for module in (fit, write):
        monkeypatch.setattr(module, "tuned", tuned)
    monkeypatch.setattr(write, "export_onnx", lambda *_: {"written": False, "reason": "left out here"})
    study = quick(arm, tune=2)
    shipped = load(study.ship(arm, tmp_path / "model"))
    assert shipped.description["digest"] == shipped.description["digest_in_study"]
    assert shipped.description["recipe"]["techniques"][0]["settings"].items() >= chosen.items()
    part, _ = shipped.encode(raw_rows(study))
    torch.testing.assert_close(shipped.predict_part(part), from_the_bench(study, arm), atol=1e-6, rtol=0)


def test_a_learner_ships_with_its_calibrator(tmp_path: Path) -> None:
    study = quick("gbnn(total=4, units=1)+h-calibration(window=20, steps=20)")
    arm = study.plan.arms[0].name
    shipped = load(study.ship(arm, tmp_path / "model"))
    part, _ = shipped.encode(raw_rows(study))
    torch.testing.assert_close(shipped.predict_part(part), from_the_bench(study, arm), atol=1e-6, rtol=0)
    assert "logits" in load_file(tmp_path / "model" / "refit.safetensors")


class Hidden(torch.nn.Module):
    """Predicts by a number that is in no state."""

    def __init__(self) -> None:
        super().__init__()
        self.only, self.factor = torch.nn.Linear(13, 3), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.factor += 1.0
        return self.factor * self.only(x)


def test_a_network_that_would_predict_otherwise_is_not_shipped(tmp_path: Path) -> None:
    study = quick("encouraging-loss", model=lambda: Hidden())
    with pytest.raises(InputError, match=r"predicts otherwise once it is loaded again.*state_dict"):
        study.ship("baseline", tmp_path / "model")
    assert not list(tmp_path.iterdir())
