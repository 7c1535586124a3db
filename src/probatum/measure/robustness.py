"""How well predictions hold when the inputs are corrupted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probatum.measure.base import Measure
from probatum.measure.row_values import root_mean_square

if TYPE_CHECKING:
    from probatum.spec import Spec

    Corruption = Callable[[Tensor, Spec, int, torch.Generator], Tensor]

MEASURES = (
    Measure("corrupted-accuracy", "robustness", True, 0.01, tasks=("classes",), about="accuracy on corrupted inputs"),
    Measure(
        "corrupted-rmse",
        "robustness",
        False,
        math.log(1.05),
        kind="ratio",
        tasks=("reals",),
        about="root mean squared error on corrupted inputs, standardised targets",
    ),
)


def robustness(
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    spec: Spec,
    corruptions: Mapping[str, Corruption],
    generator: torch.Generator,
    severities: Sequence[int] = (1, 3, 5),
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the mean accuracy (classes) or RMSE (reals) over corruptions and severities, and that of each corruption; and of
    the mean the values (n,) of the rows (`probatum.measure.row_values`).

    The names are ``corrupted-accuracy`` and ``corrupted-accuracy/<corruption>``, or ``corrupted-rmse`` likewise. One
    number is drawn from the generator; every corruption and severity derives its own stream from it and its name, so
    arms that start from the same state meet the same corrupted rows, whichever corruptions are asked for besides.

    Args:
        predict: x -> (n, outputs): probabilities or logits, or standardised values.
        x: inputs, as in `probatum.spec`; not changed.
        y: (n,) class codes or (n, outputs) standardised values.
        spec: of the data.
        corruptions: name -> f(x, spec, severity, generator) -> x.
        generator: source of randomness.
        severities: passed to each corruption.

    Raises:
        ValueError: without corruptions, severities or rows, or for predictions that are not finite or do not fit y.
    """
    if not corruptions or not severities or not len(x):
        raise ValueError(
            f"{len(corruptions)} corruptions, {len(severities)} severities, {len(x)} rows; give one or more"
        )
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    name = "corrupted-accuracy" if spec.task == "classes" else "corrupted-rmse"
    found: dict[str, float] = {}
    rows = np.zeros(len(x))
    for corruption, corrupt in sorted(corruptions.items()):
        scores = []
        for severity in severities:
            stream = _stream(seed, corruption, severity, generator.device)
            output = predict(corrupt(x.clone(), spec, severity, stream))
            scores.append(_score(output, y, corruption))
            rows += _rows(output, y)
        found[f"{name}/{corruption}"] = math.fsum(scores) / len(scores)
    return {name: math.fsum(found.values()) / len(found)} | found, {name: rows / (len(corruptions) * len(severities))}


def _stream(seed: int, corruption: str, severity: int, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{corruption}/{severity}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _score(output: Tensor, y: Tensor, corruption: str) -> float:
    if len(output) != len(y) or output.ndim != 2 or (y.ndim == 2 and output.shape != y.shape):
        raise ValueError(f"{corruption}: predictions {tuple(output.shape)} do not fit y {tuple(y.shape)}")
    if not output.isfinite().all():
        raise ValueError(f"{corruption}: predictions are not finite on corrupted inputs")
    if y.ndim == 1:
        return float((output.argmax(1) == y).double().mean())
    return float((output.double() - y.double()).square().mean(0).sqrt().mean())


def _rows(output: Tensor, y: Tensor) -> np.ndarray:
    if y.ndim == 1:
        return (output.argmax(1) == y).double().cpu().numpy()
    return root_mean_square((output.detach().double() - y.double()).cpu().numpy())
