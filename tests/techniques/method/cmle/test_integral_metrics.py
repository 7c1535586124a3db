"""MMD and entropic transport against closed forms, brute force and another package."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from probatum.techniques.method.cmle.integral_metrics import linear_mmd, rbf_mmd, transport_cost

pytestmark = pytest.mark.fast


def samples(n: int, m: int, shift: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = torch.randn(n + m, 3, generator=g, dtype=torch.float64)
    return draw[:n], draw[n:] + shift


def test_linear_mmd_is_the_distance_of_means() -> None:
    a, b = samples(7, 5, 1.0)
    expected = sum((float(a[:, j].mean()) - float(b[:, j].mean())) ** 2 for j in range(3))
    assert float(linear_mmd(a, b)) == pytest.approx(expected)


def test_rbf_mmd_is_the_u_statistic() -> None:
    a, b = samples(6, 4, 0.5)

    def k(u: torch.Tensor, v: torch.Tensor) -> float:
        return math.exp(-float((u - v).square().sum()) / (2 * 0.7**2))

    own_a = np.mean([k(u, v) for u, v in itertools.permutations(a, 2)])
    own_b = np.mean([k(u, v) for u, v in itertools.permutations(b, 2)])
    cross = np.mean([k(u, v) for u in a for v in b])
    assert float(rbf_mmd(a, b, 0.7)) == pytest.approx(own_a + own_b - 2 * cross)


def test_rbf_mmd_of_equal_laws_is_nought_on_average() -> None:
    values = torch.stack([rbf_mmd(*samples(20, 30, seed=seed)) for seed in range(300)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 300**0.5
    assert float(values.min()) < 0  # an unbiased estimate falls on both sides
    assert float(rbf_mmd(*samples(60, 60, 2.0))) > 0.2


def test_small_regularisation_is_the_assignment() -> None:
    a, b = samples(9, 9, 1.0)
    cost = torch.cdist(a, b).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    found = float(transport_cost(a, b, reg=0.02, rounds=4000))
    assert found == pytest.approx(cost[rows, columns].mean(), rel=2e-2)


def test_transport_agrees_with_plain_sinkhorn() -> None:
    a, b = samples(12, 8, 0.5)
    cost = torch.cdist(a, b).square().numpy()
    kernel, v = np.exp(-cost / 0.8), np.ones(8)
    for _ in range(3000):
        u = (1 / 12) / (kernel @ v)
        v = (1 / 8) / (kernel.T @ u)
    expected = ((u[:, None] * kernel * v[None]) * cost).sum()
    assert float(transport_cost(a, b, reg=0.8, rounds=500)) == pytest.approx(expected, rel=1e-6)


def test_transport_agrees_with_pot() -> None:
    ot = pytest.importorskip("ot", reason="POT is the witness of entropic transport")
    a, b = samples(15, 11, 0.5)
    cost = torch.cdist(a, b).square().numpy()
    expected = float(ot.sinkhorn2(np.full(15, 1 / 15), np.full(11, 1 / 11), cost, 0.5, numItermax=5000, stopThr=1e-12))
    assert float(transport_cost(a, b, reg=0.5, rounds=1000)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("metric", [linear_mmd, rbf_mmd, transport_cost])
def test_gradients(metric: object) -> None:
    a, b = samples(5, 4, 0.5)
    torch.autograd.gradcheck(
        lambda u: metric(u, b, 1.0) if metric is rbf_mmd else metric(u, b),  # type: ignore[operator]
        (a.requires_grad_(),),
    )


def test_misuse_is_named() -> None:
    a, b = samples(3, 1)
    with pytest.raises(ValueError, match="3 and 1 rows"):
        rbf_mmd(a, b)
    with pytest.raises(ValueError, match="scale is 0"):
        rbf_mmd(a, a, 0)
    with pytest.raises(ValueError, match="reg is 0"):
        transport_cost(a, a, 0)
