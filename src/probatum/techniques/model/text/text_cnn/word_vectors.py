"""Word vectors from unlabelled text: positive pointwise mutual information, then a truncated SVD."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from torch import Tensor


def ppmi(tokens: Tensor, vocabulary: int, *, window: int = 5, smoothing: float = 0.75) -> sparse.csr_matrix:
    """Positive PMI of word pairs within `window` tokens (Levy, Goldberg and Dagan 2015, TACL 3, section 2).

    Args:
        tokens: (n, length) int64 ids, 0 = padding.
        vocabulary: number of ids.
        window: how far apart two words may stand, at least 1.
        smoothing: power of the context words' counts, in (0, 1].

    Returns:
        (vocabulary, vocabulary), without negative entries; row and column 0 are empty.
    """
    if window < 1 or not 0 < smoothing <= 1:
        raise ValueError(f"window is {window} and smoothing {smoothing}; use window >= 1 and smoothing in (0, 1]")
    pairs = []
    for shift in range(1, min(window, tokens.shape[1] - 1) + 1):
        left, right = tokens[:, :-shift].reshape(-1), tokens[:, shift:].reshape(-1)
        both = (left > 0) & (right > 0)
        pairs.append(torch.stack([left[both], right[both]]))
    first, second = torch.cat(pairs, dim=1).numpy() if pairs else np.zeros((2, 0), dtype=np.int64)
    counts = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(vocabulary, vocabulary)).tocsr()
    counts = (counts + counts.T).tocoo()
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**smoothing
    value = np.log(counts.data * context.sum() / (word[counts.row] * context[counts.col]))
    kept = value > 0
    return sparse.coo_matrix((value[kept], (counts.row[kept], counts.col[kept])), shape=counts.shape).tocsr()


def ppmi_vectors(
    tokens: Tensor, vocabulary: int, width: int, generator: torch.Generator, *, window: int = 5, std: float = 0.144
) -> Tensor:
    """Word vectors (vocabulary, width) float32, U sqrt(S) of the PPMI matrix, scaled to the overall `std`.

    Words that never occur beside another one keep a row of zeros, and so does padding. The default `std` is that of
    U[-0.25, 0.25], the usual start of learned vectors.

    Raises:
        ValueError: `width` is not below the vocabulary, or no two words ever stand together.
    """
    if not 1 <= width < vocabulary:
        raise ValueError(f"width is {width}; it must lie between 1 and the vocabulary less one, {vocabulary - 1}")
    matrix = ppmi(tokens, vocabulary, window=window)
    if matrix.nnz == 0:
        raise ValueError("no two words stand within the window of each other; give more or longer texts")
    start = torch.rand(vocabulary, generator=generator, dtype=torch.float64).numpy()
    u, s, _ = svds(matrix, k=width, v0=start)
    order = np.argsort(-s)
    vectors = u[:, order] * np.sqrt(np.maximum(s[order], 0))
    sign = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)])
    vectors = torch.from_numpy(vectors * np.where(sign == 0, 1, sign))
    vectors[torch.from_numpy(np.asarray(matrix.sum(axis=1)).ravel() == 0)] = 0.0
    used = vectors.abs().sum(dim=1) > 0
    return (vectors * (std / vectors[used].std())).float()
