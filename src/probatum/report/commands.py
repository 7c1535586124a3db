"""The command that repeats a study."""

from __future__ import annotations

import shlex

from probatum.bench.results import Results


def repeat_command(results: Results) -> str:
    """`probatum try ...` with what the plan says; data given from Python are named, not found again."""
    plan = results.plan
    source = results.summary.get("source") or {}
    words = ["probatum", "try", *(arm.name.replace(" + ", "+") for arm in plan.arms)]
    words += ["--data", str(source.get("data", plan.data.name))]
    for option in ("target", "modality", "group", "time", "split"):
        value = source.get(option)
        if value and value != "auto":
            words += [f"--{option}", str(value)]
    words += ["--task", plan.data.task, "--seeds", str(len(plan.seeds)), "--primary", plan.primary]
    training = plan.base.training
    words += ["--steps", str(training.steps)] if training.steps else ["--epochs", str(training.epochs)]
    if plan.equal_compute:
        words += ["--budget", "compute"]
    if plan.tune:
        words += ["--tune", str(plan.tune)]
    if plan.primary in plan.margins:
        words += ["--margin", f"{plan.margins[plan.primary]:g}"]
    if plan.base.model is not None:
        words += ["--model", str(plan.base.model)]
    return " ".join(shlex.quote(word) for word in words)
