"""Calibration benchmark: which errors agree over a family of networks, and what temperature does to their order.

Paper     Tao et al. 2024, "A Benchmark Study on Calibration", ICLR 2024, arXiv:2308.11838, sections 3 and 4
Computes  for every network of a family (depth x width x activation x norm) and every member: ECE and class-wise ECE with equal
          width and equal mass, MCE, all at several numbers of bins, KS error, log-loss, Brier, AUROC against scrambled rows
          and accuracy on test rows, before and after a temperature fitted on validation rows; then Kendall's tau between
          errors, between members, before and after scaling, and the effect of each choice
Shapes    (data, generator) -> dict of named numbers; `survey` -> one row a network, member and stage
Departs   1. the family is multilayer perceptrons on flattened inputs, not the 117,702 convolutional cells of NATS-Bench
          2. members differ by initial weights and batches and are trained as one stacked computation; an elementwise optimizer
             keeps them independent
          3. outside rows are test rows whose columns were permuted apart, not other image sets
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.calibration.reliability import equal_mass, equal_width, ks_error, largest_gap, mean_gap
from probatum.numerics.calibration.temperature import fit_temperature
from probatum.numerics.tensors.columns import varying
from probatum.numerics.tensors.targets import class_codes, coded
from probatum.spec import Data, Spec

CARD = Card(
    paper="arXiv:2308.11838",
    title="A Benchmark Study on Calibration",
    entry="calibration_benchmark",
    number=92,
    tags=("calibration", "evaluation", "architectures"),
    modalities=("table", "image", "series"),
    tasks=("classes",),
    tiny={
        "depths": [1],
        "widths": [4, 8],
        "activations": ["relu"],
        "norms": ["none"],
        "steps": 4,
        "bins": [5],
        "main": 5,
    },
    claims=("which-errors-agree",),
)

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}
NORMS = ("none", "batch")
MOMENTUM = 0.1

Row = dict[str, float | str]


class Design(NamedTuple):
    """One network of the family."""

    depth: int
    width: int
    activation: str
    norm: str


def measures(p: np.ndarray, y: np.ndarray, bins: Sequence[int] = (15,)) -> dict[str, float]:
    """Calibration errors and scores of probabilities (n, K) for codes (n,).

    Names: "accuracy", "log-loss", "brier", "ks", and for every number of bins b "ece@b", "ece-mass@b", "classwise@b",
    "classwise-mass@b", "mce@b". Bins are closed on the right, 0 goes to the first; empty ones count nothing.

    Raises:
        ValueError: rows that are no probabilities (logits), labels that do not fit, or fewer rows than bins.
        TypeError: labels that are no whole numbers.
    """
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(y):
        raise ValueError(f"p is {p.shape} and y {y.shape}; give (n, K) and (n,), n >= 1")
    y = class_codes(torch.as_tensor(y), len(p), p.shape[1]).numpy()
    p = np.asarray(p, dtype=np.float64)
    if not (p.min() >= 0 and abs(p.sum(axis=1) - 1).max() <= 1e-3):  # NaN is neither
        raise ValueError(
            f"rows of p span {p.min():.3g} to {p.max():.3g} and do not sum to 1; apply softmax to logits first"
        )
    if min(bins) < 1 or max(bins) > len(y):
        raise ValueError(f"bins is {list(bins)} for {len(y)} rows; use between 1 and {len(y)}")
    top, right = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
    found = {
        "accuracy": float(right.mean()),
        "log-loss": float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()),
        "brier": float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean()),
        "ks": ks_error(top, right),
    }
    for b in bins:
        found[f"ece@{b}"] = mean_gap(equal_width(top, right, b))
        found[f"ece-mass@{b}"] = mean_gap(equal_mass(top, right, b))
        found[f"mce@{b}"] = largest_gap(equal_width(top, right, b))
        for name, cut in (("classwise", equal_width), ("classwise-mass", equal_mass)):
            gaps = [mean_gap(cut(p[:, k], (y == k).astype(np.float64), b)) for k in range(p.shape[1])]
            found[f"{name}@{b}"] = float(np.mean(gaps))
    return found


def tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two orders; 0 where one of them is constant."""
    found = float(kendalltau(first, second).statistic)
    return found if found == found else 0.0


