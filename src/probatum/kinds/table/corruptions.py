"""Corruptions of tables: noise and missing cells."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from probatum.data.corrupt import Corruption, level, normal, uniform
from probatum.spec import Spec


def noise(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise to the numeric columns (in units of their scaled deviation, about 1)."""
    spread = level(severity, (0.1, 0.2, 0.35, 0.5, 0.8))
    out = x.clone()
    out[:, : spec.numeric] += spread * normal((len(x), spec.numeric), x, generator)
    return out


def missing_numbers(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Set random numeric cells to 0, which is what the pipeline puts for missing numbers."""
    gone = uniform((len(x), spec.numeric), x, generator) < level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    out = x.clone()
    out[:, : spec.numeric] = out[:, : spec.numeric].masked_fill(gone, 0.0)
    return out


def missing_categories(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Set random category cells to code 0: missing or unseen."""
    kinds = x.shape[1] - spec.numeric
    gone = uniform((len(x), kinds), x, generator) < level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))
    out = x.clone()
    out[:, spec.numeric :] = out[:, spec.numeric :].masked_fill(gone, 0.0)
    return out


def corruptions(spec: Spec) -> Mapping[str, Corruption]:
    """Those that can change rows of this spec, by name."""
    found: dict[str, Corruption] = {}
    if spec.numeric:
        found |= {"gaussian noise": noise, "missing numbers": missing_numbers}
    if spec.cardinalities:
        found["missing categories"] = missing_categories
    return found
