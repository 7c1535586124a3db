"""Naive Bayes head: Gaussian naive Bayes with one shared diagonal variance on frozen features, in closed form.

Paper     Zheng, Wu, Bao, Cao, Li and Zhu 2023, "Revisiting Discriminative vs. Generative Classifiers: Theory and
          Implications", ICML, arXiv:2302.02334
Computes  score_k(x) = log pi_k - 1/2 sum_j (x_j - mu_kj)^2 / v_j, v = sum_k pi_k v_k + 1e-9: a linear rule with weights mu_k / v
          and bias log pi_k - 1/2 sum_j mu_kj^2 / v_j, on features and means less the rows' mean, which is the same rule and does
          not cancel where features lie far from 0; `auto` takes it or logistic regression, by cross-validation
Shapes    features (n, m), y (n,) -> log-scores (n, classes)
Departs   1. on the bench the features come from a network that is trained on the same rows unless a pretrained one is given
          2. the bound turns excess logistic risk into excess error; the paper's minimisability gaps are taken to be 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.calibration.temperature import fit_temperature
from probatum.numerics.networks.backbone import Backbone, backbone
from probatum.numerics.optimisation.softmax_regression import fit_softmax
from probatum.numerics.tensors.targets import class_codes
from probatum.spec import Budget, Data, Optimisation, Part

CARD = Card(
    paper="arXiv:2302.02334",
    title="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
    entry="fit",
    number=195,
    tags=("few-labels", "transfer", "classical"),
    tasks=("classes",),
    tune={"head": ["naive-bayes", "auto"]},
    tried={"head": ["naive-bayes", "logistic"]},
    claims=("fewer-labels-than-logistic-regression",),
)

HEADS = ("naive-bayes", "logistic", "auto")
FLOOR = 1e-9
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Moments:
    """Counts (k,), means (k, m) and sums of squared deviations (k, m) of each class, float64; they can be merged."""

    counts: Tensor
    means: Tensor
    squares: Tensor

    @classmethod
    def of(cls, features: Tensor, y: Tensor, classes: int) -> Moments:
        """Two passes over features (n, m) with classes (n,) or (n, 1); ValueError for a label outside 0 .. classes - 1."""
        x, y = features.double(), class_codes(y, len(features), classes)
        counts = torch.bincount(y, minlength=classes).double()
        sums = torch.zeros(classes, x.shape[1], dtype=torch.float64).index_add_(0, y, x)
        means = sums / counts.clamp(min=1)[:, None]
        squares = torch.zeros_like(means).index_add_(0, y, (x - means[y]).square())
        return cls(counts, means, squares)

    def merge(self, other: Moments) -> Moments:
        """Those of both sets of rows together (Chan, Golub and LeVeque 1979)."""
        counts = self.counts + other.counts
        share = (other.counts / counts.clamp(min=1))[:, None]
        gap = other.means - self.means
        squares = self.squares + other.squares + gap.square() * share * self.counts[:, None]
        return Moments(counts, self.means + gap * share, squares)


@dataclass(frozen=True)
class NaiveBayes:
    """The linear rule: log-scores are (features - centre) W^T + b, float64.

    Attributes:
        centre: (m,), the mean of all rows.
        weight: (k, m); bias: (k,), -inf for classes without rows.
        means: (k, m), variance: (m,), prior: (k,), of which it is made.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor
    means: Tensor
    variance: Tensor
    prior: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Log-scores (n, k) up to a constant a row."""
        return (features.double() - self.centre) @ self.weight.T + self.bias

    def log_density(self, features: Tensor) -> Tensor:
        """log pi_k + log N(x; mu_k, diag v), (n, k): the same up to a constant a row."""
        x = features.double()[:, None]
        each = -0.5 * ((x - self.means).square() / self.variance + self.variance.log() + math.log(2 * math.pi)).sum(
            dim=2
        )
        return each + self.prior.log()


def from_moments(moments: Moments, allow_missing: bool = False) -> NaiveBayes:
    """The rule of these moments.

    Args:
        moments: of the training rows.
        allow_missing: whether classes may have no rows; they then get no probability.

    Raises:
        ValueError: a class without rows (named), or fewer than two classes with any.
    """
    missing = (moments.counts == 0).nonzero().squeeze(1).tolist()
    if len(moments.counts) - len(missing) < 2:
        raise ValueError(f"{len(moments.counts) - len(missing)} class(es) have rows; a choice needs 2 or more")
    if missing and not allow_missing:
        raise ValueError(f"classes without rows: {', '.join(map(str, missing))}; bring rows, or allow_missing=True")
    prior = moments.counts / moments.counts.sum()
    # sum_k pi_k v_k with v_k = squares_k / count_k
    variance = moments.squares.sum(dim=0) / moments.counts.sum() + FLOOR
    centre = prior @ moments.means
    apart = torch.where(moments.counts[:, None] > 0, moments.means - centre, torch.zeros_like(moments.means))
    bias = prior.log() - 0.5 * (apart.square() / variance).sum(dim=1)
    return NaiveBayes(centre, apart / variance, bias, moments.means, variance, prior)


def naive_bayes(features: Tensor, y: Tensor, classes: int, allow_missing: bool = False) -> NaiveBayes:
    """The rule of features (n, m) with classes (n,).

    Raises:
        ValueError: features that are not finite (with the first row), a class without rows, a single class.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.2, 1.0], [2.0, 0.0], [2.2, 1.0]])
        >>> naive_bayes(x, torch.tensor([0, 0, 1, 1]), 2).logits(torch.tensor([[0.3, 0.5]])).argmax().item()
        0
    """
    bad = (~torch.isfinite(features)).any(dim=1).nonzero().squeeze(1)
    if len(bad):
        raise ValueError(
            f"{len(bad)} rows have features that are not finite, first row {int(bad[0])}; fill or drop them"
        )
    return from_moments(Moments.of(features, y, classes), allow_missing)


def logistic(features: Tensor, y: Tensor, classes: int, penalties: Sequence[float] = PENALTIES, folds: int = 3) -> Any:
    """Converged multinomial logistic regression whose L2 penalty is chosen by stratified cross-validation."""
    if len(penalties) == 1:
        return fit_softmax(features, y, classes, penalties)[0]
    errors = _cross_errors(features, y, folds, lambda x, t: fit_softmax(x, t, classes, penalties))
    best = penalties[int(errors.argmin())]
    return fit_softmax(features, y, classes, [best])[0]


def _cross_errors(features: Tensor, y: Tensor, folds: int, fits: Callable[[Tensor, Tensor], Sequence[Any]]) -> Tensor:
    """Mean error of each of several rules over folds that part every class evenly; NaN where no fold leaves two classes to fit."""
    place = torch.zeros(len(y), dtype=torch.int64)
    for c in y.unique():
        mine = (y == c).nonzero().squeeze(1)
        place[mine] = torch.arange(len(mine)) % folds
    errors = []
    for k in range(folds):
        mine = place == k
        if mine.any() and len(y[~mine].unique()) > 1:
            rules = fits(features[~mine], y[~mine])
            errors.append(
                [float((rule.logits(features[mine]).argmax(dim=1) != y[mine]).double().mean()) for rule in rules]
            )
    return torch.tensor(errors).mean(dim=0)


class Curve(NamedTuple):
    """Errors of both heads by number of labels; `crossing` is where logistic regression takes the lead (None: nowhere)."""

    labels: tuple[int, ...]
    naive_bayes: tuple[float, ...]
    logistic: tuple[float, ...]
    crossing: float | None


def learning_curve(
    features: Tensor,
    y: Tensor,
    test: tuple[Tensor, Tensor],
    classes: int,
    labels: Sequence[int],
    generator: torch.Generator,
    penalties: Sequence[float] = PENALTIES,
) -> Curve:
    """Test errors of both heads on nested random samples of the rows: the two regimes of the paper.

    Raises:
        ValueError: numbers of labels that do not grow, or exceed the rows.
    """
    if list(labels) != sorted(set(labels)) or not labels or labels[0] < 2 or labels[-1] > len(y):
        raise ValueError(f"labels are {list(labels)}; give growing numbers from 2 to {len(y)}")
    order = torch.randperm(len(y), generator=generator)
    ours, theirs = [], []
    for m in labels:
        rows = order[:m]
        for found, rule in (
            (ours, _of_some(features[rows], y[rows], classes)),
            (theirs, logistic(features[rows], y[rows], classes, penalties)),
        ):
            found.append(float((rule.logits(test[0]).argmax(dim=1) != test[1]).double().mean()))
    crossing = None
    for k in range(1, len(labels)):
        before, after = ours[k - 1] - theirs[k - 1], ours[k] - theirs[k]
        if before <= 0 < after:
            crossing = labels[k - 1] + (labels[k] - labels[k - 1]) * before / (before - after)
            break
    return Curve(tuple(labels), tuple(ours), tuple(theirs), crossing)


def _of_some(features: Tensor, y: Tensor, classes: int) -> Any:
    """Naive Bayes of rows that may be of one class alone; then it says that class, as logistic regression does."""
    try:
        return naive_bayes(features, y, classes, allow_missing=True)
    except ValueError:
        if len(y.unique()) > 1:
            raise
        return fit_softmax(features, y, classes, PENALTIES[-1:])[0]


def error_bound(excess: float) -> float:
    """Largest excess error that an excess logistic risk (nats, at least 0) allows: psi(t) = excess, where
    psi(t) = (1 + t)/2 log(1 + t) + (1 - t)/2 log(1 - t); at most 1."""
    if not excess >= 0:
        raise ValueError(f"excess is {excess}; a risk cannot be below the best one")
    if excess >= math.log(2):
        return 1.0

    def psi(t: float) -> float:
        return ((1 + t) * math.log1p(t) + (1 - t) * math.log1p(-t)) / 2 - excess

    return float(brentq(psi, 0.0, 1 - 1e-15)) if excess > 0 else 0.0


class HeadOnFeatures:
    """A linear rule on frozen features.

    Attributes:
        features: rows -> features.
        rule: with `logits`.
        head: which one it is.
    """

    def __init__(self, features: Backbone, rule: Any, head: str, temperature: float) -> None:
        self.features, self.rule, self.head, self.temperature = features, rule, head, temperature
        self.passes = features.passes

    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes)."""
        return (self.rule.logits(self.features(part.x)) / self.temperature).softmax(dim=1).float()

    def report(self) -> dict[str, float]:
        """Which head it is, and the temperature of its scores."""
        return {"naive-bayes": float(self.head == "naive-bayes"), "temperature": self.temperature}


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module],
    optimisation: Optimisation,
    pretrained: bool = False,
    *,
    head: str = "naive-bayes",
    source: str = "auto",
) -> HeadOnFeatures:
    """Freeze features and put the head on them.

    Args:
        data: one split; validation rows set the temperature of the scores (naive Bayes is over-confident).
        budget, generator, model_factory, optimisation, pretrained, source: see `probatum.numerics.networks.backbone.backbone`.
        head: "naive-bayes", "logistic" or "auto" (the one with the lower cross-validated error).

    Raises:
        ValueError: unknown head or source; see `naive_bayes`.
    """
    if head not in HEADS:
        raise ValueError(f"head is {head!r}; use one of {', '.join(HEADS)}")
    features = backbone(data, budget, generator, model_factory, optimisation, pretrained, source)
    x, y, classes = features(data.train.x), data.train.y, data.spec.outputs
    if head == "auto":
        errors = _cross_errors(
            x,
            y,
            3,
            lambda a, b: (naive_bayes(a, b, classes, allow_missing=True), logistic(a, b, classes, PENALTIES[1:2])),
        )
        head = HEADS[int(errors.argmin())]
    rule = naive_bayes(x, y, classes, allow_missing=True) if head == "naive-bayes" else logistic(x, y, classes)
    return HeadOnFeatures(features, rule, head, _temperature(rule.logits(features(data.valid.x)), data.valid.y))


def _temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature with the lowest log loss on rows whose class had training rows; 1 where there are none."""
    seen = torch.isfinite(logits.gather(1, y[:, None])).squeeze(1)
    if not seen.any():
        return 1.0
    finite = logits[torch.isfinite(logits)]
    return fit_temperature(logits[seen].nan_to_num(neginf=float(finite.min()) - 100), y[seen])
