"""Texts as numbers: weighed counts of words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from probatum.spec import Part, Spec

STANDARDISED = False


def matrix(spec: Spec, train: Part) -> Callable[[Part], Any]:
    """A function part -> sparse matrix (n, words) of TF-IDF weights of the raw strings, for classical predictors."""
    if train.text is None:
        return lambda part: part.x.flatten(1).numpy()
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = 2 if len(train) > 200 else 1
    fitted = TfidfVectorizer(sublinear_tf=True, min_df=least, max_features=50_000).fit(train.text)
    return lambda part: fitted.transform(part.text)


def fewer(spec: Spec, most: int, rows: int, seed: int) -> list[Any]:
    """Sparse matrices become 64 components."""
    from sklearn.decomposition import TruncatedSVD

    return [TruncatedSVD(64, random_state=seed)]


def input_features(parts: list[Any], dimensions: int) -> list[np.ndarray]:
    """(n, d) numbers of several sets of rows: TF-IDF weights of token ids, reduced alike."""
    from scipy.sparse import csr_matrix, vstack
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    size = parts[0].spec.vocabulary
    counts = []
    for rows in parts:
        x = rows.part.x.numpy()
        at, place = np.nonzero(x > 1)
        counts.append(csr_matrix((np.ones(len(at)), (at, x[at, place])), shape=(len(x), size)))
    weighed = TfidfTransformer(sublinear_tf=True).fit_transform(vstack(counts))
    reduced = TruncatedSVD(min(dimensions, size - 1), random_state=0).fit_transform(weighed)
    norm = np.linalg.norm(reduced, axis=1, keepdims=True)
    reduced = reduced / np.maximum(norm, 1e-12) * np.sqrt(dimensions)
    ends = np.cumsum([len(rows.part.x) for rows in parts])[:-1]
    return np.split(reduced, ends)


def tables(spec: Spec, train: Part, most: int, generator: Generator) -> tuple[Tensor, ...]:
    """A random vector for each token."""
    return (torch.randn(spec.vocabulary, most, generator=generator, dtype=torch.float64),)


def vectors(x: Tensor, spec: Spec, tables: tuple[Tensor, ...]) -> Tensor:
    """(n, d) float64: the tokens' vectors added up, over the root of their number."""
    most = tables[0].shape[1]
    seen = (x != 0).double()
    sums = torch.zeros(len(x), most, dtype=torch.float64)
    for start in range(0, len(x), 1024):  # the vectors of all tokens at once could fill the memory
        rows = slice(start, start + 1024)
        sums[rows] = (tables[0][x[rows]] * seen[rows, :, None]).sum(dim=1)
    return sums / seen.sum(dim=1, keepdim=True).clamp_min(1).sqrt()
