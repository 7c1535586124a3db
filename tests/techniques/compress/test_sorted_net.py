"""SortedNet: nested networks from one run, updates that touch only what was used, the deployed prefix."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Part
from probatum.techniques.compress.sorted_net import SortedNet, check_widths

pytestmark = pytest.mark.fast

SHORT = Training(epochs=2, batch_size=64)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def test_an_update_moves_only_what_its_draws_used() -> None:
    net, x, y = network(), torch.randn(9, 6), torch.arange(9) % 3
    sorted_net = SortedNet(widths=(0.5, 1.0)).attach(net, x)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for width in (1.0, 0.5):
        before = net[2].weight.detach().clone()
        with sorted_net.draw(width):
            F.cross_entropy(net(x), y).backward()
        sorted_net.step(optimizer)
        moved = net[2].weight.detach() != before
        kept = int(8 * width)
        assert moved[:kept, :kept].all()
        assert not moved[kept:].any()
        assert not moved[:, kept:].any()


def test_draws_are_averaged() -> None:
    net, x, y = network(), torch.randn(9, 6), torch.arange(9) % 3
    sorted_net = SortedNet(widths=(0.25, 0.5, 1.0)).attach(net, x)
    expected = torch.zeros_like(net[0].weight)
    for width in (0.25, 1.0):
        with sorted_net.draw(width):
            F.cross_entropy(net(x), y).backward()
        part = torch.autograd.grad(_by_slices(net, x, y, width), net[0].weight)[0]
        expected += part
    torch.testing.assert_close(net[0].weight.grad, expected)


def _by_slices(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, width: float) -> torch.Tensor:
    k = int(8 * width)
    h = F.relu(x @ net[0].weight[:k].T + net[0].bias[:k])
    h = F.relu(h @ net[2].weight[:k, :k].T + net[2].bias[:k])
    return F.cross_entropy(h @ net[4].weight[:, :k].T + net[4].bias, y)


def test_widths_are_drawn_in_proportion() -> None:
    sorted_net = SortedNet(widths=(0.25, 0.5, 1.0), weights=(1, 0, 3), generator=torch.Generator().manual_seed(1))
    drawn = [sorted_net._drawn() for _ in range(2000)]
    assert drawn.count(0.5) == 0
    assert drawn.count(1.0) / len(drawn) == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize("name", ["digits", "wine", "diabetes"])
def test_the_bench_deploys_the_width_it_was_asked_for(name: str) -> None:
    data = open_dataset(name).prepare(0)
    whole = fit("sorted-net", data, 0, training=SHORT)
    half = fit("sorted-net(keep=0.5)", data, 0, training=SHORT)
    sizes = [sum(p.numel() for p in run.model.parameters()) for run in (whole, half)]
    assert sizes[1] < 0.45 * sizes[0]
    assert half.model(data.test.x).shape == (len(data.test), data.spec.outputs)
    losses = [half.notes[f"validation loss at width {width:g}"] for width in (0.25, 0.5, 0.75, 1.0)]
    with torch.no_grad():
        output = half.model(data.valid.x)
    plain = F.mse_loss if data.spec.task == "reals" else F.cross_entropy
    assert float(plain(output, data.valid.y)) == pytest.approx(losses[1], rel=1e-4)


def test_one_width_is_the_baseline_bit_for_bit() -> None:
    data = open_dataset("wine").prepare(0)
    states = [fit(arm, data, 3, training=SHORT).model.state_dict() for arm in (None, "sorted-net(widths=(1.0,))")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_further_draws_are_charged() -> None:
    data = open_dataset("wine").prepare(0)
    run = fit("sorted-net(draws=3)", data, 0, training=SHORT)
    assert run.extra_passes == pytest.approx(2 * run.step * run.budget.batch_size, rel=0.25)


@pytest.mark.parametrize("widths", [(0.5, 0.25, 1.0), (0.25, 0.5), (), (0.0, 1.0), (0.5, 0.5, 1.0)])
def test_widths_that_do_not_nest(widths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="increasing shares"):
        check_widths(widths)


def test_misuse() -> None:
    for settings, told in (
        ({"draws": 0}, "draws is 0"),
        ({"keep": 0.3}, "keep is 0.3"),
        ({"weights": (1.0,)}, "weights are"),
    ):
        with pytest.raises(ValueError, match=told):
            SortedNet(**settings)
    with pytest.raises(ValueError, match="nothing is attached"):
        SortedNet().deploy(0.5)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="needs training rows"):
        SortedNet().attach(net, torch.randn(3, 4)).deploy(0.5)


def test_a_copy_of_an_attached_network_computes_with_its_own_weights() -> None:
    torch.manual_seed(0)
    net, x = network(), torch.randn(3, 6)
    sorted_net = SortedNet(widths=(0.5, 1.0)).attach(net, x)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), net(x))
        with torch.no_grad():
            for p in copied.parameters():
                p.zero_()
        assert not copied(x).any()
    sorted_net.detach()
    assert not any("forward" in vars(module) for module in net.modules())


def test_inside_an_encoder_evaluation_is_cut_as_training_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 3))
    x = torch.randn(2, 5, 8)
    sorted_net = SortedNet(widths=(0.5, 1.0), layers=["0.linear1"]).attach(net, x)
    net.eval()
    with sorted_net.draw(0.5):
        expected = net(x)
    with sorted_net.draw(0.5), torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
    made = sorted_net.deploy(0.5)
    assert made[0].linear1.weight.shape == (8, 8)
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
    assert net[0].activation_relu_or_gelu == made[0].activation_relu_or_gelu == 1


class Branches(nn.Module):
    """Two branches side by side: at half width the second one's units would meet the first one's columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], dim=1))


