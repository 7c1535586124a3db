"""Corruptions of images: noise, blur, light, place and resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional

from probatum.data.corrupt import Corruption, level, normal, uniform
from probatum.spec import Spec


def noise(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise to every pixel, and clip to [0, 1]."""
    spread = level(severity, (0.04, 0.08, 0.12, 0.18, 0.26))
    return (x + spread * normal(tuple(x.shape), x, generator)).clamp(0, 1)


def blur(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Gaussian blur; its width grows with the image (0.01 to 0.07 of the shorter side, at least 0.4 pixels)."""
    side = min(x.shape[-2:])
    sigma = max(level(severity, (0.01, 0.02, 0.035, 0.05, 0.07)) * side, level(severity, (0.4, 0.5, 0.6, 0.8, 1.0)))
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


def contrast(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Pull every pixel towards the mean of its image."""
    kept = level(severity, (0.75, 0.6, 0.45, 0.3, 0.2))
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + kept * (x - mean)).clamp(0, 1)


def brightness(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add a constant to every pixel, and clip to [0, 1]."""
    return (x + level(severity, (0.1, 0.2, 0.3, 0.4, 0.5))).clamp(0, 1)


def shift(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Translate each image along both axes, each way at random, and repeat the edge (at least severity pixels / 2)."""
    height, width = x.shape[-2:]
    share = level(severity, (0.04, 0.08, 0.12, 0.16, 0.2))
    signs = (uniform((len(x), 2), x, generator) < 0.5).long() * 2 - 1
    down = signs[:, 0] * max(round(share * height), (severity + 1) // 2)
    right = signs[:, 1] * max(round(share * width), (severity + 1) // 2)
    rows = (torch.arange(height, device=x.device)[None] - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device)[None] - right[:, None]).clamp(0, width - 1)
    moved = x.gather(2, rows[:, None, :, None].expand(x.shape))
    return moved.gather(3, columns[:, None, None, :].expand(x.shape))


def pixelate(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Replace square blocks by their mean; their side is 0.07 to 0.5 of the shorter one, at least 2 pixels."""
    height, width = x.shape[-2:]
    block = max(2, round(level(severity, (0.07, 0.14, 0.21, 0.32, 0.5)) * min(height, width)))
    means = functional.avg_pool2d(x, block, ceil_mode=True)
    return means.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[:, :, :height, :width].contiguous()


def corruptions(spec: Spec) -> Mapping[str, Corruption]:
    """All of them, by name."""
    return {
        "gaussian noise": noise,
        "blur": blur,
        "contrast": contrast,
        "brightness": brightness,
        "shift": shift,
        "pixelate": pixelate,
    }
