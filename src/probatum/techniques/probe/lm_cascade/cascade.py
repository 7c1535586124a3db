"""Cascades of models: scores of outputs, curves of quality over deferral and over cost, and chains of several models.

A score says how far the small model's output can be trusted; the lowest scores are deferred first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LEVELS = tuple(round(0.1 * k, 1) for k in range(11))
"""Levels of the quantile features."""

Numbers = Sequence[float] | np.ndarray | Tensor
Logs = Sequence[Numbers] | np.ndarray | Tensor
"""Log-probabilities of tokens: a list of lists of any lengths, or (n, longest) with a mask."""
CHOSEN = ", of whole vocabularies the written tokens' alone: log_p.gather(-1, ids[..., None])[..., 0]"


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


def numbers(values: Any, name: str = "values", missing: float = math.nan) -> np.ndarray:
    """Float64; tensors of any precision (NumPy has no bfloat16), device and history; `missing` where a masked array masks.

    Raises:
        ValueError: what is no array of real numbers, by this name: text, complex numbers, lists of different lengths.
    """
    try:
        if isinstance(values, Tensor):
            given = values.detach().cpu()
            return _real(given.numpy() if given.dtype.is_complex else given.to(torch.float64).numpy())
        if isinstance(values, np.ma.MaskedArray):
            return np.where(np.ma.getmaskarray(values), missing, _real(values.filled(0)))
        if _holds_others(values):
            return np.array([numbers(value, name, missing) for value in values])
        return _real(np.asarray(values))
    except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
        if str(problem).startswith(f"{name} "):
            raise
        raise ValueError(
            f"{name} {_shown(values)} cannot be read ({problem}); give real numbers, as many a row"
        ) from problem


def _real(given: np.ndarray) -> np.ndarray:
    """Float64 of an array of numbers. Text is none, though NumPy would read it, and of complex numbers it would drop a part."""
    inside = {type(value) for value in given.ravel()} if given.dtype.kind == "O" else set()
    if given.dtype.kind not in "biufO" or any(
        issubclass(kind, str | bytes | np.datetime64 | np.timedelta64) for kind in inside
    ):
        raise TypeError(f"of type {given.dtype}")
    return np.asarray(given, dtype=np.float64)


def _holds_others(values: object) -> bool:
    """Whether lists hold, at any depth, what NumPy does not turn into numbers as it is meant."""
    if isinstance(values, list | tuple):
        return any(isinstance(value, Tensor | np.ma.MaskedArray) or _holds_others(value) for value in values)
    return False


def _shown(values: object) -> str:
    text = " ".join(repr(values).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def column(
    name: str, values: Any, least: float = -math.inf, most: float = math.inf, *, endless: bool = False
) -> np.ndarray:
    """Costs, rates, levels or thresholds: (m,) float64 in [least, most].

    Computed with as they came, whole numbers of few bits would overflow and half precision would be infinite.

    Args:
        name: of what is given, for the error.
        values: numbers of any type.
        least, most: the range.
        endless: whether infinite ones pass, as thresholds do that nothing or everything is below.

    Raises:
        ValueError: other values or shapes, missing ones (masked ones among them).
    """
    found = numbers(values, name)
    if found.ndim != 1:
        raise ValueError(f"{name} {_shown(values)} have shape {found.shape}; give a list of numbers")
    for value in found:
        _within(f"{name} hold", value, least, most, endless)
    return found


def single(name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, endless: bool = False) -> float:
    """One such number; see `column`."""
    found = numbers(value, name)
    if found.ndim:
        raise ValueError(f"{name} is {_shown(value)}, of shape {found.shape}; give a single number")
    return _within(f"{name} is", float(found), least, most, endless)


def _within(what: str, value: float, least: float, most: float, endless: bool) -> float:
    if math.isnan(value) or (math.isinf(value) and not endless) or not least <= value <= most:
        kind = "a number" if endless else "a finite number"
        ends = [f" of {least:g} or more"] if least > -math.inf else []
        ends = [f" in [{least:g}, {most:g}]"] if math.isfinite(least) and math.isfinite(most) else ends
        raise ValueError(f"{what} {value:g}; use {kind}{''.join(ends)}")
    return value


def tokens(log_p: Logs, mask: Any = None) -> Tokens:
    """Log-probabilities as a padded array.

    Args:
        log_p: one list an output, or (n, longest): of the tokens that were written.
        mask: (n, longest), what belongs to an output, of truth values or 0 and 1; what a masked array masks does not. None =
            all of what is given.

    Raises:
        ValueError: a positive or infinite log-probability, those of whole vocabularies, an output without tokens, a mask of
            another shape or of other numbers.
    """
    if mask is None:
        rows = _rows(log_p)
        longest = max((len(row) for row in rows), default=0)
        values, kept = np.zeros((len(rows), longest)), np.zeros((len(rows), longest), dtype=bool)
        for i, row in enumerate(rows):
            values[i, : len(row)], kept[i, : len(row)] = row, True
    else:
        values, kept = numbers(log_p, "log_p"), _kept(mask)
        if values.ndim != 2 or values.shape != kept.shape:
            raise ValueError(f"log_p is {values.shape} and mask {kept.shape}; give (n, longest) twice{CHOSEN}")
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


def _rows(log_p: Any) -> list[np.ndarray]:
    """One row of numbers an output."""
    if isinstance(log_p, str | bytes | Mapping) or not isinstance(log_p, Iterable) or getattr(log_p, "ndim", 1) == 0:
        raise ValueError(f"log_p is {_shown(log_p)}; give one list of log-probabilities an output")
    rows = [numbers(row, "log_p") for row in log_p]
    for k, row in enumerate(rows):
        if row.ndim != 1:
            one = "a list for every output, also where there is one" if row.ndim == 0 else "one number a token"
            raise ValueError(f"log_p of output {k} has shape {row.shape}; give {one}{CHOSEN if row.ndim else ''}")
    return rows


def _kept(mask: Any) -> np.ndarray:
    """Truth values of a mask. Zeros with -inf or -100 among them mean the contrary, or labels, of which 0 is one."""
    given = numbers(mask, "mask", missing=0.0)
    other = given[(given != 0) & (given != 1)]
    if other.size:
        raise ValueError(
            f"mask holds {other[0]:.4g}; give truth values, or 0 and 1, 1 = belongs to the output: of an additive mask "
            "(0 and -inf) mask == 0, of labels with -100 labels != -100"
        )
    return given != 0


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
    level = single("level", level, 0, 1)
    ordered = np.sort(np.where(found.mask, found.log_p, np.inf), axis=1)
    place = level * (found.mask.sum(axis=1) - 1)
    low = np.floor(place).astype(np.int64)
    high, rows = np.ceil(place).astype(np.int64), np.arange(len(ordered))
    first, second = ordered[rows, low], ordered[rows, high]
    return first + (place - low) * (second - first)


def quantile_features(found: Tokens, levels: Sequence[float] = LEVELS) -> np.ndarray:
    """Quantiles at `levels`, sum, mean and length of each output: (n, levels + 3)."""
    columns = [chow_quantile(found, level) for level in column("levels", levels, 0, 1)]
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


def _points(curve: Curve) -> Curve:
    """A curve, also one of somebody's own numbers, with points of float64.

    Raises:
        ValueError: points that are missing, not as many on either axis, or do not ascend.
    """
    rate, quality = column("a curve's rates", curve.rate), column("a curve's qualities", curve.quality)
    if len(rate) != len(quality) or len(rate) < 2 or bool((np.diff(rate) < 0).any()):
        raise ValueError(
            f"a curve has rates {_shown(rate)} for {len(quality)} qualities; give 2 or more, ascending, of both"
        )
    return Curve(rate, quality)


def audc(curve: Curve) -> float:
    """Area under a deferral curve."""
    curve = _points(curve)
    return float(((curve.quality[1:] + curve.quality[:-1]) / 2 * np.diff(curve.rate)).sum())


def oracle_score(small: Numbers, large: Numbers) -> np.ndarray:
    """The score that knows both qualities: what deferral would lose, (n,)."""
    first, second, _ = checked(small, large, large)
    return first - second


def closed_share(found: float, start: float, oracle: float) -> float:
    """How much of the way from one AUDC to the oracle's another has gone; 0 where there is no way."""
    found, start, oracle = single("found", found), single("start", start), single("oracle", oracle)
    return (found - start) / (oracle - start) if oracle - start > 1e-12 else 0.0


