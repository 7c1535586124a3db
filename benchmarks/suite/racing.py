"""What racing over seeds saves, on simulated studies."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from probatum.bench.race_simulation import ARMS, CAP, SHARES, Comparison, simulate
from suite.timing import Benchmark, Figures, Measure, Scale

ABOUT = (
    f"trials that a race runs / trials of the full grid of {ARMS} arms and {CAP} seeds on simulated studies "
    "(probatum.bench.race_simulation), rows seen of which 0.5 % of the variance are in common; interval over studies; "
    "rows_shared: 20 % in common; errors: false discovery rate, "
    "false verdicts per arm, power; no_effect: all arms equal the baseline"
)


def prepare(scale: Scale) -> Measure:
    """Simulated studies, of networks and of learners that draw nothing."""

    def measure() -> dict[str, Figures]:
        little, much = SHARES
        found, given = (simulate(scale.studies, shared=shared) for shared in (little, much))
        nothing = simulate(scale.studies, shared=little, effects="zero")
        figures = {
            "ratio": found.trial_share,
            "low": found.low,
            "high": found.high,
            "pairs": scale.studies,
            "better": "lower",
            "about": ABOUT,
            **told(found),
            "rows_shared": {"ratio": given.trial_share, "low": given.low, "high": given.high, **told(given)},
            "no_effect": {"ratio": nothing.trial_share, "low": nothing.low, "high": nothing.high, **told(nothing)},
        }
        return {"racing_trials_share": figures}

    return measure


def told(found: Comparison) -> dict[str, Any]:
    """Error rates of race and grid, and how far they agree."""
    names = ("same_words", "kept", "winners_kept", "gained", "contradicted")
    numbers = {name: getattr(found, name) for name in names}
    # not a number: there is nothing of the kind among these studies
    return {
        "race_errors": {name: value for name, value in asdict(found.race).items() if value == value},
        "grid_errors": {name: value for name, value in asdict(found.grid).items() if value == value},
        **{name: value for name, value in numbers.items() if value == value},
    }


BENCHMARKS = (Benchmark(("racing_trials_share",), prepare),)
