"""Utility-probability duality: a network's log-probabilities as utilities that rank outputs, mapped back to probabilities.

Paper     Huang Bojun and Fei Yuan 2023, "Utility-Probability Duality of Neural Networks", arXiv:2305.14859
Computes  U(x, y) = log p_w(y | x); P(y | x) proportional to g(U) over the candidates, g increasing: exp(a U) ("power"), r^-b with
          r the rank ("rank"), or isotonic in U ("isotonic"), fitted on held-out choices by the log loss of the chosen candidate
Shapes    logits (n, classes) -> probabilities (n, classes); utilities (n, candidates) and which are there -> the same
Departs   1. the paper's own transform was not found in the sources at hand: the three g are a reconstruction
          2. "isotonic" regresses whether a candidate was chosen on its utility, over all rows together, and breaks its ties by a
             millionth of exp(U): order is kept strictly in float64; rounded to fewer digits the likeliest stays so, and
             others may be equal
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from probatum.card import Card
from probatum.numerics.tensors.targets import IGNORED, class_targets

CARD = Card(
    paper="arXiv:2305.14859",
    title="Utility-Probability Duality of Neural Networks",
    entry="UtilityProbability",
    number=33,
    tags=("calibration", "decision", "generation"),
    tasks=("classes",),
    tune={"g": ["power", "rank", "isotonic"]},
    claims=("samples-as-good-as-the-mode",),
)

MAPS = ("power", "rank", "isotonic")
MOST = 1e3
"""Largest power that is looked for."""
TIE = 1e-6


class Candidates(NamedTuple):
    """Outputs to choose from: utilities (n, k), -inf where there is none, and the outputs themselves by row."""

    utilities: Tensor
    outputs: tuple[tuple[tuple[int, ...], ...], ...]


def gather_candidates(
    outputs: Sequence[Sequence[Sequence[int]]], log_p: Sequence[Sequence[float]], per_token: bool = False
) -> Candidates:
    """Distinct candidates of every row, likeliest first.

    Args:
        outputs: for each row sampled or searched token sequences; repeated ones are taken once.
        log_p: their summed log-likelihoods.
        per_token: divide by length, so that long outputs are not held against themselves.

    Raises:
        ValueError: a row without candidates, an empty sequence, or a log-likelihood above 0, with the row.
    """
    rows: list[list[tuple[tuple[int, ...], float]]] = []
    for i, (sequences, logs) in enumerate(zip(outputs, log_p, strict=True)):
        found: dict[tuple[int, ...], float] = {}
        for sequence, log in zip(sequences, logs, strict=True):
            if not len(sequence):
                raise ValueError(
                    f"row {i} has an empty output among its candidates; leave it out, or end it with a token"
                )
            if log > 1e-6:
                raise ValueError(f"row {i} has a log-likelihood of {log}; it cannot be above 0")
            found[tuple(sequence)] = log / len(sequence) if per_token else log
        if not found:
            raise ValueError(f"row {i} has no candidates; give at least two")
        rows.append(sorted(found.items(), key=lambda item: -item[1]))
    width = max(len(row) for row in rows)
    utilities = torch.full((len(rows), width), float("-inf"), dtype=torch.float64)
    for i, row in enumerate(rows):
        utilities[i, : len(row)] = torch.tensor([u for _, u in row], dtype=torch.float64)
    return Candidates(utilities, tuple(tuple(sequence for sequence, _ in row) for row in rows))


def preferences(first: Tensor, choices: Tensor, rate: float) -> Tensor:
    """Utilities (k,) after choices (t,) are seen one by one: U <- U + rate (e_y - softmax U), gradient descent on -log p_y.

    The chosen output gains, and every other one loses by its present share (multiplicative weights).
    """
    if not rate > 0:
        raise ValueError(f"rate is {rate}; it must be above 0")
    utilities = first.clone()
    for y in choices.tolist():
        step = -utilities.softmax(dim=0)
        step[y] += 1
        utilities = utilities + rate * step
    return utilities


def ranks(utilities: Tensor) -> Tensor:
    """1 for the largest utility of a row, 2 for the next ...; equal ones share the mean of their ranks. (n, k) -> (n, k)."""
    own = utilities.contiguous()
    rising = own.sort(dim=1).values
    below, upto = (torch.searchsorted(rising, own, right=right) for right in (False, True))
    return utilities.shape[1] - upto + (upto - below + 1) / 2


class UtilityProbability:
    """Utilities -> probabilities over the same candidates, in the same order.

    Args:
        g: "power", "rank" or "isotonic".
        a: the power, if it is to be given instead of fitted; above 0.

    Raises:
        ValueError: an unknown g, a power that is not above 0.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> same = UtilityProbability(a=1.0)(logits)
        >>> torch.allclose(same, logits.softmax(dim=1))
        True
    """

    keeps_argmax = True

    def __init__(self, g: str = "power", a: float | None = None) -> None:
        if g not in MAPS:
            raise ValueError(f"g is {g!r}; use one of {', '.join(MAPS)}")
        if a is not None and not 0 < a < float("inf"):
            raise ValueError(f"a is {a}; a map that keeps order needs a power above 0")
        if a is not None and g != "power":
            raise ValueError(f"a is {a}, but g is {g!r}; only 'power' has one")
        self.g, self.given = g, a
        self.a = 1.0 if a is None else a
        self.b = 1.0
        self.isotonic: IsotonicRegression | None = None

    def fit(self, logits: Tensor, target: Tensor) -> UtilityProbability:
        """From held-out logits (or utilities, -inf where there is no candidate) and the candidates that were chosen.

        Args:
            logits: (n, k).
            target: (n,) positions of the chosen ones, each of which must be there; rows of -100 are left out.

        Raises:
            ValueError: no rows, a row with a single candidate, or a chosen candidate that is not there.
        """
        target = class_targets(logits, target, ignored=IGNORED)
        logits, target = logits[target != IGNORED], target[target != IGNORED]
        utilities = self._utilities(logits)
        chosen = utilities.gather(1, target[:, None]).squeeze(1)
        if not len(chosen) or not torch.isfinite(chosen).all():
            raise ValueError(
                f"{len(chosen)} choices, {int((~torch.isfinite(chosen)).sum())} of them of no candidate; drop these rows"
            )
        if self.g == "power" and self.given is None:
            self.a = math.exp(
                _lowest(lambda t: _power_loss(utilities, target, math.exp(t)), -math.log(MOST), math.log(MOST))
            )
        elif self.g == "rank":
            order = ranks(utilities).log().masked_fill(~torch.isfinite(utilities), float("inf"))
            self.b = math.exp(
                _lowest(lambda t: _power_loss(-order, target, math.exp(t)), -math.log(MOST), math.log(MOST))
            )
        elif self.g == "isotonic":
            there = torch.isfinite(utilities)
            picked = torch.zeros_like(utilities).scatter_(1, target[:, None], 1.0)
            fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
            self.isotonic = fitted.fit(utilities[there].cpu().numpy(), picked[there].cpu().numpy())
        return self

    def __call__(self, logits: Tensor) -> Tensor:
        """P (n, k) in the dtype of the logits; 0 where there is no candidate.

        Raises:
            ValueError: a row with a single candidate, among which there is nothing to choose.
        """
        utilities = self._utilities(logits)
        there = torch.isfinite(utilities)
        if self.g == "power":
            found = (self.a * utilities).masked_fill(~there, float("-inf")).softmax(dim=1)
        elif self.g == "rank":
            found = (-self.b * ranks(utilities).log()).masked_fill(~there, float("-inf")).softmax(dim=1)
        else:
            if self.isotonic is None:
                raise ValueError("the isotonic map was not fitted; call fit with held-out choices first")
            found = torch.zeros_like(utilities)
            if len(found):  # scikit-learn takes no empty arrays
                flat = self.isotonic.predict(utilities[there].cpu().numpy())
                found[there] = torch.from_numpy(flat).to(found)
            found = (found + TIE * utilities.exp()) * there
            found = found / found.sum(dim=1, keepdim=True)
        return _top_kept(found.to(logits.dtype), utilities.argmax(dim=1))

    def _utilities(self, logits: Tensor) -> Tensor:
        if (wrong := logits.isnan() | (logits == float("inf"))).any():
            raise ValueError(f"{int(wrong.sum())} utilities are NaN or infinite; only -inf is taken, for no candidate")
        there = torch.isfinite(logits)
        few = (there.sum(dim=1) < 2).nonzero().squeeze(1)
        if len(few):
            raise ValueError(
                f"row {int(few[0])} has {int(there[few[0]].sum())} candidate(s); a choice needs two or more"
            )
        found = logits.detach().double()
        return found.log_softmax(dim=1) if self.g == "isotonic" else found


def _top_kept(p: Tensor, top: Tensor) -> Tensor:
    """p (n, k) with the entry at `top` (n,) raised by a rounding error where rounding has made another one its equal."""
    lost = p.argmax(dim=1) != top
    info = torch.finfo(p.dtype)
    raised = (
        p.amax(dim=1, keepdim=True) * (1 + info.eps) + info.tiny * info.eps
    )  # the least number there is, for tiny ones
    return torch.where(lost[:, None], p.scatter(1, top[:, None], raised), p)


def sample(p: Tensor, generator: torch.Generator) -> Tensor:
    """One candidate a row, drawn by P (n, k): positions (n,)."""
    return torch.multinomial(p, 1, generator=generator).squeeze(1)


def least_risk(p: Tensor, risk: Tensor) -> Tensor:
    """Minimum Bayes risk: the candidate of least expected risk (n, k, k), [i, a, b] = risk of saying a where b is right; (n,)."""
    return (risk * p[:, None, :]).sum(dim=2).masked_fill(p == 0, float("inf")).argmin(dim=1)


def _power_loss(utilities: Tensor, target: Tensor, power: float) -> float:
    log_p = (power * utilities).log_softmax(dim=1)
    return -float(log_p.gather(1, target[:, None]).mean())


def _lowest(loss, low: float, high: float) -> float:  # type: ignore[no-untyped-def]
    """Where a function that is convex in exp(t) is lowest in [low, high]."""
    return float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).x)
