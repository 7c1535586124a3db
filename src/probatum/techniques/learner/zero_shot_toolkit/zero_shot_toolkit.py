"""Zero-shot toolkit: classes without training rows are recognised by their descriptions.

Paper     Fu, Xiang, Jiang, Xue, Sigal and Gong 2018, "Recent Advances in Zero-shot Recognition", IEEE Signal Processing Magazine,
          arXiv:1710.04837
Computes  scores of classes with descriptions S (C, A): DAP (attribute classifiers), IAP and ConSE (through seen classes), ESZSL
          V = (X'X + g I)^-1 X'Y S (S'S + l I)^-1, DeViSE (hinge ranking of x'M s), SAE (S S' W + l W X X' = (1 + l) S X')
Shapes    features (n, d), y (n,), descriptions (C, A) -> scores (n, C)
Departs   1. on the bench all classes have training rows; descriptions are one-hot where none are given, so that ESZSL is a ridge
             classifier there; features are the inputs, or a network's
          2. penalties are chosen on held-out classes (three folds), once for every method that has any
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy.linalg import solve_sylvester
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.calibration.temperature import fit_temperature
from probatum.numerics.networks.backbone import Backbone, backbone
from probatum.numerics.optimisation.softmax_regression import Linear, fit_softmax, standardiser
from probatum.spec import Budget, Data, Optimisation, Part
from probatum.techniques.learner.zero_shot_toolkit.zero_shot import class_accuracy, class_folds

CARD = Card(
    paper="arXiv:1710.04837",
    title="Recent Advances in Zero-shot Recognition",
    entry="fit",
    number=144,
    tags=("few-labels", "transfer", "open-set"),
    tasks=("classes",),
    tiny={"method": "eszsl"},
    tune={"method": ["eszsl", "sae", "dap", "conse"]},
    claims=("unseen-glyphs",),
)

METHODS = ("dap", "iap", "conse", "eszsl", "devise", "sae")
PENALTIES = (1e-2, 1.0, 1e2)
NEAREST = 10
"""Seen classes that ConSE mixes, at most."""

Scorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Descriptions:
    """Class descriptions, standardised by the seen classes alone.

    Attributes:
        raw: (C, A) as given.
        values: (C, A) standardised.
        seen: (k,) classes with training rows, ascending.
    """

    raw: Tensor
    values: Tensor
    seen: Tensor

    @classmethod
    def of(cls, signatures: Tensor, seen: Tensor) -> Descriptions:
        """Check and standardise.

        Args:
            signatures: (C, A), one row a class.
            seen: classes with training rows; the others are unseen.

        Raises:
            ValueError: two classes with the same description (named), values that are not finite, no seen class, or one
                outside 0 to C - 1.
        """
        raw = torch.as_tensor(signatures, dtype=torch.float64)
        if raw.ndim != 2 or not torch.isfinite(raw).all():
            raise ValueError(f"descriptions have shape {tuple(raw.shape)}; give one row of finite numbers a class")
        _, own, counts = raw.unique(dim=0, return_inverse=True, return_counts=True)
        twins = (counts[own] > 1).nonzero().squeeze(1)
        if len(twins):
            i, j = (own == own[twins[0]]).nonzero().squeeze(1)[:2].tolist()
            raise ValueError(f"classes {i} and {j} have the same description; nothing can tell them apart")
        if not len(seen) or int(seen.max()) >= len(raw) or int(seen.min()) < 0:
            raise ValueError(f"seen classes are {seen.tolist()}; descriptions are of classes 0 to {len(raw) - 1}")
        seen = seen.unique()  # ascending
        mean, spread = raw[seen].mean(dim=0), raw[seen].std(dim=0, correction=0)
        return cls(raw, (raw - mean) / torch.where(spread > 1e-9, spread, torch.ones_like(spread)), seen)


def check_disjoint(seen: Sequence[int], unseen: Sequence[int]) -> None:
    """ValueError naming classes that are on both sides of a zero-shot split."""
    both = sorted(set(seen) & set(unseen))
    if both:
        raise ValueError(f"classes {', '.join(map(str, both))} are seen and unseen; take them out of one side")


def eszsl(x: Tensor, y: Tensor, given: Descriptions, feature: float = 1.0, attribute: float = 1.0) -> Tensor:
    """V (d, A) of Romera-Paredes and Torr 2015: the minimiser of |X'V S' - Y|^2 + g |V S'|^2 + l |X V|^2 + g l |V|^2, Y in +-1."""
    x, s = x.double(), given.values[given.seen]
    place = torch.searchsorted(given.seen, y)
    target = 2.0 * F.one_hot(place, len(given.seen)).double() - 1
    left = torch.linalg.solve(x.T @ x + feature * torch.eye(x.shape[1], dtype=x.dtype), x.T @ target @ s)
    return torch.linalg.solve(s.T @ s + attribute * torch.eye(s.shape[1], dtype=x.dtype), left.T).T


