"""`probatum try --pretrain`: what it prints, what it refuses, and the shipped result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from commands import told
from probatum.data.open import open_dataset

SHORT = ["--seeds", "2", "--steps", "4", "--pretrain-steps", "5", "--no-timing", "--no-references", "--no-confirm"]


def probatum(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a folder, 100 columns wide."""
    return told(*words, cwd=cwd, env={"COLUMNS": "100", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of digits in colour-free images of other sizes."""
    made = tmp_path_factory.mktemp("fine")
    digits = open_dataset("digits").prepare(0)
    x, y = digits.train.x.numpy(), digits.train.y.numpy()
    np.savez(made / "source.npz", x=np.kron(x[:300], np.ones((1, 1, 2, 2), np.float32)), y=y[:300])
    np.savez(made / "target.npz", x=x[300:450], y=y[300:450])
    return made


def test_a_first_fine_tuning_study_and_its_shipping(folder: Path) -> None:
    arms = ["flora-tucker", "gradient-noise"]
    run = probatum("try", *arms, "--data", "target.npz", "--pretrain", "source.npz", *SHORT, cwd=folder)
    assert run.returncode == 4, run.stderr  # two seeds judge nothing
    assert "pretraining: step 5 of 5" in run.stdout
    assert "pretrained on source: 240 rows, 5 steps" in run.stdout
    assert "100 % of the body copied, the last layer is new" in " ".join(run.stdout.split())
    assert "new: head.weight 10x64, head.bias 10" in run.stdout
    assert max(len(line) for line in run.stdout.splitlines() if "/" not in line) <= 100
    again = probatum("try", *arms, "--data", "target.npz", "--pretrain", "source.npz", *SHORT, cwd=folder)
    assert "6 of 6 trials are in the store already" in again.stdout
    assert "pretraining" not in again.stdout
    page = next((folder / "probatum-runs").glob("*.html")).read_text(encoding="utf-8")
    assert "--pretrain" in page
    assert "--pretrain-steps 5" in page
    ship = probatum("ship", "probatum-runs/store.sqlite", "--arm", "flora-tucker", "--to", "model", cwd=folder)
    assert ship.returncode == 4, ship.stderr
    assert "the very weights of the study" in ship.stderr
    assert "Pretrained on source" in (folder / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["flora-tucker"], "flora-tucker adapts a pretrained network; give data to pretrain on by --pretrain"),
        (
            ["gradient-noise", "--pretrain", "iris"],
            "iris is table data and target is image; pretrain on data of the same modality",
        ),
        (["gradient-noise", "--pretrained", "nowhere.pt"], "do not exist; check the path"),
        (["gradient-noise", "--pretrain", "nowhere"], "no data called 'nowhere'"),
        (["gradient-noise", "--pretrain", "target.npz"], "is the target itself"),
    ],
)
def test_one_clear_line(folder: Path, words: list[str], says: str) -> None:
    run = probatum("try", *words, "--data", "target.npz", "--seeds", "2", cwd=folder)
    assert run.returncode == 2
    assert says in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
