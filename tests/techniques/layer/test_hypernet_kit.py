"""Hypernetworks against plain networks, loops and wanted variances."""

from __future__ import annotations

import copy
import doctest
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.kinds.image.network import SmallResNet
from probatum.numerics.hypernetworks.hypernet import Layout, call, supplier_of, withdraw
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.layer import hypernet_kit
from probatum.techniques.layer.hypernet_kit import (
    Hypernetwork,
    SetEncoder,
    WeightGenerator,
    apply,
    codes,
    output_penalty,
    pieces_of,
)
from small_networks import Begins

SPEC = Spec("image", "classes", (1, 8, 8), 10)
ALL = [
    ("once", "mlp"), ("heads", "mlp"), ("components", "mlp"), ("chunks", "mlp"),
    ("chunks", "cnn"), ("chunks", "rnn"), ("components", "attention"),
]  # fmt: skip


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 30), nn.Linear(30, 3))


def resnet() -> SmallResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallResNet(SPEC)


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(("head", "body"), ALL)
def test_ordinary_start_is_the_plain_network_for_every_condition(head: str, body: str) -> None:
    model, x = net(), torch.randn(4, 1, 8, 8, generator=own())
    maker = WeightGenerator(
        Layout.of(model), 3, head, body=body, chunk=100, start="ordinary", ordinary=weights(model), generator=own()
    )
    both, wanted = Hypernetwork(copy.deepcopy(model), maker), model(x)
    for condition in torch.randn(3, 3, generator=own(1)):
        assert torch.equal(both(x, condition), wanted)
    both(x, torch.ones(3)).square().sum().backward()
    assert any(bool((layer.weight.grad != 0).any()) for layer in maker.last)


@pytest.mark.parametrize(("head", "body"), ALL)
def test_first_variance_is_two_over_fan_in(head: str, body: str) -> None:
    model, found = nn.Sequential(nn.Linear(60, 80), nn.Conv2d(16, 32, 3)), []
    layout = Layout.of(model)
    for seed in range(4):
        maker = WeightGenerator(layout, 8, head, 64, chunk=128, body=body, generator=own(seed))
        found.append(layout.ratios(maker(torch.randn(200, 8, generator=own(100 + seed)))))
    for name in ("0.weight", "1.weight"):
        assert sum(ratio[name] for ratio in found) / 4 == pytest.approx(1, abs=0.1), name


