"""Counterfactual maximum likelihood: neutral weights, pairs of groups, frozen judges, given treatments, misuse."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import alone
from probatum.spec import Batch, Budget, Data, Part, Spec
from probatum.techniques.method.cmle import cmle
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
from probatum.train.run import Run
from small_networks import Begins

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


@pytest.mark.parametrize("temperature", [0.4, 2.0])
def test_the_gradient_of_a_draw_is_that_of_the_relaxed_one(temperature: float) -> None:
    n, d = 40_000, 0.7  # two classes: the difference of two Gumbel draws is logistic
    logits = torch.tensor([[d, 0.0]], dtype=torch.float64).repeat(n, 1).requires_grad_()
    straight_through(logits, temperature, generator(2))[:, 0].sum().backward()
    found = logits.grad  # type: ignore[union-attr]
    at = np.linspace(-40, 40, 200_001)
    soft, density = expit((d + at) / temperature), expit(at) * expit(-at)
    expected = np.trapezoid(density * soft * (1 - soft) / temperature, at)
    error = float(found[:, 0].std()) / n**0.5
    assert float(found[:, 0].mean()) == pytest.approx(expected, abs=4 * error)
    assert float(found[:, 1].mean()) == pytest.approx(-expected, abs=4 * error)


def test_the_explicit_term_by_hand_where_draws_are_sure() -> None:
    rows, sure = part(6, 4), torch.tensor([0, 1, 1, 0, 1, 0])
    torch.manual_seed(0)
    judge = Judge(SPEC, 4, 3).eval().requires_grad_(False)
    asked = torch.tensor([0, 1, 2, 2, 1, 0])
    logits = 200.0 * F.one_hot(sure, 2)
    found = counterfactual_term(logits, rows.x, asked, judge, 0.7, generator())
    scores = judge(rows.x, F.one_hot(sure, 2).float()).double()
    expected = (
        -sum(
            math.log(math.exp(r[t]) / sum(map(math.exp, r)))
            for r, t in zip(scores.tolist(), asked.tolist(), strict=True)
        )
        / 6
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


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


def test_the_judge_sees_numbers_and_codes_but_not_the_treatment() -> None:
    spec = Spec("table", "classes", (4,), 2, numeric=2, cardinalities=(3, 4), features=("a", "b", "c", "drug"))
    judge = Judge(spec, 1, 2, width=5)  # a number is the treatment
    x = torch.tensor([[0.5, 9.0, 2.0, 3.0], [-1.0, 9.0, 0.0, 1.0]])
    y = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    taken = torch.tensor([[0.5, 0, 1, 0, 0, 1, 0, 0, 0, 1], [-1.0, 1, 0, 1, 0, 0, 0, 1, 0, 0]])
    torch.testing.assert_close(judge(x, y), judge.layers(taken))
    assert judge.layers[0].in_features == 10
    assert [m.out_features for m in judge.layers if isinstance(m, nn.Linear)] == [5, 2]


class Plain(nn.Module):
    """Features that a hand can compute, from all columns but the treatment's and from it."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.norm, self.head = nn.Linear(5, 3), nn.BatchNorm1d(3) if norm else nn.Identity(), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)))


def looking(model: nn.Module, method: CMLE, step: int) -> tuple[Run, torch.Tensor]:
    rows = part(40, 5)
    rows.x[0, 4] = 0.0  # missing
    run = Run(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        SPEC,
        part(90, 6),
        part(50, 7),
        Budget(20, 40, 1),
    )
    method.prepare(run)
    run.step, run.extra_passes = step, 0.0
    run.loss_hooks = [lambda _r, _b, _o, loss: loss + 2.0, method.loss]
    return run, run.loss_of(Batch(rows.x, rows.y, rows.rows))


