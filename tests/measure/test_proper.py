"""Proper scores, groups and boxes against closed forms, scikit-learn, Monte Carlo, statsmodels' formula and netcal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics

from probatum.measure import boxes as detected
from probatum.measure.groups import group_accuracy, wilson
from probatum.measure.proper import brier, brier_parts, crps_ensemble, crps_gaussian, log_loss, spherical
from probatum.numerics.images.boxes import iou, match_boxes

pytestmark = pytest.mark.fast


def rows(n: int = 500, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(k), n)
    return p, np.array([rng.choice(k, p=row) for row in p])


def test_scores_against_scikit_learn() -> None:
    p, y = rows()
    assert log_loss(p, y).mean() == pytest.approx(metrics.log_loss(y, p))
    p2, y2 = rows(k=2)
    assert brier(p2, y2).mean() / 2 == pytest.approx(metrics.brier_score_loss(y2, p2[:, 1]))


def test_spherical_score_is_proper() -> None:
    truth = np.array([0.6, 0.3, 0.1])

    def expected(p: np.ndarray) -> float:
        return sum(truth[k] * float(spherical(p[None], np.array([k]))[0]) for k in range(3))

    best = expected(truth)
    assert best == pytest.approx(np.linalg.norm(truth))
    rng = np.random.default_rng(0)
    assert all(expected(rng.dirichlet(np.ones(3))) <= best for _ in range(200))


@pytest.mark.parametrize("mass", [False, True])
def test_brier_parts_add_up(mass: bool) -> None:
    p, y = rows()
    parts = brier_parts(p, y, 10, mass=mass)
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within"]
    assert total == pytest.approx(brier(p, y).mean())
    # probabilities that take few values: nothing is lost within bins, and base rates have neither gap nor resolution
    q = np.round(rows(k=2)[0] * 5) / 5
    q[:, 1] = 1 - q[:, 0]
    y2 = rows(k=2)[1]
    assert brier_parts(q, y2, 50)["within"] == pytest.approx(0, abs=1e-12)
    base = np.tile([(y2 == 0).mean(), (y2 == 1).mean()], (len(y2), 1))
    parts = brier_parts(base, y2)
    assert parts["reliability"] == pytest.approx(0)
    assert parts["resolution"] == pytest.approx(0)


def test_crps_of_gaussians_by_quadrature() -> None:
    from scipy.stats import norm

    grid = np.linspace(-30, 30, 200_001)
    for mean, std, y in ((0.0, 1.0, 0.3), (2.0, 0.5, -1.0)):
        square = (norm.cdf(grid, mean, std) - (grid >= y)) ** 2
        found = crps_gaussian(np.array([mean]), np.array([std]), np.array([y]))[0]
        assert found == pytest.approx(np.trapezoid(square, grid), abs=1e-3)
    with pytest.raises(ValueError, match="above 0"):
        crps_gaussian(np.zeros(1), np.zeros(1), np.zeros(1))


def test_crps_of_ensembles_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    draws, y = rng.normal(size=(6, 4)), rng.normal(size=4)
    pairs = np.abs(draws[:, None] - draws[None]).sum((0, 1))
    near = np.abs(draws - y).mean(0)
    np.testing.assert_allclose(crps_ensemble(draws, y), near - pairs / (2 * 36))
    np.testing.assert_allclose(crps_ensemble(draws, y, fair=True), near - pairs / (2 * 30))
    many = rng.normal(size=(4000, 1))
    exact = crps_gaussian(np.zeros(1), np.ones(1), np.array([0.7]))
    np.testing.assert_allclose(crps_ensemble(many, np.array([0.7])), exact, atol=0.02)
    with pytest.raises(ValueError, match="S at least 2"):
        crps_ensemble(draws[:1], y, fair=True)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (3, 17), (90, 100)])
def test_wilson_against_scipy(right: int, n: int) -> None:
    theirs = binomtest(right, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(right, n), (theirs.low, theirs.high), atol=1e-12)


def test_groups_by_hand() -> None:
    found = group_accuracy(np.array([1, 1, 0, 1, 0, 0]), ["a", "a", "a", "b", "b", "b"])
    assert [(g.name, g.rows, g.right) for g in found.found] == [("a", 3, 2), ("b", 3, 1)]
    assert found.worst.name == "b"
    assert found.gap == pytest.approx(0.5 - 1 / 3)
    assert found.mean == pytest.approx(0.5)
    assert (found.worst.low, found.worst.high) == wilson(1, 3)
    with pytest.raises(ValueError, match="group names"):
        group_accuracy(np.ones(2), ["a"])
    with pytest.raises(ValueError, match="rows >= 1"):
        wilson(1, 0)


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 0, 0]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]])
    torch.testing.assert_close(iou(a, b), torch.tensor([[1 / 7, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="second corner"):
        iou(torch.tensor([[1.0, 0, 0, 1]]), b)
    with pytest.raises(ValueError, match="boxes"):
        iou(torch.zeros(2, 3), b)


def test_matching_is_one_to_one_in_order_of_scores() -> None:
    overlap = torch.tensor([[0.9, 0.6], [0.8, 0.55], [0.7, 0.0], [0.3, 0.3]])
    match, reached = match_boxes(overlap, torch.tensor([0.5, 0.9, 0.7, 0.8]))
    assert match.tolist() == [1, 0, -1, -1]  # the surest takes box 0; its duplicates get what is left
    torch.testing.assert_close(reached, torch.tensor([0.6, 0.8, 0.0, 0.0]))
    other = torch.tensor([[False, True], [False, True], [True, True], [True, True]])
    match, _ = match_boxes(overlap, torch.tensor([0.5, 0.9, 0.7, 0.8]), same_class=other)
    assert match.tolist() == [-1, 1, 0, -1]
    assert match_boxes(torch.zeros(2, 0), torch.ones(2))[0].tolist() == [-1, -1]
    with pytest.raises(ValueError, match="IoU lies"):
        match_boxes(torch.tensor([[1.2]]), torch.ones(1))


def test_detection_error_against_netcal() -> None:
    netcal = pytest.importorskip("netcal.metrics", reason="netcal is the witness for D-ECE")
    rng = np.random.default_rng(0)
    confidence, place = rng.random(600), rng.random((600, 2))
    hit = (rng.random(600) < confidence**2).astype(float)
    ours = detected.detection_calibration_error(confidence, hit, place, bins=[5, 3, 3])
    points = np.concatenate([confidence[:, None], place], axis=1)
    theirs = netcal.ECE(bins=[5, 3, 3], detection=True).measure(points, hit)
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_detection_error_by_hand() -> None:
    hit = detected.matched(np.array([0.72, 0.0, 0.97]), np.array([True, True, False]))
    np.testing.assert_allclose(hit, [0.5, 0.0, 0.0])
    found = detected.detection_calibration_error(np.array([0.9, 0.2, 0.95]), hit, bins=2)
    assert found == pytest.approx((abs(0.5 - 1.85) + 0.2) / 3)
    with pytest.raises(ValueError, match="they lie in"):
        detected.detection_calibration_error(np.array([1.2]), np.array([1.0]))