@pytest.mark.parametrize(("head", "chunk"), [("chunks", 7), ("chunks", 54), ("chunks", 10_000), ("components", 1)])
def test_every_value_has_a_place_of_its_own(head: str, chunk: int) -> None:
    model = net()
    layout = Layout.of(model)
    where, places, size = pieces_of(layout, head, chunk)
    assert places.numel() == layout.numel == places.unique().numel()
    assert int(places.max()) < len(where) * size
    for entry in layout.entries:  # the pieces of a tensor belong to it alone, the last one is cut off
        rows = (places[entry.start : entry.start + entry.numel] // size).unique()
        assert {int(where[row, 0]) for row in rows} == {layout.entries.index(entry)}
        length = chunk if head == "chunks" else entry.numel // entry.shape[0]
        assert len(rows) == -(-entry.numel // length)


def test_conditions_a_row_equal_a_loop_over_rows() -> None:
    model, x, c = net(), torch.randn(5, 1, 8, 8, generator=own()), torch.randn(5, 3, generator=own(1))
    both = Hypernetwork(model, WeightGenerator(Layout.of(model), 3, chunk=64, generator=own()))
    wanted = torch.cat([both(x[i : i + 1], c[i]) for i in range(5)])
    torch.testing.assert_close(both(x, c), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.plain(c[2])(x), both(x, c[2]))
    batch = SetEncoder(64, 3, each=True, generator=own())
    assert both(x, batch(x)).shape == (5, 3)


def test_support_sets_have_no_order() -> None:
    encode, rows = SetEncoder(4, 3, generator=own()), torch.randn(6, 4, generator=own(1))
    torch.testing.assert_close(encode(rows), encode(rows.flip(0)))
    assert encode(rows).shape == (3,)


def test_running_statistics_are_kept_by_task() -> None:
    model, x = resnet(), torch.rand(8, 1, 8, 8, generator=own())
    both = Hypernetwork(model, WeightGenerator(Layout.of(model), 2, chunk=512, generator=own()), statistics=2)
    before = {name: value.clone() for name, value in both.state_dict().items() if name.startswith("kept")}
    assert before
    both(x, torch.ones(2), which=1)
    first = both._names.index("stem.1.running_mean")
    kept = both.state_dict()[f"kept{first}"]
    assert torch.equal(kept[0], before[f"kept{first}"][0])
    assert not torch.equal(kept[1], before[f"kept{first}"][1])
    both.eval()
    torch.testing.assert_close(both.plain(torch.ones(2), 1)(x), both(x, torch.ones(2), which=1))
    assert not torch.allclose(both(x, torch.ones(2), which=1), both(x, torch.ones(2), which=0))


def test_coded_places_serve_networks_of_other_shapes() -> None:
    model, wider = nn.Linear(10, 8), nn.Linear(10, 30)
    maker = WeightGenerator(Layout.of(model), 3, chunk=16, places="coded", generator=own())
    c = torch.randn(3, generator=own(1))
    torch.testing.assert_close(maker(c, Layout.of(model)), maker(c))
    made = maker(c, Layout.of(wider))
    assert call(wider, Layout.of(wider).unflatten(made), torch.zeros(2, 10)).shape == (2, 30)
    learned = WeightGenerator(Layout.of(model), 3, chunk=16, generator=own())
    with pytest.raises(ValueError, match="knows one layout"):
        learned(c, Layout.of(wider))
    rows = WeightGenerator(Layout.of(model), 3, "components", places="coded", generator=own())
    with pytest.raises(ValueError, match="rows of 50 values"):
        rows(c, Layout.of(nn.Linear(50, 2)))


def test_output_penalty_by_hand_and_its_pull() -> None:
    maker = WeightGenerator(Layout.of(nn.Linear(3, 2)), 2, chunk=4, generator=own())
    conditions = torch.randn(3, 2, generator=own(1))
    old = maker(conditions).detach()
    assert float(output_penalty(maker, conditions, old).detach()) == 0
    moved = float(output_penalty(maker, conditions, old + 0.5).detach())
    assert moved == pytest.approx(0.25 * 8, rel=1e-5)


@pytest.mark.parametrize("head", ["once", "heads", "components", "chunks"])
def test_in_place_trains_its_own_parameters_alone(head: str) -> None:
    model, x = resnet(), torch.rand(4, 1, 8, 8, generator=own())
    count = apply(model, head, width=16, spec=SPEC, generator=own())
    assert count == 10
    assert not any(name.endswith("conv1.weight") for name, _ in model.named_parameters())
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    plain = copy.deepcopy(model)
    assert withdraw(plain) == 10
    assert set(dict(plain.named_parameters())) == set(dict(resnet().named_parameters()))
    torch.testing.assert_close(plain.eval()(x), model.eval()(x))


def test_chunks_need_fewer_parameters() -> None:
    model = resnet()
    before = sum(p.numel() for p in model.parameters())
    apply(model, generator=own())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) < before / 3


def test_noise_differs_in_training_and_is_averaged_in_evaluation() -> None:
    model, x = net(), torch.randn(4, 1, 8, 8, generator=own())
    state = torch.get_rng_state()
    apply(model, condition="noise", draws=3, inputs=4, spec=SPEC, generator=own())
    assert not torch.equal(model(x), model(x))
    model.eval()
    supplier = supplier_of(model)
    with torch.no_grad():
        found = model(x)
        assert torch.equal(found, model(x))
        every = []
        for z in supplier.fixed:
            values = supplier.layout.unflatten(supplier.maker(z))
            every.append(call(net(), values, x).softmax(dim=1))
    plain = {n: p for n, p in net().named_parameters() if n.endswith("bias")}
    assert set(plain) & set(supplier.layout.names) == set()
    torch.testing.assert_close(found.exp(), torch.stack(every).mean(dim=0))
    assert torch.equal(state, torch.get_rng_state())
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))


