"""Guidance: the loss by hand, gradients into the target only, and what it does in a run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.numerics.networks.watch import hidden_layers
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.method.guidance.cka import linear_cka
from probatum.techniques.method.guidance.guidance import Guidance, ResidualGuide, layer_map

SHORT = Training(epochs=2, batch_size=64)


def networks() -> tuple[nn.Sequential, nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    target = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 3))
    guide = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh())
    return target, guide, torch.randn(12, 6)


def test_convolutions_of_the_guide_have_no_bias_before_their_norms() -> None:
    guide = ResidualGuide(Spec("image", "classes", (1, 8, 8), 3))
    convolutions = [module for module in guide.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 9  # the stem, three blocks of two, and two skips that change the width
    assert all(module.bias is None for module in convolutions)


def test_layers_are_spread_evenly() -> None:
    assert layer_map(4, 2) == [0, 1, 1, 1]
    assert layer_map(3, 3) == [0, 1, 2]
    assert layer_map(2, 5) == [0, 3]
    assert layer_map(19, 4) == [min(3, int(i * 4 / 19 + 0.5)) for i in range(19)]
    with pytest.raises(ValueError, match="0 target layers"):
        layer_map(0, 3)


def test_loss_is_the_weighted_sum_of_misalignments() -> None:
    target, guide, x = networks()
    with Guidance(weight=0.7).attach(target, guide, x) as guidance:
        target(x)
        found = guidance.alignment_loss(x)
        ours, theirs = hidden_layers(target, x), hidden_layers(guide, x)
        names, guides = ["1", "3", "5"], ["1", "3", "3"]
        assert (guidance.names, guidance.guide_names) == (names, guides)
        expected = sum(1 - linear_cka(ours[a], theirs[b]) for a, b in zip(names, guides, strict=True))
    torch.testing.assert_close(found, 0.7 * expected)


def test_the_guide_gets_no_gradient_and_the_target_keeps_no_hook() -> None:
    target, guide, x = networks()
    with Guidance().attach(target, guide, x) as guidance:
        target(x)
        guidance.alignment_loss(x).backward()
    assert all(p.grad is None for p in guide.parameters())
    assert target[0].weight.grad.abs().sum() > 0
    assert not any(module._forward_hooks for module in target.modules())


def test_steps_along_the_gradient_align() -> None:
    target, guide, x = networks()
    optimizer = torch.optim.Adam(target.parameters(), lr=0.01)
    losses = []
    with Guidance().attach(target, guide, x) as guidance:
        for _ in range(60):
            target(x)
            losses.append(guidance.alignment_loss(x))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_noise_guides_see_noise() -> None:
    target, guide, x = networks()
    guidance = Guidance(guide="noise")
    guidance.attach(target, guide, x).detach()
    first, second = guidance.guide_grams(x), guidance.guide_grams(x)
    assert not torch.equal(first["1"], second["1"])
    plain = Guidance(guide="random")
    plain.attach(target, guide, x).detach()
    assert torch.equal(plain.guide_grams(x)["1"], plain.guide_grams(x)["1"])


def test_guide_lets_go_and_weight_zero_is_the_baseline() -> None:
    data = open_dataset("wine").prepare(0)
    baseline = fit(None, data, 3, training=SHORT).model.state_dict()
    neutral = fit("guidance(weight=0.0)", data, 3, training=SHORT).model.state_dict()
    assert all(torch.equal(baseline[name], neutral[name]) for name in baseline)
    run = fit("guidance(guide_steps=5, until=0.5)", data, 3, training=SHORT)
    steps = run.budget.steps
    assert run.extra_passes >= 5 * run.budget.batch_size
    whole = fit("guidance(guide_steps=5)", data, 3, training=SHORT)
    assert whole.extra_passes > run.extra_passes
    assert steps == whole.budget.steps


def test_alignment_alone_leaves_the_head_as_it_is() -> None:
    data = open_dataset("wine").prepare(0)
    short = Training(epochs=2, batch_size=64, weight_decay=0.0, select="last")
    run = fit("guidance(only=True, guide='random')", data, 3, training=short)
    baseline = fit(
        "guidance(weight=0.0)", data, 3, training=Training(steps=1, lr=1e-12, weight_decay=0.0, select="last")
    )
    torch.testing.assert_close(run.model.head.weight, baseline.model.head.weight)


@pytest.mark.parametrize("name", ["digits", "iris"])
def test_trained_guides_learn(name: str) -> None:
    data = open_dataset(name).prepare(0)
    guidance = Guidance(guide_steps=150, generator=torch.Generator().manual_seed(0))

    class Fake:
        model, train, spec, extra_passes = None, data.train, data.spec, 0.0
        budget = type("B", (), {"steps": 150, "batch_size": 64})

    torch.manual_seed(0)
    Fake.model = ResidualGuide(data.spec, 4)
    guidance.prepare(Fake())
    right = (guidance.guide(data.test.x).argmax(dim=1) == data.test.y).float().mean()
    assert right > 0.85


def test_misuse() -> None:
    target, guide, x = networks()
    for settings, told in (
        ({"weight": -1.0}, "weight is -1.0"),
        ({"until": 0.0}, "until is 0.0"),
        ({"guide": "wise"}, "guide is 'wise'"),
        ({"guide_steps": 0}, "guide_steps is 0"),
        ({"width": 0}, "width is 0"),
    ):
        with pytest.raises(ValueError, match=told):
            Guidance(**settings)
    with Guidance().attach(target, guide, x) as guidance:
        target(x[:7])
        with pytest.raises(ValueError, match="7 rows is too small"):
            guidance.alignment_loss(x[:7])
        with pytest.raises(ValueError, match="already attached"):
            guidance.attach(target, guide, x)
    with Guidance().attach(target, guide, x) as guidance, pytest.raises(ValueError, match="has not run"):
        guidance.alignment_loss(x)
    with torch.no_grad():
        target[0].weight.zero_()
        target[0].bias.fill_(-1.0)
    with Guidance().attach(target, guide, x) as guidance:
        target(x)
        with pytest.raises(ValueError, match=r"'1'.*without variance"):
            guidance.alignment_loss(x)


def test_a_layer_before_an_activation_in_place_is_aligned_as_it_was() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    spoiling = copy.deepcopy(plain)
    for module in spoiling.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    x, found = torch.randn(16, 6), []
    guide = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    for target in (plain, spoiling):
        with Guidance(layers=["0", "2"]).attach(target, guide, x) as guidance:
            target(x)
            found.append(guidance.alignment_loss(x))
    torch.testing.assert_close(found[1], found[0])


def test_alignment_in_half_precision_does_not_overflow() -> None:
    a = 10 * torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    found = linear_cka(a.half(), (a + 1).half())
    torch.testing.assert_close(found, linear_cka(a.half().float(), (a + 1).half().float()))


class Running:
    """What a run on the bench is to the method, without a loop."""

    def __init__(self, model: nn.Module, steps: int = 10) -> None:
        self.model, self.step, self.extra_passes, self.notes = model, 0, 0.0, {}
        self.budget = type("Budget", (), {"steps": steps, "batch_size": 12})


def on_the_bench(guidance: Guidance, run: Running, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
    batch = type("Batch", (), {"x": x})
    guidance.before_pass(run, batch)
    output = run.model.train()(x)
    return guidance.loss(run, batch, output, task + 0 * output.sum())


def test_dead_layers_are_left_out_on_the_bench_and_counted() -> None:
    target, guide, x = networks()
    with torch.no_grad():
        target[2].weight.zero_()
        target[2].bias.fill_(-1.0)
        target[2].bias[0] = 0.3  # dead, though not zero: 3 sees equal rows
        target[4].weight.zero_()
        target[4].bias.fill_(0.7)
    guidance, run = Guidance(weight=0.7), Running(target)
    guidance._map(target, guide, x)
    found = on_the_bench(guidance, run, x, torch.tensor(2.0))
    ours, theirs = hidden_layers(target, x), hidden_layers(guide, x)
    torch.testing.assert_close(found, 2 + 0.7 * (1 - linear_cka(ours["1"], theirs["1"])))
    assert guidance.report()["layers without variance left out"] == 2
    found.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in target.parameters() if p.grad is not None)
    with torch.no_grad():
        target[0].weight.zero_()
    assert float(on_the_bench(guidance, run, x, torch.tensor(2.0)).detach()) == 2.0
    assert guidance.report()["layers without variance left out"] == 5
    again = Guidance(weight=0.7)
    again._map(target, copy.deepcopy(guide), x)
    again.load_state_dict(guidance.state_dict())
    assert again.left_out == 5


def test_only_until_and_the_charge_by_value() -> None:
    for only, task in ((False, 2.0), (True, 0.0)):
        target, guide, x = networks()
        guidance, run = Guidance(weight=0.3, until=0.25, only=only), Running(target)
        guidance._map(target, guide, x)
        run.step = 2  # below 2.5 of 10 steps
        found = on_the_bench(guidance, run, x, torch.tensor(2.0))
        ours, theirs = hidden_layers(target, x), hidden_layers(guide, x)
        pairs = zip(guidance.names, guidance.guide_names, strict=True)
        similarity = [linear_cka(ours[a], theirs[b]) for a, b in pairs]
        torch.testing.assert_close(found, task + 0.3 * sum(1 - value for value in similarity))
        assert guidance.report()["alignment with the guide"] == pytest.approx(float(sum(similarity)) / 3)
        assert run.extra_passes == 12 / 3
        run.step = 3
        assert float(on_the_bench(guidance, run, x, torch.tensor(2.0)).detach()) == 2.0
        assert run.extra_passes == 12 / 3
        run.step = 0
        assert float(on_the_bench(guidance, run, x[:7], torch.tensor(2.0)).detach()) == 2.0  # too few rows


def test_noise_for_tokens_is_of_the_tokens_that_occur() -> None:
    tokens, shown = torch.tensor([[0, 3, 2], [4, 0, 1]]).repeat(40, 1), []
    guide = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh())
    guide.register_forward_pre_hook(lambda _module, given: shown.append(given[0].clone()))
    guidance = Guidance(guide="noise")
    guidance.guide, guidance.guide_names = guide, ["3"]
    guidance.guide_grams(tokens)
    assert shown[0].shape == tokens.shape
    assert sorted(set(shown[0].flatten().tolist())) == [1, 2, 3, 4]  # 0 pads
    assert not torch.equal(shown[0], tokens)


def test_guides_are_trained_by_a_half_cosine_and_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    data, rates, decays = open_dataset("wine").prepare(0), [], []

    class Spy(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            decays.append(self.param_groups[0]["weight_decay"])
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    for guide_steps, kind, wanted, charge in (
        (3, "trained", [0.2, 0.15, 0.05], 3 * 12),
        (None, "trained", [0.2, 0.1], 2 * 12),
        (None, "random", [], 0),
    ):
        rates.clear()
        torch.manual_seed(0)
        run = Running(ResidualGuide(data.spec, 3), steps=2)
        run.train, run.spec = data.train, data.spec
        guidance = Guidance(guide=kind, guide_steps=guide_steps, guide_rate=0.2, width=5)
        guidance.prepare(run)
        assert rates == pytest.approx(wanted)
        assert run.extra_passes == charge
        assert guidance.guide is not None
        assert guidance.guide.head.in_features == 20
        assert not any(p.requires_grad for p in guidance.guide.parameters())
    assert set(decays) == {0.01}


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((3, 16, 12), [(5, 16, 12), (10, 8, 6), (20, 4, 3)]), ((7,), [(5,), (10,), (20,)])],
)
def test_a_guide_doubles_its_channels_as_it_halves_its_maps(
    shape: tuple[int, ...], sizes: list[tuple[int, ...]]
) -> None:
    spec = Spec("image" if len(shape) == 3 else "table", "classes", shape, 4)
    guide, x = ResidualGuide(spec, 5).eval(), torch.randn(2, *shape)
    h, found = guide.stem(x).relu(), []
    for block in guide.blocks:
        h = (block.second(block.first(h).relu()) + block.skip(h)).relu()
        found.append(tuple(h.shape[1:]))
    assert found == sizes
    torch.testing.assert_close(guide(x), guide.head(h.flatten(2).mean(2) if h.ndim > 2 else h))


def test_a_guide_is_left_as_it_was() -> None:
    target, guide, x = networks()
    guide.train()
    before = copy.deepcopy(guide.state_dict())
    with Guidance().attach(target, guide, x) as guidance:
        (target(x).sum() + guidance.alignment_loss(x)).backward()
    assert guide.training
    assert all(p.requires_grad and p.grad is None for p in guide.parameters())
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
