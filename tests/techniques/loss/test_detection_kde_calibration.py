"""Kernel calibration penalty: known errors, links by brute force, gradients, neutrality, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta, dirichlet
from torch.nn import functional as F

from probatum.numerics.calibration.kernel import kernel_calibration_error
from probatum.techniques.loss.detection_kde_calibration import (
    THRESHOLDS,
    KernelCalibrationLoss,
    detection_penalty,
)

pytestmark = pytest.mark.fast


def uniform(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_known_errors() -> None:
    s = uniform(2000)
    right = torch.ones(2000, dtype=torch.bool)
    # graded outcomes y = s^2: the integral of |s^2 - s| is 1/6
    found = detection_penalty(s, s**2, right, link="identity", bandwidth=0.01)
    assert float(found) == pytest.approx(1 / 6, abs=0.01)
    # outcomes drawn with probability s are calibrated, with probability s^2 they are not
    calibrated, off = ((uniform(2000, 1) < p).double() for p in (s, s**2))
    assert float(detection_penalty(s, calibrated, right, thresholds=[0.5])) < 0.03
    assert float(detection_penalty(s, off, right, thresholds=[0.5], bandwidth=0.01)) == pytest.approx(1 / 6, abs=0.02)


def test_constant_scores() -> None:
    # every kernel is the same: the leave-one-out mean of the others
    s, u = torch.full((40,), 0.8, dtype=torch.float64), (torch.arange(40) < 10).double()
    right = torch.ones(40, dtype=torch.bool)
    found = float(detection_penalty(s, u, right, thresholds=[0.5], bandwidth=0.1))
    assert found == pytest.approx(abs(float(u.mean()) - 0.8), abs=1e-2)
    assert found == pytest.approx(10 / 40 * abs(9 / 39 - 0.8) + 30 / 40 * abs(10 / 39 - 0.8))


def test_thresholds_are_averaged_over_errors_not_over_hits() -> None:
    s, u, right = uniform(60), uniform(60, 1), uniform(60, 2) < 0.7
    by_hand = [float(kernel_calibration_error(s, ((u >= t) & right).double(), 0.1)) for t in THRESHOLDS]
    assert float(detection_penalty(s, u, right, bandwidth=0.1)) == pytest.approx(sum(by_hand) / 10)
    averaged = torch.stack([((u >= t) & right).double() for t in THRESHOLDS]).mean(dim=0)
    assert float(kernel_calibration_error(s, averaged, 0.1)) < sum(by_hand) / 10


def test_the_identity_link_does_not_look_at_classes() -> None:
    s, u = uniform(30), uniform(30, 1)
    yes, no = torch.ones(30, dtype=torch.bool), torch.zeros(30, dtype=torch.bool)
    a, b = (detection_penalty(s, u, c, link="identity", bandwidth=0.1) for c in (yes, no))
    assert float(a) == float(b)
    c, d = (detection_penalty(s, u, c, bandwidth=0.1) for c in (yes, no))
    assert float(c) != float(d)


@pytest.mark.parametrize("link", ["threshold", "identity"])
def test_gradients(link: str) -> None:
    u, right = uniform(7, 1), torch.ones(7, dtype=torch.bool)
    s = (0.1 + 0.8 * uniform(7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: detection_penalty(t, u, right, link=link, bandwidth=0.2), (s,))
    none = detection_penalty(s, torch.zeros(7).double(), right, link=link, bandwidth=0.01)
    (gradient,) = torch.autograd.grad(none, s)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient > 0).any())  # nothing was hit: scores should fall


def test_the_loss_is_cross_entropy_plus_the_penalty() -> None:
    output = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.randint(4, (50,), generator=torch.Generator().manual_seed(1))
    plain = F.cross_entropy(output, target)
    assert torch.equal(KernelCalibrationLoss(weight=0.0)(output, target), plain)
    p = output.softmax(dim=1)
    top = kernel_calibration_error(p.amax(dim=1), (p.argmax(dim=1) == target).double(), 0.05)
    torch.testing.assert_close(KernelCalibrationLoss(weight=2.0)(output, target), plain + 2 * top)
    every = kernel_calibration_error(p, target, 0.05)
    torch.testing.assert_close(KernelCalibrationLoss(weight=2.0, per_class=True)(output, target), plain + 2 * every)
    assert torch.equal(KernelCalibrationLoss()(output[:1], target[:1]), F.cross_entropy(output[:1], target[:1]))
    soft = F.one_hot(target, 4).double()
    torch.testing.assert_close(KernelCalibrationLoss()(output, soft), KernelCalibrationLoss()(output, target))


def test_bad_input() -> None:
    right = torch.ones(2, dtype=torch.bool)
    half = torch.full((2,), 0.5)
    with pytest.raises(ValueError, match=r"span 0\.5 to 1\.5"):
        detection_penalty(torch.tensor([0.5, 1.5]), half, right)
    with pytest.raises(ValueError, match="IoU lies"):
        detection_penalty(half, torch.tensor([0.5, 1.2]), right)
    with pytest.raises(ValueError, match="two rows or more"):
        detection_penalty(half[:1], half[:1], right[:1])
    with pytest.raises(ValueError, match="link is 'box'"):
        detection_penalty(half, half, right, link="box")
    with pytest.raises(ValueError, match="thresholds is empty"):
        detection_penalty(half, half, right, thresholds=[])
    with pytest.raises(ValueError, match="weight is -1"):
        KernelCalibrationLoss(weight=-1)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        KernelCalibrationLoss(bandwidth=0)
    with pytest.raises(ValueError, match="power is 9"):
        KernelCalibrationLoss(power=9)


@pytest.mark.parametrize("per_class", [False, True])
def test_rows_without_a_label_are_neither_right_nor_wrong(per_class: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(80, 3, generator=generator), torch.randint(3, (80,), generator=generator)
    target[40:] = -100
    loss = KernelCalibrationLoss(1.0, 0.1, per_class)
    torch.testing.assert_close(loss(output, target), loss(output[:40], target[:40]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_gradient_of_float32_rounded(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    low = (4 * torch.randn(40, 3, generator=generator)).to(dtype).requires_grad_()
    high, target = low.detach().float().requires_grad_(), torch.randint(3, (40,), generator=generator)
    loss = KernelCalibrationLoss(1.0, 0.05)
    loss(low, target).backward()
    loss(high, target).backward()
    torch.testing.assert_close(low.grad, high.grad.to(dtype))


def left_out(scores: np.ndarray, outcomes: np.ndarray, width: float) -> np.ndarray:
    """E[outcome | score] at every row from all the others, by scipy's Beta density."""
    found = []
    for i, s in enumerate(scores):
        others = np.arange(len(scores)) != i
        k = beta.pdf(s, scores[others] / width + 1, (1 - scores[others]) / width + 1)
        found.append((k * outcomes[others]).sum() / k.sum())
    return np.array(found)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_both_links_by_scipy(power: int) -> None:
    s, u, right = 0.05 + 0.9 * uniform(12), uniform(12, 1), uniform(12, 2) < 0.6
    scores, overlaps, classes = s.numpy(), u.numpy(), right.numpy()
    settings = {"bandwidth": 0.15, "power": power}
    expected = (np.abs(left_out(scores, overlaps, 0.15) - scores) ** power).mean()
    assert float(detection_penalty(s, u, right, link="identity", **settings)) == pytest.approx(expected)
    gaps = [np.abs(left_out(scores, (overlaps >= t) & classes, 0.15) - scores) ** power for t in (0.3, 0.55)]
    assert float(detection_penalty(s, u, right, thresholds=(0.3, 0.55), **settings)) == pytest.approx(np.mean(gaps))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_loss_by_scipy(per_class: bool, power: int) -> None:
    generator = torch.Generator().manual_seed(3)
    output = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (9,), generator=generator)
    p, codes = output.softmax(dim=1).numpy(), target.numpy()
    plain = -np.log(p[np.arange(9), codes]).mean()
    if per_class:
        error = 0.0
        for i in range(9):
            k = np.array([dirichlet.pdf(p[i], p[j] / 0.2 + 1) if j != i else 0.0 for j in range(9)])
            error += (np.abs(k @ np.eye(3)[codes] / k.sum() - p[i]) ** power).sum() / 9
    else:
        top = p.max(axis=1)
        error = (np.abs(left_out(top, p.argmax(axis=1) == codes, 0.2) - top) ** power).mean()
    for weight in (0.7, 1.0):
        loss = KernelCalibrationLoss(weight, 0.2, per_class, power)
        assert float(loss(output, target)) == pytest.approx(plain + weight * error)
        assert float(loss(output, target[:, None])) == pytest.approx(plain + weight * error)


