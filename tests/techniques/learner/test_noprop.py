"""NoProp: the chain's law with an oracle, no gradient between blocks, all three variants learn."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from probatum.data.open import open_dataset
from probatum.spec import Budget, Spec
from probatum.techniques.learner import noprop
from probatum.techniques.learner.noprop import (
    NoProp,
    chain_coefficients,
    check_levels,
    class_examples,
    cosine_levels,
    fit,
    local_parameters,
    noised,
    prior_divergence,
    signal_to_noise,
    update,
)

TABLE = Spec("table", "classes", (4,), 3, numeric=4)


def test_the_chain_keeps_the_law_with_an_oracle() -> None:
    levels, generator = cosine_levels(6), torch.Generator().manual_seed(0)
    u = torch.tensor([1.5, -0.5], dtype=torch.float64).expand(100_000, 2)
    z = noised(u, float(levels[0]), generator)
    for a, b, c, level in zip(*chain_coefficients(levels), levels[1:], strict=True):
        z = a * u + b * z + c.sqrt() * torch.randn(z.shape, generator=generator, dtype=z.dtype)
        torch.testing.assert_close(z.mean(dim=0), level.sqrt() * u[0], atol=0.01, rtol=0)
        torch.testing.assert_close(z.var(dim=0), (1 - level).expand(2), atol=0.01, rtol=0.01)


def test_coefficients_by_the_algebra_of_gaussians() -> None:
    levels = cosine_levels(5)
    a, b, c = chain_coefficients(levels)
    before, after = levels[:-1], levels[1:]
    torch.testing.assert_close(a + b * before.sqrt(), after.sqrt())
    torch.testing.assert_close(b.square() * (1 - before) + c, 1 - after)
    assert (signal_to_noise(levels).diff() > 0).all()


def test_no_gradient_crosses_blocks() -> None:
    torch.manual_seed(0)
    net = NoProp(TABLE, blocks=3, embedding="learned")
    losses = list(net.block_losses(torch.randn(8, 4), torch.arange(8) % 3, torch.Generator().manual_seed(0)))
    for t, loss in enumerate(losses):
        for s, block in enumerate(net.blocks):
            found = torch.autograd.grad(loss, list(block.parameters()), retain_graph=True, allow_unused=True)
            assert all((g is not None) == (s == t) for g in found)
    groups = local_parameters(net)
    assert sum(len(group) for group in groups) == len(list(net.parameters()))


def test_losses_by_hand() -> None:
    torch.manual_seed(0)
    net = NoProp(TABLE, blocks=2, eta=0.3)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    found = list(net.block_losses(x, y, torch.Generator().manual_seed(5)))
    generator = torch.Generator().manual_seed(5)
    levels, u = net.levels, torch.eye(3)[y]
    expected = []
    for t in range(2):
        level = float(levels[t])
        z = level**0.5 * u + (1 - level) ** 0.5 * torch.randn(6, 3, generator=generator)
        hat = net.blocks[t](z, x).softmax(dim=1)
        weight = levels[t + 1] / (1 - levels[t + 1]) - levels[t] / (1 - levels[t])
        expected.append(2 / 2 * 0.3 * float(weight) * (hat - u).square().sum(dim=1).mean())
    last = float(levels[2])
    z = last**0.5 * u + (1 - last) ** 0.5 * torch.randn(6, 3, generator=generator)
    expected[1] = (
        expected[1] + torch.nn.functional.cross_entropy(net.head(z), y) + prior_divergence(u, float(levels[0]))
    )
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    law = torch.distributions.Normal(levels[0].sqrt() * u, (1 - levels[0]).sqrt())
    kl = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(prior_divergence(u, float(levels[0])), kl.float(), check_dtype=False)


def test_the_loss_of_fm_by_hand() -> None:
    torch.manual_seed(0)
    net = NoProp(TABLE, variant="fm")
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    (found,) = net.block_losses(x, y, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    u, t, start = torch.eye(3)[y], torch.rand(6, 1, generator=generator), torch.randn(6, 3, generator=generator)
    velocity = net.blocks[0](start + t * (u - start), x, t)
    end = start + t * (u - start) + (1 - t) * velocity
    own = (velocity - (u - start)).square().sum() / 6 - net.head(end).log_softmax(dim=1)[range(6), y].mean()
    torch.testing.assert_close(found, own)


def test_the_loss_of_ct_by_hand() -> None:
    torch.manual_seed(0)
    net = NoProp(TABLE, variant="ct", eta=0.3, embedding="learned", width=8)
    with torch.no_grad():
        net.schedule.raw.add_(torch.linspace(-0.5, 0.5, 16))
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    (found,) = net.block_losses(x, y, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    t = torch.rand(6, 1, generator=generator)
    steps = torch.nn.functional.softplus(net.schedule.raw).double().detach()
    knots = net.schedule.low.double().detach() + torch.cat([torch.zeros(1), steps.cumsum(0)])

    def log_ratio(at: float) -> float:
        low = min(int(at * 16), 15)
        return float(knots[low] + (at * 16 - low) * (knots[low + 1] - knots[low]))

    level = torch.tensor([[1 / (1 + math.exp(-log_ratio(float(v))))] for v in t])
    slope = [16 * float(steps[int(float(v) * 16)]) * math.exp(log_ratio(float(v))) for v in t]
    u = net.table[y]
    z = level.sqrt() * u + (1 - level).sqrt() * torch.randn(6, u.shape[1], generator=generator)
    gap = (net.blocks[0](z, x, t).softmax(dim=1) @ net.table - u).square().sum(dim=1)
    ends = [1 / (1 + math.exp(-float(v))) for v in (knots[0], knots[-1])]
    clear = ends[1] ** 0.5 * u + (1 - ends[1]) ** 0.5 * torch.randn(6, u.shape[1], generator=generator)
    own = 0.15 * (torch.tensor(slope) * gap).mean() - net.head(clear).log_softmax(dim=1)[range(6), y].mean()
    torch.testing.assert_close(found, own + prior_divergence(u, ends[0]), atol=1e-4, rtol=1e-4)


def test_the_chain_by_hand() -> None:
    torch.manual_seed(0)
    net, x = NoProp(TABLE, blocks=3), torch.randn(5, 4)
    found = net.end(x, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    levels = [float(v) for v in net.levels]
    z = torch.randn(1, 3, generator=generator).expand(5, 3)
    with torch.no_grad():
        for t in range(3):
            ratio, rest = levels[t] / levels[t + 1], 1 - levels[t]
            mean = levels[t + 1] ** 0.5 * (1 - ratio) / rest * net.blocks[t](z, x).softmax(dim=1)
            mean = mean + ratio**0.5 * (1 - levels[t + 1]) / rest * z
            z = mean + ((1 - levels[t + 1]) * (1 - ratio) / rest) ** 0.5 * torch.randn(1, 3, generator=generator)
    torch.testing.assert_close(found, z)
    assert levels == pytest.approx([0.01, 0.01 + 0.98 / 4, 0.01 + 0.98 * 3 / 4, 0.99])


def test_examples_of_classes_and_their_embedding() -> None:
    data = open_dataset("iris").prepare(0)
    shown = class_examples(data)
    for c in range(3):
        own = data.train.x[data.train.y == c]
        middle = [float((own - row).norm(dim=1).median()) for row in own]
        assert torch.equal(shown[c], own[middle.index(min(middle))])
    table = NoProp(data.spec, embedding="prototypes", prototypes=shown).table
    torch.testing.assert_close(table.mean(dim=0), torch.zeros(4), atol=1e-6, rtol=0)
    assert float(table.norm(dim=1).mean()) == pytest.approx(1.0)
    assert not table.requires_grad


@torch.no_grad()
def test_the_ode_of_ct_follows_the_law_with_an_oracle() -> None:
    torch.manual_seed(0)
    net = NoProp(TABLE, variant="ct", blocks=200)
    target = torch.tensor([0.0, 1.0, 0.0])
    net.expected = lambda logits, learn=True: target.expand(len(logits), 3)  # type: ignore[method-assign]
    level, slope, ratio = net.schedule(torch.tensor([[0.3]]))
    ahead = net.schedule(torch.tensor([[0.3 + 1e-3]]))[0]
    assert float(slope) == pytest.approx(float(ahead - level) / 1e-3, rel=0.02)
    assert float(ratio) == pytest.approx(float(ahead / (1 - ahead) - level / (1 - level)) / 1e-3, rel=0.02)
    z = net.end(torch.zeros(3000, 4), torch.Generator().manual_seed(0), apart=True)
    last = float(net.schedule(torch.ones(1, 1))[0])
    # the start is taken from N(0, I), whose gap to N(sqrt(a_0) u, 1 - a_0) shrinks as sqrt((1 - a_T) / (1 - a_0))
    torch.testing.assert_close(z.mean(dim=0), last**0.5 * target, atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(dim=0), torch.full((3,), 1 - last), atol=0.01, rtol=0.1)


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"variant": "dt"}, 0.85),
        ({"variant": "dt", "embedding": "learned"}, 0.85),
        ({"variant": "dt", "embedding": "prototypes"}, 0.85),
        ({"variant": "ct"}, 0.85),
        ({"variant": "fm"}, 0.85),
    ],
)
def test_every_variant_learns(settings: dict, least: float) -> None:
    data = open_dataset("wine").prepare(0)
    found = fit(data, Budget(80, 32, 4), torch.Generator().manual_seed(0), blocks=3, rate=1e-2, **settings)
    first, second = found.predict(data.test), found.predict(data.test)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.sum(dim=1), torch.ones(len(data.test)))
    assert (first.argmax(dim=1) == data.test.y).float().mean() > least


class Held:
    """Counts what graphs keep for their backward passes, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> Kept:
        return Kept(self, tensor)


