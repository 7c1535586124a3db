"""Neural collapse terms: the simplex, invariances, brute force, the bench's form, misuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from probatum.checks.toy import toy
from probatum.claims.tools import fit
from probatum.errors import InputError
from probatum.recipe import Training
from probatum.spec import Batch, Budget, Part, Spec
from probatum.techniques.method.neural_collapse_longtail import (
    NeuralCollapse,
    between_class,
    centred_cosines,
    effective_weights,
    geometry,
    within_class,
)
from probatum.train.run import Run

pytestmark = pytest.mark.fast


def simplex(c: int, d: int, scale: float = 3.0) -> Tensor:
    corners = torch.eye(c, dtype=torch.float64) - 1 / c
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    return scale * (torch.cat([corners, torch.zeros(c, d - c, dtype=torch.float64)], dim=1) @ turn)


@pytest.mark.parametrize("variant", ["all", "each"])
@pytest.mark.parametrize("c", [2, 4, 7])
def test_the_simplex_has_the_widest_angle(variant: str, c: int) -> None:
    means = simplex(c, 8)
    best = -math.acos(max(-1 / (c - 1), -0.99999))
    assert float(between_class(means, variant)) == pytest.approx(best, abs=1e-6)
    moved = means + 0.3 * torch.randn(c, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(between_class(moved + 5.0, variant)) >= best - 1e-9  # and the mean of the means does not matter
    assert float(between_class(moved + 5.0, variant)) == pytest.approx(float(between_class(moved, variant)))


def test_between_by_brute_force() -> None:
    means = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    centre = means.mean(dim=0)
    cosine = nn.functional.cosine_similarity(means[:, None] - centre, means[None] - centre, dim=2)
    angles = [[math.acos(max(-1.0, min(1.0, value))) for value in row] for row in cosine.tolist()]
    nearest = [min(angles[i][j] for j in range(5) if j != i) for i in range(5)]
    assert float(between_class(means, "each")) == pytest.approx(-sum(nearest) / 5)
    assert float(between_class(means, "all")) == pytest.approx(-min(nearest))


def test_within_weighs_classes_alike_and_vanishes_at_the_means() -> None:
    means = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 2, 1, 0])  # class 3 is absent
    assert float(within_class(means[y], y, means)) == 0.0
    features = means[y] + torch.randn(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = sum(float((features[y == c] - means[c]).square().sum(dim=1).mean()) for c in (0, 1, 2)) / 4
    assert float(within_class(features, y, means)) == pytest.approx(expected)


def test_both_are_blind_to_a_common_rotation() -> None:
    own = torch.Generator().manual_seed(5)
    means, y = torch.randn(4, 6, generator=own, dtype=torch.float64), torch.arange(12) % 4
    features = means[y] + torch.randn(12, 6, generator=own, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=own, dtype=torch.float64)).Q
    assert float(within_class(features @ turn, y, means @ turn)) == pytest.approx(
        float(within_class(features, y, means))
    )
    assert float(between_class(means @ turn)) == pytest.approx(float(between_class(means)))


def test_gradients_are_finite_where_means_coincide() -> None:
    means = torch.ones(3, 4, dtype=torch.float64) + 1e-9 * torch.randn(3, 4, dtype=torch.float64)
    means.requires_grad_()
    between_class(means).backward()
    assert torch.isfinite(means.grad).all()
    free = torch.randn(4, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: between_class(m, "each"), (free,))


def test_descent_on_the_means_finds_the_simplex() -> None:
    means = nn.Parameter(torch.randn(5, 6, generator=torch.Generator().manual_seed(6)))
    optimizer = torch.optim.SGD([means], lr=0.1)
    for _ in range(800):
        optimizer.zero_grad()
        between_class(means, "each").backward()
        optimizer.step()
    off = centred_cosines(means.detach())[~torch.eye(5, dtype=torch.bool)]
    assert torch.allclose(off, torch.full_like(off, -0.25), atol=0.05)


def test_geometry_of_a_collapsed_network() -> None:
    means, y = simplex(4, 6), torch.arange(40) % 4
    found = geometry(means[y], y, means * 2)
    assert found.within == pytest.approx(0, abs=1e-12)
    assert found.spread == pytest.approx(0, abs=1e-12)
    assert found.duality == pytest.approx(0, abs=1e-9)
    assert found.angle == pytest.approx(math.acos(-1 / 3))
    noisy = means[y] + 0.1 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert geometry(noisy, y, means).within > 1e-4


def test_effective_weights_by_hand() -> None:
    counts = torch.tensor([100, 10, 0])
    found = effective_weights(counts, 0.9)
    a, b = 0.1 / (1 - 0.9**100), 0.1 / (1 - 0.9**10)
    assert found.tolist() == pytest.approx([2 * a / (a + b), 2 * b / (a + b), 0.0])
    assert effective_weights(counts, 0.0).tolist() == [1.0, 1.0, 0.0]


TRAINING = Training(steps=30, batch_size=16, lr=1e-2, select="last")


def test_on_the_bench_means_are_learned_and_features_collapse() -> None:
    data = toy("image", "classes")
    plain, run = (
        fit(arm, data, 0, training=TRAINING)
        for arm in (None, "neural-collapse-longtail(within=0.1, between=0.5, rate=0.1)")
    )
    assert run.notes["angle-of-means"] > 1.6  # three means: 2.09 at best
    assert not any(m._forward_pre_hooks for m in run.model.modules())
    assert any(not torch.equal(value, plain.model.state_dict()[name]) for name, value in run.model.state_dict().items())


def test_deferred_weights_act_when_their_time_has_come() -> None:
    data = toy("image", "classes")
    plain = fit(None, data, 0, training=TRAINING).model
    never, late = (
        fit(f"neural-collapse-longtail(within=0.0, between=0.0, drw={share})", data, 0, training=TRAINING).model
        for share in (1.0, 0.5)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), never.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), late.parameters(), strict=True))


def test_state_goes_on() -> None:
    first = NeuralCollapse(nn.Linear(4, 3), 3, torch.Generator().manual_seed(0))
    second = NeuralCollapse(nn.Linear(4, 3), 3, torch.Generator().manual_seed(9))
    between_class(first.means).backward()
    first.optimizer.step()
    state = first.state_dict()
    assert not state["means"].requires_grad
    second.load_state_dict(state)
    assert torch.equal(first.means, second.means)
    for method in (first, second):  # momentum goes on, too
        method.optimizer.zero_grad()
        between_class(method.means).backward()
        method.optimizer.step()
    assert torch.equal(first.means, second.means)


def test_misuse() -> None:
    NeuralCollapse(nn.Linear(2, 3), 3, torch.Generator())  # just wide enough
    with pytest.warns(UserWarning, match="features have 2 dimensions; 4 means"):
        NeuralCollapse(nn.Linear(2, 4), 4, torch.Generator())
    with pytest.warns(UserWarning, match="features have 3 dimensions; 10 means at equal angles need 9"):
        NeuralCollapse(nn.Linear(3, 10), 10, torch.Generator())
    with pytest.raises(ValueError, match="there is 1 class"):
        NeuralCollapse(nn.Linear(3, 1), 1, torch.Generator())
    with pytest.raises(ValueError, match="there is 1 class"):
        between_class(torch.ones(1, 3))
    with pytest.raises(ValueError, match="variant is 'some'"):
        between_class(torch.ones(2, 3), "some")
    with pytest.raises((ValueError, InputError), match="drw weighs plain cross-entropy"):
        fit("neural-collapse-longtail(drw=0.5)+encouraging-loss", toy("image", "classes"), 0, training=TRAINING)


def test_half_precision_has_the_gradient_of_float32_rounded() -> None:
    means = simplex(4, 6).bfloat16()
    means[1] = means[0] + 0.01 * means[1]  # two that nearly agree, where the edge of acos matters
    low, high = means.clone().requires_grad_(), means.float().requires_grad_()
    between_class(low).backward()
    between_class(high).backward()
    torch.testing.assert_close(low.grad, high.grad.bfloat16())
    features, y = torch.randn(300, 6).bfloat16(), torch.arange(300) % 4
    torch.testing.assert_close(
        within_class(features, y, means), within_class(features.float(), y, means.float()).bfloat16()
    )
    with pytest.raises(ValueError, match="the label 4"):
        within_class(features, y + 1, means)


def test_late_weights_leave_what_other_methods_added() -> None:
    data = toy("table", "classes")
    short = Training(epochs=2, batch_size=32)
    both = "deeply-supervised-nets+neural-collapse-longtail(within=0.0, between=0.0, drw=0.0)"
    alone = "neural-collapse-longtail(within=0.0, between=0.0, drw=0.0)"
    with_dsn, without = (fit(arm, data, 3, training=short).model.state_dict() for arm in (both, alone))
    assert any(not torch.equal(with_dsn[name], without[name]) for name in without)


class Net(nn.Module):
    """Features of four, and an objective of its own if that is asked for."""

    def __init__(self, extra: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        if extra:
            self.objective = lambda x, output, y, loss: loss(output, y) + extra * output.square().mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


class Behind(Net):
    """Goes on behind its last layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


