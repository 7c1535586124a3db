"""The speed settings of a study: probed once, kept in the store, so that a resumed study comes to the same choice."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from probatum.arenas.lazy_rows import small
from probatum.bench.context import quiet
from probatum.bench.plan import StudyPlan, key_of
from probatum.bench.store import Store
from probatum.recipe import Arm
from probatum.spec import Data
from probatum.train.assemble import ModelFactory, budget_for
from probatum.train.engine import Engine
from probatum.train.speed import as_json, probe

BLOB = "speed settings"


def chosen_speed(plan: StudyPlan, data: Data, factory: ModelFactory | None, store: Store, *, bf16: bool) -> StudyPlan:
    """The plan with the settings that pay on its baseline and the table of what was measured.

    Args:
        plan: as it is without settings.
        data: the split that steps are timed on.
        factory: builds the user's own network; None = the built-in one.
        store: where the choice is kept, under what the baseline's trials depend on.
        bf16: whether bfloat16 passes may be chosen.
    """
    first = replace(plan, tune=0, equal_compute=False).trial(Arm("baseline", plan.base), "baseline", 0)
    # seeds and arms are not part of the key, so that a study with more of them goes on with the same choice
    key = key_of({**first, "kind": BLOB, "bf16": bf16})
    kept = store.get_blob(key, BLOB)
    if kept is None:
        arms = len(plan.arms) + 1
        rows = max(1024, 4 * plan.base.training.batch_size)
        with quiet(plan.threads):
            engine, found = probe(
                plan.base,
                small(data, rows),
                0,
                factory,
                plan.engine,
                steps=budget_for(plan.base.training, len(data.train)).steps,
                trials=arms * len(plan.seeds) * max(1, plan.tune),
                arms=arms,
                bf16=bf16,
            )
        store.put_blob(key, BLOB, json.dumps({"engine": asdict(engine), "speed": as_json(found)}).encode())
        kept = store.get_blob(key, BLOB) or b"{}"  # another process may have been first
    choice = json.loads(kept)
    return replace(plan, engine=Engine(**choice.get("engine", {})), speed=choice.get("speed", {}))
