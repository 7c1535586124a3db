"""Cascades of models: scores of outputs, curves of quality over deferral and over cost, and chains of several models.

A score says how far the small model's output can be trusted; the lowest scores are deferred first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LEVELS = tuple(round(0.1 * k, 1) for k in range(11))
"""Levels of the quantile features."""

Numbers = Sequence[float] | np.ndarray | Tensor
Logs = Sequence[Numbers] | np.ndarray | Tensor
"""Log-probabilities of tokens: a list of lists of any lengths, or (n, longest) with a mask."""


class Tokens(NamedTuple):
    """Log-probabilities (n, longest) and which of them belong to an output, (n, longest)."""

    log_p: np.ndarray
    mask: np.ndarray


class Curve(NamedTuple):
    """Share of rows deferred, ascending from 0 to 1, and the mean quality there; between points it is linear."""

    rate: np.ndarray
    quality: np.ndarray


class Chained(NamedTuple):
    """Of every row the model whose output stands (n,), its quality (n,), and what was spent on it (n,)."""

    model: np.ndarray
    quality: np.ndarray
    cost: np.ndarray


def numbers(values: Numbers) -> np.ndarray:
    """Float64; tensors of any precision (NumPy has no bfloat16), device and history; NaN where a masked array masks."""
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    if isinstance(values, np.ma.MaskedArray):
        return values.astype(np.float64).filled(np.nan)
    if _holds_others(values):
        return np.array([numbers(value) for value in values])  # type: ignore[arg-type]
    return np.asarray(values, dtype=np.float64)


def _holds_others(values: object) -> bool:
    """Whether lists hold, at any depth, what NumPy does not turn into numbers as it is meant."""
    if isinstance(values, list | tuple):
        return any(isinstance(value, Tensor | np.ma.MaskedArray) or _holds_others(value) for value in values)
    return False


def tokens(log_p: Logs, mask: np.ndarray | Tensor | None = None) -> Tokens:
    """Log-probabilities as a padded array.

    Args:
        log_p: one list an output, or (n, longest).
        mask: (n, longest), what belongs to an output; None = all of what is given.

    Raises:
        ValueError: a positive or infinite log-probability, an output without tokens, a mask of another shape.
    """
    if mask is None:
        rows = [numbers(row).reshape(-1) for row in log_p]
        longest = max((len(row) for row in rows), default=0)
        values, kept = np.zeros((len(rows), longest)), np.zeros((len(rows), longest), dtype=bool)
        for i, row in enumerate(rows):
            values[i, : len(row)], kept[i, : len(row)] = row, True
    else:
        values, kept = numbers(log_p), np.nan_to_num(numbers(mask)) != 0  # type: ignore[arg-type]
        if values.ndim != 2 or values.shape != kept.shape:
            raise ValueError(f"log_p is {values.shape} and mask {kept.shape}; give (n, longest) twice")
        values = np.where(kept, values, 0.0)
    if not len(values):
        raise ValueError("there are 0 outputs; give one or more")
    if not kept.any(axis=1).all():
        row = int(np.flatnonzero(~kept.any(axis=1))[0])
        raise ValueError(f"output {row} has no tokens; every output needs at least one, its end token for instance")
    if not np.isfinite(values).all() or values.max() > 1e-6:
        bad = values[~np.isfinite(values) | (values > 1e-6)][0]
        raise ValueError(f"log_p holds {bad:.4g}; logarithms of probabilities are finite and at most 0")
    return Tokens(np.minimum(values, 0.0), kept)


def chow_sum(found: Tokens) -> np.ndarray:
    """Log-probability of each whole output (n,); it falls with the length."""
    return found.log_p.sum(axis=1)


def chow_average(found: Tokens) -> np.ndarray:
    """Mean log-probability of each output's tokens (n,)."""
    return found.log_p.sum(axis=1) / found.mask.sum(axis=1)


def chow_quantile(found: Tokens, level: float) -> np.ndarray:
    """Quantile of each output's log-probabilities (n,), linear between tokens: 0 = its worst token, 1 = its best.

    Raises:
        ValueError: for a level outside [0, 1].
    """
    if not 0 <= level <= 1:
        raise ValueError(f"level is {level}; use 0 (worst token) to 1")
    ordered = np.sort(np.where(found.mask, found.log_p, np.inf), axis=1)
    place = level * (found.mask.sum(axis=1) - 1)
    low = np.floor(place).astype(np.int64)
    high, rows = np.ceil(place).astype(np.int64), np.arange(len(ordered))
    first, second = ordered[rows, low], ordered[rows, high]
    return first + (place - low) * (second - first)


def quantile_features(found: Tokens, levels: Sequence[float] = LEVELS) -> np.ndarray:
    """Quantiles at `levels`, sum, mean and length of each output: (n, levels + 3)."""
    columns = [chow_quantile(found, level) for level in levels]
    columns += [chow_sum(found), chow_average(found), found.mask.sum(axis=1).astype(np.float64)]
    return np.stack(columns, axis=1)


def deferral_curve(score: Numbers, small: Numbers, large: Numbers) -> Curve:
    """Mean quality where the lowest scores are deferred; rows of one score are deferred in random order, in expectation.

    Args:
        score: (n,), high where the small model's output can stay.
        small, large: (n,) quality of either model's output.

    Raises:
        ValueError: lengths that differ, values that are not finite, as a missing quality of the large model.
    """
    s, first, second = checked(score, small, large)
    order = np.argsort(s, kind="stable")
    ends = np.append(np.append(0, np.flatnonzero(np.diff(s[order])) + 1), len(s))
    gain = np.append(0.0, np.cumsum((second - first)[order]))
    return Curve(ends / len(s), first.mean() + gain[ends] / len(s))


