"""Corruptions of texts: words that are lost, misspelt or swapped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from probatum.data.corrupt import Corruption, level, uniform
from probatum.spec import Spec


def drop(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Leave random tokens out and close the gaps; one token always stays."""
    keep = uniform(tuple(x.shape), x, generator) >= level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    keep |= torch.zeros_like(keep).index_fill_(1, torch.zeros(1, dtype=torch.long, device=x.device), True)
    kept = x.masked_fill(~keep, 0)
    order = (kept == 0).long().argsort(dim=1, stable=True)
    return kept.gather(1, order)


def unknown(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Replace random tokens by the unknown token, as misspelling does."""
    hit = uniform(tuple(x.shape), x, generator) < level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    return torch.where(hit & (x != 0), torch.ones_like(x), x)


def swap(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Swap random pairs of neighbours; a token is moved at most once."""
    out = x.clone()
    pairs = x.shape[1] // 2
    if pairs == 0:
        return out
    left, right = x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2]
    swapped = uniform((len(x), pairs), x, generator) < level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    swapped &= right != 0
    out[:, 0 : 2 * pairs : 2] = torch.where(swapped, right, left)
    out[:, 1 : 2 * pairs : 2] = torch.where(swapped, left, right)
    return out


def corruptions(spec: Spec) -> Mapping[str, Corruption]:
    """All of them, by name."""
    return {"dropped words": drop, "unknown words": unknown, "swapped neighbours": swap}
