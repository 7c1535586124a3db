"""Randomization tests: how much of the training set, even of pure noise, this network can memorise.

Paper     Zhang et al. 2017, "Understanding deep learning requires rethinking generalization", arXiv:1611.03530
Computes  the same network, from the same weights and with the same settings, on true, partly corrupted and random labels,
          and on shuffled, random and Gaussian inputs: steps to fit, train and test accuracy, slowdown against the truth;
          random labels again under each regulariser
Shapes    (model_factory, data, generator) -> dict of named numbers
Departs   1. a corrupted label is drawn from all classes, as in the paper, so that 1/classes of them stay right;
             other=True draws from the other classes
          2. trained by Adam (or SGD with momentum) at a constant rate, with L2 weight decay where that is the regulariser
          3. category columns of tables are left in place when inputs are shuffled or replaced; a mask is shuffled with its
             series, and no noise is put in its place or where it says that nothing was observed
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.modes import begin_training
from probatum.numerics.networks.surgery import swap
from probatum.numerics.networks.watch import look, outputs_of
from probatum.numerics.optimisation.fit_network import in_single
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.free import free_entries
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import coded
from probatum.spec import Data, Spec

CARD = Card(
    paper="arXiv:1611.03530",
    title="Understanding deep learning requires rethinking generalization",
    entry="randomization_tests",
    number=138,
    tags=("memorisation", "generalisation", "noise"),
    tasks=("classes",),
    tiny={"max_steps": 4, "rows": 40, "corruption": [0.5], "regularisers": ["weight-decay"]},
    claims=("random-labels-are-learned",),
)

INPUTS = ("shuffled-inputs", "random-inputs", "gaussian-inputs")
REGULARISERS = ("weight-decay", "dropout", "augmentation", "no-batch-norm")


class Fit(NamedTuple):
    """steps taken, whether the accuracy was reached by then, and accuracies at the end."""

    steps: int
    fitted: bool
    train_accuracy: float
    test_accuracy: float
    best_valid_test_accuracy: float


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    max_steps: int
    batch_size: int
    lr: float
    optimizer: str
    fit_accuracy: float


def corrupt_labels(y: Tensor, classes: int, share: float, generator: torch.Generator, other: bool = False) -> Tensor:
    """Labels (n,), each replaced with probability `share` by a uniform one: of all classes, or of the other ones.

    Raises:
        ValueError: a share outside [0, 1], or fewer than two classes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the corrupted share is {share}; it must lie in [0, 1]")
    if classes < 2:
        raise ValueError(f"there is {classes} class; wrong labels need 2 or more")
    where = {"generator": generator, "device": generator.device}
    drawn = torch.randint(classes, y.shape, **where).to(y.device)
    if other:
        drawn = (y + 1 + torch.randint(classes - 1, y.shape, **where).to(y.device)) % classes
    return torch.where(torch.rand(y.shape, **where).to(y.device) < share, drawn, y)


def change_inputs(parts: Sequence[Tensor], spec: Spec, kind: str, generator: torch.Generator) -> list[Tensor]:
    """The inputs of several parts with structure taken away.

    "shuffled-inputs" permutes positions (pixels, columns, time steps, tokens) by one permutation for all examples,
    "random-inputs" by a fresh one for each, "gaussian-inputs" draws from the first part's mean and variance. Codes of
    categories stay. A mask moves with the time steps that it speaks of; noise leaves it and what it hides alone.
    """
    width = spec.numeric if spec.modality == "table" else parts[0].flatten(2 if parts[0].ndim > 2 else 1).shape[-1]
    shared = torch.randperm(width, generator=generator)
    if kind == "gaussian-inputs":
        return _noise(parts, spec, generator)
    changed = []
    for x in parts:
        flat = x.clone().flatten(2) if x.ndim > 2 else x.clone()
        free = flat[..., :width]
        if kind == "shuffled-inputs":
            free = free[..., shared]
        elif kind == "random-inputs":
            own = torch.rand(len(x), width, generator=generator).argsort(dim=1)
            free = free.gather(-1, own if flat.ndim == 2 else own[:, None, :].expand_as(free))
        else:
            raise ValueError(f"inputs are changed by {kind!r}; use one of {', '.join(INPUTS)}")
        flat[..., :width] = free
        changed.append(flat.view(x.shape))
    return changed


def _noise(parts: Sequence[Tensor], spec: Spec, generator: torch.Generator) -> list[Tensor]:
    """The parts with the mean and deviation of the first one's measurements, and nothing else of them."""
    held = free_entries(spec, parts[0])
    source = parts[0] if held is None else parts[0][held]
    source = source[~source.isnan()]  # missing values are no measurements
    mean, deviation, changed = source.mean(), source.std(), []
    for x in parts:
        free = free_entries(spec, x)
        place = torch.ones_like(x, dtype=torch.bool) if free is None else free
        drawn = torch.randn(int(place.sum()), generator=generator, device=generator.device).to(x)
        changed.append(x.masked_scatter(place, mean + deviation * drawn))
    return changed


