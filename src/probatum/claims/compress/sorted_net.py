"""Claims of SortedNet (arXiv:2309.00255): one run gives eight nested networks, each about as good as one trained alone.

The learning rate of each way of training was chosen by validation accuracy on seeds 1 and 2 out of 0.001, 0.003 and 0.01 (for
separate networks at widths 0.25 and 1, the same for all), the number of draws out of 1 and 2. All get the same steps. A plain
network cut to a quarter of its width stands beside them: without nested training a prefix is worth little.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, interval, mean
from probatum.data.library import library, subset
from probatum.numerics.networks.prefix import Prefix, kept_units
from probatum.recipe import Training
from probatum.spec import Data, Spec

WIDTHS = tuple(i / 8 for i in range(1, 9))
HIDDEN = 128
EPOCHS = 20
SORTED_RATE, DRAWS = 1e-2, 1
ALONE_RATE = 1e-2


def network(spec: Spec, width: float) -> nn.Module:
    """Two hidden layers, of 128 units at full width."""
    inputs, hidden = spec.shape[0] * spec.shape[1] * spec.shape[2], kept_units(width, HIDDEN)
    layers = (
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, spec.outputs),
    )
    return nn.Sequential(nn.Flatten(), *layers)


def trained(data: Data, seed: int, rate: float, width: float = 1.0, arm: str | None = None) -> nn.Module:
    """A network of some width, alone or as the largest of eight; the last weights count for all."""
    training = Training(epochs=EPOCHS, batch_size=64, lr=rate, select="last")
    return fit(arm, data, seed, training=training, factory=partial(network, width=width)).model


def nested(data: Data, seed: int, rate: float, draws: int) -> nn.Module:
    """The largest of the eight; the others are its prefixes."""
    return trained(data, seed, rate, arm=f"sorted-net(widths={list(WIDTHS)}, draws={draws})")


def _run(seeds: Sequence[int]) -> Evidence:
    mnist, rows = library("mnist"), []
    for seed in seeds:
        data = subset(mnist, 10_000, seed).prepare(seed)
        whole, plain = nested(data, seed, SORTED_RATE, DRAWS), trained(data, seed, ALONE_RATE)
        ours, cut = (Prefix(net, data.train.x[:2], WIDTHS[0]) for net in (whole, plain))
        row: dict[str, float] = {"seed": float(seed)}
        for width in WIDTHS:
            row[f"sorted_{width:g}"] = accuracy(ours.extract(width), data.test)
            row[f"alone_{width:g}"] = accuracy(trained(data, seed, ALONE_RATE, width), data.test)
            row[f"truncated_{width:g}"] = accuracy(cut.extract(width), data.test)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    gaps = {w: interval([row[f"alone_{w:g}"] - row[f"sorted_{w:g}"] for row in rows]) for w in WIDTHS if w > 0.25}
    widest = max(gaps.values(), key=lambda gap: gap.high)
    collapse = interval([row["sorted_0.25"] - row["truncated_0.25"] for row in rows])
    measured |= widest.told("largest_gap_above_quarter") | collapse.told("truncated_below_sorted_at_quarter")
    controls = {"a plain network cut to a quarter is 20 points worse": collapse.low >= 0.2}
    return Evidence(widest.high <= 0.02, measured, tuple(rows), controls=controls)


CLAIMS = (
    Claim(
        id="many-in-one",
        says="One run gives networks of every width that are about as good as networks trained apart.",
        threshold=(
            "eight widths at the steps of one network: at each above a quarter the 90 % interval of what the network of that "
            "width trained alone has more ends at 2 points or below"
        ),
        data="mnist, 10,000 rows; two hidden layers of 128",
        run=_run,
        minutes=3.5,
        needs_library=True,
        seeds=tuple(range(201, 209)),
    ),
)
