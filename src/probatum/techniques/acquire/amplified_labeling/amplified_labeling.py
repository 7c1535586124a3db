"""Amplified labelling: people label a sample, a model takes over what it is sure of, and the ambiguous middle comes again.

Paper     Yu, Seff, Zhang, Song, Funkhouser and Xiao 2015, "LSUN: Construction of a Large-scale Image Dataset using Deep
          Learning with Humans in the Loop", arXiv:1506.03365
Computes  per round: label a random sample of the pool, train on all labels but a held-out part, and there choose a high
          threshold (precision above it) and a low one (positives lost below it); what lies between is the next pool
Shapes    pool of n rows, count -> positions (count,) and machine labels; `amplify`: n rows -> positive, negative, middle
Departs   1. the precision above the high threshold is a Clopper-Pearson lower bound, not the share seen
          2. held-out items of earlier rounds count too, those that no threshold has placed yet: like the rows of the present
             pool they lie between all thresholds so far
          3. on the bench there are several classes: a row is taken over for its likeliest class where the probability passes
             one threshold, chosen on cross-fitted predictions of all labelled rows, which are easier than those still open;
             there is no low end
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.labels.annotators import binomial_interval, shares_at_least
from probatum.numerics.networks.watch import outputs_of
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.draws import fresh
from probatum.numerics.tensors.masks import truth_values
from probatum.spec import Pool, Query

CARD = Card(
    paper="arXiv:1506.03365",
    title="LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in the Loop",
    entry="ask",
    number=140,
    tags=("data", "few-labels", "active-learning", "semi-supervised"),
    tasks=("classes",),
    tiny={"steps": 5, "folds": 2, "precision": 0.6},
    tune={"precision": [0.9, 0.95, 0.98], "confidence": [0.8, 0.9, 0.95]},
    claims=("few-answers-label-a-category",),
    expect_fail={
        "settings_matter": "with 64 rows and one question no threshold is chosen; its own tests hold both settings"
    },
)

Ask = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor, torch.Generator], Callable[[Tensor], Tensor]]


class Thresholds(NamedTuple):
    """Scores at or above `high` are positive, below `low` negative; infinite where the held-out items allow none."""

    high: float
    low: float


class Round(NamedTuple):
    """One round: the pool's size, items asked, thresholds, and how many rows went where."""

    pool: int
    asked: int
    thresholds: Thresholds
    positive: int
    negative: int


class Cascade(NamedTuple):
    """Positions found positive, negative, and left in the middle (they partition the pool); positions that people
    decided; the rounds."""

    positive: Tensor
    negative: Tensor
    middle: Tensor
    asked: Tensor
    rounds: tuple[Round, ...]


class Audit(NamedTuple):
    """Shares in an independent sample with their Clopper-Pearson intervals (share, low, high)."""

    precision: tuple[float, float, float]
    recall: tuple[float, float, float]


def choose_thresholds(
    scores: Tensor, truth: Tensor, precision: float = 0.95, lost: float = 0.01, confidence: float = 0.9
) -> Thresholds:
    """Thresholds from held-out scores (k,) and answers (k,), bool or 0 and 1.

    Args:
        scores, truth: items drawn at random from the present pool, which the model was not trained on.
        precision: `high` is the lowest score at or above which the lower bound of the precision is at least this.
        lost: `low` is the highest score below which at most this share of the positives lies.
        confidence: one-sided level of the bound, in (0, 1).

    Raises:
        ValueError: shares out of range, other shapes, no positive among the items, scores that are not finite.
        TypeError: answers of floating point.
    """
    if scores.ndim != 1 or truth.shape != scores.shape:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, answers {tuple(truth.shape)}; give (k,) of both")
    truth = truth_values(truth, "truth")
    for name, value in (("precision", precision), ("lost", lost)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must lie in [0, 1]")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie in (0, 1): no finite sample makes a bound certain")
    positives = int(truth.sum())
    if positives == 0:
        raise ValueError("no positive among the held-out items; draw a larger sample, or one seeded with positives")
    if not torch.isfinite(scores).all():
        raise ValueError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order].double(), truth[order].double().cumsum(0)
    parts = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])  # equal scores stay together
    bound = shares_at_least(hits, torch.arange(1, len(ranked) + 1), confidence)
    fine = ranked[parts & (bound >= precision)]
    high = float(fine[-1]) if len(fine) else float("inf")
    own = scores[truth].double().sort().values
    spare = math.floor(lost * positives + 1e-9)  # 0.29 * 100 is 28.999...
    low = float(own[spare]) if spare < positives else float("inf")
    return Thresholds(high, min(low, high))


