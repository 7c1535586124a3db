"""Counterfactual maximum likelihood: neutral weights, pairs of groups, frozen judges, given treatments, misuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import alone
from probatum.spec import Batch, Data, Part, Spec
from probatum.techniques.method.cmle.cmle import (
    CMLE,
    Judge,
    Ramp,
    balanced_nll,
    column_of,
    counterfactual_term,
    imbalance,
    levels_of,
    other_treatments,
    straight_through,
    treatments_of,
)
from probatum.techniques.method.cmle.integral_metrics import linear_mmd, rbf_mmd, transport_cost
from probatum.train.assemble import assemble
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded

SPEC = Spec("table", "classes", (5,), 2, numeric=4, cardinalities=(4,), features=("a", "b", "c", "d", "drug"))
SHORT = Training(steps=30, batch_size=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def part(rows: int, seed: int) -> Part:
    g = generator(seed)
    x = torch.randn(rows, 5, generator=g)
    x[:, 4] = 1 + (torch.rand(rows, generator=g) < torch.sigmoid(2 * x[:, 0])).float() + (x[:, 1] > 1).float()
    y = (torch.rand(rows, generator=g) < torch.sigmoid(x[:, 0] + 2 * (x[:, 4] == 2))).long()
    return Part(x, y, torch.arange(rows))


def data() -> Data:
    return Data(SPEC, part(300, 0), part(100, 1), part(100, 2))


@pytest.mark.parametrize("column", ["'drug'", "-1", "0"])
def test_without_weights_it_is_maximum_likelihood_bit_for_bit(column: str) -> None:
    plain = fit(None, data(), 1, training=SHORT)
    neutral = fit(f"cmle(treatment={column}, balance=0.0, counterfactual=0.0)", data(), 1, training=SHORT)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, neutral.model.state_dict()[name]), name
    assert neutral.extra_passes == 0


def test_the_plain_loss_without_weight_is_cross_entropy() -> None:
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 3), nn.Linear(5, 2)
    rows = part(40, 3)
    t = (rows.x[:, 4] > 1).long()
    expected = F.cross_entropy(head(torch.cat([encoder(rows.x[:, :4]), F.one_hot(t, 2)], dim=1)), rows.y)
    assert torch.equal(balanced_nll(encoder, head, rows.x[:, :4], t, rows.y, 0.0), expected)
    weighed = balanced_nll(encoder, head, rows.x[:, :4], t, rows.y, 0.5, "mmd-linear")
    features = encoder(rows.x[:, :4])
    torch.testing.assert_close(weighed, expected + 0.5 * linear_mmd(features[t == 0], features[t == 1]))


@pytest.mark.parametrize(
    ("metric", "function"), [("mmd-linear", linear_mmd), ("mmd-rbf", rbf_mmd), ("transport", transport_cost)]
)
def test_imbalance_is_the_sum_over_pairs_that_are_large_enough(metric: str, function: object) -> None:
    z = torch.randn(20, 3, generator=generator(), dtype=torch.float64)
    t = torch.tensor([0] * 8 + [1] * 7 + [2] * 4 + [3])
    pairs = combinations([z[t == k] for k in range(3)], 2)
    expected = sum(float(function(a, b)) for a, b in pairs)  # type: ignore[operator]
    assert float(imbalance(z, t, metric)) == pytest.approx(expected)
    alone = imbalance(z[-1:].clone().requires_grad_(), t[-1:], metric)
    assert float(alone.detach()) == 0.0
    assert alone.requires_grad


def test_straight_through_draws_by_the_law_and_carries_the_gradient() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]]).repeat(20_000, 1).requires_grad_()
    found = straight_through(logits, 0.5, generator())
    assert torch.equal(found.detach().sum(dim=1), torch.ones(20_000))
    assert set(found.detach().unique().tolist()) <= {0.0, 1.0}
    share = found.detach().mean(dim=0)
    assert float((share - logits[0].softmax(dim=0)).abs().max().detach()) < 4 * (0.25 / 20_000) ** 0.5
    (found * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert float(logits.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_the_explicit_term_reaches_the_network_and_not_the_judge() -> None:
    torch.manual_seed(0)
    judge = Judge(SPEC, 4, 3)
    rows, logits = part(30, 4), torch.randn(30, 2, requires_grad=True)
    other = torch.randint(3, (30,), generator=generator())
    with pytest.raises(ValueError, match="not frozen"):
        counterfactual_term(logits, rows.x, other, judge, 1.0, generator())
    judge.eval().requires_grad_(False)
    counterfactual_term(logits, rows.x, other, judge, 1.0, generator()).backward()
    assert float(logits.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert all(p.grad is None for p in judge.parameters())
    moved = rows.x.clone()
    moved[:, 4] = 3 - moved[:, 4]
    y = F.one_hot(rows.y, 2).float()
    assert torch.equal(judge(rows.x, y), judge(moved, y))  # it does not see the treatment


def test_other_treatments_are_others_and_even() -> None:
    t = torch.arange(9000) % 3
    other = other_treatments(t, 3, generator())
    assert bool((other != t).all())
    assert abs(float((other[t == 0] == 1).double().mean()) - 0.5) < 0.05


def test_ramp() -> None:
    ramp = Ramp(0.2, 0.6)
    assert [ramp(s) for s in (0.0, 0.1, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert Ramp(0.3, 0.3)(0.3) == 1.0


def test_codes_and_given_treatments() -> None:
    method = CMLE("drug")
    parts = assemble(alone(make_arm("cmle(treatment='drug')", Recipe(training=SHORT)).recipe, data(), 1))
    method.prepare(parts.run)
    assert method.levels.tolist() == [1.0, 2.0, 3.0]
    x = part(5, 0).x
    x[0, 4] = 0.0  # missing
    codes = method.codes(x)
    assert int(codes[0]) == -1
    assert torch.equal(method.levels[codes[1:]], x[1:, 4])
    given = method.given(x, torch.full((5,), 2))
    assert bool((given[:, 4] == 3).all())
    assert torch.equal(given[:, :4], x[:, :4])


@pytest.mark.parametrize("settings", ["balance=0.5", "balance=0.0, counterfactual=0.5", "metric='transport'"])
def test_training_with_terms_is_charged_told_and_leaves_nothing(settings: str) -> None:
    arm = make_arm(f"cmle(treatment='drug', judge_steps=30, {settings})", Recipe(training=SHORT))
    parts = assemble(alone(arm.recipe, data(), 1))
    with seeded(1, "training"):
        train(parts.run, parts.methods, generator_for(1, "order"))
    told = parts.methods[0].report()
    assert told["treatments"] == 3
    assert parts.run.extra_passes > 0
    assert all(not module._forward_pre_hooks for module in parts.run.model.modules())
    if "counterfactual" in settings:
        assert 0.3 < told["judge's accuracy on factual rows"] <= 1.0


def test_balance_makes_features_of_treatments_alike() -> None:
    long = replace(SHORT, steps=200, select="last", lr=3e-3)

    def gap(arm: str | None) -> float:
        run = fit(arm, data(), 1, training=long)
        method = CMLE("drug")
        method.prepare(run)
        x = data().test.x
        codes = method.codes(x)
        run.model.eval()
        with torch.no_grad():
            z = method._features(run.model, method.given(x, torch.zeros_like(codes)))
            scale = z.var(dim=0).sum()
            return float(imbalance(z, codes, "mmd-linear") / scale)

    assert gap("cmle(treatment='drug', balance=3.0, metric='mmd-linear')") < 0.5 * gap(None)


def test_state_goes_on_where_it_was() -> None:
    arm = make_arm("cmle(treatment='drug', counterfactual=0.5, judge_steps=5)", Recipe(training=SHORT))
    first, second = (assemble(alone(arm.recipe, data(), seed)) for seed in (1, 2))
    rows = part(40, 5)
    values = []
    for parts in (first, second):
        parts.methods[0].prepare(parts.run)
        parts.run.step = 20
    second.run.model.load_state_dict(first.run.model.state_dict())
    second.methods[0].load_state_dict(copy.deepcopy(first.methods[0].state_dict()))
    for parts in (first, second):
        model = parts.run.model.eval()
        batch = Batch(rows.x, rows.y, rows.rows)
        values.append(parts.methods[0].loss(parts.run, batch, model(rows.x), torch.zeros(())))
    assert torch.equal(values[0], values[1])


BAD = {
    "balance": ({"balance": -1.0}, "balance is -1"),
    "metric": ({"metric": "odd"}, "'odd'"),
    "temperature": ({"hot": 0.0}, r"hot is 0\.0"),
    "ramp": ({"warmup": 0.5, "full": 0.2}, r"warmup is 0\.5"),
    "judge": ({"judge_steps": 0}, "judge_steps is 0"),
}


@pytest.mark.parametrize(("settings", "told"), BAD.values(), ids=BAD)
def test_settings_out_of_range_are_named(settings: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CMLE("drug", **settings)  # type: ignore[arg-type]


def test_treatments_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="have 1 treatment"):
        treatments_of(torch.zeros(5).long())
    with pytest.raises(ValueError, match=r"treatments \[1\] of 3 are absent"):
        treatments_of(torch.tensor([0, 2, 2]), 3)
    assert treatments_of(torch.tensor([1, 0])) == [0, 1]
    with pytest.raises(ValueError, match="no column 'age'"):
        column_of(SPEC, "age")
    with pytest.raises(ValueError, match="column 9"):
        column_of(SPEC, 9)
    with pytest.raises(ValueError, match="a has 300 values"):
        levels_of(part(300, 0).x[:, 0], SPEC, 0)
    with pytest.raises(ValueError, match="drug has 1 values"):
        levels_of(torch.tensor([0.0, 2.0, 2.0]), SPEC, 4)
    lacking = data()
    x = lacking.train.x.clone()
    x[:, 4] = x[:, 4].clamp_max(2.0)
    parts = assemble(
        alone(
            make_arm("cmle(treatment='drug')", Recipe(training=SHORT)).recipe,
            replace(lacking, train=replace(lacking.train, x=x)),
            1,
        )
    )
    with pytest.raises(ValueError, match="treatment 3 of validation rows is absent"):
        parts.methods[0].prepare(parts.run)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_draws_in_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(500, 4, generator=generator()).to(dtype)
    found = straight_through(logits, 0.5, generator(1))
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, straight_through(logits.float(), 0.5, generator(1)).to(dtype))


def test_features_are_what_the_head_that_runs_last_takes_in() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 2), nn.Sequential(nn.Linear(5, 8), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    model, x = HeadFirst(), torch.randn(6, 5)
    torch.testing.assert_close(CMLE("drug")._features(model, x), model.body(x))
