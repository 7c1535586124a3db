"""Counterfactual maximum likelihood: fit p(y | do(t), x) where an observed x decided which treatment t each row got.

Paper     Wang, Chen, Saxon and Wang 2021, "Counterfactual Maximum Likelihood Estimation for Training Deep Networks",
          NeurIPS 2021, arXiv:2106.03831
Computes  implicit: NLL + a sum_{t < t'} IPM(features of rows with t, features of rows with t'), IPM = linear or unbiased RBF
          MMD, or entropic transport; explicit: NLL + b E[-log c(t' | x, y')], t' drawn among the other treatments, y' from
          p(. | x, t') by the straight-through Gumbel-softmax, c fitted on factual rows beforehand and frozen
Shapes    features (n, d), treatment (n,) int64 -> (); logits (n, classes), x (n, ...), treatment -> ()
Departs   1. a loss sees no inputs, so this is a method: `treatment` names the input column that is t, or gives its position
          2. networks here take t as one of their inputs. The features that are balanced are those before the last layer in a
             further pass in which every row has one same treatment, drawn for each batch: they hang on x alone
          3. c is a network of one hidden layer on x without t and the one-hot y; it is fitted by AdamW on training rows
          4. both terms are ramped in linearly after the warm-up; outcomes are classes, not sequences
          5. the further passes are in training mode, but what they would do to running statistics is undone: those are of
             factual rows alone, as the rows that are foretold later
          6. transport takes squared distances and holds the plan fixed in the gradient; its entropy is weighed by the mean cost
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.watch import pass_through
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import IGNORED
from probatum.spec import Spec
from probatum.techniques.method.cmle.integral_metrics import linear_mmd, rbf_mmd, transport_cost

CARD = Card(
    paper="arXiv:2106.03831",
    title="Counterfactual Maximum Likelihood Estimation for Training Deep Networks",
    entry="CMLE",
    number=8,
    tags=("causality", "confounding", "shift", "robustness"),
    modalities=("table",),
    tasks=("classes",),
    alone="its balance term takes a pass of its own, whose features a hook catches",
    neutral={"treatment": -1, "balance": 0.0, "counterfactual": 0.0},
    tiny={"treatment": -1, "balance": 0.1, "counterfactual": 0.1, "judge_steps": 4},
    tune={"balance": (0.01, 3.0, "log"), "metric": ["mmd-linear", "mmd-rbf", "transport"]},
    claims=("interventional-likelihood",),
)

METRICS = {"mmd-linear": linear_mmd, "mmd-rbf": rbf_mmd, "transport": transport_cost}
MOST = 8
"""Treatments that a column may hold."""


def treatments_of(treatment: Tensor, count: int | None = None) -> list[int]:
    """The treatments that occur in (n,) codes.

    Args:
        treatment: int64 codes.
        count: how many there ought to be, codes 0 .. count-1; None = those that occur.

    Raises:
        ValueError: fewer than two, or one of `count` that does not occur.
    """
    found = treatment.unique().tolist()
    if len(found) < 2:
        raise ValueError(f"the rows have {len(found)} treatment; rows with two or more are needed")
    if count is not None and found != list(range(count)):
        absent = sorted(set(range(count)) - set(found))
        raise ValueError(f"treatments {absent} of {count} are absent from the rows; bring rows, or leave them out")
    return [int(value) for value in found]


@computed_wide
def imbalance(features: Tensor, treatment: Tensor, metric: str = "mmd-rbf") -> Tensor:
    """Sum over pairs of treatments of the distance between their rows' features; pairs with a group under two rows are skipped.

    Args:
        features: (n, d).
        treatment: (n,) codes.
        metric: mmd-linear, mmd-rbf or transport.

    Returns:
        (), 0 (with a gradient of 0) where no pair is left.

    Raises:
        ValueError: another metric, or shapes that do not go together.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; use one of {', '.join(METRICS)}")
    if features.ndim != 2 or treatment.shape not in ((len(features),), (len(features), 1)):
        raise ValueError(
            f"features are {tuple(features.shape)}, treatments {tuple(treatment.shape)}; give (n, d) and (n,)"
        )
    treatment = treatment.reshape(-1)
    groups = [features[treatment == t] for t in treatment.unique().tolist()]
    total = 0.0 * features.sum()
    for a, b in combinations([group for group in groups if len(group) >= 2], 2):
        total = total + METRICS[metric](a, b)
    return total


def other_treatments(treatment: Tensor, count: int, generator: Generator) -> Tensor:
    """For each row a treatment 0 .. count-1 that is not its own, each as likely."""
    shift = torch.randint(1, count, treatment.shape, generator=generator).to(treatment.device)
    return (treatment + shift) % count


