"""How often the bench is wrong, by checks that can fail.

``python -m probatum.bench.honesty`` (``make honesty``) runs all of them and ends with exit code 1 if one fails:

1. equal arms, on real training of an embedded table: the baseline beside itself with other initial weights and batch order;
2. different arms whose difference is known: scikit-learn's logistic regression beside a weak one, linear discriminants and
   naive Bayes on many tables drawn from one law, by which a table's own truth is reckoned: the expected difference on new
   rows of learners trained on its splits; and the wider interval, beside the mean over the tables;
3. the same with the rows that trials share left out of the variance: a mutant, which must fail;
4. given test rows and learners of equal risk on new rows;
5. tables of which most rows have copies, learners of equal risk;
6. races over the arms of 2, stopped whenever they are decided;
7. every row is tested equally often, copies or not.

A rate fails where its 95 % lower limit (Clopper and Pearson 1934) lies above what is stated.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from probatum.arenas.predict.fit import fit
from probatum.bench.packed_rows import UnitRows, gather
from probatum.bench.pairing import pair
from probatum.bench.race import looks_to
from probatum.bench.splits import Splits
from probatum.bench.statistics import Interval, binomial_lower, binomial_upper, over_rows
from probatum.bench.two_way import Trial
from probatum.bench.verdict import verdicts
from probatum.data.dataset import FRACTIONS
from probatum.data.folds import draw_folds
from probatum.data.split import SplitPlan
from probatum.measure.base import Measure
from probatum.recipe import Arm, Recipe, Training
from probatum.rooms.arena import Terms, Work

ACCURACY = Measure("accuracy", "quality", True, 0.01)
LOG_LOSS = Measure("log-loss", "quality", False, 0.01)
NORMAL = 1.96
"""Standard errors to each side that hold 95 % of a normal law."""
STATED = 0.05
"""Error that the bench states, of intervals and of false differences."""
GROUPS = (20,)
"""Numbers of the user's groups."""
DISCORDANT = (0.03, 0.08)
"""Shares of given test rows on which two learners of equal risk differ."""
ROWS, SEEDS = 500, 24


@dataclass(frozen=True)
class Rate:
    """`hits` of `studies`.

    Attributes:
        name: what was counted.
        hits: how often it was so.
        studies: how often it could have been.
        most: the stated rate.
        mutant: whether the check is one of something broken, which must fail.
        alike: how many times as many studies say no more, since several arms are tried on one table (a design effect; the
            limits are those of Korn and Graubard 1998).
    """

    name: str
    hits: int
    studies: int
    most: float = STATED
    mutant: bool = False
    alike: float = 1.0

    @property
    def share(self) -> float:
        """hits / studies."""
        return self.hits / self.studies

    @property
    def lower(self) -> float:
        """95 % lower limit of the true rate."""
        return binomial_lower(*self._effective())

    @property
    def upper(self) -> float:
        """95 % upper limit of the true rate."""
        return binomial_upper(*self._effective())

    def _effective(self) -> tuple[int, int]:
        return round(self.hits / self.alike), round(self.studies / self.alike)

    @property
    def holds(self) -> bool:
        """Whether the check went as it should."""
        return (self.lower > self.most) == self.mutant

    def line(self) -> str:
        """What is printed."""
        error = math.sqrt(max(self.share * (1 - self.share), 1 / self.studies) * self.alike / self.studies)
        wanted = f"must exceed {self.most:.0%}" if self.mutant else f"stated: at most {self.most:.0%}"
        word = "as it should" if self.holds else "FAILS"
        return f"{self.name}: {self.hits}/{self.studies} = {self.share:.1%} +- {error:.1%} ({wanted}): {word}"


@dataclass(frozen=True)
class Known:
    """Paired differences of an arm to the baseline on one table.

    Attributes:
        trials: one a seed.
        truth: what they would be in the mean over all splits of this table and all new rows.
        error: standard error of the truth, which is told by some splits alone.
    """

    trials: list[Trial]
    truth: float
    error: float = 0.0

    @classmethod
    def told(cls, trials: list[Trial], by: Sequence[float] | np.ndarray) -> Known:
        """With the truth that further splits tell, each by its own fits."""
        return cls(trials, float(np.mean(by)), float(np.std(by, ddof=1) / math.sqrt(len(by))))

    def missed(self, interval: Interval) -> bool:
        """Whether an interval misses the truth, whose own error is allowed for."""
        half = (interval.high - interval.low) / 2
        return abs(interval.mean - self.truth) > math.hypot(half, NORMAL * self.error)