def sae(x: Tensor, y: Tensor, given: Descriptions, weight: float = 1.0) -> Tensor:
    """W (A, d) of the semantic autoencoder (Kodirov et al. 2017): S S' W + l W X X' = (1 + l) S X', by Sylvester's equation."""
    a = given.values[y].T
    b = x.double().T
    found = solve_sylvester((a @ a.T).numpy(), (weight * b @ b.T).numpy(), ((1 + weight) * a @ b.T).numpy())
    return torch.from_numpy(found)


def direct_attributes(x: Tensor, y: Tensor, given: Descriptions, penalty: float = 1.0) -> Scorer:
    """DAP (Lampert et al. 2009): a logistic classifier for each attribute, above or below its mean over seen classes.

    score_c = sum_a log p(a_c | x) - log p(a_c), p(a) the attribute's share among the seen classes. Attributes that do not
    vary among them tell nothing and are left out.
    """
    coded = given.raw > given.raw[given.seen].mean(dim=0)
    varies = coded[given.seen].any(dim=0) & ~coded[given.seen].all(dim=0)
    machines = []
    for a in varies.nonzero().squeeze(1).tolist():
        machine = LogisticRegression(C=1 / penalty, max_iter=500).fit(x.double().numpy(), coded[y, a].numpy())
        machines.append((a, machine))
    share = coded[given.seen].double().mean(dim=0).clamp(1e-3, 1 - 1e-3)
    return partial(_by_attributes, machines, coded, share)


def _by_attributes(machines: Sequence[tuple[int, Any]], coded: Tensor, share: Tensor, rows: Tensor) -> Tensor:
    out = torch.zeros(len(rows), len(coded), dtype=torch.float64)
    for a, machine in machines if len(rows) else ():
        odds = torch.from_numpy(machine.decision_function(rows.double().numpy()))[:, None]
        yes = coded[:, a]
        own = torch.where(yes, share[a], 1 - share[a]).log()
        out += F.logsigmoid(torch.where(yes, odds, -odds)) - own
    return out


def seen_classifier(x: Tensor, y: Tensor, given: Descriptions, penalty: float = 1e-2) -> Scorer:
    """Probabilities (n, seen) of the classes with rows."""
    rule = fit_softmax(x, torch.searchsorted(given.seen, y), len(given.seen), [penalty])[0]
    return partial(_known, rule)


def _known(rule: Linear, rows: Tensor) -> Tensor:
    return rule.logits(rows).softmax(dim=1)


def indirect_attributes(x: Tensor, y: Tensor, given: Descriptions, penalty: float = 1e-2) -> Scorer:
    """IAP: p(a | x) is the mixture of the seen classes' attributes by their probabilities; scores as in DAP."""
    coded = given.raw > given.raw[given.seen].mean(dim=0)
    share = coded[given.seen].double().mean(dim=0).clamp(1e-3, 1 - 1e-3)
    return partial(_by_mixed_attributes, seen_classifier(x, y, given, penalty), coded, share, given.seen)


def _by_mixed_attributes(known: Scorer, coded: Tensor, share: Tensor, seen: Tensor, rows: Tensor) -> Tensor:
    p = (known(rows) @ coded[seen].double()).clamp(1e-6, 1 - 1e-6)
    yes = coded.double()
    return p.log() @ yes.T + (1 - p).log() @ (1 - yes).T - (share.log() @ yes.T + (1 - share).log() @ (1 - yes).T)


def convex_combination(
    x: Tensor, y: Tensor, given: Descriptions, nearest: int = NEAREST, penalty: float = 1e-2
) -> Scorer:
    """ConSE (Norouzi et al. 2014): cosine to the mixture of the likeliest seen classes' descriptions."""
    return partial(_by_likeliest, seen_classifier(x, y, given, penalty), given, nearest)


def _by_likeliest(known: Scorer, given: Descriptions, nearest: int, rows: Tensor) -> Tensor:
    p = known(rows)
    top = p.topk(min(nearest, p.shape[1]), dim=1)
    weights = top.values / top.values.sum(dim=1, keepdim=True)
    mixed = torch.einsum("nk,nka->na", weights, given.values[given.seen][top.indices])
    return F.normalize(mixed, dim=1) @ F.normalize(given.values, dim=1).T


