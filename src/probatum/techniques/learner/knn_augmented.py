"""kNN-augmented classifier: a vote of the nearest training rows joins a linear head, in prediction and in training.

Paper     Jia, Chen, Wu, Cardie, Belongie and Lim 2021, "Rethinking Nearest Neighbors for Visual Classification",
          arXiv:2112.08459
Computes  p_knn(c | x) proportional to the sum over the k nearest rows of class c of exp(-d / tau), on features of unit length;
          prediction lam p_knn + (1 - lam) softmax(z); training CE (1 + a (-log p_knn(y | x))) ("regularise") or
          CE (1 - p_knn(y | x))^g ("focal"), votes without the row itself
Shapes    features (n, d), y (n,) -> probabilities (n, classes)
Departs   1. on the bench the features come from a network that is trained on the same rows unless a pretrained one is given
          2. the head is trained full-batch by L-BFGS, its penalty chosen on validation rows together with k, tau and lam
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.backbone import Backbone, backbone
from probatum.numerics.tensors.precision import computed_wide, unit, widened
from probatum.spec import Budget, Data, Optimisation, Part

CARD = Card(
    paper="arXiv:2112.08459",
    title="Rethinking Nearest Neighbors for Visual Classification",
    entry="fit",
    number=136,
    tags=("few-labels", "transfer", "retrieval", "label-noise"),
    tasks=("classes",),
    tune={"training": ["plain", "regularise", "focal"], "strength": (0.1, 3.0)},
    claims=("votes-help-a-linear-probe",),
)

TRAININGS = ("plain", "regularise", "focal")
LEAST_LOG = -100.0
"""Logarithms of votes are not taken below this: a class without a neighbour has none."""
CLOSE = 1e-4
"""Squared distances of a row's neighbours, all below which they are taken anew: 2 - 2 cos has lost its digits there."""
NEIGHBORS, TEMPERATURES = (5, 10, 20, 40), (0.02, 0.1, 0.5)
SHARES = tuple(i / 10 for i in range(11))
PENALTIES = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Store:
    """Training rows to vote with.

    Attributes:
        features: (n, d) of unit length; half precision halves the memory.
        y: (n,) classes.
        classes: how many.
    """

    features: Tensor
    y: Tensor
    classes: int

    @classmethod
    def of(cls, features: Tensor, y: Tensor, classes: int, half: bool = False) -> Store:
        """Normalise and keep rows.

        Raises:
            ValueError: rows without a label (y below 0) or with one above the classes, lengths that differ.
        """
        if len(features) != len(y):
            raise ValueError(f"there are {len(features)} rows and {len(y)} labels; give as many")
        wrong = ((y < 0) | (y >= classes)).nonzero().squeeze(1)
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} rows of the store have no label in 0 to {classes - 1}, first row {int(wrong[0])}"
            )
        rows = unit(features.detach())
        return cls(rows.half() if half else rows, y, classes)

    def nearest(self, queries: Tensor, k: int, own: bool = False, block: int = 1024) -> tuple[Tensor, Tensor]:
        """Squared distances (n, k) to the nearest rows, nearest first, and their classes (n, k), exactly.

        Args:
            queries: features (n, d), normalised here.
            k: at most the rows of the store.
            own: the queries are the store's own rows, in order, and each is left out of its own vote.
            block: queries at once.

        Raises:
            ValueError: k above the rows there are, or features of another width.
        """
        rows = len(self.y) - own
        if not 1 <= k <= rows:
            raise ValueError(f"k is {k}, but the store has {rows} rows to vote; give 1 to {rows}")
        if queries.shape[1] != self.features.shape[1]:
            raise ValueError(f"queries have {queries.shape[1]} features and the store {self.features.shape[1]}")
        distances, classes = [], []
        queries = widened(queries.detach())
        kept = self.features.to(queries.dtype)
        for start in range(0, max(1, len(queries)), block):
            asked = unit(queries[start : start + block])
            itself = start if own else None
            squares, near = _least(asked, kept, k, itself)
            close = (squares.amax(dim=1) < CLOSE).nonzero().squeeze(1)
            for row in close.tolist():
                one = None if itself is None else itself + row
                squares[row], near[row] = _least_by_differences(asked[row], kept, k, one)
            distances.append(squares)
            classes.append(self.y[near])
        return torch.cat(distances), torch.cat(classes)

    def vote(self, queries: Tensor, k: int, temperature: float, own: bool = False) -> Tensor:
        """p_knn (n, classes); arguments as `nearest`, `temperature` tau above 0 divides distances (not squared)."""
        return votes(*self.nearest(queries, k, own), temperature, self.classes)


