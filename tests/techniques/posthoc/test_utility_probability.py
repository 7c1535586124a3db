"""Utilities to probabilities: the softmax as a special case, order, the recursion, fits, decisions, misuse."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kendalltau, rankdata
from torch import Tensor

from probatum.numerics.calibration.temperature import fit_temperature
from probatum.techniques.posthoc.utility_probability import (
    MAPS,
    UtilityProbability,
    gather_candidates,
    least_risk,
    preferences,
    ranks,
    sample,
)

pytestmark = pytest.mark.fast


def held_out(n: int = 400, k: int = 4, sharp: float = 2.0) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, generator=own, dtype=torch.float64)
    return logits, torch.multinomial((sharp * logits).softmax(dim=1), 1, generator=own).squeeze(1)


def test_power_one_is_the_softmax() -> None:
    logits, _ = held_out()
    assert torch.allclose(UtilityProbability(a=1.0)(logits), logits.softmax(dim=1))


def test_recursion_is_gradient_descent() -> None:
    choices = torch.tensor([2, 0, 2, 1, 2])
    utilities = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([utilities], lr=0.3)
    for y in choices:
        optimizer.zero_grad()
        (-utilities.log_softmax(dim=0)[y]).backward()
        optimizer.step()
    mine = preferences(torch.zeros(3, dtype=torch.float64), choices, 0.3)
    assert torch.allclose(mine, utilities.detach(), atol=1e-12)
    assert int(mine.argmax()) == 2
    assert float(mine.sum()) == pytest.approx(0.0)


@pytest.mark.parametrize("g", MAPS)
def test_every_map_keeps_order_and_sums_to_one(g: str) -> None:
    logits, y = held_out()
    fitted = UtilityProbability(g).fit(logits, y)
    p = fitted(logits)
    assert torch.allclose(p.sum(dim=1), torch.ones(400, dtype=torch.float64))
    for row, own in zip(logits[:60], p[:60], strict=True):
        assert kendalltau(row.numpy(), own.numpy()).statistic == pytest.approx(1.0)


def test_power_is_the_inverse_temperature() -> None:
    logits, y = held_out()
    assert UtilityProbability("power").fit(logits, y).a == pytest.approx(1 / fit_temperature(logits, y), rel=1e-4)
    assert UtilityProbability("power", a=3.0).fit(logits, y).a == 3.0


def test_ranks_are_scipys() -> None:
    values = torch.tensor([[3.0, 1.0, 3.0, -2.0], [0.0, 0.0, 0.0, 5.0]])
    expected = [rankdata(-row.numpy()).tolist() for row in values]
    assert ranks(values).tolist() == expected


def test_rank_map_is_a_power_law_of_its_fit() -> None:
    own = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, 5, generator=own, dtype=torch.float64)
    law = torch.arange(1, 6, dtype=torch.float64) ** -1.7
    place = torch.multinomial((law / law.sum()).expand(4000, 5), 1, generator=own).squeeze(1)
    y = logits.argsort(dim=1, descending=True).gather(1, place[:, None]).squeeze(1)
    fitted = UtilityProbability("rank").fit(logits, y)
    assert fitted.b == pytest.approx(1.7, abs=0.1)
    assert fitted(logits)[0].sort(descending=True).values.tolist() == pytest.approx(
        [float(r**-fitted.b / sum(q**-fitted.b for q in range(1, 6))) for r in range(1, 6)]
    )


def test_isotonic_map_beats_what_it_is_given_where_that_is_wrong() -> None:
    logits, y = held_out(3000, sharp=0.4)
    p = UtilityProbability("isotonic").fit(logits, y)(logits)
    raw = logits.log_softmax(dim=1).gather(1, y[:, None]).mean()
    assert float(p.log().gather(1, y[:, None]).mean()) > float(raw)


def test_missing_candidates_get_nothing() -> None:
    utilities, y = held_out()
    utilities[::3, 3] = float("-inf")
    usable = torch.isfinite(utilities.gather(1, y[:, None])).squeeze(1)
    for g in MAPS:
        p = UtilityProbability(g).fit(utilities[usable], y[usable])(utilities)
        assert p[::3, 3].abs().max() == 0
        assert torch.allclose(p.sum(dim=1), torch.ones(400, dtype=torch.float64))


def test_candidates_are_distinct_and_ranked() -> None:
    found = gather_candidates([[[5, 2], [4, 2], [5, 2]], [[7, 2]]], [[-3.0, -1.0, -3.0], [-0.5]])
    assert found.outputs == (((4, 2), (5, 2)), ((7, 2),))
    assert found.utilities.tolist() == [[-1.0, -3.0], [-0.5, float("-inf")]]
    short = gather_candidates([[[5, 2], [4, 4, 4, 2]]], [[-3.0, -4.0]], per_token=True)
    assert short.outputs[0][0] == (4, 4, 4, 2)


def test_decisions() -> None:
    p = torch.tensor([[0.4, 0.35, 0.25]], dtype=torch.float64)
    risk = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, 0.1], [1.0, 0.1, 0.0]]], dtype=torch.float64)
    assert int(least_risk(p, risk)) == 1  # the mode is 0, but 1 is nearly right where 2 is
    own = torch.Generator().manual_seed(0)
    drawn = sample(p.expand(20000, 3), own)
    assert torch.bincount(drawn).double().div(20000).tolist() == pytest.approx(p[0].tolist(), abs=0.015)


def test_misuse() -> None:
    with pytest.raises(ValueError, match=r"row 1 has 1 candidate\(s\)"):
        UtilityProbability()(torch.tensor([[0.0, 1.0], [2.0, float("-inf")]]))
    with pytest.raises(ValueError, match=r"a is -1\.0"):
        UtilityProbability(a=-1.0)
    with pytest.raises(ValueError, match="g is 'softmax'"):
        UtilityProbability("softmax")
    with pytest.raises(ValueError, match="row 0 has an empty output"):
        gather_candidates([[[], [2]]], [[-1.0, -2.0]])
    with pytest.raises(ValueError, match="cannot be above 0"):
        gather_candidates([[[2]]], [[0.5]])
    with pytest.raises(ValueError, match="1 of them of no candidate"):
        UtilityProbability().fit(torch.tensor([[0.0, 1.0, float("-inf")]]), torch.tensor([2]))
    with pytest.raises(ValueError, match="was not fitted"):
        UtilityProbability("isotonic")(torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("g", MAPS)
def test_the_likeliest_candidate_stays_so_after_rounding(g: str, dtype: torch.dtype) -> None:
    own = torch.Generator().manual_seed(0)
    for k in (3, 100):
        logits = torch.randn(2000, k, generator=own).to(dtype)
        chosen = torch.multinomial(logits.float().softmax(dim=1), 1, generator=own).squeeze(1)
        found = UtilityProbability(g).fit(logits, chosen)(logits)
        assert found.dtype == dtype
        assert torch.equal(found.argmax(dim=1), logits.argmax(dim=1))


def test_choices_that_are_missing_or_not_there() -> None:
    logits, chosen = held_out()
    expected = UtilityProbability().fit(logits[:300], chosen[:300]).a
    missing = chosen.clone()
    missing[300:] = -100
    assert UtilityProbability().fit(logits, missing).a == expected
    with pytest.raises(ValueError, match="the label 4"):
        UtilityProbability().fit(logits, torch.full_like(chosen, 4))


def test_ranks_of_many_candidates_take_memory_for_them_alone() -> None:
    own = torch.Generator().manual_seed(0)
    values = torch.randint(40, (3, 60), generator=own).double()
    values[0, ::3] = float("-inf")
    assert ranks(values).tolist() == [rankdata(-row.numpy()).tolist() for row in values]
    assert ranks(values.mT[:2]).tolist() == [rankdata(-row.numpy()).tolist() for row in values.mT[:2]]
    many = torch.randperm(100_000, generator=own)[None].double()  # every pair of them would be 10 GB
    assert torch.equal(ranks(many)[0].long(), 100_000 - many[0].long())


@pytest.mark.parametrize("g", MAPS)
def test_what_is_no_number_is_refused(g: str) -> None:
    logits, y = held_out(20)
    for wrong in (float("nan"), float("inf")):
        broken = logits.clone()
        broken[3, 1] = wrong
        with pytest.raises(ValueError, match="1 utilities are NaN or infinite"):
            UtilityProbability(g).fit(broken, y)


@pytest.mark.parametrize("g", MAPS)
def test_no_rows_and_rows_on_their_own(g: str) -> None:
    logits, y = held_out(50)
    fitted = UtilityProbability(g).fit(logits, y)
    assert fitted(logits[:0]).shape == (0, 4)
    torch.testing.assert_close(fitted(logits[7:8]), fitted(logits)[7:8])
    torch.testing.assert_close(fitted(logits + 1e4), fitted(logits), rtol=1e-6, atol=1e-9)


def test_what_cannot_happen_is_never_said() -> None:
    p = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    risk = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    assert int(least_risk(p, risk)) == 0


def test_isotonic_map_by_hand() -> None:
    """Chosen at every other row with the larger probability, never with the smaller: two levels, 0.5 and 0."""
    logits = torch.tensor([[0.0, -1.0, -2.0]] * 4, dtype=torch.float64)
    fitted = UtilityProbability("isotonic").fit(logits, torch.tensor([0, 1, 0, 1]))
    u = logits[0].softmax(dim=0)
    expected = torch.tensor([0.5, 0.5, 0.0]) + 1e-6 * u
    torch.testing.assert_close(fitted(logits)[0], expected / expected.sum())


@pytest.mark.parametrize("g", MAPS)
def test_the_likeliest_of_very_many_stays_so_in_float16(g: str) -> None:
    own = torch.Generator().manual_seed(0)
    logits = (torch.randn(20, 60_000, generator=own) * 1e-3).half()  # probabilities below the smallest normal number
    found = UtilityProbability(g).fit(logits, torch.randint(60_000, (20,), generator=own))(logits)
    assert torch.equal(found.argmax(dim=1), logits.argmax(dim=1))
