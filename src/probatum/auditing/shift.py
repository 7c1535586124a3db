"""Checks of the rows against others: are they from the same population, in the same class shares, and who stands apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp

from probatum.auditing.case import Case, input_features, learned_features
from probatum.auditing.confidence import auroc_interval
from probatum.auditing.finding import FAULT, PASS, Finding, not_measurable, percent
from probatum.auditing.rows import Rows, how
from probatum.measure.groups import wilson
from probatum.measure.outside import auroc

FEW = 40
NEIGHBOURS = 5
PERMUTATIONS = 999
SHOWN = 20


def shift(case: Case) -> Finding:
    """Can a classifier tell the audited rows from the reference, or later rows from earlier ones (two-sample test).

    Lopez-Paz and Oquab 2017 (arXiv:1610.06545): trained on one half of both, AUROC on the other half, p by permutation
    of which rows are which there.
    """
    compared = _sides(case)
    if compared is None:
        return not_measurable(
            "shift", "nothing to compare with: give --reference FILE (rows like the training rows) or --time COLUMN"
        )
    old, new, words = compared
    if min(len(old), len(new)) < FEW:
        return not_measurable("shift", f"{len(old)} and {len(new)} rows are too few; {FEW} of each are needed")
    before, now = input_features(old, new)
    area, p, n, m = two_sample(before, now, case.rng("shift"))
    low, high = auroc_interval(area, n, m)
    bad = p < case.limits.level and area >= case.limits.shift
    table = _columns(old, new) if bad or p < case.limits.level else ()
    return Finding(
        "shift",
        FAULT if bad else PASS,
        f"told apart with AUROC {area:.3f} [{low:.3f}, {high:.3f}], p {p:.3g}",
        f"AUROC ≥ {case.limits.shift:g} and p < {case.limits.level:g}",
        f"{words}.",
        ("shifted",) if bad else (),
        {"auroc": area, "interval": [low, high], "p": p},
        table,
    )


def label_shift(case: Case) -> Finding:
    """Do the classes come in other shares than in the reference, or later than earlier."""
    if case.task != "classes":
        return not_measurable("label shift", "the targets are reals")
    compared = _sides(case)
    if compared is None:
        return not_measurable("label shift", "nothing to compare with: give --reference FILE or --time COLUMN")
    old, new, words = compared
    k = case.rows.spec.outputs
    counts = np.stack([np.bincount(rows.part.y.numpy(), minlength=k) for rows in (old, new)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    seen = counts.sum(axis=0) > 0
    p = float(chi2_contingency(counts[:, seen]).pvalue) if seen.sum() > 1 else 1.0
    bad = p < case.limits.level and distance >= case.limits.label_shift
    order = np.argsort(-np.abs(shares[1] - shares[0]))[:SHOWN]
    names = case.rows.spec.classes
    return Finding(
        "label shift",
        FAULT if bad else PASS,
        f"class shares differ by {distance:.3f} (total variation), p {p:.3g}",
        f"≥ {case.limits.label_shift:g} and p < {case.limits.level:g}",
        f"{words}.",
        ("label-shift",) if bad else (),
        {"distance": distance, "p": p},
        tuple(
            {"class": names[i], "before": percent(shares[0, i]), "now": percent(shares[1, i])} for i in order if seen[i]
        ),
    )


def outliers(case: Case) -> Finding:
    """Rows far from the others: distance to the nearest neighbours, ranked among the reference rows' own distances.

    Without reference rows the audited ones are judged among themselves, and far means six robust deviations of the
    logarithm above the median.
    """
    some, others = case.some("outliers"), case.reference
    if len(some.rows) < FEW:
        return not_measurable("outliers", f"{len(some.rows)} rows are too few; {FEW} or more are needed")
    where, found = "the inputs", input_features(some.rows) if others is None else input_features(others, some.rows)
    learned = learned_features(case.subject, some.rows) if others is None else None
    if (
        learned is not None
    ):  # with a reference inputs alone are fair: a network draws the rows it was trained on together
        where, found = "the network's last features", [learned]
    if others is None or len(others) < FEW:
        distance = _distance(found[-1], None)
        logs = np.log(np.maximum(distance, 1e-12))
        middle = float(np.median(logs))
        deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
        score = (logs - middle) / max(deviation, 1e-9)
        # logs of distances vary little: a row must also be three times as far as the middle one
        far = (score > 6) & (logs - middle > np.log(3))
        told, expected = "six robust deviations from the middle row", 0.0
    else:
        known, distance = _distance(found[0], None), _distance(found[1], found[0])
        score = distance / max(float(np.quantile(known, 0.99)), 1e-12)
        far, told, expected = score > 1, "farther than 99 % of the reference rows are from each other", 0.01
    count, n = int(far.sum()), len(far)
    low, high = wilson(count, n)
    bad = low > case.limits.outliers + expected
    top = np.argsort(-score)[: min(SHOWN, count)]
    numbers = some.rows.part.rows.numpy()
    return Finding(
        "outliers",
        FAULT if bad else PASS,
        f"{count} of {n} rows ({percent(count / n)}, [{percent(low)}, {percent(high)}])",
        f"lower end > {percent(case.limits.outliers + expected)}",
        f"Far by {where}: {told}.",
        ("outliers",) if bad else (),
        {"rows": [int(numbers[i]) for i in np.argsort(-score)[:count]], "share": count / n, "interval": [low, high]},
        tuple({"row": int(numbers[i]), "distance": f"{distance[i]:.3g}", "score": f"{score[i]:.2f}"} for i in top),
    )


def two_sample(old: np.ndarray, new: np.ndarray, rng: np.random.Generator) -> tuple[float, float, int, int]:
    """AUROC of telling new from old rows on the half that the classifier did not see, permutation p, and that half's sizes."""
    from sklearn.ensemble import ExtraTreesClassifier

    most = 2000
    halves = []
    for values in (old, new):
        index = rng.permutation(len(values))[:most]
        halves.append((values[index[::2]], values[index[1::2]]))
    (old_train, old_test), (new_train, new_test) = halves
    trees = ExtraTreesClassifier(
        200, min_samples_leaf=3, class_weight="balanced", random_state=int(rng.integers(2**31))
    )
    trees.fit(np.concatenate([old_train, new_train]), np.repeat([0, 1], [len(old_train), len(new_train)]))
    scores = trees.predict_proba(np.concatenate([old_test, new_test]))[:, 1]
    n = len(old_test)
    area = auroc(scores[n:], scores[:n])
    drawn = []
    for _ in range(PERMUTATIONS):
        mixed = rng.permutation(scores)
        drawn.append(auroc(mixed[n:], mixed[:n]))
    return area, float((1 + (np.asarray(drawn) >= area).sum()) / (1 + PERMUTATIONS)), n, len(new_test)


