"""What worlds do with a kind of data that says nothing of it: numbers of one shape, without marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probatum.errors import InputError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from probatum.spec import Data, Part, Spec


def marked_spec(spec: Spec) -> Spec:
    """The description of rows that carry the mark of a class; InputError where there is no room for one a class."""
    raise InputError(f"world spurious puts no marks on {spec.modality} data; use another world")


def marked(part: Part, codes: Tensor, spec: Spec) -> Part:
    """Rows with the marks of these classes; `spec` is that of the rows as they come."""
    raise InputError(f"world spurious puts no marks on {spec.modality} data; use another world")


def shuffled(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """Test rows (x, texts) of which each number comes from a random other row."""
    x = data.test.x
    flat = x.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(dim=0)
    return flat.gather(0, order).view(x.shape), None


def noise(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """As many rows as test rows, of standard normal numbers."""
    return torch.randn(data.test.x.shape, generator=generator), None


def check_other_set(spec: Spec, world: str) -> None:
    """InputError where rows of another set of the same kind cannot stand beside these."""


def texts_of(raw: Any) -> tuple[str, ...] | None:
    """The strings of raw rows, where they are texts."""
    return None
