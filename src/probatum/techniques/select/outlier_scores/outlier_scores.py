"""Outlier scores: five views of how well represented an example is, their agreement, and what they tell together.

Paper     Carlini, Erlingsson and Papernot 2019, "Distribution Density, Tails, and Outliers in Machine Learning: Metrics
          and Applications", arXiv:1910.13427
Computes  adv: L2 distance to the decision boundary; ret: minus the symmetric KL divergence of the prediction before and
          after fine-tuning on held-out rows; agr: minus the mean pairwise Jensen-Shannon divergence of an ensemble; conf:
          its mean largest probability; priv: the strongest privacy of DP-SGD at which most models are still right
Shapes    x (n, ...), y (n,) int64 -> mean rank (n,) in [0, 1], higher = better represented
Departs   1. every row is scored by models that did not train on it (folds); fine-tuning is on the fold that holds it
          2. the boundary is searched by linearised steps and bisection, in place of Carlini-Wagner
          3. ensembles differ by seed and by the rows left out (a fifth), not by size
          4. uncommon submodes are clustered on the inputs, unless features are given
          5. the mean rank is by default that of adv, ret and priv, which look at the label: agr and conf of networks that were
             not trained on a row say nothing of its label (`use=NAMES` takes all five)
          6. adv is the mean over the networks whose search finds a boundary; a row for which none does ranks highest
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.stats import rankdata
from sklearn.cluster import HDBSCAN
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.draws import fresh
from probatum.numerics.tensors.precision import widened
from probatum.techniques.select.outlier_scores.boundary import boundary_distance
from probatum.techniques.select.outlier_scores.privacy import epsilon, fit_privately

CARD = Card(
    paper="arXiv:1910.13427",
    title="Distribution Density, Tails, and Outliers in Machine Learning: Metrics and Applications",
    entry="outlier_scores",
    number=215,
    tags=("data", "label-noise", "privacy"),
    modalities=("table", "image", "series"),
    tasks=("classes",),
    tiny={"steps": 30, "members": 2, "folds": 2, "private_steps": 1, "private_models": 1, "noises": [1.0]},
    tune={"steps": [200, 400, 800], "folds": [2, 3, 5]},
    tried={"steps": [10, 20]},
    claims=("five-scores-agree",),
)

NAMES = ("adv", "ret", "agr", "conf", "priv")
LABELLED = ("adv", "ret", "priv")
"""Those that look at a row's label."""


class Scores(NamedTuple):
    """Raw scores by name (n,), higher = better represented; their ranks in [0, 1]; ensemble scores of models that did
    train on the row; whether most models of each privacy level are right (levels, n); epsilon of each level."""

    raw: dict[str, Tensor]
    ranks: dict[str, Tensor]
    trained: dict[str, Tensor]
    right: Tensor
    epsilons: tuple[float, ...]


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p|q) + KL(q|p) of rows of probabilities (n, classes) -> (n,)."""
    small = torch.finfo(p.dtype).tiny
    return ((p - q) * (p.clamp(min=small).log() - q.clamp(min=small).log())).sum(dim=1)


def mean_pairwise_js(p: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence, in [0, ln 2], over the pairs of m predictions: (m, n, classes) -> (n,).

    Raises:
        ValueError: fewer than 2 members.
    """
    if len(p) < 2:
        raise ValueError(f"the ensemble has {len(p)} member(s); agreement needs 2 or more")

    def entropy(q: Tensor) -> Tensor:
        return torch.special.entr(q).sum(dim=-1)

    pairs = list(itertools.combinations(range(len(p)), 2))
    total = torch.zeros_like(p[0, :, 0])
    for i, j in pairs:
        total += (entropy((p[i] + p[j]) / 2) - (entropy(p[i]) + entropy(p[j])) / 2).clamp(min=0)
    return total / len(pairs)


