"""What is told of a budget of time: how far it came, and for whom it was not enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from probatum.bench.plan import StudyPlan
from probatum.bench.store import Trial
from probatum.rooms.arena import arena

EATEN = 0.3
"""Share of a budget of time from which on it is said what went into reading and rehearsing."""


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
    """How far the time came, in a sentence or three; and that the same command goes on, where an arm was begun.

    Args:
        plan: a study with minutes.
        ran: seeds of every arm and the baseline that count.
        without: arms for which there was no time.
        confirmed: whether no winner is left unconfirmed.
    """
    baseline = arena(plan.arena).BASELINE
    counts = Counter(seeds for name, seeds in ran.items() if name != baseline and name not in without)
    told = [f"{count} ran {seeds}" for seeds, count in sorted(counts.items())]
    total = sum(ran.values())
    note = f"{_minutes(plan.minutes)} at a time: {total} {'trial' if total == 1 else 'trials'} of the baseline and the arms "
    note += "counts" if total == 1 else "count"
    note += f"; of the arms {', '.join(told)} of at most {len(plan.seeds)} seeds." if told else "."
    if without:
        note += f" No time for {len(without)}: {', '.join(without)}."
    if not confirmed and plan.confirm:
        note += " No time was left to confirm the winner on fresh seeds."
    if not any(seeds for name, seeds in ran.items() if name != baseline):
        return f"{note} No arm has a trial that counts: give more minutes."
    return f"{note} The same command goes on from here."


def before(plan: StudyPlan, spent: float, kept: float) -> list[str]:
    """What a budget of time will be used for, beforehand; [] for studies without one.

    Args:
        plan: the study.
        spent: seconds that have gone into reading and rehearsing.
        kept: seconds that are kept at most to confirm a winner.
    """
    if not plan.minutes:
        return []
    told = f"; up to {clock_words(kept)} are kept to confirm a winner on {len(plan.confirm)} fresh seeds"
    lines = [
        f"{_minutes(plan.minutes)} in all: two seeds of each arm, as far as the time allows, tell what a trial costs; then "
        f"every arm gets {plan.race[0]} before any gets more (at most {len(plan.seeds)}), the most promising per second first.",
        f"Arms that are decided or hopeless stop{told if plan.confirm else ''}.",
        "What is said at the end holds whenever it ends, and the same command goes on for as long again.",
    ]
    if spent >= EATEN * 60 * plan.minutes:
        left = max(0.0, 60 * plan.minutes - spent)
        lines.append(
            f"Reading and rehearsing took {clock_words(spent)} of the {clock_words(60 * plan.minutes)}, as it will every time; "
            f"{clock_words(left)} are left for trials: give more minutes, or name fewer techniques."
        )
    return lines


def clock_words(seconds: float) -> str:
    """Minutes and seconds as people write them: 2:05."""
    whole_seconds = round(seconds)
    return f"{whole_seconds // 60}:{whole_seconds % 60:02d}"


def _minutes(minutes: float) -> str:
    return f"{minutes:g} minute{'' if minutes == 1 else 's'}"
