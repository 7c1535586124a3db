"""Codebooks: nearest keys in slices, keys that move with the mean of what they are nearest to, and how they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from probatum.numerics.tensors.precision import computed_wide

DISTANCES = 4_000_000
"""Distances that are held at one time."""
FAR = 10.0
"""Deviations from 0 beyond which the middle of rows is taken off before keys move."""


@computed_wide
def nearest(z: Tensor, keys: Tensor, most: int = DISTANCES) -> Tensor:
    """The nearest key of every codebook, by Euclidean distance; of equal ones the first.

    Args:
        z: (n, codebooks, size).
        keys: (codebooks, pairs, size).
        most: distances held at one time.

    Returns:
        (n, codebooks) int64.
    """
    middle = keys.mean(dim=1, keepdim=True)  # differences stay: without it an offset of features would swallow them
    keys, z = keys - middle, z - middle.transpose(0, 1)
    half = keys.square().sum(dim=2)[:, None] / 2  # |z|^2 is the same for all keys
    rows = max(1, most // (keys.shape[0] * keys.shape[1]))
    found = [
        torch.baddbmm(half, part.transpose(0, 1), keys.transpose(1, 2), alpha=-1).argmin(dim=2).T
        for part in z.split(rows)
    ]
    return torch.cat(found) if found else z.new_zeros((0, keys.shape[0]), dtype=torch.int64)


def fit_keys(
    z: Tensor,
    keys: Tensor,
    generator: torch.Generator,
    *,
    decay: float = 0.95,
    smoothing: float = 1e-5,
    dead: float = 0.1,
    rounds: int = 5,
    batch_size: int = 256,
) -> Tensor:
    """Move keys to the moving mean of the rows that are nearest to them (van den Oord et al. 2017, appendix A.1).

    Args:
        z: (n, codebooks, size), n >= 1.
        keys: (codebooks, pairs, size) at the beginning.
        generator: order of rows and what dead keys are put at.
        decay: of moving counts and sums, in [0, 1).
        smoothing: added to every count (Laplace), so that no key is divided by nothing.
        dead: a key whose moving count is below this share of the mean count is put at a row of the batch.
        rounds: times that all rows are gone through.
        batch_size: rows at one time.

    Returns:
        (codebooks, pairs, size).
    """
    books, pairs, size = keys.shape
    middle = z.mean(dim=0)  # the smoothing of counts draws keys towards 0, which is to be no place far from all rows
    middle = torch.where(middle.abs() > FAR * z.std(dim=0, correction=0), middle, torch.zeros_like(middle))
    z, keys = z - middle, keys - middle[:, None]
    sums = keys.clone()
    counts = torch.ones(books, pairs, dtype=z.dtype, device=z.device)
    offset = torch.arange(books, device=z.device) * pairs
    for _ in range(rounds):
        for rows in torch.randperm(len(z), generator=generator).to(z.device).split(batch_size):
            batch = z[rows]
            flat = (nearest(batch, keys) + offset).flatten()
            hits = torch.bincount(flat, minlength=books * pairs).view(books, pairs).to(z)
            total = torch.zeros(books * pairs, size, dtype=z.dtype, device=z.device)
            total.index_add_(0, flat, batch.reshape(-1, size))
            counts = decay * counts + (1 - decay) * hits
            sums = decay * sums + (1 - decay) * total.view(books, pairs, size)
            whole = counts.sum(dim=1, keepdim=True)
            smooth = (counts + smoothing) / (whole + pairs * smoothing) * whole
            keys = sums / smooth[..., None]
            lost = counts < dead * whole / pairs
            if bool(lost.any()):
                pick = torch.randint(len(batch), (books, pairs), generator=generator).to(z.device)
                fresh = batch[pick, torch.arange(books, device=z.device)[:, None]]
                keys = torch.where(lost[..., None], fresh, keys)
                counts = torch.where(lost, whole / pairs, counts)
                sums = torch.where(lost[..., None], fresh * counts[..., None], sums)
    return keys + middle[:, None]


def touched(indices: Tensor, pairs: int) -> Tensor:
    """(codebooks, pairs) bool: keys that these rows' indices (n, codebooks) select at least once."""
    found = torch.zeros(indices.shape[1], pairs, dtype=torch.bool, device=indices.device)
    found[torch.arange(indices.shape[1], device=indices.device).expand_as(indices), indices] = True
    return found


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of the keys touched by either set of rows that both touch, in [0, 1]; 0 where none is touched."""
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 0.0
