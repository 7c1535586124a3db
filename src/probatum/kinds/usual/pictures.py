"""How rows of a kind of data that says nothing of it are shown: places by their position."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probatum.spec import Spec


def place_names(spec: Spec) -> list[str]:
    """A name for every number of an encoded row, in the order of `x.flatten()`."""
    return [", ".join(map(str, place)) for place in itertools.product(*(range(size) for size in spec.shape))]
