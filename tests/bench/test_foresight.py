"""What more seeds would bring: named numbers hold about as often as they say."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from probatum.bench.foresight import Outlook, decidable, later_seeds, seeds_to_decide
from probatum.bench.statistics import over_rows, paired
from probatum.bench.two_way import Trial
from probatum.bench.verdict import decide, outlook

MARGIN = 0.01


def trials(rng: np.random.Generator, effect: float, shared: float, count: int) -> list[Trial]:
    """60 rows a trial of a table of 300; a row's own effect, a trial's, and noise."""
    own = shared * rng.normal(size=300)
    own -= own.mean()
    found = []
    for seed in range(count):
        if seed % 5 == 0:
            order = rng.permutation(300)
        units = np.sort(order[60 * (seed % 5) : 60 * (seed % 5 + 1)])
        x = effect + own[units] + 0.02 * rng.normal() + 0.1 * rng.normal(size=60)
        found.append(Trial(float(x.mean()), units, x - x.mean(), 60))
    return found


@pytest.mark.parametrize("shared", [0.0, 0.03])
def test_a_named_number_of_seeds_decides_with_the_stated_chance(shared: float) -> None:
    rng, named, held = np.random.default_rng(0), 0, 0
    for _ in range(400):
        effect = float(rng.choice([0.0, 0.0, 0.02, -0.03])) + 0.01 * rng.normal()
        all_trials = trials(rng, effect, shared, 60)
        now = over_rows(all_trials[:8])
        decision = decide(now, margin=MARGIN, p_adjusted=now.p, ratio=None)
        if decision.word != "undecided" or decision.seeds_needed is None or decision.seeds_needed > 60:
            continue
        named += 1
        then = over_rows(all_trials[: decision.seeds_needed])
        held += decide(then, margin=MARGIN, p_adjusted=then.p, ratio=None).word != "undecided"
    assert named > 40
    assert held / named > 0.8 - 3 * math.sqrt(0.8 * 0.2 / named), (held, named)


@pytest.mark.parametrize("varied", [0.0, 0.05])
def test_no_number_is_named_for_other_data_sets(varied: float) -> None:
    rng = np.random.default_rng(0)
    levels = [varied * (-1) ** k for k in range(8)]
    tried = [replace(one, mean=one.mean + level) for one, level in zip(trials(rng, 0.005, 0.0, 8), levels, strict=True)]
    found = over_rows(tried, kappa=1.5)
    decision = decide(found, margin=MARGIN, p_adjusted=found.p, ratio=None)
    assert (decision.word, decision.seeds_needed) == ("undecided", None)
    assert found.components is not None
    told = decision.note.removeprefix("how many seeds would decide about other data sets is not foretold")
    stays = f", and {found.components.common:.0%} of what is unsure stays however many there are"
    assert told == (stays if varied else "")
    few = over_rows(tried[:4], kappa=1.5)
    assert decide(few, margin=MARGIN, p_adjusted=few.p, ratio=None).seeds_needed == 6


def test_shared_rows_stay_in_the_width() -> None:
    def quantile(seeds: int, level: float) -> float:
        return 2.0

    clear = Outlook(0.02, 0.05, 8, 0.0, MARGIN, 0.95, 0.9, 1.0, quantile)
    shared = Outlook(0.0, 0.05, 8, 0.02**2, MARGIN, 0.95, 0.9, 1.0, quantile)
    assert seeds_to_decide(clear, 6) is not None
    assert seeds_to_decide(shared, 6) is None
    assert decidable(clear)
    far = Outlook(0.0, 0.001, 8, 0.02**2, MARGIN, 0.95, 0.9, 1.0, quantile)
    assert not decidable(far)  # the mean stays near 0, and an interval of twice the margin with it


def test_more_tests_ask_for_more_seeds() -> None:
    interval = paired([0.02 + 0.03 * w for w in (1, -1, 1, -1, 1, -1, 1, -1)], test_fraction_ratio=None)
    one, many = (seeds_to_decide(outlook(interval, MARGIN, None, 0.95, times), 6) for times in (1.0, 30.0))
    assert one is not None
    assert many is not None
    assert many > one


def test_numbers_that_are_looked_at() -> None:
    found = later_seeds(8, 6, 50)
    assert found[0] == 9
    assert found[-1] == 50
    assert all(b > a for a, b in itertools.pairwise(found))
    assert later_seeds(2, 6, 20)[0] == 6
    assert later_seeds(200, 6) == ()
