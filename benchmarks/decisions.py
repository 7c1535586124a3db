"""How much a trial decides: the two-way interval beside the one it replaced, on many data sets drawn from large ones.

    python benchmarks/decisions.py                     # seven designs, two hours on one core; goes on where it stopped
    python benchmarks/decisions.py drawn-500 --sets 20

In every data set each arm is trained in 50 trials (ten repeats of five folds, 60 % of the rows to train on). Half of them are
judged. The others tell what is true of the data set: how much more often models so trained are right on new rows (40,000 of its
source); what that is uncertain by, over trials and rows, is added to an interval before it counts as missing the truth.
Beside it stands the mean over the data sets, of which `--for datasets` speaks. Verdicts are made at 6, 8, 12 and 24 seeds with a
margin of 0.01 of accuracy and Benjamini-Hochberg over the arms: today's, by rows, and the earlier ones, by Nadeau and Bengio's
correction with equivalence at 2.5 % a side. Counted are the arms that are decided, by trial, wrong words, and how often the 95 %
interval misses the truth. Networks are of two layers of 24 units, trained for 150 steps of Adam, weights chosen on the
validation rows.

Trials are kept under --kept (a folder); the counts are written to benchmarks/decisions.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from probatum.bench.statistics import adjust, over_rows, paired
from probatum.bench.two_way import Trial
from probatum.bench.verdict import decide
from probatum.data.dataset import FRACTIONS
from probatum.data.folds import draw_folds
from probatum.data.library import root
from probatum.data.split import SplitPlan

HERE = Path(__file__).parent
OUT = HERE / "decisions.json"
TRIALS, JUDGED, SEEDS, MARGIN = 50, 25, (6, 8, 12, 24), 0.01
RATIO = FRACTIONS[2] / FRACTIONS[0]
NEW = 40_000
"""New rows on which the trials that are not judged tell the truth."""
CERTAIN = 1.96
"""Standard errors of that truth that are added (in squares) to half an interval of 95 %."""
WIDTH, STEPS, BATCH, LOOK = 24, 150, 64, 15

Table = tuple[np.ndarray, np.ndarray]


class Rows(NamedTuple):
    """One data set: what its judged trials say, and what is true.

    Attributes:
        tested: (judged, tested) row numbers.
        right: (arms, judged, tested) whether right.
        truth: (2, arms) how much more often than the baseline an arm is right, by the other trials on new rows, and that
            figure's standard error.
    """

    tested: np.ndarray
    right: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Design:
    """A kind of data sets and what is tried on them.

    Attributes:
        sets: how many data sets.
        rows: of each.
        table: generator -> features and classes of one data set.
        arms: names, the baseline first.
        run: features, classes, new rows of the source, seed of the data set -> its trials.
    """

    sets: int
    rows: int
    table: Callable[[np.random.Generator, int], Table]
    arms: tuple[str, ...]
    run: Callable[[np.ndarray, np.ndarray, Table, int], Rows]


class Kind(NamedTuple):
    """One arm of the networks: what differs from the baseline."""

    rate: float = 0.01
    smoothing: float = 0.0
    dropout: float = 0.0
    decay: float = 0.0
    noise: float = 0.0


NETWORKS = {
    "baseline": Kind(),
    "again": Kind(),
    "label smoothing": Kind(smoothing=0.1),
    "dropout": Kind(dropout=0.1),
    "weight decay": Kind(decay=0.1),
    "slower": Kind(rate=0.003),
    "input noise": Kind(noise=0.2),
}


def folds(y: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Train, valid and test rows of every trial."""
    plan = SplitPlan(y, np.arange(len(y)))
    names = tuple(str(k) for k in range(int(y.max()) + 1))
    return [draw_folds(plan, seed, FRACTIONS, names) for seed in range(TRIALS)]


