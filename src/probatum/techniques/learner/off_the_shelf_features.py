"""Features off the shelf: a layer of a network trained elsewhere, unit length, and a linear support vector machine.

Paper     Razavian, Azizpour, Sullivan and Carlsson 2014, "CNN Features off-the-shelf: an Astounding Baseline for Recognition",
          CVPR workshops, arXiv:1403.6382
Computes  x -> layer -> x / |x| -> one-against-rest linear SVM, C and layer by cross-validation; with augmentation: variants of
          every training row, scores averaged over variants, signed square roots; retrieval: patches, unit length, PCA,
          whitening, unit length, signed root, the mean over query patches of the least distance to an image's patches
Shapes    rows (n, ...) -> features (n, d) -> scores (n, classes); patches (p, d), (q, d) -> distance
Departs   1. the network comes from elsewhere only where one is given (pretraining on the bench); else it is trained on the
             same rows, and only layer and classifier are the paper's
          2. probabilities are a softmax of the machines' scores at a temperature fitted on validation rows
          3. of layers and penalties with the same cross-validated accuracy, which few rows cannot tell apart, the one with the
             largest margins is taken (in deviations of the scores), of equal ones the first penalty and the last layer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.calibration.temperature import fit_temperature
from probatum.numerics.networks.backbone import Backbone, backbone
from probatum.numerics.networks.watch import ACTIVATIONS, CALL, choose_layers, hidden_layers, last_features, pooled
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import class_codes
from probatum.spec import Budget, Data, Optimisation, Part

CARD = Card(
    paper="arXiv:1403.6382",
    title="CNN Features off-the-shelf: an Astounding Baseline for Recognition",
    entry="fit",
    number=132,
    tags=("few-labels", "transfer", "retrieval", "vision"),
    tasks=("classes",),
    tiny={"penalties": [1.0], "layers": ["penultimate"]},
    tune={"augment": [True, False]},
    claims=("features-beat-pixels-with-few-labels",),
)

PENULTIMATE = "penultimate"
FOLDS = 3
PENALTIES = (0.1, 1.0, 10.0, 100.0)
DEGREES = 10.0


class Choice(NamedTuple):
    """A layer, a penalty C, its cross-validated accuracy and mean margin (see `cross_validate`)."""

    layer: str
    penalty: float
    accuracy: float
    margin: float = float("-inf")


def extract(model: nn.Module, x: Tensor, layer: str = PENULTIMATE, pool: str = "flatten", block: int = 512) -> Tensor:
    """Features (n, d) of a layer, in evaluation mode and without gradients; modes and weights stay as they are.

    Args:
        model: (n, ...) -> (n, outputs).
        x: rows.
        layer: a module's name, or "penultimate": what the last linear layer takes in.
        pool: "flatten", or "mean" over positions.
        block: rows at once.

    Raises:
        KeyError: no such module, or one that does not run; it lists those that do.
        TypeError: a layer that gives no tensor with one vector a row; it lists those that do.
    """
    if layer == PENULTIMATE:
        return last_features(model, x, block=block, ends=False).features
    found = []
    for rows in x.split(block):
        seen = hidden_layers(model, rows)
        choose_layers(model, seen, [layer])
        found.append(pooled(seen[layer].detach(), pool, tokens=not x.is_floating_point()))
    return torch.cat(found)


def usable_layers(model: nn.Module, x: Tensor) -> list[str]:
    """Activations and the penultimate layer, in order of execution, the latter alone where no activation is a module; `x` are a
    few rows."""
    seen = hidden_layers(model, x[:2])
    modules = dict(model.named_modules())
    if not any(isinstance(modules[name.partition(CALL)[0]], ACTIVATIONS) for name in seen):
        return [PENULTIMATE]
    return [*choose_layers(model, seen, None), PENULTIMATE]


@computed_wide
def unit(features: Tensor, power: float = 1.0) -> Tensor:
    """Rows of length 1, after a signed power of every component: sign(x) |x|^power."""
    if not 0 < power <= 1:
        raise ValueError(f"power is {power}; it must lie in (0, 1]")
    if power != 1:
        features = features.sign() * features.abs().pow(power)
    return F.normalize(features, dim=1)


def variants(x: Tensor, crops: bool = True, rotations: bool = True) -> list[Tensor]:
    """The images (n, c, h, w) themselves, four shifts by a tenth of the side, and two rotations by 10 degrees.

    Other inputs have no variants but themselves.
    """
    if x.ndim != 4 or not x.is_floating_point():
        return [x]
    found, step = [x], max(1, round(0.1 * x.shape[3]))
    if crops:
        wide = F.pad(x, (step, step, step, step), mode="replicate")
        for dy, dx in ((0, 0), (0, 2 * step), (2 * step, 0), (2 * step, 2 * step)):
            found.append(wide[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]])
    if rotations:
        for angle in (-DEGREES, DEGREES):
            a = torch.tensor(angle * torch.pi / 180)
            turn = torch.stack([torch.stack([a.cos(), -a.sin(), a * 0]), torch.stack([a.sin(), a.cos(), a * 0])])
            grid = F.affine_grid(turn.expand(len(x), 2, 3).to(x), list(x.shape), align_corners=False)
            found.append(F.grid_sample(x, grid, padding_mode="border", align_corners=False))
    return found


class Machines:
    """One-against-rest linear support vector machines on unit features (n, d) with classes (n,).

    Attributes:
        weight: (classes, d); bias: (classes,), -inf for classes without rows.
    """

    def __init__(self, features: Tensor, y: Tensor, classes: int, penalty: float) -> None:
        y = class_codes(y, len(features), classes)
        present = y.unique().tolist()
        if len(present) < 2:
            raise ValueError(f"{len(present)} class(es) have rows; a machine needs 2 or more")
        if not penalty > 0:
            raise ValueError(f"penalty is {penalty}; C must be above 0")
        machine = LinearSVC(C=penalty, dual="auto", random_state=0, max_iter=20_000)
        machine.fit(features.double().numpy(), y.numpy())
        weight, bias = torch.from_numpy(machine.coef_), torch.from_numpy(np.atleast_1d(machine.intercept_))
        if len(present) == 2:  # sklearn keeps one machine for two classes
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        self.weight = torch.zeros(classes, features.shape[1], dtype=torch.float64)
        self.bias = torch.full((classes,), float("-inf"), dtype=torch.float64)
        self.weight[present], self.bias[present] = weight, bias

    def scores(self, features: Tensor) -> Tensor:
        """(n, classes)."""
        return features.double() @ self.weight.T + self.bias


def folds_of(y: Tensor, count: int = FOLDS) -> Tensor:
    """Which of `count` folds each row (n,) is in, every class spread evenly."""
    place = torch.zeros(len(y), dtype=torch.int64)
    for c in y.unique():
        mine = (y == c).nonzero().squeeze(1)
        place[mine] = torch.arange(len(mine)) % count
    return place


def cross_validate(
    features: Sequence[Tensor], y: Tensor, classes: int, penalties: Sequence[float], folds: int = FOLDS
) -> tuple[float, float, float]:
    """The best penalty, its accuracy and its mean margin; variants (several (n, d)) of a row stay on one side of every fold.

    Scores are averaged over a row's variants. A margin is the score of a row's class less the largest other one, in
    deviations of all scores; of penalties of the same accuracy the one of larger margins is best.
    """
    place = folds_of(y, folds)
    best = (penalties[0], -1.0, float("-inf"))
    for penalty in penalties:
        right, margin = torch.zeros(len(y)), torch.zeros(len(y), dtype=torch.float64)
        for k in range(folds):
            mine = place == k
            if not mine.any() or len(y[~mine].unique()) < 2:
                continue
            many = torch.cat([part[~mine] for part in features])
            machine = Machines(many, y[~mine].repeat(len(features)), classes, penalty)
            score = torch.stack([machine.scores(part[mine]) for part in features]).mean(dim=0)
            right[mine] = (score.argmax(dim=1) == y[mine]).float()
            margin[mine] = margins(score.double(), y[mine])
        found = float(right.mean()), float(margin.mean())
        if found > best[1:]:
            best = (penalty, *found)
    return best


def margins(scores: Tensor, y: Tensor) -> Tensor:
    """The score of each row's class less the largest other one, in deviations of the finite scores: (n, classes), (n,) -> (n,).

    Classes without a machine, whose scores are -inf, do not compete; rows of such a class count 0.
    """
    finite = torch.isfinite(scores)
    spread = scores[finite].std(correction=0).clamp_min(1e-12)
    own = scores.gather(1, y[:, None]).squeeze(1)
    others = scores.scatter(1, y[:, None], float("-inf")).amax(dim=1)
    return torch.where(torch.isfinite(own - others), (own - others) / spread, torch.zeros_like(own))


class Whitening(NamedTuple):
    """Unit length, PCA, whitening, unit length, signed root; fitted on reference rows alone."""

    mean: Tensor
    directions: Tensor
    scales: Tensor

    @classmethod
    def of(cls, features: Tensor, width: int = 500) -> Whitening:
        """From reference features (n, d); at most `width` directions, and no more than there are.

        Raises:
            ValueError: fewer than two rows, or rows that do not differ.
        """
        x = unit(features).double()
        mean = x.mean(dim=0)
        _, sizes, directions = torch.linalg.svd(x - mean, full_matrices=False)
        kept = int((sizes > 1e-8 * max(float(sizes[0]), 1e-300)).sum()) if len(x) > 1 else 0
        if kept == 0:
            raise ValueError(f"there are {len(x)} reference rows without any spread; whitening needs rows that differ")
        count = min(width, kept)
        return cls(mean, directions[:count], sizes[:count] / (len(x) - 1) ** 0.5)

    def white(self, features: Tensor) -> Tensor:
        """Whitened coordinates (n, width), of unit covariance on the reference rows."""
        return (unit(features).double() - self.mean) @ self.directions.T / self.scales

    def __call__(self, features: Tensor, power: float = 0.5) -> Tensor:
        """What distances are taken between."""
        found = F.normalize(self.white(features), dim=1)
        return found.sign() * found.abs().pow(power)


def patches(x: Tensor, scales: Sequence[int] = (1, 2)) -> Tensor:
    """Square crops of images (n, c, h, w) at several scales, resized to the image: (n, sum of scale^2, c, h, w)."""
    found = []
    for scale in scales:
        if scale < 1 or scale > min(x.shape[2:]):
            raise ValueError(
                f"scale is {scale}; images of {tuple(x.shape[2:])} can be cut into 1 to {min(x.shape[2:])}"
            )
        height, width = x.shape[2] // scale, x.shape[3] // scale
        for i in range(scale):
            for j in range(scale):
                crop = x[:, :, i * height : (i + 1) * height, j * width : (j + 1) * width]
                found.append(F.interpolate(crop, size=x.shape[2:], mode="bilinear", align_corners=False))
    return torch.stack(found, dim=1)


def patch_distance(query: Tensor, references: Tensor) -> Tensor:
    """Distances of a query's patches (p, d) to images of q patches each (m, q, d): the mean of the least distances, (m,)."""
    near = torch.cdist(
        query[None].expand(len(references), -1, -1), references, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return near.amin(dim=2).mean(dim=1)


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Mean precision at the ranks of the relevant rows (n,) bool, best score first; ValueError where there are none."""
    if not relevant.any():
        raise ValueError("no row is relevant; average precision is not defined")
    ranked = relevant[scores.argsort(descending=True, stable=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return float(precision[ranked.bool()].mean())


class OffTheShelf:
    """The chosen layer with its machines.

    Attributes:
        choice: layer, penalty and cross-validated accuracy.
        curve: the accuracy of every layer tried.
    """

    def __init__(
        self,
        features: Backbone,
        machines: Machines,
        choice: Choice,
        curve: dict[str, float],
        augment: bool,
        power: float,
    ) -> None:
        self.features, self.machines, self.choice, self.curve = features, machines, choice, curve
        self.augment, self.power, self.temperature = augment, power, 1.0
        self.passes = features.passes

    def scores(self, x: Tensor) -> Tensor:
        """Mean scores over variants (n, classes)."""
        shown = variants(x) if self.augment else [x]
        return torch.stack(
            [self.machines.scores(_look(self.features, one, self.choice.layer, self.power)) for one in shown]
        ).mean(0)

    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes)."""
        return (self.scores(part.x) / self.temperature).softmax(dim=1).float()

    def report(self) -> dict[str, float]:
        """Cross-validated accuracy of every layer tried, and the penalty."""
        return {f"layer {name}": value for name, value in self.curve.items()} | {"penalty": self.choice.penalty}


def _look(features: Backbone, x: Tensor, layer: str, power: float) -> Tensor:
    found = features(x) if features.network is None else extract(features.network, x, layer)
    return unit(found, power)


def off_the_shelf(
    features: Backbone,
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    layers: Sequence[str] | None = None,
    penalties: Sequence[float] = PENALTIES,
    augment: bool = False,
    power: float = 1.0,
) -> OffTheShelf:
    """Choose layer and C by cross-validation on rows (n, ...) with classes (n,), and fit the machines on all of them.

    Args:
        features: a network, or raw inputs.
        layers: module names and "penultimate"; None = all activations and it.
        penalties: of C, all above 0.
        augment: train on variants, average over them, and (unless `power` says else) take signed roots.
        power: signed power of the features, in (0, 1].
    """
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties are {list(penalties)}; give values of C above 0")
    y = class_codes(y, len(x), classes)
    power = 0.5 if augment and power == 1.0 else power
    tried = [PENULTIMATE] if features.network is None else list(layers or usable_layers(features.network, x))
    shown = variants(x) if augment else [x]
    curve, best, kept = {}, Choice("", 1.0, -1.0), []
    for layer in tried:
        found = [_look(features, one, layer, power) for one in shown]
        penalty, accuracy, margin = cross_validate(found, y, classes, penalties)
        curve[layer] = accuracy
        if (accuracy, margin) >= (best.accuracy, best.margin):
            best, kept = Choice(layer, penalty, accuracy, margin), found
    machines = Machines(torch.cat(kept), y.repeat(len(kept)), classes, best.penalty)
    return OffTheShelf(features, machines, best, curve, augment, power)


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module],
    optimisation: Optimisation,
    pretrained: bool = False,
    *,
    layers: Sequence[str] | None = None,
    penalties: Sequence[float] = PENALTIES,
    augment: bool = False,
    power: float = 1.0,
    source: str = "auto",
) -> OffTheShelf:
    """Freeze a network, choose a layer and fit machines on it.

    Args:
        data: one split; validation rows set the temperature of the scores.
        budget, generator, model_factory, optimisation, pretrained, source: see `probatum.numerics.networks.backbone.backbone`.
        layers, penalties, augment, power: see `off_the_shelf`.

    Raises:
        ValueError: settings out of range.
        KeyError, TypeError: a layer that cannot be used; it lists those that can.

    Example:
        >>> round(float(unit(torch.tensor([[3.0, 4.0]])).norm()), 4)
        1.0
    """
    features = backbone(data, budget, generator, model_factory, optimisation, pretrained, source)
    own = {"layers": layers, "penalties": penalties, "augment": augment, "power": power}
    found = off_the_shelf(features, data.train.x, data.train.y, data.spec.outputs, **own)  # type: ignore[arg-type]
    scores = found.scores(data.valid.x)
    finite = torch.isfinite(scores).all(dim=0)
    seen = finite[data.valid.y]
    if seen.any():
        found.temperature = fit_temperature(scores[seen].nan_to_num(neginf=-1e3), data.valid.y[seen])
    return found
