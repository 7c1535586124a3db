"""Neural processes: order of the context, imagined points, masks, and the likelihood of whole functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from probatum.techniques.learner.martingale_posterior_np.neural_process import (
    Context,
    LatentProcess,
    MartingaleProcess,
    MultiheadBlock,
    NeuralProcess,
    Normal,
    context,
    joint_log_likelihood,
    marginal,
    spread,
)

pytestmark = pytest.mark.fast

KINDS = (NeuralProcess, LatentProcess, MartingaleProcess)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tasks(n: int = 9, m: int = 6, seed: int = 0) -> tuple[Context, Tensor, Tensor]:
    own = stream(seed)
    x, y = torch.randn(3, n, 2, generator=own), torch.randn(3, n, 1, generator=own)
    return context(x, y), torch.randn(3, m, 2, generator=own), torch.randn(3, m, 1, generator=own)


def process(kind: type[NeuralProcess], attention: bool, seed: int = 0, **settings: int | bool) -> NeuralProcess:
    torch.manual_seed(seed)
    return kind(2, 1, attention=attention, width=16, **settings)  # type: ignore[arg-type]


def test_log_prob_is_torchs() -> None:
    mean, scale, y = torch.randn(4, 5, 2), torch.rand(4, 5, 2) + 0.1, torch.randn(4, 5, 2)
    witness = torch.distributions.Normal(mean, scale).log_prob(y).sum(dim=2)
    torch.testing.assert_close(Normal(mean, scale).log_prob(y), witness)


def test_marginal_averages_whole_functions() -> None:
    log_p = torch.randn(5, 3, 4, dtype=torch.float64)
    expected = torch.stack([sum((log_p[k].sum(dim=1).exp() for k in range(5)), torch.zeros(3)) / 5]).log()[0]
    torch.testing.assert_close(marginal(log_p), expected)
    by_point = (log_p.logsumexp(dim=0) - math.log(5)).sum(dim=1)
    assert not torch.allclose(marginal(log_p), by_point)
    torch.testing.assert_close(marginal(log_p[:1]), log_p[0].sum(dim=1))  # K = 1
    mask = torch.tensor([[True, False, True, False]] * 3)
    torch.testing.assert_close(marginal(log_p, mask), marginal(log_p[:, :, ::2]))


def test_block_is_torchs_attention() -> None:
    torch.manual_seed(0)
    block, witness = MultiheadBlock(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        witness.in_proj_weight.copy_(torch.cat([block.query.weight, block.key.weight, block.value.weight]))
        witness.in_proj_bias.copy_(torch.cat([block.query.bias, block.key.bias, block.value.bias]))
    witness.out_proj = block.out  # type: ignore[assignment]
    x, y, mask = torch.randn(3, 4, 8), torch.randn(3, 5, 8), torch.rand(3, 5) > 0.3
    mask[:, 0] = True
    mixed = witness(x, y, y, key_padding_mask=~mask)[0]
    h = block.norm1(x + mixed)
    torch.testing.assert_close(block(x, y, mask), block.norm2(h + block.feed(h)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="heads 3"):
        MultiheadBlock(8, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", [False, True])
def test_order_of_the_context_does_not_matter(kind: type[NeuralProcess], attention: bool) -> None:
    given, x, _ = tasks()
    net, order = process(kind, attention), torch.randperm(9, generator=stream(1))
    turned = context(given.x[:, order], given.y[:, order])
    for a, b in zip(net.functions(given, x, 3, stream(2)), net.functions(turned, x, 3, stream(2)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", [False, True])
def test_masked_points_are_not_there(kind: type[NeuralProcess], attention: bool) -> None:
    given, x, _ = tasks()
    net = process(kind, attention)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    found = net.functions(Context(given.x, given.y, mask), x, 3, stream(2))
    for i, n in enumerate((9, 4, 1)):
        noise = stream(2)
        if isinstance(net, MartingaleProcess):
            drawn = net.noise(3, 3, noise)[:, i : i + 1]
            alone = net.functions(
                context(given.x[i : i + 1, :n], given.y[i : i + 1, :n]), x[i : i + 1], 3, noise, drawn
            )
        elif kind is NeuralProcess:
            alone = net.functions(context(given.x[i : i + 1, :n], given.y[i : i + 1, :n]), x[i : i + 1], 3, noise)
        else:
            few = context(given.x[:, :n], given.y[:, :n])
            alone = Normal(*(part[:, i : i + 1] for part in net.functions(few, x, 3, noise)))
        torch.testing.assert_close(found.mean[:, i], alone.mean[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.scale[:, i], alone.scale[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_order_of_the_noise_is_that_of_the_imagined_points(attention: bool) -> None:
    given, x, _ = tasks()
    net = process(MartingaleProcess, attention)
    assert isinstance(net, MartingaleProcess)
    noise, order = net.noise(3, 4, stream()), torch.randperm(10, generator=stream(1))
    r = net.encode(given)
    torch.testing.assert_close(
        net.imagine(r, given.mask, noise[:, :, order]), net.imagine(r, given.mask, noise)[:, :, order]
    )
    same, turned = (net.functions(given, x, 4, stream(), e) for e in (noise, noise[:, :, order]))
    torch.testing.assert_close(same.mean, turned.mean, atol=1e-5, rtol=1e-5)
    one = net.functions(given, x, 1, stream(), noise[2:3])
    torch.testing.assert_close(same.mean[2], one.mean[0])  # functions do not see each other
    few = net.functions(given, x[:, :2], 4, stream(), noise)
    torch.testing.assert_close(same.mean[:, :, :2], few.mean)  # all targets share their function's noise


@pytest.mark.parametrize("attention", [False, True])
def test_without_imagined_points_it_is_the_conditional_process(attention: bool) -> None:
    given, x, y = tasks()
    net, plain = process(MartingaleProcess, attention, points=0), process(NeuralProcess, attention)
    plain.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(net.functions(given, x, 3, stream()).mean, plain.functions(given, x, 3, stream()).mean)
    marginal_term, amortised, alone = net.terms(given, x, y, 3, stream())
    assert torch.equal(marginal_term, amortised)
    torch.testing.assert_close(amortised.mean() / x.shape[1], -plain.loss(given, x, y, 3, stream()))
    assert not alone.any()


def test_terms_are_those_of_the_functions() -> None:
    given, x, y = tasks()
    net = process(MartingaleProcess, False)
    assert isinstance(net, MartingaleProcess)
    first, second, third = net.terms(given, x, y, 1, stream(4))
    together, alone = net.given_noise(given, x, net.noise(3, 1, stream(4)))
    torch.testing.assert_close(first, together.log_prob(y)[0].sum(dim=1))  # K = 1: the plain log-likelihood
    torch.testing.assert_close(second, net(given, x).log_prob(y).sum(dim=1))
    torch.testing.assert_close(third, alone.log_prob(y)[0].sum(dim=1))
    total = net.loss(given, x, y, 1, stream(4))
    torch.testing.assert_close(total, -(first + second + third).mean() / 6)
    imagined = net.imagine(net.encode(given), given.mask, net.noise(3, 1, stream(4)))
    by_hand = net.decode(imagined.mean(dim=2)[0][:, None, :].expand(-1, 6, -1), x)
    torch.testing.assert_close(alone.mean[0], by_hand.mean, atol=1e-5, rtol=1e-5)


def test_points_in_data_space_are_encoded() -> None:
    given = tasks()[0]
    net = process(MartingaleProcess, False, in_data=True)
    assert isinstance(net, MartingaleProcess)
    assert net.point is not None
    with torch.no_grad():
        net.point.weight.zero_()
        net.point.bias.copy_(torch.tensor([0.3, -0.2, 0.9]))
    found = net.imagine(net.encode(given), given.mask, net.noise(3, 2, stream()))
    expected = net.encoder(torch.tensor([0.3, -0.2, 0.9]))
    torch.testing.assert_close(found, expected.expand_as(found))


def test_latent_bound_is_below_the_likelihood() -> None:
    given, x, y = tasks()
    net = process(LatentProcess, False)
    assert isinstance(net, LatentProcess)
    both = Context(torch.cat([given.x, x], dim=1), torch.cat([given.y, y], dim=1), torch.ones(3, 15).bool())
    with torch.no_grad():
        bound = -net.loss(given, both.x, both.y, 4000, stream(1)) * 15
        likelihood = marginal(net.functions(given, both.x, 4000, stream(2)).log_prob(both.y)).mean()
    assert float(bound) < float(likelihood) + 0.05
    prior, posterior = net.latent(given), net.latent(both)
    witness = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.scale), torch.distributions.Normal(prior.mean, prior.scale)
    ).sum(dim=1)
    fit = net._given_latent(given, both.x, posterior, 2, stream(3)).log_prob(both.y).sum(dim=2).mean(dim=0)
    torch.testing.assert_close(net.loss(given, both.x, both.y, 2, stream(3)), -((fit - witness) / 15).mean())


def test_summaries_of_functions() -> None:
    found = Normal(torch.tensor([[[[0.0]]], [[[2.0]]]]), torch.ones(2, 1, 1, 1))
    assert spread(found).item() == 1.0
    expected = torch.distributions.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(torch.tensor(0.5)).exp().mean().log()
    found_log = joint_log_likelihood(found, torch.full((1, 1, 1), 0.5), torch.ones(1, 1).bool())
    torch.testing.assert_close(found_log[0], expected)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="empty context"):
        context(torch.zeros(2, 0, 1), torch.zeros(2, 0, 1))
    with pytest.raises(ValueError, match="empty context"):
        context(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(ValueError, match="mask is"):
        context(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.ones(3).bool())
    with pytest.raises(ValueError, match="x is"):
        context(torch.zeros(2, 3, 1), torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match="points is -1"):
        MartingaleProcess(1, 1, points=-1)
    net = MartingaleProcess(1, 1, width=8, points=0)
    with pytest.raises(ValueError, match="0 points"):
        net.given_noise(
            context(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1), torch.zeros(2, 1, 0, 8)
        )


def test_with_attention_each_place_is_told_something_of_its_own() -> None:
    torch.manual_seed(0)
    x, y, new = torch.randn(2, 5, 1), torch.randn(2, 5, 1), torch.randn(2, 3, 1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    for attention in (True, False):
        model = NeuralProcess(1, 1, attention=attention, width=8)
        r = model.encode(Context(x, y, mask))
        told = model.summary(r, mask, new)
        if attention:
            torch.testing.assert_close(told, model.look(model.place(new), r, mask))
            assert not torch.allclose(told[:, 0], told[:, 1])
        else:
            torch.testing.assert_close(told[0], r[0].mean(dim=0).expand(3, -1))
            torch.testing.assert_close(told[1], r[1, :2].mean(dim=0).expand(3, -1))