SPEC = Spec("table", "classes", (5,), 3, numeric=5)


def run_of(model: nn.Module, loss: nn.Module, y: Tensor, steps: int = 10) -> Run:
    own = torch.Generator().manual_seed(4)
    part = Part(torch.randn(len(y), 5, generator=own), y, torch.arange(len(y)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Run(model, loss, optimizer, SPEC, part, part, Budget(steps, len(y), 1))


Y = torch.tensor([0, 0, 0, 0, 1, 2])


def looked_at(run: Run, method: NeuralCollapse) -> Tensor:
    run.pass_hooks, run.loss_hooks = [method.before_pass], [method.loss]
    run.batch = Batch(run.train.x, run.train.y, run.train.rows)
    return run.loss_of(run.batch)


@pytest.mark.parametrize("extra", [0.0, 0.7])
@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_late_weights_weigh_what_the_loss_is_made_of_and_leave_the_rest(extra: float, smoothing: float) -> None:
    net, smooth = Net(extra), nn.CrossEntropyLoss(label_smoothing=smoothing)
    run = run_of(net, smooth, Y)
    method = NeuralCollapse(net.head, 3, torch.Generator(), within=0.0, between=0.0, drw=0.3)
    method.prepare(run)
    output = net(run.train.x)
    each = torch.tensor([0.0001 / (1 - 0.9999**n) for n in (4, 1, 1)])
    weights = each * 3 / each.sum()
    rest = extra * output.square().mean()
    for step, expected in (
        (2, nn.functional.cross_entropy(output, Y, label_smoothing=smoothing)),
        (3, nn.functional.cross_entropy(output, Y, weights, label_smoothing=smoothing)),
        (9, nn.functional.cross_entropy(output, Y, weights, label_smoothing=smoothing)),
    ):
        run.step = step
        torch.testing.assert_close(looked_at(run, method), expected + rest)
    method.finish(run)
    assert smooth.weight is None
    with pytest.raises(ValueError, match="has weights already"):
        method.prepare(run_of(net, nn.CrossEntropyLoss(weight=torch.ones(3)), Y))


@pytest.mark.parametrize("variant", ["all", "each"])
def test_both_terms_are_added_by_their_weights(variant: str) -> None:
    net = Net()
    run = run_of(net, nn.CrossEntropyLoss(), Y)
    method = NeuralCollapse(net.head, 3, torch.Generator().manual_seed(1), within=0.3, between=0.07, variant=variant)
    method.prepare(run)
    features, means = net.body(run.train.x).tanh(), method.means.detach()
    square = (features - means[Y]).square().sum(dim=1)
    within = (square[:4].mean() + square[4] + square[5]) / 3
    m = means - means.mean(dim=0)
    angle = [[math.acos(float(m[i] @ m[j] / m[i].norm() / m[j].norm())) for j in range(3) if j != i] for i in range(3)]
    nearest = [min(row) for row in angle]
    apart = min(nearest) if variant == "all" else sum(nearest) / 3
    plain = nn.functional.cross_entropy(net(run.train.x), Y)
    torch.testing.assert_close(looked_at(run, method), plain + 0.3 * within - 0.07 * apart)
    hook = [lambda _r, _b, _o, loss: loss + 5.0]
    run.loss_hooks = [*hook, method.loss]
    torch.testing.assert_close(run.loss_of(run.batch), plain + 5.0 + 0.3 * within - 0.07 * apart)
    assert len(net.head._forward_hooks) == 1
    method.finish(run)
    assert not net.head._forward_hooks
    assert run.notes["angle-of-means"] == pytest.approx(min(nearest), rel=1e-5)


def test_means_move_by_their_own_falling_rate() -> None:
    net = Net()
    run = run_of(net, nn.CrossEntropyLoss(), Y, steps=8)
    method = NeuralCollapse(net.head, 3, torch.Generator().manual_seed(1), within=0.3, between=0.0, rate=0.4)
    method.prepare(run)
    before, x = method.means.detach().clone(), run.train.x
    method.step_end(run)
    assert torch.equal(method.means.detach(), before)  # no gradient yet
    looked_at(run, method).backward()
    run.second_pass()  # what a second pass leaves is its own gradient, not both
    slope = torch.stack([(before[c] - net.body(x).tanh()[c == Y].mean(dim=0)) * 2 * 0.3 / 3 for c in range(3)])
    torch.testing.assert_close(method.means.grad, slope.detach())
    run.step = 2
    method.step_end(run)
    rate = 0.4 * (1 + math.cos(math.pi / 4)) / 2
    torch.testing.assert_close(method.means.detach(), before - rate * slope.detach())
    looked_at(run, method).backward()
    second = method.means.grad.clone()
    run.step = 3
    held = method.means.detach().clone()
    method.step_end(run)
    rate = 0.4 * (1 + math.cos(3 * math.pi / 8)) / 2
    torch.testing.assert_close(method.means.detach(), held - rate * (0.9 * slope.detach() + second))


def test_rows_without_a_label_have_no_part() -> None:
    means = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, -100, 1, -100, 0, 1])
    kept = y != -100
    assert torch.equal(within_class(features, y, means), within_class(features[kept], y[kept], means))
    assert torch.equal(within_class(features, y[:, None], means), within_class(features, y, means))
    assert float(within_class(features[:1], y[1:2], means)) == 0.0
    with pytest.raises(ValueError, match="the label -1"):
        within_class(features, torch.full((6,), -1), means)


