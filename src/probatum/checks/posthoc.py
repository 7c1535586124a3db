"""What every calibrator promises."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.checks.logits import logits_and_target
from probatum.checks.subject import NotThisOneError, Subject, demand, fingerprint


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Tensor:
    """Calibrated probabilities."""
    logits, target = logits_and_target()
    return subject.call(subject.data(), settings).fit(logits, target)(logits).detach()


def neutral(subject: Subject, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The logits' own probabilities, and what it makes of them."""
    return logits_and_target()[0].softmax(dim=1), exercise(subject, settings)


def check_gives_probabilities(subject: Subject) -> None:
    """Rows of probabilities, also on logits far outside what it was fitted on."""
    logits, target = logits_and_target()
    fitted = subject.call(subject.data()).fit(logits, target)
    for scale in (1.0, 100.0, 1e-6):
        p = fitted(scale * logits)
        demand(p.shape == logits.shape, f"shape {tuple(p.shape)} for logits {tuple(logits.shape)}")
        demand(
            bool(torch.isfinite(p).all()) and bool((p >= 0).all()),
            f"probabilities below 0 or not finite (scale {scale})",
        )
        demand(torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-4), f"rows do not sum to 1 (scale {scale})")


def check_keeps_the_argmax(subject: Subject) -> None:
    """Where it claims to, the most probable class stays, at every tuned value, for few classes and many, in float32."""
    if not getattr(subject.entry, "keeps_argmax", False):
        raise NotThisOneError("it does not claim to")
    for settings in subject.variants():
        for classes in (2, 4, 40):
            logits, target = logits_and_target(600, classes)
            p = subject.call(subject.data(), settings).fit(logits, target)(logits)
            same = (p.argmax(dim=1) == logits.argmax(dim=1)).float().mean().item()
            demand(same == 1.0, f"{settings}, {classes} classes: the argmax changed on {1 - same:.1%} of rows")


def check_precisions_agree(subject: Subject) -> None:
    """Logits in half precision and float64 give the probabilities of the same numbers in float32, at every tuned value."""
    for settings in subject.variants():
        logits, target = logits_and_target()
        fitted = subject.call(subject.data(), settings).fit(logits, target)
        for dtype, close in ((torch.float64, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 2e-2)):
            given = logits.to(dtype)
            gap = float((fitted(given).double() - fitted(given.float()).double()).abs().max())
            demand(gap <= close, f"{settings}: probabilities of {dtype} logits are off float32's by {gap:.1e}")


def check_rows_stand_alone(subject: Subject) -> None:
    """One row gets the probabilities that it gets among others; no rows give no rows; memory layout does not matter."""
    logits, target = logits_and_target()
    fitted = subject.call(subject.data()).fit(logits, target)
    wanted = fitted(logits)
    demand(torch.allclose(fitted(logits[5:6]), wanted[5:6], atol=1e-6), "one row alone gets other probabilities")
    demand(fitted(logits[:0]).shape == logits[:0].shape, f"no rows give shape {tuple(fitted(logits[:0]).shape)}")
    spread = logits.t().contiguous().t()
    demand(torch.allclose(fitted(spread), wanted, atol=1e-6), "logits that are not contiguous get other probabilities")


def check_labels_that_do_not_fit(subject: Subject) -> None:
    """Labels outside the classes are refused, rows of a missing label (-100) left out or refused; a class may be without rows."""
    logits, target = logits_and_target()
    missing = torch.where(torch.arange(len(target)) < 9, -100, target)
    with contextlib.suppress(ValueError, TypeError, IndexError, RuntimeError):
        found = subject.call(subject.data()).fit(logits, missing)(logits)
        wanted = subject.call(subject.data()).fit(logits[9:], target[9:])(logits)
        demand(
            torch.allclose(found, wanted, atol=1e-5), "rows with a label of -100 count; leave them out or refuse them"
        )
    for bad in (-1, logits.shape[1]):
        other = target.clone()
        other[3] = bad
        try:
            subject.call(subject.data()).fit(logits, other)
        except (ValueError, TypeError, IndexError, RuntimeError):
            continue
        demand(False, f"a label {bad} of {logits.shape[1]} classes was taken; raise an error that names it")
    some = target != 2
    p = subject.call(subject.data()).fit(logits[some], target[some])(logits)
    demand(bool(torch.isfinite(p).all()), "fitted where one class has no rows, its probabilities are not finite")


def check_fitted_ones_can_be_copied(subject: Subject) -> None:
    """What was fitted can be deep-copied and pickled, and gives the same probabilities then."""
    logits, target = logits_and_target()
    fitted = subject.call(subject.data()).fit(logits, target)
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        demand(torch.equal(twin(logits), fitted(logits)), "a copy gives other probabilities")


def check_calms_overconfidence(subject: Subject) -> None:
    """Fitted on overconfident logits it lowers the log-loss of fresh ones."""
    logits, target = logits_and_target(1200)
    fitted = subject.call(subject.data(), {}).fit(logits[:800], target[:800])
    before = F.cross_entropy(logits[800:], target[800:]).item()
    after = F.nll_loss(fitted(logits[800:]).clamp_min(1e-12).log(), target[800:]).item()
    demand(after < before, f"log-loss {before:.4f} before, {after:.4f} after")


def check_inputs_are_not_changed(subject: Subject) -> None:
    """Logits and targets are read only."""
    logits, target = logits_and_target()
    before = fingerprint([logits, target])
    subject.call(subject.data()).fit(logits, target)(logits)
    demand(fingerprint([logits, target]) == before, "it changed its inputs in place")
