"""Gradual magnitude pruning against its formula and exact counts (arXiv:1710.01878)."""

from __future__ import annotations

import copy
import doctest
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.compress import gradual_magnitude_pruning
from probatum.techniques.compress.gradual_magnitude_pruning import (
    GradualMagnitudePruning,
    Schedule,
    matching_width,
    prunable,
    smallest_mask,
    stored_bytes,
)

pytestmark = pytest.mark.fast

SHORT = Training(epochs=6, batch_size=32)


class Sequence(nn.Module):
    """Embedding, LSTM, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(self.embed(x))[0][:, -1]))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(7, 13), nn.ReLU(), nn.Linear(13, 3))


def steps(
    net: nn.Module, pruner: GradualMagnitudePruning, optimizer: torch.optim.Optimizer, first: int, last: int
) -> list[list[float]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 7, generator=generator), torch.randint(3, (40,), generator=generator)
    sparsities = []
    for step in range(first, last + 1):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        pruner.mask_gradients()
        optimizer.step()
        pruner.after_step(step)
        sparsities.append([float((w == 0).float().mean()) for _, w, _ in prunable(net)])
    return sparsities


def test_schedule() -> None:
    schedule = Schedule(begin=10, every=5, updates=8, initial=0.1, final=0.9)
    assert schedule.end == 50
    assert schedule.sparsity(9) == 0.0
    assert schedule.sparsity(10) == pytest.approx(0.1)
    assert schedule.sparsity(30) == pytest.approx(0.9 + (0.1 - 0.9) / 8)  # halfway
    assert schedule.sparsity(50) == schedule.sparsity(99) == 0.9
    values = [schedule.sparsity(t) for t in range(10, 60)]
    assert values == sorted(values)
    assert [t for t in range(100) if schedule.prunes(t)] == list(range(10, 51, 5))
    for t in range(10, 51, 5):
        assert schedule.sparsity(t) == pytest.approx(0.9 - 0.8 * (1 - (t - 10) / 40) ** 3)


@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_zeros_are_exactly_the_floor_at_every_step(kind: type[torch.optim.Optimizer], regrow: bool) -> None:
    net = network()
    optimizer = kind(
        net.parameters(), lr=0.05, weight_decay=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {})
    )
    pruner = GradualMagnitudePruning(60, 0.83, 0.2, begin=0.1, end=0.7, every=4, regrow=regrow).attach(net, optimizer)
    found = steps(net, pruner, optimizer, 1, 60)
    for step, layers in enumerate(found, start=1):
        wanted = pruner.schedule.sparsity(step)
        for zeros, (_, weight, _) in zip(layers, prunable(net), strict=True):
            assert round(zeros * weight.numel()) == math.floor(wanted * weight.numel() + 1e-9), step
    for _, weight, _ in prunable(net):
        for name, value in optimizer.state[weight].items():
            if name in ("momentum_buffer", "exp_avg"):
                assert bool((value[weight == 0] == 0).all())
    assert pruner.report()["sparsity"] == pytest.approx(0.83, abs=0.02)


def test_mask_is_torch_s_own_magnitude_pruning() -> None:
    layer = nn.Linear(9, 11)
    mask = smallest_mask(layer.weight, 0.4)
    prune.l1_unstructured(layer, "weight", amount=math.floor(0.4 * 99))
    assert torch.equal(mask, layer.weight_mask.bool())
    assert int((~smallest_mask(torch.ones(10), 0.3)).sum()) == 3


def test_pruned_weights_return_only_with_regrow() -> None:
    for regrow in (False, True):
        net = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[0.3, 0.4, 0.5, 0.6]]))
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        pruner = GradualMagnitudePruning(10, 0.5, 0.5, begin=0.1, end=0.3, every=1, regrow=regrow).attach(
            net, optimizer
        )
        pruner.after_step(1)
        assert (net.weight[0] == 0).tolist() == [True, True, False, False]
        net.weight.grad = torch.tensor([[9.0, 9.0, 0.25, 0.0]])
        pruner.mask_gradients()
        assert net.weight.grad.tolist() == [[0.0, 0.0, 0.25, 0.0]]
        optimizer.step()  # the third weight falls to 0.25, below the stored 0.4
        pruner.after_step(2)
        expected = [[0.0, 0.4, 0.0, 0.6]] if regrow else [[0.0, 0.0, 0.25, 0.6]]
        torch.testing.assert_close(net.weight.detach(), torch.tensor(expected))


def test_weights_that_an_optimizer_moved_do_not_return() -> None:
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.3, 0.4, 0.5, 0.6]]))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    pruner = GradualMagnitudePruning(10, 0.5, 0.5, begin=0.1, end=0.3, every=1).attach(net, optimizer)
    pruner.after_step(1)
    with torch.no_grad():
        net.weight[0, 0] = 7.0  # as an optimizer in a basis of its own does
    pruner.after_step(2)
    assert (net.weight[0] == 0).tolist() == [True, True, False, False]


def test_an_optimizer_s_basis_and_second_moments_are_left_alone() -> None:
    data = open_dataset("wine").prepare(1)
    square = lambda spec: nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3))  # noqa: E731
    arm = "gradual-magnitude-pruning(final_sparsity=0.7)+conda"
    run = fit(arm, data, 1, training=Training(epochs=3, batch_size=16), factory=square)
    state = run.optimizer.state[run.model[2].weight]
    torch.testing.assert_close(state["basis"].T @ state["basis"], torch.eye(16), atol=1e-4, rtol=0)
    assert bool((state["second"] > 0).all())
    assert int((run.model[2].weight == 0).sum()) == math.floor(0.7 * 256)


def test_which_weights_are_pruned() -> None:
    names = [name for name, _, _ in prunable(Sequence())]
    assert names == ["embed.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    assert [name for name, _, _ in prunable(conv)] == ["0.weight", "3.weight"]
    assert [name for name, _, _ in prunable(conv, skip_first=True)] == ["3.weight"]
    tied = nn.ModuleList([nn.Embedding(5, 4), nn.Linear(4, 5)])
    tied[1].weight = tied[0].weight
    assert [name for name, _, _ in prunable(tied)] == ["0.weight"]
    with pytest.raises(ValueError, match="no linear"):
        GradualMagnitudePruning(10).attach(nn.ReLU(), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0))


def test_gates_are_masked_separately() -> None:
    net = Sequence()
    with torch.no_grad():
        net.lstm.weight_hh_l0[5:10] *= 100.0  # one large gate would otherwise keep all of its weights
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = GradualMagnitudePruning(10, 0.6, begin=0.0, end=0.0).attach(net, optimizer)
    pruner.after_step(0)
    assert [int((gate == 0).sum()) for gate in net.lstm.weight_hh_l0.chunk(4)] == [15, 15, 15, 15]
    assert bool((net.lstm.bias_hh_l0 != 0).all())
    gates = {name: gates for name, _, gates in prunable(nn.LSTM(6, 5, proj_size=3))}
    assert gates == {"weight_ih_l0": 4, "weight_hh_l0": 4, "weight_hr_l0": 1}


@pytest.mark.parametrize("regrow", [False, True])
def test_resuming_gives_the_same_trajectory(regrow: bool) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, GradualMagnitudePruning]:
        net = network()
        pruner = GradualMagnitudePruning(40, 0.8, every=3, regrow=regrow)
        return net, torch.optim.AdamW(net.parameters(), lr=0.02), pruner

    net, optimizer, pruner = fresh()
    pruner.attach(net, optimizer)
    steps(net, pruner, optimizer, 1, 40)
    first, first_optimizer, first_pruner = fresh()
    first_pruner.attach(first, first_optimizer)
    steps(first, first_pruner, first_optimizer, 1, 17)
    saved = copy.deepcopy((first.state_dict(), first_optimizer.state_dict(), first_pruner.state_dict()))
    second, second_optimizer, second_pruner = fresh()
    second.load_state_dict(saved[0])
    second_optimizer.load_state_dict(saved[1])
    second_pruner.load_state_dict(saved[2])
    second_pruner.attach(second, second_optimizer)
    steps(second, second_pruner, second_optimizer, 18, 40)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), second.parameters(), strict=True))


def test_bytes_with_overhead() -> None:
    weight = torch.zeros(8, 10)
    weight[0, :4] = 1.0
    assert stored_bytes(weight) == {"dense": 320.0, "bitmask": 16 + 10, "csr": 16 + 8 + 36.0}


def test_small_dense_control() -> None:
    def parameters(width: int) -> int:
        return 785 * width + (width + 1) * 10

    assert matching_width(parameters, 26_000) == 33
    assert matching_width(parameters, parameters(57)) == 57
    with pytest.raises(ValueError, match="raise most"):
        matching_width(parameters, 10**9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end": 1.2}, "end is 1.2, past the total of 100 steps"),
        ({"final_sparsity": 0.2, "initial_sparsity": 0.5}, "final_sparsity is 0.2, below initial_sparsity 0.5"),
        ({"final_sparsity": 1.0}, "final_sparsity is 1.0"),
        ({"initial_sparsity": -0.1}, "initial_sparsity is -0.1"),
        ({"begin": -1.0}, "begin is -1.0"),
        ({"begin": 0.5, "end": 0.2}, "end is 0.2, before begin 0.5"),
        ({"every": 0}, "every 0"),
    ],
)
def test_bad_schedules(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradualMagnitudePruning(100, **settings)


def test_schedule_past_the_total() -> None:
    with pytest.raises(ValueError, match="step 110, past the total of 100"):
        Schedule(10, 10, 10, 0.0, 0.9).fits(100)


def test_neutral_equals_the_baseline_bit_for_bit() -> None:
    data = open_dataset("wine").prepare(1)
    plain, neutral = (
        fit(arm, data, 1, training=SHORT) for arm in (None, "gradual-magnitude-pruning(final_sparsity=0.0)")
    )
    assert neutral.keep_best
    pairs = zip(plain.model.state_dict().values(), neutral.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("name", ["wine", "toy-topics", "digits"])
def test_ends_with_exact_zeros_on_the_bench(name: str, regrow: bool) -> None:
    data = open_dataset(name).prepare(1)
    arm = f"gradual-magnitude-pruning(final_sparsity=0.7, regrow={regrow})"
    model = fit(arm, data, 1, training=Training(epochs=1, batch_size=64)).model
    for layer, weight, _ in prunable(model):
        assert int((weight == 0).sum()) == math.floor(0.7 * weight.numel() + 1e-9), layer


def test_example() -> None:
    assert doctest.testmod(gradual_magnitude_pruning).failed == 0


def test_parametrised_weights_are_refused_by_name() -> None:
    for layer in (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), prune.identity(nn.Linear(4, 4), "weight")):
        net = nn.Sequential(nn.Linear(4, 4), layer)
        pruner = GradualMagnitudePruning(total_steps=10)
        with pytest.raises(TypeError, match=r"'1' has a parametrised weight"):
            pruner.attach(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_frozen_weights_stay_as_they_are() -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    pruner = GradualMagnitudePruning(10, 0.5, begin=0.0, end=0.0).attach(net, optimizer)
    pruner.after_step(0)
    assert [name for name, _, _ in prunable(net)] == ["2.weight"]
    assert torch.equal(net[0].weight, before)
    assert pruner.report()["nonzero-weights"] == 39 - 19


def test_a_gap_longer_than_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="every is 51, longer than the 50 steps"):
        GradualMagnitudePruning(100, every=51)
    assert GradualMagnitudePruning(100, every=50).schedule.updates == 1
    assert GradualMagnitudePruning(100, begin=0.3, end=0.3, every=7).schedule.updates == 0  # all at once is asked for


def test_hooks_by_hand() -> None:
    """From the first step on: half of the weights at once, then gradients without them and zeros after every update."""
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.3, -0.4, 0.5, -0.6]]))
    run = SimpleNamespace(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=1.0), step=0, keep_best=True)
    pruner = GradualMagnitudePruning(10, 0.5, 0.25, begin=0.0, end=0.5, every=5)
    pruner.prepare(run)
    assert not run.keep_best
    assert net.weight.tolist()[0] == pytest.approx([0.0, -0.4, 0.5, -0.6])
    net.weight.grad = torch.ones(1, 4)
    pruner.gradients(run)
    assert net.weight.grad.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[9.0, -0.4, 0.5, -0.6]]))
    run.step = 1
    pruner.step_end(run)
    assert net.weight.tolist()[0] == pytest.approx([0.0, -0.4, 0.5, -0.6])
    run.step = 5
    pruner.step_end(run)
    assert net.weight.tolist()[0] == pytest.approx([0.0, 0.0, 0.5, -0.6])
    late = SimpleNamespace(model=nn.Linear(4, 1), optimizer=run.optimizer, step=3, keep_best=True)
    GradualMagnitudePruning(10, 0.5, 0.25, begin=0.0, end=0.5, every=5).prepare(late)  # goes on from a restart
    assert bool((late.model.weight != 0).all())


def test_masks_that_are_loaded_act_at_once() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = GradualMagnitudePruning(10, 0.5, begin=0.0, end=0.0).attach(net, optimizer)
    first.after_step(0)
    other = network()
    second = GradualMagnitudePruning(10, 0.5).attach(other, torch.optim.SGD(other.parameters(), lr=0.1))
    second.load_state_dict(first.state_dict())
    assert torch.equal(other[0].weight == 0, net[0].weight == 0)


def test_shares_of_the_steps_are_what_was_written_down() -> None:
    schedules = [GradualMagnitudePruning(100, begin=0.29, end=k / 100, every=1).schedule for k in range(30, 101)]
    assert {schedule.begin for schedule in schedules} == {29}  # 0.29 * 100 is 28.999...
    assert [schedule.end for schedule in schedules] == list(range(30, 101))
