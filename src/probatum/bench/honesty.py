"""How often the bench is wrong: A/A studies (nothing to find) and planted effects (something to find), on real training.

``python -m probatum.bench.honesty`` prints both for an embedded table and for simulated records.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from probatum.arenas.predict.fit import fit
from probatum.bench.splits import Splits
from probatum.bench.statistics import binomial_upper, power
from probatum.bench.verdict import verdicts
from probatum.data.dataset import FRACTIONS
from probatum.measure.base import Measure
from probatum.recipe import Arm, Recipe, Training
from probatum.rooms.arena import Terms, Work

ACCURACY = Measure("accuracy", "quality", True, 0.0)
RATIO = FRACTIONS[2] / FRACTIONS[0]


@dataclass(frozen=True)
class Rate:
    """`hits` verdicts in `studies`, the share, and its 95 % upper limit (Clopper-Pearson)."""

    hits: int
    studies: int

    @property
    def share(self) -> float:
        """hits / studies."""
        return self.hits / self.studies

    @property
    def upper(self) -> float:
        """Upper limit of the true rate."""
        return binomial_upper(self.hits, self.studies)


def paired_noise(splits: Splits, seeds: Sequence[int], training: Training) -> tuple[list[float], list[float]]:
    """Test accuracies of the baseline and of itself with other initial weights and batch order, seed by seed."""
    base = Recipe(training=training)
    first: list[float] = []
    second: list[float] = []
    for seed in seeds:
        data = splits.data(seed)
        for arm, into in ((Arm("baseline", base), first), (Arm("again", base, salt="again"), second)):
            predictor = fit(Work(arm, "baseline", Terms(base=base), data, seed))
            into.append(float((predictor.predict(data.test).argmax(dim=1) == data.test.y).float().mean()))
    return first, second


def simulated_noise(studies: int, seeds: int, generator: np.random.Generator) -> tuple[list[float], list[float]]:
    """Accuracies of two equal arms on re-drawn splits: a common effect of the split and an own one of each arm."""
    split = 0.9 + 0.02 * generator.standard_normal(studies * seeds)
    first, second = (split + 0.01 * generator.standard_normal(studies * seeds) for _ in range(2))
    return first.tolist(), second.tolist()


def word(baseline: Sequence[float], arm: Sequence[float], effect: float = 0.0) -> str:
    """The verdict on one study, with `effect` added to the arm."""
    records = [
        {
            "arm": name,
            "seed": seed,
            "status": "ok",
            "measures": {"accuracy": value + (effect if name == "arm" else 0.0)},
        }
        for name, values in (("baseline", baseline), ("arm", arm))
        for seed, value in enumerate(values)
    ]
    return verdicts(records, "baseline", [ACCURACY], ratio=RATIO)[0].word


def count(
    first: Sequence[float], second: Sequence[float], seeds: int, wanted: Callable[[str], bool], effect: float = 0.0
) -> Rate:
    """How many studies of `seeds` seeds end with a wanted word."""
    studies = len(first) // seeds
    words = [
        word(first[i * seeds : (i + 1) * seeds], second[i * seeds : (i + 1) * seeds], effect) for i in range(studies)
    ]
    return Rate(sum(map(wanted, words)), studies)


def honesty(first: Sequence[float], second: Sequence[float], seeds: int, name: str) -> list[str]:
    """Lines that tell the false-verdict rate without an effect, and the power with planted ones beside the planned."""
    false = count(first, second, seeds, lambda w: w in ("helps", "hurts"))
    lines = [f"{name}: A/A false verdicts {false.hits}/{false.studies} = {false.share:.1%} (stated: at most 5 %)"]
    differences = np.subtract(second, first)
    sd = float(differences.std(ddof=1))
    for planned in (0.5, 0.8, 0.95):
        effect = planted_effect(planned, sd, seeds)
        found = count(first, second, seeds, lambda w: w == "helps", effect - float(differences.mean()))
        lines.append(
            f"{name}: planted +{effect:.4f}, planned power {planned:.0%}: found {found.hits}/{found.studies} = {found.share:.1%}"
        )
    return lines


def planted_effect(planned: float, sd: float, seeds: int) -> float:
    """The effect whose planned power is `planned`, by bisection."""
    low, high = 0.0, 20 * sd
    while high - low > 1e-9 * max(sd, 1e-9) and not math.isclose(low, high):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, sd, seeds, RATIO) < planned else (low, middle)
    return high


def main() -> None:
    """Print the bench's error rates."""
    from probatum.data.open import open_dataset

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="breast-cancer")
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    simulated = simulated_noise(2000, arguments.seeds, np.random.default_rng(0))
    print("\n".join(honesty(*simulated, arguments.seeds, "simulated")), flush=True)
    training = replace(Training(), steps=60, batch_size=32)
    wanted = range(arguments.studies * arguments.seeds)
    real = paired_noise(Splits(open_dataset(arguments.data), FRACTIONS), wanted, training)
    print("\n".join(honesty(*real, arguments.seeds, arguments.data)))


if __name__ == "__main__":
    main()
