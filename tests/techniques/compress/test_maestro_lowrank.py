"""Maestro: factors equal the dense layer, order comes out as the singular one, what is cut is really gone."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.numerics.networks.frozen import freeze
from probatum.recipe import Training
from probatum.techniques.compress.maestro_lowrank import (
    LowRank,
    Maestro,
    factorise,
    finish_plain,
    hierarchical_lasso,
    keep_greedily,
    keep_share,
    recalibrate,
    suffix_norms,
    taught,
)

SHORT = Training(epochs=3, batch_size=64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("dense", "x"),
    [
        (nn.Linear(7, 5), draw(3, 7)),
        (nn.Linear(4, 9, bias=False), draw(2, 6, 4)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2), draw(2, 3, 11, 11)),
        (nn.Conv1d(2, 5, 5, padding=2), draw(2, 2, 12)),
    ],
)
def test_full_rank_is_the_dense_layer(dense: nn.Module, x: torch.Tensor) -> None:
    layer = LowRank(dense)
    torch.testing.assert_close(layer(x), dense(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.plain()(x), dense(x), atol=1e-5, rtol=1e-5)
    low = layer.use(1)
    torch.testing.assert_close(low.plain()(x), low(x), atol=1e-5, rtol=1e-5)


def test_at_the_start_a_smaller_rank_is_the_best_one() -> None:
    dense = nn.Linear(6, 5, bias=False)
    layer = LowRank(dense).use(2)
    u, s, vh = torch.linalg.svd(dense.weight.detach())
    best = u[:, :2] @ torch.diag(s[:2]) @ vh[:2]
    torch.testing.assert_close(layer(torch.eye(6)).T, best, atol=1e-5, rtol=1e-5)


def test_suffix_norms_by_loops_and_at_zero() -> None:
    a = draw(4, 6).double()
    torch.testing.assert_close(suffix_norms(a), torch.stack([a[:, b:].norm() for b in range(6)]))
    a[:, 4:] = 0
    a.requires_grad_()
    loss = hierarchical_lasso(a, a)
    loss.backward()
    assert torch.isfinite(a.grad).all()
    assert torch.equal(a.grad[:, 4:], torch.zeros(4, 2).double())
    smooth = draw(3, 4, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: hierarchical_lasso(v, 2 * v), (smooth,))


def test_ordered_ranks_recover_singular_subspaces() -> None:
    target = draw(6, 5).double()
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    a, b = (0.5 * draw(n, 5, seed=n).double() for n in (6, 5))
    a.requires_grad_()
    b.requires_grad_()
    optimizer = torch.optim.LBFGS([a, b], max_iter=4000, tolerance_grad=1e-12, tolerance_change=1e-16, history_size=30)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((target - a[:, :k] @ b[:, :k].T).square().sum() for k in range(1, 6))
        loss.backward()
        return loss

    optimizer.step(closure)
    for k in range(1, 6):
        product = (a[:, :k] @ b[:, :k].T).detach()
        torch.testing.assert_close(product, u[:, :k] @ torch.diag(s[:k]) @ vh[:k], atol=1e-3, rtol=1e-2)
        basis = torch.linalg.qr(a[:, :k].detach())[0]
        cosines = torch.linalg.svdvals(basis.T @ u[:, :k]).clamp(max=1)
        assert float(cosines.min().acos()) < 1e-2


def test_one_layer_runs_at_a_drawn_rank() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    maestro = Maestro(generator=torch.Generator().manual_seed(0)).attach(net)
    seen = set()
    for _ in range(300):
        maestro.sample()
        drawn = [(name, layer.sampled) for name, layer in maestro.layers.items() if layer.sampled is not None]
        assert len(drawn) == 1
        seen.add(drawn[0])
    assert seen == {("0", b) for b in range(1, 7)} | {("2", b) for b in range(1, 5)}
    maestro.release()
    assert all(layer.sampled is None for layer in maestro.layers.values())


def test_vanished_ranks_are_masked_and_cut() -> None:
    net = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    maestro = Maestro().attach(net)
    with torch.no_grad():
        net[0].u[:, 4:] *= 1e-5
        net[0].v[:, 4:] *= 1e-5
    maestro.shrink()
    assert maestro.ranks() == {"0": 4, "2": 3}
    x = draw(5, 20)
    expected = net(x)
    made = maestro.finish_plain()
    torch.testing.assert_close(made(x), expected)
    assert [tuple(layer.weight.shape) for layer in made[0]] == [(4, 20), (20, 4)]
    assert type(made[2]) is nn.Linear, "three ranks of three would not be smaller"
    maestro = Maestro(lasso=9.0).attach(nn.Sequential(nn.Linear(4, 4)))
    with torch.no_grad():
        maestro.layers["0"].u.zero_()
    with pytest.raises(ValueError, match="layer '0' have vanished; lasso is 9"):
        maestro.shrink()


def test_keeping_a_share_or_greedily() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    layers = factorise(net)
    keep_share(layers, 0.25)
    assert [layer.rank for layer in layers.values()] == [3, 3]
    wanted = {"0": 1, "2": 3}

    def loss() -> float:  # the second layer is worth more
        return -sum(wanted[name] * layer.rank for name, layer in layers.items())

    assert keep_greedily(layers, 80, loss) == 80
    assert {name: layer.rank for name, layer in layers.items()} == {"0": 1, "2": 3}
    with pytest.raises(ValueError, match="budget is 10"):
        keep_greedily(layers, 10, loss)


def test_batch_norm_is_measured_anew() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    batches = [draw(8, 3, seed=i) for i in range(5)]
    recalibrate(net, [*batches, draw(1, 3)])
    hidden = [net[0](batch).detach() for batch in batches]
    torch.testing.assert_close(net[1].running_mean, torch.stack([h.mean(dim=0) for h in hidden]).mean(dim=0))
    torch.testing.assert_close(net[1].running_var, torch.stack([h.var(dim=0) for h in hidden]).mean(dim=0))
    assert net.training
    assert net[1].momentum == 0.1


def test_batch_norm_kept_in_evaluation_is_not_measured() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    freeze(net, [net[2], net[3]])
    net.train()
    net[2].eval()
    for norm in (net[1], net[2], net[3]):
        norm.running_mean.fill_(3.0)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    recalibrate(net, [x])
    assert [bool((norm.running_mean == 3.0).all()) for norm in (net[1], net[2], net[3])] == [True, True, False]
    assert [norm.training for norm in (net[1], net[2], net[3])] == [False, False, True]


def test_a_run_on_the_bench_is_smaller() -> None:
    data = open_dataset("digits").prepare(0)
    longer = Training(epochs=4, batch_size=64)
    run = fit("maestro-lowrank(keep=0.5)", data, 0, training=longer)
    baseline = fit(None, data, 0, training=SHORT)
    sizes = [sum(p.numel() for p in r.model.parameters()) for r in (run, baseline)]
    assert sizes[0] < 0.8 * sizes[1]
    assert accuracy(run.model, data.test) > 0.5
    assert not any(isinstance(module, LowRank) for module in run.model.modules())
    trained = {id(p) for p in run.model.parameters()}
    assert len(trained) == len(list(run.model.parameters()))


def test_the_optimizer_trains_the_factors() -> None:
    data = open_dataset("wine").prepare(0)
    run = fit("maestro-lowrank(lasso=0.0, eps=0.0)", data, 0, training=SHORT)
    baseline = fit(None, data, 0, training=SHORT)
    assert abs(accuracy(run.model, data.test) - accuracy(baseline.model, data.test)) < 0.15
    again = fit("maestro-lowrank(layers=())", data, 0, training=SHORT).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in baseline.model.state_dict().items())


def test_state_restores_ranks_and_draws() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    first = Maestro().attach(net)
    first.layers["0"].use(2)
    first.sample()
    second = Maestro().attach(copy.deepcopy(finish_plain(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)))))
    second.load_state_dict(first.state_dict())
    first.sample()
    second.sample()
    assert second.ranks() == first.ranks()
    assert [layer.sampled for layer in second.layers.values()] == [layer.sampled for layer in first.layers.values()]


def test_misuse() -> None:
    for settings, told in (({"lasso": -1.0}, "lasso is"), ({"eps": 1.0}, "eps is"), ({"keep": 0.0}, "keep is")):
        with pytest.raises(ValueError, match=told):
            Maestro(**settings)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    assert factorise(grouped) == {}
    with pytest.raises(ValueError, match="groups 2"):
        factorise(grouped, ["0"])
    with pytest.raises(KeyError, match="'9' is no linear"):
        factorise(grouped, ["9"])
    with pytest.raises(TypeError, match="ReLU"):
        LowRank(nn.ReLU())
    with pytest.raises(ValueError, match="nothing is attached"):
        Maestro().finish_plain()


def test_one_layer_in_two_places_is_factorised_in_both() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    net, x = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 2)), torch.randn(4, 6)
    expected = net(x)
    assert list(factorise(net)) == ["0", "3"]
    assert net[0] is net[2]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    net[0].use(2)
    finish_plain(net)
    assert net[0] is net[2]


def test_tied_and_frozen_layers_stay_dense_unless_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.fixed = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 9)
            self.head.weight = self.embed.weight
            self.fixed.requires_grad_(False)

    net = Tied()
    assert list(factorise(net)) == ["body"]
    assert net.head.weight is net.embed.weight
    with pytest.raises(ValueError, match=r"'head\.weight' and 'embed\.weight'"):
        factorise(net, ["head"])
    assert type(net.head) is nn.Linear
    factorise(net, ["fixed"])
    assert not any(p.requires_grad for p in net.fixed.parameters())
    with pytest.raises(TypeError, match=r"'0' has a parametrised weight"):
        factorise(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU()))


def test_inside_an_encoder_it_runs_in_evaluation_without_gradients() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), nn.Linear(16, 2))
    layers, x = factorise(net), torch.randn(2, 5, 16)
    for layer in layers.values():
        layer.use(1)
    expected = net.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(finish_plain(net)(x), expected, rtol=1e-4, atol=1e-5)


def test_without_layers_there_is_no_penalty() -> None:
    assert float(Maestro().attach(nn.Sequential(nn.ReLU())).penalty()) == 0.0


def test_a_tied_or_frozen_bias_stays_so_to_the_end() -> None:
    torch.manual_seed(0)
    for rank in (1, 6):  # two layers of rank one; a dense one
        net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6))
        net[2].bias, x = net[0].bias, draw(3, 6)
        net[3].requires_grad_(False)
        layers = factorise(net, ["0", "2", "3"])
        for layer in layers.values():
            layer.use(rank)
        expected = net(x)
        finish_plain(net)
        torch.testing.assert_close(net(x), expected)
        ends = [layer[1] if rank == 1 else layer for layer in (net[0], net[2])]
        assert ends[0].bias is ends[1].bias
        assert all(p.requires_grad for p in net[:3].parameters())
        assert not any(p.requires_grad for p in net[3].parameters())


def test_ranks_travel_in_the_network_s_own_state_and_copies_are_at_their_ranks() -> None:
    first, second = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
    maestro, x = Maestro().attach(first), draw(5, 6)
    maestro.layers["0"].use(2)
    factorise(second)
    second.load_state_dict(first.state_dict())
    assert [layer.rank for layer in (second[0], second[2])] == [2, 4]
    assert torch.equal(second(x), first(x))
    expected = first(x)
    first[0].sampled = 1
    for copied in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert torch.equal(copied(x), expected)
    assert not torch.equal(first(x), expected)


def test_one_image_without_a_batch() -> None:
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)), draw(2, 5, 5)
    expected = net(x)
    factorise(net)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_small_factors_do_not_vanish_in_half_precision() -> None:
    a = torch.full((3, 2), 1e-4, dtype=torch.float16)  # its square is zero in float16
    torch.testing.assert_close(suffix_norms(a).float(), torch.tensor([6**0.5, 3**0.5]) * 1e-4, rtol=1e-3, atol=0)


def test_what_a_full_pass_teaches() -> None:
    output, full = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    y = torch.tensor([0, -100, 2, 1])
    kept = y >= 0
    expected = F.cross_entropy(output[kept], full[kept].softmax(1))
    torch.testing.assert_close(taught(output, full, y), expected)
    assert taught(output, full, torch.full((4,), -100)).item() == 0.0
    taught(output, full, y).backward()
    assert full.grad is None
    assert not output.grad[1].any()
    tokens, whole = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    expected = F.cross_entropy(tokens.mT, whole.mT.softmax(1))
    torch.testing.assert_close(taught(tokens, whole, torch.zeros(2, 5, dtype=torch.int64)), expected)
    assert float(taught(torch.tensor([[1.0]]), torch.tensor([[4.0]]), torch.tensor([0.0]))) == 9.0


def _run_of(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> SimpleNamespace:
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    return SimpleNamespace(model=net, optimizer=optimizer, keep_best=True, extra_passes=0.0)


@pytest.mark.parametrize("full_pass", [False, True])
def test_hooks_by_hand(full_pass: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    batch = SimpleNamespace(x=draw(7, 6), y=torch.arange(7) % 4)
    run, maestro = _run_of(net), Maestro(lasso=0.01, full_pass=full_pass)
    maestro.prepare(run)
    assert not run.keep_best
    draws = iter([1, 2])  # the second layer, at rank 3
    maestro._below = lambda n: next(draws)  # type: ignore[method-assign]
    assert maestro.batch(run, batch) is batch
    first, last = net[0], net[2]
    whole = first.u @ first.v.T, last.u @ last.v.T
    hidden = (batch.x @ whole[0].T + first.bias).relu()
    full = hidden @ whole[1].T + last.bias
    partial = hidden @ (last.u[:, :3] @ last.v[:, :3].T).T + last.bias
    penalty = 0.01 * sum(
        a[:, b:].norm() for layer in (first, last) for a in (layer.u, layer.v) for b in range(layer.full)
    )
    for passes in (1, 2):  # a second pass is at the same rank
        maestro.before_pass(run, batch)
        output = net(batch.x)
        torch.testing.assert_close(output, full if full_pass else partial)
        before = torch.tensor(5.0)
        wanted = before + penalty
        if full_pass:
            wanted = wanted + F.cross_entropy(partial, full.softmax(1))
        torch.testing.assert_close(maestro.loss(run, batch, output, before), wanted)
        assert run.extra_passes == 7 * passes * full_pass
        torch.testing.assert_close(net(batch.x), full)


def test_the_optimizer_s_groups_get_the_factors_in_the_place_of_the_weight() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    named = list(net.named_parameters())
    optimizer = torch.optim.SGD([{"params": named[:1], "lr": 0.2}, {"params": named[1:]}], lr=0.1)
    maestro = Maestro(layers=["0"])
    maestro.prepare(_run_of(net, optimizer))
    first, second = optimizer.param_groups
    assert first["param_names"] == ["0.u", "0.v"]
    assert [p is q for p, q in zip(first["params"], (net[0].u, net[0].v), strict=True)] == [True, True]
    assert second["param_names"] == ["0.bias", "2.weight", "2.bias"]
    assert [tuple(p.shape) for p in second["params"]] == [(5,), (4, 5), (4,)]


def test_shares_of_what_is_kept_are_reported() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    maestro = Maestro(keep=0.5, eps=0.0)
    run = _run_of(net)
    run.train, run.budget = SimpleNamespace(x=draw(9, 8)), SimpleNamespace(batch_size=4)
    maestro.prepare(run)
    maestro.layers["0"].use(6)
    maestro.finish(run)
    assert maestro.ranks() == {"0": 3, "2": 2}
    # (8 + 8) 3 + 8 numbers; (8 + 4) 2 + 4
    assert maestro.report() == {"parameters": 84.0, "mean share of rank": (3 / 8 + 2 / 4) / 2}
    assert sum(p.numel() for p in run.model.parameters()) == 84


def test_weights_without_factors_and_networks_attached_twice() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    maestro = Maestro().attach(net)
    with pytest.raises(ValueError, match="attached already"):
        maestro.attach(net)
    assert list(maestro.layers) == ["0"]
    maestro.finish_plain()
    with torch.no_grad():
        net[0].weight[1, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        maestro.attach(net)


def test_shrinking_ends_what_is_sampled_and_streams_are_one_s_own() -> None:
    def drawn(generator: torch.Generator | None) -> list[tuple[str, int]]:
        net = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
        maestro, found = Maestro(generator=generator).attach(net), []
        for _ in range(6):
            maestro.sample()
            found += [(name, layer.sampled) for name, layer in maestro.layers.items() if layer.sampled]
        maestro.shrink()
        assert not any(layer.sampled for layer in maestro.layers.values())
        return found

    assert drawn(None) == drawn(None) == drawn(torch.Generator().manual_seed(0))
    assert drawn(torch.Generator().manual_seed(1)) != drawn(torch.Generator().manual_seed(2))


def test_copies_draw_as_the_original_would_and_leave_it_alone() -> None:
    torch.manual_seed(0)
    maestro, x = Maestro(lasso=1e-2).attach(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))), draw(3, 6)
    copies = [copy.deepcopy(maestro), pickle.loads(pickle.dumps(maestro))]
    full, expected = maestro.net(x), []
    for _ in range(3):
        maestro.sample()
        expected.append(maestro.net(x))
    for copied in copies:
        assert all(layer is copied.net.get_submodule(name) for name, layer in copied.layers.items())
        assert torch.equal(copied.net(x), full)
        for one in expected:
            copied.sample()
            assert torch.equal(copied.net(x), one)
        assert torch.equal(copied.penalty(), maestro.penalty())
        copied.release()
        optimizer = torch.optim.SGD(copied.net.parameters(), lr=0.1)
        copied.net(x).square().sum().backward()
        optimizer.step()
        copied.layers["0"].use(1)
        copied.finish_plain()
    maestro.release()
    assert torch.equal(maestro.net(x), full)
    assert maestro.ranks() == {"0": 6, "2": 4}
