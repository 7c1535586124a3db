"""Shared parts of continual learners against brute force, closed forms and other solvers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.continual.stages import (
    Exemplars,
    Split,
    class_mask,
    grow_linear,
    herding,
    kept_bytes,
    module_bytes,
    pack,
    seen_loss,
    train_stage,
    unpack,
)
from probatum.spec import Budget, Optimisation
from probatum.techniques.stream.class_incremental.growth import Growing, blocks, last_block
from probatum.techniques.stream.class_incremental.penalties import (
    PathIntegral,
    align,
    distillation,
    fisher_diagonal,
    project,
    quadratic,
    weights_of,
)

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(outputs: int = 4, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, outputs))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


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


def test_fisher_information_is_the_mean_squared_gradient() -> None:
    net, x, seen = small().double(), normal(10, 5).double(), class_mask((0, 1, 3), 4)
    found = fisher_diagonal(net, x, seen, generator(3), chunk=4)
    draw = generator(3)
    labels = torch.cat(
        [
            torch.multinomial(net(rows).masked_fill(~seen, -math.inf).softmax(1), 1, generator=draw).squeeze(1)
            for rows in x.split(4)
        ]
    )
    assert not (labels == 2).any()
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for row, label in zip(x, labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(row[None]).masked_fill(~seen, -math.inf), label[None]).backward()
        for name, p in net.named_parameters():
            expected[name] += p.grad.square() / 10  # type: ignore[union-attr]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach())
        assert bool((found[name] >= 0).all())


def test_the_quadratic_penalty_is_zero_at_the_old_weights_and_half_the_weighted_square() -> None:
    net = small()
    reference = weights_of(net)
    importance = {name: torch.rand(p.shape, generator=generator()) for name, p in net.named_parameters()}
    assert quadratic(net, reference, importance).item() == 0.0
    with torch.no_grad():
        for p in net.parameters():
            p += 0.5
    expected = sum(float(value.sum()) for value in importance.values()) * 0.25 / 2
    assert quadratic(net, reference, importance).item() == pytest.approx(expected, rel=1e-5)


def test_path_integral_by_hand() -> None:
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0]]))
    path = PathIntegral(damping=0.1)
    path.begin(net)
    for gradient, step in (([1.0, -2.0], [-0.5, 0.5]), ([2.0, 1.0], [-0.1, 0.2])):
        net.weight.grad = torch.tensor([gradient])
        path.before(net, 1.0)
        with torch.no_grad():
            net.weight += torch.tensor([step])
        path.after(net)
    path.end(net)
    omega = [0.5 + 0.2, 1.0 - 0.2]
    expected = [omega[0] / (0.6**2 + 0.1), omega[1] / (0.7**2 + 0.1)]
    assert path.importance is not None
    assert path.importance["weight"].flatten().tolist() == pytest.approx(expected, rel=1e-5)
    path.begin(net)
    net.weight.grad = torch.zeros(1, 2)
    path.before(net, 3.0)
    assert not net.weight.grad.any(), "no penalty where no weight has moved"
    with torch.no_grad():
        net.weight += 0.25
    path.after(net)
    net.weight.grad = torch.zeros(1, 2)
    path.before(net, 3.0)
    assert net.weight.grad.flatten().tolist() == pytest.approx([2 * 3 * 0.25 * value for value in expected], rel=1e-5)
    path.after(net)
    path.end(net)
    assert all(bool((value >= 0).all()) for value in path.importance.values())
    with pytest.raises(ValueError, match="damping is 0"):
        PathIntegral(0.0)


def test_distillation_is_the_scaled_divergence_and_zero_where_nothing_changed() -> None:
    output, teacher = normal(8, 5).double().requires_grad_(), normal(8, 5, seed=1).double()
    p, q = (teacher / 3).softmax(1), (output / 3).softmax(1)
    torch.testing.assert_close(distillation(output, teacher, 3.0), 9 * (p * (p / q).log()).sum(1).mean())
    assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda o: distillation(o, teacher, 2.0), (output,))


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_projection_solves_the_quadratic_programme(seed: int, margin: float) -> None:
    memory, gradient = normal(4, 12, seed=seed).double(), normal(12, seed=seed + 50).double()
    gradient = gradient - 2 * memory.sum(dim=0) * (seed > 0)
    found = project(gradient, memory, margin)
    if bool((memory @ gradient >= 0).all()):
        assert torch.equal(found, gradient)
        return
    solved = minimize(
        lambda v: 0.5 * float(((torch.tensor(v) @ memory) + gradient).square().sum()),
        [margin + 1.0] * 4,
        bounds=[(margin, None)] * 4,
        tol=1e-14,
    )
    torch.testing.assert_close(found, gradient + torch.tensor(solved.x) @ memory, atol=1e-3, rtol=1e-3)
    assert bool((memory @ found >= -1e-8).all())
    if margin == 0.0:  # nothing that satisfies the constraints is nearer
        for other in itertools.islice((found + 0.1 * normal(12, seed=s).double() for s in range(200)), 200):
            if bool((memory @ other >= 0).all()):
                assert float((other - gradient).norm()) >= float((found - gradient).norm()) - 1e-9


def test_projection_takes_repeated_and_empty_memories() -> None:
    row = normal(12).double()
    found = project(-row, torch.stack([row, row, 0 * row]))
    assert float((row @ found).abs()) < 1e-6


def test_alignment_makes_mean_norms_equal() -> None:
    head = nn.Linear(6, 5)
    with torch.no_grad():
        head.weight[3:] *= 4
    before = head.weight.detach().clone()
    old = class_mask((0, 1, 2), 5)
    factor = align(head, old, ~old)
    norms = head.weight.detach().norm(dim=1)
    assert float(norms[old].mean()) == pytest.approx(float(norms[~old].mean()), rel=1e-5)
    assert torch.equal(head.weight[old], before[old])
    torch.testing.assert_close(head.weight[~old], before[~old] * factor)


@pytest.mark.parametrize("share", [False, True])
def test_growing_keeps_old_outputs_and_freezes_old_extractors(share: bool) -> None:
    net = Growing(lambda: small(6), 6, generator(), share)
    net.grow((4, 1))
    x = normal(30, 5)
    net.eval()
    first = net(x)
    assert torch.isfinite(first[:, [1, 4]]).all()
    assert (first[:, [0, 2, 3, 5]] == -math.inf).all()
    assert net.extra_bytes == 0
    net.grow((0,))
    torch.testing.assert_close(net(x)[:, [1, 4]], first[:, [1, 4]])
    plain = module_bytes(Split(small(6), 6).body)
    grown = module_bytes(net.bodies)
    assert grown == 2 * plain if not share else plain < grown < 2 * plain
    old = {name: value.clone() for name, value in net.bodies[0].state_dict().items()}
    y = torch.tensor([4, 1, 0]).repeat(10)
    net.auxiliary = None
    train_stage(net, x, y, Budget(5, 16, 2), Optimisation(), generator(), seen_loss(net, class_mask((0, 1, 4), 6)))
    changed = {name for name, value in net.bodies[0].state_dict().items() if not torch.equal(value, old[name])}
    assert changed == ({"0.weight", "0.bias"} if share else set()), "only what is shared goes on learning"


def test_frozen_statistics_stay() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    net = Growing(build, 3, generator())
    net.grow((0, 1))
    net.train()
    net(normal(16, 5))
    net.grow((2,))
    before = net.bodies[0][1].running_mean.clone()
    net.train()
    net(normal(16, 5, seed=1) + 3)
    assert torch.equal(net.bodies[0][1].running_mean, before)
    assert not torch.equal(net.bodies[1][1].running_mean, before)


def test_the_last_block_begins_at_the_last_weight_matrix() -> None:
    body = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Sequential(nn.Conv1d(2, 2, 3), nn.BatchNorm1d(2), nn.ReLU())
    )
    assert last_block(body) == blocks(body)[2:]
    with pytest.raises(ValueError, match=r"1 block\(s\)"):
        last_block(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


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
