"""Gradient-boosted neural network: grow one wide hidden layer a few neurons at a time on the residuals.

Paper     Emami and Martinez-Munoz 2019, arXiv:1909.12098 (IEEE Access 2023), sections III and IV
Computes  F_0 = prior; h_t = a J-unit network fitted to the pseudo-residuals on a random half of the rows; rho_t = Newton
          step; F_t = F_{t-1} + eta rho_t h_t; all h_t side by side are the hidden layer of one ordinary network
Shapes    X (n, d), y (n,) or (n, outputs) -> raw scores (n, outputs), (n, 1) for two classes
Departs   1. a Newton step whose denominator vanishes (saturated classes) is 0, where the published code divides by zero
          2. the assembled network gives two logits (-F, F) for two classes, equal to a sigmoid of the paper's 2 F
          3. subsamples are drawn from the technique's own stream; the published code draws them from numpy's global one
          4. total is rounded down to a multiple of units, as in the published code
          5. a step that would raise the training loss is halved until it does not: a stage fitted to some rows only may be large
             on nearly saturated ones, which weigh nothing in the Newton step; guard=False takes it as it is, as published
          6. on the bench a stage has 10 L-BFGS iterations, not 200: they fit the rows too closely, and from about 20 on the last
             bit of X, hence the processor, decides what later stages become
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.utils.random import sample_without_replacement
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.networks.watch import pass_through
from probatum.numerics.tensors.draws import random_state_kept
from probatum.spec import Budget, Data, Part, Spec

CARD = Card(
    paper="arXiv:1909.12098",
    title="Sequential Training of Neural Networks with Gradient Boosting",
    entry="fit",
    number=64,
    tags=("tables", "boosting", "training"),
    modalities=("table", "image", "series"),
    tiny={"total": 6, "units": 2, "max_iter": 20},
    tune={
        "units": [1, 2, 5],
        "eta": (0.1, 1.0, "log"),
        "subsample": (0.3, 1.0),
        "max_iter": [5, 10, 20],
        "alpha": (1e-4, 1.0, "log"),
    },
    claims=("matches-adam-and-prunes",),
)

Array = NDArray[np.float64]
TASKS = ("classes", "reals")
HALVINGS = 60
"""After as many a step that still raises the loss is none at all."""
ACTIVATIONS = {"logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def prior(y: Array, kind: str) -> Array:
    """F_0 (outputs,): the mean for reals, half the log-odds for two classes in {-1, 1}, zeros for one-hot classes."""
    mean = y.mean(axis=0)
    if kind == "reals":
        return mean
    if kind == "binary":
        return 0.5 * np.log((1 + mean) / (1 - mean))
    return np.zeros_like(mean)


def residuals(y: Array, raw: Array, kind: str) -> Array:
    """Pseudo-residuals (n, outputs), the loss's negative gradient: y - F, 2 y / (1 + exp(2 y F)), or y - softmax(F)."""
    if kind == "reals":
        return y - raw
    if kind == "binary":
        return 2 * y * expit(-2 * y * raw)
    return y - softmax(raw, axis=1)


def newton_step(y: Array, residual: Array, h: Array, kind: str) -> float:
    """Newton's step length along h (n, outputs); 1 for reals, 0 where the curvature along h vanishes."""
    if kind == "reals":
        return 1.0
    if kind == "binary":
        curvature = residual * (2 * y - residual)
    else:
        p = y - residual
        curvature = p * (1 - p)
    denominator = float((h * h * curvature).sum())
    numerator = float((h * residual).sum())
    if denominator <= np.finfo(np.float64).tiny or not np.isfinite(numerator / denominator):
        return 0.0
    return numerator / denominator


def held_back(y: Array, raw: Array, h: Array, step: float, kind: str) -> float:
    """The first of step, step / 2, step / 4, ... along h (n, outputs) that does not raise the mean training loss; 0 if none."""
    before = _loss(y, raw, kind)
    for halving in range(HALVINGS):
        shorter = step * 0.5**halving
        if _loss(y, raw + shorter * h, kind) <= before:
            return shorter
    return 0.0


