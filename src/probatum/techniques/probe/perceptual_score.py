"""Perceptual score: how much accuracy is lost when one modality or group of features is swapped between examples.

Paper     Gat, Schwartz and Schwing 2021, "Perceptual Score: What Data Modalities Does Your Model Perceive?", NeurIPS,
          arXiv:2110.14375
Computes  PS_M = (Acc - mean_r Acc_r) / Z, Acc_r the accuracy after permuting M's values jointly among rows; Z is 1 ("raw"), Acc
          ("model"), 1 - the majority class's share ("room"), or Acc less that share ("task"); by subset, PS = sum_s n_s / N PS_s
Shapes    x (n, ...), y (n,), groups of positions in an example -> a score a group
Departs   1. `draw="derange"` leaves no row its own values, `draw="class"` permutes within classes; the paper draws rows at random
          2. real targets: the increase of the mean squared error over the variance of y, target by target, with Z = 1
          3. on the bench a network is trained first, and the groups are columns (tables), quarters (images, texts) or channels;
             a mask moves with the channel where there is one channel, and stays, as it is all of theirs, where there are more
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.watch import outputs_of
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import class_targets, real_targets
from probatum.spec import Data, Spec

CARD = Card(
    paper="arXiv:2110.14375",
    title="Perceptual Score: What Data Modalities Does Your Model Perceive?",
    entry="probe",
    number=119,
    tags=("explain", "multimodal", "shortcut", "robustness"),
    tiny={"steps": 20, "repeats": 5},
    claims=("the-hint-takes-over",),
)

SCALES = ("raw", "model", "room", "task")
DRAWS = ("permute", "derange", "class")
MOST = 40
"""Groups that the bench looks at where none are named."""

Predict = Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """A group's score, its standard errors over permutations and over rows (bootstrap), and the accuracy without it."""

    value: float
    over_draws: float
    over_rows: float
    permuted: float


@dataclass(frozen=True)
class Draws:
    """Permutations (r, n) that models and groups share, so that differences between them are paired."""

    rows: Tensor

    @classmethod
    def of(
        cls, n: int, repeats: int, generator: torch.Generator, draw: str = "permute", y: Tensor | None = None
    ) -> Draws:
        """Draw them.

        Args:
            n: rows, at least 2.
            repeats: at least 5, since their mean estimates an expectation.
            draw: "permute", "derange" (no row keeps its own values) or "class" (rows of equal y change places).
            y: (n,) or (n, 1) classes, for "class".

        Raises:
            ValueError: settings out of range, "class" without classes.
        """
        if n < 2:
            raise ValueError(f"there are {n} rows; values are swapped between 2 or more")
        if repeats < 5:
            raise ValueError(f"repeats is {repeats}; give 5 or more")
        if draw not in DRAWS:
            raise ValueError(f"draw is {draw!r}; use one of {', '.join(DRAWS)}")
        if draw == "class" and (y is None or y.is_floating_point()):
            raise ValueError("draw is 'class', which permutes within classes; give y as class codes")
        found = []
        for _ in range(repeats):
            order = torch.randperm(n, generator=generator)
            if draw == "derange":
                place = torch.empty_like(order)
                place[order] = order.roll(1)  # one cycle through all rows
                order = place
            elif draw == "class" and y is not None:
                place, codes = torch.arange(n), y.reshape(-1)
                for c in codes.unique():
                    mine = (codes == c).nonzero().squeeze(1)
                    place[mine] = mine[torch.randperm(len(mine), generator=generator)]
                order = place
            found.append(order)
        return cls(torch.stack(found))


def check_groups(groups: Mapping[str, Sequence[int]], size: int) -> dict[str, Tensor]:
    """Positions of each group among the `size` numbers of a flattened example.

    Raises:
        ValueError: no groups, an empty one, positions outside the example, or one that two groups share; it names them.
    """
    if not groups:
        raise ValueError("there are no groups; name the columns of at least one")
    taken: dict[int, str] = {}
    for name, positions in groups.items():
        outside = [p for p in positions if not 0 <= p < size]
        if outside or not len(positions):
            what = f"positions {outside[:5]}" if outside else "no positions"
            raise ValueError(f"group {name!r} has {what}; an example has 0 to {size - 1}")
        for p in positions:
            if p in taken:
                raise ValueError(f"position {p} is in {taken[p]!r} and in {name!r}; groups must not overlap")
            taken[p] = name
    return {name: torch.as_tensor(list(positions), dtype=torch.int64) for name, positions in groups.items()}


