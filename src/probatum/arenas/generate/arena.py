"""Arena `generate`: models of the rows themselves, labels unused; for now judged by what they restore.

Every arm of a seed learns from the same clean training rows with as many gradient steps and is offered as many weights as the
baseline has. Test rows are then spoilt once a seed and alike for all arms: by white noise; by noise and the loss of half of
the places; by blur and noise (not for tables). Validation rows choose nothing. Sampling and log-probabilities are not asked for yet.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probatum import catalogue, inject
from probatum.arenas.generate import denoiser
from probatum.arenas.generate.classical_restoration import GaussianLaw, total_variation
from probatum.errors import InputError
from probatum.measure.restoration import psnr
from probatum.numerics.images.restoration import Identity, Mask, Operator, binomial_blur
from probatum.rooms.arena import Outcome, Work
from probatum.rooms.kind import kind_of
from probatum.spec import Budget, Data, Part, Spec
from probatum.train.assemble import budget_for
from probatum.train.rng import generator_for, seeded

BASELINE = "denoiser"
DEGRADED = "degraded input"
VARIATION = "total variation"
GAUSSIAN = "Gaussian prior"
KEPT = 0.5
"""Share of places that inpainting is given."""
MOST = 512
"""Test rows that are restored, the first ones."""
LARGEST = 1024
"""Numbers in a row up to which the Gaussian reference holds a covariance."""
WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Of total variation, times noise; the best on spoilt training rows is taken for each kind of damage."""

Restore = Callable[[Tensor, Operator], Tensor]


@dataclass(frozen=True)
class Rows:
    """What is modelled: clean rows (n, ...) of both parts, a table's numbers alone, and their spec."""

    spec: Spec
    train: Tensor
    test: Tensor


def references(spec: Spec) -> tuple[str, ...]:
    """What was handed over, total variation where rows have neighbours, and one Gaussian of the training rows."""
    size = int(torch.Size(spec.shape).numel())
    variation = (VARIATION,) if how(spec).NEIGHBOURS else ()
    return (DEGRADED, *variation, *((GAUSSIAN,) if size <= LARGEST else ()))


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    return tuple(f"psnr-{kind}" for kind in kinds(spec))


def kinds(spec: Spec) -> tuple[str, ...]:
    """Kinds of damage: a table's columns have no order, so they are not blurred."""
    return ("denoise", "inpaint", "blur") if how(spec).NEIGHBOURS else ("denoise", "inpaint")


def contest(spec: Spec, train: Part) -> dict[str, Any]:
    """The noise and the share of places that are kept; a user sets neither.

    Raises:
        InputError: texts, padded series, tables without numbers, or rows that are streamed from disk.
    """
    how(spec).check(spec)
    if not isinstance(train.x, Tensor):
        raise InputError("arena generate holds its rows in memory; give --memory enough for them, or fewer rows")
    return {"noise": how(spec).NOISE, "kept": KEPT}


def how(spec: Spec) -> Any:
    """What noise, lost places and blur are for this kind of data."""
    return kind_of(spec.modality, spec.task).facet("restoration")


def rows_of(data: Data) -> Rows:
    """What is modelled of the rows, in the kind's units: pixels as they are, columns and channels by training rows' spread."""
    asked = how(data.spec)
    spec, train = asked.modelled(data.spec, data.train.x)
    test, axes = asked.modelled(data.spec, data.test.x[:MOST])[1], asked.units_over(spec)
    if not axes:
        return Rows(spec, train, test)
    mean, spread = train.mean(dim=axes, keepdim=True), train.std(dim=axes, keepdim=True)
    spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    return Rows(spec, (train - mean) / spread, (test - mean) / spread)


def damage(x: Tensor, kind: str, noise: float, generator: torch.Generator) -> tuple[Operator, Tensor]:
    """An operator of this kind and what is measured of rows x (n, ...) through it, with noise.

    Inpainting draws the places of every row by themselves, the same in all its channels; every row keeps one at least.
    """
    operator: Operator = Identity()
    if kind == "inpaint":
        shape = (len(x), x.shape[1]) if x.ndim == 2 else (len(x), 1, *x.shape[2:])
        draws = torch.rand(shape, generator=generator).flatten(1)
        count = max(1, round(KEPT * draws.shape[1]))
        keep = torch.zeros_like(draws).scatter_(1, draws.argsort(dim=1)[:, :count], 1.0)
        operator = Mask(keep.view(shape))
    elif kind == "blur":
        operator = binomial_blur()
    clean = operator.apply(x)
    return operator, clean + noise * torch.randn(clean.shape, generator=generator)


