"""What every learner promises."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from probatum.arenas.predict.fit import no_rows
from probatum.checks.odd import ODD, odd
from probatum.checks.subject import NotThisOneError, Subject, demand
from probatum.errors import InputError
from probatum.rooms.task import task as task_of
from probatum.spec import Budget, Data, Part


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Tensor:
    """Predictions for the validation rows."""
    data = subject.data()
    return fitted(subject, data, settings).predict(data.valid)


def check_predicts(subject: Subject) -> None:
    """Finite predictions of the right shape for every task, better than knowing nothing; the test rows are not read."""
    for modality, task in subject.pairs():
        data = subject.data(modality=modality, task=task)
        output = fitted_once(subject, modality, task).predict(data.valid)
        where = f"{modality}, {task}"
        demand(
            output.shape == (len(data.valid), *task_of(task).shape(data.spec)), f"{where}: shape {tuple(output.shape)}"
        )
        demand(bool(torch.isfinite(output).all()), f"{where}: predictions are not finite")
        if task == "reals":
            error = (output - data.valid.y).square().mean().item()
            demand(error < data.valid.y.var().item(), f"{where}: worse than predicting the mean")
            continue
        output = output.exp() if task == "next-token" else output  # these are logarithms of probabilities
        sums = output.sum(dim=-1)
        demand(torch.allclose(sums, torch.ones_like(sums), atol=1e-4), f"{where}: rows do not sum to 1")
        accuracy = (output.argmax(dim=-1) == data.valid.y).float().mean().item()
        known = 0.4 if task == "classes" else 0.1
        demand(accuracy > known, f"{where}: accuracy {accuracy:.2f}, where knowing nothing gives {0.8 * known:.2f}")


def check_samples_are_what_is_predicted(subject: Subject) -> None:
    """Predictors with `samples`: finite draws (S, n, outputs) whose mean is the prediction; probabilities sum to 1; real
    targets come with a positive noise."""
    seen = False
    for modality, task in subject.pairs():
        data = subject.data(modality=modality, task=task)
        predictor = fitted_once(subject, modality, task)
        if not callable(getattr(predictor, "samples", None)) or task == "next-token":
            continue
        seen, where = True, f"{modality}, {task}"
        draws, output = predictor.samples(data.valid), predictor.predict(data.valid)
        demand(draws.ndim == 3 and draws.shape[1:] == output.shape, f"{where}: samples of shape {tuple(draws.shape)}")
        demand(bool(torch.isfinite(draws).all()), f"{where}: samples are not finite")
        gap = float((draws.mean(dim=0) - output).abs().max())
        demand(gap <= 1e-5, f"{where}: the mean of the samples is off what is predicted by {gap:.1e}")
        if task == "classes":
            sums = draws.sum(dim=2)
            demand(torch.allclose(sums, torch.ones_like(sums), atol=1e-4), f"{where}: draws do not sum to 1")
            continue
        noise = getattr(predictor, "noise", None)
        noise = noise(data.valid) if callable(noise) else noise
        demand(noise is not None, f"{where}: samples of real targets need `noise`, see contracts/learner.py")
        spread = torch.as_tensor(noise)
        demand(bool((spread > 0).all()), f"{where}: noise is not positive")
        demand(
            torch.broadcast_shapes(spread.shape, draws.shape) == draws.shape, f"{where}: noise {tuple(spread.shape)}"
        )
    if not seen:
        raise NotThisOneError("its predictors have no samples")


def check_rows_stand_alone(subject: Subject) -> None:
    """A row's prediction does not hang on the rows beside it."""
    for modality, task in subject.pairs()[:2]:
        data = subject.data(modality=modality, task=task)
        predictor = fitted_once(subject, modality, task)
        wanted = predictor.predict(data.valid)
        few = part_of(data.valid, torch.tensor([7, 3]))
        gap = float((predictor.predict(few) - wanted[[7, 3]]).abs().max())
        demand(gap <= 1e-4, f"{modality}, {task}: two rows by themselves are predicted otherwise, by {gap:.1e}")


def check_predictors_can_be_copied(subject: Subject) -> None:
    """What was fitted can be deep-copied and pickled, and predicts the same then."""
    modality, task = subject.pairs()[0]
    data, predictor = subject.data(modality=modality, task=task), fitted_once(subject, modality, task)
    wanted = predictor.predict(data.valid)
    for twin in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        demand(torch.equal(twin.predict(data.valid), wanted), "a copy predicts otherwise")


def check_columns_far_from_zero(subject: Subject) -> None:
    """Tables with a column that is the same for all rows and far from 0, and one that varies there, are predicted as well."""
    data = subject.numbers(1)[0]
    numeric = data.spec.numeric or data.spec.shape[0]

    def moved(part: Part) -> Part:
        x = part.x.clone()
        x[:, numeric - 1] = 1e4
        return Part(x, part.y, part.rows, part.text)

    other = replace(data, train=moved(data.train), valid=moved(data.valid), test=moved(data.test))
    output = fitted(subject, other).predict(other.valid)
    demand(bool(torch.isfinite(output).all()), "with a constant column of 1e4 predictions are not finite")


def check_networks_given_are_left_alone(subject: Subject) -> None:
    """Networks that its factory makes may be odd in ordinary ways: frozen weights do not move, one module stays one."""
    if "model_factory" not in inspect.signature(subject.entry).parameters:
        raise NotThisOneError("it makes its networks itself")
    data = subject.numbers(1, 3, 2)[0]
    hidden = replace(data, test=no_rows(data.test))
    for what in ODD:
        made: list[nn.Module] = []

        def factory(what: str = what, made: list[nn.Module] = made) -> nn.Module:
            made.append(odd(what, data.spec.shape, data.spec.outputs, len(made)))
            return made[-1]

        before: list[dict[str, Tensor]] = []
        kept = factory()
        before.append({n: p.detach().clone() for n, p in kept.named_parameters() if not p.requires_grad})
        made.clear()
        try:
            predictor = subject.call(data, None, data=hidden, budget=Budget(12, 16, 4), model_factory=factory)
        except (ValueError, TypeError, InputError) as problem:
            demand(len(str(problem).split()) > 4, f"{what}: it refuses a network with {str(problem)!r}; say what to do")
            continue
        output = predictor.predict(data.valid)
        demand(bool(torch.isfinite(output).all()), f"{what}: predictions are not finite")
        for net in made[:1]:
            now = dict(net.named_parameters())
            moved = [n for n, value in before[0].items() if n in now and not torch.equal(now[n], value)]
            demand(not moved, f"{what}: frozen weights moved: {', '.join(moved[:3])}")


def part_of(part: Part, rows: Tensor) -> Part:
    """Some rows of a part."""
    text = None if part.text is None else tuple(part.text[i] for i in rows.tolist())
    return Part(part.x[rows], part.y[rows], part.rows[rows], text)


@cache
def fitted_once(subject: Subject, modality: str, task: str) -> Any:
    """The predictor of a learner at its tiny settings, which the checks share."""
    return fitted(subject, subject.data(modality=modality, task=task))


def fitted(subject: Subject, data: Data, settings: Mapping[str, Any] | None = None) -> Any:
    """The predictor of the learner at its tiny settings or these; it is given no test rows."""
    hidden = replace(data, test=no_rows(data.test))
    return subject.call(data, settings, data=hidden, budget=Budget(12, 16, 4))
