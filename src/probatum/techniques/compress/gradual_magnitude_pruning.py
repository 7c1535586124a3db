"""Gradual magnitude pruning: remove the smallest weights on a cubic schedule while the network trains.

Paper     Zhu and Gupta 2017, arXiv:1710.01878, section 3
Computes  s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 at t = t_0, t_0 + dt, ..., t_0 + n dt; at each such step the
          floor(s_t N) smallest |w| of every weight matrix are masked; masked weights get no gradient
Shapes    any network; linear, convolution, embedding and recurrent weights, each gate of the latter on its own; others
          (`nn.MultiheadAttention`'s input projections, transposed convolutions, recurrent cells) and frozen ones stay dense
          and uncounted
Departs   1. masked weights are set to zero for good by default; `regrow=True` keeps their stored values, as the reference
             code does, so that one may return at a later update
          2. first moments of the optimizer are zeroed where a weight is masked
          3. begin and end are shares of the training steps, so that one setting fits any budget
          4. depthwise kernels stay dense everywhere, as the paper does in MobileNet; `skip_first` leaves the first layer out
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.surgery import check_plain

CARD = Card(
    paper="arXiv:1710.01878",
    title="To prune, or not to prune: exploring the efficacy of pruning for model compression",
    entry="GradualMagnitudePruning",
    number=250,
    tags=("compression", "sparsity"),
    tasks=("classes", "reals", "next-token"),
    neutral={"final_sparsity": 0.0},
    tiny={"final_sparsity": 0.5, "every": 1},
    tune={"final_sparsity": [0.5, 0.75, 0.9], "begin": (0.0, 0.3), "end": (0.5, 0.9)},
    claims=("large-sparse-beats-small-dense",),
)

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
FLOAT_BYTES = 4
FIRST_MOMENTS = ("momentum_buffer", "exp_avg", "momentum")
"""Names of optimizers' states that lie in the coordinates of the weights and drive them."""


