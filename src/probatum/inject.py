"""Build a technique's object from its settings and what the bench has to offer.

Techniques are plain classes and functions. Those that need something only the training run knows ask for it by the
name of a parameter; the names below are what every slot may offer:

===================  ==================================================================
spec                 the `probatum.spec.Spec` of the data
num_classes          number of classes (or real targets)
num_examples         rows in the training part
total_steps          gradient steps the trial will take
steps_per_epoch      gradient steps in one pass
batch_size           examples a step
generator            the technique's own `torch.Generator`, from (seed, technique id)
model                the model about to be trained
last_layer           that model's last `nn.Linear` or convolution
model_factory        zero-argument function: a fresh model, initialised from the technique's own stream (arena stream: the
                     first one has the baseline's initial weights)
pretrained           whether the model starts from pretrained weights (its last layer is new)
===================  ==================================================================

Slots offer more; their contracts say what (`OFFERED`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from probatum import slots
from probatum.errors import InputError

COMMON = (
    "spec",
    "num_classes",
    "num_examples",
    "total_steps",
    "steps_per_epoch",
    "batch_size",
    "generator",
    "model",
    "last_layer",
    "model_factory",
    "pretrained",
)


@cache
def vocabulary() -> frozenset[str]:
    """Every name that some slot offers."""
    return frozenset(COMMON).union(*(slots.offered(slot) for slot in slots.names()))


def settings_of(entry: Callable[..., Any], fixed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The parameters a user may set, with their defaults (`inspect.Parameter.empty` where there is none)."""
    parameters = inspect.signature(entry).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.name not in (*vocabulary(), *fixed, "self")
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def check_settings(
    name: str, entry: Callable[..., Any], settings: Mapping[str, Any], fixed: tuple[str, ...] = ()
) -> None:
    """InputError for a setting that `entry` does not have; `fixed` are the arguments the slot itself passes."""
    known = settings_of(entry, fixed)
    for setting in settings:
        if setting not in known:
            has = ", ".join(f"{key}={value!r}" for key, value in known.items() if value is not inspect.Parameter.empty)
            raise InputError(f"{name} has no setting {setting!r}; it has {has or 'none'}")


def call(
    name: str,
    entry: Callable[..., Any],
    settings: Mapping[str, Any],
    offer: Mapping[str, Any],
    **fixed: Any,
) -> Any:
    """Call `entry` with the slot's own arguments, the user's settings, and what it asks of the vocabulary."""
    check_settings(name, entry, settings, tuple(fixed))
    wanted = inspect.signature(entry).parameters
    offered = {key: value for key, value in offer.items() if key in wanted and key not in settings}
    missing = [
        key
        for key, parameter in wanted.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in offered
        and key not in settings
        and key not in fixed
    ]
    if missing:
        raise InputError(f"{name} needs {', '.join(missing)}; give it as a setting, e.g. {name}({missing[0]}=...)")
    try:
        return entry(**fixed, **settings, **offered)
    except (ValueError, TypeError, KeyError) as problem:
        raise InputError(f"{name}: {problem}") from problem
