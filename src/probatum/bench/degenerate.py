"""Answers that no measure should be believed of: one class, or one value, for every row; and a baseline that is always right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probatum.bench.many_classes import classes_of, occurred
from probatum.bench.store import Trial


def degenerate(trials: Iterable[Trial], classes: Sequence[str], baseline: str) -> dict[str, str]:
    """Arms whose answers are degenerate, each with what it does and on how many of its finished seeds.

    That is one class for all test rows where these are of several, one value for all of them, and of the baseline that it is
    right on every test row on most seeds, so that nothing can improve its accuracy.

    Args:
        trials: of all arms, as they were stored.
        classes: their names in the order of their codes; () = they are not known.
        baseline: name of its arm.
    """
    finished: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        if trial.status == "ok":
            finished.setdefault(trial.arm, []).append(trial.record)
    found = {}
    for arm, records in finished.items():
        told = _one_class(records, classes) + _constant(records) + (_right(records) if arm == baseline else [])
        if told:
            found[arm] = "; ".join(told)
    return found


def always_one(trials: Iterable[Trial], classes: Sequence[str], arm: str) -> str:
    """What an arm answers for every row on every seed that it finished, as `degenerate` says it; "" where answers differ."""
    records = [trial.record for trial in trials if trial.arm == arm and trial.status == "ok"]
    for told in (*_one_class(records, classes), *_constant(records)):
        if told.endswith(_of(records, records)):
            return told
    return ""


def only_class(record: Mapping[str, Any]) -> int | None:
    """The class that was answered for all test rows, where they are of several; None where several were answered."""
    truths: set[int] = set()
    answered: set[int] = set()
    for truth, answer in occurred((record.get("details") or {}).get("per_class", {})):
        truths.add(truth)
        answered.add(answer)
        if len(answered) > 1:  # soon, as a rule, and there may be many classes and trials
            return None
    return answered.pop() if len(truths) > 1 else None


def _one_class(records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    answered = [(only_class(record), record) for record in records]
    hits = [(code, classes_of(record["details"]["per_class"])) for code, record in answered if code is not None]
    if not hits:
        return []
    same = len({code for code, _ in hits}) == 1 and all(
        size == len(classes) for _, size in hits
    )  # worlds take classes out
    what = repr(str(classes[hits[0][0]])) if same else "one class"
    return [f"answers {what} for every row on {_of(hits, records)}"]


def _constant(records: Sequence[Mapping[str, Any]]) -> list[str]:
    hits = [record for record in records if (record.get("details") or {}).get("constant")]
    return [f"answers the same value for every row on {_of(hits, records)}"] if hits else []


def _right(records: Sequence[Mapping[str, Any]]) -> list[str]:
    hits = [record for record in records if record.get("measures", {}).get("accuracy") == 1.0]
    if 2 * len(hits) <= len(records):
        return []
    return [f"is right on every test row on {_of(hits, records)}: nothing can improve its accuracy there"]


def _of(hits: Sequence[Any], records: Sequence[Any]) -> str:
    return f"{len(hits)} of {len(records)} seeds"