def regularise(model: nn.Module, kind: str | None, dropout: float, x: Tensor | None = None) -> nn.Module:
    """The model with dropout in front of every linear layer but the first, or without its batch norm; in place.

    Args:
        model: is changed.
        kind: "dropout", "no-batch-norm", or anything else for nothing.
        dropout: share that is dropped.
        x: a few rows, to see which linear layer runs first; None = the one that was registered first.
    """
    if kind == "dropout":
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if x is not None:
            seen: list[str] = []
            look(
                model,
                x,
                dict(zip(map(str, range(len(linear))), linear, strict=True)),
                lambda name, *_: seen.append(name),
            )
            linear = [linear[int(name)] for name in dict.fromkeys(seen)]
        for module in linear[1:] or linear:
            module.register_forward_pre_hook(
                lambda m, args: (F.dropout(args[0], dropout, training=m.training), *args[1:])
            )
    elif kind == "no-batch-norm":
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        swap(model, {norm: nn.Identity() for norm in norms})
    return model


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images or series (n, c, ..., time) moved by up to a tenth of their width; others unchanged."""
    if x.ndim < 3:
        return x
    most = max(1, x.shape[-1] // 10)
    moves = torch.randint(-most, most + 1, (x.ndim - 2,), generator=generator).tolist()
    return torch.roll(x, moves, dims=tuple(range(2, x.ndim)))


def train_until_fit(
    model: nn.Module, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor],
    settings: Settings, generator: torch.Generator, weight_decay: float = 0.0, augment: bool = False,
) -> Fit:  # fmt: skip
    """Train until the training accuracy is reached or the steps are spent; labels stay as they are."""
    with in_single(model):
        pairs = [(widened(x), y) for x, y in (train, valid, test)]
        return _until_fit(model, pairs, settings, generator, weight_decay, augment)


def _until_fit(
    model: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], settings: Settings, generator: torch.Generator,
    weight_decay: float, augment: bool,
) -> Fit:  # fmt: skip
    (x, y), valid, test = pairs
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            parameters, lr=settings.lr, momentum=0.9, weight_decay=weight_decay
        )
    else:
        optimizer = torch.optim.Adam(parameters, lr=settings.lr, weight_decay=weight_decay)
    step, best, at_best, reached = 0, -1.0, 0.0, 0.0
    objective = getattr(model, "objective", None)
    begin_training(model)
    while step < settings.max_steps:
        for index in torch.randperm(len(y), generator=generator).split(settings.batch_size):
            if len(index) < 2 or step == settings.max_steps:
                continue
            inputs = shift(x[index], generator) if augment else x[index]
            output = model(inputs.clone())  # which may begin in place; an objective sees the rows too
            loss = (
                F.cross_entropy(output, y[index])
                if objective is None
                else objective(inputs, output, y[index], F.cross_entropy)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        reached, validity = accuracy(model, x, y), accuracy(model, *valid)
        if validity > best:
            best, at_best = validity, accuracy(model, *test)
        if reached >= settings.fit_accuracy:
            break
    fitted, final = reached >= settings.fit_accuracy, accuracy(model, *test)
    model.eval()
    return Fit(step, fitted, reached, final, at_best)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of rows with the right largest output, in evaluation mode; modes are as they were afterwards."""
    return float(outputs_of(model, x, 1024).argmax(dim=1).eq(y).float().mean())


