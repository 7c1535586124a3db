"""Temperature scaling against scipy's scalar minimiser."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from torch.nn import functional as F

from probatum.numerics.calibration import temperature
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


def _slope_at(logits: torch.Tensor, target: torch.Tensor, s: float) -> float:
    s_ = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(F.cross_entropy(s_ * logits.double(), target), s_)[0])


@pytest.mark.parametrize("classes", [2, 7, 40])
@pytest.mark.parametrize("scale", [0.03, 0.7, 5.0, 60.0])
def test_the_log_loss_turns_where_it_says(classes: int, scale: float) -> None:
    """The root of autograd's slope, by bisection."""
    logits, target = sample(scale, 300, classes)
    logits[::50] *= 30
    s = brentq(lambda s: _slope_at(logits, target, s), 1 / RANGE[1], 1 / RANGE[0], xtol=1e-15, rtol=1e-14)
    assert fit_temperature(logits, target) == pytest.approx(1 / s, rel=1e-10)


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    logits, target = sample(3.0)
    moved = logits.double() + torch.linspace(-1e4, 1e4, len(logits)).double()[:, None]
    assert fit_temperature(moved, target) == pytest.approx(fit_temperature(logits, target), rel=1e-9)


def test_few_looks_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    slope = temperature._slope
    monkeypatch.setattr(temperature, "_slope", lambda *given: looks.append(1) or slope(*given))
    logits, target = sample(3.0)
    fit_temperature(logits, target)
    assert len(looks) <= 8
    looks.clear()
    found = [fit_temperature(logits, target, max_steps=steps) for steps in (1, 2, 3)]
    assert len(looks) <= 6
    assert len(set(found)) == 3
    assert fit_temperature(logits, target, tolerance=1.0) != fit_temperature(logits, target)


def test_exactly_at_the_start_and_without_a_lean() -> None:
    honest = torch.tensor([[math.log(3.0), 0.0]] * 4, dtype=torch.float64)
    assert fit_temperature(honest, torch.tensor([0, 0, 0, 1])) == pytest.approx(1.0, rel=1e-12)
    assert (
        fit_temperature(torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)) == RANGE[1]
    )  # one class: nothing to tell
    assert fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == RANGE[1]
    assert fit_temperature(1e6 * torch.eye(3), torch.arange(3)) == RANGE[1]  # flat to the last bit
    assert fit_temperature(100 * torch.eye(3), torch.arange(3)) == RANGE[0]
    near = torch.tensor([[2.0, 0.0]] * 200)
    assert RANGE[0] < fit_temperature(near, torch.tensor([1] + [0] * 199)) < 1.0