class Kept:
    def __init__(self, held: Held, tensor: torch.Tensor) -> None:
        self.held, self.tensor = held, tensor
        held.now += tensor.numel()
        held.most = max(held.most, held.now)

    def __del__(self) -> None:
        self.held.now -= self.tensor.numel()


def test_a_step_holds_the_activations_of_one_block() -> None:
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    most, own = {}, {}
    for blocks in (1, 8):
        torch.manual_seed(0)
        net = NoProp(TABLE, blocks=blocks)
        optimizers = [torch.optim.SGD(group, lr=0.1) for group in local_parameters(net)]
        before = copy.deepcopy(net.state_dict())
        for name, step in (
            ("own", lambda net, given: update(net, given, x, y, torch.Generator().manual_seed(1))),
            ("all", lambda net, given: torch.stack(list(net.block_losses(x, y, torch.Generator()))).sum().backward()),
        ):
            held = Held()
            with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
                step(net, optimizers)
            assert held.now == 0
            most[blocks, name] = held.most
        own[blocks] = [not torch.equal(value, before[key]) for key, value in net.state_dict().items() if "fuse" in key]
    assert most[8, "own"] <= 1.05 * most[1, "own"]
    assert most[8, "all"] > 6 * most[1, "all"]
    assert all(own[8])


