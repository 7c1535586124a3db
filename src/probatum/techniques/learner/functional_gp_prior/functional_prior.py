"""Priors over weights whose functions look like draws of a Gaussian process: the 1-Wasserstein distance and its critic.

Tran, Rossi, Milios and Filippone 2022, "All You Need is a Good Functional Prior for Bayesian Deep Learning", JMLR 23,
arXiv:2011.12829. Functions are seen at M points of the inputs; every output has a critic of its own, all stacked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.posterior.gaussian_process import Kernel, cholesky
from probatum.numerics.posterior.variational import inverse_softplus
from probatum.numerics.tensors.draws import own_draws

Functions = Callable[[Tensor, int], Tensor]
"""(points (M, d), N) -> N functions there (N, M, outputs)."""


class Perceptron:
    """Fully connected networks as a function of flat raw weights (S, P): h = W x / sqrt(fan_in) + b.

    Args:
        sizes: inputs, hidden widths, outputs.
        activation: between the layers.
    """

    def __init__(self, sizes: Sequence[int], activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes are {tuple(sizes)}; give inputs, widths and outputs, each 1 or more")
        self.sizes, self.activation = tuple(sizes), activation
        self.parts = [n for a, b in zip(self.sizes, self.sizes[1:], strict=False) for n in (a * b, b)]

    @property
    def size(self) -> int:
        """P."""
        return sum(self.parts)

    def __call__(self, weights: Tensor, x: Tensor) -> Tensor:
        """(S, P), (n, inputs) -> (S, n, outputs)."""
        pieces = weights.split(self.parts, dim=1)
        found = x.expand(len(weights), *x.shape)
        for layer, (a, b) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            matrix = pieces[2 * layer].reshape(-1, a, b) / math.sqrt(a)
            found = torch.baddbmm(pieces[2 * layer + 1][:, None], found, matrix)
            if layer < len(self.sizes) - 2:
                found = self.activation(found)
        return found


class GaussianPrior(nn.Module):
    """Independent weights, a standard deviation for the weights and one for the biases of each layer.

    Args:
        net: whose raw weights it is of.
        scale: every standard deviation at the start, > 0.
    """

    def __init__(self, net: Perceptron, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale is {scale}; a standard deviation must be positive")
        self.parts = net.parts
        self.raw = nn.Parameter(torch.full((len(net.parts),), inverse_softplus(scale)))

    def scales(self) -> Tensor:
        """Standard deviation of every weight (P,)."""
        parts = torch.tensor(self.parts)
        return F.softplus(self.raw).repeat_interleave(parts)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, P), with gradients to the scales."""
        return self.scales() * torch.randn(count, sum(self.parts), generator=generator)

    def log_density(self, weights: Tensor) -> Tensor:
        """log p(w) up to a constant, (S, P) -> (S,)."""
        return -0.5 * (weights / self.scales()).square().sum(dim=1)

    def told(self) -> dict[str, float]:
        """The scales by name."""
        return {f"prior scale {k}": float(v) for k, v in enumerate(F.softplus(self.raw).detach())}