def trial(work: Work) -> Outcome:
    """Learn from the training rows, then restore what was spoilt of the test rows."""
    rules, rows = work.terms.contest or contest(work.data.spec, work.data.train), rows_of(work.data)
    begun = time.perf_counter()
    restore, weights = prior(work, rows, rules["noise"], budget_for(work.arm.recipe.training, len(rows.train)))
    fitted = time.perf_counter()
    found, seen = {}, hashlib.sha256()
    for kind in kinds(rows.spec):
        operator, b = damage(rows.test, kind, rules["noise"], generator_for(work.seed, "damage", kind))
        x = restored(restore, b, operator, work.arm.name)
        found[f"psnr-{kind}"] = psnr(x, rows.test)
        seen.update(x.contiguous().numpy().tobytes())
        if work.progress is not None:
            work.progress(len(found), len(kinds(rows.spec)))
    timing = {"fit-seconds": fitted - begun, "restore-seconds": time.perf_counter() - fitted}
    return Outcome(found, timing, seen.hexdigest()[:16], {"rows": len(rows.test), "weights": weights})


def timings(work: Work) -> dict[str, float]:
    """None: what training and restoring take is in the trials' fit-seconds and restore-seconds."""
    return {}


def rehearse(work: Work) -> None:
    """Two steps and one restoration of few rows; InputError where the arm does not run or answers what cannot be used."""
    rows = rows_of(work.data)
    noise = contest(work.data.spec, work.data.train)["noise"]
    restore, _ = prior(work, rows, noise, Budget(2, min(8, len(rows.train)), 2))
    for kind in kinds(rows.spec):
        operator, b = damage(rows.test[:4], kind, noise, generator_for(work.seed, "damage", kind))
        restored(restore, b, operator, work.arm.name)


def restored(restore: Restore, b: Tensor, operator: Operator, who: str) -> Tensor:
    """What `restore` makes of rows b, finite and of their shape; InputError where it is not."""
    before = b.clone()
    x = restore(b, operator)
    if not isinstance(x, Tensor) or x.shape != b.shape:
        raise InputError(f"{who} restores rows of shape {tuple(getattr(x, 'shape', ()))}, not {tuple(b.shape)}")
    if not torch.isfinite(x).all():
        raise InputError(f"{who} restores values that are not finite ({operator.kind})")
    if not torch.equal(before, b):
        raise InputError(f"{who} changes the rows that it is given in place")
    return x.detach()


def prior(work: Work, rows: Rows, noise: float, budget: Budget) -> tuple[Restore, int]:
    """The arm's way to restore, and how many trained weights it has."""
    if work.builtin == DEGRADED:
        return (lambda b, operator: b), 0
    if work.builtin == VARIATION:
        return _variation(rows.train[:128], noise, work.seed), 0
    if work.builtin == GAUSSIAN:
        law = GaussianLaw.of(rows.train)
        return (lambda b, operator: law.restore(operator, b, noise)), 0
    parameters = denoiser.parameters_for(rows.spec.shape)
    if work.builtin:
        with seeded(work.seed, "initial weights"):
            network = denoiser.Denoiser(rows.spec.shape, parameters)
        own = denoiser.fit(rows.train, noise, budget, generator_for(work.seed, "denoiser"), network)
        return own.restore, _weights(network)
    use = work.player
    offer = {
        "spec": rows.spec,
        "generator": generator_for(work.seed, "technique", use.id),
        "parameters": parameters,
    }
    made = inject.call(use.id, catalogue.entry(use.id), use.settings, offer, x=rows.train, noise=noise, budget=budget)
    return made.restore, _weights(made)


def _variation(x: Tensor, noise: float, seed: int) -> Restore:
    """Total variation whose weight, for each kind of damage, is the best on spoilt training rows x."""
    best: dict[str, float] = {}

    def restore(b: Tensor, operator: Operator) -> Tensor:
        if operator.kind not in best:
            trained, own = damage(x, operator.kind, noise, generator_for(seed, "weight", operator.kind))
            scores = {w: psnr(total_variation(trained, own, w * noise), x) for w in WEIGHTS}
            best[operator.kind] = max(scores, key=scores.__getitem__)
        return total_variation(operator, b, best[operator.kind] * noise)

    return restore


def _weights(made: Any) -> int:
    parameters = made.parameters() if isinstance(made, torch.nn.Module) else ()
    return sum(p.numel() for p in parameters)
