"""Neighbour consistency against a loop, where it is zero, what is left out, the bench's form, misuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from probatum.checks.toy import toy
from probatum.claims.tools import fit
from probatum.errors import InputError
from probatum.recipe import Training
from probatum.techniques.method.neighbor_consistency import NeighborConsistency, neighbor_consistency, neighbor_targets

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


def test_state_goes_on() -> None:
    first = NeighborConsistency(nn.Linear(2, 3), kept_rows=5)
    first._remember(torch.rand(4, 2), torch.rand(4, 3))
    first._remember(torch.rand(4, 2), torch.rand(4, 3))
    assert len(first.memory[0]) == len(first.memory[1]) == 5
    second = NeighborConsistency(nn.Linear(2, 3), kept_rows=5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.memory[0], first.memory[0])


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
