"""A user's own network as the baseline: fresh weights for every seed, and an identity for the trials' keys."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from probatum.errors import InputError
from probatum.rooms.arena import ModelFactory
from probatum.spec import Spec


def own_model(model: nn.Module | Callable[..., nn.Module]) -> tuple[ModelFactory, str]:
    """A factory and an identity for a user's network.

    Args:
        model: a module, whose copies get fresh weights from every seed by `reset_parameters`; or a function of no
            argument or of the `Spec` that builds one.

    Raises:
        InputError: the module holds parameters that it cannot draw afresh, or `model` is neither.
    """
    if isinstance(model, nn.Module):
        _check_resettable(model)
        return lambda spec: _fresh_copy(model), _identity(model)
    if not callable(model):
        raise InputError(f"model is a {type(model).__name__}; give an nn.Module or a function that builds one")
    takes_spec = len(inspect.signature(model).parameters) > 0

    def build(spec: Spec) -> nn.Module:
        built = model(spec) if takes_spec else model()
        if not isinstance(built, nn.Module):
            raise InputError(f"the model function returned a {type(built).__name__}; it must return an nn.Module")
        return built

    return build, _source(model)


def _fresh_copy(model: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(model)
    for module in fresh.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return fresh.train()


def _check_resettable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        holds = any(True for _ in module.parameters(recurse=False))
        if holds and not callable(getattr(module, "reset_parameters", None)):
            raise InputError(
                f"{type(module).__name__} ({name or 'the model'}) has parameters but no reset_parameters(), so seeds "
                "cannot start from fresh weights; give a function that builds the model instead: model=lambda: MyNet()"
            )


def _identity(model: nn.Module) -> str:
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    return hashlib.sha256(f"{model!r}{shapes}{_source(type(model))}".encode()).hexdigest()[:16]


def _source(thing: Any) -> str:
    try:
        text = inspect.getsource(thing)
    except (OSError, TypeError):
        text = repr(getattr(thing, "__qualname__", thing))
    return hashlib.sha256(f"{text}{torch.__version__}".encode()).hexdigest()[:16]
