"""What an active-learning study shows beyond verdicts: learning curves over labels, means over seeds."""

from __future__ import annotations

from typing import Any

from probatum.drawing import charts
from probatum.drawing.blocks import Block, Grid

KEY = "curve over labels"
WORDS = {"start": "labels at the beginning", "query": "labels asked for in a round"}
"""What the rules are called."""


def blocks(results: Any) -> list[Block]:
    """Test accuracy by labels asked for; calibration, agreement of the last two rounds and machine labels of each arm."""
    found = _by_arm(results)
    if not found:
        return []
    lines = {}
    for arm, curves in found.items():
        shortest = min((one["labels"] for one in curves), key=len)
        means = [sum(one["accuracy"][k] for one in curves) / len(curves) for k in range(len(shortest))]
        lines[arm] = list(zip([float(n) for n in shortest], means, strict=True))
    chart = charts.curves(lines, "labels", "accuracy", "test accuracy by labels asked for, mean over seeds")
    about = (
        "Every round trains anew from the seed's initial weights. Calibration error (15 bins) after the first and the last "
        "round; agreement is Cohen's kappa between the test predictions of the last two rounds (near 1, more labels change "
        "little); rows labelled by machine cost no label."
    )
    head = ("arm", "calibration error", "agreement", "labelled by machine")
    grid = Grid(head, tuple(_row(arm, curves) for arm, curves in found.items()))
    return [Block("labels", "Label curves", about, (("accuracy by labels", chart),) if chart else (), (grid,))]


def _row(arm: str, found: list[dict[str, Any]]) -> tuple[str, ...]:
    kappas = [one["kappa"][-1] for one in found if one["kappa"]]
    first, last = (_mean([one["ece"][k] for one in found]) for k in (0, -1))
    return (
        arm,
        f"{first:.3f} → {last:.3f}",
        f"{_mean(kappas):.3f}" if kappas else "",
        f"{_mean([one['machine'][-1] for one in found]):,.0f}",
    )


def _by_arm(results: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in (results.baseline, *(arm.name for arm in results.plan.arms), *results.plan.references):
        details = [
            t.record["details"][KEY] for t in results.trials if t.arm == arm and KEY in t.record.get("details", {})
        ]
        if details:
            found[arm] = details
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
