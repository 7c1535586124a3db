"""Order-preserving maps: where they start, and what they integrate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probatum.techniques.posthoc.h_calibration.order_preserving import (
    EnsembleTemperature,
    MonotoneNet,
    PiecewiseLinear,
    Temperature,
)

pytestmark = pytest.mark.fast

D = torch.float64


def draw(n: int, classes: int) -> torch.Tensor:
    return torch.randn(n, classes, dtype=D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("new", [PiecewiseLinear(reach=7.0), MonotoneNet(reach=7.0)])
def test_maps_start_at_the_identity(new: torch.nn.Module) -> None:
    logits = draw(50, 4)
    torch.testing.assert_close(new(logits), logits.softmax(1), atol=1e-6, rtol=0)


def test_monotone_net_is_the_integral_of_its_slopes() -> None:
    net = MonotoneNet(reach=5.0)
    torch.nn.init.normal_(net.outer, generator=torch.Generator().manual_seed(2))
    depth = torch.linspace(0.0, 8.0, 80001, dtype=D)
    slope = torch.from_numpy(np.interp(depth.numpy(), net.knots.numpy(), net.slopes().detach().numpy()))
    integral = torch.cumulative_trapezoid(slope, depth)
    z = torch.stack([torch.zeros_like(depth), -depth], dim=1)[1:70000]
    log_p = net(z).log().detach()  # two classes: the difference of log p is f(depth_2) - f(depth_1)
    depths = -z.log_softmax(1)
    at = [torch.from_numpy(np.interp(d.numpy(), depth[1:].numpy(), integral.numpy())) for d in depths.T]
    torch.testing.assert_close(log_p[100:, 0] - log_p[100:, 1], (at[1] - at[0])[100:], atol=1e-4, rtol=0)


def test_ensemble_of_one_is_temperature() -> None:
    logits = draw(20, 4)
    map_ = EnsembleTemperature(1)
    torch.testing.assert_close(map_(logits), (logits * map_.log_scale.exp()).softmax(1))


@pytest.mark.parametrize("new", [EnsembleTemperature(), PiecewiseLinear(reach=7.0), MonotoneNet(reach=7.0)])
def test_order_is_kept_far_outside_the_reach(new: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=D))
    logits = 10 * draw(200, 5)
    p = new(logits).detach()
    assert torch.equal(p.argsort(dim=1, stable=True)[:, -1], logits.argmax(1))
    torch.testing.assert_close(p.sum(1), torch.ones(200, dtype=D))


@pytest.mark.parametrize(
    "new", [Temperature(), EnsembleTemperature(), PiecewiseLinear(reach=7.0), MonotoneNet(reach=7.0)]
)
def test_a_class_that_is_out_of_the_question_stays_so(new: torch.nn.Module) -> None:
    logits = draw(6, 4)
    logits[::2, 1] = -torch.inf
    p = new(logits)
    assert not p[::2, 1].any()
    torch.testing.assert_close(p[::2][:, [0, 2, 3]], new(logits[::2][:, [0, 2, 3]]))
    torch.testing.assert_close(p.sum(1), torch.ones(6, dtype=D))
