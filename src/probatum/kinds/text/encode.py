"""Texts: raw strings, a word tokenizer, and the encoder that holds the training vocabulary."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probatum.errors import InputError

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
PADDING, UNKNOWN = 0, 1
MIN_COUNT = 2
MAX_WORDS = 20_000
MAX_LENGTH = 256


def words_of(text: str) -> list[str]:
    """Lower-cased words and punctuation marks."""
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class RawTexts:
    """Strings as given; `column` is the name of the column they came from."""

    texts: tuple[str, ...]
    column: str

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> RawTexts:
        """The rows with these numbers, in this order."""
        return RawTexts(tuple(self.texts[i] for i in rows), self.column)

    def digest(self, sha: hashlib._Hash) -> None:
        """Feed the strings to a hash."""
        sha.update(json.dumps(self.texts).encode())

    def row_keys(self) -> list[bytes]:
        """One key a row; equal texts have equal keys."""
        return [text.encode("utf-8", "surrogatepass") for text in self.texts]

    def describe(self) -> list[dict[str, Any]]:
        """Name and distinct values of the text column."""
        return [{"name": self.column, "kind": "text", "missing": 0, "n_unique": len(set(self.texts))}]


def raw_texts(texts: Sequence[Any], column: str = "text") -> RawTexts:
    """Check that every entry is a non-empty string; raises InputError that names the row."""
    for row, text in enumerate(texts):
        if text is None or (isinstance(text, str) and not text.strip()):
            raise InputError(f"{column!r}, row {row}: the text is empty; fill it or leave the row out")
        if not isinstance(text, str):
            raise InputError(f"{column!r}, row {row}: {text!r} is not text; give a string, or leave the row out")
    return RawTexts(tuple(texts), column)


@dataclass(frozen=True)
class TextEncoder:
    """Texts -> (n, length) int64 token ids: 0 padding on the right, 1 unknown, then the training vocabulary.

    Attributes:
        column: name of the text column.
        words: vocabulary by falling count (at least 2, at most 20 000 words); word i has id i + 2.
        length: 99th percentile of the training lengths, at most 256; longer texts are cut.
    """

    column: str
    words: tuple[str, ...]
    length: int

    @classmethod
    def fit(cls, raw: RawTexts) -> TextEncoder:
        """Count the words of these (training) texts."""
        counts: Counter[str] = Counter()
        lengths = []
        for text in raw.texts:
            words = words_of(text)
            counts.update(words)
            lengths.append(len(words))
        kept = sorted((w for w, c in counts.items() if c >= MIN_COUNT), key=lambda w: (-counts[w], w))
        length = max(1, min(MAX_LENGTH, math.ceil(float(np.percentile(lengths, 99)))))
        return cls(raw.column, tuple(kept[:MAX_WORDS]), length)

    @property
    def vocabulary(self) -> int:
        """Number of token ids, padding and unknown included."""
        return len(self.words) + 2

    def encode(self, raw: RawTexts) -> Tensor:
        """(n, length) int64."""
        ids = {word: i for i, word in enumerate(self.words, start=2)}
        out = np.zeros((len(raw), self.length), dtype=np.int64)
        for row, text in enumerate(raw.texts):
            tokens = [ids.get(word, UNKNOWN) for word in words_of(text)[: self.length]] or [UNKNOWN]
            out[row, : len(tokens)] = tokens
        return torch.from_numpy(out)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What to save: JSON values and arrays."""
        return {"column": self.column, "words": list(self.words), "length": self.length}, {}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TextEncoder:
        """Rebuild from `state`."""
        return cls(meta["column"], tuple(meta["words"]), meta["length"])
