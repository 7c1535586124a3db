"""Intermediate layer classifiers: a linear head on every frozen layer, and the best one instead of the last layer.

Paper     Uselis and Oh 2025, "Intermediate Layer Classifiers for OOD generalization", ICLR 2025, arXiv:2504.05461
Computes  for each layer l of a frozen network r_l = (pooled) output of block l, and W_l r_l + b_l fitted by multinomial
          logistic regression: zero-shot on the training rows, few-shot on a few rows of the kind that is to be met; layer and
          penalty are chosen on validation rows. The penultimate layer under the same procedure is the comparison
Shapes    data -> predictor of (n, classes)
Departs   1. on the bench validation rows choose and, few-shot, a part of them is fitted on: there are no other rows of the
             kind met; in plain code `probe_layers` takes any rows
          2. the network is trained here, by the baseline's rate and steps; its last weights are used
          3. default layers are outputs of composite blocks and of activations outside them, in order of execution
          4. probes are fitted exactly (L-BFGS) instead of by SGD; training rows for them are at most `probe_rows`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.watch import ACTIVATIONS, CALL, choose_layers, hidden_layers, last_features, pooled
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.optimisation.softmax_regression import Linear, fit_softmax, standardiser
from probatum.spec import Budget, Data, Optimisation, Part

CARD = Card(
    paper="arXiv:2504.05461",
    title="Intermediate Layer Classifiers for OOD generalization",
    entry="fit",
    number=217,
    tags=("ood", "shift", "robustness", "shortcut", "representation", "linear-probe"),
    tasks=("classes",),
    tiny={"penalties": [0.01], "probe_rows": 100},
    tune={"shots": [0, 50, 100], "pool": ["auto", "flatten", "mean"]},
    tried={"shots": [0, 10, 20]},
    claims=("intermediate-beats-penultimate",),
    expect_fail={"settings_matter": "columns are not pooled; its own tests hold pooling of images"},
)

PENULTIMATE = "penultimate"
WIDEST = 512
"""Features of a layer up to which it is flattened rather than averaged over positions, if nothing is said."""
POOLS = ("auto", "flatten", "mean")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Probed:
    """A linear head on one layer.

    Attributes:
        layer: its name.
        penalty: of its regression.
        head: features -> logits.
        score: accuracy (or that of the worst group) on the rows that choose.
    """

    layer: str
    penalty: float
    head: Linear
    score: float


def block_names(model: nn.Module) -> list[str]:
    """Names of composite blocks (modules with parts that are no plain containers) and of activations outside them."""
    found: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if isinstance(child, CONTAINERS):
                walk(child, f"{full}.")
            elif isinstance(child, ACTIVATIONS) or next(child.children(), None) is not None:
                found.append(full)

    walk(model, "")
    return found


def layer_features(
    model: nn.Module, x: Tensor, layers: Sequence[str] | None = None, pool: str = "auto", block: int = 512
) -> dict[str, Tensor]:
    """Detached features (n, d) of each layer in evaluation mode, in order of execution; the last is "penultimate".

    Args:
        model: (n, ...) -> (n, outputs); nothing of it changes.
        x: rows.
        layers: names of modules; None = `block_names` but those that give on these rows what the head takes in.
        pool: "flatten", "mean" over positions, or "auto": flatten up to 512 numbers.
        block: rows at once.

    Raises:
        KeyError: a name that is no module, or does not run; it lists the ones that do.
        TypeError: a layer that does not return one tensor; it lists the ones that do.
        ValueError: another pool.
    """
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}; use one of {', '.join(POOLS)}")
    tokens = not x.is_floating_point()
    head = head_of(model, x)
    own = next(name for name, module in model.named_modules() if module is head)
    pieces: dict[str, list[Tensor]] = {}
    for rows in x.split(block):
        seen = hidden_layers(model, rows)
        if layers is None:
            usable = set(block_names(model))
            names = [
                name
                for name, value in seen.items()
                if name.partition(CALL)[0] in usable and _is_rows(value, len(rows)) and name != own
            ]
        else:
            names = choose_layers(model, seen, layers)
        for name in names:
            pieces.setdefault(name, []).append(_pooled(seen[name], pool, tokens))
    found = {name: torch.cat(values) for name, values in pieces.items()}
    last = last_features(model, x, head, ends=False).features
    if layers is None:  # the input of the head is often the output of the last block: it is told once, by one name
        found = {n: value for n, value in found.items() if value.shape != last.shape or not torch.equal(value, last)}
    return {**found, PENULTIMATE: last}


def _is_rows(value: object, n: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2 and len(value) == n


def _pooled(value: Tensor, pool: str, tokens: bool) -> Tensor:
    if pool == "auto":
        pool = "flatten" if value.shape[1:].numel() <= WIDEST and not (tokens and value.ndim == 3) else "mean"
    return pooled(value, pool, tokens)


def from_head(head: nn.Linear) -> Linear:
    """The network's own last layer as a head on its penultimate features; ValueError for one with another rule than x W^T + b."""
    if type(head).forward is not nn.Linear.forward:
        raise ValueError(f"{type(head).__name__} computes in a way of its own; a head is x W^T + b")
    zeros, ones = (torch.full((head.in_features,), value, dtype=torch.float64) for value in (0.0, 1.0))
    weight = head.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64) if head.bias is None else head.bias.detach().double()
    return Linear(zeros, ones, weight, bias)