class Stacked:
    """Members of one design as stacked weights: x (S, n, inputs) -> logits (S, n, outputs).

    Args:
        design: depth hidden layers of one width.
        inputs, outputs: sizes.
        generators: one a member, for its initial weights.
    """

    def __init__(self, design: Design, inputs: int, outputs: int, generators: Sequence[torch.Generator]) -> None:
        self.design = design
        sizes = [inputs, *[design.width] * design.depth, outputs]
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for a, b in itertools.pairwise(sizes):
            bound = a**-0.5
            drawn = [(2 * torch.rand(a + 1, b, generator=g) - 1) * bound for g in generators]
            both = torch.stack(drawn)
            self.weights.append(both[:, :a].clone().requires_grad_())
            self.biases.append(both[:, a:].clone().requires_grad_())
        shape = (len(generators), 1, design.width)
        hidden = design.depth if design.norm == "batch" else 0
        self.scales = [torch.ones(shape, requires_grad=True) for _ in range(hidden)]
        self.shifts = [torch.zeros(shape, requires_grad=True) for _ in range(hidden)]
        self.running = [(torch.zeros(shape), torch.ones(shape)) for _ in range(hidden)]

    def parameters(self) -> list[Tensor]:
        """Everything that is trained."""
        return [*self.weights, *self.biases, *self.scales, *self.shifts]

    def __call__(self, x: Tensor, *, training: bool = False) -> Tensor:
        for i in range(self.design.depth):
            x = x @ self.weights[i] + self.biases[i]
            if self.scales:
                x = self._normed(i, x, training)
            x = ACTIVATIONS[self.design.activation](x)
        return x @ self.weights[-1] + self.biases[-1]

    def _normed(self, i: int, x: Tensor, training: bool) -> Tensor:
        mean, variance = self.running[i]
        if training:
            mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, unbiased=False)
            old = self.running[i]
            unbiased = variance.detach() * x.shape[1] / max(1, x.shape[1] - 1)
            self.running[i] = (
                old[0] + MOMENTUM * (mean.detach() - old[0]),
                old[1] + MOMENTUM * (unbiased - old[1]),
            )
        return (x - mean) * (variance + 1e-5).rsqrt() * self.scales[i] + self.shifts[i]


