"""Gaussian prototypes: the limit of points, entropies, Monte-Carlo rates, covariances, pictures, misuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.claims.tools import fit
from probatum.recipe import Training
from probatum.techniques.model.images.prob_psenn import ProbPSENN, build, log_mean_softmax, rejected, split_entropy

pytestmark = pytest.mark.fast


def net(**own: object) -> ProbPSENN:
    torch.manual_seed(0)
    return ProbPSENN((1, 8, 8), 3, width=8, **own)  # type: ignore[arg-type]


def images(n: int = 12) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("draws", [1, 7])
def test_points_give_the_deterministic_network(draws: int) -> None:
    model = net(draws=draws, floor=0.0).eval()
    with torch.no_grad():
        model.raw_scale.fill_(-200.0)  # softplus underflows to 0
    square = torch.cdist(model.encoder(images()), model.mean).square()
    expected = (-model.log_tau.exp() * square).log_softmax(dim=1)
    assert torch.allclose(model(images()), expected, atol=1e-6)


def test_mean_is_taken_in_log_space() -> None:
    own = torch.Generator().manual_seed(2)
    code, prototypes = torch.randn(4, 5, generator=own).double(), torch.randn(6, 3, 5, generator=own).double()
    found, each = log_mean_softmax(code, prototypes, 0.7)
    expected = torch.stack(
        [
            torch.stack([-0.7 * (code - p[k]).square().sum(dim=1) for k in range(3)], dim=1).softmax(dim=1)
            for p in prototypes
        ]
    )
    assert torch.allclose(each.exp(), expected)
    assert torch.allclose(found.exp(), expected.mean(dim=0))
    far, _ = log_mean_softmax(code * 1e4, prototypes, 0.7)
    assert torch.isfinite(far).all()


def test_entropies_are_bounded_and_add_up() -> None:
    own = torch.Generator().manual_seed(3)
    each = (4 * torch.randn(9, 50, 5, generator=own).double()).log_softmax(dim=2)
    found = split_entropy(each)
    assert torch.allclose(found.total, found.aleatoric + found.epistemic)
    assert float(found.epistemic.min()) >= -1e-7
    assert float(found.total.max()) <= math.log(5)
    same = split_entropy(each[:1].expand(4, -1, -1))
    assert same.epistemic.abs().max() < 1e-12


def test_monte_carlo_error_falls_with_the_root_of_the_draws() -> None:
    model = net(draws=4).eval()
    code = model.encoder(images(30)).detach()

    def spread(draws: int) -> float:
        found = []
        for seed in range(40):
            noise = torch.randn(draws, 3, code.shape[1], generator=torch.Generator().manual_seed(seed))
            found.append(log_mean_softmax(code, model.drawn(noise).detach(), 1.0)[0].exp())
        return float(torch.stack(found).std(dim=0).mean())

    assert spread(16) / spread(64) == pytest.approx(2.0, rel=0.25)


def test_draws_have_the_covariance_they_should() -> None:
    model = net()
    with torch.no_grad():
        model.lower.normal_(generator=torch.Generator().manual_seed(4)).mul_(0.1)
    size = model.mean.shape[1]
    noise = torch.randn(20000, 3, size, generator=torch.Generator().manual_seed(5))
    one = noise[:1].clone()
    by_hand = torch.stack([model.mean[k] + model.factor()[k] @ one[0, k] for k in range(3)])
    torch.testing.assert_close(model.drawn(one)[0], by_hand)
    drawn = model.drawn(noise).detach()[:, 1]
    factor = model.factor()[1].detach()
    assert torch.allclose(torch.cov(drawn.T), factor @ factor.T, atol=0.03)
    assert (factor.diagonal() > 0).all()
    assert torch.equal(factor, factor.tril())
    assert net(covariance="diagonal").factor()[0].count_nonzero() == size


def test_training_draws_anew_and_evaluation_does_not() -> None:
    model = net()
    state = torch.get_rng_state()
    first, second = model(images()), model(images())
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first.prototypes, second.prototypes)
    model.eval()
    assert torch.equal(model(images()), model(images()))
    assert torch.allclose(model(images()).exp().sum(dim=1), torch.ones(12), atol=1e-5)


def test_pictures_are_of_the_draws_that_decided() -> None:
    model = net(draws=6).eval()
    found = model.explain(images(4))
    assert torch.equal(found.classes, model(images(4)).argmax(dim=1))
    drawn = model.drawn(model.noise)
    assert torch.allclose(found.images[2, 1], model.decoder(drawn[2, found.classes[1]][None])[0], atol=1e-6)
    assert torch.allclose(found.variance, found.images.var(dim=0, correction=0))


def test_a_class_is_decoded_once_for_all_rows() -> None:
    model = net(draws=6).eval()
    counted: list[int] = []
    plain = model.decoder.forward
    model.decoder.forward = lambda codes: counted.append(len(codes)) or plain(codes)  # type: ignore[method-assign]
    x = images(40)
    found = model.explain(x)
    told = len(found.classes.unique())
    assert counted == [6 * told]
    assert found.images.shape == (6, 40, 1, 8, 8)
    drawn = model.drawn(model.noise)
    for row in range(40):
        expected = plain(drawn[:, found.classes[row]])
        torch.testing.assert_close(found.images[:, row], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.variance[row], expected.var(dim=0, correction=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_network_trains_in_other_precisions(dtype: torch.dtype) -> None:
    model, y = net(near=0.5, draws=3).to(dtype), torch.arange(12) % 3
    x = images().to(dtype)
    model.objective(x, model(x), y, nn.NLLLoss()).backward()
    plain = net(near=0.5, draws=3)
    plain.objective(images(), plain(images()), y, nn.NLLLoss()).backward()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        if theirs.grad is not None:
            gap = (mine.grad.float() - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-12)  # type: ignore[union-attr]
            assert float(gap) < (1e-4 if dtype == torch.float64 else 0.2), name
    assert model.eval()(x[:1]).dtype == dtype
    assert model(x[:0]).shape == (0, 3)


def test_objective_by_hand() -> None:
    model = net(reconstruction=2.0, near=0.1)
    x, y = images(), torch.arange(12) % 3
    out = model(x)
    first, codes = out.prototypes[0].detach(), out.code.detach()
    near = sum(min(float((p - z).square().sum()) for z in codes) for p in first) / 3
    own = sum(float((z - first[c]).square().sum()) for z, c in zip(codes, y, strict=True)) / 12
    expected = (
        float(F.nll_loss(out.log_p.detach(), y))
        + 2 * float((out.decoded.detach() - x).square().mean())
        + 0.1 * (near + own)
    )
    assert float(model.objective(x, out, y, nn.NLLLoss()).detach()) == pytest.approx(expected, rel=1e-4)


def test_on_the_bench_it_learns() -> None:
    data = toy("image", "classes")
    run = fit("prob-psenn(width=8, draws=5)", data, 0, training=Training(steps=80, batch_size=16, lr=1e-2))
    assert float((run.model(data.test.x).argmax(dim=1) == data.test.y).float().mean()) > 0.9
    assert isinstance(build(data.spec), ProbPSENN)


def test_the_start_and_the_limits_of_the_terms() -> None:
    model = net(floor=0.05)
    size = model.mean.shape[1]
    torch.testing.assert_close(model.factor(), (0.3 + 0.05) * torch.eye(size).expand(3, -1, -1))
    assert float(model.log_tau.detach().exp()) == pytest.approx(1 / size)
    x, y = images(), torch.arange(12) % 3
    bare = net(reconstruction=0.0, near=0.0)
    out = bare(x)
    torch.testing.assert_close(bare.objective(x, out, y, nn.NLLLoss()), F.nll_loss(out.log_p, y))
    first, again = net(draws=4), net(draws=4)
    first(x)
    again.load_state_dict(first.state_dict())  # the stream of draws goes on from there
    assert torch.equal(first(x).prototypes, again(x).prototypes)
    fewer = model.eval().each(x, draws=3)
    torch.testing.assert_close(fewer, model.each(x)[:3])
    told = model.uncertainty(x)
    p = model.each(x).exp()
    torch.testing.assert_close(told.total, -(p.mean(0) * p.mean(0).log()).sum(1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(told.aleatoric, -(p * p.clamp_min(1e-30).log()).sum(2).mean(0), rtol=1e-3, atol=1e-5)


def test_rejection_keeps_its_share() -> None:
    score = torch.arange(100.0)
    assert int(rejected(score, score, 0.1).sum()) == 10
    with pytest.raises(ValueError, match="share is 1"):
        rejected(score, score, 1.0)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="there is 1 draw"):
        net(draws=5).eval().uncertainty(images(), draws=1)
    with pytest.raises(ValueError, match="draws is 9; the network keeps 5"):
        net(draws=5).eval().each(images(), draws=9)
    model = net()
    with pytest.raises(ValueError, match="targets run from 0 to 3, and there are prototypes of 3 classes"):
        model.objective(images(), model(images()), torch.arange(12) % 4, nn.NLLLoss())
    with pytest.raises(ValueError, match="covariance is 'low-rank'"):
        net(covariance="low-rank")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_in_half_precision(dtype: torch.dtype) -> None:
    own = torch.Generator().manual_seed(0)
    code, prototypes = torch.randn(5, 6, generator=own).to(dtype), torch.randn(3, 4, 6, generator=own).to(dtype)
    mean, each = log_mean_softmax(code, prototypes, 1.0)
    theirs, _ = log_mean_softmax(code.float(), prototypes.float(), 1.0)
    assert (mean.dtype, each.dtype) == (dtype, dtype)
    torch.testing.assert_close(mean, theirs.to(dtype))
