"""Common corruptions: what the world does to inputs, in five severities, for every modality.

Each takes encoded x (see probatum.spec), its Spec, a severity 1 .. 5 and a torch.Generator (on the CPU), and returns a
new tensor of the same shape and type. After Hendrycks and Dietterich (2019, arXiv:1903.12261), in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional

from probatum.errors import InputError
from probatum.spec import Spec

Corruption = Callable[[Tensor, Spec, int, Generator], Tensor]


def _level(severity: int, levels: tuple[float, ...]) -> float:
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"severity is {severity!r}; use an integer from 1 to 5")
    return levels[severity - 1]


def _uniform(shape: tuple[int, ...], x: Tensor, generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator).to(x.device)


def _normal(shape: tuple[int, ...], x: Tensor, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(x.device)


def image_noise(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise to every pixel, and clip to [0, 1]."""
    scale = _level(severity, (0.04, 0.08, 0.12, 0.18, 0.26))
    return (x + scale * _normal(tuple(x.shape), x, generator)).clamp(0, 1)


def image_blur(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Gaussian blur; its width grows with the image (0.01 to 0.07 of the shorter side, at least 0.4 pixels)."""
    side = min(x.shape[-2:])
    sigma = max(_level(severity, (0.01, 0.02, 0.035, 0.05, 0.07)) * side, _level(severity, (0.4, 0.5, 0.6, 0.8, 1.0)))
    radius = min(max(1, math.ceil(3 * sigma)), side - 1)
    if radius < 1:
        return x.clone()
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, rows, groups=channels), columns, groups=channels).clamp(0, 1)


def image_contrast(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Pull every pixel towards the mean of its image."""
    kept = _level(severity, (0.75, 0.6, 0.45, 0.3, 0.2))
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + kept * (x - mean)).clamp(0, 1)