def swapped(x: Tensor, positions: Tensor, order: Tensor) -> Tensor:
    """x (n, ...) with the values at these flattened positions taken from the rows `order` (n,), all from the same one."""
    flat = x.flatten(1).clone()
    flat[:, positions] = flat[order][:, positions]
    return flat.reshape(x.shape)


def right(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """What is averaged, (n,): 1 where the likeliest class is y; real targets: 1 - squared error over the variance of y.

    Several real targets count alike, each in units of its own variance.

    Raises:
        ValueError: outputs and targets of shapes that do not go together, classes without an output, or a target that is the
            same in all rows.
    """
    output = widened(predict(x.clone()))  # a network may begin by changing them in place
    if y.is_floating_point():
        output = output[:, None] if output.ndim == 1 else output
        y = widened(real_targets(output, y))
        if bool(y.isnan().any()):
            raise ValueError(f"{int(y.isnan().any(dim=1).sum())} of {len(y)} rows have no target (NaN); leave them out")
        spread = (y - y.mean(dim=0)).square().mean(dim=0)
        same = (y == y[:1]).all(dim=0).reshape(-1)
        if bool(same.any()):
            column = int(same.nonzero()[0])
            raise ValueError(
                f"target {column} is the same in all {len(y)} rows, so that nothing of it is explained; leave it out"
            )
        return 1 - ((output - y).square() / spread).flatten(1).mean(dim=1)
    return (output.argmax(dim=1) == class_targets(output, y, least=1)).double()


def scale_of(y: Tensor, accuracy: float, scale: str) -> float:
    """Z; ValueError where it is not above 0 (a model no better than the majority) or the scale is unknown."""
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; use one of {', '.join(SCALES)}")
    if scale == "raw" or y.is_floating_point():
        return 1.0
    majority = float(torch.bincount(y.reshape(-1)).max()) / len(y)
    z = {"model": accuracy, "room": 1 - majority, "task": accuracy - majority}[scale]
    if z <= 0:
        raise ValueError(
            f"scale {scale!r} divides by {z:.3g}: the model is no better than the largest class; use 'raw'"
        )
    return z


def perceptual_scores(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    groups: Mapping[str, Sequence[int]],
    draws: Draws,
    scale: str = "raw",
    bootstrap: int = 200,
) -> dict[str, Score]:
    """The score of every group.

    Args:
        predict: rows (n, ...) -> outputs (n, outputs), no gradient is needed.
        x, y: test rows, classes (n,) or real targets (n, outputs), of one output (n,) as well.
        groups: name -> positions in a flattened example that move together.
        draws: shared permutations of the n rows.
        scale: "raw", "model", "room" or "task", see the header.
        bootstrap: resamplings of the rows for the second standard error.

    Raises:
        ValueError: see `check_groups`, `right` and `scale_of`; draws of another number of rows.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> model = lambda x: torch.stack([-x[:, 0], x[:, 0]], dim=1)
        >>> draws = Draws.of(100, 5, torch.Generator().manual_seed(1))
        >>> found = perceptual_scores(model, x, (x[:, 0] > 0).long(), {"a": [0], "b": [1]}, draws)
        >>> found["b"].value, found["a"].value > 0.3
        (0.0, True)
    """
    kept = losses(predict, x, y, groups, draws)
    before = right(predict, x, y).double()
    z = scale_of(y, float(before.mean()), scale)
    weights = torch.multinomial(
        torch.ones(max(1, bootstrap), len(y)), len(y), replacement=True, generator=torch.Generator().manual_seed(0)
    )
    found = {}
    for name, lost in kept.items():
        each = lost.mean(dim=1)
        rows = lost.mean(dim=0)
        over_rows = float(rows[weights].mean(dim=1).std()) / z if bootstrap > 1 else float("nan")
        over_draws = float(each.std()) / len(each) ** 0.5 / z
        value = float(each.mean())
        found[name] = Score(value / z, over_draws, over_rows, float(before.mean()) - value)
    return found


def losses(
    predict: Predict, x: Tensor, y: Tensor, groups: Mapping[str, Sequence[int]], draws: Draws
) -> dict[str, Tensor]:
    """What each row loses by each permutation of each group, (r, n): the same draws for two models pair their difference."""
    places = check_groups(groups, x.shape[1:].numel())
    if draws.rows.shape[1] != len(x):
        raise ValueError(f"the draws are of {draws.rows.shape[1]} rows, and there are {len(x)}")
    before = right(predict, x, y).double()
    return {
        name: torch.stack([before - right(predict, swapped(x, at, order), y) for order in draws.rows])
        for name, at in places.items()
    }


def by_subset(lost: Tensor, subset: Tensor, z: float = 1.0) -> dict[int, tuple[float, float]]:
    """Of losses (r, n): the score of each subset (n,) and its share of the rows; the shares weigh them to the whole score."""
    return {
        int(s): (float(lost[:, subset == s].mean()) / z, float((subset == s).double().mean())) for s in subset.unique()
    }


def usual_groups(spec: Spec) -> dict[str, list[int]]:
    """Columns of tables (the first 40), quarters of images and texts, channels of series."""
    shape = spec.shape
    places = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    if spec.modality == "table":
        names = spec.features or tuple(f"column {i}" for i in range(shape[0]))
        return {name: [i] for i, name in enumerate(names[: min(MOST, shape[0])])}
    if spec.modality == "image":
        h, w = shape[1] // 2, shape[2] // 2
        parts = {"top left": (0, h, 0, w), "top right": (0, h, w, None), "bottom left": (h, None, 0, w)}
        parts |= {"bottom right": (h, None, w, None)}
        return {name: places[:, a:b, c:d].flatten().tolist() for name, (a, b, c, d) in parts.items()}
    if spec.modality == "text":
        pieces = places.tensor_split(min(4, shape[0]))
        return {f"quarter {i + 1}": piece.tolist() for i, piece in enumerate(pieces)}
    channels = shape[0] - spec.masked
    if spec.masked and channels == 1:  # values and the mask that says which of them there are make one modality
        return {"channel 0": places.flatten().tolist()}
    return {f"channel {i}": places[i].flatten().tolist() for i in range(min(MOST, channels))}


def probe(
    model_factory: Callable[[], nn.Module],
    data: Data,
    generator: torch.Generator,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    scale: str = "raw",
    draw: str = "permute",
    repeats: int = 10,
    steps: int = 400,
    lr: float = 2e-3,
) -> dict[str, float]:
    """Train a network and measure how much it uses each group of the test rows.

    Args:
        model_factory: a fresh network.
        data: one split.
        generator: batch orders and permutations.
        groups: name -> positions in a flattened example; None = `usual_groups`.
        scale, draw, repeats: see `perceptual_scores` and `Draws.of`.
        steps, lr: of the training, at least 1 and above 0.

    Returns:
        "accuracy" (for real targets 1 - error over variance), and for each group its score and standard error.

    Raises:
        ValueError: settings out of range.
    """
    if not isinstance(steps, int) or steps < 1 or not 0 < lr < float("inf"):
        raise ValueError(f"steps is {steps!r}, lr {lr}; use at least 1 and above 0")
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; use one of {', '.join(SCALES)}")
    y = data.test.y
    chosen = usual_groups(data.spec) if groups is None else groups
    check_groups(chosen, data.test.x.shape[1:].numel())
    draws = Draws.of(len(y), repeats, generator, draw, y)
    net = fit_network(model_factory(), data.train.x, data.train.y, steps, 64, lr, generator)

    def predict(x: Tensor) -> Tensor:
        return outputs_of(net, x, 1024)

    out = {"accuracy": float(right(predict, data.test.x, y).mean())}
    for name, score in perceptual_scores(predict, data.test.x, y, chosen, draws, scale).items():
        out |= {f"score of {name}": score.value, f"standard error of {name}": score.over_rows}
    return out
