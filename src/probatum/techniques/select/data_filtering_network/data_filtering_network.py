"""Data filtering network: a model of few clean rows scores a large dirty pool, whose best part trains the real one.

Paper     Fang, Jose, Jain, Schmidt, Toshev and Shankar 2024, "Data Filtering Networks", ICLR 2024, arXiv:2309.17425
Computes  a two-tower contrastive model of clean pairs (symmetric InfoNCE, learned temperature); s_i = cosine of pair i; the
          top share of the pool is kept, or what passes a threshold fixed on a sample
Shapes    x (n, ...), y (n,) int64 and trusted rows -> scores (n,), higher = keep; pairs (n, ...), (n, ...) -> (n,)
Departs   1. on the bench a row's second side is its label: one learned vector a class is the other tower, so that the score is
             the cosine of the row to its label's vector; `kind="classifier"` is log p(label | row), the single-modality form
             that the paper finds weaker, and `kind="clean"` the log-odds of a clean row against a pool row
          2. trusted rows are few (the validation rows), so that the filter is the baseline network, trained for `steps`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.draws import fresh
from probatum.numerics.tensors.targets import class_codes
from probatum.spec import Part
from probatum.techniques.select.data_filtering_network.contrastive import LARGEST_SCALE, TwoTowers, fit_pairs

CARD = Card(
    paper="arXiv:2309.17425",
    title="Data Filtering Networks",
    entry="score",
    number=221,
    tags=("data", "label-noise", "filtering", "multimodal"),
    tasks=("classes",),
    tiny={"steps": 60},
    tune={"kind": ["contrastive", "classifier"], "steps": [100, 200, 400]},
    tried={"steps": [10, 20]},
    claims=("few-clean-pairs-filter-a-dirty-pool", "a-filter-is-judged-by-what-it-induces"),
)

KINDS = ("contrastive", "classifier", "clean")


class Kept(NamedTuple):
    """Positions kept, ascending, and the share of each class among them (empty where no labels were given)."""

    rows: Tensor
    classes: Tensor


def keep_top(scores: Tensor, share: float, y: Tensor | None = None) -> Kept:
    """The ceil(share * n) rows of the largest scores, ties in the order of the rows.

    Args:
        scores: (n,).
        share: in (0, 1].
        y: labels (n,), for the balance of what is kept.

    Raises:
        ValueError: a share outside (0, 1], scores that are not finite.
    """
    _check_share(share)
    _check_finite(scores)
    rows = scores.argsort(descending=True, stable=True)[: _count(share, len(scores))].sort().values
    counts = torch.zeros(0) if y is None else torch.bincount(y[rows], minlength=int(y.max()) + 1).double()
    return Kept(rows, counts / counts.sum().clamp(min=1))


class StreamingThreshold:
    """A threshold for shards that come one after another: the quantile of an even sample of the scores seen so far.

    Args:
        share: of the rows that is to pass, in (0, 1].
        generator: of the sample.
        size: scores that are kept; while no more were seen, the threshold is that of `keep_top`.
    """

    def __init__(self, share: float, generator: torch.Generator, size: int = 10_000) -> None:
        _check_share(share)
        if size < 1:
            raise ValueError(f"size is {size}; keep 1 score or more")
        self.share, self.generator, self.size = share, generator, size
        self.sample, self.seen = torch.zeros(0), 0

    def update(self, scores: Tensor) -> None:
        """Take in the scores (k,) of a shard: each has the same chance to be in the sample (reservoir sampling).

        Raises:
            ValueError: scores that are not finite.
        """
        _check_finite(scores)
        keys = torch.arange(self.seen, self.seen + len(scores))
        self.seen += len(scores)
        free = self.size - len(self.sample)
        self.sample = torch.cat([self.sample, scores[:free]])
        for key, score in zip(keys[free:].tolist(), scores[free:].tolist(), strict=True):
            place = int(torch.randint(key + 1, (1,), generator=self.generator))
            if place < self.size:
                self.sample[place] = score

    def value(self) -> float:
        """Rows at or above this are kept; ValueError before any score was seen."""
        if not len(self.sample):
            raise ValueError("no score was seen yet; call update first")
        ranked = self.sample.sort(descending=True).values
        return float(ranked[_count(self.share, len(ranked)) - 1])


def check_apart(train: Tensor, test: Tensor, digits: int = 3) -> None:
    """ValueError, with the count, where rows (n, ...) for the filter or the pool are (nearly) rows of the test.

    Values are compared after rounding to `digits` decimals.
    """
    known = {row.numpy().tobytes() for row in _rounded(test, digits)}
    shared = sum(row.numpy().tobytes() in known for row in _rounded(train, digits))
    if shared:
        raise ValueError(
            f"{shared} of {len(train)} rows are also test rows; take them out before the filter is trained"
        )


def score(
    model_factory: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    trusted: Part,
    *,
    kind: str = "contrastive",
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 2e-3,
    test: Tensor | None = None,
) -> Tensor:
    """How well each pool row goes with its label, by a filter of trusted rows.

    Args:
        model_factory: a fresh network for x with one output a class.
        x, y: the pool.
        generator: batch orders and the labels' first vectors.
        trusted: rows whose labels are right.
        kind: ``"contrastive"``, ``"classifier"`` or ``"clean"``, see the header.
        steps, batch_size, lr: training of the filter.
        test: rows that what is trained on the kept pool will be judged by, to be checked against; see `check_apart`.

    Returns:
        Scores (n,), higher = keep.

    Raises:
        ValueError: settings out of range, fewer than two trusted rows, labels outside the classes, test rows in
            the pool or among them (with their count).

    Example:
        >>> from probatum.spec import Part
        >>> x = torch.randn(60, 3)
        >>> y = (x[:, 0] > 0).long()
        >>> few = Part(x[:20], y[:20], torch.arange(20))
        >>> score(lambda: nn.Linear(3, 2), x[20:], y[20:], torch.Generator(), few, steps=5).shape
        torch.Size([40])
    """
    _check(kind, steps, batch_size, lr, len(trusted))
    if test is not None:
        check_apart(torch.cat([x, trusted.x]), test)
    if kind == "clean":
        return _clean_odds(model_factory, x, trusted, generator, steps, batch_size, lr)
    if kind == "classifier":
        net = fresh(model_factory, generator)
        trusted, y = _codes(net, trusted, y)
        fit_network(net, trusted.x, trusted.y, steps, batch_size, lr, generator)
        with torch.no_grad():
            log_p = torch.cat([net(rows.clone()).log_softmax(dim=1) for rows in x.split(512)])
        return log_p.gather(1, y[:, None]).squeeze(1)
    left = fresh(model_factory, generator)
    width = _width(left, trusted.x)
    trusted, y = _codes(left, trusted, y)
    right = nn.Embedding.from_pretrained(torch.randn(width, width, generator=generator).to(x.dtype), freeze=False)
    return _labels(left, right, trusted, generator, steps, batch_size, lr).scores(x, y)


def _labels(
    left: nn.Module, right: nn.Embedding, part: Part, generator: torch.Generator, steps: int, batch_size: int, lr: float
) -> TwoTowers:
    """Rows against labels: a batch holds a class many times, so that all rows of a class are its positives."""

    class Towers(TwoTowers):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            rows = nn.functional.normalize(self.left(x), dim=1)
            classes = nn.functional.normalize(self.right.weight, dim=1)  # type: ignore[arg-type]
            logits = self.log_scale.clamp(max=LARGEST_SCALE).exp() * rows @ classes.T
            present = t.unique()
            back = logits.log_softmax(dim=0)
            mine = torch.stack([back[t == c, c].mean() for c in present])
            return (nn.functional.cross_entropy(logits, t) - mine.mean()) / 2

    return fit_pairs(
        Towers(left, right),
        part.x,
        part.y,
        steps * min(batch_size, len(part)),
        min(batch_size, len(part)),
        lr,
        generator,
    )


def _clean_odds(
    model_factory: Callable[[], nn.Module],
    x: Tensor,
    trusted: Part,
    generator: torch.Generator,
    steps: int,
    batch_size: int,
    lr: float,
) -> Tensor:
    rows = torch.cat([x, trusted.x])
    label = torch.cat([torch.zeros(len(x)), torch.ones(len(trusted))]).long()
    net = fit_network(fresh(model_factory, generator), rows, label, steps, batch_size, lr, generator)
    with torch.no_grad():
        output = torch.cat([net(block.clone()) for block in x.split(512)])
    return output[:, 1] - output[:, 0]


def _width(net: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return int(net.eval()(x[:2].clone()).shape[1])  # which may begin by changing them in place


def _codes(net: nn.Module, trusted: Part, y: Tensor) -> tuple[Part, Tensor]:
    """The trusted rows and the pool's labels (n,), as int64, once they are known to be classes of the network's."""
    classes = _width(net, trusted.x)
    known = class_codes(trusted.y, len(trusted), classes)
    return Part(trusted.x, known, trusted.rows), class_codes(y, len(y), classes)


def _rounded(rows: Tensor, digits: int) -> Tensor:
    return (rows.double().flatten(1) * 10**digits).round().long()


def _count(share: float, n: int) -> int:
    """ceil(share * n) of the share that was written down: 0.07 * 100 is a little more than 7."""
    return max(min(n, 1), math.ceil(share * n - 1e-9))


def _check_finite(scores: Tensor) -> None:
    if not torch.isfinite(scores).all():
        raise ValueError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} scores are not finite")


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")


def _check(kind: str, steps: int, batch_size: int, lr: float, trusted: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
    for name, value, least in (("steps", steps, 1), ("batch_size", batch_size, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr is {lr}; it must be above 0")
    if trusted < 2:
        raise ValueError(f"there are {trusted} trusted rows; a filter needs 2 or more")
