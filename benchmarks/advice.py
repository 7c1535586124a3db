"""How good the order of `probatum advise` is: over tables left out one at a time, beside random and beside one fixed order.

    python benchmarks/advice.py                                  # twenty tables, hours; the same command goes on
    python benchmarks/advice.py --tables wine iris --arms tabm selu-snn gbnn --seeds 2 --held 2 --steps 40 --tried 2

For every table a study of the baseline and all arms that apply, at equal steps, is made in a store that keeps every trial.
Then each table is left out in turn: the studies of the others rank its arms, as they will where they ship, and its own studies
tell on the held seeds what each arm gains in truth. Counted is the share of the best arm's gain that the best of the first five
has; a loss counts 0, since the baseline is kept then. Beside it stand the expectation over all random orders (exact), the
order by mean rank on the other tables, and the advice without any study, by cards and claims alone. Tables on which no arm
gains more than what matters (the measure's margin) have no share and are counted apart. Intervals: bootstrap over tables.
An arm that takes longer than --most seconds a trial is left out of all tables, which is told and written.

A run over all tables writes benchmarks/advice.json and what ships, src/probatum/advising/record.json. What a table's finished
studies say is kept in benchmarks/advice/ (other tables and arms: nowhere, or in --kept) and believed as long as the settings
and the table are the same; a folder without that file makes its studies anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probatum import catalogue
from probatum.advising import evidence
from probatum.advising.evidence import Earlier, earlier_from, earlier_of
from probatum.advising.facts import DataFacts, facts_of
from probatum.advising.rank import ranked
from probatum.bench.results import Results
from probatum.data.library import embedded_names, root, subset
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.settings import Judging, Running
from probatum.study import Study

HERE = Path(__file__).parent
OUT, KEPT = HERE / "advice.json", HERE / "advice"
STORE = Path("probatum-runs") / "advice.sqlite"
TABLES = (
    *("abalone", "adult", "bank_marketing", "bikeshare", "breast_cancer_recurrence", "cpu_act", "diamonds"),
    *("german_credit", "glass", "hypothyroid", "image_segment", "ionosphere", "mammography", "nyc_taxis"),
    *("oil_spill", "phoneme", "pima_diabetes", "soybean", "telco_churn", "wine_quality"),
)
EMBEDDED = ("breast-cancer", "wine", "iris", "diabetes", "moons", "friedman")
"""What is taken where PROBATUM_DATA names no folder."""
DRAWS = 10_000
EVERY = 30.0
"""Seconds between two lines of progress."""
ORDERS = ("advice", "cards", "same", "random")


@dataclass(frozen=True)
class Settings:
    """What a run is asked: names of tables, arms (None = all that apply), seeds and so on, as the options say."""

    tables: tuple[str, ...]
    arms: tuple[str, ...] | None
    seeds: int
    held: int
    steps: int
    rows: int
    tried: int
    most: float
    workers: int
    store: Path
    kept: Path | None

    def about(self) -> dict[str, Any]:
        """What the results of a table hang on."""
        return {name: getattr(self, name) for name in ("arms", "seeds", "held", "steps", "rows", "most")}


@dataclass(frozen=True)
class Table:
    """One table: its facts, what its first seeds say to others, what all its seeds say, and each arm's true gain.

    Attributes:
        facts: of the rows that were taken.
        first: its study on the first seeds, which tells how well a table's own study foretells its held seeds.
        whole: its study on all seeds, which others know and which ships; of itself a table knows nothing when it is left out.
        gains: arm -> mean gain in margins on the held seeds; -inf where it never finished.
    """

    facts: DataFacts
    first: Earlier
    whole: Earlier
    gains: Mapping[str, float]


class Progress:
    """Lines on how far the studies are and how long the rest takes, at most one in half a minute."""

    def __init__(self, tables: int) -> None:
        self.tables, self.at, self.name = tables, 0, ""
        self.todo = self.left = self.ran = 0
        self.begun = self.told = time.monotonic()
        self.sizes: dict[str, int] = {}

    def table(self, name: str) -> None:
        """The next table begins."""
        self.at, self.name = self.at + 1, name
        print(f"table {self.at} of {self.tables}, {name}: rehearsing its arms", flush=True)

    def planned(self, jobs: Sequence[Any], done: int) -> None:
        """A study's trials are known; `done` of them are stored."""
        self.todo, self.left = len(jobs), len(jobs)
        self.stored = done
        self.sizes[self.name] = max(len(jobs), self.sizes.get(self.name, 0))
        print(f"table {self.at} of {self.tables}, {self.name}: {done} of {len(jobs)} trials are stored", flush=True)

    def started(self, job: Any) -> None:
        """Nothing."""

    def stepped(self, step: int, steps: int) -> None:
        """Nothing."""

    def ended(self, job: Any, trial: Any) -> None:
        """One trial more; the stored ones are told of first."""
        self.left -= 1
        if self.todo - self.left <= self.stored:
            self.begun += 0 if self.ran else time.monotonic() - self.begun  # what was stored cost nothing
            return
        self.ran += 1
        if time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            print(f"{self.name}: {self.todo - self.left} of {self.todo} trials, {self.rest()}", flush=True)

    def rest(self) -> str:
        """Time left, for all tables, if the next ones are as large as those before."""
        trials = self.left + (self.tables - self.at) * sum(self.sizes.values()) / len(self.sizes)
        seconds = (time.monotonic() - self.begun) / max(1, self.ran) * trials
        return f"about {int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h left"


