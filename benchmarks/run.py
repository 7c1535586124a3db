"""Speed side by side: measured in turns in one process, as ratios with 95 % intervals.

    python benchmarks/run.py [NAME ...]        # without a name: all of them, written to benchmarks/latest.json
    python benchmarks/run.py --quick NAME      # fewer pairs, for a look
    python benchmarks/run.py --update NAME ... # these anew, the others in benchmarks/latest.json kept (same machine only)

What a ratio is of what stands in `about`; most are our time over another's, so that below 1 ours is faster. Timings on a
shared machine are noisy; only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from suite import isolation, judging, loop, posteriors, racing, replicas, startup, store, techniques
from suite.timing import FULL, QUICK, TINY, Benchmark, Figures, Scale

LATEST = Path(__file__).parent / "latest.json"
SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}
BENCHMARKS: tuple[Benchmark, ...] = (
    *replicas.BENCHMARKS,
    *loop.BENCHMARKS,
    *racing.BENCHMARKS,
    *techniques.BENCHMARKS,
    *posteriors.BENCHMARKS,
    *startup.BENCHMARKS,
    *store.BENCHMARKS,
    *judging.BENCHMARKS,
    *isolation.BENCHMARKS,
)


def run(chosen: Sequence[str], scale: Scale) -> tuple[dict[str, Figures], list[str]]:
    """Set all chosen benchmarks up, then measure one after another; figures by name, and the names that failed.

    A benchmark whose rival is not installed is left out, and that is said; one that fails does not take the others with
    it.
    """
    known = [name for benchmark in BENCHMARKS for name in benchmark.names]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"no benchmark {unknown[0]}; there are {', '.join(known)}")
    wanted = [one for one in BENCHMARKS if not chosen or set(chosen) & set(one.names)]
    ready, found, failed = [], {}, []
    for benchmark in wanted:
        try:
            ready.append((benchmark, benchmark.prepare(scale)))
        except ImportError as problem:
            print(f"{', '.join(benchmark.names)}: left out, {problem.name} is not installed", file=sys.stderr)
    gc.collect()
    gc.freeze()  # collections between the rounds need not walk through all that was imported
    for benchmark, measure in ready:
        begun = time.perf_counter()
        try:
            found |= measure()
        except Exception as problem:
            failed += benchmark.names
            print(f"{', '.join(benchmark.names)}: {type(problem).__name__}: {problem}", file=sys.stderr)
        print(f"{time.perf_counter() - begun:6.1f} s  {', '.join(benchmark.names)}", file=sys.stderr, flush=True)
    return found, failed


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def table(found: dict[str, Figures]) -> Table:
    """All figures, one line each."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("benchmark", no_wrap=True)
    for header in ("ratio", "95 % interval", "pairs", "better"):
        shown.add_column(header, justify="right", no_wrap=True)
    shown.add_column("which way", overflow="fold")
    for name, one in found.items():
        interval = f"{one['low']:.3g} to {one['high']:.3g}"
        shown.add_row(name, f"{one['ratio']:.3g}", interval, str(one["pairs"]), one["better"], one.get("chosen", ""))
    return shown


def update(found: dict[str, Figures], about: dict[str, Any], scale: str) -> None:
    """Put some figures into the file of all; SystemExit where they cannot stand beside the others."""
    if scale != "full" or not LATEST.exists():
        raise SystemExit("only full measurements are kept, and only beside others: run without --quick and --tiny")
    kept = json.loads(LATEST.read_text(encoding="utf-8"))
    was, now = (tuple(one[key] for key in ("cpu", "cores", "torch")) for one in (kept["machine"], about))
    if was != now:
        raise SystemExit(f"the others were measured on {was}, this is {now}; run all of them: make bench")
    machine_of = kept.pop("machine")
    LATEST.write_text(json.dumps({**kept, **found, "machine": machine_of}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="those to run; none = all")
    parser.add_argument("--quick", action="store_const", const="quick", default="full", dest="scale")
    parser.add_argument("--tiny", action="store_const", const="tiny", dest="scale", help="only to see that all run")
    parser.add_argument("--out", type=Path, help="write the figures there")
    parser.add_argument(
        "--update", action="store_true", help="put the named ones into benchmarks/latest.json, keep the others"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    about = machine()  # before the load that this makes
    found, failed = run(arguments.name, SCALES[arguments.scale])
    Console(width=120).print(table(found))
    whole = not arguments.name and arguments.scale == "full" and not failed
    if arguments.update:
        update(found, about, arguments.scale)
    for path in {arguments.out, LATEST if whole else None} - {None}:
        path.write_text(json.dumps({**found, "machine": about}, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
