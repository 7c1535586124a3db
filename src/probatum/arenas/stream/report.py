"""What a continual-learning study shows beyond verdicts: accuracy by stage, means over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probatum.drawing import charts
from probatum.drawing.blocks import Block, Grid

WORDS = {
    "base_classes": "classes of the first stage",
    "memory": "memory of the stream in bytes",
}
"""What the rules are called."""


def blocks(results: Any) -> list[Block]:
    """Accuracy on the classes seen by stage, and for each arm the mean matrix of accuracies and the bytes kept."""
    found = _by_arm(results)
    if not found:
        return []
    lines = {arm: list(enumerate(_mean_rows(details, "accuracy"), start=1)) for arm, details in found.items()}
    label = "accuracy on classes seen"
    curve = charts.curves(lines, "stage", label, f"{label} by stage, mean over seeds")
    about = (
        "Row b, column i: test accuracy on the classes of stage i after stage b, mean over seeds; each seed draws its own "
        "order of classes. Below the tables: bytes kept after each stage."
    )
    grids = tuple(_matrix(arm, details) for arm, details in found.items())
    return [Block("stages", "Stages", about, (("accuracy by stage", curve),) if curve else (), grids)]


def _matrix(arm: str, details: list[dict[str, Any]]) -> Grid:
    count = len(details[0]["matrix"])
    seen, kept = _mean_rows(details, "accuracy"), _mean_rows(details, "stored")
    rows = []
    for b in range(count):
        known = [_mean([one["matrix"][b][i] for one in details]) for i in range(b + 1)]
        cells = [f"{value:.3f}" for value in known] + [""] * (count - b - 1)
        rows.append((str(b + 1), *cells, f"{seen[b]:.3f}"))
    words = ", ".join(f"{value:,.0f}" for value in kept) + " bytes"
    head = ("after stage", *map(str, range(1, count + 1)), "all seen")
    return Grid(head, tuple(rows), caption=f"{arm}; kept: {words}")


def _by_arm(results: Any) -> dict[str, list[dict[str, Any]]]:
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