Drawn = dict[str, dict[str, Known]]
"""Arm -> measure -> what is known of it on one table."""


def equal_arms(splits: Splits, studies: int, seeds: int, training: Training) -> Rate:
    """The baseline beside itself, drawn anew: how often one is said to help or hurt at any size."""
    base, measure = Recipe(training=training), replace(ACCURACY, margin=0.0)
    hits = 0
    for study in range(studies):
        records = []
        for seed in range(study * seeds, (study + 1) * seeds):
            data = splits.data(seed)
            known = splits.units(seed)
            for arm in (Arm("baseline", base), Arm("again", base, salt="again")):
                predictor = fit(Work(arm, "baseline", Terms(base=base), data, seed))
                right = (predictor.predict(data.test).argmax(dim=1) == data.test.y).double().numpy()
                rows = None if known is None else gather({"accuracy": right}, *known)
                records.append(_record(arm.name, seed, float(right.mean()), rows))
        hits += verdicts(records, "baseline", [measure], ratio=None)[0].word in ("helps", "hurts")
    return Rate(f"equal arms, {seeds} seeds: false differences", hits, studies)


def _record(arm: str, seed: int, value: float, rows: UnitRows | None) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "status": "ok", "measures": {"accuracy": value}, "rows": rows}


def drawn_rows(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, 12) and the probability of class 1, of a law neither linear nor of independent features."""
    common = generator.normal(size=(rows, 1))
    x = 0.5 * common + generator.normal(size=(rows, 12))
    logit = 1.2 * x[:, 0] - 0.8 * x[:, 1] + 0.9 * x[:, 2] * x[:, 3] + 0.5 * (x[:, 4] ** 2 - 1.25) + 0.4 * x[:, 5]
    return x, 1 / (1 + np.exp(-1.5 * logit))


@dataclass(frozen=True)
class World:
    """Tables of one law, and what is true of each.

    Attributes:
        x: features of new rows.
        p: their probabilities of class 1.
        splits: of a table, over which truths are means: others than those of its trials.
    """

    x: np.ndarray
    p: np.ndarray
    splits: int = 24

    @classmethod
    def drawn(cls, generator: np.random.Generator, rows: int = 20_000) -> World:
        """With that many new rows."""
        return cls(*drawn_rows(generator, rows))

    def table(self, generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, SplitPlan]:
        """Features, classes and splits of a table of its own."""
        x, p = drawn_rows(generator, rows)
        y = (generator.random(rows) < p).astype(np.int64)
        return x, y, SplitPlan(y, np.arange(rows))

    def values(self, p: np.ndarray) -> dict[str, float]:
        """Expected accuracy and log-likelihood of probabilities of class 1 for the new rows."""
        accuracy = np.where(p > 0.5, self.p, 1 - self.p).mean()
        return {
            "accuracy": float(accuracy),
            "log-loss": float((self.p * np.log(p) + (1 - self.p) * np.log1p(-p)).mean()),
        }


def _class_1(fitted: Any, x: np.ndarray) -> np.ndarray:
    return np.clip(fitted.predict_proba(x)[:, 1], 1e-7, 1 - 1e-7)


def different_arms(generator: np.random.Generator, world: World, seeds: int = SEEDS) -> Drawn:
    """A weak logistic regression, linear discriminants and naive Bayes against logistic regression on one drawn table."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB

    x, y, plan = world.table(generator, ROWS)
    makers: dict[str, Callable[[], Any]] = {
        "logistic": lambda: LogisticRegression(),
        "weak logistic": lambda: LogisticRegression(C=0.003),
        "discriminants": lambda: LinearDiscriminantAnalysis(),
        "naive Bayes": lambda: GaussianNB(),
    }
    trials: dict[str, dict[str, list[Trial]]] = {name: {"accuracy": [], "log-loss": []} for name in makers}
    truths: dict[str, dict[str, list[float]]] = {name: {"accuracy": [], "log-loss": []} for name in makers}
    for seed in range(seeds + world.splits):
        train, _, test = draw_folds(plan, seed, FRACTIONS, ("0", "1"))
        fitted = {name: make().fit(x[train], y[train]) for name, make in makers.items()}
        if seed >= seeds:
            for name, one in fitted.items():
                for measure, value in world.values(_class_1(one, world.x)).items():
                    truths[name][measure].append(value)
            continue
        rows = {}
        for name, one in fitted.items():
            p = _class_1(one, x[test])
            own = np.where(y[test] == 1, p, 1 - p)
            rows[name] = {"accuracy": ((p > 0.5) == (y[test] == 1)).astype(float), "log-loss": np.log(own)}
        for name in makers:
            for measure, values in rows[name].items():
                trials[name][measure].append(_trial(test, values - rows["logistic"][measure], measure == "accuracy"))
    base = truths["logistic"]
    return {
        name: {m: Known.told(trials[name][m], np.subtract(truths[name][m], base[m])) for m in trials[name]}
        for name in makers
        if name != "logistic"
    }


