"""Whether networks are one architecture: the same code, hooks and state beside their parameters and buffers.

What is run for all of them is a copy of one, so that anything else that differs would be the first one's for all. What no
code of theirs reads, such as a name, a history or activations that are kept, may differ.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from probatum.numerics.networks.reads import attributes_read, filled
from probatum.numerics.networks.substitute import TORCHS_OWN

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_TORCHS = {*TORCHS_OWN, "_compiled_call_impl", "forward"}  # compiled code is not copied, and computes the same
_COMPILED = ("torch._dynamo", "torch.jit")
"""Packages whose modules set their own `forward`, around the network that they hold."""
_CLASS = {"__slotnames__", "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__"}


def difference(first: nn.Module, other: nn.Module) -> str:
    """Where two networks differ beside the values of their parameters and buffers; "" = nowhere that can be seen.

    Modes of the modules do not count, nor what torch's older norms of weights have computed.

    Example:
        >>> difference(nn.LeakyReLU(0.1), nn.LeakyReLU(0.2))
        'negative_slope (0.1 and 0.2)'
        >>> difference(nn.Linear(2, 1), nn.Linear(2, 1))
        ''
    """
    return _Pair(first, other).difference()


def astray(copy: nn.Module, net: nn.Module) -> str:
    """Where a copy's hooks, or a `forward` that was set on a module, still reach into the network it is of; "" = nowhere."""
    pair = _Pair(copy, net)
    parts = zip(copy.named_modules(), net.modules(), strict=True)
    return next((found for (name, a), b in parts for found in pair.attached(name, a, b)), "")


class _Pair:
    """Two networks, whose parts correspond by name."""

    def __init__(self, first: nn.Module, other: nn.Module) -> None:
        self.first, self.other = first, other
        self.seen: set[tuple[int, int]] = set()
        self.alive: list[object] = []  # as long as their ids are told apart by

    @functools.cached_property
    def read(self) -> set[str] | None:
        """Attributes that matter, looked up where some differ; None = all."""
        both = attributes_read(self.first), attributes_read(self.other)
        return None if both[0] is None or both[1] is None else both[0] | both[1]

    def _matters(self, key: str) -> bool:
        return self.read is None or key in self.read

    @functools.cached_property
    def places(self) -> tuple[dict[int, tuple[str, str]], dict[int, tuple[str, str]]]:
        """What belongs to either, looked up where it matters: most networks hold numbers alone."""
        return _places(self.first), _places(self.other)

    def difference(self) -> str:
        """See the function."""
        mine, theirs = dict(self.first.named_modules()), dict(self.other.named_modules())
        if list(mine) != list(theirs):
            return "their modules"
        if _standing(self.first) != _standing(self.other):
            return "where modules and tensors are shared"
        return next((found for name in mine for found in self._of_module(name, mine[name], theirs[name])), "")

    def _of_module(self, name: str, a: nn.Module, b: nn.Module) -> Iterator[str]:
        if type(a) is not type(b) and not self._same(_kind(a), _kind(b)):
            yield f"{name or 'the network'} ({type(a).__name__} and {type(b).__name__})"
        yield from self.attached(name, a, b)
        mine, theirs = _plain_state(a), _plain_state(b)
        for key in mine.keys() ^ theirs.keys():
            if self._matters(key):
                yield f"{_joined(name, key)} (only one has it)"
        for key in mine.keys() & theirs.keys():
            value = mine[key]
            if not self._same(value, theirs[key]) and self._matters(key):
                yield f"{_joined(name, key)}{_values(value, theirs[key])}"

    def attached(self, name: str, a: nn.Module, b: nn.Module) -> Iterator[str]:
        """What was put onto one module and differs: hooks, and a `forward` of its own."""
        mine, theirs = vars(a), vars(b)
        for key in _HOOKS:
            if (mine[key] or theirs[key]) and not self._same(_hooks(mine, key), _hooks(theirs, key)):
                yield _joined(name, key.strip("_").replace("_", " "))
        compiled = type(a).__module__.startswith(_COMPILED)
        if (
            ("forward" in mine or "forward" in theirs)
            and not compiled
            and not self._same(mine.get("forward"), theirs.get("forward"))
        ):
            yield _joined(name, "forward, which was set on the module itself")

    def _same(self, a: Any, b: Any) -> bool:
        if isinstance(a, _PLAIN):
            return type(a) is type(b) and (a == b or (a != a and b != b))
        if isinstance(a, nn.Module | Tensor):
            place = self.places[0].get(id(a))
            if place != self.places[1].get(id(b)):
                return False  # somebody else's in one of the two
            if place is not None or a is b:
                return True
        pair = id(a), id(b)
        if pair in self.seen:  # being compared further up, or found to be the same
            return True
        self.seen.add(pair)
        self.alive += [a, b]
        found = self._looked_into(a, b)
        if not found:
            self.seen.discard(pair)  # where they stand next they differ again
        return found

    def _looked_into(self, a: Any, b: Any) -> bool:
        if isinstance(a, type):
            return a is b or (isinstance(b, type) and self._same_class(a, b))
        if type(a) is not type(b) and not self._same(type(a), type(b)):
            return False
        if isinstance(a, Tensor):
            return _equal_tensors(a, b)
        if isinstance(a, nn.Module):  # beside the registered ones: its weights are those of the one copy
            held = ([*one.named_parameters(), *one.named_buffers()] for one in (a, b))
            return self._same(*held) and not _Pair(a, b).difference()
        if isinstance(a, np.ndarray | np.generic):
            return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
        if isinstance(a, Mapping):
            return len(a) == len(b) and all(key in b and self._same(value, b[key]) for key, value in a.items())
        if isinstance(a, list | tuple | deque):
            return len(a) == len(b) and all(map(self._same, a, b))
        if isinstance(a, types.FunctionType):
            return a.__code__ == b.__code__ and self._same(_reached(a), _reached(b))
        if isinstance(a, types.MethodType):
            return self._same((a.__func__, a.__self__), (b.__func__, b.__self__))
        if isinstance(a, functools.partial):
            return self._same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
        if isinstance(a, property):
            return self._same((a.fget, a.fset), (b.fget, b.fset))
        if isinstance(a, staticmethod | classmethod):
            return self._same(a.__func__, b.__func__)
        if isinstance(a, weakref.ref):
            return self._same(a(), b())
        if a is b:
            return True
        if type(a).__eq__ is not object.__eq__ and not hasattr(a, "__dict__"):  # a date, a path, a set
            return bool(a == b)
        mine, theirs = _state(a), _state(b)
        return self._same(mine, theirs) if mine or theirs else self._same(_reduced(a), _reduced(b))

    def _same_class(self, a: type, b: type) -> bool:
        """Of one definition that was run twice, as classes inside of functions are."""
        mine, theirs = ({k: v for k, v in vars(one).items() if k not in _CLASS} for one in (a, b))
        named = (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)
        return named and self._same(a.__bases__, b.__bases__) and self._same(mine, theirs)


