"""Claim of FOCUS (arXiv:2110.03804): objects in settings uncommon for them are recognised much worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.open import open_dataset
from probatum.spec import Data, Part
from probatum.techniques.probe.focus_protocol.focus_protocol import focus_protocol
from probatum.train.rng import generator_for, seeded

SIDE = 24
VALUES = {
    "light": ("day", "dusk", "night"),
    "place": ("grass", "indoors", "rock", "water"),
    "weather": ("clear", "fog", "rain"),
}
CORRELATION = 0.95
TRAIN_COPIES, TEST_COPIES = 4, 20
STEPS, RATE = 800, 2e-3
NOTE = (
    "The offline twin of the card: digits of 16 x 16 on canvases of 24 x 24 with a texture (place), a brightness (light) and haze or "
    "streaks (weather); every class has a usual value of each, which training rows show with the stated probability and test rows "
    "with an even one. The table of uncommon pairs is declared, the same for both trainings. Steps and rate were set on seed 1."
)


def usual() -> dict[str, Tensor]:
    """(10,) the usual value of each class."""
    classes = torch.arange(10)
    return {"light": classes % 3, "place": classes % 4, "weather": (classes // 2) % 3}


def declared() -> dict[str, Tensor]:
    """(10, values) bool: all but the usual value are uncommon."""
    own = usual()
    return {name: ~F.one_hot(own[name], len(values)).bool() for name, values in VALUES.items()}


def attributes_of(y: Tensor, c: float | None, generator: torch.Generator) -> dict[str, Tensor]:
    """Codes of each row: the usual value with probability c and any other evenly; c None = all values evenly."""
    found = {}
    for name, own in usual().items():
        count = len(VALUES[name])
        other = (own[y] + torch.randint(1, count, y.shape, generator=generator)) % count
        if c is None:
            found[name] = torch.randint(count, y.shape, generator=generator)
        else:
            found[name] = torch.where(torch.rand(y.shape, generator=generator) < c, own[y], other)
    return found


def render(digits: Tensor, codes: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """(n, 1, 8, 8) digits on canvases (n, 1, 24, 24) with their attributes, in [0, 1]."""
    n = len(digits)
    down, across = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
    textures = torch.stack(
        [
            (across % 3 == 0).float(),  # grass: upright blades
            torch.zeros(SIDE, SIDE),  # indoors: a plain wall
            ((down // 4 + across // 4) % 2),  # rock: blocks
            (torch.sin(down * 1.6) > 0).float(),  # water: waves
        ]
    )
    canvas = 0.35 * textures[codes["place"]]
    sprite = F.interpolate(digits, scale_factor=2, mode="nearest")[:, 0]
    top, left = (torch.randint(0, SIDE - 15, (n,), generator=generator) for _ in range(2))
    for i in range(n):
        window = canvas[i, top[i] : top[i] + 16, left[i] : left[i] + 16]
        torch.maximum(window, sprite[i], out=window)
    streaks = (((down + 2 * across) % 7) == 0).float()
    foggy = (0.5 * canvas + 0.4)[codes["weather"] == 1]
    rainy = torch.maximum(canvas, 0.6 * streaks)[codes["weather"] == 2]
    canvas[codes["weather"] == 1], canvas[codes["weather"] == 2] = foggy, rainy
    canvas = canvas * torch.tensor([1.0, 0.7, 0.4])[codes["light"]][:, None, None]
    return (canvas + 0.03 * torch.randn(canvas.shape, generator=generator)).clamp(0, 1)[:, None]


def twin(seed: int, c: float | None) -> tuple[Data, dict[str, dict[str, list[str]]]]:
    """Training rows whose attributes go with the class by c, test rows with even ones; and the attributes in words."""
    plain, generator = open_dataset("digits").prepare(seed), generator_for(seed, "twin")
    parts, told = [], {}
    for name, copies, share in (("train", TRAIN_COPIES, c), ("valid", 1, c), ("test", TEST_COPIES, None)):
        part = getattr(plain, name)
        x, y = part.x.repeat(copies, 1, 1, 1), part.y.repeat(copies)
        codes = attributes_of(y, share, generator)
        parts.append(Part(render(x, codes, generator), y, torch.arange(len(y))))
        told[name] = {key: [VALUES[key][code] for code in value.tolist()] for key, value in codes.items()}
    return Data(replace(plain.spec, shape=(1, SIDE, SIDE)), *parts), told


def network() -> nn.Module:
    """Three convolutions and a linear layer."""
    layers: list[nn.Module] = []
    for inputs, width in ((1, 16), (16, 32), (32, 48)):
        layers += [
            nn.Conv2d(inputs, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 9, 10))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        row = {"seed": float(seed)}
        for name, c in (("tied", CORRELATION), ("even", None)):
            data, told = twin(seed, c)
            with seeded(seed, "initial weights"):
                found = focus_protocol(
                    network,
                    data,
                    generator_for(seed, "focus"),
                    attributes=told,
                    uncommon=declared(),
                    steps=STEPS,
                    lr=RATE,
                )
            for k in range(4):
                row[f"{name}_accuracy_{k}"] = found[f"accuracy with {k} uncommon"]
            row[f"{name}_drop"] = row[f"{name}_accuracy_0"] - row[f"{name}_accuracy_2"]
            row[f"{name}_slope"] = found["slope"]
            row |= {f"{name}_gap_{key}": found[f"gap {key}"] for key in VALUES}
            row |= {f"{name}_gap_{key}_ablated": found[f"gap {key} without its features"] for key in VALUES}
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    holds = measured["tied_drop"] >= 0.15 and measured["even_drop"] <= 0.03
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="uncommon-settings-cost-accuracy",
        says="A network trained where settings go with classes does much worse the more of an object's attributes are uncommon "
        "for it; one trained on even settings does not.",
        threshold="mean over 5 seeds of Acc_0 - Acc_2 at least 15 points where training attributes go with the class by 0.95, at "
        "most 3 points where they are even",
        data="digits on canvases with rendered attributes",
        run=_run,
        minutes=3.0,
    ),
)
