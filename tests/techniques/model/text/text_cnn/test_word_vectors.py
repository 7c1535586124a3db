"""PPMI vectors against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from probatum.techniques.model.text.text_cnn.word_vectors import ppmi, ppmi_vectors

pytestmark = pytest.mark.fast


def corpus(n: int = 300) -> torch.Tensor:
    """Two topics: ids 2 to 5 stand together, and so do 6 to 9."""
    generator = torch.Generator().manual_seed(0)
    topic = torch.randint(2, (n, 1), generator=generator)
    return 2 + 4 * topic + torch.randint(4, (n, 8), generator=generator)


def test_ppmi_by_counting() -> None:
    tokens = torch.tensor([[1, 2, 3, 0], [2, 1, 0, 0], [3, 3, 2, 1]])
    counts = np.zeros((4, 4))
    for row in tokens.tolist():
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                if i != j and abs(i - j) <= 2 and a and b:
                    counts[a, b] += 1
    context = counts.sum(0) ** 0.75
    expected = np.zeros((4, 4))
    for a in range(1, 4):
        for b in range(1, 4):
            if counts[a, b]:
                p_context = context[b] / context.sum()
                pmi = math.log(counts[a, b] / counts.sum() / (counts[a].sum() / counts.sum() * p_context))
                expected[a, b] = max(0.0, pmi)
    np.testing.assert_allclose(ppmi(tokens, 4, window=2).toarray(), expected, atol=1e-12)


def test_words_of_one_topic_lie_together() -> None:
    vectors = ppmi_vectors(corpus(), 12, 4, torch.Generator().manual_seed(1))
    unit = vectors[2:10] / vectors[2:10].norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    assert float(cosine[:4, :4].min()) > float(cosine[:4, 4:].max())
    assert bool((vectors[[0, 1, 10, 11]] == 0).all())
    assert float(vectors[2:10].std()) == pytest.approx(0.144, rel=1e-3)


def test_directions_fall_in_weight_and_point_where_they_are_longest() -> None:
    vectors = ppmi_vectors(corpus(), 12, 4, torch.Generator().manual_seed(1))
    lengths = vectors.norm(dim=0)
    assert bool((lengths.diff() <= 0).all())
    largest = vectors.abs().argmax(dim=0)
    assert bool((vectors[largest, torch.arange(4)] > 0).all())
    dense = torch.from_numpy(ppmi(corpus(), 12).toarray())
    s = torch.linalg.svdvals(dense)[:4].sqrt()
    torch.testing.assert_close((lengths / lengths[0]).double(), s / s[0], rtol=1e-4, atol=1e-5)


def test_texts_of_one_word_have_no_pairs() -> None:
    assert ppmi(torch.tensor([[3], [4]]), 6).nnz == 0


def test_same_start_same_vectors() -> None:
    first, second = (ppmi_vectors(corpus(), 12, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_what_cannot_be_used() -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match="width is 12"):
        ppmi_vectors(corpus(), 12, 12, generator)
    with pytest.raises(ValueError, match="no two words"):
        ppmi_vectors(torch.tensor([[3, 0], [4, 0]]), 12, 2, generator)
    with pytest.raises(ValueError, match="window is 0"):
        ppmi(corpus(), 12, window=0)