def chosen_arms(
    generator: np.random.Generator, world: World, seeds: int = SEEDS // 2, rows: int = ROWS
) -> tuple[Drawn, Drawn]:
    """Discriminants and naive Bayes against logistic regression, each the best of three settings, on one drawn table.

    The settings are chosen on validation rows and tested on test rows: the first answer. The second has besides what test
    rows choose, tested on validation rows.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB

    makers: dict[str, list[Callable[[], Any]]] = {
        "logistic": [partial(LogisticRegression, C=c) for c in (0.003, 0.03, 1.0)],
        "discriminants": [partial(LinearDiscriminantAnalysis, solver="lsqr", shrinkage=s) for s in (0.0, 0.4, 0.9)],
        "naive Bayes": [partial(GaussianNB, var_smoothing=v) for v in (1e-9, 0.3, 3.0)],
    }
    x, y, plan = world.table(generator, rows)
    records: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in makers}
    truths: dict[str, list[float]] = {name: [] for name in makers}
    for seed in range(seeds + world.splits):
        train, valid, test = draw_folds(plan, seed, FRACTIONS, ("0", "1"))
        for name, settings in makers.items():
            fitted = [make().fit(x[train], y[train]) for make in settings]
            right = [(one.predict(x) == y).astype(float) for one in fitted]
            best, other = (
                max(range(len(right)), key=lambda k: float(right[k][chooses].mean())) for chooses in (valid, test)
            )
            if seed >= seeds:
                found = {k: world.values(_class_1(fitted[k], world.x))["accuracy"] for k in {best, other}}
                truths[name].append((found[best] + found[other]) / 2)  # the two parts are drawn alike
                continue
            kept = [gather({"accuracy": right[k][part]}, part, rows) for k, part in ((best, test), (other, valid))]
            mine = _record(name, seed, float(right[best][test].mean()), replace(kept[0], swapped=kept[1]))
            records[name][seed] = mine | {"swapped": {"accuracy": float(right[other][valid].mean())}}
    pairs: tuple[Drawn, Drawn] = ({}, {})
    without: dict[str, Any] = {"swapped": {}}
    for name in ("discriminants", "naive Bayes"):
        by = np.subtract(truths[name], truths["logistic"])
        for drawn, hidden in zip(pairs, (without, {}), strict=True):
            base, own = ({s: {**r, **hidden} for s, r in records[arm].items()} for arm in ("logistic", name))
            drawn[name] = {"accuracy": Known.told(list(pair(name, base, own, ACCURACY).trials or ()), by)}
    return pairs


def _trial(units: np.ndarray, x: np.ndarray, binary: bool) -> Trial:
    names, where = np.unique(units, return_inverse=True)
    return Trial(float(x.mean()), names, np.bincount(where, x - x.mean()), len(x), float(binary), np.bincount(where))


def coverage(
    tables: Sequence[Drawn], *, shared: bool = True, over: bool = False, kappa: float = 0.0, of: str = ""
) -> list[Rate]:
    """How often 95 % intervals miss each table's own truth, by measure.

    Args:
        tables: what is known of each.
        shared: False: rows in common are not seen, a mutant.
        over: the mean over the tables is the truth, of which intervals with `kappa` are.
        kappa: see `probatum.bench.two_way.two_way`.
        of: is said beside the measure.
    """
    rates = []
    for measure in next(iter(tables[0].values())):
        missed = np.zeros((len(tables[0]), len(tables)))
        for i, arm in enumerate(tables[0]):
            middle = float(np.mean([table[arm][measure].truth for table in tables]))
            for j, table in enumerate(tables):
                trials = table[arm][measure].trials
                if not shared:  # every trial's rows as if they were others
                    trials = [replace(t, units=t.units + ROWS * k) for k, t in enumerate(trials)]
                interval = over_rows(trials, kappa=kappa)
                known = Known([], middle) if over else table[arm][measure]
                missed[i, j] = known.missed(interval)
        name = f"{len(tables[0])} arms of known difference, {measure}{of}: intervals that miss it"
        name = name if shared else f"{name}, rows in common not seen"
        hits = int(missed.sum())
        rates.append(Rate(name, hits, missed.size, mutant=not shared, alike=design_effect(missed)))
    return rates


def design_effect(missed: np.ndarray) -> float:
    """How much more (arms, tables) of 0 or 1 vary by table than if a table's arms were independent; at least 1."""
    arms, share = len(missed), float(missed.mean())
    alone = arms * share * (1 - share)
    return max(1.0, float(missed.sum(axis=0).var(ddof=1)) / alone) if alone and missed.shape[1] > 1 else 1.0


