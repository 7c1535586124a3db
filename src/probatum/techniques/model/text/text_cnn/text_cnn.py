"""TextCNN: one layer of convolutions over word vectors, each filter reduced to its largest value.

Paper     Kim 2014, EMNLP, arXiv:1408.5882, section 2
Computes  c_i = relu(w . x_{i:i+h-1} + b) for widths h in 3, 4, 5 and 100 filters each, z = max_i c_i, dropout, linear; every
          class's weight vector longer than 3 is brought back to length 3 after each step
Shapes    ids (n, length) int64, 0 = padding on the right -> logits (n, classes) or values (n, outputs)
Departs   1. the norm constraint is applied to the stored weights where they are next used: at the start of a training
             forward pass, when the model goes into evaluation mode and when weights are loaded; evaluation uses projected
             weights whatever is stored (moving averages, parametrised heads), as if each step had ended with it, whatever
             the optimizer; `project()` does it at once
          2. windows that hold no word do not take part in the maximum, so that padding never changes an output
          3. word vectors of width 128 by default, not 300, and the bench's AdamW instead of Adadelta
          4. without downloads, given vectors come from `techniques.model.text.text_cnn.word_vectors` (PPMI, SVD) instead of word2vec; ten-fold
             cross-validation of sets without a test part is the bench's re-splitting by seed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from probatum.card import Card
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:1408.5882",
    title="Convolutional Neural Networks for Sentence Classification",
    entry="build",
    number=131,
    tags=("text", "convolution"),
    alone="its last layer rescales weights of its own",
    modalities=("text",),
    tiny={"width": 16, "filters": 8},
    tune={"filters": [50, 100, 200], "dropout": (0.2, 0.7), "max_norm": [1.0, 3.0, 10.0]},
    claims=("better-than-averaged-words", "vectors-from-unlabelled-text"),
)

VARIANTS = ("rand", "static", "non-static", "multichannel")
START = 0.25
"""Learned word vectors start uniform in [-0.25, 0.25]."""


def fill_unknown(vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Replace rows of zeros by U[-a, a] with a chosen so that the variance is that of the given rows: (v, width)."""
    missing = vectors.abs().sum(dim=1) == 0
    if missing.all():
        raise ValueError(f"vectors of shape {tuple(vectors.shape)} are all zero; give at least one word a vector")
    a = float((3 * vectors[~missing].var(unbiased=False)).sqrt())
    filled = vectors.clone()
    drawn = torch.rand(int(missing.sum()), vectors.shape[1], generator=generator, dtype=vectors.dtype)
    filled[missing] = (a * (2 * drawn - 1)).to(vectors.device)
    return filled


class MaxNormLinear(nn.Linear):
    """A linear layer whose class vectors, the rows of its weight, never leave the ball of radius `max_norm`.

    Args:
        inputs: input width.
        outputs: output width.
        max_norm: largest length of a row, above 0; None = no constraint.
    """

    def __init__(self, inputs: int, outputs: int, max_norm: float | None = 3.0) -> None:
        super().__init__(inputs, outputs)
        self.max_norm = max_norm

    @torch.no_grad()
    def within(self, weight: Tensor) -> Tensor:
        """Rows of a weight that are too long rescaled to just inside the ball; the weight itself where there are none."""
        if self.max_norm is None:
            return weight
        norm = weight.norm(dim=1, keepdim=True)
        if not bool((norm > self.max_norm).any()):
            return weight
        # just inside, so that rounding calls for no second rescaling between a forward pass and its backward
        inside = self.max_norm * (1 - 4 * torch.finfo(norm.dtype).eps)
        return torch.where(norm > self.max_norm, weight * (inside / norm), weight)

    @torch.no_grad()
    def project(self) -> None:
        """Rescale rows that are too long to just inside the ball, in place; rows within it keep their bits."""
        found = self.within(self.weight)
        if found is not self.weight and not parametrize.is_parametrized(self, "weight"):
            self.weight.copy_(found)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = f"{prefix}weight"  # torch hands over a dictionary of its own, so that the caller's keeps what it holds
        if isinstance(state_dict.get(name), Tensor) and state_dict[name].ndim == 2:
            state_dict[name] = self.within(state_dict[name])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> MaxNormLinear:
        self.project()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.project()
        weight = self.weight
        if self.max_norm is not None and (not self.training or parametrize.is_parametrized(self, "weight")):
            with torch.no_grad():  # nothing is asked of the values, so that networks can be stacked
                norm = weight.norm(dim=1, keepdim=True)
                inside = self.max_norm * (1 - 4 * torch.finfo(norm.dtype).eps)
                factor = torch.where(norm > self.max_norm, inside / norm, 1.0).to(weight)
            weight = weight * factor
        return F.linear(x, weight, self.bias)


