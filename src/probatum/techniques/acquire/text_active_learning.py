"""Active learning by the survey's taxonomy: strategies that read the data, the network, its predictions, or mix them.

Paper     Schroeder and Niekler 2020, "A Survey of Active Learning for Text Classification using Deep Neural Networks",
          arXiv:2008.07267
Computes  data-based: k-means, density, greedy core-set, a classifier of labelled against open rows; model-based: expected
          gradient length (of the last layer, or of the words' embeddings), BADGE; prediction-based: least confidence,
          margin, entropy, BALD by dropout, a committee's vote entropy or KL divergence; mixed: ranks of margin and density
Shapes    pool of n rows, count -> positions (count,)
Departs   1. representations are what the network hands to its last layer, not a language model's
          2. egl-word takes the gradient in the first embedding layer's output, row by row, and the expectation over the
             three likeliest classes
          3. a stopping rule (`stop_kappa`) compares predictions of the open rows by this network and one trained without
             the labels of the last round
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.labels import acquisition as parts
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.networks.watch import hooked, last_features, outputs_of
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.draws import fresh, own_draws
from probatum.spec import Pool

CARD = Card(
    paper="arXiv:2008.07267",
    title="A Survey of Active Learning for Text Classification using Deep Neural Networks",
    entry="ask",
    number=80,
    tags=("data", "few-labels", "active-learning", "nlp"),
    tasks=("classes",),
    tiny={"strategy": "badge"},
    tune={"strategy": ["margin", "entropy", "badge", "coreset", "density"]},
    claims=("margin-saves-labels",),
)

DATA_BASED = ("kmeans", "density", "coreset", "discriminative")
MODEL_BASED = ("egl", "egl-word", "badge")
PREDICTION_BASED = ("confidence", "margin", "entropy", "bald", "vote-entropy", "vote-kl")
MIXED = ("margin-density",)
STRATEGIES = (*DATA_BASED, *MODEL_BASED, *PREDICTION_BASED, *MIXED)
LIKELY = 3
"""Classes over which egl-word takes its expectation."""


def ask(
    pool: Pool,
    count: int,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module] | None = None,
    *,
    strategy: str = "margin",
    draws: int = 10,
    members: int = 4,
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 2e-3,
    stop_kappa: float | None = None,
) -> Tensor:
    """The `count` open rows that a strategy wants most.

    Args:
        pool: rows, labels so far and the network trained on them.
        count: rows to ask for.
        generator: of clusters, dropout draws and committees.
        model_factory: fresh networks, for committees and the stopping rule.
        strategy: one of `STRATEGIES`.
        draws: dropout draws of bald, at least 2.
        members: networks of a committee (vote-entropy, vote-kl), at least 2, each trained on a bootstrap of the labels.
        steps, batch_size, lr: their training.
        stop_kappa: in (0, 1]: ask for nothing more once predictions of open rows agree so well (Cohen's kappa) with those
            of a network that lacks the last `count` labels; None = never.

    Raises:
        ValueError: unknown strategy, settings out of range, no rows left, duplicate labels, a network without what the
            strategy reads (dropout, embeddings).

    Example:
        >>> net = nn.Linear(2, 3).eval()
        >>> none = torch.zeros(0, dtype=torch.int64)
        >>> pool = Pool(torch.randn(9, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), net, none, none, 0, 4)
        >>> ask(pool, 2, torch.Generator(), strategy="coreset").shape
        torch.Size([2])
    """
    _check(pool, count, strategy, draws, members, steps, batch_size, lr, stop_kappa)
    if stop_kappa is not None and _stable(pool, count, generator, model_factory, steps, batch_size, lr, stop_kappa):
        return torch.zeros(0, dtype=torch.int64)
    rows = pool.open()
    if strategy in DATA_BASED:
        return rows[_by_data(pool, rows, count, generator, strategy)]
    if strategy == "egl-word":
        return rows[parts.top(word_gradient_length(pool.model, pool.x[rows]), count)]
    if strategy in PREDICTION_BASED:
        return rows[
            parts.top(
                _uncertainty(pool, rows, generator, model_factory, strategy, draws, members, (steps, batch_size, lr)),
                count,
            )
        ]
    seen = last_features(pool.model, pool.x[rows])
    p = seen.logits.softmax(dim=1)
    if strategy == "badge":
        return rows[parts.spread_draw_of_gradients(p, seen.features, count, generator)]
    if strategy == "margin-density":
        mixed = parts.unit_ranks(parts.closeness(p)) * parts.unit_ranks(parts.similarity_density(seen.features))
        return rows[parts.top(mixed, count)]
    length = parts.gradient_length(p, seen.features, head_of(pool.model, pool.x).bias is not None)
    return rows[parts.top(length, count)]


def _uncertainty(
    pool: Pool,
    rows: Tensor,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module] | None,
    strategy: str,
    draws: int,
    members: int,
    training: tuple[int, int, float],
) -> Tensor:
    """Scores (k,) of open rows by what is predicted of them alone; any network will do."""
    x = pool.x[rows]
    if strategy == "bald":
        return parts.mutual_information(dropout_predictions(pool.model, x, draws, generator))
    if strategy.startswith("vote"):
        votes = _committee(pool, x, generator, model_factory, members, *training)
        # the mutual information is the mean KL divergence of the members to their mean
        score = parts.vote_entropy(votes) if strategy == "vote-entropy" else parts.mutual_information(votes)
        return score + 1e-6 * parts.entropy(votes.mean(dim=0))  # ties: the less sure first
    score_of = {"confidence": parts.least_confidence, "margin": parts.closeness, "entropy": parts.entropy}[strategy]
    return score_of(outputs_of(pool.model, x).softmax(dim=1))


def dropout_predictions(model: nn.Module, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Probabilities under dropout, everything else in evaluation mode: (draws, n, classes); modes are put back.

    Raises:
        ValueError: the network has no dropout above 0.
    """
    drops = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if not drops:
        raise ValueError(
            "bald needs a network with dropout, and this one has none above 0; use vote-entropy or vote-kl"
        )
    with evaluating(model), torch.no_grad(), own_draws(generator):
        for module in drops:
            module.train()
        return torch.stack([model(x.clone()).softmax(dim=1) for _ in range(draws)])


def word_gradient_length(model: nn.Module, x: Tensor) -> Tensor:
    """Largest expected gradient norm among a row's words, at the output of the first embedding layer: (n, length) -> (n,).

    Zhang, Lease and Wallace 2017 (EGL-word). Raises ValueError where the network has no `nn.Embedding`.
    """
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None or x.is_floating_point():
        raise ValueError("egl-word needs a network over token ids with an nn.Embedding; use egl for other data")
    caught: list[Tensor] = []

    def leaf(_name: str, _inputs: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1].clone()  # which a layer behind it may change in place

    found = []
    with hooked(model, {"": embedding}, leaf), torch.enable_grad():
        for rows in x.split(256):
            caught.clear()
            log_p = model(rows.clone()).log_softmax(dim=1)  # which may begin by changing them in place
            likely = log_p.detach().exp().topk(min(LIKELY, log_p.shape[1]), dim=1)
            total = torch.zeros(rows.shape, dtype=log_p.dtype)
            for share, c in zip(likely.values.T, likely.indices.T, strict=True):
                own = log_p.gather(1, c[:, None]).sum()
                (slope,) = torch.autograd.grad(own, caught[0], retain_graph=True)
                total += share[:, None] * slope.norm(dim=2)
            found.append(total.amax(dim=1).detach())
    return torch.cat(found)


def _by_data(pool: Pool, rows: Tensor, count: int, generator: torch.Generator, strategy: str) -> Tensor:
    features = last_features(pool.model, pool.x, ends=False).features
    mine, known = features[rows], features[pool.labelled]
    if strategy == "coreset":
        return parts.farthest_first(mine, known, count)
    if strategy == "density":
        return parts.top(parts.similarity_density(mine), count)
    state = int(torch.randint(2**31 - 1, (1,), generator=generator))
    if strategy == "kmeans":
        centres = torch.from_numpy(
            KMeans(min(count, len(rows)), n_init=1, random_state=state).fit(mine.double().numpy()).cluster_centers_
        )
        return _nearest_each(mine.double(), centres)
    labels = torch.cat([torch.ones(len(known)), torch.zeros(len(mine))]).numpy()
    machine = LogisticRegression(max_iter=500, class_weight="balanced").fit(
        torch.cat([known, mine]).double().numpy(), labels
    )
    return parts.top(-torch.from_numpy(machine.decision_function(mine.double().numpy())), count)


def _nearest_each(points: Tensor, centres: Tensor) -> Tensor:
    """For every centre in turn the nearest point not yet taken."""
    distance = torch.cdist(points, centres)
    chosen = []
    for k in range(len(centres)):
        new = int(distance[:, k].argmin())
        chosen.append(new)
        distance[new] = float("inf")
    return torch.tensor(chosen, dtype=torch.int64)


def _committee(
    pool: Pool,
    x: Tensor,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module] | None,
    members: int,
    steps: int,
    batch_size: int,
    lr: float,
) -> Tensor:
    if model_factory is None:
        raise ValueError("a committee trains fresh networks; give model_factory, or use another strategy")
    rows, y = torch.cat([pool.labelled, pool.machine]), torch.cat([pool.y, pool.guesses])
    found = []
    for _ in range(members):
        pick = torch.randint(len(rows), (len(rows),), generator=generator)
        net = fresh(model_factory, generator)
        fit_network(net, pool.x[rows[pick]], y[pick], steps, batch_size, lr, generator)
        found.append(outputs_of(net, x).softmax(dim=1))
    return torch.stack(found).double()  # in single precision the entropies that part ties would be lost


