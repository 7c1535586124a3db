"""DiffQKV attention: keys compressed more than values, and queries enlarged, for a small cache at decoding.

Paper     Lin et al. 2025, "Sigma: Differential Rescaling of Query, Key and Value for Efficient Language Models",
          arXiv:2501.13629, section 2
Computes  o_h = softmax(q_h k_g(h)^T / sqrt(d_qk)) v_u(h), g(h) = floor(h n_k / n_q), u(h) = floor(h n_v / n_q), with
          n_k < n_v < n_q heads; the cache holds n_k d_qk + n_v d_v numbers a token and layer. Decoding may fetch values of the
          `top` largest weights only
Shapes    x (n, t, width) -> (n, t, width), causal; cache: keys (n, n_k, t, d_qk), values (n, n_v, t, d_v)
Departs   1. the enlarged query has more heads of the old size, so that it is paid for in W_Q and W_O alone
          2. cuts are given as fractions of a network's own heads, by default to a quarter of the keys (the paper: an eighth),
             half of the values and 1.5 times the queries
          3. a network in training from scratch keeps the first key (value) head of each group that shares one; from
             pretrained weights the mean of the group is taken
          4. a smaller key head keeps the fastest turning planes of its rotary positions, at new speeds
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.attention.causal import CausalMixing, CausalSelfAttention, Rotary
from probatum.numerics.networks.surgery import check_plain, layers, swap
from probatum.numerics.tensors.draws import random_state_kept

CARD = Card(
    paper="arXiv:2501.13629",
    title="Sigma: Differential Rescaling of Query, Key and Value for Efficient Language Models",
    entry="apply",
    number=54,
    tags=("attention", "transformers", "language", "efficiency", "cache"),
    modalities=("text",),
    tasks=("next-token",),
    alone="its projections are new layers, and seeds of a language model are trained one by one",
    neutral={"key_cut": 1, "value_cut": 1, "query_growth": 1.0},
    tune={"key_cut": [1, 2, 4], "value_cut": [1, 2, 4], "query_growth": [1.0, 1.5, 2.0], "key_size": [0.5, 1.0]},
    claims=("keys-bear-more-compression", "larger-queries-for-a-smaller-cache"),
)


def spread_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat heads so that head h is number floor(h n / heads) of the n: (batch, n, t, d) -> (batch, heads, t, d)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def cache_numbers(key_heads: int, key_size: int, value_heads: int, value_size: int) -> int:
    """Numbers that one layer keeps of each token: n_k d_qk + n_v d_v."""
    return key_heads * key_size + value_heads * value_size


def cache_bytes(net: nn.Module, length: int) -> int:
    """Bytes that all attention layers of a network keep of a text of so many tokens, in the type of their weights."""
    total = 0
    for module in net.modules():
        if isinstance(module, DiffQKVAttention):
            numbers = cache_numbers(module.key_heads, module.key_size, module.value_heads, module.value_size)
        elif isinstance(module, CausalSelfAttention):
            numbers = 2 * module.heads * module.size
        else:
            continue
        total += numbers * length * module.out.weight.element_size()
    return total


def selective_values(weights: Tensor, values: Tensor, top: int, renormalise: bool = False) -> Tensor:
    """Mix only the values of the largest weights, which are the only rows of `values` that are read.

    Args:
        weights: attention (n, heads, s), rows that add up to 1.
        values: (n, n_v, s, d); head h reads number floor(h n_v / heads).
        top: how many are kept; at least 1, s and more = all.
        renormalise: whether the kept weights are made to add up to 1.

    Returns:
        (n, heads, d).
    """
    kept, place = weights.topk(min(top, weights.shape[2]), dim=2)
    if renormalise:
        kept = kept / kept.sum(dim=2, keepdim=True)
    n, heads = weights.shape[:2]
    rows = torch.arange(n, device=place.device)[:, None, None]
    group = (torch.arange(heads, device=place.device) * values.shape[1] // heads)[None, :, None]
    return (kept.unsqueeze(2) @ values[rows, group, place]).squeeze(2)


class Cache:
    """Keys and values of the tokens so far, each with its own number of heads; room is doubled when it runs out.

    Attributes:
        length: tokens so far.
        keys: (n, n_k, length, d_qk).
        values: (n, n_v, length, d_v).
    """

    def __init__(self) -> None:
        self.length = 0
        self._room: list[Tensor] = []

    @property
    def keys(self) -> Tensor:
        """Keys so far, turned by their positions."""
        return self._room[0][:, :, : self.length]

    @property
    def values(self) -> Tensor:
        """Values so far."""
        return self._room[1][:, :, : self.length]

    @property
    def bytes(self) -> int:
        """Bytes of the keys and values so far."""
        return sum(part.nbytes for part in (self.keys, self.values)) if self._room else 0

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Keys and values of further tokens."""
        end = self.length + keys.shape[2]
        if not self._room or end > self._room[0].shape[2]:
            old, before = self._room, self.length
            room = max(16, 2 * end)
            self._room = [part.new_zeros(*part.shape[:2], room, part.shape[3]) for part in (keys, values)]
            for new, part in zip(self._room, old, strict=False):
                new[:, :, :before] = part[:, :, :before]
        self._room[0][:, :, self.length : end] = keys
        self._room[1][:, :, self.length : end] = values
        self.length = end


