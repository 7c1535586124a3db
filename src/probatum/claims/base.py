"""What a claim is: a paper's headline as a small study with a threshold, and the evidence it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SEEDS = (101, 102, 103, 104, 105)
"""Seeds that claims run on. Whatever needed choosing was chosen on seeds below 100."""


@dataclass(frozen=True)
class Evidence:
    """What one run of a claim measured.

    Attributes:
        holds: whether the paper's headline met its threshold.
        measured: named numbers: means, shares of seeds, intervals.
        rows: one mapping a seed or a dataset, for the record.
        note: one or two sentences on what was found wrong in the threshold, or how the set-up differs from the paper's.
        controls: what must be so for the headline to mean something (a null that fails, a rival that trained), and whether
            it was; recorded beside the headline, which a control that fails does not unsay.
    """

    holds: bool
    measured: dict[str, float]
    rows: tuple[Mapping[str, float | str], ...] = ()
    note: str = ""
    controls: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A runnable claim.

    Attributes:
        id: kebab-case, also named in the technique's card.
        says: the paper's claim in one sentence.
        threshold: what must be measured for it to count as reproduced.
        data: which data it runs on.
        run: seeds -> evidence.
        minutes: roughly how long it takes on two cores.
        needs_library: whether it reads datasets under PROBATUM_DATA.
        seeds: what it runs on by default.
    """

    id: str
    says: str
    threshold: str
    data: str
    run: Callable[[Sequence[int]], Evidence]
    minutes: float = 1.0
    needs_library: bool = False
    seeds: tuple[int, ...] = field(default=SEEDS)
