"""Model cascade: the learned rule, its calibration, states and their costs, and what the probe reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from probatum.data.open import open_dataset
from probatum.numerics.calibration.reliability import equal_mass, mean_gap
from probatum.spec import Data, Part, Spec
from probatum.techniques.probe.lm_cascade.cascade import (
    audc,
    chow_sum,
    cost_curve,
    deferral_curve,
    quantile_features,
    tokens,
)
from probatum.techniques.probe.lm_cascade.lm_cascade import (
    DeferralRule,
    Judged,
    SmallNetwork,
    _of_curve,
    fit,
    lm_cascade,
)
from probatum.techniques.probe.lm_cascade.written import Written, _pooled, flops, middle_of, write


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs with a first token of harmless doubt; what a later token lacks is what the large model gains."""
    rng = np.random.default_rng(seed)
    lengths, bad = rng.integers(3, 12, size=n), rng.random(n) < 0.4
    logs = [[-rng.exponential(1.5), *(-rng.exponential(0.3, size=k)).tolist()] for k in lengths]
    for row, wrong in zip(logs, bad, strict=True):
        row.append(-rng.exponential(1.0) - 0.5 if wrong else -0.01)
    small = np.where(bad, rng.random(n) * 0.5, 1.0)
    return quantile_features(tokens(logs)), small, np.full(n, 0.95)


@pytest.mark.parametrize("rule", ["logistic", "mlp"])
@pytest.mark.parametrize("target", ["better", "difference"])
def test_learned_rule_beats_the_sum(rule: str, target: str) -> None:
    x, small, large = planted(800, 0)
    z, second, other = planted(800, 1)
    found = DeferralRule(rule, target, hidden=16).fit(x, small, large)
    learned = audc(deferral_curve(found.score(z), second, other))
    assert learned > audc(deferral_curve(z[:, -3], second, other)) + 0.01
    assert bool((np.diff(found.gain(z)[np.argsort(found.score(z))]) <= 1e-12).all())


def test_logistic_rule_is_sklearns() -> None:
    x, small, large = planted(300, 2)
    scaler = StandardScaler().fit(x)
    witness = LogisticRegression(C=0.5, max_iter=1000).fit(scaler.transform(x), large > small)
    found = DeferralRule(penalty=2.0).fit(x, small, large)
    np.testing.assert_allclose(
        found.raw_probability(x), witness.predict_proba(scaler.transform(x))[:, 1], rtol=1e-6, atol=1e-9
    )


def test_probabilities_are_calibrated_on_rows_not_fitted() -> None:
    x, small, large = planted(150, 3)
    z, second, other = planted(4000, 4)
    found = DeferralRule("mlp", penalty=1e-4, hidden=64).fit(x, small, large)
    gained = (other > second).astype(float)
    before = mean_gap(equal_mass(found.raw_probability(z), gained, 10))
    after = mean_gap(equal_mass(found.gain(z), gained, 10))
    assert after < 0.6 * before


def test_a_rule_without_two_answers_is_constant() -> None:
    x = np.random.default_rng(5).normal(size=(20, 3))
    found = DeferralRule().fit(x, np.ones(20), np.zeros(20))
    assert len(set(found.score(x).tolist())) == 1
    assert found.gain(x)[0] < 0.05


def test_large_quality_must_be_there() -> None:
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="both models' qualities"):
        DeferralRule().fit(x, np.zeros(3), np.array([1.0, np.nan, 0.0]))
    with pytest.raises(ValueError, match="give finite"):
        DeferralRule().fit(np.full((3, 2), np.inf), np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="forest"):
        DeferralRule("forest")
    with pytest.raises(ValueError, match="penalty 0"):
        DeferralRule(penalty=0)


def test_costs_are_counted() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    x = torch.randn(4, 10)
    assert flops(net, x) == 2 * (200 + 600 + 150)
    found = middle_of(net, x, 0.5)
    assert found.module is net[2]
    assert found.share == pytest.approx(800 / 950)
    assert middle_of(net, x, 0.1).module is net[0]
    assert not net[0]._forward_hooks
    with pytest.raises(ValueError, match="leave embed"):
        middle_of(nn.Sequential(nn.Tanh()), x)


