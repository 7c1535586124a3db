"""Energy guidance: the losses by hand, completeness, second derivatives, boxes, the bench's form, misuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probatum.checks.toy import toy
from probatum.claims.tools import fit
from probatum.errors import InputError
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Batch
from probatum.techniques.method.energy_guidance import (
    LOSSES,
    EnergyGuidance,
    attribution,
    box_iou,
    check_boxes,
    localisation_losses,
    masks_of,
    pareto,
)
from probatum.train.assemble import assemble
from probatum.train.loop import train


def maps(n: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n, 4, 5, dtype=torch.float64)
    mask[:, 1:3, 1:4] = 1.0
    return torch.randn(n, 4, 5, generator=own, dtype=torch.float64), mask


def test_losses_by_loop() -> None:
    a, m = maps()
    for k in range(3):
        positive = [[max(float(v), 0.0) for v in row] for row in a[k]]
        top = max(map(max, positive))
        inside = [(i, j) for i in range(4) for j in range(5) if m[k, i, j]]
        outside = [(i, j) for i in range(4) for j in range(5) if not m[k, i, j]]
        energy = 1 - sum(positive[i][j] for i, j in inside) / sum(map(sum, positive))
        rrr = sum(float(a[k, i, j]) ** 2 for i, j in outside)
        l1 = sum(abs(positive[i][j] / top - float(m[k, i, j])) for i in range(4) for j in range(5)) / 20
        ppce = sum(-math.log(max(positive[i][j] / top, 1e-6)) for i, j in inside) / len(inside)
        for name, expected in (("energy", energy), ("rrr", rrr), ("l1", l1), ("ppce", ppce)):
            assert float(localisation_losses(a, m, name)[0][k]) == pytest.approx(expected), name


def test_energy_lies_between_its_ends_and_knows_no_scale() -> None:
    a, m = maps()
    each, there = localisation_losses(a, m)
    assert bool(((each >= 0) & (each <= 1)).all())
    assert torch.allclose(localisation_losses(7.5 * a, m)[0], each)
    assert localisation_losses(a * m, m)[0].abs().max() < 1e-12
    nothing = -a.abs()
    for name in ("energy", "l1", "ppce"):
        each, there = localisation_losses(nothing, m, name)
        assert not there.any()
        assert each.abs().max() == 0


def test_masks_are_resized_to_the_map() -> None:
    _, m = maps()
    small = torch.rand(3, 2, 2, dtype=torch.float64)
    each, _ = localisation_losses(small, m)
    assert bool(((each > 0) & (each < 1)).all())


def test_input_times_gradient_sums_to_the_logit_without_biases() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4, bias=False)
    ).double()
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    found = attribution(net, x, y).flatten(1).sum(dim=1)
    assert torch.allclose(found, net(x).gather(1, y[:, None]).squeeze(1))


def test_layer_maps_are_grad_cam() -> None:
    torch.manual_seed(0)
    first, rest = nn.Conv2d(1, 3, 3), nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4))
    net = nn.Sequential(first, rest)
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([1, 2])
    seen = first(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(rest(seen).gather(1, y[:, None]).sum(), seen)
    expected = (seen * slope.mean(dim=(2, 3), keepdim=True)).sum(dim=1)
    assert torch.allclose(attribution(net, x, y, "0"), expected, atol=1e-6)
    assert not first._forward_hooks


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_differentiates_through_the_map(loss: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(2), nn.Flatten(), nn.Linear(2 * 4, 2)).double()
    x, y = torch.rand(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1])
    mask = torch.zeros(2, 4, 4, dtype=torch.float64)
    mask[:, :2] = 1.0

    def value(weight: Tensor) -> Tensor:
        def call(rows: Tensor) -> Tensor:
            return torch.func.functional_call(net, {"0.weight": weight}, (rows,))

        wrapped: Any = call
        return localisation_losses(attribution(wrapped, x, y, create_graph=True), mask, loss)[0].sum()

    assert torch.autograd.gradcheck(value, (net[0].weight.detach().clone().requires_grad_(),), atol=1e-5)


def test_iou_and_pareto() -> None:
    a = torch.tensor([[[1.0, 0.9], [0.1, -5.0]]])
    m = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert float(box_iou(a, m)) == pytest.approx(1 / 3)
    assert pareto([(0.9, 0.1), (0.8, 0.5), (0.7, 0.4), (0.9, 0.2)]) == [3, 1]


def test_boxes_become_unions() -> None:
    found = masks_of(torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 3.0, 2.0]]), torch.tensor([1, 1]), 2, 4, 5)
    assert found[0].sum() == 0
    assert found[1].sum() == 2 + 4 - 1


TRAINING = Training(steps=60, batch_size=16, lr=1e-2, select="last")


def test_on_the_bench_energy_moves_into_the_region() -> None:
    data = toy("image", "classes")
    plain = fit(None, data, 0, training=TRAINING).model
    guided = fit("energy-guidance(region=[0.0, 0.0, 1.0, 0.5], weight=1.0)", data, 0, training=TRAINING)
    mask = torch.zeros(len(data.test), 8, 8)
    mask[:, :4] = 1.0

    def inside(model: nn.Module) -> float:
        each, there = localisation_losses(attribution(model.eval(), data.test.x, data.test.y).detach(), mask)
        return 1 - float(each[there].mean())

    assert inside(guided.model) > inside(plain) + 0.1
    assert guided.extra_passes == 60 * 16
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in guided.model.parameters())


def test_boxes_of_no_image_are_told() -> None:
    with pytest.raises(ValueError, match="1 boxes and 2 rows"):
        masks_of(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([0, 1]), 2, 4, 5)


def test_few_boxes_by_row() -> None:
    data = toy("image", "classes")
    boxes = {int(row): [0, 0, 8, 4] for row in data.train.rows[:40]}
    parts = assemble(alone(Recipe(training=TRAINING), data, 0))
    guide = EnergyGuidance(torch.Generator().manual_seed(0), 1.0, boxes=boxes, annotated=0.25)
    train(parts.run, [guide], torch.Generator().manual_seed(1), schedule="cosine", select="last")
    assert parts.run.notes["rows-with-boxes"] == 10
    assert 0 < parts.run.extra_passes < 60 * 16 * 0.5
    assert guide.mask is None


def test_misuse() -> None:
    with pytest.raises(ValueError, match=r"box 1 is \[3\.0, 0\.0, 9\.0, 2\.0\], outside the image of 8 x 6"):
        check_boxes(torch.tensor([[0.0, 0.0, 2.0, 2.0], [3.0, 0.0, 9.0, 2.0]]), 6, 8)
    with pytest.raises(ValueError, match=r"box 0 .* shares of the image; give pixels"):
        check_boxes(torch.tensor([[0.1, 0.2, 0.6, 0.9]]), 6, 8)
    with pytest.raises(ValueError, match="give boxes by row, or one region"):
        EnergyGuidance(torch.Generator())
    with pytest.raises(ValueError, match="region is"):
        EnergyGuidance(torch.Generator(), region=[0.5, 0.0, 0.2, 1.0])
    parts = assemble(alone(Recipe(training=TRAINING), toy("image", "classes"), 0))
    nobody = EnergyGuidance(torch.Generator(), boxes={10**6: [0, 0, 1, 1]})
    with pytest.raises((ValueError, InputError), match="none of which is a training row"):
        nobody.prepare(parts.run)
    with pytest.raises(ValueError, match="loss is 'dice'"):
        localisation_losses(*maps(), "dice")


def test_a_layer_before_an_activation_in_place_and_frozen_modes() -> None:
    torch.manual_seed(0)

    def net(inplace: bool) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(3 * 36, 4)
        )  # fmt: skip

    plain, spoiling = net(False).eval(), net(True).eval()
    spoiling.load_state_dict(plain.state_dict())
    x, target = torch.randn(5, 1, 8, 8), torch.arange(5) % 4
    torch.testing.assert_close(attribution(spoiling, x, target, "1"), attribution(plain, x, target, "1"))
    torch.testing.assert_close(
        attribution(spoiling, x, target, "1", create_graph=True), attribution(plain, x, target, "1", create_graph=True)
    )
    plain.train()
    plain[1].eval()
    data = toy("image", "classes")
    recipe = Recipe(training=Training(steps=3, batch_size=16))
    parts = assemble(alone(recipe, data, 0))
    norm = next(m for m in parts.run.model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.eval()
    method = EnergyGuidance(torch.Generator(), region=[0.25, 0.25, 0.75, 0.75])
    method.prepare(parts.run)
    parts.run.model.train()
    norm.eval()
    batch = Batch(data.train.x[:8], data.train.y[:8], torch.arange(8))
    output = parts.run.model(batch.x)
    method.loss(parts.run, batch, output, output.sum())
    assert not norm.training
    assert parts.run.model.training


def test_a_network_that_begins_in_place() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 2)).double()
    spoiling = nn.Sequential(nn.ReLU(inplace=True), *plain[1:])
    x, target = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    before = x.clone()
    torch.testing.assert_close(attribution(spoiling, x, target), attribution(plain, x, target))
    assert torch.equal(x, before)


def test_thin_boxes_keep_a_pixel() -> None:
    thin = [
        [3.1, 0.0, 3.4, 2.0],
        [3.6, 1.0, 3.9, 3.0],
        [0.0, 3.7, 5.0, 4.0],
        [4.8, 0.2, 5.0, 0.4],
        [1.4, 0.0, 2.6, 4.0],
    ]
    found = masks_of(torch.tensor(thin), torch.arange(5), 5, 4, 5)
    places = [[tuple(place) for place in mask.nonzero().tolist()] for mask in found]
    assert places[0] == [(0, 3), (1, 3)]
    assert places[1] == [(1, 3), (2, 3)]
    assert places[2] == [(3, x) for x in range(5)]
    assert places[3] == [(0, 4)]
    assert places[4] == [(y, x) for y in range(4) for x in (1, 2)]


def bench(**settings: Any) -> tuple[EnergyGuidance, Any, Batch, Tensor]:
    """The method on 24 rows of a run, not yet trained, and the output for them."""
    data = toy("image", "classes")
    parts = assemble(alone(Recipe(training=TRAINING), data, 0))
    method = EnergyGuidance(torch.Generator().manual_seed(0), **settings)
    method.prepare(parts.run)
    index = torch.arange(5, 29)
    batch = Batch(parts.run.train.x[index], parts.run.train.y[index], index)
    return method, parts.run, batch, parts.run.model.eval()(batch.x)


@pytest.mark.parametrize("scale_up", [True, False])
def test_the_loss_on_the_bench_by_value(scale_up: bool) -> None:
    settings = {"weight": 0.7, "loss": "l1", "annotated": 0.25, "region": [0.0, 0.25, 0.01, 1.0], "scale_up": scale_up}
    method, run, batch, output = bench(**settings)
    assert method.mask is not None
    assert method.used is not None
    assert method.mask[0].nonzero().tolist() == [[y, 0] for y in range(2, 8)]  # a region thinner than half a pixel
    assert int(method.used.sum()) == round(0.25 * len(run.train)) == run.notes["rows-with-boxes"]
    mine = [i for i in range(24) if method.used[5 + i]]
    assert 0 < len(mine) < 24
    a = attribution(run.model, batch.x[mine], batch.y[mine]).detach()
    total = 0.0
    for one in a:
        positive = one.clamp(min=0) / one.max()
        total += float((positive - method.mask[0]).abs().mean())
    extra = total / len(mine) if scale_up else total / 24
    before = run.extra_passes
    found = method.loss(run, batch, output, torch.tensor(2.0))
    assert float(found.detach()) == pytest.approx(2 + 0.7 * extra, rel=1e-5)
    assert run.extra_passes - before == len(mine)


def test_state_is_put_back() -> None:
    method, run, batch, output = bench(weight=0.7, annotated=0.25, region=[0.0, 0.0, 0.5, 0.5])
    again = EnergyGuidance(torch.Generator().manual_seed(9), 0.7, annotated=0.25, region=[0.0, 0.0, 0.5, 0.5])
    again.prepare(run)
    assert not torch.equal(again.used, method.used)
    again.load_state_dict(method.state_dict())
    loss = torch.tensor(2.0)
    assert torch.equal(again.loss(run, batch, output, loss), method.loss(run, batch, output, loss))
    assert torch.equal(torch.rand(3, generator=again.generator), torch.rand(3, generator=method.generator))


def test_masks_are_shared_out_by_area_and_maps_that_say_nothing_are_left_out() -> None:
    a = torch.tensor([[[1.0, 3.0], [0.0, 4.0]], [[-1.0, -2.0], [0.0, 0.0]]], dtype=torch.float64)
    m = torch.zeros(2, 4, 4, dtype=torch.float64)
    m[:, 0, 2:] = m[:, 3, 3] = 1.0  # halves the upper right cell, a quarter of the lower right one
    each, there = localisation_losses(a, m)
    assert there.tolist() == [True, False]
    assert each.tolist() == pytest.approx([1 - (0.5 * 3 + 0.25 * 4) / 8, 0.0])
    assert localisation_losses(a, m, "rrr")[0].tolist() == pytest.approx([1 + 0.5 * 9 + 0.75 * 16, 1 + 0.5 * 4])
    each, there = localisation_losses(torch.full((1, 2, 2), 2e-8), torch.eye(2)[None])
    assert (each.tolist(), there.tolist()) == ([0.0], [False])
    assert localisation_losses(torch.full((1, 2, 2), 3e-8), torch.eye(2)[None])[1].tolist() == [True]


def test_iou_at_other_shares() -> None:
    a = torch.tensor([[[1.0, 0.7], [0.25, -5.0]]])
    m = torch.tensor([[[1.0, 0.0], [0.6, 0.4]]])
    assert [float(box_iou(a, m, share)) for share in (0.25, 0.5, 0.7, 0.71, 1.0)] == pytest.approx(
        [2 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    )


def test_half_precision_does_not_overflow_and_labels_are_checked() -> None:
    a, m = torch.full((1, 64, 64), 60.0), torch.zeros(1, 64, 64)
    m[:, :24] = 1.0
    assert localisation_losses(a.half(), m.half())[0].tolist() == [0.625]  # the sum of the map is 245,760
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    x = torch.rand(3, 1, 6, 6)
    for target in (torch.tensor([0, 1, -1]), torch.tensor([0, 3, 1]), torch.tensor([0, -100, 1])):
        for layer in (None, "0"):
            with pytest.raises(ValueError, match=f"the label {int(target[(target < 0) | (target > 2)])}"):
                attribution(net, x, target, layer)


class _Square(nn.Module):
    """Class 0 is the sum of squares of the pixels, class 1 three times their sum."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.square().flatten(1).sum(dim=1), 3 * x.flatten(1).sum(dim=1)], dim=1)


