"""How much racing saves and how often it is wrong, beside the full grid, on simulated studies.

``python -m probatum.bench.race_simulation`` prints both; ``--json`` gives the numbers.

Differences are drawn from the model of `probatum.bench.race`, half of their variance being the baseline's, which all
arms of a study share. Effects and margins, in standard deviations of the differences over seeds, are spread like those on
record. Of the seven techniques in README's table whose differences vary none is farther from zero than 0.51, with
margins of 0.9 to 3.2. Of 42 contrasts by seed in `claims/evidence.json` (5 or 10 seeds each) 19 lie within 0.7, nine
between 0.7 and 1.25, seven from 2.1 to 7.2 and seven from -1.7 to -4.6, and a margin of 0.01 is 0.1 to 2.7 of them,
mostly. Claims run where a technique is meant to work and so hold more clear winners than a screen. Drawn are

    35 %  exactly zero                        20 %  clear losers, uniform on [-5, -1.5]
    35 %  near zero, normal(0, 0.5)           10 %  winners, uniform on [0.8, 5]

and margins log-uniform on [0.25, 3]. With all effects zero the margins are drawn alike.

Of the variance of a trial the rows that trials share bring 0 to 0.4 % on the bench's own networks (30 splits of a table of 569
rows) and up to a fifth with learners that draw nothing; `SHARES` are these two. The judge sees the shared part from the test
rows, as if from 50 of them (`probatum.bench.two_way`); without rows it guesses it by a ratio of test to training rows.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np

from probatum.bench.race import FUTILE, Race, half_widths, looks_to, nominal_p
from probatum.bench.statistics import binomial_upper

UNDECIDED, HELPS, HURTS, SAME = 0, 1, 2, 3
ARMS, CAP, RATIO = 20, 24, 1 / 3
SHARES = (0.005, 0.2)
"""Parts of a trial's variance that rows in common bring: networks, and learners that draw nothing."""
SEEN_BY = 50
"""Degrees of freedom with which the judge sees that part."""


@dataclass(frozen=True)
class Screen:
    """What simulated studies end with, (studies, arms) each: a word's code and the seeds taken."""

    words: np.ndarray
    seeds: np.ndarray

    def trials(self) -> np.ndarray:
        """Trials of each study, (studies,): every arm's, and the baseline's on every seed that an arm ran."""
        return self.seeds.sum(axis=1) + self.seeds.max(axis=1)


@dataclass(frozen=True)
class Errors:
    """How often verdicts are wrong.

    Attributes:
        false_discovery_rate: mean over studies of the share of wrong ones among the differences claimed.
        false_discovery_upper: its 95 % upper limit (normal for the mean, exact where every share is 0 or 1).
        false_verdicts: arms with a wrong word: a difference claimed that has another sign or is none, or a material
            difference denied.
        false_verdict_rate: their share of all arms.
        false_verdict_upper: 95 % upper limit of that rate.
        power: share of the material winners that are called so; NaN without any.
    """

    false_discovery_rate: float
    false_discovery_upper: float
    false_verdicts: int
    false_verdict_rate: float
    false_verdict_upper: float
    power: float


@dataclass(frozen=True)
class Comparison:
    """A race beside the full grid on the same simulated trials.

    Attributes:
        trial_share: of the grid's trials, the baseline's counted in both, that the race ran.
        low: lower end of its 95 % interval over studies.
        high: upper end.
        same_words: share of the arms with the grid's word.
        kept: of the arms that the grid decides, the share with the same word in the race.
        winners_kept: of the material winners that the grid finds, the share that the race finds.
        gained: of the arms that the grid leaves undecided, the share that the race decides.
        contradicted: share of the arms that both decide and call differently.
    """

    studies: int
    arms: int
    looks: tuple[int, ...]
    ratio: float | None
    shared: float | None
    effects: str
    race: Errors
    grid: Errors
    trial_share: float
    low: float
    high: float
    same_words: float
    kept: float
    winners_kept: float
    gained: float
    contradicted: float


