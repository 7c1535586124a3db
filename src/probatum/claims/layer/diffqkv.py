"""Claims of DiffQKV attention (arXiv:2501.13629): keys bear more compression than values, and larger queries pay for it.

All arms have the learning rate of the bench's language model, 0.008; with 0.003 full heads did worse on seed 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import fit, interval, mean
from probatum.claims.windows import four_layers, loss_of, windows
from probatum.recipe import Training
from probatum.techniques.layer.diffqkv import cache_bytes

STEPS, LENGTH = 300, 64
CUT = {
    "full": None,
    "half_keys": "diffqkv(key_cut=2, value_cut=1, query_growth=1.0)",
    "half_values": "diffqkv(key_cut=1, value_cut=2, query_growth=1.0)",
}
SMALL = {
    "grouped": "diffqkv(key_cut=2, value_cut=2, query_growth=1.0)",
    "diffqkv": "diffqkv",
}
TRAINING = Training(steps=STEPS, batch_size=16, lr=8e-3, weight_decay=0.1, clip=1.0, select="last")
SEEDS = tuple(range(201, 206))
TESTED = 512
"""Windows of held-out text, so that differences of a hundredth can be told."""

NOTE = (
    "At this size half of either kind of heads is missed by less than 0.003 on development seeds, the sign changing from seed to "
    "seed. With one head of eight left, keys are missed more than values there (losses 2.194 and 2.195 against 2.168 and "
    "2.186), the reverse of what the paper finds in networks that are larger by orders of magnitude."
)


def _rows(seeds: Sequence[int], arms: Mapping[str, str | None]) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Held-out losses by seed and arm, and the bytes that each arm's cache takes."""
    rows, sizes = [], {}
    for seed in seeds:
        data = windows(seed, LENGTH, 16 * STEPS, TESTED)
        row: dict[str, float] = {"seed": float(seed)}
        for name, arm in arms.items():
            model = fit(arm, data, seed, training=TRAINING, factory=four_layers).model
            row[name] = loss_of(model, data.test)
            sizes[name] = cache_bytes(model, LENGTH)
        rows.append(row)
    return rows, sizes


def _keys(seeds: Sequence[int]) -> Evidence:
    rows, _ = _rows(seeds, CUT)
    measured = {name: mean([row[name] for row in rows]) for name in CUT}
    gap = interval([row["half_values"] - row["half_keys"] for row in rows])
    return Evidence(gap.low > 0, measured | gap.told("values_over_keys"), tuple(rows), NOTE)


def _cache(seeds: Sequence[int]) -> Evidence:
    rows, sizes = _rows(seeds, SMALL)
    measured = {name: mean([row[name] for row in rows]) for name in SMALL}
    gap = interval([row["diffqkv"] - row["grouped"] for row in rows])
    measured |= gap.told("diffqkv_over_grouped")
    measured["cache_saved"] = 1 - sizes["diffqkv"] / sizes["grouped"]
    return Evidence(gap.high <= 0.01 and measured["cache_saved"] >= 0.25, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="keys-bear-more-compression",
        says="Fewer key heads cost less than fewer value heads.",
        threshold="loss with half the value heads above that with half the key heads: the interval over paired seeds at level 0.9 "
        "above 0",
        data="Tiny Shakespeare, characters; four layers of width 64 with 8 heads, 300 steps",
        run=_keys,
        minutes=2.4,
        needs_library=True,
        seeds=SEEDS,
    ),
    Claim(
        id="larger-queries-for-a-smaller-cache",
        says="With larger queries, keys can be cut below grouped ones at no loss.",
        threshold="a quarter of the key heads, half of the value heads and 1.5 times the queries lose at most 0.01 against half of "
        "both, the interval over paired seeds at level 0.9 below that, with 25 % less cache",
        data="Tiny Shakespeare, characters; four layers of width 64 with 8 heads, 300 steps",
        run=_cache,
        minutes=1.6,
        needs_library=True,
        seeds=SEEDS,
    ),
)