@pytest.mark.parametrize("variant", ["dt", "ct", "fm"])
def test_a_prediction_does_not_hang_on_the_rows_beside_it(variant: str) -> None:
    data = open_dataset("wine").prepare(0)
    found = fit(data, Budget(3, 32, 4), torch.Generator().manual_seed(0), variant=variant, blocks=3, samples=2)
    part = data.test
    p = found.predict(part)
    order = torch.arange(len(part)).flip(0)
    turned = found.predict(type(part)(part.x[order].double(), part.y[order], part.rows[order]))
    torch.testing.assert_close(turned[order], p)
    many = type(part)(part.x[:1].expand(1030, -1), part.y[:1].expand(1030), part.rows[:1].expand(1030))
    torch.testing.assert_close(found.predict(many), p[:1].expand(1030, -1))
    generator = torch.Generator().manual_seed(found.seed)
    with torch.no_grad():
        chains = [found.net.head(found.net.end(part.x, generator)).softmax(dim=1) for _ in range(2)]
    torch.testing.assert_close(p, (chains[0] + chains[1]) / 2)
    assert not torch.allclose(chains[0], chains[1])
    assert found.predict(type(part)(part.x[:0], part.y[:0], part.rows[:0])).shape == (0, 3)


@pytest.mark.parametrize("levels", [[0.5, 0.4], [0.1, 0.1], [0.1], [0.0, 0.5], [0.2, 1.0]])
def test_levels_that_do_not_rise(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="must rise strictly"):
        check_levels(levels)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="need classes"):
        NoProp(Spec("table", "reals", (4,), 1, numeric=4))
    for settings, told in (
        ({"variant": "xy"}, "variant is 'xy'"),
        ({"embedding": "two-hot"}, "embedding is 'two-hot'"),
        ({"blocks": 0}, "blocks is 0"),
        ({"eta": 0.0}, "eta 0.0"),
        ({"embedding": "prototypes"}, "give an example of each class"),
    ):
        with pytest.raises(ValueError, match=told):
            NoProp(TABLE, **settings)
    data = open_dataset("iris").prepare(0)
    with pytest.raises(ValueError, match="samples 0"):
        fit(data, Budget(1, 8, 1), torch.Generator(), samples=0)
    shown = class_examples(data)
    assert all(any(torch.equal(row, x) for x in data.train.x[data.train.y == c]) for c, row in enumerate(shown))


def test_steps_take_whole_batches_each_row_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(noprop, "update", lambda _net, _optimizers, x, _y, _generator: seen.append(x))
    data = open_dataset("wine").prepare(0)
    size, whole = 32, len(data.train) // 32
    fit(data, Budget(2 * whole, size, whole), torch.Generator().manual_seed(0), blocks=1)
    assert [len(x) for x in seen] == [size] * (2 * whole)
    for epoch in (seen[:whole], seen[whole:]):
        assert len(torch.cat(epoch).unique(dim=0)) == size * whole
    assert not torch.equal(seen[0], seen[whole])


def test_blocks_for_every_kind_of_data() -> None:
    image, series = torch.randn(3, 2, 9, 7), torch.randn(3, 4, 11)
    look = noprop._encoder(Spec("image", "classes", (2, 9, 7), 3), 16)
    assert look[0](image).shape == (3, 4, 9, 7)
    assert look[:3](image).shape == (3, 4, 4, 3)
    assert look[3](look[:3](image)).shape == (3, 8, 4, 3)
    assert look(image).shape == (3, 16)
    look = noprop._encoder(Spec("series", "classes", (4, 11), 3), 16)
    assert look[:3](series).shape == (3, 16, 11)
    assert look(series).shape == (3, 16)
    torch.testing.assert_close(look[:6](series), look[:4](series).mean(dim=2))
    words = noprop._encoder(Spec("text", "classes", (5,), 3, vocabulary=7), 16)
    some = torch.tensor([[1, 2, 0, 0, 0], [1, 2, 1, 2, 0]])
    torch.testing.assert_close(words(some)[0], words(some)[1])  # the mean over words, padding left out
