"""Embeddings of a table's numbers: every number becomes a vector (Gorishniy et al. 2022, arXiv:2203.05556)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def normal_edges(bins: int) -> Tensor:
    """Edges (bins + 1,) that cut a standard normal into equally likely pieces, the ends put at -3.5 and 3.5."""
    inner = torch.arange(1, bins, dtype=torch.float64) / bins
    cuts = math.sqrt(2) * torch.erfinv(2 * inner - 1)
    end = torch.tensor([3.5], dtype=torch.float64)
    return torch.cat([-end, cuts, end]).float()


def piecewise_linear(x: Tensor, edges: Tensor) -> Tensor:
    """Piecewise-linear encoding, eq. 1 of the paper: (..., features), edges (features, bins + 1) -> (..., features, bins).

    Piece t is (x - left) / (right - left), cut to [0, 1], but the first has no lower and the last no upper bound.
    """
    left, right = edges[:, :-1], edges[:, 1:]
    share = (x[..., None] - left) / (right - left)
    bins = share.shape[-1]
    if bins == 1:
        return share
    low = torch.zeros(bins, dtype=x.dtype, device=x.device)
    high = torch.ones(bins, dtype=x.dtype, device=x.device)
    low[0], high[-1] = -math.inf, math.inf
    return share.clamp(low, high)


class EachLinear(nn.Module):
    """A linear layer of its own for every feature: (n, features, inputs) -> (n, features, outputs)."""

    def __init__(self, features: int, inputs: int, outputs: int, *, zero: bool = False) -> None:
        super().__init__()
        bound = 0.0 if zero else inputs**-0.5
        self.weight = nn.Parameter(torch.empty(features, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(features, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nfi,fio->nfo", x, self.weight) + self.bias


class PeriodicNumbers(nn.Module):
    """Sines and cosines of learned frequencies, then a linear layer a feature and ReLU: (n, f) -> (n, f, width).

    Args:
        features: how many numbers.
        width: size of each number's vector.
        frequencies: how many frequencies a number gets.
        scale: standard deviation of the frequencies at the start.
    """

    def __init__(self, features: int, width: int, *, frequencies: int = 16, scale: float = 0.1) -> None:
        super().__init__()
        self.frequency = nn.Parameter(scale * torch.randn(features, frequencies).clamp(-3, 3))
        self.linear = EachLinear(features, 2 * frequencies, width)

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * self.frequency * x[..., None]
        return torch.relu(self.linear(torch.cat([angle.cos(), angle.sin()], dim=-1)))


class PiecewiseNumbers(nn.Module):
    """A linear map of the number plus a linear map, zero at the start, of its piecewise encoding: (n, f) -> (n, f, width).

    Args:
        edges: bin edges (features, bins + 1), rising along each row.
        width: size of each number's vector.
    """

    def __init__(self, edges: Tensor, width: int) -> None:
        super().__init__()
        if edges.ndim != 2 or not bool((edges.diff(dim=1) > 0).all()):
            raise ValueError(
                f"edges of shape {tuple(edges.shape)} do not rise; give (features, bins + 1), each row rising"
            )
        self.edges: Tensor
        self.register_buffer("edges", edges)
        self.straight = EachLinear(len(edges), 1, width)
        self.pieces = EachLinear(len(edges), edges.shape[1] - 1, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.straight(x[..., None]) + self.pieces(piecewise_linear(x, self.edges))