def raced(tables: Sequence[Drawn], margin: float = 0.01) -> Rate:
    """Words of races that stop whenever they are decided and are wrong about the table's own truth."""
    looks, wrong = looks_to(SEEDS), np.zeros((len(tables[0]), len(tables)))
    for i, arm in enumerate(tables[0]):
        for j, table in enumerate(tables):
            truth = table[arm]["accuracy"].truth
            word = _race(table[arm]["accuracy"].trials, looks, margin)
            wrong[i, j] = (
                (word == "helps" and truth <= 0)
                or (word == "hurts" and truth >= 0)
                or (word == "no material difference" and abs(truth) >= margin)
            )
    hits, alike = int(wrong.sum()), design_effect(wrong)
    return Rate(f"races of up to {SEEDS} seeds: wrong words", hits, wrong.size, alike=alike)


def _race(trials: Sequence[Trial], looks: Sequence[int], margin: float) -> str:
    """The word on which a race of one arm ends."""
    word = "undecided"
    for look in looks:
        records = []
        for seed, trial in enumerate(trials[:look]):
            counts = {"accuracy": np.full(len(trial.units), 1)}
            for arm, times in (("baseline", 0.0), ("arm", 1.0)):
                rows = UnitRows(trial.units, {"accuracy": times * trial.deviations}, counts, frozenset({"accuracy"}))
                records.append(_record(arm, seed, 0.5 + times * trial.mean, rows))
        measure = replace(ACCURACY, margin=margin)
        word = verdicts(records, "baseline", [measure], ratio=None, looks=looks)[0].word
        if word != "undecided":
            break
    return word


def given_rows(generator: np.random.Generator, studies: int, seeds: int, discordant: float) -> Rate:
    """300 given test rows and two learners of equal risk on rows like them."""
    hits = 0
    for _ in range(studies):
        own = generator.choice([-1.0, 0, 1], 300, p=[discordant / 2, 1 - discordant, discordant / 2])
        x = own + generator.choice([-1.0, 0, 1], (seeds, 300), p=[0.01, 0.98, 0.01])
        hits += over_rows([_trial(np.arange(300), row, True) for row in x]).p <= STATED
    return Rate(f"given test rows, {discordant:.0%} discordant, {seeds} seeds: false differences", hits, studies)


def copied_rows(generator: np.random.Generator, studies: int, seeds: int = SEEDS) -> Rate:
    """Tables of which three in five rows have copies: learners of equal risk that differ on some rows, copies alike."""
    hits = 0
    for _ in range(studies):
        sizes = generator.choice([1, 2, 4], 220, p=[0.5, 0.3, 0.2])
        units = np.repeat(np.arange(220), sizes)
        own = generator.choice([-1.0, 0, 1], 220, p=[0.08, 0.84, 0.08])
        plan = SplitPlan(None, units)
        trials = []
        for seed in range(seeds):
            test = draw_folds(plan, seed, FRACTIONS)[2]
            noise = generator.choice([-1.0, 0, 1], 220, p=[0.02, 0.96, 0.02])
            trials.append(_trial(units[test], (own + noise)[units[test]], True))
        hits += over_rows(trials).p <= STATED
    return Rate(f"rows with copies, {seeds} seeds: false differences", hits, studies)


