"""Weights as matrices (output units in rows) and the ways to normalise a gradient matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probatum.numerics.tensors.precision import widened

NORMALISATIONS = ("row", "column", "sign", "max", "singular", "none")


def as_matrix(weight: Tensor) -> Tensor:
    """A view (C_out, rest) of a weight with two dimensions or more; ValueError for fewer."""
    if weight.ndim < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; a matrix needs two dimensions or more")
    return weight if weight.ndim == 2 else weight.reshape(weight.shape[0], -1)


def rms_normalise(matrix: Tensor, dim: int, floor: float = 1e-8) -> Tensor:
    """Divide by the root mean square over `dim`, at least `floor`; computed in float32 for half precision."""
    wide = widened(matrix)
    return (wide / wide.square().mean(dim=dim, keepdim=True).sqrt().clamp_min(floor)).to(matrix.dtype)


def normalise(matrix: Tensor, how: str = "row", floor: float = 1e-8) -> Tensor:
    """Normalise a matrix (m, n); apart from "max" and "none" the whole result has root mean square 1.

    Args:
        matrix: gradient or momentum, one row an output unit.
        how: "row" (each row to RMS 1), "column" (each column), "sign", "max" (by the largest absolute entry),
            "singular" (all singular values equal), or "none".
        floor: least divisor, so that zeros stay zeros.
    """
    if how == "row":
        return rms_normalise(matrix, 1, floor)
    if how == "column":
        return rms_normalise(matrix, 0, floor)
    if how == "sign":
        return matrix.sign()
    if how == "max":
        return matrix / matrix.abs().amax().clamp_min(floor)
    if how == "singular":
        wide = widened(matrix)
        if not torch.isfinite(wide).all():
            return torch.full_like(matrix, math.nan)  # as the others: what is not finite stays visible
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
        kept = (s > floor).to(s.dtype)
        return ((u * kept) @ vh * math.sqrt(max(matrix.shape))).to(matrix.dtype)
    if how == "none":
        return matrix
    raise ValueError(f"normalisation is {how!r}; use one of {', '.join(NORMALISATIONS)}")
