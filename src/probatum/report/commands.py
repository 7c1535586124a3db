"""The command that repeats a study."""

from __future__ import annotations

import shlex

from probatum.bench.results import Results

CONTEST = {
    "stages": "--stages",
    "base_classes": "--base-classes",
    "memory": "--stream-memory",
    "protocol": "--protocol",
    "start": "--start-labels",
    "query": "--query-labels",
    "rounds": "--rounds",
}
"""Options of an arena's own rules."""


def repeat_command(results: Results) -> str:
    """`probatum try ...` with what the plan says; data given from Python are named, not found again."""
    plan = results.plan
    source = results.summary.get("source") or {}
    words = ["probatum", "try", *(arm.name.replace(" + ", "+") for arm in plan.arms)]
    words += ["--data", str(source.get("data", plan.data.name))]
    for option in ("target", "modality", "group", "time", "split", "memory", "tokens", "vocabulary", "length"):
        value = source.get(option)
        if value and value != "auto":
            words += [f"--{option}", str(value)]
    if plan.data.world:
        words += ["--world", plan.data.world]
    words += ["--task", plan.data.task, "--seeds", str(len(plan.seeds)), "--primary", plan.primary]
    training = plan.base.training
    words += ["--steps", str(training.steps)] if training.steps else ["--epochs", str(training.epochs)]
    if plan.race:
        words.append("--race")
    if plan.equal_compute:
        words += ["--budget", "compute"]
    if plan.tune:
        words += ["--tune", str(plan.tune)]
    if plan.primary in plan.margins:
        words += ["--margin", f"{plan.margins[plan.primary]:g}"]
    if plan.base.model is not None:
        words += ["--model", str(plan.base.model)]
    again = plan.pretrained.get("again", {})
    for option, name in (("--pretrain", "source"), ("--pretrain-steps", "steps"), ("--pretrained", "weights")):
        if again.get(name) is not None:
            words += [option, str(again[name])]
    for name, option in CONTEST.items():
        words += [option, str(plan.contest[name])] if name in plan.contest else []
    words += _engine_words(results)
    return " ".join(shlex.quote(word) for word in words)


def _engine_words(results: Results) -> list[str]:
    plan, engine = results.plan, results.plan.engine
    words = [] if engine.device == "cpu" else ["--device", engine.device]
    if plan.speed:
        words += ["--speed", "auto"]
    if "bf16" in plan.speed:
        words += ["--precision", "auto"]
    elif engine.precision != "float32":
        words += ["--precision", engine.precision]
    if engine.devices > 1:
        words += ["--devices", str(engine.devices), "--strategy", engine.strategy]
    return words