def score(logits: Tensor, y: Tensor, groups: Tensor | None = None) -> float:
    """Accuracy, or that of the worst group where groups (n,) are given."""
    right = logits.argmax(dim=1).eq(y).double()
    if groups is None:
        return float(right.mean())
    return min(float(right[groups == group].mean()) for group in groups.unique().tolist())


def balanced_rows(groups: Tensor, n: int, generator: Generator) -> Tensor:
    """Positions of n rows with as equal numbers of each group (n_rows,) as there are; ascending.

    Raises:
        ValueError: n below 1 or above the rows there are.
    """
    if not 1 <= n <= len(groups):
        raise ValueError(f"n is {n}; there are {len(groups)} rows to draw from, give 1 or more")
    order = torch.randperm(len(groups), generator=generator)
    seen: dict[int, int] = {}
    turn = torch.empty(len(groups), dtype=torch.int64)
    for place in order.tolist():
        group = int(groups[place])
        turn[place] = seen[group] = seen.get(group, -1) + 1
    # first one row of every group, then a second one, ...: the turn decides, chance among equals
    return order[turn[order].argsort(stable=True)][:n].sort().values


def probe_layers(
    model: nn.Module,
    train: Part,
    select: Part,
    *,
    few: Part | None = None,
    layers: Sequence[str] | None = None,
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
    pool: str = "auto",
    groups: Tensor | None = None,
    classes: int | None = None,
) -> dict[str, Probed]:
    """The best head of every layer: fitted on training rows or on a few others, its penalty chosen on `select`.

    Args:
        model: frozen here: in evaluation mode, without gradients, nothing changes.
        train: rows of the kind trained on; they standardise the features, and zero-shot the heads are fitted on them.
        select: rows of the kind to be met, which choose.
        few: few-shot: rows of the kind to be met to fit on, none of them in `select`.
        layers, pool: see `layer_features`.
        penalties: of the regressions, above 0.
        groups: (n_select,) groups of `select`; then the worst group's accuracy chooses.
        classes: how many; None = one more than the largest in train.

    Returns:
        layer -> its best head, in order of execution, the last one "penultimate".

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(80, 4, generator=g)
        >>> part = Part(x, (x[:, 0] > 0).long(), torch.arange(80))
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
        >>> found = probe_layers(net, part, part)
        >>> list(found), chosen(found).score > 0.5
        (['1', 'penultimate'], True)
    """
    count = int(train.y.max()) + 1 if classes is None else classes
    known = layer_features(model, train.x, layers, pool)
    asked = layer_features(model, select.x, list(known)[:-1] if len(known) > 1 else layers, pool)
    source = (
        known if few is None else layer_features(model, few.x, list(known)[:-1] if len(known) > 1 else layers, pool)
    )
    y = train.y if few is None else few.y
    found = {}
    for name, features in known.items():
        heads = fit_softmax(source[name], y, count, penalties, standardiser(features))
        tried = [
            Probed(name, penalty, head, score(head.logits(asked[name]), select.y, groups))
            for penalty, head in zip(penalties, heads, strict=True)
        ]
        found[name] = max(tried, key=lambda one: (one.score, one.penalty))
    return found


