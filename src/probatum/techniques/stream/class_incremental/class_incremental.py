"""Class-incremental learning: reference learners that see the classes stage after stage, under one byte budget.

Paper     Zhou, Wang, Qi, Ye, Zhan and Liu 2023, "Deep Class-Incremental Learning: A Survey", arXiv:2302.03648; each method's
          own paper below
Computes  one training loop and its hooks: which rows are trained on (new ones, kept exemplars), what is added to the loss or
          to the gradients, what is done to the network before and after a stage
Shapes    observe(stage, budget): x (n, ...), y (n,) int64; predict(x) -> logits (n, num_classes), -inf for classes not seen
Departs   1. all methods but der and memo hold one head over all classes, masked to those seen, in place of a growing one
          2. ewc sums the Fisher information of the stages around the last weights, so that nothing but it is kept
          3. gem compares with a batch of each earlier stage's exemplars, not with all of them
          4. bic corrects the logits of a stage's classes once, by two numbers fitted on held-out rows of all classes
          5. der prunes nothing, and the balanced tuning of its head takes the last fifth of the stage's steps; memo goes on
             training what its extractors share
          6. the survey's PODNet and FOSTER are not among the methods
          7. wa clips all weights of the head, those of classes not seen yet among them; its head has biases, left as they are
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.continual.learners import FORWARD, FineTune, Prototypes, Replay, Settings, nearness
from probatum.numerics.continual.stages import class_mask, evaluate, masked, present, tensor_bytes
from probatum.numerics.tensors.precision import widened
from probatum.spec import Batch, Budget, Optimisation, Stage
from probatum.techniques.stream.class_incremental.growth import DER, MEMO
from probatum.techniques.stream.class_incremental.penalties import (
    PathIntegral,
    Weights,
    align,
    distillation,
    fisher_diagonal,
    project,
    put_weight,
    quadratic,
    weights_of,
)

CARD = Card(
    paper="arXiv:2302.03648",
    title="Deep Class-Incremental Learning: A Survey",
    entry="ClassIncremental",
    number=186,
    tags=("continual", "lifelong", "memory"),
    tasks=("classes",),
    neutral={"method": "finetune"},
    tiny={"method": "bic"},
    tune={"strength": (0.1, 10.0, "log"), "temperature": (1.0, 4.0)},
    claims=("who-forgets-least",),
)
NUMBERS = 8
"""Bytes of the two numbers that bic fits in a stage."""


class GEM(Replay):
    """Trains on new rows; gradients are projected so that no earlier stage's exemplars lose (Lopez-Paz, Ranzato 2017)."""

    needs_stages = True
    default_strength = 0.0

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """New rows alone; the exemplars constrain."""
        of = self.exemplars.classes
        past = [[self.exemplars.of(c) for c in classes if c in of] for classes in self.stages]
        labels = [[c for c in classes if c in of] for classes in self.stages]
        self.past = [
            (
                torch.cat(rows),
                torch.tensor(names).repeat_interleave(torch.tensor([len(r) for r in rows])).to(stage.y.device),
            )
            for rows, names in zip(past, labels, strict=True)
            if rows
        ]
        return stage.x, stage.y

    def gradients(self) -> None:
        """Project the gradient."""
        if not self.past:
            return
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        own = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        memory = []
        for x, y in self.past:
            pick = torch.randperm(len(y), generator=self.s.generator)[: self.s.batch_size].to(y.device)
            pick = pick.repeat(2) if len(pick) == 1 else pick
            value = F.cross_entropy(masked(self.network(widened(x[pick])), self.seen), y[pick])
            memory.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
            self.passes += len(pick)
        found = project(own, torch.stack(memory), self.strength)
        for p, piece in zip(parameters, found.split([p.numel() for p in parameters]), strict=True):
            p.grad = piece.view_as(p).clone()

    def end(self, stage: Stage) -> None:
        """Choose exemplars; what the gradients were compared with goes."""
        self.past = []
        super().end(stage)


class EWC(FineTune):
    """Weights are held where the Fisher information of earlier stages is large (Kirkpatrick et al. 2017)."""

    needs_stages = True
    default_strength = 3000.0
    rows = 256
    fisher: Weights | None = None

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """The weights to be held to are those of now."""
        self.reference = weights_of(self.network)
        return stage.x, stage.y

    def loss(self, batch: Batch, output: Any) -> Tensor:
        """The plain loss and the quadratic penalty."""
        value = self.plain_loss(batch, output)
        return (
            value
            if self.fisher is None
            else value + self.strength * quadratic(self.network, self.reference, self.fisher)
        )

    def end(self, stage: Stage) -> None:
        """Add the stage's Fisher information."""
        self.reference = {}
        rows = torch.randperm(len(stage), generator=self.s.generator)[: self.rows].to(stage.y.device)
        found = fisher_diagonal(self.network, stage.x[rows], self.seen, self.s.generator)
        self.passes += len(rows)
        self.fisher = found if self.fisher is None else {name: self.fisher[name] + f for name, f in found.items()}

    def stored_bytes(self) -> int:
        """The Fisher information, one number a weight."""
        return tensor_bytes((self.fisher or {}).values())


