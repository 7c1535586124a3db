"""Outlier scores: closed forms of each, and wrong labels found."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import rankdata as rank
from scipy.stats import spearmanr
from torch import Tensor, nn

from probatum.techniques.select.outlier_scores.outlier_scores import (
    NAMES,
    Scores,
    _where_trained,
    combine,
    mean_pairwise_js,
    outlier_scores,
    ranks,
    scores,
    spearman,
    symmetric_kl,
)
from probatum.techniques.select.outlier_scores.privacy import epsilon

D = torch.float64


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int = 120) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % 3
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0]])
    return centres[y] + torch.randn(n, 2, generator=stream(1)), y


def test_jensen_shannon() -> None:
    p = torch.rand(3, 7, 4, dtype=D, generator=stream()).softmax(2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [sum(jensenshannon(p[i, r], p[j, r]) ** 2 for i, j in pairs) / 3 for r in range(7)]
    torch.testing.assert_close(mean_pairwise_js(p), torch.tensor(expected, dtype=D))
    assert not mean_pairwise_js(p[:1].expand(4, -1, -1)).abs().gt(1e-12).any()  # identical models agree fully
    opposite = torch.eye(2, dtype=D)[:, None, :]
    assert float(mean_pairwise_js(opposite)) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match=r"1 member\(s\)"):
        mean_pairwise_js(p[:1])


def test_symmetric_kl() -> None:
    p, q = (torch.rand(6, 4, dtype=D, generator=stream(s)).softmax(1) for s in (1, 2))
    expected = (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)
    torch.testing.assert_close(symmetric_kl(p, q), expected)
    assert torch.isfinite(symmetric_kl(torch.eye(4, dtype=D), torch.full((4, 4), 0.25, dtype=D))).all()


def test_ranks_and_spearman() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 7.0])).tolist() == pytest.approx([0.5, 0.0, 0.5, 1.0])
    found = {name: torch.randn(40, generator=stream(i)).round(decimals=1) for i, name in enumerate("abc")}
    expected = spearmanr(torch.stack(list(found.values())).T.numpy()).statistic
    torch.testing.assert_close(spearman(found), torch.from_numpy(expected))


def test_wrong_labels_rank_low_and_the_run_can_be_repeated() -> None:
    x, y = blobs()
    y[:6] = (y[:6] + 1) % 3
    small = {
        "steps": 60,
        "lr": 2e-2,
        "retrain_lr": 2e-2,
        "members": 2,
        "private_steps": 10,
        "private_models": 1,
        "noises": [4.0, 1.0],
    }

    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 3))

    before = torch.get_rng_state()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = scores(factory, x, y, stream(), **small)
    torch.manual_seed(1)
    mean_rank = outlier_scores(factory, x, y, stream(), use=NAMES, **small)
    torch.manual_seed(0)
    assert torch.equal(
        state, torch.get_rng_state()
    )  # initial weights hang on the generator alone, and move nothing else
    torch.set_rng_state(before)
    torch.testing.assert_close(mean_rank, torch.stack(list(found.ranks.values())).mean(0))
    for name in ("adv", "ret", "priv"):  # agr and conf do not look at the label
        assert float(found.ranks[name][:6].mean()) < 0.3
    assert tuple(found.raw) == NAMES
    assert found.epsilons[0] < found.epsilons[1]
    assert found.right.shape == (2, 120)
    assert all(torch.isfinite(values).all() for values in (*found.raw.values(), *found.trained.values()))


class Fixed:
    """A factory of linear networks with weights of its own choice, one after the other, again and again."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.made = weights, 0

    def __call__(self) -> nn.Module:
        layer = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            layer.weight.copy_(self.weights[self.made % len(self.weights)])
        self.made += 1
        return layer


TINY = 1e-60
"""A rate at which nothing moves."""


def test_every_score_by_hand() -> None:
    x, y = blobs(20)
    kinds = torch.randn(2, 3, 2, generator=stream(5))
    still = {"steps": 1, "members": 2, "lr": TINY, "private_lr": TINY, "private_steps": 1, "noises": [1.0]}
    found = scores(Fixed(kinds), x, y, stream(), use=("adv", "agr", "conf"), folds=2, **still)
    p, nearest = (x.double() @ kinds.double().mT).softmax(2), 0
    for row in range(20):
        assert float(found.raw["agr"][row]) == pytest.approx(-(jensenshannon(p[0, row], p[1, row]) ** 2), abs=1e-6)
        assert float(found.raw["conf"][row]) == pytest.approx(float(p[:, row].amax(1).mean()), abs=1e-6)
        distances = []
        for w in kinds.double():
            gaps = [(w[int(y[row])] - w[c]) @ x[row].double() / (w[int(y[row])] - w[c]).norm() for c in range(3)]
            right = int((w @ x[row].double()).argmax()) == int(y[row])
            distances.append(
                float(torch.stack([g for c, g in enumerate(gaps) if c != int(y[row])]).min()) if right else 0.0
            )
        assert float(found.raw["adv"][row]) >= sum(distances) / 2 - 1e-5
        nearest += abs(float(found.raw["adv"][row]) - sum(distances) / 2) < 1e-4
    assert nearest >= 12  # else the boundary to the runner-up is not the nearest one
    order = torch.tensor(rank(found.raw["agr"].numpy()) - 1) / 19
    torch.testing.assert_close(found.ranks["agr"], order)
    torch.testing.assert_close(
        found.trained["conf"][found.trained["conf"] > 0].max(), p.amax(2).max(), atol=0.3, rtol=0
    )


