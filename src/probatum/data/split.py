"""Splits: who trains, who validates, who tests. Parts are 0 train, 1 valid, 2 test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from probatum.errors import InputError

TRAIN, VALID, TEST = 0, 1, 2
PART_NAMES = ("train", "valid", "test")
SPLIT_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "valid": VALID,
    "val": VALID,
    "dev": VALID,
    "validation": VALID,
    "test": TEST,
    "testing": TEST,
}
GROUP_TRIES = 20


@dataclass(frozen=True)
class SplitPlan:
    """What restricts a split.

    Attributes:
        labels: (n,) class codes to stratify by, or None.
        units: (n,) numbers; rows of one unit stay on one side.
        grouped: the units are the user's groups, and may hold several classes.
        moment: (n,) position in time, or None: the latest rows test, the latest of the others validate.
        given: (n,) parts brought by the user, or None; without VALID in it, train and valid are drawn by the seed.
    """

    labels: np.ndarray | None
    units: np.ndarray
    grouped: bool = False
    moment: np.ndarray | None = None
    given: np.ndarray | None = None

    @property
    def fixed(self) -> bool:
        """Whether every seed has the same test rows."""
        return self.moment is not None or self.given is not None


def unit_numbers(keys: Iterable[bytes]) -> np.ndarray:
    """(n,) int64: rows with equal keys get the same number, counted from 0 in order of appearance."""
    seen: dict[bytes, int] = {}
    return np.fromiter((seen.setdefault(key, len(seen)) for key in keys), dtype=np.int64)


def merge_units(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Coarsest common units: rows that share a unit in `a` or in `b`, directly or through others, share one."""
    joined = a.copy()
    while True:
        before = joined
        for other in (b, a):
            least = np.full(int(other.max()) + 1, len(joined) + int(joined.max()), dtype=np.int64)
            np.minimum.at(least, other, joined)
            joined = least[other]
        if np.array_equal(before, joined):
            return np.unique(joined, return_inverse=True)[1].astype(np.int64)


def given_parts(words: Sequence[object], what: str) -> np.ndarray | None:
    """Part numbers from words such as train, dev, test; None if all say "all". Raises InputError for other words."""
    lowered = [str(word).strip().lower() for word in words]
    if set(lowered) == {"all"}:
        return None
    for row, word in enumerate(lowered):
        if word not in SPLIT_WORDS:
            raise InputError(f"{what}, row {row}: {words[row]!r} is no part; use train, valid (or dev, val) or test")
    parts = np.array([SPLIT_WORDS[word] for word in lowered], dtype=np.int64)
    for part in (TRAIN, TEST):
        if not (parts == part).any():
            raise InputError(f"{what} has no {PART_NAMES[part]} rows; mark some, or leave the split to the seed")
    return parts


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise InputError unless these are three positive shares that sum to 1."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise InputError(f"fractions {tuple(fractions)} are not three positive shares of train, valid, test with sum 1")


