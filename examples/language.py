"""Language modelling: which parts help a small decoder on the text of Python's own language reference?

Run `python examples/language.py [--seeds 6] [--steps 300] [--report language.html]`; needs no files.
"""

from __future__ import annotations

from common import finish, options

from probatum import Study
from probatum.settings import Judging, Reading, Running

ARMS = [
    "generative-ai-parts",
    "generative-ai-parts(slopes='geometric')",
    "power-norm(mode='vanilla')",
    "conda",
    "gradient-noise",
]

if __name__ == "__main__":
    chosen = options(__doc__, report="language.html", steps=300)
    study = Study(
        "python-topics",
        ARMS,
        seeds=chosen.seeds,
        steps=chosen.steps,
        store=chosen.store,
        reading=Reading(task="next-token"),
        judging=Judging(confirm=False),
        running=Running(timing=chosen.timing),
    )
    finish(study, chosen.report)
