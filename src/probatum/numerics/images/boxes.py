"""Boxes: overlap, and which predicted box belongs to which true one."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of all pairs.

    Args:
        a: (n, 4) boxes x1, y1, x2, y2 with x2 >= x1 and y2 >= y1.
        b: (m, 4).

    Returns:
        (n, m) in [0, 1]; 0 where both have no area.

    Raises:
        ValueError: other shapes, or corners in the wrong order.
    """
    for name, boxes in (("a", a), ("b", b)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} is {tuple(boxes.shape)}; give boxes (n, 4) as x1, y1, x2, y2")
        if len(boxes) and bool((boxes[:, 2:] < boxes[:, :2]).any()):
            raise ValueError(f"{name} holds a box whose second corner lies before the first; give x1, y1, x2, y2")
    corner = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    shared = corner.clamp_min(0).prod(dim=2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (a, b))
    union = area_a[:, None] + area_b[None, :] - shared
    return torch.where(union > 0, shared / union.clamp_min(torch.finfo(union.dtype).tiny), torch.zeros_like(shared))


def match_boxes(
    overlap: Tensor, scores: Tensor, threshold: float = 0.5, same_class: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy one-to-one matching: in the order of scores, each prediction takes the free true box it overlaps most.

    Args:
        overlap: (n, m) of predictions with true boxes, as `iou` gives.
        scores: (n,) confidences.
        threshold: least overlap of a match, in [0, 1].
        same_class: (n, m) bool; pairs of other classes cannot match. None = classes do not matter.

    Returns:
        the true box of every prediction (n,) int64, -1 = none (a false alarm or a duplicate); and the overlap with it
        (n,), 0 where there is none.

    Raises:
        ValueError: overlaps outside [0, 1], or shapes or a threshold that do not fit.
    """
    if overlap.ndim != 2 or scores.shape != overlap.shape[:1]:
        raise ValueError(f"overlap is {tuple(overlap.shape)} for {len(scores)} scores; give (n, m) and (n,)")
    if overlap.numel() and not (float(overlap.min()) >= 0 and float(overlap.max()) <= 1 + 1e-6):
        raise ValueError(f"overlaps span {float(overlap.min()):.4g} to {float(overlap.max()):.4g}; IoU lies in [0, 1]")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; use a number in [0, 1]")
    left = overlap.detach().clone()
    if same_class is not None:
        left = left.masked_fill(~same_class, -1.0)
    found = torch.full((len(scores),), -1, dtype=torch.int64)
    reached = torch.zeros(len(scores), dtype=overlap.dtype)
    if overlap.shape[1] == 0:
        return found, reached
    for row in scores.detach().argsort(descending=True, stable=True).tolist():
        best = int(left[row].argmax())
        if float(left[row, best]) >= threshold and float(left[row, best]) >= 0:
            found[row], reached[row] = best, left[row, best]
            left[:, best] = -1.0
    return found, reached
