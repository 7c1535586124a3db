"""Verdicts: which arms help, hurt or change nothing that matters, measure by measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from probatum.bench.foresight import CAP, Outlook, decidable, seeds_to_decide
from probatum.bench.pairing import COSTS, Pairs, by_arm, differences, no_ratio, pair
from probatum.bench.race import Race
from probatum.bench.statistics import FEWEST_SEEDS, Interval, adjust, over_rows, paired
from probatum.bench.two_way import Trial
from probatum.measure.base import Measure

__all__ = ["WORDS", "Decision", "Verdict", "decide", "differences", "verdicts"]

WORDS = ("helps", "hurts", "no material difference", "undecided", "not applicable", "failed")
NOT_MEASURED = "no seed has this measure for both arms"
NO_EFFECT = "no effect: the arm is bit-identical to the baseline"
CANNOT = "more seeds cannot decide: what all of them share is too wide; bring more rows"
MARGINAL = "more seeds cannot decide; the mean lies on the margin"
SAME = "the seeds differ by the same amount each time, which tells nothing of how sure it is"
FAILING = "how many seeds would decide is not known where some are lost"


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one arm and one measure.

    `mean`, `low`, `high` are the oriented paired difference to the baseline (positive = better; log-ratios for ratio
    measures) and its interval. `baseline_mean` and `arm_mean` are in the measure's own unit over the paired seeds
    (geometric means for ratio measures). `sd` is the standard deviation of the differences over seeds. `seeds_needed` is
    the fewest seeds that would decide with a chance of 80 %, on the primary measure alone. `error` is the standard error, and `common` the share of its
    square that stays however many seeds there are (rows that seeds share); NaN where the rows are not known. In a race p
    and interval hold whenever the arm was stopped. Where nothing was tested the numbers are NaN. `swapped` says whether
    validation rows count as well as test rows.
    """

    arm: str
    measure: str
    axis: str
    word: str
    mean: float
    low: float
    high: float
    n: int
    p: float
    p_adjusted: float
    margin: float
    seeds_needed: int | None
    baseline_mean: float
    arm_mean: float
    note: str
    sd: float = math.nan
    error: float = math.nan
    common: float = math.nan
    swapped: bool = False


class Decision(NamedTuple):
    """The word of a verdict, the seeds that would decide if it is undecided, and a remark."""

    word: str
    seeds_needed: int | None
    note: str


@dataclass(frozen=True)
class _Question:
    """One measure, and everything that its verdicts rest on."""

    arms: Mapping[str, Mapping[int, Mapping[str, Any]]]
    baseline: str
    measure: Measure
    margin: float
    ratio: float | None
    confidence: float
    looks: tuple[int, ...]
    kappa: float
    decides: bool

    def ran(self, arm: str) -> int:
        """How many seeds an arm ran."""
        return len(self.arms[arm])

    def race(self, rows: bool) -> Race | None:
        """The race's rule; rows that are known need no guess at what splits share."""
        return Race(self.looks, None if rows else self.ratio, self.confidence) if self.looks else None


class _Tested(NamedTuple):
    """What the differences of one arm say: the interval, its confidence, and the same with failures as losses."""

    question: _Question
    pairs: Pairs
    interval: Interval
    level: float
    charged: Interval


