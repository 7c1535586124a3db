"""Causal attention against a plain formula, rotary positions against the property they are made for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.attention.causal import CausalMixing, CausalSelfAttention, Rotary

pytestmark = pytest.mark.fast


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scores_depend_on_the_distance_alone() -> None:
    rotary = Rotary(8).double()
    q, k = draw(8, seed=1).expand(1, 1, 12, 8), draw(8, seed=2).expand(1, 1, 12, 8)  # the same vector everywhere
    a, b = rotary(q, k)
    scores = (a @ b.transpose(2, 3))[0, 0]
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6, rtol=0)
    assert float((scores[0, 0] - scores[0, 5]).abs()) > 1e-3  # and on the distance it does depend


def test_rotary_turns_planes_and_keeps_lengths() -> None:
    rotary = Rotary(4, base=100.0).double()
    q = draw(1, 1, 3, 4)
    turned, _ = rotary(q, q)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], q[:, :, 0])
    for plane, speed in ((0, 1.0), (1, 100.0**-0.5)):
        z = torch.complex(q[0, 0, 2, plane], q[0, 0, 2, plane + 2]) * torch.polar(
            torch.ones((), dtype=torch.float64), torch.tensor(2 * speed, dtype=torch.float64)
        )
        torch.testing.assert_close(turned[0, 0, 2, plane], z.real, atol=1e-7, rtol=0)
        torch.testing.assert_close(turned[0, 0, 2, plane + 2], z.imag, atol=1e-7, rtol=0)


def test_mixing_is_softmax_over_the_past() -> None:
    q, k, v = (draw(2, 3, 5, 4, seed=i) for i in range(3))
    found = CausalMixing()(q, k, v)
    for t in range(5):
        weights = ((q[:, :, t : t + 1] @ k[:, :, : t + 1].transpose(2, 3)) / math.sqrt(4)).softmax(dim=-1)
        torch.testing.assert_close(found[:, :, t : t + 1], weights @ v[:, :, : t + 1])


def test_parts_can_be_replaced() -> None:
    attention = CausalSelfAttention(8, 2).double()

    class Own(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            assert q.shape == k.shape == v.shape == (3, 2, 5, 4)
            return v

    attention.attend = Own()
    x = draw(3, 5, 8)
    torch.testing.assert_close(attention(x), attention.out(attention.value(x)))  # heads are put back in order


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (8, 0), (6, 2)])
def test_sizes_that_do_not_fit_are_named(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=r"heads|even"):
        CausalSelfAttention(width, heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_in_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    turn = Rotary(16)
    q = torch.randn(1, 1, 3000, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected, _ = turn(q.float(), q.float())
    found, _ = turn.to(dtype)(q, q)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=3e-2)
    assert turn.speed.dtype == torch.float32
    assert turn.double().speed.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_speeds_are_exact_whatever_the_default_type(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        made = Rotary(16)
    finally:
        torch.set_default_dtype(torch.float32)
    if dtype != torch.float64:
        assert torch.equal(made.speed, Rotary(16).speed)
    expected = [10_000.0 ** (-2 * i / 16) for i in range(8)]
    assert made.speed.tolist() == pytest.approx(expected, rel=1e-6 if dtype != torch.float64 else 1e-15)