def test_outputs_and_pooled_states() -> None:
    spec = Spec("text", "next-token", (5,), 7, vocabulary=7)
    torch.manual_seed(0)
    net = SmallNetwork(spec, 4).eval()
    x, y = torch.randint(7, (3, 5)), torch.randint(7, (3, 5))
    lengths = torch.tensor([1, 3, 5])
    found = write(net, Part(x, y, torch.arange(3)), lengths, net.last)
    p = net(x).softmax(dim=-1)
    np.testing.assert_allclose(found.log_p, p.amax(dim=-1).log().detach().numpy(), atol=1e-5)
    assert np.array_equal(found.right, (p.argmax(dim=-1) == y).double().numpy())
    state = net.state(x).detach()
    for i, length in enumerate(lengths.tolist()):
        np.testing.assert_allclose(found.state[i], state[i, :length].mean(dim=0).numpy(), atol=1e-6)
    changed = x.clone()
    changed[:, 3] = (x[:, 3] + 1) % 7
    assert torch.equal(net(changed)[:, :3], net(x)[:, :3])


def digits(network: int = 64) -> tuple[Data, Any]:
    data = open_dataset("digits").prepare(0)

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, network), nn.ReLU(), nn.Linear(network, 10))

    return data, build


def test_report_of_classes() -> None:
    data, build = digits()
    found = lm_cascade(build, data, stream(), width=3, steps=150)
    assert found["small"] < found["large"]
    assert found["random"] == pytest.approx((found["small"] + found["large"]) / 2)
    for name in ("sum", "average", "quantile", "learned", "embed-1", "embed-1+2"):
        assert found["random"] < found[f"{name}: AUDC"] <= found["oracle"]
        assert abs(found[f"{name}: rate for 0.4"] - 0.4) < 0.15
    assert found["sum: AUDC"] == found["average: AUDC"] == found["quantile: AUDC"]  # one token
    # all rows pay for the state inside before they can be deferred: a budget of half that decides nothing there alone
    little = lm_cascade(build, data, stream(), width=3, steps=150, budgets=(found["cost of middle"] / 2,))
    spent = {name: its for name, its in little.items() if name.endswith("of the way in cost")}
    assert [name.split(":")[0] for name, its in spent.items() if its == found["small"]] == ["embed-1+2"]
    assert 0 < found["cost of small"] < 0.1
    assert 0 < found["cost of middle"] < 1
    assert found == lm_cascade(build, data, stream(), width=3, steps=150)
    assert lm_cascade(build, data, stream(1), width=3, steps=150)["learned: AUDC"] != found["learned: AUDC"]


def test_report_of_tokens() -> None:
    rng = stream(3)
    ids = torch.randint(2, 9, (300, 9), generator=rng)
    for t in range(8):
        follows = torch.rand(300, generator=rng) < 0.8
        ids[:, t + 1] = torch.where(follows, 2 + (3 * ids[:, t] + 1) % 7, ids[:, t + 1])
    x, y = ids[:, :-1], ids[:, 1:]
    parts = [Part(x[rows], y[rows], rows) for rows in torch.arange(300).split(100)]
    data = Data(Spec("text", "next-token", (8,), 9, vocabulary=9), *parts)
    kinds = {"steps": 40, "width": 4, "target": "difference", "lr": 1e-2}
    found = lm_cascade(lambda: SmallNetwork(data.spec, 32), data, stream(), **kinds)
    assert found["sum: AUDC"] != found["average: AUDC"]
    assert all(math.isfinite(value) for value in found.values())
    assert "learned: ECE" not in found
    whole = lm_cascade(lambda: SmallNetwork(data.spec, 32), data, stream(), shortest=1.0, **kinds)
    assert whole["sum: AUDC"] == pytest.approx(whole["average: AUDC"], abs=1e-9)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)[:, :1] * 0)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"rates": [1.5]}, "1.5"),
        ({"levels": []}, "levels"),
        ({"budgets": [-1.0]}, "-1.0"),
        ({"steps": 0}, "steps 0"),
        ({"shortest": 0.0}, "shortest is 0.0"),
        ({"rows": 2}, "rows is 2"),
        ({"rule": "tree"}, "tree"),
        ({"target": "worse"}, "worse"),
    ],
)
def test_bad_settings(settings: dict[str, Any], what: str) -> None:
    data, _ = digits()
    with pytest.raises(ValueError, match=what):
        lm_cascade(Constant, data, stream(), **settings)


def test_other_tasks_are_refused() -> None:
    part = Part(torch.zeros(4, 1), torch.zeros(4, 1), torch.arange(4))
    with pytest.raises(ValueError, match="reals"):
        lm_cascade(Constant, Data(Spec("table", "reals", (1,), 1, numeric=1), part, part, part), stream())


def test_sum_prefers_short_outputs() -> None:
    assert chow_sum(tokens([[-0.1] * 9, [-0.5]]))[0] < chow_sum(tokens([[-0.1] * 9, [-0.5]]))[1]


