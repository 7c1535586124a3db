"""Calibration errors against hand-made examples, brute force, netcal and data that are calibrated by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probatum.measure.calibration import calibration, reliability, squared_error

pytestmark = pytest.mark.fast


def draw(n: int, k: int, seed: int, sharpen: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes drawn from the very probabilities, which are then sharpened to be overconfident."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return (sharpen * logits).softmax(1), y


def test_by_hand() -> None:
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    # bins of width a quarter: 0.6 and 0.7 fall into (0.5, 0.75], both right; 0.8 and 0.9 into (0.75, 1], one right
    assert calibration(p, y, bins=4)["ece"] == pytest.approx(0.5 * 0.35 + 0.5 * 0.35)
    assert reliability(p, y, bins=4) == {
        "centre": [0.625, 0.875],
        "confidence": pytest.approx([0.65, 0.85]),
        "accuracy": [1.0, 0.5],
        "count": [2, 2],
    }
    # one bin: mean confidence 0.75 equals accuracy 0.75
    assert calibration(p, y, bins=1)["ece"] == pytest.approx(0.0)
    # class 0 has 0.9 0.8 | 0.7 | 0.4 -> bins (.75,1]: .85 vs .5; (.5,.75]: .7 vs 1; (.25,.5]: .4 vs 0
    # class 1 has 0.1 0.2 | 0.3 | 0.6 -> bins [0,.25]: .15 vs .5; (.25,.5]: .3 vs 0; (.5,.75]: .6 vs 1
    assert calibration(p, y, bins=4)["ece-classwise"] == pytest.approx((0.35 * 2 + 0.3 + 0.4) / 4)


def test_debiased_estimate_by_hand() -> None:
    confidence, right = np.array([0.6, 0.6, 0.6, 0.6]), np.array([1.0, 1.0, 1.0, 0.0])
    assert squared_error(confidence, right, 1) == pytest.approx(0.15**2 - 0.75 * 0.25 / 3)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_against_netcal(equal_mass: bool) -> None:
    netcal = pytest.importorskip("netcal.metrics", reason="netcal is the witness for the calibration error")
    p, y = draw(1000, 4, seed=1, sharpen=2.0)
    name = "ece-equal-mass" if equal_mass else "ece"
    theirs = netcal.ECE(bins=10, equal_intervals=not equal_mass).measure(p.numpy(), y.numpy())
    assert calibration(p, y, bins=10)[name] == pytest.approx(theirs, abs=2e-3 if equal_mass else 1e-9)


def test_against_torchmetrics() -> None:
    from torchmetrics.functional import calibration_error

    p, y = draw(700, 3, seed=2, sharpen=0.5)
    theirs = float(calibration_error(p, y, "multiclass", n_bins=15, norm="l1", num_classes=3))
    assert calibration(p, y)["ece"] == pytest.approx(theirs, abs=1e-6)


def test_equal_mass_bins_by_brute_force() -> None:
    p, y = draw(1000, 3, seed=3, sharpen=2.0)
    order = p.max(1).values.argsort()
    gaps = [abs((p.argmax(1) == y)[rows].double().mean() - p.max(1).values[rows].mean()) for rows in order.chunk(10)]
    assert calibration(p, y, bins=10)["ece-equal-mass"] == pytest.approx(float(torch.stack(gaps).mean()), abs=1e-9)


def test_debiased_estimate_is_about_zero_on_calibrated_data_and_ece_is_not() -> None:
    estimates, plain = [], []
    for seed in range(200):
        p, y = draw(300, 3, seed)
        top, right = p.max(1).values.numpy(), (p.argmax(1) == y).double().numpy()
        estimates.append(squared_error(top, right, 15))
        plain.append(calibration(p, y)["ece"])
    error = np.std(estimates) / np.sqrt(len(estimates))
    print(f"debiased squared error {np.mean(estimates):.5f} +- {error:.5f}; plain ECE {np.mean(plain):.3f}")
    assert abs(np.mean(estimates)) < 4 * error
    assert np.mean(plain) > 0.03


def test_debiased_estimate_finds_a_known_error() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 0.9, size=200_000)
    right = (generator.uniform(size=len(confidence)) < confidence - 0.1).astype(float)
    assert squared_error(confidence, right, 15) == pytest.approx(0.01, abs=6e-4)


def test_order_of_rows_and_ties_do_not_matter() -> None:
    p = torch.tensor([[0.7, 0.3]] * 60)
    y = torch.cat([torch.zeros(42), torch.ones(18)]).long()  # sorted by outcome; as right as it says
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    found = calibration(p, y)
    assert found == pytest.approx(calibration(p, y[mixed]))
    assert found["ece-equal-mass"] == pytest.approx(0.0, abs=1e-6)
    assert found["calibration-rms-debiased"] == 0.0


def test_extremes_and_bad_input() -> None:
    found = calibration(torch.eye(3), torch.tensor([0, 1, 2]))
    assert found == dict.fromkeys(found, 0.0)
    assert sum(reliability(torch.eye(3), torch.tensor([0, 1, 1]))["count"]) == 3
    with pytest.raises(ValueError, match="bins is 0"):
        calibration(torch.eye(2), torch.tensor([0, 1]), bins=0)
    with pytest.raises(ValueError, match="softmax"):
        calibration(3 * torch.eye(2), torch.tensor([0, 1]))


def test_further_errors() -> None:
    from torchmetrics.functional import calibration_error

    from probatum.measure.calibration import further
    from probatum.numerics.calibration.reliability import ks_error

    p, y = draw(900, 3, seed=5, sharpen=2.0)
    found = further(p, y)
    theirs = float(calibration_error(p, y, "multiclass", n_bins=15, norm="max", num_classes=3))
    assert found["mce"] == pytest.approx(theirs, abs=1e-6)
    assert calibration(p, y)["ece"] <= found["mce"]
    top, right = p.max(1).values.numpy(), (p.argmax(1) == y).double().numpy()
    order = np.argsort(top)
    assert ks_error(top, right) == pytest.approx(abs(np.cumsum((top - right)[order])).max() / 900)
    assert found["ks"] <= abs(top - right).mean()  # one bin a row
    assert found["kernel"] == pytest.approx(calibration(p, y)["ece"], abs=0.03)
    assert found["kernel-canonical"] > found["kernel"]
    # rows of one confidence are one step, in whatever order they come
    assert ks_error(np.full(4, 0.5), np.array([1.0, 0, 0, 1])) == 0.0


def test_interval_and_test_of_calibration() -> None:
    from probatum.measure.calibration import error_interval, if_calibrated

    rng = np.random.default_rng(0)
    low_ends, p_values, p_off, covered = [], [], [], 0
    truth = 0.1  # confidence is accuracy + 0.1 everywhere
    for seed in range(40):
        confidence = np.random.default_rng(seed).uniform(0.55, 0.85, 500)
        drawn = np.random.default_rng(100 + seed).random(500)
        good, off = (drawn < confidence).astype(float), (drawn < confidence - truth).astype(float)
        low_ends.append(error_interval(confidence, good, rng, draws=60)[1])
        p_values.append(if_calibrated(confidence, good, rng, draws=60))
        square, low, high = error_interval(confidence, off, rng, draws=60)
        covered += low <= truth <= high
        assert low <= square <= high
        p_off.append(if_calibrated(confidence, off, rng, draws=60))
    assert covered >= 36
    assert np.mean(np.array(p_off) < 0.05) > 0.9
    assert np.mean(np.array(low_ends) > 0.03) <= 0.05
    assert 0.3 < np.mean(p_values) < 0.7
    with pytest.raises(ValueError, match="draws is 2"):
        error_interval(np.ones(3), np.ones(3), rng, draws=2)
