"""Wrong labels: whom to flip and to what, the law of the labels that come of it, and when the right class still leads."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import check_codes

INSTANCE_SPREAD = 0.1
"""Standard deviation of the flip rates of rows in `instance_law` (Xia et al. 2020)."""


def symmetric_law(classes: int) -> Tensor:
    """(classes, classes): a wrong label is any other class, each as likely."""
    _check_classes(classes)
    return (1 - torch.eye(classes, dtype=torch.float64)) / (classes - 1)


def pair_law(classes: int) -> Tensor:
    """(classes, classes): a wrong label is the next class, the last one's is the first."""
    _check_classes(classes)
    return torch.eye(classes, dtype=torch.float64).roll(1, dims=1)


def confusion_law(features: Tensor, y: Tensor, classes: int, generator: Generator, ridge: float = 1.0) -> Tensor:
    """(classes, classes): a wrong label is what a linear model finds next likeliest for rows of the class.

    Ridge regression on one-hot labels is fitted on either half of the rows and asked about the other; row k holds the
    shares with which it ranks the other classes first among rows of class k.

    Args:
        features: (n, d), about standardised.
        y: (n,) class codes.
        classes: how many.
        generator: draws the halves.
        ridge: penalty, in units of one row.
    """
    _check_classes(classes)
    z = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    targets = torch.nn.functional.one_hot(y, classes).double()
    half = torch.zeros(len(y), dtype=torch.bool)
    half[torch.randperm(len(y), generator=generator)[: len(y) // 2]] = True
    scores = torch.empty(len(y), classes, dtype=torch.float64)
    penalty = ridge * torch.eye(z.shape[1], dtype=torch.float64)
    for fitted, asked in ((half, ~half), (~half, half)):
        a = z[fitted]
        scores[asked] = z[asked] @ torch.linalg.solve(a.T @ a + penalty, a.T @ targets[fitted])
    runner_up = scores.scatter(1, y[:, None], float("-inf")).argmax(dim=1)
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    counts.index_put_((y, runner_up), torch.ones(len(y), dtype=torch.float64), accumulate=True)
    seen = counts.sum(dim=1, keepdim=True)
    return torch.where(seen > 0, counts / seen.clamp_min(1), symmetric_law(classes))


def wrong_labels(y: Tensor, law: Tensor, rate: float, generator: Generator) -> Tensor:
    """Labels of which exactly round(rate * n) are wrong, drawn from the law of their class.

    Args:
        y: (n,) class codes; not changed.
        law: (classes, classes), rows sum to 1, zero diagonal.
        rate: share of wrong labels, 0 <= rate <= 1.
        generator: source of randomness.
    """
    check_law(law)
    check_codes(y, len(law))  # a negative one would be counted from the end
    if law.diagonal().abs().max() > 0:
        raise ValueError("the law of wrong labels gives the right label a chance; set its diagonal to 0")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; it must lie between 0 and 1")
    chosen = torch.randperm(len(y), generator=generator)[: round(rate * len(y))]
    found = y.clone()
    if len(chosen):
        found[chosen] = torch.multinomial(law[y[chosen]], 1, generator=generator).squeeze(1)
    return found


def instance_law(features: Tensor, y: Tensor, classes: int, rate: float, generator: Generator) -> Tensor:
    """(n, classes): the law of each row's noisy label, which hangs on the row (Xia et al. 2020, algorithm 2).

    A row's flip rate is normal around `rate` with deviation 0.1, cut to [0, 1]; its wrong labels have the softmax of a
    random projection of its features that belongs to its class.
    """
    _check_classes(classes)
    check_codes(y, classes)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; it must lie between 0 and 1")
    flips = rate + INSTANCE_SPREAD * torch.randn(8 * len(y) + 64, generator=generator, dtype=torch.float64)
    flips = flips[(flips >= 0) & (flips <= 1)][: len(y), None]  # at worst half of them are left, at the rates 0 and 1
    width = features.shape[1]
    projections = torch.randn(classes, width, classes, generator=generator, dtype=torch.float64)
    scores = torch.einsum("nd,ndc->nc", features.double(), projections[y])
    wrong = (scores / max(1.0, width**0.5)).scatter(1, y[:, None], float("-inf")).softmax(dim=1)
    return flips * wrong + (1 - flips) * torch.nn.functional.one_hot(y, classes)


def draw_labels(law: Tensor, generator: Generator) -> Tensor:
    """(n,) int64: one label a row from (n, classes) probabilities."""
    return torch.multinomial(law.to(generator.device), 1, generator=generator).squeeze(1).to(law.device)


@computed_wide
def diluted_law(clean: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """Law of labels where every clean example comes with `alpha` noisy ones: (p + alpha r) / (1 + alpha); any shape."""
    check_alpha(alpha)
    return (clean + alpha * noise) / (1 + alpha)


@computed_wide
def survives(clean: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """(n,) whether the likeliest class of p stays the likeliest: p_best - p_j > alpha (r_j - r_best) for all other j.

    Args:
        clean: (n, classes) probabilities p.
        noise: (n, classes) probabilities r of the noisy labels.
        alpha: noisy examples for each clean one.
    """
    check_alpha(alpha)
    best = clean.argmax(dim=1, keepdim=True)
    margin = clean.gather(1, best) - clean - alpha * (noise - noise.gather(1, best))
    return (margin.scatter(1, best, float("inf")) > 0).all(dim=1)


def check_law(law: Tensor) -> None:
    """ValueError unless there is a row and a column for each class, and the rows are probabilities."""
    if law.ndim != 2 or law.shape[0] != law.shape[1] or not len(law):
        raise ValueError(f"the noise matrix is {tuple(law.shape)}; give a row and a column for each class")
    sums = law.double().sum(dim=-1)
    if not torch.isfinite(law).all() or law.min() < 0 or (sums - 1).abs().max() > 1e-6:
        row = int((sums - 1).abs().nan_to_num(float("inf")).argmax())
        raise ValueError(f"row {row} of the noise matrix sums to {float(sums[row]):.6g}; rows are probabilities, sum 1")


def check_alpha(alpha: float) -> None:
    """ValueError unless alpha is finite and at least 0."""
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}; give the noisy examples for each clean one, 0 or more")


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ValueError(f"there is {classes} class; wrong labels need 2 or more")
