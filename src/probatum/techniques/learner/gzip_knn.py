"""Gzip and nearest neighbours: classify texts by how well they compress together, without any parameter.

Paper     Jiang et al. 2023, Findings of ACL, aclanthology.org/2023.findings-acl.426 (arXiv:2212.09410), section 3
Computes  NCD(x, y) = (C(x + " " + y) - min(C(x), C(y))) / max(C(x), C(y)) with C = bytes after compression; the class is
          voted by the k training texts of least NCD to x
Shapes    m texts against n training texts -> distances (m, n), probabilities (m, classes)
Departs   1. ties are broken by a stated rule; the published evaluation counts a tie as right when any tied class is, which
             for k = 2 is top-2 accuracy: `accuracies` reports that number apart from the honest ones
          2. the deflate state after "x " is kept and copied for every y: the same lengths, several times faster
          3. on the bench at most `most_train` training texts are used, drawn by class, since the cost is m n compressions
          4. votes become probabilities with `smoothing` pseudo-votes, the winner's a hair above a tie
"""

from __future__ import annotations

import bz2
import lzma
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probatum.card import Card
from probatum.spec import Budget, Data, Part

CARD = Card(
    paper="ACL 2023 (arXiv:2212.09410)",
    title="Less is More: Parameter-Free Text Classification with Gzip",
    entry="fit",
    number=133,
    tags=("text", "few-shot", "training-free"),
    modalities=("text",),
    tasks=("classes",),
    tiny={"k": 2, "most_train": 30},
    tune={"k": [1, 2, 3, 5, 9]},
    claims=("few-shot-above-a-small-network",),
)

Compressor = Callable[[bytes], int]
WRAPPERS = {"gzip": 31, "deflate": -15}
"""zlib's window codes: gzip adds 18 bytes of header and trailer to the bare deflate stream."""
WINDOW = 32768
"""Deflate finds matches at most this many bytes back."""
TIES = ("distance", "first")


def to_bytes(texts: Sequence[str] | Sequence[bytes], name: str = "texts") -> list[bytes]:
    """UTF-8 bytes of every text; ValueError for an empty one, or where str and bytes are mixed."""
    kinds = {next((kind for kind in (str, bytes) if isinstance(text, kind)), type(text)) for text in texts}
    if len(kinds) > 1 or not kinds <= {str, bytes}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{name} hold {found}; give all str (taken as UTF-8) or all bytes")
    raw = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text) for text in texts]
    empty = next((row for row, text in enumerate(raw) if not text.strip()), None)
    if empty is not None:
        raise ValueError(f"{name}[{empty}] is empty; leave it out, an empty text has no distance")
    return raw


def length_with(compressor: str, level: int = 9) -> Compressor:
    """The function bytes -> compressed length of gzip, deflate (gzip without header), bz2 or lzma."""
    if compressor in WRAPPERS:
        return partial(_deflated, level=level, window=WRAPPERS[compressor])
    if compressor == "bz2":
        return partial(_bz2, level=level)
    if compressor == "lzma":
        return _lzma
    raise ValueError(
        f"compressor is {compressor!r}; use gzip, deflate, bz2, lzma, or a function from bytes to a length"
    )