class HierarchicalPrior(nn.Module):
    """Variances of each layer's weights and biases from an inverse gamma law, whose shape and rate are tuned.

    Its density is that of the weights with the variances integrated out, a multivariate t.
    """

    def __init__(self, net: Perceptron, scale: float = 1.0, shape: float = 3.0) -> None:
        super().__init__()
        if not scale > 0 or not shape > 1:
            raise ValueError(
                f"scale is {scale} and shape {shape}; need scale > 0 and shape > 1, so that the mean exists"
            )
        self.parts = net.parts
        count = len(net.parts)
        self.raw_shape = nn.Parameter(torch.full((count,), inverse_softplus(shape - 1)))
        self.raw_rate = nn.Parameter(torch.full((count,), inverse_softplus((shape - 1) * scale**2)))

    def shape_and_rate(self) -> tuple[Tensor, Tensor]:
        """Of each part; the shape stays above 1."""
        return 1 + F.softplus(self.raw_shape), F.softplus(self.raw_rate)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, P), with gradients to shape and rate; gamma draws come from torch's global stream, seeded by generator."""
        shape, rate = self.shape_and_rate()
        with own_draws(generator):
            variance = 1 / torch.distributions.Gamma(shape, rate).rsample((count,)).clamp_min(1e-8)
        spread = variance.sqrt().repeat_interleave(torch.tensor(self.parts), dim=1)
        return spread * torch.randn(count, sum(self.parts), generator=generator)

    def log_density(self, weights: Tensor) -> Tensor:
        """log p(w) up to a constant, (S, P) -> (S,)."""
        shape, rate = self.shape_and_rate()
        total = weights.new_zeros(len(weights))
        for k, part in enumerate(weights.split(self.parts, dim=1)):
            total = total - (shape[k] + part.shape[1] / 2) * (rate[k] + 0.5 * part.square().sum(dim=1)).log()
        return total

    def told(self) -> dict[str, float]:
        """Mean variances by name."""
        shape, rate = (value.detach() for value in self.shape_and_rate())
        return {f"prior variance {k}": float(v) for k, v in enumerate(rate / (shape - 1))}


class Critic:
    """A function of functions seen at M points, one for each of D outputs: M - width - width - 1, softplus, Xavier.

    Softplus, since the second derivative of a rectifier, which the penalty needs, is zero.
    """

    def __init__(self, points: int, outputs: int, width: int, generator: torch.Generator) -> None:
        self.parameters = []
        for a, b in ((points, width), (width, width), (width, 1)):
            bound = math.sqrt(6 / (a + b))
            weight = bound * (2 * torch.rand(outputs, a, b, generator=generator) - 1)
            self.parameters += [weight.requires_grad_(True), torch.zeros(outputs, 1, b, requires_grad=True)]

    def __call__(self, functions: Tensor) -> Tensor:
        """(N, M, D) -> (N, D)."""
        found = functions.permute(2, 0, 1)
        for k in range(0, 6, 2):
            found = torch.baddbmm(self.parameters[k + 1], found, self.parameters[k])
            found = F.softplus(found) if k < 4 else found
        return found[:, :, 0].T

    def fit(self, theirs: Tensor, ours: Tensor, steps: int, generator: torch.Generator, lr: float = 0.01) -> float:
        """Maximise E phi(ours) - E phi(theirs) - 10 (|grad phi| - 1)^2 by Adagrad; returns the distance found, summed over D."""
        theirs, ours = theirs.detach(), ours.detach()
        optimizer = torch.optim.Adagrad(self.parameters, lr=lr)
        for _ in range(steps):
            penalty = (self.slopes(theirs, ours, generator) - 1).square().mean(dim=0).sum()
            loss = -self.distance(theirs, ours) + 10 * penalty
            optimizer.zero_grad()
            for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
        return float(self.distance(theirs, ours).detach())

    def slopes(self, theirs: Tensor, ours: Tensor, generator: torch.Generator) -> Tensor:
        """|grad phi| (N, D) at random mixtures of pairs."""
        mix = torch.rand(len(ours), 1, 1, generator=generator)
        between = (mix * ours + (1 - mix) * theirs).requires_grad_(True)
        return torch.autograd.grad(self(between).sum(), between, create_graph=True)[0].norm(dim=1)

    def distance(self, theirs: Tensor, ours: Tensor) -> Tensor:
        """E phi(ours) - E phi(theirs), summed over outputs."""
        return (self(ours).mean(dim=0) - self(theirs).mean(dim=0)).sum()


