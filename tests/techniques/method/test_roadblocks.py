"""Roadblocks: what they change and leave, neutral settings, importance against closed forms, resume, misuse."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import alone
from probatum.spec import Batch, Budget, Data, Part, Spec
from probatum.techniques.method import roadblocks
from probatum.techniques.method.roadblocks import (
    Roadblocks,
    Units,
    effective_rank,
    importance,
    learnable,
    replaced,
    signed_steps,
    top_units,
)
from probatum.train.assemble import assemble
from probatum.train.loop import outputs, train
from probatum.train.rng import generator_for, seeded
from probatum.train.run import Run

SHORT = Training(steps=40, batch_size=32)
TABLE = Spec("table", "classes", (12,), 3, numeric=12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(seed: int, shifted: bool = False, rows: int = 600) -> Part:
    """Twelve columns: two tell the class well, eight weakly, two nothing."""
    g = generator(seed)
    y = torch.randint(3, (rows,), generator=g)
    x = torch.randn(rows, 12, generator=g)
    x[:, 2:10] += 0.9 * torch.nn.functional.one_hot(y, 3).repeat(1, 3)[:, :8]
    code = torch.randint(3, (rows,), generator=g) if shifted else y
    x[:, :2] = 4 * torch.stack([(code == 0), (code == 1)], dim=1).float()
    return Part(x, y, torch.arange(rows))


@pytest.mark.parametrize("settings", ["share=0.0", "kind='sign', eps=0.0", "kind='random', share=0.0"])
def test_neutral_settings_are_plain_training(settings: str) -> None:
    data = open_dataset("iris").prepare(1)
    plain, blocked = fit(None, data, 1, training=SHORT), fit(f"roadblocks({settings})", data, 1, training=SHORT)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, blocked.model.state_dict()[name]), name
    assert blocked.extra_passes == 0


@pytest.mark.parametrize("name", ["digits", "cbf", "breast-cancer"])
@pytest.mark.parametrize("kind", ["swap", "zero", "random", "sample", "sign"])
def test_only_the_units_change_and_come_from_others(name: str, kind: str) -> None:
    data = open_dataset(name).prepare(0)
    x, y = data.train.x[:60], data.train.y[:60]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), data.spec.outputs))
    before = copy.deepcopy(net.state_dict())
    blocks = Roadblocks(kind=kind, share=0.2, eps=0.05, generator=generator())
    blocks.build(net, x, y, data.spec)
    kept, labels = x.clone(), y.clone()
    out = blocks.block(x, y, data.train.x)
    assert torch.equal(x, kept)
    assert torch.equal(y, labels)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    units = Units(data.spec)
    if kind == "sign":
        assert float((out - x).abs().max()) <= 0.05 + 1e-6
        assert float((out - x).abs().max()) > 0
        return
    most = min(units.count - 1, max(1, round(0.2 * units.count)))
    touched = units.total((out != x).double()) > 0
    assert int(touched.sum(dim=1).max()) <= most
    if kind != "sample":
        assert int(touched.any(dim=0).sum()) <= most
    if kind == "zero":
        assert bool((out[out != x] == 0).all())
    else:  # what comes in stands at the same place of some training row
        row, *place = (out != x).nonzero()[0].tolist()
        where = (slice(None), *place)
        assert float(out[(row, *place)]) in data.train.x[where].tolist()


def test_importance_of_a_linear_model_is_its_contributions() -> None:
    part = planted(0)
    net = nn.Linear(12, 3)
    found = importance(net, part.x, part.y, Units(TABLE), TABLE, generator())
    weights = net.weight.detach()[part.y]
    torch.testing.assert_close(found, ((part.x - part.x.mean(dim=0)) * weights).abs())
    assert top_units(found, 4).sum(dim=1).eq(4).all()


def test_category_columns_are_measured_by_swaps() -> None:
    spec = Spec("table", "classes", (3,), 2, numeric=1, cardinalities=(3, 3))
    g = generator()
    x = torch.cat([torch.randn(300, 1, generator=g), torch.randint(3, (300, 2), generator=g).float()], dim=1)

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = 0.1 * x[:, 0] + 5 * (x[:, 1].long() == 1)
            return torch.stack([-score, score], dim=1)

    found = importance(Net(), x, (x[:, 1] == 1).long(), Units(spec), spec, g).mean(dim=0)
    assert int(found.argmax()) == 1
    assert float(found[2]) == 0.0


def test_signed_steps_raise_the_loss_within_bounds() -> None:
    part, net = planted(0), nn.Linear(12, 3)
    moved = signed_steps(net, part.x, part.y, 0.2)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert float(loss(net(moved), part.y)) > float(loss(net(part.x), part.y))
    assert float((moved - part.x).abs().max()) <= 0.2 + 1e-6
    assert torch.equal(signed_steps(net, part.x, part.y, 0.0), part.x)


def test_what_nothing_can_be_learnt_from_is_told() -> None:
    part = planted(0)
    assert learnable(part.x[:, 2:10], part.y, 3)
    assert not learnable(torch.randn(600, 8, generator=generator(3)), part.y, 3)


def test_a_bound_that_an_entry_begins_outside_of_does_not_move_it_there() -> None:
    part, net = planted(0), nn.Linear(12, 3)
    x = 3 * part.x  # far outside [0, 1], as standardised images are
    moved = signed_steps(net, x, part.y, 0.1, low=0.0, high=1.0)
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6
    assert bool((moved >= x.clamp(max=0.0)).all())
    assert bool((moved <= x.clamp(min=1.0)).all())
    assert not torch.equal(moved, x)
    image = Spec("image", "classes", (1, 3, 4), 3)
    blocks = Roadblocks(kind="sign", eps=0.1, generator=generator())
    flat = nn.Sequential(nn.Flatten(), net)
    blocks.build(flat, x.view(-1, 1, 3, 4), part.y, image)
    found = blocks.block(x.view(-1, 1, 3, 4), part.y, x.view(-1, 1, 3, 4)).view(-1, 12)
    torch.testing.assert_close(found, moved)


@pytest.mark.parametrize(("eps", "steps"), [(0.3, 1), (0.3, 2), (0.2, 3)])
def test_signed_steps_by_hand(eps: float, steps: int) -> None:
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [-1.0, 2.0, 0.0]]))
    x, y = torch.tensor([[0.5, 0.5, 0.5], [0.9, 0.05, 0.5]]), torch.tensor([0, 1])
    away = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])  # of the class: down its weights
    expected = (x + away * min(eps, 1.5 * eps)).clamp(0, 1)
    torch.testing.assert_close(signed_steps(net, x, y, eps, steps, 0.0, 1.0), expected)
    torch.testing.assert_close(signed_steps(net, x, y, eps, steps), x + away * eps)


def test_signed_steps_turn_round_where_the_loss_does() -> None:
    class Hill(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([-((x - 0.13) ** 2), torch.zeros_like(x)], dim=1)

    found = signed_steps(Hill(), torch.zeros(1, 1), torch.tensor([1]), 0.2, 3)  # 0, 0.1, 0.2, back to 0.1
    assert float(found) == pytest.approx(0.1)


def test_per_row_roadblocks_block_what_each_row_is_recognised_by() -> None:
    g = generator(3)
    x = torch.rand(40, 12, generator=g)
    y = torch.zeros(40, dtype=torch.int64)
    net = nn.Linear(12, 3)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3).repeat(1, 4))
        net.weight[0] = 1.0
    blocks = Roadblocks(share=0.25, kind="sample", generator=generator(5))
    blocks.build(net, x, y, TABLE)
    out = blocks.block(x, y, torch.rand(40, 12, generator=g) + 5)
    far = (x - x.mean(dim=0)).abs().topk(3, dim=1).indices
    assert torch.equal((out != x).nonzero()[:, 1].view(40, 3).sort(dim=1).values, far.sort(dim=1).values)


def test_mixed_labels_count_as_the_class_of_the_largest_share() -> None:
    x, y, net = torch.rand(40, 12, generator=generator(3)), torch.arange(40) % 3, nn.Linear(12, 3)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3).repeat(1, 4))  # every class by four columns of its own
    blocks = Roadblocks(share=0.34, kind="sample", generator=generator(5))
    blocks.build(net, x, y, TABLE)
    out = blocks.block(x, 0.6 * torch.nn.functional.one_hot(y, 3) + 0.1, x + 5)
    assert torch.equal((out != x).nonzero()[:, 1] % 3, y.repeat_interleave(4))


def test_signed_steps_leave_codes_and_masks_as_they_are() -> None:
    series = Spec("series", "classes", (3, 8), 2, masked=True)
    x = torch.randn(20, 3, 8, generator=generator())
    x[:, 2] = 1.0
    x[:10, 2, 5:] = 0.0
    x[:, :2] *= x[:, 2:]
    y, net = torch.arange(20) % 2, nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    blocks = Roadblocks(kind="sign", eps=0.1, generator=generator())
    blocks.build(net, x, y, series)
    out = blocks.block(x, y, x)
    assert torch.equal(out[:, 2], x[:, 2])
    assert not out[:10, :2, 5:].any()
    assert float((out - x)[:, :2, :5].abs().min()) > 0
    table = Spec("table", "classes", (3,), 2, numeric=2, cardinalities=(4,))
    rows = torch.cat([torch.randn(20, 2, generator=generator()), torch.randint(4, (20, 1)).float()], dim=1)
    blocks = Roadblocks(kind="sign", eps=0.1, generator=generator())
    blocks.build(nn.Linear(3, 2), rows, y, table)
    moved = blocks.block(rows, y, rows)
    assert torch.equal(moved[:, 2], rows[:, 2])
    assert bool((moved[:, :2] != rows[:, :2]).all())


@pytest.mark.parametrize("columns", [20, 90, 9000])
def test_what_is_left_to_learn_is_judged_by_sklearns_ridge(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = generator(columns)
    x, y = torch.randn(120, columns, generator=g), torch.randint(3, (120,), generator=g)
    x[:, 3] = 7.0  # constant
    answers = []
    for strength in (0.0, 0.1, 0.4, 2.0):
        z = x.clone()
        z[:, 5:] += strength * torch.nn.functional.one_hot(y, 3)[:, torch.arange(columns - 5) % 3]
        s = ((z - z.mean(dim=0)) / z.std(dim=0).clamp_min(1e-6)).double()
        s = torch.cat([s, torch.ones(120, 1)], dim=1).numpy()
        ridge = Ridge(alpha=60 * 0.1, fit_intercept=False).fit(s[::2], torch.nn.functional.one_hot(y[::2], 3).numpy())
        right = (ridge.predict(s[1::2]).argmax(axis=1) == y[1::2].numpy()).mean()
        chance = float(y[1::2].bincount().max()) / 60
        edge = (right - chance) / (chance * (1 - chance) / 60) ** 0.5
        for mass in (edge - 0.01, edge + 0.01):
            monkeypatch.setattr(roadblocks, "MASS", mass)
            assert learnable(z, y, 3) is (mass < edge)
        answers.append(bool(edge > 4))
    assert answers[0] is False
    assert answers[-1] is True


def test_effective_rank_of_known_spectra() -> None:
    basis = torch.linalg.qr(torch.randn(50, 4, generator=generator()))[0]
    even = basis - basis.mean(dim=0)
    q = torch.linalg.qr(even)[0]
    assert effective_rank(q) == pytest.approx(4.0, abs=0.3)
    assert effective_rank(torch.randn(50, 1, generator=generator()) @ torch.ones(1, 6)) == pytest.approx(1.0, abs=1e-6)


def test_units_of_images_are_square_patches() -> None:
    spec = Spec("image", "classes", (3, 6, 5), 2)
    units = Units(spec, patch=2)
    assert units.count == 9
    mask = units.mask(torch.arange(9)[None] == 4, torch.Size((1, 3, 6, 5)))
    assert int(mask.sum()) == 3 * 4
    assert bool(mask[0, :, 2:4, 2:4].all())
    assert torch.equal(replaced(torch.zeros(1, 3, 6, 5), torch.ones(1, 3, 6, 5), mask), mask.float())


def shortcut_data(seed: int) -> Data:
    return Data(TABLE, planted(seed), planted(seed + 1), planted(seed + 2, shifted=True))


def test_a_planted_shortcut_is_blocked_and_left() -> None:
    data = shortcut_data(10)
    training = Training(steps=400, batch_size=64, lr=5e-3, select="last")
    plain = fit(None, data, 1, training=training).model
    blocked = fit("roadblocks(share=0.2, rounds=1)", data, 1, training=training)
    scores = [float(outputs(m, data.test.x).argmax(1).eq(data.test.y).float().mean()) for m in (plain, blocked.model)]
    assert scores[1] > scores[0] + 0.1


def test_what_is_reported_and_charged() -> None:
    data = shortcut_data(10)
    parts = assemble(
        alone(make_arm("roadblocks(share=0.2, rounds=2)", Recipe(training=replace(SHORT, steps=120))).recipe, data, 1)
    )
    with seeded(1, "training"):
        train(parts.run, parts.methods, generator_for(1, "order"))
    told = parts.methods[0].report()
    assert told["roadblock 1: accepted"] == 1.0
    assert told["roadblock 1: accuracy lost"] > 0.1
    assert "roadblock 2: accuracy lost" in told
    assert told["effective rank of features"] > 1
    assert parts.run.extra_passes >= 2 * len(data.train)
    assert not parts.run.keep_best


def relies_on_two() -> nn.Linear:
    net = nn.Linear(12, 3)
    with torch.no_grad():
        net.weight.mul_(0.01)
        net.weight[:, :2] = 5 * torch.tensor([[1.0, -1], [-1, 1], [-1, -1]])
    return net


def lost(net: nn.Module, part: Part) -> float:
    """What the network loses where the first two columns come from random rows: chance is one third."""
    with torch.no_grad():
        return float(net(part.x).argmax(dim=1).eq(part.y).double().mean()) - 1 / 3


def test_a_roadblock_is_accepted_if_the_network_loses_by_it_and_something_is_left() -> None:
    part, net = planted(3), relies_on_two()
    assert lost(net, part) > 0.3
    for accept, expected in ((0.02, True), (lost(net, part) - 0.1, True), (lost(net, part) + 0.1, False)):
        blocks = Roadblocks(share=0.17, accept=accept, generator=generator(5))
        assert blocks.build(net, part.x, part.y, TABLE) is expected
        assert blocks.told["roadblock 1: accuracy lost"] == pytest.approx(lost(net, part), abs=0.08)
        assert blocks.told["roadblock 1: accepted"] == float(expected)
        assert len(blocks.accepted) == int(expected)
        assert (blocks.refused is None) is expected
        changed = (blocks.block(part.x, part.y, part.x) != part.x).any(dim=0)
        assert changed.nonzero().flatten().tolist() == [0, 1]  # a refused one is shown where there is no other
    empty = part.x.clone()
    empty[:, 2:] = torch.randn(600, 10, generator=generator(1))  # behind it there is nothing to learn from
    assert not Roadblocks(share=0.17, generator=generator(5)).build(net, empty, part.y, TABLE)


@pytest.mark.parametrize("labels", ["codes", "column"])
def test_labels_may_stand_in_a_column_and_must_be_classes(labels: str) -> None:
    part, net = planted(3), relies_on_two()
    y = part.y if labels == "codes" else part.y[:, None]
    blocks = Roadblocks(share=0.17, kind="sample", generator=generator(5))
    assert blocks.build(net, part.x, y, TABLE)
    assert blocks.told["roadblock 1: accuracy lost"] == pytest.approx(lost(net, part), abs=0.1)
    state = blocks.generator.get_state()
    found = blocks.block(part.x, y, part.x)
    blocks.generator.set_state(state)
    shares = 0.9 * torch.nn.functional.one_hot(part.y, 3) + 0.05  # as methods that mix labels give them
    assert torch.equal(blocks.block(part.x, shares, part.x), found)
    blocks.generator.set_state(state)
    assert torch.equal(blocks.block(part.x, part.y, part.x), found)
    with pytest.raises(ValueError, match="the label -100"):
        blocks.build(net, part.x, torch.full((600,), -100), TABLE)
    with pytest.raises(ValueError, match="built from 7 rows; 8 or more"):
        blocks.build(net, part.x[:7], part.y[:7], TABLE)


class Fixed(nn.Module):
    """Relies on the first two columns for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.net = relies_on_two()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.net(x)  # goes on behind its last layer


