"""What every optimizer promises."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum import inject
from probatum.checks.subject import Subject, demand, fingerprint
from probatum.checks.trained import draws, exercise, neutral  # noqa: F401  (tried in a training)
from probatum.train.loop import wants_closure
from probatum.train.rng import seeded


def check_fits_a_line(subject: Subject) -> None:
    """A small regression's loss falls below a fifth of its start."""
    model, optimizer, x, y = setting(subject)
    start = F.mse_loss(model(x), y).item()
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = group.get("initial_lr", 0.02) * (1 - step / 300)
        step_once(model, optimizer, x, y)
    end = F.mse_loss(model(x), y).item()
    demand(end < 0.2 * start, f"after 300 steps the loss went from {start:.4f} to {end:.4f}")


def check_resume_reproduces_the_trajectory(subject: Subject) -> None:
    """Save after five steps, load into a new optimizer, go on: the same weights bit for bit."""
    model, optimizer, x, y = setting(subject)
    for _ in range(5):
        step_once(model, optimizer, x, y)
    other, resumed, _, _ = setting(subject)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        step_once(model, optimizer, x, y)
        step_once(other, resumed, x, y)
    demand(fingerprint(model.state_dict()) == fingerprint(other.state_dict()), "the resumed run leaves the old track")


def check_frozen_and_unused_parameters_are_untouched(subject: Subject) -> None:
    """Parameters without a gradient stay as they are."""
    model, optimizer, x, y = setting(subject)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = model[0].weight.requires_grad_(False)
    step_once(model, optimizer, x, y)
    demand(torch.equal(frozen, before["0.weight"]), "a parameter without gradient was changed")
    demand(not torch.equal(model[2].weight, before["2.weight"]), "a parameter with a gradient was not changed")


def check_half_precision_weights(subject: Subject) -> None:
    """Weights in bfloat16 and float64 are moved as float32 ones are, as far as the type holds it, and stay of their type."""
    ends = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, _, x, y = setting(subject)
        model.to(dtype)
        optimizer = _for(subject, model)
        for _ in range(3):
            step_once(model, optimizer, x.to(dtype), y.to(dtype))
        ends[dtype] = torch.cat([p.detach().double().flatten() for p in model.parameters()])
        demand(all(p.dtype == dtype for p in model.parameters()), f"weights of {dtype} have another type afterwards")
    for dtype, close in ((torch.float64, 1e-3), (torch.bfloat16, 0.05)):
        gap = float((ends[dtype] - ends[torch.float32]).norm() / ends[torch.float32].norm())
        demand(gap <= close, f"after 3 steps {dtype} weights are {gap:.1%} off float32's")


def check_gradients_that_are_missing(subject: Subject) -> None:
    """Several groups, weights without a gradient in one step and with one in the next, and a step that has none at all."""
    model, _, x, y = setting(subject)
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 1e-3}]
    if hasattr(subject.entry, "for_model"):
        optimizer = _for(subject, model)
    else:
        optimizer = inject.call(
            subject.name, subject.entry, {"lr": 0.02, **subject.card.tiny}, {"model": model}, params=groups
        )
    if not wants_closure(optimizer):
        optimizer.zero_grad()
        optimizer.step()
    before = fingerprint(list(model[0].parameters()))

    def half() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model[2](model[1](model[0](x).detach())), y)
        loss.backward()
        return loss

    half()
    optimizer.step(half if wants_closure(optimizer) else None)  # type: ignore[arg-type]
    demand(fingerprint(list(model[0].parameters())) == before, "weights without a gradient were moved")
    step_once(model, optimizer, x, y)
    demand(all(bool(torch.isfinite(p).all()) for p in model.parameters()), "weights are not finite")


def check_closure_is_called(subject: Subject) -> None:
    """`step(closure)` evaluates the closure and returns its loss."""
    model, optimizer, x, y = setting(subject)
    closure = looks(model, optimizer, x, y)
    closure()  # as in the loop, where the batch's own pass comes first
    demand(optimizer.step(closure) is not None, "step(closure) must return the closure's loss")


def setting(subject: Subject) -> tuple[nn.Sequential, torch.optim.Optimizer, Tensor, Tensor]:
    """A two-layer network on a smooth target, and the optimizer at its tiny settings."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(128, 6, generator=generator)
    y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]
    with seeded(3, "check", "optimizer"):
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
    return model, _for(subject, model), x, y


def _for(subject: Subject, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer at its tiny settings over a model's weights."""
    entry, settings = subject.entry, {"lr": 0.02, **subject.card.tiny}
    if hasattr(entry, "for_model"):
        return inject.call(subject.name, entry.for_model, settings, {"model": model})
    return inject.call(subject.name, entry, settings, {"model": model}, params=list(model.parameters()))


def looks(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """What finds gradients at the weights as they are, and returns the loss."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    return closure


def step_once(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One full-batch update, with a closure where the optimizer wants one."""
    closure = looks(model, optimizer, x, y)
    closure()
    if wants_closure(optimizer):
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        optimizer.step()
