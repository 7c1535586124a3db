"""Many training runs of one architecture as one stacked computation, each equal to its own to float tolerance.

Weights, batches, losses, validation and the kept best weights are every replica's own; forward, backward and (for
optimizers that act on entries alone) the update are shared. Hooks of methods, optimizers and losses that are not
separable see one replica at a time, through a network whose weights are views of the stacked ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.tensors.draws import random_state_kept
from probatum.rooms.arena import TrainingFailed
from probatum.rooms.task import task
from probatum.spec import Batch, Part
from probatum.train.loop import (
    Progress,
    batch_order,
    batches_of,
    call_prepare,
    detach,
    detached_on_failure,
    train_session,
    wants_closure,
)
from probatum.train.replica import Replica
from probatum.train.run import Run, apply_loss, wants_index
from probatum.train.same_step import global_state, same_step, set_mode
from probatum.train.second_choice import SecondChoice
from probatum.train.stack import CannotStackError, Stack, described

RESIDENT = 256 * 2**20
"""Bytes of training rows up to which all replicas' rows are put into one tensor."""

IGNORED = -100
"""The label that cross-entropy leaves out."""

ELEMENTWISE = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop)


def train_replicas(
    replicas: Sequence[Replica],
    *,
    schedule: str = "cosine",
    select: str = "accuracy",
    progress: Progress | None = None,
    threads: int | None = None,
    pace: float | None = None,
    second: SecondChoice | None = None,
) -> list[TrainingFailed | None]:
    """Train all replicas' models in place, as `loop.train` would train each; arguments as there.

    Args:
        replicas: runs of one architecture and budget, on data of one shape.
        threads: torch threads to fall back to where the machine turns out to be busy.
        pace: seconds that a step should take; an epoch at less than half of it brings `threads` about.

    Returns:
        For every replica None, or why its training failed; the others are not touched by that.

    Raises:
        CannotStackError: they cannot be trained as one; the replicas are spoilt and must be assembled again.
    """
    methods = [method for replica in replicas for method in replica.methods]
    watch = None if pace is None or threads is None else _Watch(pace, threads)
    with random_state_kept(), detached_on_failure(methods):
        session = Stacked(replicas)
        failed = train_session(session, schedule, select, progress, watch, second)
        if not all(failed):
            session.check_draws()
    for replica, problem in zip(replicas, failed, strict=True):
        if problem is not None:
            detach(replica.methods)
    return failed


class _Watch:
    """Falls back to fewer threads once steps take more than twice as long as they should."""

    def __init__(self, pace: float, threads: int) -> None:
        self.pace, self.threads, self.began, self.told = pace, threads, time.perf_counter(), False

    def __call__(self, step: int, steps: int) -> None:
        if not self.told and time.perf_counter() - self.began > 2 * self.pace * step + 1:
            torch.set_num_threads(self.threads)
            self.told = True