def batches(blocks: Roadblocks, steps: int, missing: int = 0) -> tuple[Run, list[int]]:
    """How many rows of each batch of 50 are changed by the hook, step after step."""
    part, net, changed = planted(3), Fixed(), []
    part.x.add_(0.01 * torch.randn(600, 12, generator=generator(2)))  # no two rows alike
    run = Run(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), TABLE, part, part, Budget(steps, 50, 12)
    )
    blocks.prepare(run)
    y = part.y[:50].clone()
    y[:missing] = -100
    for step in range(steps):
        run.step = step
        given = Batch(part.x[:50], y, part.rows[:50])
        found = blocks.batch(run, given)
        assert torch.equal(given.x, part.x[:50])
        assert torch.equal(found.y, y)
        assert not (found.x[:missing] != given.x[:missing]).any()
        changed.append(int((found.x != given.x).any(dim=1).sum()))
    return run, changed


@pytest.mark.parametrize(("mix", "most"), [(0.3, 15), (0.8, 40), (1.0, 50)])
def test_a_share_of_the_batch_is_blocked_between_start_and_end(mix: float, most: int) -> None:
    blocks = Roadblocks(share=0.17, start=0.3, end=0.2, rounds=2, mix=mix, rows=200, generator=generator(5))
    run, changed = batches(blocks, 20)
    assert changed[:6] == [0] * 6
    assert changed[16:] == [0] * 4
    assert all(most - 2 <= value <= most for value in changed[6:16])  # a row may be its own donor
    assert max(changed) == most
    assert blocks.built == 2
    assert run.extra_passes == 2 * 2 * 200
    assert run.keep_best is False


