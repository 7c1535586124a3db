"""Ten seeds of one arm, one after another and stacked, as a study would run them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from probatum.arenas.predict import stacks
from probatum.data.open import open_dataset
from probatum.recipe import Arm, Recipe, Training
from probatum.rooms.arena import ModelFactory, Terms, Work, alone
from probatum.spec import Data, Spec
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import train
from probatum.train.replicas import Replica, train_replicas
from probatum.train.rng import derive, generator_for, seeded
from suite.timing import Benchmark, Call, Figures, Measure, Scale, compared, in_turns

PLANNED = 300
"""Steps of the study that the probe is asked about; fewer are timed."""
NEVER = 10**6
"""Steps an epoch, so that validation comes once, after the last step."""
SLOW_DOWN = 4.0
"""So much slower with two threads than with one, the two are fighting over the cores; no more is timed with two."""

ABOUT = (
    "time of ten runs one after another with 1 thread / time in the way that the bench's own probe chooses (field "
    "`chosen`; 1 by definition where it falls back to one after another): {}, 100 steps of batches of 64, from drawing "
    "the weights to the last update, the probe apart (`with_probe`: with it). stacked_k_threads, alone_k_threads: seconds "
    "of all ten; equal_threads: alone / stacked with 2 threads each; against_best: the faster way one after another / the "
    "faster way stacked"
)


@cache
def split(name: str, seed: int) -> Data:
    """A seed's split of an embedded dataset."""
    return open_dataset(name).prepare(seed)


def mlp(width: int) -> ModelFactory:
    """Two hidden layers on the pixels."""

    def build(spec: Spec) -> nn.Module:
        layers = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, spec.outputs))

    return build


def cnn(spec: Spec) -> nn.Module:
    """Two convolutions, batch norm, pooling, a linear head."""
    return nn.Sequential(
        nn.Conv2d(spec.shape[0], 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, spec.outputs),
    )


def works_of(dataset: str, factory: ModelFactory | None, count: int) -> list[Work]:
    """The seeds of the baseline arm; training at a constant rate, the last weights kept."""
    recipe = Recipe(Training(steps=PLANNED, batch_size=64, lr=1e-3, schedule="constant", select="last"))
    arm = Arm("baseline", recipe)
    return [Work(arm, "baseline", Terms(base=recipe), split(dataset, seed), seed, factory) for seed in range(count)]


def assembled(work: Work, steps: int) -> Assembly:
    """One run ready to go."""
    parts = assemble(alone(work.arm.recipe, work.data, work.seed, factory=work.factory), steps=steps)
    parts.run.budget = replace(parts.run.budget, steps_per_epoch=NEVER)
    return parts


def one_by_one(works: list[Work], steps: int, threads: int) -> Call:
    """One after another."""

    def call() -> None:
        torch.set_num_threads(threads)
        try:
            for work in works:
                parts = assembled(work, steps)
                with seeded(work.seed, "training"):
                    train(
                        parts.run, parts.methods, generator_for(work.seed, "order"), schedule="constant", select="last"
                    )
        finally:
            torch.set_num_threads(1)

    return call


def stacked(works: list[Work], steps: int, threads: int) -> Call:
    """All as one."""

    def call() -> None:
        torch.set_num_threads(threads)
        try:
            replicas = []
            for work in works:
                parts, order = assembled(work, steps), generator_for(work.seed, "order")
                replicas.append(Replica(parts.run, parts.methods, order, derive(work.seed, "training")))
            train_replicas(replicas, schedule="constant", select="last")
        finally:
            torch.set_num_threads(1)

    return call


WAYS = {"alone": one_by_one, "stacked": stacked}


