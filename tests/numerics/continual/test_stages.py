"""Shared parts of continual learners against brute force, closed forms and other solvers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.continual.stages import (
    Exemplars,
    Split,
    as_it_was_on_failure,
    check_stage,
    class_mask,
    evaluate,
    grow_linear,
    herding,
    kept_bytes,
    pack,
    seen_loss,
    train_stage,
    unpack,
)
from probatum.spec import Batch, Budget, Optimisation, Stage
from small_networks import Begins, WithObjective, generator, normal, small

pytestmark = pytest.mark.fast


def test_herding_is_the_greedy_choice() -> None:
    features = normal(14, 3).double()
    taken: list[int] = []
    for k in range(1, 7):
        gaps = {
            i: float((features.mean(0) - features[[*taken, i]].sum(0) / k).norm()) for i in range(14) if i not in taken
        }
        taken.append(min(gaps, key=gaps.__getitem__))
    assert herding(features, 6).tolist() == taken
    assert herding(features, 3).tolist() == taken[:3]
    assert sorted(herding(features, 99).tolist()) == list(range(14))


@pytest.mark.parametrize(
    ("x", "row"),
    [
        (torch.arange(256).repeat(16).reshape(64, 1, 8, 8) / 255, 64),
        (normal(64, 6), 24),
        (torch.randint(0, 900, (64, 12), generator=generator()), 24),
        (torch.randint(0, 90_000, (64, 12), generator=generator()), 48),
    ],
)
def test_rows_are_packed_without_loss_in_the_bytes_counted(x: Tensor, row: int) -> None:
    packed = pack(x)
    assert torch.equal(unpack(packed), x)
    assert unpack(packed).dtype == x.dtype
    assert packed.row_bytes == row
    assert kept_bytes(x) == 64 * row + (0 if packed.levels is None else 1024)


@pytest.mark.parametrize("budget", [0, 63, 500, 1500, 2800, 100_000])
def test_exemplars_never_exceed_their_budget_and_are_even(budget: int) -> None:
    store = Exemplars(budget)
    for stage, classes in enumerate([(0, 1), (2,), (3, 4)]):
        y = torch.tensor(classes).repeat(30)
        x = torch.randint(0, 256, (len(y), 1, 4, 4), generator=generator(stage)) / 255
        store.update(x, y, lambda rows, count: herding(rows.flatten(1), count))
        assert store.nbytes <= budget
        counts = {c: len(store.of(c)) for c in store.classes}
        assert not counts or max(counts.values()) - min(counts.values()) <= 0 or budget == 100_000
        for c in classes:  # the best of the class, in herding's order
            if c in store.classes:
                own = x[y == c]
                assert torch.equal(store.of(c), own[herding(own.flatten(1), len(store.of(c)))])
    if budget >= 1500:
        assert set(store.classes) == {0, 1, 2, 3, 4}
        before = {c: store.of(c) for c in store.classes}
        store.resize(budget // 2)
        assert store.nbytes <= budget // 2
        assert all(torch.equal(store.of(c), before[c][: len(store.of(c))]) for c in store.classes)


def test_exemplars_of_a_class_that_comes_again_compete() -> None:
    store = Exemplars(10_000)
    x, y = normal(20, 3), torch.zeros(20, dtype=torch.int64)
    store.update(x[:10], y[:10], lambda rows, count: torch.arange(len(rows))[:count])
    store.update(x[10:], y[10:], lambda rows, count: torch.arange(len(rows))[:count])
    assert torch.equal(store.of(0), x)
    with pytest.raises(ValueError, match="-1 bytes"):
        Exemplars(-1)


def test_a_head_that_grows_keeps_what_it_said() -> None:
    old = grow_linear(None, 5, 3, generator())
    new = grow_linear(old, 8, 6, generator(1))
    x = normal(7, 8, seed=2)
    torch.testing.assert_close(new(x)[:, :3], old(x[:, :5]))
    assert torch.equal(new.weight[:3, :5], old.weight)
    assert float(new.weight[3:].detach().abs().max()) <= 1 / math.sqrt(8)
    with pytest.raises(ValueError, match="cannot grow to 4 and 3"):
        grow_linear(old, 4, 3, generator())


def test_split_gives_the_features_before_the_last_layer() -> None:
    net, x = small(), normal(9, 5)
    expected = net(x)
    split = Split(net, 4)
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(F.linear(split.features(x), split.head.weight, split.head.bias), expected)
    with pytest.raises(ValueError, match="4 outputs in its last one"):
        Split(small(), 7)
    with pytest.raises(ValueError, match="no linear layer inside"):
        Split(nn.Linear(5, 4), 4)


def test_training_looks_at_classes_seen_only_and_leaves_the_random_state() -> None:
    x, y = normal(40, 5), torch.randint(2, (40,), generator=generator())
    seen = class_mask((0, 1), 4)
    results = []
    for bias in (0.0, 50.0):  # logits of classes not seen do not matter
        net = nn.Sequential(small(), nn.Dropout(0.0))
        with torch.no_grad():
            net[0][-1].bias[2:] += bias
        state = torch.get_rng_state()
        passed = train_stage(net, x, y, Budget(9, 16, 3), Optimisation(lr=1e-2), generator(), seen_loss(net, seen))
        assert torch.equal(state, torch.get_rng_state())
        assert passed == 3 * 40
        results.append(net(x)[:, :2])
    assert torch.equal(results[0], results[1])
    one = small()
    train_stage(one, x[:1], y[:1], Budget(2, 16, 1), Optimisation(), generator(), seen_loss(one, seen))
    with pytest.raises(ValueError, match="0 rows"):
        train_stage(one, x[:0], y[:0], Budget(2, 16, 1), Optimisation(), generator(), seen_loss(one, seen))
    with pytest.raises(FloatingPointError, match="lower the rate"):
        train_stage(one, x * math.nan, y, Budget(2, 16, 1), Optimisation(), generator(), seen_loss(one, seen))


def test_split_finds_a_head_registered_first_and_refuses_what_goes_on_behind() -> None:
    class HeadFirst(nn.Module):
        def __init__(self, ends: bool) -> None:
            super().__init__()
            self.head, self.body, self.ends = nn.Linear(6, 4), nn.Linear(5, 6), ends

        def forward(self, x: Tensor) -> Tensor:
            output = self.head(self.body(x).relu())
            return output if self.ends else output.softmax(dim=1)

    net, x = HeadFirst(ends=True), normal(9, 5)
    expected, features = net(x), net.body(x).relu()
    split = Split(net, 4)
    torch.testing.assert_close(split.features(x), features)
    torch.testing.assert_close(split(x), expected)
    assert not any(m._forward_hooks for m in split.modules())
    with pytest.raises(ValueError, match="goes on behind its last linear layer"):
        Split(HeadFirst(ends=False), 4).features(x)


def test_a_stage_is_checked_before_anything_is_learned() -> None:
    x, y = normal(6, 5), torch.tensor([0, 1, 1, 2, 2, 2])
    check_stage(Stage(0, (0, 1, 2), x, y), 3)
    check_stage(Stage(1, (2,), x, y), 3, known=[0, 1])
    check_stage(Stage(2, (), x[:0], y[:0]), 3)
    for given, words in (
        (Stage(4, (1,), x, y), r"stage 4 has rows of classes \[0, 2\], which it does not name; name them"),
        (Stage(4, (0, 1, 2), x, y - 100), r"classes \[-100, -99, -98\], .*leave rows without a label out"),
        (Stage(4, (0, 3, -1), x, y), r"stage 4 names classes \[3, -1\]; there are classes 0 to 2"),
    ):
        with pytest.raises(ValueError, match=words):
            check_stage(given, 3)


def test_a_training_that_fails_leaves_weights_buffers_and_modes() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.eval()
    net[1].train()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def loss(batch: Batch, output: Tensor) -> Tensor:
        if int(net[1].num_batches_tracked) == 3:  # type: ignore[arg-type]
            raise RuntimeError("in the middle")
        return output.square().mean()

    with pytest.raises(RuntimeError, match="in the middle"):
        train_stage(net, normal(20, 5), torch.zeros(20).long(), Budget(9, 4, 5), Optimisation(0.1), generator(), loss)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == [False, False, True, False]


def test_the_loop_is_adamw_with_a_schedule_clipping_and_hooks() -> None:
    x, y = normal(8, 5), torch.randint(4, (8,), generator=generator())
    ours, theirs = small(), small()
    ours[0].weight.requires_grad_(False)
    theirs[0].weight.requires_grad_(False)
    called: list[str] = []

    def loss(batch: Batch, output: Tensor) -> Tensor:
        assert torch.equal(batch.x, x[batch.index])
        return F.cross_entropy(output, batch.y)

    optimisation = Optimisation(1e-2, 0.3, lambda step, steps: (step + 1) / steps, 0.05)
    passed = train_stage(
        ours, x, y, Budget(4, 8, 1), optimisation, generator(3), loss,
        gradients=lambda: called.append("gradients"), stepped=lambda: called.append("stepped"),
    )  # fmt: skip
    assert called == ["gradients", "stepped"] * 4
    assert passed == 4 * 8
    assert not ours.training
    free = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=1.0, weight_decay=0.3)
    for step in range(4):
        optimizer.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        nn.utils.clip_grad_norm_(free, 0.05)
        optimizer.param_groups[0]["lr"] = 1e-2 * (step + 1) / 4
        optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_every_row_is_visited_once_before_one_comes_again_and_lone_rows_are_left_out() -> None:
    seen: list[list[int]] = []

    def loss(batch: Batch, output: Tensor) -> Tensor:
        seen.append(sorted(batch.index.tolist()))
        return output.square().mean()

    train_stage(small(), normal(9, 5), torch.zeros(9).long(), Budget(6, 4, 2), Optimisation(), generator(1), loss)
    assert [len(rows) for rows in seen] == [4] * 6  # 9 = 4 + 4 + 1
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert not set(first) & set(second)
    seen.clear()
    train_stage(small(), normal(1, 5), torch.zeros(1).long(), Budget(2, 4, 1), Optimisation(), generator(1), loss)
    assert seen == [[0, 0]] * 2


def test_evaluation_is_in_slices_and_without_gradients() -> None:
    net = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.9)).train()
    sizes: list[int] = []
    net[0].register_forward_hook(lambda _m, _i, output: sizes.append(len(output)))
    found = evaluate(net, normal(10, 5), 4)
    torch.testing.assert_close(found, net[0](normal(10, 5)))
    assert sizes[:3] == [4, 4, 2]
    assert not found.requires_grad
    assert not net.training
    assert evaluate(lambda part: part * 2, normal(0, 5)).shape == (0, 5)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([[2**40, 3]]),
        torch.arange(600).view(300, 2) + 2**31 - 300,
        torch.arange(600).view(300, 2) - 2**15,
        torch.arange(600).view(300, 2) - 2**31,
        torch.tensor([[1.0, math.nan], [2.0, 3.0]]).repeat(200, 1),
    ],
)
def test_packing_loses_nothing_of_large_numbers_and_missing_values(x: Tensor) -> None:
    torch.testing.assert_close(unpack(pack(x)), x, rtol=0, atol=0, equal_nan=True)


class Averaging(nn.Module):
    """A buffer that is replaced at every training pass, not changed in place."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        if self.training:
            self.average = 0.5 * self.average + found.detach().mean(dim=0)
        return found - self.average


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_buffers_that_a_pass_replaces_are_put_back_and_keep_their_precision(dtype: torch.dtype) -> None:
    net = Averaging().to(dtype)
    x, y = normal(20, 5).to(dtype), torch.zeros(20).long()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def failing(batch: Batch, output: Tensor) -> Tensor:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        train_stage(net, x, y, Budget(9, 4, 5), Optimisation(0.1), generator(), failing)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    train_stage(
        net, x, y, Budget(9, 4, 5), Optimisation(0.1), generator(), lambda batch, output: output.square().mean()
    )
    assert not torch.equal(net.average, before["average"])
    assert {value.dtype for value in net.state_dict().values()} == {dtype}
    assert net(x).dtype == dtype


def test_lazy_networks_get_their_weights_in_the_training() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    loss = seen_loss(net, torch.tensor([True, True]))
    train_stage(net, normal(20, 5), torch.arange(20) % 2, Budget(9, 4, 5), Optimisation(0.1), generator(), loss)
    assert net[0].weight.shape == (4, 5)


def test_a_buffer_registered_meanwhile_goes_and_rows_are_left() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    net, x = InPlace(), torch.ones(5, 2)

    def failing() -> None:
        with as_it_was_on_failure(net):
            net.register_buffer("late", torch.ones(1))
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert not net.state_dict()
    assert evaluate(net, x, 2).eq(2).all()
    assert x.eq(1).all()


def test_an_objective_sees_the_rows_as_they_came() -> None:
    same: list[bool] = []
    net = WithObjective(nn.Sequential(Begins(), nn.Linear(5, 2)), same.append)
    seen = seen_loss(net, torch.ones(2, dtype=torch.bool))
    train_stage(net, normal(20, 5), torch.arange(20) % 2, Budget(3, 5, 4), Optimisation(), generator(), seen)
    assert same == [True] * 3
