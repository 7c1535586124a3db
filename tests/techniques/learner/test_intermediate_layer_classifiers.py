"""Heads on frozen layers: the backbone stays, the penultimate one is the head's own, selection and few shots are fair."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from probatum.data.open import open_dataset
from probatum.spec import Budget, Data, Optimisation, Part, Spec
from probatum.techniques.learner.intermediate_layer_classifiers import (
    PENULTIMATE,
    LayerClassifier,
    balanced_rows,
    block_names,
    chosen,
    fit,
    from_head,
    layer_features,
    probe_layers,
    score,
    sensitivity,
)
from probatum.train.baselines import build

MODALITIES = ["digits", "breast-cancer", "toy-topics", "cbf"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def few_rows(name: str, n: int = 90) -> tuple[Spec, Part, Part]:
    data = open_dataset(name).prepare(0)
    return data.spec, *(Part(p.x[:n], p.y[:n], p.rows[:n]) for p in (data.train, data.valid))


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("mode", [True, False])
def test_backbone_is_bit_for_bit_the_same(name: str, mode: bool) -> None:
    spec, train, valid = few_rows(name)
    torch.manual_seed(0)
    net = build(spec).train(mode)
    before = copy.deepcopy(net.state_dict())
    found = probe_layers(net, train, valid, penalties=[0.1], classes=spec.outputs)
    assert net.training is mode
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert list(found)[-1] == PENULTIMATE
    assert len(found) >= 2
    assert all(not features.requires_grad for features in layer_features(net, train.x).values())


@pytest.mark.parametrize("name", MODALITIES)
def test_own_head_on_the_penultimate_layer_gives_the_logits(name: str) -> None:
    spec, train, _ = few_rows(name)
    torch.manual_seed(0)
    net = build(spec).eval()
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    features = layer_features(net, train.x)[PENULTIMATE]
    with torch.no_grad():
        torch.testing.assert_close(from_head(head).logits(features).float(), net(train.x), atol=1e-6, rtol=1e-5)


def test_blocks_of_a_residual_network_are_its_block_outputs() -> None:
    spec, train, _ = few_rows("digits", 8)
    net = build(spec)
    names = block_names(net)
    assert [name for name in names if name.startswith("stages")] == ["stages.0", "stages.1", "stages.2"]
    assert not any("act" in name or "conv" in name for name in names)
    found = layer_features(net, train.x, ["stages.1"], pool="mean")
    with torch.no_grad():
        expected = net.eval().stages[1](net.stages[0](net.stem(train.x))).flatten(2).mean(dim=2)
    torch.testing.assert_close(found["stages.1"], expected)
    assert layer_features(net, train.x, ["stages.0"])["stages.0"].shape == (8, 16)  # 16 x 8 x 8 is above 512
    assert layer_features(net, train.x, ["stages.2"])["stages.2"].shape == (8, 64 * 4)


def mlp(depth: int = 3, inputs: int = 6, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else 16, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, outputs))


def test_last_activation_is_told_once() -> None:
    assert list(layer_features(mlp(), torch.randn(7, 6))) == ["1", "3", PENULTIMATE]


def test_a_layer_that_is_the_last_on_some_rows_alone_is_told_of_all() -> None:
    net = nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 2)
    )
    x = torch.randn(40, 6, generator=generator())
    part = Part(x, (x[:, 0] > 0).long(), torch.arange(40))
    found = probe_layers(net, part, part, penalties=[0.1])
    assert list(found) == ["1", PENULTIMATE]
    best = LayerClassifier(net, {"1": found["1"]}, "auto")
    blank = best.predict(Part(torch.zeros(1, 6), torch.zeros(1).long(), torch.zeros(1).long()))  # zeros in every layer
    expected = found["1"].head.logits(torch.zeros(1, 16)).softmax(dim=1).float()
    torch.testing.assert_close(blank, expected)
    assert list(layer_features(net, x, ["3"])) == ["3", PENULTIMATE]  # who names a layer is told of it
    assert best.predict(Part(x[:0], part.y[:0], part.rows[:0])).shape == (0, 2)


def test_layers_told_on_training_rows_are_looked_up_on_all() -> None:
    net = nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 2)
    )
    x = torch.randn(40, 6, generator=generator())
    part = Part(x, (x[:, 0] > 0).long(), torch.arange(40))
    blank = Part(torch.zeros(4, 6), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    assert list(probe_layers(net, part, blank, few=blank, penalties=[0.1])) == ["1", PENULTIMATE]


def test_a_network_that_goes_on_behind_its_head() -> None:
    net = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2), nn.LogSoftmax(1)
    ).eval()
    x = torch.randn(9, 6, generator=generator())
    with torch.no_grad():
        expected = net[:4](x)
    torch.testing.assert_close(layer_features(net, x)[PENULTIMATE], expected)
    head = from_head(net[4])
    torch.testing.assert_close(head.logits(expected).float(), net[4](expected).detach())
    assert not head.weight.requires_grad
    assert not head.bias.requires_grad
    part = Part(x, torch.arange(9) % 2, torch.arange(9))
    found = probe_layers(net, part, part, penalties=[0.1])
    told = LayerClassifier(net, {PENULTIMATE: found[PENULTIMATE]}, "auto").predict(part)
    torch.testing.assert_close(told, found[PENULTIMATE].head.logits(expected).softmax(dim=1).float())


def test_selection_takes_the_best_and_the_later_of_equals() -> None:
    g = generator()
    x = torch.randn(300, 6, generator=g)
    part = Part(x, (x[:, 0] > 0).long(), torch.arange(300))
    found = probe_layers(mlp(), part, part, penalties=[1e-3, 1e3])
    assert chosen(found).score == max(one.score for one in found.values())
    best = [name for name, one in found.items() if one.score == chosen(found).score]
    assert chosen(found).layer == best[-1]
    assert all(one.penalty == 1e-3 for one in found.values())


def test_worst_groups_can_choose() -> None:
    logits = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    y, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert score(logits, y) == 0.75
    assert score(logits, y, groups) == 0.5
    assert score(logits, y, torch.tensor([0, 1, 2, 2])) == 0.5
    assert score(logits, y, torch.tensor([0, 1, 2, 3])) == 0.0


def test_balanced_rows() -> None:
    groups = torch.tensor([0] * 50 + [1] * 5 + [2] * 20)
    rows = balanced_rows(groups, 15, generator())
    assert groups[rows].bincount().tolist() == [5, 5, 5]
    assert len(set(rows.tolist())) == 15
    assert groups[balanced_rows(groups, 45, generator())].bincount().tolist() == [20, 5, 20]
    with pytest.raises(ValueError, match="n is 76"):
        balanced_rows(groups, 76, generator())


def test_sensitivity_of_moved_classes() -> None:
    y = torch.arange(4000) % 2
    z = torch.randn(4000, 3, generator=generator()) * 0.01
    z[:, 0] += 4.0 * y
    moved = z.clone()
    moved[:, 1] += 2.0
    assert sensitivity(z, y, moved, y) == pytest.approx(0.5, abs=0.01)
    assert sensitivity(z, y, z, y) == 0.0
    # corners of a triangle with sides 3, 4, 5, each moved by 2: 2 of a mean side of 4
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    three = torch.arange(3)
    assert sensitivity(corners, three, corners + torch.tensor([2.0, 0.0]), three) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="1 classes occur"):
        sensitivity(z, y, z[:10], torch.zeros(10).long())


def test_few_shots_fit_on_rows_that_do_not_choose() -> None:
    data = open_dataset("digits").prepare(0)
    seen: list[torch.Tensor] = []

    class Watched(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                seen.append(x)
            return super().forward(x)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return Watched(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))

    found = fit(data, Budget(60, 64, 17), generator(), make, Optimisation(5e-3), shots=40, probe_rows=200)
    sizes = {len(x) for x in seen}
    assert {200, 40, len(data.valid) - 40} <= sizes
    p = found.predict(data.test)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(len(p)))
    assert float((p.argmax(dim=1) == data.test.y).float().mean()) > 0.7
    assert set(found.curve) == {"2", PENULTIMATE}
    assert found.best.score == max(found.curve.values())


def test_what_is_chosen_is_what_predicts() -> None:
    data = open_dataset("wine").prepare(0)

    def make() -> nn.Module:
        return mlp(3, 13, 3)

    found = fit(data, Budget(40, 32, 4), generator(), make, Optimisation(1e-2), layers=["1"])
    assert set(found.curve) == {"1", PENULTIMATE}
    features = layer_features(found.model, data.test.x, ["1"])[found.best.layer]
    torch.testing.assert_close(found.predict(data.test), found.best.head.logits(features).softmax(dim=1).float())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 2)
        self.both = Twice()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.both(self.first(x))[0])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.act(x), x


def test_misuse_lists_what_there_is() -> None:
    x = torch.randn(5, 6)
    with pytest.raises(KeyError, match="'nowhere' is not among the modules that run; candidates: first, "):
        layer_features(Pair(), x, ["nowhere"])
    with pytest.raises(TypeError, match="'both' returns tuple"):
        layer_features(Pair(), x, ["both"])
    assert list(layer_features(Pair(), x)) == [PENULTIMATE]  # a block that returns a pair is passed over
    with pytest.raises(ValueError, match="pool is 'odd'"):
        layer_features(Pair(), x, pool="odd")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shots": -1}, "shots is -1"),
        ({"shots": 10_000}, "shots is 10000"),
        ({"probe_rows": 1}, "probe_rows is 1"),
        ({"penalties": [0.0]}, "penalties"),
        ({"pool": "odd"}, "'odd'"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], told: str) -> None:
    data: Data = open_dataset("iris").prepare(0)
    with pytest.raises(ValueError, match=told):
        fit(data, Budget(1, 8, 1), generator(), lambda: mlp(2, 4, 3), Optimisation(), **settings)  # type: ignore[arg-type]


def test_blocks_that_begin_in_place_frozen_norms_and_a_head_registered_first() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.layer = nn.ReLU(inplace=True), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.act(x))

    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm = nn.Linear(8, 2), nn.BatchNorm1d(8)
            self.first, self.second = PreActivation(), PreActivation()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.second(self.first(x))))

    torch.manual_seed(0)
    model, x = HeadFirst(), torch.randn(7, 8)
    model.norm.eval()
    found = layer_features(model, x)
    first = model.first.layer(x.relu())
    torch.testing.assert_close(found["first"], first)
    assert float(found["first"].min()) < 0
    torch.testing.assert_close(found[PENULTIMATE], model.norm(model.second.layer(first.relu())))
    assert not model.norm.training
    assert model.training


def test_every_run_of_one_activation_is_a_layer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
            self.act, self.head = nn.ReLU(), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = self.act(layer(x))
            return self.head(x)

    torch.manual_seed(0)
    net, x = Shared(), torch.randn(40, 6)
    found = layer_features(net, x)
    assert list(found) == ["act", "act:2", "act:3", PENULTIMATE]
    h = x
    for name, layer in zip(found, net.layers, strict=True):
        h = layer(h).relu()
        torch.testing.assert_close(found[name], h.detach())
    y = (x[:, 0] > 0).long()
    part = Part(x, y, torch.arange(40))
    probed = probe_layers(net, part, part, penalties=[0.01])
    predictor = LayerClassifier(net, {"act:2": probed["act:2"]}, "auto")
    torch.testing.assert_close(
        predictor.predict(part), probed["act:2"].head.logits(found["act:2"]).softmax(dim=1).float()
    )


def test_a_head_with_a_rule_of_its_own_is_refused() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(x) @ self.weight.T

    with pytest.raises(ValueError, match="Cosine computes in a way of its own"):
        from_head(Cosine(3, 2))
