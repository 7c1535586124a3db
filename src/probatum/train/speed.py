"""Which speed settings pay on this machine: measured on a study's baseline, chosen once, the same for every arm."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from probatum.engine import Engine
from probatum.measure.cost import Interleaved, interleave
from probatum.rooms.arena import Work
from probatum.train.assemble import budget_for
from probatum.train.stepper import BLOCK, Stepper, stepping

SPEEDS = ("plain", "auto")
TAKEN_BELOW = 0.95
"""A setting is taken where the interval of its ratio to plain lies below this."""

PAIRS, WARMUP = 12, 2
"""Timed calls of each side, and calls before."""

RANK = 2
"""The interval of the median leaves out this many of the 12 ratios at each end: 96 % by the binomial distribution."""

COMPILE_WORTH = 120.0
"""Seconds of training in the whole study below which `torch.compile`, which takes tens of seconds, is not tried."""


@dataclass(frozen=True)
class Probed:
    """What the probe of one setting found.

    Attributes:
        taken: whether every trial of the study uses it.
        ratio: median time of training steps with it over that without, NaN where it was not measured.
        low: lower end of the median's 96 % interval.
        high: its upper end.
        reason: why it was not taken, where the ratio does not say it.
    """

    taken: bool
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    reason: str = ""


def probe(
    work: Work, *, steps: int | None = None, trials: int = 1, arms: int = 1, bf16: bool = False
) -> tuple[Engine, dict[str, Probed]]:
    """Time a few training steps with and without each setting, in turns, and take those that pay, one upon another.

    Args:
        work: the baseline on one split whose rows are in memory; settings are added to its engine.
        steps: updates of one training, over which compilation must pay; None = by the rows of the split.
        trials: trainings that the study will take.
        arms: different networks among them, each compiled once more.
        bf16: whether bfloat16 passes, which change results, may be taken.
    """
    engine, found = work.engine, {}

    def try_setting(name: str, changed: Engine) -> Engine:
        found[name] = _compared(work, changed, engine)
        return changed if found[name].taken else engine

    if len(work.data.spec.shape) == 3:  # what has channels, height and width
        engine = try_setting("channels-last", replace(engine, channels_last=True))
    if bf16 and engine.precision == "float32":
        if native_bf16(engine.device):
            engine = try_setting("bf16", replace(engine, precision="bf16"))
        else:
            found["bf16"] = Probed(False, reason=f"{engine.device} has no bfloat16 arithmetic of its own")
    steps = steps or budget_for(work.recipe.training, len(work.data.train)).steps
    found["compile"] = _compile(work, engine, steps, trials, arms)
    return replace(engine, compile=found["compile"].taken), found


def native_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 numbers itself."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return False


def interval(timed: Interleaved) -> tuple[float, float, float]:
    """Median ratio a / b and the interval of the median by order statistics."""
    ratios = torch.tensor(sorted(timed.log_ratios), dtype=torch.float64).exp()
    return float(ratios.quantile(0.5)), float(ratios[RANK]), float(ratios[-1 - RANK])


def judged(timed: Interleaved) -> Probed:
    """Taken where the whole interval is below `TAKEN_BELOW`."""
    ratio, low, high = interval(timed)
    return Probed(high < TAKEN_BELOW, ratio, low, high)


def as_json(found: Mapping[str, Probed]) -> dict[str, dict[str, Any]]:
    """The table as JSON values; what was not measured is left out."""
    return {
        name: {key: value for key, value in asdict(one).items() if value == value and value != ""}
        for name, one in found.items()
    }


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What `as_json` wrote in words, e.g. ``channels-last: 0.97 of plain (0.95 to 0.99), not taken``."""
    told = []
    for name, one in found.items():
        measured = f"{one['ratio']:.2f} of plain ({one['low']:.2f} to {one['high']:.2f})" if "ratio" in one else ""
        verdict = "taken" if one["taken"] else "not taken"
        told.append(f"{name}: " + "; ".join(t for t in (measured, one.get("reason", "")) if t) + f", {verdict}")
    return told


def _stepping(work: Work, engine: Engine) -> AbstractContextManager[Stepper]:
    """Steps of the work's recipe on this engine."""
    return stepping(work.on(engine=engine), work.recipe)


def _compared(work: Work, changed: Engine, plain: Engine) -> Probed:
    try:
        with warnings.catch_warnings(), _stepping(work, changed) as with_it, _stepping(work, plain) as without:
            warnings.simplefilter("ignore")
            return judged(interleave(with_it.step, without.step, PAIRS, WARMUP))
    except Exception as problem:  # a setting that this network cannot take is not taken
        return Probed(False, reason=_failed(problem))


def _compile(work: Work, engine: Engine, steps: int, trials: int, arms: int) -> Probed:
    """Compilation pays where what it saves over all trainings exceeds what it costs."""
    with _stepping(work, engine) as plain:
        for _ in range(WARMUP + 1):
            plain.step()
        whole = plain.seconds[-1] / BLOCK * steps * trials
        if engine.devices > 1:
            return Probed(False, reason="it is not used over several devices")
        if whole < COMPILE_WORTH:
            return Probed(False, reason=f"the study trains for about {whole:.0f} s, too little for a compiler")
        compiled = replace(engine, compile=True)
        try:
            with warnings.catch_warnings(), _stepping(work, compiled) as first, _stepping(work, compiled) as again:
                warnings.simplefilter("ignore")
                for _ in range(WARMUP):
                    first.step()
                    again.step()
                timed = interleave(first.step, plain.step, PAIRS, 1)
        except Exception as problem:  # no compiler here, or not for this network
            return Probed(False, reason=_failed(problem))
        found = judged(timed)
        cost = max(0.0, first.seconds[0] - timed.a_seconds) * arms
        cost += max(0.0, again.seconds[0] - timed.a_seconds) * trials
    saved = (timed.b_seconds - timed.a_seconds) / BLOCK * steps * trials
    told = f"saves about {max(saved, 0):.0f} s of the study and costs {cost:.0f} s"
    return replace(found, taken=found.taken and saved > cost, reason=told)


def _failed(problem: Exception) -> str:
    line = next(iter(str(problem).strip().splitlines()), "")
    return f"it fails here ({type(problem).__name__}: {line[:120]})"
