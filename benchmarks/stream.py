"""Training on a Parquet file larger than memory: peak memory, time of each phase, and rows a second beside a tensor.

    python benchmarks/stream.py --gb 5           # writes a file of 5 GB into a temporary folder, and removes it

The file is written row group by row group. Another process opens it with the given limit, trains the table baseline for
some steps and predicts all test rows once; what is printed is that process's VmHWM and its children's, from the system.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probatum.rooms.arena import Terms, alone
from probatum.settings import Reading

NUMBERS, GROUP_ROWS = 100, 100_000
WORDS = np.array([f"word{i:02d}" for i in range(40)])


def main() -> None:
    """Write the file, train on it in a process of its own, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=5.0, help="size of the file in GB")
    parser.add_argument("--memory", default="1GiB", help="limit that the data are opened with")
    parser.add_argument("--steps", type=int, default=6000, help="training steps of 64 rows")
    parser.add_argument("--numbers", type=int, default=NUMBERS, help="numeric columns")
    parser.add_argument("--group-rows", type=int, default=GROUP_ROWS, help="rows of a row group")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        print(json.dumps(train_on(options.train, options.memory, options.steps)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "large.parquet"
        rows = write(path, options.gb * 1e9, options.numbers, options.group_rows)
        print(f"{path.stat().st_size / 1e9:.2f} GB, {rows} rows, {options.numbers + 4} columns", flush=True)
        command = [sys.executable, __file__, "--train", str(path), "--memory", options.memory]
        ended = subprocess.run([*command, "--steps", str(options.steps)], capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(ended.stderr)
        for name, value in json.loads(ended.stdout.splitlines()[-1]).items():
            print(f"{name:>34}: {value}")


def write(path: Path, size: float, numbers: int, group_rows: int, seed: int = 0) -> int:
    """A binary problem of normal numbers, two categories, a date and a flag; rows are added until `size` bytes."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=numbers).astype(np.float32) / np.sqrt(numbers)
    writer, rows = None, 0
    while writer is None or path.stat().st_size < size:
        x = rng.standard_normal((group_rows, numbers), dtype=np.float32)
        word = rng.integers(0, len(WORDS), group_rows)
        score = x @ weights + 0.05 * (word - 20) + rng.logistic(size=group_rows) * 0.3
        columns: dict[str, Any] = {f"x{j:03d}": x[:, j] for j in range(numbers)}
        columns["x000"] = pa.array(x[:, 0], mask=rng.random(group_rows) < 0.05)
        columns["word"] = pa.array(WORDS[word]).dictionary_encode()
        columns["flag"] = pa.array(rng.random(group_rows) < 0.3)
        columns["day"] = pa.array(rng.integers(10_000, 19_000, group_rows).astype("datetime64[D]"))
        columns["bought"] = pa.array(np.where(score > 0, "yes", "no"))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=["word", "flag", "day", "bought"])
        writer.write_table(table)
        rows += group_rows
    writer.close()
    return rows


def train_on(path: Path, memory: str, steps: int) -> dict[str, Any]:
    """Open, split, train the baseline and predict the test rows; seconds, rows a second and peak memory in MB."""
    import torch

    from probatum.arenas.predict.arena import trial
    from probatum.data.lazy.few import first_rows
    from probatum.data.open import open_dataset
    from probatum.recipe import Arm, Recipe
    from probatum.rooms.arena import Work
    from probatum.train.baselines import training_for

    torch.set_num_threads(1)
    found: dict[str, Any] = {"MB before the data": peak("self")}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        found[f"seconds: {name}"] = round(time.perf_counter() - clock, 1)
        found[f"MB peak after: {name}"] = peak("self")
        clock = time.perf_counter()

    dataset = open_dataset(path, Reading(memory=memory), target="bought")
    found["notice"] = dataset.notices[0]
    lap("opening")
    data = dataset.prepare(0)
    lap("split and pipeline")
    found["rows"] = f"{len(data.train)} train, {len(data.valid)} valid, {len(data.test)} test"
    recipe = Recipe(training=replace(training_for("table", "classes"), steps=steps))
    streamed = rate(data, recipe, steps)
    lap("training")
    few = replace(data, train=first_rows(data.train, 20_000))
    resident = rate(few, recipe, steps)
    lap("training on a tensor")
    found["seconds to the first step"] = round(streamed[1], 1)
    found["rows a second, streamed"] = round(streamed[0])
    found["rows a second, tensor"] = round(resident[0])
    outcome = trial(Work(Arm("baseline", recipe), "baseline", Terms(base=recipe), data, 0))
    lap("a whole trial, all test rows once")
    found["test accuracy"] = round(outcome.measures["accuracy"], 4)
    found["peak MB of the process"] = peak("self")
    found["peak MB of its children"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)
    return found


def rate(data: Any, recipe: Any, steps: int) -> tuple[float, float]:
    """Rows a second of the training loop after its first step, reading included, and seconds until that has ended."""
    from probatum.data.lazy.few import first_rows, release
    from probatum.train.assemble import assemble
    from probatum.train.loop import train
    from probatum.train.rng import generator_for

    parts = assemble(alone(recipe, replace(data, valid=first_rows(data.valid, 256)), 0))
    parts.run.budget = replace(parts.run.budget, steps_per_epoch=steps + 1)
    ends: list[float] = []
    start = time.perf_counter()
    train(parts.run, [_Clock(ends)], generator_for(0, "order"), select="last")
    release(data.train, data.valid, data.test)
    return (steps - 1) * parts.run.budget.batch_size / (ends[-1] - ends[0]), ends[0] - start


class _Clock:
    """A method that only notes when steps end."""

    def __init__(self, ends: list[float]) -> None:
        self.ends = ends

    def step_end(self, run: Any) -> None:
        self.ends.append(time.perf_counter())


def peak(process: str) -> int:
    """VmHWM in MB: the most memory that was resident at one time."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6)
    return 0


if __name__ == "__main__":
    main()
