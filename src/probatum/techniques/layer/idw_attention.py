"""Inverse distance weighting attention: scores are minus the log of squared distances, so that keys become prototypes.

Paper     McCarter 2023, "Inverse distance weighting attention", arXiv:2310.18805
Computes  d_m = eps + |x - k_m|^p; a = softmax(-log d) = (1/d_m) / sum_j (1/d_j); output = a V. Special cases are patched
          in: a key at x*, a value eta = (1 + eps w) gap on the wanted class, w = sum_m 1/d_m, leaves a margin
          gap / (1 + eps w) there
Shapes    x (..., D), keys (M, D), values (M, C) -> (..., C); sequences: q (n, heads, t, D), k (n, heads, s, D) and
          v (n, heads, s, E) -> (n, heads, t, E)
Departs   1. values are stored as raw / value_rate, which under Adam is the tenfold rate that the authors give them
          2. keys take their place (feature mean and 0.1 standard deviations around it) on the first training batch, as no
             data are known when a layer is put in
          3. on the bench it takes the place of the last linear layer
          4. distances come from differences, those between sequences and to very many prototypes from a matrix product; of
             such pairs of a prototype and a row as lie close together the differences are taken all the same
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.surgery import swap
from probatum.numerics.tensors.masks import truth_values
from probatum.numerics.tensors.precision import computed_wide

CARD = Card(
    paper="arXiv:2310.18805",
    title="Inverse distance weighting attention",
    entry="apply",
    number=203,
    tags=("attention", "prototypes", "interpretability", "editing"),
    alone="its keys and values are weights of its own",
    tasks=("classes",),
    tiny={"keys": 12},
    tune={"keys": [16, 32, 64, 128], "eps": (1e-4, 1e-1, "log")},
    claims=("prototypes-at-no-loss", "keys-look-like-data", "patches-are-local"),
)

SCORES = ("neglog-distance", "dot", "cosine", "negative-distance", "exp-negative-distance", "inverse-distance")
SPREAD = 0.1
"""Standard deviations of the features by which fresh keys lie around their mean."""
UNEVEN = 100.0
"""Ratio of the features' standard deviations above which distances see little but the largest."""
MOST_DIFFERENCES = 2**24
"""Numbers that are held at once for distances from differences, 64 MB in float32."""
CLOSE = 0.01
"""Share of the squared lengths below which a squared distance by products has lost two digits."""


def squared_distances(x: Tensor, keys: Tensor) -> Tensor:
    """x (..., t, D), keys (..., s, D) -> (..., t, s), exactly zero, with zero gradient, at a key.

    From differences, or, where these would be more than `MOST_DIFFERENCES` numbers, by products, with differences of close
    pairs.
    """
    batch = torch.broadcast_shapes(x.shape[:-2], keys.shape[:-2])
    if math.prod(batch) * x.shape[-2] * keys.shape[-2] * x.shape[-1] <= MOST_DIFFERENCES:
        return (x.unsqueeze(-2) - keys.unsqueeze(-3)).square().sum(dim=-1)
    centre = keys.detach().mean(dim=-2, keepdim=True)  # lengths from there lose no digits to an offset
    return _mended(x - centre, keys - centre, batch)


def _mended(x: Tensor, keys: Tensor, batch: Sequence[int]) -> Tensor:
    """Squared distances (*batch, t, s) by products; those that lost digits are replaced by differences."""
    squared = squared_distances_by_products(x, keys)
    lengths = x.detach().square().sum(dim=-1).unsqueeze(-1) + keys.detach().square().sum(dim=-1).unsqueeze(-2)
    close = (squared.detach() <= CLOSE * lengths).nonzero(as_tuple=True)
    if len(close[0]) * x.shape[-1] > MOST_DIFFERENCES:  # everything is close to everything
        return torch.cdist(x, keys, compute_mode="donot_use_mm_for_euclid_dist").square()
    x, keys = (rows.expand(*batch, *rows.shape[-2:]) for rows in (x, keys))
    exact = (x[close[:-1]] - keys[(*close[:-2], close[-1])]).square().sum(dim=-1)
    return squared.index_put(close, exact)


def squared_distances_by_products(x: Tensor, keys: Tensor) -> Tensor:
    """The same by |x|^2 - 2 x k + |k|^2, never below 0: a matrix product, exact to rounding of the squared lengths."""
    lengths = x.square().sum(dim=-1).unsqueeze(-1) + keys.square().sum(dim=-1).unsqueeze(-2)
    return (lengths - 2 * (x @ keys.transpose(-1, -2))).clamp_min(0)


def powered(squared: Tensor, p: float) -> Tensor:
    """|x - k|^p from |x - k|^2; below p = 2 the slope at zero, which is infinite, is taken as zero."""
    if p == 2:
        return squared
    zero = squared == 0
    return squared.masked_fill(zero, 1.0).pow(p / 2).masked_fill(zero, 0.0)


