"""Bayesian optimisation: where to look next for the largest value of a costly function."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from probatum.numerics.posterior.gaussian_process import GaussianProcess, fit_rbf, gaussian_process, rbf

STRATEGIES = ("ei", "ucb", "pi", "thompson", "random")


def expected_improvement(mean: Tensor, deviation: Tensor, best: float) -> Tensor:
    """(mean - best) Phi(z) + deviation phi(z), z = (mean - best) / deviation; 0 deviation gives max(mean - best, 0)."""
    gain = mean - best
    z = gain / _positive(deviation)
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    return torch.where(deviation > 0, gain * torch.special.ndtr(z) + deviation * density, gain.clamp_min(0.0))


def probability_of_improvement(mean: Tensor, deviation: Tensor, best: float) -> Tensor:
    """P(f > best); 0 deviation gives 1 above `best` and 0 elsewhere."""
    gain = mean - best
    return torch.where(deviation > 0, torch.special.ndtr(gain / _positive(deviation)), (gain > 0).to(gain))


def _positive(deviation: Tensor) -> Tensor:
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def upper_bound(mean: Tensor, deviation: Tensor, beta: float) -> Tensor:
    """mean + sqrt(beta) deviation."""
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; use 0 or more")
    return mean + math.sqrt(beta) * deviation


def finite_beta(choices: int, round_: int, failure: float = 0.1) -> float:
    """beta_t = 2 log(|D| t^2 pi^2 / (6 failure)), with which GP-UCB has no regret on finite sets (Srinivas et al. 2010)."""
    return 2 * math.log(choices * round_**2 * math.pi**2 / (6 * failure))


def maximise(
    function: Callable[[Tensor], Tensor],
    candidates: Tensor,
    evaluations: int,
    generator: torch.Generator,
    strategy: str = "ei",
    *,
    start: int = 5,
    beta: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Look for the largest value of `function` among candidates.

    Args:
        function: (1, d) -> a value.
        candidates: (m, d), scaled to about unit width.
        evaluations: in all; the first `start` are random.
        strategy: one of `STRATEGIES`.
        beta: of ucb; None = 1.

    Returns:
        Positions (evaluations,) and values (evaluations,), in order.

    Raises:
        ValueError: a strategy that is none, counts that do not rise, or a value that is not finite.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; use one of {', '.join(STRATEGIES)}")
    if not 1 <= start <= evaluations <= len(candidates):
        raise ValueError(
            f"start {start}, evaluations {evaluations}, candidates {len(candidates)}; need them rising, >= 1"
        )
    order = torch.randperm(len(candidates), generator=generator)
    at = order[: evaluations if strategy == "random" else start].tolist()
    values = [_value(function, candidates, k) for k in at]
    while len(at) < evaluations:
        y = torch.tensor(values, dtype=torch.float64)
        middle, spread = y.mean(), y.std().clamp_min(1e-9) if len(y) > 1 else 1.0
        scaled = ((y - middle) / spread)[:, None]
        length, scale, noise = fit_rbf(candidates[at], scaled, separate=True, steps=30)
        process = gaussian_process(candidates[at], scaled, rbf(length, scale), noise)
        score = _score(process, candidates, float(scaled.max()), strategy, beta, generator)
        score[at] = -math.inf
        best = int(score.argmax())
        at.append(best)
        values.append(_value(function, candidates, best))
    return torch.tensor(at), torch.tensor(values, dtype=torch.float64)


def _value(function: Callable[[Tensor], Tensor], candidates: Tensor, k: int) -> float:
    found = float(function(candidates[k : k + 1]))
    if not math.isfinite(found):
        raise ValueError(f"function gives {found} at candidate {k}; leave out candidates where it is not finite")
    return found


def _score(
    process: GaussianProcess, x: Tensor, best: float, strategy: str, beta: float | None, generator: torch.Generator
) -> Tensor:
    if strategy == "thompson":
        return process.draw(x, 1, generator)[0, :, 0]
    half = torch.linalg.solve_triangular(process.root, process.kernel(process.x, x.double()), upper=False)
    prior = float(process.kernel(process.x[:1], process.x[:1]))
    mean, deviation = process.mean(x)[:, 0], (prior - half.square().sum(dim=0)).clamp_min(0.0).sqrt()
    if strategy == "ucb":
        return upper_bound(mean, deviation, 1.0 if beta is None else beta)
    return (expected_improvement if strategy == "ei" else probability_of_improvement)(mean, deviation, best)
