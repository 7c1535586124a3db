"""What every calibrator promises."""

from __future__ import annotations

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
    """Where it claims to, the most probable class stays."""
    if not getattr(subject.entry, "keeps_argmax", False):
        raise NotThisOneError("it does not claim to")
    logits, target = logits_and_target()
    p = subject.call(subject.data()).fit(logits, target)(logits)
    same = (p.argmax(dim=1) == logits.argmax(dim=1)).float().mean().item()
    demand(same == 1.0, f"the argmax changed on {1 - same:.1%} of rows")


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