def benchmark(name: str, dataset: str, factory: ModelFactory | None, what: str) -> Benchmark:
    """The benchmark of one network; the probe is part of the set-up, when the machine is quiet."""

    def prepare(scale: Scale) -> Measure:
        works = works_of(dataset, factory, scale.replicas)
        begun = time.perf_counter()
        choice = stacks.probe(works, 1, scale.threads)
        probe_seconds = time.perf_counter() - begun

        def measure() -> dict[str, Figures]:
            two = {} if scale.threads != 2 else {n: w for n, w in WAYS.items() if not hopeless(w, works, scale.steps)}
            single = {f"{way}_1": call(works, scale.steps, 1) for way, call in WAYS.items()}
            double = {f"{way}_2": call(works, scale.steps, 2) for way, call in two.items()}
            # two threads suffer most where others run beside: they are timed apart unless they are what is chosen
            blocks = [single | double] if choice.threads == 2 else [single, double]
            taken: dict[str, list[float]] = {}
            for calls, share in zip(blocks, (1.0, 0.4), strict=False):
                taken |= in_turns(calls, scale.slow_pairs, share * scale.seconds, warmup=[lambda: None])
            return {name: figures(taken, choice, probe_seconds, what)}

        return measure

    return Benchmark((name,), prepare)


def hopeless(way: Callable[[list[Work], int, int], Call], works: list[Work], steps: int) -> bool:
    """Warm up with a few steps, and say whether two threads are much slower than one, as they are on a busy machine."""
    best = {}
    for threads in (1, 2):
        call, best[threads] = way(works, max(2, steps // 20), threads), float("inf")
        for _ in range(2):
            start = time.perf_counter()
            call()
            best[threads] = min(best[threads], time.perf_counter() - start)
    return best[2] > SLOW_DOWN * best[1]


def figures(taken: dict[str, list[float]], choice: stacks.Choice, probe_seconds: float, what: str) -> Figures:
    """The ratio of what the bench chooses, and all the others."""
    chosen = f"stacked_{choice.threads}" if choice.stack else "alone_1"
    told = {"stacked_1": "stacked, 1 thread", "stacked_2": "stacked, 2 threads", "alone_1": "one after another"}
    note = "" if chosen in taken else "the machine is too busy for two threads; ratio: stacked with one"
    measured = chosen if chosen in taken else "stacked_1"
    found = compared(taken["alone_1"], taken[measured])
    again = found["against_seconds"] + probe_seconds
    found |= {
        "better": "higher",
        "chosen": told[chosen] + (f" ({choice.reason})" if choice.reason else ""),
        "probe_seconds": probe_seconds,
        "with_probe": found["seconds"] / again,
    }
    best = {}
    for way in ("alone", "stacked"):
        both = {name: times for name, times in taken.items() if name.startswith(way)}
        found |= {f"{name}_threads".replace("_1_threads", "_1_thread"): median(both[name]) for name in both}
        best[way] = min(median(times) for times in both.values())
    if {"alone_2", "stacked_2"} <= set(taken):
        found["equal_threads"] = compared(taken["alone_2"], taken["stacked_2"])["ratio"]
    found["equal_1_thread"] = compared(taken["alone_1"], taken["stacked_1"])["ratio"]
    found["against_best"] = best["alone"] / best["stacked"]
    if note:
        found["note"] = note
    return {**found, "about": ABOUT.format(what)}


def median(values: list[float]) -> float:
    """Middle of a few numbers."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


WIDTHS = (64, 128, 256, 512, 1024)
BENCHMARKS = (
    *(
        benchmark(f"replicas_mlp{width}_x10", "digits", mlp(width), f"digits MLP 64-{width}-{width}-10")
        for width in WIDTHS
    ),
    benchmark("replicas_cnn_x10", "digits", cnn, "digits, two convolutions (16, 32), batch norm, pooling, head"),
    benchmark("replicas_resnet_x10", "digits", None, "digits, the image baseline (SmallResNet)"),
    benchmark("replicas_table_x10", "breast-cancer", None, "breast-cancer, the table baseline (three of 192, dropout)"),
)
