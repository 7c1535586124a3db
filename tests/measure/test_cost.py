"""Costs against closed forms; timing with a clock of our own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from probatum.measure.cost import flops, interleave, latency, macs, nonzero, parameters, peak_memory

MIB = 2**20


def test_parameters_counts_trainable_and_shared_once() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    model[2].weight = model[1].weight
    assert parameters(model) == 20 + 30 + 5
    model[0].requires_grad_(False)
    assert parameters(model) == 35
    with torch.no_grad():
        model[1].weight[:2] = 0
        model[1].bias.fill_(1)
        model[2].bias.zero_()
        model[1].weight[2:] = 1
    assert nonzero(model) == 15 + 5


def test_macs_of_dense_and_convolution() -> None:
    dense = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    assert macs(dense, torch.rand(7, 10)) == 10 * 20 + 20 * 3
    convolution = nn.Conv2d(3, 8, 5, padding=2, stride=2)
    assert macs(convolution, torch.rand(2, 3, 16, 16)) == 8 * 8 * 8 * 3 * 25


@pytest.mark.parametrize("layers", [1, 2])
def test_macs_sees_through_fused_recurrent_kernels(layers: int) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 8, layers, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0][:, -1]

    per_step = 4 * 8 * (6 + 8) + (layers - 1) * 4 * 8 * (8 + 8)
    assert macs(Last(), torch.rand(2, 5, 6)) == 5 * per_step


def test_macs_sees_through_fused_attention() -> None:
    width, length, hidden = 8, 5, 16
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    expected = length * width * 4 * width + 2 * length * length * width + 2 * length * width * hidden
    assert macs(layer, torch.rand(3, length, width)) == expected
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_macs_leaves_modes_and_random_state_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4).eval())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x + torch.rand_like(x))

    model = Noisy()
    state = torch.get_rng_state()
    macs(model, torch.rand(1, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == [True, True, True, True, False]
    assert int(model.inner[2].num_batches_tracked) == 0
    with pytest.raises(ValueError, match="no rows"):
        macs(model, torch.rand(0, 4))


def test_flops_of_forward_and_backward() -> None:
    model, x = nn.Linear(10, 20, bias=False), torch.rand(4, 10)
    forward = 2 * 4 * 10 * 20
    assert flops(lambda: model(x)) == forward
    assert flops(lambda: model(x).sum().backward()) == 2 * forward  # x needs no gradient
    assert flops(lambda: model(x.clone().requires_grad_()).sum().backward()) == 3 * forward


def test_interleave_alternates_and_pairs() -> None:
    calls: list[str] = []
    ticks = iter(
        [0, 9, 10, 19, *(t for k in range(3) for t in (100 * k, 100 * k + 2 * (k + 1), 100 * k + 50, 100 * k + 51))]
    )
    found = interleave(lambda: calls.append("a"), lambda: calls.append("b"), 3, 1, clock=lambda: float(next(ticks)))
    assert "".join(calls) == "abababab"
    assert found.log_ratios == pytest.approx((math.log(2), math.log(4), math.log(6)))
    assert (found.a_seconds, found.b_seconds) == (4.0, 1.0)
    with pytest.raises(ValueError, match="pairs is 0"):
        interleave(lambda: None, lambda: None, 0, 1)


def test_interleave_cancels_a_drift_that_separate_runs_would_not() -> None:
    now, slow = 0.0, 1.0

    def clock() -> float:
        return now

    def work() -> None:
        nonlocal now, slow
        now, slow = now + slow, slow * 1.01

    found = interleave(work, work, 50, 0, clock)
    assert sum(found.log_ratios) / 50 == pytest.approx(-math.log(1.01))
    assert slow > 2.5


def test_latency_puts_models_into_evaluation_mode_and_back() -> None:
    seen: list[tuple[bool, bool]] = []

    class Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    a, b = Watch(), Watch().eval()
    found = latency(a, b, torch.rand(2, 2), pairs=4, warmup=2)
    assert len(found.log_ratios) == 4
    assert seen == [(False, False)] * 12
    assert (a.training, b.training) == (True, False)


def test_peak_memory_of_a_chain_and_of_what_is_kept() -> None:
    x = torch.ones(MIB // 4)

    def chain() -> None:
        y = x
        for _ in range(5):
            y = y + 1  # the old one lives until the new one is made

    def keep() -> None:
        kept = [x + k for k in range(5)]
        kept.clear()
        (x + 1).add_(1).view(-1, 2).mul_(2)  # views and changes in place cost nothing

    assert peak_memory(chain) == 2 * MIB
    assert peak_memory(keep) == 5 * MIB
    assert peak_memory(lambda: x.view(-1, 2).add_(1)) == 0
    with pytest.raises(ValueError, match="meta"):
        peak_memory(chain, "meta")


def test_peak_memory_sees_what_backward_keeps_and_checkpoints_free() -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.ones(MIB // 4, requires_grad=True)

    def block(z: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            z = z.exp()  # each keeps its result
        return z

    def run(wrap: bool) -> None:
        y = x * 0.0
        for _ in range(4):
            y = checkpoint(block, y, use_reentrant=False) if wrap else block(y)
            y = y * 0.0
        y.sum().backward()
        x.grad = None

    plain, saving = peak_memory(lambda: run(False)), peak_memory(lambda: run(True))
    assert 16 * MIB <= plain <= 20 * MIB
    assert saving < 0.6 * plain
    assert peak_memory(lambda: run(False)) == plain
