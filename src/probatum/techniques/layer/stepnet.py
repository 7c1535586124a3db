"""StepNet: channel attention on residual branches as the step size of an ODE solver, told how stiff the state is.

Paper     Huang et al. 2023, "Understanding Self-attention Mechanism via Dynamical System Perspective", ICCV 2023,
          arXiv:2308.09939
Computes  x_{t+1} = x_t + s f(x_t), s = sigmoid(W2 relu(W1 u)) in (0, 1) a channel, u = [mean x_t, mean f,
          mean |f| / (mean |f| + mean |x_t|)] over positions; "se" sees mean f alone (squeeze and excitation). Neural stiffness
          index of a sample at a block: |x_{t+1} - x_t| / |x_t|, x the whole state that goes into and comes out of the block
Shapes    residual blocks of (n, C, H, W)
Departs   1. the form of u, of the index, and the trial step (f at x + s f, whose distance from f is a further input) are
             reconstructions: the paper gives no formula at hand, and no code is public
          2. the increment's share stands for |f| / |x_t|, of which it is r / (1 + r): behind a ReLU channels are zero for some
             samples, where r has no bound
          3. where a block changes the shape, attention sees f alone, and there is no index
          4. the hidden layer has at least four units
          5. a trial step draws dropout anew, and goes by its own batch in training; running statistics are moved by the step alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.residual_blocks import Block, blocks_in, step_of
from probatum.numerics.networks.surgery import paths_of, swap
from probatum.numerics.networks.watch import look

CARD = Card(
    paper="arXiv:2308.09939",
    title="Understanding Self-attention Mechanism via Dynamical System Perspective",
    entry="apply",
    number=72,
    tags=("attention", "vision", "residual networks", "stiffness"),
    modalities=("image",),
    alone="blocks hand their input to the attention behind them",
    tiny={"reduction": 4},
    tune={"reduction": [4, 8, 16], "kind": ["step", "se"], "trial": [False, True]},
    claims=("adaptive-steps",),
)

KINDS = ("step", "se")
EPS = 1e-6


class StepSize(nn.Module):
    """Attention in the place of a residual branch's last norm: f = norm(input) -> s f.

    Args:
        norm: the norm it stands behind.
        channels: C of f.
        kind: "step" or "se".
        hidden: units between W1 and W2.
        trial: whether the distance of a trial step is a further input.

    Attributes:
        fixed: a step size that replaces the learned one; None = learned.
        last: step sizes (n, C) of the last pass.
    """

    def __init__(self, norm: nn.Module, channels: int, kind: str, hidden: int, trial: bool) -> None:
        super().__init__()
        self.norm, self.kind, self.trial = norm, kind, trial
        parts = 1 if kind == "se" else 3 + trial
        self.look = nn.Sequential(
            nn.Linear(parts * channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )
        self.fixed: float | None = None
        self.state: Tensor | None = None
        self.gap: Tensor | None = None
        self.ahead: Callable[[Tensor], Tensor] | None = None
        self.catch: list[Tensor] | None = None
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        f = self.norm(x)
        if self.catch is not None:  # a trial step
            self.catch.append(f)
            return f
        if self.ahead is not None:
            self.gap = (self.ahead(self.step(f)[:, :, None, None] * f) - f).abs().mean(dim=(2, 3))
        return self.step(f)[:, :, None, None] * f

    def step(self, f: Tensor) -> Tensor:
        """s (n, C) for the branch f (n, C, H, W) at the block's present state."""
        step = self.look(self._inputs(f)) if self.fixed is None else f.new_full(f.shape[:2], self.fixed)
        self.last = step.detach()
        return step

    def _inputs(self, f: Tensor) -> Tensor:
        mean = f.mean(dim=(2, 3))
        if self.kind == "se":
            return mean
        if self.state is None:
            raise ValueError("the step size has no state; run the network it was put into, not this module alone")
        grown, size = f.abs().mean(dim=(2, 3)), self.state.abs().mean(dim=(2, 3))
        parts = [self.state.mean(dim=(2, 3)), mean, grown / (grown + size + EPS)]
        if self.trial:
            parts.append(torch.zeros_like(mean) if self.gap is None else self.gap)
        return torch.cat(parts, dim=1)


class Stepped(nn.Module):
    """A residual block that hands its input to its `StepSize`."""

    def __init__(self, block: nn.Module, size: StepSize) -> None:
        super().__init__()
        self.block = block
        self._size = [size]  # in a list, so that it is a child of the block alone

    @property
    def size(self) -> StepSize:
        """The attention."""
        return self._size[0]

    def forward(self, x: Tensor) -> Tensor:
        size = self.size
        size.state = x.clone() if size.kind == "step" else x  # the block may begin by changing x in place
        if size.trial and size.kind == "step":
            size.ahead = self._ahead
        try:
            return self.block(x)
        finally:
            size.state = size.gap = size.ahead = None

    def _ahead(self, increment: Tensor) -> Tensor:
        """f at the state and an increment (n, C, H, W), with the batch's statistics in training, moving no running ones."""
        size = self.size
        size.catch = []
        try:
            with _buffers_kept(self.block):
                self.block(size.state + increment)
            return size.catch[0]
        finally:
            size.catch = None


