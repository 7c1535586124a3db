"""Compression distances against whole-string compression, and every rule of counting (arXiv:2212.09410)."""

from __future__ import annotations

import bz2
import doctest
import gzip
import lzma

import numpy as np
import pytest
import torch

from probatum.data.open import open_dataset
from probatum.spec import Budget, Data, Part, Spec
from probatum.techniques.learner import gzip_knn
from probatum.techniques.learner.gzip_knn import GzipKNN, accuracies, distances, fit, length_with, to_bytes, votes

pytestmark = pytest.mark.fast

WORDS = [
    "the",
    "bank",
    "match",
    "goal",
    "share",
    "price",
    "rate",
    "team",
    "coach",
    "market",
    "fell",
    "rose",
    "won",
    "lost",
    "über",
    "naïve",
]
WHOLE = {"gzip": gzip.compress, "bz2": bz2.compress, "lzma": lzma.compress}


def sentences(n: int, seed: int = 0, length: int = 30) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=random.integers(3, length))) for _ in range(n)]


@pytest.mark.parametrize("name", list(WHOLE))
def test_distances_equal_whole_string_compression(name: str) -> None:
    texts, train = to_bytes(sentences(6)), to_bytes([*sentences(7, seed=1), "x" * 5000, *sentences(1, 2, 9000)])
    found = distances(texts, train, name)

    def size(text: bytes) -> int:
        return len(WHOLE[name](text))

    for i, x in enumerate(texts):
        for j, y in enumerate(train):
            low, high = sorted((size(x), size(y)))
            assert found[i, j] == pytest.approx((size(x + b" " + y) - low) / high, abs=1e-15)


def test_kept_state_gives_the_same_length_at_every_level() -> None:
    texts, train = to_bytes(sentences(4)), to_bytes(sentences(5, seed=1))
    for level in (1, 6, 9):
        for name in ("gzip", "deflate"):
            alone = length_with(name, level)
            np.testing.assert_array_equal(distances(texts, train, name, level=level), distances(texts, train, alone))
    assert length_with("gzip")(b"abc") == length_with("deflate")(b"abc") + 18


def test_a_text_is_nearest_to_itself() -> None:
    texts = to_bytes(sentences(8, length=60))
    found = distances(texts, texts)
    off = found + np.where(np.eye(8, dtype=bool), np.inf, 0.0)
    assert (np.diag(found) < 0.3).all()
    assert (np.diag(found) < off.min(axis=1)).all()


def test_parallel_and_serial_are_identical() -> None:
    texts, train = to_bytes(sentences(9)), to_bytes(sentences(11, seed=1))
    np.testing.assert_array_equal(distances(texts, train, workers=2), distances(texts, train))


def test_one_neighbour_does_not_depend_on_the_tie_rule() -> None:
    distance = np.random.default_rng(0).random((20, 9))
    labels = np.arange(9) % 3
    by_distance, first = (votes(distance, labels, 3, 1, tie).argmax(1) for tie in ("distance", "first"))
    assert torch.equal(by_distance, first)
    np.testing.assert_array_equal(first.numpy(), labels[distance.argmin(1)])


def test_tie_rules_by_hand() -> None:
    distance = np.array([[0.1, 0.2, 0.3, 0.35, 0.9]])
    labels = np.array([0, 1, 0, 1, 2])
    assert int(votes(distance, labels, 3, 4, "distance").argmax()) == 0  # 0.4 against 0.55
    closer = np.array([[0.1, 0.2, 0.6, 0.25, 0.9]])
    assert int(votes(closer, labels, 3, 4, "distance").argmax()) == 1
    assert int(votes(closer, labels, 3, 4, "first").argmax()) == 0
    assert votes(distance, labels, 3, 4, "first")[0].round().tolist() == [2, 2, 0]


def test_the_published_evaluation_is_top_2_for_k_2() -> None:
    random = np.random.default_rng(1)
    distance, labels, truth = random.random((200, 40)), random.integers(0, 4, 40), random.integers(0, 4, 200)
    found = accuracies(distance, labels, truth, k=2)
    nearest = labels[np.argsort(distance, axis=1)[:, :2]]
    loose = np.array([(t in row) if row[0] != row[1] else t == row[0] for t, row in zip(truth, nearest, strict=True)])
    assert found["k_ties_counted_right"] == found["top_k"] == pytest.approx(loose.mean())
    assert found["k_by_distance"] == found["one_neighbour"] == pytest.approx((nearest[:, 0] == truth).mean())
    assert found["top_k"] > found["one_neighbour"] + 0.1


def test_probabilities() -> None:
    model = GzipKNN(k=2).fit(sentences(6), [0, 1, 2, 0, 1, 2], classes=4)
    found = model.predict(sentences(3, seed=5))
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    assert bool((found > 0).all())
    assert found.shape == (3, 4)
    assert model.repeated(sentences(2)) == 2