def decide(
    interval: Interval,
    *,
    margin: float,
    p_adjusted: float,
    ratio: float | None,
    confidence: float = 0.95,
    identical: bool = False,
    level: float | None = None,
    ahead: bool = True,
) -> Decision:
    """Turn the interval on an oriented difference (positive = better) into a word.

    Args:
        interval: of the paired differences, made with the same ratio and with `level`.
        margin: region of practical equivalence, at least 0.
        p_adjusted: p-value after correction for the other arms.
        ratio: n_test/n_train where splits are re-drawn, else None; not used where rows are known.
        confidence: in (0, 1); an adjusted p-value up to 1 - confidence counts as a difference.
        identical: whether the arm's results equal the baseline's bit for bit on every seed.
        level: the interval's own confidence where it is a race's and so higher; None = `confidence`.
        ahead: whether it is worked out how many seeds would decide.
    """
    level = confidence if level is None else level
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin is {margin}; use a finite number of at least 0")
    nothing = interval.mean == 0 and interval.sd == 0 and (interval.high == 0 or identical)
    note = NO_EFFECT if nothing and identical else ""
    if interval.n < FEWEST_SEEDS:
        few = f"{interval.n} paired seed{'' if interval.n == 1 else 's'}; a verdict needs {FEWEST_SEEDS}"
        needed, more = _more_seeds(interval, margin, ratio, level, 1.0) if ahead else (None, "")
        return Decision("undecided", needed, _join(note, few, more))
    low, high = interval.inner or (interval.low, interval.high)
    if nothing or (-margin < low and high < margin):
        return Decision("no material difference", None, note)
    significant = p_adjusted <= 1 - confidence
    if interval.low > 0 and interval.mean >= margin and significant:
        return Decision("helps", None, "")
    if interval.high < 0 and interval.mean <= -margin and significant:
        return Decision("hurts", None, "")
    if not math.isfinite(interval.high):
        return Decision("undecided", None, "" if _single(interval) else SAME)
    if not ahead:
        return Decision("undecided", None, "")
    multiplicity = max(p_adjusted / interval.p, 1.0) if interval.p > 0 else 1.0
    needed, more = _more_seeds(interval, margin, ratio, level, multiplicity)
    return Decision("undecided", needed, more)


def verdicts(
    records: Iterable[Mapping[str, Any]],
    baseline: str,
    measures: Mapping[str, Measure] | Iterable[Measure],
    *,
    margins: Mapping[str, float] | None = None,
    ratio: float | None,
    confidence: float = 0.95,
    looks: Sequence[int] = (),
    primary: str = "",
    kappa: float = 0.0,
) -> list[Verdict]:
    """Judge every arm but the baseline on every measure, pairing by seed.

    Where the test rows of all paired trials are known the interval is the two-way one (`probatum.bench.two_way`), else
    that of Nadeau and Bengio. P-values are Benjamini-Hochberg adjusted over the arms of the primary measure, over the arms
    within each measure of cost, and over the arms and all other measures at once. A seed counts only if both arms are "ok"
    and have a finite value; an arm that fails where the baseline does not helps, or is the same, only if it does with its
    failures counted as losses, and so for seeds that finish without a measure (of cost excepted) that the other has there;
    adjusted p-values are those with losses counted. An arm with failures that is left with fewer than 6 pairs has "failed".
    An arm with a value that is not positive is not judged on a ratio measure. Seeds that all differ by the same amount are
    no certainty, but for costs and for results that are equal bit for bit. A measure that no trial reports gives no
    verdict, unless it is the primary one.

    Args:
        records: mappings with arm, seed, status ("ok", "failed", "not applicable"), measures (name -> number), and
            optionally reason, digest (equal digests = bit-identical results), rows
            (`probatum.bench.packed_rows.UnitRows`), support (test rows of each class) and swapped: measures of the validation rows by weights that test rows
            chose. These count as well, the halves each by its rows, where both arms have them on every paired seed.
        baseline: name of the arm to compare with.
        measures: those to judge.
        margins: regions of practical equivalence that replace the measures' own.
        ratio: n_test/n_train where every seed re-draws the split, else None.
        confidence: of intervals; 1 - confidence is the false-discovery rate.
        looks: of a race, in numbers of seeds (see `probatum.bench.race`): arms may have stopped at any of them, and what
            is said holds all the same; () = all arms ran all seeds, as planned.
        primary: the measure that decides; on it failures are told even where every trial has failed.
        kappa: of `probatum.bench.two_way.two_way`: above 0 where the question is about other data sets.

    Raises:
        ValueError: for two records of one arm and seed, an unknown status, no record of the baseline, or a margin for an
            unknown measure.
    """
    chosen = list(measures.values()) if isinstance(measures, Mapping) else list(measures)
    margins = dict(margins or {})
    unknown = sorted(set(margins) - {measure.name for measure in chosen})
    if unknown:
        raise ValueError(f"margin given for {unknown[0]!r}; the measures are {', '.join(m.name for m in chosen)}")
    arms = by_arm(records)
    if baseline not in arms:
        raise ValueError(f"no record of the baseline {baseline!r}; the arms are {', '.join(arms) or 'none'}")
    found: list[Verdict | _Tested] = []
    for measure in chosen:
        margin = margins.get(measure.name, measure.margin)
        reported = any(measure.name in record["measures"] for seeds in arms.values() for record in seeds.values())
        if reported or measure.name == primary:
            question = _Question(
                arms, baseline, measure, margin, ratio, confidence, tuple(looks), kappa, primary in ("", measure.name)
            )
            found += [_tested_or_not(question, arm) for arm in arms if arm != baseline]
    tested = [one for one in found if isinstance(one, _Tested)]
    plain, charged = (_adjusted(tested, primary, losses) for losses in (False, True))
    return [one if isinstance(one, Verdict) else _worded(one, plain[id(one)], charged[id(one)]) for one in found]