def apply(
    net: nn.Module,
    kind: str = "step",
    reduction: int = 16,
    trial: bool = False,
    blocks: Sequence[int] | None = None,
) -> int:
    """Put attention on the residual branches of a convolutional network, in place.

    Args:
        net: a network of residual blocks whose branch ends with a batch norm.
        kind: "step", or "se" for squeeze and excitation.
        reduction: C / reduction hidden units, at least 4.
        trial: "step" only: evaluate each branch once more at a trial step; two passes a block.
        blocks: numbers of the blocks to change, from 0; None = all that add to what they are given.

    Returns:
        How many blocks were changed, 0 for a network without convolutions.

    Raises:
        ValueError: a setting outside its range.
        TypeError: a convolutional network without residual blocks, or a block named that adds nothing.

    Example:
        >>> class Unit(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         layers = [layer for _ in range(2) for layer in (nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4))]
        ...         self.branch = nn.Sequential(*layers)
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return x + self.branch(x)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), Unit(), Unit(), nn.Flatten(), nn.Linear(144, 3))
        >>> apply(net), tuple(net(torch.zeros(2, 1, 8, 8)).shape), len(stiffness(net, torch.rand(5, 1, 8, 8)))
        (2, (2, 3), 2)
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
    if reduction < 1:
        raise ValueError(f"reduction is {reduction}; give 1 or more")
    found = blocks_in(net)
    if not found:
        return 0
    steps = [step_of(net, block, found) for block in found]
    if all(step is None for step in steps):
        raise TypeError(
            f"{type(net).__name__}: no residual step found; attention on steps needs blocks of the form x + f(x)"
        )
    others = [k for k, step in enumerate(steps) if step is not None]
    chosen = others if blocks is None else blocks
    if any(not 0 <= number < len(found) for number in chosen):
        raise ValueError(f"blocks are {list(chosen)}; the network has {len(found)}: use 0 .. {len(found) - 1}")
    new: dict[nn.Module, nn.Module] = {}
    for number in dict.fromkeys(chosen):
        step = steps[number]
        if step is None:
            raise TypeError(
                f"{found[number].path!r} adds nothing to what it is given; name those that do: blocks={others}"
            )
        new |= _stepped(net, step, kind, reduction, trial)
    swap(net, new, carry=False)  # attention is new, and trained where the norm before it is not
    return len(set(chosen))


def stiffness(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Neural stiffness index (n,) of every block that keeps the shape, by path, in evaluation mode; the mode is put back.

    Raises:
        TypeError: a network without residual blocks.
    """
    found = blocks_in(net)
    blocks = [step for block in found if (step := step_of(net, block, found)) is not None]
    if not blocks and not any(isinstance(module, Stepped) for module in net.modules()):
        raise TypeError(f"{type(net).__name__}: no residual step found; the index is of blocks of the form x + f(x)")
    watched = {block.path: block.module for block in blocks if block.module is not None}
    for path, module in net.named_modules():
        if isinstance(module, Stepped):
            watched[path] = module
            watched.pop(f"{path}.block", None)
    inputs: dict[str, Tensor] = {}
    index: dict[str, Tensor] = {}

    def start(path: str, given: tuple[Tensor, ...]) -> None:
        inputs[path] = given[0].clone()  # a block may begin by changing it in place

    def end(path: str, _given: Any, after: Tensor) -> None:
        before = inputs.pop(path)
        if after.shape == before.shape:
            index[path] = index_of(before, after - before)

    look(net, x, watched, after=end, before=start)
    return index


def index_of(state: Tensor, increment: Tensor) -> Tensor:
    """|increment| / |state| of each sample: (n, ...) and (n, ...) -> (n,)."""
    return increment.flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1).clamp_min(EPS)


def step_sizes(net: nn.Module) -> dict[str, Tensor]:
    """The step sizes (n, C) of the last pass through each block, by path."""
    return {
        path: module.size.last
        for path, module in net.named_modules()
        if isinstance(module, Stepped) and module.size.last is not None
    }


@contextmanager
def _buffers_kept(net: nn.Module) -> Iterator[None]:
    """A block that sees copies of all buffers, so that it moves none of the network's."""
    held = [(module, dict(module._buffers)) for module in net.modules()]
    try:
        for module, buffers in held:
            module._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)


def _stepped(net: nn.Module, block: Block, kind: str, reduction: int, trial: bool) -> dict[nn.Module, nn.Module]:
    """What takes the place of the block and of its last norm."""
    first, last = block.pairs[0].convolution, block.pairs[-1]
    bends = first.in_channels != block.width or any(max(pair.convolution.stride) > 1 for pair in block.pairs)
    own = "se" if bends else kind
    hidden = max(4, block.width // reduction)
    size = StepSize(last.norm, block.width, own, hidden, trial and own == "step").to(last.convolution.weight)
    if block.module is None:
        raise TypeError("a block without a module has no step")
    if len(where := paths_of(net, last.norm)) > 1:
        raise ValueError(
            f"one norm stands at {' and '.join(where)}; a step size belongs to one block: give each its own"
        )
    return {last.norm: size, block.module: Stepped(block.module, size)}