def unequal_groups(generator: np.random.Generator, studies: int, groups: int, seeds: int = SEEDS // 2) -> Rate:
    """Groups of the user's, the largest some fifteen times the smallest, that differ by effects of their own: equal learners."""
    hits = 0
    for _ in range(studies):
        sizes = np.maximum(2, np.round(12 * generator.lognormal(0.0, 0.7, groups))).astype(int)
        units = np.repeat(np.arange(groups), sizes)
        own, plan = 0.5 * generator.standard_normal(groups), SplitPlan(None, units)
        tests = [draw_folds(plan, seed, FRACTIONS)[2] for seed in range(seeds)]
        noise = generator.standard_normal((seeds, len(units)))
        trials = [_trial(units[test], own[units[test]] + noise[s, test], False) for s, test in enumerate(tests)]
        hits += over_rows(trials).p <= STATED
    return Rate(f"{groups} groups of unequal size, {seeds} seeds: false differences", hits, studies)


def equally_tested(seeds: int = 2 * SEEDS) -> Rate:
    """Units of a table with copies whose number of tests differs by more than 1 from another's."""
    generator = np.random.default_rng(0)
    units = np.repeat(np.arange(300), generator.choice([1, 2, 5], 300))
    plan = SplitPlan((units % 3).astype(np.int64), units)
    counts = np.zeros(300, dtype=np.int64)
    for seed in range(seeds):
        counts[np.unique(units[draw_folds(plan, seed, FRACTIONS, ("a", "b", "c"))[2]])] += 1
    least = int(np.median(counts))
    return Rate("units tested more or less often than others", int((abs(counts - least) > 1).sum()), 300, most=0.0)


def simulated(
    studies: int, tables: int, seed: int = 0, tell: Callable[[str], None] = print, rows: int = 20_000
) -> list[Rate]:
    """All checks but the real training; `tell` gets each line as soon as it is there; `rows` new ones tell what is true."""
    generator = np.random.default_rng(seed)
    found: list[Rate] = []

    def add(*rates: Rate) -> None:
        found.extend(rates)
        for rate in rates:
            tell(rate.line())

    add(equally_tested())
    for discordant in DISCORDANT:
        for seeds in (6, SEEDS):
            add(given_rows(generator, studies, seeds, discordant))
    add(copied_rows(generator, studies))
    for groups in GROUPS:
        add(unequal_groups(generator, studies, groups))
    world = World.drawn(generator, rows)
    known = [different_arms(generator, world) for _ in range(tables)]
    add(*coverage(known), *coverage(known, shared=False), raced(known))
    add(*coverage(known, over=True, kappa=FRACTIONS[0] / (1 - FRACTIONS[0]), of=" over other tables"))
    chosen = [chosen_arms(generator, world) for _ in range(tables)]
    add(*coverage([one for one, _ in chosen], of=", chosen on validation rows"))
    add(*coverage([both for _, both in chosen], of=", and the other way round"))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the bench's error rates; 1 if one is not as it should."""
    from probatum.data.open import open_dataset

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="breast-cancer", help="an embedded table to train on")
    parser.add_argument("--studies", type=int, default=400, help="simulated studies of each kind")
    parser.add_argument("--tables", type=int, default=100, help="tables that are drawn")
    parser.add_argument("--trained", type=int, default=100, help="studies of real training")
    parser.add_argument("--seeds", type=int, default=6, help="seeds of each of these")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def tell(line: str) -> None:
        print(line, flush=True)

    found = simulated(asked.studies, asked.tables, tell=tell)
    training = replace(Training(), steps=60, batch_size=32)
    splits = Splits(open_dataset(asked.data), FRACTIONS)
    found.append(equal_arms(splits, asked.trained, asked.seeds, training))
    tell(f"{asked.data}: {found[-1].line()}")
    return 0 if all(rate.holds for rate in found) else 1


if __name__ == "__main__":
    sys.exit(main())