def draw_split(
    plan: SplitPlan, seed: int, fractions: Sequence[float], classes: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of train, valid and test, each ascending; disjoint and covering; a pure function of its arguments.

    Raises InputError where a part would be empty, or a class missing from one.
    """
    check_fractions(fractions)
    rng = np.random.Generator(np.random.PCG64(seed))
    n = len(plan.units)
    if plan.moment is not None:
        parts = _by_time(plan.moment, fractions)
    elif plan.given is not None and (plan.given == VALID).any():
        parts = plan.given
    elif plan.given is not None:
        parts = plan.given.copy()
        rest = np.flatnonzero(plan.given == TRAIN)
        labels = None if plan.labels is None else plan.labels[rest]
        shares = np.array(fractions[:2]) / sum(fractions[:2])
        parts[rest] = draw_parts(plan.units[rest], labels, plan.grouped, shares, rng, classes)
    else:
        parts = draw_parts(plan.units, plan.labels, plan.grouped, np.array(fractions), rng, classes)
    for part, name in enumerate(PART_NAMES):
        if not (parts == part).any():
            raise InputError(f"no rows are left for {name} out of {n}; bring more rows, or more groups or moments")
    if plan.labels is not None and plan.fixed:
        lacking = np.setdiff1d(plan.labels, plan.labels[parts == TRAIN])
        if len(lacking):
            raise InputError(f"class {classes[lacking[0]]!r} has no training row in this split; move or drop its rows")
    train, valid, test = (np.flatnonzero(parts == part) for part in (TRAIN, VALID, TEST))
    return train, valid, test


def _by_time(moment: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    ordered = np.sort(moment)
    n = len(ordered)
    # Rows of one moment stay together: a boundary belongs to the later part.
    valid_from = ordered[min(n - 1, round(fractions[0] * n))]
    test_from = ordered[min(n - 1, round((fractions[0] + fractions[1]) * n))]
    return np.where(moment >= test_from, TEST, np.where(moment >= valid_from, VALID, TRAIN))


def draw_parts(
    units: np.ndarray,
    labels: np.ndarray | None,
    grouped: bool,
    shares: np.ndarray,
    rng: np.random.Generator,
    classes: Sequence[str],
) -> np.ndarray:
    """Part of each row, drawn by these shares: groups, or units within each class."""
    if grouped:
        return draw_groups(units, labels, shares, rng, classes)
    if labels is None:
        return _draw_stratum(units, shares, rng)
    parts = np.zeros(len(units), dtype=np.int8)
    for code in np.flatnonzero(np.bincount(labels)):
        rows = np.flatnonzero(labels == code)
        parts[rows] = _draw_stratum(units[rows], shares, rng)
    return parts


def _draw_stratum(units: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Part of each row of one class; every part gets a row where there are units enough."""
    want = _counts(len(units), shares)
    if (units[1:] > units[:-1]).all():  # every row is a unit of its own: nothing to sort, which matters for many rows
        parts = np.zeros(len(units), dtype=np.int8)
        parts[rng.permutation(len(units))] = np.repeat(np.arange(len(shares), dtype=np.int8), want)
        return parts
    names, inverse, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    part_of = np.zeros(len(names), dtype=np.int8)
    if len(names) == len(units):
        part_of[order] = np.repeat(np.arange(len(shares), dtype=np.int8), want)
    else:
        part_of[order] = _cut_circle(sizes[order], want, rng.random())
    return part_of[inverse]


def _cut_circle(sizes: np.ndarray, want: np.ndarray, turn: float) -> np.ndarray:
    """Part of each unit: they lie on a circle, each as long as it has rows, which is cut into arcs of the wanted lengths.

    The circle is turned by chance (0 <= turn < 1), so that a unit's part does not depend on its size; parts have the
    wanted rows to within the largest unit. Every part gets a unit where there are enough, training first.
    """
    ends = np.cumsum(sizes)
    middle = (ends - sizes / 2 + turn * ends[-1]) % ends[-1]
    part = np.minimum(np.searchsorted(np.cumsum(want), middle, side="right"), len(want) - 1)
    for lacking in range(len(want)):
        held = np.bincount(part, minlength=len(want))
        giver = int(held.argmax())
        if held[lacking] == 0 and (held[giver] > 1 or lacking == TRAIN):
            own = np.flatnonzero(part == giver)
            part[own[sizes[own].argmin()]] = lacking
    return part


def _counts(n: int, shares: np.ndarray) -> np.ndarray:
    """n split by largest remainder, at least one row a part where n allows it (train first)."""
    exact = n * shares
    counts = np.floor(exact).astype(np.int64)
    for part in np.argsort(-(exact - counts), kind="stable")[: n - counts.sum()]:
        counts[part] += 1
    for part in range(len(counts)):
        if counts[part] == 0 and counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[part] += 1
    return counts


def draw_groups(
    units: np.ndarray,
    labels: np.ndarray | None,
    shares: np.ndarray,
    rng: np.random.Generator,
    classes: Sequence[str],
    needed: int = 3,
) -> np.ndarray:
    """Part of each row, whole groups at a time, with class counts as near to the shares as the groups allow.

    Every class must be in the first `needed` parts, and is in all of them where some order of the groups allows it. Where
    groups are so few that every order leaves a part without rows, the last ones fill the parts that are empty.
    """
    names, inverse = np.unique(units, return_inverse=True)
    if len(names) < len(shares):
        raise InputError(f"there are {len(names)} groups for {len(shares)} parts; bring more groups or drop --group")
    codes = np.zeros(len(units), dtype=np.int64) if labels is None else labels
    tally = np.zeros((len(names), int(codes.max()) + 1))
    np.add.at(tally, (inverse, codes), 1)
    lacking, found = np.empty(0, dtype=np.int64), None
    for attempt in range(2 * GROUP_TRIES):
        if attempt == GROUP_TRIES and found is not None:
            break
        part_of, have = _greedy_groups(tally, shares, rng, filling=attempt >= GROUP_TRIES)
        missing = (have == 0) & (tally.sum(axis=0) > 0)
        if not missing.any():
            return part_of[inverse]
        lacking = np.flatnonzero(missing[:needed].any(axis=0))
        if len(lacking) == 0 and found is None and not missing.all(axis=1).any():
            found = part_of[inverse]
    if found is not None:
        return found
    what = "the target" if labels is None else f"class {classes[lacking[0]]!r}"
    where = "training" if needed == 1 else "every part"
    raise InputError(f"the groups cannot be split so that {what} is in {where}; bring more groups or drop --group")


def _greedy_groups(
    tally: np.ndarray, shares: np.ndarray, rng: np.random.Generator, *, filling: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Part of each group, in random order to the part that is least full, and (parts, classes) rows of each class in each.

    With `filling`, groups go to the parts that are empty as soon as there are only as many groups left as such parts.
    """
    want = shares[:, None] * tally.sum(axis=0)
    have, part_of = np.zeros_like(want), np.zeros(len(tally), dtype=np.int64)
    for done, group in enumerate(rng.permutation(len(tally))):
        # How full each part would be, class by class, weighed by the group's own classes.
        filled = ((have + tally[group]) / np.maximum(want, 1e-12)) @ tally[group]
        empty = have.sum(axis=1) == 0
        if filling and len(tally) - done <= empty.sum():
            filled = np.where(empty, filled, np.inf)
        part_of[group] = part = int(np.argmin(filled))
        have[part] += tally[group]
    return part_of, have
