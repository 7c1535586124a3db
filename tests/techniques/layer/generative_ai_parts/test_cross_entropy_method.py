"""The cross-entropy method: it finds known optima, its law closes in, and bad spaces are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probatum.techniques.layer.generative_ai_parts.cross_entropy_method import cross_entropy_search

pytestmark = pytest.mark.fast

SPACE = {"rate": (1e-4, 1.0, "log"), "shift": (-2.0, 2.0), "kind": ["a", "b", "c"]}


def loss(settings: dict) -> float:
    return (
        (math.log10(settings["rate"]) + 2) ** 2
        + (settings["shift"] - 1.5) ** 2
        + {"a": 1.0, "b": 0.0, "c": 2.0}[settings["kind"]]
    )


def test_finds_a_known_optimum_and_closes_in() -> None:
    found = cross_entropy_search(SPACE, loss, np.random.default_rng(0), rounds=12, draws=40)
    assert found.best["kind"] == "b"
    assert found.best["shift"] == pytest.approx(1.5, abs=0.1)
    assert math.log10(found.best["rate"]) == pytest.approx(-2, abs=0.1)
    assert found.loss == pytest.approx(loss(found.best))
    assert len(found.tried) == 480
    assert max(found.spread.values()) < 0.1
    random = min(
        loss({"rate": 10 ** rng.uniform(-4, 0), "shift": rng.uniform(-2, 2), "kind": rng.choice(["a", "b", "c"])})
        for rng in [np.random.default_rng(1)]
        for _ in range(480)
    )
    assert found.loss < random


def test_one_refit_by_hand() -> None:
    values = iter([0.0, 1.0, 2.0, 3.0])
    seen = []

    def ranked(settings: dict) -> float:
        seen.append(settings["kind"])
        return next(values)

    found = cross_entropy_search({"kind": ["x", "y"]}, ranked, np.random.default_rng(3), rounds=1, draws=4, elite=0.5)
    share = seen[:2].count("x") / 2
    weights = [0.7 * share + 0.15, 0.7 * (1 - share) + 0.15]
    assert found.spread["kind"] == pytest.approx(1 - max(weights))


def test_what_is_not_finite_is_worst() -> None:
    found = cross_entropy_search(
        {"x": (0.0, 1.0)}, lambda s: float("nan") if s["x"] < 0.5 else s["x"], np.random.default_rng(0), rounds=4
    )
    assert 0.5 <= found.best["x"] < 0.6


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ({}, {}),
        ({"x": []}, {}),
        ({"x": (2.0, 1.0)}, {}),
        ({"x": (0.0, 1.0, "log")}, {}),
        (SPACE, {"elite": 0.0}),
        (SPACE, {"draws": 1}),
    ],
)
def test_misuse(space: dict, settings: dict) -> None:
    with pytest.raises(ValueError, match=r"space has|no choices|ranges over"):
        cross_entropy_search(space, loss, np.random.default_rng(0), **settings)
