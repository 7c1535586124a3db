"""The short plain training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.optimisation.fit_network import fit_network, mean_loss, row_losses
from small_networks import Begins, WithObjective

pytestmark = pytest.mark.fast


def test_row_losses() -> None:
    output, target = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    torch.testing.assert_close(mean_loss(output, target), F.cross_entropy(output, target))
    torch.testing.assert_close(row_losses(output, torch.zeros(2, 2)), torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize("cosine", [True, False])
def test_it_learns_and_leaves_the_global_stream(cosine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(101, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
    before = torch.get_rng_state()
    fit_network(net, x, y, 150, 20, 1e-2, generator, cosine)
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training
    assert float((net(x).argmax(1) == y).float().mean()) > 0.95


def test_the_models_own_objective_is_used() -> None:
    class Twice(nn.Linear):
        def objective(self, x: Tensor, output: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> Tensor:
            return loss(output, y) + 0 * x.sum() + self.bias.square().sum() * 1e6

    torch.manual_seed(0)
    net = Twice(2, 2)
    fit_network(net, torch.randn(20, 2), torch.arange(20) % 2, 300, 5, 1e-2, torch.Generator().manual_seed(0))
    assert float(net.bias.detach().abs().max()) < 0.02


def test_targets_in_a_row_or_a_column() -> None:
    output, y = torch.randn(6, 1), torch.randn(6)
    assert torch.equal(row_losses(output, y), row_losses(output, y[:, None]))
    with pytest.raises(ValueError, match=r"\(6, 1\) and \(6, 2\)"):
        row_losses(output, torch.randn(6, 2))
    logits, codes = torch.randn(6, 3), torch.arange(6) % 3
    assert torch.equal(row_losses(logits, codes[:, None]), F.cross_entropy(logits, codes, reduction="none"))
    low = logits.bfloat16()
    expected = F.cross_entropy(low.float(), codes, reduction="none").bfloat16()
    torch.testing.assert_close(row_losses(low, codes), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_single(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    twin = copy.deepcopy(net).float()
    x, y = torch.randn(40, 3).to(dtype), torch.arange(40) % 2
    weight = net[0].weight
    fit_network(net, x, y, 30, 8, 0.05, torch.Generator().manual_seed(1))
    fit_network(twin, x.float(), y, 30, 8, 0.05, torch.Generator().manual_seed(1))
    assert net[0].weight is weight
    for mine, hers in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, hers.to(mine.dtype))
    assert {p.dtype for p in net.parameters()} == {dtype}


def test_what_is_frozen_stays() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    net[1].eval()
    before = net[0].weight.clone()
    fit_network(net, torch.randn(40, 3) + 1, torch.arange(40) % 2, 5, 8, 1e-2, torch.Generator().manual_seed(0))
    assert torch.equal(net[0].weight, before)
    assert float(net[1].running_mean.abs().max()) == 0 < float(net[3].running_mean.abs().max())
    with pytest.raises(ValueError, match="all weights of Linear are frozen"):
        fit_network(
            nn.Linear(3, 2).requires_grad_(False), torch.ones(4, 3), torch.zeros(4).long(), 1, 2, 0.1, torch.Generator()
        )


@pytest.mark.parametrize(
    ("rows", "batch_size", "seen"), [(5, 1, [1] * 5), (5, 2, [2, 2] * 2), (1, 4, [1] * 3), (4, 3, [3] * 3)]
)
def test_batches_of_one_row(rows: int, batch_size: int, seen: list[int]) -> None:
    found: list[int] = []
    net = nn.Linear(2, 2)
    net.register_forward_pre_hook(lambda _m, inputs: found.append(len(inputs[0])))
    fit_network(net, torch.randn(rows, 2), torch.zeros(rows).long(), len(seen), batch_size, 1e-2, torch.Generator())
    assert found == seen


def test_no_rows_and_no_batches_are_refused() -> None:
    for rows, size in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match=f"there are {rows} rows and batch_size is {size}"):
            fit_network(nn.Linear(2, 2), torch.ones(rows, 2), torch.zeros(rows).long(), 1, size, 0.1, torch.Generator())


def test_an_objective_sees_the_rows_as_they_came() -> None:
    same: list[bool] = []
    net = WithObjective(nn.Sequential(Begins(), nn.Linear(2, 2)), same.append)
    fit_network(net, torch.randn(20, 2), torch.arange(20) % 2, 3, 5, 1e-2, torch.Generator().manual_seed(0))
    assert same == [True] * 3