def made(name: str, settings: Settings, progress: Progress, slow: dict[str, float], timed: set[str]) -> Table:
    """Run what the store lacks of one table's studies.

    On the first table of each task, seed 0 tells which arms take longer than the limit; `slow` gets their seconds, and they
    are tried on no table any more. `timed` holds the tasks of which that is known.
    """
    progress.table(name)
    dataset = open_dataset(name)
    if dataset.n > settings.rows:
        dataset = subset(dataset, settings.rows, 0)
    facts = facts_of(dataset)
    if (kept := read(name, facts, settings)) is not None:
        print(f"table {progress.at} of {progress.tables}, {name}: its studies are finished, as {settings.kept} tells")
        slow |= kept[1]
        timed.add(dataset.task)
        return kept[0]
    pilot = study(dataset, settings.arms, 1, settings)
    if dataset.task not in timed:
        timed.add(dataset.task)
        slow |= too_slow(pilot.run(progress), settings.most)
    arms = [arm.name for arm in pilot.plan.arms if arm.name not in slow]
    whole = study(dataset, arms, settings.seeds + settings.held, settings).run(progress)
    first = study(dataset, arms, settings.seeds, settings).run()  # its trials are the other's
    gains = held_gains(whole.rows(), whole, settings.seeds)
    known = [replace(earlier_of(one, evidence.SHIPPED), unfit=dict(pilot.plan.skipped)) for one in (first, whole)]
    table = Table(facts, *known, gains)
    keep(name, table, slow, settings)
    return table


def keep(name: str, table: Table, slow: Mapping[str, float], settings: Settings) -> None:
    """Write what a table's studies say, whole or not at all."""
    if settings.kept is None:
        return
    settings.kept.mkdir(parents=True, exist_ok=True)
    found = {
        "settings": settings.about(),
        "fingerprint": table.facts.fingerprint,
        "slow": dict(slow),
        "first": table.first.as_json(),
        "whole": table.whole.as_json(),
        "gains": {arm: gain if math.isfinite(gain) else None for arm, gain in table.gains.items()},
    }
    beside = settings.kept / f"{name}.json.part"
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, settings.kept / f"{name}.json")


def read(name: str, facts: DataFacts, settings: Settings) -> tuple[Table, dict[str, float]] | None:
    """What `keep` wrote of this table at these settings, and the arms left out as slow; None where there is none."""
    if settings.kept is None or not (path := settings.kept / f"{name}.json").exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != json.loads(json.dumps(settings.about())) or found["fingerprint"] != facts.fingerprint:
        return None
    gains = {arm: -math.inf if gain is None else gain for arm, gain in found["gains"].items()}
    return Table(facts, earlier_from(found["first"]), earlier_from(found["whole"]), gains), found["slow"]


def too_slow(results: Results, most: float) -> dict[str, float]:
    """Arm -> seconds of its trial, of those that took more than `most`."""
    arms = {arm.name for arm in results.plan.arms}
    seconds = {trial.arm: float(trial.timing.get("seconds", 0.0)) for trial in results.trials if trial.arm in arms}
    found = {arm: round(its, 1) for arm, its in seconds.items() if its > most}
    for arm, its in found.items():
        print(f"{arm} takes {its} s a trial, more than {most:g}: it is left out of all tables", flush=True)
    return found


def study(dataset: Any, arms: Sequence[str] | None, seeds: int, settings: Settings) -> Study:
    """Baseline and arms at equal steps, nothing beside."""
    judging = Judging(references=False, confirm=False)
    running = Running(timing=False, workers=settings.workers)
    return Study(
        dataset, arms, seeds=seeds, steps=settings.steps, store=settings.store, judging=judging, running=running
    )


