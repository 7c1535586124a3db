"""Cyclical curriculum: sizes by hand, the draw against enumeration, equal visits, and the neutral point."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.recipe import Training
from probatum.techniques.method.cyclical_curriculum import (
    CyclicalCurriculum,
    cycle_sizes,
    draw,
    log_weights,
    score,
)
from small_networks import Begins

pytestmark = pytest.mark.fast

SHORT = Training(epochs=4, batch_size=64)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sizes_by_hand() -> None:
    by_hand = [0.25, 0.5, 1, 0.5, 0.25, 0.5, 1, 0.5, 0.25, 0.5, 1, 0.5, 0.25, 0.5, 1, 0.5, 0.25]
    sizes = cycle_sizes(0.25, 1.0, 0.5, 10)
    assert sizes == [*by_hand, 0.5, 1.0]
    assert 10 <= sum(sizes) < 10 + 1.0
    assert cycle_sizes(0.3, 0.9, 0.5, 3.5) == pytest.approx([0.3, 0.6, 0.9, 0.45, 0.3, 0.6, 0.9])
    assert cycle_sizes(1.0, 1.0, 0.5, 3) == [1.0, 1.0, 1.0]


def test_epochs_follow_the_sizes_without_duplicates() -> None:
    curriculum = CyclicalCurriculum(scores=torch.rand(80, generator=stream()), generator=stream(1))
    for size in cycle_sizes(0.25, 1.0, 0.5, 6):
        rows = curriculum.epoch(torch.randperm(80, generator=stream(2)))
        assert len(rows) == int(size * 80)
        assert len(rows.unique()) == len(rows)


def test_equal_weights_include_every_row_equally_often() -> None:
    rounds, n, size = 4000, 20, 5
    generator, counts = stream(), torch.zeros(20)
    for _ in range(rounds):
        counts += draw(torch.zeros(n), size, generator)
    sigma = math.sqrt(0.25 * 0.75 / rounds)
    assert float((counts / rounds - size / n).abs().max()) < 3.5 * sigma  # 3 sigma each, with room for 20 rows


def test_draw_follows_the_law_of_successive_sampling() -> None:
    q = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    expected = torch.zeros(4, dtype=torch.float64)
    for first, second in itertools.permutations(range(4), 2):
        chance = q[first] * q[second] / (1 - q[first])
        expected[first] += chance
        expected[second] += chance
    generator, counts = stream(3), torch.zeros(4)
    for _ in range(6000):
        counts += draw(q.log() + 5, 2, generator)
    torch.testing.assert_close(counts.double() / 6000, expected, atol=3.5 * 0.5 / math.sqrt(6000), rtol=0)


def test_weights() -> None:
    losses = torch.tensor([0.0, 0.5, 2.0])
    torch.testing.assert_close(log_weights(losses, "easy").exp(), torch.tensor([2.0, 2.0, 0.5]))  # 0 -> 0.5
    torch.testing.assert_close(log_weights(losses, "hard").exp(), torch.tensor([0.5, 0.5, 2.0]))
    torch.testing.assert_close(log_weights(losses, "exponential", 2.0), -2 * losses)
    assert not log_weights(losses, "random").any()
    assert not log_weights(torch.zeros(3), "easy").any()


def test_easy_rows_come_more_often() -> None:
    losses = torch.linspace(0.01, 3.0, 100)
    seen = {}
    for prefer in ("easy", "hard"):
        generator = stream(4)
        seen[prefer] = sum(losses[draw(log_weights(losses, prefer), 25, generator)].mean() for _ in range(50)) / 50
    assert seen["easy"] < 1.0 < 1.6 < seen["hard"]


def test_neutral_is_the_baseline_bit_for_bit() -> None:
    data = open_dataset("breast-cancer").prepare(7)
    base = fit(None, data, 7, training=SHORT)
    ours = fit("cyclical-curriculum(start=1.0)", data, 7, training=SHORT)
    assert ours.extra_passes == 0
    assert all(torch.equal(a, b) for a, b in zip(base.model.parameters(), ours.model.parameters(), strict=True))
    order = torch.randperm(10, generator=stream())
    assert CyclicalCurriculum(start=1.0).epoch(order) is order


@pytest.mark.parametrize(
    "settings", ["scorer_steps=3", "self_paced=True", "prefer='random'", "pace='rise', warm=0.5, scorer_steps=3"]
)
@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_trains_on_the_bench(settings: str, name: str) -> None:
    data = open_dataset(name).prepare(3)
    base = fit(None, data, 3, training=SHORT)
    ours = fit(f"cyclical-curriculum({settings})", data, 3, training=SHORT)
    assert ours.step == base.step == ours.budget.steps  # equal updates
    assert ours.epoch > base.epoch
    assert any(not torch.equal(a, b) for a, b in zip(base.model.parameters(), ours.model.parameters(), strict=True))
    if "scorer_steps" in settings:
        assert ours.extra_passes == pytest.approx(3 * base.budget.batch_size + len(data.train) / 3)
    if "random" in settings:
        assert ours.extra_passes == 0


def test_scorer_leaves_the_global_stream_and_its_scores_tell_easy_from_hard() -> None:
    generator = stream(5)
    x = torch.randn(200, 2, generator=generator)
    y = (x[:, 0] > 0).long()
    y[:10] = 1 - y[:10]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    before = torch.get_rng_state()
    losses = score(fit_network(net, x, y, 60, 32, 1e-2, generator), x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[:10].mean() > 5 * losses[10:].mean()


def test_resume() -> None:
    losses = torch.rand(40, generator=stream())
    first = CyclicalCurriculum(scores=losses, generator=stream(1))
    for _ in range(3):
        first.epoch(torch.arange(40))
    second = CyclicalCurriculum(generator=stream(9))
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert torch.equal(first.epoch(torch.arange(40)), second.epoch(torch.arange(40)))


def test_rising_pace() -> None:
    curriculum = CyclicalCurriculum(scores=torch.rand(100), pace="rise")
    assert [len(curriculum.epoch(torch.arange(100), p)) for p in (0.0, 0.2, 1.0)] == [25, 40, 100]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.0}, "start is 0.0"),
        ({"start": 0.5, "end": 0.4}, r"end is 0.4; it must lie in \[start, 1\]"),
        ({"multiplier": 1.0}, "multiplier is 1.0"),
        ({"multiplier": 0.0}, "multiplier is 0.0"),
        ({"warm": 1.0}, "warm is 1.0"),
        ({"prefer": "soft"}, "prefer is 'soft'"),
        ({"scorer_steps": 0}, "scorer_steps is 0"),
        ({"scores": torch.tensor([1.0, -2.0])}, r"score of row 1 is -2\.0"),
        ({"scores": torch.ones(3, 1)}, r"scores are \(3, 1\)"),
        ({"scores": torch.tensor([float("nan")])}, "score of row 0 is nan"),
    ],
)
def test_misuse(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CyclicalCurriculum(**settings)


def test_wrong_number_of_scores() -> None:
    with pytest.raises(ValueError, match="3 scores for 5 rows"):
        CyclicalCurriculum(scores=torch.rand(3)).epoch(torch.arange(5))
    with pytest.raises(InputError, match="multiplier is 2"):
        fit("cyclical-curriculum(multiplier=2)", open_dataset("wine").prepare(1), 1, training=SHORT)


class Running:
    """What a run on the bench is to the method, without a loop."""

    def __init__(self, steps: int = 20) -> None:
        self.step, self.extra_passes, self.model = 0, 0.0, nn.Linear(2, 2)
        self.budget = type("Budget", (), {"steps": steps, "batch_size": 7})
        x = torch.randn(40, 2, generator=stream(1))
        self.train = type("Part", (), {"x": x, "y": (x[:, 0] > 0).long()})


@pytest.mark.parametrize(("pace", "sizes"), [("cycle", [40, 40, 12, 20, 33]), ("rise", [40, 40, 12, 20, 28])])
def test_the_curriculum_begins_after_the_warm_share(pace: str, sizes: list[int]) -> None:
    run, order = Running(), torch.randperm(40, generator=stream())
    losses = torch.rand(40, generator=stream(2)) + 0.1
    curriculum = CyclicalCurriculum(0.3, multiplier=0.6, pace=pace, warm=0.2, scores=losses, end=0.94)
    found = []
    for step in (0, 3, 4, 9, 14):  # of 20; warm below 4
        run.step = step
        rows = curriculum.order(run, order)
        found.append(len(rows))
        place = [order.tolist().index(row) for row in rows.tolist()]
        assert place == sorted(place)  # in the loop's own order
    assert found == sizes
    assert run.extra_passes == 0


def test_self_paced_scores_are_the_models_and_are_charged() -> None:
    run, order = Running(), torch.randperm(40, generator=stream())
    run.model.train()
    curriculum = CyclicalCurriculum(0.25, prefer="hard", self_paced=True, warm=0.1, generator=stream(4))
    curriculum.prepare(run)
    assert curriculum.log_q is None
    curriculum.order(run, order)
    assert (curriculum.log_q, run.extra_passes) == (None, 0.0)
    run.step = 2
    rows = curriculum.order(run, order)
    losses = nn.functional.cross_entropy(run.model(run.train.x), run.train.y, reduction="none").detach()
    torch.testing.assert_close(curriculum.log_q, losses.log())
    member = draw(losses.log(), 10, stream(4))
    assert rows.tolist() == [row for row in order.tolist() if member[row]]
    assert run.extra_passes == pytest.approx(40 / 3)
    assert run.model.training


def test_scores_of_a_reference_model_are_charged() -> None:
    run = Running()
    made = []

    def factory() -> nn.Module:
        torch.manual_seed(3)
        made.append(nn.Linear(2, 2))
        return made[-1]

    curriculum = CyclicalCurriculum(prefer="exponential", rate=2.5, scorer_steps=3, model_factory=factory)
    curriculum.prepare(run)
    losses = nn.functional.cross_entropy(made[0](run.train.x), run.train.y, reduction="none").detach()
    torch.testing.assert_close(curriculum.log_q, -2.5 * losses)
    assert run.extra_passes == pytest.approx(3 * 7 + 40 / 3)
    whole = CyclicalCurriculum(model_factory=factory)
    run.extra_passes = 0.0
    whole.prepare(run)
    assert run.extra_passes == pytest.approx(20 * 7 + 40 / 3)  # as many updates as the training takes
    with pytest.raises(ValueError, match="model_factory is None"):
        CyclicalCurriculum().prepare(run)


def test_rows_stay_where_the_model_begins_in_place() -> None:
    x, y = torch.zeros(6, 3), torch.arange(6) % 2
    score(nn.Sequential(Begins(), nn.Linear(3, 2)), x, y)
    assert not bool(x.any())


def test_scores_of_rows_and_networks_in_half_precision() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 2), torch.randn(6, 3), torch.arange(6) % 2
    wanted = score(net, x.bfloat16().float(), y)
    torch.testing.assert_close(score(net, x.bfloat16(), y), wanted)
    found = score(copy.deepcopy(net).bfloat16(), x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02)
