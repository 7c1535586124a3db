"""Heads and noise for posteriors: where they are put in, and targets that fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.posterior.approximations import repeated
from probatum.numerics.posterior.ensembles import gaussian_losses, square_losses
from probatum.numerics.posterior.predictors import (
    Drawn,
    dropouts,
    last_linear,
    residual_noise,
    started,
    with_dropout,
    with_variance,
    without_dropout,
)
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


def masks_of(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind()


class Encoder(nn.Module):
    """Its layer has a fast path in evaluation, which leaves the dropout in it out; attention drops as well."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.up(x[:, :, None])).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(1, 8, 2, batch_first=True, dropout=0.3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, :, None])[0][:, -1])


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def alpha() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.AlphaDropout(0.3), nn.Linear(8, 2))


def maps() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Dropout1d(0.3), nn.Flatten(), nn.Linear(32, 2)
    )


@pytest.mark.parametrize("kind", [plain, alpha, maps, Encoder, Recurrent])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_masks_of_every_kind_stay_on_and_no_row_hangs_on_others(kind: type[nn.Module]) -> None:
    net = masks_of(kind)
    assert dropouts(net)
    assert with_dropout(net, 0.5, 2) is net
    found = Drawn(repeated(net, started([net]), 20), "classes", dropout=3)
    part = Part(torch.randn(7, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(7).long(), torch.arange(7))
    before = torch.get_rng_state()
    draws = found.samples(part)
    assert torch.equal(before, torch.get_rng_state())
    assert float(draws.std(dim=0).min()) > 1e-5  # every row differs between draws
    order = torch.tensor([4, 2, 6, 0, 1, 3, 5])
    other = found.samples(Part(part.x[order], part.y, part.rows))
    torch.testing.assert_close(other, draws[:, order])
    one = found.samples(Part(part.x[3:4], part.y[3:4], part.rows[3:4]))
    torch.testing.assert_close(one, draws[:, 3:4])
    off = without_dropout(copy.deepcopy(net))
    assert not dropouts(off)
    torch.testing.assert_close(off.train()(part.x), off.train()(part.x), rtol=0, atol=0)


def test_masks_are_dropped_at_their_rate_and_scaled() -> None:
    net = nn.Sequential(nn.Dropout(0.25), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[1].weight.fill_(1.0)
    found = Drawn(repeated(net, started([net]), 4000), "reals", dropout=5)
    found.posterior.noise = torch.ones(1)
    part = Part(torch.ones(2, 1), torch.zeros(2, 1), torch.arange(2))
    draws = found.samples(part)
    assert sorted(draws.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert float((draws == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_a_frozen_network_cannot_be_started() -> None:
    with pytest.raises(ValueError, match="all weights of Linear are frozen"):
        started([nn.Linear(2, 2).requires_grad_(False)])


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