def distances(
    texts: Sequence[bytes],
    train: Sequence[bytes],
    compressor: str | Compressor = "gzip",
    *,
    level: int = 9,
    workers: int = 1,
) -> NDArray[np.float64]:
    """Normalised compression distances (m, n) of m texts to n training texts, by `workers` processes."""
    alone = compressor if callable(compressor) else length_with(compressor, level)
    lengths = np.array([alone(text) for text in train])
    if len(lengths) and lengths.min() <= 0:
        raise ValueError(f"the compressor gives length {lengths.min()}; lengths must be above 0, add a constant")
    kept = WRAPPERS.get(compressor) if isinstance(compressor, str) else None
    row = partial(_row, train=list(train), lengths=lengths, alone=alone, level=level, window=kept)
    if workers == 1:
        return np.array([row(text) for text in texts]).reshape(len(texts), len(train))
    with ProcessPoolExecutor(workers) as pool:
        chunk = max(1, len(texts) // (4 * workers))
        return np.array(list(pool.map(row, texts, chunksize=chunk))).reshape(len(texts), len(train))


def votes(distance: NDArray[np.float64], labels: NDArray[np.int64], classes: int, k: int, tie: str) -> Tensor:
    """Votes of the k nearest and the winner by the tie rule: distances (m, n) -> (m, classes), the winner + 1e-3.

    Among tied classes ``"distance"`` takes the one whose voters lie nearest in sum, ``"first"`` the nearest voter's; equal
    distances go by the order of the training texts.
    """
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]  # (m, k)
    found = np.zeros((len(distance), classes))
    for row, neighbours in enumerate(nearest):
        own = labels[neighbours]
        counts = np.bincount(own, minlength=classes).astype(float)
        tied = np.flatnonzero(counts == counts.max())
        if tie == "distance":
            sums = np.bincount(own, weights=distance[row, neighbours], minlength=classes)
            least = sums[tied].min()
            tied = tied[sums[tied] == least]
        winner = next(label for label in own if label in tied)
        counts[winner] += 1e-3
        found[row] = counts
    return torch.from_numpy(found)


def accuracies(
    distance: NDArray[np.float64], labels: NDArray[np.int64], truth: NDArray[np.int64], k: int = 2
) -> dict[str, float]:
    """Accuracy under every way of counting: one neighbour, k with ties broken by distance, ties counted as right when
    any tied class is (the published evaluation), and any of the k neighbours (top-k)."""
    classes = int(max(labels.max(), truth.max())) + 1
    nearest = labels[np.argsort(distance, axis=1, kind="stable")[:, :k]]
    counts = np.stack([(nearest == c).sum(axis=1) for c in range(classes)], axis=1)
    own = counts[np.arange(len(truth)), truth]
    by_distance = votes(distance, labels, classes, k, "distance").argmax(dim=1).numpy()
    return {
        "one_neighbour": float((nearest[:, 0] == truth).mean()),
        "k_by_distance": float((by_distance == truth).mean()),
        "k_ties_counted_right": float((own == counts.max(axis=1)).mean()),
        "top_k": float((own > 0).mean()),
    }


class GzipKNN:
    """Nearest neighbours by compression distance.

    Args:
        k: neighbours that vote; the paper takes 2 on full sets.
        compressor: gzip, deflate, bz2, lzma, or a function from bytes to a length (picklable if workers > 1).
        level: compression level, 1 to 9; part of the result.
        tie: ``"distance"`` or ``"first"``, see `votes`.
        smoothing: pseudo-votes spread over the classes, above 0.
        workers: processes.

    Raises:
        ValueError: a setting outside its range, an empty text, str mixed with bytes, or k above the number of texts.

    Example:
        >>> train = ["the match ended two goals to one", "shares fell as the bank cut its rates"]
        >>> model = GzipKNN(k=1).fit(train, [0, 1])
        >>> model.predict(["the match ended three goals to one"]).argmax(dim=1).tolist()
        [0]
    """

    def __init__(
        self,
        k: int = 2,
        compressor: str | Compressor = "gzip",
        level: int = 9,
        tie: str = "distance",
        smoothing: float = 0.1,
        workers: int = 1,
    ) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if not 1 <= level <= 9:
            raise ValueError(f"level is {level}; it must lie in 1 to 9")
        if tie not in TIES:
            raise ValueError(f"tie is {tie!r}; use one of {', '.join(TIES)}")
        if not smoothing > 0:
            raise ValueError(f"smoothing is {smoothing}; it must be above 0")
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        if not callable(compressor):
            length_with(compressor, level)
        self.k, self.compressor, self.level = k, compressor, level
        self.tie, self.smoothing, self.workers = tie, smoothing, workers
        self.train: list[bytes] = []

    def fit(self, texts: Sequence[str] | Sequence[bytes], labels: Sequence[int], classes: int | None = None) -> GzipKNN:
        """Keep n texts and their labels 0 .. classes-1; returns self."""
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts and {len(labels)} labels; give one label a text")
        if self.k > len(texts):
            raise ValueError(f"k is {self.k}, but there are {len(texts)} training texts; lower k")
        self.train = to_bytes(texts, "training texts")
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = int(self.labels.max()) + 1 if classes is None else classes
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.classes:
            raise ValueError(f"labels reach from {low} to {high}; they must lie in 0 .. {self.classes - 1}")
        self._warn_of_long(self.train)
        return self

    def distances(self, texts: Sequence[str] | Sequence[bytes]) -> NDArray[np.float64]:
        """Distances (m, n) to the training texts."""
        if not self.train:
            raise ValueError("there are no training texts yet; call fit(texts, labels) first")
        raw = to_bytes(texts)
        self._warn_of_long(raw)
        return distances(raw, self.train, self.compressor, level=self.level, workers=self.workers)

    def predict(self, texts: Sequence[str] | Sequence[bytes]) -> Tensor:
        """Probabilities (m, classes), float32."""
        counts = (
            votes(self.distances(texts), self.labels, self.classes, self.k, self.tie) + self.smoothing / self.classes
        )
        return (counts / counts.sum(dim=1, keepdim=True)).float()

    def repeated(self, texts: Sequence[str] | Sequence[bytes]) -> int:
        """How many of these texts stand word for word among the training texts; they flatter the score."""
        known = set(self.train)
        return sum(text in known for text in to_bytes(texts))

    def _warn_of_long(self, texts: list[bytes]) -> None:
        longest = max(map(len, texts), default=0)
        if self.compressor in WRAPPERS and longest > WINDOW:
            warnings.warn(
                f"the longest text has {longest} bytes, deflate looks back {WINDOW}: use lzma or shorter texts",
                stacklevel=3,
            )


