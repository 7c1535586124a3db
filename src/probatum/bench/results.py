"""What a study found: trials turned into verdicts, tables and an answer in a sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from probatum.bench.degenerate import always_one, degenerate
from probatum.bench.packed_rows import unpack
from probatum.bench.pairing import by_arm, tests_both, value_of
from probatum.bench.plan import StudyPlan
from probatum.bench.race import Race
from probatum.bench.store import REMARK, Trial
from probatum.bench.time_words import no_time, time_note
from probatum.bench.unjudged import why_no_probe, why_not
from probatum.bench.verdict import NOT_MEASURED, Verdict, verdicts
from probatum.errors import InputError
from probatum.measure.base import Measure, all_measures
from probatum.rooms.arena import arena, competes
from probatum.rooms.task import task
from probatum.slots import PREDICT

SAME_ROWS = 0.2
"""Share of the variance that all seeds have in common beyond which fresh seeds confirm little."""


@dataclass(frozen=True)
class Results:
    """A study's plan, its trials, and what they say.

    Attributes:
        plan: the study's plan.
        trials: fits of the screen, references among them.
        timings: interleaved speed measurements.
        confirmation: fits of the baseline and the winner on fresh seeds; () where nothing won or it was not asked for.
        summary: the dataset's own summary.
    """

    plan: StudyPlan
    trials: tuple[Trial, ...]
    timings: tuple[Trial, ...]
    confirmation: tuple[Trial, ...]
    summary: dict[str, Any]

    @property
    def baseline(self) -> str:
        """Name of the baseline's arm."""
        return arena(self.plan.arena).BASELINE

    def measures(self) -> list[Measure]:
        """The arena's measures, the primary one first."""
        known = all_measures()
        spec_names = dict.fromkeys((self.plan.primary, *self.measured()))
        return [known[name] for name in spec_names if name in known]

    def measured(self) -> list[str]:
        """Names of everything any trial measured, in one order, whichever trial ended first and whichever was stored."""
        ran = (*self.trials, *self.timings)
        return sorted({name for t in ran for held in (t.record, t.timing) for name in held.get("measures", {})})

    def verdicts(self) -> list[Verdict]:
        """Every arm on every measure, then (measure by measure) what did not apply."""
        return list(self._verdicts)

    @cached_property
    def _verdicts(self) -> list[Verdict]:
        records = self._records(self.trials, self.timings)
        references = set(self.plan.references)
        found = [  # the references are context, not part of the screen, so they take no share of its error rate
            *self._judged([record for record in records if record["arm"] not in references], self.plan.race),
            *self._judged([record for record in records if record["arm"] in {*references, self.baseline}]),
        ]
        named = {measure.name: measure for measure in self.measures()}
        primary = named.get(self.plan.primary) or all_measures()[self.plan.primary]
        nan = math.nan
        begun = {trial.arm for trial in self.trials}
        without = {name: "not begun" for name in self.no_time() if name not in begun}
        for name, reason in (*self.plan.skipped.items(), *without.items()):
            word = "undecided" if name in without else "not applicable"
            found.append(
                Verdict(
                    *(name, primary.name, primary.axis, word, nan, nan, nan, 0, nan, nan),
                    *(self.plan.margins.get(primary.name, primary.margin), None, nan, nan, reason),
                )
            )
        return found

    def _judged(self, records: Sequence[dict[str, Any]], looks: tuple[int, ...] = ()) -> list[Verdict]:
        timed = [
            measure
            for measure in self.measures()
            if measure.name.endswith("-time-ratio") or measure.name == "latency-ratio"
        ]
        others = [measure for measure in self.measures() if measure not in timed]
        found: list[Verdict] = []
        # timings do not hang on the split, and a race takes them at its first look only
        for group, ratio, stages in ((others, self.plan.data.ratio, looks), (timed, None, ())):
            names = {measure.name for measure in group}
            found += verdicts(
                records,
                self.baseline,
                group,
                margins={name: value for name, value in self.plan.margins.items() if name in names},
                ratio=ratio,
                confidence=self.plan.confidence,
                looks=stages,
                primary=self.plan.primary,
                kappa=self._kappa,
            )
        return [v for v in found if v.note != NOT_MEASURED]

    def confirmed(self) -> Verdict | None:
        """The winner's verdict on the fresh seeds alone, by the primary measure."""
        if not self.confirmation:
            return None
        found = verdicts(
            [*self._records(self.confirmation, ())],
            self.baseline,
            [measure for measure in self.measures() if measure.name == self.plan.primary],
            margins={name: value for name, value in self.plan.margins.items() if name == self.plan.primary},
            ratio=self.plan.data.ratio,
            confidence=self.plan.confidence,
            kappa=self._kappa,
        )
        return found[0] if found else None

    @property
    def _kappa(self) -> float:
        return self.plan.data.kappa if self.plan.question == "datasets" else 0.0

    def asked_of(self) -> str:
        """What the intervals are about, in words."""
        data = self.plan.data
        new = "new groups of rows" if data.grouped else "new rows"
        if self.plan.question == "datasets":
            return f"other data sets like these, models trained on {data.fractions[0]:.0%} of one"
        if data.fixed_split:
            return f"{new} like the test rows, models trained on the training rows given"
        return f"{new} like these, models trained on {data.fractions[0]:.0%} samples of them"

    def rows_note(self) -> str:
        """A sentence where trials are without the test rows that others of this kind keep; "" where none is."""
        fitted = [trial for trial in self.trials if trial.status == "ok"]
        without = sum(not trial.rows for trial in fitted)
        if self.plan.arena != PREDICT or not without:
            return ""
        return (
            f"The test rows of {without} of {len(fitted)} trials are not known (an earlier version did not keep them): "
            "the intervals that rest on these are the older, wider ones."
        )

    def standing(self) -> list[Verdict]:
        """What a race knows so far: verdicts on the primary measure of all arms that ran."""
        references = set(self.plan.references)
        return verdicts(
            [record for record in self._records(self.trials, ()) if record["arm"] not in references],
            self.baseline,
            [self.measure(self.plan.primary)],
            margins={name: value for name, value in self.plan.margins.items() if name == self.plan.primary},
            ratio=self.plan.data.ratio,
            confidence=self.plan.confidence,
            looks=self.plan.race,
            kappa=self._kappa,
        )

    def seeds_run(self) -> dict[str, int]:
        """How many seeds of the screen the baseline and every arm ran, whatever came of it."""
        names = (self.baseline, *(arm.name for arm in self.plan.arms))
        return {name: sum(trial.arm == name for trial in self.trials) for name in names}

    def race_note(self) -> str:
        """How much of the full grid a race ran, in a sentence; "" for studies that are none."""
        if not self.plan.race:
            return ""
        ran = self.seeds_run()
        stopped = Counter(count for name, count in ran.items() if name != self.baseline)
        cap = len(self.plan.seeds)
        if self.plan.minutes:
            return time_note(self.plan, ran, self.no_time(), confirmed=bool(self.confirmation) or self.winner() is None)
        told = [f"{count} stopped after {seeds}" for seeds, count in sorted(stopped.items()) if seeds < cap]
        told += [f"{stopped[cap]} ran all {cap}"] if stopped[cap] else []
        return f"Raced: {sum(ran.values())} of {len(ran) * cap} trials were run; of the arms {', '.join(told)} seeds."

    def no_time(self) -> dict[str, str]:
        """Arms for which a budget of time was not enough to judge them, each with how far it came."""
        return no_time(self.plan, self.trials)

    def race_looks(self) -> list[tuple[int, float]]:
        """The looks of a race, and the nominal confidence of the intervals at each; [] for studies that are none."""
        plan = self.plan
        if not plan.race:
            return []
        known = any(math.isfinite(v.error) for v in self.primary_verdicts())  # rows need no guess at what splits share
        levels = Race(plan.race, None if known else plan.data.ratio, plan.confidence).levels()
        return list(zip(plan.race, levels.tolist(), strict=True))

    def primary_verdicts(self) -> list[Verdict]:
        """Verdicts on the primary measure, references left out, best first."""
        order = {"helps": 0, "undecided": 1, "no material difference": 2, "hurts": 3, "failed": 4, "not applicable": 5}
        mine = [v for v in self.verdicts() if v.measure == self.plan.primary and v.arm not in self.plan.references]
        return sorted(mine, key=lambda v: (order[v.word], -v.mean if math.isfinite(v.mean) else 0.0))

    def winner(self) -> str | None:
        """The arm with the largest gain among those that help on the screen."""
        return winner_of(self.verdicts(), self.plan.primary, [arm.name for arm in self.plan.arms])

    def unjudged(self) -> str:
        """Why nothing could be judged, in words without a full stop; "" where something was."""
        if not competes(self.plan.arena):
            return why_no_probe(self.trials)
        found, primary = self.primary_verdicts(), self.plan.primary
        unmeasured = bool({arm.name for arm in self.plan.arms} - {v.arm for v in found})
        same = always_one(self.trials, self._classes, self.baseline)
        return why_not(found, primary, unmeasured=unmeasured, one_answer=same)

    def answer(self) -> str:
        """The study's question answered in a sentence or two."""
        nothing = self.unjudged()
        if not competes(self.plan.arena):
            told = f"{len(self.plan.arms)} probe(s) measured over {len(self.plan.seeds)} seeds; see the measurements."
            return f"Nothing could be measured: {nothing}." if nothing else told
        primary = self.plan.primary
        words = [v for v in self.primary_verdicts() if v.word != "not applicable"]
        winner, confirmed = self.winner(), self.confirmed()
        lost = [trial for trial in self.trials if trial.arm == self.baseline and trial.status == "failed"]
        if winner is not None:
            best = next(v for v in words if v.arm == winner)
            change = change_text(best, self.measure(primary))
            won = _winner_text(winner, primary, best.n, change, confirmed, self.measure(primary))
            return won + self._baseline_degenerate()
        told = f" The baseline failed on {len(lost)} of {len(self.plan.seeds)} seeds." if lost else ""
        head = f"Nothing could be judged: {nothing}." if nothing else _no_winner(words, primary)
        return head + told + self._baseline_degenerate(nothing)

    def reference_note(self) -> str:
        """Whether a classical reference beats the baseline: the sentence a user should see first; "" for upper bounds."""
        if not getattr(arena(self.plan.arena), "RIVALS", True):
            return ""
        best = [
            v
            for v in self.verdicts()
            if v.measure == self.plan.primary and v.arm in self.plan.references and v.word == "helps"
        ]
        if not best:
            return ""
        top = max(best, key=lambda v: v.mean)
        return (
            f"{top.arm} beats the baseline here ({change_text(top, self.measure(self.plan.primary))} on {top.measure})."
        )

    def untimed(self) -> dict[str, str]:
        """Arms whose speed could not be measured, each with how often and why."""
        found: dict[str, str] = {}
        for arm in dict.fromkeys(trial.arm for trial in self.timings):
            mine = [trial for trial in self.timings if trial.arm == arm]
            lost = [trial for trial in mine if trial.status != "ok"]
            if lost:
                found[arm] = f"not timed on {len(lost)} of {len(mine)} seeds ({lost[0].record.get('reason', '')})"
        return found

    def remarked(self) -> dict[str, str]:
        """Arms of which something is told that is no result, such as seeds that could not be trained as one."""
        told = ((trial.arm, str(trial.timing[REMARK])) for trial in self.trials if REMARK in trial.timing)
        return dict(reversed(list(told)))

    def swap_note(self) -> str:
        """Whether weights that test rows chose were tested on validation rows too, and for which arms not, in a sentence or two."""
        if self.plan.arena != PREDICT:
            return ""
        if not self.plan.swap:
            return f"Test rows alone are tested{': they are given' if self.plan.data.fixed_split else ''}."
        out: dict[str, dict[str, None]] = {}
        for trial in self.trials:
            why = (trial.record.get("details") or {}).get("not_swapped")
            if why:
                out.setdefault(why, {})[trial.arm] = None
        both = "Weights chosen on validation rows are tested on test rows, and the other way round."
        if self.baseline in {arm for arms in out.values() for arm in arms}:
            why = next(why for why, arms in out.items() if self.baseline in arms)
            return f"Test rows alone are tested: {why}."
        told = [f"{', '.join(arms)} on test rows alone ({why})" for why, arms in out.items()]
        return f"{both} Not so {'; '.join(told)}." if told else both

    def choice_note(self) -> str:
        """A sentence where the measure that decides does not choose the weights on validation rows; "" where it does."""
        primary, select = self.plan.primary, self.plan.base.training.select
        if self.plan.arena != PREDICT or select == "last":
            return ""
        try:
            chooses = task(self.plan.data.task).CHOOSES
        except InputError:  # a kind of data from outside that has not joined
            return ""
        if not chooses or chooses.get(primary) == select:
            return ""
        return f"Weights are chosen by {select} on validation rows: {primary}, which decides, cannot be used there."

    def degenerate(self) -> dict[str, str]:
        """Arms, references too, that answer one class or one value for every row, or a baseline that is always right."""
        return dict(self._degenerate)

    @cached_property
    def _degenerate(self) -> dict[str, str]:
        return degenerate(self.trials, self._classes, self.baseline)

    @property
    def _classes(self) -> tuple[str, ...]:
        return tuple(self.summary.get("classes") or ())

    def _baseline_degenerate(self, said: str = "") -> str:
        told = self.degenerate().get(self.baseline)
        return f" Mind that the baseline {told}." if told and told not in said else ""

    def notes(self) -> dict[str, str]:
        """Arms with what went wrong beside their results."""
        all_of = (self.degenerate(), self.untimed(), self.remarked(), self.no_time())
        both = [item for found in all_of for item in found.items()]
        return {arm: "; ".join(text for name, text in both if name == arm) for arm, _ in both}

    def measure(self, name: str) -> Measure:
        """A measure by name."""
        return all_measures()[name]

    def mean(self, arm: str, measure: str) -> float | None:
        """An arm's mean over its finished trials with a finite value, of the rows that verdicts rest on; None without any."""
        return self._means.get((arm, measure))

    @cached_property
    def _means(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for arm, seeds in by_arm(self._records(self.trials, ())).items():
            mine = [record for record in seeds.values() if record["measures"]]
            for name in dict.fromkeys(name for record in mine for name in record["measures"]):
                having = [record for record in mine if name in record["measures"]]
                both = name in all_measures() and all(tests_both(record, self.measure(name)) for record in having)
                values = [value for record in having if math.isfinite(value := value_of(record, name, both))]
                if values:
                    found[arm, name] = sum(values) / len(values)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per arm, seed and measure."""
        return [
            {"arm": trial.arm, "seed": trial.seed, "status": trial.status, "measure": name, "value": value}
            for trial in (*self.trials, *self.timings)
            for name, value in {**trial.record.get("measures", {}), **trial.timing.get("measures", {})}.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything above as JSON values (NaN as None)."""
        confirmed = self.confirmed()
        return _finite(
            {
                "answer": self.answer(),
                "unjudged": self.unjudged(),
                "reference_note": self.reference_note(),
                "plan": self.plan.describe(),
                "data": self.summary,
                "question": self.asked_of(),
                "rows_note": self.rows_note(),
                "choice_note": self.choice_note(),
                "swap_note": self.swap_note(),
                "degenerate": self.degenerate(),
                "race": self._race_json(),
                "verdicts": [asdict(v) for v in self.verdicts()],
                "confirmation": asdict(confirmed) if confirmed else None,
                "trials": [
                    {
                        "arm": t.arm,
                        "seed": t.seed,
                        "status": t.status,
                        "key": t.key,
                        "record": t.record,
                        "timing": t.timing,
                    }
                    for t in (*self.trials, *self.timings, *self.confirmation)
                ],
            }
        )

    def _race_json(self) -> dict[str, Any] | None:
        if not self.plan.race:
            return None
        looks = [{"seeds": seeds, "level": level} for seeds, level in self.race_looks()]
        return {"note": self.race_note(), "looks": looks, "seeds_run": self.seeds_run()}

    def _records(self, trials: Sequence[Trial], timings: Sequence[Trial]) -> list[dict[str, Any]]:
        speed = {(trial.arm, trial.seed): trial.timing.get("measures", {}) for trial in timings}
        ratios = {name for found in speed.values() for name in found}
        timed = {seed for _, seed in speed}
        records = []
        for trial in trials:
            own = dict(trial.record.get("measures", {}))
            if trial.arm != self.baseline:
                own |= speed.get((trial.arm, trial.seed), {})
            elif trial.seed in timed:
                own |= dict.fromkeys(ratios, 1.0)
            records.append(
                {
                    "arm": trial.arm,
                    "seed": trial.seed,
                    "status": trial.status,
                    "measures": own,
                    "reason": trial.record.get("reason", ""),
                    "digest": trial.record.get("digest", ""),
                    "rows": unpack(trial.rows) if trial.rows else None,
                    "support": (trial.record.get("details") or {}).get("per_class", {}).get("support"),
                    "swapped": trial.record.get("swapped") if self.plan.swap else None,
                }
            )
        return records


def winner_of(found: Sequence[Verdict], primary: str, arms: Sequence[str]) -> str | None:
    """The arm with the largest gain among those that help."""
    helping = [v for v in found if v.measure == primary and v.word == "helps" and v.arm in arms]
    return max(helping, key=lambda v: v.mean).arm if helping else None


def change_text(verdict: Verdict, measure: Measure) -> str:
    """A verdict's difference and interval in words a person reads: "+0.012 [0.004, 0.020]" or "x0.50 [0.40, 0.60]".

    "" where there is no difference; where its interval has no ends it is called unknown.
    """
    if not math.isfinite(verdict.mean):
        return ""
    sign = 1 if measure.higher_is_better else -1
    mean, *ends = (sign * value for value in (verdict.mean, verdict.low, verdict.high))
    if measure.kind == "ratio":
        mean, *ends = map(_exp, (mean, *ends)) if all(map(math.isfinite, ends)) else (_exp(mean), math.nan)
    finite = all(map(math.isfinite, ends))
    if measure.kind == "ratio":
        before, form = "x", ".2f"
    else:  # bytes and parameters are counted
        before, form = "", "+,.0f" if max(map(abs, [mean, *(ends if finite else ())])) >= 1000 else "+.4f"
    digits = int(form[form.index(".") + 1])
    mean, *ends = (round(value, digits) + 0.0 if math.isfinite(value) else value for value in (mean, *ends))  # no -0
    if not finite:
        return f"{before}{mean:{form}}, interval unknown"
    low, high = sorted(ends)
    return f"{before}{mean:{form}} [{low:{form}}, {high:{form}}]"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # an interval of two seeds on logarithms
        return math.inf


def _winner_text(
    winner: str, primary: str, seeds: int, change: str, confirmed: Verdict | None, measure: Measure
) -> str:
    """What is answered where an arm helps on the screen; `change` says by how much there."""
    if confirmed is None:
        return f"{winner} helps: {change} on {primary} over {seeds} paired seeds (not confirmed on fresh seeds)."
    again = change_text(confirmed, measure)
    if confirmed.word == "helps":
        return f"{winner} helps: {again} on {primary}, confirmed on {confirmed.n} fresh seeds{_same_rows(confirmed)}."
    return (
        f"{winner} looked best ({change} on {primary}) but on {confirmed.n} fresh seeds the answer is "
        f"{confirmed.word!r}{f' ({again})' if again else ''}: do not count on it."
    )


def _same_rows(verdict: Verdict) -> str:
    """What fresh seeds have in common with those of the screen: the rows of one table."""
    if not verdict.common > 0:
        return ""
    told = f" on the same rows, which bring {verdict.common:.0%} of what is unsure"
    return f"{told}: seeds were confirmed, not rows" if verdict.common > SAME_ROWS else told


def _no_winner(words: Sequence[Verdict], primary: str) -> str:
    """What is answered where something was judged and no arm helps, by the verdicts on the primary measure."""
    failed = [v for v in words if v.word == "failed"]
    undecided = [v for v in words if v.word == "undecided"]
    broken = f"{len(failed)} of {len(words)} failed ({failed[0].arm}: {failed[0].note})." if failed else ""
    if undecided:
        needs = [v.seeds_needed for v in undecided if v.seeds_needed is not None]
        more = f"; {min(needs)} seeds would decide the nearest with a chance of 80 %" if needs else ""
        said = f"is shown to improve {primary}; {len(undecided)} of {len(words)} are undecided{more}."
    else:
        said = f"improves {primary} by a material amount."
    return " ".join(filter(None, (f"Nothing tried here {said}", broken)))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