@pytest.mark.parametrize(("kind", "each"), [("sample", 4 / 3), ("sign", 3.0)])  # a pass without gradients is a third
def test_rows_without_a_label_are_not_blocked_and_passes_are_charged(kind: str, each: float) -> None:
    blocks = Roadblocks(share=0.17, start=0.5, rounds=1, mix=1.0, kind=kind, eps=2.0, rows=200, generator=generator(5))
    run, changed = batches(blocks, 4, missing=30)
    assert changed[:2] == [0, 0]
    assert all(18 <= value <= 20 for value in changed[2:])
    assert run.extra_passes == pytest.approx((each + 2 / 3) * 200 + 2 * each * 20)


def test_roadblocks_are_built_one_after_another_at_their_time() -> None:
    blocks = Roadblocks(share=0.17, start=0.2, end=0.0, rounds=4, rows=100, generator=generator(5))
    part, net, built = planted(3), Fixed(), []
    run = Run(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), TABLE, part, part, Budget(20, 50, 12)
    )
    blocks.prepare(run)
    for step in range(20):
        run.step = step
        blocks.batch(run, Batch(part.x[:50], part.y[:50], part.rows[:50]))
        built.append(blocks.built)
    assert built == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    blocks.finish(run)
    assert blocks.report()["effective rank of features"] == pytest.approx(effective_rank(part.x[:100]), rel=1e-4)


