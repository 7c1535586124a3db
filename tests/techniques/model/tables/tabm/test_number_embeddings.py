"""Embeddings of numbers against closed forms and rtdl_num_embeddings."""

from __future__ import annotations

import pytest
import torch

from probatum.techniques.model.tables.tabm.number_embeddings import (
    EachLinear,
    PeriodicNumbers,
    PiecewiseNumbers,
    normal_edges,
    piecewise_linear,
)

pytestmark = pytest.mark.fast


def test_normal_edges_cut_equally_likely_pieces() -> None:
    edges = normal_edges(8)
    shares = torch.distributions.Normal(0.0, 1.0).cdf(edges[1:-1]).diff()
    torch.testing.assert_close(shares, torch.full((6,), 1 / 8), atol=1e-5, rtol=0)
    assert bool((edges.diff() > 0).all())
    assert (float(edges[0]), float(edges[-1])) == (-3.5, 3.5)


@pytest.mark.parametrize("bins", [1, 2, 5])
def test_piecewise_encoding_by_hand(bins: int) -> None:
    edges = torch.arange(bins + 1.0)[None, :]
    x = torch.tensor([[-0.5], [0.25], [bins - 0.5], [bins + 2.0]])
    expected = torch.zeros(4, 1, bins)
    for row, value in enumerate(x[:, 0].tolist()):
        for t in range(bins):
            share = value - t
            low, high = (-9.0 if t == 0 else 0.0), (9.0 if t == bins - 1 else 1.0)
            expected[row, 0, t] = min(max(share, low), high)
    torch.testing.assert_close(piecewise_linear(x, edges), expected)


def test_piecewise_numbers_equal_the_published_module() -> None:
    published = pytest.importorskip("rtdl_num_embeddings", reason="rtdl-num-embeddings is the witness")
    edges = torch.tensor([[-2.0, -0.5, 0.5, 2.0], [-1.0, 0.0, 0.2, 1.0]])
    theirs = published.PiecewiseLinearEmbeddings(list(edges), 5, activation=False, version="B")
    ours = PiecewiseNumbers(edges, 5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        theirs.linear.weight.copy_(torch.randn(theirs.linear.weight.shape, generator=generator))
        ours.pieces.weight.copy_(theirs.linear.weight)
        ours.straight.weight.copy_(theirs.linear0.weight[:, None, :])
        ours.straight.bias.copy_(theirs.linear0.bias)
    x = 3 * torch.randn(20, 2, generator=generator)
    torch.testing.assert_close(ours(x), theirs(x))


def test_periodic_numbers_equal_the_published_module() -> None:
    published = pytest.importorskip("rtdl_num_embeddings", reason="rtdl-num-embeddings is the witness")
    theirs = published.PeriodicEmbeddings(3, 4, n_frequencies=6, frequency_init_scale=0.5, lite=False)
    ours = PeriodicNumbers(3, 4, frequencies=6, scale=0.5)
    with torch.no_grad():
        ours.frequency.copy_(theirs.periodic.weight)
        ours.linear.weight.copy_(theirs.linear.weight)
        ours.linear.bias.copy_(theirs.linear.bias)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x))


def test_each_linear_keeps_features_apart() -> None:
    layer = EachLinear(3, 2, 4)
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(2))
    loop = torch.stack([x[:, f] @ layer.weight[f] + layer.bias[f] for f in range(3)], dim=1)
    torch.testing.assert_close(layer(x), loop)


def test_edges_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="rising"):
        PiecewiseNumbers(torch.tensor([[0.0, 0.0, 1.0]]), 4)
