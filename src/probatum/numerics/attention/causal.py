"""Causal self-attention in parts that techniques can replace: projections, positions, and the mixing itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.tensors.precision import WideBuffers


class Rotary(WideBuffers, nn.Module):
    """Queries and keys (n, heads, t, size) turned by their positions (RoPE; Su et al. 2021, arXiv:2104.09864, eq. 34).

    Dimensions i and i + size / 2 are a plane that turns by `base` ** (-2 i / size) radians a position, so that the scalar
    product of a query and a key depends on the distance of their positions alone.

    Raises:
        ValueError: an odd size.
    """

    wide = ("speed",)  # bfloat16 could not count beyond 256

    def __init__(self, size: int, base: float = 10_000.0) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(f"the size of a head is {size}; rotary positions need an even one")
        self.speed: Tensor
        exact = torch.promote_types(torch.get_default_dtype(), torch.float32)
        planes = torch.arange(0, size, 2, dtype=exact)
        self.register_buffer("speed", base ** (-planes / size), persistent=False)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Positions are counted from 0."""
        angle = torch.arange(q.shape[2], device=q.device, dtype=self.speed.dtype)[:, None] * self.speed
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)  # (t, size / 2)
        return _turned(q, cos, sin), _turned(k, cos, sin)


class CausalMixing(nn.Module):
    """Softmax attention over this and earlier positions: q, k, v (n, heads, t, size) -> (n, heads, t, size)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scores are scalar products over the square root of the size (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class CausalSelfAttention(nn.Module):
    """x (n, t, width) -> (n, t, width), each position mixed from itself and those before it.

    Attributes:
        heads: number of heads; `size` of each is width / heads.
        query, key, value, out: `nn.Linear` projections of width to width.
        rotary: module (q, k) -> (q, k) that brings positions in; `Rotary`.
        attend: module (q, k, v) -> mixed values, all (n, heads, t, size); `CausalMixing`. Techniques replace it (or
            `rotary`) by a module of their own, which must not look at later positions.

    Raises:
        ValueError: a width that heads do not divide.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width is {width} and heads {heads}; heads must divide the width")
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.rotary: nn.Module = Rotary(self.size)
        self.attend: nn.Module = CausalMixing()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        q, k = self.rotary(self.split(self.query(x)), self.split(self.key(x)))
        mixed = self.attend(q, k, self.split(self.value(x)))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(n, t, width) -> (n, heads, t, size)."""
        return x.unflatten(2, (self.heads, self.size)).transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