class DiffQKVAttention(nn.Module):
    """Causal self-attention with numbers of query, key and value heads, and sizes of theirs, of their own.

    Args:
        width: of the tokens.
        query_heads: n_q.
        key_heads: n_k, a divisor of n_q.
        value_heads: n_v, a divisor of n_q.
        key_size: d_qk of queries and keys; even, for rotary positions.
        value_size: d_v; None = d_qk.

    Attributes:
        query, key, value, out: `nn.Linear`.
        rotary, attend: as in `numerics.attention.causal.CausalSelfAttention`; `attend` sees n_q heads of each.

    Raises:
        ValueError: numbers of heads that do not divide, or a size or number below 1.

    Example:
        >>> layer = DiffQKVAttention(16, query_heads=6, key_heads=1, value_heads=2, key_size=4)
        >>> x, cache = torch.randn(2, 5, 16), Cache()
        >>> steps = torch.cat([layer.step(x[:, t : t + 1], cache) for t in range(5)], dim=1)
        >>> torch.allclose(steps, layer(x), atol=1e-5), tuple(cache.keys.shape), tuple(cache.values.shape)
        (True, (2, 1, 5, 4), (2, 2, 5, 4))
    """

    def __init__(
        self,
        width: int,
        query_heads: int,
        key_heads: int,
        value_heads: int,
        key_size: int,
        value_size: int | None = None,
    ) -> None:
        super().__init__()
        value_size = key_size if value_size is None else value_size
        named = {"width": width, "query_heads": query_heads, "key_heads": key_heads, "value_heads": value_heads}
        for name, value in {**named, "key_size": key_size, "value_size": value_size}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("key_heads", "value_heads"):
            if query_heads % named[name]:
                raise ValueError(f"query_heads is {query_heads} and {name} {named[name]}; {name} must divide it")
        self.query_heads, self.key_heads, self.value_heads = query_heads, key_heads, value_heads
        self.key_size, self.value_size = key_size, value_size
        self.query = nn.Linear(width, query_heads * key_size)
        self.key = nn.Linear(width, key_heads * key_size)
        self.value = nn.Linear(width, value_heads * value_size)
        self.out = nn.Linear(query_heads * value_size, width)
        self.rotary: nn.Module = Rotary(key_size)
        self.attend: nn.Module = CausalMixing()

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (n, n_q or n_k, t, d_qk) and values (n, n_v, t, d_v), without positions."""
        q, k = (layer(x).unflatten(2, (-1, self.key_size)).transpose(1, 2) for layer in (self.query, self.key))
        return q, k, self.value(x).unflatten(2, (-1, self.value_size)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, t, width) -> (n, t, width)."""
        q, k, v = self.parts(x)
        q, k = self.rotary(q, k)
        mixed = self.attend(q, spread_heads(k, self.query_heads), spread_heads(v, self.query_heads))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: Cache, top: int | None = None, renormalise: bool = False) -> Tensor:
        """One more token: x (n, 1, width) -> (n, 1, width), its key and value added to the cache.

        Args:
            x: the token after those of the cache.
            cache: of this layer.
            top: values that are fetched for each head; None = all.
            renormalise: see `selective_values`.

        Raises:
            ValueError: more than one token; `top` below 1.
            TypeError: positions or mixing that are not the built-in ones.
        """
        if x.shape[1] != 1:
            raise ValueError(f"x has shape {tuple(x.shape)}; a step takes one token, (n, 1, width)")
        if top is not None and top < 1:
            raise ValueError(f"top is {top}; fetch at least 1 value, or None for all")
        if type(self.rotary) is not Rotary or type(self.attend) is not CausalMixing:
            found = f"{type(self.rotary).__name__} and {type(self.attend).__name__}"
            raise TypeError(f"steps are known for Rotary and CausalMixing, not for {found}; use the whole forward")
        q, k, v = self.parts(x)
        angle = cache.length * self.rotary.speed
        q, k = (_turned(part, angle.cos().to(part.dtype), angle.sin().to(part.dtype)) for part in (q, k))
        cache.add(k, v)
        grouped = q.squeeze(2).unflatten(1, (self.key_heads, -1))  # queries beside the key head they share
        scores = grouped @ cache.keys.transpose(2, 3) / math.sqrt(self.key_size)
        weights = scores.softmax(dim=-1).flatten(1, 2)  # (n, n_q, length)
        if top is None:
            mixed = (weights.unflatten(1, (self.value_heads, -1)) @ cache.values).flatten(1, 2)
        else:
            mixed = selective_values(weights, cache.values, top, renormalise)
        return self.out(mixed.flatten(1)).unsqueeze(1)

    def extra_repr(self) -> str:
        heads = f"heads={self.query_heads}, {self.key_heads}, {self.value_heads}"
        return f"{heads}, sizes={self.key_size}, {self.value_size}"

    @classmethod
    @torch.no_grad()
    def from_attention(
        cls,
        old: CausalSelfAttention,
        key_cut: int = 4,
        value_cut: int = 2,
        query_growth: float = 1.5,
        key_size: float = 1.0,
        pool: bool = False,
        generator: torch.Generator | None = None,
    ) -> DiffQKVAttention:
        """A layer that starts from another's weights; settings as for `apply`, `pool` = mean of grouped heads."""
        key_heads, value_heads, query_heads, size = _sizes(old, key_cut, value_cut, query_growth, key_size)
        own = generator or torch.Generator().manual_seed(0)
        with random_state_kept():  # what is drawn here is written over
            made = cls(old.out.out_features, query_heads, key_heads, value_heads, size, old.size).to(old.query.weight)
        planes = torch.cat([torch.arange(size // 2), old.size // 2 + torch.arange(size // 2)])
        planes = planes if size < old.size else torch.arange(size)
        for new, was, count, chosen in (
            (made.key, old.key, key_heads, planes),
            (made.value, old.value, value_heads, torch.arange(old.size)),
        ):
            for name in ("weight", "bias"):
                groups = getattr(was, name).unflatten(0, (count, -1, old.size))  # (heads kept, sharing, size, ...)
                joined = groups.mean(dim=1) if pool and groups.shape[1] > 1 else groups[:, 0]
                getattr(new, name).copy_(joined[:, chosen].flatten(0, 1))
        # within the queries that share a key and a value head, the old ones come first
        cells = math.lcm(key_heads, value_heads)
        head = torch.arange(query_heads).view(cells, -1)[:, : old.heads // cells].flatten()
        for layer, was in ((made.query, old.query), (made.out, old.out)):
            std = float(was.weight.std())
            layer.weight.copy_(std * torch.randn(layer.weight.shape, generator=own))
        made.query.bias.zero_()
        weight, bias = made.query.weight.unflatten(0, (-1, size)), made.query.bias.unflatten(0, (-1, size))
        weight[head] = old.query.weight.unflatten(0, (-1, old.size))[:, planes]
        bias[head] = old.query.bias.unflatten(0, (-1, old.size))[:, planes]
        columns = made.out.weight.unflatten(1, (-1, old.size))
        if pool:
            columns.zero_()  # what a pretrained layer gives is not disturbed by heads that know nothing
        columns[:, head] = old.out.weight.unflatten(1, (-1, old.size))
        made.out.bias.copy_(old.out.bias)
        made.attend = old.attend
        if size == old.size:
            made.rotary = old.rotary
        return made.train(old.training)


def apply(
    net: nn.Module,
    key_cut: int = 4,
    value_cut: int = 2,
    query_growth: float = 1.5,
    key_size: float = 1.0,
    pretrained: bool = False,
    generator: torch.Generator | None = None,
) -> int:
    """Replace every `CausalSelfAttention` by a `DiffQKVAttention` that starts from its weights, in place.

    Args:
        net: a network.
        key_cut: heads over key heads, a divisor of the number of heads; 1 = as many.
        value_cut: the same for values.
        query_growth: query heads over heads, at least 1.
        key_size: size of a query's and key's head over what it was, in (0, 1]; the result is made even.
        pretrained: whether the weights are pretrained: shared heads are then the mean of theirs, new query heads start
            without effect.
        generator: for weights of new query heads, on the CPU; None = always the same.

    Returns:
        How many were replaced.

    Raises:
        ValueError: a setting outside its range or that does not divide a layer's heads; tied weights; a network that is
            itself the attention.
        TypeError: parametrised weights.

    Example:
        >>> net = nn.Sequential(CausalSelfAttention(16, 4))
        >>> apply(net), net[0].extra_repr(), cache_bytes(net, length=100)
        (1, 'heads=6, 1, 2, sizes=4, 4', 4800)
    """
    for name, cut in (("key_cut", key_cut), ("value_cut", value_cut)):
        if cut < 1:
            raise ValueError(f"{name} is {cut}; it must be at least 1")
    if not query_growth >= 1:
        raise ValueError(f"query_growth is {query_growth}; it must be at least 1")
    if not 0 < key_size <= 1:
        raise ValueError(f"key_size is {key_size}; it must lie in (0, 1]")
    new: dict[nn.Module, nn.Module] = {}
    for path, old in layers(net, [CausalSelfAttention]).items():
        for name, part in old.named_children():
            check_plain(part, f"{path}.{name}" if path else name)
        new[old] = DiffQKVAttention.from_attention(
            old, key_cut, value_cut, query_growth, key_size, pretrained, generator
        )  # fmt: skip
    return swap(net, new).count


def _sizes(
    old: CausalSelfAttention, key_cut: int, value_cut: int, query_growth: float, key_size: float
) -> tuple[int, int, int, int]:
    for name, cut in (("key_cut", key_cut), ("value_cut", value_cut)):
        if old.heads % cut:
            raise ValueError(f"{name} is {cut}, which does not divide the layer's {old.heads} heads")
    key_heads, value_heads = old.heads // key_cut, old.heads // value_cut
    # the nearest number of query heads that both kinds of heads divide
    cells = math.lcm(key_heads, value_heads)
    query_heads = max(old.heads, cells * round(old.heads * query_growth / cells))
    size = old.size if key_size == 1 else max(2, 2 * round(old.size * key_size / 2))
    return key_heads, value_heads, query_heads, size


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
