"""The learners of class-incremental: what each method's paper fixes exactly, the budget of bytes, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.continual.stages import module_bytes
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