def image_brightness(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add a constant to every pixel, and clip to [0, 1]."""
    return (x + _level(severity, (0.1, 0.2, 0.3, 0.4, 0.5))).clamp(0, 1)


def image_shift(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Translate each image along both axes, each way at random, and repeat the edge (at least severity pixels / 2)."""
    height, width = x.shape[-2:]
    share = _level(severity, (0.04, 0.08, 0.12, 0.16, 0.2))
    signs = (_uniform((len(x), 2), x, generator) < 0.5).long() * 2 - 1
    down = signs[:, 0] * max(round(share * height), (severity + 1) // 2)
    right = signs[:, 1] * max(round(share * width), (severity + 1) // 2)
    rows = (torch.arange(height, device=x.device)[None] - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device)[None] - right[:, None]).clamp(0, width - 1)
    moved = x.gather(2, rows[:, None, :, None].expand(x.shape))
    return moved.gather(3, columns[:, None, None, :].expand(x.shape))


def image_pixelate(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Replace square blocks by their mean; their side is 0.07 to 0.5 of the shorter one, at least 2 pixels."""
    height, width = x.shape[-2:]
    block = max(2, round(_level(severity, (0.07, 0.14, 0.21, 0.32, 0.5)) * min(height, width)))
    means = functional.avg_pool2d(x, block, ceil_mode=True)
    return means.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[:, :, :height, :width].contiguous()


def table_noise(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise to the numeric columns (in units of their scaled deviation, about 1)."""
    scale = _level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    out = x.clone()
    out[:, : spec.numeric] += scale * _normal((len(x), spec.numeric), x, generator)
    return out


def table_missing_numbers(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Set random numeric cells to 0, which is what the pipeline puts for missing numbers."""
    gone = _uniform((len(x), spec.numeric), x, generator) < _level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    out = x.clone()
    out[:, : spec.numeric] = out[:, : spec.numeric].masked_fill(gone, 0.0)
    return out


def table_missing_categories(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Set random category cells to code 0: missing or unseen."""
    kinds = x.shape[1] - spec.numeric
    gone = _uniform((len(x), kinds), x, generator) < _level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    out = x.clone()
    out[:, spec.numeric :] = out[:, spec.numeric :].masked_fill(gone, 0.0)
    return out


def text_drop(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Leave random tokens out and close the gaps; one token always stays."""
    keep = _uniform(tuple(x.shape), x, generator) >= _level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    keep |= torch.zeros_like(keep).index_fill_(1, torch.zeros(1, dtype=torch.long, device=x.device), True)
    kept = x.masked_fill(~keep, 0)
    order = (kept == 0).long().argsort(dim=1, stable=True)
    return kept.gather(1, order)


def text_unknown(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Replace random tokens by the unknown token, as misspelling does."""
    hit = _uniform(tuple(x.shape), x, generator) < _level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    return torch.where(hit & (x != 0), torch.ones_like(x), x)


def text_swap(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Swap random pairs of neighbours; a token is moved at most once."""
    out = x.clone()
    pairs = x.shape[1] // 2
    if pairs == 0:
        return out
    left, right = x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2]
    swap = _uniform((len(x), pairs), x, generator) < _level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    swap &= right != 0
    out[:, 0 : 2 * pairs : 2] = torch.where(swap, right, left)
    out[:, 1 : 2 * pairs : 2] = torch.where(swap, left, right)
    return out


def _channels(x: Tensor, spec: Spec) -> tuple[Tensor, Tensor | None]:
    """Value channels, and the mask channel or None."""
    return (x[:, :-1], x[:, -1:]) if spec.masked else (x, None)


def _joined(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else torch.cat([values * mask, mask], dim=1)


def series_noise(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise to every observed step (channels have deviation about 1)."""
    values, mask = _channels(x, spec)
    scale = _level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    return _joined(values + scale * _normal(tuple(values.shape), x, generator), mask)


def series_dropout(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Set random steps of all channels to 0, the training mean; the mask, where there is one, says so."""
    values, mask = _channels(x, spec)
    gone = _uniform((len(x), 1, x.shape[2]), x, generator) < _level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    values = values.masked_fill(gone, 0.0)
    if mask is None:
        return values
    left = mask.masked_fill(gone, 0.0)
    # A series with no observed step left would be no series: such rows stay as they were.
    empty = left.sum(dim=2, keepdim=True) == 0
    return torch.where(empty, x, torch.cat([values * left, left], dim=1))


def series_warp(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Run through the observed steps at a smoothly changing pace; both ends stay in place."""
    values, mask = _channels(x, spec)
    n, _, steps = values.shape
    strength = _level(severity, (0.03, 0.06, 0.1, 0.14, 0.18))
    if mask is None:
        last = torch.full((n, 1), float(steps - 1), device=x.device)
    else:
        ends = (mask[:, 0] > 0).float() * torch.arange(steps, device=x.device)
        last = ends.amax(dim=1, keepdim=True)
    share = torch.arange(steps, device=x.device)[None] / last.clamp(min=1)
    sign = (_uniform((n, 1), x, generator) < 0.5).float() * 2 - 1
    moved = share + sign * strength * torch.sin(2 * math.pi * share)
    position = torch.where(share <= 1, moved.clamp(0, 1) * last, share * last)
    low = position.floor().long().clamp(0, steps - 1)
    high = torch.minimum((low + 1).clamp(max=steps - 1), torch.maximum(last.long(), low))
    weight = (position - low).clamp(0, 1)[:, None].to(x.dtype)
    below = values.gather(2, low[:, None].expand(values.shape))
    above = values.gather(2, high[:, None].expand(values.shape))
    return _joined(below * (1 - weight) + above * weight, mask)


def series_scale(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Multiply each series by 1 + s or 1 / (1 + s), one or the other at random."""
    values, mask = _channels(x, spec)
    factor = 1 + _level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    up = _uniform((len(x), 1, 1), x, generator) < 0.5
    return _joined(torch.where(up, values * factor, values / factor), mask)


CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "image": {
        "gaussian noise": image_noise,
        "blur": image_blur,
        "contrast": image_contrast,
        "brightness": image_brightness,
        "shift": image_shift,
        "pixelate": image_pixelate,
    },
    "table": {
        "gaussian noise": table_noise,
        "missing numbers": table_missing_numbers,
        "missing categories": table_missing_categories,
    },
    "text": {"dropped words": text_drop, "unknown words": text_unknown, "swapped neighbours": text_swap},
    "series": {
        "gaussian noise": series_noise,
        "time dropout": series_dropout,
        "time warp": series_warp,
        "scale": series_scale,
    },
}
"""Modality -> name -> function (x, spec, severity, generator) -> x."""


def corruptions(spec: Spec) -> Mapping[str, Corruption]:
    """The corruptions that can change examples of this spec, by name."""
    found = dict(CORRUPTIONS[spec.modality])
    if spec.modality == "table" and spec.numeric == 0:
        del found["gaussian noise"], found["missing numbers"]
    if spec.modality == "table" and not spec.cardinalities:
        del found["missing categories"]
    return found
