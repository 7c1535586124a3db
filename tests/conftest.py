"""Shared: one small finished study, made once, and one torch thread everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from probatum import Study


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two arms on wine with everything switched on, run to its end."""
    folder: Path = tmp_path_factory.mktemp("study")
    arms = ["encouraging-loss", "h-calibration(window=20, steps=20)"]
    study = Study("wine", arms, seeds=6, epochs=4, batch_size=32, store=folder / "store.sqlite")
    study.run()
    return study
