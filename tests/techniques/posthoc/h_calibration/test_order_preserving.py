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


def test_piecewise_map_is_the_interpolation_of_its_heights() -> None:
    new = PiecewiseLinear(segments=3, reach=6.0)
    assert new.knots.tolist() == [0.0, 2.0, 4.0, 6.0]
    with torch.no_grad():
        new.raw.copy_(torch.tensor([0.5, 2.0, 0.25]).log())
    heights = np.array([0.0, 1.0, 5.0, 5.5])
    z = torch.tensor([[0.0, -1.5, -3.0], [0.0, -5.0, -0.2]], dtype=D)
    depth = -z.log_softmax(1).numpy()
    expected = torch.from_numpy(-np.interp(depth, [0.0, 2.0, 4.0, 6.0], heights)).softmax(1)
    torch.testing.assert_close(new(z).detach(), expected)
    last = new(torch.tensor([[0.0, -9.0]], dtype=D)).detach()  # the last slope goes on
    assert float(last[0, 1] / last[0, 0]) == pytest.approx(np.exp(-(5.0 + 0.25 * 5.0)), rel=1e-3)


def test_where_the_ensemble_and_the_grid_start() -> None:
    ensemble = EnsembleTemperature(3)
    assert ensemble.log_scale.tolist() == [-1.5, -0.5, 0.5]
    with torch.no_grad():
        ensemble.weight.copy_(torch.tensor([0.0, 0.0, 1.0]).log())
    torch.testing.assert_close(ensemble(draw(4, 3)).detach(), (draw(4, 3) * np.exp(0.5)).softmax(1))
    assert MonotoneNet(reach=8.0, cells=4).knots.tolist() == [0.0, 0.5, 2.0, 4.5, 8.0]
    assert len(MonotoneNet().knots) == 65


def test_slopes_of_a_net_of_one_unit() -> None:
    """Its input runs from -1 to 1 over the grid; three ELUs of 1 stay 1, of -1 they are expm1 of expm1 of expm1."""
    net = MonotoneNet(hidden=1, reach=3.0)
    with torch.no_grad():
        for value in (net.inner, net.middle, net.outer):
            value.fill_(1.0)
        for value in (net.inner_bias, net.middle_bias, net.outer_bias):
            value.zero_()
    slopes = net.slopes().detach()
    assert float(slopes[-1]) == pytest.approx(2.0)
    assert float(slopes[0]) == pytest.approx(1 + np.expm1(np.expm1(np.expm1(-1.0))))
    assert float(slopes.min()) > 0


def test_first_weights_come_from_the_generator_given() -> None:
    nets = [MonotoneNet(generator=g) for g in (None, *(torch.Generator().manual_seed(s) for s in (0, 1)))]
    assert torch.equal(nets[0].middle, nets[1].middle)
    assert not torch.equal(nets[1].middle, nets[2].middle)
    assert float(nets[0].middle.detach().std()) == pytest.approx(1 / 4, rel=0.2)
