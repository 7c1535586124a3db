"""SCALE: SGD with normalised gradients per output unit, and momentum in the last layer alone.

Paper     Glentis et al. 2025, arXiv:2506.16659, algorithm 1
Computes  U = G / max(rms of G over its inputs, 1e-8), W <- (1 - lr wd) W - lr U; in the last layer G is first replaced by
          m <- 0.9 m + 0.1 G; embeddings (vocabulary, width) take the rms over the vocabulary; vectors are left to AdamW
Shapes    weights (C_out, ...) as (C_out, rest); state: one number a weight of the last layer, two a vector's
Departs   1. vectors take the standard AdamW; the published code adds eps before the bias correction instead of after
          2. a weight tied between embedding and last layer is treated as last layer
          3. "max" and "singular" are scaled as `numerics.optimisation.matrices.normalise` says, for the ablation of normalisations
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.roles import ROLES, parameter_roles
from probatum.numerics.optimisation.adamw import adamw_update, dense_real, load_wide, state_bytes
from probatum.numerics.optimisation.matrices import NORMALISATIONS, as_matrix, normalise
from probatum.numerics.tensors.precision import widened

CARD = Card(
    paper="arXiv:2506.16659",
    title="A Minimalist Optimizer Design for LLM Pretraining",
    entry="ScaleOptimizer",
    number=236,
    tags=("optimisation", "memory", "language"),
    tasks=("classes", "reals", "next-token"),
    tiny={"lr": 1e-3},
    tune={"lr": (1e-4, 1e-1, "log"), "momentum": [0.8, 0.9, 0.95]},
    claims=("near-adamw-with-little-state",),
)

PLACEMENTS = ("last", "all", "none")


def scale_direction(gradient: Tensor, role: str, how: str = "row", floor: float = 1e-8) -> Tensor:
    """Normalised update of a gradient (C_out, ...): over the inputs, or for role "embedding" over the vocabulary."""
    matrix = as_matrix(gradient)
    if role == "embedding" and how in ("row", "column"):
        how = "column" if how == "row" else "row"
    return normalise(matrix, how, floor).reshape(gradient.shape)


def gradient_variances(model: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> dict[str, float]:
    """E|g - E g|^2 of each matrix's gradient over the losses of several batches (unbiased), by parameter name.

    The paper's motive (its figure on gradient variance): it is largest in the last layer. The model's own gradients
    are left as they are.
    """
    names, weights = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad and p.ndim >= 2], strict=True)
    drawn = [torch.autograd.grad(loss(), weights) for loss in losses]
    if len(drawn) < 2:
        raise ValueError(f"losses has {len(drawn)} batches; a variance needs two or more")
    stacked = [torch.stack(gradients) for gradients in zip(*drawn, strict=True)]
    return {name: float(g.var(dim=0).sum()) for name, g in zip(names, stacked, strict=True)}


class ScaleOptimizer(torch.optim.Optimizer):
    """SCALE; make it with `for_model`, which finds the layers' roles.

    Args:
        params: groups of parameters, each with a "role" out of matrix, embedding, last, vector (matrix or vector by
            their dimensions if it is not given); one group must be "last".
        lr: step of every normalised entry, > 0.
        vector_lr: AdamW's rate for vectors; None = lr. Schedules act on both.
        weight_decay: decoupled, >= 0.
        momentum: of the last layer, in [0, 1).
        momentum_on: "last", "all" or "none" (ablations).
        normalisation: out of `numerics.optimisation.matrices.NORMALISATIONS` (ablations); the paper's is "row".
        betas, eps: AdamW's, for vectors.

    Raises:
        ValueError: a setting outside its range; no last layer.
        TypeError: a sparse or complex gradient.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = ScaleOptimizer.for_model(net, lr=0.1)
        >>> net(torch.ones(2, 4)).square().sum().backward()
        >>> before = net[2].weight.detach().clone()
        >>> optimizer.step()
        >>> (net[2].weight - before).square().mean(dim=1).sqrt().detach()
        tensor([0.1000, 0.1000, 0.1000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        vector_lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        momentum_on: str = "last",
        normalisation: str = "row",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        vector_lr = lr if vector_lr is None else vector_lr
        for name, rate in (("lr", lr), ("vector_lr", vector_lr)):
            if not rate > 0:
                raise ValueError(f"{name} is {rate}; it must be above 0")
        for name, value in (("momentum", momentum), ("betas[0]", betas[0]), ("betas[1]", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must lie in [0, 1)")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
        if momentum_on not in PLACEMENTS:
            raise ValueError(f"momentum_on is {momentum_on!r}; use one of {', '.join(PLACEMENTS)}")
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation is {normalisation!r}; use one of {', '.join(NORMALISATIONS)}")
        groups = list(_groups(list(params), vector_lr))
        if not any(group["role"] == "last" for group in groups):
            raise ValueError(
                "no parameter is identified as the last layer; use ScaleOptimizer.for_model(model, last_layer=...), "
                "or give a parameter group with role='last'"
            )
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "momentum_on": momentum_on,
            "normalisation": normalisation,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it must say its "role", since its place in the network cannot be seen from here."""
        if param_group.get("role") not in ROLES:
            raise ValueError(f"the new group's role is {param_group.get('role')!r}; give one of {', '.join(ROLES)}")
        super().add_param_group(param_group)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float = 1e-3,
        vector_lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        momentum_on: str = "last",
        normalisation: str = "row",
        last_layer: nn.Module | str | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> ScaleOptimizer:
        """SCALE for all trainable parameters of a model.

        Args:
            model: roles are found by module type and dimension (`numerics.networks.roles.parameter_roles`).
            last_layer: module, or its name; None = the last linear layer, or else convolution.
            roles: parameter name -> role, where the finding is wrong.

        For the others see the class.
        """
        found = parameter_roles(model, last_layer, roles)
        named = dict(model.named_parameters())
        groups = [
            {"params": [named[name] for name, its in found.items() if its == role], "role": role}
            for role in ROLES
            if role in found.values()
        ]
        return cls(groups, lr, vector_lr, weight_decay, momentum, momentum_on, normalisation)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, dense_real(parameter.grad, parameter.shape), group)
        return loss

    def state_bytes(self) -> int:
        """Bytes of the state's tensors."""
        return state_bytes(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; for half-precision weights the state is kept in float32."""
        load_wide(self, state_dict)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        lr, decay, role = group["lr"], group["weight_decay"], group["role"]
        state = self.state[parameter]
        if role == "vector":
            adamw_update(parameter, gradient, state, lr=lr, betas=group["betas"], eps=group["eps"], weight_decay=decay)
            return
        if group["momentum_on"] == "all" or (group["momentum_on"] == "last" and role == "last"):
            if not state:
                state["momentum"] = torch.zeros_like(widened(parameter))
            gradient = state["momentum"].lerp_(widened(gradient), 1 - group["momentum"])
        update = scale_direction(gradient, role, group["normalisation"])
        parameter.mul_(1 - lr * decay).add_(update.to(parameter.dtype), alpha=-lr)


def _groups(params: Sequence[Any], vector_lr: float) -> Iterable[dict[str, Any]]:
    """Parameter groups with a role each; those without one are split by dimension, and vectors get their own rate."""
    given = params if params and isinstance(params[0], dict) else [{"params": params}]
    for group in given:
        members = list(group["params"]) if not isinstance(group["params"], Tensor) else [group["params"]]
        parts = {group["role"]: members} if "role" in group else {
            "matrix": [p for p in members if p.ndim >= 2],
            "vector": [p for p in members if p.ndim < 2],
        }  # fmt: skip
        for role, part in parts.items():
            if role not in ROLES:
                raise ValueError(f"a group's role is {role!r}; use one of {', '.join(ROLES)}")
            if role != "vector" and any(p.ndim < 2 for p in part):
                raise ValueError(f"a group of role {role!r} holds a parameter with fewer than two dimensions")
            if part:
                rate = {"lr": vector_lr} if role == "vector" else {}
                yield {**rate, **group, "params": part, "role": role}
