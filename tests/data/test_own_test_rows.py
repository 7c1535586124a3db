"""Test rows of the user's own, and the share of rows that is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from probatum import InputError, Reading, open_dataset

pytestmark = pytest.mark.fast


def frame(n: int, seed: int, classes: tuple[str, str] = ("a", "b")) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = [classes[int(value)] for value in x + rng.normal(size=n) > 0]
    return pl.DataFrame({"x": x, "w": rng.choice(["u", "v"], n), "y": y})


@pytest.mark.parametrize("form", ["polars", "pandas", "csv", "parquet", "csv and parquet"])
def test_the_test_rows_are_those_that_were_given(form: str, tmp_path: Path) -> None:
    data, test = frame(200, 0), frame(60, 1).select("y", "x", "w")
    data.write_csv(tmp_path / "data.csv")
    data.write_parquet(tmp_path / "data.parquet")
    test.write_csv(tmp_path / "test.csv")
    test.write_parquet(tmp_path / "test.parquet")
    first, second = {
        "polars": (data, test),
        "pandas": (data.to_pandas(), test.to_pandas()),
        "csv": (tmp_path / "data.csv", tmp_path / "test.csv"),
        "parquet": (tmp_path / "data.parquet", tmp_path / "test.parquet"),
        "csv and parquet": (tmp_path / "data.csv", tmp_path / "test.parquet"),
    }[form]
    dataset = open_dataset(first, target="y", test=second)
    assert dataset.fixed_split
    drawn = [dataset.split(seed, folds=True) for seed in (0, 1)]
    for train, valid, tested in drawn:
        assert tested.tolist() == list(range(200, 260))
        assert sorted([*train, *valid]) == list(range(200))
    assert not np.array_equal(drawn[0][1], drawn[1][1])
    np.testing.assert_allclose(dataset.raw.frame["x"][200:].to_numpy(), test["x"].to_numpy(), rtol=1e-12)
    assert [dataset.classes[code] for code in dataset.targets.values[200:]] == test["y"].to_list()


def test_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 3)), rng.normal(size=120)
    dataset = open_dataset((x[:100], y[:100]), test=(x[100:], y[100:]))
    assert dataset.split(0)[2].tolist() == list(range(100, 120))
    np.savez(tmp_path / "a.npz", x=x[:100], y=y[:100])
    np.savez(tmp_path / "b.npz", x=x[100:], y=y[100:])
    assert open_dataset(tmp_path / "a.npz", test=tmp_path / "b.npz").fingerprint == dataset.fingerprint
    with pytest.raises(InputError, match=r"X holds numbers of shape \(n, 2\) in the test rows"):
        open_dataset((x, y), test=(x[:, :2], y))


def test_images_and_texts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, n in (("data", 10), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{i}.png")
    dataset = open_dataset(tmp_path / "data", test=tmp_path / "test")
    assert dataset.split(0)[2].tolist() == list(range(20, 26))
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 900)
    (tmp_path / "b.txt").write_text("another fox walks by. " * 400)
    text = open_dataset(tmp_path / "a.txt", test=tmp_path / "b.txt")
    assert {span.text for span in text.split(0)[2]} == {1}
    assert {span.text for part in text.split(0)[:2] for span in part} == {0}


@pytest.mark.parametrize(
    ("test", "told"),
    [
        (frame(60, 1).drop("w"), r"lack the column\(s\) 'w' of the data; they have 'x', 'y'"),
        (frame(60, 1, ("a", "c")), r"class\(es\) 'c' stand in the test rows alone"),
        (frame(60, 1).with_columns(x=pl.lit("q")), "test rows: column 'x', row 0: 'q' is not a number"),
        (frame(0, 1), "there are no test rows"),
        ((np.zeros((3, 2)), np.zeros(3)), "the data are a table, and the test rows are not"),
        ("nowhere.csv", "'nowhere.csv' does not exist"),
    ],
)
def test_test_rows_that_cannot_be_used(test: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        open_dataset(frame(200, 0), target="y", test=test)


def test_the_training_rows_say_what_the_task_is() -> None:
    rng = np.random.default_rng(0)
    classes = pl.DataFrame({"x": rng.normal(size=100), "y": rng.integers(0, 2, 100)})
    reals = pl.DataFrame({"x": rng.normal(size=30), "y": rng.normal(size=30)})
    with pytest.raises(InputError, match="stand in the test rows alone"):
        open_dataset(classes, target="y", test=reals)
    assert open_dataset(reals, target="y", test=classes).task == "reals"
    with pytest.raises(InputError, match="column 'y', row 0: 'k' is not a number"):
        open_dataset(reals, target="y", test=reals.with_columns(y=pl.lit("k")))


@pytest.mark.parametrize(
    ("data", "reading", "told"),
    [
        ("iris", Reading(), "'iris' is embedded and takes no test"),
        (frame(50, 0), Reading(target="y", split="w"), "test and split both say"),
        (frame(50, 0), Reading(target="y", time="x"), "test and time both say"),
        (frame(50, 0), Reading(target="y", test=frame(9, 3)), "test is said here and in the reading"),
    ],
)
def test_what_contradicts_test_rows(data: Any, reading: Reading, told: str) -> None:
    with pytest.raises(InputError, match=told):
        open_dataset(data, reading, test=frame(20, 1))


def test_other_columns_of_the_test_rows_are_left_out() -> None:
    dataset = open_dataset(frame(50, 0), target="y", test=frame(20, 1).with_columns(more=pl.lit(1)))
    assert "column(s) 'more' stand in the test rows alone: left out" in dataset.notices
