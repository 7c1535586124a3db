"""Parts for small transformers: rotary positions with harmonic distance slopes, sampled blocks, a stair of cache bits.

Paper     Li 2024, "The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI",
          arXiv:2410.18441, sections 2 to 6
Computes  RoPExALiBi: logits RoPE(q_i) . RoPE(k_j) / sqrt(d) - m_h (i - j), m_h = 1 / h. PrFlashAttention: in training the block
          pair (I, J), J <= I, is kept with probability p(I - J), p(0) = 1, falling; online softmax over what is kept. SAQ:
          cached keys (a channel at a time) and values (a token at a time) lose bits in steps as they age, each step made from
          the last. Sub-words of greatest likelihood and the cross-entropy method over settings, the paper's other two
          parts, are `probatum.techniques.layer.generative_ai_parts.subwords` and `probatum.techniques.layer.generative_ai_parts.cross_entropy_method`
Shapes    q, k, v (n, heads, t, size) -> (n, heads, t, size)
Departs   1. the paper is analytical: p, block sizes, group sizes and the stair are settings of ours
          2. tokens age in aligned groups, by their youngest; a group that is not full yet stays as it is
          3. bytes count 16 bits as the plain cache, whatever dtype computes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.attention.causal import CausalMixing, CausalSelfAttention
from probatum.numerics.networks.surgery import swap
from probatum.numerics.tensors.draws import in_forward
from probatum.numerics.tensors.precision import WideBuffers, computed_wide

CARD = Card(
    paper="arXiv:2410.18441",
    title="The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI",
    entry="apply",
    number=44,
    tags=("language", "attention", "positions", "quantisation", "tokenisation"),
    modalities=("text",),
    tasks=("next-token",),
    alone="every seed samples its own blocks",
    neutral={"slopes": "none"},
    tiny={"keep": (1.0, 0.5), "block": 4},
    tune={"slopes": ["none", "geometric", "harmonic"]},
    claims=("three-parts",),
)

SLOPES = ("harmonic", "geometric", "none")
PLAIN = 16
"""Bits of a cache that is not quantised."""
BITS = (2, 4, 8, PLAIN)

Stair = Sequence[tuple[int, int]]
"""(age, bits) steps: from that age on, so many bits; the first age is 0."""


def head_slopes(heads: int, kind: str = "harmonic") -> Tensor:
    """m_h (heads,): 1 / h, 2 ** (-8 h / H), or zeros."""
    if kind not in SLOPES:
        raise ValueError(f"slopes is {kind!r}; use one of {', '.join(SLOPES)}")
    h = torch.arange(1, heads + 1, dtype=torch.float32)
    return {"harmonic": 1 / h, "geometric": 2 ** (-8 * h / heads), "none": torch.zeros(heads)}[kind]


def distance_bias(slopes: Tensor, t: int) -> Tensor:
    """-m_h (i - j) for j <= i and -inf beyond: (heads, t, t)."""
    place = torch.arange(t, device=slopes.device)
    distance = place[:, None] - place[None, :]
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, float("-inf"))


def check_keep(keep: Sequence[float]) -> tuple[float, ...]:
    """Probabilities by block distance.

    Raises:
        ValueError: none, a first one below 1, rising, or outside [0, 1].
    """
    found = tuple(float(p) for p in keep)
    falling = all(a >= b for a, b in itertools.pairwise(found))
    if not found or found[0] != 1 or not falling or found[-1] < 0:
        raise ValueError(f"keep is {list(keep)}; give probabilities by block distance that start at 1 and do not rise")
    return found


def sample_blocks(blocks: int, keep: Sequence[float], heads: int, generator: torch.Generator) -> Tensor:
    """Which block pairs are kept: (heads, blocks, blocks) bool, lower triangle; beyond `keep`'s end its last value holds."""
    place = torch.arange(blocks)
    distance = place[:, None] - place[None, :]
    law = torch.tensor(keep)[distance.clamp(0, len(keep) - 1)]
    return (torch.rand(heads, blocks, blocks, generator=generator) < law) & (distance >= 0)


