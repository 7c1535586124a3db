"""Parts of strategies that ask for labels: uncertainties, distances, gradient embeddings, greedy choices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from probatum.numerics.tensors.precision import unit


def least_confidence(p: Tensor) -> Tensor:
    """1 - the largest probability: (n, c) -> (n,)."""
    return 1 - p.amax(dim=1)


def closeness(p: Tensor) -> Tensor:
    """Minus the gap between the two largest probabilities ("margin", "breaking ties"): (n, c) -> (n,)."""
    two = p.topk(2, dim=1).values
    return two[:, 1] - two[:, 0]


def entropy(p: Tensor) -> Tensor:
    """Shannon entropy in nats: (..., c) -> (...)."""
    return torch.special.entr(p).sum(dim=-1)


def mutual_information(p: Tensor) -> Tensor:
    """Entropy of the mean less the mean entropy of several predictions (BALD): (m, n, c) -> (n,), at least 0."""
    return (entropy(p.mean(dim=0)) - entropy(p).mean(dim=0)).clamp(min=0)


def vote_entropy(p: Tensor) -> Tensor:
    """Entropy of the committee's votes, one a member for its likeliest class: (m, n, c) -> (n,)."""
    votes = torch.nn.functional.one_hot(p.argmax(dim=2), p.shape[2]).to(p.dtype)
    return entropy(votes.mean(dim=0))


def gradient_length(p: Tensor, features: Tensor, bias: bool = True) -> Tensor:
    """Expected norm of a linear softmax layer's gradient over its own prediction, in closed form.

    The gradient of -log p_c in the weights is (p - e_c) h^T (and p - e_c in the bias), so that its norm is
    |p - e_c| sqrt(|h|^2 + 1), and the expectation is over c ~ p. Settles et al. 2008 (expected gradient length).

    Args:
        p: (n, c) probabilities.
        features: (n, d), what the layer sees.
        bias: whether the layer has one.
    """
    square = p.square().sum(dim=1, keepdim=True) - 2 * p + 1  # |p - e_c|^2
    length = (features.square().sum(dim=1) + float(bias)).sqrt()
    return (p * square.clamp(min=0).sqrt()).sum(dim=1) * length


def gradient_embedding(p: Tensor, features: Tensor) -> Tensor:
    """Gradient of the likeliest class's loss in the last layer's weights: (n, c), (n, d) -> (n, c * d). Ash et al. 2020 (BADGE)."""
    return (_error(p)[:, :, None] * features[:, None, :]).flatten(1)


def farthest_first(points: Tensor, centres: Tensor, count: int, block: int = 1024) -> Tensor:
    """Greedy k-centre: again and again the point farthest from all centres and points chosen; positions (count,).

    At most twice the radius of the best choice (Gonzalez 1985). Without centres it begins at the point farthest from the
    mean. Points (n, d), centres (m, d), of which `block` are held against all points at once; `count` at most n.
    """
    points = points.double()
    seeds = centres.double() if len(centres) else points.mean(dim=0, keepdim=True)
    nearest = torch.stack([_squares(points, some).amin(dim=1) for some in seeds.split(block)]).amin(dim=0)
    chosen: list[int] = []
    for _ in range(count):
        new = int(nearest.argmax())
        chosen.append(new)
        nearest = torch.minimum(nearest, _squares(points, points[new : new + 1]).squeeze(1))
        nearest[new] = -1.0
    return torch.tensor(chosen, dtype=torch.int64)


def spread_draw(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeding: the first is the longest vector, then drawn with probability by squared distance; positions (count,).

    Where all points left coincide with chosen ones, the rest is drawn evenly.
    """
    points = points.double()
    return _seeding(
        points.square().sum(dim=1), lambda new: _squares(points, points[new : new + 1]).squeeze(1), count, generator
    )


def spread_draw_of_gradients(p: Tensor, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`spread_draw` of `gradient_embedding(p, features)`, which are never built: (n, c), (n, d) -> (count,).

    An embedding is the outer product of e and h, so that a squared distance takes c + d numbers a row, not c * d:
    |e h^T - f k^T|^2 = |e - f|^2 |h|^2 + |f|^2 |h - k|^2 + 2 <e - f, f> <h, h - k>, exactly 0 where both coincide.
    """
    e, h = _error(p).double(), features.double()
    e_square, h_square = e.square().sum(dim=1), h.square().sum(dim=1)

    def squares(new: int) -> Tensor:
        de, dh = e - e[new], h - h[new]
        apart = de.square().sum(dim=1) * h_square + e_square[new] * dh.square().sum(dim=1)
        return (apart + 2 * (de @ e[new]) * (h * dh).sum(dim=1)).clamp(min=0)

    return _seeding(e_square * h_square, squares, count, generator)


def _seeding(lengths: Tensor, squares: Callable[[int], Tensor], count: int, generator: torch.Generator) -> Tensor:
    """k-means++ by squared lengths (n,), and squared distances (n,) to a position."""
    nearest = lengths
    chosen: list[int] = []
    free = torch.ones(len(lengths), dtype=torch.bool)
    for k in range(count):
        weights = nearest * free
        if k == 0:
            new = int(weights.argmax())
        elif float(weights.sum()) > 0:
            new = int(torch.multinomial(weights, 1, generator=generator))
        else:
            new = int(torch.multinomial(free.double(), 1, generator=generator))
        chosen.append(new)
        free[new] = False
        nearest = torch.minimum(nearest, squares(new)) if k else squares(new)
    return torch.tensor(chosen, dtype=torch.int64)


def similarity_density(features: Tensor, block: int = 1024) -> Tensor:
    """Mean cosine similarity to all rows ("information density", Settles and Craven 2008): (n, d) -> (n,)."""
    directions = unit(features)
    centre = directions.mean(dim=0)
    return torch.cat([rows @ centre for rows in directions.split(block)])


def unit_ranks(values: Tensor) -> Tensor:
    """Ranks in [0, 1], higher values nearer 1; ties share their mean: (n,) -> (n,)."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    middle = ends - (counts.double() + 1) / 2
    return middle[inverse] / max(1, len(values) - 1)


def kappa(first: Tensor, second: Tensor, classes: int) -> float:
    """Cohen's kappa of two predictions (n,): 1 = the same everywhere; a stopping rule compares rounds by it."""
    table = torch.bincount(first * classes + second, minlength=classes * classes).reshape(classes, classes).double()
    table /= table.sum()
    seen, chance = float(table.trace()), float((table.sum(0) * table.sum(1)).sum())
    return 1.0 if chance >= 1 else (seen - chance) / (1 - chance)


def top(scores: Tensor, count: int) -> Tensor:
    """Positions of the largest scores, largest first, ties in the order of the rows; (count,)."""
    return scores.argsort(descending=True, stable=True)[:count]


def _error(p: Tensor) -> Tensor:
    """p less the likeliest class's indicator: (n, c) -> (n, c)."""
    return p - torch.nn.functional.one_hot(p.argmax(dim=1), p.shape[1]).to(p.dtype)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances (n, m), exactly 0 between equal points."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
