"""Trains the network that the technique `pfn` brings for tables: ``python -m probatum.claims.learner.pfn_tables FILE MINUTES``.

It sees drawn tables alone (`probatum.techniques.learner.pfn.prior.table_prior`), never a real one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from probatum.techniques.learner.pfn.network import Limits, PriorFitted, fit_prior, save
from probatum.techniques.learner.pfn.prior import table_prior

LIMITS = Limits(features=32, rows=256, outputs=10, classes=True)
BATCH, ROWS, RATE, SEED = 8, 192, 8e-4, 7


def main(path: Path, minutes: float) -> None:
    """Train for so many minutes and write the file."""
    torch.manual_seed(SEED)
    model = PriorFitted(LIMITS, width=96, layers=4, heads=4, hidden=192)
    done = 0

    def told(step: int, loss: float) -> None:
        nonlocal done
        done = step
        if step % 500 == 0:
            print(f"step {step}: {loss:.3f}", flush=True)

    own = torch.Generator().manual_seed(SEED)
    fit_prior(
        model,
        lambda g: table_prior(BATCH, ROWS, LIMITS.features, LIMITS.outputs, g),
        10**6,
        own,
        lr=RATE,
        seconds=60 * minutes,
        told=told,
    )
    save(model, path, f"{done} steps of {BATCH} drawn tables with {ROWS} rows, seed {SEED}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
