"""Graph hypernetworks: relabelling, order one by one, shapes, variances, switches, and the start on the bench."""

from __future__ import annotations

import copy
import doctest
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.kinds.image.network import SmallResNet
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.method.ghn2 import ghn2
from probatum.techniques.method.ghn2.ghn2 import (
    Ghn2,
    GraphHypernet,
    put,
    random_net,
    repeated,
    run_with,
    train_hypernet,
)
from probatum.techniques.method.ghn2.net_graph import NetGraph, trace

SPEC = Spec("image", "classes", (1, 8, 8), 10)


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(seed: int = 0, **settings: object) -> nn.Module:
    return random_net(SPEC, own(seed), **settings)


def hyper(**settings: object) -> GraphHypernet:
    return GraphHypernet(**{"most": 16, "width": 8, "generator": own(), **settings})


def one_by_one(model: GraphHypernet, graph: NetGraph) -> Tensor:
    """The two passes, node after node, straight from the definition."""
    h = list(model.embed[graph.kinds] + model.sizes(graph.sizes))
    paths = graph.paths
    order = sorted(range(len(graph)), key=lambda v: int(graph.depths[v]))
    for way, nodes in ((paths, order), (paths.mT, order[::-1])):
        for v in nodes:
            message = torch.zeros_like(h[v])
            for u in range(len(graph)):
                if way[u, v] == 1:
                    message = message + model.near(h[u])
                elif way[u, v] > 1 and model.virtual:
                    message = message + model.far(h[u]) / way[u, v]
            h[v] = model.update(message[None] * model.edges, h[v][None])[0]
    return torch.stack(h)


@pytest.mark.parametrize("virtual", [True, False])
def test_levels_are_the_order_one_by_one(virtual: bool) -> None:
    model, graphs = hyper(virtual=virtual), [trace(net(seed, dense=seed == 1)) for seed in range(3)]
    for found, graph in zip(model.states(graphs), graphs, strict=True):
        torch.testing.assert_close(found, one_by_one(model, graph), rtol=1e-4, atol=1e-5)


def test_without_edges_equal_nodes_have_equal_states() -> None:
    graph = trace(net(3))
    alone, together = hyper(edges=False).states([graph])[0], hyper().states([graph])[0]
    same = (graph.kinds[:, None] == graph.kinds) & (graph.sizes[:, None] == graph.sizes).all(dim=2)
    rows, columns = (same & ~torch.eye(len(graph), dtype=torch.bool)).nonzero().mT
    torch.testing.assert_close(alone[rows], alone[columns], rtol=0, atol=1e-6)
    assert len(rows)
    assert not torch.allclose(together[rows], together[columns])


@pytest.mark.parametrize("seed", range(3))
def test_relabelled_nodes_get_the_same_predictions(seed: int) -> None:
    model, target = hyper(), net(seed)
    graph = trace(target)
    other = graph.relabelled(torch.randperm(len(graph), generator=own(seed)))
    first, second = model.predict([target], [graph])[0], model.predict([target], [other])[0]
    assert set(first) == set(second)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"norm": False}, {"dense": True}, {"channels": (30, 40)}, {"nodes": (12, 14)}]
)
def test_every_parameter_is_predicted_in_its_shape(settings: dict[str, object]) -> None:
    target = net(2, **settings)
    made = hyper().predict([target])[0]
    assert {name: value.shape for name, value in made.items()} == {n: p.shape for n, p in target.named_parameters()}
    assert bool(torch.isfinite(run_with(target, made, torch.rand(4, 1, 8, 8, generator=own()))).all())


