"""Attributes of rows: coding values, reading attributes off encoded examples, how common each is for each class."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from probatum.spec import Spec

MISSING = -1
"""The code of a value that is not known."""


@dataclass(frozen=True)
class Attribute:
    """One attribute: its name, its known values, and the code of each row (n,), -1 where it is missing."""

    name: str
    values: tuple[str, ...]
    codes: Tensor


def code_attribute(name: str, given: Sequence[Any], values: Sequence[str] | None = None) -> Attribute:
    """Code given values; None, NaN, NA, NaT and "" are missing, and so are values that are not among `values` where these are named.

    A value is what it is written as, whatever its type; whole numbers are one value with and without a point, 1 and 1.0.
    """
    words = [_word(value) for value in given]
    known = tuple(sorted({word for word in words if word})) if values is None else tuple(values)
    place = {value: code for code, value in enumerate(known)}
    return Attribute(name, known, torch.tensor([place.get(word, MISSING) for word in words], dtype=torch.int64))


def _word(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    word = str(value).strip()
    if isinstance(value, str):
        return word
    if value is None or word in ("<NA>", "NaT") or word.lower() == "nan":  # of every library
        return ""
    if isinstance(value, numbers.Real | Decimal) and math.isfinite(value) and value == int(value):
        return word if isinstance(value, bool) else str(int(value))
    return word


def measured_attributes(
    parts: Sequence[Tensor], spec: Spec, most: int = 3, bins: int = 3, columns: Sequence[str] | None = None
) -> list[list[Attribute]]:
    """Attributes read off encoded rows, for each of several parts; numbers are cut at quantiles of the first part.

    Tables: columns, categories (code 0 is missing) before numbers. Images: brightness, contrast, balance of left and right.
    Text: length, share of unknown words, share of repeated words. Series: level, spread, roughness of the first channel, of
    the observed steps where they are masked. A number that cannot be told (NaN) is missing.

    Args:
        parts: x of training rows, then of others.
        spec: of the data.
        most: how many attributes, at least 1.
        bins: values of a number, at least 2.
        columns: tables: names of the columns to take; None = the first ones.

    Raises:
        ValueError: an unknown column, or a count out of range.
    """
    if most < 1 or bins < 2:
        raise ValueError(f"most is {most} and bins {bins}; they must be at least 1 and 2")
    if columns is not None and spec.modality != "table":
        raise ValueError(f"columns {list(columns)} are for tables; these data are {spec.modality}")
    found: list[list[Attribute]] = [[] for _ in parts]
    if spec.modality == "table":
        for column in _columns(spec, columns)[:most]:
            name = spec.features[column] if spec.features else f"column {column}"
            if column >= spec.numeric:
                known = tuple(map(str, range(1, spec.cardinalities[column - spec.numeric])))
                for rows, x in zip(found, parts, strict=True):
                    rows.append(Attribute(name, known, x[:, column].long() - 1))
            else:
                _cut(found, name, [x[:, column] for x in parts], bins)
        return found
    for name, measured in _numbers(parts, spec)[:most]:
        _cut(found, name, measured, bins)
    return found


def _columns(spec: Spec, columns: Sequence[str] | None) -> list[int]:
    width = spec.numeric + len(spec.cardinalities)
    if columns is None:
        return [*range(spec.numeric, width), *range(spec.numeric)]
    unknown = [name for name in columns if name not in spec.features]
    if unknown:
        raise ValueError(f"no column {unknown[0]!r}; there are {', '.join(spec.features)}")
    return [spec.features.index(name) for name in columns]


def _numbers(parts: Sequence[Tensor], spec: Spec) -> list[tuple[str, list[Tensor]]]:
    if spec.modality == "image":
        half = spec.shape[-1] // 2
        return [
            ("brightness", [x.flatten(1).mean(dim=1) for x in parts]),
            ("contrast", [x.flatten(1).std(dim=1) for x in parts]),
            ("balance", [x[..., :half].flatten(1).mean(dim=1) - x[..., half:].flatten(1).mean(dim=1) for x in parts]),
        ]
    if spec.modality == "text":
        lengths = [(x != 0).sum(dim=1).clamp_min(1).float() for x in parts]
        distinct = [_distinct(x) for x in parts]
        return [
            ("length", lengths),
            ("unknown words", [(x == 1).sum(dim=1) / n for x, n in zip(parts, lengths, strict=True)]),
            ("repeated words", [1 - d / n for d, n in zip(distinct, lengths, strict=True)]),
        ]
    first = [x[:, 0] for x in parts]
    if spec.masked:
        first = [torch.where(x[:, -1] > 0, x[:, 0], torch.nan) for x in parts]
        spreads = [((x - x.nanmean(dim=1, keepdim=True)) ** 2).nanmean(dim=1).sqrt() for x in first]
        return [
            ("level", [x.nanmean(dim=1) for x in first]),
            ("spread", spreads),
            ("roughness", [x.diff(dim=1).abs().nanmean(dim=1) for x in first]),
        ]
    return [
        ("level", [x.mean(dim=1) for x in first]),
        ("spread", [x.std(dim=1) for x in first]),
        ("roughness", [x.diff(dim=1).abs().mean(dim=1) for x in first]),
    ]


def _distinct(x: Tensor) -> Tensor:
    ordered = x.sort(dim=1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return (new & (ordered != 0)).sum(dim=1).float()


def _cut(found: list[list[Attribute]], name: str, measured: Sequence[Tensor], bins: int) -> None:
    levels = torch.arange(1, bins, dtype=torch.float64) / bins
    told = measured[0].double()
    told = told[~told.isnan()]
    edges = (torch.quantile(told, levels) if len(told) else told).unique()
    values = tuple(f"{name} {place + 1} of {len(edges) + 1}" for place in range(len(edges) + 1))
    for rows, number in zip(found, measured, strict=True):
        codes = torch.bucketize(number.double().contiguous(), edges)
        rows.append(Attribute(name, values, codes.masked_fill(number.isnan(), MISSING)))


def commonness(y: Tensor, attribute: Attribute, classes: int, smoothing: float = 1.0) -> Tensor:
    """(classes, values): P(value | class) of rows whose value is known, Laplace smoothed.

    Raises:
        ValueError: for smoothing below 0, or an attribute without values.
    """
    if smoothing < 0 or not attribute.values:
        raise ValueError(
            f"smoothing is {smoothing}, {attribute.name} has {len(attribute.values)} values; 0 or more, 1 or more"
        )
    known = attribute.codes >= 0
    counts = torch.zeros(classes, len(attribute.values), dtype=torch.float64)
    ones = torch.ones(int(known.sum()), dtype=torch.float64)
    counts.index_put_((y[known], attribute.codes[known]), ones, accumulate=True)
    counts = counts + smoothing
    return counts / counts.sum(dim=1, keepdim=True).clamp_min(1e-300)


def uncommon_flags(y: Tensor, attributes: Sequence[Attribute], tables: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which attributes of which rows are uncommon for their class, and which are known; both (n, attributes) bool.

    Args:
        y: (n,) classes.
        attributes: of the rows.
        tables: name -> (classes, values) bool.
    """
    flags, known = [], []
    for attribute in attributes:
        seen = attribute.codes >= 0
        flags.append(tables[attribute.name][y, attribute.codes.clamp_min(0)] & seen)
        known.append(seen)
    return torch.stack(flags, dim=1), torch.stack(known, dim=1)