def devise(
    x: Tensor,
    y: Tensor,
    given: Descriptions,
    generator: torch.Generator,
    margin: float = 0.1,
    steps: int = 300,
    lr: float = 1e-2,
) -> Tensor:
    """M (d, A) of DeViSE (Frome et al. 2013): hinge ranking, sum over other seen classes of max(0, margin - x'M s_y + x'M s_j)."""
    x, s = x.double(), F.normalize(given.values[given.seen], dim=1)
    place = torch.searchsorted(given.seen, y)
    weights = (0.01 * torch.randn(x.shape[1], s.shape[1], generator=generator, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (min(64, len(x)),), generator=generator)
            scores = x[rows] @ weights @ s.T
            own = scores.gather(1, place[rows, None])
            loss = ((margin - own + scores).clamp(min=0).sum(dim=1) - margin).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights.detach()


def scorer(
    method: str, x: Tensor, y: Tensor, given: Descriptions, generator: torch.Generator, penalty: float = 1.0
) -> Scorer:
    """Scores (n, C) of all classes, by one of `METHODS`; x (n, d) are standardised features, y (n,) seen classes."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}")
    if not 0 < penalty < float("inf"):
        raise ValueError(f"penalty is {penalty}; it must be above 0")
    if method == "dap":
        return direct_attributes(x, y, given, penalty)
    if method == "iap":
        return indirect_attributes(x, y, given, 1e-2 * penalty)
    if method == "conse":
        return convex_combination(x, y, given, penalty=1e-2 * penalty)
    if method == "eszsl":
        v = eszsl(x, y, given, penalty * len(x) / 10, penalty)
        return partial(_inner, v, given.values)
    if method == "sae":
        w = sae(x, y, given, penalty)
        return partial(_cosines, w.T, F.normalize(given.values, dim=1))
    return partial(_inner, devise(x, y, given, generator), F.normalize(given.values, dim=1))


def _inner(v: Tensor, descriptions: Tensor, rows: Tensor) -> Tensor:
    return rows.double() @ v @ descriptions.T


def _cosines(v: Tensor, descriptions: Tensor, rows: Tensor) -> Tensor:
    return F.normalize(rows.double() @ v, dim=1) @ descriptions.T


def choose_penalty(
    method: str,
    x: Tensor,
    y: Tensor,
    given: Descriptions,
    generator: torch.Generator,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 3,
) -> float:
    """The penalty with the best per-class accuracy on *classes* that were left out of training, among themselves."""
    if len(given.seen) < 2 * folds or len(penalties) == 1:
        return penalties[len(penalties) // 2]
    parts = class_folds(given.seen, folds, generator)
    best = (penalties[0], -1.0)
    for penalty in penalties:
        found = []
        for part in parts:
            out = torch.isin(y, part)
            kept = given.seen[~torch.isin(given.seen, part)].sort().values
            inner = Descriptions.of(given.raw, kept)
            score = scorer(method, x[~out], y[~out], inner, generator, penalty)
            found.append(class_accuracy(score(x[out]), y[out], part))
        accuracy = sum(found) / len(found)
        if accuracy > best[1]:
            best = (penalty, accuracy)
    return best[0]


class ZeroShot:
    """Scores all described classes, those without training rows too.

    Attributes:
        given: the descriptions.
        score: features -> scores (n, C).
    """

    def __init__(self, features: Backbone, standard: tuple[Tensor, Tensor], score: Scorer, given: Descriptions) -> None:
        self.features, self.standard, self.score, self.given = features, standard, score, given
        self.temperature, self.passes = 1.0, features.passes

    def scores(self, x: Tensor) -> Tensor:
        """(n, C)."""
        mean, spread = self.standard
        return self.score((self.features(x).double() - mean) / spread)

    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, C)."""
        return (self.scores(part.x) / self.temperature).softmax(dim=1).float()


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module],
    optimisation: Optimisation,
    pretrained: bool = False,
    *,
    method: str = "eszsl",
    signatures: Any = None,
    source: str = "auto",
) -> ZeroShot:
    """Learn from the classes that have rows to score all that are described.

    Args:
        data: one split; validation rows set the temperature.
        budget, generator, model_factory, optimisation, pretrained, source: see `probatum.numerics.networks.backbone.backbone`.
        method: one of `METHODS`.
        signatures: descriptions, one row a class; None = one-hot.

    Raises:
        ValueError: settings out of range, descriptions of another number of classes; see `Descriptions.of`.

    Example:
        >>> given = Descriptions.of(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1, 2]))
        >>> x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]).repeat(20, 1)
        >>> v = eszsl(x, torch.arange(3).repeat(20), given)
        >>> int((torch.tensor([[1.0, 1.0]]).double() @ v @ given.values.T).argmax())
        3
    """
    classes = data.spec.outputs
    raw = (
        torch.eye(classes, dtype=torch.float64)
        if signatures is None
        else torch.as_tensor(signatures, dtype=torch.float64)
    )
    if len(raw) != classes:
        raise ValueError(f"there are {len(raw)} descriptions and {classes} classes; give one row a class")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}")
    given = Descriptions.of(raw, data.train.y.unique())
    features = backbone(data, budget, generator, model_factory, optimisation, pretrained, source)
    x = features(data.train.x).double()
    mean, spread = standardiser(x)
    z, y = (x - mean) / spread, data.train.y
    penalty = 1.0 if signatures is None else choose_penalty(method, z, y, given, generator)
    found = ZeroShot(features, (mean, spread), scorer(method, z, y, given, generator, penalty), given)
    found.temperature = fit_temperature(found.scores(data.valid.x), data.valid.y)
    return found