def test_one_threshold_score_at_its_ends_and_no_labels() -> None:
    s, u = torch.tensor([0.0, 1.0, 0.5, 0.5]), torch.tensor([0.5, 0.49, 1.0, 0.0])
    s.requires_grad_()
    right = torch.tensor([True, True, False, True])
    value = detection_penalty(s, u, right, thresholds=[0.5], bandwidth=0.5)
    value.backward()
    assert torch.isfinite(s.grad).all()
    hits = torch.tensor([1.0, 0.0, 0.0, 0.0])  # an overlap of the threshold itself is a hit
    torch.testing.assert_close(value, kernel_calibration_error(s, hits, 0.5))
    chosen = detection_penalty(s.detach(), u, right, link="identity")
    torch.testing.assert_close(chosen, kernel_calibration_error(s.detach(), u))
    assert torch.isnan(KernelCalibrationLoss()(torch.zeros(2, 3), torch.tensor([-100, -100])))
    with pytest.raises(ValueError, match=r"\(4,\), overlap \(3,\)"):
        detection_penalty(s, u[:3], right)
    for settings in ({"weight": float("inf")}, {"bandwidth": 11.0}, {"power": 5}, {"bandwidth": 9e-5}, {"power": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
            KernelCalibrationLoss(**settings)
    assert KernelCalibrationLoss(weight=0.0, bandwidth=10, power=4).weight == 0


@pytest.mark.parametrize("link", ["threshold", "identity"])
def test_overlaps_get_no_gradient(link: str) -> None:
    s, u = (0.1 + 0.8 * uniform(7)).requires_grad_(), uniform(7, 1).requires_grad_()
    detection_penalty(s, u, torch.ones(7, dtype=torch.bool), link=link, bandwidth=0.2).backward()
    assert s.grad is not None
    assert u.grad is None
