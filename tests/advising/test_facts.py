"""Facts of made tables, by the numbers they were made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from probatum.advising.facts import DataFacts, facts_of, profile
from probatum.auditing.label_noise import Altered, altered
from probatum.data.open import open_dataset
from probatum.settings import Reading

N = 1500


def blobs(rng: np.random.Generator, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Two classes four deviations apart: (n, 2) points and codes."""
    y = rng.integers(0, 2, n)
    return rng.normal(size=(n, 2)) + 4.0 * y[:, None], y


def frame(rng: np.random.Generator, flipped: float = 0.0) -> pl.DataFrame:
    x, y = blobs(rng)
    y = np.where(rng.random(N) < flipped, 1 - y, y)
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": np.where(y == 1, "yes", "no")})


def facts(table: pl.DataFrame, **said: str) -> DataFacts:
    return facts_of(open_dataset(table, Reading(target="y", **said)), time=said.get("time"))  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_flipped_labels_are_found_at_their_rate(share: float) -> None:
    found = facts(frame(np.random.default_rng(0), share))
    labels = found["labels"].numbers
    assert labels["of"] == 225  # 15 % of 1,500 rows
    assert labels["low"] <= share <= labels["high"]
    assert labels["wrong"] == pytest.approx(share * labels["of"], abs=0.06 * labels["of"])
    assert ("noisy-labels" in found.traits) is (share > 0)
    assert (
        f"of the 225 labels that models of other rows are surest of, {labels['wrong']} are contradicted"
        in found["labels"].words
    )


@pytest.mark.parametrize("slope", [0.8, 1.0, 1.5, 2.5])
def test_classes_that_overlap_are_no_wrong_labels(slope: float) -> None:
    """Drawn with the chances of a logistic curve."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((4000, 4))
    y = rng.random(4000) < 1 / (1 + np.exp(-slope * x[:, 0]))
    table = pl.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, "y": np.where(y, "yes", "no")})
    found = facts(table)
    labels = found["labels"].numbers
    assert labels["altered_low"] <= 0.02
    assert not labels["told"]
    assert "noisy-labels" not in found.traits
    word = "not to be told from overlap" if labels["low"] > 0.05 else "no sign of wrong labels"
    assert found["labels"].words.endswith(word)
    assert "of labels look wrong" not in found["labels"].words


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4])
def test_altered_labels_are_more_than_overlap_explains(share: float, seed: int) -> None:
    found = facts(frame(np.random.default_rng(seed), share))
    labels = found["labels"].numbers
    assert "noisy-labels" in found.traits
    assert labels["altered_low"] - 0.02 <= share <= labels["altered_high"] + 0.02


def test_a_border_that_no_line_follows_is_no_wrong_label() -> None:
    rng = np.random.default_rng(12)
    x = rng.standard_normal((4000, 3))
    y = rng.random(4000) < 1 / (1 + np.exp(-3 * x[:, 0] * x[:, 1]))
    table = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": np.where(y, "yes", "no")})
    assert "noisy-labels" not in facts(table).traits


def rows_of_classes(seed: int, n: int, k: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """True probabilities (n, k) of Gaussian classes, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    means = spread * rng.standard_normal((k, 5))
    x = means[rng.integers(k, size=n)] + rng.standard_normal((n, 5))
    logits = x @ means.T - (means**2).sum(1) / 2
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p, (p.cumsum(1) < rng.random(n)[:, None]).sum(1).clip(max=k - 1)


