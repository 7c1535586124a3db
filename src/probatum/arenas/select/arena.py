"""Arena `select`: some training labels are wrong; who scores those rows lowest?

Where a world has made labels wrong already, its wrong ones are looked for and its right ones correct them; elsewhere
a share of the labels is flipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.arenas.predict.fit import run_training
from probatum.errors import InputError
from probatum.measure.detection import detection
from probatum.rooms.arena import Outcome, Work
from probatum.spec import Data, Part, Spec
from probatum.train import baselines
from probatum.train.loop import outputs
from probatum.train.rng import generator_for, seeded

BASELINE = "held-out loss"
FLIPPED = 0.05


def references(spec: Spec) -> tuple[str, ...]:
    """An order that knows nothing."""
    return ("random order",)


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    return ("flip-auroc", "flip-precision", "cleaned-accuracy", "relabelled-accuracy")


def trial(work: Work) -> Outcome:
    """Score every training row, and train the baseline without the lowest-scored ones, and with their labels corrected by
    somebody who knows."""
    if work.data.spec.task != "classes":
        raise InputError("arena select flips class labels; the task here is reals")
    train, flipped, right = planted(work)
    scores = scorer(work)(replace(work.data, train=train)).detach().double()
    if scores.shape != (len(train),) or not torch.isfinite(scores).all():
        raise InputError(
            f"{work.arm.name} gave scores of shape {tuple(scores.shape)}; one finite number a row is needed"
        )
    found = detection(scores, flipped)
    order, budget = scores.argsort(stable=True), int(flipped.sum())
    found["cleaned-accuracy"] = _accuracy(work, _pick(train, order[budget:].sort().values))
    y = train.y.clone()
    y[order[:budget]] = right[order[:budget]]
    found["relabelled-accuracy"] = _accuracy(work, replace(train, y=y))
    digest = hashlib.sha256(scores.numpy().tobytes()).hexdigest()[:16]
    return Outcome(found, {}, digest, {"rows": len(train), "flipped": int(flipped.sum())})


def timings(work: Work) -> dict[str, float]:
    """None: scoring takes whole trainings, which are charged in the trials' seconds."""
    return {}


def rehearse(work: Work) -> None:
    """The network that labels are tried on, for two steps; scoring takes whole trainings."""
    if work.data.spec.task != "classes":
        raise InputError(f"arena select flips class labels; the task here is {work.data.spec.task}")
    run_training(work.baseline())


def play(work: Work) -> Tensor:
    """Score every training row."""
    return scorer(work)(work.data)


def planted(work: Work) -> tuple[Part, Tensor, Tensor]:
    """The training rows with wrong labels among them, which rows those are (n,) bool, and the right labels (n,).

    The wrong labels are the world's, where it made some; else a share is flipped.
    """
    given, clean = work.data.train, None if work.truth is None else work.truth.clean_train
    if clean is not None and bool((wrong := given.y != clean).any()):
        return given, wrong, clean
    train, flipped = flip(given, work.data.spec.outputs, generator_for(work.seed, "flips"))
    return train, flipped, given.y


def flip(part: Part, classes: int, generator: torch.Generator) -> tuple[Part, Tensor]:
    """The part with a share of its labels moved to another class, uniformly, and which rows those are."""
    n = len(part)
    chosen = torch.randperm(n, generator=generator)[: max(1, round(FLIPPED * n))]
    shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    y = part.y.clone()
    y[chosen] = (y[chosen] + shift) % classes
    flipped = torch.zeros(n, dtype=torch.bool)
    flipped[chosen] = True
    return replace(part, y=y), flipped


def scorer(work: Work) -> Callable[[Data], Tensor]:
    """The arm's scores of the training rows, higher = cleaner."""
    if work.builtin == "random order":
        return lambda data: torch.rand(len(data.train), generator=generator_for(work.seed, "random order"))
    if work.builtin:
        return lambda data: held_out_loss(work, data)
    use = work.player

    def score(data: Data) -> Tensor:
        offer = {
            "spec": data.spec,
            "num_classes": data.spec.outputs,
            "generator": generator_for(work.seed, "technique", use.id),
            "model_factory": fresh_models(work),
            "trusted": data.valid,
        }
        return inject.call(use.id, catalogue.entry(use.id), use.settings, offer, x=data.train.x, y=data.train.y)

    return score


def fresh_models(work: Work) -> Callable[[], nn.Module]:
    """A function that builds the baseline network with new weights each time, from the seed's own stream."""
    count = 0

    def build() -> nn.Module:
        nonlocal count
        count += 1
        with seeded(work.seed, "fresh model", str(count)):
            if work.base.model is not None:
                use = work.base.model
                return inject.call(use.id, catalogue.entry(use.id), use.settings, {"spec": work.data.spec})
            return (work.factory or baselines.build)(work.data.spec)

    return build


def held_out_loss(work: Work, data: Data) -> Tensor:
    """Minus the loss of every training row under a network trained on the other half of the rows."""
    n = len(data.train)
    order = torch.randperm(n, generator=generator_for(work.seed, "halves"))
    scores = torch.zeros(n)
    for mine, other in ((order[: n // 2], order[n // 2 :]), (order[n // 2 :], order[: n // 2])):
        model = _train(work, replace(data, train=_pick(data.train, other)))
        rows = _pick(data.train, mine)
        scores[mine] = -torch.nn.functional.cross_entropy(outputs(model, rows.x), rows.y, reduction="none")
    return scores


def _accuracy(work: Work, train: Part) -> float:
    """Test accuracy of the baseline trained on these rows."""
    model, test = _train(work, replace(work.data, train=train)), work.data.test
    return float((outputs(model, test.x).argmax(dim=1) == test.y).float().mean())


def _train(work: Work, data: Data) -> nn.Module:
    return run_training(work.baseline(data=data)).run.model


def _pick(part: Part, rows: Tensor) -> Part:
    text = tuple(part.text[i] for i in rows.tolist()) if part.text is not None else None
    return Part(part.x[rows], part.y[rows], part.rows[rows], text)
