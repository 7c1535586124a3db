"""Prior-fitted networks: order, isolation of queries, context sizes, a conjugate posterior, files, misuse; priors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import beta

from probatum.techniques.learner.pfn.bar_distribution import borders_of
from probatum.techniques.learner.pfn.network import Limits, PriorFitted, context_size, fit_prior, load, save
from probatum.techniques.learner.pfn.prior import coin_prior, gp_prior, table_prior


def network(classes: bool = True) -> PriorFitted:
    torch.manual_seed(0)
    borders = None if classes else borders_of(torch.randn(500), 12)
    return PriorFitted(Limits(4, 20, 3 if classes else 12, classes), 16, 2, 2, 16, borders).eval()


def rows(classes: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    own = torch.Generator().manual_seed(1)
    y = torch.randint(3, (2, 9), generator=own) if classes else torch.randn(2, 9, generator=own)
    return torch.randn(2, 9, 4, generator=own), y, torch.randn(2, 5, 4, generator=own)


@pytest.mark.parametrize("classes", [True, False])
def test_the_order_of_the_context_does_not_matter(classes: bool) -> None:
    x, y, query = rows(classes)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    model = network(classes)
    assert torch.allclose(model(x, y, query), model(x[:, order], y[:, order], query), atol=1e-5)


def test_queries_do_not_see_each_other_and_data_sets_do_not_mix() -> None:
    x, y, query = rows()
    model = network()
    whole = model(x, y, query)
    assert torch.allclose(whole[:, 2:3], model(x, y, query[:, 2:3]), atol=1e-6)
    assert torch.allclose(whole[1:], model(x[1:], y[1:], query[1:]), atol=1e-6)


def test_an_empty_context_gives_the_prior() -> None:
    x, y, query = rows()
    found = network()(x[:, :0], y[:, :0], query)
    assert found.shape == (2, 5, 3)
    assert torch.isfinite(found).all()


def test_fewer_features_are_padded() -> None:
    x, y, query = rows()
    model = network()
    scaled = torch.cat([x[..., :2] * 2**0.5, torch.zeros(2, 9, 2)], dim=2)
    asked = torch.cat([query[..., :2] * 2**0.5, torch.zeros(2, 5, 2)], dim=2)
    assert torch.allclose(model(x[..., :2], y, query[..., :2]), model(scaled, y, asked), atol=1e-5)


def test_every_number_of_context_rows_is_asked_equally_many_queries() -> None:
    """n of 10 rows with weight 1 / (10 - n): the 10 - n queries of a step, whose loss is their mean, make up for it."""
    own = torch.Generator().manual_seed(0)
    drawn = torch.tensor([context_size(10, own) for _ in range(40_000)])
    counts = torch.bincount(drawn, minlength=10).double()
    queries = counts * torch.arange(10, 0, -1)
    assert (queries / queries.mean()).tolist() == pytest.approx([1.0] * 10, abs=0.08)


def test_coins_are_answered_with_the_conjugate_posterior() -> None:
    torch.manual_seed(0)
    model = PriorFitted(Limits(1, 12, 2, True), 32, 2, 2, 32)
    fit_prior(model, lambda g: coin_prior(128, 12, 2, 3, g), 1500, torch.Generator().manual_seed(0), lr=2e-3)
    for heads, tosses in ((0, 0), (0, 4), (3, 4), (5, 10), (8, 11)):
        y = torch.zeros(1, tosses, dtype=torch.int64)
        y[0, :heads] = 1
        with torch.no_grad():
            p = float(model(torch.zeros(1, tosses, 1), y, torch.zeros(1, 1, 1)).softmax(dim=2)[0, 0, 1])
        assert p == pytest.approx((2 + heads) / (5 + tosses), abs=0.02)


def test_files_go_there_and_back(tmp_path: Path) -> None:
    for classes in (True, False):
        model = network(classes)
        save(model, tmp_path / "net.npz", "a test")
        again = load(tmp_path / "net.npz")
        assert again.limits == model.limits
        assert torch.allclose(again(*rows(classes)), model(*rows(classes)), atol=2e-3)  # half precision
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no file of a prior-fitted network"):
        load(tmp_path / "bad.npz")


def test_misuse_names_what_it_was_trained_for() -> None:
    x, y, query = rows()
    model = network()
    with pytest.raises(ValueError, match="at most 20 rows and 4 features"):
        model(torch.randn(1, 5, 6), torch.zeros(1, 5).long(), torch.randn(1, 1, 6))
    with pytest.raises(ValueError, match="a context of 30 rows"):
        model(torch.randn(1, 30, 4), torch.zeros(1, 30).long(), query[:1])
    with pytest.raises(ValueError, match="8 classes"):
        model(x, y + 5, query)
    with pytest.raises(ValueError, match="targets hold the label -100; classes are 0"):
        model(x, torch.where(y == 1, -100, y), query)
    reals = network(False)
    with pytest.raises(ValueError, match="standardise them"):
        reals(x, rows(False)[1] * 1000, query)


def test_other_precisions_and_numbers_that_are_none() -> None:
    x, y, query = rows()
    model = network()
    assert torch.allclose(model(x.double(), y, query.double()), model(x, y, query))
    bad = x.clone()
    bad[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the context holds numbers that are not finite"):
        model(bad, y, query)
    with pytest.raises(ValueError, match="queries hold numbers that are not finite"):
        model(x, y, query * float("inf"))


def test_priors_draw_what_they_say() -> None:
    own = torch.Generator().manual_seed(3)
    _, tosses = coin_prior(20_000, 3, 2, 5, own)
    assert float(tosses.double().mean()) == pytest.approx(beta.mean(2, 5), abs=0.01)
    both = float((tosses[:, 0] * tosses[:, 1]).double().mean())
    assert both == pytest.approx(beta.var(2, 5) + beta.mean(2, 5) ** 2, abs=0.01)
    with pytest.raises(ValueError, match=r"a is 1.5, b 2; give whole numbers"):
        coin_prior(2, 3, 1.5, 2, own)
    x, y = gp_prior(4000, 2, own, length=0.3, noise=0.1)
    assert float(y.square().mean()) == pytest.approx(1.01, abs=0.05)
    near = (x[:, 0] - x[:, 1]).abs().squeeze(1) < 0.05
    assert float((y[near, 0] * y[near, 1]).mean()) == pytest.approx(0.99, abs=0.1)
    for seed in range(20):
        x, y = table_prior(3, 64, 8, 5, torch.Generator().manual_seed(seed))
        assert 2 <= x.shape[2] <= 8
        assert torch.isfinite(x).all()
        assert 0 <= int(y.min()) <= int(y.max()) < 5
        assert x.mean(dim=1).abs().max() < 1e-4


DRAWN = (
    (4, 2.7415, -0.044, 34.99),
    (7, 10.7247, 0.0265, 15.75),
    (5, 6.2438, 0.0591, 16.615),
    (2, 2.0754, -0.1166, 11.156),
    (5, 5.5649, 0.2392, 26.406),
    (8, 11.0349, -0.0275, 15.375),
    (5, 6.1629, 0.3081, 26.688),
    (5, 6.5319, 0.022, 9.281),
    (5, 6.238, 0.0551, 36.927),
    (6, 7.1498, 0.2104, 15.802),
    (4, 4.6023, -0.0769, 10.0),
    (2, 1.9014, -0.102, 8.167),
    (4, 4.3907, 0.6462, 5.344),
    (2, 1.5736, -0.0879, 14.646),
    (5, 5.8733, -0.0101, 12.427),
    (3, 2.7852, -0.0983, 12.458),
    (2, 1.3395, 0.0625, 20.521),
    (4, 3.8738, 0.0219, 20.854),
    (4, 4.5646, -0.004, 15.521),
    (9, 16.3263, 0.0414, 5.729),
    (5, 3.8459, -0.1164, 13.021),
    (4, 4.0832, -0.0266, 27.25),
    (3, 2.809, 0.0292, 44.083),
    (4, 4.1118, -0.3323, 12.167),
)
"""Of the tables of seeds 0, 1, ...: columns, sizes of rows, skewness of columns, and labels, weighted by their rows."""


def test_the_tables_are_those_that_the_shipped_file_was_trained_on() -> None:
    """The file knows this law and no other: what changes it makes the file another prior's."""
    for seed, (columns, size, skew, labels) in enumerate(DRAWN):
        x, y = table_prior(2, 48, 9, 6, torch.Generator().manual_seed(seed))
        assert x.shape == (2, 48, columns)
        weighted = (x.double() * torch.arange(1, columns + 1)).sum(dim=2)
        assert float(weighted.abs().mean()) == pytest.approx(size, abs=1e-3)
        assert float(x.double().pow(3).mean()) == pytest.approx(skew, abs=1e-3)
        assert float((y * torch.arange(48)).double().mean()) == pytest.approx(labels, abs=0.02)