class SI(FineTune):
    """Weights are held by how much their own path lowered the loss (Zenke, Poole, Ganguli 2017)."""

    needs_stages = True
    default_strength = 1.0

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """The path begins."""
        self.path = getattr(self, "path", None) or PathIntegral()
        self.path.begin(self.network)
        return stage.x, stage.y

    def gradients(self) -> None:
        """Note the task's gradients, add the penalty's."""
        self.path.before(self.network, self.strength)

    def stepped(self) -> None:
        """Follow the path."""
        self.path.after(self.network)

    def end(self, stage: Stage) -> None:
        """Importances."""
        self.path.end(self.network)

    def stored_bytes(self) -> int:
        """Importances, one number a weight."""
        return tensor_bytes((self.path.importance or {}).values()) if hasattr(self, "path") else 0


class LwF(FineTune):
    """New classes by cross-entropy among themselves, old ones by what the network said before (Li, Hoiem 2016)."""

    needs_stages = True
    default_strength = 1.0

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Note what the old classes' logits are on the new rows."""
        self.said = self.teach(stage.x) if bool(self.old.any()) else stage.x[:0]
        self.own = class_mask(present(stage), self.s.num_classes, stage.y.device)
        return stage.x, stage.y

    def loss(self, batch: Batch, output: Any) -> Tensor:
        """Cross-entropy over the stage's classes, distillation over those of earlier stages."""
        if not len(self.said):
            return self.plain_loss(batch, output)
        new = F.cross_entropy(masked(output, self.own), batch.y)
        old = distillation(output[:, self.old], self.said[batch.index][:, self.old], self.s.temperature)
        return new + self.strength * old

    def end(self, stage: Stage) -> None:
        """Forget what was said."""
        del self.said


class ICaRL(Replay):
    """Sigmoid loss with the old network's answers as targets, nearest mean of exemplars (Rebuffi et al. 2017)."""

    needs_stages = True
    means: tuple[list[Tensor], Tensor] | None = None

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """New rows and exemplars, with targets."""
        self.means = None
        x, y = super().begin(stage)
        self.target = F.one_hot(y, self.s.num_classes).to(
            widened(x[:0]).dtype if x.is_floating_point() else torch.float32
        )
        if bool(self.old.any()):
            self.target[:, self.old] = self.teach(x)[:, self.old].sigmoid().to(self.target)
        return x, y

    def loss(self, batch: Batch, output: Any) -> Tensor:
        """Binary cross-entropy summed over the classes seen."""
        target = self.target[batch.index][:, self.seen]
        return F.binary_cross_entropy_with_logits(output[:, self.seen], target, reduction="none").sum(dim=1).mean()

    def end(self, stage: Stage) -> None:
        """Choose exemplars, one a class at least."""
        del self.target
        known = set(self.exemplars.classes)
        super().end(stage)
        if missing := sorted((known | set(stage.y.tolist())) - set(self.exemplars.classes)):
            raise ValueError(
                f"memory is {self.s.memory} bytes, which hold no exemplar of classes {missing}; icarl needs one a class"
            )

    def logits(self, x: Tensor) -> Tensor:
        """Minus the squared distance to the mean of each class's exemplars, which are passed once after a stage."""
        state = [*self.network.parameters(), *self.network.buffers()]
        if self.means is None or not all(map(_same, self.means[0], state)):  # by value: `.data` counts no change
            found = [self.features(self.exemplars.of(c)).mean(dim=0) for c in self.exemplars.classes]
            self.means = [t.detach().clone() for t in state], torch.stack(found)
        near = nearness(self.features(x), self.means[1])
        full = near.new_full((len(x), self.s.num_classes), -math.inf)
        return full.index_copy(1, torch.tensor(self.exemplars.classes, device=x.device), near)


def _same(before: Tensor, now: Tensor) -> bool:
    return before.dtype == now.dtype and before.device == now.device and torch.equal(before, now)