def _places(net: nn.Module) -> dict[int, tuple[str, str]]:
    """What belongs to a network, and as what."""
    held = chain(net.named_parameters(), net.named_buffers())
    parts = {id(part): ("module", name) for name, part in net.named_modules()}
    return parts | {id(value): ("tensor", name) for name, value in held}


def _standing(net: nn.Module) -> list[dict[str, str]]:
    """Modules, parameters and buffers by every name, each with the first name of the same thing."""
    found = []
    for named in (net.named_modules, net.named_parameters, net.named_buffers):
        first: dict[int, str] = {}
        found.append({name: first.setdefault(id(value), name) for name, value in named(remove_duplicate=False)})
    return found


def _kind(module: nn.Module) -> type:
    """Its class; of a module with parametrizations the one it had before, since torch makes each a class of its own."""
    return type(module).__bases__[0] if "parametrizations" in module._modules else type(module)


def _plain_state(module: nn.Module) -> dict[str, Any]:
    """A module's attributes beside torch's own."""
    if type(module).__module__.startswith(_COMPILED):
        return {}
    found = {key: value for key, value in vars(module).items() if key not in _TORCHS}
    if isinstance(module, GraphModule):  # its graph stands in its code
        found = {key: value for key, value in found.items() if key != "_graph"} | {"code": module.code}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            found.pop(hook.name, None)
        elif isinstance(hook, BasePruningMethod):
            found.pop(hook._tensor_name, None)
    return found


def _hooks(own: Mapping[str, Any], key: str) -> list[object]:
    """Hooks and how they are called; handles count on from network to network."""
    flags = [own[flag] for flag in _FLAGS if flag.startswith(key)]
    return [(hook, *(handle in flag for flag in flags)) for handle, hook in own[key].items()]


def _reached(function: types.FunctionType) -> list[object]:
    """What a function knows beside its arguments: defaults, what it closes over, networks and tensors of its module."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
    around = function.__globals__
    named = [around[name] for name in function.__code__.co_names if isinstance(around.get(name), nn.Module | Tensor)]
    return [function.__defaults__, function.__kwdefaults__, cells, named]


def _state(value: object) -> dict[str, Any]:
    """What an object of somebody's own class holds."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _reduced(value: object) -> object:
    """What an object that shows nothing of itself would be pickled as; None where it cannot be, as locks and files."""
    try:
        return value.__reduce_ex__(4)
    except Exception:
        return None


def _equal_tensors(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.device, a.layout) != (b.shape, b.dtype, b.device, b.layout):
        return False
    if a.device.type == "meta":
        return True
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _values(a: object, b: object) -> str:
    return f" ({a!r} and {b!r})" if isinstance(a, _PLAIN) and isinstance(b, _PLAIN) else ""
