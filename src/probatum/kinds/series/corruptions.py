"""Corruptions of series: noise, gaps, pace and scale."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from probatum.data.corrupt import Corruption, level, normal, uniform
from probatum.spec import Spec


def _channels(x: Tensor, spec: Spec) -> tuple[Tensor, Tensor | None]:
    """Value channels, and the mask channel or None."""
    return (x[:, :-1], x[:, -1:]) if spec.masked else (x, None)


def _joined(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else torch.cat([values * mask, mask], dim=1)


def noise(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise to every observed step (channels have deviation about 1)."""
    values, mask = _channels(x, spec)
    spread = level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    return _joined(values + spread * normal(tuple(values.shape), x, generator), mask)


def dropout(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Set random steps of all channels to 0, the training mean; the mask, where there is one, says so."""
    values, mask = _channels(x, spec)
    gone = uniform((len(x), 1, x.shape[2]), x, generator) < level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    values = values.masked_fill(gone, 0.0)
    if mask is None:
        return values
    left = mask.masked_fill(gone, 0.0)
    # A series with no observed step left would be no series: such rows stay as they were.
    empty = left.sum(dim=2, keepdim=True) == 0
    return torch.where(empty, x, torch.cat([values * left, left], dim=1))


def warp(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Run through the observed steps at a smoothly changing pace; both ends stay in place."""
    values, mask = _channels(x, spec)
    n, _, steps = values.shape
    strength = level(severity, (0.03, 0.06, 0.1, 0.14, 0.18))
    if mask is None:
        last = torch.full((n, 1), float(steps - 1), device=x.device)
    else:
        ends = (mask[:, 0] > 0).float() * torch.arange(steps, device=x.device)
        last = ends.amax(dim=1, keepdim=True)
    share = torch.arange(steps, device=x.device)[None] / last.clamp(min=1)
    sign = (uniform((n, 1), x, generator) < 0.5).float() * 2 - 1
    moved = share + sign * strength * torch.sin(2 * math.pi * share)
    position = torch.where(share <= 1, moved.clamp(0, 1) * last, share * last)
    low = position.floor().long().clamp(0, steps - 1)
    high = torch.minimum((low + 1).clamp(max=steps - 1), torch.maximum(last.long(), low))
    weight = (position - low).clamp(0, 1)[:, None].to(x.dtype)
    below = values.gather(2, low[:, None].expand(values.shape))
    above = values.gather(2, high[:, None].expand(values.shape))
    return _joined(below * (1 - weight) + above * weight, mask)


def scale(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Multiply each series by 1 + s or 1 / (1 + s), one or the other at random."""
    values, mask = _channels(x, spec)
    factor = 1 + level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    up = uniform((len(x), 1, 1), x, generator) < 0.5
    return _joined(torch.where(up, values * factor, values / factor), mask)


def corruptions(spec: Spec) -> Mapping[str, Corruption]:
    """All of them, by name."""
    return {"gaussian noise": noise, "time dropout": dropout, "time warp": warp, "scale": scale}
