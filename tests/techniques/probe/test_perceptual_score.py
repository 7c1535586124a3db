"""Perceptual score: what is ignored, the closed form, sklearn's permutation importance, subsets, misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from probatum.checks.toy import toy
from probatum.spec import Spec
from probatum.techniques.probe.perceptual_score import (
    Draws,
    by_subset,
    check_groups,
    losses,
    perceptual_scores,
    probe,
    right,
    scale_of,
    swapped,
    usual_groups,
)

pytestmark = pytest.mark.fast


def rows(n: int = 400) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(0)
    y = torch.randint(3, (n,), generator=own)
    return torch.cat([nn.functional.one_hot(y, 3).float(), torch.randn(n, 2, generator=own)], dim=1), y


def reader(x: Tensor) -> Tensor:
    """Says what the first three columns code."""
    return x[:, :3]


def draws(n: int, repeats: int = 200, **own: object) -> Draws:
    return Draws.of(n, repeats, torch.Generator().manual_seed(1), **own)  # type: ignore[arg-type]


def test_an_ignored_group_scores_exactly_zero() -> None:
    x, y = rows()
    found = perceptual_scores(reader, x, y, {"code": [0, 1, 2], "noise": [3, 4]}, draws(400, 10))
    assert found["noise"].value == 0.0
    assert found["noise"].over_draws == found["noise"].over_rows == 0.0


def test_where_only_the_group_is_used_the_expectation_is_known() -> None:
    x, y = rows()
    shares = torch.bincount(y).double() / 400
    found = perceptual_scores(reader, x, y, {"code": [0, 1, 2]}, draws(400))["code"]
    expected = 1 - float((shares * shares).sum())
    assert found.value == pytest.approx(expected, abs=5 * found.over_draws)
    assert found.permuted == pytest.approx(1 - found.value)


def test_the_columns_of_a_group_move_together() -> None:
    x, _ = rows(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    moved = swapped(x, torch.tensor([0, 1, 2]), order)
    assert torch.equal(moved[:, :3], x[order, :3])
    assert torch.equal(moved[:, 3:], x[:, 3:])
    assert (moved[:, :3].sum(dim=1) == 1).all()  # still a code


def test_one_column_is_sklearns_permutation_importance() -> None:
    own = torch.Generator().manual_seed(4)
    x = torch.randn(600, 3, generator=own)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    model = LogisticRegression().fit(x.numpy(), y.numpy())
    theirs = permutation_importance(model, x.numpy(), y.numpy(), n_repeats=100, random_state=0)

    def predict(rows: Tensor) -> Tensor:
        return torch.from_numpy(model.predict_proba(rows.numpy()))

    found = perceptual_scores(predict, x, y, {"a": [0], "b": [1], "c": [2]}, draws(600, 100))
    for name, expected, spread in zip("abc", theirs.importances_mean, theirs.importances_std, strict=True):
        assert found[name].value == pytest.approx(expected, abs=6 * spread / 10 + 1e-9)


def test_subsets_weigh_to_the_whole() -> None:
    x, y = rows()
    lost = losses(reader, x, y, {"code": [0, 1, 2]}, draws(400, 10))["code"]
    parts = by_subset(lost, y, z=0.5)
    assert sum(value * share for value, share in parts.values()) == pytest.approx(float(lost.mean()) / 0.5)


def test_draws_keep_their_promises() -> None:
    free = draws(40, 20, draw="derange").rows
    assert not (free == torch.arange(40)).any()
    assert draws(2, 20, draw="derange").rows.tolist() == [[1, 0]] * 20
    assert all(sorted(row.tolist()) == list(range(40)) for row in free)
    y = torch.arange(40) % 4
    within = draws(40, 20, draw="class", y=y).rows
    assert torch.equal(y[within], y.expand(20, -1))
    x, labels = rows(400)
    same = perceptual_scores(reader, x, labels, {"code": [0, 1, 2]}, draws(400, 10, draw="class", y=labels))
    assert same["code"].value == 0.0  # within a class the code is the same
    assert torch.equal(draws(40).rows, draws(40).rows)


def test_standard_error_over_rows_is_that_of_a_mean() -> None:
    x, y = rows()
    some = draws(400, 50)
    found = perceptual_scores(reader, x, y, {"code": [0, 1, 2]}, some, bootstrap=2000)["code"]
    each = losses(reader, x, y, {"code": [0, 1, 2]}, some)["code"].mean(dim=0)
    assert found.over_rows == pytest.approx(float(each.std()) / 20, rel=0.1)


def test_scales() -> None:
    y = torch.tensor([0, 0, 0, 1])
    assert [scale_of(y, 0.9, s) for s in ("raw", "model", "room", "task")] == pytest.approx([1.0, 0.9, 0.25, 0.15])
    with pytest.raises(ValueError, match="no better than the largest class"):
        scale_of(y, 0.75, "task")


def test_real_targets_lose_explained_variance() -> None:
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    y = x[:, :1]
    found = perceptual_scores(lambda rows: rows[:, :1], x, y, {"a": [0], "b": [1]}, draws(500, 50))
    assert found["a"].value == pytest.approx(2.0, abs=0.15)  # E(x - x')^2 = 2 var
    assert found["b"].value == 0.0
    assert right(lambda rows: rows[:, :1], x, y).tolist() == pytest.approx([1.0] * 500)


@pytest.mark.parametrize("modality", ["table", "image", "text", "series"])
def test_on_the_bench_groups_cover_examples_without_overlap(modality: str) -> None:
    data = toy(modality, "classes")
    groups = usual_groups(data.spec)
    check_groups(groups, data.test.x[0].numel())

    def factory() -> nn.Module:
        torch.manual_seed(0)
        first: nn.Module = nn.Embedding(20, 4) if modality == "text" else nn.Identity()
        size = data.test.x[0].numel() * (4 if modality == "text" else 1)
        return nn.Sequential(first, nn.Flatten(), nn.Linear(size, 3))

    found = probe(factory, data, torch.Generator().manual_seed(0), steps=100, lr=0.02, repeats=5)
    assert 0.7 < found["accuracy"] <= 1
    assert len(found) == 1 + 2 * len(groups)
    assert np.isfinite(list(found.values())).all()
    if modality == "table":  # columns 0 and 1 tell the class
        assert found["score of column 0"] > 0.1 > found["score of column 3"]


def test_misuse() -> None:
    x, y = rows(20)
    with pytest.raises(ValueError, match="position 1 is in 'a' and in 'b'"):
        perceptual_scores(reader, x, y, {"a": [0, 1], "b": [1]}, draws(20, 5))
    with pytest.raises(ValueError, match=r"group 'a' has positions \[9\]"):
        check_groups({"a": [9]}, 5)
    with pytest.raises(ValueError, match="there are 1 rows"):
        Draws.of(1, 5, torch.Generator())
    with pytest.raises(ValueError, match="repeats is 2"):
        Draws.of(10, 2, torch.Generator())
    with pytest.raises(ValueError, match="draws are of 10 rows, and there are 20"):
        perceptual_scores(reader, x, y, {"a": [0]}, draws(10, 5))
    with pytest.raises(ValueError, match="give y as class codes"):
        Draws.of(10, 5, torch.Generator(), "class", torch.rand(10, 1))


def test_real_targets_without_a_column_of_their_own() -> None:
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    groups = {"a": [0], "b": [1]}
    column, row = (perceptual_scores(lambda x: x[:, :1], x, y, groups, draws(100, 5)) for y in (x[:, :1], x[:, 0]))
    assert row == column
    assert row["a"].value > 1
    with pytest.raises(ValueError, match=r"\(100, 1\) and \(100, 2\)"):
        right(lambda x: x[:, :1], x, x)
    with pytest.raises(ValueError, match="the label 2"):
        right(lambda x: x, x, torch.full((100,), 2))


def test_several_real_targets_count_alike_whatever_their_units() -> None:
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 1000.0])
    found = perceptual_scores(lambda x: x * scale, x, x * scale, {"a": [0], "b": [1]}, draws(300, 20))
    alone = perceptual_scores(lambda x: x[:, :1], x, x[:, :1], {"a": [0]}, draws(300, 20))
    assert found["a"].value == pytest.approx(alone["a"].value / 2, rel=1e-4)  # all of one target of two
    assert found["a"].value == pytest.approx(found["b"].value, rel=0.2)
    # by hand: errors 1 and 3, variances 4 and 9
    y = torch.tensor([[2.0, 3.0], [-2.0, -3.0]])
    assert right(lambda x: y + torch.tensor([1.0, 3.0]), x[:2], y).tolist() == pytest.approx(
        [1 - (1 / 4 + 9 / 9) / 2] * 2
    )


def test_a_target_that_never_changes_is_refused() -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="target 1 is the same in all 50 rows"):
        right(lambda x: x, x, torch.cat([x[:, :1], torch.full((50, 1), 0.1)], dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_single(dtype: torch.dtype) -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    groups = {"a": [0], "b": [1]}
    found = perceptual_scores(lambda x: x[:, :1], x, x[:, :1], groups, draws(200, 5))
    single = perceptual_scores(lambda x: x[:, :1], x.float(), x[:, :1].float(), groups, draws(200, 5))
    assert found == single


def test_a_mask_moves_with_the_one_channel_that_it_speaks_of() -> None:
    assert usual_groups(Spec("series", "classes", (2, 3), 2, masked=True)) == {"channel 0": [0, 1, 2, 3, 4, 5]}
    two = usual_groups(Spec("series", "classes", (3, 2), 2, masked=True))
    assert two == {"channel 0": [0, 1], "channel 1": [2, 3]}  # it is of both
    # the mean over what is observed: a moved channel is one of the series there are
    x = torch.tensor([[[4.0, 0, 0], [1, 0, 0]], [[-1, -1, -1], [1, 1, 1]]]).repeat(10, 1, 1)

    def mean(x: Tensor) -> Tensor:
        told = (x[:, 0] * x[:, 1]).sum(dim=1) / x[:, 1].sum(dim=1)
        assert set(told.tolist()) == {4.0, -1.0}
        return torch.stack([told, -told], dim=1)

    perceptual_scores(
        mean,
        x,
        torch.tensor([0, 1] * 10),
        usual_groups(Spec("series", "classes", (2, 3), 2, masked=True)),
        draws(20, 5),
    )


def test_classes_as_a_column() -> None:
    x, y = rows()
    for scale in ("room", "task"):
        row, column = (
            perceptual_scores(reader, x, codes, {"code": [0, 1]}, draws(400, 5, draw="class", y=codes), scale)
            for codes in (y, y[:, None])
        )
        assert row == column


def test_scores_by_hand() -> None:
    """Four rows, one swap of each kind that is known beforehand: gains, scales, standard errors."""
    x, y = torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.tensor([0, 1, 0, 0])
    swaps = Draws(torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [1, 0, 3, 2], [0, 2, 1, 3], [0, 1, 3, 2]]))

    def predict(x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], dim=1)

    # right before: 1 1 1 0; after the five: 1 1 1 0 | 0 0 1 0 | 0 0 0 1 | 1 0 0 0 | 1 1 0 1
    lost = losses(predict, x, y, {"a": [0]}, swaps)["a"]
    expected = [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, -1], [0, 1, 1, 0], [0, 0, 1, -1]]
    assert lost.tolist() == expected
    each = np.mean(expected, axis=1)
    for scale, z in (("raw", 1.0), ("model", 0.75), ("room", 0.25)):
        found = perceptual_scores(predict, x, y, {"a": [0]}, swaps, scale, bootstrap=4000)["a"]
        assert found.value == pytest.approx(each.mean() / z)
        assert found.permuted == pytest.approx(0.75 - each.mean())
        assert found.over_draws == pytest.approx(each.std(ddof=1) / 5**0.5 / z)
        assert found.over_rows == pytest.approx(np.mean(expected, axis=0).std() / 2 / z, rel=0.1)
    assert np.isnan(perceptual_scores(predict, x, y, {"a": [0]}, swaps, bootstrap=1)["a"].over_rows)
    assert by_subset(lost, y, z=0.25) == {0: (pytest.approx(3 / 15 / 0.25), 0.75), 1: (pytest.approx(0.6 / 0.25), 0.25)}


def test_groups_of_the_bench_by_place() -> None:
    quarters = usual_groups(Spec("image", "classes", (1, 3, 4), 2))
    assert quarters == {
        "top left": [0, 1], "top right": [2, 3], "bottom left": [4, 5, 8, 9], "bottom right": [6, 7, 10, 11]
    }  # fmt: skip
    assert usual_groups(Spec("text", "classes", (6,), 2, vocabulary=9)) == {
        "quarter 1": [0, 1], "quarter 2": [2, 3], "quarter 3": [4], "quarter 4": [5]
    }  # fmt: skip
    table = usual_groups(Spec("table", "classes", (50,), 2, numeric=50))
    assert list(table.values()) == [[i] for i in range(40)]
    assert usual_groups(Spec("table", "classes", (2,), 2, numeric=2, features=("p", "q"))) == {"p": [0], "q": [1]}


def test_outputs_without_a_column_and_targets_that_are_missing() -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    draws = Draws.of(60, 5, torch.Generator().manual_seed(1))
    column = perceptual_scores(lambda x: x[:, :1], x, x[:, 0], {"a": [0]}, draws)
    assert perceptual_scores(lambda x: x[:, 0], x, x[:, 0], {"a": [0]}, draws) == column
    y = x[:, 0].clone()
    y[3] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 60 rows have no target \(NaN\)"):
        perceptual_scores(lambda x: x[:, :1], x, y, {"a": [0]}, draws)


def test_rows_stay_where_the_model_begins_in_place() -> None:
    x, y = rows()
    found = perceptual_scores(lambda given: reader(given.add_(1)), x, y, {"code": [0, 1, 2]}, draws(400, 5))
    assert torch.equal(x, rows()[0])
    assert found == perceptual_scores(reader, x, y, {"code": [0, 1, 2]}, draws(400, 5))