class Distilled(Replay):
    """Replay with distillation, the weight between them by the share of old classes; what wa and bic have in common."""

    needs_stages = True

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """New rows and exemplars, and what is said of them."""
        self.classes = len(present(stage))
        x, y = self.trained_on(stage)
        self.said = self.corrected(self.teach(x)) if bool(self.old.any()) else x[:0]
        return x, y

    def trained_on(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """New rows and exemplars."""
        return Replay.begin(self, stage)

    def corrected(self, output: Tensor) -> Tensor:
        """Logits as they are compared, by student and teacher."""
        return output

    def loss(self, batch: Batch, output: Any) -> Tensor:
        """(1 - share) of the plain loss and share of the distillation, share = old classes beside those of the stage.

        Each old class counts `strength` times, so that the new ones keep a part of the loss however strong it is.
        """
        output = self.corrected(output)
        value = self.plain_loss(batch, output)
        if not len(self.said):
            return value
        many = self.strength * self.old.sum()
        share = float(many / (many + self.classes))
        old = distillation(output[:, self.old], self.said[batch.index][:, self.old], self.s.temperature)
        return (1 - share) * value + share * old / self.s.temperature**2  # the papers' distillation is not scaled by it

    def end(self, stage: Stage) -> None:
        """Choose exemplars, then correct."""
        del self.said
        super().end(stage)
        self.correct()

    def correct(self) -> None:
        """Make up for the preference of new classes."""
        raise NotImplementedError(f"{type(self).__name__} corrects nothing")


class WA(Distilled):
    """Distillation, then new classes' weights scaled to the old ones' mean norm (Zhao et al. 2020, arXiv:1911.07053).

    The head's weights are kept from falling below 0 by clipping after each step, so that norms tell how large logits are.
    """

    def stepped(self) -> None:
        """Clip the head."""
        head: Any = self.network.head
        put_weight(head, head.weight.detach().clamp(min=0))

    def correct(self) -> None:
        """Align the head."""
        if bool(self.old.any()):
            align(self.network.head, self.old, self.seen & ~self.old)  # type: ignore[arg-type]


class BiC(Distilled):
    """Distillation, then two numbers that correct the new classes' logits (Wu et al. 2019, arXiv:1905.13260).

    They are fitted on rows held out of the training, as many of every class: a share of exemplars and of new rows. Student
    and teacher both pass the corrections of earlier stages, so that nothing is corrected twice.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.scale = torch.ones(settings.num_classes)
        self.shift = torch.zeros(settings.num_classes)

    def trained_on(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Hold out a balanced part of new rows and exemplars; train on the rest."""
        x, y = super().trained_on(stage)
        self.held: tuple[Tensor, Tensor] | None = None
        if bool(self.old.any()) and len(self.exemplars):
            fewest = min(int((y == c).sum()) for c in [int(c) for c in y.unique()])
            each = min(max(1, round(self.s.held_out * fewest)), fewest - 1)
            held = torch.zeros(len(y), dtype=torch.bool, device=y.device)
            for c in y.unique():
                rows = (y == c).nonzero().squeeze(1).cpu()
                held[rows[torch.randperm(len(rows), generator=self.s.generator)[:each]].to(y.device)] = True
            if each:
                self.held = x[held], y[held]
                x, y = x[~held], y[~held]
        return x, y

    def corrected(self, output: Tensor) -> Tensor:
        """Logits after the corrections of all stages so far."""
        return output * self.scale.to(output) + self.shift.to(output)

    def end(self, stage: Stage) -> None:
        """Leave room for the corrections, choose exemplars, then fit."""
        self.exemplars.budget = max(0, self.s.memory - NUMBERS * len(self.stages))
        super().end(stage)

    def correct(self) -> None:
        """Fit the stage's two numbers by L-BFGS on the held-out rows."""
        if self.held is None:
            return
        (x, y), new = self.held, self.seen & ~self.old
        self.held = None
        output = self.corrected(widened(evaluate(self.network, x)))
        self.passes += FORWARD * len(x)
        numbers = torch.tensor([1.0, 0.0], device=x.device, requires_grad=True)
        solver = torch.optim.LBFGS([numbers], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(masked(torch.where(new, output * numbers[0] + numbers[1], output), self.seen), y)
            value = value + 1e-3 * (numbers - torch.tensor([1.0, 0.0], device=x.device)).square().sum()
            value.backward()
            return value

        solver.step(closure)  # type: ignore[no-untyped-call]
        found = numbers.detach().cpu()
        self.scale[new.cpu()], self.shift[new.cpu()] = found[0], found[1]

    def logits(self, x: Tensor) -> Tensor:
        """Corrected logits."""
        return self.corrected(evaluate(self.network, x))

    def stored_bytes(self) -> int:
        """Exemplars and the corrections."""
        return super().stored_bytes() + NUMBERS * len(self.stages)


METHODS: dict[str, type[FineTune]] = {
    "finetune": FineTune,
    "replay": Replay,
    "gem": GEM,
    "ewc": EWC,
    "si": SI,
    "lwf": LwF,
    "icarl": ICaRL,
    "wa": WA,
    "bic": BiC,
    "der": DER,
    "memo": MEMO,
    "prototypes": Prototypes,
}

KEEPING = ("replay", "gem", "icarl", "wa", "bic", "der", "memo")
SETTINGS: dict[str, tuple[object, tuple[str, ...]]] = {
    "strength": (None, ("gem", "ewc", "si", "lwf", "wa", "bic", "der", "memo")),
    "temperature": (2.0, ("lwf", "wa", "bic")),
    "held_out": (0.1, ("bic",)),
    "selection": ("herding", KEEPING),
}
"""Settings that not all methods have: the default, and the methods that have it."""


class ClassIncremental:
    """A learner that sees the classes stage after stage and keeps at most `memory` bytes between them.

    Args:
        num_classes: classes in all.
        model_factory: a fresh network, x -> logits (n, num_classes); all but finetune, ewc, si and lwf need it to end in a
            linear layer.
        generator: the learner's own draws.
        order: batch orders.
        memory: bytes of exemplars, statistics and further weights between stages; methods whose weights alone take more
            keep no exemplars and say so in `stored_bytes`.
        batch_size: rows that gem takes of every earlier stage.
        optimisation: rate, decay and schedule of every stage.
        method: finetune, replay, gem, ewc, si, lwf, icarl, wa, bic, der, memo or prototypes.
        strength: weight of what holds old knowledge (ewc, si: the penalty; lwf: the distillation; wa, bic: how often an old
            class counts beside a new one in the distillation's share; gem: the margin; der, memo: the auxiliary loss), at
            least 0; None = the method's own.
        temperature: of the distillation of lwf, wa and bic, above 0.
        held_out: share of every class that bic holds out, in (0, 0.5].
        selection: of exemplars, where there are any: herding or random.

    Raises:
        ValueError: settings out of range or that the method does not have, an unknown method, a network without features, rows
            of classes not named.

    Example:
        >>> own, order = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        >>> x = torch.arange(120).reshape(60, 2).remainder(7).float()
        >>> y = (x[:, 0] + x[:, 1]).long().remainder(4)
        >>> network = lambda: nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> learner = ClassIncremental(4, network, own, order, memory=200, method="replay")
        >>> for number, classes in enumerate([(0, 1), (2, 3)]):
        ...     rows = torch.isin(y, torch.tensor(classes))
        ...     learner.observe(Stage(number, classes, x[rows], y[rows]), Budget(20, 16, 2))
        >>> learner.predict(x).shape, learner.stored_bytes() <= 200
        (torch.Size([60, 4]), True)
    """

    def __init__(
        self,
        num_classes: int,
        model_factory: Callable[[], nn.Module],
        generator: torch.Generator,
        order: torch.Generator,
        memory: int = 0,
        batch_size: int = 64,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # a frozen value
        *,
        method: str = "replay",
        strength: float | None = None,
        temperature: float = 2.0,
        held_out: float = 0.1,
        selection: str = "herding",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}")
        if selection not in ("herding", "random"):
            raise ValueError(f"selection is {selection!r}; use 'herding' or 'random'")
        if strength is not None and not strength >= 0:
            raise ValueError(f"strength is {strength}; it must be at least 0")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        if not 0 < held_out <= 0.5:
            raise ValueError(f"held_out is {held_out}; it must lie in (0, 0.5]")
        for name, given in (("strength", strength), ("temperature", temperature), ("held_out", held_out),
                            ("selection", selection)):  # fmt: skip
            default, having = SETTINGS[name]
            if given != default and method not in having:
                raise ValueError(f"{name} is {given!r}, which {method} does not have; it is for {', '.join(having)}")
        self.num_classes = num_classes
        settings = Settings(
            num_classes, model_factory, generator, order, memory, batch_size, optimisation, strength, temperature, held_out,
            selection,
        )  # fmt: skip
        self.learner = METHODS[method](settings)
        self.needs_stages = self.learner.needs_stages

    @property
    def network(self) -> nn.Module:
        """What predicts."""
        return self.learner.network

    @property
    def passes(self) -> float:
        """Examples passed forward and backward so far; a pass forward counts as a third."""
        return self.learner.passes

    def observe(self, stage: Stage, budget: Budget) -> None:
        """Learn one stage: rows of its classes, `budget.steps` updates."""
        self.learner.observe(stage, budget)

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits (n, num_classes), -inf for classes not seen, and for those of other stages where `task` is given."""
        return self.learner.predict(x, task)

    def stored_bytes(self) -> int:
        """Bytes kept between stages beyond one plain network."""
        return self.learner.stored_bytes()
