"""The speed settings of a study: probed once, kept in the store, so that a resumed study comes to the same choice."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, Protocol

from probatum.bench.context import Context, quiet
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.store import Store
from probatum.data.lazy.few import small
from probatum.engine import Engine
from probatum.recipe import Arm
from probatum.train.assemble import budget_for
from probatum.train.speed import as_json, probe

BLOB = "speed settings"


class Measure(Protocol):
    """Measures speed settings where the baseline may run."""

    def __call__(self, context: Context, *, bf16: bool) -> dict[str, Any]: ...


def measured(context: Context, *, bf16: bool) -> dict[str, Any]:
    """The settings that pay (`engine`) and the table of what was measured (`speed`), here and now."""
    plan = context.plan
    arms, work = len(plan.arms) + 1, context.baseline()
    rows = max(1024, 4 * plan.base.training.batch_size)
    with quiet(plan.threads):
        engine, found = probe(
            replace(work, data=small(work.data, rows)),
            steps=budget_for(plan.base.training, len(work.data.train)).steps,
            trials=arms * len(plan.seeds) * max(1, plan.tune),
            arms=arms,
            bf16=bf16,
        )
    return {"engine": asdict(engine), "speed": as_json(found)}


def chosen_speed(context: Context, store: Store, *, bf16: bool, measure: Measure = measured) -> StudyPlan:
    """The plan with the settings that pay on its baseline and the table of what was measured.

    Args:
        context: the study as it is without settings; steps are timed on its first split.
        store: where the choice is kept, under what the baseline's trials depend on.
        bf16: whether bfloat16 passes may be chosen.
        measure: measures.
    """
    plan = context.plan
    first = replace(plan, tune=0, equal_compute=False).trial(Arm("baseline", plan.base), "baseline", 0)
    # seeds and arms are not part of the key, so that a study with more of them goes on with the same choice
    key = key_of({**first, "kind": BLOB, "bf16": bf16})

    def made() -> bytes:
        return json.dumps(measure(context, bf16=bf16)).encode()

    engine, speed = store.settled(key, BLOB, made, _read_settings)
    return replace(plan, engine=engine, speed=speed)


def _read_settings(kept: bytes) -> tuple[Engine, dict[str, Any]]:
    """Settings and what was measured, out of the store; ValueError, TypeError or KeyError where they are none."""
    choice = json.loads(kept)
    return Engine(**choice["engine"]), dict(choice["speed"])
