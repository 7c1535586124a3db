"""The stages of a continual-learning study: accuracy by stage as curves and tables, means over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from probatum.bench.results import Results
from probatum.drawing import charts

RULES = {
    "stages": "stages",
    "base_classes": "classes of the first stage",
    "memory": "memory of the stream",
    "protocol": "protocol",
    "start": "labels at the beginning",
    "query": "labels asked for in a round",
    "rounds": "rounds",
    "noise": "standard deviation of the noise",
    "kept": "share of places kept for inpainting",
}


def stage_curves(results: Results) -> Markup:
    """Accuracy on all classes seen so far by stage, one line an arm; empty for other arenas."""
    lines = {arm: list(enumerate(_mean_rows(found, "accuracy"), start=1)) for arm, found in _by_arm(results).items()}
    label = "accuracy on classes seen"
    return Markup(charts.curves(lines, "stage", label, f"{label} by stage, mean over seeds"))


def stage_matrices(results: Results) -> list[dict[str, Any]]:
    """For each arm the mean matrix of accuracies as text, and the bytes kept after each stage."""
    found = []
    for arm, details in _by_arm(results).items():
        count = len(details[0]["matrix"])
        seen, kept = _mean_rows(details, "accuracy"), _mean_rows(details, "stored")
        rows = []
        for b in range(count):
            known = [_mean([one["matrix"][b][i] for one in details]) for i in range(b + 1)]
            cells = [f"{value:.3f}" for value in known] + [""] * (count - b - 1)
            rows.append({"stage": b + 1, "cells": cells, "seen": f"{seen[b]:.3f}"})
        words = ", ".join(f"{value:,.0f}" for value in kept) + " bytes"
        found.append({"arm": arm, "stages": list(range(1, count + 1)), "rows": rows, "kept": words})
    return found


def contest_rows(results: Results) -> list[tuple[str, str]]:
    """The contest's own rules in words."""
    rules = results.plan.contest
    shown = {**rules, "memory": f"{rules['memory']:,} bytes"} if "memory" in rules else dict(rules)
    return [
        (RULES.get(name, name), str(value))
        for name, value in shown.items()
        if not (name == "base_classes" and not value)
    ]


def _by_arm(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The stage details of each arm's finished trials, the baseline first, then arms and references."""
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in (results.baseline, *(arm.name for arm in results.plan.arms), *results.plan.references):
        details = [t.record["details"]["stages"] for t in results.trials if t.arm == arm and _has_stages(t.record)]
        if details:
            found[arm] = details
    return found


def _has_stages(record: Mapping[str, Any]) -> bool:
    return "stages" in record.get("details", {})


def _mean_rows(details: list[dict[str, Any]], key: str) -> list[float]:
    return [_mean([one[key][b] for one in details]) for b in range(len(details[0][key]))]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