def _stable(
    pool: Pool,
    count: int,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module] | None,
    steps: int,
    batch_size: int,
    lr: float,
    wanted: float,
) -> bool:
    if pool.rounds == 0 or len(pool.labelled) <= count:
        return False
    if model_factory is None:
        raise ValueError("the stopping rule trains a network without the last labels; give model_factory")
    rows, y = pool.labelled[:-count], pool.y[:-count]
    before = fit_network(fresh(model_factory, generator), pool.x[rows], y, steps, batch_size, lr, generator)
    x = pool.x[pool.open()]
    first, second = (outputs_of(net, x) for net in (before, pool.model))
    return parts.kappa(first.argmax(dim=1), second.argmax(dim=1), first.shape[1]) >= wanted


def _check(
    pool: Pool,
    count: int,
    strategy: str,
    draws: int,
    members: int,
    steps: int,
    batch_size: int,
    lr: float,
    stop_kappa: float | None,
) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; use one of {', '.join(STRATEGIES)}")
    for name, value, least in (
        ("draws", draws, 2),
        ("members", members, 2),
        ("steps", steps, 1),
        ("batch_size", batch_size, 2),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr is {lr}; it must be above 0")
    if stop_kappa is not None and not 0 < stop_kappa <= 1:
        raise ValueError(f"stop_kappa is {stop_kappa}; it must lie in (0, 1], or be None")
    if len(pool.labelled.unique()) != len(pool.labelled):
        raise ValueError(
            f"{len(pool.labelled) - len(pool.labelled.unique())} rows are labelled twice; give each position once"
        )
    left = len(pool.open())
    if not 1 <= count <= left:
        raise ValueError(
            f"{count} rows are asked for and {left} are open; ask for 1 to {left}"
            if left
            else "the pool is exhausted: every row has a label"
        )