def network_scorer(
    model_factory: Callable[[], nn.Module], steps: int = 300, batch_size: int = 64, lr: float = 2e-3
) -> Fit:
    """A fresh network with two outputs, trained on the labels; scores are the log-odds of its second one."""

    def fit(x: Tensor, y: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        net = fit_network(fresh(model_factory, generator), x, y.long(), steps, batch_size, lr, generator)

        def score(rows: Tensor) -> Tensor:
            with torch.no_grad():
                output = torch.cat([net(block.clone()) for block in rows.split(1024)])
            return output[:, 1] - output[:, 0]

        return score

    return fit


def amplify(
    x: Tensor,
    ask: Ask,
    fit: Fit,
    generator: torch.Generator,
    *,
    sample: int = 500,
    held_out: float = 0.5,
    precision: float = 0.95,
    lost: float = 0.01,
    confidence: float = 0.9,
    rounds: int = 4,
    exhaustive: int = 200,
) -> Cascade:
    """Label a pool for one category.

    Args:
        x: the pool, (n, ...).
        ask: rows (k,) -> (k,), bool or 0 and 1, by people, e.g. a `probatum.techniques.acquire.amplified_labeling.crowd.Crowd`.
        fit: (x, y, generator) -> a scorer of rows, e.g. by `network_scorer`.
        generator: samples and training.
        sample: items asked for in a round.
        held_out: share of them kept for the thresholds, in (0, 1).
        precision, lost, confidence: see `choose_thresholds`.
        rounds: at most so many.
        exhaustive: a middle no larger than this is labelled by people, all of it.

    Raises:
        ValueError: settings out of range, or a first sample without positives in either part.
    """
    if sample < 4 or rounds < 1 or exhaustive < 0 or not 0 < held_out < 1:
        raise ValueError(
            f"sample is {sample}, rounds {rounds}, exhaustive {exhaustive}, held_out {held_out}; use at least 4, 1, 0 and (0, 1)"
        )
    n = len(x)
    known = torch.full((n,), -1, dtype=torch.int64)  # answers of people
    state = torch.zeros(n, dtype=torch.int64)  # 1 positive, -1 negative, 0 in the pool
    held, placed, log = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool), []
    for _ in range(rounds):
        pool = (state == 0).nonzero().squeeze(1)
        fresh = pool[known[pool] < 0]
        if len(fresh) <= exhaustive:
            break
        drawn = fresh[torch.randperm(len(fresh), generator=generator)[:sample]]
        known[drawn] = truth_values(ask(drawn), "the answers").long()
        held[drawn[: max(1, round(held_out * len(drawn)))]] = True
        train = ((known >= 0) & ~held).nonzero().squeeze(1)
        if not log and (known[drawn].sum() == 0 or known[train].sum() == 0 or known[drawn[held[drawn]]].sum() == 0):
            raise ValueError(
                f"{int(known[drawn].sum())} positives among the first {len(drawn)} items, too few for training and "
                "thresholds; draw a larger sample, or one seeded with positives"
            )
        score = fit(x[train], known[train], generator)
        checked = pool[held[pool] & ~placed[pool]]
        if known[checked].sum() == 0:
            break  # no positives are left to set thresholds by
        own = score(x[checked])
        limits = choose_thresholds(own, known[checked] == 1, precision, lost, confidence)
        placed[checked] = (own >= limits.high) | (own < limits.low)
        fresh = pool[known[pool] < 0]
        found = score(x[fresh]) if len(fresh) else torch.zeros(0)
        up, down = fresh[found >= limits.high], fresh[found < limits.low]
        state[up], state[down] = 1, -1
        log.append(Round(len(pool), len(drawn), limits, len(up), len(down)))
    rest = ((state == 0) & (known < 0)).nonzero().squeeze(1)
    if len(rest) <= exhaustive and len(rest):
        known[rest] = truth_values(ask(rest), "the answers").long()
    asked = (known >= 0).nonzero().squeeze(1)
    state[asked] = 2 * known[asked] - 1
    positive, negative, middle = ((state == value).nonzero().squeeze(1) for value in (1, -1, 0))
    return Cascade(positive, negative, middle, asked, tuple(log))