@computed_wide
def block_attention(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, block: int, bias: Tensor) -> Tensor:
    """Causal attention over kept block pairs by online softmax, one block at a time.

    Args:
        q, k, v: (n, heads, t, size).
        kept: (1 or heads, blocks, blocks) bool; block I of queries sees block J of keys where it is True.
        block: positions in a block; the last may be shorter.
        bias: (heads, t, t), -inf above the diagonal.

    Raises:
        ValueError: a diagonal block that is not kept, by which a row would see nothing.
    """
    if not kept.diagonal(dim1=1, dim2=2).all():
        raise ValueError("a diagonal block is not kept; its rows would see nothing: p(0) must be 1")
    scale, rows = 1 / math.sqrt(q.shape[-1]), []
    edges = list(range(0, q.shape[2], block))
    for i, start in enumerate(edges):
        here = slice(start, start + block)
        query = q[:, :, here] * scale
        most = query.new_full((*query.shape[:3], 1), float("-inf"))
        weight, total = torch.zeros_like(most), torch.zeros_like(query)
        for j in (*range(i - 1, -1, -1), i)[::-1]:  # the diagonal first, so that no row is ever without a maximum
            chosen = kept[:, i, j]
            if not chosen.any():
                continue
            there = slice(edges[j], edges[j] + block)
            scores = query @ k[:, :, there].transpose(2, 3) + bias[:, here, there]
            if not chosen.all():
                scores = scores.masked_fill(~chosen[None, :, None, None], float("-inf"))
            top = torch.maximum(most, scores.detach().amax(dim=3, keepdim=True))
            powers, shrink = (scores - top).exp(), (most - top).exp()
            weight = weight * shrink + powers.sum(dim=3, keepdim=True)
            total = total * shrink + powers @ v[:, :, there]
            most = top
        rows.append(total / weight)
    return torch.cat(rows, dim=2)


def check_stair(stair: Stair) -> tuple[tuple[int, int], ...]:
    """The steps.

    Raises:
        ValueError: ages that do not rise from 0, bits that rise, or other bits than 2, 4, 8 and 16.
    """
    found = tuple((int(age), int(bits)) for age, bits in stair)
    ages, bits = [age for age, _ in found], [b for _, b in found]
    rising = all(a < b for a, b in itertools.pairwise(ages))
    falling = all(a >= b for a, b in itertools.pairwise(bits))
    if not found or ages[0] != 0 or not rising or not falling or any(b not in BITS for b in bits):
        raise ValueError(
            f"stair is {list(stair)}; give (age, bits) with ages rising from 0 and bits out of {BITS} that never rise"
        )
    return found


