"""The forwards of layers that run on a prefix of their units; see `prefix`.

They are objects that hold their module, not closures: a deep copy or a pickle of a patched network then runs on its own weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.attention.causal import CausalSelfAttention

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class NotNestedError(Exception):
    """A layer whose inputs at a share are not the first of those at full width."""


def kept_units(share: float, units: int) -> int:
    """How many of `units` a share in (0, 1] keeps: rounded up, so at least one."""
    return max(1, math.ceil(share * units - 1e-9))


class PrefixState:
    """What the layers look at while they run.

    Attributes:
        share: what the network runs on now.
        cut: name -> size of a unit, of the layers whose outputs are cut.
        blocks: name of each block of a sequence that is cut in depth -> its place and their number.
        seen: name -> units and inputs of the last run.
        statistics: (share, name) -> mean and variance of a batch norm measured at this share.
        recording: moments by name of the batch norms that are measured, while they are.
        widths: inputs of every run by name, while they are noted for `expected`.
        probes: (name, what was added to its output) of every run of a layer, while the network's last layers are looked for.
        values: inputs of every run by name, while they are noted at a share, and while a full pass's are compared with them.
        expected: a share, and the widths noted at it, while a full pass is checked against them.
        fill: what units that the share drops hold in such a pass: NaN, which tells where it reaches; or a number, where
            comparisons or roundings of the network's own make numbers of NaN, and values tell.
        mark: if not None, only one of these units is: that so far along them, in [0, 1).
        unclear: whether an operation of the network's own has mixed all units in such a pass.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self.cut: dict[str, int] = {}
        self.blocks: dict[str, tuple[int, int]] = {}
        self.seen: dict[str, tuple[int, int]] = {}
        self.statistics: dict[tuple[float, str], tuple[Tensor, Tensor]] = {}
        self.recording: dict[str, list[tuple[Tensor, Tensor]]] | None = None
        self.widths: dict[str, list[int]] | None = None
        self.probes: list[tuple[str, Tensor]] | None = None
        self.values: dict[str, list[Tensor]] | None = None
        self.expected: tuple[float, dict[str, list[int]]] | None = None
        self.fill = math.nan
        self.mark: float | None = None
        self.unclear = False


def forward_of(state: PrefixState, name: str, module: nn.Module) -> Layer | None:
    """What runs in a module's place, None for modules that are left as they are."""
    if name in state.blocks:
        return Block(state, name, module)
    if type(module) is nn.Linear or type(module) in CONVOLUTIONS:
        return Affine(state, name, module)
    if type(module) in BATCH_NORMS:
        return BatchNorm(state, name, module)
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        return LayerNorm(state, name, module)
    return Attention(state, name, module) if isinstance(module, CausalSelfAttention) else None


class Layer:
    """A module's forward on a prefix."""

    def __init__(self, state: PrefixState, name: str, module: nn.Module) -> None:
        self.state, self.name, self.module = state, name, module

    def __call__(self, x: Tensor, *more: Any) -> Any:
        """The module's output."""
        raise NotImplementedError

    def note(self, units: int, inputs: int, x: Tensor) -> None:
        """Tell how much of the module runs, and on what."""
        self.state.seen[self.name] = (units, inputs)
        if self.state.widths is not None:
            self.state.widths.setdefault(self.name, []).append(inputs)
        if self.state.values is not None:
            self.state.values.setdefault(self.name, []).append(x.detach().clone())


class Affine(Layer):
    """A linear layer or a convolution: its first units, on the first inputs."""

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        """x (..., inputs) or (n, inputs, ...)."""
        module: Any = self.module
        dim = -1 if type(module) is nn.Linear else 1
        unit, out, inputs = self.state.cut.get(self.name), module.weight.shape[0], x.shape[dim]
        kept = out if unit is None else unit * kept_units(self.state.share, out // unit)
        if self.state.expected is not None:
            return self._checked(x, dim, unit)
        self.note(kept, inputs, x)
        if self.state.probes is not None:
            probe = torch.zeros((), dtype=module.weight.dtype, device=x.device, requires_grad=True)
            self.state.probes.append((self.name, probe))
            return self._run(x.detach(), module.weight, module.bias) + probe
        return self._run(x, module.weight[:kept, :inputs], None if module.bias is None else module.bias[:kept])

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        module: Any = self.module
        if type(module) is nn.Linear:
            return F.linear(x, weight, bias)
        return CONVOLUTIONS[type(module)](x, weight, bias, module.stride, module.padding, module.dilation)

    def _checked(self, x: Tensor, dim: int, unit: int | None) -> Tensor:
        """The full layer on what is left of x, its dropped units filled; NotNestedError where they reach kept ones."""
        x, _ = _checked_columns(self.state, x, dim, self.name)
        module: Any = self.module
        output = self._run(x.nan_to_num(), module.weight, module.bias)
        if unit is not None and self.state.expected is not None:
            units = output.shape[dim] // unit
            kept = kept_units(self.state.expected[0], units)
            first, last = kept, units
            if self.state.mark is not None:
                first = min(kept + int(self.state.mark * (units - kept)), units)
                last = first + 1
            output.movedim(dim, 0)[first * unit : last * unit] = self.state.fill
        return output


class BatchNorm(Layer):
    """A batch norm on the channels there are, in training by the batch's statistics, which then move no running ones."""

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        """x (n, channels, ...)."""
        module: Any = self.module
        width = x.shape[1]
        self.note(width, width, x)
        own = self.state.statistics.get((self.state.share, self.name))
        recording = None if self.state.recording is None else self.state.recording.get(self.name)
        if recording is not None:
            dims = [0, *range(2, x.ndim)]
            recording.append((x.mean(dim=dims), x.square().mean(dim=dims)))
        elif width == module.num_features and own is None:
            return type(module).forward(module, x)
        weight, bias = (None if v is None else v[:width] for v in (module.weight, module.bias))
        if module.training or recording is not None or module.running_mean is None:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, module.eps)
        mean, var = own or (module.running_mean[:width], module.running_var[:width])
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, module.eps)


