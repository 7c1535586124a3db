"""Neural collapse under a long tail: tight classes around learned means that stand as far apart as they can.

Paper     Liu, Zhang, Hu, Cao, Pan and Yao 2023, "Inducing Neural Collapse in Deep Long-tailed Learning", AISTATS,
          arXiv:2302.12453
Computes  NC1 = sum over classes of the batch of mean_i |h_i - M_c|^2 / C; NC2 = -acos(largest cosine of two centred means)
          ("all"), or minus the mean over classes of the angle to the nearest other mean ("each"); L + l1 NC1 + l2 NC2
Shapes    features h (n, d), y (n,), means M (C, d) -> scalars
Departs   1. slot method: a loss alone does not see the features, which are what the last linear layer takes in
          2. the means have SGD of their own (rate 0.5, momentum 0.9), whose rate falls along a half cosine; classifiers are not
             trained again after it
          3. deferred re-weighting (`drw`) is by effective numbers of rows (Cui et al. 2019), and only with plain cross-entropy:
             the weights go into the run's loss, so that everything that is made of it (smoothing, a model's own objective,
             what other methods ask it for) is weighed
          4. rows without a label (-100) have no part in NC1
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.watch import HeadInputs
from probatum.numerics.tensors.precision import computed_wide, widened
from probatum.numerics.tensors.targets import IGNORED, class_codes

CARD = Card(
    paper="AISTATS 2023",
    title="Inducing Neural Collapse in Deep Long-tailed Learning",
    entry="NeuralCollapse",
    number=194,
    tags=("imbalance", "long-tail", "training"),
    tasks=("classes",),
    alone="its means are weights of its own, and its features come from a forward hook",
    neutral={"within": 0.0, "between": 0.0},
    tiny={"rate": 0.05},
    tune={"within": (0.001, 0.1, "log"), "between": (0.01, 1.0, "log"), "variant": ["all", "each"]},
    claims=("balanced-geometry",),
)

VARIANTS = ("all", "each")
EDGE = 0.99999
"""Cosines are kept this far from 1, where the angle's slope is infinite."""


class Geometry(NamedTuple):
    """Collapse of features: trace(Sw Sb^+) / C, standard deviation of the means' cosines, mean distance of unit classifier
    rows to unit means, and the smallest angle between two centred means in radians."""

    within: float
    spread: float
    duality: float
    angle: float


@computed_wide
def within_class(features: Tensor, y: Tensor, means: Tensor) -> Tensor:
    """NC1: the classes' mean squared distances to their learned means, summed over those present, over C (equation 6).

    Args:
        features: (n, d).
        y: (n,) codes, -100 for rows that are left out.
        means: (C, d).
    """
    y = class_codes(y, len(features), len(means), IGNORED)
    features, y = features[y != IGNORED], y[y != IGNORED]
    square = (features - means[y]).square().sum(dim=1)
    counts = torch.bincount(y, minlength=len(means)).clamp(min=1).to(square.dtype)
    return (square / counts[y]).sum() / len(means)


def centred_cosines(means: Tensor) -> Tensor:
    """Cosines (C, C) of the means less their mean."""
    unit = F.normalize(means - means.mean(dim=0), dim=1)
    return unit @ unit.T


@computed_wide
def between_class(means: Tensor, variant: str = "all") -> Tensor:
    """NC2: minus the smallest angle between two centred means (``"all"``), or minus the mean over classes of the angle to
    the nearest other one (``"each"``) (equations 7 and 8). At a simplex it is -acos(-1 / (C - 1)).

    Raises:
        ValueError: fewer than 2 classes, or an unknown variant.
    """
    if len(means) < 2:
        raise ValueError(f"there is {len(means)} class; an angle needs 2 or more")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; use one of {', '.join(VARIANTS)}")
    diagonal = torch.eye(len(means), dtype=torch.bool, device=means.device)
    others = centred_cosines(means).masked_fill(diagonal, -1.0).amax(dim=1)
    if variant == "all":
        others = others.amax()
    return -others.clamp(-EDGE, EDGE).acos().mean()


def geometry(features: Tensor, y: Tensor, weight: Tensor) -> Geometry:
    """How far features (n, d) with labels y (n,) and a classifier's weight (C, d) have collapsed; classes without rows are left
    out. Papyan, Han and Donoho 2020."""
    present = y.unique()
    features, weight = features.double(), weight.double()
    means = torch.stack([features[y == c].mean(dim=0) for c in present])
    own = torch.searchsorted(present, y)
    centred = means - means.mean(dim=0)
    left = features - means[own]
    sw, sb = left.T @ left / len(y), centred.T @ centred / len(present)
    cosines = centred_cosines(means)
    pairs = cosines[~torch.eye(len(present), dtype=torch.bool)]
    duality = (F.normalize(weight[present] - weight[present].mean(dim=0), dim=1) - F.normalize(centred, dim=1)).norm(
        dim=1
    )
    within = float(torch.trace(sw @ torch.linalg.pinv(sb, hermitian=True)) / len(present))
    return Geometry(within, float(pairs.std()), float(duality.mean()), float(pairs.max().clamp(-1, 1).acos()))


