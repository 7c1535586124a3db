"""What every loss promises."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from probatum.checks.subject import NotThisOneError, Subject, demand, fingerprint
from probatum.checks.trained import draws, exercise, neutral  # noqa: F401  (a loss is tried in a training)
from probatum.train.run import apply_loss

SHIFTS = {"large": (1e3, 0.0), "shifted": (1.0, 1e4), "tiny": (1e-6, 0.0), "confident": (50.0, 0.0)}


def check_finite_on_extreme_outputs(subject: Subject) -> None:
    """Loss and gradient stay finite on large, shifted and tiny outputs."""
    for name, (scale, shift) in SHIFTS.items():
        output, target, index = case(subject, scale=scale, shift=shift)
        output.requires_grad_()
        value = apply_loss(build(subject), output, target, index)
        (gradient,) = torch.autograd.grad(value, output)
        demand(bool(torch.isfinite(value)), f"the loss is {value.item()} on {name} outputs")
        demand(bool(torch.isfinite(gradient).all()), f"the gradient is not finite on {name} outputs")


def check_inputs_are_not_changed(subject: Subject) -> None:
    """Outputs and targets are read only."""
    output, target, index = case(subject)
    before = fingerprint([output, target, index])
    apply_loss(build(subject), output, target, index)
    demand(fingerprint([output, target, index]) == before, "the loss changed its inputs in place")


def check_dtype_is_kept(subject: Subject) -> None:
    """float64 outputs give a float64 loss."""
    output, target, index = case(subject)
    loss = build(subject).double()
    value = apply_loss(loss, output.double(), target.double() if target.is_floating_point() else target, index)
    demand(value.dtype == torch.float64, f"float64 outputs gave a {value.dtype} loss")


def check_gradient_against_finite_differences(subject: Subject) -> None:
    """float64 gradcheck, state of the loss held fixed."""
    output, target, index = case(subject, n=6)
    loss = build(subject).double()
    target = target.double() if target.is_floating_point() else target
    held = output.double().requires_grad_()

    def evaluate(z: Tensor) -> Tensor:
        return apply_loss(copy.deepcopy(loss), z, target, index)

    demand(torch.autograd.gradcheck(evaluate, (held,), raise_exception=False), "gradcheck fails in float64")


def check_better_predictions_cost_less(subject: Subject) -> None:
    """Right answers cost less than wrong ones."""
    data = subject.data()
    if data.spec.task == "reals":
        raise NotThisOneError("for classes")
    _, target, index = case(subject)
    right = 4.0 * torch.nn.functional.one_hot(target, data.spec.outputs).float()
    wrong = right.roll(1, dims=1)
    good, bad = (apply_loss(build(subject), output, target, index) for output in (right, wrong))
    demand(bool(good < bad), f"right answers cost {good.item():.4f}, wrong ones {bad.item():.4f}")


def check_state_dict_round_trip(subject: Subject) -> None:
    """A loss that was used, saved and loaded goes on as if it had not been."""
    output, target, index = case(subject)
    used, fresh = build(subject), build(subject)
    apply_loss(used, output, target, index)
    fresh.load_state_dict(copy.deepcopy(used.state_dict()))
    again: Callable[[nn.Module], Tensor] = lambda loss: apply_loss(loss, 2 * output, target, index)  # noqa: E731
    demand(torch.equal(again(used), again(fresh)), "after load_state_dict the loss differs")


def build(subject: Subject) -> nn.Module:
    """The loss at its tiny settings."""
    return subject.call(subject.data())


def case(subject: Subject, *, n: int = 24, scale: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (n, outputs), targets and positions in the training part."""
    data = subject.data()
    generator = torch.Generator().manual_seed(5)
    output = scale * torch.randn(n, data.spec.outputs, generator=generator) + shift
    index = torch.randperm(len(data.train), generator=generator)[:n]
    target = data.train.y[:, 0] if data.spec.task == "next-token" else data.train.y
    return output, target[index], index