class LayerNorm(Layer):
    """A layer norm over the features there are."""

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        """x (..., features)."""
        module: Any = self.module
        width = x.shape[-1]
        self.note(width, width, x)
        weight, bias = (None if v is None else v[:width] for v in (module.weight, module.bias))
        if self.state.expected is not None:
            x, kept = _checked_columns(self.state, x, -1, self.name)
            if kept is not None:  # as it is at the share
                scale, shift = (None if v is None else v[:kept] for v in (weight, bias))
                normed = F.layer_norm(x[..., :kept], (kept,), scale, shift, module.eps)
                return torch.cat([normed, x.new_full((*x.shape[:-1], width - kept), self.state.fill)], dim=-1)
            marked = F.layer_norm(x.nan_to_num(), (width,), weight, bias, module.eps)
            return marked.masked_fill(x.isnan(), math.nan)
        return F.layer_norm(x, (width,), weight, bias, module.eps)


class Attention(Layer):
    """Causal self-attention with its first heads."""

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        """x (n, t, width)."""
        module: Any = self.module
        heads = module.heads
        module.heads = kept_units(self.state.share, heads)
        try:
            return type(module).forward(module, x)
        finally:
            module.heads = heads


class Block(Layer):
    """A block of a sequence, which does nothing where the share keeps fewer."""

    def __call__(self, x: Tensor, *more: Any) -> Any:
        """What the block takes."""
        place, count = self.state.blocks[self.name]
        share = self.state.share if self.state.expected is None else self.state.expected[0]
        if place >= kept_units(share, count):
            return x
        return type(self.module).forward(self.module, x, *more)


def _checked_columns(state: PrefixState, x: Tensor, dim: int, name: str) -> tuple[Tensor, int | None]:
    """x, and how many columns of it there are at the share, None where nothing can be told.

    NotNestedError unless exactly the columns behind these come from dropped units (are NaN somewhere), and the others hold
    what they hold at the share. Where an operation of the network's own has mixed all of them, the latter go on.
    """
    width = (state.expected or (1.0, {}))[1][name].pop(0)
    own = state.values[name].pop(0).movedim(dim, 0) if state.values is not None else None
    columns = x.movedim(dim, 0)
    if own is not None and not math.isnan(state.fill):
        kept = columns[:width]
        if own.shape != kept.shape or bool(kept.isnan().any()) or not _alike(kept, own):
            raise NotNestedError(f"what {name!r} takes in at this share depends on units that are dropped")
        return torch.cat([kept, torch.zeros_like(columns[width:])]).movedim(0, dim), width
    dropped = columns.isnan().flatten(1).any(dim=1)
    wanted = torch.arange(len(dropped), device=x.device) >= width
    if bool(dropped.all()):
        state.unclear = True
        if own is None or own.shape[1:] != columns.shape[1:]:
            return x, None
        rest = columns.new_full(columns[len(own) :].shape, math.nan)
        return torch.cat([own.to(rest), rest]).movedim(0, dim), len(own)
    if not torch.equal(dropped if state.mark is None else dropped | wanted, wanted):
        raise NotNestedError(
            f"what {name!r} takes in at this share are not the first of its inputs, as behind a concatenation or a split"
        )
    if own is not None and not _alike(columns[:width], own):
        raise NotNestedError(
            f"what {name!r} takes in at this share is computed otherwise than in the whole network, as by heads that are told "
            "by the number of units"
        )
    return x, width if state.mark is None else None


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for rounding, or cannot be compared."""
    if a.shape != b.shape or not a.numel():
        return True
    eps = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    return not bool(((a - b).abs() > eps**0.5 * b.abs().amax() + eps).any())
