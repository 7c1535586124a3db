"""Networks that grow by a feature extractor a stage while what they had stays frozen, and their learners (DER, MEMO)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.continual.learners import FORWARD, Replay
from probatum.numerics.continual.stages import Split, evaluate, grow_linear, module_bytes, train_stage
from probatum.numerics.networks.watch import hooked
from probatum.spec import Batch, Budget, Stage


def blocks(body: nn.Module) -> list[nn.Module]:
    """The modules that a network runs through in turn: its children, sequences taken apart."""
    found: list[nn.Module] = []
    for child in body.children():
        found += blocks(child) if isinstance(child, nn.Sequential) else [child]
    return found


def last_block(body: nn.Module) -> list[nn.Module]:
    """The modules from the last one with a weight matrix on: what is special to a stage in MEMO.

    Raises:
        ValueError: nothing has a weight matrix, or nothing stands before it that could be shared.
    """
    inside = blocks(body)
    heavy = [i for i, block in enumerate(inside) if any(p.ndim > 1 for p in block.parameters())]
    if len(heavy) < 2:
        raise ValueError(
            f"{type(body).__name__} has {len(heavy)} block(s) with weight matrices; growing the last one needs 2"
        )
    return inside[heavy[-1] :]


class Growing(nn.Module):
    """Concatenated features of one extractor a stage, the earlier ones frozen, behind one head over the classes seen.

    Outputs are logits (n, outputs), -inf for classes not seen. While a stage is learned, `auxiliary` tells its classes
    from "any older one" by the newest features alone.

    Args:
        factory: a fresh network; its last linear layer is taken off.
        outputs: classes in all.
        generator: weights of heads.
        share: whether all but the last block is shared by the extractors and keeps learning (MEMO).
    """

    def __init__(
        self, factory: Callable[[], nn.Module], outputs: int, generator: torch.Generator, share: bool = False
    ) -> None:
        super().__init__()
        self.outputs, self.share = outputs, share
        self.bodies = nn.ModuleList()
        self.head: nn.Linear | None = None
        self.auxiliary: nn.Linear | None = None
        self.classes: list[int] = []
        self._factory, self._generator = factory, generator
        self.plain_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        # a factory is often a local function, which cannot be pickled, and is needed for the first extractor alone
        return {**self.__dict__, "_factory": None} if len(self.bodies) else dict(self.__dict__)

    @property
    def extra_bytes(self) -> int:
        """Bytes beyond one plain network."""
        return max(0, module_bytes(self) - self.plain_bytes)

    def grow(self, classes: Sequence[int]) -> None:
        """Freeze what there is, add an extractor that starts from the last one, and outputs for new classes."""
        if not self.bodies:
            split = Split(self._factory(), self.outputs)
            self.plain_bytes = module_bytes(split)
            self.training = split.training
            self.bodies.append(split.body)
            self.width = split.head.in_features
            like = split.head.weight
        else:
            last = self.bodies[-1]
            like = self.head.weight  # type: ignore[union-attr]
            special = last_block(last) if self.share else [last]
            inside = {id(module) for part in special for module in part.modules()}
            shared = [m for m in blocks(last) if id(m) not in inside] if self.share else []
            body = copy.deepcopy(last, {id(module): module for module in shared})
            for part in special:
                part.requires_grad_(False)
            self.bodies.append(body)
        old = len(self.classes)
        self.classes += classes
        self.head = grow_linear(
            self.head, self.width * len(self.bodies), len(self.classes), self._generator
        ).to(like)  # fmt: skip
        self.auxiliary = None
        if old:
            self.auxiliary = grow_linear(None, self.width, len(classes) + 1, self._generator).to(like)
        if old:
            self.train(self.training)

    def features(self, x: Tensor) -> Tensor:
        """x (n, ...) -> (n, extractors * d)."""
        return torch.cat([body(x.clone()) for body in self.bodies], dim=1)  # each may begin in place

    def spread(self, output: Tensor) -> Tensor:
        """Outputs over the classes seen (n, seen) -> logits (n, outputs)."""
        full = output.new_full((len(output), self.outputs), -math.inf)
        return full.index_copy(1, torch.tensor(self.classes, device=output.device), output)

    def forward(self, x: Tensor) -> Tensor:
        if self.head is None:
            raise ValueError("the network has 0 stages; call grow(classes) first")
        return self.spread(self.head(self.features(x)))

    def train(self, mode: bool = True) -> Growing:
        """Frozen extractors stay in evaluation mode, so that their statistics stay too."""
        super().train(mode)
        for body in self.bodies[:-1]:
            for part in last_block(body) if self.share else [body]:
                part.eval()
        return self


class DER(Replay):
    """A new feature extractor a stage beside the frozen ones, replay, an auxiliary head (Yan, Xie, He 2021)."""

    needs_stages = True
    share = False
    balanced = 0.2

    def build(self) -> nn.Module:
        """Nothing yet: the network grows with the stages."""
        return Growing(self.s.model_factory, self.s.num_classes, self.s.generator, self.share)

    @property
    def growing(self) -> Growing:
        """The network as what it is."""
        return self.network  # type: ignore[return-value]

    def observe(self, stage: Stage, budget: Budget) -> None:
        """Learn one stage; where that fails, what was grown goes, and it can be shown again."""
        grown = self.growing
        bodies, head, classes = list(grown.bodies), grown.head, list(grown.classes)
        learning = [(p, p.requires_grad) for p in grown.parameters()]
        try:
            super().observe(stage, budget)
        except BaseException:
            grown.bodies, grown.head, grown.auxiliary, grown.classes = nn.ModuleList(bodies), head, None, classes
            for p, learns in learning:
                p.requires_grad_(learns)
            raise

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Grow; what the extractors take is taken from the exemplars."""
        self.growing.grow(stage.classes)
        self.growing.head.to(stage.y.device)  # type: ignore[union-attr]
        return super().begin(stage)

    def loss(self, batch: Batch, output: Any) -> Tensor:
        """Cross-entropy, and that of the auxiliary head on the newest features."""
        grown = self.growing
        value = F.cross_entropy(output, batch.y)
        self.passes += FORWARD * (len(grown.bodies) - 1) * len(batch.y)
        if grown.auxiliary is None:
            return value
        new = [c for c in grown.classes if not bool(self.old[c])]
        place = torch.zeros(self.s.num_classes, dtype=torch.int64, device=batch.y.device)
        place[new] = torch.arange(1, len(new) + 1, device=batch.y.device)  # 0 = any older class
        newest = self.newest
        return value + self.strength * F.cross_entropy(grown.auxiliary(newest), place[batch.y])

    def train(self, x: Tensor, y: Tensor, budget: Budget) -> None:
        """The updates, the newest features caught on their way to the head; the last ones for the head on balanced rows."""

        def catch(_name: str, inputs: tuple[Tensor, ...]) -> None:
            self.newest = inputs[0][:, -self.growing.width :]

        last = round(self.balanced * budget.steps) if bool(self.old.any()) else 0
        head: Any = self.growing.head
        with hooked(self.growing, {"head": head}, before=catch):
            super().train(x, y, replace(budget, steps=budget.steps - last))
        self.newest = x[:0]
        if last:
            self.balance(x, y, replace(budget, steps=last))

    def balance(self, x: Tensor, y: Tensor, budget: Budget) -> None:
        """Train the head alone on as many rows of every class as the rarest has."""
        grown = self.growing
        fewest = min(int((y == c).sum()) for c in y.unique())
        draw = torch.randperm(len(y), generator=self.s.generator).to(y.device)
        rows = torch.cat([draw[y[draw] == c][:fewest] for c in y.unique()])
        features = evaluate(grown.features, x[rows])
        self.passes += FORWARD * len(grown.bodies) * len(rows)
        place = torch.zeros(self.s.num_classes, dtype=torch.int64, device=y.device)
        place[grown.classes] = torch.arange(len(grown.classes), device=y.device)
        head, own = grown.head, self.s.optimisation
        if head is not None:
            self.passes += train_stage(
                head, features, place[y[rows]], budget, own, self.s.order, lambda b, out: F.cross_entropy(out, b.y)
            )

    def end(self, stage: Stage) -> None:
        """Choose exemplars within what is left."""
        grown = self.growing
        grown.auxiliary = None
        self.exemplars.resize(self.s.memory - grown.extra_bytes)
        super().end(stage)

    def stored_bytes(self) -> int:
        """Exemplars and the extractors beyond the first."""
        return super().stored_bytes() + self.growing.extra_bytes


class MEMO(DER):
    """DER whose extractors share all but their last block (Zhou et al. 2023, "A model or 603 exemplars")."""

    share = True