def train_members(
    design: Design,
    x: Tensor,
    y: Tensor,
    outputs: int,
    seeds: Sequence[int],
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 5e-3,
    weight_decay: float = 1e-4,
) -> Stacked:
    """Train one member a seed by AdamW with a half cosine on cross-entropy; each has its own weights and batches."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    net = Stacked(design, x.shape[1], outputs, generators)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    size = min(batch_size, len(x))
    for _ in range(steps):
        index = torch.stack([torch.randint(len(x), (size,), generator=g) for g in generators])
        logits = net(x[index], training=True)
        # a sum over members: the gradient of each is that of its own mean loss
        loss = F.cross_entropy(logits.flatten(0, 1), y[index].flatten(), reduction="sum") / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net


def flattened(spec: Spec, *parts: Tensor) -> list[Tensor]:
    """Rows as vectors, categories one-hot, standardised by the first part."""
    made = []
    for x in parts:
        if spec.modality == "table" and spec.cardinalities:
            kinds = [
                F.one_hot(x[:, spec.numeric + i].long().clamp(0, size - 1), size).float()
                for i, size in enumerate(spec.cardinalities)
            ]
            x = torch.cat([x[:, : spec.numeric], *kinds], dim=1)
        made.append(x.flatten(1).float())
    centre, spread = made[0].mean(dim=0), made[0].std(dim=0, correction=int(len(made[0]) > 1))
    return [(x - centre) / torch.where(varying(made[0]), spread, torch.ones_like(spread)) for x in made]


def survey(
    data: Data,
    seeds: Sequence[int],
    *,
    depths: Sequence[int] = (1, 2, 3),
    widths: Sequence[int] = (16, 64, 256),
    activations: Sequence[str] = ("relu", "tanh"),
    norms: Sequence[str] = NORMS,
    steps: int = 200,
    bins: Sequence[int] = (5, 15, 50),
    batch_size: int = 64,
    lr: float = 5e-3,
) -> list[Row]:
    """The tidy table: a row for every network of the family, seed, and stage "before" or "after" temperature scaling.

    Columns: depth, width, activation, norm, seed, stage, temperature, "ood-auroc", and all of `measures`.

    Raises:
        ValueError: settings out of range, or fewer test rows than bins.
    """
    _check(depths, widths, activations, norms, steps, bins, batch_size, lr)
    if not seeds:
        raise ValueError("seeds is empty; give one or more")
    if max(bins) > len(data.test):
        raise ValueError(f"bins is {list(bins)} for {len(data.test)} test rows; use at most {len(data.test)}")
    data = coded(data)
    x, held, test = flattened(data.spec, data.train.x, data.valid.x, data.test.x)
    mixer = torch.Generator().manual_seed(int(seeds[0]))
    outside = torch.stack([column[torch.randperm(len(column), generator=mixer)] for column in test.T], dim=1)
    y, rows = data.test.y.numpy(), []
    for design in itertools.starmap(Design, itertools.product(depths, widths, activations, norms)):
        net = train_members(
            design, x, data.train.y, data.spec.outputs, seeds, steps=steps, batch_size=batch_size, lr=lr
        )
        with torch.no_grad():
            on_valid, on_test, on_outside = (
                net(part.expand(len(seeds), -1, -1)).double() for part in (held, test, outside)
            )
        for i, seed in enumerate(seeds):
            fitted = fit_temperature(on_valid[i], data.valid.y)
            for stage, by in (("before", 1.0), ("after", fitted)):
                p = (on_test[i] / by).softmax(dim=1).numpy()
                strange = (on_outside[i] / by).softmax(dim=1).numpy()
                known = np.repeat([1, 0], [len(p), len(strange)])
                area = float(roc_auc_score(known, np.concatenate([p.max(axis=1), strange.max(axis=1)])))
                told: Row = {
                    **design._asdict(),
                    "seed": float(seed),
                    "stage": stage,
                    "temperature": by,
                    "ood-auroc": area,
                }
                rows.append(told | measures(p, y, bins))
    return rows


def column(rows: Iterable[Mapping[str, float | str]], name: str, **where: float | str) -> list[float]:
    """The values of one measure in the rows where the named columns have these values, in the order of the table."""
    return [float(row[name]) for row in rows if all(row[key] == value for key, value in where.items())]


def summarise(rows: Sequence[Row], main: int = 15) -> dict[str, float]:
    """What a table of one data set says, at `main` bins; see `calibration_benchmark`.

    Raises:
        ValueError: a table without rows for so many bins.
    """
    ece = f"ece@{main}"
    if not rows or ece not in rows[0]:
        raise ValueError(f"the table has no column {ece}; main must be one of its numbers of bins")
    seeds = sorted({float(row["seed"]) for row in rows})
    counts = sorted({int(name.split("@")[1]) for name in rows[0] if name.startswith("ece@")})

    def of(name: str, seed: float, stage: str = "before") -> list[float]:
        return column(rows, name, seed=seed, stage=stage)

    def average(pairs: Iterable[tuple[list[float], list[float]]]) -> float:
        found = [tau(a, b) for a, b in pairs]
        return float(np.mean(found)) if found else 0.0

    told = {}
    for other in ("ks", f"mce@{main}", f"ece-mass@{main}", f"classwise@{main}", f"classwise-mass@{main}"):
        told[f"tau: ece, {other.split('@')[0]}"] = average((of(ece, s), of(other, s)) for s in seeds)
    for other in ("brier", "log-loss", "ood-auroc", "accuracy"):
        told[f"tau: ece, {other}"] = average((of(ece, s), of(other, s)) for s in seeds)
    told["tau: ece, between seeds"] = average((of(ece, a), of(ece, b)) for a, b in itertools.combinations(seeds, 2))
    told["tau: ece, before and after scaling"] = average((of(ece, s), of(ece, s, "after")) for s in seeds)
    told["tau: ece, between numbers of bins"] = average(
        (of(f"ece@{a}", s), of(f"ece@{b}", s)) for a, b in itertools.combinations(counts, 2) for s in seeds
    )
    best = []
    for s in seeds:
        right, off = np.array(of("accuracy", s)), np.array(of(ece, s))
        top = np.argsort(-right, kind="stable")[: max(2, len(right) // 3)]
        best.append((right[top].tolist(), off[top].tolist()))
    told["tau: ece, accuracy of the best third"] = average(best)
    told["mean ece before"] = float(np.mean(column(rows, ece, stage="before")))
    told["mean ece after"] = float(np.mean(column(rows, ece, stage="after")))
    told["mean temperature"] = float(np.mean(column(rows, "temperature", stage="after")))
    for choice in ("depth", "width", "activation", "norm"):
        values = list(dict.fromkeys(row[choice] for row in rows))
        if len(values) > 1:
            ends = [float(np.mean(column(rows, ece, stage="before", **{choice: v}))) for v in (values[-1], values[0])]
            told[f"ece: {choice} {values[-1]} less {values[0]}"] = ends[0] - ends[1]
    return told


def calibration_benchmark(
    data: Data,
    generator: torch.Generator,
    depths: Sequence[int] = (1, 2, 3),
    widths: Sequence[int] = (16, 64, 256),
    activations: Sequence[str] = ("relu", "tanh"),
    norms: Sequence[str] = NORMS,
    members: int = 2,
    steps: int = 200,
    bins: Sequence[int] = (5, 15, 50),
    main: int = 15,
    batch_size: int = 64,
    lr: float = 5e-3,
) -> dict[str, float]:
    """Train the family on the data and say which calibration errors agree; `survey` keeps the whole table.

    Args:
        data: one split; temperatures are fitted on its validation rows, everything is measured on its test rows.
        generator: the members' seeds are drawn from it.
        depths: numbers of hidden layers, 1 or more.
        widths: their units.
        activations: out of relu and tanh.
        norms: out of none and batch.
        members: networks of each design, 2 or more: the order's agreement between them is the ceiling for any other.
        steps: updates of each network.
        bins: numbers of bins; those above the number of test rows are left out.
        main: the number of bins that errors are compared at, one of `bins`.
        batch_size: rows of an update.
        lr: learning rate of AdamW.

    Returns:
        "tau: ece, ks" and such: agreement of the networks' orders; "tau: ece, between seeds"; "mean ece before" and "mean
        ece after" scaling; "ece: width 256 less 16" and such: effect of a choice.

    Raises:
        ValueError: a setting out of range, or fewer test rows than `main` bins.

    Example:
        >>> from probatum.spec import Part
        >>> x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
        >>> part = Part(x, (x[:, 0] > 0).long(), torch.arange(90))
        >>> data = Data(Spec("table", "classes", (3,), 2, numeric=3), part, part, part)
        >>> found = calibration_benchmark(data, torch.Generator().manual_seed(0), widths=[4, 8], steps=20, bins=[15])
        >>> -1 <= found["tau: ece, between seeds"] <= 1
        True
    """
    if members < 2:
        raise ValueError(f"members is {members}; use 2 or more, or nothing says how much of an order is chance")
    if main not in bins:
        raise ValueError(f"main is {main}; it must be one of bins {list(bins)}")
    if main > len(data.test):
        raise ValueError(f"main is {main} bins for {len(data.test)} test rows; use at most {len(data.test)}")
    seeds = torch.randint(2**31, (members,), generator=generator).tolist()
    rows = survey(
        data,
        seeds,
        depths=depths,
        widths=widths,
        activations=activations,
        norms=norms,
        steps=steps,
        bins=[b for b in bins if b <= len(data.test)],
        batch_size=batch_size,
        lr=lr,
    )
    return summarise(rows, main)


def _check(
    depths: Sequence[int],
    widths: Sequence[int],
    activations: Sequence[str],
    norms: Sequence[str],
    steps: int,
    bins: Sequence[int],
    batch_size: int,
    lr: float,
) -> None:
    for name, values, least in (("depths", depths, 1), ("widths", widths, 1), ("bins", bins, 1)):
        if not values or not all(isinstance(value, int | np.integer) and value >= least for value in values):
            raise ValueError(f"{name} is {list(values)}; give whole numbers of at least {least}")
    for name, chosen, known in (("activations", activations, tuple(ACTIVATIONS)), ("norms", norms, NORMS)):
        if not chosen or not set(chosen) <= set(known):
            raise ValueError(f"{name} is {list(chosen)}; use some of {', '.join(known)}")
    if steps < 1 or batch_size < 2 or not lr > 0:
        raise ValueError(f"steps is {steps}, batch_size {batch_size}, lr {lr}; use 1, 2 or more, and above 0")
