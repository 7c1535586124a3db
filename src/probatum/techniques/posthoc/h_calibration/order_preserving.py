"""Maps from logits (n, classes) to probabilities (n, classes) that keep every row's order of classes.

All start at (or near) softmax, work in the dtype of the logits and keep their parameters in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Temperature(nn.Module):
    """softmax(scale * logits)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        return (logits * self.log_scale.exp().to(logits.dtype)).softmax(dim=1)


class EnsembleTemperature(nn.Module):
    """A convex mixture of softmaxes at several temperatures."""

    def __init__(self, members: int = 5) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.linspace(-1.5, 0.5, members, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(members, dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        scales, weights = self.log_scale.exp().to(logits.dtype), self.weight.softmax(0).to(logits.dtype)
        return ((logits[:, :, None] * scales).softmax(dim=1) * weights).sum(dim=2)


class PiecewiseLinear(nn.Module):
    """softmax of a strictly increasing piecewise-linear function of the log-probabilities, which lie in [-reach, 0]."""

    def __init__(self, segments: int = 10, reach: float = 100.0) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(segments, dtype=torch.float64))
        self.register_buffer("knots", torch.linspace(0, reach, segments + 1, dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        depth = -logits.log_softmax(dim=1)
        knots, slopes = self.knots.to(depth.dtype), self.raw.exp().to(depth.dtype)
        heights = F.pad((slopes * knots.diff()).cumsum(0), (1, 0))
        segment = (torch.searchsorted(knots, depth.detach(), right=True) - 1).clamp(0, len(slopes) - 1)
        return (-(heights[segment] + slopes[segment] * (depth - knots[segment]))).softmax(dim=1)


class MonotoneNet(nn.Module):
    """softmax of the integral of a positive network over the log-probabilities, which lie in [-reach, 0]."""

    def __init__(
        self, hidden: int = 16, reach: float = 100.0, cells: int = 64, generator: torch.Generator | None = None
    ):
        super().__init__()
        own = generator or torch.Generator().manual_seed(0)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=own, dtype=torch.float64) / shape[-1] ** 0.5)

        self.inner, self.inner_bias = draw(hidden, 1), draw(hidden)
        self.middle, self.middle_bias = draw(hidden, hidden), nn.Parameter(torch.zeros(hidden, dtype=torch.float64))
        self.outer = nn.Parameter(torch.zeros(1, hidden, dtype=torch.float64))
        self.outer_bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        # Grid points are denser near log-probability 0, where most of the calibration is decided.
        self.register_buffer("knots", reach * torch.linspace(0, 1, cells + 1, dtype=torch.float64).square())

    def slopes(self) -> Tensor:
        """The positive integrand at the grid points (cells + 1,)."""
        hidden = F.elu(F.linear(self.knots[:, None] / self.knots[-1] * 2 - 1, self.inner, self.inner_bias))
        hidden = F.elu(F.linear(hidden, self.middle, self.middle_bias))
        return F.elu(F.linear(hidden, self.outer, self.outer_bias)).squeeze(1) + 1  # ELU + 1 > 0, at the start 1

    def forward(self, logits: Tensor) -> Tensor:
        depth = -logits.log_softmax(dim=1)
        knots, slopes = self.knots.to(depth.dtype), self.slopes().to(depth.dtype)
        widths = knots.diff()
        heights = F.pad(((slopes[1:] + slopes[:-1]) / 2 * widths).cumsum(0), (1, 0))
        cell = (torch.searchsorted(knots, depth.detach(), right=True) - 1).clamp(0, len(widths) - 1)
        beyond = (depth - knots[-1]).relu()  # past the grid the last slope goes on
        into = depth.clamp(max=knots[-1]) - knots[cell]  # also of a class that is out of the question, at depth inf
        bend = (slopes.diff() / widths)[cell]
        return (-(heights[cell] + slopes[cell] * into + bend * into.square() / 2 + slopes[-1] * beyond)).softmax(dim=1)
