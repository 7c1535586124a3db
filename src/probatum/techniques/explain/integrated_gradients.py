"""Integrated gradients: attribute an output to the inputs by the gradient averaged over a line from a baseline.

Paper     Sundararajan, Taly and Yan 2017, arXiv:1703.01365, eq. 1 and section 5
Computes  (x - x0) * sum_j w_j dF(x0 + a_j (x - x0))/dx by the midpoint, trapezoid or Gauss-Legendre rule with m nodes;
          m is doubled for examples whose attributions miss F(x) - F(x0) by more than `tolerance` of it
Shapes    inputs (n, ...), target (n,) int64 -> values (n, ...), gap (n,) = |sum of values - (F(x) - F(x0))|
Departs   1. F is the logit; the paper's softmax score is score="probability"
          2. gradients are summed in float64, in chunks, so that memory does not grow with m
          3. several baselines, given as a list, are averaged (expected gradients); the gap is then that of the mean
          4. category codes of tables have no points in between: with `spec`, those columns keep their own codes in the
             baseline, so that their values are 0 and the gap speaks of the numbers alone
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.explanation.attribution import at, per_row, pick, reference_like, require_eval, require_float
from probatum.numerics.networks.watch import hooked, pass_through
from probatum.spec import Explanation, Spec

CARD = Card(
    paper="arXiv:1703.01365",
    title="Axiomatic Attribution for Deep Networks",
    entry="integrated_gradients",
    number=181,
    tags=("explanation", "attribution"),
    modalities=("table", "image", "series"),
    tiny={"steps": 4, "tolerance": None},
    tune={"steps": [20, 50, 100, 300], "rule": ["midpoint", "trapezoid", "gauss-legendre"]},
    claims=("saturation-and-deletion",),
)

RULES = ("midpoint", "trapezoid", "gauss-legendre")
SCORES = ("logit", "probability")
Baseline = Tensor | float | None
Path = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""(points (k, ...), rows (k,)) -> F at the points (k,)."""


