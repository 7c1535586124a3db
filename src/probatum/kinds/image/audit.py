"""What an audit asks of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from probatum.kinds.image.encode import ImageEncoder
from probatum.kinds.usual.audit import Place, Plain, cuts
from probatum.spec import Spec

NDIM = 4
COARSE = ("shift", "pixelate")
SMALL = 20
"""Pixels of an image's side below which a shift by one of them is more than 5 % of it, and blocks of two 10 %."""


def plain(dataset: Any) -> Plain:
    """Pixels in [0, 1]."""
    return Plain(ImageEncoder.fit(dataset.raw).encode(dataset.raw).numpy())


def centred_over(spec: Spec) -> tuple[int, ...]:
    """None: pixels keep their scale."""
    return ()


def not_corruptible(x: Tensor, spec: Spec) -> str:
    """Pixels outside [0, 1] have been normalised somewhere."""
    if float(x.min()) >= 0 and float(x.max()) <= 1:
        return ""
    return "pixels lie outside [0, 1]; give images, or (X, y), before they are normalised"


def too_coarse(spec: Spec) -> tuple[str, ...]:
    """Moves by a pixel and blocks of two, where images are small."""
    return COARSE if min(spec.shape[1:]) < SMALL else ()


def parts(spec: Spec, grid: int) -> Iterator[tuple[str, Place]]:
    """Patches."""
    every = slice(None)
    for top, bottom in cuts(spec.shape[1], grid):
        for left, right in cuts(spec.shape[2], grid):
            place = (every, every, slice(top, bottom), slice(left, right))
            yield f"patch rows {top}-{bottom - 1}, columns {left}-{right - 1}", place


def facts(x: Tensor, spec: Spec) -> dict[str, Tensor]:
    """Brightness and contrast."""
    flat = x.flatten(1).double()
    return {"brightness": flat.mean(dim=1), "contrast": flat.std(dim=1)}
