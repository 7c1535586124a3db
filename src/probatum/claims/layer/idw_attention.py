"""Claims of inverse distance weighting attention (arXiv:2310.18805): prototypes and patches at no loss of accuracy.

Rates were chosen on validation rows of seeds 1 to 3, each out of 0.003, 0.01 and 0.03, for every dataset and network, with
1500 steps; on mnist the prototypes still gained, so that all networks get 5000 steps there (seeds 1 and 2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.library import library, subset
from probatum.data.open import open_dataset
from probatum.techniques.layer.idw_attention import InverseDistanceHead, patch_all
from probatum.train.rng import derive, generator_for, seeded

KEYS = 40
STEPS = {"moons": 1500, "digits": 1500, "mnist": 5000}
BATCH = 64
SETS = tuple(STEPS)
RATES = {
    ("moons", "mlp"): 0.01,
    ("moons", "idw"): 0.03,
    ("moons", "dot"): 0.01,
    ("digits", "mlp"): 0.01,
    ("digits", "idw"): 0.01,
    ("digits", "dot"): 0.03,
    ("mnist", "mlp"): 0.01,
    ("mnist", "idw"): 0.03,
    ("mnist", "dot"): 0.03,
}
PATCHED = 10

Rows = tuple[Tensor, Tensor]


def rows_of(name: str, seed: int) -> tuple[Rows, Rows, Rows, int]:
    """Training, validation and test rows (n, features) with their classes, and the number of classes."""
    if name == "moons":
        x, y = make_moons(1500, noise=0.2, random_state=derive(seed, "moons") % 2**31)
        x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
        x = (x - x[:500].mean(dim=0)) / x[:500].std(dim=0)
        return (x[:500], y[:500]), (x[500:1000], y[500:1000]), (x[1000:], y[1000:]), 2
    data = (open_dataset("digits") if name == "digits" else subset(library("mnist"), 5000, seed)).prepare(seed)
    train, valid, test = ((part.x.flatten(1), part.y) for part in (data.train, data.valid, data.test))
    return train, valid, test, data.spec.outputs


def network(kind: str, features: int, classes: int, seed: int) -> nn.Module:
    """The ReLU network with as many hidden units as there are prototypes, or prototypes with one of the scores."""
    with seeded(seed, "initial weights"):
        if kind == "mlp":
            return nn.Sequential(nn.Linear(features, KEYS), nn.ReLU(), nn.Linear(KEYS, classes))
    score = "neglog-distance" if kind == "idw" else "dot"
    return InverseDistanceHead(features, classes, KEYS, score, generator=generator_for(seed, "initial weights"))


def fit(kind: str, train: Rows, classes: int, seed: int, rate: float, steps: int) -> nn.Module:
    """Adam at a constant rate."""
    x, y = train
    net, order = network(kind, x.shape[1], classes, seed), generator_for(seed, "order")
    if isinstance(net, InverseDistanceHead):
        net.place(x, warn=False)  # border pixels are constant
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        index = torch.randint(len(x), (BATCH,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(net(x[index]), y[index]).backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, rows: Rows) -> float:
    """Share of rows that are right."""
    return float((net(rows[0]).argmax(dim=1) == rows[1]).float().mean())


@torch.no_grad()
def display_ratio(net: InverseDistanceHead, train: Tensor, test: Tensor) -> float:
    """Median distance of a prototype to its nearest training row over that of a test row: 1 = looks like data."""
    near: Callable[[Tensor], float] = lambda rows: float(torch.cdist(rows, train).amin(dim=1).median())  # noqa: E731
    return near(net.keys) / near(test)


def _run(seeds: Sequence[int]) -> Evidence:
    rows, holds = [], True
    for name in SETS:
        for seed in seeds:
            train, _, test, classes = rows_of(name, seed)
            nets = {k: fit(k, train, classes, seed, RATES[name, k], STEPS[name]) for k in ("mlp", "idw", "dot")}
            row: dict[str, float | str] = {"data": name, "seed": float(seed)}
            row |= {f"{kind}_accuracy": accuracy(net, test) for kind, net in nets.items()}
            row |= {f"{kind}_display_ratio": display_ratio(nets[kind], train[0], test[0]) for kind in ("idw", "dot")}
            wrong = (nets["idw"](test[0]).argmax(dim=1) != test[1]).nonzero().squeeze(1)[:PATCHED]
            kept = torch.ones(len(test[0]), dtype=torch.bool)
            kept[wrong] = False
            right, changed = patch_all(copy.deepcopy(nets["idw"]), test[0][wrong], test[1][wrong], test[0][kept])
            row |= {"patched": float(len(wrong)), "patched_right": float(right)}
            row["others_changed"] = changed / int(kept.sum())
            rows.append(row)
    measured: dict[str, float] = {}
    for name in SETS:
        own = [row for row in rows if row["data"] == name]
        for key in ("mlp_accuracy", "idw_accuracy", "dot_accuracy", "idw_display_ratio", "dot_display_ratio"):
            measured[f"{name}_{key}"] = mean([float(row[key]) for row in own])
        measured[f"{name}_others_changed"] = mean([float(row["others_changed"]) for row in own])
        holds &= measured[f"{name}_idw_accuracy"] >= measured[f"{name}_mlp_accuracy"] - 0.01
        holds &= measured[f"{name}_idw_display_ratio"] <= min(1.4, measured[f"{name}_dot_display_ratio"])
        holds &= measured[f"{name}_others_changed"] <= 0.01
        holds &= all(row["patched_right"] == row["patched"] for row in own)
    return Evidence(holds, measured, tuple(rows), NOTE)


NOTE = (
    "On moons and digits everything but one thing holds: patching ten wrong points of the noisy moons, which lie among right "
    "ones of the other class, changes 2 % of the others. On mnist 40 prototypes are too few: 2.2 points below the ReLU network "
    "(training accuracy 0.95 against 1.0 on development seeds, still rising after 5,000 steps), and keys at 1.44 times the test "
    "rows' distance at the rate that is best for accuracy (1.2 at a third of it)."
)

CLAIMS = (
    Claim(
        id="prototypes-at-no-loss",
        says="Inverse distance attention classifies as well as a ReLU network of equal width, by keys that look like data.",
        threshold=(
            "on each set: accuracy within 1 point of the ReLU network's; median distance of keys to the nearest training row "
            "at most 1.4 times the test rows', and below that of dot attention's keys; up to 10 wrong test rows patched: "
            "all right, at most 1 % of the other predictions changed"
        ),
        data="moons (500 training rows, noise 0.2), digits, mnist (5,000 rows)",
        run=_run,
        minutes=2.0,
        needs_library=True,
    ),
)