def test_units_of_series_tables_and_by_default() -> None:
    assert Units(Spec("image", "classes", (1, 28, 32), 2)).count == 10 * 11  # sides of 28 // 8 = 3
    assert Units(Spec("image", "classes", (1, 5, 5), 2)).count == 25
    series = Units(Spec("series", "classes", (2, 70), 2))
    assert series.count == 18  # lengths of 70 // 16 = 4
    mask = series.mask(torch.arange(18)[None] == 2, torch.Size((1, 2, 70)))
    assert mask[0].nonzero().tolist() == [[c, t] for c in range(2) for t in range(8, 12)]
    assert Units(Spec("series", "classes", (2, 70), 2), patch=35).count == 2
    assert Units(TABLE).count == 12


@pytest.mark.parametrize("kind", ["swap", "sample"])
def test_state_goes_on_where_it_was(kind: str) -> None:
    part = planted(3)
    torch.manual_seed(0)
    net = nn.Linear(12, 3)
    blocks = Roadblocks(kind=kind, share=0.2, accept=0.0, generator=generator(5))
    blocks._of(TABLE)
    blocks.model = net
    with torch.no_grad():
        net.weight[:, :2] = 5 * torch.tensor([[1.0, -1], [-1, 1], [-1, -1]])
    assert blocks.build(net, part.x, part.y, TABLE)
    state = copy.deepcopy(blocks.state_dict())
    expected = blocks.block(part.x, part.y, part.x)
    again = Roadblocks(kind=kind, share=0.2, accept=0.0, generator=generator(9))
    again._of(TABLE)
    again.model = nn.Linear(12, 3)
    again.load_state_dict(state)
    assert torch.equal(again.block(part.x, part.y, part.x), expected)


