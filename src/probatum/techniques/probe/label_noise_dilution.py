"""Label noise dilution: how many wrongly labelled examples for each right one a task survives.

Paper     Rolnick et al. 2017, "Deep Learning is Robust to Massive Label Noise", arXiv:1705.10694
Computes  test accuracy of the plainly trained network when n clean examples come with alpha n noisy ones, by alpha, pattern
          of the noise, source of the noisy inputs, n and batch size; and by the mixture law
          q(y|x) = (p(y|x) + alpha r(y|x)) / (1 + alpha) the share of rows whose class stays in front
Shapes    (model_factory, data, generator) -> dict of named numbers
Departs   1. rate and batch size are chosen for every alpha on validation rows, whose labels must be right, among a few
             multiples of one rate and one size; AdamW with a half cosine instead of Adadelta
          2. the confusion that structured noise leans to is that of the network trained on the clean examples, measured
             on validation rows
          3. fresh inputs are the training rows beyond n; where they do not suffice they are used again and it is told
          4. outside inputs have every number from a random row, at its place, instead of another dataset's images
          5. survival of rows takes the clean network's probabilities for p(y|x)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.labels.noise import check_alpha, check_law, draw_labels, survives
from probatum.numerics.networks.modes import begin_training
from probatum.numerics.networks.watch import outputs_of
from probatum.numerics.optimisation.fit_network import in_single
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import check_codes, coded
from probatum.spec import Data

CARD = Card(
    paper="arXiv:1705.10694",
    title="Deep Learning is Robust to Massive Label Noise",
    entry="label_noise_dilution",
    number=121,
    tags=("label-noise", "memorisation", "robustness"),
    tasks=("classes",),
    tiny={
        "alphas": [2.0],
        "rows": 30,
        "steps": 4,
        "rate_multiples": [1.0],
        "batch_multiples": [1],
        "sizes": [],
        "batch": 16,
    },
    claims=("majority-noise-is-survived",),
)

PATTERNS = ("uniform", "structured")
SOURCES = ("repeated", "fresh", "outside")


class Diluted(NamedTuple):
    """A diluted training set: positions in a pool of inputs, labels, and which examples are noisy."""

    index: Tensor
    y: Tensor
    noisy: Tensor


class Run(NamedTuple):
    """A trained network and what it reached: accuracies, and the share of noisy labels that it gives back."""

    model: nn.Module
    valid: float
    test: float
    memorised: float


def structured_law(confusion: Tensor, delta: float) -> Tensor:
    """(classes, classes) law of noisy labels: delta times uniform over all classes, plus 1 - delta times the confusion.

    Args:
        confusion: (classes, classes), rows are probabilities; what a class is taken for.
        delta: in [0, 1]; 1 = uniform.

    Raises:
        ValueError: for a delta out of range, or rows that do not sum to 1.
    """
    if not 0 <= delta <= 1:
        raise ValueError(f"delta is {delta}; it must lie between 0 and 1")
    check_law(confusion)
    return delta / len(confusion) + (1 - delta) * confusion


def dilute(
    y: Tensor, alpha: float, law: Tensor, generator: Generator, pool: tuple[Tensor, int] | None = None
) -> Diluted:
    """n clean examples and round(alpha n) noisy ones.

    Args:
        y: (n,) right classes; the clean examples are positions 0 .. n-1.
        alpha: noisy examples for each clean one, >= 0: a share alpha / (1 + alpha) of all is noisy.
        law: (classes, classes) of noisy labels by right class, rows sum to 1; the right class may be drawn.
        generator: source of randomness.
        pool: right classes (m,) and first position of other inputs that get the noisy labels; None = the same n again.

    Raises:
        ValueError: for alpha below 0, a law that is none, or labels that it does not know.

    Example:
        >>> law = torch.full((2, 2), 0.5)
        >>> found = dilute(torch.tensor([0, 1, 1]), 4, law, torch.Generator().manual_seed(0))
        >>> len(found.y), int(found.noisy.sum()), found.index.bincount().tolist()
        (15, 12, [5, 5, 5])
    """
    check_alpha(alpha)
    check_law(law)
    classes, first = (y, 0) if pool is None else pool
    for labels in (y, classes):
        check_codes(labels, len(law))  # a negative one would be counted from the end
    count, rounds = round(alpha * len(y)), []
    while sum(map(len, rounds)) < count:
        rounds.append(torch.randperm(len(classes), generator=generator, device=generator.device))
    drawn = torch.cat(rounds)[:count].to(y.device) if rounds else y.new_empty(0, dtype=torch.int64)
    labels = draw_labels(law.to(y.device)[classes[drawn]], generator) if count else drawn
    return Diluted(
        torch.cat([torch.arange(len(y), device=y.device), drawn + first]),
        torch.cat([y, labels]),
        torch.cat([y.new_zeros(len(y), dtype=torch.bool), y.new_ones(count, dtype=torch.bool)]),
    )


def outside_rows(x: Tensor, generator: Generator) -> Tensor:
    """Rows (n, ...) of which every number is that of a random row at the same place; each is used once."""
    flat = x.flatten(1)
    order = torch.rand(flat.shape, generator=generator, device=generator.device).argsort(dim=0)
    return flat.gather(0, order.to(x.device)).view(x.shape)


def fit(
    model: nn.Module, x: Tensor, diluted: Diluted, steps: int, batch_size: int, lr: float, generator: Generator
) -> nn.Module:
    """Train plainly: `steps` updates of `batch_size` examples by AdamW, the rate falling along a half cosine.

    Frozen weights stay, and so do batch norms that are in evaluation in a network in training. A last batch of one is left out.

    Raises:
        ValueError: a batch below two examples.
    """
    if batch_size < 2 or len(diluted.y) < 2:
        raise ValueError(f"batch_size is {batch_size}, of {len(diluted.y)} examples; both must be at least 2")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    own = getattr(model, "objective", None)
    batches: list[Tensor] = []
    begin_training(model)
    with in_single(model):
        for _ in range(steps):
            if not batches:
                order = torch.randperm(len(diluted.y), generator=generator, device=generator.device).to(x.device)
                batches = [part for part in order.split(batch_size) if len(part) > 1]
            rows = batches.pop()
            inputs, labels = widened(x[diluted.index[rows]]), diluted.y[rows]
            output = model(inputs.clone())  # which may begin in place; an objective sees the rows too
            loss = F.cross_entropy(output, labels) if own is None else own(inputs, output, labels, F.cross_entropy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval()


def probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """(n, classes) of a network in evaluation mode, float64."""
    return outputs_of(model, x, 1024).double().softmax(dim=1)


def label_noise_dilution(
    model_factory: Callable[[], nn.Module],
    data: Data,
    generator: Generator,
    *,
    alphas: Sequence[float] = (1.0, 4.0, 10.0),
    patterns: Sequence[str] = PATTERNS,
    sources: Sequence[str] = SOURCES,
    delta: float = 0.2,
    confusion: Tensor | None = None,
    rows: int = 2000,
    sizes: Sequence[float] = (0.25, 0.5),
    target: float = 0.9,
    steps: int = 600,
    batch: int = 64,
    lr: float = 2e-3,
    rate_multiples: Sequence[float] = (1.0, 0.3),
    batch_multiples: Sequence[int] = (1, 4),
) -> dict[str, float]:
    """Train one network on ever more diluted labels and say what is left of its accuracy.

    All trainings take as many steps from the same initial weights; for every alpha rate and batch size are chosen.

    Args:
        model_factory: gives a fresh network.
        data: classes; labels are taken as right.
        generator: all that is drawn.
        alphas: noisy examples for each clean one.
        patterns: of noisy labels: "uniform" over all classes, "structured" towards confused ones.
        sources: of noisy inputs: "repeated", "fresh" or "outside"; the latter two are run with uniform labels.
        delta: share of structured labels that is uniform.
        confusion: (classes, classes) for structured noise; None = the clean network's.
        rows: n, at most the training rows there are.
        sizes: smaller n, as shares of it, for which the smallest that reaches the target is sought.
        target: share of the clean network's accuracy that counts as reached, in (0, 1].
        steps, batch, lr: of every training, before the multiples.
        rate_multiples, batch_multiples: of `lr` and `batch`, to choose from.

    Returns:
        By run ("uniform, repeated, alpha 4"): accuracy, memorised (share of noisy labels given back), chosen rate and batch,
        share of rows whose class survives by the mixture law, effective batch (of the chosen one, or of all examples where
        these are fewer, divided by (1 + alpha)^2), accuracy at each batch, smallest n that reaches the target where one does; besides "clean: accuracy", "chance", noise rates, "fresh rows used again".

    Raises:
        ValueError: alpha below 0, a confusion of another size or whose rows do not sum to 1, unknown names, other settings out of range.
    """
    _check(data, alphas, patterns, sources, rows, sizes, target, steps, batch, lr, rate_multiples, batch_multiples)
    data, classes = coded(data), _classes(data.spec.outputs, confusion, delta)
    train = data.train
    order = torch.randperm(len(train), generator=generator, device=generator.device).to(train.y.device)
    n = min(rows, len(train))
    chosen, rest = order[:n], order[n:]
    spare = rest if len(rest) else chosen
    x, y = train.x[chosen], train.y[chosen]
    first, result = model_factory(), {"chance": 1 / classes, "rows": float(n)}
    uniform = torch.full((classes, classes), 1 / classes, dtype=torch.float64, device=y.device)

    trainings = _Trainings(data, first, generator, steps, batch, lr, batch_multiples, rate_multiples, result)
    with own_draws(generator):  # dropout draws from the global stream
        clean = trainings.best("clean", x, dilute(y, 0.0, uniform, generator))
        if confusion is None:
            confusion = confused(probabilities(clean.model, data.valid.x), data.valid.y, classes)
        known = probabilities(clean.model, data.test.x)
        noise = {"uniform": uniform, "structured": structured_law(confusion.to(y.device).double(), delta)}
        for alpha in alphas:
            result[f"alpha {alpha:g}: noise rate"] = alpha / (1 + alpha)
            for pattern, source in _runs(patterns, sources):
                name, law = f"{pattern}, {source}, alpha {alpha:g}", noise[pattern]
                pool, other = _pool(x, source, train.x[spare], train.y[spare], generator)
                run = trainings.best(name, pool, dilute(y, alpha, law, generator, other))
                if alpha > 0:
                    result[f"{name}: memorised"] = run.memorised
                result[f"{name}: survives"] = float(survives(known, law[known.argmax(dim=1)], alpha).double().mean())
                used = min(result[f"{name}: batch"], n + round(alpha * n))
                result[f"{name}: effective batch"] = used / (1 + alpha) ** 2
                if source == "fresh":
                    result[f"{name}: fresh rows used again"] = float(max(0, round(alpha * n) - len(rest)))
                if source == "repeated" and sizes:
                    reached = [float(n)] if run.test >= target * clean.test else []
                    for share in sizes:
                        few = max(2, round(share * n))
                        smaller = trainings.again(name, x, dilute(y[:few], alpha, law, generator))
                        result[f"{name}: accuracy of {few} rows"] = smaller.test
                        reached += [float(few)] if smaller.test >= target * clean.test else []
                    if reached:
                        result[f"{name}: smallest n that reaches the target"] = min(reached)
    return result


@dataclass(frozen=True)
class _Trainings:
    """Trainings from the same initial weights; `best` tells what it found in `result`."""

    data: Data
    first: nn.Module
    generator: Generator
    steps: int
    batch: int
    lr: float
    batch_multiples: Sequence[int]
    rate_multiples: Sequence[float]
    result: dict[str, float]

    def one(self, pool: Tensor, diluted: Diluted, size: int, rate: float) -> Run:
        model = fit(copy.deepcopy(self.first), pool, diluted, self.steps, size, rate, self.generator)
        return Run(
            model,
            accuracy(model, self.data.valid.x, self.data.valid.y),
            accuracy(model, self.data.test.x, self.data.test.y),
            accuracy(model, pool, diluted.y[diluted.noisy], diluted.index[diluted.noisy]),
        )

    def best(self, name: str, pool: Tensor, diluted: Diluted) -> Run:
        """The training of the batch size and rate that do best on the validation rows."""
        kept: tuple[int, float, Run] | None = None  # the one network there is, beside that in training
        for multiple in map(int, self.batch_multiples):
            mine: tuple[float, float] | None = None
            for factor in self.rate_multiples:
                run = self.one(pool, diluted, multiple * self.batch, factor * self.lr)
                if mine is None or run.valid > mine[0]:
                    mine = (run.valid, run.test)
                if kept is None or run.valid > kept[2].valid:
                    kept = (multiple, factor, run)
            if len(self.batch_multiples) > 1 and mine is not None:
                self.result[f"{name}: accuracy at batch {multiple * self.batch}"] = mine[1]
        if kept is None:
            raise ValueError("there is no batch size or no rate to train with; give one of each at least")
        multiple, factor, run = kept
        self.result[f"{name}: accuracy"], self.result[f"{name}: batch"] = run.test, float(multiple * self.batch)
        self.result[f"{name}: rate"] = factor * self.lr
        return run

    def again(self, name: str, pool: Tensor, diluted: Diluted) -> Run:
        """A training with the batch size and rate that `best` chose under this name."""
        return self.one(pool, diluted, int(self.result[f"{name}: batch"]), self.result[f"{name}: rate"])


def confused(p: Tensor, y: Tensor, classes: int) -> Tensor:
    """(classes, classes): mean predicted probabilities of the other classes by right class, each row scaled to sum 1.

    A class without rows, or without any doubt, has even chances of all others.
    """
    sums = p.new_zeros(classes, classes, dtype=torch.float64).index_add_(0, y, p.double())
    sums.fill_diagonal_(0.0)
    total = sums.sum(dim=1, keepdim=True)
    even = (1 - torch.eye(classes, dtype=torch.float64, device=p.device)) / (classes - 1)
    return torch.where(total > 0, sums / total.clamp_min(1e-300), even)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None) -> float:
    """Share of rows with the right largest output, of all rows or those at `index`; 0 for none."""
    if not len(y):
        return 0.0
    guess = outputs_of(model, x, 1024).argmax(dim=1)
    return float((guess if index is None else guess[index]).eq(y).float().mean())


def _runs(patterns: Sequence[str], sources: Sequence[str]) -> list[tuple[str, str]]:
    found = [(pattern, source) for source in sources for pattern in patterns if source == "repeated"]
    return found + [("uniform", source) for source in sources if source != "repeated"]


def _pool(
    x: Tensor, source: str, spare: Tensor, classes: Tensor, generator: Generator
) -> tuple[Tensor, tuple[Tensor, int] | None]:
    """Inputs that examples are drawn from, and which of them get the noisy labels."""
    if source == "repeated":
        return x, None
    if source == "outside":
        return torch.cat([x, outside_rows(x, generator)]), (classes.new_zeros(len(x)), len(x))
    return torch.cat([x, spare]), (classes, len(x))


def _check(
    data: Data, alphas: Sequence[float], patterns: Sequence[str], sources: Sequence[str], rows: int,
    sizes: Sequence[float], target: float, steps: int, batch: int, lr: float, rates: Sequence[float],
    batches: Sequence[int],
) -> None:  # fmt: skip
    if data.spec.task != "classes":
        raise ValueError(f"the task is {data.spec.task!r}; wrong labels need classes")
    for alpha in alphas:
        check_alpha(alpha)
    for name, values, allowed in (("patterns", patterns, PATTERNS), ("sources", sources, SOURCES)):
        for value in values:
            if value not in allowed:
                raise ValueError(f"{name} holds {value!r}; use {', '.join(allowed)}")
    if rows < 2 or steps < 1 or batch < 2 or len(data.train) < 2:
        raise ValueError(f"rows {rows}, steps {steps}, batch {batch}; they must be at least 2, 1 and 2")
    if not lr > 0 or not 0 < target <= 1:
        raise ValueError(f"lr is {lr} and target {target}; they must be above 0 and in (0, 1]")
    if not rates or not batches or min(rates) <= 0 or min(batches) < 1:
        raise ValueError(
            f"rate_multiples {list(rates)} and batch_multiples {list(batches)}; give one or more, all above 0"
        )
    if any(multiple != int(multiple) for multiple in batches):
        raise ValueError(
            f"batch_multiples are {list(batches)}; a batch has a whole number of examples, give whole ones"
        )
    if any(not 0 < share < 1 for share in sizes):
        raise ValueError(f"sizes are {list(sizes)}; they are shares of rows between 0 and 1")


def _classes(classes: int, confusion: Tensor | None, delta: float) -> int:
    """How many there are, once it is sure that the noise can be made of them, before anything is trained."""
    if classes < 2:
        raise ValueError(f"there is {classes} class; wrong labels need 2 or more")
    if confusion is not None and confusion.shape != (classes, classes):
        raise ValueError(
            f"confusion is {tuple(confusion.shape)} for {classes} classes; give a row and a column for each"
        )
    structured_law(torch.eye(classes) if confusion is None else confusion, delta)
    return classes
