"""Claims of benign oscillation (arXiv:2310.17074): a large learning rate learns the weak feature that a small one misses.

The noise patches are twice as long as the weak feature, so that an example without the strong one is fitted by its noise where
nothing swings. At a third of the weak feature's length it is fitted by the weak feature at any rate: that arm stands beside.
The length was settled on seeds 0 to 19.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import interval, mean
from probatum.techniques.probe.benign_oscillation import World, run_world

STEPS, DECAY = 6000, 0.1
SMALL, LARGE, TOO_LARGE = 3.0, 5.0, (8.0, 10.0)
RATES = (1.0, SMALL, LARGE, *TOO_LARGE)
NOISE, SHORT = 0.6, 0.1
MARGIN = 0.1


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        row: dict[str, float] = {"seed": float(seed)}
        for rate in RATES:
            outcome = run_world(World(noise=NOISE), rate, STEPS, np.random.default_rng(seed), decay=DECAY)
            row[f"diverged_{rate:g}"] = float(outcome.diverged is not None)
            # a run that diverged knows nothing
            row[f"weak_right_{rate:g}"] = mean([float(margin > MARGIN) for margin in outcome.margins or (0.0,)])
            row[f"sign_changes_{rate:g}"] = outcome.sign_changes()
        short = run_world(World(noise=SHORT), SMALL, STEPS, np.random.default_rng(seed), decay=DECAY)
        row["weak_right_short_noise"] = mean([float(margin > MARGIN) for margin in short.margins])
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    small, large = f"weak_right_{SMALL:g}", f"weak_right_{LARGE:g}"
    gain = interval([row[large] - row[small] for row in rows])
    measured |= gain.told("gain")
    controls = {
        "diverges at rates 8 and 10": all(row[f"diverged_{rate:g}"] == 1 for row in rows for rate in TOO_LARGE),
        "the same on every seed": all(row[small] <= 0.6 and row[large] >= 0.95 for row in rows),
    }
    holds = measured[small] <= 0.6 and measured[large] >= 0.95 and gain.low >= 0.35
    return Evidence(holds, measured, tuple(rows), controls=controls)


CLAIMS = (
    Claim(
        id="weak-features-grow",
        says="SGD at a large learning rate oscillates and by that learns a weak feature that a small rate leaves alone.",
        threshold=(
            "mean share of weak-only tests with a margin above 0.1 at most 0.6 at rate 3 and at least 0.95 at rate 5, the "
            "lower end of the gain's interval over draws at least 0.35"
        ),
        data="the paper's world of weak and strong features: 16 examples of 60-dimensional patches",
        run=_run,
        minutes=0.5,
        seeds=tuple(range(201, 221)),
    ),
)