@pytest.mark.parametrize("rule", ["logistic", "mlp"])
def test_a_rule_fitted_again_is_a_fresh_one(rule: str) -> None:
    x, small, large = planted(60, 6)
    few, lone = x[:3], np.ones(3)  # one kind alone: nothing to calibrate on
    used, fresh = DeferralRule(rule, hidden=4).fit(x, small, large), DeferralRule(rule, hidden=4)
    assert used.platt != (1.0, 0.0)
    np.testing.assert_array_equal(used.fit(few, lone, 0 * lone).gain(x), fresh.fit(few, lone, 0 * lone).gain(x))
    np.testing.assert_array_equal(fresh.gain(x), fresh.raw_probability(x))  # and none is made up
    np.testing.assert_array_equal(used.fit(x, small, large).gain(x), fresh.fit(x, small, large).gain(x))


class Tied(nn.Module):
    """Words in and out by one table, so that the head is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(50, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.inner(self.embed(x).mean(dim=1)), self.embed.weight)


def test_a_tied_head_leaves_the_last_layer_before_it() -> None:
    net, x = Tied(), torch.randint(50, (3, 6))
    found = middle_of(net, x, 0.5)
    assert found.module is net.inner
    assert found.share == pytest.approx(16 / (16 + 200))
    assert found.run == 0


class Repeated(nn.Module):
    """One layer, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.inner(x).relu()
        return self.head(x)


def test_a_repeated_layer_gives_the_state_that_is_paid_for() -> None:
    net, x = Repeated().eval(), torch.randn(5, 6, generator=stream())
    found = middle_of(net, x, 0.4)
    assert found.module is net.inner
    assert found.share == pytest.approx(2 * 36 / (4 * 36 + 12))
    assert found.run == 1
    part = Part(x, torch.zeros(5, dtype=torch.int64), torch.arange(5))
    state = write(net, part, torch.ones(5, dtype=torch.int64), found.module, found.run).state
    expected = net.inner(net.inner(x).relu())
    np.testing.assert_allclose(state, expected.detach().numpy(), atol=1e-6)


def test_looks_and_training_keep_frozen_parts() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    net[1].eval()
    net[0].requires_grad_(False)
    x = 3 + torch.randn(30, 6, generator=stream())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    middle_of(net, x)
    flops(net, x)
    assert [module.training for module in net] == [True, False, True]
    fit(net, Part(x, torch.arange(30) % 2, torch.arange(30)), 3, 16, 1e-2, stream())
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_training_is_torchs_own() -> None:
    x, y = torch.randn(12, 3, generator=stream()), torch.arange(12) % 2
    x[::3] *= 4
    lengths = []
    net, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    for layer in (net, twin):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    fit(net, Part(x, y, torch.arange(12)), 6, 2, 0.05, stream(7))
    rule, own = torch.optim.AdamW(twin.parameters(), lr=0.05), stream(7)
    for step in range(6):
        rule.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 6)) / 2
        rows = torch.randperm(12, generator=own)[:2]
        rule.zero_grad()
        nn.functional.cross_entropy(twin(x[rows]), y[rows]).backward()
        lengths.append(math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters())))
        for p in twin.parameters():
            p.grad /= max(lengths[-1], 1.0)  # longer ones are cut to 1
        rule.step()
    assert min(lengths) < 1 < 1.5 < max(lengths)
    torch.testing.assert_close(net.weight, twin.weight, rtol=1e-4, atol=1e-5)


def test_platts_sigmoid_is_that_of_folds_not_fitted() -> None:
    x, small, large = planted(120, 7)
    found = DeferralRule(penalty=0.5).fit(x, small, large, seed=3)
    y, fold, out = (large > small).astype(int), np.random.default_rng(3).permutation(120) % 5, np.zeros(120)
    for k in range(5):
        scaler = StandardScaler().fit(x[fold != k])
        part = LogisticRegression(C=2.0, max_iter=1000).fit(scaler.transform(x[fold != k]), y[fold != k])
        out[fold == k] = part.decision_function(scaler.transform(x[fold == k]))
    sigmoid = LogisticRegression(C=1e6).fit(out[:, None], y)
    raw = -found.score(x)
    np.testing.assert_allclose(found.gain(x), sigmoid.predict_proba(raw[:, None])[:, 1], rtol=1e-6)
    np.testing.assert_allclose(found.raw_probability(x), 1 / (1 + np.exp(-raw)))