@pytest.mark.parametrize(("k", "spread", "share"), [(2, 1.2, 0.1), (2, 1.2, 0.2), (10, 1.5, 0.1), (10, 1.5, 0.4)])
def test_the_share_of_wrong_labels_is_found_whatever_the_models_are_sure_of(
    k: int, spread: float, share: float
) -> None:
    rng, within = np.random.default_rng(1), 0
    for seed in range(20):
        p, y = rows_of_classes(seed, 1000, k, spread)
        hit = rng.random(1000) < share
        y = np.where(hit, (y + rng.integers(1, k, 1000)) % k, y)
        flat = p**0.4 / (p**0.4).sum(1, keepdims=True)  # as models are that learnt from such labels
        found = altered(np.stack([flat, np.full_like(p, 1 / k)]), y)  # the other knows nothing, and does not count
        within += found.low - 0.005 <= hit.mean() <= found.high + 0.005
        assert found.told
    assert within >= 17


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_labels_that_are_mistaken_for_one_other_class_are_told(share: float) -> None:
    rng, within = np.random.default_rng(2), 0
    for seed in range(10):
        p, y = rows_of_classes(seed, 1000, 6, 2.0)
        hit = rng.random(1000) < share
        y = np.where(hit, (y + 1) % 6, y)
        flat = p**0.5 / (p**0.5).sum(1, keepdims=True)
        found = altered(flat[None], y)
        within += found.low <= hit.mean() <= found.high
        assert found.told
    assert within >= 8


def test_classes_without_rows_say_nothing_of_noise() -> None:
    p, y = rows_of_classes(0, 600, 2, 1.2)
    y = np.where(np.random.default_rng(0).random(600) < 0.2, 1 - y, y)
    among = np.full((1, 600, 40), 1e-9)
    among[0][:, [5, 30]] = p
    assert altered(among, np.array([5, 30])[y]) == altered(p[None], y)
    assert altered(p[None], np.zeros(600, dtype=np.int64)) == (0.0, 0.0, 0.0, 0.0)


def test_what_matters_of_wrong_labels() -> None:
    found = Altered(0.1, 0.06, 0.14, 20.0)
    assert found.told
    assert found.matters(0.06, 0.05)
    assert not found.matters(0.05, 0.05)  # sure rows are contradicted no more often than may be
    assert not found.matters(0.3, 0.1)  # a share that is not material
    assert not found._replace(statistic=7.0).matters(0.3, 0.05)  # overlap explains it


@pytest.mark.parametrize(("k", "spread"), [(2, 0.2), (2, 0.6), (10, 0.5), (10, 1.5)])
def test_overlap_alone_is_rarely_told(k: int, spread: float) -> None:
    told = 0
    for seed in range(40):
        p, y = rows_of_classes(seed, 500, k, spread)
        told += altered(p[None], y).told
    assert told <= 2


def test_imbalance_is_told_below_a_fifth_of_an_even_share() -> None:
    rng = np.random.default_rng(1)
    for rare, told in ((300, False), (100, True)):  # 20 % and 6.7 %, where an even share is 50 %
        y = np.repeat(["no", "yes"], [N - rare, rare])
        found = facts(pl.DataFrame({"a": rng.normal(size=N), "y": rng.permutation(y)}))
        assert found["classes"].numbers == {"classes": 2, "rarest": "yes", "rows": rare, "share": rare / N}
        assert ("imbalance" in found.traits) is told
        assert found.profile.rarest == pytest.approx(2 * rare / N)


def test_missing_cells_are_counted() -> None:
    table = frame(np.random.default_rng(2))
    holed = table.with_columns(a=pl.Series([None] * 150 + table["a"].to_list()[150:]))
    found = facts(holed)
    assert found["missing"].numbers == {"missing": 150, "cells": 3000, "share": 0.05, "columns": 1}
    assert found["missing"].words == "150 of 3,000 cells are missing (5 %), in 1 of 2 columns"
    assert found.traits["missing"] is found["missing"]
    assert "missing" not in facts(table).traits


def test_repeated_rows_with_the_same_answer_and_with_another() -> None:
    table = frame(np.random.default_rng(3))
    same, other = table.head(7), table.slice(7, 5)
    turned = other.with_columns(y=pl.when(pl.col("y") == "yes").then(pl.lit("no")).otherwise(pl.lit("yes")))
    found = facts(pl.concat([table, same, turned]))["duplicates"].numbers
    assert (found["repeats"], found["conflicting"]) == (7, 10)
    with pytest.raises(KeyError, match="no fact 'duplicates'"):
        facts(table)["duplicates"]


