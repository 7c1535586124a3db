"""Claim of data filtering networks: a filter of few clean pairs makes a dirty pool useful, and is not judged by its accuracy.

Pairs are digits with captions of three to five words, one of which names the digit (two words each); 60 % of the pool's
captions belong to another digit. Towers, rate and pairs seen were set on seeds 1 and 2 without a search. Three sizes of the
filters' data were looked at there: with fewer clean pairs both ranks are noise, with as many clean pairs as here they tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.open import open_dataset
from probatum.techniques.select.data_filtering_network.contrastive import TwoTowers, fit_pairs
from probatum.techniques.select.data_filtering_network.data_filtering_network import check_apart, keep_top
from probatum.train.rng import generator_for, seeded

MISMATCHED = 0.6
SHARE = 0.4
SEEN, FILTER_SEEN = 40_000, 15_000
FILTERS = ((100, 0.0), (130, 0.1), (180, 0.25), (230, 0.4), (290, 0.55), (350, 0.7))
"""Pairs that a filter is trained on, and the share of them whose captions are wrong: the more, the dirtier."""
FILLERS, LENGTH = 12, 5

NOTE = (
    "A filter of 100 clean pairs lifts the clean share of what is kept from 0.40 to 0.59, which is worth 2.5 points, not 5, since "
    "432 pairs are left; a random subset of equal size costs 10. Both ranks tie: here a filter of cleaner pairs is the more "
    "accurate one too. On 7,800 pairs of MNIST (seeds 1 and 2) filtering cost 16 points: evenly spread wrong captions hurt less "
    "than fewer pairs do."
)


class _Text(nn.Module):
    """Mean of word vectors through one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(1 + 20 + FILLERS, 32, mode="mean", padding_idx=0)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, t: Tensor) -> Tensor:
        return self.body(self.words(t))


def _towers(seed: int, name: str) -> TwoTowers:
    with seeded(seed, "towers", name):
        image = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
        return TwoTowers(image, _Text())


def _captions(y: Tensor, generator: torch.Generator) -> Tensor:
    """(n, LENGTH) word ids: one of the digit's two words somewhere among fillers, padding on the right."""
    n = len(y)
    words = 21 + torch.randint(FILLERS, (n, LENGTH), generator=generator)
    length = torch.randint(3, LENGTH + 1, (n,), generator=generator)
    place = (torch.rand(n, generator=generator) * length).long()
    words[torch.arange(n), place] = 1 + 2 * y + torch.randint(2, (n,), generator=generator)
    return words * (torch.arange(LENGTH) < length[:, None])


def _mismatch(y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    wrong = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    out = y.clone()
    out[wrong] = (y[wrong] + torch.randint(1, 10, wrong.shape, generator=generator)) % 10
    return out


def _row(seed: int) -> dict[str, float]:
    data = open_dataset("digits").prepare(seed)
    own = generator_for(seed, "pairs")
    pool, clean, test = data.train, data.valid, data.test
    check_apart(torch.cat([pool.x, clean.x]), test.x)
    said = _mismatch(pool.y, MISMATCHED, own)
    captions = _captions(said, own)
    right = said == pool.y
    prompts = torch.tensor([[1 + 2 * c, 2 + 2 * c, 0, 0, 0] for c in range(10)])

    def accuracy(model: TwoTowers) -> float:
        return float((model.classify(test.x, prompts).argmax(dim=1) == test.y).float().mean())

    def induced(rows: Tensor, name: str) -> float:
        order = generator_for(seed, "induced")
        return accuracy(fit_pairs(_towers(seed, "induced"), pool.x[rows], captions[rows], SEEN, 64, 2e-3, order))

    everything = torch.arange(len(pool))
    row = {"seed": float(seed), "unfiltered": induced(everything, "all")}
    count = len(keep_top(torch.zeros(len(pool)), SHARE).rows)
    row["random_subset"] = induced(torch.randperm(len(pool), generator=own)[:count].sort().values, "random")
    results = []
    for k, (size, poison) in enumerate(FILTERS):
        part = _mismatch(clean.y[:size], poison, own)
        order = generator_for(seed, "filter", str(k))
        net = fit_pairs(_towers(seed, "filter"), clean.x[:size], _captions(part, own), FILTER_SEEN, 64, 2e-3, order)
        kept = keep_top(net.scores(pool.x, captions), SHARE, pool.y)
        results.append((1 - poison, accuracy(net), induced(kept.rows, str(k)), float(right[kept.rows].float().mean())))
        row |= {
            f"filter_{k}_accuracy": results[-1][1],
            f"induced_{k}": results[-1][2],
            f"kept_clean_{k}": results[-1][3],
        }
        if k == 0:
            row["smallest_class_share"] = float(kept.classes.min())
    fraction, own_accuracy, out, _ = zip(*results, strict=True)
    row["rank_with_clean_fraction"] = float(spearmanr(fraction, out).statistic)
    row["rank_with_filter_accuracy"] = float(spearmanr(own_accuracy, out).statistic)
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    rows = [_row(seed) for seed in seeds]
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    gain = measured["gain"] = measured["induced_0"] - measured["unfiltered"]
    random = measured["random_gain"] = measured["random_subset"] - measured["unfiltered"]
    ranks = measured["rank_with_clean_fraction"] > measured["rank_with_filter_accuracy"]
    return Evidence(gain >= 0.05 and random < 0.05 and ranks, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="a-filter-is-judged-by-what-it-induces",
        says="A filter trained on few clean pairs makes a dirty pool useful; how clean its pairs were tells more than its accuracy.",
        threshold="filtered at least 5 points above unfiltered, zero-shot at equal pairs seen, a random subset not; over six "
        "filters, induced accuracy ranks closer with the clean fraction than with the filter's accuracy",
        data="digits with captions, 60 % of them of another digit",
        run=_run,
        minutes=2.0,
    ),
)
