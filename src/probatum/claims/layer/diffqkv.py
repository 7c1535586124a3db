"""Claims of DiffQKV attention (arXiv:2501.13629): keys bear more compression than values, and larger queries pay for it.

All arms have the learning rate of the bench's language model, 0.008; with 0.003 full heads did worse on seed 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import fit, mean
from probatum.claims.windows import four_layers, loss_of, windows
from probatum.recipe import Training
from probatum.techniques.layer.diffqkv import cache_bytes

STEPS, LENGTH = 300, 64
ARMS = {
    "full": None,
    "half_keys": "diffqkv(key_cut=2, value_cut=1, query_growth=1.0)",
    "half_values": "diffqkv(key_cut=1, value_cut=2, query_growth=1.0)",
    "grouped": "diffqkv(key_cut=2, value_cut=2, query_growth=1.0)",
    "diffqkv": "diffqkv",
}
TRAINING = Training(steps=STEPS, batch_size=16, lr=8e-3, weight_decay=0.1, clip=1.0, select="last")
TESTED = 512
"""Windows of held-out text, so that differences of a hundredth can be told."""

NOTE = (
    "At this size half of either kind of heads is missed by less than 0.003 on development seeds, the sign changing from seed to "
    "seed. With one head of eight left, keys are missed more than values there (losses 2.194 and 2.195 against 2.168 and "
    "2.186), the reverse of what the paper finds in networks that are larger by orders of magnitude."
)


def _run(seeds: Sequence[int]) -> Evidence:
    rows, sizes = [], {}
    for seed in seeds:
        data = windows(seed, LENGTH, 16 * STEPS, TESTED)
        row: dict[str, float] = {"seed": float(seed)}
        for name, arm in ARMS.items():
            model = fit(arm, data, seed, training=TRAINING, factory=four_layers).model
            row[name] = loss_of(model, data.test)
            sizes[name] = cache_bytes(model, LENGTH)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in ARMS}
    measured["share_of_seeds_keys_cost_less"] = mean([float(row["half_keys"] < row["half_values"]) for row in rows])
    measured["values_over_keys"] = measured["half_values"] - measured["half_keys"]
    measured["diffqkv_over_grouped"] = measured["diffqkv"] - measured["grouped"]
    measured["cache_saved"] = 1 - sizes["diffqkv"] / sizes["grouped"]
    keys = measured["share_of_seeds_keys_cost_less"] >= 0.8
    holds = keys and measured["diffqkv_over_grouped"] <= 0.01 and measured["cache_saved"] >= 0.25
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="keys-bear-more-compression",
        says="Fewer key heads cost less than fewer value heads, and with larger queries keys can be cut below grouped ones.",
        threshold="loss with half the key heads below that with half the value heads on 4 of 5 seeds; a quarter of the key "
        "heads, half of the value heads and 1.5 times the queries at most 0.01 above half of both, with 25 % less cache",
        data="Tiny Shakespeare, characters; four layers of width 64 with 8 heads, 300 steps",
        run=_run,
        minutes=4.0,
        needs_library=True,
    ),
)
