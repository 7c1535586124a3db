"""Worlds: exact shares, consistent truths, the same for all arms of a seed, one clear error where they cannot be."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from probatum.data import library
from probatum.data.dataset import Dataset
from probatum.data.open import open_dataset
from probatum.data.split import TEST, TRAIN
from probatum.errors import InputError
from probatum.kinds.image.worlds import places
from probatum.rooms.world import kinds, parse_world, world_generator
from probatum.settings import Reading
from probatum.spec import Data, Part, Truth

CASES = [
    ("digits", "label-noise:0.4"),
    ("iris", "label-noise:0.2:pair:clean-valid"),
    ("digits", "label-noise:0.3:instance"),
    ("toy-topics", "label-noise:0.3:confusion"),
    ("digits", "spurious:0.95"),
    ("breast-cancer", "spurious:0.9"),
    ("toy-topics", "spurious:1"),
    ("cbf", "spurious:0.8"),
    ("digits", "long-tail:10"),
    ("wine", "long-tail:4:step"),
    ("breast-cancer", "covariate-shift:1"),
    ("diabetes", "covariate-shift:1"),
    ("digits", "label-shift:1"),
    ("digits", "ood"),
    ("cbf", "ood:noise"),
    ("toy-topics", "ood:shuffled"),
    ("iris", "ood:held-out"),
    ("digits", "probabilities:2"),
]


def made(name: str, world: str, seed: int = 0) -> tuple[Data, Data, Truth]:
    """The split as it is, the split in the world, and its truth."""
    dataset = open_dataset(name, Reading(world=world))
    plain = replace(dataset, world=None).prepare(seed)
    found = dataset.prepare(seed)
    assert found.truth is not None
    return plain, found, found.truth


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Truth | Part) and type(a) is type(b):
        return all(same(getattr(a, one.name), getattr(b, one.name)) for one in fields(a))
    return a == b


@pytest.mark.parametrize(("name", "world"), CASES)
def test_a_world_is_a_pure_function_of_the_seed(name: str, world: str) -> None:
    dataset = open_dataset(name, Reading(world=world))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = dataset.prepare(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = open_dataset(name, Reading(world=world)).prepare(3)
    other = dataset.world.apply(
        replace(dataset, world=None).prepare(3), world_generator(dataset.world.name, 4), dataset
    )
    for one, two in ((first.train, again.train), (first.valid, again.valid), (first.test, again.test)):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)
        assert one.text == two.text
    assert same(first.truth, again.truth)
    assert not all(same(getattr(first, part), getattr(other, part)) for part in ("train", "valid", "test", "truth"))
    for part in (first.train, first.valid, first.test, first.truth.shifted, first.truth.outside):
        if part is not None:
            assert len(part) == len(part.x) == len(part.rows)
            assert part.x.shape[1:] == first.spec.shape
            assert part.text is None or len(part.text) == len(part)
            assert torch.isfinite(part.x.float()).all()
            if first.spec.modality == "text":
                assert 0 <= int(part.x.min()) <= int(part.x.max()) < first.spec.vocabulary
    assert first.truth.world == parse_world(world).name
    assert all(np.isfinite(number) for number in first.truth.counts.values())


def test_names_are_whole_and_read_again() -> None:
    for _, world in CASES:
        found = parse_world(world)
        assert parse_world(found.name) == found
    assert parse_world("label-noise:0.4").name == parse_world("label-noise:0.40:symmetric").name
    assert {world.split(":")[0] for _, world in CASES} | {"human-labels"} == set(kinds())


def test_fingerprints_tell_worlds_apart() -> None:
    plain, one, two = (
        open_dataset("iris"),
        open_dataset("iris", Reading(world="label-noise:0.2")),
        open_dataset("iris", Reading(world="label-noise:0.3")),
    )
    assert len({plain.fingerprint, one.fingerprint, two.fingerprint}) == 3
    assert open_dataset("iris", Reading(world="label-noise:0.20:symmetric")).fingerprint == one.fingerprint
    told = one.summary()["world"]
    assert told["name"] == "label-noise:0.2:symmetric"
    assert told["counts"]["wrong training labels"] == 18
    few = one.take(np.arange(0, 150, 2))
    assert few.world == one.world
    assert few.prepare(0).truth is not None


@pytest.mark.parametrize("pattern", ["symmetric", "pair", "confusion"])
def test_noise_rates_are_exact_and_test_labels_stay(pattern: str) -> None:
    plain, found, truth = made("digits", f"label-noise:0.4:{pattern}")
    for part, clean, noisy in (
        ("train", truth.clean_train, found.train.y),
        ("valid", truth.clean_valid, found.valid.y),
    ):
        assert torch.equal(clean, getattr(plain, part).y)
        assert int((clean != noisy).sum()) == round(0.4 * len(noisy))
    assert torch.equal(found.test.y, plain.test.y)
    assert torch.equal(found.train.x, plain.train.x)
    if pattern == "pair":
        moved = found.train.y != truth.clean_train
        assert torch.equal(found.train.y[moved], (truth.clean_train[moved] + 1) % 10)


def test_instance_noise_and_clean_validation() -> None:
    plain, found, truth = made("digits", "label-noise:0.3:instance:clean-valid")
    assert torch.equal(found.valid.y, plain.valid.y)
    share = float((found.train.y != truth.clean_train).double().mean())
    assert abs(share - 0.3) < 4 * (0.21 / len(plain.train)) ** 0.5


@pytest.mark.parametrize("name", ["digits", "breast-cancer", "toy-topics", "cbf"])
def test_evidence_can_be_read_off_and_is_turned_round(name: str) -> None:
    plain, found, truth = made(name, "spurious:0.9")
    classes = found.spec.outputs
    for part, rate in ((found.train, 0.9), (found.valid, 0.9), (found.test, 0.9), (truth.shifted, 0.0)):
        codes = evidence(part, found, plain)
        assert int((codes == part.y).sum()) == round(rate * len(part))
        assert 0 <= int(codes.min()) <= int(codes.max()) < classes
    for part, groups in ((found.test, truth.groups), (truth.shifted, truth.shifted_groups)):
        codes = evidence(part, found, plain)
        assert torch.equal(groups, 2 * part.y + (codes == part.y).long())
    assert torch.equal(truth.shifted.y, plain.test.y)
    assert torch.equal(found.train.y, plain.train.y)


def evidence(part: Part, data: Data, plain: Data) -> torch.Tensor:
    """Whose mark each row carries, found by looking."""
    spec, classes = data.spec, data.spec.outputs
    if spec.modality == "table":
        assert spec.features[plain.spec.numeric : spec.numeric] == tuple(f"evidence {k}" for k in range(classes))
        marks = part.x[:, plain.spec.numeric : spec.numeric]
        assert bool((marks.sum(dim=1) == 1).all())
        return marks.argmax(dim=1)
    if spec.modality == "text":
        assert all(text.startswith("evidence") for text in part.text)
        return part.x[:, 0] - plain.spec.vocabulary
    if spec.modality == "image":
        _, corners = places(spec)
        assert len(set(corners)) == classes
        lit = torch.stack([part.x[:, 0, top, left] for top, left in corners], dim=1)
        assert bool((lit.sum(dim=1) == 1).all())
        return lit.argmax(dim=1)
    raw = torch.cat([plain.train.x, plain.valid.x, plain.test.x])
    rows = torch.cat([plain.train.rows, plain.valid.rows, plain.test.rows])
    before = raw[rows.argsort()][part.rows, 0]
    moved = (part.x[:, 0] - before) > 1
    return (moved.double().argmax(dim=1) * classes).div(spec.shape[1], rounding_mode="floor").round().long()


def test_series_marks_follow_the_observed_length() -> None:
    from probatum.spec import Spec
    from probatum.worlds.evidence import marked

    spec = Spec("series", "classes", (2, 12), 2, masked=True)
    mask = torch.zeros(2, 12)
    mask[0, :4] = 1
    mask[1] = 1
    x = torch.stack([torch.zeros(2, 12), mask], dim=1)
    out = marked(Part(x, torch.tensor([1, 1]), torch.arange(2)), torch.tensor([1, 1]), spec).x
    assert out[0, 0].nonzero().flatten().tolist() == [2, 3]
    assert out[1, 0].nonzero().flatten().tolist() == [6, 7, 8, 9, 10, 11]
    assert torch.equal(out[:, 1], mask)


@pytest.mark.parametrize(("world", "sizes"), [("long-tail:10", None), ("long-tail:5:step", {0.2, 1.0})])
def test_long_tails_have_their_ratio(world: str, sizes: set[float] | None) -> None:
    plain, found, truth = made("digits", world)
    counts = torch.bincount(found.train.y, minlength=10).double()
    ratio = parse_world(world).ratio
    assert counts.max() / counts.min() == pytest.approx(ratio, rel=0.12)  # counts are whole
    ordered = counts.sort(descending=True).values
    expected = ordered[0] * parse_world(world).sizes(10)
    assert float((ordered - expected).abs().max()) <= 1.5
    if sizes:
        assert int((counts < counts.max() / 2).sum()) == 5
    assert torch.equal(found.test.x, plain.test.x)
    assert torch.equal(truth.groups, plain.test.y)
    assert set(found.train.rows.tolist()) <= set(plain.train.rows.tolist())
    assert int(torch.bincount(found.valid.y, minlength=10).min()) >= 1


def test_weights_of_a_covariate_shift_bring_the_other_side_about() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 2))
    source = open_dataset((x, (x[:, 0] > 0).astype(int)), Reading(modality="table", world="covariate-shift:1"))
    found = source.prepare(1)
    truth = found.truth
    assert len(truth.weights) == len(found.train)
    assert float(truth.weights.mean()) == pytest.approx(1, abs=1e-5)
    test = set(found.test.rows.tolist()) | set(truth.shifted.rows.tolist())
    assert test == set(replace(source, world=None).prepare(1).test.rows.tolist())
    there = truth.shifted.x.double()
    for moment in (found.train.x, found.train.x**2, found.train.x.prod(dim=1, keepdim=True)):
        usual = moment.double().mean(dim=0)
        power = {2: there, 1: there.prod(dim=1, keepdim=True)}[moment.shape[1]]
        target = (power**2 if torch.equal(moment, found.train.x**2) else power).mean(dim=0)
        weighed = (truth.weights.double()[:, None] * moment.double()).mean(dim=0)
        assert float((weighed - target).abs().max()) < max(0.12, 0.5 * float((usual - target).abs().max()))
    none = replace(source, world=parse_world("covariate-shift:0")).prepare(1)
    assert bool((none.truth.weights == 1).all())


def test_label_shift_keeps_rows_and_weighs_classes() -> None:
    plain, found, truth = made("digits", "label-shift:1")
    assert torch.equal(found.test.y, plain.test.y)
    assert set(truth.shifted.rows.tolist()) < set(plain.test.rows.tolist())
    share = torch.bincount(truth.shifted.y, minlength=10).double() / len(truth.shifted)
    weighed = torch.zeros(10, dtype=torch.float64).index_add_(0, found.train.y, truth.weights.double())
    torch.testing.assert_close(weighed / weighed.sum(), share, atol=1e-6, rtol=1e-5)


def test_a_class_held_out_is_nowhere_but_outside() -> None:
    plain, found, truth = made("digits", "ood:held-out")
    (gone,) = set(plain.spec.classes) - set(found.spec.classes)
    code = plain.spec.classes.index(gone)
    assert found.spec.outputs == 9
    assert set(truth.outside.rows.tolist()) == set(plain.test.rows[plain.test.y == code].tolist())
    for name in ("train", "valid", "test"):
        part, before = getattr(found, name), getattr(plain, name)
        original = dict(zip(before.rows.tolist(), before.y.tolist(), strict=True))
        for row, y in zip(part.rows.tolist(), part.y.tolist(), strict=True):
            assert plain.spec.classes[original[row]] == found.spec.classes[y]


def test_shuffled_rows_keep_the_marginals_and_break_the_rest() -> None:
    plain, _, truth = made("digits", "ood:shuffled")
    assert torch.equal(truth.outside.x.sort(dim=0).values, plain.test.x.sort(dim=0).values)
    there = torch.corrcoef(plain.test.x[:, 0, 3:5, 3:5].flatten(1).T)[0, 1]
    here = torch.corrcoef(truth.outside.x[:, 0, 3:5, 3:5].flatten(1).T)[0, 1]
    assert abs(float(here)) < 0.2 < abs(float(there))


def test_labels_follow_the_known_probabilities() -> None:
    rng = np.random.default_rng(1)
    source = open_dataset((rng.normal(size=(8000, 3)), np.arange(8000) % 3), Reading(modality="table", task="classes"))
    found = open_dataset(source, Reading(world="probabilities:2")).prepare(0)
    p = found.truth.probabilities.double()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(len(p), dtype=torch.float64))
    hit = torch.nn.functional.one_hot(found.test.y, 3)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (p > low) & (p <= low + 0.25)
        n = int(inside.sum())
        assert abs(float(hit[inside].double().mean() - p[inside].mean())) < 4 * (0.25 / n) ** 0.5
    even = open_dataset(source, Reading(world="probabilities:0")).prepare(0)
    assert float((even.truth.probabilities - 1 / 3).abs().max()) < 1e-6


BAD = {
    "no such kind": ("iris", "labelnoise:0.2", "nearest: label-noise"),
    "no rate": ("iris", "label-noise", "no rate"),
    "rate of one": ("iris", "label-noise:1", "rate 1"),
    "rate below nought": ("iris", "label-noise:-0.1", "rate -0.1"),
    "infinite": ("iris", "label-noise:inf", "not finite"),
    "odd word": ("iris", "label-noise:0.1:odd", "'odd'"),
    "two patterns": ("iris", "label-noise:0.1:pair:symmetric", "two patterns"),
    "reals": ("diabetes", "label-noise:0.1", "task of diabetes is reals"),
    "share above one": ("iris", "spurious:1.5", "share 1.5"),
    "ratio below one": ("iris", "long-tail:0.5", "ratio 0.5"),
    "class vanishes": ("iris", "long-tail:500", "training row"),
    "strength": ("iris", "covariate-shift:11", "strength 11"),
    "alpha": ("iris", "label-shift:0", "alpha 0"),
    "sharpness": ("iris", "probabilities:-1", "sharpness -1"),
    "number for ood": ("iris", "ood:3", "no number"),
    "tables of other data": ("iris", "ood:digits", "other columns"),
    "the data themselves": ("digits", "ood:digits", "which training sees"),
    "other modality": ("digits", "ood:cbf", "no set of image rows"),
    "two classes held out": ("breast-cancer", "ood:held-out", "3 or more"),
    "number for human labels": ("digits", "human-labels:3", "no number"),
}


@pytest.mark.parametrize(("name", "world", "told"), BAD.values(), ids=BAD)
def test_worlds_that_cannot_be_say_why(name: str, world: str, told: str) -> None:
    def try_it() -> None:
        open_dataset(name, Reading(world=world)).prepare(0)

    with pytest.raises(InputError) as problem:
        try_it()
    assert told in str(problem.value)
    assert ";" in str(problem.value)


def test_no_world_in_a_world_nor_of_a_long_text(tmp_path: Path) -> None:
    dataset = open_dataset("iris", Reading(world="label-noise:0.1"))
    with pytest.raises(InputError, match="in the world label-noise"):
        open_dataset(dataset, Reading(world="ood"))
    text = tmp_path / "book.txt"
    text.write_text("a long text. " * 400)
    with pytest.raises(InputError, match=r"is made of rows, and book \(language\) has none"):
        open_dataset(text, Reading(world="label-noise:0.1"))


def human_files(folder: Path, *, spoilt: bool = False) -> tuple[Dataset, Any, Any, Any, Any]:
    """A small stand-in for the sets that the world of human labels joins."""
    rng = np.random.default_rng(0)
    train, test = rng.permutation(50_000)[:300], rng.permutation(10_000)[:60]
    clean, votes = rng.integers(0, 10, 50_000), rng.integers(0, 20, (10_000, 10)) + np.eye(10, dtype=int)[0]
    labels = folder / "cifar10_human_labels"
    (folder / "cifar10_subset").mkdir()
    labels.mkdir()
    y_train = (clean[train] + (1 if spoilt else 0)) % 10
    y_test = rng.integers(0, 10, 60)
    np.savez(folder / "cifar10_subset" / "cifar10_subset.npz", index_train=train, index_test=test)
    worse = np.where(rng.random(50_000) < 0.4, (clean + 1) % 10, clean)
    np.savez(
        labels / "cifar10n_train.npz", clean_label=clean, worse_label=worse, aggre_label=clean, random_label1=worse
    )
    np.savez(labels / "cifar10h_test.npz", counts=votes)
    x = rng.integers(0, 256, (360, 4, 4, 3)).astype(np.uint8)
    dataset = open_dataset(
        (x, np.concatenate([y_train, y_test])),
        Reading(split=["train"] * 300 + ["test"] * 60, world="human-labels:worse", name="stand-in"),
    )
    return dataset, train, test, worse, votes


def test_human_labels_are_joined_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, str(tmp_path))
    dataset, train, test, worse, votes = human_files(tmp_path)
    found = dataset.prepare(0)
    assert found.train.y.tolist() == worse[train[found.train.rows]].tolist()
    assert found.valid.y.tolist() == worse[train[found.valid.rows]].tolist()
    expected = votes[test[found.test.rows - 300]]
    np.testing.assert_allclose(found.truth.probabilities, expected / expected.sum(1, keepdims=True), atol=1e-6)
    assert 0.3 < found.truth.counts["share of training labels wrong"] < 0.5


def test_human_labels_of_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, str(tmp_path))
    dataset, *_ = human_files(tmp_path, spoilt=True)
    with pytest.raises(InputError, match="are not those of"):
        dataset.prepare(0)
    with pytest.raises(InputError, match="other data"):
        open_dataset("digits", Reading(world="human-labels")).prepare(0)


def test_the_real_human_labels() -> None:
    if "cifar10_subset" not in library.library_names():
        pytest.skip("PROBATUM_DATA has no cifar10_subset")
    _, found, truth = made("cifar10_subset", "human-labels:aggre")
    assert 0.05 < truth.counts["share of training labels wrong"] < 0.13
    assert truth.probabilities.shape == (len(found.test), 10)
    agree = float((truth.probabilities.argmax(dim=1) == found.test.y).double().mean())
    assert agree > 0.97


def test_given_parts_are_kept() -> None:
    assert (TRAIN, TEST) == (0, 2)
    x = np.random.default_rng(0).normal(size=(90, 3))
    words = ["train"] * 60 + ["test"] * 30
    source = open_dataset(
        (x, np.arange(90) % 3), Reading(modality="table", task="classes", split=words, world="label-noise:0.2")
    )
    assert source.fixed_split
    assert source.prepare(0).test.rows.tolist() == list(range(60, 90))


def test_streamed_rows_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=20_000) for i in range(8)}
    pl.DataFrame({**columns, "y": rng.integers(0, 2, 20_000)}).write_parquet(tmp_path / "big.parquet")
    with pytest.raises(InputError, match="streamed from disk"):
        open_dataset(tmp_path / "big.parquet", Reading(memory="300KB", world="label-noise:0.1"), target="y")