def test_concatenated_branches_are_refused_and_may_be_cut_one_by_one() -> None:
    net, x = Branches(), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"'head'.*not the first of its inputs"):
        SortedNet(widths=(0.5, 1.0)).attach(net, x)
    assert not any("forward" in vars(module) for module in net.modules())
    sorted_net = SortedNet(widths=(0.5, 1.0), layers=["b"]).attach(net, x)  # the last columns may go
    with sorted_net.draw(0.5):
        found = net(x)
    hidden = torch.cat([net.a(x), net.b(x)[:, :4]], dim=1)
    torch.testing.assert_close(found, F.linear(hidden, net.head.weight[:, :12], net.head.bias))


def test_one_block_in_two_places_and_parametrised_layers_are_refused() -> None:
    block = nn.Linear(4, 4)
    net = nn.Sequential(nn.Sequential(block, nn.Linear(4, 4), block), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"one block stands at 0\.0 and 0\.2"):
        SortedNet(widths=(0.5, 1.0), blocks="0").attach(net, torch.randn(2, 4))


@pytest.mark.parametrize("to_none", [True, False])
def test_blocks_that_no_draw_used_stay_where_they_are(to_none: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.PReLU()) for _ in range(4)]), nn.Linear(4, 3))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    sorted_net = SortedNet(widths=(0.5, 1.0), layers=[], blocks="0").attach(net, x)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)

    def update(*widths: float) -> list[bool]:
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad(set_to_none=to_none)
        for width in widths:
            with sorted_net.draw(width):
                F.cross_entropy(net(x), y).backward()
        sorted_net.before_step()
        optimizer.step()
        sorted_net.after_step()
        return [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]

    assert all(update(1.0))
    assert update(0.5) == [True] * 6 + [False] * 6 + [True] * 2
    assert all(update(0.5, 1.0))
    assert all(update(1.0, 0.5))


