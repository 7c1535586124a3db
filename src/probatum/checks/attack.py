"""What every attack promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum.checks.networks import as_users_have_them, fitted, state_of, untouched
from probatum.checks.odd import odd
from probatum.checks.subject import Subject, demand
from probatum.spec import Data
from probatum.train.loop import outputs


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Tensor:
    """Changed inputs of a few rows."""
    data = subject.data()
    model, x = fitted(data), data.test.x[:6]
    return subject.call(data, settings, model=model, inputs=x, target=outputs(model, x).argmax(dim=1))


def neutral(subject: Subject, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The inputs, and what it makes of them."""
    return subject.data().test.x[:6], exercise(subject, settings)


def check_changes_answers(subject: Subject) -> None:
    """Most rows get another answer, at finite inputs of the same shape, for every modality it takes."""
    for modality in subject.modalities():
        data = subject.data(modality=modality)
        model = fitted(data)
        x = data.test.x[:16]
        y = outputs(model, x).argmax(dim=1)
        changed = subject.call(data, {}, model=model, inputs=x, target=y)
        demand(
            changed.shape == x.shape and bool(torch.isfinite(changed).all()),
            f"{modality}: not finite, or another shape",
        )
        flipped = (outputs(model, changed).argmax(dim=1) != y).float().mean().item()
        demand(flipped >= 0.8, f"{modality}: only {flipped:.0%} of answers changed")


def check_exact_on_a_linear_model(subject: Subject) -> None:
    """On an affine classifier no answer changes at less than the distance to the boundary."""
    data = subject.data()
    generator = torch.Generator().manual_seed(4)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(data.test.x[0].numel(), 3)).eval()
    with torch.no_grad():
        linear[1].weight.copy_(torch.randn(linear[1].weight.shape, generator=generator))
    x = data.test.x[:8]
    z = outputs(linear, x)
    y = z.argmax(dim=1)
    changed = subject.call(data, {}, model=linear, inputs=x, target=y)
    w = linear[1].weight.detach()
    gaps = (z.gather(1, y[:, None]) - z) / (w[y][:, None, :] - w[None]).norm(dim=2).clamp_min(1e-12)
    gaps.scatter_(1, y[:, None], float("inf"))
    moved = (changed - x).flatten(1).norm(dim=1)
    flipped = outputs(linear, changed).argmax(dim=1) != y
    demand(
        bool((moved[flipped] >= gaps.amin(dim=1)[flipped] * (1 - 1e-3)).all()),
        "an answer changed below the exact distance",
    )


def check_leaves_the_model_alone(subject: Subject) -> None:
    """No hooks, gradients or changed modes, weights or inputs."""
    data = subject.data()
    model = fitted(data)
    x = data.test.x[:4].clone()
    before = state_of(model, x)
    subject.call(data, model=model, inputs=x, target=outputs(model, x).argmax(dim=1))
    untouched(model, x, before, "")


def check_masked_steps_are_left_alone(subject: Subject) -> None:
    """Of a masked series neither the mask nor what stands at padding is changed."""
    data = subject.numbers(2)[0]
    channels, time = data.spec.shape
    mask = torch.ones(4, 1, time)
    mask[:, :, 3 * time // 4 :] = 0
    x = torch.cat([data.test.x[:4] * mask, mask], dim=1)
    spec = replace(data.spec, shape=(channels + 1, time), masked=True)
    model = odd("activations in place", spec.shape, spec.outputs).eval()
    y = outputs(model, x).argmax(dim=1)
    changed = subject.call(replace(data, spec=spec), model=model, inputs=x.clone(), target=y)
    held = torch.cat([(mask == 0).expand(4, channels, time), torch.ones(4, 1, time, dtype=torch.bool)], dim=1)
    demand(torch.equal(changed[held], x[held]), "it changes the mask, or steps that are masked")


def check_networks_as_users_have_them(subject: Subject) -> None:
    """In-place activations change nothing; other odd networks are attacked or refused with words, and left alone."""
    for settings in subject.variants():

        def look(model: nn.Module, data: Data, settings: Mapping[str, Any] = settings) -> Tensor:
            y = outputs(model, data.test.x[:4]).argmax(dim=1)
            return subject.call(data, settings, model=model, inputs=data.test.x[:4].clone(), target=y).detach()

        as_users_have_them(subject, look)