@dataclass(frozen=True)
class Schedule:
    """The cubic schedule in steps.

    Attributes:
        begin: t_0, updates done before the first pruning, at least 0.
        every: dt, at least 1.
        updates: n, at least 0; the last pruning is at begin + updates * every.
        initial: s_i in [0, 1).
        final: s_f in [s_i, 1).

    Raises:
        ValueError: one of them out of its range.
    """

    begin: int
    every: int
    updates: int
    initial: float
    final: float

    def __post_init__(self) -> None:
        if self.begin < 0 or self.every < 1 or self.updates < 0:
            raise ValueError(
                f"begin is {self.begin}, every {self.every}, updates {self.updates}; need begin >= 0, every >= 1, updates >= 0"
            )
        for name, value in (("initial_sparsity", self.initial), ("final_sparsity", self.final)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must lie in [0, 1)")
        if self.final < self.initial:
            raise ValueError(f"final_sparsity is {self.final}, below initial_sparsity {self.initial}; it may only rise")

    @property
    def end(self) -> int:
        """The step of the last pruning."""
        return self.begin + self.updates * self.every

    def fits(self, total_steps: int) -> None:
        """ValueError if the last pruning lies beyond the training's last step."""
        if self.end > total_steps:
            raise ValueError(
                f"the last pruning is at step {self.end}, past the total of {total_steps} steps; begin earlier or prune faster"
            )

    def prunes(self, step: int) -> bool:
        """Whether masks change after `step` updates."""
        return self.begin <= step <= self.end and (step - self.begin) % self.every == 0

    def sparsity(self, step: int) -> float:
        """s in force after `step` updates: 0 before the first pruning, s_f after the last."""
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        share = (step - self.begin) // self.every / self.updates
        return self.final + (self.initial - self.final) * (1 - share) ** 3


def smallest_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Mask (bool, False = pruned) with exactly floor(sparsity * N) of the smallest |w| pruned; ties by position."""
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    pruned = weight.detach().abs().flatten().argsort(stable=True)[: math.floor(sparsity * weight.numel() + 1e-9)]
    mask[pruned] = False
    return mask.view_as(weight)


def prunable(model: nn.Module, skip_first: bool = False) -> Iterator[tuple[str, nn.Parameter, int]]:
    """(name, parameter, gates) of every weight matrix to prune; biases, norms, depthwise kernels and what is frozen are left
    out.

    Raises:
        TypeError: a parametrised weight, whose zeros the next pass would fill again.
    """
    seen: set[int] = set()
    first = skip_first
    for prefix, module in model.named_modules():
        weights = _weights_of(module)
        if weights:
            check_plain(module, prefix)
        for name, gates in weights:
            parameter = getattr(module, name)
            if id(parameter) in seen:
                continue  # tied weights are one matrix
            seen.add(id(parameter))
            if not parameter.requires_grad:
                continue  # it could not recover
            if first and not isinstance(module, nn.Embedding):
                first = False
                continue
            yield f"{prefix}.{name}" if prefix else name, parameter, gates


def _weights_of(module: nn.Module) -> list[tuple[str, int]]:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == module.in_channels > 1:
        return []
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Embedding):
        return [("weight", 1)]
    gates = GATES.get(type(module))
    if gates is None:
        return []
    names = [name for name in module._parameters if name.startswith("weight")]
    return [(name, 1 if name.startswith("weight_hr") else gates) for name in names]  # hr projects, without gates


def stored_bytes(weight: Tensor) -> dict[str, float]:
    """Bytes of one matrix: dense, as values with a bitmask, and as compressed sparse rows with their indices."""
    rows, total, left = len(weight), weight.numel(), int(weight.count_nonzero())
    columns = total // max(rows, 1)
    index = 2 if columns <= 2**16 else 4
    return {
        "dense": float(FLOAT_BYTES * total),
        "bitmask": FLOAT_BYTES * left + math.ceil(total / 8),
        "csr": FLOAT_BYTES * left + index * left + 4.0 * (rows + 1),
    }


def matching_width(parameters: Callable[[int], int], nonzeros: int, most: int = 4096) -> int:
    """The width of the small dense control: where `parameters(width)`, rising, comes nearest to `nonzeros`.

    Raises:
        ValueError: even `most` is too narrow.
    """
    low, high = 1, most
    if parameters(high) < nonzeros:
        raise ValueError(f"a width of {most} has {parameters(high)} parameters, fewer than {nonzeros}; raise most")
    while low < high:
        middle = (low + high) // 2
        if parameters(middle) < nonzeros:
            low = middle + 1
        else:
            high = middle
    below = max(1, low - 1)
    return below if abs(parameters(below) - nonzeros) < abs(parameters(low) - nonzeros) else low


class GradualMagnitudePruning:
    """Prunes a network's weights while it trains; on the bench by its hooks, elsewhere as in the example.

    Args:
        total_steps: updates the training will take.
        final_sparsity: share of every matrix that is zero in the end, in [0, 1); 0 = nothing is done.
        initial_sparsity: share at the first pruning, in [0, final_sparsity].
        begin: share of the training before the first pruning, in [0, 1].
        end: share of it after which masks stay, in [begin, 1]; leave time to recover while the rate is high.
        every: steps between prunings; None = a hundredth of the training.
        regrow: keep pruned values aside, so that a weight can return at a later pruning.
        skip_first: leave the first linear or convolution layer dense.

    Raises:
        ValueError: a schedule past the total of steps, final below initial, or a share out of its range.

    Example:
        >>> net = nn.Linear(10, 4)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> pruner = GradualMagnitudePruning(total_steps=20, final_sparsity=0.75).attach(net, optimizer)
        >>> for step in range(1, 21):
        ...     net(torch.randn(8, 10)).square().sum().backward()
        ...     pruner.mask_gradients()
        ...     optimizer.step()
        ...     pruner.after_step(step)
        ...     optimizer.zero_grad()
        >>> int((net.weight == 0).sum()), pruner.report()["sparsity"]
        (30, 0.75)
    """

    # gradients are masked too, but after every other method has changed them
    reads = ("gradients",)
    writes = ("weights", "optimizer")

    def __init__(
        self,
        total_steps: int,
        final_sparsity: float = 0.9,
        initial_sparsity: float = 0.0,
        begin: float = 0.1,
        end: float = 0.6,
        every: int | None = None,
        regrow: bool = False,
        skip_first: bool = False,
    ) -> None:
        if not 0 <= begin <= 1:
            raise ValueError(f"begin is {begin}; it must lie in [0, 1], a share of the training")
        if end > 1:
            raise ValueError(f"end is {end}, past the total of {total_steps} steps; it must lie in [begin, 1]")
        if not end >= begin:
            raise ValueError(f"end is {end}, before begin {begin}; it must lie in [begin, 1]")
        first, last = int(begin * total_steps + 1e-9), int(end * total_steps + 1e-9)  # 0.29 * 100 is 28.999...
        step = max(1, total_steps // 100) if every is None else every
        if every is not None and last > first and every > last - first:
            raise ValueError(
                f"every is {every}, longer than the {last - first} steps between begin and end; all would be pruned at once"
            )
        updates = (last - first) // step if step > 0 else 0
        self.schedule = Schedule(first, step, updates, initial_sparsity, final_sparsity)
        self.schedule.fits(total_steps)
        self.regrow, self.skip_first = regrow, skip_first
        self.masks: dict[str, Tensor] = {}
        self.stored: dict[str, Tensor] = {}
        self._weights: dict[str, tuple[nn.Parameter, int]] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> GradualMagnitudePruning:
        """Find the weights to prune; ValueError where there are none, TypeError for parametrised ones.

        Masks already loaded are applied.
        """
        if self.schedule.final == 0:
            return self
        self._weights = {name: (weight, gates) for name, weight, gates in prunable(model, self.skip_first)}
        if not self._weights:
            raise ValueError(
                f"{type(model).__name__} has no linear, convolution, embedding or recurrent weight to prune"
            )
        self._optimizer = optimizer
        self._apply()
        return self

    def mask_gradients(self) -> None:
        """Between backward and the optimizer's step: pruned weights get no gradient."""
        for name, mask in self.masks.items():
            weight, _ = self._weights[name]
            if weight.grad is not None:
                weight.grad.mul_(mask)

    def after_step(self, step: int) -> None:
        """After the optimizer's `step`-th update: put pruned weights back to zero, and prune more where it is time."""
        if self._weights and self.schedule.prunes(step):
            self._prune(self.schedule.sparsity(step))
        self._apply()

    def prepare(self, run: Any) -> None:
        """Hook: attach; the last weights are the result."""
        self.attach(run.model, run.optimizer)
        if self._weights:
            run.keep_best = False
            if run.step == 0 and self.schedule.begin == 0:
                self.after_step(0)

    def gradients(self, run: Any) -> None:
        """Hook: `mask_gradients`."""
        del run
        self.mask_gradients()

    def step_end(self, run: Any) -> None:
        """Hook: `after_step`."""
        self.after_step(run.step)

    def finish(self, run: Any) -> None:
        """Hook: forget the values kept aside; the pruned weights are zeros in the model itself."""
        del run
        self.stored = {}

    def report(self) -> dict[str, float]:
        """Share of zeros among the prunable weights, how many are left, and bytes with the overhead of each format."""
        weights = [weight.detach() for weight, _ in self._weights.values()]
        total = sum(weight.numel() for weight in weights)
        left = sum(int(weight.count_nonzero()) for weight in weights)
        found = {"sparsity": 1 - left / total if total else 0.0, "nonzero-weights": float(left)}
        sizes = [stored_bytes(weight) for weight in weights]
        return found | {f"bytes-{kind}": sum(size[kind] for size in sizes) for kind in ("dense", "bitmask", "csr")}

    def state_dict(self) -> dict[str, Any]:
        """Masks and kept values, to go on after a restart; the schedule itself goes by the step."""
        return {"masks": dict(self.masks), "stored": dict(self.stored)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over masks and kept values; before or after `attach`."""
        self.masks = {name: mask.clone() for name, mask in state["masks"].items()}
        self.stored = {name: value.clone() for name, value in state["stored"].items()}
        if self._weights:
            self._apply()

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        for name, (weight, gates) in self._weights.items():
            value = weight
            if name in self.masks:  # an optimizer may have moved pruned weights in the last step
                aside = self.stored[name] if self.regrow and name in self.stored else torch.zeros_like(weight)
                value = torch.where(self.masks[name], weight, aside)
            self.masks[name] = torch.cat([smallest_mask(part, sparsity) for part in value.chunk(gates)])
            if self.regrow:
                self.stored[name] = value.detach().clone()
                weight.copy_(value)

    @torch.no_grad()
    def _apply(self) -> None:
        for name, mask in self.masks.items():
            weight, _ = self._weights[name]
            weight.mul_(mask)
            state = {} if self._optimizer is None else self._optimizer.state.get(weight, {})
            for key in FIRST_MOMENTS:
                value = state.get(key)
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(mask)
