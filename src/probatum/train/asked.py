"""A note that rows were asked for, shared by all copies of what it is part of."""

from __future__ import annotations

from typing import Any


class Asked:
    """Whether somebody has asked; copies share it, and whoever pickles what it is part of has everything, which counts.

    Attributes:
        yes: somebody has.
    """

    def __init__(self, *, yes: bool = False) -> None:
        self.yes = yes

    def __copy__(self) -> Asked:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Asked:
        return self

    def __reduce__(self) -> Any:
        self.yes = True
        return _asked, ()


def _asked() -> Asked:
    return Asked(yes=True)
