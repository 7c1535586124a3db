"""What every kind of data promises of its toy data and of the baseline's network, and that techniques can use both."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from probatum import catalogue, inject
from probatum.checks.kind_rows import demand_x
from probatum.checks.kind_subject import KindSubject, drawn_from
from probatum.checks.subject import NotThisOneError, demand, fingerprint
from probatum.recipe import Recipe, Use
from probatum.rooms.arena import alone
from probatum.rooms.kind import takes
from probatum.rooms.task import task as task_of
from probatum.spec import Data
from probatum.train.assemble import assemble
from probatum.train.loop import outputs, train
from probatum.train.rng import generator_for, seeded

STEPS = 80
SEEN = 0.55
"""Accuracy on three toy classes from which on they can be seen."""


def check_toy_data_fit(subject: KindSubject) -> None:
    """Toy examples are what their fields say, finite, as many as asked for, and drawn from the generator given."""
    hidden = torch.arange(30) % 3
    made = drawn_from(lambda generator: tuple(subject.kind.toy(hidden, generator)), "toy")
    demand(len(made[0]) == 30, f"{len(made[0])} toy examples for 30 hidden classes")
    for task in subject.kind.TASKS:
        data = subject.toy(task)
        for part in (data.train, data.valid, data.test):
            demand_x(part.x, data.spec, f"toy, {task}")
            demand(len(part.x) == len(part.y), f"toy, {task}: {len(part.x)} x and {len(part.y)} y")
            demand(part.text is None or len(part.text) == len(part.x), f"toy, {task}: not as many texts as rows")


def check_toy_classes_can_be_seen(subject: KindSubject) -> None:
    """The hidden class is in x: after a short training the baseline's network tells it on toy rows that it has not seen."""
    if "classes" not in subject.kind.TASKS:
        raise NotThisOneError("classes are not asked of it")
    data = subject.toy("classes")
    guess = outputs(trained(subject, data), data.test.x).argmax(dim=1)
    right = float((guess == data.test.y).float().mean())
    demand(
        right >= SEEN, f"accuracy on unseen toy rows is {right:.2f}, a third by chance; let x depend more on the class"
    )


def check_network_gives_the_tasks_shape(subject: KindSubject) -> None:
    """Of every task, for 5 rows and for 1, and finite; the same when asked again."""
    for task in subject.kind.TASKS:
        data = subject.toy(task)
        model = network(subject, data).eval()
        for rows in (5, 1):
            with torch.no_grad():
                output = model(data.valid.x[:rows])
            wanted = (rows, *task_of(task).shape(data.spec))
            demand(tuple(output.shape) == wanted, f"{task}: outputs {tuple(output.shape)}, {wanted} are needed")
            demand(bool(torch.isfinite(output).all()), f"{task}: outputs are not finite")
        again = [fingerprint(outputs(model, data.valid.x)) for _ in range(2)]
        demand(again[0] == again[1], f"{task}: two predictions of the same rows differ in evaluation mode")


def check_network_trains(subject: KindSubject) -> None:
    """The training error falls, of every task, at the kind's own settings; every parameter gets a gradient."""
    for task in subject.kind.TASKS:
        data, asked = subject.toy(task), task_of(task)
        before, after = network(subject, data), trained(subject, data)
        start, end = (asked.errors(outputs(model, data.train.x), data.train.y) for model in (before, after))
        measure = "log_loss" if "log_loss" in start else next(iter(start))
        demand(end[measure] < start[measure], f"{task}: {measure} went from {start[measure]:.4f} to {end[measure]:.4f}")
        still = [name for name, p in after.named_parameters() if p.requires_grad and p.grad is None]
        demand(not still, f"{task}: no gradient reaches {', '.join(still[:3])}")


def check_rows_do_not_mix(subject: KindSubject) -> None:
    """In evaluation mode a row's output does not depend on the rows beside it."""
    for task in subject.kind.TASKS:
        data = subject.toy(task)
        model = trained(subject, data)
        x = data.valid.x[:6]
        together, single = outputs(model, x), torch.cat([outputs(model, x[i : i + 1]) for i in range(len(x))])
        gap = float((together - single).abs().max())
        demand(gap <= 1e-4 * max(1.0, float(together.abs().max())), f"{task}: outputs of a row differ by {gap:.1e}")


def check_a_loss_trains_on_it(subject: KindSubject) -> None:
    """A technique of slot loss that takes any rows trains the network on them."""
    kind = subject.kind
    for task in kind.TASKS:
        name = _any_loss(kind.modality, task)
        if name is None:
            continue
        data = subject.toy(task)
        recipe = Recipe(training=replace(kind.training(task), steps=8, batch_size=16))
        recipe = recipe.filled(Use(name, dict(catalogue.card(name).tiny)))
        parts = assemble(alone(recipe, data, 1))
        with seeded(1, "training"):
            train(parts.run, parts.methods, generator_for(1, "order"), select="last")
        finite = all(bool(torch.isfinite(value).all()) for value in parts.run.model.state_dict().values())
        demand(finite, f"{task}: weights are not finite after a training with {name}")
        return
    raise NotThisOneError("no loss takes any rows with one of its tasks")


def network(subject: KindSubject, data: Data) -> nn.Module:
    """The baseline's network, the same every time."""
    with seeded(0, "check", "network"):
        return subject.kind.network(data.spec)


def trained(subject: KindSubject, data: Data) -> nn.Module:
    """The same after a short training at the kind's own settings."""
    recipe = Recipe(training=replace(subject.kind.training(data.spec.task), steps=STEPS, batch_size=16))
    work = alone(recipe, data, 0, factory=lambda spec: network(subject, replace(data, spec=spec)))
    parts = assemble(work)
    with seeded(0, "training"):
        train(parts.run, parts.methods, generator_for(0, "order"), schedule="constant", select="last")
    return parts.run.model.eval()


def _any_loss(modality: str, task: str) -> str | None:
    """The first loss of the catalogue whose card names no modalities, and which needs nothing to be said of it."""
    for name in catalogue.names("loss"):
        card = catalogue.card(name)
        if not card.modalities and not takes(card, modality, task) and not card.needs:
            settings = inject.settings_of(catalogue.entry(name))
            if all(default is not inject.inspect.Parameter.empty for default in settings.values()):
                return name
    return None