def _least(unit: Tensor, kept: Tensor, k: int, start: int | None) -> tuple[Tensor, Tensor]:
    """Squared distances (n, k) and positions of the k nearest; `start` = the place of the first query among the kept rows."""
    square = 2 - 2 * unit @ kept.T
    for rows in (~unit.any(dim=1, keepdim=True), ~kept.any(dim=1)):  # zeros have length 0, not 1
        square = square - rows.to(square)
    square = square.clamp(min=0)
    if start is not None:
        square[torch.arange(len(unit)), torch.arange(start, start + len(unit))] = float("inf")
    found = square.topk(k, dim=1, largest=False)
    return found.values, found.indices


def _least_by_differences(unit: Tensor, kept: Tensor, k: int, own: int | None) -> tuple[Tensor, Tensor]:
    """The same of one query (d,), by differences, which do not cancel where all rows point the same way."""
    square = (kept - unit).square().sum(dim=1)
    if own is not None:
        square[own] = float("inf")
    found = square.topk(k, largest=False)
    return found.values, found.indices


def votes(squares: Tensor, classes: Tensor, temperature: float, count: int) -> Tensor:
    """Votes (n, count) of neighbours at squared distances (n, k) with classes (n, k), in log space until the last step."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    weights = (-squares.sqrt() / temperature).softmax(dim=1)
    return torch.zeros(len(squares), count, dtype=weights.dtype).scatter_add_(1, classes, weights)


def mix(p_knn: Tensor, p: Tensor, share: float) -> Tensor:
    """share p_knn + (1 - share) p, both (n, classes), share in [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1]")
    return share * p_knn + (1 - share) * p


@computed_wide
def knn_loss(logits: Tensor, y: Tensor, vote: Tensor, training: str = "regularise", strength: float = 1.0) -> Tensor:
    """Cross-entropy of each row, weighed by how hard its neighbours find it, (n,).

    Args:
        logits: (n, classes).
        y: (n,).
        vote: (n,) p_knn(y | x) without the row itself, in [0, 1].
        training: "plain", "regularise" (equation 4) or "focal" (equation 5).
        strength: a or g, at least 0; 0 = plain.

    Raises:
        ValueError: an unknown training, a negative strength.
    """
    if training not in TRAININGS:
        raise ValueError(f"training is {training!r}; use one of {', '.join(TRAININGS)}")
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength is {strength}; it must be at least 0")
    each = F.cross_entropy(logits, y, reduction="none")
    if training == "plain" or strength == 0:
        return each
    vote = vote.to(each.dtype).clamp(0, 1)
    if training == "regularise":
        return each * (1 + strength * -vote.log().clamp(min=LEAST_LOG))
    return each * (strength * torch.log1p(-vote).clamp(min=LEAST_LOG)).exp()


@dataclass(frozen=True)
class Head:
    """A linear layer on standardised features: logits = (x - mean) / scale W^T + b."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, classes) float64."""
        return (features.double() - self.mean) / self.scale @ self.weight.T + self.bias


def fit_head(
    features: Tensor, y: Tensor, classes: int, vote: Tensor, training: str, strength: float, penalty: float
) -> Head:
    """The head that minimises the mean `knn_loss` + penalty / 2 |W|^2."""
    x = features.detach().double()
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    z = (x - mean) / scale
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=150, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = knn_loss(z @ weight.T + bias, y, vote, training, strength).mean() + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return Head(mean, scale, weight.detach(), bias.detach())


