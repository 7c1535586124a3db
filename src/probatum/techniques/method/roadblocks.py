"""Roadblocks: what the network relies on is disabled for a while, so that it must learn from the rest too.

Paper     Niu, Li, Zhao and Li 2022, "Roadblocks for Temporarily Disabling Shortcuts and Learning New Knowledge", NeurIPS 2022
Computes  after a first stage, in each of some rounds: f_k = frozen copy of the network; R_k = the units d of largest
          I_d = mean |(x_d - mean x_d) df_k(x)_y / dx_d| replaced by those of a random other example; training goes on, from the
          weights reached, on batches of which a share is R(x) with labels kept, and ends without roadblocks if wanted
Shapes    x (n, ...) -> x of the same shape, at most a share of the units changed; labels untouched
Departs   1. only the abstract's mechanism is certain, no full text or code was found: the construction is Probatum's
          2. units: columns of tables, square patches of images, stretches of series (all channels at once); the importance of a
             category column is the mean change of f_k(x)_y when it is swapped, since codes have no gradient
          3. a roadblock is used only if f_k loses accuracy on it and a ridge classifier, fitted on half of the blocked
             training rows, is above chance on the other half (is there still something to learn)
          4. later rounds draw one of all accepted roadblocks for each batch, so that an old shortcut does not come back
          5. the last weights are the result: validation rows share the shortcut and would choose the stage before
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.copies import copied
from probatum.numerics.networks.watch import last_features
from probatum.numerics.tensors.columns import varying
from probatum.numerics.tensors.precision import as_weights
from probatum.numerics.tensors.targets import IGNORED, class_codes
from probatum.spec import Spec

CARD = Card(
    paper="OpenReview:QjurhjyTAb",
    title="Roadblocks for Temporarily Disabling Shortcuts and Learning New Knowledge",
    entry="Roadblocks",
    number=6,
    tags=("shortcut", "robustness", "groups"),
    modalities=("table", "image", "series"),
    tasks=("classes",),
    neutral={"share": 0.0},
    tiny={"start": 0.2, "rounds": 2, "rows": 32},
    tune={"share": (0.03, 0.4, "log"), "start": (0.1, 0.6), "rounds": [1, 2, 3]},
    claims=("shortcut-is-left",),
    expect_fail={
        "settings_matter": "on a few toy rows nothing is learnable by four standard errors, so that roadblocks are refused; its "
        "own tests hold share, start and rounds"
    },
)

LEAST = 8
"""Rows that a roadblock is built from, at the least."""
KINDS = ("swap", "zero", "random", "sample", "sign")
MASS = 4.0
"""Standard errors above chance that count as learnable."""
RIDGE = 0.1
"""Penalty a row of the classifier that tells whether there is something left to learn."""
COLUMNS = 4096
"""Columns that are standardised at once, where there are more of them than rows."""


class Units:
    """Which entries of x belong together: columns, patches or stretches.

    Args:
        spec: of the data.
        patch: side of a patch or length of a stretch; None = an eighth of the shorter side, a sixteenth of the steps.

    Attributes:
        count: how many units there are.
    """

    def __init__(self, spec: Spec, patch: int | None = None) -> None:
        if spec.modality == "table":
            places = torch.arange(spec.shape[0])
        elif spec.modality == "image":
            height, width = spec.shape[1:]
            side = max(1, min(height, width) // 8) if patch is None else patch
            across = -(-width // side)
            rows, columns = torch.arange(height) // side, torch.arange(width) // side
            places = (rows[:, None] * across + columns[None]).expand(spec.shape)
        elif spec.modality == "series":
            side = max(1, spec.shape[1] // 16) if patch is None else patch
            places = (torch.arange(spec.shape[1]) // side).expand(spec.shape)
        else:
            raise ValueError(f"roadblocks take tables, images and series; these data are {spec.modality}")
        self.places = places.reshape(-1)
        self.count = int(self.places.max()) + 1

    def total(self, values: Tensor) -> Tensor:
        """(n, ...) -> (n, count): sums over the entries of each unit."""
        flat = values.flatten(1)
        return flat.new_zeros(len(flat), self.count).index_add_(1, self.places.to(flat.device), flat)

    def mask(self, chosen: Tensor, shape: torch.Size) -> Tensor:
        """(n or 1, count) bool -> bool of the shape of x."""
        return chosen[:, self.places.to(chosen.device)].view(len(chosen), *shape[1:])


class Block(NamedTuple):
    """A roadblock: which units it changes, (1, units) bool, and the frozen copy where each row needs it."""

    units: Tensor
    frozen: nn.Module | None


def importance(model: nn.Module, x: Tensor, y: Tensor, units: Units, spec: Spec, generator: Generator) -> Tensor:
    """(n, units): |(x_d - mean x_d) df(x)_y / dx_d| summed over each unit; category columns: |f(x)_y - f(x swapped)_y|.

    Args:
        model: in evaluation mode; its parameters get no gradients.
        x: rows (n, ...).
        y: their classes.
        units: of x.
        spec: of the data.
        generator: draws the swaps of category columns.
    """
    inputs = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        own = model(as_weights(model, inputs.clone())).gather(1, y[:, None]).sum()  # it may begin in place
    gradient = torch.autograd.grad(own, inputs, allow_unused=True)[0]
    gradient = torch.zeros_like(x) if gradient is None else gradient
    found = units.total(((x - x.mean(dim=0)) * gradient).abs())
    with torch.no_grad():
        plain = model(as_weights(model, x.clone())).gather(1, y[:, None])
        for column in range(spec.numeric, spec.numeric + len(spec.cardinalities)):
            other = x.clone()
            other[:, column] = x[torch.randperm(len(x), generator=generator).to(x.device), column]
            found[:, column] = (plain - model(as_weights(model, other)).gather(1, y[:, None])).abs().squeeze(1)
    return found


def _looks(spec: Spec) -> float:
    """Passes a row that `importance` takes, one without gradients a third."""
    return 1 + (1 + len(spec.cardinalities)) / 3


def top_units(scores: Tensor, count: int) -> Tensor:
    """(n, units) bool: the `count` units of largest score in each row."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count, dim=1).indices, True)


