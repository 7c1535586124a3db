"""The command that repeats a study."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from probatum.bench.plan import StudyPlan
from probatum.bench.results import Results
from probatum.options import own_holders, words_for
from probatum.rooms.rules import rules_of
from probatum.settings import FineTuning, Judging, Reading, Running


def repeat_command(results: Results) -> str:
    """`probatum try ...` with what the plan says; data given from Python are named, not found again."""
    plan = results.plan
    source = dict(results.summary.get("source") or {})
    words = ["probatum", "try", *(arm.name.replace(" + ", "+") for arm in plan.arms)]
    words += ["--data", str(source.get("data", plan.data.name))]
    if source.get("target"):
        words += ["--target", str(source["target"])]
    reading = {**source, "task": plan.data.task, "world": plan.data.world or None}
    reading["drop"] = tuple(source.get("drop", ()))
    words += words_for(Reading, reading)
    words += _own(source)
    words += ["--seeds", str(len(plan.seeds)), "--primary", plan.primary]
    training = plan.base.training
    words += ["--steps", str(training.steps)] if training.steps else ["--epochs", str(training.epochs)]
    if plan.tune:
        words += ["--tune", str(plan.tune)]
    if plan.primary in plan.margins:
        words += ["--margin", f"{plan.margins[plan.primary]:g}"]
    if plan.base.model is not None:
        words += ["--model", str(plan.base.model)]
    words += _values(plan)
    return " ".join(shlex.quote(word) for word in words)


def _own(source: dict[str, Any]) -> list[str]:
    """What only the data's kind asks, and the folder of a kind from outside."""
    said = source.get("options") or {}
    words = ["--kind", str(source["folder"])] if "folder" in source else []
    known: set[str] = set()
    for holder in own_holders():
        words += words_for(holder, said)
        known |= {one.name for one in fields(holder)}
    for name, value in said.items():
        if name not in known and value is not None:
            told = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            words += ["--option", f"{name}={told}"]
    return words


def _values(plan: StudyPlan) -> list[str]:
    words = words_for(Judging, {"budget": "compute" if plan.equal_compute else "steps", "race": bool(plan.race)})
    engine, again = plan.engine, plan.pretrained.get("again", {})
    precision = "auto" if "bf16" in plan.speed else engine.precision
    running: dict[str, Any] = {
        "device": engine.device,
        "speed": "auto" if plan.speed else "plain",
        "precision": precision,
    }
    if engine.devices > 1:
        running |= {"devices": engine.devices, "strategy": engine.strategy}
    words += words_for(Running, running)
    words += words_for(FineTuning, again)
    rules = rules_of(plan.arena)
    return words if rules is None else words + words_for(rules, plan.contest)