def ranks(values: Tensor) -> Tensor:
    """Ranks in [0, 1] (ties share their mean), (n,) -> (n,)."""
    return torch.from_numpy(rankdata(values.double().numpy()) - 1) / max(1, len(values) - 1)


def spearman(found: dict[str, Tensor]) -> Tensor:
    """Spearman correlations of scores by name: (k, k) float64; nan for a score that is constant."""
    rows = torch.stack([ranks(values) for values in found.values()])
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows @ rows.T


def scores(
    model_factory: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    use: Sequence[str] = NAMES,
    folds: int = 3,
    members: int = 4,
    steps: int = 400,
    batch_size: int = 64,
    lr: float = 2e-3,
    retrain_share: float = 2.0,
    retrain_lr: float = 2e-3,
    noises: Sequence[float] = (8.0, 4.0, 2.0, 1.0),
    private_models: int = 3,
    private_steps: int = 60,
    private_share: float = 0.3,
    private_lr: float = 0.5,
    clip: float = 1.0,
) -> Scores:
    """All scores of `outlier_scores`, their ranks, and what the combinations need; arguments as there."""
    _check(x, y, use, folds, members, noises, batch_size)
    _check_ranges(lr, retrain_share, retrain_lr, private_share, private_lr, clip)
    _check_counts(steps=steps, private_models=private_models, private_steps=private_steps)
    x, y = widened(x), y.reshape(-1).long()
    made = functools.partial(_fresh, model_factory, generator, x.dtype)
    n = len(y)
    fold = torch.randperm(n, generator=generator) % folds
    raw = {name: torch.zeros(n, dtype=torch.float64) for name in use}
    right = torch.zeros(len(noises), n, dtype=torch.bool)
    seen: list[Tensor] = []
    learned: list[Tensor] = []  # which rows each network was trained on
    for k in range(folds):
        out, within = (fold == k).nonzero().squeeze(1), (fold != k).nonzero().squeeze(1)
        ensemble = []
        for _ in range(members):
            kept = within[torch.rand(len(within), generator=generator) < 0.8]
            ensemble.append(fit_network(made(), x[kept], y[kept], steps, batch_size, lr, generator))
            learned.append(torch.zeros(n, dtype=torch.bool).index_fill(0, kept, True))
        p = torch.stack([_probabilities(model, x) for model in ensemble])
        seen.append(p)
        for name, values in _of_ensemble(ensemble, p[:, out], x[out], y[out], use).items():
            raw[name][out] = values
        if "ret" in use:
            again = max(1, round(retrain_share * steps))
            change = _changed(ensemble, p[:, out], x[out], y[out], again, batch_size, retrain_lr, generator)
            raw["ret"][out] = -change / members
        if "priv" in use:
            for level, noise in enumerate(noises):
                votes = torch.zeros(len(out))
                for _ in range(private_models):
                    private = (private_steps, private_share, noise, clip, private_lr)
                    model = fit_privately(made(), x[within], y[within], *private, generator)
                    votes += _probabilities(model, x[out]).argmax(dim=1) == y[out]
                right[level, out] = votes > private_models / 2
    if "priv" in use:
        raw["priv"] = _strongest(right)
    trained = _where_trained(torch.cat(seen), torch.stack(learned))
    spent = tuple(epsilon(noise, private_share, private_steps, 1.0 / max(2, n)) for noise in noises)
    return Scores(raw, {name: ranks(values) for name, values in raw.items()}, trained, right, spent)


def _strongest(right: Tensor) -> Tensor:
    """(levels, n) bool, strongest privacy first -> (n,) 1 where the first level is right already, 0 where none is."""
    first = torch.where(right.any(dim=0), right.int().argmax(dim=0), len(right))
    return (1 - first / len(right)).double()


def _fresh(model_factory: Callable[[], nn.Module], generator: torch.Generator, dtype: torch.dtype) -> nn.Module:
    """A new network in the rows' precision; half precision was widened, since neither Adam nor clipping works in it."""
    return fresh(model_factory, generator).to(dtype)


