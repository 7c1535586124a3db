"""The training loop: one plain readable function over sessions, with hooks that cost nothing where nobody fills them.

A session is what takes the steps: `Single` trains one run, `train.replicas.Stacked` many as one computation. The loop knows
neither; it counts steps, looks at validation rows, keeps the best weights and stops what is no longer finite.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from probatum.contracts.method import HOOKS
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.tensors.draws import random_state_kept
from probatum.rooms.arena import TrainingFailed
from probatum.rooms.task import task
from probatum.spec import Batch, Part
from probatum.train.run import Run
from probatum.train.second_choice import Kept, SecondChoice

Progress = Callable[[int, int], None]


class Session(Protocol):
    """Runs of one budget that take their steps together."""

    @property
    def runs(self) -> Sequence[Run]:
        """What is trained."""
        ...

    def epoch(self) -> Sequence[Tensor]:
        """Begin an epoch: the positions of its batches."""
        ...

    def step(self, index: Tensor, factor: float, *, each: bool) -> Tensor:
        """One update at `factor` times the optimizers' rates; the losses of the runs, exact ones if `each`."""
        ...

    def epoch_end(self) -> None:
        """What comes after the last batch of an epoch."""
        ...

    def values(self, losses: Tensor) -> list[float]:
        """The losses of all runs as numbers."""
        ...

    def looks(self, select: str, parts: Sequence[Part] | None = None) -> list[dict[str, float]]:
        """What the validation rows, or other rows of every run, say of it, as `Task.look` has it."""
        ...

    def close(self) -> None:
        """Give the runs back their networks and rates."""
        ...

    def finish(self, k: int, best: dict[str, Any] | None) -> None:
        """The `finish` hooks of one run, and its best weights put back."""
        ...


def train(
    run: Run,
    methods: Sequence[Any],
    order: torch.Generator,
    *,
    schedule: str = "cosine",
    select: str = "accuracy",
    progress: Progress | None = None,
    second: SecondChoice | None = None,
) -> None:
    """Train `run.model` in place for `run.budget.steps` updates.

    Args:
        run: model, loss, optimizer, data and budget.
        methods: objects with hooks, already ordered (`contracts.method.ordered`).
        order: stream the batch order is drawn from.
        schedule: ``"cosine"`` or ``"constant"``, multiplying every group's own rate.
        select: validation measure for keeping the best weights, or ``"last"``.
        progress: called as (step, steps) after every epoch's worth of steps.
        second: where the best weights by other rows are kept beside; the training is the same without it.

    Raises:
        TrainingFailed: the loss is not finite.
    """
    with detached_on_failure(methods):
        failed = train_session(Single(run, methods, order), schedule, select, progress, second=second)[0]
        if failed is not None:
            raise failed


def train_session(
    session: Session,
    schedule: str,
    select: str,
    progress: Progress | None = None,
    looked: Progress | None = None,
    second: SecondChoice | None = None,
) -> list[TrainingFailed | None]:
    """Take all steps of a session; arguments as `train`.

    Args:
        looked: called as (step, steps) after every look at the validation rows.

    Returns:
        For every run None, or why its training failed; the others are not touched by that.
    """
    runs, budget = session.runs, session.runs[0].budget
    best = Kept.of(len(runs))
    failed: list[TrainingFailed | None] = [None] * len(runs)
    step = 0
    while step < budget.steps:
        for index in session.epoch():
            ends = (step + 1) % budget.steps_per_epoch == 0 or step + 1 == budget.steps
            losses = session.step(index, rate_factor(step, budget.steps, schedule), each=ends)
            step += 1
            if ends:
                values = session.values(losses)
                for k, value in enumerate(values):
                    if failed[k] is None and not math.isfinite(value):
                        failed[k] = not_finite(value, step)
                if all(failed):
                    return failed
                _keep_best(session, values, failed, best, select)
                if second is not None:
                    _keep_second(session, failed, second, select)
                for tell in (progress, looked):
                    if tell is not None:
                        tell(step, budget.steps)
            if step == budget.steps:
                break
        session.epoch_end()
    session.close()
    for k, state in enumerate(best.states):
        if failed[k] is None:
            session.finish(k, state)
    return failed


def _keep_best(
    session: Session, values: Sequence[float], failed: Sequence[TrainingFailed | None], best: Kept, select: str
) -> None:
    """A point more on every learning curve, and a copy of the weights that are better than any before."""
    for k, (run, found) in enumerate(zip(session.runs, session.looks(select), strict=True)):
        if failed[k] is not None:
            continue
        run.curve.append(curve_point(run, values[k], found))
        if run.keep_best and select != "last":
            best.offer(k, task(run.spec.task).score(found, select), partial(snapshot, run.model))


def _keep_second(session: Session, failed: Sequence[TrainingFailed | None], second: SecondChoice, select: str) -> None:
    """The same by the other rows; the global streams are left where they were."""
    chosen = [k for k, run in enumerate(session.runs) if run.keep_best and failed[k] is None]
    if select == "last" or not chosen:
        return
    with random_state_kept():
        looks = session.looks(select, second.parts)
    for k in chosen:
        run = session.runs[k]
        second.kept.offer(k, task(run.spec.task).score(looks[k], select), partial(snapshot, run.model))


