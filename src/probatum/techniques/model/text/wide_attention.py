"""Wide attention: one transformer layer with all the heads of a deep one, instead of many layers with a few.

Paper     Brown, Zhao, Shumailov and Mullins 2022, "Wide Attention Is The Way Forward For Transformers?", arXiv:2210.00640
Computes  L layers of H heads become k layers of L H / k heads of the same size d_h; an attention's inner width is then its
          heads times d_h, wider than the tokens' d. Blocks hold L (4 d H d_h + 2 d d_ff) weights, so that all but one of the
          feed-forward networks go. On top the mean of the tokens and a linear layer
Shapes    ids (n, length) int64, 0 = padding on the right -> logits (n, classes) or values (n, outputs)
Departs   1. layer norm before each branch and learned positions; tokens are averaged, without a class token
          2. seven kinds of attention instead of ten: softmax, local, strided sparse, Longformer (first token global),
             Linformer, linear (elu + 1) and random synthesizer
          3. local, sparse and longformer are dense attention under a mask: their patterns, at the time and memory of softmax,
             which is quadratic in the length; linear and linformer alone are cheaper for long texts
          4. small by default: d = 64, d_h = 16, d_ff = 256 and 24 heads in all
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.modes import evaluating
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:2210.00640",
    title="Wide Attention Is The Way Forward For Transformers?",
    entry="build",
    number=173,
    tags=("attention", "transformers", "text", "efficiency"),
    modalities=("text",),
    alone="its positions, and the scores of some kinds of attention, are weights outside torch's own layers",
    tiny={"width": 16, "head_size": 4, "total_heads": 6, "hidden": 16},
    tune={"layers": [1, 2, 3, 6], "dropout": (0.0, 0.4), "head_size": [8, 16, 32]},
    claims=("wide-as-good-as-deep",),
)

KINDS = ("softmax", "local", "sparse", "longformer", "linformer", "linear", "synthesizer")


@dataclass(frozen=True)
class Aspect:
    """Depth and width of a transformer's blocks.

    Attributes:
        layers: L.
        heads: H of each layer.
        width: d of the tokens.
        head_size: d_h.
        hidden: d_ff of the feed-forward networks.

    Raises:
        ValueError: one of them below 1.

    Example:
        >>> deep = Aspect(layers=6, heads=4)
        >>> wide = widen(deep)
        >>> wide.layers, wide.heads, round(wide.parameters / deep.parameters, 2), [a.layers for a in aspects(deep)]
        (1, 24, 0.44, [1, 2, 3, 4, 6, 8, 12, 24])
    """

    layers: int
    heads: int
    width: int = 64
    head_size: int = 16
    hidden: int = 256

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "head_size", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def total_heads(self) -> int:
        """L H, what `widen` keeps."""
        return self.layers * self.heads

    @property
    def parameters(self) -> int:
        """Numbers in the blocks, biases and norms included, for kinds of attention without weights of their own."""
        inner = self.heads * self.head_size
        attention = 4 * self.width * inner + 3 * inner + self.width
        forward = 2 * self.width * self.hidden + self.hidden + self.width
        return self.layers * (attention + forward + 4 * self.width)


def widen(aspect: Aspect, layers: int = 1) -> Aspect:
    """The same number of heads in all, in so many layers; all other sizes stay.

    Raises:
        ValueError: a number of layers that does not divide the number of heads.
    """
    total = aspect.total_heads
    if layers < 1 or total % layers:
        choices = ", ".join(str(k) for k in range(1, total + 1) if total % k == 0)
        raise ValueError(f"layers is {layers}, which does not divide {total} heads; use one of {choices}")
    return replace(aspect, layers=layers, heads=total // layers)


def aspects(aspect: Aspect) -> list[Aspect]:
    """All ways to lay out its heads, from the widest to the deepest."""
    total = aspect.total_heads
    return [widen(aspect, layers) for layers in range(1, total + 1) if total % layers == 0]


def visible(kind: str, length: int, window: int, device: torch.device | None = None) -> Tensor | None:
    """Which positions see which by a pattern (length, length), True = seen; None = all.

    local: within `window` on both sides; sparse: these and every `window`-th; longformer: these, and the first
    position sees all and is seen by all.
    """
    if kind not in ("local", "sparse", "longformer"):
        return None
    place = torch.arange(length, device=device)
    pattern = (place[:, None] - place).abs() <= window
    if kind == "sparse":
        pattern = pattern | (place % window == 0)
    if kind == "longformer":
        pattern = pattern | (place == 0) | (place[:, None] == 0)
    return pattern


def linear_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention with weights proportional to phi(q) . phi(k), phi = elu + 1; its time is linear in the length.

    q, k (n, heads, t, d), v (n, heads, t, e), seen (n, t) -> (n, heads, t, e).
    """
    q, k = F.elu(q) + 1, (F.elu(k) + 1) * seen[:, None, :, None]
    return (q @ (k.transpose(2, 3) @ v)) / (q @ k.sum(dim=2).unsqueeze(3))