def test_the_mean_rank_is_by_default_that_of_what_looks_at_labels() -> None:
    x, y = blobs(24)
    own = {"steps": 5, "members": 2, "folds": 2, "private_steps": 2, "private_models": 1, "noises": [1.0]}
    factory = Fixed(torch.randn(1, 3, 2, generator=stream(5)))
    labelled = outlier_scores(factory, x, y, stream(), **own)
    only = scores(factory, x, y, stream(), use=("adv", "ret", "priv"), **own).ranks
    torch.testing.assert_close(labelled, (only["adv"] + only["ret"] + only["priv"]) / 3)


def test_a_boundary_that_one_network_does_not_find_is_left_out_of_the_mean() -> None:
    x, y = blobs(20)
    kinds = torch.stack([torch.randn(3, 2, generator=stream(5)), torch.zeros(3, 2)])
    y[:] = 0  # the flat network answers 0 everywhere, and has no other class to go to
    still = {"steps": 1, "members": 2, "lr": TINY, "use": ("adv",), "folds": 2}
    found = scores(Fixed(kinds), x, y, stream(), **still).raw["adv"]
    alone = scores(Fixed(kinds[:1]), x, y, stream(), **still).raw["adv"]
    torch.testing.assert_close(found, alone)
    none = scores(Fixed(kinds[1:]), x, y, stream(), **still)
    assert none.ranks["adv"].tolist() == [0.5] * 20
    assert torch.isfinite(none.raw["adv"]).all()


def test_retraining_moves_by_one_step_of_adam() -> None:
    x, y = blobs(12)
    kinds, rate = torch.randn(2, 3, 2, generator=stream(5)), 0.05
    own = {
        "steps": 4,
        "retrain_share": 0.25,
        "retrain_lr": rate,
        "batch_size": 64,
        "lr": TINY,
        "members": 2,
        "folds": 2,
    }
    found = scores(Fixed(kinds), x, y, stream(), use=("ret",), **own).raw["ret"]
    fold = torch.randperm(12, generator=stream()) % 2
    for k in range(2):
        mine = fold == k
        rows, moved = x[mine].double(), torch.zeros(int(mine.sum()), dtype=D)
        for w in kinds.double():
            error = (rows @ w.T).softmax(1) - nn.functional.one_hot(y[mine], 3)
            after = w * (1 - rate * 0.01) - rate * (error.T @ rows).sign()  # AdamW: first step, decay 0.01
            p, q = (rows @ w.T).softmax(1), (rows @ after.T).softmax(1)
            moved += ((p - q) * (p / q).log()).sum(1) / 2
        torch.testing.assert_close(found[mine], -moved, atol=1e-4, rtol=1e-3)


