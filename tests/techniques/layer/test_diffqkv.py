"""DiffQKV attention: torch's attention and GQA as special cases, decoding step by step, selective values, conversion."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.kinds.language.network import Decoder
from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.spec import Spec
from probatum.techniques.layer.diffqkv import (
    Cache,
    DiffQKVAttention,
    apply,
    cache_bytes,
    cache_numbers,
    selective_values,
    spread_heads,
)

pytestmark = pytest.mark.fast


def layer(*heads: int, key_size: int = 4, value_size: int | None = None) -> DiffQKVAttention:
    torch.manual_seed(0)
    return DiffQKVAttention(16, *heads, key_size, value_size).double()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(net: DiffQKVAttention, x: torch.Tensor) -> torch.Tensor:
    """The header's formula, head by head and query by query."""
    q, k, v = net.parts(x)
    q, k = net.rotary(q, k)
    out = torch.zeros(len(x), x.shape[1], net.query_heads, net.value_size, dtype=x.dtype)
    for h in range(net.query_heads):
        g, u = h * net.key_heads // net.query_heads, h * net.value_heads // net.query_heads
        for t in range(x.shape[1]):
            scores = (k[:, g, : t + 1] @ q[:, h, t].unsqueeze(2)).squeeze(2) / net.key_size**0.5
            out[:, t, h] = (scores.softmax(1).unsqueeze(2) * v[:, u, : t + 1]).sum(1)
    return net.out(out.flatten(2))


@pytest.mark.parametrize("heads", [(4, 4, 4), (4, 2, 2), (6, 1, 2), (6, 2, 3), (12, 3, 4)])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 6)])
def test_forward_by_loops(heads: tuple[int, ...], sizes: tuple[int, int]) -> None:
    net = layer(*heads, key_size=sizes[0], value_size=sizes[1])
    x = draw(2, 7, 16)
    torch.testing.assert_close(net(x), by_loops(net, x))


