"""Outputs and targets that go together, and the ways in which they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probatum.numerics.tensors.targets import (
    IGNORED,
    check_codes,
    class_codes,
    class_targets,
    coded,
    real_targets,
    token_codes,
)
from probatum.spec import Data, Part, Spec

pytestmark = pytest.mark.fast


def test_codes_as_a_row_or_as_a_column() -> None:
    codes, output = torch.tensor([0, 2, 1]), torch.zeros(3, 3)
    for target in (codes, codes[:, None], codes.to(torch.uint8), codes.to(torch.int32)):
        found = class_targets(output, target)
        assert torch.equal(found, codes)
        assert found.dtype == torch.int64
    assert class_targets(output, codes).data_ptr() == codes.data_ptr()  # nothing is copied
    assert class_targets(output[:0], codes[:0]).shape == (0,)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 3), (3, 1, 1), ()])
def test_other_shapes_are_refused_with_both(shape: tuple[int, ...]) -> None:
    target = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and " + str(shape).replace("(", r"\(").replace(")", r"\)")):
        class_targets(torch.zeros(3, 4), target)


def test_labels_outside_the_classes() -> None:
    with pytest.raises(ValueError, match=r"the label 3; with 3 classes labels are 0 \.\. 2"):
        check_codes(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match="the label -100"):
        class_codes(torch.tensor([0, IGNORED]), 2, 3)
    assert class_codes(torch.tensor([0, IGNORED]), 2, 3, IGNORED).tolist() == [0, IGNORED]
    with pytest.raises(ValueError, match="the label -1"):
        class_codes(torch.tensor([-1, IGNORED]), 2, 3, IGNORED)


def test_kinds_of_targets() -> None:
    output, soft = torch.zeros(2, 3), torch.full((2, 3), 1 / 3)
    assert class_targets(output, soft, soft=True) is soft
    with pytest.raises(TypeError, match=r"torch\.float32; class numbers"):
        class_targets(output, soft)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 2\)"):
        class_targets(output, soft[:, :2], soft=True)
    with pytest.raises(TypeError, match=r"torch\.bool"):
        class_targets(output, torch.ones(2, dtype=torch.bool))
    for bad in (torch.zeros(2, 1), torch.zeros(2)):
        with pytest.raises(ValueError, match="two classes or more"):
            class_targets(bad, torch.zeros(2, dtype=torch.int64))


def test_reals() -> None:
    y = torch.arange(3.0)
    assert real_targets(torch.zeros(3, 1), y).shape == (3, 1)
    assert real_targets(torch.zeros(3), y[:, None]).shape == (3,)
    assert real_targets(torch.zeros(3, 2), torch.zeros(3, 2)).shape == (3, 2)
    for output, target in (((3, 2), (3,)), ((3, 1), (2,)), ((3, 2), (3, 1)), ((3, 1), (3, 3)), ((3, 1), (1,))):
        with pytest.raises(ValueError, match="expected one target for each output"):
            real_targets(torch.zeros(output), torch.zeros(target))


@pytest.mark.parametrize(("output", "target"), [((), (3,)), ((3,), ()), ((1,), ()), ((), (1, 1)), ((1, 1), ())])
def test_reals_without_a_dimension_are_no_rows(output: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected one target for each output"):
        real_targets(torch.zeros(output), torch.zeros(target))
    assert real_targets(torch.zeros(()), torch.ones(())) == 1


def test_codes_are_not_looked_at_where_that_would_wait_for_a_device() -> None:
    codes = torch.zeros(3, dtype=torch.int64, device="meta")  # reading its values is an error
    assert check_codes(codes, 2) is None
    assert class_codes(codes[:, None], 3, 2).shape == (3,)


def test_data_of_classes_are_coded_in_every_part() -> None:
    part = Part(torch.zeros(3, 2), torch.tensor([[0], [1], [1]], dtype=torch.int32), torch.arange(3))
    plain = replace(part, y=torch.tensor([0, 1, 1]))
    data = Data(Spec("table", "classes", (2,), 2, numeric=2), part, plain, part)
    found = coded(data)
    for told in (found.train, found.valid, found.test):
        assert told.y.dtype == torch.int64
        assert told.y.tolist() == [0, 1, 1]
    assert found.valid is plain
    assert coded(found) is found
    for name in ("train", "valid", "test"):
        wrong = replace(data, **{name: replace(plain, y=torch.tensor([0, -100, 1]))})
        with pytest.raises(ValueError, match=f"{name}: target holds the label -100; .*leave rows without a label out"):
            coded(wrong)
    with pytest.raises(TypeError, match="float32"):
        coded(replace(data, test=replace(plain, y=torch.zeros(3))))


def test_tokens_are_codes_at_every_place() -> None:
    y = torch.tensor([[1, 2], [0, 2]], dtype=torch.int32)
    assert token_codes(y, (2, 2), 3).dtype == torch.int64
    for wrong, kind, told in (
        (y.float(), TypeError, "float32"),
        (y > 1, TypeError, "bool"),
        (y[:, :, None], ValueError, "one token a place"),
        (y - 1, ValueError, "the label -1"),
        (y + 1, ValueError, "the label 3"),
    ):
        with pytest.raises(kind, match=told):
            token_codes(wrong, (2, 2), 3)
    part = Part(torch.zeros(2, 2, dtype=torch.int64), y, torch.arange(2))
    plain = replace(part, y=y.long())
    data = Data(Spec("text", "next-token", (2,), 3, vocabulary=3), part, plain, plain)
    assert torch.equal(coded(data).train.y, plain.y)
    assert coded(data).train.y.dtype == torch.int64
    with pytest.raises(ValueError, match="valid: target holds the label -100"):
        coded(replace(data, valid=replace(plain, y=torch.tensor([[1, -100], [0, 0]]))))
