"""A short plain training, for techniques that need a network of their own beside the one in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.networks.modes import begin_training
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import HALF, computed_wide, widened
from probatum.numerics.tensors.targets import IGNORED, class_targets, real_targets


@computed_wide
def row_losses(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (classes) or mean squared error (reals) of every row: (n, outputs), target -> (n,).

    Raises:
        ValueError: shapes that do not go together.
    """
    if target.is_floating_point():
        return (output - real_targets(output, target)).square().flatten(1).mean(dim=1)
    return F.cross_entropy(output, class_targets(output, target, ignored=IGNORED, least=1), reduction="none")


def mean_loss(output: Tensor, target: Tensor) -> Tensor:
    """The mean of `row_losses`."""
    return row_losses(output, target).mean()


@contextmanager
def in_single(model: nn.Module) -> Iterator[None]:
    """A block in which half-precision parameters and buffers are float32; Adam's second moment is 0 in float16 where gradients
    are below 2e-4, and division by it is not finite."""
    held = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in HALF]
    dtypes = [t.dtype for t in held]
    named = [(own, name, t.dtype) for own in model.modules() for name, t in own._buffers.items() if t is not None]
    for t in held:
        t.data = t.data.float()
    try:
        yield
    finally:
        for t, dtype in zip(held, dtypes, strict=True):
            t.data, t.grad = t.data.to(dtype), None
        for own, name, dtype in named:  # those that were replaced by others meanwhile
            if dtype in HALF and (now := own._buffers.get(name)) is not None and now.is_floating_point():
                now.data = now.data.to(dtype)


def fit_network(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    cosine: bool = True,
) -> nn.Module:
    """Train `model` in place by AdamW and leave it in evaluation mode; the global random state is put back.

    Frozen weights stay, and so do parts that are in evaluation in a network in training. Networks and rows of half precision
    are trained in float32, and the network given back as it came.

    Args:
        model: (n, ...) -> (n, outputs); its own `objective(x, output, y, loss)` is used where it has one.
        x, y: the rows.
        steps: updates, each of `batch_size` rows; a last batch of a single row is left out where there are others.
        batch_size: rows, 1 or more.
        lr: learning rate, falling to 0 along a half cosine if `cosine`, else constant.
        generator: batch order, and the seed of what the model itself draws (dropout).

    Raises:
        ValueError: no rows, a batch size below 1, or a model all of whose weights are frozen.
    """
    if not len(y) or batch_size < 1:
        raise ValueError(f"there are {len(y)} rows and batch_size is {batch_size}; give one or more of each")
    if not any(value.requires_grad for value in model.parameters()):
        raise ValueError(f"all weights of {type(model).__name__} are frozen; nothing is left to train")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps)) if cosine else None
    own = getattr(model, "objective", None)
    begin_training(model)
    with own_draws(generator), in_single(model):
        batches: list[Tensor] = []
        for _ in range(steps):
            if not batches:
                batches = list(torch.randperm(len(y), generator=generator).split(batch_size))
                if len(batches) > 1 and len(batches[-1]) < min(2, batch_size):
                    batches.pop()
            index = batches.pop()
            rows = widened(x[index])
            output = model(rows.clone())  # a network may begin in place, and its objective sees the rows as they came
            loss = mean_loss(output, y[index]) if own is None else own(rows, output, y[index], mean_loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rate is not None:
                rate.step()
    return model.eval()
