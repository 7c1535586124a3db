"""How far a point is from the nearest other class."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from probatum.numerics.explanation.attribution import at, per_row


def boundary_distance(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, steps: int = 20, halvings: int = 25
) -> Tensor:
    """L2 distance (n,) from x to a nearby point of another class; 0 where the model is wrong already, inf if none is found."""
    with torch.no_grad():
        right = at(model, x).argmax(dim=1) == y
    distance = torch.where(right, math.inf, 0.0).to(x.dtype)
    rows = right.nonzero().squeeze(1)
    points = x.clone()
    for _ in range(steps):
        if len(rows) == 0:
            break
        z = points[rows].requires_grad_()
        with torch.enable_grad():
            output = at(model, z)
            own = output.gather(1, y[rows, None]).squeeze(1)
            gap = own - output.scatter(1, y[rows, None], -math.inf).amax(dim=1)
            (slope,) = torch.autograd.grad(gap.sum(), z)
        size = slope.flatten(1).square().sum(dim=1)
        step = 1.05 * gap.detach() / size.clamp(min=1e-20)
        points[rows] = z.detach() - per_row(torch.where(size > 0, step, 0.0), slope) * slope
        with torch.no_grad():
            left = model(points[rows]).argmax(dim=1) != y[rows]
        crossed = rows[left]
        distance[crossed] = _bisect(model, x[crossed], points[crossed], y[crossed], halvings)
        rows = rows[~left]
    return distance


@torch.no_grad()
def _bisect(model: Callable[[Tensor], Tensor], inside: Tensor, outside: Tensor, y: Tensor, halvings: int) -> Tensor:
    low = torch.zeros(len(y), dtype=inside.dtype, device=inside.device)
    high = torch.ones_like(low)
    way = outside - inside
    for _ in range(halvings):
        middle = (low + high) / 2
        left = model(inside + per_row(middle, way) * way).argmax(dim=1) != y
        low, high = torch.where(left, low, middle), torch.where(left, middle, high)
    return high * way.flatten(1).norm(dim=1)