class Stacked:
    """Replicas made ready, step by step: the session of many runs that `train_session` is the loop around.

    Raises:
        CannotStackError: they cannot be trained as one.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas, self.clip = list(replicas), replicas[0].run.clip
        self.runs = runs = [replica.run for replica in replicas]
        device = runs[0].train.y.device
        self._drawn = global_state(device)
        for replica in replicas:
            run = replica.run
            run.loss_hooks = _hooks(replica, "loss")
            if _hooks(replica, "before_pass"):
                raise CannotStackError("a method acts before every pass of one network")
            before = (run.model, run.train, run.budget)
            run.model.train()
            modes = [module.training for module in run.model.modules()]  # parts of its own may stay in evaluation
            call_prepare(run, _hooks(replica, "prepare"))
            if any(new is not old for new, old in zip((run.model, run.train, run.budget), before, strict=True)):
                raise CannotStackError("a method replaces the network, the rows or the budget")
            if [module.training for module in run.model.modules()] != modes:
                raise CannotStackError(f"a method keeps parts of {type(run.model).__name__} in evaluation")
        check_alike(runs)
        try:
            self.stack = stack = Stack([run.model for run in runs])
        except (TypeError, RuntimeError) as problem:  # something in the network that cannot be copied
            raise CannotStackError(f"{type(runs[0].model).__name__}: {problem}") from problem
        stack.fold.generators = [torch.Generator(device=device).manual_seed(replica.draws) for replica in replicas]
        same_step(stack, replicas)
        self.hooks = hooked = _Hooked(replicas)
        self.update = _Update(runs, stack, hooked.touches_optimizer)
        self.rows, self.loss_of = (
            _Rows(runs, stack, hooked.batch),
            _Losses(replicas, stack, hooked.loss, relabelled=bool(hooked.batch)),
        )
        self._unchanged = [_versions(run) for run in runs]
        set_mode(stack, True)

    def epoch(self) -> list[Tensor]:
        """Begin an epoch: positions (n, replicas) of its batches."""
        visits = []
        for replica in self.replicas:
            replica.run.epoch += 1
            visit = batch_order(replica.run.train, replica.order)
            for hook in _hooks(replica, "order"):
                visit = hook(replica.run, visit)
            visits.append(visit)
        if len({len(visit) for visit in visits}) > 1:
            raise CannotStackError("the replicas' epochs differ in length")
        device = self.runs[0].train.y.device  # the whole epoch's positions at once, not batch by batch
        return batches_of(torch.stack(visits, dim=1).to(device), self.runs[0].budget.batch_size)

    def step(self, index: Tensor, factor: float, *, each: bool) -> Tensor:
        """One update of every replica at `factor` times its rates; the losses, each replica's own if `each`."""
        stack, hooks, update = self.stack, self.hooks, self.update
        batch = self.rows.batch(index.T)
        for run in self.runs:
            run.passes += index.shape[0]
        losses = self.loss_of(batch, stack.net(batch.x.clone()), each=each)  # as `Run.loss_of`
        update.zero_grad()
        losses.sum().backward()
        if self.loss_of.reaches_weights:
            stack.absorb_gradients()
        if self.clip is not None:
            _clip(stack, self.clip)
        if hooks.gradients or update.looks_again:
            self._hand_out(batch)
        if hooks.gradients or hooks.step_end or not update.shared:
            stack.share_gradients()
        for run, hook in hooks.gradients:
            hook(run)
        if hooks.gradients:
            stack.collect_weights()
            if update.shared:
                stack.collect_gradients()
        update.step(factor)
        for run in self.runs:
            run.step += 1
        for run, hook in hooks.step_end:
            hook(run)
        if hooks.step_end or not update.shared:
            stack.collect_weights()
        return losses.detach()

    def _hand_out(self, batch: Batch) -> None:
        """Each run's own part of a folded batch, for those who look at it a second time."""
        x, y = self.stack.fold.split(batch.x), self.stack.fold.split(batch.y)
        for k, run in enumerate(self.runs):
            run.batch = Batch(x[k], y[k], batch.index[k])

    def epoch_end(self) -> None:
        """What comes after the last batch of an epoch."""
        for run, hook in self.hooks.epoch_end:
            hook(run)
        if self.hooks.epoch_end:
            self.stack.collect_weights()

    def check(self) -> None:
        """CannotStackError where a method or a loss does what does not reach the stack."""
        self.check_draws()
        if not self.hooks.any:
            return
        self.stack.check_build()
        if [_versions(run) for run in self.runs] != self._unchanged:
            raise CannotStackError("a method changes the rows in place")

    def check_draws(self) -> None:
        """CannotStackError where something has drawn from the global stream, which is no replica's own here."""
        if global_state(self.runs[0].train.y.device) != self._drawn:
            raise CannotStackError("a method or a loss draws from the global random stream")

    def values(self, losses: Tensor) -> list[float]:
        """The losses of all replicas as numbers."""
        return losses.tolist()

    def looks(self, select: str, parts: Sequence[Part] | None = None) -> list[dict[str, float]]:
        """What the validation rows, or other ones, say of every replica."""
        if parts is None:
            self.check()
        rows, asked = [run.held for run in self.runs] if parts is None else parts, task(self.runs[0].spec.task)
        found = [output[: len(part)] for output, part in zip(self.outputs_on(rows), rows, strict=True)]
        return [
            {**asked.errors(output, part.y), **asked.further_errors(output, part.y, select)}
            for output, part in zip(found, rows, strict=True)
        ]

    @torch.no_grad()
    def outputs_on(self, parts: Sequence[Part], batch_size: int = 1024) -> Tensor:
        """Outputs (replicas, n, outputs) on rows of every replica, in evaluation mode.

        n is the largest part's; what the others' have beyond their own rows says nothing.
        """
        net, fold, n = self.stack.net.eval(), self.stack.fold, max(map(len, parts))
        try:
            pieces = []
            for start in range(0, n, batch_size):
                end = min(start + batch_size, n)
                x = fold.fold([_rows_between(part.x, start, end) for part in parts])
                pieces.append(fold.split(net(x)))
            return torch.cat(pieces, dim=1)
        finally:
            net.train()

    def close(self) -> None:
        """Give the replicas their networks back."""
        self.update.restore_rates()
        self.stack.release()

    def finish(self, k: int, best: dict[str, Any] | None) -> None:
        """The `finish` hooks of one replica, and its best weights put back."""
        run = self.runs[k]
        for hook in _hooks(self.replicas[k], "finish"):
            hook(run)
        if best is not None and run.keep_best:
            run.model.load_state_dict(best)
        run.model.eval()
        run.batch = None


