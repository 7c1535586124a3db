"""Neighbour consistency against a loop, where it is zero, what is left out, the bench's form, misuse."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from probatum.checks.toy import toy
from probatum.claims.tools import fit
from probatum.errors import InputError
from probatum.recipe import Training
from probatum.spec import Batch, Budget, Part, Spec
from probatum.techniques.method.neighbor_consistency import NeighborConsistency, neighbor_consistency, neighbor_targets
from probatum.train.run import Run

pytestmark = pytest.mark.fast


def batch(n: int = 9, d: int = 4, c: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    features = torch.rand(n, d, generator=own, dtype=torch.float64) - 0.2
    return features, torch.randn(n, c, generator=own, dtype=torch.float64)


def by_loop(features: Tensor, logits: Tensor, k: int, temperature: float, gamma: float) -> float:
    n, total, counted = len(features), 0.0, 0
    p = (logits / temperature).softmax(dim=1)
    for i in range(n):
        cosines = {
            j: float(features[i] @ features[j] / (features[i].norm() * features[j].norm())) for j in range(n) if j != i
        }
        nearest = sorted(cosines, key=lambda j: -cosines[j])[:k]
        weights = {j: cosines[j] ** gamma for j in nearest if cosines[j] > 0}
        if not weights:
            continue
        q = sum(w * p[j] for j, w in weights.items()) / sum(weights.values())
        total += sum(float(a) * (math.log(a) - math.log(b)) for a, b in zip(q.tolist(), p[i].tolist(), strict=True))
        counted += 1
    return temperature**2 * total / counted


@pytest.mark.parametrize(("k", "temperature", "gamma"), [(1, 1.0, 1.0), (4, 2.0, 1.0), (8, 1.0, 3.0)])
def test_matches_a_loop(k: int, temperature: float, gamma: float) -> None:
    features, logits = batch()
    found = neighbor_consistency(features, logits, k, temperature, gamma)
    assert float(found) == pytest.approx(by_loop(features, logits, k, temperature, gamma), abs=1e-10)


def test_targets_are_probabilities_and_follow_permutations() -> None:
    features, logits = batch()
    q, known = neighbor_targets(features, logits.softmax(dim=1), 3)
    assert torch.allclose(q[known].sum(dim=1), torch.ones(int(known.sum()), dtype=torch.float64))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    a, b = neighbor_consistency(features, logits, 3), neighbor_consistency(features[order], logits[order], 3)
    assert float(a) == pytest.approx(float(b))


def test_identical_rows_are_consistent_and_a_row_is_not_its_own_neighbour() -> None:
    features, logits = torch.ones(5, 3), torch.randn(1, 4).expand(5, 4)
    assert float(neighbor_consistency(features, logits, 3)) == pytest.approx(0.0, abs=1e-7)
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    q, _ = neighbor_targets(twins, p, 1)
    assert torch.allclose(q[0], p[1])  # of two duplicates, the other one
    assert torch.allclose(q[1], p[0])


def test_rows_without_a_friend_are_left_out() -> None:
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, -0.05]], dtype=torch.float64)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [9.0, -9.0]], dtype=torch.float64, requires_grad=True)
    _, known = neighbor_targets(features, logits.softmax(dim=1), 2)
    assert known.tolist() == [True, True, False]
    neighbor_consistency(features, logits, 2).backward()
    assert logits.grad[2].abs().max() == 0
    assert torch.isfinite(logits.grad).all()


def test_gradients_and_stopping_them() -> None:
    features, logits = batch(6)
    features.requires_grad_()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, z: neighbor_consistency(f, z, 5, 2.0), (features, logits))
    (to_features,) = torch.autograd.grad(
        neighbor_consistency(features, logits, 3, stop_gradient=True), features, allow_unused=True
    )
    assert to_features is None
    free = torch.autograd.grad(neighbor_consistency(features, logits, 3), logits)[0]
    stopped = torch.autograd.grad(neighbor_consistency(features, logits, 3, stop_gradient=True), logits)[0]
    assert not torch.allclose(free, stopped)


def test_memory_adds_neighbours() -> None:
    features, logits = batch()
    whole = neighbor_targets(features, logits.softmax(dim=1), 4)[0]
    part = neighbor_targets(
        features[:3], logits[:3].softmax(dim=1), 4, memory=(features[3:], logits[3:].softmax(dim=1))
    )[0]
    assert torch.allclose(part, whole[:3])


def test_on_the_bench_it_acts_only_after_the_warm_up_and_takes_its_hook_off() -> None:
    data = toy("image", "classes")
    training = Training(steps=12, batch_size=16, lr=1e-2, select="last")
    plain = fit(None, data, 0, training=training).model.state_dict()
    late = fit("neighbor-consistency(neighbors=4, warm_up=1.0)", data, 0, training=training).model
    assert all(torch.equal(value, plain[name]) for name, value in late.state_dict().items())
    acts = fit("neighbor-consistency(neighbors=4, warm_up=0.5, kept_rows=40)", data, 0, training=training).model
    assert any(not torch.equal(value, plain[name]) for name, value in acts.state_dict().items())
    assert not any(m._forward_pre_hooks for m in acts.modules())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Behind(Net):
    """Goes on behind its last layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def run_of(model: nn.Module, rows: int = 30, steps: int = 10, size: int = 10) -> Run:
    own = torch.Generator().manual_seed(4)
    x = torch.randn(rows, 5, generator=own, dtype=torch.float64)
    part = Part(x, torch.randint(3, (rows,), generator=own), torch.arange(rows))
    spec = Spec("table", "classes", (5,), 3, numeric=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Run(model, nn.CrossEntropyLoss(), optimizer, spec, part, part, Budget(steps, size, 1))


def looked_at(run: Run, method: NeighborConsistency, index: Tensor, step: int) -> Tensor:
    run.pass_hooks, run.loss_hooks, run.step = [method.before_pass], [lambda _r, _b, _o, v: v + 2.0, method.loss], step
    run.batch = Batch(run.train.x[index], run.train.y[index], index)
    return run.loss_of(run.batch)


def test_the_loss_and_the_regulariser_are_weighed_after_the_warm_up() -> None:
    net = Net()
    run, index = run_of(net), torch.arange(10)
    method = NeighborConsistency(net.head, weight=0.3, neighbors=4, temperature=2.0, gamma=1.5, warm_up=0.4)
    method.prepare(run)
    features, output = net.body(run.train.x[index]), net(run.train.x[index])
    plain = nn.functional.cross_entropy(output, run.train.y[index]) + 2.0
    for step in (0, 3):
        torch.testing.assert_close(looked_at(run, method, index, step), plain)
    expected = by_loop(features.detach(), output.detach(), 4, 2.0, 1.5)
    for step in (4, 9):
        found = looked_at(run, method, index, step).detach()
        assert float(found) == pytest.approx(0.7 * float(plain.detach()) + 0.3 * expected)
    method.step_end(run)
    assert method.memory is None  # nothing is kept unless it is asked for
    method.finish(run)
    assert not net.head._forward_hooks


def test_without_weight_nothing_is_asked_of_the_batch_and_one_neighbour_is_enough() -> None:
    net = Net()
    run = run_of(net)
    NeighborConsistency(net.head, weight=0.0, neighbors=99).prepare(run)
    assert not net.head._forward_hooks
    NeighborConsistency(net.head, neighbors=1).prepare(run)
    assert len(net.head._forward_hooks) == 1


def test_stopping_the_gradient_is_a_setting() -> None:
    slopes = []
    for stop in (False, True):
        net = Net()
        run = run_of(net)
        method = NeighborConsistency(net.head, weight=0.9, neighbors=4, warm_up=0.0, stop_gradient=stop)
        method.prepare(run)
        looked_at(run, method, torch.arange(10), 0).backward()
        slopes.append(net.body.weight.grad)
    assert not torch.allclose(*slopes)


def test_earlier_rows_are_kept_the_latest_first_and_no_row_meets_its_older_copy() -> None:
    net = Net()
    run = run_of(net)
    method = NeighborConsistency(net.head, weight=0.3, neighbors=4, temperature=2.0, warm_up=0.0, kept_rows=12)
    method.prepare(run)
    x, order = run.train.x, (torch.arange(10), torch.arange(6, 16), torch.tensor([3, 7, 9, 12, 15, 20, 21, 22, 23, 24]))
    features, p = net.body(x).detach(), (net(x) / 2.0).softmax(dim=1).detach()
    for step, index in enumerate(order[:2]):
        looked_at(run, method, index, step)
        run.second_pass()  # is not kept
        method.step_end(run)
    kept = torch.cat([order[1], order[0][:2]])
    assert torch.equal(method.memory[2], kept)
    torch.testing.assert_close(method.memory[0], features[kept])
    torch.testing.assert_close(method.memory[1], p[kept])
    found = looked_at(run, method, order[2], 2).detach()
    pool, total = torch.cat([order[2], kept]).tolist(), 0.0
    unit = nn.functional.normalize(features, dim=1)
    for i in order[2].tolist():
        near = sorted((j for j in pool if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:4]
        w = [max(0.0, float(unit[i] @ unit[j])) for j in near]
        q = sum(v * p[j] for v, j in zip(w, near, strict=True)) / sum(w)
        total += float((q * (q.log() - p[i].log())).sum())
    plain = nn.functional.cross_entropy(net(x[order[2]]), run.train.y[order[2]]) + 2.0
    assert float(found) == pytest.approx(0.7 * float(plain.detach()) + 0.3 * 4.0 * total / 10)


def test_a_row_that_a_batch_holds_twice_is_not_its_own_neighbour() -> None:
    features, logits = batch(6)
    twice, numbers = torch.tensor([0, 1, 2, 2, 3, 4]), torch.tensor([10, 11, 12, 12, 13, 14])
    p = logits[twice].softmax(dim=1)
    q, _ = neighbor_targets(features[twice], p, 1, index=numbers)
    alone, _ = neighbor_targets(features[[0, 1, 2, 3, 4]], logits[[0, 1, 2, 3, 4]].softmax(dim=1), 1)
    torch.testing.assert_close(q[2], alone[2])
    torch.testing.assert_close(q[3], alone[2])
    unknown, _ = neighbor_targets(features[twice], p, 1)
    torch.testing.assert_close(unknown[2], p[3])
    memory = (features, logits.softmax(dim=1))  # numbers not known: all are taken for other rows
    same, _ = neighbor_targets(features, logits.softmax(dim=1), 1, memory=memory, index=torch.arange(6))
    torch.testing.assert_close(same, logits.softmax(dim=1))


@pytest.mark.parametrize("kind", [Net, Behind])
def test_features_are_those_of_the_loops_own_pass(kind: type[Net]) -> None:
    net = kind()
    run, index = run_of(net), torch.arange(10)
    method = NeighborConsistency(net.head, weight=0.3, neighbors=4, warm_up=0.0)
    method.prepare(run)
    plain = looked_at(run, method, index, 0) - 0.7 * 2.0

    def looks_elsewhere(run: Run, batch: Batch, _output: Tensor, loss: Tensor) -> Tensor:
        return loss + 0.0 * run.model(3 - batch.x).sum()

    for hooks in ([looks_elsewhere, method.loss], [method.loss, looks_elsewhere], [looks_elsewhere, method.loss]):
        run.loss_hooks = hooks
        torch.testing.assert_close(run.loss_of(run.batch), plain)


def test_state_goes_on() -> None:
    first = NeighborConsistency(nn.Linear(2, 3), kept_rows=5)
    first._remember(torch.rand(4, 2), torch.rand(4, 3))
    first._remember(torch.rand(4, 2), torch.rand(4, 3))
    assert len(first.memory[0]) == len(first.memory[1]) == 5
    second = NeighborConsistency(nn.Linear(2, 3), kept_rows=5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.memory[0], first.memory[0])
    second._remember(torch.rand(4, 2), torch.rand(4, 3), torch.arange(4))  # numbers are known from now on
    assert [len(value) for value in second.memory] == [4, 4, 4]


def test_misuse() -> None:
    features, logits = batch(5)
    with pytest.raises(ValueError, match=r"neighbors is 5, but a row of this batch has 4 others.*drop the last"):
        neighbor_consistency(features, logits, 5)
    data = toy("image", "classes")
    with pytest.raises((ValueError, InputError), match="neighbors is 10, and batches have 8 rows"):
        fit("neighbor-consistency", data, 0, training=Training(steps=3, batch_size=8))
    with pytest.raises(TypeError, match=r"nn\.Linear"):
        NeighborConsistency(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match=r"weight is 1\.0"):
        NeighborConsistency(nn.Linear(2, 2), weight=1.0)
    for settings, told in (
        ({"weight": -0.1}, r"weight is -0\.1"),
        ({"warm_up": 1.1}, r"warm_up is 1\.1"),
        ({"neighbors": 0}, "neighbors is 0"),
        ({"kept_rows": 2.5}, r"kept_rows is 2\.5"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"gamma": -1.0}, r"gamma -1\.0"),
    ):
        with pytest.raises(ValueError, match=told):
            NeighborConsistency(nn.Linear(2, 2), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gamma is -1\.0"):
        neighbor_targets(features, logits, 2, -1.0)
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        neighbor_consistency(features, logits, 2, 0.0)
    with pytest.raises((ValueError, InputError), match="the task here is reals"):
        NeighborConsistency(nn.Linear(2, 2)).prepare(SimpleNamespace(spec=SimpleNamespace(task="reals")))
    few = replace(data, train=replace(data.train, x=data.train.x[:20], y=data.train.y[:20], rows=data.train.rows[:20]))
    fit(
        "neighbor-consistency(neighbors=6)", few, 0, training=Training(steps=4, batch_size=16)
    )  # last batches of 4 rows


def test_no_similarity_has_a_finite_gradient_at_any_power() -> None:
    f = torch.relu(torch.randn(16, 6, generator=torch.Generator().manual_seed(0)))
    f[3], f[:4, 3:], f[4:8, :3] = 0, 0, 0
    f.requires_grad_()
    neighbor_consistency(f, torch.randn(16, 4), 10, 1.0, 0.5).backward()
    assert f.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_gradient_of_float32_rounded(dtype: torch.dtype) -> None:
    features, logits = batch()
    low = (4 * logits).to(dtype).requires_grad_()
    high, f = low.detach().float().requires_grad_(), features.to(dtype)
    neighbor_consistency(f, low, 3).backward()
    neighbor_consistency(f.float(), high, 3).backward()
    torch.testing.assert_close(low.grad, high.grad.to(dtype))


def test_features_and_logits_of_the_same_rows() -> None:
    features, logits = batch()
    with pytest.raises(ValueError, match=r"features are \(9, 4\), logits \(8, 3\)"):
        neighbor_consistency(features, logits[:8], 3)


def test_classes_that_are_masked_out_say_nothing() -> None:
    features, logits = batch()
    masked = torch.cat([logits, torch.full((9, 1), -math.inf, dtype=torch.float64)], dim=1).requires_grad_()
    found = neighbor_consistency(features, masked, 3)
    torch.testing.assert_close(found, neighbor_consistency(features, logits, 3))
    found.backward()
    assert bool(masked.grad.isfinite().all())


def test_features_of_zeros_have_no_direction_in_half_precision() -> None:
    features, logits = batch()
    features[2] = 0.0
    q, known = neighbor_targets(features.half(), logits.softmax(dim=1).half(), 3)
    expected, _ = neighbor_targets(features, logits.softmax(dim=1), 3)
    torch.testing.assert_close(q.double(), expected, atol=5e-3, rtol=0)  # as NaN it came before all other neighbours
    assert not known[2]