def test_a_difference_is_what_ridge_regression_expects() -> None:
    from sklearn.linear_model import Ridge

    x, small, large = planted(80, 8)
    found = DeferralRule(target="difference", penalty=3.0).fit(x, small, large)
    scaler = StandardScaler().fit(x)
    witness = Ridge(alpha=3.0).fit(scaler.transform(x), large - small).predict(scaler.transform(x))
    np.testing.assert_allclose(found.gain(x), witness)
    np.testing.assert_array_equal(found.score(x), -found.gain(x))


def test_odds_of_a_lone_answer() -> None:
    x = np.zeros((20, 3))
    for large, sign in ((np.zeros(20), 1), (np.full(20, 2.0), -1)):
        np.testing.assert_allclose(DeferralRule().fit(x, np.ones(20), large).score(x), sign * math.log(41))


def test_pieces_of_the_report_by_hand() -> None:
    some = Written(np.zeros((1, 3)), np.array([[1.0, 0.0, 1.0]]), np.zeros((1, 0)))
    assert some.quality(np.array([[True, True, False]])).tolist() == [0.5]
    judged = Judged(tokens([[-1.0], [-2.0]]), np.zeros(2), np.ones(2), np.full((2, 2), 5.0), np.full((2, 3), 7.0))
    assert [judged.features(name).shape[1] for name in ("learned", "embed-1", "embed-1+2")] == [14, 16, 19]
    assert judged.features("embed-1+2")[0, 14:].tolist() == [5, 5, 7, 7, 7]
    state = torch.randn(2, 4, 5, 3, generator=stream())
    torch.testing.assert_close(_pooled(nn.Linear(3, 3), state, torch.ones(2), False), state.mean(dim=(1, 2)))
    curve = deferral_curve([0, 1], [0, 0], [1, 1])
    told = _of_curve("a", curve, cost_curve(curve, 0.2, 1.0), 0.0, 1.0, 0.2, [0.5])
    assert told["a: quality at 0.5 of the way in cost"] == pytest.approx(0.5)


def test_padding_of_texts_does_not_count() -> None:
    net = SmallNetwork(Spec("text", "classes", (4,), 3, vocabulary=9), 4).eval()
    torch.testing.assert_close(net(torch.tensor([[5, 1, 0, 0]])), net(torch.tensor([[5, 1]])))


class TimeFirst(nn.Module):
    """Embeddings of places, and torch's encoder as it is by default, with time before rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place = nn.Embedding(9, 8), nn.Embedding(4, 8)
        self.inner, self.last = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), nn.Linear(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = (self.embed(x) + self.place(torch.arange(x.shape[1]))).transpose(0, 1)
        return self.last(self.inner(h)).transpose(0, 1)


@pytest.mark.parametrize("rows", [4, 5])  # four rows of four places are told apart too
def test_layers_that_take_time_first_give_states_by_row(rows: int) -> None:
    net = TimeFirst().eval()
    x = torch.randint(1, 9, (rows, 4), generator=stream())
    found = middle_of(net, x, 0.6)
    assert found.module is net.inner.linear1
    assert (found.run, found.rows) == (0, 1)
    lengths = torch.arange(rows) % 4 + 1
    state = write(net, Part(x, x, torch.arange(rows)), lengths, found.module, found.run, found.rows).state
    with torch.no_grad():
        h = (net.embed(x) + net.place(torch.arange(4))).transpose(0, 1)
        h = net.inner.norm1(h + net.inner.self_attn(h, h, h)[0])
        inside = net.inner.linear1(h).transpose(0, 1)
    for i, length in enumerate(lengths.tolist()):
        np.testing.assert_allclose(state[i], inside[i, :length].mean(dim=0).numpy(), atol=1e-5)


class Folded(nn.Module):
    """A layer on all places of all rows at once, and one on numbers of places."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.place, self.head = nn.Linear(1, 8), nn.Embedding(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.all(x.reshape(-1, 1)).view(-1, 4, 8) + self.place(torch.arange(4))
        return self.head(h.mean(dim=1))


def test_runs_without_a_state_for_every_row_are_passed_over() -> None:
    net = Folded()
    for rows in (2, 4, 8):
        assert middle_of(net, torch.randn(rows, 4), 0.1).module is net.head
    with pytest.raises(ValueError, match="a state for every row; leave embed"):
        middle_of(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1)), torch.randn(3, 4))