def held_gains(rows: Sequence[Mapping[str, Any]], results: Results, first: int) -> dict[str, float]:
    """Arm -> mean paired gain over the baseline in margins on the seeds from `first` on; -inf where no pair is left."""
    primary = results.plan.primary
    measure = results.measure(primary)
    margin = results.plan.margins.get(primary, measure.margin)
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["measure"] == primary and row["seed"] >= first and math.isfinite(row["value"]):
            values.setdefault(row["arm"], {})[row["seed"]] = row["value"]
    base = values.get(results.baseline, {})
    sign = 1.0 if measure.higher_is_better else -1.0
    found = {}
    for arm in results.plan.arms:
        mine = values.get(arm.name, {})
        pairs = [(base[seed], mine[seed]) for seed in sorted(base.keys() & mine.keys())]
        gains = [sign * (math.log(b / a) if measure.kind == "ratio" else b - a) / margin for a, b in pairs]
        found[arm.name] = sum(gains) / len(gains) if gains else -math.inf
    return found


def share(order: Sequence[str], gains: Mapping[str, float], tried: int) -> float:
    """The best gain among the first of an order over the best of all; the baseline, which gains 0, is kept instead of a loss."""
    return max(0.0, *(gains[arm] for arm in order[:tried])) / max(gains.values())


def random_share(gains: Mapping[str, float], tried: int) -> float:
    """The expectation of `share` over all orders: each gain times the chance that it is the best of those tried."""
    rising = sorted(max(0.0, gain) for gain in gains.values())
    tried = min(tried, len(rising))
    chances = [math.comb(i, tried - 1) / math.comb(len(rising), tried) for i in range(len(rising))]
    return sum(gain * chance for gain, chance in zip(rising, chances, strict=True)) / rising[-1]


def same_order(arms: Sequence[str], others: Sequence[Earlier]) -> list[str]:
    """Arms by their mean rank (0 best, 1 worst) on other tables; those that no other table tried last, then by name."""
    ranks: dict[str, list[float]] = {arm: [] for arm in arms}
    for other in others:
        falling = sorted(other.outcomes, key=lambda arm: (-_gain(other, arm), arm))
        for place, arm in enumerate(falling):
            if arm in ranks:
                ranks[arm].append(place / max(1, len(falling) - 1))
    return sorted(arms, key=lambda arm: (sum(ranks[arm]) / len(ranks[arm]) if ranks[arm] else 2.0, arm))


def _gain(study: Earlier, arm: str) -> float:
    gain = study.outcomes[arm].gain
    return -math.inf if gain is None else gain


def left_out(tables: Sequence[Table], tried: int) -> list[dict[str, Any]]:
    """For each table what the others advise on it, and the shares; None for shares where nothing gains what matters."""
    claims, found = evidence.claims(), []
    for table in tables:
        others = [other.whole for other in tables if other is not table]
        cards = {arm: catalogue.card(arm) for arm in table.gains}
        orders = {
            "advice": [one.technique for one in ranked(cards, table.facts, others, claims)],
            "cards": [one.technique for one in ranked(cards, table.facts, (), claims)],
            "same": same_order(list(table.gains), others),
        }
        best = max(table.gains, key=lambda arm: table.gains[arm])
        shares: dict[str, float] | None = None
        if table.gains[best] > 1:  # in margins
            shares = {name: share(order, table.gains, tried) for name, order in orders.items()}
            shares["random"] = random_share(table.gains, tried)
        found.append(
            {
                "table": table.facts.name,
                "rows": table.facts.profile.n,
                "task": table.facts.profile.task,
                "arms": len(table.gains),
                "best": best,
                "best_gain": table.gains[best],
                "first": {name: order[:tried] for name, order in orders.items()},
                "shares": shares,
            }
        )
    return found


def measured(rows: Sequence[Mapping[str, Any]], tables: Sequence[Table], settings: Settings) -> dict[str, Any]:
    """Mean shares with bootstrap intervals over the tables on which something gains, and the advice's differences to others."""
    gaining = [row["shares"] for row in rows if row["shares"] is not None]
    found: dict[str, Any] = {
        "tables": len(rows),
        "gaining": len(gaining),
        "tried": settings.tried,
        "seeds": settings.seeds,
        "held": settings.held,
        "modalities": sorted({table.facts.profile.modality for table in tables}),
        "orders": {},
        "beside": {},
    }
    if gaining:
        values = {name: np.array([shares[name] for shares in gaining]) for name in ORDERS}
        found["orders"] = {name: interval(its) for name, its in values.items()}
        pairs = [("advice", other) for other in ORDERS[1:]] + [("cards", "random")]
        found["beside"] = {f"{a} - {b}": interval(values[a] - values[b]) for a, b in pairs}
    return found


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean of (tables,) values and the percentiles 2.5 and 97.5 of the means of tables drawn with replacement."""
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return {"share": float(values.mean()), "low": float(low), "high": float(high)}


def write(found: Mapping[str, Any], studies: Sequence[Earlier], out: Path, record: Path | None) -> None:
    """The whole as one file, and what ships: without tables' rows where something was measured."""
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")
    if record is not None:
        ships = {"measured": found["measured"], "studies": [one.as_json() for one in studies]}
        record.write_text(json.dumps(_short(ships), separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"written: {record}")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _short(its) for key, its in value.items()}
    return [_short(its) for its in value] if isinstance(value, list | tuple) else value