def test_the_default_stream_is_seed_nought_and_eight_rows_are_enough() -> None:
    part, net, found = planted(3), relies_on_two(), []
    for own in (None, generator(0)):
        blocks = Roadblocks(share=0.17, rows=8, generator=own)
        blocks.build(net, part.x[:8], part.y[:8], TABLE)
        found.append(blocks.block(part.x, part.y, part.x))
    assert torch.equal(*found)


BAD = {
    "all units": ({"share": 1.0}, "leaves no evidence"),
    "negative": ({"share": -0.1}, r"share is -0\.1"),
    "kind": ({"kind": "odd"}, "'odd'"),
    "start": ({"start": 0.0}, r"start is 0\.0"),
    "end": ({"start": 0.5, "end": 0.5}, "together below 1"),
    "mix": ({"mix": 0.0}, r"mix is 0\.0"),
    "rounds": ({"rounds": 0}, "rounds is 0"),
    "accept": ({"accept": 1.0}, r"accept 1\.0"),
}


@pytest.mark.parametrize(("settings", "told"), BAD.values(), ids=BAD)
def test_settings_out_of_range_are_named(settings: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Roadblocks(**settings)  # type: ignore[arg-type]


def test_a_roadblock_over_everything_is_refused() -> None:
    spec = Spec("table", "classes", (2,), 2, numeric=2)
    with pytest.raises(ValueError, match="leaves no evidence"):
        Roadblocks(share=0.9).build(nn.Linear(2, 2), torch.randn(20, 2), torch.arange(20) % 2, spec)
    with pytest.raises(ValueError, match="leaves no evidence"):  # and before the first step
        Roadblocks(share=0.9).prepare(SimpleNamespace(spec=spec, model=nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="these data are text"):
        Units(Spec("text", "classes", (5,), 2, vocabulary=10))
    with pytest.raises(ValueError, match="call build"):
        Roadblocks().block(torch.zeros(2, 2), torch.zeros(2).long(), torch.zeros(2, 2))


def test_networks_with_older_norms_of_weights_are_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(12, 8)), nn.ReLU(), nn.utils.weight_norm(nn.Linear(8, 3)))
    rows = planted(0, rows=80)
    net(rows.x).sum().backward()
    blocks = Roadblocks(kind="sign", generator=generator())
    blocks.build(net, rows.x, rows.y, TABLE)
    assert float((blocks.block(rows.x, rows.y, rows.x) - rows.x).abs().max()) <= 0.1 + 1e-6


