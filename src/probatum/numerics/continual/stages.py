"""Shared parts of continual learners: masked training of one stage, features and heads, exemplars in bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.modes import begin_training, kept_in_evaluation
from probatum.numerics.networks.surgery import swap
from probatum.numerics.networks.watch import hooked, is_output
from probatum.numerics.optimisation.fit_network import in_single
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import HALF, widened
from probatum.spec import Batch, Budget, Optimisation, Stage

Loss = Callable[[Batch, Any], Tensor]
LEVELS = 256
"""Different values that a code of one byte can name."""
KEY_BYTES = 8
"""Bytes of a class's number beside its exemplars."""


def class_mask(classes: Iterable[int], count: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) bool, True at the classes named."""
    mask = torch.zeros(count, dtype=torch.bool, device=device)
    mask[list(classes)] = True
    return mask


def check_stage(stage: Stage, num_classes: int, known: Iterable[int] = ()) -> Stage:
    """The stage, its labels (n,) int64; of (n, 1) and of other whole-number types they are made so.

    Raises:
        ValueError: rows of classes that the stage does not name and that are not known, names that are no class, labels of
            another shape. TypeError: labels that are no whole numbers.
    """
    y = stage.y
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"stage {stage.number} has labels of {y.dtype}; class numbers are needed, int64")
    if y.shape not in ((len(stage.x),), (len(stage.x), 1)):
        raise ValueError(
            f"stage {stage.number} has {len(stage.x)} rows and labels {tuple(y.shape)}; give (n,), one a row"
        )
    if y.ndim == 2 or y.dtype != torch.int64:
        stage = replace(stage, y=y.reshape(-1).long())
    outside = [c for c in stage.classes if not 0 <= c < num_classes]
    if outside:
        raise ValueError(f"stage {stage.number} names classes {outside}; there are classes 0 to {num_classes - 1}")
    strange = sorted(set(stage.y.unique().tolist()) - {*stage.classes, *known})
    if strange:
        what = "leave rows without a label out" if strange[0] < 0 else "name them"
        raise ValueError(f"stage {stage.number} has rows of classes {strange}, which it does not name; {what}")
    return stage


def present(stage: Stage) -> list[int]:
    """Classes that a stage names or has rows of."""
    return sorted({*stage.classes, *stage.y.unique().tolist()})


def masked(output: Tensor, seen: Tensor) -> Tensor:
    """Logits (..., classes) with -inf where `seen` (classes,) is False."""
    return output.masked_fill(~seen, -math.inf)


def seen_loss(model: nn.Module, seen: Tensor) -> Loss:
    """Mean cross-entropy over the classes seen, through the model's own `objective` where it has one."""

    def plain(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(masked(output, seen), y)

    own = getattr(model, "objective", None)
    return lambda batch, output: plain(output, batch.y) if own is None else own(batch.x, output, batch.y, plain)


def train_stage(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    budget: Budget,
    optimisation: Optimisation,
    order: torch.Generator,
    loss: Loss,
    *,
    gradients: Callable[[], None] | None = None,
    stepped: Callable[[], None] | None = None,
) -> int:
    """Train the parameters that require gradients by a fresh AdamW and leave the model in evaluation mode.

    The global random state is put back: what the model itself draws (dropout) comes from a seed taken from `order`.
    Networks and rows of half precision are trained in float32, and the network given back as it came. Parts that are in
    evaluation in a network in training stay so.

    Args:
        model: (n, ...) -> output.
        x, y: the rows, n >= 1; a batch of one row is left out, or doubled where it is all there is.
        budget: `steps` updates of `batch_size` rows.
        optimisation: rate, decay, schedule, clipping.
        order: batch orders.
        loss: (batch, output) -> scalar; `batch.index` are positions in x.
        gradients: called after backward and clipping, before the update.
        stepped: called after the update.

    Returns:
        Examples passed forward and backward.

    Raises:
        ValueError: there are no rows. FloatingPointError: the loss is not finite at the end; the model is as it was before.
    """
    if not len(y):
        raise ValueError("the stage has 0 rows; give at least one")
    wide = any(t.dtype in HALF for t in model.parameters())
    with as_it_was_on_failure(model), in_single(model):
        return _updates(model, x, y, budget, optimisation, order, loss, gradients, stepped, wide)


@contextmanager
def as_it_was_on_failure(*models: nn.Module) -> Iterator[None]:
    """Put back parameters, buffers and modes where an exception comes out, so that what was learned before is not lost.

    Parameters of lazy modules that have no values yet are left as the exception leaves them.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    held = [(module, dict(module._buffers)) for model in models for module in model.modules()]  # which may be replaced
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    before = [(t, t.detach().clone()) for t in tensors if not is_lazy(t)]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for now, then in before:
                now.copy_(then)
        for module, buffers in held:
            module._buffers.clear()  # one registered meanwhile goes
            module._buffers.update(buffers)
        for module, mode in modes:
            module.training = mode
        raise


def _updates(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    budget: Budget,
    optimisation: Optimisation,
    order: torch.Generator,
    loss: Loss,
    gradients: Callable[[], None] | None,
    stepped: Callable[[], None] | None,
    wide: bool,
) -> int:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=optimisation.lr, weight_decay=optimisation.weight_decay, fused=True)
    passed = 0
    kept = kept_in_evaluation(model)
    for k, module in enumerate(model.modules()):
        if k in kept:
            module.still = True  # in later stages too, which find the whole network in evaluation
    begin_training(model)
    with own_draws(order):
        batches: list[Tensor] = []
        for step in range(budget.steps):
            if not batches:
                visit = torch.randperm(len(y), generator=order).to(x.device)
                batches = [b for b in visit.split(budget.batch_size) if len(b) > 1] or [visit.repeat(2)]
            index = batches.pop(0)
            batch = Batch(widened(x[index]) if wide else x[index], y[index], index)
            value = loss(batch, model(batch.x.clone()))  # which may begin in place; an objective sees the rows too
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if optimisation.clip is not None:
                nn.utils.clip_grad_norm_(parameters, optimisation.clip)
            if gradients is not None:
                gradients()
            for group in optimizer.param_groups:
                group["lr"] = optimisation.lr * optimisation.factor(step, budget.steps)
            optimizer.step()
            if stepped is not None:
                stepped()
            passed += len(index)
            if step == budget.steps - 1 and not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"the training loss is {value.item()} after {budget.steps} steps; lower the rate"
                )
    model.eval()
    return passed


@torch.no_grad()
def evaluate(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 1024) -> Tensor:
    """function(x) in slices, without gradients; a module is put into evaluation mode, and x is left as it is."""
    if isinstance(function, nn.Module):
        function.eval()
    return torch.cat([function(part.clone()) for part in x.split(batch_size)])  # which may begin in place


class Split(nn.Module):
    """A network cut before its last linear layer: `body` gives features (n, d), `head` their outputs.

    Raises:
        ValueError: the network has no linear layer, or the last one does not give `outputs` values; at the first features,
            a network that goes on behind it.
    """

    def __init__(self, network: nn.Module, outputs: int) -> None:
        super().__init__()
        head = find_last_layer(network)
        if not isinstance(head, nn.Linear) or head is network or head.out_features != outputs:
            inside = isinstance(head, nn.Linear) and head is not network
            what = f"{head.out_features} outputs in its last one" if inside else "no linear layer inside"
            raise ValueError(
                f"{type(network).__name__} has {what}; features need a network that ends in {outputs} of them"
            )
        gap = nn.Identity()
        swap(network, {head: gap})
        self.body, self.head = network, head
        self.training = network.training  # parts in evaluation of a network in training are kept so
        self._gap = [gap]  # in a list, so that it is a part of the body alone
        self._ends = False

    def features(self, x: Tensor) -> Tensor:
        """x (n, ...) -> (n, d)."""
        seen: list[Tensor] = []
        if self._ends:
            found = self.body(x)
        else:
            with hooked(self.body, {"": self._gap[0]}, lambda _name, _inputs, output: seen.append(output)):
                found = self.body(x)
        if not isinstance(found, Tensor) or found.shape != (len(x), self.head.in_features):
            shape = tuple(getattr(found, "shape", ()))
            raise ValueError(
                f"before its last linear layer {type(self.body).__name__} gives {shape} for {len(x)} rows; features "
                f"need ({len(x)}, {self.head.in_features}): let the network end in that layer"
            )
        if not self._ends and not (seen and is_output(seen[-1], found)):
            raise ValueError(
                f"{type(self.body).__name__} goes on behind its last linear layer; let it end in that layer"
            )
        self._ends = True  # looked at once
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def grow_linear(old: nn.Linear | None, inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A larger linear layer that gives the old outputs unchanged for the old inputs, whatever the new inputs are.

    Weights of new outputs are drawn as `nn.Linear` draws them, from the generator; old outputs do not see new inputs yet.

    Raises:
        ValueError: it would be smaller than the old one.
    """
    has = (0, 0) if old is None else (old.out_features, old.in_features)
    if outputs < has[0] or inputs < has[1]:
        raise ValueError(f"a head of {has[1]} inputs and {has[0]} outputs cannot grow to {inputs} and {outputs}")
    new: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        new.weight.copy_(torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator))
        new.bias.copy_(torch.empty(outputs).uniform_(-bound, bound, generator=generator))
        if old is not None:
            new.to(old.weight)
            new.weight[: has[0]] = 0.0
            new.weight[: has[0], : has[1]] = old.weight
            new.bias[: has[0]] = 0.0 if old.bias is None else old.bias
    return new


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those that stand several times counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, shared ones counted once."""
    return tensor_bytes([*module.parameters(), *module.buffers()])


def herding(features: Tensor, count: int) -> Tensor:
    """Positions of `count` rows whose running mean stays nearest to the mean of all, greedily (iCaRL, algorithm 4).

    Args:
        features: (n, d).
        count: at most n are taken.

    Returns:
        (min(count, n),) int64 in the order of choice, so that every beginning of it is a choice too.
    """
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    order = []
    for k in range(1, min(count, len(features)) + 1):
        gap = (mean - (total + features) / k).square().sum(dim=1).masked_fill(taken, math.inf)
        best = int(gap.argmin())
        taken[best] = True
        total = total + features[best]
        order.append(best)
    return torch.tensor(order, dtype=torch.int64)


class Packed(NamedTuple):
    """Rows in few bytes and without loss: codes of `levels` where these are given, else the values in a small type."""

    codes: Tensor
    levels: Tensor | None
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.codes.shape[1:]) * self.codes.element_size()

    @property
    def table_bytes(self) -> int:
        """Bytes of the table of levels."""
        return 0 if self.levels is None else tensor_bytes([self.levels])


def pack(x: Tensor) -> Packed:
    """Rows (n, ...) in the fewest bytes without loss: one byte a value and a table where at most 256 values occur (8-bit
    images), two or four bytes for whole numbers where they fit (token ids), else as they are."""
    levels = torch.unique(x)
    plain = x
    if not x.is_floating_point() and len(levels):
        ends = int(levels[0]), int(levels[-1])
        spans = [(kind, torch.iinfo(kind)) for kind in (torch.int16, torch.int32)]
        small = [kind for kind, span in spans if span.min <= ends[0] and ends[1] <= span.max]
        plain = x.to(small[0]) if small else x
    missing = bool((levels != levels).any())  # NaN is no level that could be found again
    if not missing and len(levels) <= LEVELS and x.numel() + tensor_bytes([levels]) < tensor_bytes([plain]):
        return Packed(torch.searchsorted(levels, x.contiguous()).to(torch.uint8), levels, x.dtype)
    return Packed(plain.clone(), None, x.dtype)


def unpack(packed: Packed, rows: slice = slice(None)) -> Tensor:
    """The rows as they were before `pack`."""
    codes = packed.codes[rows]
    return codes.to(packed.dtype) if packed.levels is None else packed.levels[codes.long()]


def kept_bytes(x: Tensor, sample: int = 1000) -> int:
    """Bytes that these rows take when they are kept, judged by the first `sample` of them."""
    packed = pack(x[:sample])
    return len(x) * packed.row_bytes + packed.table_bytes


@dataclass(frozen=True)
class _Class:
    start: int
    count: int


class Exemplars:
    """Rows of past classes in at most `budget` bytes, as many for every class.

    Their values are kept without loss (`pack`). The bytes of codes, table and class numbers are all counted.

    Raises:
        ValueError: a negative budget.
    """

    def __init__(self, budget: int) -> None:
        if budget < 0:
            raise ValueError(f"the budget for exemplars is {budget} bytes; give 0 or more")
        self.budget = budget
        self._packed: Packed | None = None
        self._of: dict[int, _Class] = {}

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes of which rows are kept."""
        return tuple(self._of)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        if self._packed is None:
            return 0
        packed = self._packed
        return len(packed.codes) * packed.row_bytes + packed.table_bytes + KEY_BYTES * len(self._of)

    def __len__(self) -> int:
        return sum(found.count for found in self._of.values())

    def of(self, label: int) -> Tensor:
        """The rows kept of one class, the best first."""
        if self._packed is None:
            raise KeyError(f"no row of class {label} is kept")
        where = self._of[label]
        return unpack(self._packed, slice(where.start, where.start + where.count))

    def rows(self) -> tuple[Tensor, Tensor] | None:
        """All rows kept with their classes (n,), None where there are none."""
        if self._packed is None:
            return None
        labels = [torch.full((found.count,), label, dtype=torch.int64) for label, found in self._of.items()]
        x = unpack(self._packed)
        return x, torch.cat(labels).to(x.device)

    def beside(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, ...) and y (n,), the rows kept behind them."""
        kept = self.rows()
        return (x, y) if kept is None else (torch.cat([x, kept[0]]), torch.cat([y, kept[1]]))

    def update(self, x: Tensor, y: Tensor, rank: Callable[[Tensor, int], Tensor]) -> None:
        """Keep rows of the classes in y, and fewer of the others, all within the budget.

        Args:
            x, y: rows and classes; rows of a class that is kept already compete with those kept.
            rank: (rows (n, ...) of one class, count) -> positions of at most `count`, the best first.
        """
        new = [int(c) for c in y.unique()]
        classes = list(dict.fromkeys([*self._of, *new]))
        most = max(0, (self.budget - KEY_BYTES * len(classes)) // max(1, x[0].numel()) // len(classes))
        chosen: dict[int, Tensor] = {}
        for label in classes:
            pool = self.of(label)[:most] if label in self._of else x[:0]
            if label in new and most:
                pool = torch.cat([self.of(label) if label in self._of else x[:0], x[y == label]])
                pool = pool[rank(pool, most).to(pool.device)]
            chosen[label] = pool
        self._store(chosen)

    def resize(self, budget: int) -> None:
        """Another budget; what no longer fits is given up, evenly over the classes."""
        self.budget = max(0, budget)
        self._store({label: self.of(label) for label in self._of})

    def _store(self, chosen: dict[int, Tensor]) -> None:
        """Keep the longest beginnings, equal for all classes, that fit."""
        self._packed, self._of = None, {}
        longest = max((len(rows) for rows in chosen.values()), default=0)
        while longest:
            cut = {label: rows[:longest] for label, rows in chosen.items() if len(rows)}
            packed = pack(torch.cat(list(cut.values())))
            room = self.budget - KEY_BYTES * len(cut) - packed.table_bytes
            fits = _quota([len(rows) for rows in cut.values()], room // packed.row_bytes)
            if fits >= longest:
                start = 0
                for label, rows in cut.items():
                    self._of[label] = _Class(start, len(rows))
                    start += len(rows)
                self._packed = packed
                return
            longest = fits if fits > 0 else longest // 2  # fewer rows may need no table


def _quota(counts: Sequence[int], room: int) -> int:
    """The largest q with sum(min(count, q)) <= room."""
    best = 0
    for q in range(1, max(counts) + 1):
        if sum(min(count, q) for count in counts) > room:
            break
        best = q
    return best