def tell(found: Mapping[str, Any]) -> None:
    """The result in lines."""
    told = found["measured"]
    for row in found["tables"]:
        shares = "nothing gains what matters" if row["shares"] is None else _in_words(row["shares"])
        print(f"{row['table']:26s} best {row['best']} ({row['best_gain']:+.1f} margins): {shares}")
    print(f"\n{told['gaining']} of {told['tables']} tables gain; share of the best gain after {told['tried']} tried:")
    for name, its in {**told["orders"], **told["beside"]}.items():
        print(f"  {name:18s} {its['share']:+.3f} [{its['low']:+.3f}, {its['high']:+.3f}]")


def _in_words(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {shares[name]:.2f}" for name in ORDERS)


def tables_of(names: Sequence[str] | None) -> tuple[str, ...]:
    """The tables asked for, or the twenty; embedded ones where their folder is not there."""
    if names:
        return tuple(names)
    if root() is not None:
        return TABLES
    print("PROBATUM_DATA names no folder: embedded tables are taken, and nothing ships")
    return tuple(name for name in EMBEDDED if name in embedded_names())


def asked(words: Sequence[str] | None) -> tuple[Settings, Path]:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tables", nargs="+", help="names of sets; default: the twenty")
    parser.add_argument("--arms", nargs="+", help="techniques; default: all that apply")
    parser.add_argument("--seeds", type=int, default=3, help="seeds beside the held ones")
    parser.add_argument("--held", type=int, default=3, help="further seeds, on which the true gains are taken")
    parser.add_argument("--steps", type=int, default=300, help="gradient steps of every arm")
    parser.add_argument("--rows", type=int, default=2000, help="rows drawn from larger tables")
    parser.add_argument("--tried", type=int, default=5, help="arms of an order that are tried")
    parser.add_argument("--most", type=float, default=15.0, help="seconds of a trial beyond which an arm is left out")
    parser.add_argument("--workers", type=int, default=1, help="processes; 0: as many as the cores hold")
    parser.add_argument("--store", type=Path, default=STORE, help="keeps every trial")
    parser.add_argument("--kept", type=Path, help="folder for what finished tables say; see above")
    parser.add_argument("--out", type=Path, help="default: benchmarks/advice.json for the twenty, else nowhere")
    said = parser.parse_args(words)
    if min(said.seeds, said.held, said.steps, said.tried) < 1 or said.rows < 100:
        raise SystemExit("seeds, held, steps and tried are 1 or more, rows 100 or more")
    settings = Settings(
        tables=tables_of(said.tables),
        arms=None if said.arms is None else tuple(said.arms),
        seeds=said.seeds,
        held=said.held,
        steps=said.steps,
        rows=said.rows,
        tried=said.tried,
        most=said.most,
        workers=said.workers,
        store=said.store,
        kept=said.kept or (KEPT if said.arms is None and not said.tables and root() is not None else None),
    )
    return settings, said.out


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Make the studies, leave each table out in turn, tell and write what was found."""
    settings, out = asked(words)
    settings.store.parent.mkdir(parents=True, exist_ok=True)
    progress, tables, lost = Progress(len(settings.tables)), [], {}
    slow: dict[str, float] = {}
    timed: set[str] = set()
    for name in settings.tables:
        try:
            tables.append(made(name, settings, progress, slow, timed))
        except InputError as problem:
            lost[name] = str(problem)
            print(f"{name} is left out: {problem}")
    if len(tables) < 2:
        raise SystemExit("two tables or more are needed, for one is left out")
    rows = left_out(tables, settings.tried)
    about = {name: value for name, value in vars(settings).items() if name not in ("store", "workers", "kept")}
    found = {
        "settings": about,
        "lost": lost,
        "slow": slow,
        "measured": measured(rows, tables, settings),
        "tables": rows,
    }
    tell(found)
    whole = settings.tables == TABLES and settings.arms is None and not lost
    out = out or (OUT if whole else None)
    if out is not None:
        studies = [replace(table.whole, source=evidence.SHIPPED) for table in tables]
        write(found, studies, out, evidence.RECORD if whole else None)
    return found


if __name__ == "__main__":
    main()
