"""DP-SGD pieces against one-by-one gradients, opacus' gradients and opacus' accountant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.techniques.select.outlier_scores.privacy import ORDERS, clipped_gradients, epsilon, fit_privately

pytestmark = pytest.mark.fast


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))


def batch(n: int = 9) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 4


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_one_by_one(clip: float) -> None:
    net, (x, y) = network().eval(), batch()
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for i in range(len(y)):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        norm = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
        for name, p in net.named_parameters():
            expected[name] += p.grad * min(1.0, clip / float(norm))
    found = clipped_gradients(net, x, y, clip, chunk=4)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
    assert all(not value.any() for value in clipped_gradients(net, x[:0], y[:0], clip).values())


def test_a_module_in_two_places_and_what_is_left_of_it() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 3)).eval()
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    found = clipped_gradients(net, x, y, 1e9)
    expected = torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), list(net.parameters()))
    for value, own in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, own, atol=1e-6, rtol=1e-4)
    assert net[0] is net[2]
    assert isinstance(net[0].weight, nn.Parameter)


@pytest.mark.filterwarnings("ignore")  # opacus warns of hooks and of its random number generator
def test_opacus_gradients() -> None:
    opacus = pytest.importorskip("opacus", reason="opacus is the witness")
    net, (x, y) = network(), batch()
    ours = clipped_gradients(net.eval(), x, y, 0.7)
    theirs = opacus.GradSampleModule(network(), loss_reduction="sum")
    F.cross_entropy(theirs(x), y, reduction="sum").backward()
    samples = {name.removeprefix("_module."): p.grad_sample for name, p in theirs.named_parameters()}
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples.values()], dim=1).norm(dim=1)
    factor = (0.7 / (norms + 1e-6)).clamp(max=1.0)
    for name, value in ours.items():
        torch.testing.assert_close(value, torch.einsum("n,n...->...", factor, samples[name]), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("noise", "share", "steps"), [(1.0, 0.1, 100), (4.0, 0.3, 60), (0.6, 0.02, 1000), (2.0, 1.0, 10)]
)
def test_opacus_accountant(noise: float, share: float, steps: int) -> None:
    accountants = pytest.importorskip("opacus.accountants", reason="opacus is the witness")
    accountant = accountants.RDPAccountant()
    accountant.history = [(noise, share, steps)]
    expected = accountant.get_epsilon(1e-3, alphas=list(ORDERS))
    assert epsilon(noise, share, steps, 1e-3) == pytest.approx(expected, rel=1e-6)


def test_epsilon_falls_with_noise_and_rises_with_steps() -> None:
    assert epsilon(1.0, 0.1, 10, 1e-3) < epsilon(1.0, 0.1, 100, 1e-3) < epsilon(0.7, 0.1, 100, 1e-3)
    with pytest.raises(ValueError, match="noise is 0"):
        epsilon(0.0, 0.1, 10, 1e-3)
    with pytest.raises(ValueError, match="share is 2"):
        epsilon(1.0, 2, 10, 1e-3)


def test_private_training_learns_with_little_noise_and_not_with_much() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 2, generator=generator)
    y = (x[:, 0] > 0).long()
    right = []
    for noise in (0.1, 200.0):
        torch.manual_seed(1)
        net = fit_privately(nn.Linear(2, 2), x, y, 40, 0.3, noise, 1.0, 0.5, generator)
        right.append(float((net(x).argmax(1) == y).float().mean()))
    assert right[0] > 0.95 > right[1]


def test_two_private_steps_by_hand() -> None:
    share, noise, clip, rate = 0.6, 0.7, 0.4, 0.3
    torch.manual_seed(2)
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).train()
    weights = [p.detach().clone() for p in net.parameters()]
    x, y = torch.randn(10, 3, generator=torch.Generator().manual_seed(4)), torch.arange(10) % 2
    found = fit_privately(net, x, y, 2, share, noise, clip, rate, torch.Generator().manual_seed(9))
    assert not found.training
    draws, speed = torch.Generator().manual_seed(9), [torch.zeros_like(w) for w in weights]
    for _ in range(2):
        drawn = (torch.rand(10, generator=draws) < share).nonzero().squeeze(1).tolist()
        assert 0 < len(drawn) < 10
        sums = [torch.zeros_like(w) for w in weights]
        for i in drawn:
            error = (x[i] @ weights[0].T + weights[1]).softmax(0) - F.one_hot(y[i], 2)
            own = [error[:, None] * x[i], error]
            norm = float(sum(g.square().sum() for g in own)) ** 0.5
            sums = [s + g * min(1.0, clip / norm) for s, g in zip(sums, own, strict=True)]
        for k, total in enumerate(sums):
            noisy = total + noise * clip * torch.randn(total.shape, generator=draws)
            speed[k] = 0.9 * speed[k] + noisy / (share * 10)
        weights = [w - rate * v for w, v in zip(weights, speed, strict=True)]
    for p, w in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), w, atol=1e-6, rtol=1e-4)
