"""Every benchmark runs at its smallest, and what is written has the promised names and numbers that can be read."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from processes import ran

ROOT = Path(__file__).parents[1]
RUN = ROOT / "benchmarks" / "run.py"
RIVALS = {
    "loop_skorch": "skorch",
    "loop_lightning": "lightning",
    "conda_vs_pytorch_optimizer": "pytorch_optimizer",
    "sparsemax_vs_entmax": "entmax",
    "integrated_gradients_vs_captum": "captum",
    "deeplift_vs_captum": "captum",
    "tabm_vs_tabm": "tabm",
    "temperature_vs_netcal": "netcal",
}
WEIGHED = {
    "power_norm": "layer_norm",
    "idw_attention": "scaled_dot_product",
    "ssa": "dense_attention_512",
    "diffqkv": "full_heads",
    "dct_low_rank": "adamw",
    "dcls": "convolution",
    "stepnet": "residual_network",
    "distance_slopes": "scaled_dot_product",
}
OURS = {
    "loop_overhead",
    *(f"replicas_mlp{width}_x10" for width in (64, 128, 256, 512, 1024)),
    *(f"replicas_{name}_x10" for name in ("cnn", "resnet", "table")),
    "racing_trials_share",
    "encouraging_loss_vs_cross_entropy",
    "conda_vs_adamw",
    "conda_vs_adamw_512",
    "scale_optimizer_vs_adamw",
    "scale_optimizer_vs_adamw_512",
    "sparsemax_vs_softmax",
    "ibn_vs_batch_norm",
    *(f"{name}_vs_{other}" for name, other in WEIGHED.items()),
    "ssa_vs_plain_attention_512",
    *("ensemble_stacked_x10", "ensemble_stacked_256_x10", "chains_stacked_x8", "posterior_predicts_x10"),
    *(f"start_of_{name}_vs_import_torch" for name in ("list", "show", "try_help")),
    "store_sqlite",
    "verdict_table_by_rows",
    "watched_first_study",
    "watched_twenty_arms",
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return ran(sys.executable, RUN, *words)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What all benchmarks at their smallest write."""
    out = tmp_path_factory.mktemp("bench") / "out.json"
    before = (RUN.parent / "latest.json").read_bytes()
    ended = run("--tiny", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert (RUN.parent / "latest.json").read_bytes() == before, "only a full run may replace the recorded figures"
    return json.loads(out.read_text(encoding="utf-8"))


def test_all_names_are_there(written: dict[str, dict[str, Any]]) -> None:
    installed = {name for name, module in RIVALS.items() if importlib.util.find_spec(module) is not None}
    assert set(written) - {"machine", "store_postgres"} == OURS | installed
    assert {"cpu", "cores", "threads", "torch", "python"} <= set(written["machine"])


def test_figures_are_positive_numbers_inside_their_intervals(written: dict[str, dict[str, Any]]) -> None:
    for name, figures in written.items():
        if name == "machine":
            continue
        assert {"ratio", "low", "high", "pairs", "about", "better"} <= set(figures), name
        assert 0 < figures["low"] <= figures["ratio"] <= figures["high"] < math.inf, name
        assert figures["pairs"] >= 2, name


def test_fields_by_which_nobody_is_misled(written: dict[str, dict[str, Any]]) -> None:
    fields = {"chosen", "with_probe", "alone_1_thread", "stacked_1_thread", "equal_1_thread", "against_best"}
    for name in (name for name in written if name.startswith("replicas_")):
        assert fields <= set(written[name]), name
    for name, other in WEIGHED.items():
        assert written[f"{name}_vs_{other}"]["memory"] > 0
    assert written["diffqkv_vs_full_heads"]["memory"] == pytest.approx(6 / 16)
    race = written["racing_trials_share"]
    assert {"false_discovery_rate", "false_verdict_rate"} <= set(race["race_errors"])
    assert 0 < race["rows_shared"]["ratio"] < 1
    for name in ("store_sqlite", "store_postgres"):
        if name in written:
            assert written[name]["inserted"] >= 2000
            assert written[name]["read_trials"] == 21 * 24
            assert written[name]["verdicts"] == 20 * 8


def test_ratios_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    replicas, together = (
        importlib.import_module("suite.replicas"),
        importlib.import_module("probatum.arenas.predict.stacks"),
    )
    times = {"alone_1": [4.0, 4.4], "stacked_1": [2.0, 2.2], "alone_2": [3.0, 3.3], "stacked_2": [1.0, 1.1]}
    found = replicas.figures(times, together.Choice(True, 2), 0.3, "a network")
    assert found["ratio"] == pytest.approx(4)
    assert found["with_probe"] == pytest.approx(4.2 / 1.35)
    assert found["equal_1_thread"] == pytest.approx(2)
    assert found["equal_threads"] == pytest.approx(3)
    assert found["against_best"] == pytest.approx(3.15 / 1.05)
    assert found["stacked_2_threads"] == pytest.approx(1.05)
    assert replicas.figures(times, together.Choice(False, 1, reason="no gain"), 0.3, "a network")["ratio"] == 1
    busy = {name: values for name, values in times.items() if name.endswith("1")}
    beside = replicas.figures(busy, together.Choice(True, 2), 0.3, "a network")
    assert beside["ratio"] == pytest.approx(2)
    assert "too busy" in beside["note"]


def test_intervals_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    timing = importlib.import_module("suite.timing")
    ratios = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 9.0]
    found = timing.compared(ratios, [1.0] * 10)  # ten values: the second smallest and largest hold the median at 97.9 %
    assert [found[name] for name in ("low", "high")] == pytest.approx([1.1, 1.8])
    assert found["ratio"] == pytest.approx((1.4 * 1.5) ** 0.5)
    few = timing.compared([1.0, 4.0], [1.0, 1.0])
    assert few["ratio"] == pytest.approx(2)
    assert few["high"] == pytest.approx(2 * math.exp(12.7062 * math.log(2)), rel=1e-4)  # t of one degree of freedom
    assert timing.compared([1.0] * 6, [2.0] * 6)["pairs"] == 6


def test_an_unknown_name_is_said() -> None:
    ended = run("--tiny", "loop_underhead")
    assert ended.returncode == 1
    assert "no benchmark loop_underhead; there are replicas_mlp64_x10" in ended.stderr
