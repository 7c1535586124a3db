"""Prior-fitted network: a transformer trained on drawn data sets answers a new table in one forward pass, without fitting.

Paper     Mueller, Hollmann, Pineda Arango, Grabocka and Hutter 2022, "Transformers Can Do Bayesian Inference", ICLR,
          arXiv:2112.10510
Computes  -log q(y | x, D_1..n) averaged over queries of data sets drawn from a prior, n weighted 1 / (N - n); context tokens
          Ex(x) + Ey(y), queries Ex(x) attend to the context and to themselves; reals by bars with half-normal tails
Shapes    context (B, n, d), targets (B, n), queries (B, m, d) -> logits (B, m, classes or bars)
Departs   1. the file for tables that comes with it was trained for minutes, not days, on tables of random networks
             (`probatum.techniques.learner.pfn.prior.table_prior`): 32 features, 10 classes, 256 rows; no real table was seen
          2. larger training sets are answered by the mean over several drawn contexts; columns and classes change places
             between them, since the network is not blind to their order
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tensors.columns import varying
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import class_codes
from probatum.spec import Budget, Data, Part
from probatum.techniques.learner.pfn.network import PriorFitted, load

CARD = Card(
    paper="arXiv:2112.10510",
    title="Transformers Can Do Bayesian Inference",
    entry="fit",
    number=17,
    tags=("uncertainty", "few-labels", "tables"),
    modalities=("table",),
    tasks=("classes",),
    tiny={"contexts": 2},
    tune={"contexts": [1, 8, 16]},
    claims=("near-the-exact-posterior", "answers-unseen-tables"),
)

WEIGHTS = Path(__file__).with_name("pfn_tables.npz")
FARTHEST = 5.0
"""Standardised features are cut here."""


@cache
def _shipped() -> PriorFitted:
    return load(WEIGHTS)


def _real(x: Tensor) -> Tensor:
    """Features as numbers of at least float32; whole ones that float32 does not hold, as times in seconds, in float64."""
    if x.is_floating_point():
        return widened(x)
    short = x.float()
    return short if torch.equal(short.double(), x.double()) else x.double()


class InContext:
    """A network and the rows it answers from; nothing is fitted.

    Args:
        network: trained for classes.
        x, y: training rows (n, d) and classes (n,).
        classes: how many.
        generator: of the contexts.
        contexts: draws that are averaged; 1 where all rows fit into one and nothing is to change places.

    Raises:
        ValueError: more features or classes than the network was trained for, no rows, contexts below 1.
    """

    def __init__(
        self, network: PriorFitted, x: Tensor, y: Tensor, classes: int, generator: torch.Generator, contexts: int = 8
    ) -> None:
        limits = network.limits
        if not isinstance(contexts, int) or contexts < 1:
            raise ValueError(f"contexts is {contexts!r}; give a whole number of at least 1")
        if not limits.classes:
            raise ValueError("the network was trained for real targets; give one for classes")
        if x.shape[1] > limits.features or classes > limits.outputs:
            raise ValueError(
                f"{x.shape[1]} features and {classes} classes; this network was trained for at most {limits.features} features "
                f"and {limits.outputs} classes: drop columns, or use another technique"
            )
        if not len(x):
            raise ValueError("there are no training rows to answer from")
        x, y = _real(x), class_codes(y, len(x), classes)
        self.network, self.classes = network, classes
        mean, spread = x.mean(dim=0), x.std(dim=0, correction=0)
        varies = varying(x)
        self.mean, self.spread = torch.where(varies, mean, x[0]), torch.where(varies, spread, torch.ones_like(spread))
        self.parts = []
        for k in range(contexts):
            rows = torch.randperm(len(x), generator=generator)[: limits.rows]
            columns = torch.randperm(x.shape[1], generator=generator) if k else torch.arange(x.shape[1])
            codes = torch.randperm(classes, generator=generator) if k else torch.arange(classes)
            self.parts.append((self._standard(x[rows])[:, columns], codes[y[rows]], columns, codes))
        self.passes = 0.0

    def samples(self, part: Part) -> Tensor:
        """Probabilities (contexts, n, classes) of every context."""
        return torch.stack([self._answer(part.x, *one) for one in self.parts])

    def predict(self, part: Part) -> Tensor:
        """Their mean (n, classes)."""
        return self.samples(part).mean(dim=0)

    def report(self) -> dict[str, float]:
        """Rows of a context, and how many contexts."""
        return {"context-rows": float(len(self.parts[0][0])), "contexts": float(len(self.parts))}

    def _standard(self, x: Tensor) -> Tensor:
        x = widened(x) if x.is_floating_point() else x.to(self.mean)
        return ((x - self.mean) / self.spread).clamp(-FARTHEST, FARTHEST)

    @torch.no_grad()
    def _answer(self, x: Tensor, known: Tensor, y: Tensor, columns: Tensor, codes: Tensor, block: int = 1024) -> Tensor:
        asked = self._standard(x)[:, columns]
        logits = torch.cat([self.network(known[None], y[None], rows[None])[0] for rows in asked.split(block)])
        return logits[:, codes].softmax(dim=1)  # classes back in their places; those that do not exist are left out


def one_hot_tables(x: Tensor, numeric: int, cardinalities: tuple[int, ...]) -> Tensor:
    """Rows (n, numeric + categories) with categories of two or three values as columns of 0 and 1, others as their codes."""
    parts = [x[:, :numeric]]
    for k, size in enumerate(cardinalities):
        column = x[:, numeric + k]
        parts.append(F.one_hot(column.long(), size).float()[:, 1:] if size <= 4 else column[:, None])
    return torch.cat(parts, dim=1)


class _Encoded:
    """What the bench asks: encodes categories, then answers in context."""

    def __init__(self, answers: InContext, numeric: int, cardinalities: tuple[int, ...]) -> None:
        self.answers, self.numeric, self.cardinalities = answers, numeric, cardinalities
        self.passes = 0.0

    def _part(self, part: Part) -> Part:
        return Part(one_hot_tables(part.x, self.numeric, self.cardinalities), part.y, part.rows)

    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes)."""
        return self.answers.predict(self._part(part))

    def samples(self, part: Part) -> Tensor:
        """Those of every context (contexts, n, classes)."""
        return self.answers.samples(self._part(part))

    def report(self) -> dict[str, float]:
        """See `InContext.report`."""
        return self.answers.report()


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    *,
    contexts: int = 8,
    weights: str | None = None,
) -> _Encoded:
    """Keep the training rows; the network was trained beforehand, and takes no steps here.

    Args:
        data: one split; validation rows are not used.
        budget: not used.
        generator: of the contexts.
        contexts: how many drawn contexts are averaged, at least 1.
        weights: a file of `probatum.techniques.learner.pfn.network.save`; None = the one that comes with it.

    Raises:
        ValueError: see `InContext`; a file that is none.

    Example:
        >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> answers = InContext(load(WEIGHTS), x[:50], y[:50], 2, torch.Generator(), contexts=1)
        >>> found = answers.predict(Part(x[50:], y[50:], torch.arange(10)))
        >>> float((found.argmax(dim=1) == y[50:]).float().mean()) > 0.7
        True
    """
    network = _shipped() if weights is None else load(Path(weights))
    x = one_hot_tables(data.train.x, data.spec.numeric, data.spec.cardinalities)
    answers = InContext(network, x, data.train.y, data.spec.outputs, generator, contexts)
    return _Encoded(answers, data.spec.numeric, data.spec.cardinalities)