def effective_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Class weights (1 - beta) / (1 - beta^n), of mean 1 over the classes with rows, 0 for the others (Cui et al. 2019)."""
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; it must lie in [0, 1)")
    weights = torch.where(counts > 0, (1 - beta) / (1 - beta ** counts.double()).clamp(min=1e-300), 0.0)
    return weights / weights.sum().clamp(min=1e-300) * (counts > 0).sum()


class NeuralCollapse:
    """Both terms in training, with means that are learned beside the network.

    Args:
        last_layer: the `nn.Linear` whose inputs are the features.
        num_classes: C, at least 2.
        generator: the means' first values.
        within: l1 >= 0.
        between: l2 >= 0; both 0 = the baseline bit for bit (without `drw`).
        variant: ``"all"`` or ``"each"``, see `between_class`.
        rate: learning rate of the means, above 0.
        drw: share of the steps after which classes are weighed by their effective numbers; 1 = never.

    Raises:
        ValueError: a setting out of its range, a single class, `drw` with another loss than cross-entropy, or one that has
            weights.
        TypeError: a last layer that is not `nn.Linear`.

    Example:
        >>> means = torch.eye(3) - 1 / 3
        >>> round(float(between_class(means)), 4)
        -2.0944
    """

    reads = ("target",)
    writes = ("loss",)

    def __init__(
        self,
        last_layer: nn.Module,
        num_classes: int,
        generator: torch.Generator,
        within: float = 0.01,
        between: float = 0.1,
        variant: str = "all",
        rate: float = 0.5,
        drw: float = 1.0,
    ) -> None:
        for name, value in (("within", within), ("between", between)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; use one of {', '.join(VARIANTS)}")
        if not 0 < rate < float("inf") or not 0 <= drw <= 1:
            raise ValueError(f"rate is {rate}, drw {drw}; use above 0, and [0, 1]")
        if num_classes < 2:
            raise ValueError(f"there is {num_classes} class; means apart from each other need 2 or more")
        self.inputs = HeadInputs(last_layer)
        width = self.inputs.head.in_features
        if width < num_classes - 1:
            warnings.warn(
                f"features have {width} dimensions; {num_classes} means at equal angles need {num_classes - 1}",
                stacklevel=2,
            )
        self.l1, self.l2, self.variant, self.drw = within, between, variant, drw
        first = torch.randn(num_classes, width, generator=generator)
        self.means = nn.Parameter(widened(first.to(self.inputs.head.weight)))
        self.optimizer = torch.optim.SGD([self.means], lr=rate, momentum=0.9)
        self.rate = rate
        self.weights: Tensor | None = None
        self._weighed: Any = None

    def prepare(self, run: Any) -> None:
        """Watch the last layer; count the classes."""
        if self.drw < 1:
            if type(run.loss) is not nn.CrossEntropyLoss:
                raise ValueError(
                    f"drw weighs plain cross-entropy, and the loss here is {type(run.loss).__name__}; use drw=1"
                )
            if run.loss.weight is not None:
                raise ValueError("drw gives classes their weights, and the loss here has weights already; use drw=1")
            y = run.train.y
            counts = torch.bincount(y[y != IGNORED], minlength=len(self.means))
            self.weights = effective_weights(counts).to(self.inputs.head.weight)
        if self.l1 or self.l2:
            self.inputs.attach(run.model)

    def before_pass(self, run: Any, batch: Any) -> None:
        """Classes are weighed in the run's loss once their time has come."""
        self.inputs.begin()
        if self.weights is not None and run.step >= self.drw * run.budget.steps:
            self._weighed, run.loss.weight = run.loss, self.weights

    def loss(self, run: Any, batch: Any, output: Any, loss: Tensor) -> Tensor:
        """The loss and both terms."""
        if not (self.l1 or self.l2):
            return loss
        features = widened(self.inputs.take(len(batch.y), output, ends=False))
        self.optimizer.zero_grad()
        means = self.means.to(features.dtype)
        return loss + self.l1 * within_class(features, batch.y, means) + self.l2 * between_class(means, self.variant)

    def step_end(self, run: Any) -> None:
        """Move the means."""
        if self.means.grad is None:
            return
        self.optimizer.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * run.step / run.budget.steps)) / 2
        self.optimizer.step()

    def finish(self, run: Any) -> None:
        """Leave the model as it was; note the means' smallest angle."""
        with torch.no_grad():
            run.notes["angle-of-means"] = -float(between_class(self.means))
        self.detach()

    def detach(self) -> None:
        """Take off the hook, and the weights out of the loss."""
        self.inputs.detach()
        if self._weighed is not None:
            self._weighed.weight = self._weighed = None

    def state_dict(self) -> dict[str, Any]:
        """The means and their momentum."""
        return {"means": self.means.detach().clone(), "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        with torch.no_grad():
            self.means.copy_(state["means"])
        self.optimizer.load_state_dict(state["optimizer"])