def test_what_can_be_learnt_does_not_hang_on_units() -> None:
    rows = planted(1, rows=200)
    found = [learnable(scale * rows.x, rows.y, 3) for scale in (1.0, 1e-9, 1e6)]
    assert found == [True, True, True]


@pytest.mark.parametrize(("columns", "unknowns"), [(20, 21), (9000, 60)])
def test_what_is_left_is_solved_in_rows_or_columns_whichever_are_fewer(
    columns: int, unknowns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, solve = [], torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda a, b: (seen.append(a.shape), solve(a, b))[1])
    x = torch.randn(120, columns, generator=generator())
    learnable(x, torch.arange(120) % 3, 3)
    assert seen == [(unknowns, unknowns)]


@pytest.mark.parametrize("kind", ["swap", "zero", "random", "sample", "sign"])
def test_networks_that_begin_in_place_leave_the_rows_and_see_them_as_they_are(kind: str) -> None:
    part, own, found, told = planted(3), relies_on_two(), [], []
    for inplace in (False, True):
        x, net = part.x.clone(), nn.Sequential(nn.LeakyReLU(0.5, inplace=inplace), own)
        blocks = Roadblocks(share=0.17, kind=kind, generator=generator(5))
        blocks.build(net, x, part.y, TABLE)
        found.append(blocks.block(x, part.y, part.x))
        told.append(blocks.told)
        assert torch.equal(x, part.x)
    assert torch.equal(*found)
    assert told[0] == told[1]
    codes = replace(TABLE, shape=(12,), numeric=11, cardinalities=(3,))
    x, net = part.x.clone(), nn.Sequential(nn.LeakyReLU(0.5, inplace=True), relies_on_two())
    importance(net, x, part.y, Units(codes), codes, generator())
    assert torch.equal(x, part.x)


