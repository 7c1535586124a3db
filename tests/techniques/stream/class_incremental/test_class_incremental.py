"""The learners of class-incremental: what each method's paper fixes exactly, the budget of bytes, and bad input."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.continual.learners import FineTune
from probatum.numerics.continual.stages import module_bytes, seen_loss
from probatum.spec import Batch, Budget, Stage
from probatum.techniques.stream.class_incremental.class_incremental import METHODS, ClassIncremental
from probatum.techniques.stream.class_incremental.penalties import quadratic, weights_of

BUDGET = Budget(30, 16, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factory() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 6))


def stages(rows: int = 40) -> list[Stage]:
    """Three stages of two classes, blobs on a circle, values on a grid of 64 levels."""
    found = []
    for number, classes in enumerate([(0, 3), (1, 4), (2, 5)]):
        y = torch.tensor(classes).repeat(rows)
        angle = y * (2 * math.pi / 6)
        centre = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], dim=1)
        x = centre + 0.2 * torch.randn(len(y), 4, generator=generator(number))
        found.append(Stage(number, classes, (x * 16).round() / 16, y))
    return found


def learner(method: str, memory: int = 600, **settings: object) -> ClassIncremental:
    return ClassIncremental(6, factory, generator(1), generator(2), memory, 16, method=method, **settings)  # type: ignore[arg-type]


def learned(
    method: str, memory: int = 600, count: int = 3, budget: Budget = BUDGET, **settings: object
) -> ClassIncremental:
    found = learner(method, memory, **settings)
    for stage in stages()[:count]:
        found.observe(stage, budget)
    return found


def accuracy(found: ClassIncremental) -> float:
    x, y = torch.cat([s.x for s in stages()]), torch.cat([s.y for s in stages()])
    return float((found.predict(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if name not in ("der", "memo", "ewc", "si")])
@pytest.mark.parametrize("memory", [200, 600, 3000])
def test_the_budget_of_bytes_is_never_exceeded(method: str, memory: int) -> None:
    memory = max(memory, 6 * 16 * 4) if method == "prototypes" else memory  # a mean a class, whatever the memory
    found = learner(method, memory)
    for stage in stages():
        found.observe(stage, BUDGET)
        assert found.stored_bytes() <= memory


@pytest.mark.parametrize("method", ["ewc", "si"])
def test_importances_cost_one_number_a_weight(method: str) -> None:
    assert learner(method).stored_bytes() == 0
    assert learned(method).stored_bytes() == 4 * sum(p.numel() for p in factory().parameters())


@pytest.mark.parametrize("method", ["der", "memo"])
def test_grown_networks_are_counted_and_leave_less_for_exemplars(method: str) -> None:
    for memory in (0, 8000, 20_000):
        found = learned(method, memory)
        extra = module_bytes(found.network) - module_bytes(factory())
        kept = found.learner.exemplars.nbytes
        assert found.stored_bytes() == max(0, extra) + kept
        assert found.stored_bytes() <= max(memory, extra)
    body = 4 * (4 * 24 + 24 + 24 * 16 + 16) if method == "der" else 4 * (24 * 16 + 16)
    assert extra == 2 * body + 4 * 6 * 32


def test_replay_remembers_and_fine_tuning_forgets() -> None:
    assert accuracy(learned("finetune")) < 0.5
    for method in ("replay", "icarl", "der", "memo", "bic"):
        assert accuracy(learned(method, 10_000, budget=Budget(100, 16, 5))) > 0.75, method


def test_lwf_loss_at_unchanged_weights_is_the_new_classes_alone() -> None:
    found = learned("lwf", count=1).learner
    second = stages()[1]
    found.old = found.seen.clone()
    found.seen = found.seen | torch.isin(torch.arange(6), torch.tensor(second.classes))
    x, y = found.begin(second)
    batch = Batch(x, y, torch.arange(len(y)))
    found.network.eval()
    output = found.network(x).detach()
    expected = F.cross_entropy(output[:, [1, 4]], (y == 4).long())
    torch.testing.assert_close(found.loss(batch, output), expected)
    moved = output + torch.tensor([1.0, 0, 0, 0, 0, 0])
    assert float(found.loss(batch, moved)) > float(expected)


def test_ewc_penalty_is_zero_at_the_old_weights_and_fisher_is_not_negative() -> None:
    found = learned("ewc", count=2).learner
    fisher = found.fisher  # type: ignore[attr-defined]
    assert quadratic(found.network, weights_of(found.network), fisher).item() == 0.0
    assert all(bool((value >= 0).all()) for value in fisher.values())
    assert any(bool((value > 0).any()) for value in fisher.values())


def test_strong_penalties_hold_the_weights() -> None:
    moved = {}
    for method in ("ewc", "si"):
        for strength in (0.0, 1e7):
            found = learner(method, strength=strength)
            first, second, _ = stages()
            found.observe(first, BUDGET)
            before = weights_of(found.network)
            importance = found.learner.fisher if method == "ewc" else found.learner.path.importance  # type: ignore[attr-defined]
            importance = {name: value.clone() for name, value in importance.items()}
            found.observe(second, BUDGET)
            moved[method, strength] = quadratic(found.network, before, importance).item()
        assert moved[method, 1e7] < 0.2 * moved[method, 0.0]


def test_every_gem_step_agrees_with_every_memory() -> None:
    found = learned("gem", 3000, count=2).learner
    checked = []
    third = stages()[2]
    plain = found.gradients

    def gradients() -> None:
        pick = found.s.generator.get_state()
        plain()
        parameters = [p for p in found.network.parameters() if p.grad is not None]
        found.s.generator.set_state(pick)
        own = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
        for x, y in found.past:  # type: ignore[attr-defined]
            rows = torch.randperm(len(y), generator=found.s.generator)[:16]
            value = F.cross_entropy(found.network(x[rows]).masked_fill(~found.seen, -math.inf), y[rows])
            memory = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
            checked.append(float(memory @ own) / float(memory.norm() * own.norm()))

    found.gradients = gradients  # type: ignore[method-assign]
    found.observe(third, BUDGET)
    assert len(checked) == 2 * BUDGET.steps
    assert min(checked) > -1e-4


def test_icarl_answers_with_the_nearest_mean_of_exemplars() -> None:
    found = learned("icarl", 2000)
    inner = found.learner
    x = torch.randn(20, 4, generator=generator())
    means = {c: F.normalize(inner.features(inner.exemplars.of(c)).mean(0), dim=0) for c in inner.exemplars.classes}  # type: ignore[attr-defined]
    features = inner.features(x)  # type: ignore[attr-defined]
    expected = [min(means, key=lambda c: float((means[c] - row).norm())) for row in features]
    assert found.predict(x).argmax(1).tolist() == expected


def test_wa_leaves_mean_norms_equal() -> None:
    head = learned("wa", 2000).learner.network.head
    assert isinstance(head, nn.Linear)
    norms = head.weight.norm(dim=1).detach()
    assert float(norms[[2, 5]].mean()) == pytest.approx(float(norms[[0, 3, 1, 4]].mean()), rel=1e-4)


def test_bic_holds_out_as_many_rows_of_every_class_and_trains_on_the_others() -> None:
    found = learned("bic", 3000, count=1).learner
    second = stages()[1]
    found.old = found.seen.clone()
    found.seen = found.seen | torch.isin(torch.arange(6), torch.tensor(second.classes))
    _, y = found.begin(second)
    held: tuple[Tensor, Tensor] = found.held  # type: ignore[attr-defined]
    counts = [int((held[1] == c).sum()) for c in (0, 3, 1, 4)]
    assert len(set(counts)) == 1
    assert counts[0] >= 1
    assert len(y) + len(held[1]) == len(second) + len(found.exemplars)
    scale = learned("bic", 3000).learner.scale  # type: ignore[attr-defined]
    assert scale[[0, 3]].tolist() == [1.0, 1.0]
    assert float(scale[1]) == float(scale[4])
    assert float(scale[1]) != 1.0


def begun(method: str, **settings: object) -> tuple[FineTune, Stage, Batch]:
    """A learner at unchanged weights at the start of its third stage, the stage, and all rows that it trains on."""
    found = learned(method, 3000, count=2, budget=Budget(100, 16, 5), **settings).learner
    third = stages()[2]
    found.old = found.seen.clone()
    found.seen = found.seen | torch.isin(torch.arange(6), torch.tensor(third.classes))
    found.stages = [*found.stages, third.classes]
    x, y = found.begin(third)
    found.network.eval()
    found.plain_loss = seen_loss(found.network, found.seen)
    return found, third, Batch(x, y, torch.arange(len(y)))


@pytest.mark.parametrize("method", ["wa", "bic"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_at_unchanged_weights_distillation_is_nothing_and_the_plain_loss_has_its_share(
    method: str, strength: float
) -> None:
    found, _, batch = begun(method, strength=strength)
    told = found.network(batch.x).detach()
    if method == "bic":
        a, b = float(found.scale[1]), float(found.shift[4])  # type: ignore[attr-defined]
        assert abs(a - 1) > 0.02
        told[:, [1, 4]] = a * told[:, [1, 4]] + b  # the second stage's classes, corrected once
    expected = 2 / (2 + strength * 4) * F.cross_entropy(told, batch.y)  # an old class counts so often beside a new one
    torch.testing.assert_close(found.loss(batch, found.network(batch.x)).detach(), expected)


@pytest.mark.parametrize("method", ["wa", "bic"])
def test_distillation_by_hand_where_weights_moved(method: str) -> None:
    found, _, batch = begun(method, temperature=3.0)
    with torch.no_grad():
        teacher, moved = found.network(batch.x), found.network(batch.x) + torch.randn(6, generator=generator(8))
        logits = [value.clone() for value in (teacher, moved)]
        if method == "bic":
            for value in logits:
                value[:, [1, 4]] = found.scale[1] * value[:, [1, 4]] + found.shift[1]  # type: ignore[attr-defined]
    p, q = ((value[:, [0, 1, 3, 4]] / 3.0).softmax(dim=1) for value in logits)
    expected = F.cross_entropy(logits[1], batch.y) / 3 + 2 / 3 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(found.loss(batch, moved), expected)


def test_bic_fits_two_numbers_that_a_search_cannot_better_and_applies_them_once() -> None:
    found, _, _ = begun("bic")
    assert found.held is not None  # type: ignore[attr-defined]
    x, y = found.held  # type: ignore[attr-defined]
    before = found.scale.clone(), found.shift.clone()  # type: ignore[attr-defined]
    raw = found.network(x).detach()
    found.correct()  # type: ignore[attr-defined]
    scale, shift = found.scale, found.shift  # type: ignore[attr-defined]
    old = [0, 1, 3, 4]
    assert torch.equal(scale[old], before[0][old])
    assert torch.equal(shift[old], before[1][old])
    assert scale[2] == scale[5] != 1
    fixed = raw.clone()
    fixed[:, [1, 4]] = before[0][1] * raw[:, [1, 4]] + before[1][1]

    def value(numbers: Any) -> float:
        a, b = (float(number) for number in numbers)
        told = fixed.clone()
        told[:, [2, 5]] = a * told[:, [2, 5]] + b
        return float(F.cross_entropy(told.double(), y)) + 1e-3 * ((a - 1) ** 2 + b**2)

    best = minimize(value, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    assert value((scale[2], shift[2])) == pytest.approx(best.fun, abs=1e-5)
    assert [float(scale[2]), float(shift[2])] == pytest.approx(best.x.tolist(), abs=2e-2)
    told = fixed.clone()
    told[:, [2, 5]] = scale[2] * told[:, [2, 5]] + shift[2]
    torch.testing.assert_close(found.predict(x), told)


def test_ewc_and_lwf_and_icarl_by_hand_where_weights_moved() -> None:
    found, _, batch = begun("ewc", strength=7.0)
    fisher = {name: value.clone() for name, value in found.fisher.items()}  # type: ignore[attr-defined]
    with torch.no_grad():
        for p in found.network.parameters():
            p += 0.1
    output = found.network(batch.x).detach()
    plain = F.cross_entropy(output, batch.y)
    torch.testing.assert_close(
        found.loss(batch, output).detach(), plain + 7.0 * sum(f.sum() for f in fisher.values()) * 0.01 / 2
    )
    found.end(stages()[2])
    assert all(bool((found.fisher[name] >= value).all()) for name, value in fisher.items())  # type: ignore[attr-defined]

    found, _, batch = begun("lwf", strength=0.7, temperature=3.0)
    before = found.network(batch.x).detach()
    moved = before + torch.randn(6, generator=generator(8))
    p, q = ((value[:, [0, 1, 3, 4]] / 3.0).softmax(dim=1) for value in (before, moved))
    kept = 9 * (p * (p / q).log()).sum(dim=1).mean()
    new = F.cross_entropy(moved[:, [2, 5]], (batch.y == 5).long())
    torch.testing.assert_close(found.loss(batch, moved), new + 0.7 * kept)

    found, third, batch = begun("icarl")
    assert len(batch.y) == len(third) + len(found.exemplars)
    before = found.network(batch.x).detach()
    target = F.one_hot(batch.y, 6).float()
    target[:, [0, 1, 3, 4]] = before[:, [0, 1, 3, 4]].sigmoid()
    moved = before + torch.randn(6, generator=generator(8))
    p = moved.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum(dim=1).mean()
    torch.testing.assert_close(found.loss(batch, moved), expected)
    pick = torch.tensor([4, 1])
    part = found.loss(Batch(batch.x[pick], batch.y[pick], pick), moved[pick])
    torch.testing.assert_close(part, -(target * p.log() + (1 - target) * (1 - p).log())[pick].sum(dim=1).mean())


def test_the_first_stage_is_plain_for_all_that_look_back() -> None:
    first = stages()[0]
    for method in ("ewc", "lwf", "wa", "bic"):
        found = learner(method).learner
        found.seen = torch.isin(torch.arange(6), torch.tensor(first.classes))
        x, y = found.begin(first)
        found.plain_loss = seen_loss(found.network, found.seen)
        output = torch.randn(len(y), 6, generator=generator())
        expected = F.cross_entropy(output[:, [0, 3]], (y == 3).long())
        torch.testing.assert_close(found.loss(Batch(x, y, torch.arange(len(y))), output), expected)


@pytest.mark.parametrize(("share", "each"), [(0.1, 1), (0.25, 3), (0.5, 6)])
def test_bic_holds_out_its_share_of_the_rarest_class(share: float, each: int) -> None:
    found = learned("bic", 2000, count=1, held_out=share).learner
    second = stages()[1]
    few = torch.cat([(second.y == 1).nonzero()[:13, 0], (second.y == 4).nonzero()[:30, 0]])
    found.old, found.seen = found.seen.clone(), found.seen | torch.isin(torch.arange(6), torch.tensor((1, 4)))
    assert len(found.exemplars.of(0)) > 14
    _, y = found.begin(Stage(1, (1, 4), second.x[few], second.y[few]))
    assert y.bincount(minlength=6)[[1, 4]].tolist() == [13 - each, 30 - each]
    held: tuple[Tensor, Tensor] = found.held  # type: ignore[attr-defined]
    assert held[1].bincount(minlength=6).tolist() == [each, each, 0, each, each, 0]
    lone = learned("bic", 2000, count=1).learner
    lone.old, lone.seen = lone.seen.clone(), found.seen
    lone.begin(Stage(1, (1, 4), second.x[[0, 1]], second.y[[0, 1]]))  # one row of a class: none can be spared
    assert lone.held is None  # type: ignore[attr-defined]


def test_passes_by_hand() -> None:
    rows, steps, third = 80, 30, 1 / 3
    assert learned("ewc").passes == pytest.approx(3 * 480 + 3 * rows)
    assert learned("si").passes == 3 * 480
    gem = learned("gem", 3000, count=2)
    kept = min(16, 2 * len(learned("gem", 3000, count=1).learner.exemplars.of(0)))
    assert gem.passes == pytest.approx(2 * 480 + steps * kept + 2 * rows * third)
    wa = learned("wa", 600, count=2)
    first = learned("wa", 600, count=1)
    assert first.passes == pytest.approx(480 + rows * third)
    mixed = rows + len(first.learner.exemplars)
    batches = [16] * (mixed // 16) + ([mixed % 16] if mixed % 16 > 1 else [])
    trained = sum((batches * 30)[:steps])
    assert wa.passes == pytest.approx(480 + trained + (2 * rows + mixed) * third)


def test_der_adds_the_auxiliary_loss_of_the_newest_features() -> None:
    found = learned("der", 20_000, count=1, strength=0.3).learner
    second = stages()[1]
    found.old, found.seen = found.seen.clone(), found.seen | torch.isin(torch.arange(6), torch.tensor((1, 4)))
    x, y = found.begin(second)
    grown: Any = found.network
    newest = torch.randn(len(y), 16, generator=generator())
    found.newest = newest  # type: ignore[attr-defined]
    output = torch.randn(len(y), 6, generator=generator(1))
    batch, before = Batch(x, y, torch.arange(len(y))), found.passes
    place = torch.tensor([0, 1, 0, 0, 2, 0])[y]  # any older class, then the new ones in order
    expected = F.cross_entropy(output, y) + 0.3 * F.cross_entropy(grown.auxiliary(newest), place)
    torch.testing.assert_close(found.loss(batch, output), expected)
    assert found.passes == pytest.approx(before + len(y) / 3)  # the frozen extractor's pass forward
    state = {name: value.clone() for name, value in grown.state_dict().items()}
    found.balance(x, y, Budget(5, 16, 5))  # type: ignore[attr-defined]
    moved = {name for name, value in grown.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {"head.weight", "head.bias"}
    fewest = int(y.bincount(minlength=6)[[0, 1, 3, 4]].min())
    assert found.passes == pytest.approx(before + len(y) / 3 + 4 * fewest * 2 / 3 + 5 * 16)
    found.end(second)
    assert grown.auxiliary is None


def test_the_last_fifth_of_ders_steps_balances_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learned("der", 20_000, count=1)
    taken: list[tuple[str, int]] = []
    inner: Any = found.learner
    plain = inner.balance
    monkeypatch.setattr(
        inner, "balance", lambda x, y, budget: taken.append(("balance", budget.steps)) or plain(x, y, budget)
    )
    before = found.passes
    found.observe(stages()[1], Budget(30, 16, 5))
    assert taken == [("balance", 6)]
    assert found.passes > before
    assert len(inner.newest) == 0


def test_wa_keeps_the_head_from_falling_below_zero() -> None:
    for count in (1, 2):
        head = learned("wa", 2000, count=count).learner.network.head
        assert isinstance(head, nn.Linear)
        assert float(head.weight.detach().min()) == 0.0  # some were clipped
        assert float(head.bias.detach().min()) < 0  # biases are not
    assert float(learned("bic", 2000).learner.network.head.weight.detach().min()) < 0  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("method", METHODS)
def test_a_class_of_which_no_row_came_takes_no_row_from_others(method: str) -> None:
    found = learned(method, 10_000, count=1)
    second = stages()[1]
    rows = second.y == 1
    found.observe(Stage(1, (1, 4), second.x[rows], second.y[rows]), BUDGET)
    told = found.predict(torch.cat([s.x for s in stages()[:2]]))
    assert not told.isnan().any()
    assert not (told.argmax(dim=1) == 4).any()
    assert float((found.predict(stages()[0].x, 0).argmax(dim=1) == stages()[0].y).float().mean()) > 0.9
    found.observe(stages()[2], BUDGET)


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_that_fails_leaves_what_was_learned_and_can_be_shown_again(method: str) -> None:
    found, x = learned(method, 10_000, count=2), torch.cat([s.x for s in stages()])
    before, third = found.predict(x), stages()[2]
    if method != "prototypes":  # which has nothing to train there
        with pytest.raises(FloatingPointError, match="lower the rate"):
            found.observe(Stage(2, third.classes, third.x * math.nan, third.y), BUDGET)
    for y in (third.y - 6, third.y * 0 - 100):
        with pytest.raises(ValueError, match=r"rows of classes .*leave rows without a label out"):
            found.observe(Stage(2, third.classes, third.x, y), BUDGET)
    with pytest.raises(ValueError, match=r"names classes \[6\]; there are classes 0 to 5"):
        found.observe(Stage(2, (2, 6), third.x, third.y), BUDGET)
    assert torch.equal(found.predict(x), before)
    found.observe(third, BUDGET)
    assert bool(found.predict(x).isfinite().all())
    assert float((found.predict(third.x, 2).argmax(dim=1) == third.y).float().mean()) > 0.75


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(method: str, dtype: torch.dtype) -> None:
    small = ClassIncremental(6, lambda: factory().to(dtype), generator(1), generator(2), 4000, 16, method=method)
    for stage in stages():
        small.observe(Stage(stage.number, stage.classes, stage.x.to(dtype), stage.y), BUDGET)
    x, y = torch.cat([s.x for s in stages()]).to(dtype), torch.cat([s.y for s in stages()])
    assert small.predict(x).dtype == dtype
    assert small.predict(x[:0], np.int64(1)).shape == (0, 6)
    assert float((small.predict(x[80:160], 1).argmax(dim=1) == y[80:160]).float().mean()) > 0.8


def test_icarl_passes_its_exemplars_once_and_again_where_weights_changed() -> None:
    found = learned("icarl", 2000)
    inner, x = found.learner, torch.randn(5, 4, generator=generator())
    seen: list[int] = []
    plain = inner.features  # type: ignore[attr-defined]
    inner.features = lambda rows: seen.append(len(rows)) or plain(rows)  # type: ignore[attr-defined]
    first = found.predict(x)
    kept = sum(seen) - 5
    assert kept == len(inner.exemplars)
    assert torch.equal(found.predict(x), first)
    assert sum(seen) == kept + 10
    with torch.no_grad():
        inner.network.body[0].weight.mul_(-1.0)  # type: ignore[union-attr,index,operator]
    del inner.features  # type: ignore[attr-defined]
    means = torch.stack([plain(inner.exemplars.of(c)).mean(dim=0) for c in range(6)])
    expected = torch.stack([-(plain(x) - F.normalize(mean, dim=0)).square().sum(dim=1) for mean in means], dim=1)
    torch.testing.assert_close(found.predict(x), expected)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("replay", {"strength": 2.0}, "strength is 2.0, which replay does not have; it is for gem, ewc, si"),
        ("icarl", {"temperature": 3.0}, "temperature is 3.0, which icarl does not have"),
        ("wa", {"held_out": 0.2}, "held_out is 0.2, which wa does not have; it is for bic"),
        ("prototypes", {"selection": "random"}, "selection is 'random', which prototypes does not have"),
    ],
)
def test_a_setting_that_a_method_does_not_have_is_told(method: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner(method, **settings)


def test_old_extractors_of_der_are_frozen_to_the_bit() -> None:
    found = learned("der", 20_000, count=1)
    before = {name: value.clone() for name, value in found.network.bodies[0].state_dict().items()}  # type: ignore[union-attr,index]
    for stage in stages()[1:]:
        found.observe(stage, BUDGET)
    after = found.network.bodies[0].state_dict()  # type: ignore[union-attr,index]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert len(found.network.bodies) == 3  # type: ignore[arg-type]


def test_prototypes_are_means_of_features_that_no_longer_change() -> None:
    found = learned("prototypes", count=1)
    before = weights_of(found.network)
    for stage in stages()[1:]:
        found.observe(stage, BUDGET)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(found.network).items())
    inner = found.learner
    last = stages()[2]
    torch.testing.assert_close(inner.means[2], inner.features(last.x[last.y == 2]).mean(0))  # type: ignore[attr-defined]


def test_passes_are_charged() -> None:
    plain = learned("finetune").passes
    assert plain == 3 * 6 * 80
    assert learned("gem", 3000).passes > plain * 1.5
    assert learned("lwf").passes == pytest.approx(plain + 2 * 80 / 3)
    assert learned("der", 20_000).passes > learned("replay", 20_000).passes * 1.2


def test_a_task_lets_its_own_classes_compete_alone() -> None:
    found = learned("replay")
    x = stages()[0].x
    assert set(found.predict(x, 1).argmax(1).tolist()) <= {1, 4}
    with pytest.raises(ValueError, match=r"task is 3; 3 stage\(s\)"):
        found.predict(x, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "lwff"}, "method is 'lwff'; use one of finetune"),
        ({"method": "lwf", "temperature": 0.0}, "temperature is 0.0"),
        ({"method": "bic", "held_out": 0.7}, "held_out is 0.7"),
        ({"method": "ewc", "strength": -1.0}, "strength is -1.0"),
        ({"method": "replay", "selection": "best"}, "selection is 'best'"),
        ({"method": "replay", "memory": -5}, "-5 bytes"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner(**settings)  # type: ignore[arg-type]


def test_bad_stages() -> None:
    stage = stages()[0]
    with pytest.raises(ValueError, match=r"rows of classes \[3\]"):
        learner("replay").observe(Stage(0, (0,), stage.x, stage.y), BUDGET)
    with pytest.raises(ValueError, match="hold no exemplar of classes"):
        learner("icarl", 20).observe(stage, BUDGET)
    with pytest.raises(ValueError, match="no linear layer inside"):
        ClassIncremental(6, lambda: nn.Linear(4, 6), generator(), generator(), method="replay")


@pytest.mark.parametrize("method", ["wa", "bic"])
def test_new_classes_are_learned_however_strong_the_distillation_is(method: str) -> None:
    found, _, batch = begun(method, strength=10.0)
    output = found.network(batch.x).detach()
    value = found.loss(batch, output)
    told = output if method == "wa" else found.corrected(output)  # type: ignore[attr-defined]
    torch.testing.assert_close(value, F.cross_entropy(told, batch.y) * 2 / 42)  # 2 new classes beside 10 * 4 old ones


@pytest.mark.parametrize("method", ["lwf", "wa", "bic"])
@pytest.mark.parametrize("named", [True, False])
def test_later_rows_of_old_classes_are_learned_too(method: str, named: bool) -> None:
    found = learned(method, 2000, count=2)
    first = stages()[0]
    moved = Stage(2, first.classes if named else (), first.x * -2.0 + 3.0, first.y)
    before = F.cross_entropy(found.predict(moved.x)[:, [0, 3]], (first.y == 3).long())
    found.observe(moved, Budget(100, 16, 5))
    after = F.cross_entropy(found.predict(moved.x)[:, [0, 3]], (first.y == 3).long())
    assert float(after) < 0.5 * float(before)


def test_icarl_sees_weights_that_were_changed_through_data() -> None:
    found = learned("icarl", 2000)
    x = torch.randn(5, 4, generator=generator())
    found.predict(x)
    for value in found.network.parameters():
        value.data.mul_(-0.5).add_(0.3)
    stale = found.predict(x)
    found.learner.means = None  # type: ignore[attr-defined]
    assert torch.equal(found.predict(x), stale)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_float16_is_trained_in_float32(method: str) -> None:
    found = ClassIncremental(6, lambda: factory().half(), generator(1), generator(2), 600, 16, method=method)
    for stage in stages()[:2]:
        found.observe(Stage(stage.number, stage.classes, stage.x.half(), stage.y), BUDGET)
    last = stages()[1]
    told = found.predict(last.x.half()).argmax(dim=1)
    assert {value.dtype for value in found.network.parameters()} == {torch.float16}
    assert float((told == last.y).float().mean()) > 0.55


@pytest.mark.parametrize("method", ["replay", "icarl", "bic", "der"])
def test_labels_of_other_whole_numbers_and_in_a_column_are_the_same(method: str) -> None:
    plain = learned(method, count=2).predict(stages()[0].x)
    other = learner(method)
    for stage in stages()[:2]:
        other.observe(Stage(stage.number, stage.classes, stage.x, stage.y[:, None].int()), BUDGET)
    assert torch.equal(other.predict(stages()[0].x), plain)
    with pytest.raises(TypeError, match=r"stage 0 has labels of torch\.float32; class numbers"):
        learner(method).observe(Stage(0, (0, 3), stages()[0].x, stages()[0].y.float()), BUDGET)
    with pytest.raises(ValueError, match=r"stage 0 has 80 rows and labels \(79,\)"):
        learner(method).observe(Stage(0, (0, 3), stages()[0].x, stages()[0].y[1:]), BUDGET)


def test_der_grows_on_features_without_weights() -> None:
    network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 6))  # noqa: E731
    found = ClassIncremental(6, network, generator(1), generator(2), 4000, 16, method="der")
    for stage in stages():
        found.observe(stage, BUDGET)
    assert found.predict(stages()[0].x).shape == (80, 6)


def test_der_leaves_frozen_weights_frozen_where_a_stage_fails() -> None:
    def network() -> nn.Module:
        net = factory()
        net[0].requires_grad_(False)  # type: ignore[index]
        return net

    found = ClassIncremental(6, network, generator(1), generator(2), 20_000, 16, method="der")
    found.observe(stages()[0], BUDGET)
    bad = stages()[1]
    with pytest.raises(FloatingPointError):
        found.observe(Stage(1, bad.classes, bad.x * float("nan"), bad.y), BUDGET)
    inside = found.learner.growing.bodies[0]  # type: ignore[attr-defined]
    assert [p.requires_grad for p in inside.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("whole", [False, True])
def test_parts_in_evaluation_stay_so_in_every_stage(method: str, whole: bool) -> None:
    def network() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            net = nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6)
            )
        if whole:
            return net.eval()  # says nothing of its parts
        net[1].eval()
        return net

    found = ClassIncremental(6, network, generator(1), generator(2), 3000, 16, method=method)
    for stage in stages()[:2]:
        found.observe(stage, BUDGET)
    norms = [module for module in found.network.modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms
    assert all(bool(norm.running_mean.any()) == whole for norm in norms)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["replay", "der", "memo"])
def test_networks_can_be_pickled(method: str) -> None:
    found = ClassIncremental(6, lambda: factory(), generator(1), generator(2), 3000, 16, method=method)
    for stage in stages()[:2]:
        found.observe(stage, BUDGET)
    x = stages()[0].x
    assert torch.equal(pickle.loads(pickle.dumps(found.network))(x), found.network(x))
    twin = copy.deepcopy(found)
    for learner_ in (found, twin):
        learner_.observe(stages()[2], BUDGET)
    assert torch.equal(twin.predict(x), found.predict(x))


@pytest.mark.parametrize("method", ["icarl", "bic", "memo"])
def test_a_stage_that_fails_after_its_training_leaves_what_was_learned(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, x = learned(method, 8000, count=2), stages()[0].x
    before, bytes_before = found.predict(x), found.stored_bytes()
    plain = found.learner.end

    def breaks(stage: Stage) -> None:
        plain(stage)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(found.learner, "end", breaks)
        with pytest.raises(KeyboardInterrupt):
            found.observe(stages()[2], BUDGET)
    assert found.stored_bytes() == bytes_before
    assert torch.equal(found.predict(x), before)
    found.observe(stages()[2], BUDGET)
    assert bool(found.predict(x).isfinite().all())