def test_nothing_to_make_and_bad_input() -> None:
    assert apply(nn.Sequential(nn.Identity())) == 0
    with pytest.raises(ValueError, match=r"names \['9\.weight'\].* it has 0\.weight, 0\.bias"):
        apply(net(), names=["9.weight"])
    maker = WeightGenerator(Layout.of(net()), 3, generator=own())
    with pytest.raises(ValueError, match="the condition has 4 values; this hypernetwork takes 3"):
        maker(torch.zeros(4))
    with pytest.raises(ValueError, match=r"has no parameters \['0\.weight'"):
        Hypernetwork(nn.Linear(2, 2), maker)
    with pytest.raises(ValueError, match="which is 1"):
        Hypernetwork(net(), maker)(torch.zeros(1, 1, 8, 8), torch.zeros(3), which=1)
    with pytest.raises(ValueError, match=r"needs the .* weights to start from"):
        WeightGenerator(Layout.of(net()), 3, start="ordinary")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "odd"}, "head is 'odd'"),
        ({"body": "odd"}, "body is 'odd'"),
        ({"start": "odd"}, "start is 'odd'"),
        ({"condition": "odd"}, "condition is 'odd'"),
        ({"draws": 0}, "draws is 0"),
        ({"chunk": 0}, "chunk is 0; it must be at least 1"),
        ({"embedding": 1}, "embedding is 1"),
        ({"head": "once", "body": "rnn"}, "runs over pieces"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(net(), **settings)


def test_on_the_bench() -> None:
    data = open_dataset("digits").prepare(0)
    for arm in ("hypernet-kit(width=16)", "hypernet-kit(condition='noise', start='ordinary', draws=2)"):
        run = fit(arm, data, 2, training=Training(epochs=2, batch_size=64))
        assert run.curve[-1]["valid_error"] < 0.5, arm


def test_example() -> None:
    assert doctest.testmod(hypernet_kit).failed == 0


def test_frozen_layers_are_left_alone_and_refused_by_name() -> None:
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.detach().clone()
    apply(model)
    assert "weight" in dict(model[0].named_parameters(recurse=False))
    assert torch.equal(model[0].weight, before)
    other = net()
    other[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.weight' is frozen"):
        apply(other, names=["0.weight"])
    assert supplier_of(other) is None


def test_pickle_and_copy_of_a_supplied_network_run_on_their_own() -> None:
    model = net()
    apply(model)
    x = torch.randn(3, 1, 8, 8)
    model.eval()
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(copied(x), model(x))
        with torch.no_grad():
            for p in copied.parameters():
                p.mul_(0.5)
        assert not torch.allclose(copied(x), model(x))


def test_inside_an_encoder_made_weights_are_read_in_evaluation_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), nn.Linear(16, 2))
    apply(model, names=["0.linear1.weight", "0.linear2.weight"])
    x = torch.randn(2, 5, 16)
    expected = model.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["once", "chunks"])
def test_averages_through_data_are_seen_in_evaluation(head: str) -> None:
    model, average, x = net().eval(), net().eval(), torch.randn(4, 1, 8, 8, generator=own())
    for one in (model, average):
        apply(one, head, generator=own(1))
    with torch.no_grad():
        average(x)
        for _ in range(3):
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.data.mul_(0.5).add_(theirs.data, alpha=0.1)
            fresh = net().eval()
            apply(fresh, head, generator=own(2))
            fresh.load_state_dict(average.state_dict())
            torch.testing.assert_close(average(x), fresh(x))


