"""What the answers of several networks say together.

Of several networks whose answers are averaged, the entropy of the average is the mean entropy (what no further data could
take away) plus the mutual information of answer and weights (what the networks disagree on); for real targets the law of
total variance takes its place (Depeweg et al. 2018, arXiv:1710.07283).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probatum.numerics.tensors.targets import real_targets

ONE_DRAW = "one draw has no epistemic uncertainty: several draws are needed"


@dataclass(frozen=True)
class ClassPredictive:
    """What S draws say of the classes of n rows.

    Attributes:
        log_p: log-probabilities (S, n, K).
    """

    log_p: Tensor

    @property
    def log_probabilities(self) -> Tensor:
        """log of the mean probability (n, K), in log space."""
        return self.log_p.logsumexp(dim=0) - math.log(len(self.log_p))

    @property
    def probabilities(self) -> Tensor:
        """Mean probabilities (n, K); rows sum to 1."""
        return self.log_probabilities.exp()

    @property
    def total(self) -> Tensor:
        """Entropy (n,) of the mean probabilities, nats."""
        return entropy(self.log_probabilities)

    @property
    def aleatoric(self) -> Tensor:
        """Mean entropy (n,) of the draws, nats."""
        return entropy(self.log_p).mean(dim=0)

    @property
    def epistemic(self) -> Tensor:
        """Mutual information (n,) of class and weights, nats: total - aleatoric; ValueError for a single draw."""
        _several(len(self.log_p))
        return self.total - self.aleatoric


@dataclass(frozen=True)
class RealPredictive:
    """What S draws say of the real targets of n rows: a mixture of S Gaussians each.

    Attributes:
        means: (S, n, d).
        variances: observation noise (S, n, d).
    """

    means: Tensor
    variances: Tensor

    @property
    def mean(self) -> Tensor:
        """Mixture mean (n, d)."""
        return self.means.mean(dim=0)

    @property
    def aleatoric(self) -> Tensor:
        """Mean variance (n, d) of the draws."""
        return self.variances.mean(dim=0)

    @property
    def epistemic(self) -> Tensor:
        """Variance (n, d) of the means; ValueError for a single draw."""
        _several(len(self.means))
        return self.means.var(dim=0, unbiased=False)

    @property
    def total(self) -> Tensor:
        """Variance (n, d) of the mixture: aleatoric + epistemic."""
        return self.aleatoric + self.means.var(dim=0, unbiased=False)

    def log_density(self, y: Tensor) -> Tensor:
        """log p(y) (n, d) under the mixture; ValueError for targets of another shape, (n,) and (n, 1) taken for the same."""
        y = real_targets(self.means[0], y)
        each = -0.5 * ((y - self.means).square() / self.variances + (2 * math.pi * self.variances).log())
        return each.logsumexp(dim=0) - math.log(len(each))

    def distribution(self, y: Tensor) -> Tensor:
        """P(Y <= y) (n, d) under the mixture; targets as for `log_density`."""
        y = real_targets(self.means[0], y)
        return torch.special.ndtr((y - self.means) / self.variances.sqrt()).mean(dim=0)

    def quantile(self, level: float, steps: int = 60) -> Tensor:
        """The value (n, d) below which the mixture has probability `level`, in (0, 1), by bisection."""
        if not 0 < level < 1:
            raise ValueError(f"level is {level}; use one within (0, 1)")
        reach = self.variances.sqrt() * max(4.0, abs(float(torch.special.ndtri(torch.tensor(level)))) + 1)
        low, high = (self.means - reach).amin(dim=0), (self.means + reach).amax(dim=0)
        for _ in range(steps):
            middle = (low + high) / 2
            below = self.distribution(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central interval, both (n, d)."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)


def entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats over the last dimension of log-probabilities; 0 log 0 = 0."""
    return -(log_p.exp() * log_p.clamp_min(-1e30)).sum(dim=-1)


def _several(count: int) -> None:
    if count < 2:
        raise ValueError(ONE_DRAW)
