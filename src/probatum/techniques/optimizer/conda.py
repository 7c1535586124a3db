"""Conda: Adam whose second moment lives in the singular basis of the momentum, on each matrix's shorter side.

Paper     Wang et al. 2025, arXiv:2509.24218, algorithm 1
Computes  M <- b1 M + (1 - b1) G; every `gap` updates Q = V (or U) of M = U S V^T; N <- b2 N + (1 - b2) P(G)^2;
          W <- W - lr scale sqrt(1 - b2^t) / (1 - b1^t) P^-1(P(M) / (sqrt(N) + eps)), then W <- W - lr wd W, where
          P(X) = X V if rows >= columns, else U^T X; N is not rotated when Q changes
Shapes    weights (C_out, ...) as (m, n); state: M (m, n), N (m, n), Q (k, k) with k = min(m, n)
Departs   1. convolution weights are rotated as (C_out, rest); embeddings and vectors take AdamW, as in the paper
          2. `gap` defaults to 100, not the released 2000, which is longer than most runs here
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.roles import parameter_roles
from probatum.numerics.optimisation.adamw import adamw_update, dense_real, load_wide, state_bytes
from probatum.numerics.optimisation.matrices import as_matrix
from probatum.numerics.tensors.precision import widened

CARD = Card(
    paper="arXiv:2509.24218",
    title="Conda: Column-Normalized Adam for Training Large Language Models Faster",
    entry="Conda",
    number=227,
    tags=("optimisation", "language"),
    tasks=("classes", "reals", "next-token"),
    alone="singular vectors of a gradient that lacks rank turn on the last bits, and the update with them",
    tiny={"lr": 1e-3, "gap": 2},
    tune={"lr": (1e-4, 1e-1, "log"), "gap": [20, 100, 500]},
    claims=("fewer-steps-than-adamw",),
)

BASES = ("momentum", "identity")


def momentum_basis(momentum: Tensor) -> Tensor:
    """Singular vectors on the shorter side of a matrix (m, n): V (n, n) if m >= n, else U (m, m); SVD in float32 or wider.

    Of a matrix that is not finite it is NaN, so that training goes the way of a loss that is not.
    """
    momentum = widened(momentum)
    if not torch.isfinite(momentum).all():
        return momentum.new_full((min(momentum.shape),) * 2, math.nan)
    u, _, vh = torch.linalg.svd(momentum, full_matrices=False)
    return vh.mT.contiguous() if momentum.shape[0] >= momentum.shape[1] else u


def project(matrix: Tensor, basis: Tensor) -> Tensor:
    """Coordinates P(X) of a matrix (m, n) in the basis of its shorter side."""
    return matrix @ basis if matrix.shape[0] >= matrix.shape[1] else basis.mT @ matrix


def project_back(matrix: Tensor, basis: Tensor) -> Tensor:
    """The inverse of `project`."""
    return matrix @ basis.mT if matrix.shape[0] >= matrix.shape[1] else basis @ matrix


class Conda(torch.optim.Optimizer):
    """Conda for matrices, AdamW for the rest; `for_model` leaves embeddings to AdamW.

    Args:
        params: parameters or groups; a group with "rotate": False takes AdamW throughout.
        lr: > 0.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, > 0.
        weight_decay: decoupled, >= 0.
        gap: updates between two singular value decompositions, >= 1.
        scale: factor of the rotated updates, > 0 (0.25 in some released recipes).
        basis: "momentum", or "identity" = no rotation, for comparison.

    Raises:
        ValueError: a setting outside its range.
        TypeError: a sparse or complex gradient.

    Example:
        >>> net = nn.Linear(4, 3)
        >>> optimizer = Conda.for_model(net, lr=0.01, gap=10)
        >>> net(torch.ones(2, 4)).square().sum().backward()
        >>> optimizer.step()
        >>> tuple(optimizer.state[net.weight]["basis"].shape)
        (3, 3)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gap: int = 100,
        scale: float = 1.0,
        basis: str = "momentum",
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("scale", scale)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] is {beta}; it must lie in [0, 1)")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
        if gap < 1 or gap != int(gap):
            raise ValueError(f"gap is {gap}; it must be a whole number of updates, at least 1")
        if basis not in BASES:
            raise ValueError(f"basis is {basis!r}; use one of {', '.join(BASES)}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gap": gap,
            "scale": scale,
            "basis": basis,
            "rotate": True,
        }
        super().__init__(params, defaults)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gap: int = 100,
        scale: float = 1.0,
        basis: str = "momentum",
        roles: Mapping[str, str] | None = None,
    ) -> Conda:
        """Conda for a model's matrices (last layer included), AdamW for its embeddings and vectors.

        Args:
            model: roles are found by module type and dimension (`numerics.networks.roles.parameter_roles`).
            roles: parameter name -> matrix, last, embedding or vector, where the finding is wrong.

        For the others see the class.
        """
        found, named = parameter_roles(model, None, roles), dict(model.named_parameters())
        rotated = [named[name] for name, role in found.items() if role in ("matrix", "last")]
        others = [named[name] for name, role in found.items() if role in ("embedding", "vector")]
        groups = [{"params": rotated, "rotate": True}, {"params": others, "rotate": False}]
        return cls([g for g in groups if g["params"]], lr, betas, eps, weight_decay, gap, scale, basis)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = dense_real(parameter.grad, parameter.shape)
                if group["rotate"] and parameter.ndim >= 2:
                    self._rotated(parameter, gradient, group)
                else:
                    chosen = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
                    adamw_update(parameter, gradient, self.state[parameter], **chosen)
        return loss

    def state_bytes(self) -> int:
        """Bytes of the state's tensors."""
        return state_bytes(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; for half-precision weights the state is kept in float32."""
        load_wide(self, state_dict)

    def _rotated(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = widened(as_matrix(gradient))
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["momentum"], state["second"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        momentum, second = state["momentum"], state["second"]
        momentum.lerp_(gradient, 1 - beta1)
        if group["basis"] == "momentum":
            if state["step"] % group["gap"] == 0:
                state["basis"] = momentum_basis(momentum)
            gradient, momentum = project(gradient, state["basis"]), project(momentum, state["basis"])
        state["step"] += 1
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = momentum / second.sqrt().add_(group["eps"])
        if group["basis"] == "momentum":
            update = project_back(update, state["basis"])
        rate = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"]) * group["scale"]
        parameter.add_(update.reshape(parameter.shape).to(parameter.dtype), alpha=-rate)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