def quadrature(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a rule on [0, 1]: (m,), (m,) float64; the weights sum to 1.

    Raises:
        ValueError: unknown rule, or too few steps for it.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; use one of {', '.join(RULES)}")
    least = 2 if rule == "trapezoid" else 1
    if steps < least:
        raise ValueError(f"steps is {steps}; the {rule} rule needs at least {least}")
    if rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    if rule == "midpoint":
        return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, torch.full(
            (steps,), 1 / steps, dtype=torch.float64
        )
    weights = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
    weights[0] = weights[-1] = 0.5 / (steps - 1)
    return torch.linspace(0, 1, steps, dtype=torch.float64), weights


def integrate(
    path: Path, end: tuple[Tensor, ...], start: tuple[Tensor, ...], steps: int, rule: str, chunk: int, rows: Tensor
) -> list[Tensor]:
    """The path integral of `rows` between start and end (tuples of (n, ...)): float64 attributions (len(rows), ...)."""
    nodes, weights = quadrature(rule, steps)
    totals = [torch.zeros((len(rows), *e.shape[1:]), dtype=torch.float64, device=e.device) for e in end]
    pairs = len(rows) * len(nodes)  # pair p is node p // rows at row p % rows
    for first in range(0, pairs, chunk):
        pair = torch.arange(first, min(first + chunk, pairs))
        place, a, w = pair % len(rows), nodes[pair // len(rows)], weights[pair // len(rows)]
        index = rows[place]
        points = []
        for e, s in zip(end, start, strict=True):
            along = per_row(a, e).to(e)
            points.append((s[index] + along * (e[index] - s[index])).detach().requires_grad_())
        with torch.enable_grad():
            value = path(tuple(points), index)
            if not value.requires_grad:
                raise ValueError("the output carries no gradient; the model detaches, or runs under torch.no_grad()")
            gradients = torch.autograd.grad(value.sum(), points, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.index_add_(0, place.to(total.device), gradient.double() * per_row(w, gradient).to(total))
    return [total * (e[rows].double() - s[rows].double()) for total, e, s in zip(totals, end, start, strict=True)]


def until_complete(
    path: Path,
    end: tuple[Tensor, ...],
    start: tuple[Tensor, ...],
    steps: int,
    rule: str,
    tolerance: float | None,
    max_steps: int,
    chunk: int,
) -> tuple[list[Tensor], Tensor]:
    """Attributions (float64) and signed completeness errors, with more nodes for rows that miss the tolerance."""
    n = len(end[0])
    same = torch.stack([(e == s).flatten(1).all(dim=1) for e, s in zip(end, start, strict=True)]).all(dim=0)
    if bool(same.any()):
        message = f"{int(same.sum())} of {n} inputs equal their baseline; all their attributions are 0"
        warnings.warn(message, stacklevel=3)
    whole = torch.arange(n)
    with torch.no_grad():
        ends = torch.cat([path(tuple(e[r] for e in end), r) for r in whole.split(chunk)])
        rise = ends.double() - torch.cat([path(tuple(s[r] for s in start), r) for r in whole.split(chunk)]).double()
    values = integrate(path, end, start, steps, rule, chunk, whole)
    error = sum(v.flatten(1).sum(dim=1) for v in values) - rise
    while tolerance is not None and 2 * steps <= max_steps:
        open_rows = (error.abs() > tolerance * rise.abs() + 1e-6).nonzero().squeeze(1).cpu()
        if len(open_rows) == 0:
            break
        steps *= 2
        finer = integrate(path, end, start, steps, rule, chunk, open_rows)
        for value, fine in zip(values, finer, strict=True):
            value[open_rows] = fine
        error[open_rows] = sum(f.flatten(1).sum(dim=1) for f in finer) - rise[open_rows]
    return values, error


def _keep_codes(start: Tensor, inputs: Tensor, spec: Spec | None) -> Tensor:
    if spec is None or not spec.cardinalities:
        return start
    return torch.cat([start[:, : spec.numeric], inputs[:, spec.numeric :]], dim=1)


def _scored(output: Tensor, target: Tensor, score: str) -> Tensor:
    return pick(output.softmax(dim=1) if score == "probability" else output, target)


def _check(score: str, steps: int, tolerance: float | None, max_steps: int, chunk: int) -> None:
    if score not in SCORES:
        raise ValueError(f"score is {score!r}; use one of {', '.join(SCORES)}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be above 0, or None to keep the number of steps")
    for name, value in (("steps", steps), ("max_steps", max_steps), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def integrated_gradients(
    model: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    target: Tensor,
    *,
    baseline: Baseline | Sequence[Baseline] = None,
    steps: int = 50,
    rule: str = "midpoint",
    tolerance: float | None = 0.05,
    max_steps: int = 800,
    score: str = "logit",
    chunk: int = 1024,
    spec: Spec | None = None,
) -> Explanation:
    """Attributions of output `target` to every input.

    Args:
        model: in evaluation mode; (n, ...) -> (n, outputs).
        inputs: (n, ...) floating-point, or a tuple of such for a model with several inputs.
        target: output to explain for each example (n,).
        baseline: None = zeros, a number, one example, a batch (n, ...); a list of these is averaged over; for several
            inputs a tuple with one for each.
        steps: nodes m of the rule.
        rule: "midpoint", "trapezoid" or "gauss-legendre".
        tolerance: completeness gap, as a share of |F(x) - F(x0)|, above which m is doubled; None = never.
        max_steps: most nodes.
        score: "logit" or "probability".
        chunk: most examples in one pass.
        spec: says which columns of a table are category codes; they are not varied.

    Returns:
        values like the inputs, gap (n,).

    Raises:
        TypeError: integer inputs (see `integrate_embedding`).
        ValueError: a wrong shape or setting, a model in training mode or without gradients.

    Example:
        >>> def saturated(x):
        ...     return 1 - (1 - x).relu()
        >>> values, gap = integrated_gradients(saturated, torch.tensor([[2.0]]), torch.tensor([0]), tolerance=0.001)
        >>> round(values.item(), 3), round(gap.item(), 3)
        (1.0, 0.0)
    """
    require_eval(model)
    _check(score, steps, tolerance, max_steps, chunk)
    ends = inputs if isinstance(inputs, tuple) else (inputs,)
    for end in ends:
        require_float(end, "use integrate_embedding(model, layer, inputs, target), which starts behind the embedding")
    if isinstance(inputs, tuple):
        if isinstance(baseline, list) or (isinstance(baseline, tuple) and len(baseline) != len(ends)):
            raise ValueError(
                f"baseline is a {type(baseline).__name__} of {len(baseline)} for {len(ends)} inputs; give a tuple of one for "
                "each input (several baselines are averaged for a single input alone)"
            )
        given = baseline if isinstance(baseline, tuple) else (baseline,) * len(ends)
        starts = [tuple(reference_like(e, b) for e, b in zip(ends, given, strict=True))]  # type: ignore[arg-type]
    else:
        several = baseline if isinstance(baseline, list | tuple) else [baseline]
        starts = [(_keep_codes(reference_like(inputs, one), inputs, spec),) for one in several]

    def path(points: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return _scored(at(model, *points), target[rows.to(target.device)], score)

    found = [until_complete(path, ends, start, steps, rule, tolerance, max_steps, chunk) for start in starts]
    values = [torch.stack(parts).mean(dim=0).to(ends[0].dtype) for parts in zip(*(v for v, _ in found), strict=True)]
    gap = torch.stack([error for _, error in found]).mean(dim=0).abs().to(ends[0].dtype)
    return Explanation(tuple(values) if isinstance(inputs, tuple) else values[0], gap)  # type: ignore[arg-type]


def integrate_embedding(
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    target: Tensor,
    *,
    baseline: Tensor | float | None = None,
    steps: int = 50,
    rule: str = "midpoint",
    tolerance: float | None = 0.05,
    max_steps: int = 800,
    score: str = "logit",
    chunk: int = 256,
) -> Explanation:
    """Integrated gradients along a line in the output of `layer`, for token models.

    Args:
        model: in evaluation mode.
        layer: the embedding (or any module of the model with a float output (n, length, ...)) that runs once a pass.
        inputs: what the model takes, e.g. token ids (n, length).
        target: output to explain (n,).
        baseline: in the layer's output space: None = zeros, a number, one example or a batch.
        steps, rule, tolerance, max_steps, score, chunk: see `integrated_gradients`.

    Returns:
        values (n, length): summed over the embedding's last dimension; gap (n,).

    Raises:
        ValueError: the layer does not run exactly once in a pass; and as `integrated_gradients`.
    """
    require_eval(model)
    _check(score, steps, tolerance, max_steps, chunk)
    with torch.no_grad():
        end = torch.cat([_layer_output(model, layer, part) for part in inputs.split(chunk)])

    def path(points: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        with hooked(model, {"": layer}, lambda _name, _inputs, _output: points[0].clone()):
            output = model(inputs[rows.to(inputs.device)])
        return _scored(output, target[rows.to(target.device)], score)

    start = (reference_like(end, baseline),)
    (values,), error = until_complete(path, (end,), start, steps, rule, tolerance, max_steps, chunk)
    return Explanation(values.sum(dim=-1).to(end.dtype), error.abs().to(end.dtype))


def _layer_output(model: nn.Module, layer: nn.Module, inputs: Tensor) -> Tensor:
    _, seen = pass_through(model, inputs, layer)
    if len(seen) != 1:
        raise ValueError(f"{type(layer).__name__} ran {len(seen)} times in one pass; give a layer that runs once")
    return seen[0]