def test_a_batch_of_which_nothing_is_blocked_goes_through_no_network() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = relies_on_two()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert len(x)
            return self.net(x)

    part = planted(3)
    for kind in ("sample", "sign"):
        blocks = Roadblocks(share=0.17, kind=kind, generator=generator(5))
        blocks.build(Strict(), part.x, part.y, TABLE)
        assert blocks.block(part.x[:0], part.y[:0], part.x).shape == (0, 12)


def test_roadblocks_are_built_from_labelled_rows_however_few_there_are_of_them() -> None:
    part = planted(3)
    y = part.y.clone()
    y[40:] = -100
    blocks = Roadblocks(share=0.17, start=0.1, rounds=1, rows=40, generator=generator(5))
    net, some = Fixed(), Part(part.x, y, part.rows)
    run = Run(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), TABLE, some, some, Budget(4, 50, 12)
    )
    run.step = 3
    blocks.prepare(run)
    blocks.batch(run, Batch(part.x[:50], y[:50], part.rows[:50]))
    assert blocks.built == 1
    assert run.extra_passes == 2 * 40  # 40 of 600 rows have labels, and all of them are looked at


@pytest.mark.parametrize(("weights", "dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("kind", ["swap", "sample", "sign"])
def test_networks_and_rows_may_differ_in_precision(kind: str, weights: torch.dtype, dtype: torch.dtype) -> None:
    spec = Spec("table", "classes", (3,), 2, numeric=2, cardinalities=(3,))
    x = torch.randn(40, 3, generator=generator())
    y = (x[:, 0] > 0).long()
    x[:, 2] = torch.randint(3, (40,), generator=generator())
    blocks = Roadblocks(kind=kind, share=0.3, generator=generator())
    blocks.build(nn.Linear(3, 2).to(weights), x.to(dtype), y, spec)
    out = blocks.block(x.to(dtype), y, x.to(dtype))
    assert out.dtype == dtype
    assert bool((out != x.to(dtype)).any())
