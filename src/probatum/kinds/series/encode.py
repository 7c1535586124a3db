"""Series: raw values (n, channels, time) with NaN where nothing was observed, and their encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probatum.errors import InputError

MASK_NAME = "observed"


@dataclass(frozen=True)
class RawSeries:
    """Values (n, channels, time) float32, NaN = padding or gap; `masked` if any row has NaN."""

    values: np.ndarray
    channels: tuple[str, ...]
    masked: bool

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> RawSeries:
        """The rows with these numbers, in this order."""
        return RawSeries(self.values[rows], self.channels, self.masked)

    def digest(self, sha: hashlib._Hash) -> None:
        """Feed shape, channel names and values to a hash."""
        sha.update(f"{self.values.shape} {self.channels} {self.masked}".encode())
        sha.update(np.ascontiguousarray(np.where(np.isnan(self.values), np.float32(np.nan), self.values)).data)

    def row_keys(self) -> list[bytes]:
        """One key a row; equal series have equal keys."""
        clean = np.where(np.isnan(self.values), np.float32(np.nan), self.values + np.float32(0))
        return [hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest() for row in clean]

    def describe(self) -> list[dict[str, Any]]:
        """Name and missing steps of each channel."""
        missing = np.isnan(self.values).sum(axis=(0, 2))
        return [
            {"name": name, "kind": "channel", "missing": int(count), "n_unique": None}
            for name, count in zip(self.channels, missing, strict=True)
        ]


def raw_series(x: np.ndarray, channels: tuple[str, ...] = (), lengths: np.ndarray | None = None) -> RawSeries:
    """(n, time) or (n, channels, time) -> RawSeries; `lengths` (n,) marks the steps after them as padding.

    Raises InputError for other shapes, infinite values, and rows or channels without a single value.
    """
    if x.ndim == 2:
        x = x[:, None]
    if x.ndim != 3:
        raise InputError(f"series have {x.ndim} dimensions; give (n, time) or (n, channels, time)")
    values = np.array(x, dtype=np.float32)
    if np.isinf(values).any():
        row, channel = np.argwhere(np.isinf(values))[0][:2]
        raise InputError(f"series in row {row}, channel {channel} is infinite; replace the value or leave NaN")
    if lengths is not None:
        values[np.broadcast_to(np.arange(values.shape[2]) >= np.asarray(lengths)[:, None, None], values.shape)] = np.nan
    gone = np.isnan(values).all(axis=(1, 2))
    if gone.any():
        raise InputError(f"series in row {int(gone.argmax())} has no value at all; leave the row out")
    names = channels or tuple(f"channel {i}" for i in range(values.shape[1]))
    return RawSeries(values, names, bool(np.isnan(values).any()))


@dataclass(frozen=True)
class SeriesEncoder:
    """Series -> (n, channels, time) float32, each channel standardised by its mean and deviation on training rows.

    Where the data has gaps or padding, these become 0 and a last channel is 1 where a step was observed (in any
    channel) and 0 elsewhere.
    """

    channels: tuple[str, ...]
    steps: int
    masked: bool
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, raw: RawSeries) -> SeriesEncoder:
        """Mean and deviation of each channel over these (training) rows."""
        values = raw.values.astype(np.float64)
        seen = ~np.isnan(values)
        count = np.maximum(seen.sum(axis=(0, 2)), 1)
        mean = np.where(seen, values, 0.0).sum(axis=(0, 2)) / count
        spread = np.where(seen, values - mean[None, :, None], 0.0)
        std = np.sqrt((spread**2).sum(axis=(0, 2)) / count)
        return cls(raw.channels, raw.values.shape[2], raw.masked, mean, np.where(std > 0, std, 1.0))

    @property
    def features(self) -> tuple[str, ...]:
        """Channel names of x, the mask included."""
        return self.channels + ((MASK_NAME,) if self.masked else ())

    def encode(self, raw: RawSeries) -> Tensor:
        """(n, channels, time) float32; raises InputError where channels or length do not fit the training data."""
        _, channels, steps = raw.values.shape
        if channels != len(self.channels):
            raise InputError(f"series have {channels} channel(s); the model takes {len(self.channels)}")
        if steps > self.steps or (steps < self.steps and not self.masked):
            raise InputError(f"series have {steps} steps; the model takes {self.steps}; cut or resample them")
        if raw.masked and not self.masked:
            raise InputError("series have gaps (NaN), but the training data had none; fill them")
        values = raw.values.astype(np.float64)
        if steps < self.steps:
            values = np.pad(values, ((0, 0), (0, 0), (0, self.steps - steps)), constant_values=np.nan)
        scaled = (values - self.mean[None, :, None]) / self.std[None, :, None]
        if self.masked:
            observed = ~np.isnan(values).all(axis=1, keepdims=True)
            scaled = np.concatenate([np.nan_to_num(scaled, nan=0.0), observed], axis=1)
        return torch.from_numpy(scaled.astype(np.float32))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What to save: JSON values and arrays."""
        meta = {"channels": list(self.channels), "steps": self.steps, "masked": self.masked}
        return meta, {"mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> SeriesEncoder:
        """Rebuild from `state`."""
        return cls(tuple(meta["channels"]), meta["steps"], meta["masked"], arrays["mean"], arrays["std"])
