"""Fine-tuning: a network that knows the digits 0 to 4 is adapted to 5 to 9 with few rows; what need be trained and stored?

Run `python examples/fine_tuning.py [--seeds 6] [--steps 200] [--report fine_tuning.html]`; needs no files.
"""

from __future__ import annotations

import numpy as np
from common import finish, options
from sklearn.datasets import load_digits

from probatum import Study
from probatum.settings import FineTuning, Judging, Reading, Running

ARMS = ["flora-tucker", "residual-adapters", "very-large-dropout"]
ROWS = 250


def halves() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images (n, 1, 8, 8) in [0, 1] with classes 0 to 4, and the first few hundred with 5 to 9."""
    digits = load_digits()
    x, y = (digits.images[:, None] / 16).astype(np.float32), digits.target
    known, new = y < 5, np.flatnonzero(y >= 5)[:ROWS]
    return (x[known], y[known]), (x[new], y[new] - 5)


if __name__ == "__main__":
    chosen = options(__doc__, report="fine_tuning.html", steps=200)
    source, target = halves()
    study = Study(
        target,
        ARMS,
        seeds=chosen.seeds,
        steps=chosen.steps,
        store=chosen.store,
        reading=Reading(modality="image"),
        judging=Judging(confirm=False),
        running=Running(timing=chosen.timing),
        fine_tuning=FineTuning(source=source),
    )
    finish(study, chosen.report)
