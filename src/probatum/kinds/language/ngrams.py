"""References of task next-token: token counts behind the last few tokens, smoothed by shorter contexts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probatum.spec import Data, Part

NAMES = ("unigram", "n-gram")
LONGEST = 6
"""Tokens of the longest context that is tried."""
WINDOWS = 64


@dataclass(frozen=True)
class _Level:
    """Counts behind contexts of one length.

    Attributes:
        contexts: (c,) codes of the contexts seen, ascending.
        starts: (c + 1,) where each one's continuations begin.
        tokens: continuations, by context.
        counts: how often each was seen.
        totals, kinds: (c,) occurrences and different continuations of each context.
    """

    contexts: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class NGram:
    """Witten-Bell interpolated counts (Witten and Bell 1991; Chen and Goodman 1999, section 2.6).

    p(w | h) = (count(h w) + kinds(h) p(w | h')) / (count(h) + kinds(h)), where h' lacks the earliest token of h, kinds(h)
    is the number of different tokens seen behind h, and the empty context falls back on equal shares. Contexts end where
    the window begins, since that is all a network sees.

    Attributes:
        vocabulary: number of token ids.
        levels: counts by context length, from 0.
    """

    vocabulary: int
    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, part: Part, vocabulary: int, longest: int) -> NGram:
        """Count the windows of a part with contexts of up to `longest` tokens."""
        x, y = part.x.numpy(), part.y.numpy()
        return cls(vocabulary, tuple(_level(x, y, size, vocabulary) for size in range(longest + 1)))

    def shortened(self, longest: int) -> NGram:
        """The same with contexts of up to `longest` tokens."""
        return NGram(self.vocabulary, self.levels[: longest + 1])

    def predict(self, part: Part) -> Tensor:
        """part -> natural logarithms of probabilities (n, length, vocabulary), float32."""
        return torch.from_numpy(np.log(self.probabilities(part.x.numpy())).astype(np.float32))

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """x (n, length) -> (n, length, vocabulary) float64 that sum to 1."""
        found = np.full((x.size, self.vocabulary), 1.0 / self.vocabulary)
        for size, level in enumerate(self.levels):
            where, codes = _contexts(x, size, self.vocabulary)
            at = np.searchsorted(level.contexts, codes).clip(max=len(level.contexts) - 1)
            seen = level.contexts[at] == codes
            where, at = where[seen], at[seen]
            whole = (level.totals[at] + level.kinds[at]).astype(np.float64)
            found[where] *= (level.kinds[at] / whole)[:, None]
            many = level.starts[at + 1] - level.starts[at]
            rows = np.repeat(np.arange(len(at)), many)
            entries = np.arange(len(rows)) - np.repeat(np.cumsum(many) - many, many) + level.starts[at][rows]
            found[where[rows], level.tokens[entries]] += level.counts[entries] / whole[rows]
        return found.reshape(*x.shape, self.vocabulary)


def fit(name: str, data: Data) -> NGram:
    """The reference called `name`, counted on the training rows; n-gram takes the context length that is best on
    validation rows."""
    size = data.spec.vocabulary
    if name == "unigram":
        return NGram.fit(data.train, size, 0)
    longest = min(LONGEST, int(62 * np.log(2) / np.log(size)) - 1, data.spec.shape[0])  # codes fit 63 bits
    whole = NGram.fit(data.train, size, longest)
    models = [whole.shortened(longest) for longest in range(1, longest + 1)]
    return min(models, key=lambda model: _loss(model, data.valid))


def _loss(model: NGram, part: Part) -> float:
    total = 0.0
    for start in range(0, len(part), WINDOWS):
        x, y = (value[start : start + WINDOWS].numpy() for value in (part.x, part.y))
        p = np.take_along_axis(model.probabilities(x), y[:, :, None], axis=2)
        total -= float(np.log(p).sum())
    return total


def _contexts(x: np.ndarray, size: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions of x (n, length) that have a context of `size` tokens, their own included, and its code."""
    n, length = x.shape
    if size == 0:
        return np.arange(x.size), np.zeros(x.size, dtype=np.int64)
    codes = np.zeros((n, length - size + 1), dtype=np.int64)
    for shift in range(size):
        codes = codes * vocabulary + x[:, shift : length - size + 1 + shift]
    places = np.arange(x.size).reshape(n, length)[:, size - 1 :]
    return places.ravel(), codes.ravel()


def _level(x: np.ndarray, y: np.ndarray, size: int, vocabulary: int) -> _Level:
    where, codes = _contexts(x, size, vocabulary)
    both, counts = np.unique(codes * vocabulary + y.ravel()[where], return_counts=True)
    contexts, starts, kinds = np.unique(both // vocabulary, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, starts)
    return _Level(contexts, np.append(starts, len(both)), both % vocabulary, counts, totals, kinds)
