"""Splits of the bench: repeated folds, in which every row is tested equally often.

Seed s tests fold s mod K of repeat s div K, K = floor(1 / test share). Units are single rows, copies of a row, or the
user's groups; they stay whole. What a fold does not test is drawn to training and validation by the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probatum.data.split import (
    GROUP_TRIES,
    PART_NAMES,
    TEST,
    TRAIN,
    VALID,
    SplitPlan,
    check_fractions,
    draw_groups,
    draw_parts,
    draw_split,
)
from probatum.errors import InputError

MOST_TESTED = 0.5
VALID_SHARE = 0.2
VALID_OF_REST = 0.25
"""Validation takes a fifth of all rows, but never more than this share of what is not tested."""
IDLE = -1
EVEN_WITHIN = 0.02
"""Where copies of one row are more than this share of the rows, parts are not made equally large for every seed."""
FOLDS, RESTING = 1, 2
"""Streams of random numbers: the folds of a repeat, and the order in which units are left out of a repeat."""
GROUP_STEPS = 4000
"""Groups placed at most in the search for the most even folds."""


def fractions_of(holdout: float) -> tuple[float, float, float]:
    """Shares of train, valid and test for this share of test rows.

    Validation takes a fifth of all rows, at most a quarter of what is not tested: 0.1 -> (0.7, 0.2, 0.1),
    0.2 -> (0.6, 0.2, 0.2), 0.4 -> (0.45, 0.15, 0.4). Raises InputError unless 0 < holdout <= 0.5.
    """
    if not 0 < holdout <= MOST_TESTED:
        raise InputError(
            f"holdout is {holdout:g}; give a share of the rows above 0 and at most {MOST_TESTED}, e.g. 0.2"
        )
    valid = round(min(VALID_SHARE, VALID_OF_REST * (1 - holdout)), 12)
    return round(1 - holdout - valid, 12), valid, holdout


def fold_count(units: int, share: float) -> int:
    """How many folds a repeat has: floor(1 / share), but no more than there are units, so that none is empty."""
    return max(2, min(int(1 / share + 1e-9), units))


def draw_folds(
    plan: SplitPlan, seed: int, fractions: Sequence[float], classes: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of train, valid and test, each ascending and disjoint; a pure function of its arguments.

    In the K seeds of a repeat every unit is tested once. Where K folds of that share do not make up all rows (a share of
    0.3: three folds and a tenth of the rows that is not tested), each repeat leaves out the next units of a fixed random
    order, so that after any number of repeats the counts of two units differ by at most 1. Units are drawn within each
    class, so that every fold has a class's share to within a unit; groups of the user are placed so that class counts
    come as near as groups allow.

    Training has every class. A class with fewer units than there are folds is missing from the test rows of some of them
    (three rows in five folds: two test none), or else its rows would be tested more often than others; validation rows
    may lack a class only where one unit of it is left to train on. A class of a single unit is trained on by every seed
    and never tested: one that is to be predicted cannot be learned from nothing. (Data sets are refused before, where a
    class has fewer than three rows.) A class of a single group of the user is refused.

    All seeds train and validate on the same numbers of rows where single rows can even them out, so that they can be
    trained as one computation: a row, or as many as the largest group of copies has, may then be in no part. With given
    test rows and splits by time this is `probatum.data.split.draw_split`.

    Args:
        plan: what restricts the split.
        seed: 0 or more.
        fractions: shares of train, valid, test; the last is at most 0.5.
        classes: names of the classes, for errors.

    Raises:
        InputError: fractions that cannot be; a part would be empty, or training without a class.
    """
    if plan.fixed:
        return draw_split(plan, seed, fractions, classes)
    check_fractions(fractions)
    if fractions[TEST] > MOST_TESTED:
        raise InputError(f"a test share of {fractions[TEST]:g} makes no folds; give at most {MOST_TESTED}")
    units = len(_rows_of(plan.units)[1])
    count = fold_count(units, fractions[TEST])
    if plan.grouped:
        _check_groups(units, count)
    repeat, fold = divmod(seed, count)
    parts = np.full(len(plan.units), TEST, dtype=np.int8)
    rest = np.flatnonzero(folds_of(plan, fractions[TEST], repeat, classes) != fold)
    labels = None if plan.labels is None else plan.labels[rest]
    rng = np.random.Generator(np.random.PCG64(seed))
    shares = np.array(fractions[:2]) / sum(fractions[:2])
    if plan.grouped:
        parts[rest] = draw_groups(plan.units[rest], labels, shares, rng, classes, needed=1)
    else:
        drawn = draw_parts(plan.units[rest], labels, False, shares, rng, classes)
        parts[rest] = _evened(drawn, plan.units, rest, labels, fractions, rng)
    for part, name in enumerate(PART_NAMES):
        if not (parts == part).any():
            raise InputError(
                f"no rows are left for {name} out of {len(parts)}; bring more rows, or more groups or moments"
            )
    train, valid, test = (np.flatnonzero(parts == part) for part in (TRAIN, VALID, TEST))
    return train, valid, test