def _sides(case: Case) -> tuple[Rows, Rows, str] | None:
    if case.reference is not None:
        return case.reference, case.rows, f"{len(case.rows)} audited rows against {len(case.reference)} reference rows"
    if not case.time or case.rows.columns is None:
        return None
    moment = case.rows.columns[case.time]
    known = np.flatnonzero(moment.is_not_null().to_numpy())
    order = known[moment.drop_nulls().arg_sort().to_numpy()]
    half = len(order) // 2
    words = f"the later half of the rows against the earlier half, by {case.time}"
    if len(order) < len(moment):
        words += f"; {len(moment) - len(order)} rows without it are left out"
    rows = _without(case.rows, case.time)
    return rows.take(order[:half]), rows.take(order[half:]), words


def _without(rows: Rows, name: str) -> Rows:
    """Rows of a table with one input held at 0: by the column that orders them, halves are told apart whatever they hold."""
    columns = [i for i, feature in enumerate(rows.spec.features) if feature == name]
    if not how(rows.spec).COLUMNS or not columns:
        return rows
    x = rows.part.x.clone()
    x[:, columns] = 0
    return replace(rows, part=replace(rows.part, x=x))


def _columns(old: Rows, new: Rows) -> tuple[dict[str, str], ...]:
    """The columns of a table that differ most, by the Kolmogorov-Smirnov distance."""
    if not how(old.spec).COLUMNS:
        return ()
    names = old.spec.features
    tests = [ks_2samp(old.part.x[:, i].numpy(), new.part.x[:, i].numpy()) for i in range(len(names))]
    order = sorted(range(len(names)), key=lambda i: -tests[i].statistic)[:5]
    return tuple({"column": names[i], "KS distance": f"{tests[i].statistic:.3f}"} for i in order)


def _distance(points: np.ndarray, others: np.ndarray | None) -> np.ndarray:
    """Mean distance (n,) to the nearest neighbours among `others`, or among the other points."""
    from sklearn.neighbors import NearestNeighbors

    known = points if others is None else others
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS + (others is None), len(known))).fit(known)
    found = nearest.kneighbors(points)[0]
    return found[:, 1:].mean(axis=1) if others is None else found[:, :NEIGHBOURS].mean(axis=1)
