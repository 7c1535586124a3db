"""Strategies of the survey: what each of them asks for where that is known; misuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from probatum.numerics.labels import acquisition as parts
from probatum.spec import Pool
from probatum.techniques.acquire import text_active_learning
from probatum.techniques.acquire.text_active_learning import (
    STRATEGIES,
    ask,
    dropout_predictions,
    word_gradient_length,
)

pytestmark = pytest.mark.fast

NONE = torch.zeros(0, dtype=torch.int64)


class Words(nn.Module):
    """Mean of word vectors, dropout, a linear layer."""

    def __init__(self, drop: float = 0.5) -> None:
        super().__init__()
        self.embed, self.drop, self.head = nn.Embedding(20, 6), nn.Dropout(drop), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.embed(x).mean(dim=1)))


def pool(n: int = 30, model: nn.Module | None = None, rounds: int = 0) -> Pool:
    torch.manual_seed(0)
    x = torch.randint(1, 20, (n, 4))
    return Pool(x, torch.arange(6), torch.arange(6) % 3, (model or Words()).eval(), NONE, NONE, rounds, 12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_asks_for_open_rows_again_alike(strategy: str) -> None:
    mine = pool()
    own = {"steps": 5, "members": 2, "batch_size": 4}
    first, second = (ask(mine, 5, torch.Generator().manual_seed(3), Words, strategy=strategy, **own) for _ in range(2))
    assert len(first.unique()) == 5
    assert torch.isin(first, mine.open()).all()
    if not strategy.startswith("vote"):  # committees start from weights that torch's own stream draws here
        assert torch.equal(first, second)


@pytest.mark.parametrize("strategy", ["confidence", "margin", "entropy"])
def test_uncertainty_by_brute_force(strategy: str) -> None:
    mine = pool()
    p = mine.model(mine.x[mine.open()]).softmax(dim=1).detach().sort(dim=1, descending=True).values
    score = {
        "confidence": 1 - p[:, 0],
        "margin": p[:, 1] - p[:, 0],
        "entropy": -(p * p.log()).sum(dim=1),
    }[strategy]
    expected = mine.open()[score.argsort(descending=True)[:4]]
    assert ask(mine, 4, torch.Generator(), strategy=strategy).tolist() == expected.tolist()


class Plain(nn.Module):
    """A linear layer on rows of numbers."""

    def __init__(self, weight: Tensor, bias: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], len(weight), bias=bias)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            if bias:
                self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def numbers(n: int = 40, rounds: int = 1, weight: Tensor | None = None, bias: bool = False) -> Pool:
    own = torch.Generator().manual_seed(7)
    x = torch.randn(n, 3, generator=own)
    net = Plain(torch.randn(4, 3, generator=own) if weight is None else weight, bias)
    known = torch.tensor([5, 0, 9, 2, 7, 11])
    return Pool(x, known, torch.arange(6) % 4, net.eval(), torch.tensor([20]), torch.tensor([3]), rounds, 12)


def test_strategies_on_data_by_brute_force() -> None:
    mine = numbers()
    rows, known = mine.open(), mine.x[mine.labelled]
    far = torch.cdist(mine.x[rows], known).amin(dim=1)
    assert int(ask(mine, 1, torch.Generator(), strategy="coreset")) == int(rows[far.argmax()])
    cosine = nn.functional.cosine_similarity(mine.x[rows][:, None], mine.x[rows][None], dim=2).mean(dim=1)
    expected = rows[cosine.argsort(descending=True)[:4]].tolist()
    assert ask(mine, 4, torch.Generator(), strategy="density").tolist() == expected
    p = mine.model(mine.x[rows]).softmax(dim=1).detach().sort(dim=1).values
    mixed = rankdata((p[:, -2] - p[:, -1]).numpy().round(12)) * 1.0 - 1
    mixed = mixed * (rankdata(cosine.numpy().round(6)) - 1)
    assert ask(mine, 3, torch.Generator(), strategy="margin-density").tolist() == rows[(-mixed).argsort()[:3]].tolist()


def test_kmeans_asks_for_the_middle_of_every_heap() -> None:
    mine = numbers(60)
    heap = torch.arange(60) % 3
    x = 50.0 * torch.eye(3)[heap] + 0.1 * mine.x
    heaps = Pool(x, mine.labelled, mine.y, mine.model, mine.machine, mine.guesses, 1, 12)
    found = ask(heaps, 3, torch.Generator().manual_seed(1), strategy="kmeans")
    assert sorted(heap[found].tolist()) == [0, 1, 2]
    rows = heaps.open()
    for row in found.tolist():
        others = rows[heap[rows] == heap[row]]
        assert row == int(others[(x[others] - x[others].mean(dim=0)).norm(dim=1).argmin()])


@pytest.mark.parametrize("bias", [True, False])
def test_strategies_on_gradients_by_autograd(bias: bool) -> None:
    mine = numbers(bias=bias, weight=3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(8)))
    rows, lengths, embeddings = mine.open(), [], []
    for row in rows.tolist():
        output = mine.model(mine.x[[row]])
        p = output.softmax(dim=1).detach()[0]
        norms = []
        for c in range(4):
            loss = nn.functional.cross_entropy(output, torch.tensor([c]))
            own = torch.autograd.grad(loss, list(mine.model.parameters()), retain_graph=True)
            norms.append(torch.cat([g.flatten() for g in own]).norm())
            if c == int(p.argmax()):
                embeddings.append(own[0].flatten())
        lengths.append(float((p * torch.stack(norms)).sum()))
    order = torch.tensor(lengths).argsort(descending=True)
    assert ask(mine, 6, torch.Generator(), strategy="egl").tolist() == rows[order[:6]].tolist()
    drawn = parts.spread_draw(torch.stack(embeddings), 5, torch.Generator().manual_seed(2))
    assert ask(mine, 5, torch.Generator().manual_seed(2), strategy="badge").tolist() == rows[drawn].tolist()


def test_bald_is_the_mutual_information_of_its_draws() -> None:
    mine = pool()
    rows = mine.open()
    p = dropout_predictions(mine.model, mine.x[rows], 2, torch.Generator().manual_seed(5))
    mean = p.mean(dim=0)
    spread = (p * (p / mean).log()).sum(dim=2).mean(dim=0)  # mean divergence from the mean
    found = ask(mine, 3, torch.Generator().manual_seed(5), strategy="bald", draws=2)
    assert found.tolist() == rows[spread.argsort(descending=True)[:3]].tolist()


@pytest.mark.parametrize("strategy", ["vote-entropy", "vote-kl"])
def test_committees_learn_from_bootstraps_and_disagree(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, own = numbers(), torch.Generator().manual_seed(3)
    weights = 2 * torch.randn(3, 4, 3, generator=own)
    made, given = iter(weights), []

    def fit(net: nn.Module, x: Tensor, y: Tensor, *rest: object) -> nn.Module:
        given.append((x, y))
        return net.eval()

    monkeypatch.setattr(text_active_learning, "fit_network", fit)
    found = ask(mine, 5, torch.Generator(), lambda: Plain(next(made)), strategy=strategy, members=3)
    rows, labels = torch.cat([mine.labelled, mine.machine]), torch.cat([mine.y, mine.guesses])
    assert len(given) == 3
    for x, y in given:
        assert len(x) == 7
        assert {(*one.tolist(), int(c)) for one, c in zip(x, y, strict=True)} < {
            (*mine.x[i].tolist(), int(c)) for i, c in zip(rows.tolist(), labels, strict=True)
        }
    left = mine.open()
    p = (mine.x[left].double() @ weights.double().mT).softmax(dim=2)
    mean = p.mean(dim=0)
    if strategy == "vote-kl":
        score = (p * (p / mean).log()).sum(dim=2).mean(dim=0)
    else:
        shares = torch.stack([(p.argmax(dim=2) == c).double().mean(dim=0) for c in range(4)], dim=1)
        score = torch.special.entr(shares).sum(dim=1)
    score += 1e-6 * torch.special.entr(mean).sum(dim=1)
    assert found.tolist() == left[score.argsort(descending=True)[:5]].tolist()


def test_the_stopping_rule_leaves_the_last_labels_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, given = numbers(), []

    def fit(net: nn.Module, x: Tensor, y: Tensor, *rest: object) -> nn.Module:
        given.append((x.clone(), y.clone()))
        return net.eval()

    monkeypatch.setattr(text_active_learning, "fit_network", fit)

    def same() -> nn.Module:
        return Plain(mine.model.head.weight.detach())

    assert len(ask(mine, 2, torch.Generator(), same, stop_kappa=1.0)) == 0
    assert torch.equal(given[0][0], mine.x[[5, 0, 9, 2]])
    assert given[0][1].tolist() == [0, 1, 2, 3]
    assert len(ask(mine, 6, torch.Generator(), same, stop_kappa=0.5)) == 6  # all labels are of the last round
    assert len(ask(numbers(rounds=0), 2, torch.Generator(), same, stop_kappa=0.5)) == 2
    assert len(given) == 1


def test_data_based_strategies_take_networks_that_go_on_behind_the_last_layer() -> None:
    mine = numbers()
    ending = nn.Sequential(mine.model, nn.LogSoftmax(dim=1)).eval()
    other = Pool(mine.x, mine.labelled, mine.y, ending, mine.machine, mine.guesses, 1, 12)
    for strategy in ("coreset", "density"):
        asked = [ask(one, 4, torch.Generator(), strategy=strategy).tolist() for one in (mine, other)]
        assert asked[0] == asked[1]
    with pytest.raises(ValueError, match="goes on behind its last linear layer"):
        ask(other, 4, torch.Generator(), strategy="badge")


def test_word_gradients_of_many_rows_are_those_of_each() -> None:
    model, x = Words().eval(), torch.randint(1, 20, (300, 4), generator=torch.Generator().manual_seed(1))
    whole, tail = word_gradient_length(model, x), word_gradient_length(model, x[256:])
    with torch.no_grad():
        assert torch.equal(word_gradient_length(model, x), whole)
    torch.testing.assert_close(whole[256:], tail)
    torch.testing.assert_close(whole[:3], torch.cat([word_gradient_length(model, x[i : i + 1]) for i in range(3)]))


def test_dropout_predictions_differ_and_leave_modes_alone() -> None:
    model = Words().eval()
    x = pool().x
    before = torch.get_rng_state()
    found = dropout_predictions(model, x, 5, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    assert found.shape == (5, 30, 3)
    assert found.std(dim=0).amax() > 0
    assert not any(m.training for m in model.modules())
    with pytest.raises(ValueError, match="needs a network with dropout"):
        dropout_predictions(Words(drop=0.0), x, 5, torch.Generator())


def test_word_gradient_length_against_finite_differences() -> None:
    model = Words().double().eval()
    x = torch.tensor([[1, 2, 3, 3]])
    log_p = model(x).log_softmax(dim=1).detach()[0]
    step, vectors = 1e-6, model.embed(x).detach()

    def score(moved: Tensor, c: int) -> float:
        return float(model.head(moved.mean(dim=1)).log_softmax(dim=1)[0, c].detach())

    lengths = torch.zeros(4, dtype=torch.float64)
    for c in range(3):
        slope = torch.zeros_like(vectors[0])
        for t in range(4):
            for k in range(6):
                up, down = vectors.clone(), vectors.clone()
                up[0, t, k] += step
                down[0, t, k] -= step
                slope[t, k] = (score(up, c) - score(down, c)) / (2 * step)
        lengths += log_p[c].exp() * slope.norm(dim=1)
    assert float(word_gradient_length(model, x)[0]) == pytest.approx(float(lengths.max()), rel=1e-5)


def test_discriminative_prefers_what_is_unlike_the_labelled() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    x = torch.cat([torch.zeros(20, 2), torch.full((5, 2), 4.0)]) + 0.01 * torch.randn(
        25, 2, generator=torch.Generator().manual_seed(0)
    )
    mine = Pool(x, torch.arange(6), torch.arange(6) % 3, Same().eval(), NONE, NONE, 0, 5)
    for strategy in ("discriminative", "coreset"):
        assert int(ask(mine, 1, torch.Generator(), strategy=strategy)) >= 20
    assert int(ask(mine, 1, torch.Generator(), strategy="density")) != int(
        ask(mine, 1, torch.Generator(), strategy="coreset")
    )


def test_stopping_rule() -> None:
    sure = pool(rounds=1)
    with torch.no_grad():
        sure.model.head.weight.zero_()
        sure.model.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))

    def same() -> nn.Module:
        twin = Words()
        with torch.no_grad():
            twin.head.weight.zero_()
            twin.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
        return twin

    own = {"steps": 1, "batch_size": 2, "lr": 1e-6}
    assert len(ask(sure, 3, torch.Generator(), same, stop_kappa=0.99, **own)) == 0
    assert len(ask(sure, 3, torch.Generator(), same, **own)) == 3
    first = pool(rounds=0)
    assert len(ask(first, 3, torch.Generator(), same, stop_kappa=0.01, **own)) == 3  # nothing to compare with yet


def test_misuse() -> None:
    mine = pool()
    with pytest.raises(ValueError, match="strategy is 'guess'"):
        ask(mine, 2, torch.Generator(), strategy="guess")
    with pytest.raises(ValueError, match="25 rows are asked for and 24 are open"):
        ask(mine, 25, torch.Generator())
    full = Pool(mine.x, torch.arange(30), torch.zeros(30, dtype=torch.int64), mine.model, NONE, NONE, 0, 0)
    with pytest.raises(ValueError, match="pool is exhausted"):
        ask(full, 1, torch.Generator())
    twice = Pool(mine.x, torch.tensor([1, 1]), torch.tensor([0, 0]), mine.model, NONE, NONE, 0, 0)
    with pytest.raises(ValueError, match="1 rows are labelled twice"):
        ask(twice, 1, torch.Generator())
    with pytest.raises(ValueError, match="give model_factory"):
        ask(mine, 2, torch.Generator(), strategy="vote-kl")
    for name, least in (("draws", 2), ("members", 2), ("steps", 1), ("batch_size", 2)):
        with pytest.raises(ValueError, match=f"{name} is {least - 1}"):
            ask(mine, 2, torch.Generator(), **{name: least - 1})
        assert len(ask(mine, 2, torch.Generator(), **{name: least})) == 2
    for lr in (0.0, float("inf")):
        with pytest.raises(ValueError, match="lr is"):
            ask(mine, 2, torch.Generator(), lr=lr)
    with pytest.raises(ValueError, match="stop_kappa is 2"):
        ask(mine, 2, torch.Generator(), stop_kappa=2.0)


def test_dropout_draws_leave_frozen_modules_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    model[1].eval()
    dropout_predictions(model, torch.randn(6, 4), 3, torch.Generator())
    assert [m.training for m in model] == [True, False, True, True]


def test_word_gradients_before_a_change_in_place() -> None:
    class Spoiled(Words):
        def forward(self, x: Tensor) -> Tensor:
            hooked = self.embed.register_forward_hook(lambda _m, _i, output: output.relu_())
            try:
                return super().forward(x)
            finally:
                hooked.remove()

    torch.manual_seed(0)
    model = Words().eval()
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Embedding))
    spoiled = Spoiled().eval()
    spoiled.embed = spoiled.get_submodule(name)
    assert word_gradient_length(spoiled, torch.randint(1, 20, (5, 4))).isfinite().all()


def test_uncertainty_is_that_of_any_network() -> None:
    mine = numbers()
    ending = nn.Sequential(mine.model, nn.LogSoftmax(dim=1)).eval()  # has no last layer whose inputs could be read
    other = Pool(mine.x, mine.labelled, mine.y, ending, mine.machine, mine.guesses, 1, 12)
    for strategy in ("confidence", "margin", "entropy"):
        asked = [ask(one, 4, torch.Generator(), strategy=strategy).tolist() for one in (mine, other)]
        assert asked[0] == asked[1]


class CutIds(nn.Module):
    """Ids beyond the vocabulary become its last one, in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_(max=19)


def test_ids_stay_where_a_network_begins_in_place() -> None:
    x = torch.full((3, 4), 40)
    word_gradient_length(nn.Sequential(CutIds(), Words().eval()), x)
    assert x.eq(40).all()


def test_copies_of_what_bald_looks_at_ask_alike_and_leave_the_original_alone() -> None:
    mine = pool()
    expected = ask(mine, 5, torch.Generator().manual_seed(3), strategy="bald")
    predicted = dropout_predictions(mine.model, mine.x, 3, torch.Generator().manual_seed(3))
    for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(ask(copied, 5, torch.Generator().manual_seed(3), strategy="bald"), expected)
        with torch.no_grad():
            copied.model.head.weight.zero_()
        copied.x.zero_()
    assert torch.equal(ask(mine, 5, torch.Generator().manual_seed(3), strategy="bald"), expected)
    assert torch.equal(dropout_predictions(mine.model, mine.x, 3, torch.Generator().manual_seed(3)), predicted)
