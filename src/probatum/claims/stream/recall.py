"""Claims of RECALL (arXiv:2209.14774): heads held to what they said of new rows remember classes without keeping a row.

All heads stand on the same frozen features; LwF and fine-tuning train one MLP with as many units as the five heads together.
Recall is the authors' setting for CORe50: regression, division by the spread, and the combined loss over all outputs.
Chosen by last accuracy, on seed 1: rates out of 3e-4, 1e-3 and 3e-3 (RECALL), 1e-5 and 1e-4 (fine-tuning); on seeds 1 to 3:
LwF's rate out of 1e-3, 3e-3 and 1e-2, RECALL's frequency out of 3 and 10 and its rate of later stages out of 0.03, 0.1, 0.3 and
1 of the first's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.frozen_stream import ALL_BUT_LAST, CLASSES, STAGES, WIDTH, FrozenStream, Learner
from probatum.claims.tools import interval, mean
from probatum.spec import Budget, Optimisation
from probatum.techniques.stream.class_incremental.class_incremental import ClassIncremental
from probatum.techniques.stream.recall import Recall
from probatum.train.rng import generator_for, seeded

BUDGET = Budget(300, 64, 25)
HIDDEN, OMEGA, RATE, LATER = 128, 10.0, 1e-3, 0.1
RATES = {"lwf": 3e-3, "finetune": 1e-5}
LEAD = 0.15
ARMS: dict[str, dict[str, object]] = {
    "recall": {},
    "unheld": {"old_weight": 0.0},
    "without_variance": {"variance": False},
    "plain": {"combined": 0.0},
    "plain_unheld": {"combined": 0.0, "old_weight": 0.0},
}


def recall(seed: int, **settings: object) -> Recall:
    """Heads of 128 units with the combined loss."""
    draws, order = generator_for(seed, "recall"), generator_for(seed, "order")
    own = {"hidden": HIDDEN, "omega": OMEGA, "combined": 1.0, "later_rate": LATER, **settings}
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

    def lead(name: str, over: str) -> float:
        found = interval([row[name] - row[over] for row in rows])
        measured.update(found.told(f"{name}_over_{over}"))
        return found.low

    leads = [lead("recall", "lwf"), lead("recall", "finetune"), lead("recall", "unheld")]
    lead("plain", "lwf")
    lead("plain", "plain_unheld")
    holds = leads[0] > 0 and leads[1] >= LEAD and leads[2] >= LEAD
    controls = {"the combined loss alone takes rows for the newest classes": measured["unheld_newest"] > 0.5}
    note = (
        "Without the combined loss (plain) the heads share no weights on frozen features, so that nothing pulls at the old ones: "
        "they remember without their loss as well, and it says nothing there."
    )
    return Evidence(holds, measured, tuple(rows), note, controls)


CLAIMS = (
    Claim(
        id="old-heads-are-held",
        says="Heads that regress to what they said of the new rows forget less than LwF, and collapse without that loss.",
        threshold="with variance, regression and the combined loss: the 90 % paired interval of the last accuracy's lead begins "
        "above 0 over LwF, and at 15 points or more over fine-tuning and over the same without the old heads' loss",
        data="10,000 images of MNIST in five stages of two classes, as features of a CNN trained on Fashion-MNIST",
        run=_run,
        minutes=4.0,
        needs_library=True,
        seeds=tuple(range(201, 213)),
    ),
)
