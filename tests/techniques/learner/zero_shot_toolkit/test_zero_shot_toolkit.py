"""Zero-shot toolkit: zero gradients at closed forms, Sylvester, attribute scores by hand, the bench's form, misuse."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from scipy.linalg import solve_sylvester
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.spec import Budget, Optimisation
from probatum.techniques.learner.zero_shot_toolkit.zero_shot_toolkit import (
    METHODS,
    Descriptions,
    ZeroShot,
    check_disjoint,
    choose_penalty,
    convex_combination,
    devise,
    direct_attributes,
    eszsl,
    fit,
    indirect_attributes,
    sae,
    scorer,
    seen_classifier,
)

pytestmark = pytest.mark.fast


def world(noise: float = 0.3) -> tuple[Tensor, Tensor, Descriptions, Tensor, Tensor]:
    """Eight classes of three binary attributes, which are the features; two of them are unseen."""
    own = torch.Generator().manual_seed(0)
    codes = torch.tensor([[i >> k & 1 for k in range(3)] for i in range(8)], dtype=torch.float64)
    seen = torch.tensor([5, 0, 2, 3, 4, 1])

    def draw(y: Tensor) -> Tensor:
        return (2 * codes[y] - 1) @ torch.ones(3, 6).double().tril(1) + noise * torch.randn(
            len(y), 6, generator=own
        ).double()

    y, late = torch.arange(6).repeat(30), torch.tensor([6, 7]).repeat(20)
    return draw(y), y, Descriptions.of(codes, seen), draw(late), late


def test_eszsl_has_no_gradient_at_its_solution() -> None:
    x, y, given, _, _ = world()
    v = eszsl(x, y, given, 0.7, 0.3).requires_grad_()
    s, target = given.values[given.seen], 2.0 * F.one_hot(y, 6).double() - 1
    # |X V S' - Y|^2 + g |V S'|^2 + l |X V|^2 + g l |V|^2
    loss = (x @ v @ s.T - target).square().sum() + 0.7 * (v @ s.T).square().sum()
    loss = loss + 0.3 * (x @ v).square().sum() + 0.21 * v.square().sum()
    loss.backward()
    assert float(v.grad.abs().max()) < 1e-8


def test_sae_is_at_a_minimum_and_scipys() -> None:
    x, y, given, _, _ = world()
    w = sae(x, y, given, 0.5).requires_grad_()
    a, b = given.values[y].T, x.T
    ((b - w.T @ a).square().sum() + 0.5 * (w @ b - a).square().sum()).backward()
    assert float(w.grad.abs().max()) < 1e-7
    theirs = solve_sylvester((a @ a.T).numpy(), (0.5 * b @ b.T).numpy(), (1.5 * a @ b.T).numpy())
    assert torch.allclose(w.detach(), torch.from_numpy(theirs), atol=1e-8)


def test_direct_attributes_by_hand() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y, given, late, _ = world(noise=2.0)
    found = direct_attributes(x, y, given, penalty=1.0)(late[:3])
    expected = torch.zeros(3, 8, dtype=torch.float64)
    for a in range(3):
        machine = LogisticRegression(C=1.0, max_iter=500).fit(x.numpy(), given.raw[y, a].numpy() > 0.5)
        p = torch.from_numpy(machine.predict_proba(late[:3].numpy())[:, 1])
        prior = float(given.raw[given.seen, a].mean())
        for c in range(8):
            own, share = (p, prior) if given.raw[c, a] else (1 - p, 1 - prior)
            expected[:, c] += own.log() - torch.tensor(share, dtype=torch.float64).log()
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["dap", "eszsl", "devise", "sae"])
def test_unseen_classes_are_recognised(method: str) -> None:
    x, y, given, late, late_y = world()
    score = scorer(method, x, y, given, torch.Generator().manual_seed(0))(late)
    assert score.shape == (40, 8)
    among = score[:, 6:]
    assert float((among.argmax(dim=1) + 6 == late_y).double().mean()) > 0.9


def test_methods_through_seen_classes_by_loop() -> None:
    x, y, given, late, _ = world()
    p = seen_classifier(x, y, given)(late[:4])
    conse, iap = convex_combination(x, y, given, nearest=2)(late[:4]), indirect_attributes(x, y, given)(late[:4])
    prior = given.raw[given.seen].mean(dim=0)
    for i in range(4):
        two = sorted(range(6), key=lambda k: -float(p[i, k]))[:2]
        mixed = sum(p[i, k] * given.values[given.seen[k]] for k in two) / sum(p[i, k] for k in two)
        for c in range(8):
            assert float(conse[i, c]) == pytest.approx(float(F.cosine_similarity(mixed, given.values[c], dim=0)))
            total = 0.0
            for a in range(3):
                has = sum(float(p[i, k]) * float(given.raw[given.seen[k], a]) for k in range(6))
                has = min(max(has, 1e-6), 1 - 1e-6)
                own, share = (has, prior[a]) if given.raw[c, a] else (1 - has, 1 - prior[a])
                total += math.log(own) - math.log(float(share))
            assert float(iap[i, c]) == pytest.approx(total, abs=1e-6)


def test_standardising_uses_seen_classes_alone() -> None:
    raw = torch.tensor([[0.0, 1.0], [2.0, 3.0], [100.0, -7.0]], dtype=torch.float64)
    given = Descriptions.of(raw, torch.tensor([1, 0]))
    assert torch.allclose(given.values[:2].mean(dim=0), torch.zeros(2, dtype=torch.float64))
    assert float(given.values[2, 0]) == pytest.approx(99.0)


def test_penalty_is_chosen_on_left_out_classes() -> None:
    x, y, given, _, _ = world()
    found = choose_penalty("eszsl", x, y, given, torch.Generator().manual_seed(0), (1e-3, 1e12))
    again = choose_penalty("eszsl", x, y, given, torch.Generator().manual_seed(0), (1e12, 1e-3))
    assert found == again == 1e-3  # the other one rounds all scores to nothing


def test_devise_lowers_its_ranking_loss() -> None:
    x, y, given, _, _ = world()
    m = devise(x, y, given, torch.Generator().manual_seed(0))
    scores = x @ m @ F.normalize(given.values[given.seen], dim=1).T
    assert float((scores.argmax(dim=1) == y).double().mean()) > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_on_the_bench(method: str) -> None:
    data = toy("image", "classes")
    found = fit(
        data,
        Budget(5, 16, 4),
        torch.Generator().manual_seed(0),
        lambda: nn.Linear(2, 3),
        Optimisation(),
        method=method,
        source="raw",
    )
    p = found.predict(data.test)
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-5)
    assert float((p.argmax(dim=1) == data.test.y).float().mean()) > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_a_learner_goes_through_a_pickle_and_takes_no_rows(method: str) -> None:
    x, y, given, late, _ = world()
    score = scorer(method, x, y, given, torch.Generator().manual_seed(0))
    assert torch.equal(pickle.loads(pickle.dumps(score))(late), score(late))
    assert score(late[:0]).shape == (0, 8)
    torch.testing.assert_close(score(late[:1]), score(late)[:1])


def test_many_descriptions_are_compared_at_once() -> None:
    codes = torch.randint(2, (3000, 40), generator=torch.Generator().manual_seed(0))
    assert len(Descriptions.of(codes, torch.arange(5)).raw) == 3000
    codes[2990] = codes[17]
    with pytest.raises(ValueError, match="classes 17 and 2990 have the same description"):
        Descriptions.of(codes, torch.arange(5))


def test_penalties_reach_the_closed_forms() -> None:
    x, y, given, late, _ = world()
    own = torch.Generator()
    v = eszsl(x, y, given, 3.0 * len(x) / 10, 3.0)
    torch.testing.assert_close(scorer("eszsl", x, y, given, own, 3.0)(late), late @ v @ given.values.T)
    w = sae(x, y, given, 3.0)
    both = F.cosine_similarity((late @ w.T)[:, None], given.values[None], dim=2)
    torch.testing.assert_close(scorer("sae", x, y, given, own, 3.0)(late), both)
    few = y < 5
    inner = Descriptions.of(given.raw, torch.arange(5))  # fewer than two classes a fold: the middle one, unseen
    assert choose_penalty("eszsl", x[few], y[few], inner, own, (1e12, 7.0, 1e-3)) == 7.0


def test_an_attribute_that_no_seen_class_has() -> None:
    raw = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    given, y = Descriptions.of(raw, torch.tensor([0, 1])), torch.arange(2).repeat(20)
    x = raw[y] + 0.3 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = indirect_attributes(x, y, given)(x[:3])
    p = seen_classifier(x, y, given)(x[:3])[:, 1].clamp(1e-6, 1 - 1e-6)
    # the second attribute: p = 1e-6 at most, share 1e-3 at least
    shift = math.log(1e-6) - math.log(1e-3)
    rest = math.log(1 - 1e-6) - math.log(1 - 1e-3)
    expected = torch.stack(
        [(1 - p).log() - math.log(0.5) + rest, p.log() - math.log(0.5) + rest, p.log() - math.log(0.5) + shift], 1
    )
    torch.testing.assert_close(found, expected)
    assert torch.isfinite(direct_attributes(x, y, given)(x[:3])).all()


def test_the_bench_form_by_hand() -> None:
    data = toy("image", "classes")
    args = (data, Budget(5, 16, 4), torch.Generator(), lambda: nn.Linear(2, 3), Optimisation())
    found = fit(*args, method="eszsl", source="raw")
    x, asked = data.train.x.flatten(1).double(), data.test.x.flatten(1).double()
    spread = x.std(dim=0, correction=0)
    mean, spread = x.mean(dim=0), torch.where(spread > 1e-6, spread, 1.0)
    given = Descriptions.of(torch.eye(3), torch.arange(3))
    expected = scorer("eszsl", (x - mean) / spread, data.train.y, given, torch.Generator())((asked - mean) / spread)
    torch.testing.assert_close(found.scores(data.test.x), expected)
    assert found.temperature != 1.0
    torch.testing.assert_close(found.predict(data.test), (expected / found.temperature).softmax(dim=1).float())
    plain = ZeroShot(found.features, found.standard, found.score, given)
    torch.testing.assert_close(plain.predict(data.test), expected.softmax(dim=1).float())
    told = fit(*args, method="eszsl", source="raw", signatures=[[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert told.given.values.shape == (3, 2)


def test_misuse() -> None:
    triplets = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="classes 0 and 2 have the same description"):
        Descriptions.of(triplets, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="classes 3, 5 are seen and unseen"):
        check_disjoint([1, 3, 5], [5, 3, 9])
    twins = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="classes 0 and 2 have the same description"):
        Descriptions.of(twins, torch.tensor([0, 1]))
    data = toy("image", "classes")
    args = (data, Budget(1, 8, 8), torch.Generator(), lambda: nn.Linear(2, 3), Optimisation())
    with pytest.raises(ValueError, match="2 descriptions and 3 classes"):
        fit(*args, signatures=[[0.0], [1.0]], source="raw")
    with pytest.raises(ValueError, match="method is 'clip'"):
        fit(*args, method="clip", source="raw")
    x, y, given, _, _ = world()
    with pytest.raises(ValueError, match="penalty is 0"):
        scorer("eszsl", x, y, given, torch.Generator(), 0.0)
