"""Distances to straight and curved boundaries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probatum.techniques.select.outlier_scores.boundary import boundary_distance

pytestmark = pytest.mark.fast

D = torch.float64


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_distance_of_a_linear_binary_model() -> None:
    layer = nn.Linear(5, 2).to(D).eval()
    x = torch.randn(50, 5, dtype=D, generator=stream())
    y = layer(x).argmax(1)
    w, b = (layer.weight[1] - layer.weight[0]).detach(), (layer.bias[1] - layer.bias[0]).detach()
    expected = (x @ w + b).abs() / w.norm()
    torch.testing.assert_close(boundary_distance(layer, x, y), expected, atol=1e-6, rtol=0)
    assert not boundary_distance(layer, x, 1 - y).any()  # misclassified rows are at distance 0
    flat = nn.Linear(5, 2).to(D).eval()
    nn.init.zeros_(flat.weight)
    assert torch.isinf(boundary_distance(flat, x, flat(x).argmax(1))).all()


def test_distance_of_a_curved_boundary() -> None:
    def circle(z: Tensor) -> Tensor:  # class 1 outside the unit circle
        gap = z.square().sum(dim=1) - 1
        return torch.stack([-gap, gap], dim=1)

    x = torch.randn(60, 2, dtype=D, generator=stream())
    y = (x.norm(dim=1) > 1).long()
    found = boundary_distance(circle, x, y)
    torch.testing.assert_close(found, (x.norm(dim=1) - 1).abs(), atol=1e-5, rtol=0)
