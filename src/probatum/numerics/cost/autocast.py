"""Autocast inside a dispatch mode: torch leaves it off there, so that a mode which only looks would change results.

Without a mode a kernel's own calls are cast where the operation itself is not on autocast's list (`bilinear`, the
fused encoder layer, everything composite in inference mode). This puts that back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch

KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}
CALLED_WITHOUT = ("aten::_euclidean_dist",)
"""Not on the list, but called by operations that are (`cdist`), inside which autocast is off."""
_state = threading.local()


@contextmanager
def casting(func: Any) -> Iterator[None]:
    """Run an operation that came to a dispatch mode with autocast as it would be inside it without the mode."""
    keys = _switched_on()
    if not keys:
        yield
        return
    before = getattr(_state, "off", False)
    _state.off = before or func._schema.name in CALLED_WITHOUT or any(registered(func, key) for key in keys)
    try:
        with ExitStack() as stack:
            for key in keys if not _state.off else ():
                stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
            yield
    finally:
        _state.off = before


def _switched_on() -> list[torch._C.DispatchKey]:
    with torch._C._RestorePythonTLSSnapshot():  # as where the operation was called
        return [key for device, key in KEYS.items() if torch.is_autocast_enabled(device)]


@cache
def registered(func: Any, key: torch._C.DispatchKey) -> bool:
    """Whether an operation has a kernel of its own for a dispatch key."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
    except RuntimeError:  # questions such as prim::device; an error here would end the process
        return False