def audit(found: Cascade, ask: Ask, count: int, generator: torch.Generator, level: float = 0.95) -> Audit:
    """Precision of `count` rows drawn from the positives, and recall of the positives among as many drawn from all rows."""
    n = sum(len(part) for part in found[:3])
    if not 1 <= count <= n or not len(found.positive):
        raise ValueError(
            f"count is {count} and {len(found.positive)} rows are positive; there are {n} rows to draw from"
        )
    some = found.positive[torch.randperm(len(found.positive), generator=generator)[:count]]
    hits = int(truth_values(ask(some), "the answers").sum())
    drawn = torch.randperm(n, generator=generator)[:count]
    true = drawn[truth_values(ask(drawn), "the answers")]
    kept = int(torch.isin(true, found.positive).sum())
    return Audit(
        (hits / len(some), *binomial_interval(hits, len(some), level)),
        (kept / max(1, len(true)), *binomial_interval(kept, len(true), level)),
    )


def ask(
    pool: Pool,
    count: int,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module],
    *,
    precision: float = 0.95,
    confidence: float = 0.9,
    folds: int = 4,
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 2e-3,
) -> Query:
    """A random sample of the rows that are still ambiguous, and machine labels for those that are not.

    Args:
        pool: rows, labels so far, machine labels so far (they are kept), and the network trained on both.
        count: rows to ask for.
        generator, model_factory: of the networks that set the threshold.
        precision: the lower bound of the share of right labels that a row must be in to be taken over.
        confidence: one-sided level of that bound.
        folds: labelled rows are predicted by networks trained on the other folds.
        steps, batch_size, lr: training of these.

    Raises:
        ValueError: settings out of range, more rows asked for than are open.

    Example:
        >>> net = nn.Linear(2, 3).eval()
        >>> none = torch.zeros(0, dtype=torch.int64)
        >>> pool = Pool(torch.randn(9, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), net, none, none, 0, 4)
        >>> ask(pool, 2, torch.Generator(), lambda: nn.Linear(2, 3), steps=2).ask.shape
        torch.Size([2])
    """
    for name, share in (("precision", precision), ("confidence", confidence)):
        if not 0.5 < share < 1:
            raise ValueError(f"{name} is {share}; it must lie in (0.5, 1)")
    for name, value, least in (("folds", folds, 2), ("steps", steps, 1), ("batch_size", batch_size, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr is {lr}; it must be above 0")
    rows = pool.open()
    if not 1 <= count <= len(rows):
        raise ValueError(f"{count} rows are asked for and {len(rows)} are open; ask for 1 or more, at most those")
    limit = _limit(pool, generator, model_factory, precision, confidence, folds, steps, batch_size, lr)
    sure, guess = outputs_of(pool.model, pool.x[rows]).softmax(dim=1).max(dim=1)
    taken = sure >= limit
    taken[taken.nonzero().squeeze(1)[: max(0, count - int((~taken).sum()))]] = False  # leave enough to ask for
    machine, guesses = torch.cat([pool.machine, rows[taken]]), torch.cat([pool.guesses, guess[taken]])
    left = rows[~taken]
    return Query(left[torch.randperm(len(left), generator=generator)[:count]], machine, guesses)


def _limit(
    pool: Pool,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module],
    precision: float,
    confidence: float,
    folds: int,
    steps: int,
    batch_size: int,
    lr: float,
) -> float:
    """The lowest probability at or above which labelled rows, predicted by networks that lack them, are right often enough."""
    n = len(pool.labelled)
    if n < 2 * folds:
        return float("inf")
    part = torch.arange(n)[torch.randperm(n, generator=generator)] % folds
    sure, right = torch.zeros(n), torch.zeros(n, dtype=torch.bool)
    for k in range(folds):
        other, mine = pool.labelled[part != k], pool.labelled[part == k]
        net = fresh(model_factory, generator)
        fit_network(net, pool.x[other], pool.y[part != k], steps, batch_size, lr, generator)
        p = outputs_of(net, pool.x[mine]).softmax(dim=1)
        sure[part == k], right[part == k] = p.amax(dim=1).float(), p.argmax(dim=1) == pool.y[part == k]
    if not right.any():
        return float("inf")
    return choose_thresholds(sure, right, precision, 0.0, confidence).high
