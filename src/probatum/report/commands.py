"""The command that repeats a study."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from probatum.bench.results import Results
from probatum.bench.stored import wishes_from
from probatum.options import own_holders, word, words_for
from probatum.rooms.rules import rules_of
from probatum.settings import FineTuning, Judging, Reading, Running

BASIC = ("target", "model", "seeds", "epochs", "steps", "batch_size", "primary", "margin", "tune")
"""Arguments of `Study` that are options of their own."""


def repeat_command(results: Results) -> str:
    """`probatum try ...` with all that was asked; data given from Python are named, not found again."""
    plan = results.plan
    wishes = results.summary.get("wishes") or wishes_from(plan)
    source = results.summary.get("source") or {"task": plan.data.task, "world": plan.data.world or None}
    words = ["probatum", "try", *(wishes["techniques"] or ()), "--data", str(source.get("data", plan.data.name))]
    words += _basic({**wishes, "target": source.get("target"), "primary": plan.primary})
    words += words_for(Reading, source)
    for flag, places in (("--technique", wishes["files"]), ("--kind", wishes["kinds"])):
        words += [one for place in places for one in (flag, place)]
    words += own_words(source.get("options") or {})
    words += words_for(Judging, wishes["judging"]) + words_for(Running, wishes["running"])
    words += words_for(FineTuning, plan.pretrained.get("again", {}))
    rules = rules_of(plan.arena)
    words += [] if rules is None else words_for(rules, plan.contest)
    return " ".join(shlex.quote(one) for one in words)


def _basic(said: dict[str, Any]) -> list[str]:
    """The options that stand for arguments of `Study`; of passes and steps, steps, which decide where both are given."""
    words: list[str] = []
    for name in BASIC:
        value = said[name]
        unsaid = value is None or (name == "tune" and not value) or (name == "epochs" and said["steps"] is not None)
        words += [] if unsaid else [f"--{name.replace('_', '-')}", word(value)]
    return words


def own_words(said: dict[str, Any]) -> list[str]:
    """What only the data's kind asks."""
    words: list[str] = []
    known: set[str] = set()
    for holder in own_holders():
        words += words_for(holder, said)
        known |= {one.name for one in fields(holder)}
    for name, value in said.items():
        if name not in known and value is not None:
            text = ",".join(map(word, value)) if isinstance(value, list | tuple) else word(value)
            words += ["--option", f"{name}={text}"]
    return words
