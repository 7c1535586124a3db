"""Memory of a process that trains on a streamed table, from the system's own count."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from processes import ran

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmarks" / "stream.py"
SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("stream_benchmark", sys.argv[1])
stream = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stream)
peaks = []
for path in sys.argv[2:]:
    found = stream.train_on(Path(path), "32MiB", 60)
    peaks.append(found["peak MB of the process"] + found["peak MB of its children"])
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is read from /proc")
def test_a_large_file_trains_in_little_more_memory_than_a_small_one(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("stream_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    small, large = tmp_path / "small.parquet", tmp_path / "large.parquet"
    benchmark.write(small, 2e6, 60, 2000)
    benchmark.write(large, 150e6, 60, 20_000)
    environment = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ended = ran(sys.executable, "-c", SCRIPT, BENCHMARK, small, large, env=environment)
    assert ended.returncode == 0, ended.stderr
    first, both = json.loads(ended.stdout.splitlines()[-1])
    # Read into memory, the large one takes 1800 MB more: 300 as numbers, 150 encoded, and copies of both on the way.
    assert both - first < 250