def networks(x: np.ndarray, y: np.ndarray, new: Table, seed: int) -> Rows:
    """All arms and trials of one data set at once, as one batched network."""
    generator = torch.Generator().manual_seed(seed)
    parts = folds(y)
    size = [min(len(part[k]) for part in parts) for k in range(3)]
    index = [
        torch.as_tensor(np.stack([part[k][: size[k]] for part in parts])).repeat(len(NETWORKS), 1) for k in range(3)
    ]
    inputs, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    kinds = [kind for kind in NETWORKS.values() for _ in range(TRIALS)]
    known = {name: torch.tensor([getattr(kind, name) for kind in kinds]) for name in Kind._fields}
    weights = _drawn(len(kinds), x.shape[1], int(y.max()) + 1, generator)
    states = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    best = torch.full((len(kinds),), -1.0)
    kept = [w.clone() for w in weights]
    for step in range(1, STEPS + 1):
        chosen = index[0].gather(1, torch.randint(size[0], (len(kinds), BATCH), generator=generator))
        batch = inputs[chosen] + known["noise"][:, None, None] * torch.randn(
            *chosen.shape, x.shape[1], generator=generator
        )
        leaves = [w.requires_grad_() for w in weights]
        loss = _loss(_outputs(leaves, batch, known["dropout"], generator), labels[chosen], known["smoothing"])
        gradients = torch.autograd.grad(loss.sum(), leaves)
        weights = _adam(leaves, gradients, states, step, known["rate"] * _factor(step), known["decay"])
        if step % LOOK == 0:
            right = _right(weights, inputs, labels, index[1])
            better = right > best
            best = torch.where(better, right, best)
            kept = [torch.where(better.view(-1, *[1] * (w.ndim - 1)), w, k) for w, k in zip(weights, kept, strict=True)]
    first = torch.arange(len(kinds)) % TRIALS < JUDGED
    with torch.no_grad():
        known_rows, own = index[2][first], [w[first] for w in kept]
        guesses = torch.cat(
            [_outputs(own, inputs[rows]).argmax(dim=2) for rows in known_rows.split(2000, dim=1)], dim=1
        )
        others, known_y = torch.as_tensor(new[0], dtype=torch.float32), torch.as_tensor(new[1])
        told, truth = [w[~first] for w in kept], Truth(len(NETWORKS))
        for rows in torch.arange(len(others)).split(1000):
            output = _outputs(told, others[rows].expand(len(told[0]), -1, -1))
            truth.add((output.argmax(dim=2) == known_y[rows]).view(len(NETWORKS), TRIALS - JUDGED, -1).numpy())
    hits = (guesses == labels[known_rows]).view(len(NETWORKS), JUDGED, -1).numpy()
    return Rows(known_rows[:JUDGED].numpy(), hits, truth.found())


class Truth:
    """Sums over new rows, chunk by chunk: the gains over the baseline and their error over trials and rows."""

    def __init__(self, arms: int) -> None:
        self.rows, self.by_trial = 0, np.zeros((arms, TRIALS - JUDGED))
        self.squares = np.zeros(arms)

    def add(self, right: np.ndarray) -> None:
        """(arms, trials, rows) whether right."""
        gains = right.astype(np.float64) - right[:1]
        self.rows += gains.shape[2]
        self.by_trial += gains.sum(axis=2)
        self.squares += (gains.mean(axis=1) ** 2).sum(axis=1)

    def found(self) -> np.ndarray:
        """(2, arms): gains and standard errors."""
        means = self.by_trial / self.rows
        over_trials = means.var(axis=1, ddof=1) / means.shape[1]
        gain = means.mean(axis=1)
        over_new = (self.squares / self.rows - gain**2) / self.rows
        return np.stack([gain, np.sqrt(over_trials + over_new)])


def _drawn(count: int, inputs: int, classes: int, generator: torch.Generator) -> list[torch.Tensor]:
    found = []
    for a, b in ((inputs, WIDTH), (WIDTH, WIDTH), (WIDTH, classes)):
        found += [torch.randn(count, a, b, generator=generator) * math.sqrt(2 / a), torch.zeros(count, 1, b)]
    return found


def _outputs(
    weights: Sequence[torch.Tensor],
    x: torch.Tensor,
    dropout: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    for k in (0, 2):
        x = torch.baddbmm(weights[k + 1], x, weights[k]).relu()
        if dropout is not None:
            keep = (1 - dropout)[:, None, None]
            x = x * (torch.rand(x.shape, generator=generator) < keep) / keep
    return torch.baddbmm(weights[5], x, weights[4])


def _loss(output: torch.Tensor, labels: torch.Tensor, smoothing: torch.Tensor) -> torch.Tensor:
    log_p = output.log_softmax(dim=2)
    own = log_p.gather(2, labels[:, :, None]).squeeze(2).mean(dim=1)
    return -((1 - smoothing) * own + smoothing * log_p.mean(dim=(1, 2)))


def _factor(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - 1) / STEPS))


