"""What it costs to compare, before and after every trial, what no trial may change."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from probatum import Study
from probatum.bench import isolation
from probatum.bench.context import Context
from probatum.settings import Judging, Running
from suite.timing import Benchmark, Figures, Measure, Scale, compared

DATA = "breast-cancer"
FIRST = (
    "encouraging-loss",
    "conda",
    "selu-snn",
    "tabm(k=16)",
    "gradient-noise",
    "gbnn(units=10)",
    "h-calibration",
    "gradual-magnitude-pruning",
)
"""The arms of ``make try``."""
MANY = (
    "batchformer",
    "cape",
    "cnn-svm",
    "conda",
    "cyclical-curriculum",
    "dct-low-rank",
    "deeply-supervised-nets",
    "detection-kde-calibration",
    "early-learning-regularization",
    "encouraging-loss",
    "gradient-noise",
    "gradual-magnitude-pruning",
    "guidance",
    "h-calibration",
    "hypernet-kit",
    "idw-attention",
    "maestro-lowrank",
    "mip-hypernet",
    "neighbor-consistency",
    "neural-collapse-longtail",
)
"""The first twenty that apply to a table of classes and train for as many steps as they are told."""
SEEDS = 2
ABOUT = (
    f"processor time of a study of {DATA}, {SEEDS} seeds, {{}}, in which every trial is watched / of the same study unwatched; "
    "looking: share of the watched study's time that its looks take, timed one by one"
)


@dataclass
class Looks:
    """`probatum.bench.isolation.watching`, with the time that it takes besides the work itself."""

    watching: Callable[..., Any]
    seconds: float = 0.0
    count: int = 0

    def __call__(
        self, context: Context, seeds: Collection[int], work: Callable[[], Any]
    ) -> tuple[Any, isolation.Found]:
        within = 0.0

        def timed() -> Any:
            nonlocal within
            begun = time.process_time()
            try:
                return work()
            finally:
                within += time.process_time() - begun

        begun = time.process_time()
        found = self.watching(context, seeds, timed)
        self.seconds += time.process_time() - begun - within
        self.count += 1
        return found


def unwatched(context: Context, seeds: Collection[int], work: Callable[[], Any]) -> tuple[Any, isolation.Found]:
    """The work alone."""
    return work(), isolation.Found()


def costs(name: str, arms: tuple[str, ...], scale: Scale) -> Measure:
    """A study run watched and unwatched in turns, in this process alone."""

    def study() -> float:
        judging, running = Judging(confirm=False), Running(timing=False, workers=1, stack="never")
        made = Study(DATA, list(arms), seeds=SEEDS, steps=scale.steps, judging=judging, running=running)
        begun = time.process_time()
        made.run()
        return time.process_time() - begun

    def measure() -> dict[str, Figures]:
        study()
        with_looks, without, share, begun = [], [], [], time.perf_counter()
        for turn in range(scale.slow_pairs):
            if turn >= 2 and time.perf_counter() - begun > 4 * scale.seconds:
                break
            looks = Looks(isolation.watching)
            with patch.object(isolation, "watching", looks):
                with_looks.append(study())
            share.append(looks.seconds / with_looks[-1])
            with patch.object(isolation, "watching", unwatched):
                without.append(study())
        figures = {**compared(with_looks, without), "looking": sum(share) / len(share), "looks": looks.count}
        return {name: {**figures, "better": "lower", "about": ABOUT.format(f"{len(arms)} arms, {scale.steps} steps")}}

    return measure


def prepare_try(scale: Scale) -> Measure:
    """The arms of the first study."""
    return costs("watched_first_study", FIRST[: 2 * scale.replicas], scale)


def prepare_many(scale: Scale) -> Measure:
    """Twenty arms."""
    return costs("watched_twenty_arms", MANY[: 2 * scale.replicas], scale)


BENCHMARKS = (Benchmark(("watched_first_study",), prepare_try), Benchmark(("watched_twenty_arms",), prepare_many))
