"""Labels that contradict what like rows say: confident learning out of fold, with the audited model as second voice."""

from __future__ import annotations

import numpy as np

from probatum.auditing.case import FOLDS, MOST, Case
from probatum.auditing.finding import FAULT, NOT_MEASURABLE, PASS, Finding, not_measurable, percent
from probatum.auditing.label_noise import Altered, altered
from probatum.measure.groups import wilson

FEW = 100
SUREST = 0.15
"""Share of the rows by which labels are judged: the more classes overlap, the fewer rows are beyond doubt."""
LEAST_SURE = 60
SHOWN = 25


def suspicious(case: Case) -> Finding:
    """Rows whose label is contradicted by the model (for rows it was not trained on) and by models of the other rows.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068): a row counts where some other class reaches, out of fold,
    the mean probability that rows of that class give it, and the row's own label is less likely than that class. Of the
    audited rows only those count where the audited model, too, answers that class.
    """
    return _finding(case.some("labels"), "suspicious labels", with_model=True)


def suspicious_reference(case: Case) -> Finding | None:
    """The same for the reference rows, which the model may know by heart: without its voice. None without such rows."""
    if case.reference is None or case.task != "classes":
        return None
    rows = case.reference
    if len(rows) > MOST:
        rows = rows.take(np.sort(case.rng("labels of reference").choice(len(rows), MOST, replace=False)))
    other = Case(case.subject, rows, np.zeros((len(rows), case.output.shape[1])), limits=case.limits, seed=case.seed)
    return _finding(other, "suspicious labels (reference rows)", with_model=False)


def _finding(case: Case, name: str, *, with_model: bool) -> Finding:
    if case.task != "classes":
        return not_measurable(name, "the targets are reals")
    if len(case.rows) < FEW:
        return not_measurable(name, f"{len(case.rows)} rows are too few; {FEW} or more are needed")
    counts = np.bincount(case.y, minlength=case.output.shape[1])
    p, each = case.others, case.each_other
    if p is None or each is None:
        rare = case.rows.spec.classes[int(counts.argmin())]
        return not_measurable(name, f"class {rare!r} has {counts.min()} rows; {FOLDS} are needed, one in every fold")
    marked, instead = confident_disagreement(p, case.y)
    sure, against = contradictions(p, case.y)
    if with_model:
        marked &= case.guess == instead
        against &= case.guess[sure] == p[sure].argmax(axis=1)
    count, n = int(marked.sum()), len(marked)
    wrong, of = int(against.sum()), len(sure)
    noise = altered(each, case.y)
    low, high = wilson(wrong, of)
    many = low > case.limits.suspicious
    bad = noise.matters(low, case.limits.suspicious)
    own = p[np.arange(n), case.y]
    order = sorted(np.flatnonzero(marked).tolist(), key=lambda i: own[i])
    numbers, classes = case.rows.part.rows.numpy(), case.rows.spec.classes
    table = tuple(
        {
            "row": int(numbers[i]),
            "label": classes[case.y[i]],
            "rather": classes[instead[i]],
            "p(label)": f"{own[i]:.3f}",
            "p(rather)": f"{p[i, instead[i]]:.3f}",
        }
        for i in order[:SHOWN]
    )
    return Finding(
        name,
        FAULT if bad else NOT_MEASURABLE if many and not noise.told else PASS,
        f"{wrong} of the {of} surest rows contradicted ({percent(wrong / of)} [{percent(low)}, {percent(high)}]); {count} listed",
        f"lower end > {percent(case.limits.suspicious)}, not fading away from the borders of classes",
        f"Surest are the {percent(SUREST)} that models of the other rows are surest of, since overlap of classes is no mistake. "
        + explained(noise, many=many, bad=bad)
        + "Listed are all rows whose label they contradict"
        + (" together with the audited model." if with_model else "."),
        ("noisy-labels",) if bad else (),
        {
            "rows": [int(numbers[i]) for i in order],
            "rather": [classes[instead[i]] for i in order],
            "p": [float(own[i]) for i in order],
            "share": wrong / of,
            "altered": noise._asdict(),
            "listed": count / n,
            "interval": [low, high],
        },
        table,
    )


def explained(noise: Altered, *, many: bool, bad: bool) -> str:
    """What the likelihood says of wrong labels, where many are contradicted; else ""."""
    if not many:
        return ""
    if not noise.told:
        return (
            "That cannot be told: overlap of the classes explains as many, and labels that are often mistaken for one certain "
            "other class look the same to models that learn from them. Look at some of the listed rows. "
        )
    wrong = f"{percent(noise.share)} of all labels [{percent(noise.low)}, {percent(noise.high)}]"
    if not bad:
        return f"Overlap of the classes explains most of them: likeliest is that {wrong} are wrong. "
    return (
        f"Likeliest is that {wrong} are wrong, if they are so as often everywhere and these models are right about where "
        "classes overlap: outcomes that are uncertain far from any border, and rows that such models fit badly, look the same. "
    )


def contradictions(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that other models are surest of, (m,) their numbers; and whether the label is another (m,) bool."""
    top = p.max(axis=1)
    share = min(1.0, max(SUREST, LEAST_SURE / len(top)))
    rows = np.flatnonzero(top >= np.quantile(top, 1 - share))
    return rows, y[rows] != p[rows].argmax(axis=1)


def confident_disagreement(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows lie off the diagonal of the confident joint, (n,) bool, and the class they belong to instead (n,).

    Args:
        p: (n, K) probabilities by models that did not see the row.
        y: (n,) given labels.
    """
    k = p.shape[1]
    limit = np.array([p[y == c, c].mean() if (y == c).any() else np.inf for c in range(k)])
    reached = np.where(p >= limit, p, -1.0)
    instead = reached.argmax(axis=1)
    marked = (reached.max(axis=1) >= 0) & (instead != y) & (p[np.arange(len(y)), instead] > p[np.arange(len(y)), y])
    return marked, np.where(marked, instead, y)
