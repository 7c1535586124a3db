"""Five worlds of known truth: does a technique keep its promise where the answer is known?

Run `python examples/worlds.py [--seeds 6] [--steps 300] [--report worlds]`; needs no files. A report is written for each world.
"""

from __future__ import annotations

from common import options
from rich.console import Console

from probatum import Study
from probatum.cli.try_view import print_results
from probatum.settings import Judging, Reading, Running

WORLDS = {
    "label-noise:0.4": ("digits", ["neighbor-consistency", "early-learning-regularization"], None),
    "spurious:0.95": ("digits", ["roadblocks", "intermediate-layer-classifiers(shots=100)"], "shifted-accuracy"),
    "long-tail:30": ("digits", ["neural-collapse-longtail(drw=0.8)", "encouraging-loss"], "balanced-accuracy"),
    "probabilities:2": ("breast-cancer", ["probabilistic-toolkit", "h-calibration"], "probability-mse"),
    "ood:held-out": ("wine", ["probabilistic-toolkit", "naive-bayes-head"], "ood-auroc"),
}
"""World -> data, techniques, and the measure that decides."""

if __name__ == "__main__":
    chosen = options(__doc__, report="worlds", steps=300)
    for world, (data, techniques, primary) in WORLDS.items():
        study = Study(
            data,
            techniques,
            primary=primary,
            seeds=chosen.seeds,
            steps=chosen.steps,
            store=chosen.store,
            reading=Reading(world=world),
            judging=Judging(confirm=False),
            running=Running(timing=False),
        )
        study.run()
        print(f"\n{data} in the world {world}")
        print_results(Console(), study.results)
        kind = world.split(":", maxsplit=1)[0]
        stem = chosen.report.removesuffix(".html")
        print(f"report: {study.report(f'{stem}-{kind}.html')}")
