"""Continual learning: ten digits in five stages of two; who still knows the first ones in the end, with 8 KB to keep?

Run `python examples/stream.py [--seeds 6] [--steps 400] [--report stream.html]`; needs no files.
"""

from __future__ import annotations

from common import finish, options

from probatum import StreamRules, Study
from probatum.settings import Judging, Running

ARMS = [f"class-incremental(method={name})" for name in ("lwf", "replay", "icarl", "prototypes")]

if __name__ == "__main__":
    chosen = options(__doc__, report="stream.html", steps=400)
    study = Study(
        "digits",
        ARMS,
        rules=StreamRules(stages=5, memory="8KB"),
        seeds=chosen.seeds,
        steps=chosen.steps,
        store=chosen.store,
        judging=Judging(confirm=False),
        running=Running(timing=chosen.timing),
    )
    finish(study, chosen.report)
