"""Measures and repairs of recognition without training rows: harmonic mean, calibrated stacking, hubness, class-wise folds."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Generalised(NamedTuple):
    """Per-class mean accuracies of seen and unseen classes when all compete, and their harmonic mean."""

    seen: float
    unseen: float
    harmonic: float


def class_accuracy(scores: Tensor, y: Tensor, among: Tensor | None = None) -> float:
    """Mean over classes of the share of their rows that are right: scores (n, c), y (n,); `among` (k,) = classes that compete."""
    if among is not None:
        shut = torch.ones(scores.shape[1], dtype=torch.bool)
        shut[among] = False
        scores = scores.masked_fill(shut, float("-inf"))
    right = (scores.argmax(dim=1) == y).double()
    return float(torch.stack([right[y == c].mean() for c in y.unique()]).mean())


def stacked(scores: Tensor, seen: Tensor, gamma: float) -> Tensor:
    """Calibrated stacking: `gamma` is taken off the scores of seen classes (Chao et al. 2016); inf = they do not compete."""
    out = scores.clone()
    out[:, seen] -= gamma
    return out


def generalised(scores: Tensor, y: Tensor, seen: Tensor, gamma: float = 0.0) -> Generalised:
    """Accuracies when classes seen (k,) and unseen compete, with `gamma` off the seen; rows of both kinds are needed.

    Raises:
        ValueError: no rows of seen, or of unseen classes.
    """
    old = torch.isin(y, seen)
    if not old.any() or old.all():
        raise ValueError(f"{int(old.sum())} of {len(y)} rows are of seen classes; some of both kinds are needed")
    shifted = stacked(scores, seen, gamma)
    a, b = class_accuracy(shifted[old], y[old]), class_accuracy(shifted[~old], y[~old])
    return Generalised(a, b, 2 * a * b / (a + b) if a + b else 0.0)


def seen_unseen_area(scores: Tensor, y: Tensor, seen: Tensor) -> float:
    """Area under the curve of seen against unseen accuracy over all gamma (AUSUC), in [0, 1]."""
    rest = torch.ones(scores.shape[1], dtype=torch.bool)
    rest[seen] = False
    gaps = (scores[:, seen].amax(dim=1) - scores[:, rest].amax(dim=1)).unique()
    cuts = [float("-inf"), *((gaps[:-1] + gaps[1:]) / 2).tolist(), float("inf")] if len(gaps) > 1 else [-1e9, 1e9]
    cuts = [max(min(cut, 1e9), -1e9) for cut in cuts]
    if len(cuts) > 400:
        cuts = [cuts[i] for i in torch.linspace(0, len(cuts) - 1, 400).long().tolist()]
    points = [generalised(scores, y, seen, cut)[:2] for cut in cuts]
    area = 0.0
    for (a, b), (c, d) in itertools.pairwise(points):
        area += (a - c) * (b + d) / 2
    return area


def csls(similarity: Tensor, k: int = 10) -> Tensor:
    """Cross-domain similarity local scaling, against hubs: 2 s_ij less the mean of the k largest of row i and of column j.

    Conneau et al. 2018. similarity (n, c) -> (n, c).
    """
    if k < 1:
        raise ValueError(f"k is {k}; give 1 or more")
    rows = similarity.topk(min(k, similarity.shape[1]), dim=1).values.mean(dim=1, keepdim=True)
    columns = similarity.topk(min(k, similarity.shape[0]), dim=0).values.mean(dim=0, keepdim=True)
    return 2 * similarity - rows - columns


def hubness(similarity: Tensor) -> float:
    """Skewness of how often each column is the nearest of a row; above 0 where a few are nearest to many."""
    counts = torch.bincount(similarity.argmax(dim=1), minlength=similarity.shape[1]).double()
    centred = counts - counts.mean()
    spread = centred.square().mean().sqrt()
    return float((centred**3).mean() / spread**3) if spread > 0 else 0.0


def propagate(features: Tensor, scores: Tensor, k: int = 10, share: float = 0.9) -> Tensor:
    """Label propagation over the k nearest neighbours: F = (1 - share) (I - share S)^-1 softmax(scores), (n, c).

    Zhou et al. 2004; transductive, against the shift of the projection between seen and unseen classes. It takes scores as
    they are: classes whose scores are larger throughout win all, so put them on one scale before. Where neighbours in the
    features are often of another class it makes scores worse (on the glyphs of the claim by a third).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1)")
    unit = F.normalize(features.double(), dim=1)
    similar = (unit @ unit.T).clamp(min=0).fill_diagonal_(0.0)
    kept = torch.zeros_like(similar)
    near = similar.topk(min(k, len(unit) - 1), dim=1)
    kept.scatter_(1, near.indices, near.values)
    graph = torch.maximum(kept, kept.T)
    scale = graph.sum(dim=1).clamp(min=1e-12).rsqrt()
    graph = scale[:, None] * graph * scale
    start = scores.double().softmax(dim=1)
    return (1 - share) * torch.linalg.solve(torch.eye(len(unit), dtype=torch.float64) - share * graph, start)


def class_folds(classes: Tensor, folds: int, generator: torch.Generator) -> list[Tensor]:
    """Classes (k,) parted into folds: parameters are chosen on classes that were not trained on, never on rows alone."""
    if not 2 <= folds <= len(classes):
        raise ValueError(f"folds is {folds}; {len(classes)} classes can be parted into 2 to {len(classes)}")
    return list(classes[torch.randperm(len(classes), generator=generator)].tensor_split(folds))
