"""What a study of probes shows: measurements, which do not compete."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from probatum.drawing.blocks import Block, Grid


def blocks(results: Any) -> list[Block]:
    """Mean and range over seeds of everything that was measured."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for trial in results.trials:
        for name, value in trial.record.get("measures", {}).items():
            values[trial.arm, name].append(value)
    rows = tuple(
        (arm, name, _number(sum(found) / len(found)), _number(min(found)), _number(max(found)))
        for (arm, name), found in values.items()
    )
    grid = Grid(("arm", "measurement", "mean", "lowest", "highest"), rows, words=2)
    return [Block("measurements", "Measurements", grids=(grid,), printed=True)] if rows else []


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
