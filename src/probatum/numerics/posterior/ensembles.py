"""Training many networks of one architecture as one computation: deep ensembles and the trajectories that SWAG averages.

Weights lie in one matrix (S, P) and AdamW works element by element, so that every member ends where it would have ended
alone with the same rows and draws, to float tolerance. Members may see the same batches or orders of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adamw import adamw

from probatum.numerics.posterior.stacked import Stacked
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import real_targets
from probatum.spec import Optimisation, Part

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (m, outputs), targets (m, ...)) -> losses (m,)."""
Hook = Callable[[int, Tensor, dict[str, Tensor]], None]
"""Called after every update with its number, weights (S, P) and buffers."""
Losses = Callable[[Tensor], Tensor]
BatchGradient = Callable[[Losses, Tensor], Tensor]
"""(weights -> losses (S,), weights (S, P)) -> gradient (S, P)."""


def class_losses(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every row."""
    return F.cross_entropy(output, target, reduction="none")


def square_losses(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of every row; ValueError for shapes that do not go together."""
    return (output - real_targets(output, target)).square().flatten(1).mean(dim=1)


def gaussian_losses(output: Tensor, target: Tensor) -> Tensor:
    """-log N(y; mean, exp(log-variance)) of every row, outputs (m, 2 d): means, then log-variances."""
    means, logs = output.chunk(2, dim=1)
    logs = logs.clamp(-14.0, 14.0)
    return 0.5 * ((real_targets(means, target) - means).square() * (-logs).exp() + logs + math.log(2 * math.pi)).sum(
        dim=1
    )


def member_losses(row_losses: RowLoss, output: Tensor, target: Tensor, own: bool = False) -> Tensor:
    """Losses (S, n) of outputs (S, n, outputs) on targets (n, ...) that all share, or with `own` on (S, n, ...)."""
    count, rows = output.shape[:2]
    output, target = widened(output), widened(target)
    if not own:
        target = target.expand(count, *target.shape)
    return row_losses(output.flatten(0, 1), target.flatten(0, 1)).reshape(count, rows)


def orders(rows: int, batch_size: int, steps: int, generator: torch.Generator, members: int = 0) -> Iterator[Tensor]:
    """Positions of `steps` batches, (B,) for all or (members, B) each its own, going through all rows epoch by epoch.

    Where the rows are no multiple of the batch, the last ones of an epoch are left out, differently each time.
    """
    size = min(batch_size, rows)
    per_epoch = max(1, rows // size)
    for step in range(steps):
        if step % per_epoch == 0:
            count = max(members, 1)
            shuffled = torch.stack([torch.randperm(rows, generator=generator) for _ in range(count)])
        at = (step % per_epoch) * size
        batch = shuffled[:, at : at + size]
        yield batch if members else batch[0]


@dataclass
class Members:
    """Members in training.

    Attributes:
        stacked: their architecture.
        weights: (S, P).
        buffers: stacked buffers and frozen parameters, by name.
    """

    stacked: Stacked
    weights: Tensor
    buffers: dict[str, Tensor]

    def samples(self) -> dict[str, Tensor]:
        """Stacked parameters and buffers by name, as `Posterior` takes them: copies, which no later training changes."""
        found = {**self.stacked.named(self.weights), **self.buffers}
        return {name: value.detach().clone() for name, value in found.items()}

    @torch.no_grad()
    def outputs(self, x: Tensor, rows: int = 1024) -> Tensor:
        """Outputs (S, n, outputs) in evaluation mode, rows split as those of `Posterior.outputs`."""
        found = [self.stacked(self.weights, part, self.buffers) for part in self.stacked.blocks(x, rows)]
        return widened(found[0] if len(found) == 1 else torch.cat(found, dim=1))


def train_members(
    members: Members,
    train: Part,
    valid: Part | None,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    optimisation: Optimisation,
    row_losses: RowLoss,
    *,
    own_orders: bool = True,
    hook: Hook | None = None,
    gradient: BatchGradient | None = None,
) -> Members:
    """Train in place by AdamW, and keep each member's best weights on the validation rows, looked at once an epoch.

    Args:
        members: where they start; dropout draws from torch's global stream (see `own_draws`).
        train: rows.
        valid: rows that choose by error and loss; None = the last weights stay.
        steps: updates.
        batch_size: rows of each member's batch.
        generator: of the batch orders.
        optimisation: learning rate, weight decay, schedule and clipping.
        row_losses: of outputs and targets.
        own_orders: whether every member has an order of its own.
        hook: called after every update.
        gradient: (weights -> losses (S,), weights) -> gradient (S, P), in place of the plain one.

    Raises:
        ValueError: a training that stopped being finite.
    """
    count = len(members.weights)
    batches = orders(len(train), batch_size, steps, generator, count if own_orders else 0)
    how = (train, valid, steps, batch_size, optimisation, row_losses)
    if members.stacked.apart and count > 1 and hook is None:
        planned, weights = list(batches), members.weights.clone()
        for k in range(count):
            # views, so that what a `gradient` knows of all members' buffers is what this one changes
            alone = Members(
                members.stacked, weights[k : k + 1], {name: value[k : k + 1] for name, value in members.buffers.items()}
            )
            own = (index[k : k + 1] if own_orders else index for index in planned)
            _train_together(alone, *how, own, own_orders, None, gradient)
            weights[k : k + 1] = alone.weights
            for name, value in alone.buffers.items():
                members.buffers[name][k : k + 1] = value
        members.weights = weights
        return members
    return _train_together(members, *how, batches, own_orders, hook, gradient)


def _train_together(
    members: Members,
    train: Part,
    valid: Part | None,
    steps: int,
    batch_size: int,
    optimisation: Optimisation,
    row_losses: RowLoss,
    batches: Iterable[Tensor],
    own_orders: bool,
    hook: Hook | None,
    gradient: BatchGradient | None,
) -> Members:
    count = len(members.weights)
    best: Tensor | None = None
    members.weights = members.weights.detach().clone()
    kept, kept_buffers = members.weights.clone(), {k: v.clone() for k, v in members.buffers.items()}
    per_epoch = max(1, len(train) // min(batch_size, len(train)))
    lone = members.stacked.apart and count == 1 and gradient is None
    how = (optimisation, row_losses, own_orders)
    update = _lone_updates(members, *how) if lone else _stacked_updates(members, *how, gradient)
    for step, index in enumerate(batches):
        update(train.x[index], train.y[index], optimisation.factor(step, steps))
        if hook is not None:
            hook(step, members.weights, members.buffers)
        if valid is not None and ((step + 1) % per_epoch == 0 or step + 1 == steps):
            score = validation_scores(members.outputs(valid.x), valid.y, row_losses)
            better = torch.ones(count, dtype=torch.bool) if best is None else score < best
            best = score if best is None else torch.where(better, score, best)
            kept[better] = members.weights[better]
            for name, value in members.buffers.items():
                kept_buffers[name][better] = value[better]
    if valid is not None and best is not None:
        members.weights, members.buffers = kept, kept_buffers
    if not all(bool(value.isfinite().all()) for value in (members.weights, *members.buffers.values())):
        raise ValueError(f"the weights stopped being finite at rate {optimisation.lr}; use a lower learning rate")
    return members


Update = Callable[[Tensor, Tensor, float], None]
"""(rows, targets, multiplier of the rate): one step, which changes the members' weights in place."""


def _stacked_updates(
    members: Members, optimisation: Optimisation, row_losses: RowLoss, own: bool, gradient: BatchGradient | None
) -> Update:
    stacked, weights = members.stacked, torch.nn.Parameter(members.weights)
    optimizer = torch.optim.AdamW([weights], lr=optimisation.lr, weight_decay=optimisation.weight_decay, fused=True)

    def update(x: Tensor, y: Tensor, factor: float) -> None:
        def losses(at: Tensor) -> Tensor:
            output = stacked(at, x, members.buffers, training=True, own=own)
            return member_losses(row_losses, output, y, own).mean(dim=1)

        if gradient is None:
            weights.grad = torch.autograd.grad(losses(weights).sum(), weights)[0]
        else:
            # a fused step reads it as it reads the weights
            weights.grad = gradient(losses, weights.detach()).contiguous()
        if optimisation.clip is not None:
            norms = weights.grad.norm(dim=1, keepdim=True)
            weights.grad *= (optimisation.clip / (norms + 1e-6)).clamp(max=1.0)
        optimizer.param_groups[0]["lr"] = optimisation.lr * factor
        optimizer.step()

    return update


def _lone_updates(members: Members, optimisation: Optimisation, row_losses: RowLoss, own: bool) -> Update:
    """Of one network, as it is trained alone: its parameters are leaves that lie in the flat weights.

    By AdamW's function: the class looks at every parameter anew in each step, a tenth of the time of small networks.
    """
    stacked, state = members.stacked, {name: value[0] for name, value in members.buffers.items()}
    leaves = [nn.Parameter(value[0]) for value in stacked.named(members.weights, cast=False).values()]
    means, squares = [torch.zeros_like(leaf) for leaf in leaves], [torch.zeros_like(leaf) for leaf in leaves]
    counts, output = [torch.zeros((), device=leaf.device) for leaf in leaves], stacked.one(leaves, state)

    def update(x: Tensor, y: Tensor, factor: float) -> None:
        rows, targets = (x[0], y[0]) if own else (x, y)
        loss = row_losses(widened(output(rows)), widened(targets)).mean()
        for leaf in leaves:
            leaf.grad = None
        loss.backward()  # which lays gradients out as the weights are, as the fused step takes them to be
        if optimisation.clip is not None:
            nn.utils.clip_grad_norm_(leaves, optimisation.clip)
        used = [k for k, leaf in enumerate(leaves) if leaf.grad is not None]
        with torch.no_grad():
            adamw(
                [leaves[k] for k in used],
                [leaf.grad for leaf in leaves if leaf.grad is not None],
                [means[k] for k in used],
                [squares[k] for k in used],
                [],
                [counts[k] for k in used],
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=optimisation.lr * factor,
                weight_decay=optimisation.weight_decay,
                eps=1e-8,
                maximize=False,
            )

    return update


def validation_scores(output: Tensor, y: Tensor, row_losses: RowLoss) -> Tensor:
    """What each member's best weights are chosen by, (S,), lower = better: error, with the loss as tie-break, or the loss."""
    loss = member_losses(row_losses, output, y).mean(dim=1)
    if y.is_floating_point():
        return loss
    error = (output.argmax(dim=2) != y).double().mean(dim=1)
    return error + 1e-6 * loss.clamp(max=1e3)
