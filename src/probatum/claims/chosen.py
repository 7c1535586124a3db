"""Which claims are run on which seeds, and what is told about it meanwhile."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator, Sequence

from probatum.claims.base import Claim
from probatum.claims.fingerprint import claim_module
from probatum.errors import InputError

MOST_SEEDS = 1000


def claims_of(name: str) -> tuple[Claim, ...]:
    """The claims of a technique, from ``claims/<slot>/<name>.py``; InputError where it brings none."""
    module = claim_module(name)
    try:
        return tuple(importlib.import_module(module).CLAIMS)
    except ModuleNotFoundError as problem:
        if problem.name != module:
            raise
        raise InputError(f"{name} has no claim file; expected {module.replace('.', '/')}.py") from problem


def choose(names: Sequence[str], claim: str | None = None) -> list[tuple[str, Claim]]:
    """All claims of these techniques, or the one with this id.

    Args:
        names: techniques.
        claim: id of one claim; then there must be one technique.

    Raises:
        InputError: no such technique or claim, or an id and several techniques.
    """
    found = [(name, its) for name in names for its in claims_of(name)]
    if claim is None:
        return found
    if len(names) != 1:
        raise InputError(f"--claim {claim} is one technique's; name that technique, and no other")
    one = [(name, its) for name, its in found if its.id == claim]
    if not one:
        raise InputError(f"{names[0]} has no claim {claim!r}; it has {', '.join(its.id for _, its in found)}")
    return one


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds from ``1-5``, ``1,2,7`` or ``1-3,7``; InputError for anything else, seeds said twice, and too many."""
    found: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", piece)
        if match is None:
            raise InputError(f"--seeds {text!r}: cannot read {piece.strip()!r}; write e.g. 1-5 or 1,2,7")
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first:
            raise InputError(f"--seeds {text!r}: {piece.strip()} goes down; write {last}-{first}")
        if len(found) + last - first >= MOST_SEEDS:
            raise InputError(f"--seeds {text!r} are more than {MOST_SEEDS} seeds; name fewer")
        found += range(first, last + 1)
    twice = sorted({seed for seed in found if found.count(seed) > 1})
    if twice:
        raise InputError(f"--seeds {text!r} says {seeds_in_words(twice)} twice; name every seed once")
    return tuple(found)


def seeds_in_words(seeds: Sequence[int]) -> str:
    """``101-105``, or ``1, 2, 7``: runs of three and more as ranges."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    pieces = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(pieces)


def minutes_of(claim: Claim, seeds: Sequence[int]) -> float:
    """Roughly how long a claim takes on these seeds."""
    return claim.minutes * len(seeds) / len(claim.seeds)


def in_turn(
    chosen: Sequence[tuple[str, Claim]], seeds: Sequence[int] | None
) -> Iterator[tuple[str, Claim, tuple[int, ...], str]]:
    """Each claim with its seeds (None = its own) and a line that says how far the work has come."""
    start = time.monotonic()
    for k, (name, claim) in enumerate(chosen, 1):
        its = tuple(seeds or claim.seeds)
        passed = int(time.monotonic() - start)
        yield (
            name,
            claim,
            its,
            f"claim {k} of {len(chosen)}: {name}/{claim.id} on seeds {seeds_in_words(its)}, "
            f"about {minutes_of(claim, its):.2g} min; {passed // 60}:{passed % 60:02d} passed",
        )