def chosen(found: dict[str, Probed]) -> Probed:
    """The head of the highest score; of equals the later layer."""
    return max(reversed(found.values()), key=lambda one: one.score)


def sensitivity(known: Tensor, y: Tensor, met: Tensor, y_met: Tensor) -> float:
    """How far the classes' mean features move between two kinds of rows, in mean distances between classes; less = steadier.

    Args:
        known: (n, d) features of rows of the kind trained on.
        y: their classes.
        met: (m, d) of the kind met.
        y_met: their classes.

    Raises:
        ValueError: fewer than two classes that both have.
    """
    both = [k for k in y.unique().tolist() if bool((y_met == k).any())]
    if len(both) < 2:
        raise ValueError(f"{len(both)} classes occur in both kinds of rows; 2 or more are needed")
    here = torch.stack([known[y == k].double().mean(dim=0) for k in both])
    there = torch.stack([met[y_met == k].double().mean(dim=0) for k in both])
    between = torch.pdist(here).mean()
    return float((here - there).norm(dim=1).mean() / between.clamp_min(1e-300))


class LayerClassifier:
    """A frozen network with a head on one of its layers.

    Attributes:
        model: the network.
        best: the head that was chosen.
        curve: layer -> the score of its best head, in order of execution.
    """

    def __init__(self, model: nn.Module, probed: dict[str, Probed], pool: str) -> None:
        self.model, self.best, self.pool = model, chosen(probed), pool
        self.curve = {name: one.score for name, one in probed.items()}

    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes)."""
        names = [self.best.layer] if self.best.layer != PENULTIMATE else []
        if names:
            features = torch.cat(
                [layer_features(self.model, rows, names, self.pool)[self.best.layer] for rows in part.x.split(4096)]
            )
        else:
            features = last_features(self.model, part.x, ends=False).features
        return self.best.head.logits(features).softmax(dim=1).float()


def fit(
    data: Data,
    budget: Budget,
    generator: Generator,
    model_factory: Callable[[], nn.Module],
    optimisation: Optimisation,
    layers: Sequence[str] | None = None,
    shots: int = 0,
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
    pool: str = "auto",
    probe_rows: int = 5000,
) -> LayerClassifier:
    """Train a network, freeze it, and put the best head on the best layer.

    Args:
        data: one split; validation rows choose, and few-shot some of them are fitted on.
        budget: gradient steps of the network.
        generator: of all draws.
        model_factory: fresh networks (n, ...) -> (n, classes), with a linear last layer.
        optimisation: its learning rate is used.
        layers: names of modules; None = all blocks.
        shots: validation rows, balanced over classes, that heads are fitted on; 0 = zero-shot.
        penalties: of the regressions, above 0.
        pool: "auto", "flatten" or "mean" over positions.
        probe_rows: most training rows that heads are fitted on.

    Raises:
        ValueError: shots that leave fewer than two rows to choose by, settings out of range.
        KeyError, TypeError: see `layer_features`.
    """
    if shots < 0 or (shots and shots > len(data.valid) - 2):
        raise ValueError(
            f"shots is {shots}; give 0 to {len(data.valid) - 2}, two validation rows must be left to choose by"
        )
    if probe_rows < 2 or not penalties or min(penalties) <= 0 or pool not in POOLS:
        raise ValueError(
            f"probe_rows is {probe_rows}, penalties {list(penalties)}, pool {pool!r}; 2 or more, above 0, of {', '.join(POOLS)}"
        )
    train, valid = data.train, data.valid
    model = fit_network(model_factory(), train.x, train.y, budget.steps, budget.batch_size, optimisation.lr, generator)
    few, select = None, valid
    if shots:
        taken = balanced_rows(valid.y, shots, generator)
        rest = torch.ones(len(valid), dtype=torch.bool)
        rest[taken] = False
        few, select = _rows(valid, taken), _rows(valid, rest.nonzero().flatten())
    some = _rows(train, torch.randperm(len(train), generator=generator)[:probe_rows].sort().values)
    found = probe_layers(
        model, some, select, few=few, layers=layers, penalties=penalties, pool=pool, classes=data.spec.outputs
    )
    return LayerClassifier(model, found, pool)


def _rows(part: Part, rows: Tensor) -> Part:
    return Part(part.x[rows], part.y[rows], part.rows[rows])
