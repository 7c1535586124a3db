"""Arena `probe`: measurements of what the network and the data do together; they do not compete, so there is no verdict."""

from __future__ import annotations

import hashlib
import json

from probatum import catalogue
from probatum.arenas.baseline_network import trained
from probatum.arenas.select.arena import fresh_models
from probatum.contracts import inject
from probatum.rooms.arena import Outcome, Work
from probatum.spec import Spec
from probatum.train.loop import outputs
from probatum.train.rng import stream

BASELINE = "baseline"


def references(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def measures(spec: Spec) -> tuple[str, ...]:
    """The network's own quality, shown beside the measurements."""
    return ("accuracy",) if spec.task == "classes" else ("rmse",)


def trial(work: Work) -> Outcome:
    """Run the probe on fresh networks and the seed's split; the baseline arm is the ordinarily trained network."""
    if work.builtin:
        model, test = trained(work), work.data.test
        output = outputs(model, test.x)
        if work.data.spec.task == "classes":
            found = {"accuracy": float((output.argmax(dim=1) == test.y).float().mean())}
        else:
            found = {"rmse": float((output - test.y).square().mean().sqrt())}
    else:
        use = next(use for use in work.arm.recipe.uses() if use not in work.base.uses())
        offer = {
            "spec": work.data.spec,
            "generator": stream(work.seed, "technique", use.id),
            "model_factory": fresh_models(work),
        }
        measured = inject.call(use.id, catalogue.entry(use.id), use.settings, offer, data=work.data)
        found = {str(name): float(value) for name, value in measured.items()}
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    return Outcome(found, {}, digest)


def timings(work: Work) -> dict[str, float]:
    """None."""
    return {}
