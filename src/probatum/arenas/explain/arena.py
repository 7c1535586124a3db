"""Arena `explain`: explainers of one trained network per seed, compared by faithfulness and cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.arenas.baseline_network import rows_for, trained
from probatum.arenas.predict.fit import run_training
from probatum.errors import InputError
from probatum.measure import cost, faithfulness
from probatum.rooms.arena import Outcome, Work
from probatum.spec import Explanation, Spec
from probatum.train.rng import generator_for

BASELINE = "gradient"
ROWS = 128


def references(spec: Spec) -> tuple[str, ...]:
    """Gradient times input, and a ranking that knows nothing."""
    return ("gradient x input", "random order")


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    return ("deletion-drop", "deletion-area", "completeness-gap", "max-sensitivity", "explain-time-ratio")


def trial(work: Work) -> Outcome:
    """Explain right test rows of the seed's network and take the named features away."""
    model = trained(work)
    x, y = rows_for(work, model, ROWS)
    explain = explainer(work, model)
    found = explain(x, y)
    neutral = neutral_value(work)
    measured = faithfulness.deletion(model, x, y, found.values.detach(), neutral)
    few, their = x[:32], y[:32]
    measured["max-sensitivity"] = faithfulness.max_sensitivity(
        lambda noisy: explain(noisy, their).values.detach(),
        few,
        found.values[:32].detach(),
        generator_for(work.seed, "sensitivity"),
    )
    if found.gap is not None:
        with torch.no_grad():
            change = (model(x) - model(neutral.expand_as(x))).gather(1, y[:, None]).squeeze(1).abs().clamp_min(1e-6)
        measured["completeness-gap"] = float((found.gap.detach().abs() / change).median())
    digest = hashlib.sha256(found.values.detach().contiguous().numpy().tobytes()).hexdigest()[:16]
    example = {"x": x[0].tolist(), "values": found.values[0].detach().tolist(), "target": int(y[0])}
    return Outcome(measured, {}, digest, {"example": example, "rows": len(x)})


def timings(work: Work) -> dict[str, float]:
    """Time of explaining a batch, as a ratio to the baseline's."""
    model = trained(work)
    x, y = rows_for(work, model, 32)
    mine, base = explainer(work, model), _gradient(model)
    timed = cost.interleave(lambda: mine(x, y), lambda: base(x, y), pairs=6, warmup=1)
    return {"explain-time-ratio": float(torch.tensor(timed.log_ratios).median().exp())}


def rehearse(work: Work) -> None:
    """Two steps of the network and one explanation of a few rows; InputError where the explainer does not run on them."""
    model = run_training(work.baseline()).run.model.eval()
    x = work.data.test.x[:4]
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    found = explainer(work, model)(x, y)
    if found.values.shape != x.shape:
        raise InputError(f"{work.arm.name} gives values {tuple(found.values.shape)} for inputs {tuple(x.shape)}")


def neutral_value(work: Work) -> Tensor:
    """What a feature is set to when it is taken away: 0, which is black, the median or silence once encoded."""
    return torch.zeros((1, *work.data.spec.shape))


def explainer(work: Work, model: nn.Module) -> Callable[[Tensor, Tensor], Explanation]:
    """The arm's explainer of `model`: (x, classes) -> explanation."""
    if work.builtin == "gradient x input":
        gradient = _gradient(model)
        return lambda x, y: Explanation(gradient(x, y).values * x)
    if work.builtin == "random order":
        return lambda x, y: Explanation(torch.rand(x.shape, generator=generator_for(work.seed, "random order")))
    if work.builtin:
        return _gradient(model)
    use = work.player
    entry = catalogue.entry(use.id)

    def explain(x: Tensor, y: Tensor) -> Explanation:
        offer = {"spec": work.data.spec, "generator": generator_for(work.seed, "technique", use.id)}
        return inject.call(use.id, entry, use.settings, offer, model=model, inputs=x, target=y)

    return explain


def _gradient(model: nn.Module) -> Callable[[Tensor, Tensor], Explanation]:
    def explain(x: Tensor, y: Tensor) -> Explanation:
        inputs = x.clone().requires_grad_()
        own = model(inputs).gather(1, y[:, None]).sum()
        return Explanation(torch.autograd.grad(own, inputs)[0])

    return explain