def threshold_for(score: Numbers, rate: float) -> float:
    """The score below which a row is deferred, so that on these rows about this share is.

    Raises:
        ValueError: for a rate outside [0, 1], no score, or one that is not finite.
    """
    rate, given = single("rate", rate, 0, 1), numbers(score, "score")
    if not (finite := np.isfinite(given)).all():
        raise ValueError(
            f"a score is {given[~finite][0]}, {int((~finite).sum())} of {given.size} are not finite; leave these rows out, or "
            "give them finite scores below or above all others"
        )
    (values,) = checked(given)
    place = int(np.floor(rate * len(values) + 1e-9))  # 0.57 * 100 is a little less than 57
    return float(np.sort(values)[place]) if place < len(values) else float("inf")


def at_threshold(threshold: float, score: Numbers, small: Numbers, large: Numbers) -> tuple[float, float]:
    """Rate and mean quality where rows with a score below the threshold are deferred; it is one number and may be infinite."""
    s, first, second = checked(score, small, large)
    deferred = s < single("threshold", threshold, endless=True)
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
    curve = _points(curve)
    small, large, partial = single("small", small), single("large", large), single("partial", partial)
    if not small > 0 or not large > 0 or not 0 <= partial <= large or not math.isfinite(small + large):
        raise ValueError(
            f"small is {small:g}, large {large:g}, partial {partial:g}; need > 0, > 0 and [0, large], with a finite sum"
        )
    cost = small + partial + curve.rate * (large - partial)
    if partial:
        return Curve(np.append(small, cost), np.append(curve.quality[0], curve.quality))
    return Curve(cost, curve.quality)


