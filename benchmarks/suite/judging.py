"""A verdict table from the store: by the test rows of every trial, beside the same without rows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from probatum.bench.packed_rows import gather, pack, unpack
from probatum.bench.store import Store, Trial
from probatum.bench.verdict import Verdict, verdicts
from probatum.measure.base import Measure
from suite.timing import Benchmark, Figures, Scale, compared, in_turns
from suite.timing import Measure as Measured

ARMS, SEEDS, MEASURES, TESTED, KNOWN = 40, 24, 20, 10_000, 50_000
ABOUT = (
    f"time of {ARMS * MEASURES} verdicts ({ARMS} arms, {SEEDS} seeds, {MEASURES} measures, {TESTED} test rows of {KNOWN}), read "
    "from a store with the rows / without them; seconds and megabytes: with rows, megabytes of the process at most"
)


def measures(count: int) -> list[Measure]:
    """So many measures of quality."""
    return [Measure(f"measure {k}", "quality", True, 0.01) for k in range(count)]


def filled(path: Path, scale: Scale) -> None:
    """Write the trials of one study with their rows; two seeds and arms alone at the smallest scale."""
    generator = np.random.default_rng(0)
    arms, seeds = (ARMS, SEEDS) if scale.records > 10_000 else (2, 2)
    with Store(path) as store:
        for seed in range(seeds):
            units = generator.permutation(KNOWN)[:TESTED]
            common = generator.normal(size=(MEASURES, TESTED))
            trials = []
            for arm in range(arms + 1):
                rows = common + 0.3 * generator.normal(size=common.shape) + 0.001 * arm
                values = {f"measure {k}": rows[k] for k in range(MEASURES)}
                record = {"measures": {name: float(own.mean()) for name, own in values.items()}}
                packed = pack(gather(values, units, KNOWN))
                trials.append(Trial(f"{arm} {seed}", "study", f"arm {arm}", seed, "fit", "ok", {}, record, rows=packed))
            store.put_all(trials)


def judged(path: Path, *, rows: bool) -> list[Verdict]:
    """All verdicts of the study."""
    with Store(path) as store:
        trials = store.trials("study")
    records = [
        {
            "arm": trial.arm,
            "seed": trial.seed,
            "status": trial.status,
            "measures": trial.record["measures"],
            "rows": unpack(trial.rows) if rows else None,
        }
        for trial in trials
    ]
    return verdicts(records, "arm 0", measures(MEASURES), ratio=1 / 3, primary="measure 0")


def prepare(scale: Scale) -> Measured:
    """A store in a folder of its own."""
    folder = tempfile.TemporaryDirectory(prefix="verdicts-")
    path = Path(folder.name) / "store.sqlite"
    filled(path, scale)

    def measure() -> dict[str, Figures]:
        with folder:
            calls: dict[str, Callable[[], object]] = {
                "rows": lambda: judged(path, rows=True),
                "plain": lambda: judged(path, rows=False),
            }
            taken = in_turns(calls, scale.slow_pairs, scale.seconds)
            figures = compared(taken["rows"], taken["plain"])
            peak = _peak(path)
        return {"verdict_table_by_rows": {**figures, "better": "lower", "megabytes": peak, "about": ABOUT}}

    return measure


def _peak(path: Path) -> float:
    """Megabytes that a process of its own, which judges once, takes at most."""
    code = (
        "import resource, sys; from pathlib import Path; from suite.judging import judged; "
        "judged(Path(sys.argv[1]), rows=True); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    return float(ended.stdout)


BENCHMARKS = (Benchmark(("verdict_table_by_rows",), prepare),)
