"""Re-label: find the rows where a model disagrees with the label, show both to somebody, put the answer in, train again.

Paper     Guo 2023, "The Re-Label Method For Data-Centric Machine Learning", arXiv:2302.04391
Computes  suspects {i: argmax p_i != y_i}, ranked by p_i[prediction] - p_i[label]; their labels are asked for and replaced,
          and the cycle begins again, two or three times
Shapes    x (n, ...), y (n,) int64 -> scores (n,), higher = the model agrees; probabilities (n, c) in between
Departs   1. probabilities come from models that did not see the row (5 folds) by default; the paper's own are in-sample
             (`folds=1`), where a model that has memorised its labels suspects nothing
          2. rows are ranked, so that a budget can be spent on the worst; the paper asks for all suspects
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.images.boxes import iou
from probatum.numerics.labels.annotators import Annotator, Change, binomial_interval
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.draws import fresh

CARD = Card(
    paper="arXiv:2302.04391",
    title="The Re-Label Method For Data-Centric Machine Learning",
    entry="score",
    number=161,
    tags=("data", "label-noise"),
    tasks=("classes",),
    tiny={"folds": 2, "steps": 60},
    tune={"folds": [1, 3, 5], "steps": [100, 200, 400]},
    tried={"steps": [10, 20], "folds": [1, 3]},
    claims=("suspects-hold-the-errors",),
)


class Suspects(NamedTuple):
    """Rows (k,) most suspicious first, by how much likelier the model holds its prediction than the label (k,), and its
    predictions (k,)."""

    rows: Tensor
    margin: Tensor
    predictions: Tensor


class Cleaned(NamedTuple):
    """Labels (n,) after the cycle, and what was changed or confirmed, line by line."""

    y: Tensor
    log: tuple[Change, ...]


class Residual(NamedTuple):
    """Share of wrong labels in a random sample and its Clopper-Pearson interval."""

    share: float
    low: float
    high: float


def predict(
    model_factory: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    folds: int = 5,
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> Tensor:
    """Probabilities (n, classes) of every row.

    Args:
        model_factory: a fresh network for x.
        x, y: rows and their labels.
        generator: folds, batch orders.
        folds: each row is predicted by a network trained on the other folds; 1 = in-sample, by one network of all rows.
        steps, batch_size, lr: training of each network.

    Raises:
        ValueError: settings out of range, fewer rows than folds.
    """
    _check(folds, steps, batch_size, lr, len(y))
    part = torch.arange(len(y))[torch.randperm(len(y), generator=generator)] % folds
    found: Tensor | None = None
    for k in range(folds):
        mine = torch.ones(len(y), dtype=torch.bool) if folds == 1 else part == k
        others = mine if folds == 1 else ~mine
        net = fit_network(fresh(model_factory, generator), x[others], y[others], steps, batch_size, lr, generator)
        with torch.no_grad():
            p = torch.cat([net(rows).softmax(dim=1) for rows in x[mine].split(512)])
        found = p.new_zeros(len(y), p.shape[1]) if found is None else found
        found[mine] = p
    if found is None:
        raise ValueError("there are no folds")
    _check_probabilities(found)
    return found


def score(
    model_factory: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    folds: int = 5,
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> Tensor:
    """Probability of each row's label less the largest other one, (n,): below 0 where the model disagrees; see `predict`.

    Example:
        >>> x = torch.randn(40, 3)
        >>> found = score(lambda: nn.Linear(3, 2), x, (x[:, 0] > 0).long(), torch.Generator(), folds=2, steps=5)
        >>> found.shape
        torch.Size([40])
    """
    p = predict(model_factory, x, y, generator, folds=folds, steps=steps, batch_size=batch_size, lr=lr)
    _check_labels(y, p.shape[1])
    own = p.gather(1, y[:, None]).squeeze(1)
    return own - p.scatter(1, y[:, None], -1.0).amax(dim=1)


def find_suspects(p: Tensor, y: Tensor, budget: int | None = None) -> Suspects:
    """Rows whose prediction is not their label, worst first; at most `budget` of them.

    Args:
        p: (n, classes) probabilities.
        y: (n,) labels.
        budget: how many can be asked for, at least 0; None = all.

    Raises:
        ValueError: labels outside the classes (listed), probabilities that are not finite, a negative budget.
    """
    _check_probabilities(p)
    _check_labels(y, p.shape[1])
    if budget is not None and budget < 0:
        raise ValueError(f"budget is {budget}; give 0 or more labels")
    prediction = p.argmax(dim=1)
    rows = (prediction != y).nonzero().squeeze(1)
    margin = p[rows, prediction[rows]] - p[rows, y[rows]]
    order = margin.argsort(descending=True, stable=True)[:budget]
    return Suspects(rows[order], margin[order], prediction[rows[order]])


def tags_differ(
    predicted: Sequence[set[tuple[int, int, str]]], given: Sequence[set[tuple[int, int, str]]]
) -> list[int]:
    """Sentences whose sets of entities (begin, end, kind) differ between prediction and annotation."""
    return [i for i, (a, b) in enumerate(zip(predicted, given, strict=True)) if a != b]


def boxes_differ(boxes: Tensor, classes: Tensor, given: Tensor, given_classes: Tensor, least: float = 0.5) -> bool:
    """Whether the boxes of an image, predicted (k, 4) and annotated (m, 4), fail to pair up by class with IoU of at least
    `least`, either way (x0, y0, x1, y1; greedy by IoU)."""
    if not 0 < least <= 1:
        raise ValueError(f"least is {least}; an overlap must lie in (0, 1]")
    if len(boxes) != len(given):
        return True
    overlap = iou(boxes, given) * (classes[:, None] == given_classes[None])
    for _ in range(len(boxes)):
        best = int(overlap.argmax())
        i, j = divmod(best, overlap.shape[1])
        if float(overlap[i, j]) < least:
            return True
        overlap[i], overlap[:, j] = -1.0, -1.0
    return False


def texts_differ(
    predicted: Sequence[str], given: Sequence[str], similarity: Callable[[str, str], float], least: float
) -> list[int]:
    """Texts whose similarity (BLEU, say) to the annotated one is below `least`."""
    return [i for i, (a, b) in enumerate(zip(predicted, given, strict=True)) if similarity(a, b) < least]


def rates_differ(p: Tensor, y: Tensor, over: float = 0.5) -> Tensor:
    """Rows whose predicted rate (n,) is off the outcome (n,) in [0, 1] by more than `over`, worst first."""
    gap = (p - y).abs()
    rows = (gap > over).nonzero().squeeze(1)
    return rows[gap[rows].argsort(descending=True, stable=True)]


def clean(
    model_factory: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    annotator: Annotator,
    generator: torch.Generator,
    *,
    rounds: int = 2,
    budget: int | None = None,
    folds: int = 5,
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> Cleaned:
    """The whole cycle: predict, list the suspects not asked before, ask, replace, again; `y` itself is left as it is.

    Args:
        model_factory, x, y, generator, folds, steps, batch_size, lr: see `predict`.
        annotator: gives labels for rows, shown their present labels and predictions.
        rounds: at most so many; it ends earlier where there are no new suspects.
        budget: labels of all rounds together, spread evenly; None = all suspects.

    Raises:
        ValueError: settings out of range, answers of the wrong shape or outside the classes.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; give 1 or more")
    labels, log, asked = y.clone(), [], torch.zeros(len(y), dtype=torch.bool)
    left = budget
    for number in range(rounds):
        p = predict(model_factory, x, labels, generator, folds=folds, steps=steps, batch_size=batch_size, lr=lr)
        found = find_suspects(p, labels)
        new = ~asked[found.rows]
        most = None if left is None else -(-left // (rounds - number))
        rows, margin, shown = (value[new][:most] for value in found)
        if not len(rows):
            break
        answer = annotator(rows, labels[rows], shown)
        if answer.shape != rows.shape:
            raise ValueError(f"the annotator gave {tuple(answer.shape)} answers for {len(rows)} rows")
        _check_labels(answer, p.shape[1])
        for row, before, said, after, gap in zip(
            rows.tolist(), labels[rows].tolist(), shown.tolist(), answer.tolist(), margin.tolist(), strict=True
        ):
            log.append(Change(number, row, before, said, after, f"prediction ahead by {gap:.3f}"))
        labels[rows] = answer
        asked[rows] = True
        left = None if left is None else left - len(rows)
    return Cleaned(labels, tuple(log))


def residual_noise(y: Tensor, annotator: Annotator, count: int, generator: torch.Generator) -> Residual:
    """Share of wrong labels among `count` rows drawn at random, whose labels are asked for again; nothing is changed."""
    if not 1 <= count <= len(y):
        raise ValueError(f"count is {count}; give 1 to {len(y)} rows")
    rows = torch.randperm(len(y), generator=generator)[:count]
    wrong = int((annotator(rows, y[rows], y[rows]) != y[rows]).sum())
    return Residual(wrong / count, *binomial_interval(wrong, count))


def _check_probabilities(p: Tensor) -> None:
    bad = (~torch.isfinite(p)).any(dim=1).nonzero().squeeze(1)
    if len(bad):
        raise ValueError(
            f"probabilities of {len(bad)} rows are not finite, row {int(bad[0])} first; they agree with no label. Was the "
            "network trained at too high a rate, or in half precision?"
        )


def _check_labels(y: Tensor, classes: int) -> None:
    outside = ((y < 0) | (y >= classes)).nonzero().squeeze(1)
    if len(outside):
        some = ", ".join(f"row {i}: {int(y[i])}" for i in outside[:10].tolist())
        raise ValueError(f"{len(outside)} labels lie outside 0 to {classes - 1}: {some}")


def _check(folds: int, steps: int, batch_size: int, lr: float, n: int) -> None:
    for name, value, least in (("folds", folds, 1), ("steps", steps, 1), ("batch_size", batch_size, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr is {lr}; it must be above 0")
    if n < 2 * folds:
        raise ValueError(f"folds is {folds}, but there are {n} rows; give at most {max(1, n // 2)}")
