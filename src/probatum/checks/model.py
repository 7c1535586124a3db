"""What every model promises."""

from __future__ import annotations

import copy
import io

import torch
from torch import nn

from probatum.checks.subject import NotThisOneError, Subject, demand, fingerprint
from probatum.checks.trained import draws, exercise, neutral  # noqa: F401  (tried in a training)
from probatum.rooms.arena import alone
from probatum.rooms.task import task as task_of
from probatum.spec import Batch, Data
from probatum.train.assemble import assemble
from probatum.train.loop import outputs, train
from probatum.train.rng import generator_for, seeded


def check_output_shape(subject: Subject) -> None:
    """In evaluation mode (n, outputs), or (n, length, outputs) of tokens, finite, for every modality and task it takes, also for one row."""
    for modality, task in subject.pairs():
        data = subject.data(modality=modality, task=task)
        model = build(subject, modality, task).eval()
        for rows in (5, 1):
            with torch.no_grad():
                output = model(data.train.x[:rows])
            shape = tuple(output.shape)
            right = shape == (rows, *task_of(task).shape(data.spec))
            demand(right, f"{modality}, {task}: outputs of shape {shape} for {rows} rows")
            demand(bool(torch.isfinite(output).all()), f"{modality}, {task}: outputs are not finite")


def check_training_helps(subject: Subject) -> None:
    """After a short training the training error is below that of the untrained network."""
    data = subject.data()
    parts = assemble(alone(subject.recipe(steps=60), data, 1))
    start = _error(parts.run.model, data)
    with seeded(1, "training"):
        train(parts.run, [], generator_for(1, "order"), select="last")
    end = _error(parts.run.model, data)
    demand(end < start, f"the training loss went from {start:.4f} to {end:.4f} in 60 steps")


def check_every_parameter_gets_a_gradient(subject: Subject) -> None:
    """The objective reaches every trainable parameter."""
    data = subject.data()
    parts = assemble(alone(subject.recipe(), data, 1))
    batch = Batch(data.train.x[:16], data.train.y[:16], torch.arange(16))
    parts.run.model.train()
    with seeded(1, "training"):
        parts.run.objective(batch, parts.run.model(batch.x)).backward()
    missing = [name for name, p in parts.run.model.named_parameters() if p.requires_grad and p.grad is None]
    demand(not missing, f"no gradient reaches {', '.join(missing[:3])}")


def check_state_dict_round_trip(subject: Subject) -> None:
    """Weights saved and loaded into a new network give the same outputs."""
    data = subject.data()
    first, second = build(subject), build(subject, seed=9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    a, b = (fingerprint(outputs(model, data.valid.x)) for model in (first, second))
    demand(a == b, "after load_state_dict the outputs differ")


def check_evaluation_changes_nothing(subject: Subject) -> None:
    """Predicting twice gives the same outputs and leaves weights and buffers alone."""
    data = subject.data()
    model = build(subject).eval()
    before = fingerprint(model.state_dict())
    first, second = (fingerprint(outputs(model, data.valid.x)) for _ in range(2))
    demand(first == second, "two predictions of the same rows differ")
    demand(fingerprint(model.state_dict()) == before, "prediction changed weights or buffers")


def check_rows_do_not_mix(subject: Subject) -> None:
    """In evaluation mode a row's output does not depend on its neighbours."""
    data = subject.data()
    model = build(subject).eval()
    with torch.no_grad():
        together, alone = model(data.valid.x[:8]), torch.cat([model(data.valid.x[i : i + 1]) for i in range(8)])
    demand(torch.allclose(together, alone, atol=1e-4), "outputs depend on the other rows of the batch")


def check_inputs_are_not_changed(subject: Subject) -> None:
    """Training and predicting leave the rows they are given as they are, at every tuned value."""
    data = subject.data()
    for settings in subject.variants():
        with seeded(1, "check", "build"):
            model = subject.call(data, settings)
        x = data.train.x[:8].clone()
        for mode in (True, False):
            with seeded(1, "check", "forward"):
                model.train(mode)(x)
            demand(torch.equal(x, data.train.x[:8]), f"{settings}: it changes its inputs in place; work on copies")


def check_padding_is_not_read(subject: Subject) -> None:
    """Texts get the same outputs with their padding and without."""
    words = [data for data in (subject.data(modality=name) for name in subject.modalities()) if data.spec.vocabulary]
    if not words:
        raise NotThisOneError("rows without padding")
    model = build(subject, words[0].spec.modality).eval()
    x = words[0].train.x[:6].clone()
    x[:, -3:] = 0
    with torch.no_grad():
        demand(torch.allclose(model(x), model(x[:, :-3]), atol=1e-4), "outputs change with the padding behind a text")


def check_copies_and_pickles(subject: Subject) -> None:
    """A trained network can be deep-copied and pickled, also after a pass in training mode, and answers alike."""
    data = subject.data()
    model = build(subject)
    with seeded(1, "check", "forward"):
        model.train()(data.train.x[:8])
    wanted = outputs(model.eval(), data.valid.x)
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    for twin in (copy.deepcopy(model), torch.load(held, weights_only=False)):
        demand(torch.equal(outputs(twin, data.valid.x), wanted), "a copy gives other outputs")


def build(subject: Subject, modality: str | None = None, task: str | None = None, seed: int = 1) -> nn.Module:
    """The model at its tiny settings."""
    data = subject.data(modality=modality, task=task)
    with seeded(seed, "check", "build"):
        return subject.call(data)


def _error(model: nn.Module, data: Data) -> float:
    asked = task_of(data.spec.task)
    return asked.score(asked.errors(outputs(model, data.train.x), data.train.y), "log-loss")[0]
