"""Half precision is computed in float32 and comes back as it came, gradients too."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.tensors.precision import WideBuffers, as_weights, computed_wide, unit, widened

pytestmark = pytest.mark.fast


class Pair(NamedTuple):
    value: Tensor
    index: Tensor


@computed_wide
def log_rest(p: Tensor, scale: float = 1.0, *, weight: Tensor | None = None) -> Tensor:
    found = scale * (1 - p).log()
    return found if weight is None else found * weight


@computed_wide
def largest(x: Tensor) -> Pair:
    found = x.max(dim=0)
    return Pair(found.values / 3, found.indices)


@computed_wide
def squares(x: Tensor) -> Tensor:
    return x @ x.T


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_and_gradients_agree_with_float32(dtype: torch.dtype) -> None:
    p = torch.tensor([1e-4, 0.3, 0.9]).to(dtype).requires_grad_()
    q = p.detach().float().requires_grad_()
    ours, theirs = log_rest(p, 2.0), 2 * (1 - q).log()
    ours.float().sum().backward()
    theirs.sum().backward()
    assert (ours.dtype, p.grad.dtype) == (dtype, dtype)
    torch.testing.assert_close(ours, theirs.to(dtype))
    torch.testing.assert_close(p.grad, q.grad.to(dtype))
    assert float(ours.detach()[0]) < 0  # 1 - 1e-4 is 1 in both


def test_keywords_tuples_and_other_types() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert log_rest(0 * x, weight=x).dtype == torch.bfloat16
    found = largest(x)
    assert isinstance(found, Pair)
    assert (found.value.dtype, found.index.dtype) == (torch.bfloat16, torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_precisions_pass_as_they_are(dtype: torch.dtype) -> None:
    p = torch.rand(50, dtype=dtype)
    assert torch.equal(log_rest(p), (1 - p).log())
    assert widened(p) is p


def test_under_autocast_results_stay_wide() -> None:
    x = torch.randn(20, 30).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = squares(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, x.float() @ x.float().T)


def test_results_have_the_precision_that_torch_promotes_to() -> None:
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    for first in kinds:
        for second in kinds:
            for shape in ((2,), ()):
                p, weight = torch.full((2,), 0.5, dtype=first), torch.full(shape, 3.0, dtype=second)
                found = log_rest(p, weight=weight)
                assert found.dtype == (p * weight).dtype, (first, second, shape)
                torch.testing.assert_close(found.double(), torch.full((2,), -2.0794415).double(), rtol=4e-3, atol=0)
    assert (
        log_rest(torch.tensor(0.5).half(), weight=torch.tensor(2.0)).dtype == torch.float32
    )  # nothing has a dimension
    assert log_rest(torch.tensor(0.5).half(), weight=torch.tensor(2.0).half()).dtype == torch.float16


class Averages(WideBuffers, nn.Module):
    wide = ("average", "none")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.tensor([0.1, 0.2]))
        self.register_buffer("none", None)
        self.register_buffer("other", torch.tensor([0.1, 0.2]))
        self.weight = nn.Parameter(torch.zeros(2))


def test_wide_buffers_stay_where_all_else_is_cast() -> None:
    net = nn.Sequential(Averages())
    before = net[0].average.clone()
    for cast in (net.half, net.bfloat16):
        cast()
        assert torch.equal(net[0].average, before)
        assert net[0].other.dtype == net[0].weight.dtype != torch.float32
        assert net[0].none is None
    assert net.double()[0].average.dtype == torch.float64
    assert net.to("meta")[0].average.device.type == "meta"


def test_autocast_does_not_round_what_is_wide_already() -> None:
    x = torch.randn(20, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, rounded = squares(x), x @ x.T
    assert torch.equal(found, x @ x.T)
    assert not torch.equal(rounded.float(), found)
    assert squares(torch.zeros(2, 3, device="meta")).shape == (2, 2)  # a device without autocast


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unit_rows_of_zeros_are_zeros_in_every_precision(dtype: torch.dtype) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6e-5, 8e-5]], dtype=dtype)
    found = unit(x)
    assert found.dtype == dtype
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]], dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=4e-3, atol=1e-6)
    torch.testing.assert_close(unit(x.T, dim=0).T, found, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wide_buffers_are_so_from_the_start_where_half_precision_is_the_default(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        made = Averages()
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.average.dtype == torch.float32
    assert made.other.dtype == made.weight.dtype == dtype


def test_rows_take_the_precision_of_the_weights_where_one_of_them_is_half() -> None:
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    for weights, rows, expected in (
        (half, single, half), (single, half, single), (half, double, half), (single, double, double), (half, half, half),
    ):  # fmt: skip
        assert as_weights(nn.Linear(2, 1).to(weights), torch.zeros(1, 2, dtype=rows)).dtype == expected
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).half())  # it has to see to that itself
    for rows in (torch.float16, single, double):
        assert as_weights(mixed, torch.zeros(1, 2, dtype=rows)).dtype == rows
    assert as_weights(nn.Embedding(3, 2).half(), torch.tensor([1])).dtype == torch.int64
    assert as_weights(nn.ReLU(), torch.zeros(1, 2, dtype=half)).dtype == half