class Mixing(nn.Module):
    """One kind of attention: q, k (n, heads, t, d), v (n, heads, t, e), seen (n, t) -> (n, heads, t, e).

    Args:
        kind: one of `KINDS`.
        heads: number of heads.
        length: largest t.
        window: reach of the patterns, and the rank of linformer; at least 1.
    """

    def __init__(self, kind: str, heads: int, length: int, window: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self.kind, self.window = kind, window
        if kind == "linformer":
            self.shorten = nn.Parameter(torch.randn(2, window, length) / window**0.5)  # of keys, of values
        if kind == "synthesizer":
            self.scores = nn.Parameter(torch.randn(heads, length, length))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        t = q.shape[2]
        if self.kind == "linear":
            return linear_attention(q, k, v, seen)
        if self.kind == "linformer":
            real = seen[:, None, :, None].to(v)
            keys, values = (matrix[:, :t] @ (part * real) for matrix, part in zip(self.shorten, (k, v), strict=True))
            return F.scaled_dot_product_attention(q, keys, values)
        mask = seen[:, None, None, :]
        pattern = visible(self.kind, t, self.window, q.device)
        if pattern is not None:
            mask = (mask & pattern) | torch.eye(t, dtype=torch.bool, device=q.device)  # padding sees itself
        if self.kind == "synthesizer":
            return self.scores[:, :t, :t].masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def extra_repr(self) -> str:
        return self.kind


class WideBlock(nn.Module):
    """Attention whose inner width is heads x head_size, then a GELU layer, each added to its normed input."""

    def __init__(self, aspect: Aspect, kind: str, length: int, window: int, dropout: float) -> None:
        super().__init__()
        inner = aspect.heads * aspect.head_size
        self.heads = aspect.heads
        self.norm1, self.norm2 = nn.LayerNorm(aspect.width), nn.LayerNorm(aspect.width)
        # the scores of a random synthesizer are made of neither queries nor keys
        self.query, self.key = (None if kind == "synthesizer" else nn.Linear(aspect.width, inner) for _ in range(2))
        self.value = nn.Linear(aspect.width, inner)
        self.attend = Mixing(kind, aspect.heads, length, window)
        self.out = nn.Linear(inner, aspect.width)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(aspect.width, aspect.hidden), nn.GELU(), nn.Linear(aspect.hidden, aspect.width)
        )

    def parts(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values (n, heads, t, head_size)."""
        x = self.norm1(x)
        layers = (layer or self.value for layer in (self.query, self.key, self.value))
        return [layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in layers]

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        mixed = self.attend(*self.parts(x), seen)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def maps(self, x: Tensor, seen: Tensor) -> Tensor:
        """Attention weights (n, heads, t, t): what it makes of values that are unit vectors."""
        q, k, _ = self.parts(x)
        return self.attend(q, k, torch.eye(x.shape[1]).to(q).expand(*q.shape[:3], -1), seen)


class WideTransformer(nn.Module):
    """A text transformer of any aspect: ids (n, length) -> (n, outputs).

    Args:
        aspect: depth and width.
        vocabulary: number of token ids; 0 = padding.
        outputs: classes or real targets.
        length: most tokens of a text.
        kind: of attention, one of `KINDS`.
        window: see `Mixing`.
        dropout: on words and on every branch, in [0, 1).

    Raises:
        ValueError: a setting outside its range; a text of no tokens or of more than `length`.

    Example:
        >>> wide = WideTransformer(widen(Aspect(6, 4)), vocabulary=50, outputs=3, length=20).eval()
        >>> ids = torch.tensor([[7, 3, 9, 0], [4, 0, 0, 0]])
        >>> tuple(wide(ids).shape), [tuple(found.shape) for found in wide.maps(ids)]
        ((2, 3), [(2, 24, 4, 4)])
    """

    def __init__(
        self,
        aspect: Aspect,
        vocabulary: int,
        outputs: int,
        length: int,
        kind: str = "softmax",
        window: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        self.aspect, self.length = aspect, length
        self.embed = nn.Embedding(vocabulary, aspect.width, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(length, aspect.width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(WideBlock(aspect, kind, length, window, dropout) for _ in range(aspect.layers))
        self.norm, self.head = nn.LayerNorm(aspect.width), nn.Linear(aspect.width, outputs)

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Word vectors with their places (n, t, width), and which positions count (n, t); texts of padding count whole."""
        if not 1 <= x.shape[1] <= self.length:
            raise ValueError(f"x has shape {tuple(x.shape)}; texts must have 1 .. {self.length} tokens")
        seen = x != 0
        seen = seen | ~seen.any(dim=1, keepdim=True)
        return self.dropout(self.embed(x) + self.place[: x.shape[1]]), seen

    def forward(self, x: Tensor) -> Tensor:
        words, seen = self.begin(x)
        for block in self.blocks:
            words = block(words, seen)
        counted = seen.unsqueeze(2).to(words)
        return self.head((self.norm(words) * counted).sum(dim=1) / counted.sum(dim=1))

    @torch.no_grad()
    def maps(self, x: Tensor) -> list[Tensor]:
        """Attention weights (n, heads, t, t) of every layer, without dropout: of a wide network a single one to look at.

        Rows are shares that add up to 1, but for linformer: its are what each position's value counts for through the
        shortened ones, of either sign and any sum.
        """
        found = []
        with evaluating(self):
            words, seen = self.begin(x)
            for block in self.blocks:
                found.append(block.maps(words, seen))
                words = block(words, seen)
        return found


@torch.no_grad()
def latency(model: nn.Module, x: Tensor, repeats: int = 30, warmup: int = 5, threads: int = 1) -> float:
    """Median seconds of one evaluation pass after some unmeasured ones, torch held to so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    taken = []
    try:
        with evaluating(model):
            for turn in range(warmup + repeats):
                start = time.perf_counter()
                model(x)
                if turn >= warmup:
                    taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return statistics.median(taken)


def kept_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes that one training pass of x keeps until its backward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        kept: Any = model(x)  # storages stay alive with it, so that no address is met twice
    del kept
    return sum(sizes.values())


def compare(aspect: Aspect, x: Tensor, **settings: Any) -> list[dict[str, float]]:
    """Cost of every layout of the heads: parameters of the network, latency of one text, bytes for training on x.

    Args:
        aspect: any of the layouts.
        x: ids (n, length).
        **settings: of `WideTransformer`.

    Returns:
        One row a layout with layers, heads, parameters, seconds and training_bytes. They do not tell whether a task needs
        depth: several steps of reasoning, each on the one before, are the known limit of a single layer.
    """
    rows = []
    for shape in aspects(aspect):
        model = WideTransformer(shape, **settings)
        rows.append(
            {
                "layers": shape.layers,
                "heads": shape.heads,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "seconds": latency(model, x[:1]),
                "training_bytes": kept_for_backward(model, x),
            }
        )
    return rows


def build(
    spec: Spec,
    layers: int = 1,
    total_heads: int = 24,
    width: int = 64,
    head_size: int = 16,
    hidden: int = 256,
    kind: str = "softmax",
    window: int = 8,
    dropout: float = 0.1,
) -> WideTransformer:
    """`WideTransformer` for a text spec, `total_heads` heads in so many layers; ValueError for settings out of range."""
    aspect = widen(Aspect(1, total_heads, width, head_size, hidden), layers)
    return WideTransformer(aspect, spec.vocabulary, spec.outputs, spec.shape[0], kind, window, dropout)
