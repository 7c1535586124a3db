"""Gradient noise: add annealed Gaussian noise to every gradient before the optimizer's step.

Paper     Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach and Martens 2015, "Adding Gradient Noise Improves Learning for Very
          Deep Networks", arXiv:1511.06807, section 3, equation 1
Computes  g <- g + N(0, s_t^2) with s_t^2 = eta / (1 + t)^gamma, independent for every entry and update t = 0, 1, ...
Shapes    gradients of any shape, changed in place; nothing is returned
Departs   1. of a sparse gradient only the stored entries get noise, so that it stays sparse
          2. the default eta is the smallest of the three that the paper chooses from for each task (0.01, 0.3 and 1.0)
          3. an update that a GradScaler skips, since a gradient overflowed, is not counted
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from probatum.card import Card

CARD = Card(
    paper="arXiv:1511.06807",
    title="Adding Gradient Noise Improves Learning for Very Deep Networks",
    entry="GradientNoise",
    number=29,
    tags=("training", "optimisation", "depth"),
    tasks=("classes", "reals", "next-token"),
    neutral={"eta": 0.0},
    tiny={"eta": 0.01},
    tune={"eta": (1e-6, 1.0, "log"), "gamma": (0.0, 1.0)},
    claims=("escape-from-zero-weights",),
)


def noise_std(t: int, eta: float = 0.01, gamma: float = 0.55) -> float:
    """Standard deviation sqrt(eta / (1 + t)^gamma) of the noise at update t >= 0 (eq. 1)."""
    return math.sqrt(eta / (1 + t) ** gamma)


@torch.no_grad()
def add_noise(gradients: Iterable[Tensor], std: float, generator: torch.Generator) -> None:
    """Add N(0, std^2) to each gradient in place; drawn in float32 on the generator's device, in the given order."""
    for gradient in gradients:
        if gradient.is_sparse:
            whole = gradient.coalesce()
            whole.values().add_(_normal(whole.values(), generator), alpha=std)
            if whole is not gradient:
                gradient.copy_(whole)
        else:
            gradient.add_(_normal(gradient, generator), alpha=std)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(_normal(torch.view_as_real(like), generator))
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _amp(optimizer: torch.optim.Optimizer) -> tuple[float, bool]:
    """What the coming step will divide gradients by, and whether it will be skipped: a GradScaler leaves both to such optimizers."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0, False
    scale, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    return 1.0 if scale is None else float(scale), overflow is not None and bool(overflow)


class GradientNoise:
    """Annealed gradient noise; in plain code a hook on an optimizer, on the bench a method.

    It acts right before the update: after clipping and on the scale of the true gradients, also where a
    `torch.amp.GradScaler` leaves unscaling to the optimizer's own step (fused ones), once an update however many backward
    passes were accumulated. Parameters without a gradient (frozen ones) stay untouched.

    Args:
        eta: variance at the first update, >= 0; 0 = no noise, bit for bit.
        gamma: how fast the variance falls, >= 0; 0 = constant.
        generator: the noise's own stream, so that batches and dropout stay what they are without noise.

    Raises:
        ValueError: eta or gamma negative or not finite; a step with a closure, whose gradients come too late.
        RuntimeError: a step before any backward pass.

    Example:
        >>> net = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> noise = GradientNoise(eta=0.3, generator=torch.Generator().manual_seed(0)).attach(optimizer)
        >>> net(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> noise.t, round(noise.std(), 3)
        (1, 0.453)
        >>> noise.detach()
    """

    reads = ("gradients",)
    writes = ("gradients",)

    def __init__(self, eta: float = 0.01, gamma: float = 0.55, generator: torch.Generator | None = None) -> None:
        for name, value in (("eta", eta), ("gamma", gamma)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        self.eta, self.gamma = eta, gamma
        self.generator = generator or torch.Generator().manual_seed(0)
        self.t = 0
        self._handle: Any = None

    def std(self) -> float:
        """Standard deviation of the noise at the coming update."""
        return noise_std(self.t, self.eta, self.gamma)

    def attach(self, optimizer: torch.optim.Optimizer) -> GradientNoise:
        """Add noise at every `optimizer.step()` from now on, until `detach`."""
        if self._handle is not None:
            raise ValueError("already attached to an optimizer; call detach() first")
        self._handle = optimizer.register_step_pre_hook(self._before_step)
        return self

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def perturb(self, optimizer: torch.optim.Optimizer) -> None:
        """Add this update's noise to the gradients of the optimizer's parameters and count the update.

        Where the optimizer itself unscales in its step, noise is scaled as the gradients are.
        """
        scale, skipped = _amp(optimizer)
        if skipped:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            raise RuntimeError("every gradient is None; call loss.backward() before the step that adds noise")
        if self.eta > 0:
            add_noise(gradients, self.std() * scale, self.generator)
        self.t += 1

    def gradients(self, run: Any) -> None:
        """Perturb the run's gradients, clipped where the recipe clips."""
        self.perturb(run.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and state of the stream."""
        return {"t": self.t, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.t = int(state["t"])
        self.generator.set_state(state["generator"])

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(value) for value in (*args, *kwargs.values())):
            raise ValueError("step(closure) makes its gradients after the noise; call backward first, then step()")
        self.perturb(optimizer)
