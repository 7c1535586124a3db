"""One small deterministic use of a technique of any slot, and the same with nothing in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.arenas.generate.arena import NOISE, damage, rows_of
from probatum.checks.generate import learned
from probatum.checks.subject import Subject
from probatum.numerics.continual.learners import FineTune, Settings
from probatum.recipe import Recipe, Training
from probatum.spec import Budget, Data, Optimisation, Part, Pool, Query, Stage
from probatum.train.assemble import assemble
from probatum.train.loop import outputs, train
from probatum.train.rng import seeded, stream

TRAINED = ("loss", "optimizer", "layer", "model", "method", "compress")


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Any:
    """Use the technique once on toy data, the way its slot does; returns what identifies the result."""
    data = subject.data()
    slot = subject.slot
    if slot == "learner":
        budget = Budget(12, 16, 4)
        predictor = subject.call(data, settings, data=data, budget=budget)
        return predictor.predict(data.valid)
    if slot == "posthoc":
        logits, y = logits_and_target()
        return subject.call(data, settings).fit(logits, y)(logits).detach()
    if slot in ("explain", "attack"):
        model = fitted(subject, data)
        x, y = data.test.x[:6], outputs(model, data.test.x[:6]).argmax(dim=1)
        found = subject.call(data, settings, model=model, inputs=x, target=y)
        return found if isinstance(found, Tensor) else found.values
    if slot == "select":
        return subject.call(data, settings, x=data.train.x, y=data.train.y)
    if slot == "acquire":
        return asked_for(subject, toy_pool(subject, data), data, 6, settings)._asdict()
    if slot == "generate":
        rows, noise = rows_of(data), NOISE[data.spec.modality]
        prior = learned(subject, data, Budget(12, 16, 4), settings)
        operator, b = damage(rows.test[:6], "inpaint", noise, stream(0, "check", "damage"))
        return {"denoised": prior.denoise(b), "restored": prior.restore(b, operator)}
    if slot == "stream":
        return streamed(subject.call(data, settings), data)
    if slot == "probe":
        return dict(subject.call(data, settings, data=data))
    return trained(subject.recipe(settings), data)


def toy_pool(subject: Subject, data: Data, labelled: int = 15) -> Pool:
    """Toy data with some labels given, and the baseline network after a little training on them."""
    few = Part(data.train.x[:labelled], data.train.y[:labelled], data.train.rows[:labelled])
    none = torch.zeros(0, dtype=torch.int64)
    model = fitted(subject, replace(data, train=few))
    return Pool(data.train.x, torch.arange(labelled), few.y, model, none, none, 0, 12)


def asked_for(subject: Subject, pool: Pool, data: Data, count: int, settings: Mapping[str, Any] | None = None) -> Query:
    """What a strategy answers."""
    answer = subject.call(data, settings, pool=pool, count=count)
    return answer if isinstance(answer, Query) else Query(answer, pool.machine, pool.guesses)


def stages_of(data: Data) -> list[Stage]:
    """Two stages of toy data: all classes but the last, then the last."""
    last = data.spec.outputs - 1
    found = []
    for number, classes in enumerate((tuple(range(last)), (last,))):
        rows = torch.isin(data.train.y, torch.tensor(classes))
        found.append(Stage(number, classes, data.train.x[rows], data.train.y[rows]))
    return found


def streamed(learner: Any, data: Data) -> dict[str, Any]:
    """What a continual learner gives after two stages, and what it keeps."""
    for stage in stages_of(data):
        learner.observe(stage, Budget(6, 16, 4))
    return {"logits": learner.predict(data.valid.x), "bytes": int(learner.stored_bytes())}


def trained(recipe: Recipe, data: Data) -> dict[str, Tensor]:
    """Final weights of a short training run of this recipe."""
    parts = assemble(recipe, data, 3)
    with seeded(3, "training"):
        train(parts.run, parts.methods, stream(3, "order"), schedule=recipe.training.schedule)
    return dict(parts.run.model.state_dict())


def global_draws(subject: Subject) -> bool:
    """Whether using the technique moves torch's global random state (networks without dropout, so nothing else does)."""
    modality = next((m for m in ("image", "table", "series", "text") if m in subject.card.modalities), "image")
    data = subject.data(modality=modality)
    if subject.slot not in TRAINED:
        before = torch.get_rng_state()
        exercise(subject)
        return not torch.equal(before, torch.get_rng_state())
    parts = assemble(subject.recipe(), data, 3)
    for module in parts.run.model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # dropout, built in or part of a technique's model, may draw: the bench seeds it
    with seeded(3, "training"):
        before = torch.get_rng_state()
        train(parts.run, parts.methods, stream(3, "order"), schedule="constant")
        return not torch.equal(before, torch.get_rng_state())


def neutral_pair(subject: Subject) -> tuple[Any, Any]:
    """The result without the technique and with it at its neutral settings."""
    neutral = dict(subject.card.neutral or {})
    data = subject.data()
    if subject.slot in TRAINED:
        base = Recipe(training=Training(steps=12, batch_size=16, lr=1e-2))
        return trained(base, data), trained(subject.recipe(neutral), data)
    if subject.slot == "posthoc":
        logits, y = logits_and_target()
        return logits.softmax(dim=1), subject.call(data, neutral).fit(logits, y)(logits).detach()
    if subject.slot == "attack":
        return data.test.x[:6], exercise(subject, neutral)
    if subject.slot == "stream":
        offer = {"model_factory": subject.factory(data), "order": stream(0, "check", "order"), "batch_size": 16}
        own = Settings(data.spec.outputs, generator=stream(0, "check"), optimisation=Optimisation(lr=1e-2), **offer)
        return streamed(FineTune(own), data)["logits"], exercise(subject, neutral)["logits"]
    raise AssertionError(f"slot {subject.slot} has no notion of doing nothing; let the card's neutral be None")


def fitted(subject: Subject, data: Data) -> nn.Module:
    """The baseline network after a little training, in evaluation mode."""
    model = subject.model(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with seeded(0, "check", "fit"):
        for _ in range(20):
            output = model(data.train.x)
            y = data.train.y
            if data.spec.task == "next-token":
                output, y = output.flatten(0, 1), y.flatten()
            loss = F.mse_loss(output, y) if data.spec.task == "reals" else F.cross_entropy(output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def logits_and_target(n: int = 300, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Overconfident logits (n, classes) and targets drawn from the calibrated probabilities."""
    generator = torch.Generator().manual_seed(11)
    calm = 1.5 * torch.randn(n, classes, generator=generator)
    target = torch.multinomial(calm.softmax(dim=1), 1, generator=generator).squeeze(1)
    return 3.0 * calm, target
