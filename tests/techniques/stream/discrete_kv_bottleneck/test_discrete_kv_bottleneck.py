"""The bottleneck: what a step may change, what keys are nearest, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.spec import Budget, Stage
from probatum.techniques.stream.discrete_kv_bottleneck.codebooks import touched
from probatum.techniques.stream.discrete_kv_bottleneck.discrete_kv_bottleneck import (
    Bottleneck,
    KeyValueLearner,
    _drawn,
)

pytestmark = pytest.mark.fast

BUDGET = Budget(60, 16, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(number: int, classes: tuple[int, ...], rows: int = 30) -> Stage:
    y = torch.tensor(classes).repeat(rows)
    centres = torch.randn(6, 10, generator=generator(9)) * 3
    return Stage(number, classes, centres[y] + 0.3 * torch.randn(len(y), 10, generator=generator(number)), y)


def learner(**settings: object) -> KeyValueLearner:
    chosen = {"encoder": nn.Identity(), "codebooks": 6, "pairs": 24, "key_size": 4, **settings}
    return KeyValueLearner(6, nn.Identity, generator(1), generator(2), **chosen)  # type: ignore[arg-type]


def prepared(z: Tensor, **settings: object) -> Bottleneck:
    layer = Bottleneck(z.shape[-1], 3, generator(), codebooks=4, pairs=8, key_size=3, **settings)  # type: ignore[arg-type]
    layer.prepare(z, generator(1))
    return layer


def rows(count: int = 40, size: int = 12) -> Tensor:
    return torch.randn(count, size, generator=generator(3))


def test_output_is_the_mean_of_the_values_of_the_keys_that_a_search_by_hand_finds() -> None:
    z = rows().double()
    layer = prepared(z.float(), temperature=2.0).double()
    with torch.no_grad():
        layer.values.normal_(generator=generator(4))
    expected = torch.zeros(len(z), 3, dtype=torch.float64)
    for c in range(4):
        distance = torch.cdist(z @ layer.projections[c].T, layer.keys[c], compute_mode="donot_use_mm_for_euclid_dist")
        expected += layer.values[c, distance.argmin(dim=1)].detach() / 4 / 2.0
    torch.testing.assert_close(layer(z), expected)


def test_gradients_are_zero_but_for_what_is_fetched_and_right_there() -> None:
    z, y = rows(5), torch.tensor([0, 1, 2, 1, 0])
    layer = prepared(rows())
    F.cross_entropy(layer(z), y).backward()
    used = touched(layer.indices(z), 8)
    gradient = layer.values.grad
    assert gradient is not None
    assert bool((gradient[~used] == 0).all())
    error = torch.softmax(layer(z).detach(), dim=1) - F.one_hot(y, 3)
    expected = torch.zeros_like(gradient)
    for n, chosen in enumerate(layer.indices(z)):
        for c, p in enumerate(chosen):
            expected[c, p] += error[n] / len(z) / 4
    torch.testing.assert_close(gradient, expected)


def test_values_not_fetched_and_keys_keep_their_bytes_through_a_stage() -> None:
    found = learner()
    found.observe(blobs(0, (0, 1)), BUDGET)
    layer = found.bottleneck
    assert layer is not None
    keys, values = layer.keys.clone(), layer.values.detach().clone()
    second = blobs(1, (2, 3))
    found.observe(second, BUDGET)
    used = touched(layer.indices(second.x), layer.pairs)
    assert torch.equal(layer.keys, keys)
    assert torch.equal(layer.values[~used], values[~used])
    assert not torch.equal(layer.values[used], values[used])


def test_predictions_do_not_move_where_indices_do_not_meet() -> None:
    found = learner()
    found.prepare(torch.cat([blobs(number, (number,)).x for number in range(6)]))
    found.observe(blobs(0, (0, 1)), BUDGET)
    layer = found.bottleneck
    assert layer is not None
    second = blobs(1, (4, 5))
    old = blobs(0, (0, 1)).x
    met = touched(layer.indices(second.x), layer.pairs)
    free = ~met[torch.arange(6), layer.indices(old)].any(dim=1)
    assert bool(free.any())
    before = layer(old[free]).detach()
    found.observe(second, BUDGET)
    assert torch.equal(layer(old[free]), before)


def test_it_remembers_stages_where_a_linear_head_forgets() -> None:
    stages = [blobs(0, (0, 3)), blobs(1, (1, 4)), blobs(2, (2, 5))]
    found = learner()
    found.prepare(torch.cat([s.x for s in stages]))
    for stage in stages:
        found.observe(stage, BUDGET)
    x, y = torch.cat([s.x for s in stages]), torch.cat([s.y for s in stages])
    assert float((found.predict(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize(
    "settings", [{"pooling": "before"}, {"projection": "slice", "codebooks": 2}, {"start": "gaussian"}]
)
def test_tokens_and_other_ways(settings: dict[str, object]) -> None:
    stage = blobs(0, (0, 1))
    tokens = torch.stack([stage.x, stage.x + 0.01], dim=1)
    found = learner(**settings)
    found.observe(Stage(0, (0, 1), tokens, stage.y), BUDGET)
    assert float((found.predict(tokens).argmax(1) == stage.y).float().mean()) > 0.9


def test_pooling_after_is_the_mean_over_tokens() -> None:
    z = rows()
    layer = prepared(z)
    with torch.no_grad():
        layer.values.normal_(generator=generator(4))
    pair = torch.stack([z[:10], z[10:20]], dim=1)
    torch.testing.assert_close(layer(pair), (layer(z[:10]) + layer(z[10:20])) / 2)


def test_slices_are_of_different_features() -> None:
    layer = Bottleneck(12, 3, generator(), codebooks=4, pairs=8, key_size=3, projection="slice")
    z = rows(2)
    assert torch.equal(layer.project(z).flatten(1), z)


def test_keys_that_move_move() -> None:
    found = learner(frozen_keys=False)
    found.observe(blobs(0, (0, 1)), BUDGET)
    keys = found.bottleneck.keys.clone()  # type: ignore[union-attr]
    found.observe(blobs(1, (2, 3)), BUDGET)
    assert not torch.equal(found.bottleneck.keys, keys)  # type: ignore[union-attr]


def test_state_of_the_bottleneck_is_whole() -> None:
    layer = prepared(rows())
    other = Bottleneck(12, 3, generator(7), codebooks=4, pairs=8, key_size=3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.indices(rows()), layer.indices(rows()))


def test_an_encoder_that_learns_is_frozen_after_the_first_stage() -> None:
    def network() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 6))

    found = KeyValueLearner(6, network, generator(1), generator(2), 20_000, codebooks=8)
    assert found.needs_stages
    found.observe(blobs(0, (0, 1)), BUDGET)
    assert found.bottleneck is not None
    assert found.bottleneck.pairs == (20_000 - 2 * 16 * 4) // (8 * 14 * 4)
    before = [p.clone() for p in found.encoder.network.parameters()]
    found.observe(blobs(1, (2, 3)), BUDGET)
    assert all(torch.equal(a, b) for a, b in zip(before, found.encoder.network.parameters(), strict=True))
    assert found.passes == pytest.approx(48 * 15 + 2 * 60 / 3)
    assert 8 * 44 * 14 * 4 < found.stored_bytes() <= 20_000


@pytest.mark.parametrize("pooling", ["after", "before"])
def test_steps_on_the_values_by_hand(pooling: str) -> None:
    found = learner(rate=0.7, temperature=2.0, pooling=pooling)
    found.observe(blobs(0, (0, 1)), Budget(1, 16, 5))
    layer = found.bottleneck
    assert layer is not None
    with torch.no_grad():
        layer.values.normal_(generator=generator(4))
    found.seen[3] = True  # classes 0, 1 and 3 compete
    z, y = torch.randn(4, 2, 10, generator=generator(5)), torch.tensor([0, 3, 1, 3])
    values = layer.values.detach().clone()
    found.train_values(found._features(z), y, Budget(2, 4, 1))
    pooled = z.mean(dim=1, keepdim=True) if pooling == "before" else z
    where = torch.stack([layer.indices(row) for row in pooled])  # (n, tokens, codebooks)
    for _ in range(2):
        logits = torch.zeros(4, 6)
        for n in range(4):
            for t in range(where.shape[1]):
                for c in range(6):
                    logits[n] += values[c, where[n, t, c]] / (6 * where.shape[1] * 2.0)
        logits[:, [2, 4, 5]] = -float("inf")
        error = (logits.softmax(dim=1) - F.one_hot(y, 6)) / 4
        moved = values.clone()
        for n in range(4):
            for t in range(where.shape[1]):
                for c in range(6):
                    moved[c, where[n, t, c]] -= 0.7 * error[n] / (6 * where.shape[1] * 2.0)
        values = moved
    torch.testing.assert_close(layer.values.detach(), values, rtol=1e-4, atol=1e-5)
    assert layer.values.grad is None
    torch.testing.assert_close(found.predict(z)[:, [0, 1, 3]], layer(found._features(z))[:, [0, 1, 3]].detach())


def test_keys_are_rows_or_draws_like_them_before_they_move() -> None:
    z = 3 + 2 * rows(200)
    layer = Bottleneck(12, 3, generator(), codebooks=4, pairs=16, key_size=3)
    layer.prepare(z, generator(1), rounds=0)
    own = layer.project(z)
    gaps = torch.cdist(layer.keys.double(), own.double().transpose(0, 1)).amin(dim=2)
    assert float(gaps.max()) < 1e-6
    assert all(len(torch.unique(book, dim=0)) == 16 for book in layer.keys)  # no row is drawn twice
    more = Bottleneck(12, 3, generator(), codebooks=4, pairs=450, key_size=3)
    more.prepare(z, generator(1), rounds=0)
    gaps = torch.cdist(more.keys, own.transpose(0, 1)).amin(dim=2)
    near = torch.cdist(more.keys, own.transpose(0, 1)).argmin(dim=2)
    moved = more.keys - own[near, torch.arange(4)[:, None]]
    aside = (moved / own.std(dim=0, correction=0)[:, None]).std(dim=1)
    torch.testing.assert_close(aside, torch.full((4, 3), 0.01), rtol=0.12, atol=0)  # a hundredth of the rows' deviation
    assert 0 < float(gaps.mean()) < 0.2
    assert all(len(torch.unique(book, dim=0)) == 450 for book in more.keys)
    normal = Bottleneck(12, 3, generator(), codebooks=4, pairs=4000, key_size=3)
    normal.prepare(z, generator(1), start="gaussian", rounds=0)
    torch.testing.assert_close(normal.keys.mean(dim=1), own.mean(dim=0), atol=0.3, rtol=0.05)
    torch.testing.assert_close(normal.keys.std(dim=1), own.std(dim=0, correction=0), atol=0, rtol=0.06)
    again = normal.keys.clone()
    normal.prepare(z, generator(2), rounds=0)  # keys there are moved, not drawn anew
    assert torch.equal(normal.keys, again)


def test_as_many_permutations_are_drawn_as_are_needed() -> None:
    for count, turns in ((4, 1), (10, 1), (11, 2), (25, 3)):
        draws, plain = generator(), generator()
        found = _drawn(10, count, draws)
        each = torch.cat([torch.randperm(10, generator=plain) for _ in range(turns)])
        assert torch.equal(found, each[:count])
        assert torch.equal(draws.get_state(), plain.get_state())


def test_the_smallest_bottleneck_there_is() -> None:
    layer = Bottleneck(3, 2, generator(), codebooks=1, pairs=2, key_size=1)
    layer.prepare(rows(9, 3), generator(1))
    assert layer(rows(9, 3)).shape == (9, 2)


def test_random_projections_keep_lengths_on_average() -> None:
    layer = Bottleneck(40, 3, generator(), codebooks=300, pairs=2, key_size=5)
    z = torch.randn(1, 40, generator=generator(2))
    assert float(layer.project(z).square().sum(dim=2).mean() / z.square().sum()) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    def network() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 6)).to(dtype)

    found = KeyValueLearner(6, network, generator(1), generator(2), 20_000, codebooks=8)
    for number, classes in enumerate([(0, 1), (2, 3)]):
        stage = blobs(number, classes)
        found.observe(Stage(number, classes, stage.x.to(dtype), stage.y), BUDGET)
        assert float((found.predict(stage.x.to(dtype), number).argmax(1) == stage.y).float().mean()) > 0.9
    wide = torch.float64 if dtype == torch.float64 else torch.float32  # features of half precision are widened
    assert found.predict(stage.x.to(dtype)).dtype == wide
    size = 8 if dtype == torch.float64 else 4
    assert found.bottleneck is not None
    assert found.bottleneck.pairs == (20_000 - 2 * 16 * size) // (8 * 14 * size)
    assert 15_000 < found.stored_bytes() <= 20_000


def test_no_rows_give_no_outputs() -> None:
    layer = prepared(rows())
    assert layer(rows()[:0]).shape == (0, 3)
    assert layer(torch.zeros(0, 5, 12)).shape == (0, 3)
    torch.testing.assert_close(layer(rows()[:1]), layer(rows())[:1])


def test_values_need_keys_and_keys_need_a_frozen_encoder() -> None:
    layer = Bottleneck(12, 3, generator())
    with pytest.raises(RuntimeError, match=r"call prepare\(features, generator\) first"):
        layer(rows())
    with pytest.raises(RuntimeError, match="keys are not prepared"):
        learner().train_values(rows(), torch.zeros(40, dtype=torch.int64), BUDGET)
    with pytest.raises(ValueError, match="carry gradients; freeze the encoder"):
        prepared(rows())(rows().requires_grad_())
    with pytest.raises(ValueError, match=r"call encoder.requires_grad_\(False\)"):
        learner(encoder=nn.Linear(10, 4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"codebooks": 0}, "codebooks is 0"),
        ({"pairs": 1}, "pairs is 1"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"dead": -1.0}, "dead is -1.0"),
        ({"rounds": -1}, "rounds is -1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"projection": "pca"}, "projection is 'pca'"),
        ({"start": "zero"}, "start is 'zero'"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"encoder": "second"}, "encoder is 'second'"),
        ({"pairs": None, "memory": 300}, "memory is 300 bytes, and 6 codebooks take 240 for every pair"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner(**settings)


def test_bad_stages() -> None:
    stage = blobs(0, (0, 1))
    with pytest.raises(ValueError, match=r"rows of classes \[1\], which it does not name"):
        learner().observe(Stage(0, (0,), stage.x, stage.y), BUDGET)
    with pytest.raises(ValueError, match="has 0 rows"):
        learner().observe(Stage(0, (0,), stage.x[:0], stage.y[:0]), BUDGET)
    with pytest.raises(RuntimeError, match="observe a stage first"):
        learner().predict(stage.x)
    with pytest.raises(ValueError, match="need 24 features, and there are 10"):
        learner(projection="slice").prepare(stage.x)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_stage_that_fails_leaves_what_was_learned_and_can_be_shown_again(
    frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(40, 6, generator=generator())
    y = torch.arange(40) % 2
    found = KeyValueLearner(
        4, nn.Identity, generator(), generator(1), encoder=nn.Identity(), codebooks=4, pairs=8, frozen_keys=frozen
    )
    found.observe(Stage(0, (0, 1), x, y), Budget(10, 8, 5))
    before = found.predict(x)
    plain = found.bottleneck.fetch  # type: ignore[union-attr]
    calls: list[int] = []

    def breaks(indices: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(indices)

    with monkeypatch.context() as patch:
        patch.setattr(found.bottleneck, "fetch", breaks)
        with pytest.raises(KeyboardInterrupt):
            found.observe(Stage(1, (2, 3), x + 1, y + 2), Budget(10, 8, 5))
    assert found.stages == [(0, 1)]
    assert torch.equal(found.predict(x), before)
    found.observe(Stage(1, (2, 3), x + 1, y + 2), Budget(10, 8, 5))
    assert found.stages == [(0, 1), (2, 3)]