def test_states_are_pooled_over_the_output_alone() -> None:
    lengths = torch.tensor([2, 5])
    state = torch.arange(30.0).view(2, 3, 5)
    expected = torch.stack([state[0, :, :2].mean(dim=1), state[1].mean(dim=1)])
    torch.testing.assert_close(_pooled(nn.Conv1d(3, 3, 1), state, lengths, True), expected)
    torch.testing.assert_close(_pooled(nn.Linear(3, 3), state.transpose(1, 2), lengths, True), expected)
    torch.testing.assert_close(_pooled(nn.Conv1d(3, 3, 1), state, lengths, False), state.mean(dim=2))
    many = torch.full((1, 2000, 2), 100.0, dtype=torch.float16)  # whose sum is beyond float16
    assert _pooled(nn.Linear(2, 2), many, torch.tensor([2000]), True).tolist() == [[100, 100]]


def test_missing_tokens_are_told_and_not_counted_as_wrong() -> None:
    ids = torch.randint(1, 9, (20, 6), generator=stream())
    y = ids.roll(-1, dims=1)
    part = Part(ids, y, torch.arange(20))
    data = Data(Spec("text", "next-token", (6,), 9, vocabulary=9), part, part, part)
    y = y.clone()
    y[3, 2] = -100
    bad = Data(data.spec, part, part, Part(ids, y, torch.arange(20)))
    with pytest.raises(ValueError, match="test: target holds the label -100"):
        lm_cascade(lambda: SmallNetwork(data.spec, 8), bad, stream(), steps=2)


class Cut(nn.Module):
    """Texts cut to the longest of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.embed(x[:, : int((x != 0).sum(dim=1).max())]))
        return self.head(h.relu().mean(dim=1))


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [0]])
def test_the_longest_text_may_stand_anywhere(order: list[int]) -> None:
    net, x = Cut(), torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0], [3, 0, 0, 0]])[order]
    found = middle_of(net, x, 0.1)
    assert found.module is net.inner
    assert found.rows == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision_write(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)).to(dtype).eval()
    x = torch.randn(6, 3, generator=stream())
    part, lengths = Part(x, torch.zeros(6, dtype=torch.int64), torch.arange(6)), torch.ones(6)
    with torch.no_grad():
        log_p = net(x.to(dtype)).float().log_softmax(dim=1).amax(dim=1, keepdim=True)
        inside = net[0](x.to(dtype))
    for rows in (part, Part(x.to(dtype), part.y, part.rows)):
        plain, looked = write(net, rows, lengths), write(net, rows, lengths, net[0], 0)
        np.testing.assert_array_equal(plain.log_p, log_p)
        np.testing.assert_array_equal(looked.log_p, log_p)
        np.testing.assert_array_equal(looked.state, inside.double())


@pytest.mark.parametrize("rule", ["logistic", "mlp"])
@pytest.mark.parametrize("target", ["better", "difference"])
def test_features_of_half_precision_are_computed_wide(rule: str, target: str) -> None:
    rng = np.random.default_rng(0)
    narrow = (1e4 + 500 * rng.normal(size=(60, 3))).astype(np.float16)
    wide, small, large = narrow.astype(np.float64), np.zeros(60), rng.random(60) - 0.5
    expected = DeferralRule(rule, target, hidden=4).fit(wide, small, large)
    for features in (narrow, torch.tensor(narrow, requires_grad=True)):
        found = DeferralRule(rule, target, hidden=4).fit(features, small, large)
        np.testing.assert_array_equal(found.score(features), expected.score(wide))
        np.testing.assert_array_equal(found.gain(features), expected.gain(wide))
    rows = torch.tensor(wide, dtype=torch.bfloat16)
    assert np.isfinite(DeferralRule().fit(rows, torch.zeros(60), torch.tensor(large)).raw_probability(rows)).all()


class RowByRow(nn.Module):
    """One layer run on every row by itself, so that its runs are as many as the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.inner(row) for row in x.split(1)]))


def test_a_layer_run_row_by_row_gives_no_state_of_all_rows() -> None:
    net, x = RowByRow().eval(), torch.randn(5, 6, generator=stream())
    found = middle_of(net, x, 0.1)
    assert found.module is net.head
    part = Part(x, torch.zeros(5, dtype=torch.int64), torch.arange(5))
    assert write(net, part, torch.ones(5), found.module, found.run, found.rows).state.shape == (5, 2)


def test_maps_of_texts_are_averaged_over_all_places() -> None:
    state = torch.arange(120.0).view(2, 3, 4, 5)
    found = _pooled(nn.Conv2d(3, 3, 1), state, torch.tensor([1, 4]), True)
    torch.testing.assert_close(found, state.mean(dim=(2, 3)))