@pytest.mark.parametrize("kind", [Net, Behind])
def test_features_are_those_of_the_loops_own_pass(kind: type[Net]) -> None:
    net = kind()
    run = run_of(net, nn.CrossEntropyLoss(), Y)
    method = NeuralCollapse(net.head, 3, torch.Generator().manual_seed(1), within=0.3)
    method.prepare(run)
    plain = looked_at(run, method)

    def looks_elsewhere(run: Run, batch: Batch, _output: Tensor, loss: Tensor) -> Tensor:
        return loss + 0.0 * run.model(3 - batch.x).sum()

    for hooks in ([looks_elsewhere, method.loss], [method.loss, looks_elsewhere], [looks_elsewhere, method.loss]):
        run.loss_hooks = hooks
        torch.testing.assert_close(run.loss_of(run.batch), plain)


def test_autocast_does_not_round_the_angle() -> None:
    means = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = between_class(means)
    assert torch.equal(found, between_class(means))


def test_settings_out_of_range_are_named() -> None:
    for settings, told in (
        ({"within": -0.1}, r"within is -0\.1"),
        ({"between": float("inf")}, "between is inf"),
        ({"variant": "v1"}, "variant is 'v1'"),
        ({"rate": 0.0}, r"rate is 0\.0"),
        ({"drw": 1.5}, r"drw 1\.5"),
    ):
        with pytest.raises(ValueError, match=told):
            NeuralCollapse(nn.Linear(4, 3), 3, torch.Generator(), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"beta is 1\.0"):
        effective_weights(torch.tensor([1, 2]), 1.0)
