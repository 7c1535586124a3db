"""Sub-networks that are prefixes: every layer runs on its first units only, in place, and can be cut out for good."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.modes import evaluating, still, trained_modules
from probatum.numerics.networks.prefix_layers import (
    BATCH_NORMS,
    CONVOLUTIONS,
    NotNestedError,
    PrefixState,
    forward_of,
    kept_units,
)
from probatum.numerics.networks.surgery import OffFastPath, check_plain, paths_of

FILLS = (1e3, -1e3)
"""Numbers that dropped units hold in turn where comparisons or roundings of the network's own swallow NaN."""
MARKS = 64
"""Most dropped units that are followed one by one."""


class Prefix(PrefixState):
    """A network whose hidden layers can be run on a share of their units, between `patch` and `release`.

    Linear layers, convolutions without groups, batch norm and layer norm are cut; a layer's inputs follow from what it is
    given, so that residual branches of equal width stay equal. Of causal self-attention whole heads are cut, and its output
    stays as wide as the stream it is added to. The network's own outputs are never cut: layers that reach them past every
    other layer, wherever they are registered, keep all their units.

    Args:
        net: the network; it keeps its modules and parameters.
        example: a few inputs, one at least, on which widths are found and checked.
        share: the smallest that will be asked for; it is tried.
        layers: names of linear layers and convolutions whose outputs are cut; None = all hidden ones, or, where their widths
            are bound to an embedding's, those of other widths.
        blocks: name of an `nn.Sequential` or `nn.ModuleList` of blocks that keep the shape, of which a share keeps the first
            ones; None = depth stays.

    Attributes:
        share: what the network runs on now.
        cut: name -> size of a unit, of the layers whose outputs are cut.

    Raises:
        ValueError: convolutions with groups or another padding than zeros; widths that do not fit together; one layer at two
            widths; names that are no such layer, or one that gives the network's outputs; nothing to cut.
        TypeError: parametrised layers.
    """

    def __init__(
        self,
        net: nn.Module,
        example: Tensor,
        share: float,
        layers: Sequence[str] | None = None,
        blocks: str | None = None,
    ) -> None:
        super().__init__()
        if not len(example):
            raise ValueError("example has no rows; widths are found on one at least")
        self.net, self.example = net, example  # passes get copies: a network may begin by changing its input in place
        self._patched: list[nn.Module] = []
        self._slow: OffFastPath | None = None
        self.blocks = {} if blocks is None else _blocks_of(net, blocks)
        affine = _affine_layers(net, layers)
        heads = self._heads()
        if own := [name for name in layers or () if name in heads]:
            raise ValueError(f"{own[0]!r} gives outputs of the network, which are never cut; leave it out of layers")
        tried = None
        for cut in _candidates(net, affine if layers is None else layers, heads):
            self.cut = cut
            tried = self._problem(share)
            if tried is None:
                break
        if tried is not None:
            raise ValueError(
                f"the layers of {type(net).__name__} do not fit together when cut ({tried}); name those to cut: layers=[...]"
            )
        if not self.cut and layers is None and blocks is None:
            raise ValueError(
                f"{type(net).__name__} has no hidden layer to cut: {', '.join(affine)} give its outputs or are as wide as its "
                "embeddings; name layers=[...] or blocks"
            )

    def _heads(self) -> set[str]:
        """Layers whose outputs reach the network's own past every other layer.

        Every layer's input is taken off the graph, so that what an output's gradient still reaches is such a layer.
        """
        with self.running(), still(self.net), torch.enable_grad():
            try:
                self.probes = []
                outputs = [value.sum() for value in _tensors(self.net(self.example.clone())) if value.requires_grad]
                names, probes = [name for name, _ in self.probes], [probe for _, probe in self.probes]
            finally:
                self.probes = None
        if outputs and probes:
            reached = torch.autograd.grad(outputs, probes, allow_unused=True)
            return {name for name, gradient in zip(names, reached, strict=True) if gradient is not None}
        last = find_last_layer(self.net, self.example.clone())  # a network that cuts the graph itself
        return {name for name, module in self.net.named_modules() if module is last}

    def _problem(self, share: float) -> str | None:
        """Why the network does not run at this share, or is no prefix of itself there; None if all is well."""
        try:
            with self.running(), still(self.net):
                found = self._noted(share)
                widths, values = self.widths or {}, self.values
                self.widths = self.values = None
                for name, taken in widths.items():
                    if len(set(taken)) > 1:
                        return f"{name!r} runs in several places, on {' and on '.join(map(str, taken))} inputs"
                whole = self._whole(share, widths, values)
                if [value.shape for value in _tensors(found)] != [value.shape for value in _tensors(whole)]:
                    return "the network's outputs change their shape"
                marks = self._most_dropped(share) if self.unclear else 0
                for k in range(
                    marks
                ):  # each dropped unit by itself: it may reach kept ones through a split, as of a GLU
                    self._checked(share, widths, None, k / marks)
        except NotNestedError as problem:
            return str(problem)
        except Exception as problem:
            if self.expected is None and isinstance(problem, RuntimeError):
                return str(problem).splitlines()[0]
            if self.expected is None:
                raise
            return None  # the network does not take the marks of dropped units: it cannot be judged
        finally:
            self.widths = self.values = self.expected = self.mark = None
        return None

    def _noted(self, share: float) -> Any:
        """The outputs at a share; widths are noted, and values, where the network gives the same ones twice."""
        with self.at(share):
            self.widths, self.values = {}, {}
            found = self.net(self.example.clone())
            widths, values, self.widths, self.values = self.widths, self.values, None, {}
            self.net(self.example.clone())
        again, same = self.values, values.keys() == self.values.keys()
        same = same and all(
            torch.equal(a, b) for name in values for a, b in zip(values[name], again[name], strict=False)
        )
        self.widths, self.values = widths, values if same else None
        return found

    def _whole(self, share: float, widths: dict[str, list[int]], values: dict[str, list[Tensor]] | None) -> Any:
        """The outputs of a checked pass whose dropped units are NaN, or, where that does not suit, each number of `FILLS`."""
        try:
            return self._checked(share, widths, values, None)
        except NotNestedError:
            if values is None:
                raise
            try:
                for self.fill in FILLS:
                    found = self._checked(share, widths, values, None)
                return found
            except Exception:
                pass  # the first problem is told
            finally:
                self.fill = math.nan
            raise

    def _checked(
        self, share: float, widths: dict[str, list[int]], values: dict[str, list[Tensor]] | None, mark: float | None
    ) -> Any:
        """The outputs of a full pass that is checked against what was noted at the share."""
        self.unclear, self.mark = False, mark
        self.expected = (share, {name: list(taken) for name, taken in widths.items()})
        self.values = None if values is None else {name: list(taken) for name, taken in values.items()}
        return self.net(self.example.clone())

    def _most_dropped(self, share: float) -> int:
        modules = dict(self.net.named_modules())
        units = [modules[name].weight.shape[0] // unit for name, unit in self.cut.items()]
        return min(MARKS, max((n - kept_units(share, n) for n in units), default=0))

    @contextmanager
    def at(self, share: float) -> Iterator[None]:
        """The network runs on this share inside the block."""
        before, self.share = self.share, share
        try:
            yield
        finally:
            self.share = before

    @contextmanager
    def running(self) -> Iterator[None]:
        """Patched inside the block."""
        self.patch()
        try:
            yield
        finally:
            self.release()

    def patch(self) -> None:
        """Let the layers look at `share`; the full network computes what it did, bit for bit.

        A copy of the network made meanwhile is cut by a copy of this.
        """
        self.release()
        for name, module in self.net.named_modules():
            forward = forward_of(self, name, module)
            if forward is not None:
                module.forward = forward  # type: ignore[method-assign]
                self._patched.append(module)
        self._slow = OffFastPath(self.net, self._patched)

    def release(self) -> None:
        """Take everything off the network."""
        for module in self._patched:
            module.__dict__.pop("forward", None)
        self._patched.clear()
        if self._slow is not None:
            self._slow.undo()
        self._slow = None

    @torch.no_grad()
    def recalibrate(self, share: float, batches: Sequence[Tensor]) -> int:
        """Batch norm's statistics at a share: averages over training batches, kept for evaluation; patched only.

        Those that are kept in evaluation go on with the statistics they were trained with.

        Returns:
            How many rows were passed, 0 where there is nothing to measure.

        Raises:
            ValueError: no batches, in a network with batch norm.
        """
        norms = [name for name, module in trained_modules(self.net) if type(module) in BATCH_NORMS]
        if not norms:
            return 0
        if not batches:
            raise ValueError("batch norm needs training rows to measure a sub-network's statistics; give some batches")
        self.recording = {name: [] for name in norms}
        try:
            with self.at(share), evaluating(self.net):
                for batch in batches:
                    self.net(batch.clone())
            for name, found in self.recording.items():
                mean = torch.stack([value for value, _ in found]).mean(dim=0)
                square = torch.stack([value for _, value in found]).mean(dim=0)
                self.statistics[share, name] = (mean, (square - mean.square()).clamp_min(0))
        finally:
            self.recording = None
        return sum(map(len, batches))

    def extract(self, share: float) -> nn.Module:
        """The sub-network as a network of its own, with parameters and buffers of its own and no trace of this class."""
        with self.running(), self.at(share), still(self.net):
            self.seen.clear()
            self.net(self.example.clone())
            seen = dict(self.seen)
        made, cut = copy.deepcopy(self.net), {}
        for name, module in list(made.named_modules()):
            if isinstance(module, CausalSelfAttention):
                module.heads = kept_units(share, module.heads)
            if name in seen:
                _shrink(module, *seen[name], cut)
            own = self.statistics.get((share, name))
            if own is not None and module.running_mean is not None:
                module.running_mean, module.running_var = own[0].clone(), own[1].clone()
        for name, (place, count) in self.blocks.items():
            if place >= kept_units(share, count):
                parent, _, last = name.rpartition(".")
                del made.get_submodule(parent)._modules[last]
        return made

    def start(self, share: float) -> None:
        """Run on this share from now on, and note what its passes use."""
        self.share = share
        self.seen.clear()

    def touched(self) -> list[tuple[Tensor, tuple[slice, ...] | None]]:
        """Parameters that the passes since `start` may have left out in part, with what they used; None = nothing of it."""
        modules, found = dict(self.net.named_modules()), []
        for name, (out, inputs) in self.seen.items():
            affine = type(modules[name]) is nn.Linear or type(modules[name]) in CONVOLUTIONS
            for key, value in modules[name]._parameters.items():
                if value is not None:
                    found.append((value, (slice(out), slice(inputs)) if affine and key == "weight" else (slice(out),)))
        cut = {id(value) for value, _ in found}
        for name, (place, count) in self.blocks.items():
            runs = place < kept_units(self.share, count)
            rest = [value for value in modules[name].parameters() if id(value) not in cut]
            found += [(value, tuple(slice(size) for size in value.shape) if runs else None) for value in rest]
        return found


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a network gives: itself, or those in tuples, lists and mappings."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def _affine_layers(net: nn.Module, wanted: Sequence[str] | None) -> list[str]:
    """Names of the linear layers and convolutions; errors for those that cannot be cut and for wanted ones that are none."""
    modules = dict(net.named_modules())
    affine = [name for name, m in modules.items() if type(m) is nn.Linear or type(m) in CONVOLUTIONS]
    for name in affine:
        module = modules[name]
        if getattr(module, "groups", 1) != 1 or getattr(module, "padding_mode", "zeros") != "zeros":
            raise ValueError(
                f"{name!r} is a convolution with groups {module.groups} and {module.padding_mode} padding; it cannot be cut"
            )
    for name in wanted or ():
        if name not in affine:
            raise ValueError(f"{name!r} is no linear layer or convolution; there are {', '.join(affine)}")
    if not affine:
        raise ValueError(f"{type(net).__name__} has no linear layer or convolution to cut")
    for name in affine:
        check_plain(modules[name], name)
    return affine


def _candidates(net: nn.Module, layers: Sequence[str], heads: Collection[str]) -> list[dict[str, int]]:
    """Choices of the layers to cut, with the size of a unit, the widest choice first."""
    modules = dict(net.named_modules())
    bound: dict[str, int | None] = {}
    for name, module in modules.items():
        if isinstance(module, CausalSelfAttention):
            bound |= {f"{name}.{part}": module.size for part in ("query", "key", "value")}
            bound[f"{name}.out"] = None
    streams = {m.embedding_dim for m in modules.values() if isinstance(m, nn.Embedding)}
    wide = {name: bound.get(name, 1) for name in layers if name not in heads}
    narrow = {name: u for name, u in wide.items() if name in bound or modules[name].weight.shape[0] not in streams}
    return [{name: unit for name, unit in choice.items() if unit is not None} for choice in (wide, narrow)]


def _blocks_of(net: nn.Module, name: str) -> dict[str, tuple[int, int]]:
    """Name of each block -> its place and their number."""
    try:
        holder = net.get_submodule(name)
    except AttributeError:
        holder = None
    if not isinstance(holder, nn.Sequential | nn.ModuleList) or len(holder) < 2:
        raise ValueError(f"blocks is {name!r}; name an nn.Sequential or nn.ModuleList of two blocks or more")
    for block in holder:
        if len(where := paths_of(net, block)) > 1:
            raise ValueError(
                f"one block stands at {' and '.join(where)}; a sequence that is cut has blocks of their own"
            )
    return {f"{name}.{key}": (place, len(holder)) for place, (key, _) in enumerate(holder.named_children())}


def _shrink(module: Any, out: int, inputs: int, cut: dict[Any, tuple[Tensor, nn.Parameter]]) -> None:
    """Cut a layer's tensors; `cut` holds what was cut already, with the whole parameter, so that ties are kept."""
    affine = type(module) is nn.Linear or type(module) in CONVOLUTIONS
    for key, value in module._parameters.items():
        if value is not None:
            part = value[:out, :inputs] if affine and key == "weight" else value[:out]
            if part.shape != value.shape:
                _, small = cut.setdefault(
                    (id(value), part.shape),
                    (value, nn.Parameter(part.detach().clone(), requires_grad=value.requires_grad)),
                )
                setattr(module, key, small)
    if type(module) is nn.Linear:
        module.out_features, module.in_features = out, inputs
    elif affine:
        module.out_channels, module.in_channels = out, inputs
    elif type(module) is nn.LayerNorm:
        module.normalized_shape = (out,)
    else:
        module.num_features = out
        for key in ("running_mean", "running_var"):
            value = getattr(module, key)
            if value is not None:
                setattr(module, key, value[:out].clone())
