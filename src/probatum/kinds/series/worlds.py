"""What worlds do with series: a raised stretch as the mark of a class; masks stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from probatum.errors import InputError
from probatum.kinds.usual import worlds as usual
from probatum.spec import Data, Part, Spec

OFFSET = 1.5
"""What is added to the marked stretch, in deviations of its channel."""


def marked_spec(spec: Spec) -> Spec:
    """The description, which stays as it is; InputError where there are fewer steps than classes."""
    if spec.shape[1] < spec.outputs:
        raise InputError(f"series of {spec.shape[1]} steps have no room for the marks of {spec.outputs} classes")
    return spec


def marked(part: Part, codes: Tensor, spec: Spec) -> Part:
    """Series whose first channel lies higher in the stretch, of as many as there are classes, that `codes` says."""
    x, n = part.x.clone(), len(part)
    length = x[:, -1].sum(dim=1, keepdim=True) if spec.masked else torch.full((n, 1), float(x.shape[2]))
    step = torch.arange(x.shape[2], dtype=torch.float32)[None]
    stretch = (step * spec.outputs / length.clamp_min(1)).floor() == codes[:, None]
    seen = x[:, -1] if spec.masked else torch.ones_like(x[:, 0])
    x[:, 0] += OFFSET * stretch * seen
    return replace(part, x=x)


def shuffled(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """Series of which each value comes from a random other one; the mask stays."""
    if not data.spec.masked:
        return usual.shuffled(data, generator)
    mask = data.test.x[:, -1:]
    values = replace(data.test, x=data.test.x[:, :-1])
    mixed, _ = usual.shuffled(replace(data, test=values), generator)
    return torch.cat([mixed * mask, mask], dim=1), None


def noise(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """As many series as test rows, of normal numbers; the mask stays."""
    x = data.test.x
    drawn = torch.randn(x.shape, generator=generator)
    return (torch.cat([drawn[:, :-1] * x[:, -1:], x[:, -1:]], dim=1) if data.spec.masked else drawn), None
