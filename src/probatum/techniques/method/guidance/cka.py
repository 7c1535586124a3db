"""Linear centred kernel alignment between two sets of features of the same rows (Kornblith et al. 2019, eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.numerics.tensors.precision import widened

FEWEST_ROWS = 8
"""Rows below which the biased estimate says little: it tends to 1 as the rows become few beside the features."""


def centred_gram(features: Tensor) -> Tensor:
    """c H X X^T H with H = I - 1/n: features (n, ...) -> (n, n), in float32 for half precision, whose range it exceeds.

    c is a power of two that brings the largest entry of H X near 1, so that neither the products nor their squares overflow;
    an alignment does not know it, to the last bit. Features whose rows are all equal give exactly 0, wherever they lie.
    """
    rows = widened(features.flatten(1))
    first = rows[:1].detach()
    far = first.abs() > 16 * (rows.detach() - first).abs().amax(dim=0)  # offsets that the mean would round
    rows = rows - torch.where(far, first, 0.0)
    rows = rows - rows.mean(dim=0)
    top = rows.detach().abs().amax() if rows.numel() else rows.new_zeros(())
    rows = rows * torch.exp2(-torch.frexp(top).exponent.clamp(-100, 100).to(rows))
    return rows @ rows.T


def cka_of_grams(a: Tensor, b: Tensor) -> Tensor:
    """<A, B> / (|A| |B|) of two centred Gram matrices (n, n) -> ().

    Raises:
        ValueError: a matrix of zeros, which features without variance give.
    """
    norms = a.norm() * b.norm()
    if not norms > 0:
        raise ValueError("features without variance have no alignment; every row gives the same (a dead layer?)")
    return (a * b).sum() / norms


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Alignment in [0, 1] of features (n, ...) and (n, ...) of any widths.

    Unchanged by orthogonal maps and isotropic scaling of either side.

    Raises:
        ValueError: row counts that differ, fewer than 8 rows, or features without variance.

    Example:
        >>> x = torch.eye(8)[:, :3]
        >>> round(float(linear_cka(x, -2 * x)), 6)
        1.0
    """
    check_rows(a, b)
    return cka_of_grams(centred_gram(a), centred_gram(b))


def check_rows(a: Tensor, b: Tensor) -> None:
    """ValueError unless both have the same rows, at least 8."""
    if len(a) != len(b):
        raise ValueError(f"alignment compares the same rows; there are {len(a)} and {len(b)}")
    if len(a) < FEWEST_ROWS:
        raise ValueError(f"a batch of {len(a)} rows is too small for an alignment; use {FEWEST_ROWS} or more, best 64")


@torch.no_grad()
def cka_matrix(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Alignment of every layer of one network with every layer of another: (layers, layers)."""
    for features in (*first[1:], *second):
        check_rows(first[0], features)
    grams = [[centred_gram(features) for features in side] for side in (first, second)]
    return torch.stack([torch.stack([cka_of_grams(a, b) for b in grams[1]]) for a in grams[0]])