def test_columns_that_hardly_vary() -> None:
    table = frame(np.random.default_rng(4)).with_columns(
        still=pl.lit(3.0),
        rare=pl.Series([1.0] * 10 + [0.0] * (N - 10)),
        often=pl.Series([1.0] * 30 + [0.0] * (N - 30)),
    )
    found = facts(table)
    assert found["constant"].numbers == {"constant": 1, "near": ["rare"]}
    assert found["constant"].words == "1 constant column was dropped; 1 column is nearly constant (rare)"
    assert any("column 'still' is constant" in notice for notice in found.notices)
    assert facts(table.drop("rare"))["constant"].words == "1 constant column was dropped"
    two = table.drop("still").with_columns(too=pl.col("rare") + 1)
    assert facts(two)["constant"].words == "2 columns are nearly constant (rare, too)"


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_drift_by_time(moved: float) -> None:
    """Halves one deviation apart in one number: the best classifier has AUROC Phi(1 / sqrt 2) = 0.76."""
    rng = np.random.default_rng(5)
    late = np.arange(N) >= N // 2
    table = pl.DataFrame({"a": rng.normal(size=N) + moved * late, "when": np.arange(N) + 0.5, "y": rng.normal(size=N)})
    table = table[rng.permutation(N)]
    found = facts(table, time="when")
    assert found["drift"].numbers["by"] == "time"
    assert found["drift"].numbers["auc"] == pytest.approx(0.76 if moved else 0.5, abs=0.06)
    assert ("drift" in found.traits) is bool(moved)


def test_drift_by_the_order_of_the_rows_is_told_but_no_reason_for_anything() -> None:
    rng = np.random.default_rng(6)
    table = pl.DataFrame({"a": rng.normal(size=N) + 3.0 * (np.arange(N) >= N // 2), "y": rng.normal(size=N)})
    found = facts(table)
    assert found["drift"].numbers["auc"] > 0.95
    assert "say --time COLUMN" in found["drift"].words
    assert "drift" not in found.traits


def test_drift_between_given_parts() -> None:
    rng = np.random.default_rng(7)
    part = np.where(rng.random(N) < 0.3, "test", "train")
    table = pl.DataFrame({"a": rng.normal(size=N) + 3.0 * (part == "test"), "y": rng.normal(size=N), "part": part})
    found = facts(table, split="part")
    assert found["drift"].numbers["by"] == "split"
    assert "drift" in found.traits


def test_groups_are_counted() -> None:
    table = frame(np.random.default_rng(8)).with_columns(who=pl.Series([f"p{i % 30}" for i in range(N)]))
    assert facts(table, group="who")["groups"].numbers == {"groups": 30}


def test_few_rows_and_what_is_too_small_to_look_at() -> None:
    rng = np.random.default_rng(9)
    found = facts(pl.DataFrame({"a": rng.normal(size=60), "y": ["u", "v"] * 30}))
    assert found.traits["few-rows"].numbers["n"] == 60
    assert [note.split(":")[0] for note in found.notes] == ["labels were not looked at", "drift was not looked at"]


def test_other_kinds_of_data_are_told_as_far_as_facts_exist() -> None:
    texts = facts_of(open_dataset("python-topics"))
    assert [fact.name for fact in texts.facts] == ["size"]
    assert texts.profile == profile("text", "next-token", 400_000)
    series = facts_of(open_dataset("cbf"))
    assert {"size", "classes", "labels", "drift"} <= {fact.name for fact in series.facts}
    assert "columns" not in series["size"].words


def test_rows_on_disk_are_not_looked_at(tmp_path: Path) -> None:
    frame(np.random.default_rng(10)).write_parquet(tmp_path / "large.parquet")
    dataset = open_dataset(tmp_path / "large.parquet", Reading(target="y", memory=10_000))
    assert dataset.streamed
    found = facts_of(dataset)
    assert found["classes"].numbers["classes"] == 2
    assert found.notes == ("the rows stay on disk: repeated rows, labels and drift were not looked at",)
