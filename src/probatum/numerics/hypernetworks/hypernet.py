"""Weights made by another network: how a module's parameters lie in one vector, calls with them, first variances, surgery."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from probatum.numerics.networks.substitute import call_with
from probatum.numerics.networks.surgery import all_or_nothing

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
TABLES = (nn.Embedding, nn.EmbeddingBag)
CHILD = "hypernet"
"""The name under which a supplier hangs on the first module that reads a weight from it."""


@dataclass(frozen=True)
class Entry:
    """One parameter: its name, shape and first place in the vector; what it is; values that one output sums over.

    Attributes:
        kind: "weight" of a linear map or convolution, its "bias", "scale" and "shift" of a norm, "table" of an embedding,
            or "other".
        fan_in: inputs of one output unit (weights and biases), else 1.
        spread: standard deviation of the parameter as it is ("other" alone).
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    fan_in: int
    start: int
    spread: float = 0.0

    @property
    def numel(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    @property
    def variance(self) -> float:
        """What freshly made values should have: 2 / fan_in for weights, 1 / (3 fan_in) for biases as in torch's layers."""
        known = {"weight": 2 / self.fan_in, "bias": 1 / (3 * self.fan_in), "scale": 0.01, "shift": 0.01, "table": 1.0}
        return known.get(self.kind, self.spread**2)

    @property
    def centre(self) -> float:
        """Their mean: 1 for the scale of a norm, else 0."""
        return 1.0 if self.kind == "scale" else 0.0


@dataclass(frozen=True)
class Layout:
    """Where each of a module's parameters lies in one vector of `numel` values.

    Example:
        >>> layout = Layout.of(nn.Linear(3, 2))
        >>> layout.numel, [(e.name, e.kind, e.fan_in) for e in layout.entries]
        (8, [('weight', 'weight', 3), ('bias', 'bias', 3)])
        >>> {name: tuple(value.shape) for name, value in layout.unflatten(torch.zeros(5, 8)).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, module: nn.Module, names: Sequence[str] | None = None) -> Layout:
        """The layout of these parameters, in the module's order; None = all. Tied ones count once, under their first name.

        Raises:
            ValueError: a name that is no parameter, or none left.
        """
        known = dict(module.named_parameters())
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise ValueError(f"names {unknown} are no parameters of {type(module).__name__}; it has {', '.join(known)}")
        entries, start = [], 0
        for name, parameter in known.items():
            if names is None or name in names:
                entry = _entry(module, name, parameter, start)
                entries.append(entry)
                start += entry.numel
        if not entries:
            raise ValueError(f"{type(module).__name__} has no parameters to make; it has {', '.join(known) or 'none'}")
        return cls(tuple(entries))

    @property
    def numel(self) -> int:
        """Values in the vector."""
        return self.entries[-1].start + self.entries[-1].numel

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return tuple(entry.name for entry in self.entries)

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """{name: (*batch, *shape)} -> (*batch, numel).

        Raises:
            ValueError: names other than the layout's.
        """
        if set(values) != set(self.names):
            raise ValueError(f"values are of {sorted(values)}; give exactly {', '.join(self.names)}")
        return torch.cat([values[e.name].flatten(values[e.name].ndim - len(e.shape)) if e.shape
                          else values[e.name][..., None] for e in self.entries], dim=-1)  # fmt: skip

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """(*batch, numel) -> {name: (*batch, *shape)}, views of it.

        Raises:
            ValueError: another number of values.
        """
        if flat.shape[-1] != self.numel:
            raise ValueError(f"{flat.shape[-1]} values were given; {', '.join(self.names)} take {self.numel}")
        batch = flat.shape[:-1]
        return {e.name: flat[..., e.start : e.start + e.numel].reshape(*batch, *e.shape) for e in self.entries}

    def deviations(self) -> Tensor:
        """The wanted standard deviation of every value (numel,)."""
        return torch.cat([torch.full((e.numel,), math.sqrt(e.variance)) for e in self.entries])

    def centres(self) -> Tensor:
        """The wanted mean of every value (numel,)."""
        return torch.cat([torch.full((e.numel,), e.centre) for e in self.entries])

    def ratios(self, flat: Tensor) -> dict[str, float]:
        """Variance of made values (*batch, numel) around their wanted mean over the wanted one, by parameter; 1 is right."""
        values = self.unflatten(flat.detach())
        return {
            e.name: float((values[e.name] - e.centre).square().mean()) / e.variance for e in self.entries if e.variance
        }


def _entry(module: nn.Module, name: str, parameter: Tensor, start: int) -> Entry:
    path, _, own = name.rpartition(".")
    owner, shape = module.get_submodule(path), tuple(parameter.shape)
    weight = getattr(owner, "weight", None)
    if isinstance(owner, LINEAR + TRANSPOSED) and own in ("weight", "bias"):
        outputs = weight.shape[1] * owner.groups if isinstance(owner, TRANSPOSED) else weight.shape[0]
        return Entry(name, shape, own, max(1, weight.numel() // outputs), start)
    if isinstance(owner, NORMS) and own in ("weight", "bias"):
        return Entry(name, shape, "scale" if own == "weight" else "shift", 1, start)
    if isinstance(owner, TABLES) and own == "weight":
        return Entry(name, shape, "table", 1, start)
    spread = float(parameter.detach().std(correction=0)) if parameter.numel() > 1 else 0.0
    return Entry(name, shape, "other", 1, start, spread)


def layer_weights(net: nn.Module) -> list[str]:
    """Names of the weights of linear maps and convolutions, the parameters that hypernetworks make as a rule.

    Frozen ones are left out.
    """
    found = []
    for path, module in net.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, LINEAR) else None
        if weight is not None and weight.requires_grad:
            found.append(f"{path}.weight" if path else "weight")
    return found


def call(module: nn.Module, values: Mapping[str, Tensor], *inputs: Tensor) -> Any:
    """module(*inputs) with some parameters or buffers replaced; gradients flow to them, running statistics are kept in them.

    Raises:
        ValueError: a name that the module does not have.
    """
    known = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"names {unknown} are no parameters of {type(module).__name__}; it has {', '.join(sorted(known))}"
        )
    return call_with(module, values, *inputs)


def call_each(module: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Row i of x (n, ...) through the module with weights values[name][i], all rows at once: outputs (n, ...).

    Raises:
        ValueError: weights for another number of rows, or a batch norm that would need a batch's statistics.
    """
    for name, value in values.items():
        if len(value) != len(x):
            raise ValueError(f"{name} has weights for {len(value)} rows; x has {len(x)}: give one set a row")
    for path, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or not part.track_running_stats):
            raise ValueError(
                f"{path} is a batch norm in training; rows with weights of their own share no statistics: "
                "call eval() on it or use a group norm"
            )

    def one(own: dict[str, Tensor], row: Tensor) -> Tensor:
        return call(module, own, row[None])[0]

    return vmap(one, randomness="different")(dict(values), x)


