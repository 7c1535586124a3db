"""Active learning: which rows to ask labels for, 10 to begin with and 10 a round.

Run `python examples/labels.py [--seeds 6] [--steps 100] [--report labels.html]`; needs no files.
"""

from __future__ import annotations

from common import finish, options

from probatum import AcquireRules, Study
from probatum.settings import Judging, Running

ARMS = ["text-active-learning(strategy='margin')", "text-active-learning(strategy='badge')", "dynamic-al(scope='last')"]

if __name__ == "__main__":
    chosen = options(__doc__, report="labels.html", steps=100)
    study = Study(
        "breast-cancer",
        ARMS,
        rules=AcquireRules(start=10, query=10, rounds=5),
        seeds=chosen.seeds,
        steps=chosen.steps,
        store=chosen.store,
        judging=Judging(confirm=False),
        running=Running(timing=chosen.timing),
    )
    finish(study, chosen.report)
