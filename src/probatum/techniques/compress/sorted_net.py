"""SortedNet: one training run yields nested networks of many widths (and depths), each a prefix of the next.

Paper     Valipour et al. 2023, "SortedNet, a Place for Every Network and Every Network in its Place", arXiv:2309.00255,
          section 3 and algorithm 1
Computes  sub-network k keeps the first ceil(s_k n) units of every hidden layer (heads of attention; of named blocks the
          first ones); every batch runs on one k drawn from a fixed distribution; gradients of `draws` draws, each on its own
          batch, are averaged in one update. Deployment cuts the prefix out
Shapes    any network of linear layers, ungrouped convolutions, batch and layer norms, causal self-attention
Departs   1. on the bench the gradients of the draws are averaged, not added, so that the learning rate need not follow their
             number; in plain code they add up until `step`, as in the paper
          2. batch norm's statistics of every sub-network are measured anew on training rows when training ends, unless it was
             kept in evaluation
          3. weights that no draw of an update has used are put back, so that decay and momentum do not move them
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.networks.prefix import Prefix
from probatum.numerics.tensors.targets import real_targets

CARD = Card(
    paper="arXiv:2309.00255",
    title="SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for Training "
    "Many-in-One Neural Networks",
    entry="SortedNet",
    number=47,
    tags=("compression", "nested networks", "elastic inference"),
    modalities=("table", "image", "text"),
    tasks=("classes", "reals", "next-token"),
    alone="every seed draws its own sub-network for each batch",
    neutral={"widths": (1.0,)},
    tiny={"widths": (0.5, 1.0), "keep": 0.5},
    tune={"draws": [1, 2, 4], "keep": [0.25, 0.5, 1.0]},
    tried={"keep": [0.5, 1.0]},
    claims=("many-in-one",),
    expect_fail={"losses_add_up": "the loss is the mean over the draws: what came before counts as one of them"},
)

CALIBRATION = 16
"""Training batches on which batch norm's statistics are measured."""


def check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """The shares as numbers.

    Raises:
        ValueError: not increasing, outside (0, 1], or without the full width.
    """
    found = tuple(float(width) for width in widths)
    rising = all(a < b for a, b in pairwise(found))
    if not found or not rising or found[0] <= 0 or found[-1] != 1.0:
        raise ValueError(f"widths are {list(widths)}; give increasing shares in (0, 1] that end with 1.0")
    return found


