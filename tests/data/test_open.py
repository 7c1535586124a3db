"""Reading: every inference rule, every refusal, and fingerprints that do not depend on the way in."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from probatum.data import embedded_names, open_dataset, subset
from probatum.errors import InputError
from probatum.settings import Reading
from processes import ran

N = 120
RNG = np.random.default_rng(0)
X = RNG.normal(size=N)


def opened(source: object, **said: Any) -> Any:
    """What is opened with these fields of `Reading` and options of a kind."""
    options = {name: said.pop(name) for name in ("size", "text", "tokens", "vocabulary", "length") if name in said}
    said["drop"] = tuple(said.get("drop", ()))
    return open_dataset(source, Reading(**said, options=options))


def frame(**columns) -> pl.DataFrame:
    return pl.DataFrame({"x": X} | columns)


def labels(n: int = N) -> list[str]:
    return ["no", "yes"] * (n // 2)


def column(dataset, name: str) -> dict:
    return next(c for c in dataset.summary()["columns"] if c["name"] == name)


# What is inferred


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (labels(), "classes"),
        ([True, False] * 60, "classes"),
        (pl.Series(labels(), dtype=pl.Categorical), "classes"),
        ([0, 1, 2, 3] * 30, "classes"),
        ([3.0, 7.0] * 60, "classes"),
        (list(range(N)), "reals"),
        (list(range(10)) * 12, "reals"),  # ten integers on 120 rows are more than 5 %
        (X.tolist(), "reals"),
    ],
)
def test_task(values, task):
    assert open_dataset(frame(y=pl.Series(values)), target="y").task == task


def test_integers_can_be_forced_either_way():
    values = frame(y=list(range(10)) * 12)
    assert len(open_dataset(values, Reading(task="classes"), target="y").classes) == 10
    assert open_dataset(values, Reading(task="reals"), target="y").classes == ()


def test_numeric_classes_are_in_numeric_order():
    assert open_dataset(frame(y=[10, 9, 2] * 40), target="y").classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RNG.normal(size=N), "number"),
        (["1.5", "", "2", "NA"] * 30, "number"),
        (["01234", "98765", "00501"] * 40, "category"),
        (["red", "blue", "null"] * 40, "category"),
        (["yes", "no", "?"] * 40, "boolean"),
        ([True, None, False] * 40, "boolean"),
        (["2024-01-31", "2023-12-01"] * 60, "date"),
        (["31.12.2023", "01.02.2024"] * 60, "date"),
        (pl.Series(["2024-01-31", "2023-12-01"] * 60).str.to_date(), "date"),
    ],
)
def test_column_kinds(values, kind):
    dataset = open_dataset(frame(c=values, y=RNG.permutation(labels())), target="y")
    assert column(dataset, "c")["kind"] == kind


def test_dates_become_their_parts():
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 4, 29), eager=True)
    data = open_dataset(frame(d=days.reverse(), y=labels()), target="y").prepare(0)
    assert data.spec.features == ("x", "d year", "d month", "d day", "d weekday", "d hour", "d seconds")
    # The rank of the date is the rank of the seconds.
    seconds = data.train.x[:, -1]
    assert (seconds.diff() < 0).all()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"c": [1] * N}, ["'c'", "constant"]),
        ({"c": [f"u{i}" for i in range(N)]}, ["'c'", "120 distinct"]),
        ({"c": list(range(N))}, ["'c'", "running number"]),
        ({"Id": RNG.integers(0, 9, N)}, ["'Id'", "id by its name"]),
        ({"c": ["n", "j"] * 60}, ["'c'", "away"]),
        ({"c": [5, 6] * 60}, ["'c'", "away"]),
        ({"c": [None, 2.5, 3.5] * 40}, ["'c' 40", "missing"]),
        ({"c": ["2024-01-31", "2023-12-01", "2022-01-01"] * 40}, ["'c'", "dates"]),
    ],
)
def test_notices(columns, words):
    dataset = open_dataset(frame(**columns, y=labels()), target="y")
    assert any(all(word in notice for word in words) for notice in dataset.notices), dataset.notices


def test_imbalance_and_duplicates_are_noticed():
    values = pl.DataFrame({"x": np.repeat(X[:60], 2), "y": ["rare"] * 6 + ["common"] * 114})
    notices = " | ".join(open_dataset(values, target="y").notices)
    assert "'rare' has 6 of 120" in notices
    assert "60 duplicated rows" in notices


def test_a_linear_copy_of_a_real_target_is_noticed():
    dataset = open_dataset(frame(c=3 * X[::-1] + 1, y=X[::-1]), target="y")
    assert any("'c'" in notice and "away" in notice for notice in dataset.notices)


@pytest.mark.parametrize(("names", "chosen"), [(["label", "b"], "label"), (["a", "b"], "b"), (["y", "Class"], "Class")])
def test_target_is_guessed_and_said(names, chosen):
    dataset = open_dataset(pl.DataFrame({"x": X, names[0]: labels(), names[1]: labels()}))
    assert dataset.target == chosen
    assert any("no target was named" in notice for notice in dataset.notices)


def test_text_is_found_and_keeps_words_that_look_missing(tmp_path):
    rows = [f"number {i} is not null or nan" for i in range(58)] + ["null", "nan"]
    pl.DataFrame({"label": [0, 1] * 30, "words": rows}).write_csv(tmp_path / "t.csv")
    dataset = open_dataset(tmp_path / "t.csv", target="label")
    assert (dataset.modality, dataset.task) == ("text", "classes")
    assert dataset.raw.texts[-2:] == ("null", "nan")
    assert dataset.prepare(0).train.text is not None


@pytest.mark.parametrize(
    ("x", "modality", "shape"),
    [
        (RNG.normal(size=(N, 5)), "table", (5,)),
        (torch.randn(N, 3, 9, generator=torch.Generator().manual_seed(0)), "series", (3, 9)),
        (RNG.integers(0, 255, (N, 8, 6)).astype(np.uint8), "image", (1, 8, 6)),
        (RNG.random((N, 8, 6, 3)), "image", (3, 8, 6)),
        (RNG.random((N, 3, 8, 6)), "image", (3, 8, 6)),
        ([f"some words {i} here" for i in range(N)], "text", (4,)),
        (np.array([f"some words {i} here" for i in range(N)], dtype=object), "text", (4,)),
    ],
)
def test_arrays(x, modality, shape):
    dataset = open_dataset((x, labels()))
    assert dataset.modality == modality
    data = dataset.prepare(0)
    assert data.spec.shape == shape == tuple(data.train.x.shape[1:])
    assert data.train.x.dtype == (torch.int64 if modality == "text" else torch.float32)


def test_many_real_targets():
    data = open_dataset((RNG.normal(size=(N, 3)), RNG.normal(size=(N, 2)))).prepare(0)
    assert data.spec.outputs == 2
    assert data.train.y.shape == (len(data.train), 2)


def test_long_series(tmp_path):
    rows = [(i, t, i + 0.1 * t * (-1) ** i, "ab"[i % 2]) for i in range(20) for t in range(5 + i % 3)]
    shuffled = [rows[i] for i in RNG.permutation(len(rows))]
    long = pl.DataFrame(shuffled, schema=["id", "t", "v", "y"], orient="row")
    dataset = open_dataset(long, Reading(modality="series", group="id", time="t"), target="y")
    assert dataset.n == 20
    assert dataset.raw.values.shape == (20, 1, 7)
    steps = np.diff(dataset.raw.values[:, 0], axis=1)
    assert np.all(np.isnan(steps) | (np.abs(np.abs(steps) - 0.1) < 1e-5))


def test_image_folder(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(6):
            Image.fromarray(RNG.integers(0, 255, (5, 7), dtype=np.uint8)).save(tmp_path / kind / f"{i}.png")
    grey = open_dataset(tmp_path)
    assert (grey.classes, grey.prepare(0).spec.shape) == (("cat", "dog"), (1, 5, 7))
    Image.fromarray(RNG.integers(0, 255, (5, 7, 3), dtype=np.uint8)).save(tmp_path / "cat" / "c.png")
    assert open_dataset(tmp_path).prepare(0).spec.shape == (3, 5, 7)
    Image.fromarray(RNG.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "cat" / "d.png")
    with pytest.raises(InputError, match=r"0\.png.*7 x 5.*d\.png.*9 x 9.*size="):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, Reading(options={"size": 4})).prepare(0).spec.shape == (3, 4, 4)
    (tmp_path / "cat" / "e.png").write_text("no image")
    with pytest.raises(InputError, match=r"e\.png"):
        open_dataset(tmp_path, Reading(options={"size": 4}))


def test_npz_with_given_split_lengths_and_class_names(tmp_path):
    x = RNG.normal(size=(60, 1, 10)).astype(np.float32)
    y = np.arange(60) % 2
    np.savez(
        tmp_path / "s.npz",
        x_train=x[:40],
        y_train=y[:40],
        x_test=x[40:],
        y_test=y[40:],
        len_train=np.full(40, 8),
        len_test=np.full(20, 9),
        classes=np.array(["up", "down"]),
    )
    dataset = open_dataset(tmp_path / "s.npz")
    data = dataset.prepare(0)
    assert dataset.fixed_split
    assert data.test.rows.tolist() == list(range(40, 60))
    assert dataset.classes == ("up", "down")
    assert data.spec.shape == (2, 10)
    assert (data.test.x[:, 1].sum(dim=1) == 9).all()


def test_group_time_split_and_drop_columns():
    base = {"g": RNG.integers(0, 30, N), "when": RNG.permutation(N), "part": ["train", "dev", "test"] * 40}
    values = frame(**base, y=labels())
    grouped = open_dataset(values, Reading(group="g", drop=("when", "part")), target="y")
    assert [c["name"] for c in grouped.summary()["columns"]] == ["x"]
    train, valid, test = (set(base["g"][rows]) for rows in grouped.split(0))
    assert train.isdisjoint(valid | test)
    assert valid.isdisjoint(test)
    timed = open_dataset(values, Reading(time="when", drop=("g", "part")), target="y")
    assert base["when"][timed.split(0)[2]].min() == 96
    given = open_dataset(values, Reading(split="part", drop=("g", "when")), target="y")
    assert given.split(9)[2].tolist() == list(range(2, N, 3))


def test_a_column_called_split_is_honoured():
    dataset = open_dataset(frame(split=["train", "train", "test"] * 40, y=labels()), target="y")
    assert dataset.fixed_split
    assert any("'split'" in notice for notice in dataset.notices)


# Fingerprints


def mixed() -> dict:
    return {
        "a": [1.5, None, 2.5] * 40,
        "i": RNG.permutation(N),
        "c": ["u", "v", None, "w"] * 30,
        "b": [True, False, True] * 40,
        "d": [f"2024-0{1 + i % 9}-11" for i in range(N)],
        "y": labels(),
    }


def test_pandas_polars_and_csv_agree(tmp_path):
    pd = pytest.importorskip("pandas", reason="compares pandas with Polars frames")
    columns = mixed()
    polars_frame, pandas_frame = pl.DataFrame(columns), pd.DataFrame(columns)
    pandas_frame["c"] = pandas_frame["c"].astype("category")
    polars_frame.write_csv(tmp_path / "f.csv")
    polars_frame.write_csv(tmp_path / "f.tsv", separator="\t")
    polars_frame.write_parquet(tmp_path / "f.parquet")
    sources = [polars_frame, pandas_frame, *(tmp_path / f"f.{end}" for end in ("csv", "tsv", "parquet"))]
    datasets = [open_dataset(source, target="y") for source in sources]
    assert len({d.fingerprint for d in datasets}) == 1
    encoded = [d.prepare(2).train.x for d in datasets]
    assert all(torch.equal(encoded[0], x) for x in encoded[1:])


def test_pandas_columns_may_be_numbers():
    pd = pytest.importorskip("pandas", reason="needs a pandas frame")
    dataset = open_dataset(pd.DataFrame(RNG.normal(size=(N, 3))))
    assert (dataset.target, dataset.n) == ("2", N)


def test_fingerprint_depends_on_values_target_task_and_split():
    values = frame(z=X[::-1].copy(), y=[0, 1, 2, 3] * 30)
    ways = [
        open_dataset(values, target="y"),
        open_dataset(values, target="z"),
        open_dataset(values, Reading(task="reals"), target="y"),
        open_dataset(values, Reading(drop=("z",)), target="y"),
        open_dataset(values, Reading(split=["train", "test"] * 60), target="y"),
        open_dataset(values.with_columns(x=pl.col("x") + 1e-9), target="y"),
    ]
    assert len({d.fingerprint for d in ways}) == len(ways)
    assert open_dataset(values, Reading(name="other"), target="y").fingerprint == ways[0].fingerprint


def test_fingerprint_is_stable_in_a_fresh_process():
    names = ("iris", "toy-topics", "cbf", "digits")
    code = f"from probatum.data import open_dataset\nfor n in {names!r}: print(open_dataset(n).fingerprint)"
    out = ran(sys.executable, "-c", code, env=_environment())
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == [open_dataset(name).fingerprint for name in names]


def _environment() -> dict[str, str]:
    from pathlib import Path

    import probatum

    return {"PYTHONPATH": str(Path(probatum.__file__).parents[1]), "PYTHONHASHSEED": "7"}


# Embedded sets, subsets


@pytest.mark.parametrize("name", embedded_names())
def test_embedded_sets_prepare_deterministically(name):
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two = open_dataset(name).prepare(4), open_dataset(name).prepare(4)
    for part in ("train", "valid", "test"):
        a, b = getattr(one, part), getattr(two, part)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert tuple(a.x.shape[1:]) == one.spec.shape
        assert torch.isfinite(a.x.float()).all()
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])


def test_a_dataset_opens_as_itself():
    dataset = open_dataset("iris")
    assert open_dataset(dataset) is dataset


def test_subset_is_stratified_and_reproducible():
    digits = open_dataset("digits")
    small = subset(digits, 300, 0)
    assert small.n == 300
    assert set(small.summary()["classes"].values()) <= {29, 30, 31}
    assert small.fingerprint == subset(digits, 300, 0).fingerprint != subset(digits, 300, 1).fingerprint
    with pytest.raises(InputError, match="5000"):
        subset(digits, 5000, 0)


# Refusals


def write(folder, text: str):
    path = folder / "f.csv"
    path.write_text(text)
    return path


REFUSALS = {
    "missing target column": (lambda p: {"source": frame(churned=labels()), "target": "churn"}, ["churn", "'churned'"]),
    "missing group column": (lambda p: {"source": frame(y=labels()), "group": "who"}, ["'who'"]),
    "one class": (lambda p: {"source": frame(y=["a"] * N), "target": "y"}, ["'y'", "'a'"]),
    "tiny class": (lambda p: {"source": frame(y=["a"] * 118 + ["b"] * 2), "target": "y"}, ["'b'", "2 row"]),
    "missing targets": (lambda p: {"source": frame(y=["a", "b", None] * 40), "target": "y"}, ["'y'", "40 row", "fill"]),
    "NaN targets": (lambda p: {"source": (np.zeros((4, 2)), np.array([0.5, np.nan, 1, 2]))}, ["1 row", "row 1"]),
    "infinite targets": (lambda p: {"source": (X[:4, None], np.array([0.5, np.inf, 1, 2]))}, ["infinite", "row 1"]),
    "constant reals": (lambda p: {"source": (X[:, None], np.full(N, 1.5))}, ["1.5", "every row"]),
    "words as reals": (lambda p: {"source": frame(y=labels()), "target": "y", "task": "reals"}, ["'no'", "classes"]),
    "infinite feature": (lambda p: {"source": (np.full((N, 2), np.inf), labels())}, ["'x0'", "infinite", "row 0"]),
    "lengths": (lambda p: {"source": (np.zeros((5, 2)), np.zeros(4))}, ["5", "4"]),
    "empty file": (lambda p: {"source": write(p, "")}, ["f.csv", "empty"]),
    "header only": (lambda p: {"source": write(p, "a,b\n")}, ["f.csv", "no rows"]),
    "ragged file": (lambda p: {"source": write(p, "a,b\n1,2\n1,2,3\n")}, ["f.csv"]),
    "no such file": (lambda p: {"source": str(p / "none.csv")}, ["none.csv", "does not exist"]),
    "unknown suffix": (lambda p: {"source": p.joinpath("f.xls").touch() or p / "f.xls"}, ["f.xls", ".csv"]),
    "unknown name": (lambda p: {"source": "digit"}, ["'digit'", "digits"]),
    "empty name": (lambda p: {"source": ""}, ["name", "empty"]),
    "unknown source": (lambda p: {"source": 3}, ["int"]),
    "empty text": (lambda p: {"source": (["a b", " ", "c"] * 4, labels(12))}, ["row 1", "empty"]),
    "text that is none": (lambda p: {"source": (["a b", 3, "c"] * 4, labels(12))}, ["row 1", "3"]),
    "nothing usable": (lambda p: {"source": pl.DataFrame({"c": [1] * N, "y": labels()})}, ["no usable", "'c'"]),
    "only a target": (lambda p: {"source": pl.DataFrame({"y": labels()})}, ["no column besides", "'y'"]),
    "unknown split word": (
        lambda p: {"source": frame(s=["train", "exam"] * 60, y=labels()), "split": "s"},
        ["'exam'", "row 1", "'s'"],
    ),
    "split without test": (lambda p: {"source": (X[:, None], labels()), "split": ["train"] * N}, ["no test rows"]),
    "split of another length": (lambda p: {"source": frame(y=labels()), "split": ["train"]}, ["1", "120"]),
    "bad task": (lambda p: {"source": "iris", "task": "rank"}, ["'rank'"]),
    "bad modality": (lambda p: {"source": "iris", "modality": "graph"}, ["'graph'"]),
    "option for a name": (lambda p: {"source": "iris", "target": "z"}, ["'iris'", "target"]),
    "pixels out of range": (lambda p: {"source": (np.full((6, 1, 4, 4), -1.0), labels(6))}, ["-1"]),
    "empty series": (lambda p: {"source": (np.full((6, 1, 4), np.nan), labels(6))}, ["row 0", "no value"]),
    "nested column": (lambda p: {"source": frame(c=[[1]] * N, y=labels())}, ["'c'", "List"]),
    "group and time": (
        lambda p: {"source": frame(g=X, t=X, y=labels()), "group": "g", "time": "t"},
        ["group or time"],
    ),
    "empty time": (lambda p: {"source": frame(t=[None, 1] * 60, y=labels()), "time": "t"}, ["'t'", "row 0"]),
    "time of words": (lambda p: {"source": frame(t=["a", "b"] * 60, y=labels()), "time": "t"}, ["'t'", "'a'"]),
    "npz without y": (lambda p: {"source": _npz(p)}, ["f.npz", "needs x and y"]),
    "folder without images": (lambda p: {"source": p}, ["no images"]),
    "five dimensions": (lambda p: {"source": (np.zeros((4, 1, 1, 1, 1)), labels(4))}, ["5 dim"]),
    "target varies in a series": (
        lambda p: {
            "source": pl.DataFrame({"id": [1, 1], "t": [0, 1], "v": [0.0, 1.0], "y": ["a", "b"]}),
            "target": "y",
            "modality": "series",
            "group": "id",
            "time": "t",
        },
        ["'y'", "id 1"],
    ),
}


def _npz(folder):
    np.savez(folder / "f.npz", x=np.zeros((3, 2)))
    return folder / "f.npz"


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_thing(case, tmp_path):
    make, words = REFUSALS[case]
    with pytest.raises(InputError) as caught:
        opened(**make(tmp_path))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
