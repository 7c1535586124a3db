"""A density over the real line in bars of learned heights, with half-normal tails (the "Riemann distribution" of PFNs)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_NORMAL_MEDIAN = 0.6744897501960817


def borders_of(sample: Tensor, bars: int) -> Tensor:
    """Borders (bars + 1,) at quantiles of a sample, so that each bar has as much of it; equal ones are parted a little.

    Raises:
        ValueError: fewer than 3 bars, or fewer numbers than bars.
    """
    if bars < 3 or sample.numel() <= bars:
        raise ValueError(
            f"bars is {bars}, and there are {sample.numel()} numbers; give 3 bars or more, and more numbers"
        )
    ranked = sample.flatten().double().sort().values
    place = torch.linspace(0, len(ranked) - 1, bars + 1).round().long()
    found = ranked[place]
    least = 1e-6 * float(found[-1] - found[0] + 1)
    for k in range(1, len(found)):
        found[k] = max(float(found[k]), float(found[k - 1]) + least)
    return found


class BarDistribution:
    """Densities given by logits over bars; the first and last bar are half-normals with half their mass within the bar's width.

    Args:
        borders: (bars + 1,) ascending.

    Raises:
        ValueError: borders that do not ascend, or fewer than 3 bars.
    """

    def __init__(self, borders: Tensor) -> None:
        if borders.ndim != 1 or len(borders) < 4 or not bool((borders.diff() > 0).all()):
            raise ValueError(
                f"borders have shape {tuple(borders.shape)}; give 4 or more numbers, each above the one before"
            )
        self.borders = borders.double()
        self.widths = self.borders.diff()
        self.left, self.right = (float(self.widths[k]) / HALF_NORMAL_MEDIAN for k in (0, -1))

    @property
    def bars(self) -> int:
        """How many there are."""
        return len(self.widths)

    def place(self, y: Tensor) -> Tensor:
        """The bar that each number lies in; what lies beyond the borders is in the first or the last."""
        return (torch.searchsorted(self.borders, y.double().contiguous(), side="right") - 1).clamp(0, self.bars - 1)

    def log_density(self, logits: Tensor, y: Tensor) -> Tensor:
        """log p(y): logits (..., bars), y (...) -> (...)."""
        at = self.place(y)
        log_mass = logits.log_softmax(dim=-1).gather(-1, at[..., None]).squeeze(-1)
        inside = -self.widths.to(logits)[at].log()
        low = _half_normal(self.borders[1] - y.double(), self.left).to(logits)
        high = _half_normal(y.double() - self.borders[-2], self.right).to(logits)
        shape = torch.where(at == 0, low, torch.where(at == self.bars - 1, high, inside))
        return log_mass + shape

    def mean(self, logits: Tensor) -> Tensor:
        """E[y], (...)."""
        centre = (self.borders[1:] + self.borders[:-1]) / 2
        tail = math.sqrt(2 / math.pi)
        centre = centre.clone()
        centre[0], centre[-1] = self.borders[1] - tail * self.left, self.borders[-2] + tail * self.right
        return (logits.double().softmax(dim=-1) @ centre).to(logits)

    def quantile(self, logits: Tensor, level: float) -> Tensor:
        """The number with this share of the mass below it, (...); level in (0, 1)."""
        if not 0 < level < 1:
            raise ValueError(f"level is {level}; it must lie in (0, 1)")
        mass = logits.double().softmax(dim=-1)
        above = mass.cumsum(dim=-1)
        at = (above < level).sum(dim=-1).clamp(max=self.bars - 1)
        own = mass.gather(-1, at[..., None]).squeeze(-1)
        share = ((level - (above.gather(-1, at[..., None]).squeeze(-1) - own)) / own.clamp(min=1e-300)).clamp(
            1e-12, 1 - 1e-12
        )
        found = self.borders[:-1][at] + share * self.widths[at]
        normal = torch.distributions.Normal(0.0, 1.0)
        low = self.borders[1] - self.left * normal.icdf(1 - share / 2)
        high = self.borders[-2] + self.right * normal.icdf((1 + share) / 2)
        return torch.where(at == 0, low, torch.where(at == self.bars - 1, high, found)).to(logits)

    def expected_improvement(self, logits: Tensor, best: float, points: int = 400) -> Tensor:
        """E[max(y - best, 0)] by the mean of so many quantiles, (...)."""
        levels = [(k + 0.5) / points for k in range(points)]
        return torch.stack([(self.quantile(logits, level) - best).clamp(min=0) for level in levels]).mean(dim=0)


def _half_normal(distance: Tensor, scale: float) -> Tensor:
    """log density of |N(0, scale^2)|; distances below 0 count as 0, and are not used."""
    return math.log(2) - 0.5 * (distance.clamp(min=0) / scale).square() - math.log(scale * math.sqrt(2 * math.pi))
