"""Verdicts: which arms help, hurt or change nothing that matters, measure by measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from probatum.bench.race import Race, nominal_p
from probatum.bench.statistics import FEWEST_SEEDS, Interval, adjust, decidable, paired, seeds_to_decide
from probatum.measure.base import Measure

WORDS = ("helps", "hurts", "no material difference", "undecided", "not applicable", "failed")
NOT_MEASURED = "no seed has this measure for both arms"
NO_EFFECT = "no effect: the arm is bit-identical to the baseline"
FLOOR = "more seeds cannot decide; hold out less or bring more rows"
CAP = 200


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one arm and one measure.

    `mean`, `low`, `high` are the oriented paired difference to the baseline (positive = better; log-ratios for ratio
    measures) and its interval. `baseline_mean` and `arm_mean` are in the measure's own unit over the paired seeds
    (geometric means for ratio measures). `sd` is the standard deviation of the differences over seeds. In a race p and
    interval hold whenever the arm was stopped. Where nothing was tested the numbers are NaN.
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


class Decision(NamedTuple):
    """The word of a verdict, the seeds that would decide if it is undecided, and a remark."""

    word: str
    seeds_needed: int | None
    note: str


class _Pairs(NamedTuple):
    """One arm against the baseline on one measure: values by paired seed, and what went wrong on the others."""

    arm: str
    seeds: list[int]
    baseline: list[float]
    values: list[float]
    identical: bool
    lost: list[str]
    own: list[str]


def decide(
    interval: Interval,
    *,
    margin: float,
    p_adjusted: float,
    ratio: float | None,
    confidence: float = 0.95,
    identical: bool = False,
    level: float | None = None,
) -> Decision:
    """Turn the interval on an oriented difference (positive = better) into a word.

    Args:
        interval: of the paired differences, made with the same ratio and with `level`.
        margin: region of practical equivalence, at least 0.
        p_adjusted: p-value after correction for the other arms.
        ratio: n_test/n_train where splits are re-drawn, else None.
        confidence: in (0, 1); an adjusted p-value up to 1 - confidence counts as a difference.
        identical: whether the arm's results equal the baseline's bit for bit on every seed.
        level: the interval's own confidence where it is a race's and so higher; None = `confidence`.
    """
    level = confidence if level is None else level
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin is {margin}; use a finite number of at least 0")
    nothing = interval.mean == 0 and interval.sd == 0
    note = NO_EFFECT if nothing and identical else ""
    if interval.n < FEWEST_SEEDS:
        few = f"{interval.n} paired seeds; a verdict needs {FEWEST_SEEDS}"
        needed, more = _more_seeds(interval, margin, ratio, level, 1.0)
        return Decision("undecided", needed, _join(note, few, more))
    if nothing or (-margin < interval.low and interval.high < margin):
        return Decision("no material difference", None, note)
    significant = p_adjusted <= 1 - confidence
    if interval.low > 0 and interval.mean >= margin and significant:
        return Decision("helps", None, "")
    if interval.high < 0 and interval.mean <= -margin and significant:
        return Decision("hurts", None, "")
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
) -> list[Verdict]:
    """Judge every arm but the baseline on every measure, pairing by seed.

    P-values are Benjamini-Hochberg adjusted over the arms within each measure. A seed counts only if both arms are "ok"
    and have a finite value; seeds lost to failures are said in the note, and an arm with failures that is left with
    fewer than 6 pairs has "failed". A measure that no trial reports gives no verdict, unless it is the primary one.

    Args:
        records: mappings with arm, seed, status ("ok", "failed", "not applicable"), measures (name -> number), and
            optionally reason and digest (equal digests = bit-identical results).
        baseline: name of the arm to compare with.
        measures: those to judge.
        margins: regions of practical equivalence that replace the measures' own.
        ratio: n_test/n_train where every seed re-draws the split, else None.
        confidence: of intervals; 1 - confidence is the false-discovery rate.
        looks: of a race, in numbers of seeds (see `probatum.bench.race`): arms may have stopped at any of them, and what
            is said holds all the same; () = all arms ran all seeds, as planned.
        primary: the measure on which failures are told even where every trial has failed.

    Raises:
        ValueError: for two records of one arm and seed, an unknown status, no record of the baseline, a margin for an
            unknown measure, or a ratio measure with a value that is not positive.
    """
    chosen = list(measures.values()) if isinstance(measures, Mapping) else list(measures)
    margins = dict(margins or {})
    unknown = sorted(set(margins) - {measure.name for measure in chosen})
    if unknown:
        raise ValueError(f"margin given for {unknown[0]!r}; the measures are {', '.join(m.name for m in chosen)}")
    arms = _by_arm(records)
    if baseline not in arms:
        raise ValueError(f"no record of the baseline {baseline!r}; the arms are {', '.join(arms) or 'none'}")
    race = Race(tuple(looks), ratio, confidence) if looks else None
    found: list[Verdict] = []
    for measure in chosen:
        margin = margins.get(measure.name, measure.margin)
        reported = any(measure.name in record["measures"] for seeds in arms.values() for record in seeds.values())
        if reported or measure.name == primary:
            found += _judge(_Question(arms, baseline, measure, margin, ratio, confidence, race))
    return found


def differences(baseline: Sequence[float], values: Sequence[float], measure: Measure) -> list[float]:
    """Return the paired differences, positive = better; differences of logs for ratio measures.

    Raises:
        ValueError: if a ratio measure has a value that is not positive.
    """
    sign = 1.0 if measure.higher_is_better else -1.0
    if measure.kind == "ratio":
        bad = [value for value in (*baseline, *values) if value <= 0]
        if bad:
            raise ValueError(
                f"measure {measure.name} is compared by ratio and has the value {bad[0]}; it must be positive"
            )
        return [sign * math.log(b / a) for a, b in zip(baseline, values, strict=True)]
    return [sign * (b - a) for a, b in zip(baseline, values, strict=True)]


@dataclass(frozen=True)
class _Question:
    """One measure, and everything that its verdicts rest on."""

    arms: Mapping[str, Mapping[int, Mapping[str, Any]]]
    baseline: str
    measure: Measure
    margin: float
    ratio: float | None
    confidence: float
    race: Race | None

    def ran(self, arm: str) -> int:
        """How many seeds an arm ran."""
        return len(self.arms[arm])


def _judge(question: _Question) -> list[Verdict]:
    arms = [arm for arm in question.arms if arm != question.baseline]
    judged: dict[str, Verdict] = {}
    tested: dict[str, tuple[_Pairs, Interval, float]] = {}
    for arm in arms:
        pairs = _pair(arm, question.arms[question.baseline], question.arms[arm], question.measure.name)
        without = _without_test(question, pairs)
        if without is not None:
            judged[arm] = without
        else:
            tested[arm] = pairs, *_interval(question, pairs)
    # an arm with too few seeds gets no verdict, so it does not take part in the correction either
    family = [arm for arm, (_, interval, _) in tested.items() if interval.n >= FEWEST_SEEDS]
    adjusted = dict(zip(family, adjust([tested[arm][1].p for arm in family]), strict=True))
    judged |= {arm: _tested(question, *found, adjusted.get(arm, math.nan)) for arm, found in tested.items()}
    return [judged[arm] for arm in arms]


def _without_test(question: _Question, pairs: _Pairs) -> Verdict | None:
    """The verdict on an arm of which there is nothing to test; None where there is."""
    arm, measure, margin = pairs.arm, question.measure, question.margin
    absent = [str(r.get("reason", "")) for r in question.arms[arm].values() if r["status"] == "not applicable"]
    if absent and len(absent) == question.ran(arm):
        return _untested(arm, measure, margin, "not applicable", absent[0])
    if pairs.lost and len(pairs.values) < FEWEST_SEEDS:
        note = _join(_stopped(question.race, question.ran(arm)), *_why_lost(pairs, question.ran(arm)))
        # an arm has failed where its own failures alone leave too few pairs, not where the baseline's do
        word = "failed" if pairs.own and question.ran(arm) - len(pairs.own) < FEWEST_SEEDS else "undecided"
        return _untested(arm, measure, margin, word, note, len(pairs.values))
    return None if pairs.values else _untested(arm, measure, margin, "undecided", NOT_MEASURED)


def _interval(question: _Question, pairs: _Pairs) -> tuple[Interval, float]:
    """The interval on the paired differences, and its own confidence."""
    delta, race, ran = (
        differences(pairs.baseline, pairs.values, question.measure),
        question.race,
        question.ran(pairs.arm),
    )
    if race is not None and ran >= race.looks[0]:
        order = sorted(question.arms[question.baseline])
        return _raced(race, dict(zip(pairs.seeds, delta, strict=True)), order[:ran])
    return paired(delta, test_fraction_ratio=question.ratio, confidence=question.confidence), question.confidence


def _tested(question: _Question, pairs: _Pairs, interval: Interval, level: float, p_adjusted: float) -> Verdict:
    measure = question.measure
    decision = decide(
        interval,
        margin=question.margin,
        p_adjusted=p_adjusted,
        ratio=question.ratio,
        confidence=question.confidence,
        identical=pairs.identical,
        level=level,
    )
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
        note=_join(_stopped(question.race, question.ran(pairs.arm)), decision.note, _lost(pairs)),
        sd=interval.sd,
    )


def _raced(race: Race, delta: Mapping[int, float], seeds: Sequence[int]) -> tuple[Interval, float]:
    """The interval at the last look taken, with the p-value of all looks, and its nominal confidence."""
    looks = [look for look in race.looks if look <= len(seeds)]
    seen = [[delta[seed] for seed in seeds[:look] if seed in delta] for look in looks]
    nominal = np.array([_nominal(values, race.ratio) for values in seen])
    full = sum(len(values) == look for values, look in zip(seen, looks, strict=True))
    p = float(race.p_union(nominal)[-1])
    if full:  # looks before the first lost seed
        p = min(p, float(race.p_values(nominal[:full])[-1]))
    level = float(race.levels(complete=full == len(looks))[len(looks) - 1])
    return paired(seen[-1], test_fraction_ratio=race.ratio, confidence=level)._replace(p=p), level


def _nominal(values: Sequence[float], ratio: float | None) -> float:
    """The plain p-value of one look; 1 where there are too few pairs for a verdict."""
    if len(values) < FEWEST_SEEDS:
        return 1.0
    x = np.asarray(values)
    sd = 0.0 if (x == x[0]).all() else x.std(ddof=1)
    return float(nominal_p(np.asarray(x.mean()), np.asarray(sd), np.asarray(len(x)), ratio))


def _stopped(race: Race | None, ran: int) -> str:
    return f"stopped after {ran} of {race.cap} seeds" if race is not None and ran < race.cap else ""


def _by_arm(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    arms: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        arm, seed, status = record["arm"], record["seed"], record["status"]
        if status not in ("ok", "failed", "not applicable"):
            raise ValueError(f"arm {arm!r}, seed {seed}: status is {status!r}; use ok, failed or not applicable")
        if seed in arms.setdefault(arm, {}):
            raise ValueError(f"arm {arm!r} has two records for seed {seed}; give one per arm and seed")
        arms[arm][seed] = record
    return arms


def _pair(arm: str, base: Mapping[int, Mapping[str, Any]], mine: Mapping[int, Mapping[str, Any]], name: str) -> _Pairs:
    seeds, left, right, same, lost, own = [], [], [], [], [], []
    for seed in sorted(set(base) & set(mine)):
        theirs, its = _problem(base[seed], name, "the baseline: "), _problem(mine[seed], name, "")
        if its:
            own.append(f"seed {seed}: {its}")
        if theirs or its:
            lost.append(f"seed {seed}: {theirs or its}")
        elif name in base[seed]["measures"] and name in mine[seed]["measures"]:
            seeds.append(seed)
            left.append(float(base[seed]["measures"][name]))
            right.append(float(mine[seed]["measures"][name]))
            digests = base[seed].get("digest"), mine[seed].get("digest")
            same.append(bool(digests[0]) and digests[0] == digests[1])
    return _Pairs(arm, seeds, left, right, bool(same) and all(same), lost, own)


def _problem(record: Mapping[str, Any], name: str, whose: str) -> str:
    if record["status"] != "ok":
        return f"{whose}{record.get('reason') or record['status']}"
    value = record["measures"].get(name, 0.0)
    return "" if math.isfinite(value) else f"{whose}{name} is {value}"


def _why_lost(pairs: _Pairs, ran: int) -> tuple[str, ...]:
    """What is said of an arm that is left with too few pairs: its own failures first, then the baseline's."""
    others = len(pairs.lost) - len(pairs.own)
    if not others:
        return (pairs.own[0],)
    left = f"the baseline failed on {others} of {ran} seeds, so that {len(pairs.values)} pairs are left"
    return (*pairs.own[:1], left, *([] if pairs.own else pairs.lost[:1]))