@computed_wide
def straight_through(logits: Tensor, temperature: float, generator: Generator) -> Tensor:
    """(n, classes) one-hot draws from softmax(logits), with the gradient of the Gumbel-softmax at this temperature."""
    uniform = torch.rand(logits.shape, generator=generator).to(logits).clamp(1e-12, 1 - 1e-7)
    soft = ((logits - torch.log(-torch.log(uniform))) / temperature).softmax(dim=1)
    hard = F.one_hot(soft.argmax(dim=1), logits.shape[1]).to(logits)
    return hard + (soft - soft.detach())


def counterfactual_term(
    logits: Tensor, x: Tensor, treatment: Tensor, judge: nn.Module, temperature: float, generator: Generator
) -> Tensor:
    """E[-log c(t' | x, y')] over rows; the judge must be frozen and in evaluation mode.

    Args:
        logits: (n, classes) of p(y | x, t').
        x: (n, ...) without t, what the judge takes beside y.
        treatment: (n,) t'.
        judge: (x, one-hot y) -> (n, treatments).
        temperature: of the Gumbel-softmax, > 0.
        generator: draws y'.

    Raises:
        ValueError: a judge in training mode or with parameters that require gradients.
    """
    if judge.training or any(p.requires_grad for p in judge.parameters()):
        raise ValueError("the judge is not frozen; call judge.eval().requires_grad_(False)")
    return F.cross_entropy(judge(x, straight_through(logits, temperature, generator)), treatment)


class Judge(nn.Module):
    """c(t | x, y): one hidden layer on flattened numbers and one-hot codes of x without t, and y.

    Args:
        spec: of the data, t's column among them.
        column: of t.
        treatments: how many.
        width: of the hidden layer.
    """

    def __init__(self, spec: Spec, column: int, treatments: int, width: int = 64) -> None:
        super().__init__()
        self.numbers = [j for j in range(spec.numeric) if j != column]
        self.codes = [
            (spec.numeric + j, size) for j, size in enumerate(spec.cardinalities) if spec.numeric + j != column
        ]
        inputs = len(self.numbers) + sum(size for _, size in self.codes) + spec.outputs
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, treatments))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pieces = [x[:, self.numbers], y]
        pieces += [F.one_hot(x[:, j].long().clamp(0, size - 1), size).to(x) for j, size in self.codes]
        return self.layers(torch.cat(pieces, dim=1))


class _OnJoined(nn.Module):
    """The judge for a plain training: x and one-hot y in one tensor."""

    def __init__(self, judge: Judge, width: int) -> None:
        super().__init__()
        self.judge, self.width = judge, width

    def forward(self, joined: Tensor) -> Tensor:
        return self.judge(joined[:, : self.width], joined[:, self.width :])


class Ramp:
    """0 up to `warmup` of the steps, then linearly up to 1 at `full`; shares of all steps, 0 <= warmup <= full <= 1."""

    def __init__(self, warmup: float, full: float) -> None:
        if not 0 <= warmup <= full <= 1:
            raise ValueError(f"warmup is {warmup} and full {full}; 0 <= warmup <= full <= 1")
        self.warmup, self.full = warmup, full

    def __call__(self, share: float) -> float:
        if share < self.warmup:
            return 0.0
        return 1.0 if share >= self.full else (share - self.warmup) / (self.full - self.warmup)


