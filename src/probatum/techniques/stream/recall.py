"""RECALL: before new classes are learned, what old heads say of the new rows is noted, and they are held to it.

Paper     Knauer, Denninger, Triebel 2022, "RECALL: Rehearsal-free Continual Learning for Object Classification", IROS 2022,
          arXiv:2209.14774
Computes  features of a frozen encoder; for every stage a head of its own, Linear, sin(omega .), Linear. Before a stage the old
          heads' outputs r on all its rows are noted once; then all heads are trained on
          mean(((o_old - r) / sigma)^2) + L_new, sigma a class's spread of r, L_new cross-entropy among the new classes or
          the squared error to one-hot targets after clipping to [0, 1]. As heads share no weights, nothing but a combined
          loss over all outputs pulls at the old ones: without it their loss is rounding, which Adam makes small steps of
Shapes    observe(stage, budget): x (n, ...), y (n,) int64; predict(x) -> outputs of all heads side by side (n, num_classes),
          -inf for classes not seen
Departs   1. the clipping lets gradients through: an output below 0 of a class that is meant would otherwise never return
          2. heads are smaller than the paper's 2048 units, and have the first weights of SIREN layers
          3. the encoder is the baseline, which learns the first stage, where none is given
          4. sigma is the deviation of what was noted; the authors' code divides by its variance
          5. with regression, too, old outputs are compared as they are; the authors' code compares clipped ones
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.continual.frozen_features import FrozenFeatures
from probatum.numerics.continual.learners import Settings
from probatum.numerics.continual.stages import check_stage, class_mask, evaluate, masked, module_bytes, train_stage
from probatum.spec import Batch, Budget, Optimisation, Stage

CARD = Card(
    paper="arXiv:2209.14774",
    title="RECALL: Rehearsal-free Continual Learning for Object Classification",
    entry="Recall",
    number=191,
    tags=("continual", "lifelong", "memory", "regularisation"),
    tasks=("classes",),
    tiny={"hidden": 16, "combined": 1.0},
    tune={"old_weight": (0.1, 30.0, "log"), "later_rate": (0.1, 3.0, "log"), "omega": (1.0, 30.0, "log")},
    claims=("old-heads-are-held",),
)

MOST_HIDDEN = 256
"""Units of a head where nothing is said and the memory allows."""
SHARE = 0.5
"""Share of the first stage's steps that the encoder takes where it learns; the first head has the others."""
KINDS = ("regression", "cross-entropy")