class Neighbours:
    """The fitted learner: `predict(part)` gives probabilities (n, classes) from the part's raw texts."""

    def __init__(self, model: GzipKNN) -> None:
        self.model = model

    def predict(self, part: Part) -> Tensor:
        """Probabilities of a part's rows."""
        return self.model.predict(_texts(part))


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    k: int = 2,
    compressor: str = "gzip",
    level: int = 9,
    tie: str = "distance",
    smoothing: float = 0.1,
    most_train: int = 1000,
    workers: int = 1,
) -> Neighbours:
    """Keep the training texts (at most `most_train`, the same share of every class); other settings as in `GzipKNN`."""
    del budget
    if most_train < 1:
        raise ValueError(f"most_train is {most_train}; it must be at least 1")
    texts, y = _texts(data.train), data.train.y
    kept = torch.arange(len(y))
    if len(y) > most_train:
        order = torch.randperm(len(y), generator=generator)
        rank = torch.empty(len(y), dtype=torch.float64)
        for c in y.unique():
            own = order[y[order] == c]
            rank[own] = (torch.arange(len(own)) + 0.5).double() / len(own)  # the same share of every class comes first
        kept = rank.argsort(stable=True)[:most_train].sort().values
    model = GzipKNN(k, compressor, level, tie, smoothing, workers)
    return Neighbours(model.fit([texts[i] for i in kept.tolist()], y[kept].tolist(), data.spec.outputs))


def _texts(part: Part) -> tuple[str, ...]:
    if part.text is None:
        raise ValueError("these data carry no raw text, which gzip-knn compresses; it is for text data only")
    return part.text


def _deflated(text: bytes, level: int, window: int) -> int:
    state = zlib.compressobj(level, zlib.DEFLATED, window)
    return len(state.compress(text)) + len(state.flush())


def _bz2(text: bytes, level: int) -> int:
    return len(bz2.compress(text, level))


def _lzma(text: bytes) -> int:
    return len(lzma.compress(text))


def _row(
    text: bytes, train: list[bytes], lengths: NDArray[np.int64], alone: Compressor, level: int, window: int | None
) -> NDArray[np.float64]:
    """Distances (n,) of one text."""
    own = alone(text)
    if window is None:
        joint = np.array([alone(text + b" " + other) for other in train])
    else:
        start = zlib.compressobj(level, zlib.DEFLATED, window)
        done = len(start.compress(text + b" "))
        joint = np.array([done + _appended(start.copy(), other) for other in train])
    return (joint - np.minimum(own, lengths)) / np.maximum(own, lengths)


def _appended(state: zlib._Compress, text: bytes) -> int:
    return len(state.compress(text)) + len(state.flush())
