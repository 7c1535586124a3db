"""The line below the table: which other measures moved, in an order that does not hang on times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from probatum.report.table import other_axes

pytestmark = pytest.mark.fast


def results(words: dict[str, str]) -> Any:
    """Three measures on two axes, a whole verdict each, in the order in which results tell them."""
    axes = {"train-memory": "size", "macs": "speed", "parameters": "size"}
    measures = [SimpleNamespace(name=name, kind="ratio", higher_is_better=False) for name in axes]
    verdicts = [
        SimpleNamespace(arm="own", measure=name, axis=axis, word=words.get(name, "undecided"), mean=-1.0, margin=0.1)
        for name, axis in axes.items()
    ]
    return SimpleNamespace(
        measures=lambda: measures, verdicts=lambda: verdicts, plan=SimpleNamespace(primary="accuracy")
    )


@pytest.mark.parametrize("first", ["hurts", "undecided"])
def test_axes_stand_in_the_same_order_whichever_measure_of_them_is_decided(first: str) -> None:
    told = other_axes(results({"train-memory": first, "macs": "hurts", "parameters": "hurts"}))["own"].plain
    size = "train-memory" if first == "hurts" else "parameters"
    assert told == f"{size} x2.7, macs x2.7"