def _of_ensemble(models: Sequence[nn.Module], p: Tensor, x: Tensor, y: Tensor, use: Sequence[str]) -> dict[str, Tensor]:
    """Scores (n,) of rows that the models were not trained on, by what these answer: p (models, n, classes)."""
    found = {}
    if "agr" in use:
        found["agr"] = -mean_pairwise_js(p)
    if "conf" in use:
        found["conf"] = p.amax(dim=2).mean(dim=0)
    if "adv" in use:
        distance = torch.stack([boundary_distance(model, x, y) for model in models]).double()
        seen = distance.isfinite()
        near = torch.where(seen, distance, 0.0).sum(dim=0) / seen.sum(dim=0).clamp(min=1)
        found["adv"] = torch.where(seen.any(dim=0), near, 1e30)
    return found


def _changed(
    models: Sequence[nn.Module],
    before: Tensor,
    x: Tensor,
    y: Tensor,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> Tensor:
    """How far answers (models, n, classes) move, summed over models (n,), when each is trained on these rows alone."""
    change = torch.zeros(len(x), dtype=torch.float64)
    for old, model in zip(before, models, strict=True):
        fit_network(model, x, y, steps, batch_size, lr, generator, cosine=False)
        change += symmetric_kl(old, _probabilities(model, x))
    return change


def outlier_scores(
    model_factory: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    use: Sequence[str] = LABELLED,
    folds: int = 3,
    members: int = 4,
    steps: int = 400,
    batch_size: int = 64,
    lr: float = 2e-3,
    retrain_share: float = 2.0,
    retrain_lr: float = 2e-3,
    noises: Sequence[float] = (8.0, 4.0, 2.0, 1.0),
    private_models: int = 3,
    private_steps: int = 60,
    private_share: float = 0.3,
    private_lr: float = 0.5,
    clip: float = 1.0,
) -> Tensor:
    """Mean rank of every row over some of the scores: low = outlier or wrong label.

    Args:
        model_factory: fresh network for x.
        x: (n, ...), floating-point.
        y: classes (n,) int64.
        generator: all that is drawn.
        use: which of adv, ret, agr, conf, priv; agr and conf cannot tell a wrong label, priv costs most (folds * levels * private_models trainings).
        folds: parts of the data, each scored by models trained on the others, >= 2 and of 2 rows or more.
        members: networks of the ensemble in each fold, >= 2.
        steps, batch_size, lr: of each ordinary training.
        retrain_share, retrain_lr: fine-tuning on the held-out fold: its steps as a share of `steps` (enough to
            converge), its constant rate.
        noises: noise of DP-SGD, strongest privacy first.
        private_models, private_steps, private_share, private_lr, clip: of each private training.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        TypeError: inputs without gradients. ValueError: fewer than 2 members or folds, or other settings out of range;
            labels below 0.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(60, 2, generator=generator)
        >>> y = (x[:, 0] > 0).long()
        >>> y[:3] = 1 - y[:3]
        >>> rank = outlier_scores(lambda: nn.Linear(2, 2), x, y, generator, steps=100, use=("adv", "priv"))
        >>> bool(rank[:3].mean() < rank[3:].mean())
        True
    """
    found = scores(
        model_factory,
        x,
        y,
        generator,
        use=use,
        folds=folds,
        members=members,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        retrain_share=retrain_share,
        retrain_lr=retrain_lr,
        noises=noises,
        private_models=private_models,
        private_steps=private_steps,
        private_share=private_share,
        private_lr=private_lr,
        clip=clip,
    )
    return torch.stack(list(found.ranks.values())).mean(dim=0)


def combine(found: Scores, x: Tensor, features: Tensor | None = None, smallest: int = 5) -> dict[str, Tensor]:
    """What the scores say together.

    Returns:
        "prototype": lowest of a row's ranks (n,): high only where all five are. "memorised": ensemble ranks where the
        row was trained on, less the ranks of priv and ret (n,): high for exceptions learned by heart. "submode": number
        (n,) int64 of the cluster (HDBSCAN) among rows that only weak privacy gets right; -1 for all others.
    """
    missing = [name for name in ("ret", "priv") if name not in found.ranks]
    if missing:
        raise ValueError(f"the combinations need the score {missing[0]!r}; compute scores(..., use={NAMES})")
    lowest = torch.stack(list(found.ranks.values())).amin(dim=0)
    by_heart = (ranks(found.trained["conf"]) + ranks(found.trained["agr"])) / 2
    memorised = by_heart - (found.ranks["priv"] + found.ranks["ret"]) / 2
    half = max(1, len(found.right) // 2)
    rare = (found.right[-1] & ~found.right[:half].any(dim=0)).nonzero().squeeze(1)
    cluster = torch.full((len(lowest),), -1)
    if len(rare) > smallest:
        points = (x if features is None else features)[rare].flatten(1)
        labels = HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(points.double().numpy())
        cluster[rare] = torch.from_numpy(labels).to(cluster)
    return {"prototype": lowest, "memorised": memorised, "submode": cluster}


def _where_trained(p: Tensor, learned: Tensor) -> dict[str, Tensor]:
    """Agreement and confidence of every row under the networks that were trained on it.

    p (networks, n, classes) probabilities, learned (networks, n) bool; a row that fewer than two networks learned from
    agrees with itself (0), one that none did has confidence 0.
    """
    total, pairs = torch.zeros(p.shape[1], dtype=p.dtype), torch.zeros(p.shape[1], dtype=p.dtype)
    for i, j in itertools.combinations(range(len(p)), 2):
        both = learned[i] & learned[j]
        total += torch.where(both, mean_pairwise_js(p[[i, j]]), 0.0)
        pairs += both
    count = learned.sum(dim=0)
    confidence = (p.amax(dim=2) * learned).sum(dim=0) / count.clamp(min=1)
    return {"agr": -total / pairs.clamp(min=1), "conf": confidence}


@torch.no_grad()
def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(part.clone()) for part in x.split(1024)]).double().softmax(dim=1)


