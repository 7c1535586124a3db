"""Outlier scores: closed forms of each, and wrong labels found."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
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
    found = scores(factory, x, y, stream(), **small)
    torch.manual_seed(0)
    mean_rank = outlier_scores(factory, x, y, stream(), **small)
    torch.set_rng_state(before)
    torch.testing.assert_close(mean_rank, torch.stack(list(found.ranks.values())).mean(0))
    for name in ("adv", "ret", "priv"):  # agr and conf do not look at the label
        assert float(found.ranks[name][:6].mean()) < 0.3
    assert tuple(found.raw) == NAMES
    assert found.epsilons[0] < found.epsilons[1]
    assert found.right.shape == (2, 120)
    assert all(torch.isfinite(values).all() for values in (*found.raw.values(), *found.trained.values()))


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
    with pytest.raises(TypeError, match=r"torch.int64"):
        outlier_scores(lambda: nn.Linear(2, 3), x.long(), y, stream())
    with pytest.raises(ValueError, match="one class"):
        outlier_scores(lambda: nn.Linear(2, 3), x, y[:5], stream())
