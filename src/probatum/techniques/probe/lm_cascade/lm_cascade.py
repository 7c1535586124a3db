"""Model cascade: which outputs of a small model a large one should write anew, by the uncertainty of the tokens.

Paper     Gupta et al. 2024, "Language Model Cascades: Token-level uncertainty and beyond", ICLR 2024, arXiv:2404.10136
Computes  scores of outputs from their tokens' log-probabilities: sum, mean, quantiles (numerics.cascade), and a rule learned on
          held-out rows from quantiles, sum, mean and length, also with the small model's pooled last state (embed-1) and with
          a state from inside the large one, whose cost every row then pays (embed-1+2); deferral and cost curves, the area
          under them, thresholds fixed on validation rows
Shapes    (model_factory, data, generator) -> dict of named numbers
Departs   1. on the bench the small model is a narrow network of its own, the large one the arm's, both trained here
          2. next-token: an output is what a model says is likeliest at the first tokens of a window given the true ones before
             them, its quality the share that is right; windows are cut at random lengths. Classes: one token
          3. costs are the floating-point operations of one forward pass each, or parameters where none are counted
          4. probabilities of the rule are calibrated by Platt's sigmoid on out-of-fold scores
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.numerics.calibration.reliability import equal_mass, mean_gap
from probatum.numerics.networks.modes import begin_training
from probatum.numerics.optimisation.fit_network import in_single
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import coded
from probatum.spec import Data, Part, Spec
from probatum.techniques.probe.lm_cascade.cascade import (
    LEVELS,
    Numbers,
    Tokens,
    area_over_cost,
    at_threshold,
    audc,
    checked,
    chow_average,
    chow_quantile,
    chow_sum,
    closed_share,
    column,
    cost_curve,
    deferral_curve,
    numbers,
    oracle_score,
    quality_at,
    quantile_features,
    threshold_for,
)
from probatum.techniques.probe.lm_cascade.written import Middle, flops, middle_of, write

CARD = Card(
    paper="arXiv:2404.10136",
    title="Language Model Cascades: Token-level uncertainty and beyond",
    entry="lm_cascade",
    number=53,
    tags=("uncertainty", "selection", "language", "cost"),
    tasks=("classes", "next-token"),
    tiny={"steps": 6, "batch": 8, "width": 8, "levels": [0.0, 0.5], "rates": [0.5], "budgets": [0.5]},
    claims=("learned-quantiles-beat-chow",),
)

RULES, TARGETS = ("logistic", "mlp"), ("better", "difference")
FOLDS, PASSES = 5, 300
"""Of the calibration; most passes of the mlp over its rows."""


class DeferralRule:
    """A rule learned from features of the small model's output to what the large one would gain.

    Args:
        rule: "logistic" (of a difference: ridge regression) or "mlp".
        target: "better": whether the large model's quality is higher; "difference": by how much.
        hidden: units of the mlp.
        penalty: of squared weights, > 0.

    Features are arrays or tensors of any precision and device; all is computed in float64.

    Raises:
        ValueError: unknown names or settings out of range.

    Example:
        >>> features = np.linspace(0, 1, 40)[:, None]
        >>> found = DeferralRule().fit(features, np.ones(40), (features[:, 0] > 0.5) * 2.0)
        >>> found.score(features)[0] > found.score(features)[-1]  # the first stays, the last is deferred
        np.True_
    """

    def __init__(self, rule: str = "logistic", target: str = "better", hidden: int = 32, penalty: float = 1.0) -> None:
        if rule not in RULES or target not in TARGETS:
            raise ValueError(f"rule is {rule!r} and target {target!r}; use one of {RULES} and of {TARGETS}")
        if hidden < 1 or not penalty > 0:
            raise ValueError(f"hidden is {hidden} and penalty {penalty}; use at least 1 and above 0")
        self.rule, self.target, self.hidden, self.penalty = rule, target, hidden, penalty
        self.platt = (1.0, 0.0)

    def fit(self, features: Numbers, small: Numbers, large: Numbers, seed: int = 0) -> DeferralRule:
        """Learn from held-out rows: features (n, d) and both models' qualities (n,)."""
        features = numbers(features, "features")
        if features.ndim != 2 or not np.isfinite(features).all():
            raise ValueError(f"features are {features.shape}; give finite (n, d)")
        _, first, second = checked(np.zeros(len(features)), small, large)
        self.platt = (1.0, 0.0)  # not what an earlier fit left
        y = (second > first).astype(np.int64) if self.target == "better" else second - first
        self.model = self._fitted(features, y, seed)
        if self.target == "better" and min(np.bincount(y, minlength=2)) >= FOLDS:
            fold = np.random.default_rng(seed).permutation(len(y)) % FOLDS
            out = np.zeros(len(y))
            for k in range(FOLDS):
                part = self._fitted(features[fold != k], y[fold != k], seed)
                out[fold == k] = _raw(part, features[fold == k])
            sigmoid = LogisticRegression(C=1e6).fit(out[:, None], y)
            slope = float(sigmoid.coef_[0, 0])
            if slope > 0:  # else the scores say nothing of rows they were not fitted on; their order stays
                self.platt = (slope, float(sigmoid.intercept_[0]))
        return self

    def _fitted(self, features: np.ndarray, y: np.ndarray, seed: int) -> tuple[StandardScaler, Any]:
        scaler = StandardScaler().fit(features)
        x = scaler.transform(features)
        # one answer for all: as odds with half a row of the other
        if self.target == "better" and len(np.unique(y)) < 2:
            return scaler, (1 if y[0] else -1) * math.log(2 * len(y) + 1)
        mlp: Any = MLPClassifier if self.target == "better" else MLPRegressor
        if self.rule == "mlp":
            model: Any = mlp(hidden_layer_sizes=(self.hidden,), alpha=self.penalty, max_iter=PASSES, random_state=seed)
        elif self.target == "better":
            model = LogisticRegression(C=1 / self.penalty, max_iter=1000)
        else:
            model = Ridge(alpha=self.penalty)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # PASSES is a budget
            return scaler, model.fit(x, y)

    def gain(self, features: Numbers) -> np.ndarray:
        """Calibrated probability that the large model is better, or the difference expected, (n,)."""
        found = _raw(self.model, numbers(features, "features"))
        if self.target == "difference":
            return found
        slope, intercept = self.platt
        return 1 / (1 + np.exp(-np.clip(slope * found + intercept, -50, 50)))

    def raw_probability(self, features: Numbers) -> np.ndarray:
        """Before calibration, (n,); target "better" alone."""
        return 1 / (1 + np.exp(-np.clip(_raw(self.model, numbers(features, "features")), -50, 50)))

    def score(self, features: Numbers) -> np.ndarray:
        """Low where the row should be deferred: minus the gain before calibration, which keeps the order, (n,)."""
        return -_raw(self.model, numbers(features, "features"))