def test_variance_of_first_predictions() -> None:
    ratios: dict[str, list[float]] = {}
    target = nn.Sequential(
        nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 30, 1), nn.Flatten(), nn.Linear(480, 20)
    )
    for seed in range(30):
        model = GraphHypernet(most=32, generator=own(seed))
        made = model.predict([target])[0]
        for name, beta, fan_in in (("0.weight", 2, 144), ("3.weight", 1, 24), ("5.weight", 1, 480)):
            ratios.setdefault(name, []).append(float(made[name].detach().square().mean()) * fan_in / beta)
        assert float((made["1.weight"].detach() - 1).abs().max()) < 0.3
        assert float(made["0.bias"].detach().abs().max()) < 0.1
    for name, values in ratios.items():
        assert sum(values) / 30 == pytest.approx(1, abs=0.35), name
    rough = hyper(normalise=False).predict([target])[0]["5.weight"].detach()
    fine = hyper().predict([target])[0]["5.weight"].detach()
    torch.testing.assert_close(rough / math.sqrt(480), fine)


def test_repeating() -> None:
    value = torch.arange(6).reshape(2, 3)
    expected = torch.tensor([[0, 1, 2, 0], [3, 4, 5, 3], [0, 1, 2, 0]])
    assert torch.equal(repeated(value, (3, 4)), expected)


def test_run_with_leaves_the_network_alone_and_uses_the_batch() -> None:
    target, x = SmallResNet(SPEC).eval(), torch.rand(6, 1, 8, 8, generator=own())
    before = copy.deepcopy(target.state_dict())
    values = {name: p.detach() for name, p in target.named_parameters()}
    found = run_with(target, values, x)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in before.items())
    assert not target.training
    torch.testing.assert_close(found, copy.deepcopy(target).train()(x))


def test_training_lowers_the_loss_of_unseen_networks() -> None:
    data = open_dataset("digits").prepare(0)
    nets = [net(seed, channels=(8, 12), nodes=(3, 5)) for seed in range(12)]
    unseen, model = net(99, channels=(8, 12), nodes=(3, 5)), hyper(width=16)

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(run_with(unseen, model.predict([unseen])[0], data.valid.x), data.valid.y))

    before, state = loss(), torch.get_rng_state()
    losses = train_hypernet(model, nets, data.train.x, data.train.y, 25, own(), meta_batch=2, batch=32, lr=1e-2)
    assert len(losses) == 25
    assert sum(losses[-5:]) < sum(losses[:5])
    assert loss() < before
    assert torch.equal(state, torch.get_rng_state())


def test_random_nets_are_those_of_their_generator() -> None:
    state = torch.get_rng_state()
    first, second, third = net(5), net(5), net(6)
    assert torch.equal(state, torch.get_rng_state())
    assert str(first) == str(second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert str(first) != str(third)
    assert random_net(Spec("image", "classes", (3, 32, 32), 4), own())(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net(1, norm=False).modules())
    with pytest.raises(ValueError, match="images are 3 x 8"):
        random_net(Spec("image", "classes", (1, 3, 8), 4), own())


def test_share_of_the_way() -> None:
    target = SmallResNet(SPEC)
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    made = {name: torch.ones_like(p) for name, p in before.items() if name != "head.bias"}
    put(target, made, 0.25)
    for name, parameter in target.named_parameters():
        wanted = before[name] if name == "head.bias" else 0.75 * before[name] + 0.25
        torch.testing.assert_close(parameter.detach(), wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"meta_batch": 0}, "meta_batch is 0"),
        ({"pool": 0}, "pool is 0"),
        ({"most": 0}, "most is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"channels": (9, 4)}, r"channels is \(9, 4\)"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ghn2(**settings)


def test_networks_it_does_not_know_are_told_by_node() -> None:
    with pytest.raises(ValueError, match="node '_1' is PixelShuffle"):
        hyper().predict([nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2))])
    with pytest.raises(ValueError, match="width is 0"):
        GraphHypernet(width=0)


def test_on_the_bench() -> None:
    data, training = open_dataset("digits").prepare(0), Training(steps=20, batch_size=32)
    arm = "ghn2(steps=20, meta_batch=2, pool=10, channels=(8, 10))"
    started = fit(arm, data, 2, training=training)
    assert started.extra_passes == 20 * 2 * 32
    assert 0 < started.notes["hypernetwork's last loss"] < 3
    plain = fit(None, data, 2, training=training).model.state_dict()
    neutral = fit("ghn2(share=0.0)", data, 2, training=training).model.state_dict()
    assert all(torch.equal(plain[name], neutral[name]) for name in plain)


