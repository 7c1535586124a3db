"""What every model of rows promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probatum.arenas.generate.arena import damage, how, kinds, rows_of
from probatum.checks.subject import Subject, demand, fingerprint
from probatum.measure.restoration import psnr
from probatum.numerics.images.restoration import Identity
from probatum.spec import Budget, Data
from probatum.train.rng import generator_for


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A few rows with noise taken away, and with lost places filled."""
    data = subject.data()
    rows = rows_of(data)
    prior = learned(subject, data, Budget(12, 16, 4), settings)
    operator, b = damage(rows.test[:6], "inpaint", how(data.spec).NOISE, generator_for(0, "check", "damage"))
    return {"denoised": prior.denoise(b), "restored": prior.restore(b, operator)}


def check_restores_rows_of_every_modality(subject: Subject) -> None:
    """Finite rows of the shape given, for every kind of damage, and for one row; what it is given stays as it was."""
    for modality in subject.modalities():
        data = subject.data(modality=modality)
        rows = rows_of(data)
        before = fingerprint(rows.train)
        prior = learned(subject, data, Budget(4, 16, 4))
        demand(before == fingerprint(rows.train), f"{modality}: training rows were changed")
        for kind in kinds(rows.spec):
            operator, b = damage(rows.test[:5], kind, how(data.spec).NOISE, torch.Generator().manual_seed(1))
            before = fingerprint(b)
            _good(prior.restore(b, operator), b, f"{modality}, {kind}")
            demand(before == fingerprint(b), f"{modality}, {kind}: what it was given was changed")
        one = rows.test[:1]
        _good(prior.denoise(one), one, f"{modality}, one row")
        demand(not torch.is_inference(prior.denoise(one)), "it leaves inference tensors")


def check_takes_noise_away(subject: Subject) -> None:
    """After 200 steps at settings for use, what it denoises of very noisy rows is nearer to the truth than before."""
    data = subject.data()
    rows, noise = rows_of(data), 3 * how(data.spec).NOISE
    prior = learned(subject, data, Budget(200, 16, 4), {}, noise=noise)
    _, b = damage(rows.test, "denoise", noise, torch.Generator().manual_seed(1))
    before, after = psnr(b, rows.test), psnr(prior.denoise(b).detach(), rows.test)
    demand(after > before, f"{after:.2f} dB after, {before:.2f} dB before")
    whole = psnr(prior.restore(b, Identity()).detach(), rows.test)
    demand(abs(whole - after) < 1.0, f"restore with A = I gives {whole:.2f} dB, denoise {after:.2f} dB")


def check_rows_are_problems_of_their_own(subject: Subject) -> None:
    """A row is restored to the same values alone and among others."""
    data = subject.data()
    rows = rows_of(data)
    prior = learned(subject, data, Budget(4, 16, 4))
    _, b = damage(rows.test[:6], "denoise", 0.1, torch.Generator().manual_seed(1))
    gap = float((prior.denoise(b)[2:3] - prior.denoise(b[2:3])).abs().max())
    demand(gap < 1e-4, f"a row differs by {gap:.1e} when others stand beside it")


def learned(
    subject: Subject,
    data: Data,
    budget: Budget,
    settings: Mapping[str, Any] | None = None,
    *,
    noise: float | None = None,
) -> Any:
    """The technique's prior for the toy data's rows, at its tiny settings or these, for the arena's noise or this."""
    rows = rows_of(data)
    inside = Data(rows.spec, data.train, data.valid, data.test)
    fixed = {"x": rows.train, "noise": noise or how(data.spec).NOISE, "budget": budget}
    return subject.call(inside, settings, **fixed)


def _good(x: Tensor, b: Tensor, where: str) -> None:
    demand(
        x.shape == b.shape and x.dtype == b.dtype, f"{where}: {x.dtype} {tuple(x.shape)} for {b.dtype} {tuple(b.shape)}"
    )
    demand(bool(torch.isfinite(x).all()), f"{where}: values that are not finite")
    demand(not x.requires_grad, f"{where}: it comes with a graph")
