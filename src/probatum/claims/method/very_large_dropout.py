"""Claims of very large dropout (arXiv:2403.00946): fine-tuned with it, a network keeps features that a shortcut makes needless."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, first_rows, fit, interval, mean
from probatum.data.library import library, subset
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Data, Part, Spec
from probatum.techniques.method.very_large_dropout import energy_rank, soup
from probatum.train.adapt import Adapted, state_of
from probatum.train.loop import outputs
from probatum.train.pretrain import SEED, pretrain
from probatum.train.rng import generator_for

SOURCE = Recipe(training=Training(steps=1500, batch_size=64, lr=4e-3))
ROWS, TRAINED, TUNED = 7000, 200, 400
CORRECT = 0.95
MEMBERS = 5
LR, SMALL = 4e-3, 1e-3
"""The better of (0.001, 0.004) for both by validation accuracy, whose rows have the shortcut too, on seeds 1 and 2; and a
smaller one, at which dropout of 90 % has not finished learning."""


NOTE = (
    "Rates were chosen on validation rows that have the shortcut. On development seed 1 dropout helps only while it has not finished "
    "learning (rate 0.001: after 300 steps 0.45 against 0.36 on shifted rows, 0.91 against 0.96 on others; after 1,200 steps 0.27 against "
    "0.32). Pretrained on ten digits the representation has 90 % of its energy in about 6 directions; with 20 classes (digit and "
    "inversion, the target being digits above 4 and inversion the shortcut) it was no richer by that measure, and dropout leant on the "
    "shortcut more (0.51 to 0.56 against 0.53 to 0.59, seeds 1 and 2). The paper's networks are larger by orders of magnitude; that "
    "this is the cause is untested."
)


class WideNet(nn.Module):
    """Three convolutions with batch norm and a pooled representation of 256 units."""

    def __init__(self, spec: Spec, widths: tuple[int, ...] = (16, 48, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = spec.shape[0]
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(inputs, width, 3, 1 if i == 0 else 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inputs, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def styled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned, scaled, moved, half of them inverted, with another contrast and brightness and a little noise."""
    n = len(x)
    angle = (torch.rand(n, generator=generator) - 0.5) * math.pi / 3
    size = 0.8 + 0.4 * torch.rand(n, generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() / size
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() / size, angle.sin() / size
    theta[:, :, 2] = 0.2 * (torch.rand(n, 2, generator=generator) - 0.5)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    inverted = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    x = torch.where(inverted, 1 - x, x)
    contrast = 0.4 + 0.6 * torch.rand(n, 1, 1, 1, generator=generator)
    brightness = (1 - contrast) * torch.rand(n, 1, 1, 1, generator=generator)
    return (contrast * x + brightness + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def patched(part: Part, share: float, generator: torch.Generator) -> Part:
    """Two bright marks at the top and the bottom, in a column that is the class's own in this share of images, else any."""
    own = torch.rand(len(part), generator=generator) < share
    column = torch.where(own, part.y, torch.randint(10, (len(part),), generator=generator)) + 2
    x, rows = part.x.clone(), torch.arange(len(part))
    for line in (0, 1, 12, 13):
        x[rows, 0, line, column] = 1.0
    return replace(part, x=x)


def _halved(data: Data) -> Data:
    """Images averaged over 2 x 2 pixels."""

    def half(part: Part) -> Part:
        return replace(part, x=F.avg_pool2d(part.x, 2))

    spec = replace(data.spec, shape=(1, data.spec.shape[1] // 2, data.spec.shape[2] // 2))
    return replace(data, spec=spec, train=half(data.train), valid=half(data.valid), test=half(data.test))


@cache
def start() -> Adapted:
    """The network pretrained on 9,600 digits in many styles, the same for all seeds."""
    data = _halved(subset(library("mnist"), 12_000, 0).prepare(0, fractions=(0.8, 0.1, 0.1)))
    generator = generator_for(0, "styles")
    train, valid, test = (replace(p, x=styled(p.x, generator)) for p in (data.train, data.valid, data.test))
    return Adapted(
        pretrain(alone(SOURCE, replace(data, train=train, valid=valid, test=test), SEED, factory=WideNet))[0], WideNet
    )


def target(seed: int) -> tuple[Data, Part]:
    """Plain digits with the shortcut in all parts, and the test rows with marks that say nothing."""
    data = _halved(subset(library("mnist"), ROWS, seed + 2000).prepare(seed))
    data = replace(data, train=first_rows(data.train, TRAINED), valid=first_rows(data.valid, TUNED))
    generator = generator_for(seed, "marks")
    train, valid, test = (patched(part, CORRECT, generator) for part in (data.train, data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test), patched(data.test, 0.0, generator)


def tuned(arm: str | None, data: Data, seed: int, lr: float) -> nn.Module:
    """Fine-tuned for 300 updates, the last weights."""
    return fit(
        arm, data, seed, training=Training(steps=300, batch_size=32, lr=lr, select="last"), factory=start()
    ).model


def _mixed(models: Sequence[nn.Module], part: Part) -> float:
    """Accuracy of the mean of several networks' probabilities."""
    found = sum(outputs(model, part.x).softmax(dim=1) for model in models)
    return float((torch.as_tensor(found).argmax(dim=1) == part.y).float().mean())


def _run(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    for seed in seeds:
        data, other = target(seed)
        plain = [tuned(None, data, seed + 1000 * k, LR) for k in range(MEMBERS)]
        dropped = tuned("very-large-dropout", data, seed, LR)
        slow = {
            name: tuned(arm, data, seed, SMALL) for name, arm in (("plain", None), ("dropout", "very-large-dropout"))
        }
        averaged = WideNet(data.spec)
        averaged.load_state_dict(soup([state_of(model) for model in plain]))
        row: dict[str, float | str] = {"seed": float(seed)}
        for name, part in (("seen", data.test), ("shifted", other)):
            row[f"plain_{name}"] = accuracy(plain[0], part)
            row[f"dropout_{name}"] = accuracy(dropped, part)
            row[f"ensemble_{name}"] = _mixed(plain, part)
            row[f"soup_{name}"] = accuracy(averaged, part)
            row |= {f"{which}_small_rate_{name}": accuracy(model, part) for which, model in slow.items()}
        for name, model in (("plain", plain[0]), ("dropout", dropped)):
            with torch.no_grad():
                row[f"{name}_rank"] = float(energy_rank(model.eval().body(other.x[:500])))  # type: ignore[operator]
        rows.append(row)
    measured = {name: mean([float(row[name]) for row in rows]) for name in rows[0] if name != "seed"}
    gain, cost, rival = (
        interval([float(row[a]) - float(row[b]) for row in rows])
        for a, b in (
            ("dropout_shifted", "plain_shifted"),
            ("plain_seen", "dropout_seen"),
            ("dropout_shifted", "ensemble_shifted"),
        )
    )
    measured |= gain.told("gain_shifted") | cost.told("loss_seen") | rival.told("gain_over_ensemble_shifted")
    holds = gain.low >= 0.02 and cost.high <= 0.02 and rival.low >= 0.0
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="redundant-features",
        says="Fine-tuning with 90 % dropout of the representation keeps accuracy when a shortcut of the fine-tuning rows is gone.",
        threshold="90 % intervals: marks at random, at least 2 points above plain fine-tuning and not below an ensemble of 5; with marks as "
        "in training at most 2 points lost",
        data="mnist in many styles (9,600 rows) -> 200 plain digits whose class a mark tells in 95 % of them",
        run=_run,
        minutes=4.0,
        needs_library=True,
        seeds=tuple(range(201, 206)),
    ),
)
