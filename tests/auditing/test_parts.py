"""The audit's own computations against definitions and other packages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, fisher_exact
from torch import nn

from probatum import catalogue
from probatum.auditing.case import learned_features
from probatum.auditing.confidence import auroc_interval
from probatum.auditing.faults import FAULTS, advised, try_commands
from probatum.auditing.labels import confident_disagreement, contradictions
from probatum.auditing.shift import two_sample
from probatum.auditing.slices import _worse, holm
from probatum.auditing.subject import open_subject
from probatum.measure.outside import auroc
from probatum.rooms.kind import takes
from probatum.spec import Part, Spec


def noisy(n: int = 600, k: int = 4, rate: float = 0.15, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    logits = 3 * np.eye(k)[truth] + rng.normal(size=(n, k))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    hit = rng.random(n) < rate
    return p, np.where(hit, (truth + 1) % k, truth), hit


def test_confident_disagreement_against_cleanlab() -> None:
    cleanlab = pytest.importorskip("cleanlab.count", reason="cleanlab is the witness for confident learning")
    p, y, _ = noisy()
    _, rows = cleanlab.compute_confident_joint(y, p, calibrate=False, return_indices_of_off_diagonals=True)
    marked, instead = confident_disagreement(p, y)
    assert set(np.flatnonzero(marked)) == set(rows)
    assert (instead[~marked] == y[~marked]).all()


def test_surest_rows_show_the_rate_of_flips() -> None:
    p, y, hit = noisy(4000)
    rows, against = contradictions(p, y)
    assert len(rows) == pytest.approx(600, abs=2)
    assert p[rows].max(1).min() >= np.delete(p.max(1), rows).max()
    assert against.mean() == pytest.approx(0.15, abs=0.05)
    assert hit[rows[against]].mean() > 0.95


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert found == {"a": pytest.approx(0.04), "c": pytest.approx(0.09), "b": pytest.approx(0.09), "d": 0.5}


def test_slices_are_tested_exactly() -> None:
    right = np.array([1] * 80 + [0] * 20, dtype=float)
    mask = np.zeros(100, dtype=bool)
    mask[70:95] = True  # 10 right, 15 wrong
    theirs = fisher_exact([[15, 10], [5, 70]], alternative="greater").pvalue
    assert _worse(right, mask) == pytest.approx(theirs)


def test_interval_of_an_area_covers() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        area = auroc(rng.normal(1, 1, 80), rng.normal(0, 1, 60))
        low, high = auroc_interval(area, 80, 60)
        covered += low <= 0.7602 <= high  # P(N(1, 2) > 0)
    assert binomtest(covered, 200, 0.95).pvalue > 0.001


def test_two_sample_p_is_uniform_without_shift_and_small_with_one() -> None:
    p_same, p_moved = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        old, new = rng.normal(size=(120, 3)), rng.normal(size=(100, 3))
        p_same.append(two_sample(old, new, np.random.default_rng(0))[1])
        p_moved.append(two_sample(old, new + 1.0, np.random.default_rng(0))[1])
    assert 0.2 < np.mean(p_same) < 0.8
    assert max(p_moved) < 0.01


def test_advice_names_what_fits_by_tags_alone() -> None:
    spec = Spec("table", "classes", (3,), 2, numeric=3)
    for name, fault in FAULTS.items():
        for technique in advised([name], spec):
            card = catalogue.card(technique)
            assert set(card.tags) & set(fault.tags)
            assert not takes(card, "table", "classes")
    assert "cmle" not in advised(["shifted"], spec, most=99)  # it asks for the treatment's column
    assert "cape" in advised(["overconfident"], spec, most=99)
    assert "cape" not in advised(["overconfident"], replace(spec, outputs=3), most=99)
    assert "h-calibration" not in advised(["overconfident"], replace(spec, task="reals"), most=99)


def test_commands_are_split_by_arena() -> None:
    found = try_commands(["outlier-scores", "encouraging-loss"], "my data.csv", "y")
    assert found == [
        "probatum try encouraging-loss --data 'my data.csv' --target y",
        "probatum try outlier-scores --data 'my data.csv' --target y",
    ]


def test_learned_features_are_those_before_the_head_that_runs_last() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm = nn.Linear(8, 2), nn.BatchNorm1d(8)
            self.body = nn.Linear(3, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.body(x)).relu())

    model, x = HeadFirst().train(), torch.randn(9, 3)
    model.norm.eval()
    part = Part(x, torch.zeros(9, dtype=torch.int64), torch.arange(9))
    found = learned_features(open_subject(model), FakeRows(part))
    np.testing.assert_allclose(found, model.norm(model.body(x)).relu().detach().double().numpy(), rtol=1e-6)
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert not any(m._forward_pre_hooks for m in model.modules())


class FakeRows:
    """As much of rows as features need."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part)