def draw_linear(inputs: int, outputs: int, variance: float, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear map with weights of N(0, variance) and biases of zero, drawn from `generator` alone."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        layer.weight.normal_(0, math.sqrt(variance), generator=generator)
        layer.bias.zero_()
    return layer


@torch.no_grad()
def hyperfan_in(
    last: nn.Linear, hidden: Tensor, deviations: Tensor | float = 1.0, generator: torch.Generator | None = None
) -> None:
    """Draw a hypernetwork's last layer so that output i has standard deviation `deviations[i]`; biases become zero.

    Source: Chang et al. 2020, hyperfan-in, with the second moment of the last hidden layer measured instead of assumed.

    Args:
        last: (outputs, width) weights.
        hidden: what it will see (..., width), over the conditions in use.
        deviations: (outputs,) or one number, >= 0.
        generator: for the draw.
    """
    length = float(hidden.square().sum(dim=-1).mean())
    last.weight.normal_(generator=generator).mul_(torch.as_tensor(deviations).reshape(-1, 1) / math.sqrt(length))
    last.bias.zero_()


class Trunk(nn.Module):
    """A hypernetwork's body: linear maps with leaky ReLU behind each, Kaiming weights, zero biases.

    Args:
        inputs: size of what it sees.
        hidden: widths, at least one, each >= 1.
        mode: "fan_in" keeps the second moment of what passes forward, "fan_out" that of gradients.
        generator: for the weights.
        slope: of the leaky ReLU, 0 = ReLU.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        mode: str = "fan_in",
        generator: torch.Generator | None = None,
        slope: float = 0.01,
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden is {tuple(hidden)}; give one width or more, each at least 1")
        if mode not in ("fan_in", "fan_out"):
            raise ValueError(f"mode is {mode!r}; use fan_in or fan_out")
        layers: list[nn.Module] = []
        for size, width in zip((inputs, *hidden), hidden, strict=False):
            fan = size if mode == "fan_in" else width
            layers += [draw_linear(size, width, 2 / (1 + slope**2) / fan, generator), nn.LeakyReLU(slope)]
        self.layers = nn.Sequential(*layers)
        self.width = hidden[-1]

    def forward(self, condition: Tensor) -> Tensor:
        """(..., inputs) -> (..., last width)."""
        return self.layers(condition)


class Supplier(nn.Module):
    """Makes a network's weights in place: `theta()` of a subclass gives them as one vector, once for every pass.

    Args:
        layout: of the parameters it makes.

    While the network runs all its layers read from one vector; read at another time, a weight is made afresh. Where nothing
    is to be trained the vector is kept while parameters and buffers of the supplier have the values that it was made from:
    the values themselves are compared, since an edit through `.data` leaves no other trace.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self._now: dict[str, Tensor] | None = None
        self._kept: tuple[Any, list[Tensor], dict[str, Tensor]] | None = None
        self._edits: list[int] = []

    def theta(self) -> Tensor:
        """The weights (numel,) to be used now."""
        raise NotImplementedError(f"{type(self).__name__} makes no weights; give it a method theta()")

    def state_of_theta(self) -> Any:
        """What beside parameters and buffers decides `theta()`; None = nothing is kept, as it may change or is made as cheaply."""
        return None

    def weight_of(self, name: str) -> Tensor:
        """One weight as it is in this pass, or would be in one that began now."""
        return self._made()[name] if self._now is None else self._now[name]

    def begin(self, net: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of the network."""
        self._now = self._made()

    def end(self, net: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Forward hook of the network, called also where the pass failed; what it returns, if not None, is the output."""
        self._now = None

    def _made(self) -> dict[str, Tensor]:
        beside = self.state_of_theta()
        if torch.is_grad_enabled() or self.training or beside is None:
            self._kept = None
            return self.layout.unflatten(self.theta())
        now = [*self.parameters(), *self.buffers()]
        beside = (beside, torch.is_autocast_enabled(now[0].device.type) if now else False)
        if self._kept is None or self._kept[0] != beside or not all(map(_same, self._kept[1], now)):
            made = self.layout.unflatten(self.theta())
            self._kept, self._edits = (beside, [value.clone() for value in now], made), _edits(made)
        elif (
            _edits(self._kept[2]) != self._edits
        ):  # a made weight was written to, which is of no effect elsewhere either
            self._kept = None
            return self._made()
        return self._kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_now": None, "_kept": None}  # of one pass, and made again


def _edits(made: Mapping[str, Tensor]) -> list[int]:
    return [-1 if value.is_inference() else value._version for value in made.values()]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def supply(net: nn.Module, supplier: Supplier) -> int:
    """Let `supplier` make the parameters of its layout in `net`, in place; how many tensors (tied ones once for each use).

    They stop being parameters of the network's modules, which read them as before; the supplier becomes a child `hypernet`
    of the first of these modules (a container would run it). `withdraw` undoes it.

    Raises:
        ValueError: the network has a supplier already, or a parameter that would be made is frozen.
    """
    if supplier_of(net) is not None:
        raise ValueError(f"{type(net).__name__} has a {CHILD} already; withdraw it first")
    parameters = dict(net.named_parameters())
    frozen = [name for name in supplier.layout.names if not parameters[name].requires_grad]
    if frozen:
        raise ValueError(f"{frozen[0]!r} is frozen, and a made weight is trained; leave it out of names")
    wanted = {id(parameters[name]): name for name in supplier.layout.names}
    count = 0
    with all_or_nothing(net):
        for module in list(net.modules()):
            sources = {own: wanted[id(p)] for own, p in module._parameters.items() if id(p) in wanted}
            if not sources:
                continue
            for own in sources:
                del module._parameters[own]
            module.__dict__["_supplied"] = (supplier, sources)  # not a child: its parameters are the network's once
            module.__class__ = _reading(type(module), tuple(sources))
            if not count:
                module.add_module(CHILD, supplier)
            count += len(sources)
    net.register_forward_pre_hook(supplier.begin, with_kwargs=True)
    net.register_forward_hook(supplier.end, with_kwargs=True, always_call=True)
    return count


def supplier_of(net: nn.Module) -> Supplier | None:
    """What makes weights of `net`, or None."""
    held = [module for path, module in net.named_modules() if path.split(".")[-1] == CHILD]
    return next((module for module in held if isinstance(module, Supplier)), None)


@torch.no_grad()
def withdraw(net: nn.Module) -> int:
    """Put the weights as they are now into `net` as ordinary parameters and take its supplier off with all hooks; how many."""
    supplier = supplier_of(net)
    if supplier is None:
        return 0
    made, count = supplier._made(), 0
    shared = {name: nn.Parameter(value.detach().clone()) for name, value in made.items()}
    for module in list(net.modules()):
        held = module.__dict__.pop("_supplied", None)
        if held is None:
            continue
        module.__class__ = type(module).__bases__[0]
        order = list(held[1])
        rest = {own: value for own, value in module._parameters.items() if own not in order}
        module._parameters.clear()
        module._parameters.update({own: shared[held[1][own]] for own in order} | rest)
        count += len(order)
        module._modules.pop(CHILD, None)
    for module in net.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is supplier]:
                del hooks[key]
                for marks in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    marks.pop(key, None)
    return count


@functools.cache
def _reading(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A subclass whose attributes of these names come from the supplier; pickled as what it is made from."""

    def reader(own: str) -> property:
        def read(self: nn.Module) -> Tensor:
            supplier, sources = self.__dict__["_supplied"]
            return supplier.weight_of(sources[own])

        return property(read)

    def reduce(self: nn.Module, _protocol: Any) -> tuple[Any, ...]:
        return _blank, (kind, names), self.__getstate__()

    own = {name: reader(name) for name in names}
    return type(f"Supplied{kind.__name__}", (kind,), {**own, "__reduce_ex__": reduce})


def _blank(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    made = _reading(kind, names)
    return made.__new__(made)
