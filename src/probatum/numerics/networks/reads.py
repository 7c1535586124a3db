"""Which attributes a network's code may read, told by the code alone."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

UNLIMITED = {"getattr", "vars", "__dict__", "__getattribute__", "eval", "exec", "locals", "methodcaller"}
"""Names by which code may read attributes whose names do not stand in it."""
ASIDE = {
    "__init__",
    "__new__",
    "__repr__",
    "__str__",
    "extra_repr",
    "__setstate__",
    "__getstate__",
    "__deepcopy__",
    "__del__",
}
"""Methods that no forward pass runs."""
READING = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"}


def attributes_read(net: nn.Module) -> set[str] | None:
    """Names of attributes that the network's classes, hooks and functions may read when it is run; None = of any name.

    Names count wherever they stand, whosever attribute is meant, and so do words in quotation marks. Functions of the
    module that code stands in are followed; what other packages do with a module that they are given is not seen.
    """
    found: set[str] = set()
    for part in net.modules():
        own = vars(part)
        values = [v for key, held in own.items() if key.endswith("_hooks") and held for v in held.values()]
        for piece in (_of_class(type(part)), *(_of_value(value) for value in (*own.values(), *values))):
            if piece is None:
                return None
            found |= piece
    return found


@functools.cache
def _of_class(kind: type) -> frozenset[str] | None:
    found: frozenset[str] = frozenset()
    for base in kind.__mro__:
        if base in (nn.Module, object):
            continue
        for name, value in vars(base).items():
            piece = frozenset[str]() if name in ASIDE else _of_value(value)
            if piece is None:
                return None
            found |= piece
    return found


def _of_value(value: object) -> frozenset[str] | None:
    """What a function, a method, a property or the like may read; nothing where it is none."""
    found: set[str] = set()
    for function in _functions(value):
        piece = _of_function(function)
        if piece is None:
            return None
        found |= piece
    return frozenset(found)


def _functions(value: object) -> Iterator[types.FunctionType]:
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from _functions(value.__func__)
    elif isinstance(value, property):
        yield from (f for accessor in (value.fget, value.fset) for f in _functions(accessor))
    elif isinstance(value, functools.cached_property | functools.partial):
        yield from _functions(value.func)
    elif isinstance(getattr(value, "__wrapped__", None), types.FunctionType):
        yield value.__wrapped__  # type: ignore[attr-defined]
    elif isinstance(call := vars(type(value)).get("__call__"), types.FunctionType):
        yield call


def _of_function(function: types.FunctionType, seen: set[types.CodeType] | None = None) -> set[str] | None:
    seen = set() if seen is None else seen
    if function.__code__ in seen:
        return set()
    seen.add(function.__code__)
    found: set[str] = set()
    called: list[Any] = [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
    for code in _codes(function.__code__):
        for step in dis.get_instructions(code):
            if step.argval in UNLIMITED:
                return None
            if step.opname in READING:
                found.add(step.argval)
        found |= {word for word in code.co_consts if isinstance(word, str)}
        called += [function.__globals__.get(name) for name in code.co_names]
    for other in called:
        if isinstance(other, types.FunctionType) and not other.__module__.startswith("torch."):
            piece = _of_function(other, seen)
            if piece is None:
                return None
            found |= piece
    return found


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of all functions in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def filled(cell: types.CellType) -> bool:
    """Whether a closure's cell holds something yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