def test_any_function_of_bytes_is_a_compressor() -> None:
    model = GzipKNN(k=1, compressor=lambda text: len(set(text))).fit(["aaaa", "zz"], [0, 1])
    assert model.predict(["aa", "zzz"]).argmax(1).tolist() == [0, 1]


def test_bytes_and_text_agree() -> None:
    texts = sentences(5)
    raw = [text.encode() for text in texts]
    as_text, as_bytes = (GzipKNN(k=1).fit(train, range(5)).distances(train) for train in (texts, raw))
    np.testing.assert_array_equal(as_text, as_bytes)


def test_bad_texts() -> None:
    with pytest.raises(ValueError, match=r"training texts\[1\] is empty"):
        GzipKNN(k=1).fit(["a", "  "], [0, 1])
    with pytest.raises(ValueError, match="bytes, str"):
        GzipKNN(k=1).fit(["a", b"b"], [0, 1])
    with pytest.raises(ValueError, match="k is 3, but there are 2"):
        GzipKNN(k=3).fit(["a", "b"], [0, 1])
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        GzipKNN(k=1).fit(["a", "b"], [0])
    with pytest.raises(ValueError, match="call fit"):
        GzipKNN().predict(["a"])
    for labels, classes in (([0, -1], None), ([0, 5], 3)):
        with pytest.raises(ValueError, match="labels reach from"):
            GzipKNN(k=1).fit(["a", "b"], labels, classes)
    with pytest.raises(ValueError, match="the compressor gives length 0"):
        GzipKNN(k=1, compressor=lambda text: 0).fit(["a", "b"], [0, 1]).predict(["a"])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("k", 0), ("level", 10), ("tie", "coin"), ("smoothing", 0.0), ("workers", 0), ("compressor", "zip")],
)
def test_settings_outside_their_range(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting} is {value!r}"):
        GzipKNN(**{setting: value})


def test_texts_beyond_the_window_warn() -> None:
    with pytest.warns(UserWarning, match="looks back 32768"):
        GzipKNN(k=1).fit(["a" * 40000, "b"], [0, 1])
    with pytest.warns(UserWarning, match="has 40000 bytes"):
        GzipKNN(k=1).fit(["a", "b"], [0, 1]).predict(["a" * 40000])


def test_learns_through_its_slot() -> None:
    data = open_dataset("toy-topics").prepare(1)
    budget = Budget(10, 32, 5)
    few = fit(data, budget, torch.Generator().manual_seed(0), most_train=60)
    assert len(few.model.train) == 60
    counts = np.bincount(few.model.labels)
    shares = torch.bincount(data.train.y).double() * 60 / len(data.train)
    assert np.abs(counts - shares.numpy()).max() <= 1
    part = type(data.test)(data.test.x[:60], data.test.y[:60], data.test.rows[:60], data.test.text[:60])
    chance = float(torch.bincount(part.y).max()) / 60
    assert float((few.predict(part).argmax(1) == part.y).float().mean()) > chance
    with pytest.raises(ValueError, match="no raw text"):
        few.predict(type(part)(part.x, part.y, part.rows))


def test_example() -> None:
    assert doctest.testmod(gzip_knn).failed == 0


def test_strings_of_numpy_are_strings() -> None:
    texts = ["the match ended two goals to one", "shares fell as the bank cut its rates", "goals and a match"]
    plain = GzipKNN(k=1).fit(texts, [0, 1, 0]).distances(texts)
    for kind in (np.str_, np.bytes_):
        own = [kind(text) for text in texts] if kind is np.str_ else list(np.array([t.encode() for t in texts]))
        np.testing.assert_array_equal(GzipKNN(k=1).fit(own, [0, 1, 0]).distances(own), plain)
    with pytest.raises(ValueError, match="bytes, str"):
        GzipKNN(k=1).fit([texts[0], texts[1].encode()], [0, 1])


def test_the_same_share_of_every_class_is_kept() -> None:
    texts = tuple(f"text number {k} about {WORDS[k]}" for k in range(8))
    y = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    part = Part(torch.zeros(8, 1), y, torch.arange(8), texts)
    data = Data(Spec("text", "classes", (1,), 2, vocabulary=9), part, part, part)
    # places of the two rows of class 0 are 1/4 and 3/4, of the six of class 1 1/12, 3/12, 5/12, ...; of equals the first row
    for most, kept in ((1, [1]), (2, [0, 1]), (3, [0, 1, 1]), (5, [0, 1, 1, 1, 1]), (6, [0, 0, 1, 1, 1, 1])):
        found = fit(data, Budget(1, 1, 1), torch.Generator().manual_seed(0), k=1, most_train=most).model
        assert sorted(found.labels.tolist()) == kept
