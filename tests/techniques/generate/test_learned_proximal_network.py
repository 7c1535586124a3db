"""Learned proximal networks: exactly a proximal operator, its regulariser, plug-and-play at rest, misuse."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from probatum.numerics.images.restoration import Identity, Mask, binomial_blur
from probatum.spec import Budget
from probatum.techniques.generate.learned_proximal_network import (
    LearnedProximalNetwork,
    fit,
    matching_loss,
    sharpness,
    train,
    width_for,
)

SHAPES = [(5,), (2, 7), (1, 4, 4)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(shape: tuple[int, ...], **settings: object) -> LearnedProximalNetwork:
    """A network in double precision whose weights are far from their start."""
    made = {"noise": 0.5, "width": 12, "layers": 3, "beta": 5.0, "strong": 0.05, "generator": generator(), **settings}
    net = LearnedProximalNetwork(shape, **made).double()  # type: ignore[arg-type]
    draws = generator(9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.rand(p.shape, generator=draws, dtype=p.dtype))
    return net


def rows(n: int, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_jacobian_is_symmetric_and_positive(shape: tuple[int, ...]) -> None:
    net, size = network(shape), math.prod(shape)
    for y in rows(5, shape):
        J = torch.autograd.functional.jacobian(lambda v: net(v[None])[0], y).reshape(size, size)
        torch.testing.assert_close(J, J.T, atol=1e-10, rtol=0)
        assert torch.linalg.eigvalsh(J).min() >= net.strong - 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_f_is_the_gradient_of_psi_by_finite_differences(shape: tuple[int, ...]) -> None:
    net, y, v, h = network(shape), rows(3, shape), rows(3, shape, seed=2), 1e-5
    with torch.no_grad():
        slope = (net.psi(y + h * v) - net.psi(y - h * v)) / (2 * h)
    torch.testing.assert_close((net(y) * v).flatten(1).sum(dim=1), slope, atol=1e-7, rtol=1e-7)
    assert torch.equal(net.denoise(y), net(y).detach())


@pytest.mark.parametrize("shape", SHAPES)
def test_f_minimises_distance_plus_regulariser(shape: tuple[int, ...]) -> None:
    net, y = network(shape), rows(1, shape)
    best = net.denoise(y)
    lowest = net.regulariser(best) + 0.5 * (best - y).square().sum()
    spread = torch.logspace(-3, -0.3, 1000, dtype=torch.float64).view(-1, *[1] * len(shape))
    others = best + spread * rows(1000, shape, seed=3)
    values = net.regulariser(others) + 0.5 * (others - y).flatten(1).square().sum(dim=1)
    assert (values >= lowest - 1e-9).all()
    assert values.min() == pytest.approx(float(lowest), abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_inversion_undoes_f(shape: tuple[int, ...]) -> None:
    net, y = network(shape), 3 * rows(20, shape)
    torch.testing.assert_close(net.invert(net.denoise(y)), y, atol=1e-6, rtol=0)


def test_regulariser_in_one_dimension_by_quadrature() -> None:
    net = network((1,))
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None]
    slope = (net.invert(x) - x)[:, 0]  # f(y) = x means R'(x) = y - x
    integral = torch.cumulative_trapezoid(slope, x[:, 0])
    found = net.regulariser(x)
    torch.testing.assert_close(found[1:] - found[0], integral, atol=5e-6, rtol=0)


@pytest.mark.parametrize("solver", ["admm", "pgd"])
@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_plug_and_play_rests_where_the_objective_is_stationary(solver: str, ratio: float) -> None:
    shape = (1, 4, 4)
    net = network(shape, solver=solver, width=6, layers=2, iterations=300)
    keep = (rows(3, shape, seed=4) > 0).double()
    for operator in (Mask(keep), binomial_blur(), Identity()):
        b = rows(3, shape)
        found = net.solve(b, operator, ratio * net.noise)
        assert found.moved < 1e-9
        slope = net.invert(found.x) - found.x
        torch.testing.assert_close(found.dual, slope, atol=1e-6, rtol=0)
        residual = operator.adjoint(operator.apply(found.x) - b) / ratio**2 + slope
        assert residual.abs().max() < 1e-6


def test_denoising_at_the_trained_level_is_one_pass_and_a_point_of_rest() -> None:
    net, b = network((5,), iterations=500), rows(4, (5,))
    assert torch.equal(net.restore(b, Identity()), net.denoise(b))
    torch.testing.assert_close(net.solve(b, Identity()).x, net.denoise(b), atol=1e-6, rtol=0)
    assert not torch.allclose(net.restore(b, Identity(), 2 * net.noise), net.denoise(b), atol=1e-3)


def test_matching_loss_by_hand_and_its_limit() -> None:
    found, true = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert float(matching_loss(found, true, 2.0)) == pytest.approx((1 - math.exp(-0.5)) / 2)
    c = 1e3  # far above the residuals it is the squared error over c^2
    assert c**2 * float(matching_loss(found, true, c)) == pytest.approx(1.0, rel=1e-3)


def test_matching_loss_has_the_right_gradients() -> None:
    net = network((3,), width=4, layers=2)
    x, y = rows(4, (3,)), rows(4, (3,), seed=5)
    names = [name for name, _ in net.named_parameters()]

    def loss(*weights: Tensor) -> Tensor:
        return matching_loss(torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (y,)), x, 1.5)

    weights = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    assert torch.autograd.gradcheck(loss, weights)


def test_c_is_halved() -> None:
    assert sharpness(8, 0.1, 4) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    assert sharpness(1, 0.1, 4) == pytest.approx([0.8])


@pytest.mark.parametrize("loss", ["matching", "l1", "l2"])
def test_training_keeps_psi_convex_and_lowers_the_error(loss: str) -> None:
    draws = generator(2)
    net = LearnedProximalNetwork((2,), 0.5, width=16, layers=2, generator=generator())
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])

    def draw() -> Tensor:
        return corners[torch.randint(2, (64,), generator=draws)]

    x = draw()
    y = x + 0.5 * torch.randn(x.shape, generator=draws)
    before = (y - x).square().mean()
    train(net, draw, 200, generator=draws, loss=loss)
    net.check_convex()
    assert (net.denoise(y) - x).square().mean() < 0.7 * before


def test_saved_weights_give_the_same_network_and_negative_ones_are_refused() -> None:
    net, other = network((5,)), network((5,), generator=generator(3))
    y = rows(3, (5,))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.denoise(y), other.denoise(y))
    state = net.state_dict()
    state["mixes.1"] = state["mixes.1"].clone()
    state["mixes.1"][0, 0] = -0.25
    with pytest.raises(ValueError, match=r"mixes\.1 has the weight -0\.25"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="at least 0"):
        other.regulariser(y)
    other.clamp_()
    other.check_convex()


def test_networks_can_be_pickled_and_copied() -> None:
    net, y = network((2, 7)), rows(3, (2, 7))
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(other.denoise(y), net.denoise(y))
        state = other.state_dict()
        state["last"] = state["last"] - 10.0
        with pytest.raises(ValueError, match="last has the weight"):
            other.load_state_dict(state)
        net.check_convex()


def test_relu_cannot_be_inverted() -> None:
    net, x = network((5,), activation="relu"), rows(3, (5,))
    assert torch.isfinite(net.denoise(x)).all()
    with pytest.raises(ValueError, match="activation is 'relu'"):
        net.invert(x)
    with pytest.raises(ValueError, match="use softplus"):
        net.regulariser(x)


def test_an_inversion_that_does_not_get_there_says_so() -> None:
    with pytest.raises(ValueError, match="after 1 Newton steps"):
        network((5,)).invert(100 * rows(3, (5,)), iterations=1)


def test_proximal_gradient_descent_refuses_less_noise_than_it_was_trained_for() -> None:
    net = network((5,), solver="pgd")
    with pytest.raises(ValueError, match="use ADMM"):
        net.restore(rows(2, (5,)), Mask(torch.ones(1, 5)), 0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise": 0.0}, "noise is 0"),
        ({"beta": -1.0}, "beta is -1"),
        ({"strong": 0.0}, "strong is 0"),
        ({"width": 0}, "width is 0"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"solver": "hqs"}, "solver is 'hqs'"),
    ],
)
def test_networks_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        network((5,), **settings)


def test_shapes_and_training_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="give \\(d,\\)"):
        network((1, 2, 3, 4))
    for settings, words in (({"loss": "l3"}, "loss is 'l3'"), ({"c": 0.0}, "c is 0"), ({"first": 1.5}, "first is 1.5")):
        with pytest.raises(ValueError, match=words):
            fit(torch.zeros(8, 3), 0.1, Budget(2, 4, 2), generator(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "layers"), [((30,), 3), ((30,), 1), ((2, 24), 3), ((1, 8, 8), 3), ((3, 16, 16), 2)])
def test_widths_give_the_weights_asked_for(shape: tuple[int, ...], layers: int) -> None:
    width = width_for(20_000, shape, layers)
    net = LearnedProximalNetwork(shape, 0.1, width=width, layers=layers, generator=generator())
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(20_000, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_fitted_in_single(dtype: torch.dtype) -> None:
    x = torch.rand(40, 3, generator=generator(5)).to(dtype)
    half, single = (fit(rows, 0.1, Budget(6, 8, 5), generator(1), width=6) for rows in (x, x.float()))
    for a, b in zip(half.parameters(), single.parameters(), strict=True):
        assert torch.equal(a, b.to(dtype))


def test_fit_draws_from_its_generator_alone() -> None:
    x, state = torch.rand(40, 1, 4, 4, generator=generator(5)), torch.get_rng_state()
    first, second = (fit(x, 0.1, Budget(6, 8, 5), generator(1), width=6) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