def replaced(x: Tensor, donors: Tensor, mask: Tensor) -> Tensor:
    """x with the entries under the mask taken from the donors, rows of the same shape."""
    return torch.where(mask, donors, x)


def signed_steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 3,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """x moved by signed-gradient steps that raise cross-entropy of a frozen model, within eps in every entry.

    Args:
        model: in evaluation mode.
        x: rows.
        y: their classes.
        eps: largest change of an entry, >= 0.
        steps: how many, each of 1.5 eps / steps.
        low, high: bounds of entries, None = none; an entry that begins outside goes no further, and not back either.
    """
    moved = x.detach().clone()
    least = x - eps if low is None else (x - eps).clamp(min=low).minimum(x)
    most = x + eps if high is None else (x + eps).clamp(max=high).maximum(x)
    for _ in range(steps):
        moved.requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(model(as_weights(model, moved.clone())), y)
        gradient = torch.autograd.grad(loss, moved, allow_unused=True)[0]
        step = torch.zeros_like(x) if gradient is None else gradient.sign()
        moved = (moved.detach() + 1.5 * eps / steps * step).clamp(least, most)
    return moved.detach()


def learnable(x: Tensor, y: Tensor, classes: int) -> bool:
    """Whether a ridge classifier fitted on every other row is above chance on the others by four standard errors.

    It is solved in as many unknowns as there are columns or rows, whichever are fewer.
    """
    flat, fitted, asked = x.flatten(1), slice(0, None, 2), slice(1, None, 2)
    targets = F.one_hot(y[fitted], classes).to(flat.device, torch.float64)
    if flat.shape[1] < len(targets):
        z = torch.cat([_standardised(flat), torch.ones(len(flat), 1).to(targets)], dim=1)
        inner = z[fitted].T @ z[fitted] + len(targets) * RIDGE * torch.eye(z.shape[1]).to(z)
        scores = z[asked] @ torch.linalg.solve(inner, z[fitted].T @ targets)
    else:
        gram = torch.ones(len(flat), len(targets)).to(targets)  # what the constant column gives
        for columns in flat.split(COLUMNS, dim=1):
            z = _standardised(columns)
            gram += z @ z[fitted].T
        inner = gram[fitted] + len(targets) * RIDGE * torch.eye(len(targets)).to(gram)
        scores = gram[asked] @ torch.linalg.solve(inner, targets)
    right = float(scores.argmax(dim=1).eq(y[asked]).double().mean())
    chance = float(y[asked].bincount().max()) / len(scores)
    return right > chance + MASS * (chance * (1 - chance) / len(scores)) ** 0.5


