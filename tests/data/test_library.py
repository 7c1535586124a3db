"""Sets under PROBATUM_DATA: found by name, with the splits and tasks of their sources."""

from __future__ import annotations

import numpy as np
import pytest

from probatum.data import library, library_names, open_dataset, subset
from probatum.errors import InputError


def need(name: str) -> None:
    if library.resolve(name) is None:
        pytest.skip(f"{name} is not under PROBATUM_DATA")


def test_a_missing_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBATUM_DATA", str(tmp_path / "none"))
    assert library_names() == ()
    with pytest.raises(InputError, match=r"none.*set PROBATUM_DATA"):
        library.library("adult")
    with pytest.raises(InputError, match=r"PROBATUM_DATA"):
        open_dataset("adult")


def test_an_unknown_set_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBATUM_DATA", str(tmp_path))
    with pytest.raises(InputError, match="'adults'"):
        library.library("adults")


def test_a_near_name_is_suggested():
    need("adult")
    with pytest.raises(InputError, match="tables/adult"):
        open_dataset("adlt")


def test_series_keep_their_split():
    need("GunPoint")
    dataset = open_dataset("ucr_series/GunPoint")
    data = dataset.prepare(0)
    assert (dataset.modality, dataset.task, dataset.fixed_split) == ("series", "classes", True)
    assert data.test.rows.tolist() == list(range(50, 200))
    both = np.concatenate([data.train.rows, data.valid.rows])
    train = dataset.raw.values[both, 0]
    test = dataset.raw.values[data.test.rows.numpy(), 0]
    labels = dataset.targets.values
    # One-nearest-neighbour accuracy on the official split is known to be 0.913.
    nearest = ((test[:, None] - train[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert abs(np.mean(labels[both][nearest] == labels[data.test.rows.numpy()]) - 0.913) < 0.001


def test_series_of_unequal_length_are_masked():
    need("JapaneseVowels")
    data = open_dataset("JapaneseVowels").prepare(0)
    assert data.spec.masked
    assert data.spec.shape == (13, 29)


def test_tables_keep_their_split_and_task():
    need("adult")
    dataset = open_dataset("adult")
    assert dataset.fixed_split
    assert len(dataset.split(0)[2]) == 16281
    assert "split" not in [c.name for c in dataset.raw.columns]
    need("wine_quality")
    assert open_dataset("wine_quality").task == "reals"


def test_leaks_are_dropped():
    need("bikeshare")
    dataset = open_dataset("bikeshare")
    assert not {"casual", "registered"} & {c.name for c in dataset.raw.columns}
    assert any("casual" in notice for notice in dataset.notices)


def test_texts():
    need("trec")
    dataset = open_dataset("sentence_sets/trec")
    data = dataset.prepare(0)
    assert (dataset.target, len(dataset.classes), len(data.test)) == ("coarse", 6, 500)
    assert len(data.train.text) == len(data.train)


def test_images_and_their_subset():
    need("mnist")
    dataset = open_dataset("mnist")
    assert (dataset.n, dataset.fixed_split) == (70000, True)
    small = subset(dataset, 700, 0)
    data = small.prepare(0)
    assert (len(data.test), data.spec.shape) == (100, (1, 28, 28))
    assert 0 <= float(data.train.x.min()) < float(data.train.x.max()) == 1
