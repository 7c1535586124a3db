"""Neural processes: networks that map a set of labelled points to a function, and know several functions where it says little.

Conditional, Gaussian latent, and martingale processes, each with a mean or attention over the context. Contexts (B, n, ...) are
padded and masked, so that tasks of different sizes share a batch; K functions stand in front, as (K, B, m, outputs).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOOR = 0.1
"""Least standard deviation that is predicted."""


class Context(NamedTuple):
    """Points with targets: x (B, n, inputs), y (B, n, outputs), and which are there (B, n)."""

    x: Tensor
    y: Tensor
    mask: Tensor


class Normal(NamedTuple):
    """Means and standard deviations of targets, (..., m, outputs)."""

    mean: Tensor
    scale: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """Summed over the outputs: (..., m)."""
        z = (y - self.mean) / self.scale
        return (-0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def context(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Context:
    """A checked context.

    Raises:
        ValueError: shapes that do not fit, or a task without any point.
    """
    if x.ndim != 3 or y.ndim != 3 or x.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"x is {tuple(x.shape)} and y {tuple(y.shape)}; give (tasks, n, inputs) and (tasks, n, outputs)"
        )
    found = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    if found.shape != x.shape[:2]:
        raise ValueError(f"mask is {tuple(found.shape)} for {tuple(x.shape[:2])} points; give one value a point")
    if not bool(found.any(dim=1).all()):
        raise ValueError("an empty context: a task has 0 points; give every task one or more")
    return Context(x, y, found)


def marginal(log_p: Tensor, mask: Tensor | None = None) -> Tensor:
    """log (1/K) sum_k prod_i p_ki of log_p (K, B, m): functions are averaged whole, not point by point; (B,)."""
    total = log_p if mask is None else log_p * mask
    return total.sum(dim=2).logsumexp(dim=0) - math.log(len(log_p))


def layers(inputs: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    """A ReLU network with `depth` hidden layers."""
    sizes = [inputs, *[width] * depth]
    found: list[nn.Module] = []
    for a, b in pairwise(sizes):
        found += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*found, nn.Linear(sizes[-1], outputs))


class MultiheadBlock(nn.Module):
    """MAB(X, Y) of the set transformer (Lee et al. 2019, arXiv:1810.00825): H = LN(X + heads(X, Y, Y)), LN(H + ff(H)).

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width is {width} and heads {heads}; heads must divide the width")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, n, width), y (B, m, width), mask (B, m) of what in y is there -> (B, n, width)."""
        q, k, v = (self._split(part) for part in (self.query(x), self.key(y), self.value(y)))
        seen = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        h = self.norm1(x + self.out(mixed))
        return self.norm2(h + self.feed(h))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class NeuralProcess(nn.Module):
    """Conditional neural process (Garnelo et al. 2018, arXiv:1807.01613): one function with an error bar at each point.

    Args:
        inputs, outputs: numbers of x and of y.
        attention: summarise by attention of each target to the context, else by the mean.
        width, depth: of all layers.
        heads: of the attention.

    Example:
        >>> given = context(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
        >>> tuple(NeuralProcess(1, 1, width=8)(given, torch.randn(2, 7, 1)).mean.shape)
        (2, 7, 1)
    """

    extra = 0
    """Numbers that the decoder sees besides summary and x."""

    def __init__(
        self, inputs: int, outputs: int, *, attention: bool = False, width: int = 128, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.sizes, self.width = (inputs, outputs), width
        self.encoder = layers(inputs + outputs, width, width, depth)
        self.place = layers(inputs, width, width, 1) if attention else None
        self.look = MultiheadBlock(width, heads) if attention else None
        self.decoder = layers(width + inputs + self.extra, width, 2 * outputs, depth)

    def encode(self, given: Context) -> Tensor:
        """Representations (B, n, width) of the points."""
        return self.encoder(torch.cat([given.x, given.y], dim=2))

    def summary(self, r: Tensor, mask: Tensor, x: Tensor) -> Tensor:
        """What each target x (B, m, inputs) is told of representations (B, n, width): (B, m, width)."""
        if self.look is None or self.place is None:
            weights = mask.to(r.dtype) / mask.sum(dim=1, keepdim=True)
            return (weights[:, None, :] @ r).expand(-1, x.shape[1], -1)
        return self.look(self.place(x), r, mask)

    def decode(self, told: Tensor, x: Tensor) -> Normal:
        """Summaries (..., m, width) and places (..., m, inputs) -> targets."""
        mean, raw = self.decoder(torch.cat([told, x], dim=-1)).chunk(2, dim=-1)
        return Normal(mean, FLOOR + (1 - FLOOR) * F.softplus(raw))

    def forward(self, given: Context, x: Tensor) -> Normal:
        """The function of the context at x (B, m, inputs): (B, m, outputs)."""
        return self.decode(self.summary(self.encode(given), given.mask, x), x)

    def functions(self, given: Context, x: Tensor, draws: int, generator: torch.Generator) -> Normal:
        """`draws` functions (K, B, m, outputs); here one."""
        return Normal(*(part[None] for part in self(given, x)))

    def loss(self, given: Context, x: Tensor, y: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Minus the log-likelihood a target, mean over tasks."""
        return -self(given, x).log_prob(y).mean()


class LatentProcess(NeuralProcess):
    """Latent neural process (Garnelo et al. 2018, arXiv:1807.01622; with attention Kim et al. 2019, arXiv:1901.05761).

    A Gaussian variable of the width, whose mean and deviation come from the mean representation, draws the function; trained on
    the evidence bound with the context's law as its prior.
    """

    def __init__(
        self, inputs: int, outputs: int, *, attention: bool = False, width: int = 128, depth: int = 2, heads: int = 4
    ) -> None:
        self.extra = width
        super().__init__(inputs, outputs, attention=attention, width=width, depth=depth, heads=heads)
        self.latent_encoder = layers(inputs + outputs, width, width, depth)
        self.law = layers(width, width, 2 * width, 1)

    def latent(self, given: Context) -> Normal:
        """Of the variable: (B, width)."""
        r = self.latent_encoder(torch.cat([given.x, given.y], dim=2))
        weights = given.mask.to(r.dtype) / given.mask.sum(dim=1, keepdim=True)
        mean, raw = self.law((weights[:, None, :] @ r).squeeze(1)).chunk(2, dim=1)
        return Normal(mean, FLOOR + (1 - FLOOR) * raw.sigmoid())

    def _given_latent(self, given: Context, x: Tensor, law: Normal, draws: int, generator: torch.Generator) -> Normal:
        noise = torch.randn(draws, *law.mean.shape, generator=generator)
        z = (law.mean + law.scale * noise)[:, :, None, :].expand(-1, -1, x.shape[1], -1)
        told = self.summary(self.encode(given), given.mask, x).expand(draws, -1, -1, -1)
        places = x.expand(draws, -1, -1, -1)
        return self.decode(torch.cat([told, z], dim=3), places)

    def functions(self, given: Context, x: Tensor, draws: int, generator: torch.Generator) -> Normal:
        """`draws` functions (K, B, m, outputs), each of one value of the variable."""
        return self._given_latent(given, x, self.latent(given), draws, generator)

    def forward(self, given: Context, x: Tensor) -> Normal:
        """The function of the variable's mean."""
        told, z = self.summary(self.encode(given), given.mask, x), self.latent(given).mean
        return self.decode(torch.cat([told, z[:, None, :].expand(-1, x.shape[1], -1)], dim=2), x)

    def loss(self, given: Context, x: Tensor, y: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Minus the evidence bound a target; targets hold the context's points too."""
        prior = self.latent(given)
        posterior = self.latent(Context(x, y, torch.ones(x.shape[:2], dtype=torch.bool)))
        fit = self._given_latent(given, x, posterior, draws, generator).log_prob(y).sum(dim=2).mean(dim=0)
        ratio = posterior.scale / prior.scale
        shift = (posterior.mean - prior.mean) / prior.scale
        divergence = (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(dim=1)
        return -((fit - divergence) / x.shape[1]).mean()


class MartingaleProcess(NeuralProcess):
    """Martingale posterior neural process (Lee et al. 2023, arXiv:2304.09431): functions of the context and imagined points.

    E (N', width) of standard normal rows, drawn once a function, is turned into imagined representations by two blocks of
    attention, H = MAB(R, E) and R' = MAB(E, H); the function is that of R and R' together.

    Args:
        inputs, outputs, attention, width, depth, heads: see `NeuralProcess`.
        points: N', imagined points a function, >= 0; with 0 it is the conditional process.
        in_data: imagine (x', y') and encode them, instead of representations.

    Raises:
        ValueError: points below 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        attention: bool = False,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        points: int = 10,
        in_data: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, attention=attention, width=width, depth=depth, heads=heads)
        if points < 0:
            raise ValueError(f"points is {points}; imagine 0 or more")
        self.points = points
        self.first, self.second = MultiheadBlock(width, heads), MultiheadBlock(width, heads)
        self.point = nn.Linear(width, inputs + outputs) if in_data else None

    def noise(self, tasks: int, draws: int, generator: torch.Generator) -> Tensor:
        """E (draws, tasks, N', width)."""
        return torch.randn(draws, tasks, self.points, self.width, generator=generator)

    def imagine(self, r: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """R' (K, B, N', width) of representations (B, n, width) and E (K, B, N', width); K = 1 function at a time too."""
        k = len(noise)
        flat = noise.flatten(0, 1)
        h = self.first(r.repeat(k, 1, 1), flat)
        found = self.second(flat, h, mask.repeat(k, 1))
        if self.point is not None:
            found = self.encoder(self.point(found))
        return found.unflatten(0, (k, -1))

    def given_noise(self, given: Context, x: Tensor, noise: Tensor) -> tuple[Normal, Normal]:
        """Functions (K, B, m, outputs) of context and imagined points, and of the imagined ones alone.

        Raises:
            ValueError: no imagined points, which alone give no function.
        """
        if not noise.shape[2]:
            raise ValueError("noise has 0 points; there is nothing to imagine")
        r = self.encode(given)
        more = self.imagine(r, given.mask, noise)
        k, b = noise.shape[:2]
        there = torch.ones(k * b, noise.shape[2], dtype=torch.bool)
        places = x.repeat(k, 1, 1)
        both, mask = torch.cat([r.repeat(k, 1, 1), more.flatten(0, 1)], dim=1), given.mask.repeat(k, 1)
        told = self.summary(both, torch.cat([mask, there], dim=1), places)
        imagined = self.summary(more.flatten(0, 1), there, places)
        found = self.decode(torch.cat([told, imagined]), places.repeat(2, 1, 1))
        mean, scale = (part.unflatten(0, (2, k, b)) for part in found)
        first, second = Normal(mean[0], scale[0]), Normal(mean[1], scale[1])
        return first, second

    def functions(
        self, given: Context, x: Tensor, draws: int, generator: torch.Generator, noise: Tensor | None = None
    ) -> Normal:
        """`draws` functions (K, B, m, outputs), or those of the noise that is given."""
        if not self.points:
            return super().functions(given, x, draws, generator)
        drawn = self.noise(len(x), draws, generator) if noise is None else noise
        return self.given_noise(given, x, drawn)[0]

    def terms(
        self, given: Context, x: Tensor, y: Tensor, draws: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihoods (B,): marginal over functions, of the context alone, and mean of those of imagined points alone."""
        amortised = self(given, x).log_prob(y).sum(dim=1)
        if not self.points:
            return amortised, amortised, torch.zeros_like(amortised)
        together, alone = self.given_noise(given, x, self.noise(len(x), draws, generator))
        return marginal(together.log_prob(y)), amortised, alone.log_prob(y).sum(dim=2).mean(dim=0)

    def loss(self, given: Context, x: Tensor, y: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Minus the sum of the three terms a target."""
        return -sum(self.terms(given, x, y, draws, generator), torch.zeros(())).mean() / x.shape[1]


def spread(found: Normal) -> Tensor:
    """Standard deviation over functions of the mean, at every point: (K, B, m, outputs) -> (B, m, outputs)."""
    return found.mean.std(dim=0, unbiased=False)


def joint_log_likelihood(found: Normal, y: Tensor, mask: Tensor) -> Tensor:
    """Marginal log-likelihood of the targets where mask (B, m), divided by their number, (B,)."""
    return marginal(found.log_prob(y), mask) / mask.sum(dim=1).clamp(min=1)
