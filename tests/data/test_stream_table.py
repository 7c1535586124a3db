"""Tables streamed from Parquet beside the same tables in memory: splits, targets, encoded rows, notices, errors."""

from __future__ import annotations

import datetime
import gc
import os
import pickle
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from probatum.data import open_dataset
from probatum.data.dataset import Dataset
from probatum.data.lazy.memory import Sizes, memory_limit
from probatum.data.lazy.rows import TooLarge
from probatum.data.lazy.scan import units_of
from probatum.data.split import unit_numbers
from probatum.errors import InputError
from probatum.settings import Reading
from probatum.spec import Data
from processes import PATIENCE

N = 3000
TINY = 1000


def opened(source: object, **said: Any) -> Any:
    """What is opened with these fields of `Reading` and options of a kind."""
    options = {name: said.pop(name) for name in ("size", "text", "tokens", "vocabulary", "length") if name in said}
    said["drop"] = tuple(said.get("drop", ()))
    return open_dataset(source, Reading(**said, options=options))


def many_columns(n: int = N, seed: int = 0) -> pa.Table:
    """Every kind of column, with gaps, ids, constants, duplicated rows, and a word that comes late."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    word = np.array(["red", "green", "blue"])[rng.integers(0, 3, n)]
    word[-25:] = "late"
    day = datetime.date(2020, 1, 1)
    days = [day + datetime.timedelta(days=int(k)) for k in rng.integers(0, 900, n)]
    seconds = rng.integers(0, 10**8, n)
    table = pa.table(
        {
            "x": pa.array(x.astype(np.float32), mask=rng.random(n) < 0.1),
            "whole": pa.array(rng.integers(0, 50, n)),
            "flag": pa.array(rng.random(n) < 0.5),
            "word": pa.array(word, mask=rng.random(n) < 0.05),
            "day": pa.array(days),
            "money": pa.array([Decimal(int(k)) / 100 for k in rng.integers(0, 10**4, n)], type=pa.decimal128(9, 2)),
            "coded": pa.array(word).dictionary_encode(),
            "digits": pa.array([f"{k:.3f}" if k > -1 else "n/a" for k in rng.normal(size=n)]),
            "written": pa.array([str(k) for k in days]),
            "moment": pa.array([datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=int(k)) for k in seconds]),
            "said": pa.array(np.array(["yes", "no"])[rng.integers(0, 2, n)]),
            "id": pa.array(np.arange(n)),
            "constant": pa.array(np.ones(n)),
            "running": pa.array(np.arange(n) * 3 + 5),
            "code": pa.array([f"u{k}" for k in range(n)]),
            "tells": pa.array(np.where(x + rng.normal(size=n) > 0, 1.0, 0.0)),
            "group": pa.array(rng.integers(0, 200, n)),
        }
    )
    table = table.append_column("y", pa.array(np.where(table["tells"].to_numpy() > 0, "yes", "no")))
    return pa.concat_tables([table, table.slice(5, 30)])


def write(path: Path, table: pa.Table, cuts: tuple[int, ...] = (0, 100, 100, 1700)) -> Path:
    """Row groups of unequal size, one of them empty."""
    with pq.ParquetWriter(path, table.schema) as writer:
        for first, last in zip(cuts, (*cuts[1:], table.num_rows), strict=True):
            writer.write_table(table.slice(first, last - first), row_group_size=max(1, last - first))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stream") / "many.parquet", many_columns())


def both(path: Path, **options: object) -> tuple[Dataset, Dataset]:
    resident, streamed = opened(path, **options), opened(path, memory=TINY, **options)
    assert not resident.streamed
    assert streamed.streamed
    return resident, streamed


def same(a: Data, b: Data) -> None:
    assert a.spec == b.spec
    for name in ("train", "valid", "test"):
        mine, theirs = getattr(a, name), getattr(b, name)
        assert torch.equal(mine.rows, theirs.rows)
        assert torch.equal(mine.y, theirs.y)
        assert tuple(theirs.x.shape) == tuple(mine.x.shape)
        assert torch.equal(mine.x, torch.cat([theirs.x[i : i + 97] for i in range(0, len(theirs), 97)]))


@pytest.mark.parametrize(
    "options",
    [
        {"target": "y"},
        {"target": "y", "group": "group"},
        {"target": "y", "time": "moment"},
        {"target": "y", "time": "written", "drop": ["tells", "code"]},
        {"target": "money"},
        {"target": "flag"},
        {"target": "whole", "task": "reals"},
        {"target": "whole"},
        {"target": "coded", "drop": ["word"]},
        {},
    ],
)
def test_a_streamed_table_is_the_table_in_memory(path: Path, options: dict[str, object]) -> None:
    resident, streamed = both(path, **options)
    assert (resident.task, resident.classes, resident.n) == (streamed.task, streamed.classes, streamed.n)
    assert streamed.notices[0].endswith("in memory: streamed by row groups")
    assert sorted(streamed.notices[1:]) == sorted(resident.notices)
    for seed in (0, 1):
        same(resident.prepare(seed), streamed.prepare(seed))
    told, known = streamed.summary(), resident.summary()
    for key in ("n", "split", "shape", "task", "target", "fixed_split"):
        assert told[key] == known[key]
    assert told.get("classes") == known.get("classes")
    assert told.get("quantiles") == known.get("quantiles")


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    table = many_columns(400)
    words = np.array(["train", "dev", "test"])[np.arange(430) % 3]
    path = write(tmp_path / "given.parquet", table.append_column("split", pa.array(words)), (0, 300))
    for options in ({"target": "y"}, {"target": "y", "split": "split"}):
        resident, streamed = both(path, **options)
        assert streamed.fixed_split
        same(resident.prepare(0), streamed.prepare(0))


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    table = many_columns(900)
    for number, (first, rows) in enumerate([(0, 400), (400, 30), (430, 500)]):
        write(tmp_path / f"part{number}.parquet", table.slice(first, rows), (0, 10))
    whole = open_dataset(write(tmp_path.parent / f"{tmp_path.name}.parquet", table), target="y")
    resident, streamed = both(tmp_path, target="y")
    assert resident.fingerprint == whole.fingerprint
    same(resident.prepare(0), streamed.prepare(0))


def test_files_of_a_folder_must_be_alike(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0], "y": [0, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": ["1", "2"], "y": [0, 1]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet.*other columns.*'a' is String instead of Float64"):
        open_dataset(tmp_path)


def test_order_visits_every_row_once_and_reads_few_groups_at_a_time(path: Path) -> None:
    data = open_dataset(path, Reading(memory=TINY), target="y").prepare(0)
    x = data.train.x
    one, two = (x.order(torch.Generator().manual_seed(seed)) for seed in (1, 2))  # type: ignore[attr-defined]
    again = x.order(torch.Generator().manual_seed(1))  # type: ignore[attr-defined]
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert torch.equal(one.sort().values, torch.arange(len(x)))


def test_batches_are_right_in_and_out_of_the_announced_order(path: Path) -> None:
    resident, streamed = (dataset.prepare(0).train.x for dataset in both(path, target="y"))
    batches = list(streamed.order(torch.Generator().manual_seed(0)).split(64))  # type: ignore[attr-defined]
    streamed.ahead(batches)  # type: ignore[attr-defined]
    for place, batch in enumerate(batches):
        assert torch.equal(streamed[batch], resident[batch])
        if place % 7 == 0:
            other = torch.tensor([3, 3, len(resident) - 1, 0])
            assert torch.equal(streamed[other], resident[other])
    streamed.ahead(batches)  # type: ignore[attr-defined]
    assert torch.equal(streamed[batches[0].clone()], resident[batches[0]])
    assert torch.equal(streamed[batches[0]], resident[batches[0]])
    assert torch.equal(streamed[::500], resident[::500])
    assert torch.equal(streamed[-10:], resident[-10:])
    assert torch.equal(streamed[resident[:, 0] > 1], resident[resident[:, 0] > 1])
    with pytest.raises(IndexError, match="outside"):
        streamed[torch.tensor([len(resident)])]


def test_blocks_and_windows_smaller_than_row_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, k = 24_000, 30
    table = pa.table({f"x{j}": rng.normal(size=n) for j in range(k)} | {"y": rng.integers(0, 2, n)})
    path = tmp_path / "wide.parquet"
    pq.write_table(table, path, row_group_size=15_000)
    resident, streamed = both(path, target="y", task="classes")
    a, b = resident.prepare(0), streamed.prepare(0)
    blocks = len(b.train.x._blocks)  # type: ignore[attr-defined]
    assert blocks > 2
    same(a, b)
    visit = b.train.x.order(torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    first = visit[:1000]
    # The first rows come from one window of blocks, and not from everywhere.
    assert len(torch.bucketize(first, b.train.x._starts, right=True).unique()) < blocks  # type: ignore[attr-defined]
    batches = list(visit.split(64))
    b.train.x.ahead(batches)  # type: ignore[attr-defined]
    for batch in batches:
        assert torch.equal(b.train.x[batch], a.train.x[batch])
    b.train.x.close()  # type: ignore[attr-defined]


def test_a_sample_fits_the_pipeline_of_a_long_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, k = 40_000, 14
    columns = {f"x{j}": rng.exponential(size=n).astype(np.float32) for j in range(k)}
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table(columns | {"y": (columns["x0"] > 1).astype(int)}), path, row_group_size=7000)
    resident, streamed = both(path, target="y")
    a, b = resident.prepare(3), streamed.prepare(3)
    assert len(a.train) > Sizes.of(TINY).fit_rows(k) == 20_000
    assert torch.equal(a.train.rows, b.train.rows)
    assert torch.equal(a.test.y, b.test.y)
    got = torch.cat([b.test.x[i : i + 5000] for i in range(0, len(b.test), 5000)])
    apart = (got - a.test.x).abs()
    assert 0 < apart.median() < 0.02  # quantiles of 20 000 rows for those of 24 000
    assert apart.max() < 1.0
    again = open_dataset(path, Reading(memory=TINY), target="y").prepare(3)
    assert torch.equal(again.test.x[:500], b.test.x[:500])


def test_what_needs_all_rows_is_refused_by_name(path: Path) -> None:
    x = open_dataset(path, Reading(memory=TINY), target="y").prepare(0).train.x
    model = torch.nn.Linear(x.shape[1], 2)
    asks = {
        "as one array": lambda: np.asarray(x),
        r"linear": lambda: model(x),
        r"mean": lambda: x.mean(),
        r"cat": lambda: torch.cat([x, x]),
        r"row by row": lambda: list(x),
        "as one tensor": lambda: torch.as_tensor(x),
        r"row by row \(": lambda: x[0],
    }
    for words, ask in asks.items():
        with pytest.raises(TooLarge, match=words + r"|cannot be read .*" + words):
            ask()
    assert len(x) == x.size(0) == x.shape[0]
    assert (x.ndim, x.dim()) == (2, 2)
    with pytest.raises(AttributeError):
        x.no_such_thing  # noqa: B018
    x._most = 1000  # type: ignore[attr-defined]
    with pytest.raises(TooLarge, match="rows at once"):
        x[torch.arange(500)]


def test_nothing_is_left_open_after_close(path: Path) -> None:
    gc.collect()
    before = set(threading.enumerate())
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    data = open_dataset(path, Reading(memory=TINY), target="y").prepare(0)
    x = data.train.x
    x.ahead(list(x.order(torch.Generator()).split(10)))  # type: ignore[attr-defined]
    x[torch.arange(3)]
    x.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - before
    if files:
        assert len(os.listdir("/proc/self/fd")) == files
    x.ahead(list(x.order(torch.Generator()).split(10)))  # type: ignore[attr-defined]
    del x, data  # gone without close: the thread ends with the rows
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
    assert not set(threading.enumerate()) - before


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 6000
    path = tmp_path / "broken.parquet"
    pq.write_table(
        pa.table({"x": rng.normal(size=n), "z": rng.normal(size=n), "y": rng.integers(0, 2, n)}),
        path,
        row_group_size=1000,
    )
    dataset = open_dataset(path, Reading(memory=TINY), target="y")
    data = dataset.prepare(0)
    stamp = path.stat()
    meta = pq.ParquetFile(path).metadata.row_group(3)
    with path.open("r+b") as file:
        file.seek(meta.column(0).dictionary_page_offset or meta.column(0).data_page_offset)
        file.write(b"\xff" * (meta.total_byte_size // 2))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(InputError, match=r"broken\.parquet', row group 3 cannot be read"):
        [data.test.x[i : i + 100] for i in range(0, len(data.test), 100)]
    batches = list(data.train.x.order(torch.Generator()).split(64))  # type: ignore[attr-defined]
    data.train.x.ahead(batches)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="row group 3"):
        [data.train.x[batch] for batch in batches]
    data.train.x.close()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="row group 3"):
        open_dataset(path, Reading(memory=TINY), target="y")


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    table = many_columns(300)
    path = write(tmp_path / "moving.parquet", table, (0,))
    data = open_dataset(path, Reading(memory=TINY), target="y").prepare(0)
    write(path, table.slice(0, 200), (0,))
    with pytest.raises(InputError, match="changed since it was opened"):
        data.test.x[:5]
    path.unlink()
    with pytest.raises(InputError, match="is gone"):
        data.test.x[:5]


@pytest.mark.parametrize(
    ("cells", "options", "words"),
    [
        ({"x": [1.0, float("inf"), 2.0] * 10}, {}, "'x' is infinite in row 1"),
        ({"y": ["a", None, "b"] * 10}, {}, r"target 'y' is missing in 10 row\(s\), first row 1"),
        ({"y": [1.5, float("inf"), 2.0] * 10}, {}, "target 'y' is infinite in row 1"),
        ({"y": ["a"] * 30}, {}, "one class, 'a'"),
        ({"y": [2.5] * 30}, {"task": "reals"}, "2.5 in every row"),
        ({"y": ["a", "b", "a"] * 10}, {"task": "reals"}, "not numbers"),
        ({}, {"target": "why"}, r"target column 'why' is not in the data"),
        ({}, {"group": "none"}, "column 'none' is not in the data"),
        ({}, {"time": "w"}, "time column 'w' holds 'u'"),
        ({"x": [None, 1.0, 2.0] * 10}, {"time": "x"}, "'x' is empty in row 0"),
        ({}, {"split": "w"}, "is no part"),
        ({}, {"split": ["train"] * 3}, "3 entries for 30 rows"),
        ({}, {"modality": "text"}, "only tables and image folders are streamed"),
        ({}, {"modality": "image"}, "not as data frames"),
        ({}, {"memory": "much"}, "memory is 'much'; give a number of bytes"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, cells: dict[str, object], options: dict[str, object], words: str) -> None:
    base = {"x": [1.0, 2.0, 3.5] * 10, "w": ["u", "v", "v"] * 10, "y": ["a", "b", "b"] * 10}
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table(base | cells), path, row_group_size=7)
    with pytest.raises(InputError, match=words):
        opened(path, **{"target": "y", "memory": 100} | options)


def test_series_and_texts_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.parquet"
    pq.write_table(pa.table({"t": [f"a text of {k} words or so" for k in range(50)], "y": [0, 1] * 25}), text)
    with pytest.raises(InputError, match=r"text of .* does not fit in memory"):
        open_dataset(text, Reading(memory=10))
    wide = tmp_path / "wide.parquet"
    pq.write_table(pa.table({f"t_{k}": [0.5, 1.5] for k in range(20)} | {"y": [0, 1]}), wide)
    with pytest.raises(InputError, match="look like series"):
        open_dataset(wide, Reading(memory=10))


def test_the_limit_decides(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not open_dataset(path, Reading(memory="1GB"), target="y").streamed
    monkeypatch.setenv("PROBATUM_MEMORY", "10kB")
    assert memory_limit(None) == 10_000
    assert open_dataset(path, target="y").streamed
    assert not open_dataset(path, Reading(memory=1000000000.0), target="y").streamed
    monkeypatch.setenv("PROBATUM_MEMORY", "-1")
    with pytest.raises(InputError, match="PROBATUM_MEMORY is '-1'"):
        open_dataset(path, target="y")
    monkeypatch.delenv("PROBATUM_MEMORY")
    assert memory_limit(None) > 2**20
    assert (memory_limit("1.5 GiB"), memory_limit("500MB")) == (1.5 * 2**30, 5e8)
    assert Sizes.of(3e9) == Sizes.of(1.1e9)
    assert Sizes.of(1.1e9) != Sizes.of(5e8)


def test_the_fingerprint_tells_streamed_from_resident_and_travels(path: Path) -> None:
    resident, streamed = both(path, target="y")
    assert streamed.fingerprint == open_dataset(path, Reading(memory=2 * TINY), target="y").fingerprint
    assert streamed.fingerprint != resident.fingerprint
    assert open_dataset(path, Reading(memory=streamed.memory), target="y").fingerprint == streamed.fingerprint
    streamed.prepare(0)
    copy = pickle.loads(pickle.dumps(streamed))
    same(resident.prepare(0), copy.prepare(0))
    assert copy.take(np.arange(100)).n == 100
    assert not copy.take(np.arange(100)).streamed


@pytest.mark.parametrize("kinds", [1, 40, 10**6])
def test_units_of_equal_numbers_are_those_of_equal_keys(kinds: int) -> None:
    numbers = np.random.default_rng(kinds).integers(0, kinds, 500).astype(np.uint64)
    expected = unit_numbers(number.tobytes() for number in numbers)
    assert np.array_equal(units_of(numbers), expected)


def test_polars_writes_can_be_streamed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"x": rng.normal(size=500), "c": rng.choice(["a", "b"], 500), "y": rng.normal(size=500)}
    ).with_columns(pl.col("c").cast(pl.Categorical))
    path = tmp_path / "polars.parquet"
    frame.write_parquet(path, row_group_size=120)
    resident, streamed = both(path)
    same(resident.prepare(0), streamed.prepare(0))
