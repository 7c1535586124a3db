"""What every explainer promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probatum.checks.networks import as_users_have_them, fitted, state_of, untouched
from probatum.checks.subject import Subject, demand
from probatum.spec import Data, Explanation
from probatum.train.loop import outputs


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Tensor:
    """Values for a few rows."""
    return explained(subject, None, settings)[0].values


class _BrokenModel(nn.Module):
    """A network that works a few times and then raises."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("broken on purpose")
        return self.inner(x)


def check_values_have_the_inputs_shape(subject: Subject) -> None:
    """One finite number for every input number, for every modality it takes."""
    for modality in subject.modalities():
        found, x = explained(subject, modality)
        demand(
            found.values.shape == x.shape, f"{modality}: values {tuple(found.values.shape)} for inputs {tuple(x.shape)}"
        )
        demand(bool(torch.isfinite(found.values).all()), f"{modality}: values are not finite")
        demand(bool(found.values.abs().sum() > 0), f"{modality}: every value is 0")


def check_completeness_if_claimed(subject: Subject) -> None:
    """A returned gap is small against the values."""
    found, _ = explained(subject, None, settings={})
    if found.gap is None:
        return
    size = found.values.flatten(1).abs().sum(dim=1)
    worst = (found.gap.abs() / size.clamp_min(1e-6)).max().item()
    demand(worst < 0.05, f"the completeness gap is {worst:.1%} of the values' size")


def check_linear_model_is_explained_exactly(subject: Subject) -> None:
    """A one-unit change of a linear model's inputs is ranked by weight times input."""
    data = subject.data(modality="image" if "image" in subject.modalities() else None)
    generator = torch.Generator().manual_seed(2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(data.test.x[0].numel(), 3)).eval()
    with torch.no_grad():
        linear[1].weight.copy_(torch.randn(linear[1].weight.shape, generator=generator))
    x, y = data.test.x[:4], torch.tensor([0, 1, 2, 0])
    found = subject.call(data, model=linear, inputs=x, target=y)
    expected = (linear[1].weight[y] * x.flatten(1)).view_as(x).detach()
    close = torch.allclose(found.values.detach(), expected, atol=1e-4) or found.gap is None
    demand(close, "on a linear model, from a zero baseline, contributions must be weight times input")


def check_leaves_the_model_alone(subject: Subject) -> None:
    """No hooks, gradients or changed modes, weights or inputs; also when the model raises."""
    data = subject.data()
    model = fitted(data)
    x, y = data.test.x[:4].clone(), torch.zeros(4, dtype=torch.int64)
    before = state_of(model, x)
    subject.call(data, model=model, inputs=x, target=y)
    untouched(model, x, before, "")
    broken = _BrokenModel(model).eval()
    try:
        subject.call(data, model=broken, inputs=x, target=y)
    except Exception as problem:  # whatever it raises, the model must be clean
        demand(
            "broken on purpose" in f"{problem}{problem.__cause__}" or broken.calls < 2,
            f"an error hid the model's own: {problem}",
        )
    untouched(model, x, before, " after the model raised")


def check_networks_as_users_have_them(subject: Subject) -> None:
    """In-place activations change nothing; other odd networks are explained or refused with words, and left alone; at every
    tuned value."""
    for settings in subject.variants():

        def look(model: nn.Module, data: Data, settings: Mapping[str, Any] = settings) -> Tensor:
            y = outputs(model, data.test.x[:4]).argmax(dim=1)
            return subject.call(data, settings, model=model, inputs=data.test.x[:4], target=y).values.detach()

        as_users_have_them(subject, look)


def explained(
    subject: Subject, modality: str | None, settings: Mapping[str, Any] | None = None
) -> tuple[Explanation, Tensor]:
    """An explanation of a few rows of a trained toy network."""
    data = subject.data(modality=modality)
    model = fitted(data)
    x = data.test.x[:6]
    return subject.call(data, settings, model=model, inputs=x, target=outputs(model, x).argmax(dim=1)), x
