"""Data filtering: what is kept, the streaming threshold, the contrastive loss by hand, filters on a planted pool, misuse."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.measure.detection import detection
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.spec import Part
from probatum.techniques.select.data_filtering_network.contrastive import TwoTowers, fit_pairs, info_nce
from probatum.techniques.select.data_filtering_network.data_filtering_network import (
    KINDS,
    StreamingThreshold,
    _labels,
    check_apart,
    keep_top,
    score,
)
from small_networks import Begins

pytestmark = pytest.mark.fast


def test_keeps_exactly_the_ceiling_and_follows_permutations() -> None:
    own = torch.Generator().manual_seed(0)
    scores = torch.randn(101, generator=own)
    for share in (0.01, 0.15, 0.5, 1.0):
        assert len(keep_top(scores, share).rows) == math.ceil(share * 101)
    for share, n, kept in ((0.07, 100, 7), (0.55, 100, 55), (0.071, 100, 8), (0.29, 100, 29), (0.001, 10, 1)):
        assert len(keep_top(torch.randn(n, generator=own), share).rows) == kept  # 0.07 * 100 is a little more than 7
        stream = StreamingThreshold(share, own)
        stream.update(torch.arange(float(n)))
        assert stream.value() == n - kept
    order = torch.randperm(101, generator=own)
    assert set(order[keep_top(scores[order], 0.3).rows].tolist()) == set(keep_top(scores, 0.3).rows.tolist())
    assert keep_top(torch.zeros(10), 0.25).rows.tolist() == [0, 1, 2]
    y = torch.arange(101) % 2
    assert keep_top(scores, 0.3).classes.shape == (0,)
    kept = keep_top(scores, 0.3, y)
    assert kept.classes.tolist() == pytest.approx([float((y[kept.rows] == c).double().mean()) for c in (0, 1)])


def test_streaming_threshold_keeps_what_the_batch_keeps() -> None:
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    whole = StreamingThreshold(0.15, torch.Generator().manual_seed(0), size=5000)
    sampled = StreamingThreshold(0.15, torch.Generator().manual_seed(0), size=1000)
    for shard in scores.split(700):
        whole.update(shard)
        sampled.update(shard)
    expected = scores[keep_top(scores, 0.15).rows].min()
    assert whole.value() == float(expected)
    assert float((scores >= sampled.value()).float().mean()) == pytest.approx(0.15, abs=0.03)
    assert len(sampled.sample) == 1000
    with pytest.raises(ValueError, match="no score was seen"):
        StreamingThreshold(0.5, torch.Generator()).value()


def test_reservoir_holds_early_and_late_alike() -> None:
    late = 0
    for seed in range(60):
        threshold = StreamingThreshold(0.5, torch.Generator().manual_seed(seed), size=20)
        threshold.update(torch.arange(200.0))
        late += int((threshold.sample >= 100).sum())
    assert late / (60 * 20) == pytest.approx(0.5, abs=0.06)


def test_info_nce_is_cross_entropy_both_ways() -> None:
    own = torch.Generator().manual_seed(2)
    a, b = (F.normalize(torch.randn(6, 4, generator=own, dtype=torch.float64), dim=1) for _ in range(2))
    rows, columns = [], []
    for i in range(6):
        up = torch.exp(5.0 * (a[i] @ b[i]))
        rows.append(-torch.log(up / sum(torch.exp(5.0 * (a[i] @ b[j])) for j in range(6))))
        columns.append(-torch.log(up / sum(torch.exp(5.0 * (a[j] @ b[i])) for j in range(6))))
    expected = (sum(rows) / 6 + sum(columns) / 6) / 2
    assert float(info_nce(a, b, 5.0)) == pytest.approx(float(expected))
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: info_nce(v, b, 3.0), (a,))


def test_towers_learn_pairs_and_see_as_many() -> None:
    own = torch.Generator().manual_seed(3)
    x = torch.randn(200, 5, generator=own)
    torch.manual_seed(0)
    seen: list[int] = []

    class Counting(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            seen.append(len(rows))
            return super().forward(rows)

    model = TwoTowers(Counting(5, 4), nn.Linear(5, 4))
    before = torch.get_rng_state()
    fit_pairs(model, x, x, 3000, 50, 1e-2, own)
    assert torch.equal(before, torch.get_rng_state())
    assert sum(seen) == 3000
    assert model.scores(x, x).mean() > model.scores(x, x.roll(1, 0)).mean() + 0.5
    assert torch.equal(model.classify(x[:7], x[:3]).argmax(dim=1)[:3], torch.arange(3))


@pytest.mark.parametrize(("temperature", "scale"), [(0.5, 2.0), (0.2, 5.0), (0.001, 100.0)])
def test_the_temperature_is_learned_from_where_it_is_told_and_bounded(temperature: float, scale: float) -> None:
    own = torch.Generator().manual_seed(4)
    x, t = torch.randn(6, 4, generator=own), torch.randn(6, 4, generator=own)
    towers = TwoTowers(nn.Identity(), nn.Identity(), temperature)
    unit = x / x.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    assert float(towers(x, t).detach()) == pytest.approx(float(info_nce(*unit, scale)), rel=1e-5)
    assert towers.scores(x, t, block=4).tolist() == pytest.approx((unit[0] * unit[1]).sum(1).tolist(), rel=1e-5)
    with pytest.raises(ValueError, match="zip"):
        towers.scores(x, t[:3], block=3)


def test_pairs_are_fitted_by_adamw_along_a_cosine() -> None:
    own = torch.Generator().manual_seed(5)
    x, seen, modes = torch.randn(4, 3, generator=own), [], []

    class Watched(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            seen.append(rows.detach().clone())
            modes.append(self.training)
            return super().forward(rows)

    torch.manual_seed(0)
    model = TwoTowers(Watched(3, 2), nn.Linear(3, 2)).eval()
    twin = TwoTowers(nn.Linear(3, 2), nn.Linear(3, 2))
    twin.load_state_dict(model.state_dict())
    fit_pairs(model, x, x, 9, 2, 0.1, torch.Generator().manual_seed(1), weight_decay=0.3)
    assert [len(rows) for rows in seen] == [2] * 5  # 9 pairs in batches of 2
    assert all(modes)
    assert not model.training
    for two in (seen[:2], seen[2:4]):  # a pass holds every row once
        assert sorted(torch.cat(two)[:, 0].tolist()) == sorted(x[:, 0].tolist())
    state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in twin.parameters()]
    for step, rows in enumerate(seen):
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 5))
        gradients = torch.autograd.grad(twin(rows, rows), list(twin.parameters()))
        with torch.no_grad():
            for (p, first, second), g in zip(state, gradients, strict=True):
                first.mul_(0.9).add_(0.1 * g)
                second.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - rate * 0.3)
                p.sub_(rate * (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))
    for mine, hers in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, hers, atol=1e-4, rtol=1e-3)
    seen.clear()
    fit_pairs(model, x, x, 1, 2, 0.1, torch.Generator().manual_seed(1))
    assert len(seen) == 1


def test_of_two_scores_either_stays_as_often() -> None:
    late = 0
    for seed in range(400):
        threshold = StreamingThreshold(1.0, torch.Generator().manual_seed(seed), size=1)
        threshold.update(torch.tensor([0.0]))
        threshold.update(torch.tensor([1.0]))
        late += int(threshold.value())
    assert late / 400 == pytest.approx(0.5, abs=0.08)


def planted(n: int = 300) -> tuple[Tensor, Tensor, Tensor, Part]:
    own = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % 3
    x = 3 * F.one_hot(truth, 3).float() + torch.randn(n, 3, generator=own)
    flipped = torch.rand(n, generator=own) < 0.3
    y = torch.where(flipped, (truth + 1) % 3, truth)
    return x[100:], y[100:], flipped[100:], Part(x[:100], truth[:100], torch.arange(100))


def seeded_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 3)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "clean"])
def test_filters_find_mismatched_labels(kind: str) -> None:
    x, y, flipped, trusted = planted()
    found = score(seeded_layer, x, y, torch.Generator().manual_seed(1), trusted, kind=kind, steps=150, lr=0.03)
    assert detection(found.double(), flipped)["flip-auroc"] > 0.95


@pytest.mark.parametrize(("log_scale", "scale"), [(math.log(3.0), 3.0), (9.0, 100.0)])
def test_a_label_has_all_rows_of_its_class_for_positives(log_scale: float, scale: float) -> None:
    _, _, _, trusted = planted()
    right = nn.Embedding.from_pretrained(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)), freeze=False)
    towers = _labels(seeded_layer(), right, trusted, torch.Generator().manual_seed(1), 1, 8, 1e-3)
    towers.log_scale.data.fill_(log_scale)
    x, y = trusted.x[:7], torch.tensor([0, 0, 2, 0, 2, 2, 2])  # nobody of class 1
    a, b = F.normalize(towers.left(x), dim=1), F.normalize(right.weight, dim=1)
    rows = [-(scale * a[i] @ b[y[i]] - (scale * b @ a[i]).logsumexp(0)) for i in range(7)]
    back = {
        c: [-(scale * a[i] @ b[c] - (scale * a @ b[c]).logsumexp(0)) for i in range(7) if y[i] == c] for c in (0, 2)
    }
    expected = (sum(rows) / 7 + (sum(back[0]) / 3 + sum(back[2]) / 4) / 2) / 2
    assert float(towers(x, y).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_single_modality_forms_by_value() -> None:
    x, y, _, trusted = planted(160)
    own = {"steps": 20, "lr": 0.03}
    found = score(seeded_layer, x, y, torch.Generator().manual_seed(1), trusted, kind="classifier", **own)
    net = fit_network(seeded_layer(), trusted.x, trusted.y, 20, 64, 0.03, torch.Generator().manual_seed(1))
    log_p = net(x).log_softmax(dim=1).detach()
    assert found.tolist() == pytest.approx([float(log_p[i, c]) for i, c in enumerate(y.tolist())], abs=1e-6)

    def pair() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    odds = score(pair, x, y, torch.Generator().manual_seed(1), trusted, kind="clean", **own)
    label = torch.cat([torch.zeros(len(x)), torch.ones(100)]).long()
    net = fit_network(pair(), torch.cat([x, trusted.x]), label, 20, 64, 0.03, torch.Generator().manual_seed(1))
    p = net(x).softmax(dim=1).detach()
    torch.testing.assert_close(odds, (p[:, 1] / p[:, 0]).log(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision(kind: str) -> None:
    x, y, _, trusted = planted(160)
    wide = Part(trusted.x.double(), trusted.y, trusted.rows)
    own = {"kind": kind, "steps": 30, "lr": 0.03}
    single = score(seeded_layer, x, y, torch.Generator().manual_seed(1), trusted, **own)
    double = score(lambda: seeded_layer().double(), x.double(), y, torch.Generator().manual_seed(1), wide, **own)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single, double.float(), atol=1e-4, rtol=1e-4)


def test_clean_odds_find_rows_from_elsewhere() -> None:
    x, y, _, trusted = planted()
    x = x.clone()
    x[:50] += 8.0
    torch.manual_seed(0)

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 3))

    found = score(net, x, y, torch.Generator().manual_seed(1), trusted, kind="clean", steps=200, lr=0.01)
    assert found[:50].mean() < found[50:].mean() - 1


def test_misuse() -> None:
    x, y, _, trusted = planted()
    with pytest.raises(ValueError, match="3 of 300 rows are also test rows"):
        score(lambda: nn.Linear(3, 3), x, y, torch.Generator(), trusted, test=torch.cat([x[5:8] + 1e-6, x[:4] + 9]))
    check_apart(x, x + 1.0)
    with pytest.raises(ValueError, match="share is 0"):
        keep_top(torch.rand(5), 0.0)
    with pytest.raises(ValueError, match="2 of 3 scores are not finite"):
        keep_top(torch.tensor([1.0, float("nan"), float("inf")]), 0.5)
    threshold = StreamingThreshold(0.5, torch.Generator())
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        threshold.update(torch.tensor([float("nan"), 1.0]))
    assert threshold.seen == 0
    with pytest.raises(ValueError, match="kind is 'clip'"):
        score(lambda: nn.Linear(3, 3), x, y, torch.Generator(), trusted, kind="clip")
    for name, least in (("steps", 1), ("batch_size", 2)):
        with pytest.raises(ValueError, match=f"{name} is {least - 1}"):
            score(seeded_layer, x, y, torch.Generator(), trusted, **{"steps": 1, name: least - 1})
        assert len(score(seeded_layer, x, y, torch.Generator(), trusted, **{"steps": 1, name: least})) == len(x)
    for wrong, message in ((torch.where(y == 1, -100, y), "-100"), (torch.where(y == 1, 3, y), "3")):
        for kind in ("contrastive", "classifier"):
            with pytest.raises(ValueError, match=f"the label {message}"):
                score(seeded_layer, x, wrong, torch.Generator(), trusted, kind=kind, steps=1)
            few = Part(x, wrong, torch.arange(len(x)))
            with pytest.raises(ValueError, match=f"the label {message}"):
                score(seeded_layer, x, y, torch.Generator(), few, kind=kind, steps=1)
    one = Part(trusted.x[:1], trusted.y[:1], trusted.rows[:1])
    with pytest.raises(ValueError, match="1 trusted rows"):
        score(lambda: nn.Linear(3, 3), x, y, torch.Generator(), one)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_in_a_column_or_of_another_whole_type(kind: str) -> None:
    x, y, _, trusted = planted(160)
    other = Part(trusted.x, trusted.y[:, None].int(), trusted.rows)
    found = [score(seeded_layer, x, y, torch.Generator(), part, kind=kind, steps=3) for part in (trusted, other)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_stay_where_a_network_begins_in_place(kind: str) -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    y, before = (x[:, 0] > 0).long(), x.clone()
    trusted = Part(x[:10], y[:10], torch.arange(10))
    score(
        lambda: nn.Sequential(Begins(), nn.Linear(3, 2)), x, y, torch.Generator().manual_seed(0), trusted,
        kind=kind, steps=2, batch_size=5,
    )  # fmt: skip
    assert torch.equal(x, before)


def test_classifying_leaves_rows_and_prompts_as_they_are() -> None:
    towers, x = (
        TwoTowers(nn.Sequential(Begins(), nn.Linear(3, 2)), nn.Sequential(Begins(), nn.Linear(3, 2))),
        torch.zeros(4, 3),
    )
    towers.classify(x, x)
    towers.scores(x, x)
    towers(x, x)
    assert not bool(x.any())


def test_copies_go_on_alike_and_leave_the_original_alone() -> None:
    own = torch.Generator().manual_seed(0)
    stream = StreamingThreshold(0.3, torch.Generator().manual_seed(1), size=20)
    stream.update(torch.randn(50, generator=own))
    more, kept, before = torch.randn(50, generator=own), stream.sample.clone(), stream.value()
    copies = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
    for copied in copies:
        assert copied.value() == before
        copied.update(more)
    assert torch.equal(stream.sample, kept)
    stream.update(more)
    assert all(torch.equal(copied.sample, stream.sample) for copied in copies)
    towers, x = TwoTowers(nn.Linear(3, 2), nn.Linear(3, 2)), torch.randn(12, 3, generator=own)
    scores = towers.scores(x, x)
    for copied in (copy.deepcopy(towers), pickle.loads(pickle.dumps(towers))):
        assert torch.equal(copied.scores(x, x), scores)
        fit_pairs(copied, x, x, 24, 6, 0.1, torch.Generator().manual_seed(2))
        assert not torch.equal(copied.scores(x, x), scores)
    assert torch.equal(towers.scores(x, x), scores)