def test_private_levels_count_majorities() -> None:
    x = torch.randn(12, 2, generator=stream(3))
    first, second = (x @ torch.tensor([[1.0, 0.0]]).T)[:, 0] > 0, (x @ torch.tensor([[0.0, 1.0]]).T)[:, 0] > 0
    y = first.long()
    by_first, by_second = torch.tensor([[-1.0, 0], [1, 0], [0, 0]]), torch.tensor([[0, -1.0], [0, 1], [0, 0]])
    # two ensemble members a fold, then three models at the first level (one right), three at the second (two right)
    order = torch.stack([by_first, by_first, by_second, by_first, by_second, by_first, by_second, by_first])
    own = {"private_models": 3, "noises": [2.0, 1.0], "private_steps": 1, "private_lr": TINY, "private_share": 0.5}
    found = scores(Fixed(order), x, y, stream(), use=("priv",), folds=2, members=2, steps=1, lr=TINY, **own)
    agree = first == second
    assert torch.equal(found.right[0], agree)  # where the second direction says so too, all three are right
    assert found.right[1].all()
    assert found.raw["priv"].tolist() == [1.0 if same else 0.5 for same in agree.tolist()]
    assert found.epsilons == tuple(epsilon(noise, 0.5, 1, 1 / 12) for noise in (2.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    x, y = blobs(30)
    x = x.to(dtype)
    small = {"steps": 20, "members": 2, "private_steps": 3, "private_models": 1, "noises": [1.0], "lr": 0.02}

    def factory() -> nn.Module:
        return nn.Linear(2, 3).to(dtype)

    found = outlier_scores(factory, x, y[:, None], stream(), **small)
    close = outlier_scores(lambda: nn.Linear(2, 3), x.float(), y, stream(), **small)
    assert float((found - close).abs().mean()) < 0.06  # half-precision initial weights, wide ones afterwards
    assert torch.isfinite(found).all()


def test_a_module_in_two_places_learns_privately() -> None:
    x, y = blobs(60)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, rows: Tensor) -> Tensor:
            return self.head(self.again(self.body(rows).tanh()))

    def factory() -> nn.Module:
        net = Twice()
        net.again = net.body
        return net

    own = {"private_steps": 60, "private_models": 1, "noises": [0.05], "steps": 1, "members": 2, "folds": 2}
    found = scores(factory, x, y, stream(), use=("priv",), private_lr=1.0, **own)
    assert float(found.right.double().mean()) > 0.8


def test_only_networks_that_learned_from_a_row_speak_of_it_as_trained() -> None:
    p = torch.rand(5, 6, 3, dtype=D, generator=stream()).softmax(2)
    learned = torch.rand(5, 6, generator=stream(1)) < 0.6
    learned[:, 0] = False
    learned[:, 1] = torch.tensor([True, False, False, False, False])
    found = _where_trained(p, learned)
    for row in range(2, 6):
        mine = p[learned[:, row], row]
        assert float(found["agr"][row]) == pytest.approx(-float(mean_pairwise_js(mine[:, None])[0]))
        assert float(found["conf"][row]) == pytest.approx(float(mine.amax(1).mean()))
    assert found["agr"][:2].tolist() == [0.0, 0.0]
    assert float(found["conf"][0]) == 0.0


def test_combinations_need_their_scores() -> None:
    x, y = blobs(60)
    found = scores(lambda: nn.Linear(2, 3), x, y, stream(), use=("adv", "agr"), steps=10, members=2)
    with pytest.raises(ValueError, match="need the score 'ret'"):
        combine(found, x)


def test_combinations() -> None:
    names = dict.fromkeys(NAMES)
    rank = {name: torch.tensor([0.9, 0.2, 0.5, 0.1]) for name in names}
    rank["conf"] = torch.tensor([1.0, 0.9, 0.5, 0.1])
    right = torch.tensor([[True, False, False, False], [True, False, True, False]])
    trained = {name: torch.tensor([1.0, 0.9, 0.2, 0.1]) for name in ("agr", "conf")}
    together = combine(Scores({}, rank, trained, right, (1.0, 2.0)), torch.zeros(4, 2))
    assert int(together["prototype"].argmax()) == 0
    assert int(together["memorised"].argmax()) == 1
    assert together["submode"].tolist() == [-1] * 4  # too few for a cluster
    n = 40
    many = Scores(
        {}, {name: torch.rand(n) for name in names}, {name: torch.rand(n) for name in ("agr", "conf")},
        torch.stack([torch.zeros(n, dtype=torch.bool), torch.arange(n) < 24]), (1.0, 2.0),
    )  # fmt: skip
    points = torch.randn(n, 2, generator=stream()) * 0.1 + 10 * (torch.arange(n) % 2)[:, None]
    cluster = combine(many, points)["submode"]
    assert set(cluster[24:].tolist()) == {-1}
    assert len(set(cluster[:24:2].tolist()) - {-1}) == 1
    assert not set(cluster[:24:2].tolist()) & set(cluster[1:24:2].tolist()) - {-1}


def test_misuse() -> None:
    x, y = blobs(12)
    for wrong, message in (
        ({"members": 1}, "members is 1"),
        ({"folds": 1}, "folds is 1"),
        ({"use": ("adv", "density")}, "name some of adv"),
        ({"noises": [1.0, 2.0]}, "strongest privacy first"),
    ):
        with pytest.raises(ValueError, match=message):
            outlier_scores(lambda: nn.Linear(2, 3), x, y, stream(), **wrong)
    for label in (-100, -1):
        unknown = torch.where(torch.arange(12) == 3, label, y)
        with pytest.raises(ValueError, match=f"y holds the label {label}; leave out rows"):
            outlier_scores(lambda: nn.Linear(2, 3), x, unknown, stream())
    with pytest.raises(ValueError, match="folds is 12 for 12 rows"):
        outlier_scores(lambda: nn.Linear(2, 3), x, y, stream(), folds=12)
    with pytest.raises(ValueError, match="batch_size is 1"):
        outlier_scores(lambda: nn.Linear(2, 3), x, y, stream(), batch_size=1)
    with pytest.raises(TypeError, match=r"torch.int64"):
        outlier_scores(lambda: nn.Linear(2, 3), x.long(), y, stream())
    with pytest.raises(ValueError, match="one class"):
        outlier_scores(lambda: nn.Linear(2, 3), x, y[:5], stream())


def test_copies_combine_alike_and_leave_the_original_alone() -> None:
    x, y = blobs(60)
    found = scores(
        lambda: nn.Linear(2, 3), x, y, stream(), members=2, steps=5, noises=(2.0,), private_models=1, private_steps=2
    )  # fmt: skip
    expected = combine(found, x)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        again = combine(copied, x)
        assert all(torch.equal(again[name], value) for name, value in expected.items())
        for value in copied.ranks.values():
            value.zero_()
        copied.right.zero_()
    assert all(torch.equal(combine(found, x)[name], value) for name, value in expected.items())