def _adjusted(tested: Sequence[_Tested], primary: str, losses: bool) -> dict[int, float]:
    """Adjusted p-values by identity, `losses` says whether failures count as such.

    NaN for an arm with too few seeds, which gets no verdict and so costs nobody.
    """
    families: dict[str, list[_Tested]] = {}
    for one in tested:
        measure = one.question.measure
        own = not primary or measure.name == primary or measure.axis in COSTS
        families.setdefault(measure.name if own else "", []).append(one)
    found = {id(one): math.nan for one in tested}
    for family in families.values():
        judged = [one for one in family if one.interval.n >= FEWEST_SEEDS]
        p = adjust([max(one.interval.p, one.charged.p) if losses else one.interval.p for one in judged])
        found |= {id(one): value for one, value in zip(judged, p, strict=True)}
    return found


def _tested_or_not(question: _Question, arm: str) -> Verdict | _Tested:
    base, mine = question.arms[question.baseline], question.arms[arm]
    why = no_ratio(base, mine, question.measure)
    if why:
        failed = [
            f"seed {seed}: {r.get('reason') or r['status']}" for seed, r in mine.items() if r["status"] == "failed"
        ]
        word = "failed" if failed and len(mine) - len(failed) < FEWEST_SEEDS else "undecided"
        return _untested(arm, question.measure, question.margin, word, _join(*failed[:1], why))
    pairs = pair(arm, base, mine, question.measure)
    without = _without_test(question, pairs)
    if without is not None:
        return without
    interval, level = _interval(question, pairs)
    return _Tested(question, pairs, interval, level, _charged(question, pairs, interval, level))


def _without_test(question: _Question, pairs: Pairs) -> Verdict | None:
    """The verdict on an arm of which there is nothing to test; None where there is."""
    arm, measure, margin = pairs.arm, question.measure, question.margin
    absent = [str(r.get("reason", "")) for r in question.arms[arm].values() if r["status"] == "not applicable"]
    ran = question.ran(arm)
    if absent and len(absent) == ran:
        return _untested(arm, measure, margin, "not applicable", absent[0])
    if pairs.lost and len(pairs.values) < FEWEST_SEEDS:
        note = _join(_stopped(question, ran), *_why_lost(pairs, ran))
        # an arm has failed where its own failures alone leave too few pairs, not where the baseline's do
        word = "failed" if pairs.own and ran - len(pairs.own) < FEWEST_SEEDS else "undecided"
        return _untested(arm, measure, margin, word, note, len(pairs.values))
    return None if pairs.values else _untested(arm, measure, margin, "undecided", NOT_MEASURED)


def _interval(question: _Question, pairs: Pairs) -> tuple[Interval, float]:
    """The interval on the paired differences, and its own confidence."""
    race, ran = question.race(pairs.trials is not None), question.ran(pairs.arm)
    if race is not None and ran >= race.looks[0]:
        return _raced(question, race, pairs, sorted(question.arms[question.baseline])[:ran])
    return _plain(question, pairs, question.confidence), question.confidence


def _plain(question: _Question, pairs: Pairs, level: float) -> Interval:
    """The interval of these pairs without a race's correction."""
    if pairs.trials is not None:
        found = over_rows(pairs.trials, confidence=level, kappa=question.kappa)
    else:
        found = paired(pairs.delta, test_fraction_ratio=question.ratio, confidence=level)
    sure = question.measure.axis in COSTS or (pairs.identical and found.mean == 0)
    if found.low == found.high and not sure:  # equal differences are no certainty
        return found._replace(low=-math.inf, high=math.inf, p=1.0, inner=None)
    return found


