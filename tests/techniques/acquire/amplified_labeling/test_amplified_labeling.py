"""Amplified labelling: thresholds by brute force, the partition, perfect and useless scorers, the bench's form, misuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.labels.annotators import binomial_interval
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.spec import Pool
from probatum.techniques.acquire.amplified_labeling import amplified_labeling
from probatum.techniques.acquire.amplified_labeling.amplified_labeling import (
    amplify,
    ask,
    audit,
    choose_thresholds,
    network_scorer,
)
from probatum.techniques.acquire.amplified_labeling.crowd import Crowd

pytestmark = pytest.mark.fast

NONE = torch.zeros(0, dtype=torch.int64)


def pool_of(n: int = 3000, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(0)
    truth = torch.rand(n, generator=own) < 0.2
    return (truth.float() * 2 - 1)[:, None] * 2 + noise * torch.randn(n, 1, generator=own), truth


def perfect(x: Tensor, y: Tensor, generator: torch.Generator):  # type: ignore[no-untyped-def]
    return lambda rows: rows[:, 0]


def test_thresholds_meet_both_constraints_and_are_the_best_that_do() -> None:
    own = torch.Generator().manual_seed(4)
    truth = torch.rand(400, generator=own) < 0.4
    scores = truth.float() * 3 + torch.randn(400, generator=own)
    found = choose_thresholds(scores, truth, precision=0.9, lost=0.05, confidence=0.9)
    above = truth[scores >= found.high]
    assert binomial_interval(int(above.sum()), len(above), 0.8)[0] >= 0.9
    assert float((scores[truth] < found.low).float().mean()) <= 0.05
    lower = [float(s) for s in scores if float(s) < found.high]
    for s in lower:
        some = truth[scores >= s]
        assert binomial_interval(int(some.sum()), len(some), 0.8)[0] < 0.9
    just_above = scores[scores > found.low].min()
    assert float((scores[truth] < just_above).float().mean()) > 0.05 or found.low == found.high


def test_a_bound_needs_enough_items() -> None:
    truth = torch.ones(20, dtype=torch.bool)
    assert choose_thresholds(torch.rand(20), truth, 0.95, 0.0, 0.9).high == float("inf")
    many = torch.ones(60, dtype=torch.bool)
    assert choose_thresholds(torch.rand(60), many, 0.95, 0.0, 0.9).high < 1


def test_spare_positives_are_counted_in_whole_numbers() -> None:
    scores, truth = torch.arange(100.0), torch.ones(100, dtype=torch.bool)
    assert choose_thresholds(scores, truth, 1.0, 0.29, 0.9).low == 29.0  # 0.29 * 100 is a little less than 29


def test_equal_scores_are_not_parted() -> None:
    scores = torch.cat([torch.ones(60), torch.zeros(60)])
    truth = torch.cat([torch.ones(60, dtype=torch.bool), torch.arange(60) < 30])
    assert choose_thresholds(scores, truth, 0.9, 0.0, 0.9) == (1.0, 0.0)


def test_a_perfect_scorer_ends_in_one_round_and_the_pool_is_partitioned() -> None:
    x, truth = pool_of(noise=0.1)
    found = amplify(x, lambda rows: truth[rows], perfect, torch.Generator().manual_seed(1), sample=600, lost=0.0)
    assert len(found.rounds) == 1
    assert torch.cat(found[:3]).sort().values.tolist() == list(range(len(x)))
    assert truth[found.positive].float().mean() > 0.99
    assert not truth[found.negative].any() or truth[found.negative].float().mean() < 0.01


def test_rounds_partition_and_answers_are_kept() -> None:
    x, truth = pool_of()
    asked: list[int] = []

    def people(rows: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        return truth[rows]

    found = amplify(x, people, perfect, torch.Generator().manual_seed(1), sample=300, rounds=3, exhaustive=0)
    assert len(asked) == len(set(asked)) == len(found.asked)
    assert torch.cat(found[:3]).sort().values.tolist() == list(range(len(x)))
    state = torch.zeros(len(x), dtype=torch.bool)
    state[found.positive] = True
    assert torch.equal(state[found.asked], truth[found.asked])
    pools = [one.pool for one in found.rounds]
    assert pools == sorted(pools, reverse=True)
    checked = audit(found, lambda rows: truth[rows], 500, torch.Generator().manual_seed(2))
    exact = float(truth[found.positive].float().mean())
    assert checked.precision[1] <= exact <= checked.precision[2]


def test_thresholds_rest_on_items_that_no_earlier_one_has_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, amplified_labeling.Thresholds]] = []
    choose = amplified_labeling.choose_thresholds

    def watched(scores: Tensor, *rest: object) -> amplified_labeling.Thresholds:
        seen.append((scores, choose(scores, *rest)))  # type: ignore[arg-type]
        return seen[-1][1]

    monkeypatch.setattr(amplified_labeling, "choose_thresholds", watched)
    x, truth = pool_of(noise=1.3)
    amplify(x, lambda rows: truth[rows], perfect, torch.Generator().manual_seed(1), sample=500, rounds=3, exhaustive=0)
    assert len(seen) == 3
    for k in (1, 2):  # the scorer never changes, so that what earlier thresholds placed lies outside them still
        scores = seen[k][0]
        assert float(scores.min()) >= max(limits.low for _, limits in seen[:k])
        assert float(scores.max()) < min(limits.high for _, limits in seen[:k])


def test_rows_taken_over_late_are_as_precise_as_asked() -> None:
    own = torch.Generator().manual_seed(0)
    n = 6000
    hard = torch.arange(n) >= 4200  # whose labels nothing tells
    truth = torch.where(hard, torch.rand(n, generator=own) < 0.5, torch.arange(n) % 3 == 0)
    x = torch.where(hard, 0.0, truth * 6.0 - 3.0)[:, None] + 0.01 * torch.randn(n, 1, generator=own)
    trained = 0

    def fit(_x: Tensor, _y: Tensor, generator: torch.Generator):  # type: ignore[no-untyped-def]
        nonlocal trained
        trained += 1
        spread = torch.randn(n, generator=torch.Generator().manual_seed(trained))  # every one sees other differences
        return lambda rows: rows[:, 0] + spread[(rows[:, 0].abs() * 1e6).long() % n] * (rows[:, 0].abs() < 1)

    settings = {"sample": 800, "rounds": 3, "exhaustive": 0, "lost": 0.05}
    found = amplify(x, lambda rows: truth[rows], fit, torch.Generator().manual_seed(2), **settings)
    assert found.rounds[0].positive > 1000  # the easy ones
    assert sum(one.positive for one in found.rounds[1:]) == 0  # a coin is right in half of the rows, 0.95 is asked


def test_a_useless_scorer_takes_nothing_over() -> None:
    x, truth = pool_of()
    own = torch.Generator().manual_seed(5)
    found = amplify(
        x,
        lambda rows: truth[rows],
        lambda *_: lambda rows: torch.rand(len(rows), generator=own),
        torch.Generator().manual_seed(1),
        sample=300,
        rounds=2,
        exhaustive=0,
        lost=0.0,
    )
    assert sum(one.positive for one in found.rounds) == 0
    assert len(found.middle) > 0.6 * len(x)


def test_crowd_pays_for_every_answer_and_lets_bad_workers_go() -> None:
    truth = torch.arange(4000) % 10 == 0
    good = Crowd(truth, torch.Generator().manual_seed(0), errors=(0.03,) * 4, gold=0.0)
    wrong = (good(torch.arange(4000)) != truth).float().mean()
    assert float(wrong) < 0.004
    assert 2.0 < good.answers / 4000 < 2.4
    mixed = Crowd(truth, torch.Generator().manual_seed(0), errors=(0.02, 0.02, 0.45), gold=0.1)
    mixed(torch.arange(1500))
    assert mixed.active == [0, 1]
    with pytest.raises(ValueError, match="errors are"):
        Crowd(truth, torch.Generator(), errors=(0.6,))


def test_a_crowd_decides_by_leads_and_by_a_coin_where_nobody_leads() -> None:
    truth = torch.zeros(2000, dtype=torch.bool)
    unsure = Crowd(truth, torch.Generator().manual_seed(1), errors=(0.49,), lead=(2, 2), most=2, gold=0.0)
    assert unsure.answers == 0
    yes = float(unsure(torch.arange(2000)).float().mean())
    assert yes == pytest.approx(0.49**2 + 0.49 * 0.51, abs=0.04)  # two wrong ones, or half of the ties
    assert unsure.answers == 4000
    once = Crowd(truth, torch.Generator().manual_seed(1), errors=(0.0,), most=1, gold=0.0)
    assert not once(torch.arange(50)).any()
    assert once.answers == 50


def test_a_small_middle_is_labelled_by_people() -> None:
    x, truth = pool_of(900)
    own = torch.Generator().manual_seed(5)
    found = amplify(
        x,
        lambda rows: truth[rows],
        lambda *_: lambda rows: torch.rand(len(rows), generator=own),
        torch.Generator().manual_seed(1),
        sample=300,
        rounds=1,
        exhaustive=700,
        lost=0.0,
    )
    assert len(found.middle) == 0
    decided = torch.isin(torch.arange(900), found.asked)
    assert int(decided.sum()) > 800
    positive = torch.zeros(900, dtype=torch.bool).index_fill(0, found.positive, True)
    assert torch.equal(positive[decided], truth[decided])


def test_audits_by_hand() -> None:
    found = amplified_labeling.Cascade(
        torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4]), torch.tensor([0]), ()
    )  # fmt: skip
    truth = torch.tensor([True, False, False, False, False])
    checked = audit(found, lambda rows: truth[rows], 5, torch.Generator().manual_seed(0))
    assert checked.precision == (0.5, *binomial_interval(1, 2))
    assert checked.recall == (1.0, *binomial_interval(1, 1))
    missed = audit(found, lambda rows: truth[(rows + 3) % 5], 5, torch.Generator().manual_seed(0), level=0.8)
    assert missed.precision == (0.0, *binomial_interval(0, 2, 0.8))
    assert missed.recall == (0.0, *binomial_interval(0, 1, 0.8))


def test_scores_are_log_odds() -> None:
    x, truth = pool_of(200)

    def factory() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(1, 2)

    fit = network_scorer(factory, steps=5, lr=0.05)
    found = fit(x, truth, torch.Generator().manual_seed(0))(x)
    net = fit_network(factory(), x, truth.long(), 5, 64, 0.05, torch.Generator().manual_seed(0))
    p = net(x).softmax(dim=1).detach()
    torch.testing.assert_close(found, (p[:, 1] / p[:, 0]).log(), atol=1e-4, rtol=1e-4)


def test_network_scorer_separates() -> None:
    x, truth = pool_of(400)
    torch.manual_seed(0)
    fit = network_scorer(lambda: nn.Linear(1, 2), steps=100, lr=0.05)
    score = fit(x, truth, torch.Generator().manual_seed(0))(x)
    assert score[truth].mean() > score[~truth].mean() + 1


def bench_pool(labelled: int) -> tuple[Pool, Tensor]:
    own = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = 5 * nn.functional.one_hot(y, 3).float() + torch.randn(300, 3, generator=own)
    net = nn.Linear(3, 3, bias=False).eval()
    with torch.no_grad():
        net.weight.copy_(2 * torch.eye(3))
    return Pool(x, torch.arange(labelled), y[:labelled], net, NONE, NONE, 0, 30), y


def test_on_the_bench_sure_rows_are_taken_over_once_the_bound_allows() -> None:
    def factory() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 3)

    own = {"steps": 80, "lr": 0.05}
    few, y = bench_pool(20)
    assert len(ask(few, 5, torch.Generator().manual_seed(0), factory, **own).machine) == 0  # 20 labels show nothing
    many, y = bench_pool(90)
    found = ask(many, 5, torch.Generator().manual_seed(0), factory, **own)
    assert len(found.machine) > 100
    assert float((found.guesses == y[found.machine]).float().mean()) > 0.95
    assert not torch.isin(found.ask, found.machine).any()
    assert not torch.isin(found.machine, many.labelled).any()


def test_enough_rows_are_left_to_ask_for_and_no_more() -> None:
    def factory() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 3)

    own = {"steps": 80, "lr": 0.05}
    many, _ = bench_pool(90)
    few, rest = (ask(many, count, torch.Generator().manual_seed(0), factory, **own) for count in (2, 150))
    limit = amplified_labeling._limit(many, torch.Generator().manual_seed(0), factory, 0.95, 0.9, 4, 80, 32, 0.05)
    sure = many.model(many.x[many.open()]).softmax(dim=1).amax(dim=1) >= limit
    assert 2 < int((~sure).sum()) < 150
    assert few.machine.tolist() == many.open()[sure].tolist()
    assert len(few.ask) == 2
    assert len(rest.ask.unique()) == 150
    assert len(rest.machine) == 210 - 150
    assert torch.isin(rest.machine, few.machine).all()


def test_networks_that_are_always_wrong_take_nothing_over() -> None:
    def stubborn() -> nn.Module:
        layer = nn.Linear(3, 4)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0]))
        return layer

    many, _ = bench_pool(90)
    assert len(ask(many, 5, torch.Generator(), stubborn, steps=1, lr=1e-6).machine) == 0


def test_misuse() -> None:
    x, _ = pool_of(500)
    nobody = torch.zeros(500, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"0 positives among the first 100 items.*larger sample"):
        amplify(x, lambda rows: nobody[rows], perfect, torch.Generator(), sample=100)
    with pytest.raises(ValueError, match="no positive among the held-out"):
        choose_thresholds(torch.rand(5), torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="confidence is 1"):
        choose_thresholds(torch.rand(5), torch.ones(5, dtype=torch.bool), confidence=1.0)
    with pytest.raises(ValueError, match="1 of 5 scores are not finite"):
        choose_thresholds(torch.tensor([0.1, 0.2, float("nan"), 0.3, 0.4]), torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="held_out 1"):
        amplify(x, lambda rows: nobody[rows], perfect, torch.Generator(), held_out=1.0)
    few, _ = bench_pool(20)
    with pytest.raises(ValueError, match=r"precision is 1\.5"):
        ask(few, 5, torch.Generator(), lambda: nn.Linear(3, 3), precision=1.5)


def test_answers_of_ones_and_zeros_are_truth_values() -> None:
    own = torch.Generator().manual_seed(0)
    scores = torch.rand(300, generator=own)
    truth = torch.rand(300, generator=own) < scores
    expected = choose_thresholds(scores, truth, 0.8, 0.05)
    assert choose_thresholds(scores, truth.long(), 0.8, 0.05) == expected
    assert int((truth & (scores < expected.low)).sum()) == int(0.05 * int(truth.sum()))
    found = amplified_labeling.Cascade(torch.arange(200), torch.arange(200, 300), *[torch.zeros(0).long()] * 2, ())
    reports = [
        audit(found, lambda rows, t=t: t[rows], 100, torch.Generator().manual_seed(1)) for t in (truth, truth.int())
    ]
    assert reports[0] == reports[1]
    with pytest.raises(TypeError, match="truth has dtype"):
        choose_thresholds(scores, truth.float())
    with pytest.raises(ValueError, match=r"scores have shape \(300, 1\)"):
        choose_thresholds(scores[:, None], truth[:, None])


def test_copies_go_on_alike_and_leave_the_original_alone() -> None:
    x, truth = pool_of(300)
    rows, more = torch.arange(100), torch.arange(100, 200)
    crowd = Crowd(truth, torch.Generator().manual_seed(3), errors=(0.1, 0.3, 0.45, 0.2), gold=0.3)
    crowd(rows)
    copies = [copy.deepcopy(crowd), pickle.loads(pickle.dumps(crowd))]
    state = (crowd.answers, list(crowd.active), copy.deepcopy(crowd.tested))
    told = [copied(more) for copied in copies]
    assert (crowd.answers, crowd.active, crowd.tested) == state
    expected = crowd(more)
    for copied, found in zip(copies, told, strict=True):
        assert torch.equal(found, expected)
        assert (copied.answers, copied.active, copied.tested) == (crowd.answers, crowd.active, crowd.tested)
    found = amplify(x, lambda rows: truth[rows], perfect, torch.Generator().manual_seed(0))
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert copied.rounds == found.rounds
        kept = found.positive.clone()
        copied.positive.zero_()
        assert torch.equal(found.positive, kept)


def test_gold_answers_are_counted_from_nothing_and_the_faultless_stay() -> None:
    draw = torch.Generator().manual_seed(3)
    crowd = Crowd(torch.ones(300), draw, errors=(0.0, 0.0, 0.0), lead=(1, 1), gold=0.5, tolerance=0.0)
    assert crowd(torch.arange(300)).all()
    assert crowd.active == [0, 1, 2]
    assert [wrong for _, wrong in crowd.tested] == [0, 0, 0]
    assert sum(asked for asked, _ in crowd.tested) == crowd.answers - 300  # one answer decides a row