@computed_wide
def attention_scores(
    x: Tensor, keys: Tensor, score: str = "neglog-distance", eps: float = 1e-3, p: float = 2.0
) -> Tensor:
    """What the softmax is taken of: x (..., t, D), keys (..., s, D) -> (..., t, s).

    `score`: neglog-distance -log(eps + d) (this paper), inverse-distance 1 / (eps + d), negative-distance -d,
    exp-negative-distance exp(-d), with d = |x - k|^p; dot x k / sqrt(D); cosine.
    """
    if score == "dot":
        return x @ keys.transpose(-1, -2) / math.sqrt(x.shape[-1])
    if score == "cosine":
        return nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(keys, dim=-1).transpose(-1, -2)
    distance = powered(squared_distances(x, keys), p)
    if score == "neglog-distance":
        return -(distance + eps).log()
    if score == "inverse-distance":
        return 1 / (distance + eps)
    return -distance if score == "negative-distance" else (-distance).exp()


@computed_wide
def idw_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False, eps: float = 1e-3
) -> Tensor:
    """Attention over sequences by -log(eps + |q - k|^2); `mask` (..., t, s) is True (or 1) where a query may look.

    Raises:
        ValueError: a query that may look at nothing.
    """
    mask = None if mask is None else truth_values(mask)
    centre = _centre(k, mask)
    scores = -(squared_distances_by_products(q - centre, k - centre) + eps).log()
    if causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(k.shape[-2] - q.shape[-2])
        mask = seen if mask is None else mask & seen
    if mask is not None:
        if not mask.any(dim=-1).all():
            raise ValueError("mask hides every key from a query; let each see at least one, itself for instance")
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def _centre(k: Tensor, mask: Tensor | None) -> Tensor:
    """The mean (..., 1, D) of the keys that some query may look at, without gradient: lengths from there lose no digits."""
    if mask is None:
        return k.detach().mean(dim=-2, keepdim=True)
    seen = mask.any(dim=-2).unsqueeze(-1)
    return torch.where(seen, k.detach(), 0.0).sum(dim=-2, keepdim=True) / seen.sum(dim=-2, keepdim=True).clamp_min(1)


class InverseDistanceHead(nn.Module):
    """A classifier whose keys are prototypes and whose values are their logits.

    Args:
        features: D.
        outputs: number of classes C.
        keys: number of prototypes M, at least C.
        score: one of `SCORES`.
        eps: > 0, the squared distance at which a prototype stops to gain.
        p: power of the distance, > 0.
        value_rate: how much faster than the keys the values are trained, > 0.
        generator: for the keys' places.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> head = InverseDistanceHead(2, 3, keys=4, generator=torch.Generator().manual_seed(0))
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> tuple(head(x).shape), head.patch(x[0], 2), int(head(x)[0].argmax())
        ((2, 3), True, 2)
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        keys: int = 64,
        score: str = "neglog-distance",
        eps: float = 1e-3,
        p: float = 2.0,
        value_rate: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(keys, outputs, score, eps, p, value_rate)
        self.score, self.eps, self.p, self.value_rate = score, eps, p, value_rate
        own = generator or torch.Generator().manual_seed(0)
        self.keys = nn.Parameter(torch.randn(keys, features, generator=own))
        self.raw_values = nn.Parameter(torch.zeros(keys, outputs))
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))
        self.fresh = keys

    @property
    def values(self) -> Tensor:
        """The prototypes' logits (M, C)."""
        return self.raw_values * self.value_rate

    def attention(self, x: Tensor) -> Tensor:
        """Weights of the prototypes: x (..., D) -> (..., M), each row adding up to 1."""
        rows = x if x.ndim > 1 else x.unsqueeze(0)
        scores = attention_scores(rows, self.keys, self.score, self.eps, self.p)
        return scores.view(*x.shape[:-1], len(self.keys)).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.placed:
            self.place(x, warn=False)  # hidden units are often dead at first, which is no mistake of the data's
        return self.attention(x) @ self.values

    @torch.no_grad()
    def place(self, x: Tensor, *, warn: bool = True) -> None:
        """Move the fresh keys to the mean of these features, 0.1 standard deviations around it; warns of uneven ones.

        Keys that were patched in stay where they are.
        """
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) < 2:
            raise ValueError("keys cannot be placed by a single row; give two or more")
        spread, mean = rows.std(dim=0), rows.mean(dim=0)
        moving = spread[spread > 0]
        if warn and (len(moving) < len(spread) or float(moving.max()) > UNEVEN * float(moving.min())):
            least, most = float(spread.min()), float(spread.max())
            warnings.warn(
                f"features have standard deviations from {least:.3g} to {most:.3g}: distances see little but the largest; "
                "scale the columns, and drop constant ones",
                stacklevel=2,
            )
        self.keys[: self.fresh].mul_(SPREAD * spread).add_(mean)
        self.placed.fill_(True)

    @torch.no_grad()
    def patch(self, x: Tensor, target: int) -> bool:
        """Make this one input (D,) come out as `target` by one more prototype; False where it does already.

        Afterwards an optimizer made before still holds the old keys and values.

        Raises:
            ValueError: another score than neglog-distance; x of another shape; a class that is not there.
        """
        if self.score != "neglog-distance":
            raise ValueError(f"score is {self.score!r}; the patch's size is known for neglog-distance only")
        if x.shape != self.keys.shape[1:]:
            raise ValueError(f"x has shape {tuple(x.shape)}; patch takes one row ({self.keys.shape[1]},)")
        if not 0 <= target < self.raw_values.shape[1]:
            raise ValueError(f"target is {target}; the classes are 0 .. {self.raw_values.shape[1] - 1}")
        logits = self.attention(x) @ self.values
        gap = float(logits.max() - logits[target])
        if gap <= 0 and int(logits.argmax()) == target:
            return False
        gap = max(gap, torch.finfo(x.dtype).eps * max(1.0, float(logits.abs().max())))  # a tie lost by its order
        weight = float(
            attention_scores(x[None], self.keys, "neglog-distance", self.eps, self.p).logsumexp(dim=-1).exp()
        )
        row = torch.zeros_like(self.raw_values[:1])
        row[0, target] = (1 + self.eps * weight) * gap / self.value_rate
        self.keys = nn.Parameter(torch.cat([self.keys, x[None]]), requires_grad=self.keys.requires_grad)
        self.raw_values = nn.Parameter(torch.cat([self.raw_values, row]), requires_grad=self.raw_values.requires_grad)
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A saved head may have been patched: there are as many keys and values as it has, in new parameters."""
        own = {name: getattr(self, name) for name in ("keys", "raw_values")}
        saved = [state_dict.get(prefix + name, value).shape for name, value in own.items()]
        rows = saved[0][0] if saved[0] else 0
        if rows != len(self.keys) and saved == [(rows, value.shape[1]) for value in own.values()]:
            for name, value in own.items():
                made = value.new_empty(rows, value.shape[1])
                setattr(self, name, nn.Parameter(made, requires_grad=value.requires_grad))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"features={self.keys.shape[1]}, outputs={self.raw_values.shape[1]}, keys={len(self.keys)}, {self.score}"


class InverseDistanceAttention(nn.Module):
    """Multi-head self-attention by inverse distances: (n, t, width) -> (n, t, width).

    Args:
        width: of the tokens, a multiple of `heads`.
        heads: number of heads.
        eps: > 0.
        causal: whether a token sees only itself and what comes before it.

    Raises:
        ValueError: width that `heads` does not divide; eps not positive.
    """

    def __init__(self, width: int, heads: int, eps: float = 1e-3, causal: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}, heads is {heads}; width must be a multiple of heads")
        _check(1, 1, "neglog-distance", eps, 2.0, 1.0)
        self.heads, self.eps, self.causal = heads, eps, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (n, t), True at real tokens; padded ones see themselves alone."""
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = None
        if mask is not None:
            seen = truth_values(mask)[:, None, None, :] | torch.eye(t, dtype=torch.bool, device=x.device)
        mixed = idw_attention(q, k, v, mask=seen, causal=self.causal, eps=self.eps)
        return self.out(mixed.transpose(1, 2).reshape(n, t, width))


