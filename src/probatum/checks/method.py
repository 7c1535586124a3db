"""What every method promises (and every compressor, whose hooks are the same)."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor

from probatum.checks.networks import anatomy
from probatum.checks.subject import NotThisOneError, Subject, demand, fingerprint
from probatum.checks.trained import draws, exercise, neutral, prepared, run_it, trained  # noqa: F401  (tried in a training)
from probatum.checks.training_networks import (  # noqa: F401  (promises of whatever acts in the loop)
    check_attached_networks_can_be_copied,
    check_batches_are_not_changed,
    check_bf16_and_fused_optimizers,
    check_extra_passes_are_charged,
    check_hooks_read_what_they_say,
    check_hooks_write_what_they_say,
    check_losses_add_up,
    check_networks_as_users_have_them,
    check_norms_count_the_training_passes,
)
from probatum.contracts.method import HOOKS, TOUCHES


class _StopHereError(RuntimeError):
    """Raised in the middle of a training run."""


def check_declares_what_it_touches(subject: Subject) -> None:
    """It has hooks, and says what they read and write in known words."""
    entry = subject.entry
    demand(any(hasattr(entry, hook) for hook in HOOKS), f"it has none of the hooks {', '.join(HOOKS)}")
    for side in ("reads", "writes"):
        words = getattr(entry, side, ())
        demand(isinstance(words, tuple), f"say what it {side} in a tuple {side} = (...)")
        demand(set(words) <= set(TOUCHES), f"{side} {words}: use words out of {', '.join(TOUCHES)}")
    touches = (*getattr(entry, "reads", ()), *getattr(entry, "writes", ()))
    demand(bool(touches), "say what it reads and writes: reads = (...), writes = (...)")


def check_trains_to_finite_weights(subject: Subject) -> None:
    """A short training with it ends, on every modality it takes, with finite weights."""
    for modality in subject.modalities():
        parts = trained(subject, modality).parts
        finite = all(bool(torch.isfinite(value).all()) for value in parts.run.model.state_dict().values())
        demand(finite, f"{modality}: weights are not finite")


def check_leaves_no_traces(subject: Subject) -> None:
    """Afterwards the model has its own modules and parameters, no hooks, and works alone."""
    done = trained(subject, subject.modalities()[0])
    demand(anatomy(done.parts.run.model) == done.anatomy, "hooks, modules or parameters were left on the model")


def check_leaves_no_traces_after_a_failure(subject: Subject) -> None:
    """The same when training breaks off in the middle."""
    parts = prepared(subject)
    before = anatomy(parts.run.model)

    class Bomb:
        reads: tuple[str, ...] = ()
        writes: tuple[str, ...] = ()

        def step_end(self, run: Any) -> None:
            if run.step == 5:
                raise _StopHereError

    parts.methods.append(Bomb())
    with contextlib.suppress(_StopHereError):
        run_it(parts)
    demand(anatomy(parts.run.model) == before, "after an exception hooks, modules or parameters are left on the model")


def check_training_data_are_not_changed(subject: Subject) -> None:
    """The training rows are read only."""
    for modality in subject.modalities():
        done = trained(subject, modality)
        rows = done.parts.run.train
        demand(fingerprint([rows.x, rows.y]) == done.rows, "the training rows were changed")


def check_state_dict_round_trip(subject: Subject) -> None:
    """State saved and loaded is the same state."""
    method = trained(subject, subject.modalities()[0]).parts.methods[0]
    if not hasattr(method, "state_dict"):
        raise NotThisOneError("it keeps no state")
    state = copy.deepcopy(method.state_dict())
    again = prepared(subject)
    fresh = again.methods[0]
    if hasattr(fresh, "prepare"):
        fresh.prepare(again.run)
    fresh.load_state_dict(copy.deepcopy(state))
    demand(fingerprint(_plain(fresh.state_dict())) == fingerprint(_plain(state)), "load_state_dict loses state")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, Tensor | int | float | str | bool | None) else repr(type(value))