def test_on_the_bench_the_loss_is_the_mean_of_the_draws_and_each_is_noted() -> None:
    """The hooks by hand: two draws at widths 0.25 and 0.75, gradients and what the update leaves alone."""

    torch.manual_seed(0)
    net = network()
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    rows = Rows(x, y, torch.arange(20))
    run = SimpleNamespace(
        model=net, train=rows, keep_best=True, extra_passes=0, objective=lambda b, o: F.cross_entropy(o, b.y)
    )
    sorted_net = SortedNet(widths=(0.25, 0.75, 1.0), draws=2)
    sorted_net.prepare(run)
    assert not run.keep_best
    batch = Rows(x[:8], y[:8], torch.arange(8))
    drawn = iter([0.25, 0.75])
    sorted_net._drawn = lambda: next(drawn)  # type: ignore[method-assign]
    picks = torch.randint(20, (8,), generator=torch.Generator().manual_seed(0))
    assert sorted_net.batch(run, batch) is batch
    sorted_net.before_pass(run, batch)
    found = sorted_net.loss(run, batch, None, 3 * F.cross_entropy(net(batch.x), batch.y))
    first, second = _by_slices(net, batch.x, batch.y, 0.25), _by_slices(net, x[picks], y[picks], 0.75)
    torch.testing.assert_close(found, (3 * first + second) / 2)
    assert run.extra_passes == 8
    assert sorted_net.prefix.share == 1.0
    net.zero_grad()
    found.backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.5)
    before = net[2].weight.detach().clone()
    sorted_net.gradients(run)
    optimizer.step()
    sorted_net.step_end(run)
    moved = net[2].weight.detach() != before
    assert moved[:6, :6].all()
    assert int(moved.sum()) == 36
    sorted_net.detach()
    assert not any("forward" in vars(module) for module in net.modules())


class Rows(NamedTuple):
    """A batch, or the training part."""

    x: torch.Tensor
    y: torch.Tensor
    rows: torch.Tensor


def test_batch_norm_kept_in_evaluation_is_deployed_as_it_was_trained() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    net[1].running_mean.fill_(3.0)
    net.train()
    net[1].eval()
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    part = Part(x, y, torch.arange(20))
    run = SimpleNamespace(
        model=net, train=part, valid=part, budget=SimpleNamespace(batch_size=10), notes={}, extra_passes=0.0
    )
    compressor = SortedNet(widths=(0.5, 1.0), keep=0.5).attach(net, x[:2])
    with compressor.draw(0.5), torch.no_grad():
        trained = net(x)
    compressor.finish(run)
    torch.testing.assert_close(run.model.eval()(x), trained)
    assert torch.equal(run.model[1].running_mean, torch.full((4,), 3.0))
    assert run.extra_passes == pytest.approx(2 * 20 / 3)  # validation of two widths; statistics were not measured


def test_state_is_the_stream_of_widths() -> None:
    first, second = (SortedNet(generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    first._drawn()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [second._drawn() for _ in range(8)] == [first._drawn() for _ in range(8)]


@pytest.mark.parametrize(("norm", "rows"), [("none", 20), ("trained", 20), ("kept", 20), ("trained", 21)])
def test_what_is_charged_at_the_end_are_the_rows_that_were_passed(norm: str, rows: int) -> None:
    middle = [] if norm == "none" else [nn.BatchNorm1d(8)]
    net = nn.Sequential(nn.Linear(3, 8), *middle, nn.ReLU(), nn.Linear(8, 2)).train()
    if norm == "kept":
        net[1].eval()
    part = Part(torch.randn(rows, 3), torch.arange(rows) % 2, torch.arange(rows))
    run = SimpleNamespace(
        model=net, train=part, valid=part, budget=SimpleNamespace(batch_size=10), notes={}, extra_passes=0.0
    )
    compressor, passed = SortedNet(widths=(0.5, 1.0)).attach(net, part.x[:2]), []
    handle = net.register_forward_hook(lambda module, args, output: passed.append(len(output)))
    compressor.finish(run)
    handle.remove()
    assert run.extra_passes == pytest.approx((sum(passed) - 2) / 3)  # but for the two rows of the example


def test_rows_are_left_when_the_network_begins_in_place() -> None:
    net = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    parts = [Part(torch.randn(8, 4), torch.arange(8) % 3, torch.arange(8)) for _ in range(2)]
    before = [part.x.clone() for part in parts]
    run = SimpleNamespace(model=net, train=parts[0], valid=parts[1], budget=SimpleNamespace(batch_size=4))
    run.notes, run.extra_passes = {}, 0.0
    method = SortedNet(widths=(0.5, 1.0))
    method.prepare(run)
    method.finish(run)
    assert all(torch.equal(part.x, x) for part, x in zip(parts, before, strict=True))