def check_alike(runs: Sequence[Run]) -> None:
    """CannotStackError unless budgets, shapes of the data and kinds of the losses agree."""
    first = runs[0]
    for run in runs[1:]:
        if run.budget != first.budget:
            raise CannotStackError("the budgets differ")
        if type(run.loss) is not type(first.loss) or type(run.optimizer) is not type(first.optimizer):
            raise CannotStackError("losses or optimizers differ")
        for mine, theirs in ((run.train, first.train), (run.held, first.held)):
            if tuple(mine.x.shape) != tuple(theirs.x.shape) or mine.x.dtype != theirs.x.dtype:
                raise CannotStackError("the replicas' data differ in shape")
    if not isinstance(first.train.x, Tensor):
        raise CannotStackError("the rows are streamed")
    if not task(first.spec.task).STACKS:
        raise CannotStackError(f"seeds of task {first.spec.task} are trained one by one")
    if hasattr(first.model, "objective"):
        raise CannotStackError(f"{type(first.model).__name__} has an objective of its own")


def _rows_between(x: Tensor, start: int, end: int) -> Tensor:
    """Rows start to end - 1, the last row again where there are no more."""
    if end <= len(x):
        return x[start:end]
    return x[torch.arange(start, end, device=x.device).clamp_max(len(x) - 1)]


class _Hooked:
    """The replicas' hooks by kind, as (run, hook) pairs."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        def of(name: str) -> list[tuple[Run, Callable[..., Any]]]:
            return [(replica.run, hook) for replica in replicas for hook in _hooks(replica, name)]

        self.batch, self.loss = of("batch"), of("loss")
        self.gradients, self.step_end, self.epoch_end = of("gradients"), of("step_end"), of("epoch_end")
        self.any = any((self.batch, self.loss, self.gradients, self.step_end, self.epoch_end, of("order")))
        touched = {
            word
            for replica in replicas
            for method in replica.methods
            for word in (*getattr(method, "reads", ()), *getattr(method, "writes", ()))
        }
        self.touches_optimizer = "optimizer" in touched


class _Rows:
    """Gathers the batches of all replicas."""

    def __init__(self, runs: Sequence[Run], stack: Stack, hooks: list[tuple[Run, Any]]) -> None:
        self.runs, self.fold, self.hooks = runs, stack.fold, hooks
        x, y = [run.train.x for run in runs], [run.train.y for run in runs]
        size = sum(value.numel() * value.element_size() for value in x)
        self.n = len(y[0])
        self.together = not hooks and size <= RESIDENT
        if self.together:
            self.x, self.y = torch.cat(x), torch.cat(y)
            self.offset = torch.arange(len(runs), device=self.y.device).unsqueeze(1) * self.n

    def batch(self, index: Tensor) -> Batch:
        """(replicas, n) positions -> the folded batch; its `index` stays (replicas, n)."""
        if self.together:
            flat = index + self.offset
            where = (flat.T if self.fold.inner else flat).reshape(-1)
            return Batch(self.x.index_select(0, where), self.y.index_select(0, where), index)
        batches = []
        for run, positions in zip(self.runs, index, strict=True):
            batch = Batch(run.train.x[positions], run.train.y[positions], positions)
            for owner, hook in self.hooks:
                if owner is run:
                    batch = hook(run, batch)
            batches.append(batch)
        if len({(batch.x.shape, batch.y.shape) for batch in batches}) > 1:
            raise CannotStackError("the replicas' batches differ in shape")
        x, y = (self.fold.fold([batch[i] for batch in batches]) for i in (0, 1))
        return Batch(x, y, torch.stack([batch.index for batch in batches]))


class _Losses:
    """The replicas' losses (replicas,) of one folded batch."""

    def __init__(
        self, replicas: Sequence[Replica], stack: Stack, hooks: list[tuple[Run, Any]], *, relabelled: bool
    ) -> None:
        self.replicas, self.fold, self.hooks = replicas, stack.fold, hooks
        first = replicas[0].run.loss
        plain = type(first) in (nn.CrossEntropyLoss, nn.MSELoss) and _default(first)
        self.plain: Callable[..., Tensor] | None = None
        if plain and not hooks:
            self.plain = F.cross_entropy if type(first) is nn.CrossEntropyLoss else F.mse_loss
        bare = not any(True for _ in first.buffers()) and not any(True for _ in first.parameters())
        settings = [described(vars(replica.run.loss), Tensor.tolist) for replica in replicas]
        self.separable = (
            all(replica.separable for replica in replicas)
            and not hooks
            and bare
            and not wants_index(first)
            and all(found == settings[0] for found in settings)
        )
        self.relabelled = relabelled and type(first) is nn.CrossEntropyLoss
        self.reaches_weights = self.plain is None and not self.separable

    def __call__(self, batch: Batch, output: Tensor, *, each: bool) -> Tensor:
        """The losses; a separable one gives their mean in every place, unless `each` is to be known."""
        if self.plain is not None:
            relabelled = self.relabelled and not batch.y.is_floating_point()
            if not each and not relabelled:
                return self.plain(output, batch.y).expand(self.fold.count)  # replicas have equally many rows
            terms = self.fold.split(self.plain(output, batch.y, reduction="none")).reshape(self.fold.count, -1)
            if relabelled:  # labels may have become ones to be ignored
                return terms.sum(dim=1) / self.fold.split(batch.y != IGNORED).sum(dim=1)
            return terms.mean(dim=1)
        if self.separable and not each:
            value = apply_loss(self.replicas[0].run.loss, output, batch.y, batch.index)
            return value.expand(self.fold.count)
        outputs, targets = self.fold.split(output), self.fold.split(batch.y)
        x = self.fold.split(batch.x)
        found = []
        for k, replica in enumerate(self.replicas):
            run = replica.run
            loss = apply_loss(run.loss, outputs[k], targets[k], batch.index[k])
            for owner, hook in self.hooks:
                if owner is run:
                    loss = hook(run, Batch(x[k], targets[k], batch.index[k]), outputs[k], loss)
            found.append(loss)
        return torch.stack(found)