def test_frozen_and_pretrained_weights_are_not_overwritten() -> None:
    target = SmallResNet(SPEC)
    target.head.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    put(target, {name: value + 1 for name, value in before.items()})
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] + (name != "head.weight"))
    with pytest.raises(ValueError, match=r"pretrained and share is 0\.5.*leave this out"):
        Ghn2(share=0.5, pretrained=True)
    Ghn2(share=0.0, pretrained=True)


def test_prepare_puts_a_share_of_what_the_trained_hypernetwork_predicts() -> None:
    generator = own(5)
    x, y = torch.rand(30, 1, 8, 8, generator=generator), torch.randint(0, 10, (30,), generator=generator)
    torch.manual_seed(0)
    target = SmallResNet(SPEC)
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    budget = type("Budget", (), {"batch_size": 7, "steps": 20})
    part = type("Part", (), {"x": x, "y": y})
    run = type("Run", (), {"model": target, "spec": SPEC, "train": part, "budget": budget})()
    run.extra_passes, run.notes = 0.0, {}
    Ghn2(3, 5, 2, 0.02, 0.3, (4, 6), 8, virtual=False, normalise=False, generator=own(7)).prepare(run)
    stream = own(7)
    nets = [random_net(SPEC, stream, channels=(4, 6)) for _ in range(2)]
    made = GraphHypernet(8, virtual=False, normalise=False, generator=stream)
    losses = train_hypernet(made, nets, x, y, 3, stream, 2, 7, 0.02)
    values = made.predict([SmallResNet(SPEC)])[0]
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter.detach(), 0.7 * before[name] + 0.3 * values[name].detach())
    assert run.extra_passes == 3 * 2 * 7  # two architectures are all there are
    assert run.notes["hypernetwork's last loss"] == pytest.approx(losses[-1])


def test_state_of_the_stream() -> None:
    first, second = Ghn2(generator=own(3)), Ghn2(generator=own(4))
    torch.rand(5, generator=first.generator)
    second.load_state_dict(first.state_dict())
    assert torch.equal(torch.rand(3, generator=first.generator), torch.rand(3, generator=second.generator))


def test_example() -> None:
    assert doctest.testmod(ghn2).failed == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_other_precision_start_from_what_is_predicted_in_float32(dtype: torch.dtype) -> None:
    x, y = torch.rand(12, 1, 8, 8, generator=own(5)).to(dtype), torch.arange(12) % 10
    started = []
    for kind in (torch.float32, dtype):
        torch.manual_seed(0)
        target = SmallResNet(SPEC).to(kind)
        part = type("Part", (), {"x": x.to(kind), "y": y})
        budget = type("Budget", (), {"batch_size": 32, "steps": 20})
        run = type("Run", (), {"model": target, "spec": SPEC, "train": part, "budget": budget})()
        run.extra_passes, run.notes = 0.0, {}
        Ghn2(2, 2, 3, channels=(4, 6), most=8, generator=own(7)).prepare(run)
        assert run.extra_passes == 2 * 2 * 12  # there are 12 rows, fewer than a batch
        started.append(target)
    for wanted, found in zip(started[0].parameters(), started[1].parameters(), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted.to(dtype))


def test_parametrised_weights_are_told_of() -> None:
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    with pytest.raises(ValueError, match=r"'0' has parametrised weights.*remove_parametrizations"):
        hyper().predict([net])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_older_norms_of_weights_are_told_of(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(ValueError, match=r"'0' has parametrised weights.*remove_weight_norm"):
        hyper().predict([net])


def test_rows_without_a_label_are_left_out() -> None:
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
    y[3:] = -100
    losses = []
    for rows, labels in ((x, y), (x[:3], y[:3])):
        nets = [random_net(SPEC, own(1), channels=(4, 6)) for _ in range(2)]
        losses.append(train_hypernet(hyper(), nets, rows, labels, 3, own(2), 2, 8))
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="none of 37 rows has a label"):
        train_hypernet(hyper(), nets, x[3:], y[3:], 3, own(2))
