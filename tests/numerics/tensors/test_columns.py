"""Which columns vary: in every unit, and by more than the rounding of what they hold."""

from __future__ import annotations

import pytest
import torch

from probatum.numerics.tensors.columns import varying

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_vary_in_every_unit(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, 3.0], dtype=dtype)
    columns = torch.stack([unit * x for unit in (1e-12, 1e-7, 1e-3, 1.0, 1e9)] + [x + 1e4, 1e-3 * x + 1e4], dim=1)
    assert varying(columns).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_and_rounding_do_not_vary(dtype: torch.dtype) -> None:
    still = torch.tensor([[0.0, 0.1, 1e12, 1.7e9, -1e-9]], dtype=dtype).expand(1000, -1)
    assert not varying(still).any()
    eps = torch.finfo(dtype).eps
    noise = 0.3 * (1 + eps * (torch.arange(6, dtype=dtype) % 2))[:, None]
    assert not varying(noise).any()
    assert not varying(-noise).any()  # rounding is as large below 0
    assert not varying(still[:1]).any()
