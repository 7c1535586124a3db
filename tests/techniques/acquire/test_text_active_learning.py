"""Strategies of the survey: what each of them asks for where that is known; misuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probatum.spec import Pool
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
