"""Prior-fitted network on tables: contexts, permutations, categories, real tables it never saw, misuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probatum.checks.toy import toy
from probatum.data.open import open_dataset
from probatum.spec import Budget, Part
from probatum.techniques.learner.pfn.network import Limits, PriorFitted, load
from probatum.techniques.learner.pfn.pfn import WEIGHTS, InContext, _real, fit, one_hot_tables

pytestmark = pytest.mark.fast


def rows(n: int = 80, d: int = 4) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=own)
    return x, (x[:, 0] - x[:, 1] > 0).long()


def part(x: Tensor) -> Part:
    return Part(x, torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)))


def test_the_file_holds_what_the_header_says() -> None:
    limits = load(WEIGHTS).limits
    assert limits == Limits(32, 256, 10, True)
    assert WEIGHTS.stat().st_size < 2_000_000


@pytest.mark.parametrize(("name", "least"), [("breast-cancer", 0.9), ("wine", 0.9), ("iris", 0.85)])
def test_tables_it_never_saw_are_answered_in_one_pass(name: str, least: float) -> None:
    data = open_dataset(name).prepare(1)
    found = fit(data, Budget(1, 1, 1), torch.Generator().manual_seed(0), contexts=1)
    p = found.predict(data.test)
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-5)
    assert float((p.argmax(dim=1) == data.test.y).float().mean()) >= least
    assert found.passes == 0.0


def test_rows_do_not_influence_each_other_and_scales_do_not_matter() -> None:
    x, y = rows()
    net = load(WEIGHTS)
    answers = InContext(net, x[:60], y[:60], 2, torch.Generator().manual_seed(0), contexts=2)
    whole = answers.predict(part(x[60:]))
    assert torch.allclose(whole[3:4], answers.predict(part(x[63:64])), atol=1e-5)
    scaled = InContext(net, 50 * x[:60] + 7, y[:60], 2, torch.Generator().manual_seed(0), contexts=2)
    assert torch.allclose(scaled.predict(part(50 * x[60:] + 7)), whole, atol=1e-3)


def test_contexts_permute_classes_back_into_place() -> None:
    x, y = rows()
    many = InContext(load(WEIGHTS), x[:60], y[:60], 2, torch.Generator().manual_seed(1), contexts=8)
    each = many.samples(part(x[60:]))
    assert each.shape == (8, 20, 2)
    right = (each.argmax(dim=2) == y[60:]).float().mean(dim=1)
    assert float(right.min()) > 0.7  # in whatever order columns and classes were shown
    assert torch.allclose(each.mean(dim=0), many.predict(part(x[60:])))


def test_large_training_sets_are_drawn_from() -> None:
    x, y = rows(900)
    found = InContext(load(WEIGHTS), x[:800], y[:800], 2, torch.Generator().manual_seed(0), contexts=3)
    assert found.report() == {"context-rows": 256.0, "contexts": 3.0}
    assert len({tuple(one[1].tolist()) for one in found.parts}) == 3
    assert float((found.predict(part(x[800:])).argmax(dim=1) == y[800:]).float().mean()) > 0.85


def test_categories_become_columns() -> None:
    x = torch.tensor([[0.5, 0.0, 5.0], [1.5, 2.0, 1.0]])
    found = one_hot_tables(x, 1, (3, 9))
    assert found.tolist() == [[0.5, 0.0, 0.0, 5.0], [1.5, 0.0, 1.0, 1.0]]
    data = toy("table", "classes")
    answers = fit(data, Budget(1, 1, 1), torch.Generator().manual_seed(0))
    assert float((answers.predict(data.test).argmax(dim=1) == data.test.y).float().mean()) > 0.6
    assert answers.samples(data.test).shape == (8, len(data.test), 3)


def test_misuse() -> None:
    x, y = rows(30, 40)
    net = load(WEIGHTS)
    with pytest.raises(ValueError, match="40 features and 2 classes; this network was trained for at most 32 features"):
        InContext(net, x, y, 2, torch.Generator())
    with pytest.raises(ValueError, match="11 classes"):
        InContext(net, x[:, :3], y, 11, torch.Generator())
    with pytest.raises(ValueError, match="no training rows"):
        InContext(net, x[:0, :3], y[:0], 2, torch.Generator())
    with pytest.raises(ValueError, match="contexts is 0"):
        InContext(net, x[:, :3], y, 2, torch.Generator(), contexts=0)
    torch.manual_seed(0)
    reals = PriorFitted(Limits(3, 9, 5, False), 8, 1, 1, 8, torch.linspace(-2, 2, 6))
    with pytest.raises(ValueError, match="give one for classes"):
        InContext(reals, x[:, :3], y, 2, torch.Generator())
    with pytest.raises(ValueError, match="no file of a prior-fitted network"):
        fit(toy("table", "classes"), Budget(1, 1, 1), torch.Generator(), weights=__file__)


def test_labels_outside_the_classes_are_refused() -> None:
    x, y = rows()
    network = load(WEIGHTS)
    for wrong in (y - 1, y + 1):
        with pytest.raises(ValueError, match="the label"):
            InContext(network, x, wrong, 2, torch.Generator(), 1)


def test_labels_in_a_column_and_rows_of_other_precisions() -> None:
    x, y = rows()
    network = load(WEIGHTS)
    expected = InContext(network, x[:60], y[:60], 2, torch.Generator().manual_seed(0), 2).predict(part(x[60:]))
    column = InContext(network, x[:60], y[:60, None].int(), 2, torch.Generator().manual_seed(0), 2)
    assert torch.equal(column.predict(part(x[60:])), expected)
    for dtype, apart in ((torch.float64, 1e-4), (torch.bfloat16, 0.05)):
        given = InContext(network, x[:60].to(dtype), y[:60], 2, torch.Generator().manual_seed(0), 2)
        found = given.predict(part(x[60:].to(dtype)))
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max()) < apart


def test_tables_of_whole_numbers() -> None:
    x, y = rows()
    x = (10 * x).round()
    network = load(WEIGHTS)
    expected, found = (
        InContext(network, own[:60], y[:60], 2, torch.Generator().manual_seed(0), 2).predict(part(own[60:]))
        for own in (x, x.long())
    )
    assert torch.equal(found, expected)


def test_a_constant_column_and_an_offset_say_nothing() -> None:
    x, y = rows()
    network, own = load(WEIGHTS), torch.Generator
    still = torch.cat([x, torch.full((80, 1), 2023.0)], dim=1)
    plain = torch.cat([x, torch.zeros(80, 1)], dim=1)
    found = [
        InContext(network, given[:60], y[:60], 2, own().manual_seed(0), 1).predict(part(given[60:]))
        for given in (still, plain, plain + 1e4)
    ]
    assert float((found[0] - found[1]).abs().max()) < 1e-3
    assert float((found[2] - found[1]).abs().max()) < 0.01


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e-9), (torch.float64, 1e-9), (torch.float32, 1e9)])
def test_units_of_any_size_say_the_same(dtype: torch.dtype, unit: float) -> None:
    x, y = rows()
    network = load(WEIGHTS)
    found = [
        InContext(network, given[:60], y[:60], 2, torch.Generator().manual_seed(0), 1).predict(part(given[60:]))
        for given in (x, unit * x.to(dtype))
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)


def test_a_constant_column_of_any_size_says_nothing() -> None:
    x, y = rows()
    network = load(WEIGHTS)
    found = []
    for value in (0.0, 0.1, 1e12):
        given = torch.cat([x, torch.full((80, 1), value)], dim=1)
        own = InContext(network, given[:60], y[:60], 2, torch.Generator().manual_seed(0), 1)
        found.append(own.predict(part(given[60:])))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_long_whole_numbers_and_truth_values() -> None:
    x, y = rows()
    whole, network = (10 * x).long(), load(WEIGHTS)
    found = []
    for own in (whole, whole + 1_600_000_000):  # as times in seconds
        answers = InContext(network, own[:60], y[:60], 2, torch.Generator().manual_seed(0), 2)
        found.append(answers.predict(part(own[60:])))
    torch.testing.assert_close(found[0], found[1])
    answers = [InContext(network, own[:60], y[:60], 2, torch.Generator(), 1) for own in (x > 0, (x > 0).float())]
    torch.testing.assert_close(answers[0].predict(part(x[60:] > 0)), answers[1].predict(part((x[60:] > 0).float())))


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.tensor([1.0], dtype=torch.float64), torch.float64),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.float32),
        (torch.tensor([2**24]), torch.float32),
        (torch.tensor([2**24 + 1]), torch.float64),
    ],
)
def test_features_keep_what_they_tell(given: Tensor, computed: torch.dtype) -> None:
    assert _real(given).dtype == computed
    assert torch.equal(_real(given).double(), given.double())