def test_integrated_gradients_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0], [0.0, -3.0]]], [[[0.5, 0.0], [4.0, 1.0]]]], dtype=torch.float64)
    found = attribution(_Square(), x, torch.tensor([0, 1]), points=4)
    # midpoints are exact for a quadratic: x * mean of 2 a x over a = x^2, half of input x gradient
    assert torch.allclose(found[0], torch.tensor([[1.0, 4.0], [0.0, 9.0]], dtype=torch.float64))
    assert torch.allclose(found[1], 3 * x[1, 0])
    assert torch.allclose(attribution(_Square(), x, torch.tensor([0, 1]))[0], 2 * x[0, 0].square())


def test_integrated_gradients_sum_to_what_the_image_adds() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(5), nn.Flatten(), nn.Linear(3 * 36, 4)).double()
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    added = (net(x) - net(torch.zeros_like(x))).gather(1, y[:, None]).squeeze(1)
    assert torch.allclose(attribution(net, x, y, points=64).flatten(1).sum(dim=1), added, atol=1e-4)


def test_the_loss_on_integrated_gradients_in_training_and_its_cost() -> None:
    data = toy("image", "classes")
    parts = assemble(alone(Recipe(training=Training(steps=3, batch_size=16)), data, 0))
    guide = EnergyGuidance(
        torch.Generator().manual_seed(0), 0.7, "rrr", region=[0.0, 0.0, 1.0, 0.5], annotated=1.0, points=3
    )
    guide.prepare(parts.run)
    x, y = data.train.x[:5], data.train.y[:5]
    run = parts.run
    before = run.extra_passes
    loss = guide.loss(run, Batch(x, y, torch.arange(5)), run.model(x), torch.tensor(2.0))
    run.model.eval()
    found = attribution(run.model, x, y, points=3)
    height = found.shape[1]
    outside = found[:, round(height / 2) :].square().flatten(1).sum(dim=1).mean()
    assert float(loss.detach()) == pytest.approx(2.0 + 0.7 * float(outside), rel=1e-5)
    assert run.extra_passes - before == 15


