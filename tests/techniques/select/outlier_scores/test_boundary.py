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


def test_steps_go_a_little_past_the_linearised_boundary_row_by_row() -> None:
    layer, asked = nn.Linear(5, 3).to(D).eval(), []

    def spy(z: Tensor) -> Tensor:
        asked.append(z.detach().clone())
        return layer(z)

    x = torch.randn(7, 5, dtype=D, generator=stream(3))
    y = layer(x).argmax(1)
    boundary_distance(spy, x, y, steps=1, halvings=3)
    output = layer(x).detach()
    for row, point in enumerate(asked[2]):  # after the look at x and the linearisation
        own = int(y[row])
        rival = int(output[row].scatter(0, y[row], -torch.inf).argmax())
        w = (layer.weight[own] - layer.weight[rival]).detach()
        torch.testing.assert_close(point, x[row] - 1.05 * (output[row, own] - output[row, rival]) / (w @ w) * w)
    outside, inside = asked[2], x
    halves = [inside + 0.5 * (outside - inside)]  # three halvings between what is inside and what is not
    torch.testing.assert_close(asked[3], halves[0])
    left = layer(halves[0]).argmax(1) != y
    torch.testing.assert_close(asked[4], inside + torch.where(left, 0.25, 0.75)[:, None] * (outside - inside))


def test_a_network_that_begins_in_place_and_one_row_at_a_time() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).to(D).eval()
    plain, spoiling = nn.Sequential(nn.ELU(), body), nn.Sequential(nn.ELU(inplace=True), body)
    x = torch.randn(20, 2, dtype=D, generator=stream(4))
    before, y = x.clone(), plain(x).argmax(1)
    whole = boundary_distance(plain, x, y)
    torch.testing.assert_close(boundary_distance(spoiling, x, y), whole)
    assert torch.equal(x, before)
    single = torch.cat([boundary_distance(plain, x[i : i + 1], y[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(single, whole)