def wasserstein(
    theirs: Tensor,
    ours: Tensor,
    generator: torch.Generator,
    steps: int = 400,
    width: int = 200,
    judged: tuple[Tensor, Tensor] | None = None,
) -> float:
    """The 1-Wasserstein distance of functions (N, M, D), summed over D, as a fresh critic finds it.

    The penalty leaves slopes somewhat above 1, by which each output's distance is divided.

    Args:
        theirs, ours: functions that the critic is fitted to.
        generator: of the critic.
        steps, width: of the critic.
        judged: others of theirs and ours, on which it is judged; None = the same, between which it finds too much: it tells
            samples of one law apart.
    """
    critic = Critic(theirs.shape[1], theirs.shape[2], width, generator)
    theirs, ours = theirs.detach(), ours.detach()
    critic.fit(theirs, ours, steps, generator)
    theirs, ours = (theirs, ours) if judged is None else (part.detach() for part in judged)
    slopes = critic.slopes(theirs, ours, generator).detach().mean(dim=0)
    with torch.no_grad():
        return float(((critic(ours).mean(dim=0) - critic(theirs).mean(dim=0)) / slopes).sum())


def process_functions(kernel: Kernel, outputs: int, generator: torch.Generator) -> Functions:
    """Draws of independent Gaussian processes, by a jittered Cholesky factor in float64."""

    def draw(points: Tensor, count: int) -> Tensor:
        root = cholesky(kernel(points.double(), points.double()), jitter=1e-8)
        noise = torch.randn(count, len(points), outputs, generator=generator, dtype=torch.float64)
        return (root @ noise).float()

    return draw


def measurement_points(x: Tensor, count: int, generator: torch.Generator, margin: float = 0.1) -> Tensor:
    """Points (count, d): half of them rows of x, half uniform in their box, widened by `margin` of its sides."""
    rows = x[torch.randperm(len(x), generator=generator)[: count // 2]]
    low, high = x.amin(dim=0), x.amax(dim=0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return torch.cat([rows, low + (high - low) * torch.rand(count - len(rows), x.shape[1], generator=generator)])


def warn_of_scale(x: Tensor) -> None:
    """Warn where columns of x are far from unit scale: a length scale means nothing then."""
    spread = x.std(dim=0)
    off = ((spread > 10) | (spread < 0.01)) & (spread > 0)
    if bool(off.any()):
        column = int(off.nonzero()[0])
        low, high = float(x[:, column].min()), float(x[:, column].max())
        warnings.warn(
            f"{int(off.sum())} of {x.shape[1]} inputs are not standardised (column {column} spans {low:.3g} to {high:.3g}); "
            "divide by their standard deviations, or the process's length scale means nothing",
            stacklevel=3,
        )


def tune_prior(
    prior: GaussianPrior | HierarchicalPrior,
    net: Perceptron,
    target: Functions,
    x: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 200,
    critic_steps: int = 200,
    functions: int = 128,
    points: int = 64,
    width: int = 200,
    lr: float = 1e-2,
    margin: float = 0.1,
) -> list[float]:
    """Bring the functions of `net` under `prior` near those of `target`, in place; returns the distance at every step.

    Args:
        prior: what is tuned.
        net: raw weights -> functions.
        target: draws of the process.
        x: training inputs (n, d), standardised.
        steps: of RMSprop, each with points, functions and a critic of its own.
        critic_steps: Adagrad steps of each critic.
        functions: N of each kind.
        points: M.
        width: of the critic.
    """
    if steps < 1 or critic_steps < 1 or functions < 2 or points < 2:
        raise ValueError(
            f"steps {steps}, critic_steps {critic_steps}, functions {functions}, points {points}; need 1, 1, 2 and 2 or more"
        )
    warn_of_scale(x)
    optimizer, distances = torch.optim.RMSprop(prior.parameters(), lr=lr), []
    for _ in range(steps):
        places = measurement_points(x, points, generator, margin)
        theirs = target(places, functions)
        ours = net(prior.draw(functions, generator), places)
        critic = Critic(points, ours.shape[2], width, generator)
        distances.append(critic.fit(theirs, ours, critic_steps, generator))
        optimizer.zero_grad()
        critic.distance(theirs, ours).backward()
        optimizer.step()
    return distances
