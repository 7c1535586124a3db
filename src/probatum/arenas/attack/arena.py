"""Arena `attack`: attacks on one trained network per seed, compared by how little they change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.arenas.baseline_network import rows_for, trained
from probatum.arenas.predict.fit import run_training
from probatum.errors import InputError
from probatum.measure import adversarial, cost
from probatum.rooms.arena import Outcome, Work
from probatum.spec import Spec
from probatum.train.rng import generator_for

BASELINE = "sign-gradient line search"
ROWS = 128


def references(spec: Spec) -> tuple[str, ...]:
    """A direction that knows nothing of the model."""
    return ("random direction",)


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    return ("adversarial-distance", "attack-success", "attack-time-ratio")


def trial(work: Work) -> Outcome:
    """Attack right test rows of the seed's network."""
    model = trained(work)
    x, y = rows_for(work, model, ROWS)
    changed = attacker(work, model)(x, y).detach()
    digest = hashlib.sha256(changed.contiguous().numpy().tobytes()).hexdigest()[:16]
    return Outcome(adversarial.attacked(model, x, y, changed), {}, digest, {"rows": len(x)})


def timings(work: Work) -> dict[str, float]:
    """Time of attacking a batch, as a ratio to the baseline's."""
    model = trained(work)
    x, y = rows_for(work, model, 32)
    mine = attacker(work, model)
    timed = cost.interleave(lambda: mine(x, y), lambda: adversarial.sign_line_search(model, x, y), pairs=5, warmup=1)
    return {"attack-time-ratio": float(torch.tensor(timed.log_ratios).median().exp())}


def rehearse(work: Work) -> None:
    """Two steps of the network and one attack on a few rows; InputError where the attack does not run on them."""
    model = run_training(work.baseline()).run.model.eval()
    x = work.data.test.x[:4]
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    changed = attacker(work, model)(x, y)
    if changed.shape != x.shape:
        raise InputError(f"{work.arm.name} gives inputs {tuple(changed.shape)} for inputs {tuple(x.shape)}")


def attacker(work: Work, model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The arm's attack on `model`: (x, classes) -> changed x."""
    if work.builtin == "random direction":
        return lambda x, y: _random(model, x, y, generator_for(work.seed, "random direction"))
    if work.builtin:
        return lambda x, y: adversarial.sign_line_search(model, x, y)
    use = work.player
    offer = {"spec": work.data.spec, "generator": generator_for(work.seed, "technique", use.id)}
    entry = catalogue.entry(use.id)
    return lambda x, y: inject.call(use.id, entry, use.settings, offer, model=model, inputs=x, target=y)


def _random(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.randn(x.shape, generator=generator)
    direction = direction / direction.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
    size = x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
    best, open_rows = x.clone(), torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        for step in range(1, 41):
            tried = x + size * direction * step / 20
            flipped = (model(tried).argmax(dim=1) != y) & open_rows
            best[flipped] = tried[flipped]
            open_rows &= ~flipped
    return best
