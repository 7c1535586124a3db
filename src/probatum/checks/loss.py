"""What every loss promises."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

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


def check_half_precision_and_double(subject: Subject) -> None:
    """Value and gradient of half precision outputs are those of the same numbers in float32, as far as half precision holds
    them; float64 and float32 agree. At every tuned value, after a few visits of the rows."""
    for settings in subject.variants():
        for kind, scale in (("usual", 1.0), ("confident", 9.0)):
            for dtype, close in ((torch.float64, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)):
                output, target, index = case(subject, scale=scale)
                output = output.to(dtype) if dtype != torch.float64 else output
                wanted = _visited(subject, settings, output.float(), target, index)
                found = _visited(subject, settings, output.to(dtype), target, index)
                for what, a, b in zip(("value", "gradient"), found, wanted, strict=True):
                    if dtype != torch.float64 and float(b.abs().max()) > torch.finfo(dtype).max / 2:
                        continue  # no number of this type
                    gap = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-6))
                    demand(
                        gap <= close,
                        f"{_told(subject, settings)}: the {what} on {kind} {dtype} outputs is {gap:.1%} off float32's; "
                        "widen outputs first (numerics.tensors.precision)",
                    )


def check_rows_are_rows(subject: Subject) -> None:
    """One row works, the order of rows does not matter, rows that are not contiguous are the same rows."""
    for settings in subject.variants():
        output, target, index = case(subject)
        told = _told(subject, settings)
        one = apply_loss(build(subject, settings), output[:1], target[:1], index[:1])
        demand(bool(torch.isfinite(one)), f"{told}: the loss of one row is {one.item()}")
        wanted = apply_loss(build(subject, settings), output, target, index)
        spread = torch.stack([output, output], dim=2).flatten(1)[:, ::2]  # the same numbers, two apart in memory
        found = apply_loss(build(subject, settings), spread, target, index)
        demand(torch.allclose(found, wanted, atol=1e-6), f"{told}: outputs that are not contiguous give another loss")
        turned = torch.arange(len(output)).flip(0)
        found = apply_loss(build(subject, settings), output[turned], target[turned], index[turned])
        demand(torch.allclose(found, wanted, atol=1e-5), f"{told}: the order of rows changes the loss")


def check_targets_that_do_not_fit(subject: Subject) -> None:
    """Missing labels (-100) are left out, as cross-entropy leaves them out, or refused; other negative and too large labels
    are refused; so are real targets of another shape."""
    output, target, index = case(subject)
    if target.is_floating_point():
        for other in (target[:, 0], target[:, :, None]):
            _refused(subject, output, other, index, f"outputs {tuple(output.shape)} with targets {tuple(other.shape)}")
        return
    for bad in (-1, output.shape[1]):
        other = target.clone()
        other[3] = bad
        _refused(subject, output, other, index, f"a label {bad} of {output.shape[1]} classes")
    other, kept = target.clone(), torch.arange(len(target)) >= 4
    other[~kept] = -100
    try:
        found = apply_loss(build(subject), output, other, index)
    except (ValueError, TypeError, IndexError):
        return
    wanted = apply_loss(build(subject), output[kept], target[kept], index[kept])
    demand(
        torch.allclose(found, wanted, atol=1e-5),
        f"with four labels of -100 the loss is {found.item():.5f}, of the other rows alone {wanted.item():.5f}; leave such "
        "rows out or refuse them",
    )


def check_copies_and_pickles(subject: Subject) -> None:
    """A loss that was used can be copied and pickled, and the copy goes on as the original does."""
    output, target, index = case(subject)
    used = build(subject)
    apply_loss(used, output, target, index)
    twins = [copy.deepcopy(used), pickle.loads(pickle.dumps(used))]
    wanted = apply_loss(used, 2 * output, target, index)
    for twin, how in zip(twins, ("deep copy", "pickled copy"), strict=True):
        demand(torch.equal(apply_loss(twin, 2 * output, target, index), wanted), f"a {how} gives another loss")


def build(subject: Subject, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """The loss at its tiny settings, or these."""
    return subject.call(subject.data(), settings)


def _visited(
    subject: Subject, settings: Mapping[str, Any], output: Tensor, target: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and gradient at the third visit of the same rows: what a loss keeps a row counts then."""
    loss = build(subject, settings)
    if output.dtype == torch.float64:
        loss = loss.double()
    target = target.to(output.dtype) if target.is_floating_point() else target
    for _ in range(2):
        apply_loss(loss, output, target, index)
    held = output.clone().requires_grad_()
    value = apply_loss(loss, held, target, index)
    (gradient,) = torch.autograd.grad(value, held)
    return value.detach(), gradient


def _refused(subject: Subject, output: Tensor, target: Tensor, index: Tensor, what: str) -> None:
    try:
        value = apply_loss(build(subject), output, target, index)
    except (ValueError, TypeError, IndexError, RuntimeError):
        return
    demand(False, f"{what} were taken, with a loss of {value.item():.5f}; raise an error that names both")


def _told(subject: Subject, settings: Mapping[str, Any]) -> str:
    tiny = subject.card.tiny
    return ", ".join(f"{k}={v!r}" for k, v in settings.items() if k not in tiny or tiny[k] != v) or "tiny settings"


def case(subject: Subject, *, n: int = 24, scale: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (n, outputs), targets and positions in the training part."""
    data = subject.data()
    generator = torch.Generator().manual_seed(5)
    output = scale * torch.randn(n, data.spec.outputs, generator=generator) + shift
    index = torch.randperm(len(data.train), generator=generator)[:n]
    target = data.train.y[:, 0] if data.spec.task == "next-token" else data.train.y
    return output, target[index], index