class TextCNN(nn.Module):
    """Convolutions over words: ids (n, length) int64 -> (n, outputs).

    Args:
        vocabulary: number of token ids; 0 = padding.
        outputs: classes or real targets.
        variant: ``"rand"`` learns the word vectors; ``"static"`` keeps the given ones; ``"non-static"`` tunes them;
            ``"multichannel"`` has both, under the same filters.
        vectors: given vectors (vocabulary, width); rows of zeros are drawn by `fill_unknown`. Not for ``"rand"``.
        width: width of the word vectors; with `vectors`, theirs.
        filters: filters a window width.
        windows: window widths in words.
        dropout: on the pooled features, in [0, 1).
        max_norm: largest length of a class's weight vector; None = no constraint.

    Raises:
        ValueError: a setting outside its range, `vectors` missing, unwanted or of another shape, or a text of zero tokens.

    Example:
        >>> model = TextCNN(vocabulary=50, outputs=2, width=16, filters=4).eval()
        >>> ids = torch.tensor([[7, 3, 9, 0], [4, 0, 0, 0]])
        >>> padded = nn.functional.pad(ids, (0, 5))
        >>> tuple(model(ids).shape), torch.allclose(model(ids), model(padded))
        ((2, 2), True)
    """

    def __init__(
        self,
        vocabulary: int,
        outputs: int,
        *,
        variant: str = "rand",
        vectors: Tensor | None = None,
        width: int = 128,
        filters: int = 100,
        windows: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
        max_norm: float | None = 3.0,
    ) -> None:
        super().__init__()
        _check(variant, vectors, vocabulary, width, filters, windows, dropout, max_norm)
        if vectors is not None:
            vectors = fill_unknown(vectors.float())
            width = vectors.shape[1]
        self.windows = tuple(windows)
        self.learned = None if variant == "static" else _table(vocabulary, width, vectors)
        self.fixed = _table(vocabulary, width, vectors) if variant in ("static", "multichannel") else None
        if self.fixed is not None:
            self.fixed.weight.requires_grad_(False)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, h, padding=h - 1) for h in self.windows)
        self.dropout = nn.Dropout(dropout)
        self.head = MaxNormLinear(filters * len(self.windows), outputs, max_norm)

    def embed(self, x: Tensor) -> Tensor:
        """Word vectors (n, length, width); the two channels are added, since the same filters apply to both."""
        channels = [table(x) for table in (self.learned, self.fixed) if table is not None]
        return channels[0] if len(channels) == 1 else channels[0] + channels[1]

    def pooled(self, x: Tensor) -> Tensor:
        """Each filter's largest value over the windows that hold a word: (n, filters of all windows)."""
        if x.shape[1] == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}, texts of no tokens; leave the empty texts out")
        positions = torch.arange(1, x.shape[1] + 1, device=x.device)
        lengths = ((x != 0) * positions).amax(dim=1)  # (n,) up to the last word
        if not torch.compiler.is_compiling() and bool((lengths == 0).any()):
            raise ValueError(f"row {int((lengths == 0).nonzero()[0])} holds no tokens; leave the empty text out")
        words = self.embed(x).transpose(1, 2)
        maxima = []
        for h, convolution in zip(self.windows, self.convolutions, strict=True):
            found = convolution(words).relu()  # (n, filters, length + h - 1)
            window = torch.arange(found.shape[2], device=x.device)
            beyond = window >= (lengths + h - 1)[:, None]  # windows behind the last word
            maxima.append(found.masked_fill(beyond[:, None, :], 0.0).amax(dim=2))
        return torch.cat(maxima, dim=1)

    def project(self) -> None:
        """Bring class vectors longer than `max_norm` back to it now."""
        self.head.project()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.pooled(x)))


def build(
    spec: Spec,
    variant: str = "rand",
    vectors: Tensor | None = None,
    width: int = 128,
    filters: int = 100,
    windows: Sequence[int] = (3, 4, 5),
    dropout: float = 0.5,
    max_norm: float | None = 3.0,
) -> TextCNN:
    """`TextCNN` for a text spec; settings as there, ValueError where one is out of its range."""
    return TextCNN(
        spec.vocabulary,
        spec.outputs,
        variant=variant,
        vectors=vectors,
        width=width,
        filters=filters,
        windows=windows,
        dropout=dropout,
        max_norm=max_norm,
    )


def _table(vocabulary: int, width: int, vectors: Tensor | None) -> nn.Embedding:
    table = nn.Embedding(vocabulary, width, padding_idx=0)
    with torch.no_grad():
        if vectors is None:
            table.weight.uniform_(-START, START)
        else:
            table.weight.copy_(vectors)
        table.weight[0] = 0.0
    return table


def _check(
    variant: str,
    vectors: Tensor | None,
    vocabulary: int,
    width: int,
    filters: int,
    windows: Sequence[int],
    dropout: float,
    max_norm: float | None,
) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; use one of {', '.join(VARIANTS)}")
    if (variant == "rand") != (vectors is None):
        need = (
            "learns its vectors; leave vectors out" if vectors is not None else "needs vectors, e.g. from ppmi_vectors"
        )
        raise ValueError(f"variant {variant!r} {need}")
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != vocabulary):
        raise ValueError(f"vectors have shape {tuple(vectors.shape)}; the vocabulary wants ({vocabulary}, width)")
    if vectors is not None and not bool(vectors.isfinite().all()):
        row = int((~vectors.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"the vector of id {row} has values that are not finite; give zeros where a word has none")
    for name, value in (
        ("vocabulary", vocabulary),
        ("width", width),
        ("filters", filters),
        *(("window", h) for h in windows),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not windows:
        raise ValueError("windows is empty; give at least one window width")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; it must be above 0, or None")
