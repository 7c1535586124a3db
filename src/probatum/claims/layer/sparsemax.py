"""Claims of sparsemax (arXiv:1602.02068): sparse attention as good as softmax's, and better label proportions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.library import library
from probatum.kinds.text.network import AttentionText
from probatum.spec import Part
from probatum.techniques.layer.sparsemax.sparsemax import sparsemax, sparsemax_loss
from probatum.train.rng import generator_for

TOPICS, WORDS, LENGTH, ROWS = 10, 300, 200, 600
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LABELS = (2, 5)
"""Mean numbers of topics in a document: few, and many."""


@torch.no_grad()
def mean_support(model: AttentionText, part: Part) -> float:
    """Mean share of a text's tokens that get attention above zero."""
    seen = []
    handle = model.attend.register_forward_hook(lambda _module, _inputs, p: seen.append((p > 0).sum(dim=1)))
    try:
        model(part.x)
    finally:
        handle.remove()
    return float((seen[0] / (part.x != 0).sum(dim=1).clamp(min=1)).mean())


ATTENTION_NOTE = (
    "Both networks are the bench's text baseline at its own settings. The outcome is on the edge: at the rate of 0.003 that "
    "the baseline had before it was tuned, sparsemax was within a point on 4 of 5 seeds; at 0.008, at which it was then "
    "left, on 3 of 5."
)


def _attention(seeds: Sequence[int]) -> Evidence:
    trec = library("trec")
    rows = []
    for seed in seeds:
        data = trec.prepare(seed)
        row: dict[str, float | str] = {"seed": float(seed)}
        for name, arm in (("softmax", None), ("sparsemax", "sparsemax")):
            model = fit(arm, data, seed).model
            row[f"{name}_accuracy"] = accuracy(model, data.test)
            row[f"{name}_support"] = mean_support(model, data.test)
        rows.append(row)
    measured = {name: mean([float(row[name]) for row in rows]) for name in rows[0] if name != "seed"}
    good = [
        float(row["sparsemax_accuracy"]) >= float(row["softmax_accuracy"]) - 0.01
        and float(row["sparsemax_support"]) < 0.5
        for row in rows
    ]
    measured["share_of_seeds_good"] = sum(good) / len(good)
    return Evidence(measured["share_of_seeds_good"] >= 0.8, measured, tuple(rows), ATTENTION_NOTE)


def _documents(labels: int, rows: int, topics: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Word frequencies (rows, WORDS) of documents that mix topics, and the proportions (rows, TOPICS) they mix.

    The number of topics is Poisson with mean `labels`, cut to 1 .. TOPICS; proportions are uniform on their simplex.
    """
    counts = torch.poisson(torch.full((rows,), float(labels)), generator=generator).clamp(1, TOPICS)
    ranks = torch.rand(rows, TOPICS, generator=generator).argsort(dim=1).argsort(dim=1)
    spacings = -torch.rand(rows, TOPICS, generator=generator).clamp_min(1e-12).log()
    weights = torch.where(ranks < counts[:, None], spacings, 0.0)
    proportions = weights / weights.sum(dim=1, keepdim=True)
    drawn = torch.multinomial(proportions @ topics, LENGTH, replacement=True, generator=generator)
    return F.one_hot(drawn, WORDS).float().mean(dim=1), proportions


def _js(p: Tensor, q: Tensor) -> float:
    """Mean Jensen-Shannon divergence (nats) between rows."""
    middle = (p + q) / 2

    def kl(a: Tensor) -> Tensor:
        return torch.where(a > 0, a * (a.clamp_min(1e-30) / middle.clamp_min(1e-30)).log(), 0.0).sum(dim=1)

    return float(((kl(p) + kl(q)) / 2).mean())


def _linear(x: Tensor, q: Tensor, loss: Callable[[Tensor, Tensor], Tensor], penalty: float) -> nn.Linear:
    """A linear model fitted by LBFGS to mean loss plus penalty/2 |W|^2."""
    model = nn.Linear(x.shape[1], q.shape[1])
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model(x), q).mean() + 0.5 * penalty * model.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return model


def _softmax_loss(output: Tensor, q: Tensor) -> Tensor:
    return F.cross_entropy(output, q, reduction="none")


def _proportions(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        row: dict[str, float | str] = {"seed": float(seed)}
        for labels in LABELS:
            generator = generator_for(seed, "documents", str(labels))
            topics = torch.rand(TOPICS, WORDS, generator=generator).pow(8)
            topics = topics / topics.sum(dim=1, keepdim=True)
            x, q = _documents(labels, 3 * ROWS, topics, generator)
            scale = x[:ROWS].std()
            train, valid, test = ((x[i : i + ROWS] / scale, q[i : i + ROWS]) for i in (0, ROWS, 2 * ROWS))
            for name, loss, link in (
                ("softmax", _softmax_loss, lambda z: z.softmax(dim=1)),
                ("sparsemax", sparsemax_loss, sparsemax),
            ):
                tried = []
                with torch.random.fork_rng():
                    for penalty in PENALTIES:
                        model = _linear(*train, loss, penalty)
                        with torch.no_grad():
                            scored = [_js(link(model(part[0])), part[1]) for part in (valid, test)]
                        tried.append(tuple(scored))
                row[f"{name}_js_{labels}_labels"] = min(tried)[1]
        rows.append(row)
    measured = {name: mean([float(row[name]) for row in rows]) for name in rows[0] if name != "seed"}
    few = LABELS[0]
    won = sum(float(r[f"sparsemax_js_{few}_labels"]) <= float(r[f"softmax_js_{few}_labels"]) for r in rows) / len(rows)
    measured["share_of_seeds_better_with_few_labels"] = won
    return Evidence(won >= 0.8, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="sparse-attention",
        says="Attention by sparsemax is as accurate as by softmax while it looks at few words.",
        threshold="accuracy at most 1 point below softmax's and on average under half of the tokens attended to, on 4 of 5 seeds",
        data="sentence_sets/trec",
        run=_attention,
        minutes=2.0,
        needs_library=True,
    ),
    Claim(
        id="label-proportions",
        says="Where documents have few labels, the sparsemax loss recovers their proportions better than the softmax loss.",
        threshold="Jensen-Shannon divergence to the true proportions at most that of the softmax loss on 4 of 5 seeds, "
        "with 2 labels a document on average",
        data="generator: documents of 200 words that mix 10 topics",
        run=_proportions,
        minutes=1.0,
    ),
)
