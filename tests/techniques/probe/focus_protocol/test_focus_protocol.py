"""The FOCUS protocol: groups, gaps and slopes by hand, missing attributes told, twins with planted shortcuts."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from probatum.data.open import open_dataset
from probatum.measure.groups import wilson as reference_wilson
from probatum.spec import Data, Part, Spec
from probatum.techniques.probe.focus_protocol.attributes import (
    Attribute,
    code_attribute,
    commonness,
    measured_attributes,
    uncommon_flags,
)
from probatum.techniques.probe.focus_protocol.focus_protocol import (
    by_count,
    focus_protocol,
    gap,
    grouped,
    responding_units,
    slope,
    wilson,
)

pytestmark = pytest.mark.fast


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hand_made_table_gives_known_counts() -> None:
    y = torch.tensor([0, 0, 1, 1, 1])
    place = code_attribute("place", ["sea", "room", "sea", "room", None])
    light = code_attribute("light", ["day", "night", "night", float("nan"), "day"])
    assert place.values == ("room", "sea")
    assert place.codes.tolist() == [1, 0, 1, 0, -1]
    tables = {
        "place": torch.tensor([[True, False], [False, True]]),  # class 0 indoors, class 1 at sea
        "light": torch.tensor([[False, True], [False, True]]),  # night for both
    }
    flags, known = uncommon_flags(y, [place, light], tables)
    assert flags.sum(dim=1).tolist() == [0, 2, 2, 0, 0]
    assert known.all(dim=1).tolist() == [True, True, True, False, False]


def test_commonness_is_smoothed_counting() -> None:
    y = torch.tensor([0] * 8 + [1] * 3)
    attribute = Attribute("a", ("p", "q", "r"), torch.tensor([0] * 7 + [1] + [2, 2, -1]))
    found = commonness(y, attribute, 2)
    torch.testing.assert_close(found[0], torch.tensor([8 / 11, 2 / 11, 1 / 11], dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.tensor([1 / 5, 1 / 5, 3 / 5], dtype=torch.float64))


def test_groups_partition_and_weigh_to_the_whole() -> None:
    right = torch.rand(500, generator=stream()) < 0.7
    k = torch.randint(-1, 4, (500,), generator=stream(1))
    groups = by_count(right, k)
    assert sum(group.rows for group in groups.values()) == 500
    weighed = sum(group.rows * group.accuracy for group in groups.values()) / 500
    assert weighed == pytest.approx(float(right.double().mean()))
    for group in groups.values():
        assert (group.low, group.high) == pytest.approx(
            reference_wilson(round(group.accuracy * group.rows), group.rows)
        )
    assert wilson(0, 3)[0] == 0.0


def test_slope_is_weighted_least_squares() -> None:
    right = torch.rand(400, generator=stream()) < 0.6
    k = torch.randint(0, 3, (400,), generator=stream(1))
    a = torch.stack([torch.ones(400), k.float()], dim=1).double()
    expected = torch.linalg.lstsq(a, right.double()[:, None]).solution[1, 0]
    assert slope(by_count(right, k)) == pytest.approx(float(expected))
    assert slope(by_count(right, torch.zeros(400, dtype=torch.int64))) is None


def test_gaps_do_not_mirror_the_difficulty_of_classes() -> None:
    # class 0 is always right, class 1 never; only class 1 is often uncommon: no gap inside the classes
    y = torch.tensor([0] * 50 + [1] * 50)
    right = y == 0
    uncommon = torch.cat([torch.arange(50) < 5, torch.arange(50) < 45])
    known = torch.ones(100, dtype=torch.bool)
    assert gap(right, y, uncommon, known) == pytest.approx(0.0)
    naive = float(right[~uncommon].double().mean() - right[uncommon].double().mean())
    assert naive > 0.7
    right[:5] = False
    assert gap(right, y, uncommon, known) == pytest.approx(0.5)
    assert gap(right, y, torch.zeros(100, dtype=torch.bool), known) is None


def test_units_that_respond_are_found() -> None:
    y, rare = torch.arange(400) % 2, torch.arange(400) % 5 == 0
    features = torch.randn(400, 6, generator=stream())
    features[:, 2] += 3 * rare  # responds to the attribute
    features[:, 4] += 5 * y  # responds to the class alone
    known = torch.ones(400, dtype=torch.bool)
    found = responding_units(features, y, rare, known)
    assert int(found.argmax()) == 2
    assert float(found[4]) < 0.3


def test_fine_labels_are_grouped_both_ways() -> None:
    p = torch.tensor([[0.4, 0.35, 0.25], [0.1, 0.2, 0.7]])
    torch.testing.assert_close(grouped(p, [0, 1, 1]), torch.tensor([[0.4, 0.6], [0.1, 0.9]]))
    assert grouped(p, [0, 1, 1], "argmax").argmax(dim=1).tolist() == [0, 1]
    assert grouped(p, [0, 1, -1], "argmax")[1].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="2 entries for 3"):
        grouped(p, [0, 1])


@pytest.mark.parametrize("name", ["digits", "breast-cancer", "toy-topics", "cbf"])
def test_attributes_are_read_off_every_modality(name: str) -> None:
    data = open_dataset(name).prepare(0)
    train, test = measured_attributes([data.train.x, data.test.x], data.spec)
    for attribute, other in zip(train, test, strict=True):
        assert attribute.values == other.values
        assert 0 <= int(attribute.codes.min()) <= int(attribute.codes.max()) < len(attribute.values)
        if name != "toy-topics":
            assert float(attribute.codes.bincount().double().max()) < 0.6 * len(data.train)


def test_category_columns_come_first_and_code_nought_is_missing() -> None:
    spec = Spec("table", "classes", (3,), 2, numeric=1, cardinalities=(4, 3), features=("n", "a", "b"))
    x = torch.tensor([[0.5, 0.0, 1.0], [0.1, 3.0, 2.0]])
    (found,) = measured_attributes([x], spec, most=2)
    assert [attribute.name for attribute in found] == ["a", "b"]
    assert found[0].codes.tolist() == [-1, 2]
    (named,) = measured_attributes([x], spec, columns=["b"])
    assert named[0].codes.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no column 'z'"):
        measured_attributes([x], spec, columns=["z"])


def planted(c: float, seed: int) -> tuple[Data, dict[str, dict[str, list[str]]]]:
    """Two classes told weakly by x0 and strongly by an attribute that x1 shows."""
    g = stream(seed)
    parts, told = {}, {}
    for name, rows, share in (("train", 1500, c), ("valid", 600, c), ("test", 1500, 0.5)):
        y = torch.randint(2, (rows,), generator=g)
        a = torch.where(torch.rand(rows, generator=g) < share, y, 1 - y)
        x = torch.stack([y + 0.8 * torch.randn(rows, generator=g), 4.0 * a], dim=1)
        parts[name] = Part(x, y, torch.arange(rows))
        told[name] = {"place": [("land", "sea")[int(v)] for v in a]}
    spec = Spec("table", "classes", (2,), 2, numeric=2, features=("x0", "x1"))
    return Data(spec, parts["train"], parts["valid"], parts["test"]), told


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def test_a_planted_shortcut_is_measured() -> None:
    data, told = planted(0.97, 1)
    found = focus_protocol(network, data, stream(), attributes=told, steps=300, lr=1e-2, finetune_steps=100, units=0.3)
    assert found["uncommon pairs of place"] == 2
    assert found["rows with 0 uncommon"] + found["rows with 1 uncommon"] == len(data.test)
    assert found["gap place"] > 0.3
    assert found["slope"] < -0.3
    assert found["gap place without its features"] < found["gap place"]
    assert found["fine-tuned accuracy with 1 uncommon"] > found["accuracy with 1 uncommon"]
    assert found["low with 1 uncommon"] < found["accuracy with 1 uncommon"] < found["high with 1 uncommon"]
    fair, told = planted(0.5, 1)
    table = {"place": torch.tensor([[False, True], [True, False]])}
    even = focus_protocol(network, fair, stream(), attributes=told, uncommon=table, steps=300, lr=1e-2)
    assert abs(even["gap place"]) < 0.1


def test_missing_attributes_are_listed() -> None:
    data, told = planted(0.9, 2)
    told["test"]["place"][:7] = [None] * 5 + ["", math.nan]  # type: ignore[list-item]
    told["train"]["place"] = [
        "" if y == 0 else v for v, y in zip(told["train"]["place"], data.train.y.tolist(), strict=True)
    ]
    found = focus_protocol(network, data, stream(), attributes=told, steps=20)
    assert found["rows with place missing"] == 7
    assert found["rows with unknown uncommon"] == 7
    assert found["classes without place"] == 1


def test_misuse_is_named() -> None:
    data, told = planted(0.9, 3)
    with pytest.raises(ValueError, match="has no 'test'"):
        focus_protocol(network, data, stream(), attributes={"train": told["train"]})
    with pytest.raises(ValueError, match="2 values for 1500 test rows"):
        focus_protocol(network, data, stream(), attributes={**told, "test": {"place": ["sea", "land"]}})
    with pytest.raises(ValueError, match="give a bool table"):
        focus_protocol(network, data, stream(), attributes=told, uncommon={"place": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"tau is 1\.5"):
        focus_protocol(network, data, stream(), tau=1.5)
    with pytest.raises(ValueError, match="need classes"):
        focus_protocol(network, replace(data, spec=replace(data.spec, task="reals")), stream())


def test_what_is_missing_in_any_library() -> None:
    given = [
        np.float32("nan"),
        np.float64("nan"),
        pd.NA,
        pd.NaT,
        np.datetime64("NaT"),
        Decimal("NaN"),
        torch.tensor(math.nan),
    ]
    found = code_attribute("a", [*given, None, "", "  ", "x"])
    assert found.values == ("x",)
    assert found.codes.tolist() == [-1] * 10 + [0]
    assert code_attribute("a", ["nan", "NaT"]).values == ("NaT", "nan")  # words that somebody wrote


def test_whole_numbers_are_one_value_with_and_without_a_point() -> None:
    found = code_attribute(
        "a", [1, 1.0, np.int64(1), np.float32(1), "1", torch.tensor(1), Decimal("1.00"), 1.5, -0.0, True]
    )
    assert found.values == ("0", "1", "1.5", "True")
    assert found.codes.tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 0, 3]
    assert code_attribute("a", [np.float32(0.1), float("inf")]).values == ("0.1", "inf")


def test_values_of_validation_rows_alone_are_told() -> None:
    data, told = planted(0.9, 4)
    told["valid"]["place"][:9] = ["moon"] * 8 + [None]  # type: ignore[list-item]
    found = focus_protocol(network, data, stream(), attributes=told, steps=20, finetune_steps=2, tau=0.2)
    assert found["validation rows with place missing"] == 9
    assert found["rows with place missing"] == 0
    y, place = data.valid.y[9:], told["valid"]["place"][9:]
    uncommon = sum((word == "sea") != bool(k) for word, k in zip(place, y.tolist(), strict=True))
    assert found["rows to fine-tune on"] == uncommon
    assert "validation rows with place missing" not in focus_protocol(network, data, stream(), attributes=told, steps=2)


def test_padding_of_masked_series_is_no_measurement() -> None:
    spec = Spec("series", "classes", (2, 4), 2, masked=True)
    x = torch.tensor(
        [[[1.0, 3, 0, 0], [1, 1, 0, 0]], [[2, 2, 2, 2], [1, 1, 1, 1]], [[9, 8, 7, 0], [1, 1, 1, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    )  # fmt: skip
    (found,) = measured_attributes([x], spec, bins=3)
    assert [a.name for a in found] == ["level", "spread", "roughness"]
    assert found[0].codes.tolist() == [0, 0, 2, -1]  # means 2 2 8
    assert found[1].codes.tolist() == [2, 0, 1, -1]  # deviations 1 0 0.8
    assert found[2].codes.tolist() == [2, 0, 1, -1]  # steps 2 0 1


def test_measures_of_rows_by_hand() -> None:
    image = torch.zeros(3, 1, 2, 4)
    image[1, ..., :2], image[2] = 1.0, 0.7
    (found,) = measured_attributes([image], Spec("image", "classes", (1, 2, 4), 2))
    assert [(a.name, a.codes.tolist()) for a in found] == [
        ("brightness", [0, 1, 2]), ("contrast", [0, 2, 0]), ("balance", [0, 2, 0])
    ]  # fmt: skip
    text = torch.tensor([[5, 5, 5, 0, 0], [2, 3, 1, 4, 0], [1, 1, 2, 2, 3]])
    (found,) = measured_attributes([text], Spec("text", "classes", (5,), 2, vocabulary=9))
    # lengths 3 4 5; unknown 0, 1/4, 2/5; repeated 2/3, 0, 2/5
    assert [(a.name, a.codes.tolist()) for a in found] == [
        ("length", [0, 1, 2]), ("unknown words", [0, 1, 2]), ("repeated words", [2, 0, 1])
    ]  # fmt: skip
    series = torch.tensor([[[0.0, 4, 0, 4]], [[9, 9, 9, 9]], [[1, 2, 3, 4]]])
    (found,) = measured_attributes([series], Spec("series", "classes", (1, 4), 2))
    # levels 2 9 2.5; spreads 2.3 0 1.3; roughness 4 0 1
    assert [a.codes.tolist() for a in found] == [[0, 2, 1], [2, 0, 1], [2, 0, 1]]
    assert found[0].values == ("level 1 of 3", "level 2 of 3", "level 3 of 3")


def test_labels_of_which_none_has_a_group() -> None:
    with pytest.raises(ValueError, match="no label has a group"):
        grouped(torch.full((2, 2), 0.5), [-1, -1])


def test_wilson_by_hand() -> None:
    # z = 2, 3 of 4: (0.75 + 0.5) / 2 and half of sqrt(0.1875 / 4 + 4 / 64) * 2
    low, high = wilson(3, 4, 2.0)
    half = math.sqrt(0.1875 / 4 + 4 / 64)
    assert (low, high) == pytest.approx((0.625 - half, 0.625 + half))


def test_units_by_hand() -> None:
    features = torch.tensor([[0.0, 1], [4, 1], [2, 5], [2, 3]])
    y, rare = torch.tensor([0, 0, 1, 1]), torch.tensor([False, True, False, True])
    found = responding_units(features, y, rare, torch.ones(4, dtype=torch.bool))
    # differences 4 and 0 in the first, 0 and -2 in the second; deviations sqrt 2 and sqrt 2.75
    assert found.tolist() == pytest.approx([2 / 2**0.5, 1 / 2.75**0.5])
    known = torch.tensor([True, True, True, False])
    assert responding_units(features, y, rare, known).tolist() == pytest.approx([4 / 2**0.5, 0])
    assert responding_units(features, y, ~(rare | ~rare), known).tolist() == [0.0, 0.0]


def test_gaps_of_three_classes_by_hand() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    uncommon = torch.tensor([False, False, True, False, True, True, False, True])
    right = torch.tensor([True, False, False, True, True, False, False, True])
    known = torch.ones(8, dtype=torch.bool)
    # class 0: 1/2 - 0, class 1: 1 - 1/2, class 2: 0 - 1
    assert gap(right, y, uncommon, known) == pytest.approx((0.5 + 0.5 - 1) / 3, abs=1e-12)
    known[7] = False  # leaves class 2 without an uncommon row
    assert gap(right, y, uncommon, known) == pytest.approx(0.5)
    assert by_count(right, uncommon.long())[1].accuracy == 0.5
    assert by_count(right, uncommon.long())[1].rows == 4


def test_a_class_without_rows_has_no_common_value_where_nothing_is_smoothed() -> None:
    found = commonness(torch.tensor([0, 0, 0]), Attribute("a", ("p", "q"), torch.tensor([0, 0, 1])), 2, smoothing=0.0)
    assert found[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert found[1].tolist() == [0.0, 0.0]


def test_values_of_category_columns_are_their_codes() -> None:
    spec = Spec("table", "classes", (2,), 2, numeric=1, cardinalities=(4,))
    x = torch.tensor([[0.1, 2.0], [0.2, 1.0], [0.3, 3.0]])
    first, second = measured_attributes([x, x[:1]], spec)
    assert [a.name for a in first] == ["column 1", "column 0"]
    assert first[0].values == ("1", "2", "3")
    assert first[0].codes.tolist() == [1, 0, 2]
    assert second[0].codes.tolist() == [1]
    assert [len(measured_attributes([x], spec, most=k)[0]) for k in (1, 2)] == [1, 2]
    with pytest.raises(ValueError, match="most is 0"):
        measured_attributes([x], spec, most=0)
    with pytest.raises(ValueError, match="bins 1"):
        measured_attributes([x], spec, bins=1)


def test_without_validation_attributes_nothing_is_fine_tuned_on() -> None:
    data, told = planted(0.9, 5)
    told["train"]["place"] = [
        v if k else "land" for v, k in zip(told["train"]["place"], data.train.y.tolist(), strict=True)
    ]
    found = focus_protocol(
        network, data, stream(), attributes={k: told[k] for k in ("train", "test")}, steps=4, finetune_steps=2
    )
    assert found["validation rows with place missing"] == len(data.valid)
    assert found["rows to fine-tune on"] == 0
    assert found["classes without place"] == 0  # one value is a value
    assert not any(name.startswith("fine-tuned") for name in found)
    with pytest.raises(ValueError, match="is given for train and not for test"):
        focus_protocol(network, data, stream(), attributes={"train": told["train"], "test": {"light": ["day"] * 1500}})


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_nothing_is_uncommon_for_a_class_of_which_no_training_row_is_known(smoothing: float) -> None:
    y = torch.arange(300) % 3
    part = Part(torch.randn(300, 2, generator=torch.Generator().manual_seed(0)), y, torch.arange(300))
    data = Data(Spec("table", "classes", (2,), 3, numeric=2), part, part, part)
    words = [str(i // 3 % 25) for i in range(300)]
    known = [None if label == 2 else word for label, word in zip(y.tolist(), words, strict=True)]
    found = focus_protocol(
        lambda: nn.Linear(2, 3), data, torch.Generator().manual_seed(0), tau=0.03, smoothing=smoothing, steps=2,
        attributes={"train": {"place": known}, "test": {"place": words}},
    )  # fmt: skip
    assert found["uncommon pairs of place"] == 0.0
    assert found["rows with 0 uncommon"] == 300.0
    assert found["classes without place"] == 1.0


def test_declared_tables_of_other_libraries_and_shares() -> None:
    y = torch.arange(60) % 2
    part = Part(torch.randn(60, 2, generator=torch.Generator().manual_seed(0)), y, torch.arange(60))
    data = Data(Spec("table", "classes", (2,), 2, numeric=2), part, part, part)
    words = {"place": [("land", "sea")[i] for i in y.tolist()]}

    def told(table: Any) -> float:
        return focus_protocol(
            lambda: nn.Linear(2, 2), data, torch.Generator().manual_seed(0), uncommon={"place": table}, steps=2,
            attributes={"train": words, "test": words},
        )["uncommon pairs of place"]  # fmt: skip

    assert told(np.array([[True, False], [False, True]])) == told([[1, 0], [0, 1]]) == 2.0
    with pytest.raises(ValueError, match=r"uncommon has torch\.float32 \(2, 2\) for 'place'; give a bool table"):
        told(torch.tensor([[0.9, 0.1], [0.0, 1.0]]))