def _raw(fitted: tuple[StandardScaler, Any], features: np.ndarray) -> np.ndarray:
    """Log-odds, or the difference."""
    scaler, model = fitted
    if isinstance(model, float):
        return np.full(len(features), model)
    x = scaler.transform(features)
    if isinstance(model, LogisticRegression):
        return model.decision_function(x)
    if isinstance(model, MLPClassifier):
        p = np.clip(model.predict_proba(x)[:, 1], 1e-9, 1 - 1e-9)
        return np.log(p) - np.log1p(-p)
    return model.predict(x)


class SmallNetwork(nn.Module):
    """A narrow network for any modality: x -> logits; `state` is what the last layer sees.

    Next-token: one block of causal attention. Texts: mean of embeddings. Others: one layer on the flattened numbers.
    """

    def __init__(self, spec: Spec, width: int) -> None:
        super().__init__()
        self.spec = spec
        if spec.modality == "text":
            self.embed = nn.Embedding(spec.vocabulary, width)
            self.attention = CausalSelfAttention(width, 1) if spec.task == "next-token" else None
            self.norm, inputs = nn.LayerNorm(width), width
        else:
            inputs = math.prod(spec.shape) - len(spec.cardinalities) + sum(spec.cardinalities)
        self.hidden, self.head = nn.Linear(inputs, width), nn.Linear(width, spec.outputs)
        self.last = nn.Identity()

    def state(self, x: Tensor) -> Tensor:
        """(n, width), or (n, length, width)."""
        spec = self.spec
        if spec.modality != "text":
            codes = [F.one_hot(x[:, spec.numeric + i].long(), k) for i, k in enumerate(spec.cardinalities)]
            flat = torch.cat([x[:, : spec.numeric], *codes], dim=1) if spec.modality == "table" else x.flatten(1)
            return torch.relu(self.hidden(flat.float()))
        h = self.embed(x)
        if self.attention is not None:
            h = h + self.attention(self.norm(h))
            return h + F.gelu(self.hidden(h))
        seen = (x != 0).unsqueeze(2)
        mean = (h * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        return torch.relu(self.hidden(self.norm(mean)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.state(x)))


def fit(model: nn.Module, part: Part, steps: int, batch: int, lr: float, generator: Generator) -> nn.Module:
    """Cross-entropy by AdamW, the rate along a half cosine; in place, left in evaluation mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    own, size = getattr(model, "objective", None), min(batch, len(part))
    begin_training(model)
    with in_single(model):
        for _ in range(steps):
            rows = torch.randperm(len(part), generator=generator)[:size]
            x, y = widened(part.x[rows]), part.y[rows]
            output = model(x.clone())  # which may begin in place; an objective sees the rows too
            loss = cross_entropy(output, y) if own is None else own(x, output, y, cross_entropy)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
    return model.eval()


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Mean over rows and positions."""
    return F.cross_entropy(output.flatten(0, -2), y.flatten())


def lm_cascade(
    model_factory: Callable[[], nn.Module],
    data: Data,
    generator: Generator,
    *,
    width: int = 16,
    steps: int = 600,
    batch: int = 64,
    lr: float = 2e-3,
    rule: str = "logistic",
    target: str = "better",
    levels: Sequence[float] = (0.0, 0.2, 0.5, 0.8, 1.0),
    rates: Sequence[float] = (0.2, 0.4, 0.6),
    budgets: Sequence[float] = (0.25, 0.5, 0.75),
    shortest: float = 0.25,
    depth: float = 0.5,
    rows: int = 2000,
) -> dict[str, float]:
    """Train a small and a large network and defer from one to the other by every rule.

    Half of the validation rows teach the learned rules; the other half fixes thresholds and chooses a quantile.

    Args:
        model_factory: gives the large network.
        data: classes, or next-token.
        generator: all that is drawn.
        width: of the small network, >= 1; attention needs an even one.
        steps, batch, lr: of both trainings.
        rule, target: see `DeferralRule`.
        levels: of Chow's quantile rules, in [0, 1].
        rates: shares of rows to defer, for which thresholds are fixed, in (0, 1).
        budgets: costs between the small model's and both models', as shares of the way, in [0, 1].
        shortest: next-token: shortest share of a window that is an output, in (0, 1]; 1 = whole windows.
        depth: share of the large network's operations after which embed-1+2 takes its state, in (0, 1).
        rows: most validation and test rows.

    Returns:
        "small", "large": mean quality; "random", "oracle": AUDC; by rule AUDC, "gap closed" (from random to the oracle),
        area over cost, quality at budgets, rate and quality at thresholds; ECE of the rule before and after calibration;
        "cost of small", "cost of middle": as shares of the large network's.

    Raises:
        ValueError: settings out of range, a task that is not named above, fewer than four validation rows.
    """
    _check(data, width, steps, batch, lr, levels, rates, budgets, shortest, depth, rows)
    data = coded(data)
    proto = DeferralRule(rule, target)  # names the bad setting before anything is trained
    valid, test = (_some(part, rows, generator) for part in (data.valid, data.test))
    with own_draws(generator):  # weights, and dropout, of networks that always draw after the training too
        small, large = SmallNetwork(data.spec, width), model_factory()
        with in_single(large):
            for model in (small, large):
                fit(model, data.train, steps, batch, lr, generator)
            few = widened(data.train.x[torch.arange(min(4, len(data.train)))])
            middle, price = middle_of(large, few, depth), flops(large, few)
            cheap, partial = flops(small, few) / price, middle.share
            first = _judged(small, large, middle, valid, shortest, generator)
            second = _judged(small, large, middle, test, shortest, generator)
    order = torch.randperm(len(valid), generator=generator).numpy()
    teach, hold = order[: len(order) // 2], order[len(order) // 2 :]
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    start = audc(deferral_curve(np.zeros(len(test)), second.small, second.large))
    top = audc(deferral_curve(oracle_score(second.small, second.large), second.small, second.large))
    result = {"small": float(second.small.mean()), "large": float(second.large.mean()), "random": start, "oracle": top}
    result |= {"cost of small": cheap, "cost of middle": partial}

    def tell(name: str, held: np.ndarray, score: np.ndarray, extra: float = 0.0) -> None:
        curve = deferral_curve(score, second.small, second.large)
        result.update(_of_curve(name, curve, cost_curve(curve, cheap, 1.0, extra), start, top, cheap, budgets))
        for rate in rates:
            found = at_threshold(threshold_for(held, rate), score, second.small, second.large)
            result[f"{name}: rate for {rate:g}"], result[f"{name}: quality for {rate:g}"] = found

    for name, score in (("sum", chow_sum), ("average", chow_average)):
        tell(name, score(first.tokens)[hold], score(second.tokens))
    areas, shown = _quantiles(first, second, hold, levels)
    chosen = max(areas, key=lambda level: areas[level])
    result |= {**shown, "chosen quantile": float(chosen)}
    tell("quantile", chow_quantile(first.tokens, chosen)[hold], chow_quantile(second.tokens, chosen))
    for name in ("learned", "embed-1", "embed-1+2"):
        x, z = first.features(name), second.features(name)
        mine = DeferralRule(proto.rule, proto.target).fit(x[teach], first.small[teach], first.large[teach], seed)
        tell(name, mine.score(x[hold]), mine.score(z), partial if name == "embed-1+2" else 0.0)
        if target == "better":
            result |= _calibration(name, mine, z, second)
    return result


def _of_curve(
    name: str, curve: Any, cost: Any, start: float, top: float, cheap: float, budgets: Sequence[float]
) -> dict[str, float]:
    """What one rule's curves over deferral and over cost tell."""
    area = audc(curve)
    told = {
        f"{name}: AUDC": area,
        f"{name}: gap closed": closed_share(area, start, top),
        f"{name}: area over cost": area_over_cost(cost),
    }
    for budget in budgets:
        told[f"{name}: quality at {budget:g} of the way in cost"] = quality_at(cost, cheap + budget)
    return told


def _calibration(name: str, rule: DeferralRule, x: np.ndarray, rows: Judged) -> dict[str, float]:
    """Calibration error of a rule's probability that the large model is better, before and after its calibration."""
    gained = (rows.large > rows.small).astype(np.float64)
    bins = min(10, len(gained))
    return {
        f"{name}: ECE before calibration": mean_gap(equal_mass(rule.raw_probability(x), gained, bins)),
        f"{name}: ECE": mean_gap(equal_mass(rule.gain(x), gained, bins)),
    }


def _quantiles(
    first: Judged, second: Judged, hold: np.ndarray, levels: Sequence[float]
) -> tuple[dict[float, float], dict[str, float]]:
    """AUDC of Chow's quantile rules by level: on the held validation rows, which choose, and on the test rows, named."""
    areas, shown = {}, {}
    for level in levels:
        held = chow_quantile(first.tokens, level)[hold]
        areas[level] = audc(deferral_curve(held, first.small[hold], first.large[hold]))
        curve = deferral_curve(chow_quantile(second.tokens, level), second.small, second.large)
        shown[f"quantile {level:g}: AUDC"] = audc(curve)
    return areas, shown


class Judged(NamedTuple):
    """Both models' outputs on some rows: the small one's tokens, qualities (n,), and states (n, ...)."""

    tokens: Tokens
    small: np.ndarray
    large: np.ndarray
    state: np.ndarray
    inside: np.ndarray

    def features(self, name: str) -> np.ndarray:
        """Of the learned rule of this name."""
        found = [quantile_features(self.tokens, LEVELS)]
        found += [self.state] if name != "learned" else []
        return np.concatenate([*found, self.inside] if name == "embed-1+2" else found, axis=1)


def _judged(
    small: SmallNetwork, large: nn.Module, middle: Middle, part: Part, shortest: float, generator: Generator
) -> Judged:
    longest = part.y.shape[1] if part.y.ndim > 1 else 1
    least = max(1, math.ceil(shortest * longest))
    lengths = torch.randint(least, longest + 1, (len(part),), generator=generator)
    mask = (torch.arange(longest) < lengths[:, None]).numpy()
    a = write(small, part, lengths, small.last)
    b = write(large, part, lengths, middle.module, middle.run, middle.rows)
    return Judged(Tokens(a.log_p * mask, mask), a.quality(mask), b.quality(mask), a.state, b.state)


def _some(part: Part, rows: int, generator: Generator) -> Part:
    order = torch.randperm(len(part), generator=generator)[:rows]
    return Part(part.x[order], part.y[order], part.rows[order])


def _check(
    data: Data, width: int, steps: int, batch: int, lr: float, levels: Sequence[float], rates: Sequence[float],
    budgets: Sequence[float], shortest: float, depth: float, rows: int,
) -> None:  # fmt: skip
    if data.spec.task not in CARD.tasks:
        raise ValueError(f"the task is {data.spec.task!r}; cascades need classes or tokens")
    if data.spec.task == "next-token" and width % 2:
        raise ValueError(f"width is {width}; attention needs an even one")
    if min(width, steps, batch) < 1 or not 0 < lr < 10:
        raise ValueError(f"width {width}, steps {steps}, batch {batch}, lr {lr}; need 1 or more, and lr in (0, 10)")
    if rows < 4 or len(data.valid) < 4 or len(data.test) < 1:
        raise ValueError(f"rows is {rows}, of {len(data.valid)} validation rows; need 4 or more of either")
    for name, values in (("levels", levels), ("budgets", budgets)):
        given = column(name, values)
        if not len(given) or not bool(((given >= 0) & (given <= 1)).all()):
            raise ValueError(f"{name} are {list(values)}; give one or more in [0, 1]")
    if any(not 0 < rate < 1 for rate in column("rates", rates)):
        raise ValueError(f"rates are {list(rates)}; use shares of rows in (0, 1)")
    if not 0 < shortest <= 1 or not 0 < depth < 1:
        raise ValueError(f"shortest is {shortest} and depth {depth}; use (0, 1] and (0, 1)")
