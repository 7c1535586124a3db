"""The hypernetwork learner: its regulariser, what it keeps of old tasks, growth, inference, bytes, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.stream import reachable
from probatum.spec import Budget, Optimisation, Stage
from probatum.techniques.stream.dependency_hypernet.dependency_hypernet import (
    DependencyHypernet,
    entropy,
    fitting_chunk,
)
from probatum.techniques.stream.dependency_hypernet.recurrent import RecurrentChunks

BUDGET = Budget(60, 16, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6))


def blobs(number: int, classes: tuple[int, ...], rows: int = 31) -> Stage:
    y = torch.tensor(classes).repeat(rows)
    centres = torch.randn(6, 10, generator=generator(9))
    return Stage(number, classes, centres[y] + 0.3 * torch.randn(len(y), 10, generator=generator(number)), y)


STAGES = [blobs(0, (0, 3)), blobs(1, (1, 4)), blobs(2, (2, 5))]


def learner(**settings: object) -> DependencyHypernet:
    chosen = {"hidden": 16, "task_size": 8, "chunk_size": 8, "chunk": 20, **settings}
    return DependencyHypernet(6, network, generator(1), generator(2), None, Optimisation(5e-3), **chosen)  # type: ignore[arg-type]


def learned(count: int = 3, budget: Budget = BUDGET, **settings: object) -> DependencyHypernet:
    found = learner(**settings)
    for stage in STAGES[:count]:
        found.observe(stage, budget)
    return found


def weights(found: DependencyHypernet, task: int) -> Tensor:
    return found.emitter.chunks(found.emitter.embeddings([task]))[0][0].detach().clone()


def test_regulariser_is_zero_at_the_start_of_a_task() -> None:
    found = learner(lookahead=0.0, beta=0.1, beta_hidden=0.1)
    for stage in STAGES[:2]:
        found.observe(stage, BUDGET)
    values, plain = [], found.held_loss

    def watched(held: tuple[Tensor, Tensor], task_loss: Tensor) -> Tensor:
        value = plain(held, task_loss)
        values.append(value.item())
        return value

    found.held_loss = watched  # type: ignore[method-assign]
    found.observe(STAGES[2], BUDGET)
    assert len(values) == BUDGET.steps
    assert values[0] < 1e-8
    assert max(values) > 1e-4


def test_regulariser_by_hand() -> None:
    found = learned(2, beta=0.5, beta_hidden=2.0)
    emitter = found.emitter
    found.chosen = torch.tensor([0, 1])
    with torch.no_grad():
        made = emitter.chunks(emitter.embeddings([0, 1]))
    held = (made[0] + 0.1, made[1] - torch.tensor([[[0.2]], [[0.4]]]))
    emitter.made = made
    expected = 0.5 * 0.01 * made[0].shape[1] + 2.0 * (0.04 + 0.16) / 2 * made[1][0].numel()
    assert found.held_loss(held, torch.zeros(())).item() == pytest.approx(expected, rel=1e-4)


def test_a_look_ahead_step_is_taken_along_the_tasks_gradient() -> None:
    found = learned(1, lookahead=0.05, beta=1.0)
    emitter = found.emitter
    emitter.add_task(8, generator(3))
    emitter.now, found.chosen = 1, torch.tensor([0])
    emitter.train()
    with torch.no_grad():
        held = emitter.chunks(emitter.embeddings([0]))
    task_loss = F.cross_entropy(emitter(STAGES[1].x)[:, [1, 4]], (STAGES[1].y == 4).long())
    value = found.held_loss(held, task_loss)
    parameters = list(emitter.chunks.parameters())
    slopes = torch.autograd.grad(task_loss, parameters, retain_graph=True)
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter -= 0.05 * slope
        expected = (emitter.chunks(emitter.embeddings([0]))[0] - held[0]).square().sum()
    assert value.item() > 0
    torch.testing.assert_close(value.detach(), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"lookahead": 1e-3}, {"sampled": 1}, {"train_old": True}, {"cell": "mlp"}])
def test_tasks_are_learned_and_held(settings: dict[str, object]) -> None:
    found = learner(beta=0.3, **settings)
    for stage in STAGES:
        found.observe(stage, BUDGET)
        assert float((found.predict(stage.x, stage.number).argmax(1) == stage.y).float().mean()) > 0.95
    first = STAGES[0]
    assert float((found.predict(first.x, 0).argmax(1) == first.y).float().mean()) > 0.95


def test_what_is_not_held_drifts() -> None:
    drift = {}
    for beta in (0.0, 1.0):
        found = learned(1, beta=beta)
        before = weights(found, 0)
        found.observe(STAGES[1], BUDGET)
        drift[beta] = float((weights(found, 0) - before).square().mean())
        assert found.drift(before[None]) == pytest.approx(drift[beta], rel=1e-4, abs=1e-12)
    assert drift[1.0] < 0.05 * drift[0.0]


def test_hidden_states_are_held_likewise() -> None:
    moved = {}
    for beta_hidden in (0.0, 10.0):
        found = learned(1, beta=0.0, beta_hidden=beta_hidden)
        before = found.emitter.chunks.states(found.emitter.embeddings([0])).detach()
        found.observe(STAGES[1], BUDGET)
        after = found.emitter.chunks.states(found.emitter.embeddings([0])).detach()
        moved[beta_hidden] = float((after - before).square().mean())
    assert moved[10.0] < 0.2 * moved[0.0]


def test_embeddings_of_old_tasks_stay_unless_they_are_to_learn() -> None:
    for train_old in (False, True):
        found = learned(1, train_old=train_old)
        before = found.emitter.tasks[0].detach().clone()
        found.observe(STAGES[1], BUDGET)
        assert torch.equal(before, found.emitter.tasks[0]) != train_old


def test_a_task_that_went_badly_is_followed_by_growth_that_changes_no_old_weight() -> None:
    found = learned(1, growth=4, grow_loss=1e-9)
    chunks = found.emitter.chunks
    assert isinstance(chunks, RecurrentChunks)
    assert chunks.sizes == [16]
    before = weights(found, 0)
    chunks.grow(4, found.generator)
    assert torch.equal(weights(found, 0), before)
    found.observe(STAGES[1], BUDGET)
    assert chunks.sizes == [16, 4, 4]
    calm = learned(2, growth=4, grow_loss=1e9, grow_drift=1e9).emitter.chunks
    assert isinstance(calm, RecurrentChunks)
    assert calm.sizes == [16]


def test_statistics_are_each_tasks_own() -> None:
    found = learned(1)
    before = {name: value.clone() for name, value in found.emitter.statistics[0].items()}
    assert float(before["1.num_batches_tracked"]) == BUDGET.steps
    found.observe(STAGES[1], BUDGET)
    assert all(torch.equal(value, before[name]) for name, value in found.emitter.statistics[0].items())
    assert not torch.equal(found.emitter.statistics[1]["1.running_mean"], before["1.running_mean"])


def test_predictions_are_in_evaluation_mode_and_move_no_statistics() -> None:
    found = learned(2)
    found.emitter.train()
    assert found.emitter.target.training
    before = [{name: value.clone() for name, value in one.items()} for one in found.emitter.statistics]
    x = STAGES[0].x
    told = found.predict(x, 0)
    assert not found.emitter.target.training
    torch.testing.assert_close(found.predict(x[:1], 0), told[:1])  # whatever stands beside it
    for now, then in zip(found.emitter.statistics, before, strict=True):
        assert all(torch.equal(value, then[name]) for name, value in now.items())


def test_a_rows_task_is_that_of_the_lowest_entropy() -> None:
    found = learned()
    x = torch.cat([s.x for s in STAGES])
    each = [found.predict(x, number) for number in range(3)]
    uncertain = torch.stack([entropy(one) for one in each])
    output = found.predict(x)
    owner = torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(owner[output.argmax(dim=1)], uncertain.argmin(dim=0))
    for row, task in enumerate(uncertain.argmin(dim=0)[:20].tolist()):
        assert int(output[row].argmax()) == int(each[task][row].argmax())
    assert bool((learned(2).predict(x)[:, [2, 5]] == -math.inf).all())


def test_entropy_is_that_of_torchs_distribution() -> None:
    logits = torch.randn(7, 4, generator=generator())
    torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy())
    logits[:, 1] = -math.inf
    torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=logits[:, [0, 2, 3]]).entropy())


def test_bytes_are_what_is_there_beyond_one_network() -> None:
    found = learned(chunk=10, hidden=24)
    numbers = sum(p.numel() for p in found.emitter.parameters())
    plain = 4 * (10 * 12 + 12 + 24 + 12 * 6 + 6)
    statistics = 4 * 24 + 8
    assert found.stored_bytes() == 4 * numbers + 3 * statistics - plain - statistics
    assert sum(p.numel() for p in found.network.parameters()) == numbers
    assert not [t for t in reachable(found) if t.ndim and len(t) == 62]


def test_the_chunk_follows_from_the_memory() -> None:
    sizes = {chunk: 1000 + 5 * chunk + 20_000 // chunk for chunk in range(1, 2000)}
    assert fitting_chunk(6400, 10**6, sizes.__getitem__) == 400  # 16 chunks
    assert fitting_chunk(6400, 2000, sizes.__getitem__) == 173  # 37 chunks; 36 take 178
    assert fitting_chunk(6400, 10, sizes.__getitem__) == 100

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 6))

    for memory in (0, 20_000):
        found = DependencyHypernet(6, wide, generator(), generator(), memory, hidden=16, task_size=8, chunk_size=8)
        found.observe(STAGES[0], Budget(2, 16, 5))
        assert found.stored_bytes() <= memory


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cell": "gru"}, "cell is 'gru'"),
        ({"inference": "best"}, "inference 'best'"),
        ({"hidden": 0}, "hidden is 0"),
        ({"chunk": -1}, "chunk is -1"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"beta_hidden": -1.0}, "beta_hidden is -1.0"),
        ({"lookahead": math.inf}, "lookahead is inf"),
        ({"sampled": -1}, "sampled is -1"),
        ({"grow_loss": 0.0}, "grow_loss is 0.0"),
        ({"growth": 3, "cell": "mlp"}, "only cell='lstm' grows"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner(**settings)


@pytest.mark.parametrize("cell", ["lstm", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(cell: str, dtype: torch.dtype) -> None:
    own = {"hidden": 16, "task_size": 8, "chunk_size": 8, "chunk": 20, "cell": cell}
    found = DependencyHypernet(
        6, lambda: network().to(dtype), generator(1), generator(2), None, Optimisation(5e-3), **own
    )
    for stage in STAGES[:2]:
        found.observe(Stage(stage.number, stage.classes, stage.x.to(dtype), stage.y), BUDGET)
    held = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in found.emitter.parameters()} == {held}
    for stage in STAGES[:2]:
        told = found.predict(stage.x.to(dtype), np.int64(stage.number))
        assert told.dtype == dtype
        assert float((told.argmax(1) == stage.y).float().mean()) > 0.95
    numbers = sum(p.numel() * p.element_size() for p in found.emitter.parameters())
    size = torch.finfo(dtype).bits // 8
    assert found.stored_bytes() == numbers + 24 * size + 8 - size * (10 * 12 + 12 + 24 + 12 * 6 + 6)


def test_a_task_that_fails_is_forgotten_and_can_be_shown_again() -> None:
    found = learned(1, growth=4, grow_loss=1e-9)
    before = weights(found, 0)
    second = STAGES[1]
    with pytest.raises(FloatingPointError, match="lower the rate"):
        found.observe(Stage(1, second.classes, second.x * math.nan, second.y), BUDGET)
    assert (len(found.emitter.tasks), len(found.emitter.statistics)) == (1, 1)
    assert torch.equal(weights(found, 0), before)
    found.observe(second, BUDGET)
    assert found.emitter.chunks.sizes == [16, 4]  # grown once  # type: ignore[union-attr]
    assert float((found.predict(second.x, 1).argmax(1) == second.y).float().mean()) > 0.95


def test_what_does_not_grow_runs_fused() -> None:
    for growth, grows in ((0, False), (2, True)):
        chunks = learner(growth=growth).emitter.chunks
        assert isinstance(chunks, RecurrentChunks)
        assert chunks.grows == grows


def test_tasks_that_are_not_known() -> None:
    found = learned(1, inference="off")
    with pytest.raises(KeyError, match="inference is off"):
        found.predict(STAGES[0].x)
    with pytest.raises(KeyError, match=r"task 3 is unknown; 1 task\(s\)"):
        found.predict(STAGES[0].x, 3)
    for task in (True, "first", -1):
        with pytest.raises(KeyError, match="is unknown"):
            found.predict(STAGES[0].x, task)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stage 1 names no class"):
        found.observe(Stage(1, (), STAGES[0].x[:0], STAGES[0].y[:0]), BUDGET)
    with pytest.raises(KeyError, match="no task has been seen"):
        learner().predict(STAGES[0].x)
    with pytest.raises(ValueError, match=r"rows of classes \[3\]"):
        learner().observe(Stage(0, (0,), STAGES[0].x, STAGES[0].y), BUDGET)