def _lost(pairs: _Pairs) -> str:
    total = len(pairs.lost) + len(pairs.values)
    return f"{len(pairs.lost)} of {total} seeds left out ({pairs.lost[0]})" if pairs.lost else ""


def _untested(arm: str, measure: Measure, margin: float, word: str, note: str, n: int = 0) -> Verdict:
    nan = math.nan
    return Verdict(arm, measure.name, measure.axis, word, nan, nan, nan, n, nan, nan, margin, None, nan, nan, note)


def _mean(values: Sequence[float], measure: Measure) -> float:
    if measure.kind == "ratio":
        return math.exp(math.fsum(map(math.log, values)) / len(values))
    return math.fsum(values) / len(values)


def _more_seeds(
    interval: Interval, margin: float, ratio: float | None, confidence: float, multiplicity: float
) -> tuple[int | None, str]:
    mean, sd, n = interval.mean, interval.sd, interval.n
    if n < 2:
        return FEWEST_SEEDS, ""
    needed = seeds_to_decide(mean, sd, n, margin, ratio, confidence, CAP, multiplicity)
    if needed is not None:
        return needed, ""
    if decidable(mean, sd, margin, ratio, confidence, multiplicity):
        return None, f"more than {CAP} seeds would be needed"
    return None, FLOOR if ratio else "more seeds cannot decide; the mean lies on the margin"


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
