"""What a corruption is, and what those of all kinds of data share: severities and draws.

A corruption takes encoded x (see `probatum.spec`), its Spec, a severity 1 .. 5 and a torch.Generator (on the CPU), and
returns a new tensor of the same shape and type. After Hendrycks and Dietterich (2019, arXiv:1903.12261).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from probatum.errors import InputError
from probatum.rooms.kind import kind_of
from probatum.spec import Spec

Corruption = Callable[[Tensor, Spec, int, Generator], Tensor]


def level(severity: int, levels: tuple[float, ...]) -> float:
    """The number that goes with a severity; InputError where it is none of 1 .. 5."""
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"severity is {severity!r}; use an integer from 1 to 5")
    return levels[severity - 1]


def uniform(shape: tuple[int, ...], x: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers where x is, drawn on the CPU."""
    return torch.rand(shape, generator=generator).to(x.device)


def normal(shape: tuple[int, ...], x: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers where x is, drawn on the CPU."""
    return torch.randn(shape, generator=generator).to(x.device)


def corruptions(spec: Spec) -> Mapping[str, Corruption]:
    """The corruptions that can change examples of this spec, by name."""
    return kind_of(spec.modality, spec.task).facet("corruptions").corruptions(spec)
