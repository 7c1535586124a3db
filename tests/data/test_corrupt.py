"""Corruptions: same shape and type, stronger with severity, random only by the generator."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from probatum.data import open_dataset
from probatum.data.corrupt import corruptions
from probatum.errors import InputError
from probatum.spec import Data

pytestmark = pytest.mark.fast


def mixed() -> Data:
    import polars as pl

    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"a": rng.normal(size=400), "c": rng.choice(list("uvw"), 400), "y": rng.choice(["n", "p"], 400)}
    )
    return open_dataset(frame, target="y").prepare(0)


def masked() -> Data:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(300, 2, 40)), axis=2)
    x[::2, :, 30:] = np.nan
    return open_dataset((x, np.arange(300) % 2)).prepare(0)


DATA = {
    "image": lambda: open_dataset("digits").prepare(0),
    "table": mixed,
    "text": lambda: open_dataset("toy-topics").prepare(0),
    "series": lambda: open_dataset("cbf").prepare(0),
    "masked series": masked,
}
IMAGE = ("gaussian noise", "blur", "contrast", "brightness", "shift", "pixelate")
TABLE = ("gaussian noise", "missing numbers", "missing categories")
TEXT = ("dropped words", "unknown words", "swapped neighbours")
SERIES = ("gaussian noise", "time dropout", "time warp", "scale")
NAMES = {"image": IMAGE, "table": TABLE, "text": TEXT, "series": SERIES, "masked series": SERIES}
CASES = [(kind, name) for kind in DATA for name in NAMES[kind]]


@pytest.fixture(scope="module")
def data() -> dict[str, Data]:
    return {kind: make() for kind, make in DATA.items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_corruptions(kind, name, data):
    spec, x = data[kind].spec, data[kind].train.x
    before = x.clone()
    state = torch.random.get_rng_state()
    corrupt = corruptions(spec)[name]
    distances = []
    for severity in range(1, 6):
        out = corrupt(x, spec, severity, seeded())
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert torch.isfinite(out.float()).all()
        assert torch.equal(out, corrupt(x, spec, severity, seeded()))
        distance = (out != x).float().mean() if spec.modality == "text" else (out - x).abs().mean()
        distances.append(float(distance))
    assert distances[0] > 0
    assert all(a <= b for a, b in itertools.pairwise(distances)), distances
    assert distances[0] < distances[-1]
    assert torch.equal(x, before)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", IMAGE)
def test_pixels_stay_in_range(name, data):
    out = corruptions(data["image"].spec)[name](data["image"].train.x, data["image"].spec, 5, seeded())
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


@pytest.mark.parametrize("name", TEXT)
def test_texts_keep_padding_on_the_right_and_a_token(name, data):
    spec, x = data["text"].spec, data["text"].train.x
    out = corruptions(spec)[name](x, spec, 5, seeded())
    assert ((out == 0).long().diff(dim=1) >= 0).all()
    assert (out[:, 0] != 0).all()
    assert 0 <= int(out.min()) <= int(out.max()) < spec.vocabulary


def test_swaps_keep_the_words_of_a_text(data):
    x = data["text"].train.x
    out = corruptions(data["text"].spec)["swapped neighbours"](x, data["text"].spec, 5, seeded())
    assert torch.equal(out.sort(dim=1).values, x.sort(dim=1).values)


@pytest.mark.parametrize("name", SERIES)
def test_padding_of_masked_series_stays_zero(name, data):
    spec, x = data["masked series"].spec, data["masked series"].train.x
    out = corruptions(spec)[name](x, spec, 5, seeded())
    assert (out[:, :-1][(out[:, -1:] == 0).expand_as(out[:, :-1])] == 0).all()
    assert (out[:, -1] <= x[:, -1]).all()


def test_categories_and_numbers_are_hit_apart(data):
    spec, x = data["table"].spec, data["table"].train.x
    numbers = corruptions(spec)["gaussian noise"](x, spec, 5, seeded())
    categories = corruptions(spec)["missing categories"](x, spec, 5, seeded())
    assert torch.equal(numbers[:, spec.numeric :], x[:, spec.numeric :])
    assert torch.equal(categories[:, : spec.numeric], x[:, : spec.numeric])


def test_all_of_them_are_named_here(data):
    assert {kind: tuple(corruptions(data[kind].spec)) for kind in DATA} == NAMES


def test_only_what_fits_is_offered():
    assert set(corruptions(open_dataset("iris").prepare(0).spec)) == {"gaussian noise", "missing numbers"}


def test_shift_moves_pixels_by_whole_steps():
    spec = open_dataset("digits").prepare(0).spec
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 4, 4] = 1
    out = corruptions(spec)["shift"](x, spec, 1, seeded())
    row, column = (out[0, 0] == 1).nonzero()[0].tolist()
    assert abs(row - 4) == abs(column - 4) == 1


@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_severity_is_checked(severity, data):
    with pytest.raises(InputError, match="severity"):
        corruptions(data["image"].spec)["blur"](data["image"].train.x, data["image"].spec, severity, seeded())