def test_noise_is_averaged_for_inputs_given_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return scale * self.body(x)

    model, x = Named(), torch.randn(4, 1, 8, 8, generator=own())
    apply(model, condition="noise", draws=3, generator=own())
    model.eval()
    supplier = supplier_of(model)
    every = [
        2
        * call(net(), {n.removeprefix("body."): v for n, v in supplier.layout.unflatten(supplier.maker(z)).items()}, x)
        for z in supplier.fixed
    ]
    torch.testing.assert_close(model(x=x, scale=2.0), torch.stack(every).mean(dim=0))
    torch.testing.assert_close(model(x, scale=2.0), torch.stack(every).mean(dim=0))
    withdraw(model)
    assert not model._forward_hooks_with_kwargs
    assert not model._forward_hooks_always_called


def test_codes_of_places_by_hand() -> None:
    where = torch.tensor([[0.0, 0.25], [3.0, 0.5]])
    found = codes(where, 6)
    for row, (entry, share) in zip(found, where.tolist(), strict=True):
        angles = [entry, entry / 2, math.pi * share, 2 * math.pi * share]
        wanted = [math.sqrt(2) * wave(angle) for wave in (math.sin, math.cos) for angle in angles]
        assert row.tolist() == pytest.approx(wanted[:6], abs=1e-6)


def test_smallest_settings_and_first_scale_of_the_set_encoder() -> None:
    model = net()
    assert apply(model, inputs=1, width=1, depth=1, chunk=1, embedding=2, draws=1, generator=own()) == 3
    assert torch.isfinite(model(torch.randn(2, 1, 8, 8))).all()
    encoder = SetEncoder(4, 50, width=100, generator=own())
    assert float(encoder.last.weight.detach().var()) == pytest.approx(1 / 100, rel=0.1)


def test_classes_are_averaged_as_probabilities_and_reals_as_they_are() -> None:
    x = torch.randn(4, 1, 8, 8, generator=own())
    for task, mean in (("classes", False), ("reals", True)):
        model = net().eval()
        apply(model, condition="noise", draws=3, spec=Spec("image", task, (1, 8, 8), 3), generator=own())
        supplier = supplier_of(model)
        each = [call(net(), supplier.layout.unflatten(supplier.maker(z)), x) for z in supplier.fixed]
        wanted = torch.stack(each).mean(dim=0) if mean else torch.stack([o.softmax(1) for o in each]).mean(dim=0).log()
        torch.testing.assert_close(model(x), wanted)


def test_writing_to_a_made_weight_has_no_effect() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    apply(net)
    net.eval()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = net(x)
        net[0].weight.zero_()
        assert torch.equal(net(x), before)
        assert torch.equal(net(x), before)


def test_every_draw_sees_the_rows_as_they_came() -> None:
    def begun(inside: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(inside, nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()

    x, plain, odd = torch.randn(4, 64, generator=own()), begun(nn.Identity()), begun(Begins())
    for model in (plain, odd):
        apply(model, condition="noise", draws=3, inputs=4, width=16, chunk=128, generator=own())
        model.eval()
    torch.testing.assert_close(odd(x.clone()), plain(x + 1))
    assert supplier_of(odd)._given == ((), {})


@pytest.mark.parametrize("way", ["by name", "tuple", "list", "mapping"])
def test_every_draw_sees_the_rows_however_they_are_given(way: str) -> None:
    class Taking(nn.Module):
        def __init__(self, begins: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.begins = begins
            self.inner = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

        def forward(self, x: Any) -> torch.Tensor:
            rows = x["x"] if isinstance(x, dict) else x if isinstance(x, torch.Tensor) else x[0]
            return self.inner(rows.add_(1) if self.begins else rows + 1)

    def run(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        if way == "by name":
            return net(x=rows)
        return net({"tuple": (rows,), "list": [rows], "mapping": {"x": rows}}[way])

    x, models = torch.randn(4, 64, generator=own()), [Taking(False).eval(), Taking(True).eval()]
    for model in models:
        apply(model, condition="noise", draws=3, inputs=4, width=16, chunk=128, generator=own())
        model.eval()
    plain, odd = (run(model, x.clone()) for model in models)
    torch.testing.assert_close(odd, plain)
