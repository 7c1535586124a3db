"""Slot `method`: acts inside the training loop through hooks. Any class will do; only the hooks it has are called.

======================================  =============================================================
prepare(run)                            before the first step
order(run, order) -> Tensor             at the start of an epoch: positions in the training part to visit
batch(run, batch) -> Batch              after gathering
before_pass(run, batch)                 before every forward pass of a step, second passes among them
loss(run, batch, output, loss) -> Tensor  the scalar that is differentiated
gradients(run)                          after backward (and clipping), before the optimizer's step
step_end(run)                           after the optimizer's step
epoch_end(run)                          after the last batch of an epoch
finish(run)                             after the last step; leave the model as the user had it
detach()                                instead of finish, where training was broken off; take off hooks
======================================  =============================================================

`run` is a `probatum.train.run.Run`. A method that looks at the loss a second time in a step calls `run.second_pass()` in
its `gradients` hook; what it passes forward and backward beyond that, it adds to `run.extra_passes`. The class attributes `reads` and `writes` name what it touches, out of
`TOUCHES`. A method may keep state across a restart with `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probatum.errors import InputError

ARENA = "predict"
TRAINED = True
FIXED: tuple[str, ...] = ()
OFFERED: tuple[str, ...] = ()

HOOKS = ("prepare", "order", "batch", "before_pass", "loss", "gradients", "step_end", "epoch_end", "finish")
TOUCHES = ("batch", "target", "output", "loss", "gradients", "weights", "model", "optimizer", "order")
EXCLUSIVE = ("target", "weights", "model", "optimizer", "order")
"""Things that only one method may write; batches, losses and gradients can be passed from one to the next."""


def ordered(methods: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """(id, method) pairs, writers before readers, otherwise as given; InputError, naming both, where two clash."""
    for name, method in methods:
        for touched in (*getattr(method, "reads", ()), *getattr(method, "writes", ())):
            if touched not in TOUCHES:
                raise InputError(f"{name} declares {touched!r}; methods read and write {', '.join(TOUCHES)}")
    for i, (name, method) in enumerate(methods):
        for other_name, other in methods[i + 1 :]:
            both = set(_writes(method)) & set(_writes(other)) & set(EXCLUSIVE)
            if both:
                raise InputError(f"{name} and {other_name} both write {sorted(both)[0]}; try them in separate arms")
    left, done = list(methods), []
    while left:
        ready = [pair for pair in left if not any(_before(other, pair) for other in left if other is not pair)]
        if not ready:
            raise InputError(
                f"{' and '.join(name for name, _ in left)} each read what the other writes; try them apart"
            )
        done.append(ready[0])
        left.remove(ready[0])
    return done


def _before(first: tuple[str, Any], second: tuple[str, Any]) -> bool:
    return bool(set(_writes(first[1])) & (set(getattr(second[1], "reads", ())) - set(_writes(second[1]))))


def _writes(method: Any) -> tuple[str, ...]:
    return tuple(getattr(method, "writes", ()))