def folds_of(plan: SplitPlan, share: float, repeat: int, classes: Sequence[str] = ()) -> np.ndarray:
    """(n,) fold of each row in a repeat, 0 to K - 1, or -1 where the repeat does not test it; see `draw_folds`."""
    inverse, sizes = _rows_of(plan.units)
    count = fold_count(len(sizes), share)
    left = 1 - count * share if count == int(1 / share + 1e-9) else 0.0
    left = left if left > 1e-9 else 0.0
    rng, fixed = (np.random.Generator(np.random.PCG64(words)) for words in ([FOLDS, repeat], [RESTING]))
    fold = np.full(len(sizes), IDLE, dtype=np.int64)
    stratum = np.zeros(len(sizes), dtype=np.int64)
    if plan.labels is not None and not plan.grouped:
        stratum[inverse] = plan.labels  # copies agree in the class, too
    total = np.zeros(count)
    for code in np.flatnonzero(np.bincount(stratum)):
        own = np.flatnonzero(stratum == code)
        if left:
            kept = own[~_resting(sizes[own], repeat * left, left, fixed)]
            own = kept if len(kept) >= min(count, len(own)) else own
        if len(own) == 1 and plan.labels is not None:
            continue  # no seed tests it, or else that seed would have nothing to learn the class from
        if plan.grouped:
            fold[own] = _placed(_tally(plan, inverse, len(sizes))[own], count, rng, classes)
            continue
        order = own[rng.permutation(len(own))]
        found = _cut(sizes[order], count)
        rows = np.bincount(found, weights=sizes[order], minlength=count)
        # The class's fullest fold becomes the one with the fewest rows so far; ties are broken by chance.
        fullest, emptiest = np.lexsort((rng.random(count), -rows)), np.lexsort((rng.random(count), total))
        turned = np.empty(count, dtype=np.int64)
        turned[fullest] = emptiest
        total[emptiest] += rows[fullest]
        fold[order] = turned[found]
    return fold[inverse]


def _rows_of(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) place of each row's unit among all units in the order of their numbers, and how many rows each unit has."""
    if (units[1:] > units[:-1]).all():  # every row is a unit of its own: nothing to sort, which matters for many rows
        return np.arange(len(units)), np.ones(len(units), dtype=np.int64)
    _, inverse, sizes = np.unique(units, return_inverse=True, return_counts=True)
    return inverse, sizes


def _resting(sizes: np.ndarray, start: float, length: float, rng: np.random.Generator) -> np.ndarray:
    """Which units a repeat leaves out: the next stretch of a circle on which they lie in an order that never changes."""
    order, turn = rng.permutation(len(sizes)), rng.random()
    middle = np.empty(len(sizes))
    middle[order] = (np.cumsum(sizes[order]) - sizes[order] / 2) / sizes.sum()
    return (middle + turn - start) % 1.0 < length


def _cut(sizes: np.ndarray, count: int) -> np.ndarray:
    """Fold of each unit, in their order: cut by cumulated rows, by which sizes are right to within the largest unit.

    A unit of more rows than a fold should have counts as much as a fold, so that no fold is empty where there are units
    enough; fewer units than folds go to folds as far apart as they can.
    """
    width = sizes.astype(np.float64) if len(sizes) >= count else np.ones(len(sizes))
    while len(sizes) >= count and width.max() > width.sum() / count * (1 + 1e-9):
        width = np.minimum(width, width.sum() / count)
    middle = np.cumsum(width) - width / 2
    return np.minimum((middle * (count / width.sum()) + 1e-9).astype(np.int64), count - 1)