def codes(x: Tensor, bits: int, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Min/max quantisation over `dim`: codes (uint8), the least value and the step, both as float16 numbers in x's dtype."""
    low = x.amin(dim=dim, keepdim=True).half().to(x.dtype)
    step = ((x.amax(dim=dim, keepdim=True) - low) / (2**bits - 1)).clamp_min(1e-6).half().to(x.dtype)
    return ((x - low) / step).round().clamp(0, 2**bits - 1).to(torch.uint8), low, step


def quantised(x: Tensor, bits: int, dim: int | tuple[int, ...]) -> Tensor:
    """x after a round trip through `codes`; as it is at 16 bits."""
    if bits >= PLAIN:
        return x
    found, low, step = codes(x, bits, dim)
    return found.to(x.dtype) * step + low


def pack(found: Tensor, bits: int) -> Tensor:
    """Codes of a last dimension that 8 / bits divides -> bytes."""
    per = 8 // bits
    parts = found.unflatten(-1, (-1, per)).int() << (bits * torch.arange(per, dtype=torch.int32))
    return parts.sum(dim=-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Bytes -> codes."""
    per = 8 // bits
    return ((packed.int().unsqueeze(-1) >> (bits * torch.arange(per, dtype=torch.int32))) & (2**bits - 1)).flatten(-2)


def _aged(k: Tensor, v: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Keys and values (n, heads, groups, group, size) after the step to `bits`: keys by channel, values by token."""
    return quantised(k, bits, 3), quantised(v, bits, (1, 4))


@computed_wide
def stair_attention(q: Tensor, k: Tensor, v: Tensor, stair: Stair, group: int, bias: Tensor) -> Tensor:
    """What step-by-step decoding from a `StairCache` gives, for all positions at once."""
    steps, t = check_stair(stair), q.shape[2]
    full = t // group * group
    place = torch.arange(t, device=q.device)
    youngest = place // group * group + group - 1
    age = torch.where(place < full, place[:, None] - youngest[None, :], -1)  # of j's group, seen from i
    logits, tier = q.new_full((*q.shape[:2], t, t), float("-inf")), torch.zeros_like(age) - 1
    versions = []
    old_k, old_v = (x[:, :, :full].unflatten(2, (-1, group)) for x in (k, v))
    for number, (least, bits) in enumerate(steps):
        old_k, old_v = _aged(old_k, old_v, bits)
        tier = torch.where(age >= least, number, tier)
        versions.append(
            tuple(torch.cat([x.flatten(2, 3), tail[:, :, full:]], 2) for x, tail in ((old_k, k), (old_v, v)))
        )
    versions.append((k, v))  # tier -1: groups that are not full
    for number, (keys, _) in enumerate(versions):
        mine = tier == (number if number < len(steps) else -1)
        logits = torch.where(mine, q @ keys.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias, logits)
    weights, out = logits.softmax(dim=3), torch.zeros_like(q)
    for number, (_, values) in enumerate(versions):
        mine = tier == (number if number < len(steps) else -1)
        out = out + weights.masked_fill(~mine, 0.0) @ values
    return out


@dataclass
class StairCache:
    """Keys and values of a decoder that lose bits as they age; filled one token at a time.

    Attributes:
        stair: (age, bits) steps.
        group: tokens that age together.

    Raises:
        ValueError: see `check_stair`; a group that is no multiple of 4.

    Example:
        >>> cache = StairCache(((0, 16), (8, 4)), group=8)
        >>> for token in torch.randn(40, 1, 2, 1, 8, generator=torch.Generator().manual_seed(0)):
        ...     cache.append(token, token)
        >>> keys, values = cache.read()
        >>> tuple(keys.shape), round(40 * 2 * 2 * 8 * 2 / cache.bytes(), 1)
        ((1, 2, 40, 8), 1.8)
    """

    stair: Stair
    group: int = 32
    length: int = 0
    _young: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _groups: list[tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stair = check_stair(self.stair)
        if self.group < 4 or self.group % 4:
            raise ValueError(f"group is {self.group}; give a multiple of 4, by which codes fill bytes")

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add one token, (n, heads, 1, size), and let the others age."""
        if k.shape[2] != 1 or k.shape != v.shape:
            raise ValueError(f"keys {tuple(k.shape)} and values {tuple(v.shape)}: give one token, (n, heads, 1, size)")
        self.length += 1
        self._young.append((k, v))
        if len(self._young) == self.group:
            whole = tuple(torch.cat([pair[i] for pair in self._young], dim=2) for i in (0, 1))
            self._young.clear()
            self._groups.append((PLAIN, (whole[0],), (whole[1],)))
        for number, held in enumerate(self._groups):
            age = self.length - 1 - ((number + 1) * self.group - 1)
            self._groups[number] = self._stepped(held, age)

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values (n, heads, length, size) as they are remembered."""
        parts = [self._plain(held) for held in self._groups] + self._young
        return torch.cat([part[0] for part in parts], dim=2), torch.cat([part[1] for part in parts], dim=2)

    def bytes(self) -> int:
        """What is held: packed codes, float16 minima and steps, and two bytes a number that is not quantised."""
        total = sum(2 * (k.numel() + v.numel()) for k, v in self._young)
        for bits, *held in self._groups:
            for found, *ranges in held:
                total += 2 * found.numel() if bits == PLAIN else found.numel() + sum(2 * r.numel() for r in ranges)
        return total

    def _stepped(
        self, held: tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]], age: int
    ) -> tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]:
        for least, bits in self.stair:
            if age >= least and bits < held[0]:
                k, v = self._plain(held)
                found_k, found_v = codes(k, bits, 2), codes(v, bits, (1, 3))
                held = (
                    bits,
                    (pack(found_k[0].transpose(2, 3), bits), *found_k[1:]),
                    (pack(found_v[0].transpose(2, 3), bits), *found_v[1:]),
                )
        return held

    def _plain(self, held: tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        bits, *both = held
        if bits == PLAIN:
            return both[0][0], both[1][0]
        k, v = (unpack(found, bits).transpose(2, 3).to(low.dtype) * step + low for found, low, step in both)
        return k, v


class PartsMixing(WideBuffers, nn.Module):
    """The attention of `CausalSelfAttention` with the parts that are switched on; arguments as in `apply`."""

    slopes: Tensor
    wide = ("slopes",)

    def __init__(
        self,
        heads: int,
        slopes: str,
        keep: Sequence[float] | None,
        block: int,
        shared: bool,
        stair: Stair | None,
        group: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.register_buffer("slopes", head_slopes(heads, slopes), persistent=False)
        self.keep, self.block, self.shared = keep, block, shared
        self.stair, self.group, self.generator = stair, group, generator

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (n, heads, t, size) -> the same."""
        t = q.shape[2]
        bias = distance_bias(self.slopes, t)
        if self.training and self.keep is not None:
            own, heads = in_forward(self.generator), 1 if self.shared else q.shape[1]
            kept = sample_blocks(-(-t // self.block), self.keep, heads, own)
            return block_attention(q, k, v, kept.to(q.device), self.block, bias).to(q.dtype)  # the bias is in float32
        if not self.training and self.stair is not None:
            return stair_attention(q, k, v, self.stair, self.group, bias).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


def apply(
    net: nn.Module,
    slopes: str = "harmonic",
    keep: Sequence[float] | None = None,
    block: int = 16,
    shared: bool = True,
    stair: Stair | None = None,
    group: int = 32,
    generator: torch.Generator | None = None,
) -> int:
    """Give every causal self-attention of a network the parts that are switched on, in place.

    Args:
        net: a network with `CausalSelfAttention`; its rotary positions stay.
        slopes: "harmonic", "geometric" or "none" (with nothing else on: the baseline bit for bit).
        keep: probability of a block pair in training by its distance, from 1 down; None = all.
        block: positions in a block.
        shared: whether heads see the same blocks.
        stair: (age, bits) steps of the cache in evaluation; None = plain.
        group: tokens that age together, a multiple of 4.
        generator: for the blocks.

    Returns:
        How many were changed.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), CausalSelfAttention(8, 2))
        >>> apply(net, stair=((0, 16), (64, 4))), apply(nn.Linear(2, 2))
        (1, 0)
    """
    kept, steps = (None if keep is None else check_keep(keep)), (None if stair is None else check_stair(stair))
    if block < 1 or group < 4 or group % 4:
        raise ValueError(f"block is {block} and group {group}; need block >= 1 and a group that is a multiple of 4")
    own = generator or torch.Generator().manual_seed(0)
    found = [m for m in net.modules() if isinstance(m, CausalSelfAttention) and isinstance(m.attend, CausalMixing)]
    head_slopes(1, slopes)
    if slopes == "none" and kept is None and steps is None:
        return 0
    new: dict[nn.Module, PartsMixing] = {}
    for module in found:
        if (known := new.get(module.attend)) is not None and len(known.slopes) != module.heads:
            raise ValueError(
                f"one CausalMixing serves layers of {len(known.slopes)} and of {module.heads} heads; give each its own"
            )
        if known is None:
            mixing = PartsMixing(module.heads, slopes, kept, block, shared, steps, group, own)
            new[module.attend] = mixing.to(module.out.weight.device)
    return swap(net, new).count
