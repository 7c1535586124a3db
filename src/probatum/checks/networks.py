"""Toy networks after a little training, and whether a technique left one as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from probatum.checks.odd import ODD, odd, plain
from probatum.checks.subject import Subject, demand, fingerprint
from probatum.errors import InputError
from probatum.rooms.task import task
from probatum.spec import Data
from probatum.train import baselines
from probatum.train.rng import seeded

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FITTED: dict[str, nn.Module] = {}


def fitted(data: Data) -> nn.Module:
    """The baseline network after a little training on these data, in evaluation mode; a copy of one's own."""
    key = fingerprint([data.train.x, data.train.y, repr(data.spec)])
    if key not in _FITTED:
        _FITTED[key] = _fit(data)
    return copy.deepcopy(_FITTED[key])


def _fit(data: Data) -> nn.Module:
    with seeded(0, "check", "model"):
        model = baselines.build(data.spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    asked = task(data.spec.task)
    loss = asked.loss()
    with seeded(0, "check", "fit"):
        for _ in range(20):
            value = loss(*asked.as_rows(model(data.train.x), data.train.y))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def anatomy(model: nn.Module) -> list[str]:
    """Modules, parameters and the number of hooks of every kind, by name."""
    found = []
    for name, module in model.named_modules():
        found.append(f"{name} {type(module).__name__} {[len(getattr(module, kind)) for kind in HOOKS]}")
    found += [f"{name} {tuple(value.shape)} {value.requires_grad}" for name, value in model.named_parameters()]
    return found


def as_users_have_them(subject: Subject, look: Callable[[nn.Module, Data], Tensor]) -> None:
    """Demand that `look` gives the same on a network whose activations work in place as on its twin whose do not, and works, or
    refuses with words, on every other kind of `odd` network, which it leaves as it was."""
    data = subject.numbers(3, 1, 2)[0]
    shape, outputs = data.spec.shape, data.spec.outputs
    twins = [plain(shape, outputs), odd("activations in place", shape, outputs)]
    twins[0].load_state_dict(twins[1].state_dict())
    wanted, found = (look(twin.eval(), data) for twin in twins)
    demand(torch.allclose(found, wanted, atol=1e-4), "activations that work in place give another result")
    for what in ODD:
        model = odd(what, shape, outputs).eval()
        before = state_of(model, data.test.x)
        try:
            demand(bool(torch.isfinite(look(model, data)).all()), f"{what}: the result is not finite")
        except (ValueError, TypeError, InputError) as problem:
            demand(len(str(problem).split()) > 4, f"{what}: it refuses a network with {str(problem)!r}; say what to do")
        untouched(model, data.test.x, before, f": {what}")


def hooks_of(model: nn.Module) -> int:
    """How many hooks are on the model and its parts."""
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in HOOKS)


def state_of(model: nn.Module, x: Tensor) -> tuple[list[str], str, str]:
    """What `untouched` compares with."""
    return anatomy(model), fingerprint(model.state_dict()), fingerprint(x)


def untouched(model: nn.Module, x: Tensor, before: tuple[list[str], str, str], when: str) -> None:
    """Demand that model and inputs are as `before`, and that the model is in evaluation mode without gradients."""
    demand(anatomy(model) == before[0], f"hooks or modules were left on the model{when}")
    demand(fingerprint(model.state_dict()) == before[1], f"weights changed{when}")
    demand(fingerprint(x) == before[2], f"the inputs changed{when}")
    demand(all(p.grad is None for p in model.parameters()), f"gradients were left on the parameters{when}")
    demand(not model.training, f"the model's mode changed{when}")
