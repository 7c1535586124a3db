"""How near restored rows come to the true ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probatum.measure.base import Measure

MARGIN = 0.2
CEILING = 100.0
"""Decibels of a restoration without error."""

MEASURES = (
    Measure(
        "psnr-denoise",
        "restoration",
        True,
        MARGIN,
        unit="dB",
        about="peak signal-to-noise ratio of test rows after white noise was removed (peak 1: an image's white, or one "
        "standard deviation of a column)",
    ),
    Measure(
        "psnr-inpaint",
        "restoration",
        True,
        MARGIN,
        unit="dB",
        about="the same where noise was added and half of the places were lost",
    ),
    Measure("psnr-blur", "restoration", True, MARGIN, unit="dB", about="the same after blur and noise"),
)


def psnr(found: Tensor, true: Tensor) -> float:
    """-10 log10 of the squared error, mean over all rows and places; two tensors of one shape, peak 1, at most 100.

    Raises:
        ValueError: shapes that differ, or values that are not finite.
    """
    if found.shape != true.shape:
        raise ValueError(f"restored rows have shape {tuple(found.shape)}, the true ones {tuple(true.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError("restored rows are not finite")
    error = float((found.double() - true.double()).square().mean())
    return min(CEILING, -10 * math.log10(error)) if error > 0 else CEILING
