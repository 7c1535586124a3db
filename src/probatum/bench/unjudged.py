"""Whether a study could judge anything at all, and why not: for the answer, and for an exit code of its own."""

from __future__ import annotations

from collections.abc import Sequence

from probatum.bench.statistics import FEWEST_SEEDS
from probatum.bench.store import Trial
from probatum.bench.verdict import Verdict


def is_judged(verdict: Verdict) -> bool:
    """Whether a verdict says something: undecided is an honest answer of enough seeds, and none of too few."""
    enough = verdict.word == "undecided" and verdict.n >= FEWEST_SEEDS
    return enough or verdict.word in ("helps", "hurts", "no material difference")


def why_not(found: Sequence[Verdict], primary: str, *, unmeasured: bool, one_answer: str) -> str:
    """Why nothing could be judged, without a full stop; "" where something was.

    A baseline that answers one class for every row has learned nothing that could be improved; that an arm helps all the
    same is a judgement.

    Args:
        found: verdicts of all arms on the measure that decides.
        primary: its name.
        unmeasured: whether arms have no verdict because no seed has the measure for them and the baseline.
        one_answer: what is said of a baseline that answers the same for every row on every seed; "" = it does not.
    """
    words = [v for v in found if v.word != "not applicable"]
    if not words:
        return f"no seed has {primary} for both an arm and the baseline" if unmeasured else "nothing tried here applies"
    if any(map(is_judged, words)):
        helped = any(v.word == "helps" for v in words)
        return f"the baseline {one_answer}, so that there is nothing to improve" if one_answer and not helped else ""
    failed = [v for v in words if v.word == "failed"]
    broken = f"{len(failed)} of {len(words)} failed ({failed[0].arm}: {failed[0].note})" if failed else ""
    return "; ".join(filter(None, (_too_few([v for v in words if v.word == "undecided"]), broken)))


def why_no_probe(trials: Sequence[Trial]) -> str:
    """Why nothing could be measured where arms do not compete; "" where something was."""
    if any(trial.status == "ok" for trial in trials):
        return ""
    first = [f" ({trial.arm}: {trial.record.get('reason', '')})" for trial in trials[:1]]
    return f"none of {len(trials)} trials went well{''.join(first)}"


def _too_few(words: Sequence[Verdict]) -> str:
    """What is said where no arm has enough pairs; "" without arms."""
    if not words:
        return ""
    most = max(words, key=lambda v: v.n)
    if most.n == 0:
        return most.note
    pairs = f"{most.n} paired seed{'' if most.n == 1 else 's'}; a verdict needs {FEWEST_SEEDS}"
    needs = [v.seeds_needed for v in words if v.seeds_needed is not None]
    more = f"{min(needs)} seeds would decide the nearest with a chance of 80 %" if needs else ""
    return "; ".join(filter(None, (pairs, most.note if pairs not in most.note else "", more)))