class SineHead(nn.Module):
    """Linear, sin(omega .), Linear, with the first weights of Sitzmann et al. 2020 (arXiv:2006.09661, section 3.2).

    Args:
        inputs, hidden, outputs: sizes.
        omega: frequency.
        generator: draws of the first weights.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, omega: float, generator: torch.Generator) -> None:
        super().__init__()
        self.omega = omega
        self.first: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, hidden)
        self.last: nn.Linear = nn.utils.skip_init(nn.Linear, hidden, outputs)
        bounds = (1 / inputs, math.sqrt(6 / hidden) / omega)
        with torch.no_grad():
            for layer, bound in zip((self.first, self.last), bounds, strict=True):
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.sin(self.omega * self.first(z)))


@torch.no_grad()
def copy_where_shapes_agree(source: nn.Module, target: nn.Module) -> list[str]:
    """Copy weights of equal name and shape, and return their names."""
    given = dict(source.named_parameters())
    copied = []
    for name, weight in target.named_parameters():
        if name in given and given[name].shape == weight.shape:
            weight.copy_(given[name])
            copied.append(name)
    return copied


def live_clip(output: Tensor) -> Tensor:
    """The output clipped to [0, 1], with the gradient of the identity."""
    return output + (output.clamp(0, 1) - output).detach()


def spread(recalled: Tensor, floor: float) -> Tensor:
    """Each old class's standard deviation (classes,) of what was noted (n, classes), at least `floor`; a warning where it
    is raised to that."""
    found = recalled.std(dim=0, correction=0)
    low = int((found < floor).sum())
    if low:
        warnings.warn(
            f"{low} of {len(found)} old outputs vary by less than {floor:g} over the new rows; their spread is taken to be "
            f"{floor:g}",
            stacklevel=2,
        )
    return found.clamp_min(floor)


def old_loss(output: Tensor, recalled: Tensor, sigma: Tensor | float) -> Tensor:
    """Mean of ((output - recalled) / sigma)^2: outputs and what was noted (n, classes), sigma (classes,) or a number."""
    return ((output - recalled) / sigma).square().mean()


def new_loss(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """Cross-entropy, or the mean squared error of clipped outputs to one-hot targets: (n, classes), (n,) columns."""
    if kind == "cross-entropy":
        return F.cross_entropy(output, target)
    return (live_clip(output) - F.one_hot(target, output.shape[1])).square().mean()


class Heads(nn.Module):
    """Heads side by side: features (n, d) -> (n, all their outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList()

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([head(z) for head in self.heads], dim=1)


class Recall:
    """Heads on frozen features that keep no rows, and are held to what they said of the new ones.

    Args:
        num_classes: classes in all.
        model_factory: a network that ends in a linear layer; it is called where `encoder` is named.
        generator: draws of the heads' first weights.
        order: batch orders.
        memory: bytes that the heads may take where `hidden` is not given; None = no bound.
        optimisation: rate and schedule of Adam; its decay counts for the encoder alone.
        encoder: first-stage (the network learns with half of the first stage's steps), given (frozen as it comes), or
            a frozen module x -> features (n, d).
        kind: of the new classes' loss: regression or cross-entropy.
        variance: divide by each old class's spread of what was noted.
        floor: the least spread, above 0.
        hidden: units of a head; None = 256, or as many as the memory holds.
        omega: frequency of the heads' sines, above 0; large ones need small rates.
        later_rate: rate of the stages after the first, as a share of the first's, above 0.
        old_weight: of the old heads' loss, at least 0; 0 = they are not held.
        combined: weight of the new loss over the outputs of all heads, at least 0.

    Raises:
        ValueError: settings out of range, a class that comes again, a memory too small for heads of one unit.

    Example:
        >>> draws, order = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        >>> x = torch.randn(80, 6, generator=draws)
        >>> y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        >>> learner = Recall(4, nn.Identity, draws, order, encoder=nn.Identity(), hidden=16)
        >>> for number, classes in enumerate([(0, 1), (2, 3)]):
        ...     rows = torch.isin(y, torch.tensor(classes))
        ...     learner.observe(Stage(number, classes, x[rows], y[rows]), Budget(50, 16, 3))
        >>> learner.predict(x).shape
        torch.Size([80, 4])
    """

    needs_stages = True

    def __init__(
        self,
        num_classes: int,
        model_factory: Callable[[], nn.Module],
        generator: torch.Generator,
        order: torch.Generator,
        memory: int | None = None,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # a frozen value
        *,
        encoder: str | nn.Module = "first-stage",
        kind: str = "regression",
        variance: bool = True,
        floor: float = 1e-3,
        hidden: int | None = None,
        omega: float = 3.0,
        later_rate: float = 1.0,
        old_weight: float = 1.0,
        combined: float = 0.0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; use {' or '.join(KINDS)}")
        for name, value in (("floor", floor), ("omega", omega), ("later_rate", later_rate)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name, value in (("old_weight", old_weight), ("combined", combined)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden is {hidden}; it must be at least 1")
        self.kind, self.variance, self.floor, self.hidden, self.omega = kind, variance, floor, hidden, omega
        self.later_rate, self.old_weight, self.combined = later_rate, old_weight, combined
        self.num_classes, self.memory, self.generator, self.order = num_classes, memory, generator, order
        self.optimisation = optimisation
        settings = Settings(num_classes, model_factory, generator, order, 0, 0, optimisation)
        self.encoder = FrozenFeatures(encoder, settings, SHARE)
        self.heads = Heads()
        self.stages: list[tuple[int, ...]] = []

    @property
    def network(self) -> nn.Module:
        """Encoder and heads."""
        return nn.ModuleList([self.encoder.network, self.heads])

    @property
    def passes(self) -> float:
        """Examples passed through the encoder forward and backward; a pass forward counts as a third."""
        return self.encoder.passes

    @property
    def columns(self) -> list[int]:
        """The classes of the heads' outputs, in their order."""
        return [c for stage in self.stages for c in stage]

    def observe(self, stage: Stage, budget: Budget) -> None:
        """Learn one stage: note what old heads say, add a head, train all."""
        again = sorted(set(stage.classes) & set(self.columns))
        if again:
            raise ValueError(
                f"stage {stage.number} brings classes {again} again; every class may come in one stage only"
            )
        stage = check_stage(stage, self.num_classes)
        if not stage.classes:
            raise ValueError(f"stage {stage.number} names no class; a head needs at least one")
        if not self.stages:
            budget = self.encoder.begin(stage, budget)
        z = self.encoder.learnt(stage.x)
        heads, stages = list(self.heads.heads), list(self.stages)
        try:
            self._learn(stage, z, budget)
        except BaseException:  # the stage can be shown again
            self.heads.heads, self.stages = nn.ModuleList(heads), stages
            raise

    def _learn(self, stage: Stage, z: Tensor, budget: Budget) -> None:
        recalled = evaluate(self.heads, z) if self.stages else z[:, :0]
        old = recalled.shape[1]
        sigma: Tensor | float = spread(recalled, self.floor) if old and self.variance else 1.0
        self.add_head(z, stage.classes)
        place = torch.zeros(self.num_classes, dtype=torch.int64, device=z.device)
        place[list(stage.classes)] = torch.arange(len(stage.classes), device=z.device)

        def loss(batch: Batch, output: Any) -> Tensor:
            value = new_loss(output[:, old:], batch.y, self.kind)
            if old and self.old_weight:
                value = value + self.old_weight * old_loss(output[:, :old], recalled[batch.index], sigma)
            if old and self.combined:
                value = value + self.combined * new_loss(output, batch.y + old, self.kind)
            return value

        rate = self.optimisation.lr * (self.later_rate if old else 1.0)
        optimisation = replace(self.optimisation, lr=rate, weight_decay=0.0)
        train_stage(self.heads, z, place[stage.y], budget, optimisation, self.order, loss)

    def add_head(self, z: Tensor, classes: tuple[int, ...]) -> None:
        """A head for these classes, with the last head's weights where shapes agree; z tells the size of features."""
        if z.ndim != 2:
            raise ValueError(f"the encoder gives features of shape {tuple(z.shape)}; heads need (n, d)")
        if self.hidden is None:
            self.hidden = self._fitting(z.shape[1], len(classes), z.element_size())
        head = SineHead(z.shape[1], self.hidden, len(classes), self.omega, self.generator).to(z)
        if self.stages:
            copy_where_shapes_agree(self.heads.heads[-1], head)
        self.heads.heads.append(head)
        self.stages.append(tuple(classes))

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Outputs (n, num_classes), -inf for classes not seen, and for those of other stages where `task` is given."""
        if not self.stages:
            raise RuntimeError("nothing is learned yet; observe a stage first")
        found = evaluate(self.heads, self.encoder(x))
        output = found.new_full((len(x), self.num_classes), -math.inf)
        output[:, self.columns] = found
        if task is None:
            return output
        if not 0 <= task < len(self.stages):
            raise ValueError(f"task is {task}; {len(self.stages)} stage(s) have been seen, from 0")
        return masked(output, class_mask(self.stages[task], self.num_classes, output.device))

    def stored_bytes(self) -> int:
        """All heads, and the statistics of features."""
        return module_bytes(self.heads) + self.encoder.stored_bytes()

    def _fitting(self, features: int, first: int, number: int) -> int:
        """Units of a head, so that the memory holds as many heads as may come after one of `first` classes."""
        if self.memory is None:
            return MOST_HIDDEN
        heads = 1 + self.num_classes - first
        numbers = self.memory // number - self.num_classes - 2 * features
        units = min(MOST_HIDDEN, numbers // (heads * (features + 1) + self.num_classes))
        if units < 1:
            raise ValueError(
                f"memory is {self.memory} bytes, too few for {heads} heads of one unit on {features} features; allow more, or "
                "give hidden"
            )
        return units