def _adam(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    states: Sequence[tuple[torch.Tensor, torch.Tensor]],
    step: int,
    rate: torch.Tensor,
    decay: torch.Tensor,
) -> list[torch.Tensor]:
    """One step of AdamW (Loshchilov & Hutter 2019) with a rate and a decay for each network."""
    found = []
    with torch.no_grad():
        for w, g, (first, second) in zip(weights, gradients, states, strict=True):
            first.lerp_(g, 0.1)
            second.lerp_(g * g, 0.001)
            size = rate.view(-1, 1, 1)
            move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            found.append(w * (1 - size * decay.view(-1, 1, 1)) - size * move)
    return found


def _right(
    weights: Sequence[torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    with torch.no_grad():
        hits = [
            (_outputs(weights, inputs[rows]).argmax(dim=2) == labels[rows]).float() for rows in index.split(2000, 1)
        ]
    return torch.cat(hits, dim=1).mean(dim=1)


def learners(x: np.ndarray, y: np.ndarray, new: Table, seed: int) -> Rows:
    """Scikit-learn's learners, trained on the training rows."""
    parts = folds(y)
    size, made, truth = min(len(part[2]) for part in parts), _learners(seed), Truth(len(_learners(seed)))
    right = np.zeros((len(made), JUDGED, size), dtype=bool)
    told = np.zeros((len(made), TRIALS - JUDGED, len(new[1])), dtype=bool)
    for t, (train, _, test) in enumerate(parts):
        for a, model in enumerate(made.values()):
            model.fit(x[train], y[train])
            if t < JUDGED:
                right[a, t] = model.predict(x[test[:size]]) == y[test[:size]]
            else:
                told[a, t - JUDGED] = model.predict(new[0]) == new[1]
    for rows in np.array_split(np.arange(len(new[1])), 20):
        truth.add(told[:, :, rows])
    return Rows(np.stack([part[2][:size] for part in parts[:JUDGED]]), right, truth.found())


def _learners(seed: int) -> dict[str, Any]:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.tree import DecisionTreeClassifier

    return {
        "logistic": LogisticRegression(),
        "logistic 0.1": LogisticRegression(C=0.1),
        "logistic 0.01": LogisticRegression(C=0.01),
        "discriminants": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01),
        "naive Bayes": GaussianNB(),
        "small tree": DecisionTreeClassifier(max_depth=4, random_state=seed),
        "full tree": DecisionTreeClassifier(random_state=seed),
        "SGD": SGDClassifier(loss="log_loss", random_state=seed),
    }


def drawn(generator: np.random.Generator, rows: int) -> Table:
    """Twelve features and three classes of a law that is neither linear nor separable."""
    x = 0.5 * generator.normal(size=(rows, 1)) + generator.normal(size=(rows, 12))
    scores = np.stack(
        [
            1.2 * x[:, 0] + 0.9 * x[:, 1] * x[:, 2],
            0.8 * x[:, 3] - 0.6 * x[:, 0] + 0.5 * x[:, 4] ** 2,
            np.abs(x[:, 5]) + 0.7 * x[:, 6] - 0.4 * x[:, 1],
        ],
        axis=1,
    )
    return x, (2 * scores + generator.gumbel(size=scores.shape)).argmax(axis=1)


def mnist(generator: np.random.Generator, rows: int) -> Table:
    """Rows of MNIST, every second pixel each way."""
    x, y = _mnist()
    chosen = generator.choice(len(y), rows, replace=False)
    return x[chosen], y[chosen]


def adult(generator: np.random.Generator, rows: int) -> Table:
    """Rows of adult: numbers standardised, categories one-hot."""
    x, y = _adult()
    chosen = generator.choice(len(y), rows, replace=False)
    return x[chosen], y[chosen]


_KEPT: dict[str, Table] = {}


def _mnist() -> Table:
    if "mnist" not in _KEPT:
        held = np.load(root() / "mnist" / "mnist.npz")
        images = next(held[name] for name in held.files if held[name].ndim == 3 and len(held[name]) > 50_000)
        labels = next(held[name] for name in held.files if held[name].ndim == 1 and len(held[name]) == len(images))
        _KEPT["mnist"] = (images[:, ::2, ::2].reshape(len(images), -1) / 255.0, labels.astype(np.int64))
    return _KEPT["mnist"]


def _adult() -> Table:
    if "adult" not in _KEPT:
        import polars

        frame = polars.read_parquet(root() / "tables" / "adult.parquet").drop("split", "fnlwgt")
        y = (frame["income"].cast(polars.String).str.contains(">")).to_numpy().astype(np.int64)
        frame = frame.drop("income")
        columns = []
        for name in frame.columns:
            if frame[name].dtype.is_numeric():
                column = frame[name].fill_null(0).to_numpy().astype(float)
                columns.append(((column - column.mean()) / column.std())[:, None])
            else:
                words, codes = np.unique(frame[name].fill_null("?").cast(polars.String).to_numpy(), return_inverse=True)
                columns.append(np.eye(len(words))[codes])
        _KEPT["adult"] = (np.concatenate(columns, axis=1), y)
    return _KEPT["adult"]


_NAMES, _MADE = tuple(NETWORKS), tuple(_learners(0))
DESIGNS = {
    "networks, MNIST, 500": Design(100, 500, mnist, _NAMES, networks),
    "networks, adult, 500": Design(100, 500, adult, _NAMES, networks),
    "networks, drawn, 500": Design(60, 500, drawn, _NAMES, networks),
    "networks, MNIST, 2500": Design(50, 2500, mnist, _NAMES, networks),
    "networks, drawn, 25000": Design(16, 25000, drawn, _NAMES, networks),
    "learners, adult, 500": Design(70, 500, adult, _MADE, learners),
    "learners, drawn, 2500": Design(25, 2500, drawn, _MADE, learners),
}


def made(name: str, design: Design, sets: int, kept: Path, tell: Callable[[str], None]) -> list[Rows]:
    """The data sets of a design, made or found; each is kept as soon as it is there."""
    kept.mkdir(parents=True, exist_ok=True)
    found, begun, new = [], time.monotonic(), 0
    for k in range(sets):
        path = kept / f"{name.replace(', ', '-')}-{k}.npz"
        if path.exists():
            held = np.load(path)
            if "truth" not in held:
                raise SystemExit(f"{path} was kept by an earlier version; give another folder by --kept")
            right = np.unpackbits(held["right"], axis=-1, count=held["tested"].shape[1]) > 0
            found.append(Rows(held["tested"], right, held["truth"]))
            continue
        x, y = design.table(np.random.default_rng([len(name), k]), design.rows + NEW)
        classes = np.unique(y[: design.rows])  # rows of others are answered wrongly
        codes = np.where(np.isin(y, classes), np.searchsorted(classes, y), -1)
        rows = design.run(x[: design.rows], codes[: design.rows], (x[design.rows :], codes[design.rows :]), k)
        right = np.packbits(rows.right, axis=-1)
        np.savez_compressed(path, tested=rows.tested.astype(np.int32), right=right, truth=rows.truth)
        found.append(rows)
        new += 1
        if new == 1 or new % 10 == 0:
            left = (time.monotonic() - begun) / new * (sets - k - 1)
            tell(f"  {name}: {k + 1} of {sets} data sets, about {left / 60:.0f} min left")
    return found


def trials_of(rows: Rows, arm: int) -> list[Trial]:
    """The arm's paired differences to the baseline, a trial a seed."""
    found = []
    for t in range(len(rows.tested)):
        x = rows.right[arm, t].astype(float) - rows.right[0, t]
        found.append(Trial(float(x.mean()), rows.tested[t], x - x.mean(), len(x), 1.0))
    return found


def words(trials: Sequence[Sequence[Trial]], by_rows: bool) -> list[tuple[str, float, float]]:
    """Word and ends of the interval for the arms of one data set."""
    if by_rows:
        found = [over_rows(own) for own in trials]
    else:
        found = [paired([trial.mean for trial in own], test_fraction_ratio=RATIO) for own in trials]
    p = adjust([interval.p for interval in found])
    ratio = None if by_rows else RATIO
    said = [
        decide(i, margin=MARGIN, p_adjusted=q, ratio=ratio, ahead=False).word for i, q in zip(found, p, strict=True)
    ]
    return [(word, i.low, i.high) for word, i in zip(said, found, strict=True)]


def judged(design: Design, sets: Sequence[Rows]) -> dict[str, dict[str, float]]:
    """By seeds and rule: share decided, by trial, wrong words, errors of the interval, median half-width.

    The error over data sets is that of the wider interval that `--for datasets` gives; before, there was one for both.
    """
    count = len(design.arms)
    trials = [[trials_of(rows, arm) for arm in range(1, count)] for rows in sets]
    truths = np.array([rows.truth[:, 1:] for rows in sets])
    over = truths[:, 0].mean(axis=0)
    errors = truths[:, 0].std(axis=0, ddof=1) / math.sqrt(len(sets)) if len(sets) > 1 else truths[0, 1]
    kappa = FRACTIONS[0] / (1 - FRACTIONS[0])
    found: dict[str, dict[str, float]] = {}
    for seeds in SEEDS:
        for by_rows in (False, True):
            decided = wrong = missed = beyond = total = 0
            halves = []
            for arms, truth in zip(trials, truths, strict=True):
                some = [own[:seeds] for own in arms]
                for a, (own, (word, low, high)) in enumerate(zip(some, words(some, by_rows), strict=True)):
                    total += 1
                    decided += word != "undecided"
                    wrong += _wrong(word, float(truth[0, a]))
                    missed += _missed(low, high, truth[0, a], truth[1, a])
                    wider = over_rows(own, kappa=kappa) if by_rows else None
                    ends = (low, high) if wider is None else (wider.low, wider.high)
                    beyond += _missed(*ends, over[a], errors[a])
                    halves.append((high - low) / 2)
            found[f"{seeds} seeds, {'by rows' if by_rows else 'before'}"] = {
                "decided": decided / total,
                "decided by trial": decided / total / seeds,
                "wrong words": wrong / total,
                "interval error": missed / total,
                "interval error over data sets": beyond / total,
                "half-width": float(np.median(halves)),
            }
    return found


def _missed(low: float, high: float, truth: float, error: float) -> bool:
    """Whether an interval misses a truth that is itself known to a standard error."""
    return abs(truth - (low + high) / 2) > math.hypot((high - low) / 2, CERTAIN * error)


def _wrong(word: str, true: float) -> bool:
    if word == "no material difference":
        return abs(true) >= MARGIN
    return (word == "helps" and true <= 0) or (word == "hurts" and true >= 0)


def summary(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """What is promised of it: decisions by trial at 24 seeds before against 6 now, and at equal seeds; errors."""

    def mean(key: str, what: str) -> float:
        return float(np.mean([table[key][what] for table in found.values()]))

    def times(now: float, before: float) -> str:
        return f"{now / before:.1f} times" if before else "many times"

    far = times(mean("6 seeds, by rows", "decided by trial"), mean("24 seeds, before", "decided by trial"))
    lines = [f"decisions by trial, 6 seeds now against 24 before: {far}"]
    for seeds in SEEDS:
        ratio = times(mean(f"{seeds} seeds, by rows", "decided"), mean(f"{seeds} seeds, before", "decided"))
        error = max(table[f"{seeds} seeds, by rows"]["interval error"] for table in found.values())
        lines.append(f"{seeds} seeds: {ratio} as many decided; largest error of a design {error:.1%}")
    return lines


def main() -> None:
    """Make what lacks, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("design", nargs="*", help=f"of: {'; '.join(DESIGNS)} (dashes for commas), by beginning")
    parser.add_argument("--sets", type=int, help="data sets of each, at most")
    parser.add_argument("--kept", type=Path, default=Path("probatum-runs") / "decisions")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {n: d for n, d in DESIGNS.items() if not asked.design or any(n.startswith(a) for a in asked.design)}
    found = {}
    for name, design in chosen.items():
        sets = min(design.sets, asked.sets or design.sets)
        found[name] = judged(design, made(name, design, sets, asked.kept, lambda line: print(line, flush=True)))
        print(f"{name} ({sets} data sets, {len(design.arms) - 1} arms)")
        for key, row in found[name].items():
            print(
                f"  {key}: decided {row['decided']:.1%} ({row['decided by trial']:.4f} a trial), wrong words "
                f"{row['wrong words']:.2%}, interval error {row['interval error']:.1%} (over data sets "
                f"{row['interval error over data sets']:.1%}), half-width "
                f"{100 * row['half-width']:.2f} points",
                flush=True,
            )
    print("\n".join(summary(found)))
    if not asked.design and not asked.sets:
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