class _Update:
    """One optimizer over the stacked weights where it acts on entries alone, else every replica's own over its views."""

    def __init__(self, runs: Sequence[Run], stack: Stack, touched: bool) -> None:
        first, self.stack = runs[0].optimizer, stack
        owned = {id(p) for group in first.param_groups for p in group["params"]}
        every = {id(peers[0]) for _, peers in stack.parameters}
        settings = _rates(first)
        self.shared = (
            type(first) in ELEMENTWISE
            and not touched
            and len(first.param_groups) == 1
            and owned == every
            and all(_rates(run.optimizer) == settings and not run.optimizer.state for run in runs)
        )
        if self.shared:
            self.optimizers = [_again(first, [stacked for stacked, _ in stack.parameters], settings)]
        else:
            self.optimizers = [run.optimizer for run in runs]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.looks_again = wants_closure(first)
        self.closures = [run.second_pass for run in runs] if self.looks_again else [None] * len(self.optimizers)

    def zero_grad(self) -> None:
        if not self.shared:  # what they own besides the networks, such as a loss's parameters
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        for stacked, peers in self.stack.parameters:
            stacked.grad = None
            for peer in peers:
                peer.grad = None

    def step(self, factor: float) -> None:
        for optimizer, rates, closure in zip(self.optimizers, self.rates, self.closures, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            if closure is None:
                optimizer.step()
            else:
                optimizer.step(closure)

    def restore_rates(self) -> None:
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Settings of the first group."""
    return {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}


def _again(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], settings: dict[str, Any]) -> Any:
    """An optimizer of the same class and settings over other parameters."""
    made = type(optimizer)(parameters)  # type: ignore[call-arg]
    made.param_groups[0].update(settings)
    return made


def _default(loss: nn.Module) -> bool:
    """Whether a loss of torch is a plain mean over rows, without weights, smoothing or ignored labels."""
    fresh = type(loss)()
    names = ("reduction", "label_smoothing", "ignore_index", "weight")
    return all(
        getattr(loss, name, None) == getattr(fresh, name, None) for name in names if getattr(loss, name, 0) is not None
    )


def _hooks(replica: Replica, name: str) -> list[Callable[..., Any]]:
    return [getattr(method, name) for method in replica.methods if hasattr(method, name)]


def _clip(stack: Stack, most: float) -> None:
    """`clip_grad_norm_` for every replica by its own norm."""
    gradients = [stacked.grad for stacked, _ in stack.parameters if stacked.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factor = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *(1,) * (gradient.ndim - 1)))


def _versions(run: Run) -> list[int]:
    """How often the rows have been changed in place."""
    return [value._version for part in (run.train, run.held) for value in (part.x, part.y) if isinstance(value, Tensor)]