def draw_effects(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Draw true effects, in standard deviations of the differences, from the spread above."""
    kind = generator.choice(4, size=shape, p=(0.35, 0.35, 0.2, 0.1))
    near = 0.5 * generator.standard_normal(shape)
    return np.select(
        [kind == 1, kind == 2, kind == 3], [near, generator.uniform(-5, -1.5, shape), generator.uniform(0.8, 5, shape)]
    )


def draw_differences(
    effects: np.ndarray, seeds: int, ratio: float | None, generator: np.random.Generator
) -> np.ndarray:
    """Draw the differences of every arm by seed, (studies, arms, seeds); what seeds share has `ratio` times their variance."""
    studies, arms = effects.shape

    def half_shared(*last: int) -> np.ndarray:
        own, common = generator.standard_normal((studies, arms, *last)), generator.standard_normal((studies, 1, *last))
        return (own + common) / np.sqrt(2)

    split = np.sqrt(ratio or 0.0) * half_shared(1)
    return effects[..., None] + split + half_shared(seeds)


def screen(
    differences: np.ndarray,
    margin: np.ndarray,
    race: Race,
    futile: float = FUTILE,
    shared: np.ndarray | None = None,
) -> Screen:
    """Race simulated arms; looks of one number of seeds make it the full grid.

    Args:
        differences: (studies, arms, seeds).
        margin: (studies, arms).
        race: the rule.
        futile: arms are given up when their chance to be decided is below this; 0 = never.
        shared: (studies, arms) variance of the mean that rows in common bring, as the judge sees it; None = by the ratio.
    """
    shape = differences.shape[:2]
    alpha = 1 - race.confidence
    looks, levels = np.asarray(race.looks), race.levels()
    inner = levels if shared is None else 2 * levels - 1  # two one-sided tests
    quantiles = [half_widths(looks, None, level) * np.sqrt(looks) for level in (levels, inner)]
    common = np.zeros(shape) if shared is None else shared
    mean, sd, seeds = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=int)
    width, narrow = np.zeros(shape), np.zeros(shape)
    p, living = np.ones(shape), np.ones(shape, dtype=bool)
    nominal = np.ones((*shape, len(race.looks)))
    words = np.zeros(shape, dtype=int)
    for j, n in enumerate(race.looks):
        seen = differences[living][:, :n]
        mean[living], sd[living], seeds[living] = seen.mean(axis=1), seen.std(axis=1, ddof=1), n
        error = np.sqrt(sd[living] ** 2 * (1 / n + (race.ratio or 0.0)) + common[living])
        width[living], narrow[living] = quantiles[0][j] * error, quantiles[1][j] * error
        nominal[living, j] = nominal_p(mean[living], error * np.sqrt(n), np.asarray(n), None)
        p[living] = race.p_values(nominal[living][:, : j + 1])[:, -1]
        words = _words(mean, width, narrow, margin, _adjusted(p) <= alpha)
        living &= words == UNDECIDED
        if n < race.cap and living.any():
            ask = np.argwhere(living)
            chance = race.chance(j, mean[living], sd[living], margin[living], common[living])
            living[tuple(ask[chance < futile].T)] = False
    return Screen(words, seeds)


def simulate(
    studies: int = 1000,
    arms: int = ARMS,
    cap: int = CAP,
    ratio: float | None = None,
    *,
    shared: float | None = None,
    effects: str = "spread",
    seed: int = 1,
    looks: tuple[int, ...] | None = None,
    futile: float = FUTILE,
) -> Comparison:
    """Race simulated studies and run their full grid.

    Args:
        studies: how many.
        arms: in each, beside the baseline.
        cap: seeds of the grid.
        ratio: n_test/n_train, by which the judge guesses what seeds share and what they do share; None = nothing.
        shared: part of a trial's variance that seeds share, below 1, which the judge sees from test rows; None = by ratio.
        effects: "spread", or "zero" for arms that all equal the baseline.
        seed: of the simulation.
        looks: of the race; None = `looks_to(cap)`.
        futile: see `screen`.

    Raises:
        ValueError: for fewer than 2 studies or unknown effects.
    """
    if studies < 2:
        raise ValueError(f"studies is {studies}; an interval needs 2 or more")
    if effects not in ("spread", "zero"):
        raise ValueError(f"effects are {effects!r}; use 'spread' or 'zero'")
    generator = np.random.default_rng(seed)
    true = draw_effects((studies, arms), generator) if effects == "spread" else np.zeros((studies, arms))
    margin = np.exp(generator.uniform(np.log(0.25), np.log(3), (studies, arms)))
    seen = None
    if shared is None:
        differences = draw_differences(true, cap, ratio, generator)
    else:
        own = draw_differences(true, cap, shared / (1 - shared), generator) - true[..., None]
        differences = true[..., None] + np.sqrt(1 - shared) * own
        seen = shared * generator.chisquare(SEEN_BY, true.shape) / SEEN_BY
    race = Race(looks or looks_to(cap), ratio)
    raced = screen(differences, margin, race, futile, seen)
    full = screen(differences, margin, Race((cap,), ratio), shared=seen)
    share = raced.trials() / full.trials()
    error = 1.96 * share.std(ddof=1) / np.sqrt(studies)
    decided = full.words != UNDECIDED
    won = (full.words == HELPS) & (true >= margin)
    same = raced.words == full.words
    return Comparison(
        studies,
        arms,
        race.looks,
        ratio,
        shared,
        effects,
        _errors(raced.words, true, margin),
        _errors(full.words, true, margin),
        float(share.mean()),
        float(share.mean() - error),
        float(share.mean() + error),
        float(same.mean()),
        _share(same, decided),
        _share(same, won),
        _share(raced.words != UNDECIDED, ~decided),
        float((decided & (raced.words != UNDECIDED) & ~same).mean()),
    )


def table(found: Comparison) -> str:
    """The comparison as lines of text."""
    splits = f"rows guessed by ratio {found.ratio:.3g}" if found.ratio else "nothing in common"
    if found.shared is not None:
        splits = f"rows seen, {found.shared:.1%} in common"
    kind = "effects from the spread" if found.effects == "spread" else "no effect at all"
    lines = [
        f"{found.studies} studies of {found.arms} arms, at most {found.looks[-1]} seeds, {splits}, {kind}",
        f"{'':44}{'race':>16}{'grid':>16}",
    ]
    named = (
        ("false discovery rate (stated: at most 5 %)", "false_discovery_rate", "false_discovery_upper"),
        ("false verdicts per arm (stated: at most 5 %)", "false_verdict_rate", "false_verdict_upper"),
    )
    for name, rate, upper in named:
        cells = [f"{getattr(e, rate):.2%} (< {getattr(e, upper):.2%})" for e in (found.race, found.grid)]
        lines.append(f"{name:44}" + "".join(f"{cell:>16}" for cell in cells))
    if found.effects == "spread":
        lines.append(f"{'power for material winners':44}{found.race.power:>16.1%}{found.grid.power:>16.1%}")
        lines.append(f"{'winners of the grid found':44}{found.winners_kept:>16.1%}")
    trials = f"{found.trial_share:.1%} [{found.low:.1%}, {found.high:.1%}]"
    return "\n".join(
        [
            *lines,
            f"{'same word as the grid':44}{found.same_words:>16.1%}",
            f"{'same word where the grid decides':44}{found.kept:>16.1%}",
            f"{'both decide, differently':44}{found.contradicted:>16.2%}",
            f"{'decided where the grid does not':44}{found.gained:>16.1%}",
            f"{'trials run, of the grid':34}{trials:>26}",
        ]
    )


def main() -> None:
    """Print what racing saves and how often it is wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--arms", type=int, default=ARMS)
    parser.add_argument("--seeds", type=int, default=CAP, help="the cap")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = [
        simulate(given.studies, given.arms, given.seeds, shared=shared, effects=effects)
        for effects in ("spread", "zero")
        for shared in SHARES
    ]
    if given.json:
        print(json.dumps([asdict(one) for one in found], indent=1).replace("NaN", "null"))
    else:
        print("\n\n".join(map(table, found)))


def _words(
    mean: np.ndarray, width: np.ndarray, narrow: np.ndarray, margin: np.ndarray, significant: np.ndarray
) -> np.ndarray:
    """`probatum.bench.verdict.decide` for arrays; `narrow` is half the width of the interval that shows equivalence."""
    same = np.abs(mean) + narrow < margin
    different = (np.abs(mean) > width) & (np.abs(mean) >= margin) & significant
    return np.select([same, different & (mean > 0), different], [SAME, HELPS, HURTS], UNDECIDED)


def _adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values along the last axis."""
    arms = p.shape[-1]
    order = np.argsort(p, axis=-1)[..., ::-1]
    ranked = np.take_along_axis(p, order, -1) * arms / np.arange(arms, 0, -1)
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.minimum(np.minimum.accumulate(ranked, axis=-1), 1.0), -1)
    return found


def _errors(words: np.ndarray, true: np.ndarray, margin: np.ndarray) -> Errors:
    claimed = (words == HELPS) | (words == HURTS)
    mistaken = ((words == HELPS) & (true <= 0)) | ((words == HURTS) & (true >= 0))
    false = mistaken | ((words == SAME) & (np.abs(true) >= margin))
    winners = (true > 0) & (true >= margin)
    share = mistaken.sum(axis=1) / np.maximum(claimed.sum(axis=1), 1)
    rate = false.mean(axis=1)
    return Errors(
        float(share.mean()),
        _upper(share),
        int(false.sum()),
        float(rate.mean()),
        _upper(rate),
        _share(words == HELPS, winners),
    )


def _upper(shares: np.ndarray) -> float:
    """95 % upper limit of the mean of one number per study: arms of one study are not independent, studies are."""
    if np.isin(shares, (0.0, 1.0)).all():
        return binomial_upper(int(shares.sum()), len(shares))
    return float(shares.mean() + 1.645 * shares.std(ddof=1) / np.sqrt(len(shares)))


def _share(wanted: np.ndarray, among: np.ndarray) -> float:
    return float(wanted[among].mean()) if among.any() else float("nan")


if __name__ == "__main__":
    main()
