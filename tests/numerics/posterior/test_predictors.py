"""Heads and noise for posteriors: where they are put in, and targets that fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.posterior.ensembles import gaussian_losses, square_losses
from probatum.numerics.posterior.predictors import last_linear, residual_noise, with_dropout, with_variance
from probatum.spec import Data, Part, Spec

pytestmark = pytest.mark.fast


class HeadFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(8, 2), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_the_head_that_runs_last_is_the_one() -> None:
    assert last_linear(HeadFirst(), 2) == "head"
    with pytest.raises(ValueError, match="2 outputs in its last linear layer; 3 outputs"):
        last_linear(HeadFirst(), 3)
    with pytest.raises(ValueError, match="no linear layer"):
        last_linear(nn.Conv2d(1, 2, 3), 2)


def test_variances_start_at_one_and_means_stay() -> None:
    net, x = HeadFirst().double(), torch.randn(5, 6, dtype=torch.float64)
    net.head.requires_grad_(False)
    expected = net(x)
    found = with_variance(net, 2)
    assert found is net
    torch.testing.assert_close(found(x), torch.cat([expected, torch.zeros(5, 2, dtype=torch.float64)], dim=1))
    assert net.head.weight.requires_grad
    alone = with_variance(nn.Linear(6, 2), 2)
    assert isinstance(alone, nn.Sequential)
    assert alone(x.float()).shape == (5, 4)


def test_dropout_goes_before_the_head_everywhere() -> None:
    net = HeadFirst()
    net.again = net.head
    with_dropout(net, 0.3, 2)
    assert net.again is net.head
    assert [type(m) for m in net.head] == [nn.Dropout, nn.Linear]
    alone = with_dropout(nn.Linear(6, 2), 0.3, 2)
    assert [type(m) for m in alone] == [nn.Dropout, nn.Linear]


def test_a_tied_head_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(4, 3), nn.Linear(3, 4)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    with pytest.raises(ValueError, match=r"'head\.weight' and 'embed\.weight' are one tied parameter"):
        with_variance(Tied(), 4)


def test_targets_in_a_row_do_not_broadcast() -> None:
    output, y = torch.randn(6, 1), torch.randn(6)
    assert torch.equal(square_losses(output, y), square_losses(output, y[:, None]))
    wide = torch.randn(6, 2)
    assert torch.equal(gaussian_losses(wide, y), gaussian_losses(wide, y[:, None]))
    part = Part(torch.zeros(6, 2), y, torch.arange(6))
    data = Data(Spec("table", "reals", (2,), 1), part, part, part)
    torch.testing.assert_close(residual_noise(output, data), (output[:, 0] - y).square().mean().sqrt()[None])
    with pytest.raises(ValueError, match=r"\(6, 1\) and \(6, 2\)"):
        square_losses(output, wide)
