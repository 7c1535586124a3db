"""Corpora: windows, splits without leaks, tokens fitted on training text, and what cannot be used."""

from __future__ import annotations

import gzip
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probatum.data import load_pipeline, open_dataset, save_pipeline
from probatum.errors import InputError
from probatum.kinds.language import corpus as module
from probatum.kinds.language.corpus import corpus, corpus_names
from probatum.kinds.language.tokens import TokenEncoder
from probatum.settings import Reading

pytestmark = pytest.mark.fast

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "Zoë,",
    "naïve",
    "and",
    "東京",
    "bound,",
    "counts:",
    "1",
    "2",
    "3.\n",
]


def opened(source: object, **said: Any) -> Any:
    """What is opened with these fields of `Reading` and options of a kind."""
    options = {name: said.pop(name) for name in ("size", "text", "tokens", "vocabulary", "length") if name in said}
    said["drop"] = tuple(said.get("drop", ()))
    return open_dataset(source, Reading(**said, options=options))


def book(n: int = 30_000, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=n // 4))[:n]


def test_windows_follow_one_another() -> None:
    text = "abcdefghijklmnopqrstuvwxyz"
    encoder = TokenEncoder.fit([text], "char", 5)
    x, y, rows, texts = module.windows(encoder, text, first=100)
    assert x.shape == y.shape == (5, 5)
    assert (x.ravel() == np.arange(2, 27)).all()
    assert (y == x + 1).all()
    assert rows.tolist() == [100, 105, 110, 115, 120]
    assert texts == ["bcdef", "ghijk", "lmnop", "qrstu", "vwxyz"]
    assert module.windows(encoder, "abcde")[0].shape == (0, 5)  # the last has nothing behind it
    assert module.windows(encoder, "")[0].shape == (0, 5)


@pytest.mark.parametrize("seed", range(4))
def test_no_window_touches_another_part(seed: int) -> None:
    text, length = book(), 16
    data = corpus(text, length=length).prepare(seed)
    owner = np.full(len(text), -1)
    for part, where in enumerate((data.train, data.valid, data.test)):
        for row, own in zip(where.rows.tolist(), where.text, strict=True):
            assert text[row + 1 : row + length + 1] == own
            assert set(owner[row : row + length + 1]) <= {-1, part}
            owner[row : row + length + 1] = part
    used = np.flatnonzero(owner >= 0)
    changes = np.flatnonzero(np.diff(owner[used]))
    assert len(changes) > 4
    assert (used[changes + 1] - used[changes]).min() > length  # a window's worth of text lies between parts
    sizes = [len(part) for part in (data.train, data.valid, data.test)]
    assert np.allclose(np.array(sizes) / sum(sizes), (0.6, 0.2, 0.2), atol=0.08)


def test_the_seed_draws_the_split() -> None:
    data = corpus(book(), length=16)
    one, again, other = data.prepare(3), data.prepare(3), data.prepare(4)
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(one, part).x, getattr(again, part).x)
        assert torch.equal(getattr(one, part).y, getattr(again, part).y)
    assert set(one.test.rows.tolist()) != set(other.test.rows.tolist())
    assert one.spec.task == "next-token"
    assert one.spec.outputs == one.spec.vocabulary == int(max(one.train.x.max(), one.train.y.max())) + 1
    assert int(one.train.x.min()) >= 2
    assert torch.equal(one.train.x[:, 1:], one.train.y[:, :-1])


def test_characters_are_those_of_the_training_text() -> None:
    """A letter that occurs once is unknown wherever its block does not train."""
    text = book()
    place = 20_000
    data = corpus(text[:place] + "ß" + text[place + 1 :], length=16)
    seen = set()
    for seed in range(8):
        split = data.prepare(seed)
        known = "ß" in split.pipeline.features.characters
        unknown = sum(int((part.y == 1).sum()) for part in (split.train, split.valid, split.test))
        assert unknown <= (0 if known else 1)
        assert not (split.train.y == 1).any()
        seen.add(known)
    assert seen == {True, False}


def test_given_test_text_is_never_trained_on() -> None:
    texts = (book(12_000), book(9_000, seed=1))
    data = corpus(texts, length=16, given=(0, 2))
    assert data.fixed_split
    first, second = data.prepare(0), data.prepare(1)
    assert torch.equal(first.test.rows, second.test.rows)
    assert int(first.test.rows.min()) == 12_000
    assert int(max(first.train.rows.max(), first.valid.rows.max())) < 12_000
    assert not torch.equal(first.valid.rows, second.valid.rows)


def test_large_parts_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = corpus(book(), length=16).prepare(1)
    monkeypatch.setattr(module, "MOST", {"train": None, "valid": 20, "test": 30})
    data = corpus(book(), length=16).prepare(1)
    assert (len(data.valid), len(data.test), len(data.valid.text)) == (20, 30, 20)
    assert torch.equal(data.train.x, whole.train.x)
    assert set(data.test.rows.tolist()) < set(whole.test.rows.tolist())


