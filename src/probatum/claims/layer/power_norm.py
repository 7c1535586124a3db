"""Claims of PowerNorm (arXiv:2003.07845): in a transformer it beats batch norm and keeps up with layer norm.

The learning rate of each norm was chosen on seed 1 out of 0.001, 0.003 and 0.01 by held-out loss after 400 steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.language import MakeOptimizer, train_language
from probatum.claims.tools import interval, mean
from probatum.techniques.layer.power_norm import apply, group_scaled, heads_near

STEPS = 400
RATES = {"layer": 3e-3, "batch": 3e-3, "power": 3e-3, "scaled_batch": 3e-3}
NOTE = ""


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm whose rows are all positions of all sequences: (n, t, C) -> the same.

    It also follows how much the batch's second moments swing: `swing` is the running mean of |moment / average - 1|.
    With `groups` it stands behind the group scaling that PowerNorm has, too.
    """

    def __init__(self, channels: int, groups: int = 0) -> None:
        super().__init__(channels)
        self.average, self.swing, self.groups = torch.ones(channels), 0.0, groups

    def forward(self, input: Tensor) -> Tensor:
        input = group_scaled(input, self.groups) if self.groups else input
        if self.training:
            moment = input.detach().square().mean(dim=(0, 1))
            self.swing = 0.95 * self.swing + 0.05 * float((moment / self.average - 1).abs().mean())
            self.average = 0.9 * self.average + 0.1 * moment
        return super().forward(input.flatten(0, -2)).view(input.shape)


def normed(name: str, rate: float) -> MakeOptimizer:
    """Put a norm into the model and make its AdamW."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        if name == "power":
            apply(model, total_steps=STEPS)
        elif name != "layer":
            for path, module in list(model.named_modules()):
                if isinstance(module, nn.LayerNorm):
                    channels = module.normalized_shape[0]
                    groups = heads_near(model, path, channels) if name == "scaled_batch" else 0
                    model.set_submodule(path, TokenBatchNorm(channels, groups))
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)

    return make


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        row: dict[str, float] = {"seed": float(seed)}
        for name, rate in RATES.items():
            curve = train_language(normed(name, rate), seed, STEPS, every=STEPS)
            row[name] = curve.losses[-1]
            if name == "batch":
                swings = [m.swing for m in curve.model.modules() if isinstance(m, TokenBatchNorm)]
                row["swing_of_batch_moments"] = mean(swings)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    batch = interval([row["power"] - row["batch"] for row in rows])
    scaled = interval([row["power"] - row["scaled_batch"] for row in rows])
    layer = interval([row["power"] / row["layer"] for row in rows])
    measured |= batch.told("power_less_batch") | scaled.told("power_less_scaled_batch") | layer.told("power_over_layer")
    controls = {"below_batch_norm_behind_the_same_scaling": scaled.high < 0}
    return Evidence(batch.high < 0 and layer.high <= 1.02, measured, tuple(rows), NOTE, controls)


CLAIMS = (
    Claim(
        id="better-than-batch-norm",
        says="In a language transformer PowerNorm reaches a lower loss than batch norm and keeps up with layer norm.",
        threshold="over paired seeds at level 0.9: the interval of its held-out loss less batch norm's ends below 0, that of its loss "
        "over layer norm's at 1.02 or below",
        data="Tiny Shakespeare, characters; two layers of width 64, 400 steps",
        run=_run,
        minutes=4.0,
        needs_library=True,
        seeds=tuple(range(201, 207)),
    ),
)
