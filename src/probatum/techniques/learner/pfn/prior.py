"""Priors over data sets for prior-fitted networks: Gaussian processes, coins, and tables labelled by random networks."""

from __future__ import annotations

import torch
from torch import Tensor


def coin_prior(batch: int, rows: int, a: float, b: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tosses (batch, rows) of coins whose bias is Beta(a, b); x is one column of zeros. Beta for whole numbers a and b."""
    if a != int(a) or b != int(b) or a < 1 or b < 1:
        raise ValueError(f"a is {a}, b {b}; give whole numbers of at least 1")
    first, second = (
        -torch.rand(batch, int(k), generator=generator).clamp(min=1e-12).log().sum(dim=1) for k in (a, b)
    )  # sums of exponentials: Gamma(a), Gamma(b)
    p = first / (first + second)
    y = (torch.rand(batch, rows, generator=generator) < p[:, None]).long()
    return torch.zeros(batch, rows, 1), y


def gp_prior(
    batch: int,
    rows: int,
    generator: torch.Generator,
    length: float = 0.3,
    noise: float = 0.1,
    dims: int = 1,
) -> tuple[Tensor, Tensor]:
    """Functions from a Gaussian process on [0, 1]^dims (RBF, variance 1), observed with noise of this deviation."""
    x = torch.rand(batch, rows, dims, generator=generator)
    square = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    k = torch.exp(-0.5 * square / length**2) + (noise**2 + 1e-9) * torch.eye(rows, dtype=torch.float64)
    draw = torch.randn(batch, rows, 1, generator=generator, dtype=torch.float64)
    return x, (torch.linalg.cholesky(k) @ draw).squeeze(2).float()


def table_prior(
    batch: int, rows: int, features: int, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tables (batch, rows, features) whose classes come from random networks, standardised by their own columns.

    All tables of a batch have the same number of columns and of classes, drawn anew for every batch (2 to `features`, and
    2 to `classes`, small numbers more often). Rows are linear mixtures of a few hidden factors, some columns are skewed,
    coarse or mere noise; the score is a random network of one or two layers of some of the columns, cut into classes at
    random quantiles; a few labels are noise, as in life.
    """

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def one() -> float:
        return float(torch.rand(1, generator=generator))

    d = 2 + int((features - 1) * one() ** 1.5)
    k = 2 + int((classes - 1) * one() ** 2.5)
    factors = 1 + int(min(d, 8) * one())
    x = draw(batch, rows, factors) @ draw(batch, factors, d) / factors**0.5
    x = x + (0.1 + 1.5 * one()) * draw(batch, rows, d)
    clusters = int(4 * one())
    if clusters > 1:
        centre = 2 * draw(batch, clusters, d)
        own = torch.randint(clusters, (batch, rows), generator=generator)
        x = x + centre.gather(1, own[:, :, None].expand(-1, -1, d))
    kind = torch.rand(batch, 1, d, generator=generator)
    x = torch.where(kind < 0.15, x.abs().log1p() * 2, x)
    x = torch.where((kind >= 0.15) & (kind < 0.3), (x * 1.5).round() / 1.5, x)
    x = torch.where((kind >= 0.3) & (kind < 0.4), (x > 0).float(), x)
    x = (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True).clamp(min=1e-3)
    used = (torch.rand(batch, 1, d, generator=generator) < 0.2 + 0.8 * one()).float()
    used[:, :, 0] = 1.0
    hidden = 1 + int(24 * one() ** 2)
    h = (x * used) @ draw(batch, d, hidden) / used.sum(dim=2, keepdim=True).sqrt()
    act = int(4 * one())
    h = h + 0.5 * draw(batch, 1, hidden)
    h = (h, torch.tanh(2 * h), torch.relu(h), torch.sin(2 * h))[act]
    if one() < 0.4:
        h = torch.tanh(h @ draw(batch, hidden, hidden) / hidden**0.5 * 2)
    if k > 2 and one() < 0.7:  # one score a class
        score = h @ draw(batch, hidden, k)
        score = (score - score.mean(dim=1, keepdim=True)) / score.std(dim=1, keepdim=True).clamp(min=1e-3)
        y = (score + (0.3 * one()) * draw(batch, rows, k)).argmax(dim=2)
    else:  # one score, cut at quantiles
        score = (h @ draw(batch, hidden, 1)).squeeze(2)
        score = score + (0.3 * one() ** 2) * score.std(dim=1, keepdim=True) * draw(batch, rows)
        cuts = torch.rand(batch, k - 1, generator=generator).clamp(0.1, 0.9).sort(dim=1).values
        edges = torch.stack([row.quantile(c) for row, c in zip(score, cuts, strict=True)])
        y = (score[:, :, None] > edges[:, None, :]).sum(dim=2)
        order = torch.rand(batch, k, generator=generator).argsort(dim=1)
        y = order.gather(1, y)  # classes have no order
    wrong = torch.rand(batch, rows, generator=generator) < 0.1 * one() ** 2
    return x, torch.where(wrong, torch.randint(k, y.shape, generator=generator), y)
