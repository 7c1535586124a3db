"""What is told of a budget of time: how far it came, and for whom it was not enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from probatum.bench.plan import StudyPlan
from probatum.bench.store import Trial
from probatum.rooms.arena import arena


def no_time(plan: StudyPlan, trials: Sequence[Trial]) -> dict[str, str]:
    """Arms that the time was not enough to judge, each with how far it came; an arm whose trials all failed is judged."""
    if not plan.minutes:
        return {}
    fewest = plan.race[0]
    done = {arm.name: [trial for trial in trials if trial.arm == arm.name] for arm in plan.arms}
    return {
        name: f"no time: {len(mine)} of the {fewest} seeds that a verdict needs"
        for name, mine in done.items()
        if len(mine) < fewest and (not mine or any(trial.status == "ok" for trial in mine))
    }


def time_note(plan: StudyPlan, ran: Mapping[str, int], without: Mapping[str, str], *, confirmed: bool) -> str:
    """How far the time came, in a sentence or three; the same command goes on.

    Args:
        plan: a study with minutes.
        ran: seeds of every arm and the baseline that count.
        without: arms for which there was no time.
        confirmed: whether no winner is left unconfirmed.
    """
    baseline = arena(plan.arena).BASELINE
    counts = Counter(seeds for name, seeds in ran.items() if name != baseline and name not in without)
    told = [f"{count} ran {seeds}" for seeds, count in sorted(counts.items())]
    note = f"{plan.minutes:g} minutes at a time: {sum(ran.values())} trials count"
    note += f"; of the arms {', '.join(told)} of at most {len(plan.seeds)} seeds." if told else "."
    if without:
        note += f" No time for {len(without)}: {', '.join(without)}."
    if not confirmed and plan.confirm:
        note += " No time was left to confirm the winner on fresh seeds."
    return f"{note} The same command goes on from here."
