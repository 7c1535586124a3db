"""Arena `probe`: measurements of what the network and the data do together; they do not compete, so there is no verdict."""

from __future__ import annotations

import hashlib
import json

from probatum import catalogue, inject
from probatum.arenas.baseline_network import trained
from probatum.arenas.predict.fit import Predictor, run_training
from probatum.arenas.select.arena import fresh_models
from probatum.rooms.arena import Outcome, Work
from probatum.rooms.task import task
from probatum.spec import Spec
from probatum.train.rng import generator_for

BASELINE = "baseline"
COMPETES = False
"""Probes measure; nothing is better than the baseline."""


def references(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def measures(spec: Spec) -> tuple[str, ...]:
    """The network's own quality, shown beside the measurements."""
    return task(spec.task).measures(spec)[:1]


def trial(work: Work) -> Outcome:
    """Run the probe on fresh networks and the seed's split; the baseline arm is the ordinarily trained network."""
    if work.builtin:
        found = task(work.data.spec.task).primary(work, Predictor(work.data.spec.task, trained(work)))
    else:
        found = play(work)
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    return Outcome(found, {}, digest)


def play(work: Work) -> dict[str, float]:
    """What the probe measures on fresh networks."""
    use = work.player
    offer = {
        "spec": work.data.spec,
        "generator": generator_for(work.seed, "technique", use.id),
        "model_factory": fresh_models(work),
    }
    measured = inject.call(use.id, catalogue.entry(use.id), use.settings, offer, data=work.data)
    return {str(name): float(value) for name, value in measured.items()}


def timings(work: Work) -> dict[str, float]:
    """None."""
    return {}


def rehearse(work: Work) -> None:
    """The network that is looked at, for two steps; a probe's own work is whole trainings."""
    run_training(work.baseline())