class Augmented:
    """A head, a store, and how they are mixed.

    Attributes:
        share: lam.
        k, temperature: of the vote.
        penalty: of the head.
    """

    def __init__(
        self, features: Backbone, store: Store, head: Head, k: int, temperature: float, share: float, penalty: float
    ) -> None:
        self.features, self.store, self.head = features, store, head
        self.k, self.temperature, self.share, self.penalty = k, temperature, share, penalty
        self.passes = features.passes

    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes)."""
        return self.mixture(self.features(part.x))

    def mixture(self, features: Tensor) -> Tensor:
        """The same of features (n, d)."""
        p = self.head.logits(features).softmax(dim=1)
        return mix(self.store.vote(features, self.k, self.temperature).double(), p, self.share).float()

    def report(self) -> dict[str, float]:
        """What was chosen."""
        return {
            "knn-share": self.share,
            "neighbors": float(self.k),
            "temperature": self.temperature,
            "penalty": self.penalty,
        }


def augment(
    features: Backbone,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    classes: int,
    *,
    training: str = "plain",
    strength: float = 1.0,
    neighbors: Sequence[int] = NEIGHBORS,
    temperatures: Sequence[float] = TEMPERATURES,
    shares: Sequence[float] = SHARES,
    penalties: Sequence[float] = PENALTIES,
) -> Augmented:
    """Train the head, and choose its penalty, k, tau and lam by the log loss of validation features.

    Args:
        features: where features come from, kept for prediction.
        train, valid: features (n, d) and classes (n,).
        classes: how many.
        training, strength: see `knn_loss`; its votes take the middle of `neighbors` and of `temperatures`.
        neighbors, temperatures, shares, penalties: what is tried; numbers of neighbours above the rows there are fall out.
    """
    store = Store.of(*train, classes)
    usable = [k for k in neighbors if k < len(store.y)] or [len(store.y) - 1]
    middle = usable[len(usable) // 2]
    own = torch.zeros(len(store.y))
    if training != "plain" and strength:
        own = store.vote(train[0], middle, temperatures[len(temperatures) // 2], own=True)
        own = own.gather(1, train[1][:, None]).squeeze(1)
    best: tuple[float, Augmented] | None = None
    squares, near = store.nearest(valid[0], max(usable))
    for penalty in penalties:
        head = fit_head(*train, classes, own, training, strength, penalty)
        p = head.logits(valid[0]).softmax(dim=1)
        for k, temperature in itertools.product(usable, temperatures):
            vote = votes(squares[:, :k], near[:, :k], temperature, classes).double()
            for share in shares:
                held = mix(vote, p, share).gather(1, valid[1][:, None]).clamp(min=1e-6)
                loss = -float(held.log().mean())
                if best is None or loss < best[0]:
                    best = loss, Augmented(features, store, head, k, temperature, share, penalty)
    if best is None:
        raise ValueError("there is nothing to choose from; give at least one share, penalty and temperature")
    return best[1]


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module],
    optimisation: Optimisation,
    pretrained: bool = False,
    *,
    training: str = "plain",
    strength: float = 1.0,
    source: str = "auto",
) -> Augmented:
    """Freeze features, train the head on them, keep the rows, choose the mixture on validation rows.

    Args:
        data: one split.
        budget, generator, model_factory, optimisation, pretrained, source: see `probatum.numerics.networks.backbone.backbone`.
        training: "plain", "regularise" or "focal".
        strength: of the latter two, at least 0.

    Raises:
        ValueError: settings out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> Store.of(x, torch.tensor([0, 0, 1]), 2).vote(torch.tensor([[1.0, 0.05]]), k=2, temperature=0.1).argmax().item()
        0
    """
    knn_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1), training, strength)  # settings first
    features = backbone(data, budget, generator, model_factory, optimisation, pretrained, source)
    known, asked = ((features(part.x), part.y) for part in (data.train, data.valid))
    return augment(features, known, asked, data.spec.outputs, training=training, strength=strength)