def randomization_tests(
    model_factory: Callable[[], nn.Module],
    data: Data,
    generator: torch.Generator,
    *,
    corruption: Sequence[float] = (0.25, 0.5, 0.75),
    inputs: Sequence[str] = INPUTS,
    regularisers: Sequence[str] = REGULARISERS,
    other: bool = False,
    rows: int = 2000,
    max_steps: int = 4000,
    batch_size: int = 64,
    lr: float = 1e-3,
    optimizer: str = "adam",
    fit_accuracy: float = 0.999,
    weight_decay: float = 5e-4,
    dropout: float = 0.2,
) -> dict[str, float]:
    """Train one network on true and randomised data and say what it fits.

    Args:
        model_factory: gives a fresh network; all runs start from copies of one.
        data: classes; the training rows are cut to `rows`.
        generator: all that is drawn.
        corruption: shares of corrupted labels, besides 0 and 1, which are always run.
        inputs: changes of the inputs to run, of `INPUTS` ("gaussian-inputs" only where inputs are floats).
        regularisers: run on random labels, of `REGULARISERS`.
        other: corrupt with another class, not any class.
        rows, max_steps, batch_size, lr, optimizer: "adam" or "sgd"; the same for every run.
        fit_accuracy: training accuracy that counts as fitted, in (0, 1].
        weight_decay, dropout: strengths of those regularisers.

    Returns:
        "RUN: fitted" (0 or 1), "RUN: steps to fit" (all steps where it is not), "RUN: slowdown" against true labels,
        "RUN: train accuracy", "RUN: test error", "true labels: test error if stopped early", "chance error" (that of the
        random labels themselves: 1 - 1/classes, and 1 where they are drawn from the other classes), "parameters per row", "memorises" (1 where random labels reach 99 % of the training rows).

    Raises:
        ValueError: unknown names, or a setting outside its range.

    Example:
        >>> from probatum.spec import Part
        >>> part = Part(x := torch.rand(30, 4, generator=torch.Generator().manual_seed(0)), (x[:, 0] > 0.5).long(), x)
        >>> data = Data(Spec("table", "classes", (4,), 2, numeric=4), part, part, part)
        >>> found = randomization_tests(
        ...     lambda: nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)), data,
        ...     torch.Generator().manual_seed(0), corruption=[], inputs=[], regularisers=[], lr=1e-2)
        >>> found["memorises"]
        1.0
    """
    data = _check(data, inputs, regularisers, optimizer, rows, max_steps, batch_size)
    _check_ranges(lr, fit_accuracy, weight_decay, dropout)
    spec, train = data.spec, data.train
    chosen = torch.randperm(len(train), generator=generator)[:rows]
    x, y = train.x[chosen], train.y[chosen]
    valid, test = (data.valid.x, data.valid.y), (data.test.x, data.test.y)
    settings = Settings(max_steps, batch_size, lr, optimizer, fit_accuracy)
    first = model_factory()
    result = {"chance error": 1.0 if other else 1 - 1 / spec.outputs}
    result["parameters per row"] = sum(p.numel() for p in first.parameters()) / len(y)

    def run(name: str, pair: tuple[Tensor, Tensor], kind: str | None = None, held: Sequence[Tensor] = ()) -> Fit:
        model = regularise(copy.deepcopy(first), kind, dropout, x[:2])
        own_valid, own_test = (valid, test) if not held else ((held[0], valid[1]), (held[1], test[1]))
        decay = weight_decay if kind == "weight-decay" else 0.0
        fit = train_until_fit(
            model, pair, own_valid, own_test, settings, generator, decay, augment=kind == "augmentation"
        )
        result[f"{name}: fitted"] = float(fit.fitted)
        result[f"{name}: steps to fit"] = float(fit.steps)
        result[f"{name}: train accuracy"] = fit.train_accuracy
        result[f"{name}: test error"] = 1 - fit.test_accuracy
        return fit

    with own_draws(generator):  # dropout draws from the global stream
        truth = run("true labels", (x, y))
        result["true labels: test error if stopped early"] = 1 - truth.best_valid_test_accuracy
        for share in corruption:
            run(f"{share:g} corrupted", (x, corrupt_labels(y, spec.outputs, share, generator, other)))
        noise = corrupt_labels(y, spec.outputs, 1.0, generator, other)
        random = run("random labels", (x, noise))
        for kind in inputs:
            if kind == "gaussian-inputs" and not x.is_floating_point():
                continue
            changed = change_inputs((x, valid[0], test[0]), spec, kind, generator)
            run(kind.replace("-", " "), (changed[0], y), held=changed[1:])
        for kind in regularisers:
            run(f"random labels, {kind.replace('-', ' ')}", (x, noise), kind)
    for name in [key.removesuffix(": steps to fit") for key in result if key.endswith(": steps to fit")]:
        result[f"{name}: slowdown"] = result[f"{name}: steps to fit"] / truth.steps
    result["memorises"] = float(random.train_accuracy >= 0.99)
    return result


def _check(
    data: Data, inputs: Sequence[str], regularisers: Sequence[str], optimizer: str, rows: int, steps: int, size: int
) -> Data:
    """The data, labels as codes."""
    if data.spec.task != "classes":
        raise ValueError(f"the task is {data.spec.task!r}; random labels need classes")
    for name, values, allowed in (
        ("inputs", inputs, INPUTS),
        ("regularisers", regularisers, REGULARISERS),
        ("optimizer", [optimizer], ("adam", "sgd")),
    ):
        for value in values:
            if value not in allowed:
                raise ValueError(f"{name} holds {value!r}; use {', '.join(allowed)}")
    if rows < 2 or steps < 1:
        raise ValueError(f"rows is {rows} and max_steps {steps}; they must be at least 2 and 1")
    if size < 2 or len(data.train) < 2:  # single rows are skipped, so nothing would ever be trained
        raise ValueError(f"batch_size is {size} and there are {len(data.train)} training rows; both must be at least 2")
    return coded(data)


def _check_ranges(lr: float, fit_accuracy: float, weight_decay: float, dropout: float) -> None:
    for name, value, fine, span in (
        ("lr", lr, lr > 0, "above 0"),
        ("fit_accuracy", fit_accuracy, 0 < fit_accuracy <= 1, "in (0, 1]"),
        ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
        ("dropout", dropout, 0 <= dropout < 1, "in [0, 1)"),
    ):
        if not fine:
            raise ValueError(f"{name} is {value}; it must be {span}")
