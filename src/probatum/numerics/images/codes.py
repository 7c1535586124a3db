"""Convolutions from an image to a flat code and back."""

from __future__ import annotations

import itertools
import math

from torch import nn

ACTS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
CODE = 10
"""Channels of a code of about 2 x 2 places, as in Li et al. 2018 (40 numbers)."""


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes that stride-2 convolutions take an image through, down to about 2 x 2: [(h, w), ..., (2, 2)]."""
    count = max(1, math.ceil(math.log2(max(2, min(height, width)) / 2)))
    sizes = [(height, width)]
    for _ in range(count):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def make_encoder(
    shape: tuple[int, int, int], width: int, act: str, channels: int = CODE, bounded: bool = True
) -> nn.Sequential:
    """Stride-2 3x3 convolutions to a flat code of so many channels; `bounded` ends in a sigmoid: codes in (0, 1)."""
    inputs, *size = shape
    count = len(halvings(*size)) - 1
    layers: list[nn.Module] = []
    for step in range(count):
        last = step == count - 1
        layers.append(nn.Conv2d(inputs, channels if last else width, 3, 2, 1))
        if not last or bounded:
            layers.append(nn.Sigmoid() if last else ACTS[act]())
        inputs = width
    return nn.Sequential(*layers, nn.Flatten())


def make_decoder(shape: tuple[int, int, int], width: int, act: str, channels: int = CODE) -> nn.Sequential:
    """The encoder's mirror image in transposed convolutions, ending in a sigmoid."""
    sizes = halvings(*shape[1:])[::-1]
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, *sizes[0]))]
    for step, (small, large) in enumerate(itertools.pairwise(sizes)):
        last = step == len(sizes) - 2
        extra = tuple(big - (2 * little - 1) for little, big in zip(small, large, strict=True))
        layers += [nn.ConvTranspose2d(channels, shape[0] if last else width, 3, 2, 1, extra)]
        layers += [nn.Sigmoid() if last else ACTS[act]()]
        channels = width
    return nn.Sequential(*layers)