def test_byte_pairs_keep_every_byte(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="byte pairs need it")
    data = corpus(book(40_000), tokens="bpe", vocabulary=300, length=16).prepare(0)
    encoder = data.pipeline.features
    assert encoder.vocabulary == data.spec.outputs == 300
    told = "Zoë [PAD] [UNK] 🙂 東京\n\n  end"
    ids, begins = encoder.encode(told)
    assert not {0, 1} & set(ids.tolist())  # no unknowns, and words that look like special tokens are text
    assert begins[-1] == len(told)
    assert (np.diff(begins) >= 0).all()
    length = 4
    _, y, _, texts = module.windows(TokenEncoder("bpe", length, merges=encoder.merges), told)
    assert "".join(texts) == told[begins[1] : begins[y.size + 1]]
    assert pickle.loads(pickle.dumps(encoder)).encode(told)[0].tolist() == ids.tolist()
    save_pipeline(data.pipeline, tmp_path)
    loaded = load_pipeline(tmp_path)
    assert loaded.features == encoder
    assert loaded.spec == data.spec
    assert loaded.features.encode(told)[0].tolist() == ids.tolist()


def test_characters_are_saved_and_loaded(tmp_path: Path) -> None:
    data = corpus(book(), length=16).prepare(0)
    save_pipeline(data.pipeline, tmp_path)
    loaded = load_pipeline(tmp_path)
    ids, _ = loaded.features.encode(data.test.text[0])
    assert ids.tolist() == data.test.y[0].tolist()
    with pytest.raises(InputError, match="whole texts"):
        loaded.encode_source([data.test.text[0]])


def test_files_gzipped_or_not(tmp_path: Path) -> None:
    text = book()
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    one, two = open_dataset(tmp_path / "a.txt"), open_dataset(str(tmp_path / "b.txt.gz"), Reading(task="next-token"))
    assert (one.name, two.name) == ("a", "b")
    assert one.fingerprint == two.fingerprint == corpus(text).fingerprint
    assert one.fingerprint != open_dataset(tmp_path / "a.txt", Reading(options={"length": 32})).fingerprint
    summary = one.summary()
    assert summary["n"] == len(text)
    assert summary["unit"] == "characters"
    assert sum(summary["split"].values()) * 64 < len(text)
    assert open_dataset(one) is one


def test_the_embedded_corpus() -> None:
    data = open_dataset("python-topics")
    assert data.n == module.EMBEDDED_CHARACTERS
    assert data.fingerprint == open_dataset("python-topics", Reading(task="next-token")).fingerprint
    assert "python-topics" in corpus_names()


def test_a_python_without_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match=r"pydoc_data\.topics.*name a \.txt file"):
        open_dataset("python-topics")


def test_byte_pairs_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"probatum\[language\]"):
        corpus(book(), tokens="bpe")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("python-topics", {"length": 1}, "length is 1"),
        ("python-topics", {"tokens": "word"}, "tokens is 'word'"),
        ("python-topics", {"vocabulary": 300}, "vocabulary is for tokens=bpe"),
        ("python-topics", {"tokens": "bpe", "vocabulary": 100}, "vocabulary is 100"),
        ("python-topics", {"task": "classes"}, "task next-token; the task given is classes"),
        ("python-topics", {"target": "a", "group": "b"}, "takes no target, group"),
        ("python-topics", {"modality": "table"}, "takes no modality"),
        ("iris", {"tokens": "char"}, "embedded and takes no tokens"),
        ("iris", {"length": 8, "vocabulary": 300}, "takes no length, vocabulary"),
        ("iris", {"task": "next-token"}, "'iris' is embedded and takes no task"),
        ("none.txt", {}, "does not exist"),
        ("python-topic", {}, "nearest: python-topics"),
    ],
)
def test_what_cannot_be_used_is_named(source: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(source, **options)


def test_a_text_file_that_is_said_to_be_of_another_kind_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("a\tACGT\n" * 2000, encoding="utf-8")
    assert opened(str(path)).task == "next-token"
    with pytest.raises(InputError, match=r"book.txt' is no data that is known of modality series"):
        opened(str(path), modality="series")


def test_texts_that_are_too_short_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 3000 characters; windows of 64 char tokens need 3072"):
        corpus(book(3000))
    corpus(book(3072)).prepare(0)
    with pytest.raises(InputError, match="no text that UTF-8 can hold"):
        corpus("\ud800" + book())
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa" * 2000)
    with pytest.raises(InputError, match="no UTF-8 text"):
        open_dataset(tmp_path / "bad.txt")
    packed = bytearray(gzip.compress(book().encode()))
    packed[30:60] = bytes(30)
    for content in (b"no gzip", bytes(packed), bytes(packed[:200])):
        (tmp_path / "bad.txt.gz").write_bytes(content)
        with pytest.raises(InputError, match="no UTF-8 text"):
            open_dataset(tmp_path / "bad.txt.gz")
    with pytest.raises(InputError, match=r"given is \[0\] for 2 texts"):
        corpus((book(), book()), given=[0])
    with pytest.raises(InputError, match="holds a bytes"):
        corpus((book().encode(),))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"length is 4\.5"):
        corpus(book(), length=4.5)  # type: ignore[arg-type]