class Single:
    """One run, step by step; its methods are attached from here to `finish`.

    Args:
        run: what is trained.
        methods: its methods in order.
        order: stream of the batch order.
    """

    def __init__(self, run: Run, methods: Sequence[Any], order: torch.Generator) -> None:
        self.run, self.runs, self.order = run, [run], order
        self.model, self.rows, self.shard = run.model, run.train, run.shard
        self.hooks = {name: [getattr(one, name) for one in methods if hasattr(one, name)] for name in HOOKS}
        self.batch_size = run.budget.batch_size
        run.pass_hooks, run.loss_hooks = self.hooks["before_pass"], self.hooks["loss"]
        self.model.train()
        call_prepare(run, self.hooks["prepare"])
        self.rates = [group["lr"] for group in run.optimizer.param_groups]
        self.closure = run.second_pass if wants_closure(run.optimizer) else None

    def epoch(self) -> list[Tensor]:
        """Begin an epoch: positions of its batches."""
        run = self.run
        run.epoch += 1
        lazy: Any = None if isinstance(self.rows.x, Tensor) else self.rows.x  # rows that stay on disk
        visit = batch_order(self.rows, self.order)
        for hook in self.hooks["order"]:
            visit = hook(run, visit)
        batches = batches_of(visit if lazy is not None else visit.to(self.rows.x.device), self.batch_size)
        if lazy is not None:
            lazy.ahead(batches)
        return batches

    def step(self, index: Tensor, factor: float, *, each: bool = True) -> Tensor:
        """One update at `factor` times the optimizer's rates; its loss."""
        run, rows = self.run, self.rows
        batch = Batch(rows.x[index], rows.y[index], index)
        for hook in self.hooks["batch"]:
            batch = hook(run, batch)
        run.whole = len(batch.y)
        run.passes += run.whole
        if self.shard is not None:
            batch = self.shard.part(batch)
        run.batch = batch
        loss = run.loss_of(batch)
        run.optimizer.zero_grad(set_to_none=True)
        loss = run.backward(loss)
        for hook in self.hooks["gradients"]:
            hook(run)
        for group, rate in zip(run.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.closure is None:
            run.optimizer.step()
        else:
            run.optimizer.step(cast(Any, self.closure))
        run.step += 1
        for hook in self.hooks["step_end"]:
            hook(run)
        return loss

    def epoch_end(self) -> None:
        """The hooks after the last batch of an epoch."""
        for hook in self.hooks["epoch_end"]:
            hook(self.run)

    def values(self, losses: Tensor) -> list[float]:
        """The loss, over all devices' shares."""
        return [losses.item() if self.shard is None else self.shard.total(losses)]

    def looks(self, select: str, parts: Sequence[Part] | None = None) -> list[dict[str, float]]:
        """What the validation rows, or other ones, say."""
        run, predict = self.run, outputs if self.shard is None else self.shard.outputs
        rows = run.held if parts is None else parts[0]
        return [task(run.spec.task).look(lambda part: predict(run.model, part.x), rows, select)]

    def close(self) -> None:
        """The optimizer's own rates again."""
        for group, rate in zip(self.run.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def finish(self, k: int, best: dict[str, Any] | None) -> None:
        """The `finish` hooks, and the best weights."""
        for hook in self.hooks["finish"]:
            hook(self.run)
        if best is not None and self.run.keep_best:
            self.model.load_state_dict(best)
        self.model.eval()
        self.run.batch = None


def call_prepare(run: Run, hooks: Sequence[Callable[[Run], None]]) -> None:
    """The `prepare` hooks. Parts of the network may be kept in evaluation; where a hook leaves all of it so, that was a
    mistake, and the modes are again as before the hook."""
    for hook in hooks:
        modes = {module: module.training for module in run.model.modules()}
        hook(run)
        if not run.model.training:
            for module in run.model.modules():
                module.training = modes.get(module, True)
            run.model.training = True


@contextmanager
def detached_on_failure(methods: Sequence[Any]) -> Iterator[None]:
    """The user's model is left as it came, also after a failure or Ctrl-C."""
    try:
        yield
    except BaseException:
        detach(methods)
        raise


def detach(methods: Sequence[Any]) -> None:
    """Take the hooks of methods off, where training is broken off."""
    for method in methods:
        if hasattr(method, "detach"):
            method.detach()


def wants_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer looks at the loss again in its step: it says ``closure = True``, or cannot step without one."""
    if getattr(type(optimizer), "closure", False) is True:
        return True
    step = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters  # torch wraps it, some of it twice
    return "closure" in step and step["closure"].default is inspect.Parameter.empty


def curve_point(run: Run, loss: float, found: dict[str, float]) -> dict[str, float]:
    """A point of the learning curve: the loss of the last batch, and what the validation rows say."""
    return {"step": float(run.step), "train_loss": loss, **{f"valid_{name}": value for name, value in found.items()}}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """A copy of the state; tensors that are views of larger ones do not take those along."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def not_finite(value: float, step: int) -> TrainingFailed:
    """What a training ends with whose loss is infinite or not a number."""
    return TrainingFailed(f"the training loss is {value} at step {step}; a lower learning rate may help")


def rate_factor(step: int, steps: int, schedule: str) -> float:
    """Multiplier of the learning rate: 5 % linear warm-up then a half cosine to zero, or 1."""
    if schedule == "constant":
        return 1.0
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, batch_size: int = 1024) -> Tensor:
    """Outputs (n, outputs) in evaluation mode, where x is, by a network that may be elsewhere; modes are put back."""
    first = next(model.parameters(), None)
    there, back = x.device if first is None else first.device, x.device
    with evaluating(model):
        pieces = (x[start : start + batch_size] for start in range(0, len(x), batch_size))
        return torch.cat([model(piece.to(there)).to(back) for piece in pieces])


def batch_order(part: Part, generator: torch.Generator) -> Tensor:
    """Positions of the training rows in the order of one epoch."""
    if isinstance(part.x, Tensor):
        return torch.randperm(len(part), generator=generator)
    return part.x.order(generator)


def batches_of(visit: Tensor, size: int) -> list[Tensor]:
    """Consecutive batches; a last one of a single row is left out, since batch statistics need two."""
    batches = list(visit.split(size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < 2 else batches
