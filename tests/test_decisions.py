"""How decisions are counted: truth by the trials that are not judged, and what counts as missing it."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from benchmark_files import benchmark


@pytest.fixture(scope="module")
def decisions() -> ModuleType:
    return benchmark("decisions")


def test_truth_and_its_error_chunk_by_chunk(decisions: ModuleType) -> None:
    told = decisions.TRIALS - decisions.JUDGED
    right = np.random.default_rng(0).random((3, told, 900)) < np.array([0.6, 0.7, 0.7])[:, None, None]
    sums = decisions.Truth(3)
    for rows in np.array_split(np.arange(900), 7):
        sums.add(right[:, :, rows])
    gain, error = sums.found()
    x = right.astype(float) - right[0]
    assert gain == pytest.approx(x.mean(axis=(1, 2)))
    for arm in range(3):
        trials, rows = x[arm].mean(axis=1), x[arm].mean(axis=0)
        expected = trials.var(ddof=1) / told + rows.var() / 900
        assert error[arm] == pytest.approx(math.sqrt(expected))
    assert error[0] == 0


def test_an_interval_misses_a_truth_beyond_both_errors(decisions: ModuleType) -> None:
    assert not decisions._missed(-0.01, 0.01, 0.0099, 0.0)
    assert decisions._missed(-0.01, 0.01, 0.0101, 0.0)
    assert not decisions._missed(-0.01, 0.01, 0.0101, 0.002)
    assert decisions._missed(-0.01, 0.01, 0.0110, 0.002)  # sqrt(0.01^2 + 0.00392^2) = 0.01074
    assert not decisions._missed(-math.inf, math.inf, 0.5, 0.0)


def test_learners_are_judged_by_other_trials_than_tell_the_truth(
    decisions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner that answers by chance where it is judged, and rightly where the truth is told."""
    asked = []

    class Knowing:
        def __init__(self, answer: int) -> None:
            self.answer = answer

        def fit(self, x: np.ndarray, y: np.ndarray) -> Knowing:
            return self

        def predict(self, x: np.ndarray) -> np.ndarray:
            asked.append(len(x))
            return np.full(len(x), self.answer)

    monkeypatch.setattr(decisions, "_learners", lambda seed: {"none": Knowing(0), "all": Knowing(1)})
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 2)), np.arange(100) % 2
    new = rng.normal(size=(50, 2)), np.r_[np.ones(40, dtype=int), np.zeros(10, dtype=int)]
    rows = decisions.learners(x, y, new, 0)
    assert rows.right.shape[:2] == (2, decisions.JUDGED)
    assert len(rows.tested) == decisions.JUDGED
    assert asked.count(50) == 2 * (decisions.TRIALS - decisions.JUDGED)
    assert rows.truth[0].tolist() == pytest.approx([0.0, 0.6])
    assert rows.right[1].mean() == pytest.approx(0.5)