def _check_groups(groups: int, folds: int) -> None:
    """InputError where a fold would leave fewer than two groups to train and to validate on."""
    if groups < len(PART_NAMES):
        raise InputError(f"there are {groups} groups for 3 parts; bring more groups or drop --group")
    if groups - -(-groups // folds) < len(PART_NAMES) - 1:
        raise InputError(
            f"there are {groups} groups, and {-(-groups // folds)} of them at a time would be tested, which leaves one to "
            "train and to validate on; bring more groups, test a smaller share or drop --group"
        )


def _tally(plan: SplitPlan, inverse: np.ndarray, count: int) -> np.ndarray:
    """(groups, classes) rows of each class in each group."""
    codes = np.zeros(len(inverse), dtype=np.int64) if plan.labels is None else plan.labels
    tally = np.zeros((count, int(codes.max()) + 1))
    np.add.at(tally, (inverse, codes), 1)
    return tally


def _placed(tally: np.ndarray, count: int, rng: np.random.Generator, classes: Sequence[str]) -> np.ndarray:
    """Fold of each group: the most even one of some random orders, in which every class is left to train on.

    Every group is in one fold, and folds are numbered by chance, so that a group's size says nothing of when it is tested.
    """
    best: tuple[float, ...] | None = None
    for _ in range(int(np.clip(GROUP_STEPS // len(tally), 1, GROUP_TRIES))):
        fold = _one_by_one(tally, count, rng)
        rows = np.stack([tally[fold == f].sum(axis=0) for f in range(count)])
        holders = np.stack([(tally[fold == f] > 0).sum(axis=0) for f in range(count)])
        left = holders.sum(axis=0) - holders  # groups of each class that are not in the fold
        spread = float(((rows - rows.mean(axis=0)) ** 2).sum())
        alone = len(tally) - np.bincount(fold, minlength=count) < len(PART_NAMES) - 1  # none is left to validate on
        score = (float((left < 1).sum()), float(alone.sum()), float((left < 2).sum()), spread)
        if best is None or score < best:
            best, found, lacking = score, fold, np.flatnonzero((left < 1).any(axis=0) & (rows.sum(axis=0) > 0))
    if len(lacking):
        what = f"class {classes[lacking[0]]!r}" if classes else "the target"
        raise InputError(
            f"the groups cannot be split so that {what} is in training whenever its rows are tested; bring more groups "
            "or drop --group"
        )
    return rng.permutation(count)[found]


def _one_by_one(tally: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each group: in random order, to the fold that is least full of the group's own classes and of rows."""
    tally = np.column_stack([tally, tally.sum(axis=1)])
    want, have = np.maximum(tally.sum(axis=0) / count, 1e-12), np.zeros((count, tally.shape[1]))
    fold = np.zeros(len(tally), dtype=np.int64)
    for done, group in enumerate(rng.permutation(len(tally))):
        empty = np.flatnonzero(have[:, -1] == 0)
        open_to = empty if len(tally) - done <= len(empty) else np.arange(count)
        filled = ((have[open_to] + tally[group]) / want) @ tally[group]
        fold[group] = chosen = open_to[int(np.argmin(filled))]
        have[chosen] += tally[group]
    return fold


def _evened(
    drawn: np.ndarray,
    units: np.ndarray,
    rest: np.ndarray,
    labels: np.ndarray | None,
    fractions: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """The parts of the rest with single rows moved so that train and valid have the same sizes for every seed.

    A class's last row of a part is never moved.
    """
    n = len(units)
    inverse, sizes = _rows_of(units)
    slack = int(sizes.max()) - 1
    if slack > EVEN_WITHIN * n:
        return drawn
    room = n - int(np.ceil(n * fractions[TEST] - 1e-9)) - slack
    train = round(room * fractions[TRAIN] / (fractions[TRAIN] + fractions[VALID]))
    parts, codes = drawn.astype(np.int64), np.zeros(len(rest), dtype=np.int64) if labels is None else labels
    free = (sizes == 1)[inverse][rest]
    lacks = train - int((parts == TRAIN).sum())
    if lacks:
        _move(parts, codes, free, (VALID, TRAIN) if lacks > 0 else (TRAIN, VALID), abs(lacks), rng)
    over = int((parts == VALID).sum()) - (room - train)
    if over > 0:
        _move(parts, codes, free, (VALID, IDLE), over, rng)
    return parts


def _move(
    parts: np.ndarray, codes: np.ndarray, free: np.ndarray, way: tuple[int, int], count: int, rng: np.random.Generator
) -> None:
    """Move up to `count` free rows from one part to another, each from the class that has most to spare."""
    here = parts == way[0]
    have, all_rows = np.bincount(codes[here]), np.bincount(codes)
    have = np.pad(have, (0, len(all_rows) - len(have)))
    can = np.bincount(codes[here & free], minlength=len(all_rows))
    share, moved = here.mean(), np.zeros(len(all_rows), dtype=np.int64)
    for _ in range(count):
        able = (can > moved) & (have - moved > 1)
        if not able.any():
            break
        moved[np.argmax(np.where(able, have - moved - share * all_rows, -np.inf))] += 1
    for code in np.flatnonzero(moved):
        rows = np.flatnonzero(here & free & (codes == code))
        parts[rng.choice(rows, moved[code], replace=False)] = way[1]
