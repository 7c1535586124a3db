"""RECALL: what is noted, what is kept, how heads begin, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.stream import reachable
from probatum.spec import Batch, Budget, Optimisation, Stage
from probatum.techniques.stream import recall
from probatum.techniques.stream.recall import (
    Recall,
    SineHead,
    copy_where_shapes_agree,
    live_clip,
    new_loss,
    old_loss,
    spread,
)

pytestmark = pytest.mark.fast

BUDGET = Budget(60, 16, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(number: int, classes: tuple[int, ...], rows: int = 31) -> Stage:
    y = torch.tensor(classes).repeat(rows)
    centres = torch.randn(7, 10, generator=generator(9))
    return Stage(number, classes, centres[y] + 0.3 * torch.randn(len(y), 10, generator=generator(number)), y)


def learner(**settings: object) -> Recall:
    return Recall(7, nn.Identity, generator(1), generator(2), **{"encoder": nn.Identity(), "hidden": 24, **settings})  # type: ignore[arg-type]


def learned(count: int = 3, **settings: object) -> Recall:
    found = learner(**settings)
    for number, classes in enumerate([(0, 3), (1, 4), (2, 5, 6)][:count]):
        found.observe(blobs(number, classes), BUDGET)
    return found


def heads_of(found: Recall) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in head.state_dict().items()} for head in found.heads.heads]


def test_old_loss_is_zero_right_after_a_head_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learned(1, combined=1.0)
    values = []

    def watched(output: Tensor, recalled: Tensor, sigma: Tensor | float) -> Tensor:
        value = old_loss(output, recalled, sigma)
        values.append(value.item())
        return value

    monkeypatch.setattr(recall, "old_loss", watched)
    found.observe(blobs(1, (1, 4)), BUDGET)
    assert values[0] < 1e-10  # what differs is the size of the batch alone
    assert max(values) > 1e-4


def test_losses_by_hand() -> None:
    output, noted = torch.tensor([[1.0, 4.0], [2.0, 0.0]]), torch.tensor([[0.0, 2.0], [2.0, 6.0]])
    assert old_loss(output, noted, torch.tensor([1.0, 2.0])).item() == pytest.approx((1 + 1 + 0 + 9) / 4)
    assert torch.equal(old_loss(output, noted, torch.ones(2)), F.mse_loss(output, noted))
    assert old_loss(output, noted, 1.0).item() == F.mse_loss(output, noted).item()
    wanted = torch.tensor([0, 1])
    assert new_loss(output, wanted, "regression").item() == pytest.approx((0 + 1 + 1 + 1) / 4)
    assert torch.equal(new_loss(output, wanted, "cross-entropy"), F.cross_entropy(output, wanted))


def test_spread_is_the_deviation_and_floored_with_a_warning() -> None:
    noted = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    with pytest.warns(UserWarning, match=r"1 of 2 old outputs vary by less than 0.01"):
        assert spread(noted, 0.01).tolist() == pytest.approx([1.0, 0.01])


def test_no_row_and_nothing_noted_stays() -> None:
    found = learned()
    held = [t for t in reachable(found) if t.ndim and len(t) in (62, 93)]
    assert not held
    assert found.stored_bytes() == 4 * sum(p.numel() for p in found.heads.parameters())


def test_heads_begin_as_copies_of_the_last_where_shapes_agree() -> None:
    found = learned(2)
    before = heads_of(found)[-1]
    found.add_head(blobs(2, (2, 5)).x, (2, 5))
    assert all(torch.equal(value, before[name]) for name, value in heads_of(found)[-1].items())
    other = SineHead(10, 24, 3, 10.0, generator(5))
    assert copy_where_shapes_agree(found.heads.heads[0], other) == ["first.weight", "first.bias"]
    assert other.last.weight.shape == (3, 24)


def test_old_heads_move_only_where_the_combined_loss_pulls_at_them() -> None:
    for combined, still in ((0.0, True), (1.0, False)):
        found = learned(1, combined=combined)
        before = heads_of(found)[0]
        found.observe(blobs(1, (1, 4)), BUDGET)
        gap = max(float((value - before[name]).abs().max()) for name, value in heads_of(found)[0].items())
        assert (gap < 1e-3) == still


def test_old_heads_are_held_against_the_combined_loss() -> None:
    x = blobs(1, (1, 4)).x
    moved = {}
    for weight in (0.0, 30.0):
        found = learned(1, combined=1.0, old_weight=weight)
        before = found.predict(x)[:, [0, 3]]
        found.observe(blobs(1, (1, 4)), BUDGET)
        moved[weight] = float((found.predict(x)[:, [0, 3]] - before).square().mean())
    assert moved[30.0] < 0.5 * moved[0.0]


def test_clipping_lets_an_output_return() -> None:
    output = torch.tensor([-2.0, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    clipped = live_clip(output)
    assert clipped.tolist() == pytest.approx([0.0, 0.4, 1.0])
    (clipped - 1).square().sum().backward()
    assert output.grad is not None
    assert output.grad.tolist() == pytest.approx([-2.0, -1.2, 0.0])


def test_a_head_by_hand_and_its_first_weights() -> None:
    head = SineHead(10, 500, 3, 4.0, generator())
    z = torch.randn(6, 10, generator=generator(1))
    expected = torch.sin(4.0 * (z @ head.first.weight.T + head.first.bias)) @ head.last.weight.T + head.last.bias
    torch.testing.assert_close(head(z), expected)
    for layer, bound in ((head.first, 0.1), (head.last, math.sqrt(6 / 500) / 4)):
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("kind", ["regression", "cross-entropy"])
def test_it_learns_and_remembers(kind: str) -> None:
    found = learned(kind=kind)
    stages = [blobs(0, (0, 3)), blobs(1, (1, 4)), blobs(2, (2, 5, 6))]
    for number, stage in enumerate(stages):
        assert float((found.predict(stage.x, number).argmax(1) == stage.y).float().mean()) > 0.9
    output = learned(2, kind=kind).predict(stages[0].x)
    assert bool((output[:, [2, 5, 6]] == -math.inf).all())
    assert bool(output[:, [0, 1, 3, 4]].isfinite().all())


def test_heads_fit_the_memory() -> None:
    for memory in (2_000, 20_000):
        found = learned(hidden=None, memory=memory)
        assert 0.3 * memory < found.stored_bytes() <= memory
        # heads that may come: this one of two classes and five of one; a unit has 10 weights and a bias in, and its weights out
        assert found.hidden == (memory // 4 - 7 - 2 * 10) // (6 * 11 + 7)
    with pytest.raises(ValueError, match="memory is 300 bytes, too few for 6 heads"):
        learned(hidden=None, memory=300)
    assert learned(1, hidden=None).hidden == 256


@pytest.mark.parametrize("kind", ["regression", "cross-entropy"])
def test_the_whole_loss_and_the_rates_by_hand(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(_heads: nn.Module, z: Tensor, y: Tensor, _b: Budget, how: Optimisation, _o: object, loss: Any) -> None:
        caught.append((z, y, how, loss))

    caught: list[Any] = []
    found = learned(1, kind=kind, combined=0.5, old_weight=3.0, later_rate=0.2, floor=0.02)
    stage = blobs(1, (1, 4))
    noted = found.heads(stage.x).detach()
    monkeypatch.setattr(recall, "train_stage", taken)
    found.observe(stage, BUDGET)
    z, y, how, loss = caught[0]
    assert torch.equal(z, stage.x)
    assert torch.equal(y, (stage.y == 4).long())
    assert (how.lr, how.weight_decay) == (pytest.approx(0.2 * 2e-3), 0.0)
    pick = torch.tensor([7, 2, 30, 11])
    output = torch.randn(4, 4, generator=generator(4))
    sigma = (noted - noted.mean(dim=0)).square().mean(dim=0).sqrt().clamp_min(0.02)
    old = (((output[:, :2] - noted[pick]) / sigma) ** 2).sum() / 8
    new, whole = output[:, 2:], output
    if kind == "regression":
        first = ((new.clamp(0, 1) - torch.eye(2)[y[pick]]) ** 2).sum() / 8
        both = ((whole.clamp(0, 1) - torch.eye(4)[2 + y[pick]]) ** 2).sum() / 16
    else:
        first = -new.log_softmax(dim=1)[torch.arange(4), y[pick]].sum() / 4
        both = -whole.log_softmax(dim=1)[torch.arange(4), 2 + y[pick]].sum() / 4
    torch.testing.assert_close(loss(Batch(z[pick], y[pick], pick), output), first + 3 * old + 0.5 * both)
    plain = learner(variance=False, old_weight=2.0)
    plain.observe(blobs(0, (0, 3)), BUDGET)
    plain.observe(stage, BUDGET)
    assert caught[1][2].lr == 2e-3
    noted = plain.heads.heads[0](stage.x).detach()
    expected = new_loss(output[:, 2:], y[pick], "regression") + 2 * (output[:, :2] - noted[pick]).square().mean()
    torch.testing.assert_close(caught[2][3](Batch(z[pick], y[pick], pick), output), expected)


def test_outputs_stand_under_their_classes() -> None:
    found, x = learned(), blobs(0, (0, 3)).x
    assert found.columns == [0, 3, 1, 4, 2, 5, 6]
    told = found.predict(x)
    for head, classes in zip(found.heads.heads, [(0, 3), (1, 4), (2, 5, 6)], strict=True):
        torch.testing.assert_close(told[:, list(classes)], head(x).detach())
    alone = found.predict(x, np.int64(1))
    assert torch.equal(alone[:, [1, 4]], told[:, [1, 4]])
    assert bool((alone[:, [0, 2, 3, 5, 6]] == -math.inf).all())
    assert found.passes == pytest.approx((62 + 62 + 93) / 3)


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 7)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    for encoder in ("first-stage", nn.Identity()):
        found = Recall(7, lambda: net(dtype), generator(1), generator(2), 30_000, encoder=encoder, combined=1.0)
        for number, classes in enumerate([(0, 3), (1, 4)]):
            stage = blobs(number, classes)
            found.observe(Stage(number, classes, stage.x.to(dtype), stage.y), BUDGET)
        wide = torch.float64 if dtype == torch.float64 else torch.float32  # features of half precision are widened
        assert found.predict(stage.x.to(dtype)).dtype == wide
        assert float((found.predict(stage.x.to(dtype), 1).argmax(1) == stage.y).float().mean()) > 0.9
        assert 0.3 * 30_000 < found.stored_bytes() <= 30_000
        numbers = sum(p.numel() for p in found.heads.parameters()) + (2 * 16 if encoder == "first-stage" else 0)
        assert found.stored_bytes() == numbers * (8 if dtype == torch.float64 else 4)
    close = [learned(2, encoder=nn.Identity()).predict(blobs(0, (0, 3)).x)]
    found = learner()
    for number, classes in enumerate([(0, 3), (1, 4)]):
        stage = blobs(number, classes)
        found.observe(Stage(number, classes, stage.x.double(), stage.y), BUDGET)
    close.append(found.predict(blobs(0, (0, 3)).x.double()).float())
    torch.testing.assert_close(close[0], close[1], atol=2e-2, rtol=2e-2)


def test_a_stage_that_fails_leaves_the_heads_and_can_be_shown_again() -> None:
    found, stage = learned(1), blobs(1, (1, 4))
    before, heads = found.predict(stage.x), heads_of(found)
    with pytest.raises(FloatingPointError, match="lower the rate"):
        found.observe(Stage(1, (1, 4), stage.x * math.nan, stage.y), BUDGET)
    with pytest.raises(ValueError, match="leave rows without a label out"):
        found.observe(Stage(1, (1, 4), stage.x, stage.y * 0 - 100), BUDGET)
    assert torch.equal(found.predict(stage.x), before)
    found.observe(stage, BUDGET)
    assert len(heads_of(found)) == 2
    assert all(torch.equal(value, heads[0][name]) or value.ndim for name, value in heads_of(found)[0].items())
    assert float((found.predict(stage.x, 1).argmax(1) == stage.y).float().mean()) > 0.9
    first = Recall(7, net, generator(1), generator(2), hidden=24, omega=1e30)  # the encoder learns, the head cannot
    with pytest.raises(FloatingPointError):
        first.observe(Stage(0, (0, 3), blobs(0, (0, 3)).x * math.nan, blobs(0, (0, 3)).y), BUDGET)
    first.omega = 3.0
    first.observe(blobs(0, (0, 3)), BUDGET)
    assert float((first.predict(blobs(0, (0, 3)).x).argmax(1) == blobs(0, (0, 3)).y).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "hinge"}, "kind is 'hinge'"),
        ({"floor": 0.0}, "floor is 0.0"),
        ({"omega": -1.0}, "omega is -1.0"),
        ({"later_rate": 0.0}, "later_rate is 0.0"),
        ({"old_weight": -1.0}, "old_weight is -1.0"),
        ({"combined": -1.0}, "combined is -1.0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"encoder": nn.Linear(10, 3)}, "require gradients"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner(**settings)


def test_bad_stages() -> None:
    found = learned(2)
    with pytest.raises(ValueError, match=r"brings classes \[3\] again"):
        found.observe(blobs(2, (2, 3)), BUDGET)
    stage = blobs(0, (2, 5))
    with pytest.raises(ValueError, match=r"rows of classes \[5\]"):
        found.observe(Stage(2, (2,), stage.x, stage.y), BUDGET)
    with pytest.raises(ValueError, match="stage 2 names no class"):
        found.observe(Stage(2, (), stage.x[:0], stage.y[:0]), BUDGET)
    with pytest.raises(RuntimeError, match="observe a stage first"):
        learner().predict(stage.x)
    with pytest.raises(ValueError, match=r"task is 2; 2 stage\(s\)"):
        found.predict(stage.x, 2)
    with pytest.raises(ValueError, match=r"heads need \(n, d\)"):
        learner().observe(Stage(0, (2, 5), stage.x[:, None], stage.y), BUDGET)