def _standardised(x: Tensor) -> Tensor:
    z = x.double()
    return (z - z.mean(dim=0)) / torch.where(varying(z), z.std(dim=0), torch.ones_like(z[0]))


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of the covariance of features (n, d)."""
    values = torch.linalg.svdvals((features - features.mean(dim=0)).double()).square()
    share = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(share).sum().exp())


class Roadblocks:
    """Roadblocks for a network in training; on the bench a method, in plain code `build` and `block`.

    Args:
        share: q, of the units that a roadblock changes, in [0, 1); 0 = the baseline bit for bit (kind sign: eps = 0).
        start: share of the steps before the first roadblock, in (0, 1).
        rounds: roadblocks built one after another, each from what the network relies on by then.
        end: share of the last steps without roadblocks, start + end < 1.
        mix: share of a batch that is blocked, in (0, 1].
        kind: swap (the units of largest importance over the rows), sample (those of each row), sign (signed-gradient steps
            against the frozen copy), or as controls zero (swap's units set to 0) and random (any units, swapped).
        eps: kind sign: largest change of an entry, >= 0.
        patch: see `Units`.
        accept: accuracy that the frozen copy must lose on a roadblock for it to be used, in [0, 1).
        rows: training rows that importance and acceptance are measured on.
        generator: for everything drawn.

    Raises:
        ValueError: a setting out of range; a share that covers all units: "roadblock leaves no evidence".

    Example:
        >>> spec = Spec("table", "classes", (4,), 2, numeric=4)
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> net = nn.Linear(4, 2)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1, 0, 0, 0]]))
        >>> blocks = Roadblocks(share=0.25, accept=0.1)
        >>> blocks.build(net, x, y, spec)  # the other columns hold nothing, so the roadblock is refused
        False
        >>> int((blocks.block(x, y, x) != x).any(dim=0).sum())
        1
    """

    reads = ("batch", "model")
    writes = ("batch",)

    def __init__(
        self,
        share: float = 0.15,
        start: float = 0.3,
        rounds: int = 2,
        end: float = 0.0,
        mix: float = 0.5,
        kind: str = "swap",
        eps: float = 0.1,
        patch: int | None = None,
        accept: float = 0.02,
        rows: int = 1024,
        generator: Generator | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
        if share >= 1:
            raise ValueError(f"share is {share}: such a roadblock leaves no evidence; give less than 1")
        if not share >= 0 or not eps >= 0:
            raise ValueError(f"share is {share} and eps {eps}; both must be at least 0")
        if not 0 < start < 1 or not 0 <= end < 1 or not start + end < 1:
            raise ValueError(f"start is {start} and end {end}; shares of the steps, start above 0, together below 1")
        if not 0 < mix <= 1 or not 0 <= accept < 1:
            raise ValueError(f"mix is {mix} and accept {accept}; they must lie in (0, 1] and [0, 1)")
        if rounds < 1 or rows < LEAST or (patch is not None and patch < 1):
            raise ValueError(f"rounds is {rounds}, rows {rows}, patch {patch}; at least 1, 8 and 1")
        self.share, self.start, self.rounds, self.end, self.mix, self.kind = share, start, rounds, end, mix, kind
        self.eps, self.patch, self.accept, self.rows = eps, patch, accept, rows
        self.generator = generator or torch.Generator().manual_seed(0)
        self.accepted: list[Block] = []
        self.refused: Block | None = None
        self.built = 0
        self.told: dict[str, float] = {}
        self.spec: Spec | None = None
        self.units: Units | None = None
        self.model: nn.Module | None = None

    @property
    def active(self) -> bool:
        """Whether there is anything to be blocked."""
        return self.eps > 0 if self.kind == "sign" else self.share > 0

    def build(self, model: nn.Module, x: Tensor, y: Tensor, spec: Spec) -> bool:
        """Freeze a copy of the model, find what it relies on in these rows; returns whether the roadblock is accepted.

        A refused one is used by `block` only where none was accepted.

        Args:
            model: the network; it is not changed.
            x: rows (n, ...), 8 or more.
            y: their classes (n,).
            spec: of the data.

        Raises:
            ValueError: too few rows, labels that are no classes of the spec, a share that covers all units.
        """
        y = class_codes(y, len(x), spec.outputs)
        if len(x) < LEAST:
            raise ValueError(
                f"a roadblock is built from {len(x)} rows; {LEAST} or more are needed to tell what is left"
            )
        units = self._of(spec)
        frozen = copied(model).eval().requires_grad_(False)
        count = min(units.count - 1, max(1, round(self.share * units.count)))
        scores = torch.rand(1, units.count, generator=self.generator).to(x.device)
        if self.kind in ("swap", "zero"):
            scores = importance(frozen, x, y, units, spec, self.generator).mean(dim=0, keepdim=True)
        chosen = top_units(scores, count)
        block = Block(chosen, frozen if self.kind in ("sample", "sign") else None)
        shuffled = x[torch.randperm(len(x), generator=self.generator).to(x.device)]
        blocked = self._changed(x, y, shuffled, block)
        with torch.no_grad():
            before = float(frozen(as_weights(frozen, x.clone())).argmax(dim=1).eq(y).double().mean())
            after = float(frozen(as_weights(frozen, blocked.clone())).argmax(dim=1).eq(y).double().mean())
        self.built += 1
        rest = learnable(blocked, y, spec.outputs)
        accepted = before - after >= self.accept and rest
        number = f"roadblock {self.built}"
        self.told |= {f"{number}: accuracy lost": before - after, f"{number}: accepted": float(accepted)}
        if accepted:
            self.accepted.append(block)
        else:
            self.refused = block
        return accepted

    def block(self, x: Tensor, y: Tensor, pool: Tensor) -> Tensor:
        """Rows (n, ...) behind one of the roadblocks; what is replaced comes from random rows of the pool.

        Labels y, (n,) codes or (n, classes) shares, tell kinds sample and sign what a row is recognised by.
        """
        there = self.accepted or ([self.refused] if self.refused is not None else [])
        if not there:
            raise ValueError("no roadblock was built; call build(model, x, y, spec) first")
        if self.kind in ("sample", "sign") and self.spec is not None:  # the others do not look at labels
            y = class_codes(y.argmax(dim=1) if y.is_floating_point() else y, len(x), self.spec.outputs)
        which = int(torch.randint(len(there), (1,), generator=self.generator))
        donors = pool[torch.randint(len(pool), (len(x),), generator=self.generator).to(pool.device)]
        return self._changed(x, y, donors, there[which])

    def prepare(self, run: Any) -> None:
        """The last weights are the result; the units are counted."""
        if self.active:
            self._of(run.spec)
            self.model = run.model
            run.keep_best = False

    def batch(self, run: Any, batch: Any) -> Any:
        """Build the roadblock whose turn it is, and block a part of the batch."""
        if not self.active or not self._on(run):
            return batch
        length = (1 - self.start - self.end) * run.budget.steps / self.rounds
        due = min(self.rounds, int((run.step - self.start * run.budget.steps) / length) + 1)
        if self.built < due:
            rows = torch.randperm(len(run.train), generator=self.generator).to(run.train.y.device)
            rows = rows[run.train.y[rows] != IGNORED][: self.rows]
            self.build(run.model, run.train.x[rows], run.train.y[rows], run.spec)
            run.extra_passes += self._passes(run.spec) * len(rows)
        if not self.accepted:
            return batch
        count = round(self.mix * len(batch.x))
        place = torch.randperm(len(batch.x), generator=self.generator)[:count].to(batch.x.device)
        if not batch.y.is_floating_point():
            place = place[batch.y[place] != IGNORED]  # what has no label needs no other way to it
        count = len(place)
        x = batch.x.clone()
        x[place] = self.block(batch.x[place], batch.y[place], run.train.x)
        run.extra_passes += self._passes_to_block(run.spec) * count
        return batch._replace(x=x)

    def finish(self, run: Any) -> None:
        """Measure how many directions the features use, where a linear head reads them."""
        if self.active:
            try:
                features = last_features(run.model, run.train.x[: self.rows], ends=False).features
            except ValueError:
                return
            run.extra_passes += len(features) / 3
            self.told["effective rank of features"] = effective_rank(features)

    def report(self) -> dict[str, float]:
        """What each roadblock cost the network that it was built from, which were used, and the features' rank."""
        return dict(self.told)

    def state_dict(self) -> dict[str, Any]:
        """Accepted roadblocks with the frozen copies' weights where they need them, and the stream's state."""
        return {
            "accepted": [
                {"units": block.units.clone(), "frozen": None if block.frozen is None else block.frozen.state_dict()}
                for block in self.accepted
            ],
            "built": self.built,
            "told": dict(self.told),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; kinds sample and sign after `prepare`, which knows the network's shape."""
        self.built, self.told = state["built"], dict(state["told"])
        self.generator.set_state(state["generator"])
        self.accepted = []
        for held in state["accepted"]:
            frozen = None
            if held["frozen"] is not None:
                if self.model is None:
                    raise ValueError("the frozen copies need a network to be loaded into; call prepare(run) first")
                frozen = copied(self.model).eval().requires_grad_(False)
                frozen.load_state_dict(held["frozen"])
            self.accepted.append(Block(held["units"], frozen))

    def _passes(self, spec: Spec) -> float:
        """Passes a row that building takes, one without gradients a third: importance, blocking, and two looks at accuracy."""
        return (_looks(spec) if self.kind in ("swap", "zero") else 0.0) + self._passes_to_block(spec) + 2 / 3

    def _passes_to_block(self, spec: Spec) -> float:
        """Passes that changing a row takes."""
        return {"sign": 3.0, "sample": _looks(spec)}.get(self.kind, 0.0)

    def _of(self, spec: Spec) -> Units:
        if self.units is None or self.spec != spec:
            self.spec, self.units = spec, Units(spec, self.patch)
        if self.units.count < 2 or round(self.share * self.units.count) >= self.units.count:
            raise ValueError(
                f"share {self.share} covers all {self.units.count} units: such a roadblock leaves no evidence; give less"
            )
        return self.units

    def _on(self, run: Any) -> bool:
        return self.start * run.budget.steps <= run.step < (1 - self.end) * run.budget.steps

    def _changed(self, x: Tensor, y: Tensor, donors: Tensor, block: Block) -> Tensor:
        """x behind a roadblock; one donor a row."""
        if not len(x):
            return x  # networks need not take no rows
        spec = self.spec
        if self.units is None or spec is None:
            raise ValueError("no roadblock was built; call build(model, x, y, spec) first")
        if self.kind == "sign" and block.frozen is not None:
            bounds = (0.0, 1.0) if spec.modality == "image" else (None, None)
            return self._only_numbers(x, signed_steps(block.frozen, x, y, self.eps, low=bounds[0], high=bounds[1]))
        chosen = block.units
        if self.kind == "sample" and block.frozen is not None:
            scores = importance(block.frozen, x, y, self.units, spec, self.generator)
            chosen = top_units(scores, int(chosen.sum()))
        if self.kind == "zero":
            donors = torch.zeros_like(x)
        return replaced(x, donors, self.units.mask(chosen, x.shape))

    def _only_numbers(self, x: Tensor, moved: Tensor) -> Tensor:
        """Signed steps leave category codes and the mask of series as they are."""
        spec = self.spec
        if spec is not None and spec.cardinalities:
            return torch.cat([moved[:, : spec.numeric], x[:, spec.numeric :]], dim=1)
        if spec is not None and spec.masked:
            return torch.cat([moved[:, :-1] * x[:, -1:], x[:, -1:]], dim=1)
        return moved