@pytest.mark.parametrize("shared", [4, 2, 1])
def test_equal_heads_are_torchs_attention_and_grouped_ones_its_gqa(shared: int) -> None:
    net = layer(4, shared, shared)
    x = draw(2, 7, 16)
    q, k, v = net.parts(x)
    q, k = net.rotary(q, k)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(net(x), net.out(theirs.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("heads", [(4, 4, 4), (6, 1, 2), (12, 3, 4)])
def test_steps_equal_the_whole_forward(heads: tuple[int, ...]) -> None:
    net, x = layer(*heads, value_size=6), draw(2, 40, 16)
    whole = net(x)
    for top in (None, 40, 1000):
        cache = Cache()
        steps = torch.cat([net.step(x[:, t : t + 1], cache, top) for t in range(40)], dim=1)
        torch.testing.assert_close(steps, whole)
    assert tuple(cache.keys.shape) == (2, heads[1], 40, 4)
    assert tuple(cache.values.shape) == (2, heads[2], 40, 6)
    assert cache.bytes == 2 * 40 * cache_numbers(heads[1], 4, heads[2], 6) * 8


@pytest.mark.parametrize("renormalise", [False, True])
def test_selective_values_by_sorting(renormalise: bool) -> None:
    weights, values = draw(2, 6, 9).softmax(-1), draw(2, 3, 9, 5, seed=1)
    found = selective_values(weights, values, 4, renormalise)
    for n in range(2):
        for h in range(6):
            places = sorted(range(9), key=lambda s: -float(weights[n, h, s]))[:4]
            share = weights[n, h, places] / (weights[n, h, places].sum() if renormalise else 1)
            torch.testing.assert_close(found[n, h], share @ values[n, h // 2, places])


def test_top_values_of_a_step_are_close_where_attention_is_sharp() -> None:
    net, x = layer(6, 1, 2), draw(1, 30, 16)
    with torch.no_grad():
        net.query.weight.mul_(30)
    cache = Cache()
    steps = torch.cat([net.step(x[:, t : t + 1], cache, top=8, renormalise=True) for t in range(30)], dim=1)
    torch.testing.assert_close(steps[:, :8], net(x)[:, :8])
    torch.testing.assert_close(steps, net(x), atol=0.02, rtol=0.02)


def test_later_tokens_do_not_matter_and_gradients_are_right() -> None:
    net = DiffQKVAttention(4, 4, 1, 2, 2).double()
    x = draw(1, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,))
    other = x.detach().clone()
    other[:, 3:] += 1
    torch.testing.assert_close(net(other)[:, :3], net(x)[:, :3])


def test_without_cuts_it_is_the_old_layer_bit_for_bit() -> None:
    old = CausalSelfAttention(16, 4)
    net = nn.Sequential(copy.deepcopy(old))
    state = torch.get_rng_state()
    assert apply(net, key_cut=1, value_cut=1, query_growth=1.0) == 1
    assert torch.equal(torch.get_rng_state(), state), "the global stream was used"
    x = torch.randn(3, 9, 16)
    assert torch.equal(net(x), old(x))


def test_pretrained_heads_are_pooled_and_new_queries_have_no_effect() -> None:
    old = CausalSelfAttention(16, 4).double()
    with torch.no_grad():  # heads that share are alike, so that pooling changes nothing
        for was, group in ((old.key, 4), (old.value, 2)):
            for name in ("weight", "bias"):
                parts = getattr(was, name).unflatten(0, (-1, group, 4))
                parts.copy_(parts[:, :1].clone().expand_as(parts))
    x = draw(2, 6, 16)
    made = DiffQKVAttention.from_attention(old, pool=True)
    torch.testing.assert_close(made(x), old(x))
    assert made.query_heads == 6
    uneven = CausalSelfAttention(16, 4).double()
    made = DiffQKVAttention.from_attention(uneven, 2, 4, 1.0, pool=True)
    torch.testing.assert_close(made.key.weight, uneven.key.weight.view(2, 2, 4, 16).mean(1).flatten(0, 1))
    torch.testing.assert_close(made.value.bias, uneven.value.bias.view(4, 4).mean(0))


def test_from_scratch_weights_keep_their_spread_and_come_from_the_generator() -> None:
    net = Decoder(Spec("text", "next-token", (20,), 30, vocabulary=30), width=64, depth=2, heads=8)
    old = copy.deepcopy(net.blocks[0].attention)
    again = copy.deepcopy(net)
    assert apply(net, generator=torch.Generator().manual_seed(3)) == 2
    assert apply(again, generator=torch.Generator().manual_seed(3)) == 2
    made = net.blocks[0].attention
    assert torch.equal(made.query.weight, again.blocks[0].attention.query.weight)
    assert (made.query_heads, made.key_heads, made.value_heads) == (12, 2, 4)
    assert torch.equal(made.key.weight[8:], old.key.weight[32:40])
    for new, was in ((made.query, old.query), (made.key, old.key), (made.value, old.value), (made.out, old.out)):
        assert abs(float(new.weight.detach().std() / was.weight.detach().std()) - 1) < 0.1
    assert cache_bytes(net, 10) == 2 * (2 * 8 + 4 * 8) * 10 * 4
    net(torch.randint(30, (2, 20))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_half_the_key_size_keeps_pairs_of_dimensions() -> None:
    old = CausalSelfAttention(16, 2)
    made = DiffQKVAttention.from_attention(old, 1, 1, 1.0, key_size=0.5)
    assert (made.key_size, made.value_size) == (4, 8)
    assert torch.equal(made.key.weight, old.key.weight.view(2, 8, 16)[:, [0, 1, 4, 5]].flatten(0, 1))
    assert tuple(made(torch.randn(2, 5, 16)).shape) == (2, 5, 16)


def test_state_round_trip_and_spread() -> None:
    net, other = layer(6, 1, 2), layer(6, 1, 2)
    with torch.no_grad():
        other.key.weight.zero_()
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(draw(1, 3, 16)), other(draw(1, 3, 16)))
    assert spread_heads(torch.arange(3.0).view(1, 3, 1, 1), 6).flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_misuse() -> None:
    with pytest.raises(ValueError, match="query_heads is 6 and key_heads 4"):
        DiffQKVAttention(16, 6, 4, 2, 4)
    with pytest.raises(ValueError, match="size of a head is 3"):
        DiffQKVAttention(16, 6, 2, 2, 3)
    with pytest.raises(ValueError, match="key_heads is 0"):
        DiffQKVAttention(16, 6, 0, 2, 4)
    net = nn.Sequential(CausalSelfAttention(16, 4))
    for settings, told in (
        ({"key_cut": 3}, "key_cut is 3, which does not divide the layer's 4 heads"),
        ({"value_cut": 0}, "value_cut is 0"),
        ({"query_growth": 0.5}, "query_growth is 0.5"),
        ({"key_size": 2.0}, "key_size is 2.0"),
    ):
        with pytest.raises(ValueError, match=told):
            apply(net, **settings)
    decoder = layer(4, 2, 2)
    with pytest.raises(ValueError, match="takes one token"):
        decoder.step(draw(1, 2, 16), Cache())
    with pytest.raises(ValueError, match="top is 0"):
        decoder.step(draw(1, 1, 16), Cache(), top=0)
    decoder.rotary = nn.Identity()
    with pytest.raises(TypeError, match="not for Identity and CausalMixing"):
        decoder.step(draw(1, 1, 16), Cache())


def test_one_layer_in_two_places_a_frozen_one_and_the_layer_by_itself() -> None:
    shared = CausalSelfAttention(16, 4)
    shared.query.requires_grad_(False)
    net = nn.Sequential(shared, nn.Linear(16, 16), shared)
    assert apply(net) == 2
    assert net[0] is net[2]
    assert isinstance(net[0], DiffQKVAttention)
    assert [p.requires_grad for p in net[0].query.parameters()] == [False, False]
    assert net[0].key.weight.requires_grad
    with pytest.raises(ValueError, match="itself the CausalSelfAttention"):
        apply(CausalSelfAttention(16, 4))


def test_tied_projections_are_refused() -> None:
    net = nn.Sequential(CausalSelfAttention(16, 4), CausalSelfAttention(16, 4))
    net[1].key.weight = net[0].key.weight
    with pytest.raises(ValueError, match=r"'0\.key\.weight' and '1\.key\.weight' are one tied parameter"):
        apply(net)
    assert type(net[0]) is CausalSelfAttention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_far_on_in_half_precision_turn_by_their_own_positions(dtype: torch.dtype) -> None:
    net = layer(6, 1, 2).float()
    x = draw(1, 1, 16).float()
    for length in (301, 2500):  # bfloat16 counts to 256, float16 to 2048
        rows = []
        for made, given in ((net, x), (copy.deepcopy(net).to(dtype), x.to(dtype))):
            cache = Cache()
            cache.add(given.new_zeros(1, 1, length, 4), given.new_zeros(1, 2, length, 4))
            made.step(given, cache)
            rows.append(cache.keys[:, :, -1].float())
        torch.testing.assert_close(rows[1], rows[0], rtol=0.03, atol=0.03)
