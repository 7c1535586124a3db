"""Temperature scaling against scipy's scalar minimiser."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from probatum.numerics.calibration.temperature import RANGE, fit_temperature

pytestmark = pytest.mark.fast


def sample(scale: float, n: int = 500, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(n, classes, generator=generator)
    target = torch.multinomial((1.5 * logits).softmax(1), 1, generator=generator).squeeze(1)
    return scale * logits, target


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_equals_scipy(scale: float) -> None:
    logits, target = sample(scale)
    best = minimize_scalar(
        lambda t: float(F.cross_entropy(logits.double() / t, target)),
        bounds=RANGE,
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logits, target) == pytest.approx(best.x, rel=1e-4)


def test_scales_with_the_logits() -> None:
    logits, target = sample(1.0)
    assert fit_temperature(7 * logits.double(), target) == pytest.approx(
        7 * fit_temperature(logits.double(), target), rel=1e-8
    )


def test_ends_of_the_range() -> None:
    logits = 4.0 * torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == RANGE[0]
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == RANGE[1]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 3\) and \(2,\)"):
        fit_temperature(torch.eye(3), torch.arange(2))
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(torch.eye(3) / 0, torch.arange(3))