@pytest.mark.parametrize(("points", "layer"), [(-1, None), (2, "0")])
def test_a_path_is_of_the_input_alone(points: int, layer: str | None) -> None:
    with pytest.raises(ValueError, match=f"points is {points}"):
        EnergyGuidance(torch.Generator(), region=[0.0, 0.0, 1.0, 0.5], layer=layer, points=points)


def test_a_path_through_a_layer_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(ValueError, match="points is 2 for layer '0'"):
        attribution(net, torch.ones(1, 1, 8, 8), torch.tensor([0]), "0", points=2)


@pytest.mark.parametrize("points", [0, 3])
def test_labels_may_stand_in_a_column(points: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(72, 3))
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 1, 0])
    assert torch.equal(attribution(net, x, y[:, None], points=points), attribution(net, x, y, points=points))


@pytest.mark.parametrize("points", [0, 2])
def test_rows_without_a_label_are_not_guided(points: int) -> None:
    method, run, batch, output = bench(weight=0.7, region=[0.0, 0.0, 0.5, 0.5], points=points, scale_up=False)
    y = batch.y.clone()
    y[[0, 3, 7]] = -100
    kept = (y >= 0).nonzero().squeeze(1)
    before = run.extra_passes
    found = method.loss(run, batch._replace(y=y), output, torch.tensor(2.0))
    assert run.extra_passes - before == 21 * max(1, points)
    own = method.loss(run, Batch(*(value[kept] for value in batch)), output[kept], torch.tensor(0.0))
    assert float(found.detach()) == pytest.approx(2 + float(own.detach()) * 21 / 24, rel=1e-5)
    nothing = method.loss(run, batch._replace(y=torch.full_like(y, -100)), output, torch.tensor(2.0))
    assert float(nothing) == 2.0


def test_the_loss_on_a_path_differentiates_through_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(2), nn.Flatten(), nn.Linear(8, 2)).double()
    x, y, mask = torch.rand(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1]), torch.zeros(2, 4, 4).double()
    mask[:, :2] = 1.0

    def value() -> Tensor:
        return localisation_losses(attribution(net, x, y, create_graph=True, points=3), mask)[0].sum()

    (slope,) = torch.autograd.grad(value(), net[0].weight)
    for place in ((0, 0, 0, 0), (1, 0, 2, 1)):
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                net[0].weight[place] += step
            ends.append(float(value().detach()))
            with torch.no_grad():
                net[0].weight[place] -= step
        assert float(slope[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)