def _charged(question: _Question, pairs: Pairs, interval: Interval, level: float) -> Interval:
    """The interval with seeds on which one of both failed counted as a loss of that one, as large as any difference seen.

    So are those that only one of both finished without the measure: which seeds lack it hangs on how that one did there.
    Costs are missing where nothing was timed or counted, which is nobody's loss.
    """
    counts = question.measure.axis not in COSTS
    own = pairs.own_lost + counts * pairs.lacking
    others = pairs.baseline_lost + counts * pairs.baseline_lacking
    if not own and not others:
        return interval
    worst = max(question.margin, *map(abs, pairs.delta))
    gap = [-worst] * own + [worst] * others
    lost = [Trial(value, np.empty(0, dtype=np.int64), np.empty(0), 1) for value in gap]
    trials = None if pairs.trials is None else (*pairs.trials, *lost)
    return _plain(question, replace(pairs, delta=(*pairs.delta, *gap), trials=trials), level)


def _decided(tested: _Tested, plain: float, p_adjusted: float) -> Decision:
    """The word of an arm; with failures both that of its pairs alone and that with losses counted must be the same."""
    question, pairs, interval, level, charged = tested
    terms: dict[str, Any] = {
        "margin": question.margin, "ratio": question.ratio, "confidence": question.confidence, "level": level,
    }  # fmt: skip
    if charged is interval:
        return decide(interval, identical=pairs.identical, p_adjusted=p_adjusted, ahead=question.decides, **terms)
    # p-values with losses would hide what the pairs say
    decision = decide(
        interval, identical=pairs.identical and not pairs.own_lost, p_adjusted=plain, ahead=False, **terms
    )
    if decision.word == "undecided":
        return decision._replace(note=decision.note or (FAILING if question.decides else ""))
    if decision.word != decide(charged, p_adjusted=p_adjusted, ahead=False, **terms).word:
        lost = "failures" if pairs.lost else "seeds without it"
        return Decision("undecided", None, f"with {lost} as losses it is not shown: {decision.word}")
    if decision.word == "no material difference" and pairs.own_lost:
        return Decision("undecided", None, "no material difference where it finishes, but it does not always")
    return decision


def _worded(tested: _Tested, plain: float, p_adjusted: float) -> Verdict:
    question, pairs, interval = tested[:3]
    measure, decision = question.measure, _decided(tested, plain, p_adjusted)
    parts = interval.components
    return Verdict(
        arm=pairs.arm,
        measure=measure.name,
        axis=measure.axis,
        word=decision.word,
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        p=interval.p,
        p_adjusted=p_adjusted,
        margin=question.margin,
        seeds_needed=decision.seeds_needed,
        baseline_mean=_mean(pairs.baseline, measure),
        arm_mean=_mean(pairs.values, measure),
        note=_join(
            _stopped(question, question.ran(pairs.arm)),
            decision.note,
            "" if parts is None else parts.remark(),
            _lost(pairs),
            *_without_measure(pairs, measure),
        ),
        sd=interval.sd,
        error=math.nan if parts is None else math.sqrt(parts.variance),
        common=math.nan if parts is None else parts.common,
        swapped=pairs.swapped,
    )


def _raced(question: _Question, race: Race, pairs: Pairs, seeds: Sequence[int]) -> tuple[Interval, float]:
    """The interval at the last look taken, with the p-value of all looks, and its nominal confidence."""
    looks = [look for look in race.looks if look <= len(seeds)]
    seen = [pairs.first(seeds[:look]) for look in looks]
    nominal = np.array([_nominal(question, some) for some in seen])
    full = sum(len(some.delta) == look for some, look in zip(seen, looks, strict=True))
    p = float(race.p_union(nominal)[-1])
    if full:  # looks before the first lost seed
        p = min(p, float(race.p_values(nominal[:full])[-1]))
    level = float(race.levels(complete=full == len(looks))[len(looks) - 1])
    return _plain(question, seen[-1], level)._replace(p=p), level


def _nominal(question: _Question, pairs: Pairs) -> float:
    """The plain p-value of one look; 1 where there are too few pairs for a verdict."""
    if len(pairs.delta) < FEWEST_SEEDS:
        return 1.0
    return _plain(question, pairs, question.confidence).p