class SortedNet:
    """Trains a network and its prefixes together; in plain code through `attach`, on the bench a compressor.

    Args:
        widths: increasing shares in (0, 1] that end with 1.0.
        draws: sub-networks whose gradients make one update, >= 1; those beyond the first take further batches.
        weights: how often each width is drawn, in proportion; None = all alike.
        layers: names of the layers to cut; None = see `Prefix`.
        blocks: name of the sequence of blocks to cut in depth; None = depth stays.
        keep: the width that is deployed on the bench, one of `widths`.
        generator: for the draws.

    Raises:
        ValueError: a setting outside its range; layers that do not fit together; batch norm without rows to measure.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> sorted_net = SortedNet(widths=(0.25, 0.5, 1.0)).attach(net, torch.zeros(2, 4))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> for _ in range(5):
        ...     with sorted_net.draw():
        ...         net(torch.ones(6, 4)).square().mean().backward()
        ...     sorted_net.step(optimizer)
        >>> small = sorted_net.deploy(0.25)
        >>> small[0].out_features, sum(p.numel() for p in small.parameters()), "forward" in vars(net[0])
        (2, 19, False)
    """

    reads = ("batch", "output", "loss")
    writes = ("loss", "model", "weights")

    def __init__(
        self,
        widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        draws: int = 1,
        weights: Sequence[float] | None = None,
        layers: Sequence[str] | None = None,
        blocks: str | None = None,
        keep: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.widths = check_widths(widths)
        if draws < 1:
            raise ValueError(f"draws is {draws}; give 1 or more")
        if weights is not None and (len(weights) != len(self.widths) or min(weights) < 0 or not sum(weights) > 0):
            raise ValueError(f"weights are {list(weights)}; give {len(self.widths)} numbers of at least 0, not all 0")
        if keep not in self.widths:
            raise ValueError(f"keep is {keep}; it must be one of the widths {list(self.widths)}")
        self.draws, self.layers, self.blocks, self.keep = draws, layers, blocks, keep
        self.weights = torch.ones(len(self.widths)) if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.generator = generator or torch.Generator().manual_seed(0)
        self.prefix: Prefix | None = None
        self.parameters = 0
        self._used: dict[int, tuple[Tensor, tuple[slice, ...] | None]] = {}
        self._width = 1.0
        self._before: list[tuple[Tensor, Tensor, tuple[slice, ...] | None]] = []

    def attach(self, net: nn.Module, example: Tensor) -> SortedNet:
        """Let the network's layers be cut, found and checked on a few inputs, until `detach` or `deploy`."""
        self.prefix = Prefix(net, example, self.widths[0], self.layers, self.blocks)
        self.prefix.patch()
        return self

    def detach(self) -> None:
        """Take everything off the network."""
        if self.prefix is not None:
            self.prefix.release()

    def draw(self, width: float | None = None) -> AbstractContextManager[None]:
        """Inside the block the network runs on a width drawn (or this one); the parts it uses are noted when it ends."""
        return _Draw(self, self._drawn() if width is None else width)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step and an end of the gradients; weights that no draw has used stay as they are."""
        self.before_step()
        optimizer.step()
        self.after_step()
        optimizer.zero_grad()

    @torch.no_grad()
    def before_step(self) -> None:
        """Remember the weights of which the draws have used only a part."""
        whole = ((value, part) for value, part in self._used.values())
        self._before = [
            (value, value.clone(), part)
            for value, part in whole
            if part is None or any(s.stop < size for s, size in zip(part, value.shape, strict=False))
        ]
        self._used.clear()

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back what was not used."""
        for value, before, part in self._before:
            if part is not None:
                before[part] = value[part]
            value.copy_(before)
        self._before.clear()

    def deploy(self, width: float, batches: Sequence[Tensor] = ()) -> nn.Module:
        """Cut a sub-network out; the full network is free again.

        Args:
            width: share of the units.
            batches: inputs of training rows, on which batch norm's statistics are measured.

        Raises:
            ValueError: nothing attached, or batch norm and no batches.
        """
        prefix = self._attached()
        prefix.recalibrate(width, batches)
        prefix.release()
        return prefix.extract(width)

    def report(self) -> dict[str, float]:
        """Parameters of the deployed network."""
        return {"parameters": float(self.parameters)}

    def state_dict(self) -> dict[str, Any]:
        """State of the stream that widths are drawn from."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.generator.set_state(state["generator"])

    def prepare(self, run: Any) -> None:
        """Hook: attach; the last weights are the result."""
        if len(self.widths) == 1:
            return
        self.attach(run.model, run.train.x[:2])
        run.keep_best = False

    def batch(self, run: Any, batch: Any) -> Any:
        """Hook: draw the width of the step."""
        if self.prefix is not None:
            self._width = self._drawn()
        return batch

    def before_pass(self, run: Any, batch: Any) -> None:
        """Hook: let the coming pass run at it, a second one as well."""
        if self.prefix is not None:
            self.prefix.start(self._width)

    def loss(self, run: Any, batch: Any, output: Any, loss: Tensor) -> Tensor:
        """Hook: add the further draws, each on a batch of its own, and average."""
        prefix = self.prefix
        if prefix is None:
            return loss
        self._note()
        for _ in range(self.draws - 1):
            index = torch.randint(len(run.train.y), (len(batch.y),), generator=self.generator)
            index = index.to(run.train.y.device)
            more = type(batch)(run.train.x[index], run.train.y[index], index)
            prefix.start(self._drawn())
            loss = loss + run.objective(more, run.model(more.x))
            run.extra_passes += len(index)
            self._note()
        prefix.share = 1.0
        return loss / self.draws if self.draws > 1 else loss

    def gradients(self, run: Any) -> None:
        """Hook: remember the weights before the update."""
        self.before_step()

    def step_end(self, run: Any) -> None:
        """Hook: put back what the update had no gradient for."""
        self.after_step()

    def finish(self, run: Any) -> None:
        """Hook: note the validation accuracy of every width and leave the one that is deployed."""
        prefix = self.prefix
        if prefix is None:
            self.parameters = sum(value.numel() for value in run.model.parameters())
            return
        x, size = run.train.x, run.budget.batch_size
        batches = [x[start : start + size] for start in range(0, min(len(x), CALIBRATION * size), size)]
        for width in self.widths:
            measured = prefix.recalibrate(width, [batch for batch in batches if len(batch) > 1])
            with prefix.at(width), evaluating(run.model), torch.no_grad():
                rows = type(run.train)(run.valid.x[:1024], run.valid.y[:1024], run.valid.rows[:1024])
                run.notes[f"validation loss at width {width:g}"] = float(_plain_loss(run.model(rows.x.clone()), rows.y))
            run.extra_passes += (measured + len(rows.y)) / 3
        run.model.eval()
        prefix.release()
        made = prefix.extract(self.keep)
        run.model = made
        self.parameters = sum(value.numel() for value in made.parameters())

    def _drawn(self) -> float:
        return self.widths[int(torch.multinomial(self.weights, 1, generator=self.generator))]

    def _note(self) -> None:
        """Widen the parts of the parameters that this update has used by those of the last pass."""
        for value, part in self._attached().touched():
            _, known = self._used.get(id(value), (value, None))
            if known is not None:
                part = known if part is None else _both(part, known)
            self._used[id(value)] = (value, part)

    def _attached(self) -> Prefix:
        if self.prefix is None:
            raise ValueError("nothing is attached; call attach(net, example) first")
        return self.prefix


def _both(part: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(max(a.stop, b.stop)) for a, b in zip(part, other, strict=True))


class _Draw(AbstractContextManager[None]):
    def __init__(self, owner: SortedNet, width: float) -> None:
        self.owner, self.width = owner, width

    def __enter__(self) -> None:
        self.owner._attached().start(self.width)

    def __exit__(self, *problem: object) -> None:
        if problem[0] is None:
            self.owner._note()
        self.owner._attached().share = 1.0


def _plain_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of classes (tokens in the last dimension but one), squared error of reals."""
    if target.is_floating_point():
        return nn.functional.mse_loss(output, real_targets(output, target))
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())
