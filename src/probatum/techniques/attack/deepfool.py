"""DeepFool: cross the nearest decision boundary by repeated linearisation, for a near-smallest perturbation.

Paper     Moosavi-Dezfooli, Fawzi and Frossard 2016, arXiv:1511.04599, algorithm 2 and section 3.3
Computes  w_k = grad f_k - grad f_t, g_k = f_k - f_t at x_i; l = argmin |g_k| / |w_k|_q; step to that boundary in the
          p-norm, (|g_l| / |w_l|_q^q) |w_l|^(q-1) sign(w_l); until x + (1 + overshoot) sum of steps leaves class t
Shapes    inputs (n, ...), target (n,) int64 -> inputs (n, ...)
Departs   1. t is the given target, not argmax f(x): examples that are already of another class are returned as they are
          2. box=(low, high) clips the points that are linearised at and the one that is tested for the change of class; the
             paper has no box (box=None)
          3. entries of a row that are no numbers to be moved (codes of categories, masks and masked steps) are left alone
          4. classes whose gradient equals that of t are passed over; an example with no other class left stays put
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from probatum.card import Card
from probatum.numerics.explanation.attribution import at, pick, require_eval, require_float
from probatum.numerics.tensors.free import free_entries
from probatum.numerics.tensors.targets import class_targets
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:1511.04599",
    title="DeepFool: a simple and accurate method to fool deep neural networks",
    entry="deepfool",
    number=222,
    tags=("attack", "robustness"),
    modalities=("table", "image", "series"),
    tasks=("classes",),
    neutral={"max_steps": 0},
    tiny={"max_steps": 3, "candidates": 2},
    tune={"candidates": [3, 10], "overshoot": (0.0, 0.1)},
    tried={"candidates": [1, 3]},
    claims=("smaller-than-sign-gradient",),
)


class Fooled(NamedTuple):
    """inputs (n, ...) changed, steps (n,) int64 taken, left (n,) bool: whether the answer is another class than target."""

    inputs: Tensor
    steps: Tensor
    left: Tensor


def boundary_step(gradients: Tensor, gaps: Tensor, norm: float, slack: float = 0.0) -> Tensor:
    """The shortest step, in the p-norm, to the nearest of k linearised boundaries.

    Args:
        gradients: w (n, k, d).
        gaps: g (n, k).
        norm: p in [1, inf].
        slack: added to the distance.

    Returns:
        Steps (n, d); 0 where every w is 0.
    """
    dual = math.inf if norm == 1 else (1.0 if norm == math.inf else norm / (norm - 1))
    length = torch.linalg.vector_norm(gradients, dual, dim=2)  # (n, k)
    largest = gradients.abs().amax(dim=2, keepdim=True)  # taken out where powers underflow: |w|^1001 of a norm of 1.001
    unit = gradients / largest.clamp(min=torch.finfo(gradients.dtype).tiny)
    rescaled = torch.linalg.vector_norm(unit, dual, dim=2) * largest[:, :, 0]
    length = torch.where((length > 0) & torch.isfinite(length), length, rescaled)
    distance = torch.where(length > 0, gaps.abs() / length, math.inf)
    nearest, which = distance.min(dim=1)
    w = gradients[torch.arange(len(gradients), device=gradients.device), which]  # (n, d)
    if norm == 1:
        place = w.abs().argmax(dim=1, keepdim=True)
        direction = torch.zeros_like(w).scatter(1, place, w.gather(1, place).sign())
    else:
        scaled = w / w.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        direction = scaled.sign() * scaled.abs() ** (dual - 1) if dual > 1 else scaled.sign()
        if norm != math.inf:
            size = torch.linalg.vector_norm(direction, norm, dim=1, keepdim=True)
            direction = direction / size.clamp(min=torch.finfo(w.dtype).tiny)
    moved = torch.where(torch.isfinite(nearest), nearest + slack, 0.0)
    return moved[:, None] * direction


def fool(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Tensor,
    *,
    norm: float = 2,
    overshoot: float = 0.02,
    max_steps: int = 50,
    candidates: int = 10,
    box: tuple[float, float] | None = None,
    slack: float = 1e-4,
    spec: Spec | None = None,
) -> Fooled:
    """As `deepfool`, with the number of steps and the success of every example."""
    _check(model, inputs, norm, overshoot, slack, max_steps, candidates, box)
    start = inputs.detach()
    with torch.no_grad():
        output = at(model, start)
    target = _check_output(output, target)
    others = output.scatter(1, target[:, None], -math.inf)
    rivals = others.topk(min(candidates, output.shape[1] - 1), dim=1).indices  # (n, k)
    total = torch.zeros_like(start)
    free = free_entries(spec, start)
    result = start.clone()
    steps = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    left = output.argmax(dim=1) != target
    active = (~left).nonzero().squeeze(1)
    for _ in range(max_steps):
        if len(active) == 0:
            break
        gradients, gaps = _linearise(model, start[active] + total[active], target[active], rivals[active])
        if free is not None:
            gradients = gradients * free[active].flatten(1)[:, None]
        step = boundary_step(gradients, gaps, norm, slack).view_as(start[active])
        total[active] += step
        if box is not None:
            inside = (start[active] + total[active]).clamp(*box) - start[active]
            total[active] = inside if free is None else torch.where(free[active], inside, 0.0)
        moved = start[active] + (1 + overshoot) * total[active]
        if box is not None:
            moved = moved.clamp(*box) if free is None else torch.where(free[active], moved.clamp(*box), moved)
        with torch.no_grad():
            gone = at(model, moved).argmax(dim=1) != target[active]
        result[active] = moved
        steps[active] += 1
        left[active] = gone
        stuck = ~step.flatten(1).any(dim=1)
        active = active[~gone & ~stuck]
    return Fooled(result, steps, left)


def deepfool(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Tensor,
    *,
    norm: float = 2,
    overshoot: float = 0.02,
    max_steps: int = 50,
    candidates: int = 10,
    box: tuple[float, float] | None = None,
    slack: float = 1e-4,
    spec: Spec | None = None,
) -> Tensor:
    """Inputs moved just across the nearest decision boundary.

    Args:
        model: in evaluation mode, (n, ...) -> logits (n, classes).
        inputs: (n, ...), floating-point.
        target: class each example shall leave (n,).
        norm: p >= 1 of the norm to keep small; math.inf is allowed.
        overshoot: share by which the summed step is lengthened, >= 0.
        max_steps: most linearisations.
        candidates: how many other classes, by logit, are looked at.
        box: smallest and largest value allowed, or None.
        slack: added to every step's length.
        spec: what the inputs are, where known: codes of categories, masks and masked steps are left alone.

    Returns:
        Changed inputs (n, ...); see `fool` for which of them succeeded.

    Raises:
        TypeError: inputs that are not floating-point.
        ValueError: a model in training mode or with one output; a setting outside its range.

    Example:
        >>> net = torch.nn.Linear(2, 2, bias=False).eval()
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> moved = deepfool(net, torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        >>> [round(value, 2) for value in moved[0].tolist()], net(moved).argmax().item()
        ([1.98, 2.02], 1)
    """
    return fool(
        model,
        inputs,
        target,
        norm=norm,
        overshoot=overshoot,
        max_steps=max_steps,
        candidates=candidates,
        box=box,
        slack=slack,
        spec=spec,
    ).inputs


def robustness(inputs: Tensor, fooled: Fooled, norm: float = 2) -> float:
    """rho, the mean of |r|_p / |x|_p over the examples that were moved across a boundary (paper, eq. 15)."""
    moved = fooled.left & (fooled.steps > 0)
    if not bool(moved.any()):
        raise ValueError("no example was moved across a boundary; raise max_steps, or look at the model's accuracy")
    r = torch.linalg.vector_norm((fooled.inputs - inputs)[moved].flatten(1), norm, dim=1)
    x = torch.linalg.vector_norm(inputs[moved].flatten(1), norm, dim=1)
    return float((r / x.clamp(min=torch.finfo(x.dtype).tiny)).mean())


def _linearise(
    model: Callable[[Tensor], Tensor], points: Tensor, target: Tensor, rivals: Tensor
) -> tuple[Tensor, Tensor]:
    """w (n, k, d) and g (n, k) of every rival; rows do not interact, so one backward pass serves the whole batch."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        output = at(model, points)
        gaps = output.gather(1, rivals) - pick(output, target)[:, None]
        columns = [
            torch.autograd.grad(gaps[:, k].sum(), points, retain_graph=k + 1 < rivals.shape[1])[0].flatten(1)
            for k in range(rivals.shape[1])
        ]
    return torch.stack(columns, dim=1), gaps.detach()


def _check(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    norm: float,
    overshoot: float,
    slack: float,
    max_steps: int,
    candidates: int,
    box: tuple[float, float] | None,
) -> None:
    require_eval(model)
    require_float(inputs, "scale them to floats, e.g. images.float() / 255")
    if not norm >= 1:
        raise ValueError(f"norm is {norm}; it must be at least 1 (math.inf for the largest change)")
    if not (overshoot >= 0 and slack >= 0):
        raise ValueError(f"overshoot is {overshoot} and slack {slack}; both must be at least 0")
    if max_steps < 0 or candidates < 1:
        raise ValueError(f"max_steps is {max_steps} and candidates {candidates}; they must be at least 0 and 1")
    if box is not None and not box[0] < box[1]:
        raise ValueError(f"box is {box}; give (low, high) with low < high")


def _check_output(output: Tensor, target: Tensor) -> Tensor:
    """The target (n,), of (n,) or (n, 1)."""
    if output.ndim != 2 or output.shape[1] < 2:
        raise ValueError(
            f"the model returns {tuple(output.shape)}; two logits or more are needed. With one logit f, give "
            "torch.cat([-f / 2, f / 2], dim=1)"
        )
    target = class_targets(output, target)
    if bool((output >= 0).all()) and torch.allclose(output.sum(dim=1), torch.ones_like(output[:, 0]), atol=1e-4):
        warnings.warn(
            "the model's rows sum to 1; give logits, the softmax bends the boundaries' distances", stacklevel=4
        )
    return target
