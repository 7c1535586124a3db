"""Claims of RECALL (arXiv:2209.14774): heads held to what they said of new rows remember classes without keeping a row.

All heads stand on the same frozen features; LwF and fine-tuning train one MLP with as many units as the five heads together.
Chosen on seed 1, by last accuracy: rates out of 3e-4, 1e-3 and 3e-3 (RECALL), 1e-3, 3e-3 and 1e-2 (LwF), 1e-5 and 1e-4
(fine-tuning); frequencies out of 3, 10 and 30; the rate of later stages out of 0.1 and 1 of the first's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.frozen_stream import ALL_BUT_LAST, CLASSES, STAGES, WIDTH, FrozenStream, Learner
from probatum.claims.tools import mean
from probatum.spec import Budget, Optimisation
from probatum.techniques.stream.class_incremental.class_incremental import ClassIncremental
from probatum.techniques.stream.recall import Recall
from probatum.train.rng import generator_for, seeded

BUDGET = Budget(300, 64, 25)
HIDDEN, OMEGA, RATE = 128, 10.0, 1e-3
RATES = {"lwf": 3e-3, "finetune": 1e-5}
LEAD = 0.20
ARMS: dict[str, dict[str, object]] = {
    "recall": {},
    "recall_unheld": {"old_weight": 0.0},
    "recall_cross_entropy": {"kind": "cross-entropy"},
    "combined": {"combined": 1.0},
    "combined_unheld": {"combined": 1.0, "old_weight": 0.0},
    "combined_without_variance": {"combined": 1.0, "variance": False},
}


def recall(seed: int, **settings: object) -> Recall:
    """Heads of 128 units."""
    draws, order = generator_for(seed, "recall"), generator_for(seed, "order")
    own = {"hidden": HIDDEN, "omega": OMEGA, **settings}
    return Recall(CLASSES, nn.Identity, draws, order, None, Optimisation(RATE), encoder=nn.Identity(), **own)


def rival(seed: int, method: str) -> ClassIncremental:
    """One MLP trained on."""
    with seeded(seed, "head"):
        units = HIDDEN * STAGES
        network = nn.Sequential(nn.Linear(WIDTH, units), nn.ReLU(), nn.Linear(units, CLASSES))
    given = (
        generator_for(seed, "head"),
        generator_for(seed, "order"),
        0,
        BUDGET.batch_size,
        Optimisation(RATES[method]),
    )
    return ClassIncremental(CLASSES, lambda: network, *given, method=method)


def row_of(seed: int) -> dict[str, float]:
    """Last accuracies of one seed, and how many rows of earlier stages are taken for the newest classes."""
    data, row = FrozenStream(seed, layers=ALL_BUT_LAST), {"seed": float(seed)}
    arms: dict[str, Learner] = {name: rival(seed, name) for name in RATES}
    arms |= {name: recall(seed, **settings) for name, settings in ARMS.items()}
    for name, learner in arms.items():
        data.shown(learner, BUDGET)
        row[name] = data.accuracy(learner)
        row[f"{name}_newest"] = data.newest_share(learner)
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    rows = [row_of(seed) for seed in seeds]
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    won = sum(row["recall"] >= row["lwf"] for row in rows)
    measured["wins_over_lwf"] = float(won)
    measured["lead_over_fine_tuning"] = measured["recall"] - measured["finetune"]
    measured["lost_without_old_loss"] = measured["recall"] - measured["recall_unheld"]
    measured["lost_without_old_loss_combined"] = measured["combined"] - measured["combined_unheld"]
    holds = (
        won >= 0.8 * len(rows)
        and measured["lead_over_fine_tuning"] >= LEAD
        and measured["lost_without_old_loss"] >= LEAD
    )
    note = (
        "Heads share no weights, and the features are frozen: nothing pulls at the old heads, so that they remember without their "
        "loss too, and a little better: it is rounding alone, which Adam turns into steps. With the authors' optional combined "
        "loss over all outputs the old heads are pulled at; there their loss, and its division by the spread, decide."
    )
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="old-heads-are-held",
        says="Heads that regress to what they said of the new rows forget less than LwF, and collapse without that loss.",
        threshold="with variance and regression: last accuracy at least LwF's on 4 of 5 seeds, on average 20 points above "
        "fine-tuning, and 20 points above the same without the old heads' loss",
        data="10,000 images of MNIST in five stages of two classes, as features of a CNN trained on Fashion-MNIST",
        run=_run,
        minutes=2.0,
        needs_library=True,
    ),
)