@torch.no_grad()
def patch_all(head: InverseDistanceHead, x: Tensor, target: Tensor, others: Tensor) -> tuple[int, int]:
    """Patch rows x (n, D) to `target` (n,); how many of them are then right, and how many of `others` have changed."""
    before = head(others).argmax(dim=-1)
    for row, wanted in zip(x, target.tolist(), strict=True):
        head.patch(row, wanted)
    right = int((head(x).argmax(dim=-1) == target).sum())
    return right, int((head(others).argmax(dim=-1) != before).sum())


def apply(
    net: nn.Module,
    keys: int = 64,
    score: str = "neglog-distance",
    eps: float = 1e-3,
    p: float = 2.0,
    value_rate: float = 10.0,
    last_layer: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Put an `InverseDistanceHead` in the place of the network's last linear layer; arguments as there.

    Args:
        last_layer: the layer; None = the linear layer that runs last.

    Returns:
        How many places it was put into, 0 where the network has no linear layer.

    Raises:
        ValueError: a setting outside its range, fewer keys than classes among them; a last layer that is the whole network,
            or tied to another one.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> apply(net, keys=6), net[2]
        (1, InverseDistanceHead(features=8, outputs=3, keys=6, neglog-distance))
    """
    _check(keys, 1, score, eps, p, value_rate)
    old = find_last_layer(net) if last_layer is None else last_layer
    if not isinstance(old, nn.Linear):
        return 0
    made = InverseDistanceHead(old.in_features, old.out_features, keys, score, eps, p, value_rate, generator)
    return swap(net, {old: made.to(old.weight)}, carry=False).count  # nothing of the old layer's weights is taken over


def _check(keys: int, outputs: int, score: str, eps: float, p: float, value_rate: float) -> None:
    if score not in SCORES:
        raise ValueError(f"score is {score!r}; use one of {', '.join(SCORES)}")
    for name, value in (("eps", eps), ("p", p), ("value_rate", value_rate)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    if keys < outputs:
        raise ValueError(f"keys is {keys} for {outputs} classes; give at least one prototype a class")
