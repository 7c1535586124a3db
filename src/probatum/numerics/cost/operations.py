"""One count of floating-point operations for everything: forward and backward passes, updates, whatever torch runs.

>>> x, w = torch.ones(4, 3), torch.ones(3, 5, requires_grad=True)
>>> with counted() as operations:
...     loss = (x @ w).sum()
>>> operations.total
120
>>> with counted() as operations:
...     loss.backward()
>>> operations.total  # x needs no gradient
120
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from probatum.numerics.cost.autocast import casting, registered
from probatum.numerics.cost.formulas import FORMULAS, Formula

TO_NESTED, ENCODER = "aten::_nested_tensor_from_mask", "aten::_transformer_encoder_layer_fwd"
PASSIVE = ("FakeTensor", "FunctionalTensor")
"""Subclasses of tensors that stand for plain ones; all others run their own operations, and those count."""
BUILT_IN = ("aten", "prim", "prims", "quantized", "mkldnn", "mkl", "onednn", "inductor", "c10d", "_c10d_functional")


def counted() -> Operations:
    """Count the floating-point operations of what this thread runs inside the `with` block, backward passes included.

    Counted, a multiply-add as 2, of complex numbers as 8: products of matrices and vectors (sparse ones by the numbers
    they store), convolutions, linear and bilinear layers, attention, recurrent layers, distances between all rows;
    solutions, factorisations and Fourier transforms by their textbooks' leading terms. Backward passes count for the
    gradients that are asked for: a first layer's input has none. What is run twice, as by checkpoints, counts twice.

    Not counted: elementwise operations (activations, gates, norms, dropout, pooling, biases, updates of weights),
    sums, look-ups (embeddings), sorting, `matrix_exp` (how many products it takes hangs on the values), products of
    nested strided tensors beyond linear and encoder layers, hand-written kernels, quantised layers.

    Attention counts all pairs, also those that a mask hides, and padding counts as data do, so that the count hangs on
    sizes alone and is the same for every kernel that torch may choose. What cannot be so: a network that decides itself
    how much it runs; packed sequences, which have the steps they have; the LSTM of CPUs under `create_graph` and in
    `torch.func.grad`, which runs its forward pass again; forward-mode derivatives (`jvp`), where torch multiplies by
    tangents that are zero too.

    Nothing is switched off or on meanwhile, and results are those of a usual run, to the bit, also under autocast, which
    torch itself leaves off inside dispatch modes (`numerics.cost.autocast`). Two exceptions: compiled functions run
    uncompiled, and eigenvalues or singular values alone are computed with their vectors (and count so), which may round
    them otherwise. `flex_attention` refuses to run inside any dispatch mode.

    Blocks nest; each counts what is inside it. Raises nothing of its own.
    """
    return Operations()


class Operations(TorchDispatchMode):
    """What `counted` gives: `total` so far, also while the block is open, and `counts` by the operation's name."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self._padded = WeakTensorKeyDictionary()
        self._handed = False

    @property
    def total(self) -> int:
        """Floating-point operations so far."""
        return sum(self.counts.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._with_functions(func, args, kwargs)
        if any(_acts(kind) for kind in types):
            return self._with_subclass(func, args, kwargs)
        formula = FORMULAS.get(func._schema.name)
        with casting(func):
            if formula is None and (kernel := _opened(func, args, kwargs)) is not None:
                with self:
                    return kernel(*args, **kwargs)
            result = func(*args, **kwargs)
        if func._schema.name == TO_NESTED:
            self._padded[result] = tuple(args[0].shape[:2])
        elif formula:
            self._add(func, formula, args, kwargs, result)
        return result

    def _add(self, func: Any, formula: Formula, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        name = func._schema.name
        call = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs | {"result": result}
        if name == ENCODER and args[0].is_nested and (padded := self._padded.get(args[0])) is not None:
            self._padded[result] = call["padded"] = padded
        if spent := formula(call):
            self.counts[name] = self.counts.get(name, 0) + spent

    def _with_subclass(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Let a subclass run it, whose operations come back here; where none does, count by the sizes it shows."""
        if self._handed:
            self._handed = False
            return NotImplemented
        before, self._handed = self.total, True
        try:
            with self:
                result = func(*args, **kwargs)
        finally:
            self._handed = False
        if self.total == before and (formula := FORMULAS.get(func._schema.name)):
            self._add(func, formula, args, kwargs, result)
        return result

    def _with_functions(self, func: HigherOrderOperator, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run control flow (`torch.cond`, `while_loop` ...) so that what its functions do is seen."""

        def seen(x: Any) -> Any:
            if not callable(x) or isinstance(x, Tensor):
                return x

            def inside(*operands: Any, **named: Any) -> Any:
                with self:
                    return x(*operands, **named)

            return inside

        args, kwargs = tree_map(seen, (args, kwargs))
        return func(*args, **kwargs)


@cache
def _acts(kind: type) -> bool:
    own = getattr(kind, "__torch_dispatch__", None)
    return kind.__name__ not in PASSIVE and own is not torch._C._disabled_torch_dispatch_impl and kind is not Tensor


def _opened(func: Any, args: Any, kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """The kernel to run so that what it calls comes back here, or None to run the operation as it is.

    Where autograd is off composite operations come whole, and so do operations of other libraries and of one's own.
    """
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if any(x.is_nested for x in tensors):
        return None  # these have kernels of their own
    if registered(func, DispatchKey.CompositeImplicitAutograd):
        return partial(func._op_dk, DispatchKey.CompositeImplicitAutograd)
    if func.namespace in BUILT_IN or not all(isinstance(m, Operations) for m in _get_current_dispatch_mode_stack()):
        return None
    places = {x.device.type.upper() if x.layout == torch.strided else "" for x in tensors}
    if places not in ({"CPU"}, {"CUDA"}):
        return None
    return partial(func.redispatch, torch._C.DispatchKeySet(getattr(DispatchKey, *places)))