class GBNN:
    """A wide one-hidden-layer network grown by gradient boosting; usable on plain arrays of columns near unit scale.

    As other networks, it learns nothing from columns that saturate its units: standardise X first.

    Args:
        task: classes or reals.
        total: hidden units in the end.
        units: hidden units a stage (J).
        eta: shrinkage in (0, 1].
        subsample: share of rows each stage sees, in (0, 1].
        max_iter: L-BFGS iterations a stage.
        activation: logistic, tanh or relu.
        alpha: L2 penalty of a stage's weights, at least 0.
        seed: of the stages' starts and subsamples.
        guard: whether a step that would raise the training loss is halved until it does not.

    Raises:
        ValueError: a setting outside its range, `units` above `total`, one class only, or X and y that do not fit.

    Example:
        >>> X = np.linspace(-3, 3, 80)[:, None]
        >>> model = GBNN("reals", total=20, units=2, seed=0).fit(X, np.sin(X[:, 0]))
        >>> bool(np.abs(model.raw(X)[:, 0] - np.sin(X[:, 0])).mean() < 0.05)
        True
        >>> model.assemble()  # an ordinary network with the same outputs
        Sequential(
          (0): Linear(in_features=1, out_features=20, bias=True)
          (1): Sigmoid()
          (2): Linear(in_features=20, out_features=1, bias=True)
        )
    """

    def __init__(
        self,
        task: str = "classes",
        *,
        total: int = 200,
        units: int = 1,
        eta: float = 1.0,
        subsample: float = 0.5,
        max_iter: int = 200,
        activation: str = "logistic",
        alpha: float = 1e-4,
        seed: int = 0,
        guard: bool = True,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; use classes or reals")
        if not 1 <= units <= total:
            raise ValueError(f"units is {units} and total {total}; need 1 <= units <= total")
        for name, share in (("eta", eta), ("subsample", subsample)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it must lie in (0, 1]")
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}; it must be at least 0")
        if max_iter < 1:
            raise ValueError(f"max_iter is {max_iter}; it must be at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; use one of {', '.join(ACTIVATIONS)}")
        self.task, self.total, self.units = task, total, units
        self.eta, self.subsample, self.max_iter = eta, subsample, max_iter
        self.activation, self.alpha, self.seed, self.guard = activation, alpha, seed, guard
        self.kind = "reals"
        self.stages: list[MLPRegressor] = []
        self.steps: list[float] = []  # eta rho_t
        self.losses: list[float] = []

    def fit(self, X: ArrayLike, y: ArrayLike, classes: int | None = None) -> GBNN:
        """Grow the network on X (n, d) and y: (n,) codes 0 .. classes-1, or (n,) or (n, outputs) reals; returns self."""
        x = np.asarray(X, dtype=np.float64)
        if x.ndim != 2 or len(x) != len(np.asarray(y)) or len(x) < 2:
            raise ValueError(f"X has shape {x.shape} and y {np.shape(y)}; give (n, d) and n targets, n at least 2")
        target = self._encode(np.asarray(y), classes)
        random = np.random.RandomState(self.seed)
        self.first = prior(target, self.kind)
        self.stages, self.steps, self.losses = [], [], []
        raw = np.broadcast_to(self.first, target.shape).copy()
        for _ in range(self.total // self.units):
            residual = residuals(target, raw, self.kind)
            stage = self._stage(x, residual, random)
            h = _told(stage, x, target.shape)
            step = self.eta * newton_step(target, residual, h, self.kind)
            if self.guard:
                step = held_back(target, raw, h, step, self.kind)
            raw += step * h
            self.stages.append(stage)
            self.steps.append(step)
            self.losses.append(_loss(target, raw, self.kind))
        return self

    def staged(self, X: ArrayLike) -> Iterator[Array]:
        """Raw scores (n, outputs) after 0, 1, 2, ... stages."""
        x = np.asarray(X, dtype=np.float64)
        raw = np.broadcast_to(self._fitted(), (len(x), len(self.first))).copy()
        yield raw.copy()
        for stage, step in zip(self.stages, self.steps, strict=True):
            raw += step * _told(stage, x, raw.shape)
            yield raw.copy()

    def raw(self, X: ArrayLike) -> Array:
        """The sum of all stages (n, outputs)."""
        *_, last = self.staged(X)
        return last

    def predict(self, X: ArrayLike) -> Array:
        """Probabilities (n, classes), or values (n, outputs)."""
        return self.from_raw(self.raw(X))

    def from_raw(self, raw: Array) -> Array:
        """Probabilities or values from raw scores."""
        if self.kind == "reals":
            return raw
        if self.kind == "binary":
            return np.hstack([expit(-2 * raw), expit(2 * raw)])
        return softmax(raw, axis=1)

    def assemble(self, stages: int | None = None) -> nn.Sequential:
        """One ordinary float64 network: values, or logits (n, classes).

        Args:
            stages: how many of the first stages to keep; fewer units answer sooner; None = all.

        Raises:
            ValueError: `stages` outside 1 .. number of stages.
        """
        first, kept = self._fitted(), len(self.stages) if stages is None else stages
        if not 1 <= kept <= len(self.stages):
            raise ValueError(f"stages is {stages}; it must lie between 1 and {len(self.stages)}")
        pairs = list(zip(self.stages, self.steps, strict=True))[:kept]
        hidden = np.hstack([stage.coefs_[0] for stage, _ in pairs])  # (d, kept J)
        hidden_bias = np.hstack([stage.intercepts_[0] for stage, _ in pairs])
        out = np.vstack([step * stage.coefs_[1] for stage, step in pairs])  # (kept J, outputs)
        out_bias = first + sum(step * stage.intercepts_[1] for stage, step in pairs)
        if self.kind == "binary":
            out, out_bias = np.hstack([-out, out]), np.hstack([-out_bias, out_bias])
        net = nn.Sequential(nn.Linear(*hidden.shape), ACTIVATIONS[self.activation](), nn.Linear(*out.shape)).double()
        with torch.no_grad():
            for layer, weight, bias in ((net[0], hidden, hidden_bias), (net[2], out, out_bias)):
                layer.weight.copy_(torch.from_numpy(weight.T.copy()))
                layer.bias.copy_(torch.from_numpy(bias))
        return net.eval()

    def _encode(self, y: NDArray[np.generic], classes: int | None) -> Array:
        if self.task == "reals":
            self.kind = "reals"
            return y.astype(np.float64).reshape(len(y), -1)
        if y.ndim != 1 or y.dtype.kind not in "biuf" or not np.array_equal(y, np.round(y)):
            raise ValueError(f"y has dtype {y.dtype} and shape {y.shape}; classes are whole codes 0, 1, ... (n,)")
        codes = y.astype(np.int64)
        seen = np.unique(codes)
        if len(seen) < 2:
            raise ValueError(f"y holds the single class {seen.tolist()}; boosting needs at least two")
        count = int(seen.max()) + 1 if classes is None else classes
        if seen.min() < 0 or seen.max() >= count:
            raise ValueError(f"y holds codes {seen.min()} to {seen.max()}; they must lie in 0 .. {count - 1}")
        if count == 2:
            self.kind = "binary"
            return (2.0 * codes - 1)[:, None]
        self.kind = "multiclass"
        return np.eye(count)[codes]

    def _stage(self, x: Array, residual: Array, random: np.random.RandomState) -> MLPRegressor:
        if self.subsample < 1:
            size = max(2, int(self.subsample * len(x)))
            rows = sample_without_replacement(len(x), size, random_state=random)
            x, residual = x[rows], residual[rows]
        stage = MLPRegressor(
            hidden_layer_sizes=(self.units,),
            activation=self.activation,
            solver="lbfgs",
            alpha=self.alpha,
            max_iter=self.max_iter,
            tol=0.0,
            random_state=random,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stages are meant to be weak
            stage.fit(x, residual[:, 0] if residual.shape[1] == 1 else residual)
        return stage

    def _fitted(self) -> Array:
        if not self.stages:
            raise ValueError("this GBNN has no stages yet; call fit(X, y) first")
        return self.first


def _told(stage: MLPRegressor, x: Array, shape: tuple[int, ...]) -> Array:
    """What a stage says of rows, of which there may be none."""
    return stage.predict(x).reshape(shape) if len(x) else np.zeros(shape)


def last_hidden(network: nn.Module, layer: nn.Module, x: Tensor) -> Array:
    """What `layer` of a trained network receives for x: features (n, d) to boost on (the paper's deep variant).

    The network is run in evaluation mode and given back with every module in the mode it had, without hooks.
    """
    with evaluating(network), random_state_kept(), torch.no_grad():
        _, caught = pass_through(network, x, layer, inputs=True)
    if not caught:
        raise ValueError(
            f"{type(layer).__name__} took no part in {type(network).__name__}'s forward; name one that does"
        )
    return caught[0].flatten(1).double().cpu().numpy()


def features_of(x: Tensor, spec: Spec) -> Array:
    """Flat features (n, d) of a part: numbers and one-hot categories of a table, else all values of an example."""
    flat = x.flatten(1).double()
    if spec.modality == "table" and spec.cardinalities:
        codes = flat[:, spec.numeric :].long()
        columns = [torch.nn.functional.one_hot(codes[:, i], size) for i, size in enumerate(spec.cardinalities)]
        flat = torch.cat([flat[:, : spec.numeric], *[column.double() for column in columns]], dim=1)
    return flat.numpy()


class Boosted:
    """The fitted learner: `predict(part)` gives probabilities (n, classes) or values (n, outputs)."""

    def __init__(self, model: GBNN, spec: Spec) -> None:
        self.model, self.spec = model, spec

    def predict(self, part: Part) -> Tensor:
        """Probabilities or values of a part's rows, float32."""
        return torch.from_numpy(self.model.predict(features_of(part.x, self.spec))).float()


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    total: int = 200,
    units: int = 1,
    eta: float = 1.0,
    subsample: float = 0.5,
    max_iter: int = 10,
    alpha: float = 1e-4,
    guard: bool = True,
) -> Boosted:
    """Grow a `GBNN` on the training part; settings as there, with fewer iterations a stage (departure 6). The budget of gradient steps does not apply to L-BFGS."""
    del budget
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    task = data.spec.task
    settings = {"total": total, "units": units, "max_iter": max_iter, "seed": seed}
    model = GBNN(task, eta=eta, subsample=subsample, alpha=alpha, guard=guard, **settings)
    classes = data.spec.outputs if task == "classes" else None
    return Boosted(model.fit(features_of(data.train.x, data.spec), data.train.y.numpy(), classes), data.spec)


def _loss(y: Array, raw: Array, kind: str) -> float:
    """Mean training loss: squared error, log(1 + exp(-2 y F)), or cross-entropy."""
    if kind == "reals":
        return float(((y - raw) ** 2).mean())
    if kind == "binary":
        return float(np.logaddexp(0, -2 * y * raw).mean())
    return float((np.logaddexp.reduce(raw, axis=1) - (y * raw).sum(axis=1)).mean())