def area_over_cost(curve: Curve) -> float:
    """Mean quality over the costs of a cost curve.

    Raises:
        ValueError: of a curve whose costs are all one, as where the large model's is lost in the small one's rounding.
    """
    curve = _points(curve)
    width = float(curve.rate[-1] - curve.rate[0])
    if not width > 0:
        raise ValueError(
            f"all costs of the curve are {curve.rate[0]:g}; there is no range of costs to take the mean over"
        )
    return audc(curve) / width


def quality_at(curve: Curve, budget: float) -> float:
    """Quality at a rate, or at a cost of a cost curve; beyond its ends that of the end."""
    curve = _points(curve)
    return float(np.interp(single("budget", budget), curve.rate, curve.quality))


def chain_thresholds(scores: np.ndarray, rates: Sequence[float]) -> list[float]:
    """Thresholds of every step of a chain: at step m about this share of the rows that reach it go on.

    Args:
        scores: (n, models - 1), score m of the output of model m.
        rates: one a step.
    """
    scores, rates = numbers(scores, "scores"), column("rates", rates, 0, 1).tolist()
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
        costs: of an output of each model, finite and 0 or more; a row pays all that were asked.
        thresholds: one a score; infinite ones let nothing or everything stand.

    Raises:
        ValueError: sizes that do not fit, numbers that are missing, costs out of range.
    """
    scores, qualities = numbers(scores, "scores"), numbers(qualities, "qualities")
    spent, steps = column("costs", costs, 0), column("thresholds", thresholds, endless=True)
    models = len(spent)
    if (
        scores.ndim != 2
        or qualities.shape != (len(scores), models)
        or scores.shape[1] != models - 1
        or len(steps) != models - 1
    ):
        raise ValueError(
            f"scores {scores.shape}, qualities {qualities.shape}, {models} costs, {len(steps)} thresholds; "
            "give (n, models - 1), (n, models), models, models - 1"
        )
    if not np.isfinite(qualities).all():
        raise ValueError("a quality is missing or not finite; give one for every model and row")
    if np.isnan(scores).any():
        raise ValueError("a score is not a number; give one for every model but the last and every row")
    stays = np.column_stack([scores >= steps, np.ones(len(scores), dtype=bool)])
    last = stays.argmax(axis=1)
    return Chained(last, qualities[np.arange(len(last)), last], np.cumsum(spent)[last])


def checked(*columns: Numbers) -> list[np.ndarray]:
    """Finite columns of one length, float64.

    Raises:
        ValueError: otherwise.
    """
    found = [numbers(given, "a score or quality") for given in columns]
    if any(one.ndim != 1 or len(one) != len(found[0]) for one in found) or not len(found[0]):
        shapes = ", ".join(str(one.shape) for one in found)
        raise ValueError(f"scores and qualities of shapes {shapes}; give (n,) of the same n >= 1, none missing")
    for one in found:
        if not np.isfinite(one).all():
            raise ValueError(
                f"a score or quality is {one[~np.isfinite(one)][0]}; every row needs both models' qualities"
            )
    return found