@pytest.mark.parametrize(("step", "ramp"), [(1, 0.0), (3, 0.25), (4, 0.5), (8, 1.0), (19, 1.0)])
def test_balance_is_added_by_its_weight_on_features_of_one_common_treatment(step: int, ramp: float) -> None:
    model, rows = Plain(), part(40, 5)
    method = CMLE("drug", balance=0.8, metric="mmd-linear", generator=generator(3))
    run, found = looking(model, method, step)
    t = rows.x[:, 4].clone()
    t[0] = 0.0
    x = rows.x.clone()
    x[0, 4] = 0.0
    expected = F.cross_entropy(model(x), rows.y) + 2.0
    z = x.clone()
    z[:, 4] = 0.0  # what all rows share takes no part in differences of means
    means = [model.body(z)[t == level].mean(dim=0) for level in (1, 2, 3)]
    apart = sum((a - b).square().sum() for a, b in combinations(means, 2))
    torch.testing.assert_close(found, expected + ramp * 0.8 * apart)
    assert run.extra_passes == (40 if ramp else 0)
    if ramp:
        assert method.report()["imbalance of the last batch"] == pytest.approx(float(apart.detach()), rel=1e-4)


def test_the_explicit_term_is_added_by_its_weight_for_other_treatments(monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = Plain(), []

    def fixed(
        logits: torch.Tensor, x: torch.Tensor, other: torch.Tensor, judge: nn.Module, temperature: float, own: object
    ) -> torch.Tensor:
        told.append((logits.detach(), x, other, judge, temperature))
        return logits.sum()

    monkeypatch.setattr(cmle, "counterfactual_term", fixed)
    rows = part(40, 5)
    for step, ramp, temperature in ((4, 0.5, 2.0 * 0.25**0.2), (10, 1.0, 1.0), (20, 1.0, 0.5)):
        method = CMLE("drug", balance=0.0, counterfactual=0.6, hot=2.0, cold=0.5, judge_steps=3, generator=generator(3))
        run, found = looking(model, method, step)
        logits, x, other, judge, at = told[-1]
        assert torch.equal(x, rows.x[1:])  # the first row's treatment is missing
        assert bool((method.levels[other] != x[:, 4]).all())
        moved = x.clone()
        moved[:, 4] = method.levels[other]
        torch.testing.assert_close(logits, model(moved))
        full = rows.x.clone()
        full[0, 4] = 0.0
        plain = F.cross_entropy(model(full), rows.y) + 2.0
        torch.testing.assert_close(found, plain + ramp * 0.6 * logits.sum())
        assert at == pytest.approx(temperature)
        assert judge is method.judge
        assert run.extra_passes == 39


def test_the_judge_learns_the_treatment_of_factual_rows() -> None:
    method = CMLE("drug", balance=0.0, counterfactual=0.5, judge_steps=300, judge_rate=1e-2, generator=generator())
    rows = part(600, 6)
    rows.y[:30] = -100  # rows without a label are not for the judge
    model = Plain()
    run = Run(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        SPEC,
        rows,
        part(50, 7),
        Budget(20, 64, 1),
    )
    method.prepare(run)
    told = method.report()
    x, y = rows.x[30:], F.one_hot(rows.y[30:], 2).float()
    right = method.judge(x, y).argmax(dim=1) == (x[:, 4] - 1).long()  # type: ignore[misc]
    assert told["judge's accuracy on factual rows"] == pytest.approx(float(right.double().mean()))
    assert told["judge's accuracy on factual rows"] > 0.7
    assert run.extra_passes == 300 * 64
    assert not method.judge.training  # type: ignore[union-attr]


@pytest.mark.parametrize("settings", [{"balance": 0.5}, {"balance": 0.0, "counterfactual": 0.5, "judge_steps": 3}])
def test_running_statistics_are_those_of_factual_rows(settings: dict[str, float]) -> None:
    model, alone = Plain(norm=True), Plain(norm=True)
    _, loss = looking(model, CMLE("drug", **settings), 10)  # type: ignore[arg-type]
    loss.backward()
    x = part(40, 5).x
    x[0, 4] = 0.0
    alone(x)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_buffer_that_a_further_pass_makes_is_gone_after_it() -> None:
    class Counting(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.register_buffer("last", x.detach().sum(dim=0))
            return super().forward(x)

    model = Counting()
    x = part(40, 5).x
    x[0, 4] = 0.0
    looking(model, CMLE("drug", balance=0.5), 10)
    torch.testing.assert_close(model.last, x.sum(dim=0))
    del model.last
    with cmle._statistics_kept(model):
        model(x)
    assert "last" not in dict(model.named_buffers())


@pytest.mark.parametrize("settings", [{"balance": 0.5}, {"balance": 0.0, "counterfactual": 0.5, "judge_steps": 3}])
def test_under_autocast_the_terms_are_those_of_float32(settings: dict[str, float]) -> None:
    model = Plain()
    wide = [looking(model, CMLE("drug", generator=generator(3), **settings), 10)[1] for _ in range(2)]  # type: ignore[arg-type]
    assert torch.equal(*wide)
    with torch.autocast("cpu", torch.bfloat16):
        found = looking(model, CMLE("drug", generator=generator(3), **settings), 10)[1]  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(wide[0].detach()), rel=0.02)


def test_imbalance_in_half_precision_is_that_of_float32_rounded() -> None:
    z, t = torch.randn(40, 6, generator=generator()).bfloat16(), torch.arange(40) % 3
    for metric in ("mmd-linear", "mmd-rbf", "transport"):
        low, high = z.clone().requires_grad_(), z.float().requires_grad_()
        found, wide = imbalance(low, t, metric), imbalance(high, t[:, None], metric)
        found.float().backward()
        wide.backward()
        torch.testing.assert_close(found, wide.bfloat16())
        torch.testing.assert_close(low.grad, high.grad.bfloat16())
    with pytest.raises(ValueError, match=r"features are \(40, 6\), treatments \(39,\)"):
        imbalance(z, t[1:])


def test_treatments_with_other_codes_and_absent_ones() -> None:
    torch.manual_seed(0)
    encoder, head, rows = nn.Linear(4, 3), nn.Linear(6, 2), part(40, 3)
    codes = torch.tensor([7, 2, 5])[(rows.x[:, 4] - 1).long()]
    found = balanced_nll(encoder, head, rows.x[:, :4], codes, rows.y, 0.4, "mmd-linear", among=(7, 2, 5))
    z = encoder(rows.x[:, :4])
    plain = F.cross_entropy(head(torch.cat([z, F.one_hot((rows.x[:, 4] - 1).long(), 3)], dim=1)), rows.y)
    torch.testing.assert_close(found, plain + 0.4 * imbalance(z, codes, "mmd-linear"))
    few = codes != 5
    balanced_nll(encoder, head, rows.x[few, :4], codes[few], rows.y[few], 0.4, among=(7, 2, 5))
    with pytest.raises(ValueError, match=r"treatment 5 is not among \[7, 2\]"):
        balanced_nll(encoder, nn.Linear(5, 2), rows.x[:, :4], codes, rows.y, 0.4, among=(7, 2))
    other = rows.x[:, 0] > 0
    shuffled = balanced_nll(encoder, head, rows.x[:, :4], codes, rows.y, 0.4, "mmd-linear", (7, 2, 5), groups=other)
    torch.testing.assert_close(shuffled, plain + 0.4 * linear_mmd(z[other], z[~other]))


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
    CMLE("drug", judge_steps=1, warmup=0.0, full=1.0)  # the edges are in range
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


def test_rows_stay_where_the_encoder_begins_in_place() -> None:
    x, t = torch.zeros(6, 3), torch.arange(6) % 2
    balanced_nll(nn.Sequential(Begins(), nn.Linear(3, 2)), nn.Linear(4, 2), x, t, t, 0.5)
    assert not bool(x.any())