def _stopped(question: _Question, ran: int) -> str:
    cap = question.looks[-1] if question.looks else 0
    return f"stopped after {ran} of {cap} seeds" if ran < cap else ""


def _why_lost(pairs: Pairs, ran: int) -> tuple[str, ...]:
    """What is said of an arm that is left with too few pairs: its own failures first, then the baseline's."""
    others = len(pairs.lost) - len(pairs.own)
    if not others:
        return (pairs.own[0],)
    left = f"the baseline failed on {others} of {ran} seeds, so that {len(pairs.values)} pairs are left"
    return (*pairs.own[:1], left, *([] if pairs.own else pairs.lost[:1]))


def _lost(pairs: Pairs) -> str:
    total = len(pairs.lost) + len(pairs.values)
    return f"{len(pairs.lost)} of {total} seeds left out ({pairs.lost[0]})" if pairs.lost else ""


def _without_measure(pairs: Pairs, measure: Measure) -> list[str]:
    """How many seeds lack a measure that the other of both has there."""
    total = pairs.lacking + pairs.baseline_lacking + len(pairs.lost) + len(pairs.values)
    told = (("", pairs.lacking), ("the baseline: ", pairs.baseline_lacking))
    return [f"{whose}{count} of {total} seeds without {measure.name}" for whose, count in told if count]


def _untested(arm: str, measure: Measure, margin: float, word: str, note: str, n: int = 0) -> Verdict:
    nan = math.nan
    return Verdict(arm, measure.name, measure.axis, word, nan, nan, nan, n, nan, nan, margin, None, nan, nan, note)


def _mean(values: Sequence[float], measure: Measure) -> float:
    if measure.kind == "ratio":
        return math.exp(math.fsum(map(math.log, values)) / len(values))
    return math.fsum(values) / len(values)


def outlook(interval: Interval, margin: float, ratio: float | None, level: float, multiplicity: float = 1.0) -> Outlook:
    """What is known of an arm that is undecided, for `probatum.bench.foresight`."""
    parts, n = interval.components, interval.n
    if parts is None:
        shared = (ratio or 0.0) * interval.sd**2
        return Outlook(interval.mean, interval.sd, n, shared, margin, level, level, multiplicity, _student)
    own = math.sqrt(max(parts.variance - parts.lasting, 0.0) * n)
    inner = max(1 - 2 * (1 - level), 0.0)

    def quantile(seeds: int, level: float) -> float:
        return parts.at(seeds).quantile(level)

    return Outlook(interval.mean, own, n, parts.lasting, margin, level, inner, multiplicity, quantile)


def _student(seeds: int, level: float) -> float:
    return -float(special.stdtrit(seeds - 1, (1 - level) / 2))


def _single(interval: Interval) -> bool:
    """Whether each seed tests a single group, so that nothing is known of the rows."""
    return interval.components is not None and not math.isfinite(interval.components.within)


def _more_seeds(
    interval: Interval, margin: float, ratio: float | None, level: float, multiplicity: float
) -> tuple[int | None, str]:
    if interval.n < 2:
        return FEWEST_SEEDS, ""
    if _single(interval):
        return None, ""  # its remark tells why
    if interval.components is not None and interval.components.kappa:  # of which few seeds tell too little to foretell
        if interval.n < FEWEST_SEEDS:
            return FEWEST_SEEDS, ""
        lasting = f"{interval.components.common:.0%}"
        some = "" if lasting == "0%" else f", and {lasting} of what is unsure stays however many there are"
        return None, f"how many seeds would decide about other data sets is not foretold{some}"
    if not math.isfinite(interval.high):
        return None, SAME
    known = outlook(interval, margin, ratio, level, multiplicity)
    needed = seeds_to_decide(known, FEWEST_SEEDS)
    if needed is not None:
        return needed, ""
    if decidable(known):
        chance = known.chance(CAP) if interval.n < CAP else 0.0
        return (
            None,
            f"{CAP} seeds would decide with a chance of {chance:.0%}" if chance else f"more than {CAP} seeds needed",
        )
    return None, CANNOT if known.shared else MARGINAL


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
