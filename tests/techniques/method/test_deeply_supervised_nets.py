"""Deeply-supervised nets: exactness of the companions, and nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.numerics.networks.watch import pooled
from probatum.recipe import Training
from probatum.techniques.method.deeply_supervised_nets import (
    DeeplySupervisedNets,
    alpha_factor,
    companion,
    gradient_norms,
    probe_accuracy,
    squared_hinge,
)

SHORT = Training(epochs=2, batch_size=64)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def images(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 3


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_squared_hinge_by_loops() -> None:
    scores = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, 1, 1, 2])
    expected = 0.0
    for row, y in zip(scores.tolist(), target.tolist(), strict=True):
        expected += sum(max(0.0, 1 - (row[y] - row[k])) ** 2 for k in range(4) if k != y) / 5
    assert float(squared_hinge(scores, target)) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: squared_hinge(s, target), (scores.requires_grad_(),))


def test_total_is_the_weighted_sum() -> None:
    net, (x, y) = network(), images()
    with DeeplySupervisedNets(alpha=[0.5, 2.0], gamma=0.2, penalty=0.01, pool="mean").attach(net, x[:2], 3) as dsn:
        net(x)
        ours = dsn.companion_loss(y)
    expected, features = 0.0, x
    for i, layer in enumerate(net[:4]):
        features = layer(features)
        if i in (1, 3):
            head = dsn.heads[i // 2]
            loss = F.cross_entropy(head(features.mean(dim=(2, 3))), y) + 0.01 * head.weight.square().sum() - 0.2
            expected = expected + dsn.alpha[i // 2] * loss.clamp(min=0)
    torch.testing.assert_close(ours, expected)
    assert dsn.names == ["1", "3"]  # the last activation feeds the output layer and has no head


def test_companion_below_gamma_gives_the_trunk_exactly_nothing() -> None:
    net, (x, y) = network(), images()
    with DeeplySupervisedNets(alpha=1.0, gamma=50.0).attach(net, x[:2], 3) as dsn:
        net(x)
        loss = dsn.companion_loss(y)
    gradients = torch.autograd.grad(loss, list(net[0].parameters()))
    assert float(loss.detach()) == 0.0
    assert all(not bool(g.any()) for g in gradients)
    head = nn.Linear(2, 2)
    assert float(companion(torch.tensor(0.1), head, 0.0, 0.2).detach()) == 0.0


def test_alpha_zero_is_the_baseline_bit_for_bit() -> None:
    data = open_dataset("digits").prepare(7)
    base = fit(None, data, 7, training=SHORT).model.state_dict()
    ours = fit("deeply-supervised-nets(alpha=0.0)", data, 7, training=SHORT).model.state_dict()
    assert all(torch.equal(base[name], ours[name]) for name in base)


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_trains_on_the_bench_and_leaves_nothing(name: str) -> None:
    data = open_dataset(name).prepare(7)
    run = fit("deeply-supervised-nets(alpha=0.3, objective='squared-hinge', gamma=0.05)", data, 7, training=SHORT)
    base = fit(None, data, 7, training=SHORT)
    assert hooks(run.model) == 0
    assert len(run.optimizer.param_groups) == 1
    assert set(run.optimizer.state) <= set(run.model.parameters())
    assert run.model.state_dict().keys() == base.model.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(run.model.parameters(), base.model.parameters(), strict=True))
    assert all(0 <= value <= 1 for value in run.notes.values())
    assert run.notes


def test_same_forward_after_detach() -> None:
    net, (x, _) = network(), images()
    before = net(x)
    dsn = DeeplySupervisedNets().attach(net, x[:2], 3)
    assert torch.equal(net(x), before)
    assert dsn.detach() is net
    assert hooks(net) == 0
    assert torch.equal(net(x), before)
    assert net.training


def test_no_hooks_after_an_exception() -> None:
    net, (x, _) = network(), images()
    with pytest.raises(RuntimeError), DeeplySupervisedNets().attach(net, x[:2], 3):
        net(torch.zeros(2, 3, 8, 8))  # wrong number of channels
    assert hooks(net) == 0
    dsn = DeeplySupervisedNets()
    dsn._build(net, x[:2], 3, False)
    dsn.before_pass(None, None)
    assert hooks(net) == 3
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.zeros(2, 3, 8, 8))
    assert hooks(net) == 0


def test_schedules() -> None:
    assert alpha_factor("constant", 0.7, 3, 10) == 1.0
    assert alpha_factor("linear", 0.25, 3, 10) == 0.75
    assert alpha_factor("paper", 0.2, 2, 10) == pytest.approx(0.1 * 0.9 * 0.1 * 0.8)


def test_pooling() -> None:
    maps = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(pooled(maps, "mean"), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(pooled(maps[:, 0], "mean", tokens=True), maps[:, 0].mean(dim=1))
    assert pooled(maps).shape == (2, 60)


def test_heads_do_not_touch_the_global_stream() -> None:
    net, (x, _) = network(), images()
    before = torch.get_rng_state()
    first = DeeplySupervisedNets(generator=torch.Generator().manual_seed(5)).attach(net, x[:2], 3)
    first.detach()
    second = DeeplySupervisedNets(generator=torch.Generator().manual_seed(5)).attach(net, x[:2], 3)
    second.detach()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.heads.parameters(), second.heads.parameters(), strict=True))
    second.load_state_dict({name: value + 1 for name, value in first.state_dict().items()})
    assert torch.equal(second.heads[0].weight, first.heads[0].weight + 1)


def test_misuse() -> None:
    net, (x, _) = network(), images()
    with pytest.raises(KeyError, match=r"layer 'conv9' .* candidates: 0, 1, 2"):
        DeeplySupervisedNets(layers=["conv9"]).attach(net, x[:2], 3)
    pair = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    holder = nn.ModuleDict({"pool": pair, "flat": nn.Flatten()})
    holder.forward = lambda x: holder["flat"](holder["pool"](x)[0])  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"'pool' returns tuple, .* candidates: flat"):
        DeeplySupervisedNets(layers=["pool"]).attach(holder, x[:2], 3)
    with pytest.raises(ValueError, match="no activation module"):
        DeeplySupervisedNets().attach(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x[:2], 3)
    with pytest.raises(ValueError, match="float32"), DeeplySupervisedNets().attach(net, x[:2], 3) as dsn:
        dsn.companion_loss(torch.zeros(12))
    with pytest.raises(ValueError, match="has not run"), DeeplySupervisedNets().attach(net, x[:2], 3) as dsn:
        dsn.companion_loss(torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"alpha is -1"):
        DeeplySupervisedNets(alpha=-1)
    with pytest.raises(ValueError, match="3 weights for 2 layers"):
        DeeplySupervisedNets(alpha=[1, 1, 1]).attach(net, x[:2], 3)
    with pytest.raises(ValueError, match="objective is 'hinge'"):
        DeeplySupervisedNets(objective="hinge")
    with pytest.raises(ValueError, match="int32"), DeeplySupervisedNets().attach(net, x[:2], 3) as dsn:
        dsn.companion_loss(torch.zeros(12, dtype=torch.int32))
    assert DeeplySupervisedNets().detach() is None
    with pytest.raises(KeyError, match=r"layer 'conv9' .* candidates"):  # not hidden by the cleaning up after it
        fit("deeply-supervised-nets(layers=['conv9'])", open_dataset("digits").prepare(1), 1, training=SHORT)
    with pytest.raises((ValueError, InputError), match="real-valued"):
        fit("deeply-supervised-nets", open_dataset("diabetes").prepare(1), 1, training=SHORT)


def test_gradient_norms_and_probes() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(30, 1, 8, 8, generator=generator), torch.arange(30) % 3
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    F.cross_entropy(net(x), y).backward()
    norms = gradient_norms(net)
    assert list(norms) == ["0", "3"]
    assert norms["3"] == pytest.approx(float(net[3].weight.grad.norm()))
    easy = torch.eye(3)[y] + 0.01 * torch.rand(30, 3)
    assert probe_accuracy(easy, y, easy, y) == 1.0


class OneActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.act = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


def test_one_activation_used_everywhere_has_a_companion_at_each_place() -> None:
    torch.manual_seed(0)
    net, x, y = OneActivation(), torch.randn(12, 8), torch.arange(12) % 3
    with DeeplySupervisedNets(0.3, penalty=0.0).attach(net, x, 3) as dsn:
        assert dsn.names == ["act", "act:2", "act:3"]
        net(x)
        found = dsn.companion_loss(y)
    expected, features = 0.0, x
    for layer, head in zip(net.layers, dsn.heads, strict=False):
        features = layer(features).relu()
        expected = expected + 0.3 * F.cross_entropy(head(features), y)
    torch.testing.assert_close(found, expected)


def test_a_layer_before_an_activation_in_place_is_seen_as_it_was() -> None:
    torch.manual_seed(0)
    net, x, y = (
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
        torch.randn(12, 8),
        torch.arange(12) % 3,
    )
    with DeeplySupervisedNets(1.0, penalty=0.0, layers=["0"]).attach(net, x, 3) as dsn:
        net(x)
        found = dsn.companion_loss(y)
    torch.testing.assert_close(found, F.cross_entropy(dsn.heads[0](net[0](x)), y))
    assert dsn.head_accuracy(x, y)["0"] == float((dsn.heads[0](net[0](x)).argmax(1) == y).float().mean())


def test_hinge_in_half_precision_has_the_gradient_of_float32() -> None:
    scores, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    low = scores.bfloat16().requires_grad_()
    high = low.detach().float().requires_grad_()
    squared_hinge(low, y).backward()
    squared_hinge(high, y).backward()
    torch.testing.assert_close(low.grad, high.grad.bfloat16())
    with pytest.raises(ValueError, match="the label 4"):
        squared_hinge(scores, y + 1)


@pytest.mark.parametrize(
    ("schedule", "factor"), [("linear", 0.75), ("constant", 1.0), ("paper", 0.1 * 0.8 * 0.1 * 0.6 * 0.1 * 0.4)]
)
def test_the_loss_on_the_bench_by_value(schedule: str, factor: float) -> None:
    net, (x, y) = network(), images()
    dsn = DeeplySupervisedNets(alpha=[0.2, 0.7], gamma=0.3, schedule=schedule, num_examples=40)
    dsn._build(net, x[:2], 3, False)
    # a quarter of the steps; in the fourth of five epochs, the last of them a short one
    budget = type("Budget", (), {"steps": 160, "steps_per_epoch": 35, "batch_size": 12})
    run = type("Run", (), {"budget": budget, "step": 40, "epoch": 3, "model": net})()
    batch = type("Batch", (), {"x": x, "y": y})
    dsn.before_pass(run, batch)
    net(x)
    found = dsn.loss(run, batch, None, torch.tensor(2.0))
    expected, features = 2.0, x
    for i, layer in enumerate(net[:4]):
        features = layer(features)
        if i in (1, 3):
            head = dsn.heads[i // 2]
            own = float((F.cross_entropy(head(features.flatten(1)), y) + head.weight.square().sum() / 40).detach())
            expected += factor * (0.2, 0.7)[i // 2] * max(0.0, own - 0.3)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    assert not dsn.watch.seen


def test_heads_are_uniform_within_one_over_the_root_of_their_inputs() -> None:
    net, (x, _) = network(), images()
    dsn = DeeplySupervisedNets(generator=torch.Generator().manual_seed(2)).attach(net, x[:2], 3)
    weight = dsn.heads[0].weight.detach()
    assert weight.shape == (3, 4 * 36)
    assert 0.95 / 12 < float(weight.max()) <= 1 / 12
    assert -1 / 12 <= float(weight.min()) < -0.95 / 12
    assert float(weight.std()) == pytest.approx(1 / 12 / 3**0.5, rel=0.1)
    assert not dsn.heads[0].bias.any()
    dsn.detach()


@pytest.mark.parametrize("objective", ["cross-entropy", "squared-hinge"])
def test_rows_without_a_label_have_no_companions(objective: str) -> None:
    net, (x, y) = network(), images()
    left = y.clone()
    left[::3] = -100
    with DeeplySupervisedNets(objective=objective).attach(net, x[:2], 3) as dsn:
        net(x)
        found = dsn.companion_loss(left[:, None])
        net(x[left >= 0])
        torch.testing.assert_close(found, dsn.companion_loss(left[left >= 0]))
        net(x)
        assert dsn.companion_loss(torch.full_like(y, -100)).item() == 0.0


def test_heads_are_judged_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (x, y) = network(), images()
    with DeeplySupervisedNets().attach(net, x[:2], 3) as dsn:
        whole = dsn.head_accuracy(x, y)
        monkeypatch.setattr("probatum.techniques.method.deeply_supervised_nets.BLOCK", 5)
        seen: list[int] = []
        handle = net[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
        assert dsn.head_accuracy(x, y) == whole
        handle.remove()
    assert max(seen) == 5
    assert set(whole) == {"1", "3"}


@pytest.mark.parametrize("objective", ["cross-entropy", "squared-hinge"])
def test_rows_of_minus_100_are_left_out(objective: str) -> None:
    x, y = (
        torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)) / 4,
        torch.tensor([0, -100, 2, 1, -100, 2]),
    )
    found = []
    for rows in (torch.arange(6), (y >= 0).nonzero().squeeze(1)):
        net = network()
        with DeeplySupervisedNets(0.4, objective=objective, penalty=0.1).attach(net, x, classes=3) as dsn:
            net(x[rows])
            loss = dsn.companion_loss(y[rows])
            loss.backward()
            found.append((loss.detach(), net[0].weight.grad, dsn.head_accuracy(x[rows], y[rows])))
    assert torch.allclose(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-7)
    assert found[0][2] == found[1][2]


def test_a_batch_without_labels_has_no_companions() -> None:
    x, net = torch.ones(4, 1, 8, 8), network()
    with DeeplySupervisedNets(0.4, penalty=0.1).attach(net, x, classes=3) as dsn:
        net(x)
        loss = dsn.companion_loss(torch.full((4,), -100))
        loss.backward()
    assert float(loss.detach()) == 0
    assert not bool(net[0].weight.grad.any())


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_named(label: int) -> None:
    x, net = torch.ones(4, 1, 8, 8), network()
    with DeeplySupervisedNets(0.4).attach(net, x, classes=3) as dsn:
        net(x)
        with pytest.raises(ValueError, match=f"the label {label}; with 3 classes labels are 0 .. 2"):
            dsn.companion_loss(torch.tensor([0, 1, 2, label]))


def test_heads_are_judged_on_labels_that_are_classes() -> None:
    net, (x, y) = network(), images()
    with DeeplySupervisedNets(0.4).attach(net, x, classes=3) as dsn:
        assert dsn.head_accuracy(x, y[:, None].int()) == dsn.head_accuracy(x, y)
        with pytest.raises(ValueError, match="the label 3"):
            dsn.head_accuracy(x, y + 1)
    with pytest.raises(ValueError, match="nothing is attached"):
        DeeplySupervisedNets().head_accuracy(x, y)


def test_heads_of_rows_without_labels_are_told_and_end_no_training() -> None:
    net, (x, y) = network(), images()
    none = torch.full_like(y, -100)
    with DeeplySupervisedNets(1.0).attach(net, x, 3) as dsn:
        with pytest.raises(ValueError, match="none of 12 rows has a label"):
            dsn.head_accuracy(x, none)
        optimizer = torch.optim.SGD([{"params": list(part.parameters())} for part in (net, dsn.heads)], lr=0.1)
        run = SimpleNamespace(valid=SimpleNamespace(x=x, y=none), notes={}, optimizer=optimizer)
        dsn.finish(run)
    assert run.notes == {}
    assert len(optimizer.param_groups) == 1