def audc(curve: Curve) -> float:
    """Area under a deferral curve."""
    return float(((curve.quality[1:] + curve.quality[:-1]) / 2 * np.diff(curve.rate)).sum())


def oracle_score(small: Numbers, large: Numbers) -> np.ndarray:
    """The score that knows both qualities: what deferral would lose, (n,)."""
    first, second, _ = checked(small, large, large)
    return first - second


def closed_share(found: float, start: float, oracle: float) -> float:
    """How much of the way from one AUDC to the oracle's another has gone; 0 where there is no way."""
    return (found - start) / (oracle - start) if oracle - start > 1e-12 else 0.0


def threshold_for(score: Numbers, rate: float) -> float:
    """The score below which a row is deferred, so that on these rows about this share is.

    Raises:
        ValueError: for a rate outside [0, 1], no score, or one that is not finite.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; use a share of rows in [0, 1]")
    given = numbers(score)
    if not (finite := np.isfinite(given)).all():
        raise ValueError(
            f"a score is {given[~finite][0]}, {int((~finite).sum())} of {given.size} are not finite; leave these rows out, or "
            "give them finite scores below or above all others"
        )
    (values,) = checked(given)
    place = int(np.floor(rate * len(values) + 1e-9))  # 0.57 * 100 is a little less than 57
    return float(np.sort(values)[place]) if place < len(values) else float("inf")


def at_threshold(threshold: float, score: Numbers, small: Numbers, large: Numbers) -> tuple[float, float]:
    """Rate and mean quality where rows with a score below the threshold are deferred."""
    s, first, second = checked(score, small, large)
    deferred = s < threshold
    return float(deferred.mean()), float(np.where(deferred, second, first).mean())


def cost_curve(curve: Curve, small: float, large: float, partial: float = 0.0) -> Curve:
    """The curve over mean cost a row instead of over rate.

    Args:
        curve: over rates.
        small, large: cost of one output of either model, > 0.
        partial: the part of `large` that is spent on every row before the decision, in [0, large]. A row that is deferred
            pays the rest of `large`. For less than that, the small model's output stands without a decision.

    Raises:
        ValueError: for costs outside these ranges.
    """
    if not small > 0 or not large > 0 or not 0 <= partial <= large:
        raise ValueError(f"small is {small}, large {large}, partial {partial}; need > 0, > 0 and [0, large]")
    cost = small + partial + curve.rate * (large - partial)
    if partial:
        return Curve(np.append(small, cost), np.append(curve.quality[0], curve.quality))
    return Curve(cost, curve.quality)


def area_over_cost(curve: Curve) -> float:
    """Mean quality over the costs of a cost curve."""
    return audc(curve) / float(curve.rate[-1] - curve.rate[0])


def quality_at(curve: Curve, budget: float) -> float:
    """Quality at a rate, or at a cost of a cost curve; beyond its ends that of the end."""
    return float(np.interp(budget, curve.rate, curve.quality))


def chain_thresholds(scores: np.ndarray, rates: Sequence[float]) -> list[float]:
    """Thresholds of every step of a chain: at step m about this share of the rows that reach it go on.

    Args:
        scores: (n, models - 1), score m of the output of model m.
        rates: one a step.
    """
    scores = numbers(scores)
    if scores.ndim != 2 or scores.shape[1] != len(rates):
        raise ValueError(f"scores are {scores.shape} for {len(rates)} rates; give (n, models - 1) and one rate a step")
    here, found = np.ones(len(scores), dtype=bool), []
    for m, rate in enumerate(rates):
        found.append(threshold_for(scores[here, m], rate) if here.any() else float("inf"))
        here &= scores[:, m] < found[-1]
    return found


def chain(scores: np.ndarray, qualities: np.ndarray, costs: Sequence[float], thresholds: Sequence[float]) -> Chained:
    """Ask the models one after the other until a score reaches its threshold; the last model's output always stands.

    Args:
        scores: (n, models - 1).
        qualities: (n, models).
        costs: of an output of each model; a row pays all that were asked.
        thresholds: one a score.

    Raises:
        ValueError: sizes that do not fit, numbers that are missing.
    """
    scores, qualities = numbers(scores), numbers(qualities)
    models = len(costs)
    if (
        scores.ndim != 2
        or qualities.shape != (len(scores), models)
        or scores.shape[1] != models - 1
        or len(thresholds) != models - 1
    ):
        raise ValueError(
            f"scores {scores.shape}, qualities {qualities.shape}, {models} costs, {len(thresholds)} thresholds; "
            "give (n, models - 1), (n, models), models, models - 1"
        )
    if not np.isfinite(qualities).all():
        raise ValueError("a quality is missing or not finite; give one for every model and row")
    if np.isnan(scores).any():
        raise ValueError("a score is not a number; give one for every model but the last and every row")
    stays = np.column_stack([scores >= np.asarray(thresholds), np.ones(len(scores), dtype=bool)])
    last = stays.argmax(axis=1)
    return Chained(last, qualities[np.arange(len(last)), last], np.cumsum(np.asarray(costs, dtype=np.float64))[last])


def checked(*columns: Numbers) -> list[np.ndarray]:
    """Finite columns of one length, float64.

    Raises:
        ValueError: otherwise.
    """
    found = [numbers(column) for column in columns]
    if any(column.ndim != 1 or len(column) != len(found[0]) for column in found) or not len(found[0]):
        shapes = ", ".join(str(column.shape) for column in found)
        raise ValueError(f"scores and qualities of shapes {shapes}; give (n,) of the same n >= 1, none missing")
    for column in found:
        if not np.isfinite(column).all():
            raise ValueError(
                f"a score or quality is {column[~np.isfinite(column)][0]}; every row needs both models' qualities"
            )
    return found