class CMLE:
    """The two terms on the bench, as a method; in plain code use `imbalance` and `counterfactual_term`.

    Args:
        treatment: name or position of the input column that is t: a category (code 0, missing, is left out), or a number
            with at most 8 values.
        balance: a, weight of the implicit term, >= 0.
        counterfactual: b, weight of the explicit term, >= 0; both 0 = the baseline bit for bit.
        metric: mmd-linear, mmd-rbf or transport.
        warmup, full: shares of the steps between which the weights rise from 0.
        hot, cold: temperature of the Gumbel-softmax at the first and the last step, > 0, falling geometrically.
        judge_steps: updates of c.
        judge_rate: its learning rate.
        generator: for treatments, outcomes and c.

    Raises:
        ValueError: a setting out of range; in training a column without two treatments, or one that only validation rows have.

    Example:
        >>> features, t = torch.tensor([[0.0], [2.0], [1.0], [1.0], [9.0]]), torch.tensor([0, 0, 1, 1, 2])
        >>> float(imbalance(features, t, "mmd-linear"))  # treatment 2 has one row and is skipped
        0.0
    """

    reads = ("batch", "output", "model")
    writes = ("loss",)

    def __init__(
        self,
        treatment: str | int,
        balance: float = 0.3,
        counterfactual: float = 0.0,
        metric: str = "mmd-rbf",
        warmup: float = 0.1,
        full: float = 0.3,
        hot: float = 1.0,
        cold: float = 0.3,
        judge_steps: int = 300,
        judge_rate: float = 2e-3,
        generator: Generator | None = None,
    ) -> None:
        if not balance >= 0 or not counterfactual >= 0 or math.inf in (balance, counterfactual):
            raise ValueError(f"balance is {balance} and counterfactual {counterfactual}; both must be at least 0")
        if metric not in METRICS:
            raise ValueError(f"metric is {metric!r}; use one of {', '.join(METRICS)}")
        if not hot > 0 or not cold > 0:
            raise ValueError(f"hot is {hot} and cold {cold}; temperatures are above 0")
        if judge_steps < 1 or not judge_rate > 0:
            raise ValueError(f"judge_steps is {judge_steps} and judge_rate {judge_rate}; at least 1, and above 0")
        self.treatment, self.balance, self.counterfactual, self.metric = treatment, balance, counterfactual, metric
        self.ramp, self.hot, self.cold = Ramp(warmup, full), hot, cold
        self.judge_steps, self.judge_rate = judge_steps, judge_rate
        self.generator = generator or torch.Generator().manual_seed(0)
        self.column = -1
        self.levels = torch.empty(0)
        self.judge: Judge | None = None
        self._head: tuple[nn.Module, nn.Module] | None = None
        self.told: dict[str, float] = {}

    @property
    def active(self) -> bool:
        """Whether any term has a weight."""
        return self.balance > 0 or self.counterfactual > 0

    def prepare(self, run: Any) -> None:
        """Find the treatments and, for the explicit term, fit the judge on factual training rows and freeze it."""
        if not self.active:
            return
        self.column = column_of(run.spec, self.treatment)
        self.levels = levels_of(run.train.x[:, self.column], run.spec, self.column)
        held = levels_of(run.valid.x[:, self.column], run.spec, self.column, least=1)
        absent = [value for value in held.tolist() if value not in self.levels.tolist()]
        if absent:
            raise ValueError(f"treatment {absent[0]:g} of validation rows is absent from the training rows; bring some")
        self.told["treatments"] = float(len(self.levels))
        if self.counterfactual > 0:
            self._fit_judge(run)

    def loss(self, run: Any, batch: Any, output: Tensor, loss: Tensor) -> Tensor:
        """Add the terms, by the ramp."""
        share = run.step / max(1, run.budget.steps)
        weight = self.ramp(share) if self.active else 0.0
        if weight == 0:
            return loss
        codes = self.codes(batch.x)
        known = codes >= 0
        if self.balance > 0:
            t = int(torch.randint(len(self.levels), (1,), generator=self.generator))
            with _statistics_kept(run.model):
                features = self._features(run.model, self.given(batch.x, torch.full_like(codes, t)))
            term = imbalance(features[known], codes[known], self.metric)
            run.extra_passes += len(batch.x)
            self.told["imbalance of the last batch"] = float(term.detach())
            loss = loss + weight * self.balance * term
        if self.counterfactual > 0 and self.judge is not None and bool(known.any()):
            x = batch.x[known]
            other = other_treatments(codes[known], len(self.levels), self.generator)
            temperature = self.hot * (self.cold / self.hot) ** share
            with _statistics_kept(run.model):
                output = run.model(self.given(x, other))
            term = counterfactual_term(output, x, other, self.judge, temperature, self.generator)
            run.extra_passes += len(x)
            self.told["counterfactual term of the last batch"] = float(term.detach())
            loss = loss + weight * self.counterfactual * term
        return loss

    def codes(self, x: Tensor) -> Tensor:
        """(n,) the treatment of each row, 0 .. treatments-1; -1 for none of them."""
        equal = x[:, self.column, None] == self.levels.to(x)[None]
        return torch.where(equal.any(dim=1), equal.long().argmax(dim=1), -1)

    def given(self, x: Tensor, codes: Tensor) -> Tensor:
        """The rows as they would be with these treatments."""
        other = x.clone()
        other[:, self.column] = self.levels.to(x)[codes]
        return other

    def report(self) -> dict[str, float]:
        """Treatments, and the terms at the last batch."""
        return dict(self.told)

    def state_dict(self) -> dict[str, Any]:
        """The judge's weights and the stream's state."""
        judge = None if self.judge is None else self.judge.state_dict()
        return {"judge": judge, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, after `prepare`."""
        if state["judge"] is not None:
            if self.judge is None:
                raise ValueError("there is no judge to load into; call prepare(run) first")
            self.judge.load_state_dict(state["judge"])
        self.generator.set_state(state["generator"])

    def _fit_judge(self, run: Any) -> None:
        x, y, codes = run.train.x, run.train.y, self.codes(run.train.x)
        known = (codes >= 0) & (y != IGNORED)
        with own_draws(self.generator):
            judge = Judge(run.spec, self.column, len(self.levels)).to(x.device)
        joined = torch.cat([x[known], F.one_hot(y[known], run.spec.outputs).to(x)], dim=1)
        size = run.budget.batch_size
        fit_network(
            _OnJoined(judge, x.shape[1]), joined, codes[known], self.judge_steps, size, self.judge_rate, self.generator
        )
        self.judge = judge.eval().requires_grad_(False)
        run.extra_passes += self.judge_steps * size
        with torch.no_grad():
            right = judge(joined[:, : x.shape[1]], joined[:, x.shape[1] :]).argmax(dim=1).eq(codes[known])
        self.told["judge's accuracy on factual rows"] = float(right.double().mean())

    def _features(self, model: nn.Module, x: Tensor) -> Tensor:
        """What the last linear layer sees, with its gradient."""
        if self._head is None or self._head[0] is not model:
            self._head = (model, head_of(model, x))
        _, seen = pass_through(model, x, self._head[1], inputs=True)
        return seen[-1].flatten(1)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """A block in which passes write to copies of the network's buffers, which are dropped after it."""
    held = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        for module, own in held:
            module._buffers.update({name: None if value is None else value.clone() for name, value in own.items()})
        yield
    finally:
        for module, own in held:
            module._buffers.clear()
            module._buffers.update(own)


def column_of(spec: Spec, treatment: str | int) -> int:
    """Position of the treatment's column.

    Raises:
        ValueError: an unknown name or a position outside the columns.
    """
    width = spec.shape[0]
    if isinstance(treatment, str):
        if treatment not in spec.features:
            raise ValueError(
                f"no column {treatment!r}; there are {', '.join(spec.features) or f'{width} without names'}"
            )
        return spec.features.index(treatment)
    if not -width <= treatment < width:
        raise ValueError(f"treatment is column {treatment}; there are columns 0 to {width - 1}")
    return treatment % width


def levels_of(values: Tensor, spec: Spec, column: int, least: int = 2) -> Tensor:
    """The values of a treatment, ascending; code 0 of a category (missing) is none.

    Raises:
        ValueError: fewer than `least`, or more than 8.
    """
    found = values[~values.isnan()].unique()
    if column >= spec.numeric:
        found = found[found != 0]
    name = spec.features[column] if len(spec.features) == spec.shape[0] else f"column {column}"
    if not least <= len(found) <= MOST:
        raise ValueError(
            f"treatment {name} has {len(found)} values in these rows; a treatment has {least} to {MOST}: name another column or bin it"
        )
    return found


def balanced_nll(
    encoder: nn.Module, head: nn.Module, x: Tensor, treatment: Tensor, y: Tensor, weight: float, metric: str = "mmd-rbf",
    among: Sequence[int] | None = None, groups: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The implicit loss for networks in the paper's form, p(y | Phi(x), t): NLL + weight times the imbalance of Phi(x).

    Args:
        encoder: x -> Phi(x) (n, d).
        head: (n, d + treatments), features and the one-hot treatment -> logits (n, classes).
        x: rows without the treatment.
        treatment: (n,) codes.
        y: (n,) classes.
        weight: a, >= 0.
        metric: see `imbalance`.
        among: the treatments there are, as codes; the head is given the place of a row's among them. None = 0 .. the largest
            of these rows.
        groups: (n,) what is balanced instead of the treatments, for controls.

    Raises:
        ValueError: a treatment that is not among them.
    """
    features = encoder(x.clone())  # which may begin by changing them in place
    known = torch.arange(int(treatment.max()) + 1) if among is None else torch.tensor(list(among))
    equal = treatment.reshape(-1, 1) == known.to(treatment.device)[None]
    if not bool(equal.any(dim=1).all()):
        first = int(treatment.reshape(-1)[~equal.any(dim=1)][0])
        raise ValueError(f"treatment {first} is not among {known.tolist()}; name all treatments that rows have")
    output = head(torch.cat([features, equal.to(features)], dim=1))
    loss = F.cross_entropy(output, y)
    return loss if weight == 0 else loss + weight * imbalance(features, treatment if groups is None else groups, metric)