def _check(
    x: Tensor, y: Tensor, use: Sequence[str], folds: int, members: int, noises: Sequence[float], batch_size: int
) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; the boundary distance needs floating-point inputs")
    if y.is_floating_point() or y.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(f"y is {y.dtype} {tuple(y.shape)} for x {tuple(x.shape)}; give one class (int64) for each row")
    if bool((y < 0).any()):
        raise ValueError(f"y holds the label {int(y.min())}; leave out rows without a label, there is nothing to score")
    if members < 2:
        raise ValueError(f"members is {members}; agreement and confidence need an ensemble of 2 or more")
    if not 2 <= folds <= len(y) // 2:
        raise ValueError(f"folds is {folds} for {len(y)} rows; give 2 or more, of two rows or more each")
    if batch_size < 2:
        raise ValueError(f"batch_size is {batch_size}; give 2 or more")
    unknown = [name for name in use if name not in NAMES]
    if unknown or not use:
        raise ValueError(f"use is {tuple(use)}; name some of {', '.join(NAMES)}")
    if not noises or any(b >= a for a, b in itertools.pairwise(noises)) or not min(noises) > 0:
        raise ValueError(f"noises is {tuple(noises)}; give falling values above 0, strongest privacy first")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; give 1 or more")


def _check_ranges(
    lr: float, retrain_share: float, retrain_lr: float, private_share: float, private_lr: float, clip: float
) -> None:
    positive = {
        "lr": lr,
        "retrain_share": retrain_share,
        "retrain_lr": retrain_lr,
        "private_lr": private_lr,
        "clip": clip,
    }
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")
    if not 0 < private_share <= 1:
        raise ValueError(f"private_share is {private_share}; it must lie in (0, 1]")
