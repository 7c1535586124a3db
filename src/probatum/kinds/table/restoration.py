"""Tables in arena generate: their numbers alone, each column in units of its spread; columns have no order."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from probatum.errors import InputError
from probatum.spec import Spec


def check(spec: Spec) -> None:
    """InputError where there are fewer than two columns of numbers."""
    if spec.numeric < 2:
        raise InputError(
            f"arena generate restores a table's numbers; it needs 2 columns of them, there are {spec.numeric}"
        )


def modelled(spec: Spec, x: Tensor) -> tuple[Spec, Tensor]:
    """The numbers; codes are left out."""
    numbers = replace(spec, shape=(spec.numeric,), cardinalities=(), features=spec.features[: spec.numeric])
    return numbers, x[:, : spec.numeric]
