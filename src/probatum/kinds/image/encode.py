"""Images: raw pixels in the order (n, channels, height, width), and their encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probatum.errors import InputError

CHANNELS = (1, 3, 4)
CHANNEL_NAMES = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


@dataclass(frozen=True)
class RawImages:
    """Pixels (n, channels, height, width), uint8 or float32; divided by `scale` they lie in [0, 1]."""

    pixels: np.ndarray
    scale: float

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray) -> RawImages:
        """The rows with these numbers, in this order."""
        return RawImages(self.pixels[rows], self.scale)

    def digest(self, sha: hashlib._Hash) -> None:
        """Feed shape, type and pixels to a hash."""
        sha.update(f"{self.pixels.shape} {self.pixels.dtype} {self.scale}".encode())
        sha.update(np.ascontiguousarray(self.pixels).data)

    def row_keys(self) -> list[bytes]:
        """One key a row; equal images have equal keys."""
        flat = np.ascontiguousarray(self.pixels).reshape(len(self), -1)
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in flat]

    def describe(self) -> list[dict[str, Any]]:
        """Name and kind of each channel."""
        return [
            {"name": name, "kind": "channel", "missing": 0, "n_unique": None}
            for name in channel_names(self.pixels.shape[1])
        ]


def channel_names(count: int) -> tuple[str, ...]:
    """Names of image channels."""
    return CHANNEL_NAMES.get(count, tuple(f"channel {i}" for i in range(count)))


def raw_images(x: np.ndarray) -> RawImages:
    """(n, H, W), (n, H, W, C) or (n, C, H, W) -> RawImages; raises InputError for values outside [0, 255]."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim != 4:
        raise InputError(f"images have {x.ndim} dimensions; give (n, H, W), (n, H, W, C) or (n, C, H, W)")
    elif x.shape[1] not in (1, 3) and x.shape[3] in CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    if x.dtype == np.bool_:
        x = x.astype(np.float32)
    if not np.issubdtype(x.dtype, np.number):
        raise InputError(f"images have type {x.dtype}; give uint8, or floats in [0, 1]")
    if not np.isfinite(x).all():
        raise InputError("images hold NaN or infinite pixels; replace them")
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if low < 0 or high > 255:
        raise InputError(f"pixels range from {low:g} to {high:g}; scale them to [0, 1] or give uint8")
    if x.dtype == np.uint8 or np.issubdtype(x.dtype, np.integer):
        return RawImages(np.ascontiguousarray(x.astype(np.uint8, copy=False)), 255.0)
    return RawImages(np.ascontiguousarray(x.astype(np.float32, copy=False)), 1.0 if high <= 1.0 else 255.0)


@dataclass(frozen=True)
class ImageEncoder:
    """Pixels -> (n, channels, height, width) float32 in [0, 1]; nothing is fitted but shape and scale.

    Attributes:
        shape: channels, height, width.
        scale: what pixels are divided by.
        whole: whether training pixels were integers; if not, new floats are divided by the same scale.
    """

    shape: tuple[int, int, int]
    scale: float
    whole: bool

    @classmethod
    def fit(cls, raw: RawImages) -> ImageEncoder:
        """Keep shape and scale."""
        channels, height, width = raw.pixels.shape[1:]
        return cls((channels, height, width), raw.scale, raw.pixels.dtype == np.uint8)

    def read(self, x: np.ndarray) -> RawImages:
        """New images, or a single one, on the scale of the training pixels."""
        raw = raw_images(x[None] if x.shape in (self.shape, self.shape[1:]) else x)
        if self.whole or raw.pixels.dtype == np.uint8:
            return raw
        if raw.scale > self.scale:
            raise InputError(
                f"pixels reach {float(raw.pixels.max()):g}, but training pixels lay in [0, 1]; rescale them"
            )
        return RawImages(raw.pixels, self.scale)

    def encode(self, raw: RawImages) -> Tensor:
        """(n, channels, height, width) float32; raises InputError where the size differs from training."""
        if raw.pixels.shape[1:] != self.shape:
            raise InputError(
                f"images are {_words(raw.pixels.shape[1:])}, but the model takes {_words(self.shape)} "
                "(channels x height x width); resize or convert them"
            )
        # A copy, so that the raw pixels stay as they are.
        return torch.from_numpy(raw.pixels.astype(np.float32)).div_(raw.scale)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What to save: JSON values and arrays."""
        return {"shape": list(self.shape), "scale": self.scale, "whole": self.whole}, {}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ImageEncoder:
        """Rebuild from `state`."""
        channels, height, width = meta["shape"]
        return cls((channels, height, width), meta["scale"], meta["whole"])


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
