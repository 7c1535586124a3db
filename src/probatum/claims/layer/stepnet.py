"""Claims of StepNet (arXiv:2308.09939): attention that is told of state and increment does no worse than what sees less.

Every arm has its own best learning rate of 0.002, 0.004 and 0.008 by validation accuracy on seeds 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, first_rows, fit, interval, mean
from probatum.data.library import library
from probatum.numerics.networks.watch import hooked, look
from probatum.recipe import Training
from probatum.spec import Data, Part, Spec
from probatum.techniques.layer.stepnet import Stepped, index_of, step_sizes
from probatum.techniques.model.images.resnet import build
from probatum.train.rng import generator_for

EPOCHS = 4
TRAINED, TUNED, LOOKED = 6_000, 2_000, 512
ARMS = {
    "none": (None, 4e-3),
    "se": ("stepnet(kind='se', reduction=1)", 4e-3),
    "step": ("stepnet(reduction=2)", 4e-3),
}
"""Arm and learning rate. Hidden units chosen so that both attentions have about as many parameters (4 C^2 / 2 and 2 C^2)."""
MARGIN = 0.003
NOTE = ""


def small(data: Data) -> Data:
    """Images at half resolution."""

    def half(part: Part) -> Part:
        return replace(part, x=F.avg_pool2d(part.x, 2))

    spec = replace(data.spec, shape=(1, 14, 14))
    return replace(data, spec=spec, train=half(data.train), valid=half(data.valid), test=half(data.test))


def network(spec: Spec) -> nn.Module:
    """ResNet-14 of width 16."""
    return build(spec, depth=14, width=16)


def correlations(net: nn.Module, data: Data, seed: int) -> dict[str, float]:
    """Rank correlation over samples of the mean step size with |f| / |x|, mean over the blocks that keep the shape.

    f is the branch before the step size is multiplied to it, so that neither is a part of the other; `shuffled` pairs the step
    sizes with other samples.
    """
    x, grown = data.test.x[:LOOKED], {}
    blocks = {path: block for path, block in net.named_modules() if isinstance(block, Stepped)}
    inputs = {}

    def start(path: str, given: tuple[Tensor, ...]) -> None:
        inputs[path] = given[0].clone()

    def branch(path: str, _given: object, f: Tensor) -> None:
        if f.shape == inputs[path].shape:
            grown[path] = index_of(inputs[path], f)

    with hooked(net, {path: block.size.norm for path, block in blocks.items()}, branch):
        look(net, x, blocks, before=start)
    steps, order = step_sizes(net), torch.randperm(len(x), generator=generator_for(seed, "shuffled"))
    pairs = [(steps[path].mean(dim=1), index) for path, index in grown.items()]
    own = [float(spearmanr(step, index).statistic) for step, index in pairs]
    other = [float(spearmanr(step[order], index).statistic) for step, index in pairs]
    return {"step_and_stiffness": mean(own), "step_and_stiffness_shuffled": mean(other)}


def target(seed: int) -> Data:
    """6,000 training rows, and the official 10,000 to test on."""
    data = library("fashion_mnist").prepare(seed)
    return small(replace(data, train=first_rows(data.train, TRAINED), valid=first_rows(data.valid, TUNED)))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data = target(seed)
        row: dict[str, float] = {"seed": float(seed)}
        for name, (arm, rate) in ARMS.items():
            training = Training(epochs=EPOCHS, batch_size=64, lr=rate)
            net = fit(arm, data, seed, training=training, factory=network).model
            row[name] = accuracy(net, data.test)
            row[f"{name}_parameters"] = float(sum(p.numel() for p in net.parameters()))
            if name == "step":
                row |= correlations(net, data, seed)
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    none = interval([row["step"] - row["none"] for row in rows])
    se = interval([row["step"] - row["se"] for row in rows])
    followed = interval([row["step_and_stiffness"] for row in rows])
    measured |= none.told("step_less_none") | se.told("step_less_se") | followed.told("step_and_stiffness")
    holds = min(none.low, se.low) >= -MARGIN and min(none.mean, se.mean) >= 0
    controls = {
        "step_sizes_follow_stiffness": max(followed.low, -followed.high) > 0.3,
        "shuffled_ones_do_not": abs(measured["step_and_stiffness_shuffled"]) < 0.1,
    }
    return Evidence(holds, measured, tuple(rows), NOTE, controls)


CLAIMS = (
    Claim(
        id="adaptive-steps",
        says="Attention on the step size that sees state and increment is at least as good as attention on the increment alone.",
        threshold=(
            "mean accuracy of StepNet not below that of squeeze-and-excitation and of none, and over paired seeds at level 0.9 "
            "neither interval of the difference reaches below -0.3 points"
        ),
        data="fashion_mnist at half resolution, 6,000 rows, 10,000 to test on; ResNet-14 of width 16",
        run=_run,
        minutes=5.0,
        needs_library=True,
        seeds=tuple(range(201, 206)),
    ),
)
