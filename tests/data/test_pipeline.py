"""The pipeline: fitted on training rows only, exact after saving, right by independent witnesses."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.preprocessing import QuantileTransformer

from probatum.data import embedded_names, load_pipeline, open_dataset, save_pipeline
from probatum.data.pipeline import Pipeline
from probatum.errors import InputError
from probatum.settings import Reading

pytestmark = pytest.mark.fast


def table(n: int = 240) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    age = rng.normal(40, 12, n)
    age[::17] = np.nan
    return pl.DataFrame(
        {
            "age": pl.Series(age).fill_nan(None),
            "income": rng.lognormal(8, 1, n),
            "city": rng.choice(["Rome", "Oslo", "Lima"], n),
            "member": rng.random(n) < 0.4,
            "since": [f"20{10 + i % 12}-0{1 + i % 9}-1{i % 9}" for i in range(n)],
            "split": ["train"] * 120 + ["valid"] * 60 + ["test"] * 60,
            "won": rng.choice(["no", "yes"], n),
        }
    )


def texts(n: int = 120) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(40)]
    rows = [" ".join(rng.choice(words, 8)) for _ in range(n)]
    return pl.DataFrame({"text": rows, "split": ["train"] * 60 + ["valid"] * 30 + ["test"] * 30, "y": ["a", "b"] * 60})


def same_pipeline(a: Pipeline, b: Pipeline) -> bool:
    (meta, arrays), (other, others) = a.features.state(), b.features.state()
    return a.spec == b.spec and meta == other and all(arrays[k].tobytes() == others[k].tobytes() for k in arrays)


def test_test_rows_cannot_reach_the_table_pipeline():
    frame = table()
    wild = frame.with_columns(
        age=pl.when(pl.col("split") == "test").then(1e9).otherwise("age"),
        income=pl.when(pl.col("split") == "test").then(-1e9).otherwise("income"),
        city=pl.when(pl.col("split") == "test").then(pl.lit("Atlantis")).otherwise("city"),
    )
    one, two = (open_dataset(f, target="won").prepare(0) for f in (frame, wild))
    assert torch.equal(one.train.x, two.train.x)
    assert torch.equal(one.valid.x, two.valid.x)
    assert same_pipeline(one.pipeline, two.pipeline)
    assert not torch.equal(one.test.x, two.test.x)
    city = two.spec.features.index("city")
    assert (two.test.x[:, city] == 0).all()


def test_test_rows_cannot_reach_the_vocabulary():
    frame = texts()
    wild = frame.with_columns(text=pl.when(pl.col("split") == "test").then(pl.lit("zyx zyx zyx")).otherwise("text"))
    one, two = (open_dataset(f, Reading(options={"text": "text"}), target="y").prepare(0) for f in (frame, wild))
    assert torch.equal(one.train.x, two.train.x)
    assert same_pipeline(one.pipeline, two.pipeline)
    assert set(two.test.x.unique().tolist()) == {0, 1}


def test_test_rows_cannot_reach_series_and_target_scales():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (90, 2, 16)), rng.normal(size=90)
    words = ["train"] * 50 + ["valid"] * 20 + ["test"] * 20
    wild_x, wild_y = x.copy(), y.copy()
    wild_x[70:] *= 1e4
    wild_y[70:] += 1e6
    one, two = (open_dataset(pair, Reading(split=words)).prepare(0) for pair in ((x, y), (wild_x, wild_y)))
    assert torch.equal(one.train.x, two.train.x)
    assert torch.equal(one.train.y, two.train.y)
    np.testing.assert_allclose(one.train.x.mean(dim=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(one.train.x.std(dim=(0, 2), unbiased=False), 1, atol=1e-5)
    np.testing.assert_allclose(one.train.y.mean(), 0, atol=1e-5)
    back = one.pipeline.decode_output(one.test.y)
    np.testing.assert_allclose(back["y"], y[70:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*embedded_names(), "table"])
def test_saving_and_loading_is_exact(name, tmp_path):
    dataset = open_dataset(table(), target="won") if name == "table" else open_dataset(name)
    data = dataset.prepare(1)
    save_pipeline(data.pipeline, tmp_path)
    loaded = load_pipeline(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipeline.json", "pipeline.safetensors"]
    assert same_pipeline(loaded, data.pipeline)
    rows = dataset.raw.take(data.test.rows.numpy())
    assert torch.equal(loaded.encode(rows), data.test.x)
    output = torch.randn(5, data.spec.outputs, generator=torch.Generator().manual_seed(0))
    assert loaded.decode_output(output) == data.pipeline.decode_output(output)


def test_a_missing_pipeline_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"pipeline\.json"):
        load_pipeline(tmp_path)


def test_an_unknown_format_is_named(tmp_path):
    save_pipeline(open_dataset("iris").prepare(0).pipeline, tmp_path)
    path = tmp_path / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="99"):
        load_pipeline(tmp_path)


def test_numbers_agree_with_scikit_learn_inside_the_range():
    x = np.random.default_rng(0).lognormal(size=(500, 1))
    data = open_dataset((x, np.arange(500) % 2)).prepare(0)
    rows = data.train.rows.numpy()
    witness = QuantileTransformer(n_quantiles=300, output_distribution="normal", subsample=None).fit(x[rows])
    ours, theirs = data.train.x[:, 0].numpy(), witness.transform(x[rows])[:, 0]
    inside = np.abs(theirs) < 2.5
    assert inside.sum() > 250
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)
    assert float(data.test.x.abs().max()) <= 5


def test_missing_numbers_are_zero_and_marked():
    data = open_dataset(table(), target="won").prepare(0)
    names = data.spec.features
    marks = data.train.x[:, names.index("age is missing")]
    ages = data.train.x[:, names.index("age")]
    raw = table()["age"].is_null().to_numpy()[data.train.rows.numpy()]
    assert np.array_equal(marks.numpy() == 1, raw)
    assert (ages[marks == 1] == 0).all()
    assert data.spec.numeric == 2 + 6 + 1
    assert data.spec.cardinalities == (4, 3)


def test_rare_words_share_code_zero():
    words = ["a"] * 100 + ["b"] * 98 + ["rare"] * 2
    frame = pl.DataFrame({"word": words, "x": np.arange(200) * 0.1, "y": [0, 1] * 100})
    data = open_dataset(frame, target="y").prepare(0)
    assert data.spec.cardinalities == (3,)
    codes = torch.cat([part.x[:, 1] for part in (data.train, data.valid, data.test)])
    rows = torch.cat([part.rows for part in (data.train, data.valid, data.test)])
    assert (codes[rows >= 198] == 0).all()
    assert (codes[rows < 198] > 0).all()


def test_text_ids_decode_to_the_words():
    dataset = open_dataset(texts(), Reading(options={"text": "text"}), target="y")
    data = dataset.prepare(0)
    words = ("", "?", *data.pipeline.features.words)
    for ids, text in zip(data.train.x[:5].tolist(), data.train.text[:5], strict=True):
        assert [words[i] for i in ids if i] == text.split()
    assert data.spec.vocabulary == len(words)


def test_masked_series_have_an_observed_channel():
    x = np.random.default_rng(0).normal(size=(60, 2, 10)).astype(np.float32)
    x[::2, :, 7:] = np.nan
    data = open_dataset((x, np.arange(60) % 3)).prepare(0)
    assert data.spec.masked
    assert data.spec.shape == (3, 10)
    short = data.train.x[data.train.rows % 2 == 0]
    assert (short[:, :, 7:] == 0).all()
    assert (short[:, 2, :7] == 1).all()


def test_new_rows_of_every_modality():
    frame = table()
    data = open_dataset(frame, target="won").prepare(0)
    x, raw = data.pipeline.encode_source(frame.drop("won", "split"))
    assert torch.equal(x[data.test.rows], data.test.x)
    assert raw.height == 240
    text = open_dataset(texts(), Reading(options={"text": "text"}), target="y").prepare(0)
    assert torch.equal(text.pipeline.encode_source(list(text.test.text))[0], text.test.x)
    digits = open_dataset("digits")
    image = digits.prepare(0)
    assert torch.equal(image.pipeline.encode_source(digits.raw.pixels)[0][image.test.rows], image.test.x)
    cbf = open_dataset("cbf")
    series = cbf.prepare(0)
    assert torch.equal(series.pipeline.encode_source(cbf.raw.values)[0][series.test.rows], series.test.x)


def test_new_csv_rows_equal_the_frame(tmp_path):
    frame = table()
    data = open_dataset(frame, target="won").prepare(0)
    frame.drop("won").write_csv(tmp_path / "new.csv")
    assert torch.equal(data.pipeline.encode_source(tmp_path / "new.csv")[0][data.test.rows], data.test.x)


def test_wide_series_csv_can_be_predicted(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 20))
    frame = pl.DataFrame({f"t{j}": x[:, j] for j in range(20)} | {"target": ["u", "v"] * 30})
    frame.write_csv(tmp_path / "wide.csv")
    dataset = open_dataset(tmp_path / "wide.csv")
    assert dataset.modality == "series"
    data = dataset.prepare(0)
    assert torch.equal(data.pipeline.encode_source(tmp_path / "wide.csv")[0][data.test.rows], data.test.x)


def test_user_pixels_are_not_changed():
    pixels = (np.random.default_rng(0).random((40, 1, 6, 6)) * 255).astype(np.float32)
    before = pixels.copy()
    data = open_dataset((pixels, np.arange(40) % 2)).prepare(0)
    data.pipeline.encode_source(pixels)
    assert np.array_equal(pixels, before)
    assert float(data.train.x.max()) <= 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (pl.DataFrame({"age": [1.0], "income": [2.0]}), ["'city'", "'member'", "'since'"]),
        (table().drop("split").with_columns(income=pl.lit("much")), ["'income'", "row 0", "'much'"]),
        (table().drop("split").head(0), ["no rows"]),
        (7, ["int"]),
    ],
)
def test_new_tables_that_do_not_fit_are_refused(source, words):
    pipeline = open_dataset(table(), target="won").prepare(0).pipeline
    with pytest.raises(InputError) as caught:
        pipeline.encode_source(source)
    assert all(word in str(caught.value) for word in words)


def test_new_images_and_series_of_other_sizes_are_refused():
    with pytest.raises(InputError, match="1 x 9 x 9"):
        open_dataset("digits").prepare(0).pipeline.encode_source(np.zeros((3, 9, 9), dtype=np.float32))
    with pytest.raises(InputError, match="100 steps"):
        open_dataset("cbf").prepare(0).pipeline.encode_source(np.zeros((3, 1, 100)))


def test_targets_go_both_ways():
    data = open_dataset("wine").prepare(0)
    names = [data.spec.classes[code] for code in data.test.y.tolist()]
    assert torch.equal(data.pipeline.encode_target(names), data.test.y)
    logits = torch.nn.functional.one_hot(data.test.y, 3) * 2.0
    table_out = data.pipeline.decode_output(logits)
    assert table_out["cultivar"] == names
    total = sum(np.array(table_out[f"p({name})"]) for name in data.spec.classes)
    np.testing.assert_allclose(total, 1)
    with pytest.raises(InputError, match="class_9"):
        data.pipeline.encode_target(["class_9"])


def test_arrays_that_are_not_contiguous_come_back(tmp_path, monkeypatch):
    """safetensors 0.8.0 (NumPy) writes strided arrays in memory order under the array's shape: other numbers, no error."""
    pipeline = open_dataset("iris").prepare(0).pipeline
    wanted = {name: np.asarray(value).copy() for name, value in pipeline.features.state()[1].items()}
    meta, arrays = pipeline.features.state()
    name = next(name for name, value in arrays.items() if value.ndim >= 1 and len(value) > 1)
    strided = np.repeat(arrays[name], 2)[::2]
    assert not strided.flags.c_contiguous
    monkeypatch.setattr(type(pipeline.features), "state", lambda self: (meta, {**arrays, name: strided}))
    save_pipeline(pipeline, tmp_path)
    monkeypatch.undo()
    found = load_pipeline(tmp_path).features.state()[1]
    assert all(found[key].tobytes() == value.tobytes() for key, value in wanted.items())
