"""Positions, sampled blocks and the stair of bits: each against the plain attention it departs from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.techniques.layer.generative_ai_parts.generative_ai_parts import (
    StairCache,
    apply,
    block_attention,
    check_keep,
    check_stair,
    codes,
    distance_bias,
    head_slopes,
    pack,
    quantised,
    sample_blocks,
    stair_attention,
    unpack,
)

pytestmark = pytest.mark.fast


def draw(t: int = 22, seed: int = 0, heads: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, heads, t, 8, dtype=torch.float64, generator=generator).unbind(0)
    return q, k, v


def bias_of(slopes: str, t: int, heads: int = 3) -> torch.Tensor:
    return distance_bias(head_slopes(heads, slopes).double(), t)


def test_slopes_and_bias_by_hand() -> None:
    torch.testing.assert_close(head_slopes(4), torch.tensor([1.0, 0.5, 1 / 3, 0.25]))
    torch.testing.assert_close(head_slopes(4, "geometric"), torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]))
    bias = bias_of("harmonic", 5)
    for h in range(3):
        for i in range(5):
            for j in range(5):
                expected = -(i - j) / (h + 1) if j <= i else -math.inf
                assert float(bias[h, i, j]) == pytest.approx(expected)


def test_slope_zero_is_plain_rotary_attention() -> None:
    torch.manual_seed(0)
    net = CausalSelfAttention(16, 4)
    x = torch.randn(2, 9, 16)
    plain = net(x)
    holder = nn.Sequential(net)
    assert apply(holder, slopes="none", keep=(1.0,), block=4) == 1
    torch.testing.assert_close(net.train()(x), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net.eval()(x), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 7, 30])
def test_all_blocks_kept_is_full_attention(block: int) -> None:
    q, k, v = draw()
    blocks = -(-22 // block)
    kept = torch.ones(1, blocks, blocks, dtype=torch.bool).tril()
    found = block_attention(q, k, v, kept, block, bias_of("harmonic", 22))
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, attn_mask=bias_of("harmonic", 22)))
    torch.testing.assert_close(
        block_attention(q, k, v, kept, block, bias_of("none", 22)),
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
    )


@pytest.mark.parametrize("shared", [True, False])
def test_sampled_blocks_are_a_mask(shared: bool) -> None:
    q, k, v = (x.requires_grad_() for x in draw())
    kept = sample_blocks(6, (1.0, 0.6, 0.3), 1 if shared else 3, torch.Generator().manual_seed(2))
    bias = bias_of("harmonic", 22)
    mask = kept.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)[:, :22, :22]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(~mask, -math.inf))
    found = block_attention(q, k, v, kept, 4, bias)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_blocks_are_kept_as_often_as_told() -> None:
    kept = sample_blocks(5, (1.0, 0.5, 0.2), 4000, torch.Generator().manual_seed(0)).double().mean(dim=0)
    for i in range(5):
        for j in range(5):
            expected = 0.0 if j > i else (1.0, 0.5, 0.2)[min(i - j, 2)]
            assert float(kept[i, j]) == pytest.approx(expected, abs=0.03)


def test_large_scores_stay_finite() -> None:
    q, k, v = (1e4 * x for x in draw())
    kept = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    assert torch.isfinite(block_attention(q, k, v, kept, 4, bias_of("harmonic", 22))).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_within_half_a_step_and_pack(bits: int) -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    found, low, step = codes(x, bits, 2)
    assert int(found.max()) <= 2**bits - 1
    back = quantised(x, bits, 2)
    assert ((back - x).abs() <= 0.5 * step + 1e-2 * step + 2e-3).all()
    assert torch.equal(unpack(pack(found, bits), bits), found.int())
    assert pack(found, bits).numel() == found.numel() * bits // 8
    assert torch.equal(quantised(x, 16, 2), x)
    assert low.shape == (3, 5, 1)


def test_a_stair_of_sixteen_bits_is_the_plain_cache() -> None:
    q, k, v = draw()
    found = stair_attention(q, k, v, ((0, 16),), 4, bias_of("harmonic", 22))
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, attn_mask=bias_of("harmonic", 22)))
    cache = StairCache(((0, 16),), group=4)
    for t in range(22):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
    assert torch.equal(cache.read()[0], k)
    assert cache.bytes() == 2 * (k.numel() + v.numel())


@pytest.mark.parametrize("stair", [((0, 8),), ((0, 16), (3, 8), (6, 4), (12, 2)), ((0, 4), (9, 4))])
def test_all_at_once_is_decoding_from_the_cache(stair: tuple[tuple[int, int], ...]) -> None:
    q, k, v = (x.float() for x in draw(27))
    bias = distance_bias(head_slopes(3), 27)
    found = stair_attention(q, k, v, stair, 4, bias)
    cache = StairCache(stair, group=4)
    for t in range(27):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        keys, values = cache.read()
        row = F.scaled_dot_product_attention(q[:, :, t : t + 1], keys, values, attn_mask=bias[:, t : t + 1, : t + 1])
        torch.testing.assert_close(found[:, :, t : t + 1], row, atol=1e-4, rtol=1e-4)


def test_old_tokens_are_coarser_and_smaller() -> None:
    _, k, v = (x.float() for x in draw(64))
    cache = StairCache(((0, 16), (8, 8), (24, 4), (40, 2)), group=8)
    sizes = []
    for t in range(64):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        sizes.append(cache.bytes())
    error = (cache.read()[0] - k).abs().mean(dim=(0, 1, 3)).view(8, 8).mean(dim=1)
    assert error[-1] == 0
    assert error[0] > 4 * error[3] > 0
    assert sizes[-1] < 0.6 * 2 * (k.numel() + v.numel())


def test_the_layer_uses_stairs_in_evaluation_and_blocks_in_training() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(CausalSelfAttention(16, 4))
    x = torch.randn(2, 40, 16)
    apply(net, keep=(1.0, 0.0), block=8, stair=((0, 2),), group=8, generator=torch.Generator().manual_seed(0))
    bias = distance_bias(head_slopes(4), 40)
    captured = {}
    attend = net[0].attend
    attend.register_forward_hook(lambda m, given, out: captured.update(given=given, out=out))
    net.train()(x)
    q, k, v = captured["given"]
    local = torch.block_diag(*[torch.ones(8, 8)] * 5).bool()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(~local, -math.inf))
    torch.testing.assert_close(captured["out"], expected)
    net.eval()(x)
    q, k, v = captured["given"]
    torch.testing.assert_close(captured["out"], stair_attention(q, k, v, ((0, 2),), 8, bias))


@pytest.mark.parametrize("keep", [(), (0.9, 0.5), (1.0, 0.5, 0.6), (1.0, -0.1)])
def test_probabilities_that_make_no_sense(keep: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="start at 1"):
        check_keep(keep)


@pytest.mark.parametrize("stair", [(), ((1, 16),), ((0, 4), (8, 8)), ((0, 16), (0, 8)), ((0, 3),)])
def test_stairs_that_make_no_sense(stair: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="never rise"):
        check_stair(stair)


def test_misuse() -> None:
    q, k, v = draw(8)
    with pytest.raises(ValueError, match="diagonal block"):
        block_attention(q, k, v, torch.zeros(1, 2, 2, dtype=torch.bool), 4, bias_of("none", 8))
    with pytest.raises(ValueError, match="group is 6"):
        StairCache(((0, 8),), group=6)
    with pytest.raises(ValueError, match="one token"):
        StairCache(((0, 8),)).append(k, v)
    with pytest.raises(ValueError, match="slopes is 'steep'"):
        apply(nn.Sequential(CausalSelfAttention(8, 2)), slopes="steep")
    with pytest.raises(ValueError, match="block is 0"):
        apply(nn.Sequential(CausalSelfAttention(8, 2)), block=0)


def test_one_mixing_in_two_layers_is_replaced_in_both() -> None:
    net = nn.Sequential(CausalSelfAttention(8, 2), CausalSelfAttention(8, 2))
    net[1].attend = net[0].attend
    assert apply(net) == 2
    assert net[0].attend is net[1].attend
    other = nn.Sequential(CausalSelfAttention(8, 2), CausalSelfAttention(8, 4))
    other[1].attend = other[0].attend
    with pytest.raises(ValueError, match="of 2 and of 4 heads"):
        apply(other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{"keep": (1.0, 0.5)}, {"stair": ((0, 16), (64, 8))}, {}])
def test_half_precision_is_that_of_long_sums_in_float32(dtype: torch.dtype, settings: dict) -> None:
    net = nn.Sequential(CausalSelfAttention(12, 3))
    apply(net, "harmonic", generator=torch.Generator().manual_seed(0), **settings)
    mixing = net[0].attend.train("keep" in settings)
    q, k = torch.zeros(2, 1, 3, 900, 4)  # logits are the slopes' alone, weights sums of hundreds of small numbers
    v = torch.rand(1, 3, 900, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    mixing.slopes.mul_(1e-3)
    mixing.generator.manual_seed(2)
    expected = mixing(q, k, v.float())
    mixing.generator.manual_seed(2)
    found = mixing.to(dtype)(q.to(dtype), k.to(dtype), v)
    assert mixing.slopes.dtype == torch.float32
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=8e-3, atol=2e-3)


def test_blocks_in_a_recomputed_pass_are_refused() -> None:
    net = nn.Sequential(CausalSelfAttention(16, 4))
    apply(net, keep=[1.0, 0.5], block=4)
    found = checkpoint(net, torch.randn(2, 12, 16), use_reentrant=False)
    with pytest.raises(RuntimeError, match="activation checkpointing"):
        found.sum().backward()
