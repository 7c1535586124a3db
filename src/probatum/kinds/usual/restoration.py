"""What arena generate asks of a kind of data that says nothing of it: rows of numbers without neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probatum.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from probatum.spec import Spec

NOISE = 0.3
"""Standard deviation of the noise, in standard deviations of a column or channel (of images: of black to white)."""

NEIGHBOURS = False
"""Whether places of a row have neighbours, so that blur and total variation mean something."""


def check(spec: Spec) -> None:
    """InputError where such rows cannot be restored."""
    raise InputError(f"arena generate restores rows of numbers; {spec.modality} data are none it knows")


def modelled(spec: Spec, x: Tensor) -> tuple[Spec, Tensor]:
    """What of the rows is modelled, and its spec."""
    return spec, x


def units_over(spec: Spec) -> tuple[int, ...]:
    """Dimensions over which the training rows' mean and spread become the unit; () = values keep their own."""
    return (0,)
