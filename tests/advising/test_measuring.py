"""`make advice`: its numbers against enumeration and by hand, and a run at its smallest."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmark_files import benchmark
from probatum import Study
from probatum.advising.evidence import Earlier, Outcome
from probatum.advising.facts import Profile


@pytest.fixture(scope="module")
def advice() -> ModuleType:
    return benchmark("advice")


GAINS = {"a": 4.0, "b": -1.0, "c": 2.0, "d": 0.5, "e": -math.inf}


def test_the_share_of_an_order(advice: ModuleType) -> None:
    assert advice.share(["c", "d", "a", "b", "e"], GAINS, 2) == 0.5
    assert advice.share(["b", "e", "a", "c", "d"], GAINS, 2) == 0  # both lose, the baseline is kept
    assert advice.share(list("edcba"), GAINS, 9) == 1


@pytest.mark.parametrize("tried", [1, 2, 3, 5, 7])
def test_the_expectation_over_all_orders(advice: ModuleType, tried: int) -> None:
    shares = [advice.share(order, GAINS, tried) for order in itertools.permutations(GAINS)]
    assert advice.random_share(GAINS, tried) == pytest.approx(np.mean(shares))


def test_the_same_order_for_all(advice: ModuleType) -> None:
    like = Profile("table", "classes", 100, 2)

    def other(**gains: float | None) -> Earlier:
        return Earlier("x", "x", like, "s", {arm: Outcome("undecided", gain, 4) for arm, gain in gains.items()})

    others = [other(a=1.0, b=2.0, c=None), other(a=3.0, c=0.0), other(b=5.0, z=1.0)]
    # ranks of a: 1/2, 0; of b: 0, 0; of c: 1, 1; d is unknown
    assert advice.same_order(["d", "c", "a", "b"], others) == ["b", "a", "c", "d"]


def test_gains_on_the_held_seeds(advice: ModuleType, small_study: Study) -> None:
    rows = small_study.results.rows()
    found = advice.held_gains(rows, small_study.results, 4)
    values = {(r["arm"], r["seed"]): r["value"] for r in rows if r["measure"] == "accuracy"}
    by_hand = np.mean([values["encouraging-loss", s] - values["baseline", s] for s in (4, 5)]) / 0.01
    assert found["encouraging-loss"] == pytest.approx(by_hand)
    assert set(advice.held_gains(rows, small_study.results, 6).values()) == {-math.inf}


def test_arms_that_take_too_long_are_left_out(advice: ModuleType, small_study: Study) -> None:
    results = small_study.results
    longest = {t.arm: t.timing["seconds"] for t in results.trials}  # of the last seed
    assert advice.too_slow(results, 1e9) == {}
    found = advice.too_slow(results, 0.0)
    assert set(found) == {"encouraging-loss", "h-calibration(window=20, steps=20)"}  # neither baseline nor references
    assert all(found[arm] == round(longest[arm], 1) for arm in found)


def test_the_interval_covers_the_mean_and_shrinks_to_it(advice: ModuleType) -> None:
    found = advice.interval(np.array([0.0, 1.0] * 50))
    assert found["share"] == 0.5
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.5 / 10, abs=0.02)
    assert advice.interval(np.ones(3)) == {"share": 1.0, "low": 1.0, "high": 1.0}


def test_a_run_at_its_smallest_goes_on_where_it_was(
    advice: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--tables", "iris", "wine", "--arms", "selu-snn", "encouraging-loss", "--seeds", "1", "--held", "1"]
    words += ["--steps", "4", "--tried", "1", "--out", "found.json", "--most", "1e9"]
    first = advice.main(words)
    assert "table 2 of 2, wine: 0 of 6 trials are stored" in capsys.readouterr().out
    again = advice.main(words)
    assert "table 1 of 2, iris: 6 of 6 trials are stored" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "found.json").read_text())
        == json.loads(json.dumps(again))
        == json.loads(json.dumps(first))
    )
    assert [row["table"] for row in again["tables"]] == ["iris", "wine"]
    kept = advice.main([*words, "--kept", "kept"])  # written now
    (tmp_path / "probatum-runs" / "advice.sqlite").unlink()
    assert advice.main([*words, "--kept", "kept"]) == kept == again
    assert "its studies are finished, as kept tells" in capsys.readouterr().out
    said = advice.asked([*words, "--kept", "kept", "--steps", "5"])[0]
    facts = advice.facts_of(advice.open_dataset("iris"))
    assert advice.read("iris", facts, said) is None  # other settings
    assert advice.read("iris", facts, advice.asked([*words, "--kept", "kept"])[0]) is not None
    assert again["measured"]["tables"] == 2
    for row in again["tables"]:
        assert (row["shares"] is None) is (row["best_gain"] <= 1)
        assert set(row["first"]) == {"advice", "cards", "same"}
