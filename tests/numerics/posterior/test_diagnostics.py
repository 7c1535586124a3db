"""Chain diagnostics against ArviZ, and on chains whose story is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from probatum.numerics.posterior import diagnostics

pytestmark = pytest.mark.fast


def chains(count: int = 4, length: int = 500, memory: float = 0.0, apart: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Autoregressive chains, each about a centre of its own."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, length, generator=draw, dtype=torch.float64)
    x = noise.clone()
    for t in range(1, length):
        x[:, t] = memory * x[:, t - 1] + math.sqrt(1 - memory**2) * noise[:, t]
    return x + apart * torch.arange(count)[:, None]


@pytest.mark.parametrize("case", [{}, {"memory": 0.8}, {"memory": -0.4}, {"apart": 1.0}, {"length": 101, "count": 2}])
def test_against_arviz(case: dict[str, float]) -> None:
    arviz = pytest.importorskip("arviz", reason="ArviZ is the witness")
    x = chains(**case)
    assert float(diagnostics.split_rhat(x)) == pytest.approx(float(arviz.rhat(x.numpy())), rel=1e-6)
    assert float(diagnostics.bulk_ess(x)) == pytest.approx(float(arviz.ess(x.numpy())), rel=1e-6)
    plain = float(arviz.ess(x.numpy(), method="mean"))
    assert float(diagnostics.ess(diagnostics.split(x))) == pytest.approx(plain, rel=1e-6)


def test_ties_and_tails_against_arviz() -> None:
    arviz = pytest.importorskip("arviz", reason="ArviZ is the witness")
    x = (3 * chains(seed=1)).round()
    wide = x * torch.tensor([1.0, 1.0, 1.0, 6.0], dtype=torch.float64)[:, None]  # equal centres, unequal spread
    for one in (x, wide):
        assert float(diagnostics.split_rhat(one)) == pytest.approx(float(arviz.rhat(one.numpy())), rel=1e-6)
    assert float(diagnostics.split_rhat(wide)) > 1.1


def test_effective_size_of_an_autoregression() -> None:
    x = chains(count=4, length=20000, memory=0.6)
    expected = 80000 * (1 - 0.6) / (1 + 0.6)
    assert float(diagnostics.bulk_ess(x)) == pytest.approx(expected, rel=0.05)


def test_between_and_within() -> None:
    x = chains(apart=2.0)
    between, within = diagnostics.between_within(x)
    assert float(between) == pytest.approx(np.var(x.numpy().mean(1), ddof=1))
    assert float(within) == pytest.approx(np.var(x.numpy(), axis=1, ddof=1).mean())
    expected = math.sqrt((499 / 500 * float(within) + float(between)) / float(within))
    assert float(diagnostics.plain_rhat(x)) == pytest.approx(expected)


def test_many_quantities_at_once() -> None:
    x = torch.stack([chains(seed=k, apart=k / 2) for k in range(3)], dim=2)
    for name in ("split_rhat", "bulk_ess"):
        one_by_one = [float(getattr(diagnostics, name)(x[:, :, k])) for k in range(3)]
        assert getattr(diagnostics, name)(x).tolist() == pytest.approx(one_by_one)


def test_what_cannot_be_diagnosed() -> None:
    with pytest.raises(ValueError, match="draws >= 4"):
        diagnostics.split_rhat(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="chains >= 2"):
        diagnostics.between_within(torch.zeros(1, 10))
    with pytest.raises(ValueError, match="not finite"):
        diagnostics.bulk_ess(torch.full((2, 10), math.nan))
    assert float(diagnostics.plain_rhat(torch.ones(2, 10))) == 1
    assert float(diagnostics.ess(torch.ones(2, 10))) == 20
