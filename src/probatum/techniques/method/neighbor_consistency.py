"""Neighbour consistency: every prediction is drawn to those of its nearest neighbours, so that wrong labels are outvoted.

Paper     Iscen, Valmadre, Arnab and Schmid 2022, "Learning with Neighbor Consistency for Noisy Labels", CVPR, arXiv:2202.02200
Computes  L = (1 - a) CE + a T^2 mean_i KL(q_i | softmax(z_i / T)); q_i = sum_j w_ij softmax(z_j / T), w_ij proportional to
          max(0, cos(v_i, v_j))^gamma over the k nearest features v_j of the batch (equations 3 to 6)
Shapes    features (n, d), logits (n, c) -> scalar
Departs   1. slot method: a loss alone does not see the features, which are what the last linear layer takes in
          2. `kept_rows` keeps features and predictions of earlier batches as further neighbours, without gradient; 0 = the paper's
          3. a row is no neighbour of itself, neither as an older copy that was kept nor where a batch holds it twice
          4. a last batch with no more than k rows keeps its plain loss
          5. what other methods added to the loss before counts as part of it, and is weighed by 1 - a with it
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.watch import HeadInputs
from probatum.numerics.tensors.precision import computed_wide, unit, widened

CARD = Card(
    paper="arXiv:2202.02200",
    title="Learning with Neighbor Consistency for Noisy Labels",
    entry="NeighborConsistency",
    number=151,
    tags=("label-noise", "robustness", "training"),
    tasks=("classes",),
    alone="it compares the rows of a batch, and its features come from a forward hook",
    neutral={"weight": 0.0},
    tiny={"neighbors": 4},
    tune={"weight": (0.2, 0.9), "neighbors": [5, 10, 20], "temperature": [1.0, 2.0]},
    tried={"neighbors": [3, 8]},
    claims=("noisy-digits",),
)


Memory = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""Features, probabilities and perhaps numbers of rows of earlier batches."""


def neighbor_targets(
    features: Tensor,
    p: Tensor,
    neighbors: int,
    gamma: float = 1.0,
    memory: Memory | None = None,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each row's neighbours predict, and which rows have any.

    Args:
        features: (n, d).
        p: (n, c) probabilities of the same rows.
        neighbors: k, at most n - 1 (and the rows of `memory`).
        gamma: power of the positive cosine similarity.
        memory: features (m, d) and probabilities (m, c) of further neighbours, and their rows' numbers (m,) if they are known.
        index: (n,) numbers of the rows, by which they are told from their copies in the batch and in `memory`; None = all
            are different rows.

    Returns:
        q (n, c), rows of which sum to 1 where the second, (n,) bool, is true; the others have no neighbour of positive
        similarity, and zeros.

    Raises:
        ValueError: more neighbours than there are rows beside a row itself, or a gamma below 0.
    """
    n = len(features)
    others = n - 1 + (0 if memory is None else len(memory[0]))
    if not 1 <= neighbors <= others:
        raise ValueError(
            f"neighbors is {neighbors}, but a row of this batch has {others} others; take a larger batch, fewer neighbours, "
            "or drop the last small batch"
        )
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}; it must be at least 0")
    ours = unit(features)
    similar, own = ours @ ours.T, torch.eye(n, dtype=torch.bool, device=features.device)
    if index is not None:
        own = own | (index[:, None] == index[None])
    if memory is not None:
        similar = torch.cat([similar, ours @ unit(memory[0]).T], dim=1)
        p = torch.cat([p, memory[1]])
        copies = torch.zeros_like(similar[:, n:], dtype=torch.bool)
        if index is not None and len(memory) == 3:
            copies = index[:, None] == memory[2][None]
        own = torch.cat([own, copies], dim=1)
    similar = similar.masked_fill(own, float("-inf"))
    nearest = similar.topk(neighbors, dim=1)
    weights = nearest.values.clamp(min=0)
    weights = torch.where(weights > 0, weights, 1.0).pow(gamma) * (weights > 0)  # a slope at zero may be infinite
    total = weights.sum(dim=1, keepdim=True)
    known = total.squeeze(1) > 0
    weights = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.einsum("nk,nkc->nc", weights, p[nearest.indices]), known


@computed_wide
def neighbor_consistency(
    features: Tensor,
    logits: Tensor,
    neighbors: int = 10,
    temperature: float = 1.0,
    gamma: float = 1.0,
    memory: Memory | None = None,
    stop_gradient: bool = False,
    index: Tensor | None = None,
) -> Tensor:
    """T^2 times the mean KL divergence from the neighbours' predictions to the row's own, a scalar.

    Args:
        features, logits: (n, d) and (n, c).
        neighbors, gamma, memory, index: see `neighbor_targets`.
        temperature: T, above 0.
        stop_gradient: whether neighbours are taken as they are; the released loss lets gradients through to them.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits):
        raise ValueError(f"features are {tuple(features.shape)}, logits {tuple(logits.shape)}; give (n, d) and (n, c)")
    if memory is not None:
        memory = (memory[0].to(features.dtype), memory[1].to(logits.dtype), *memory[2:])
    log_p = (logits / temperature).log_softmax(dim=1)
    own = (features.detach(), log_p.detach().exp()) if stop_gradient else (features, log_p.exp())
    q, known = neighbor_targets(*own, neighbors, gamma, memory, index)
    small = torch.finfo(q.dtype).tiny
    each = (q * (q.clamp(min=small).log() - log_p.masked_fill(q == 0, 0.0))).sum(
        dim=1
    )  # 0 log 0 = 0, of classes at -inf too
    return temperature**2 * (each * known).sum() / known.sum().clamp(min=1)


class NeighborConsistency:
    """The regulariser in training; on the bench it weighs the recipe's loss by 1 - weight and itself by weight.

    Args:
        last_layer: the `nn.Linear` whose inputs are the features.
        weight: a, in [0, 1); 0 = the baseline bit for bit.
        neighbors: k, at least 1 and below the batch size.
        temperature: above 0.
        gamma: power of the similarities, at least 0.
        warm_up: share of the steps before it begins, in [0, 1].
        kept_rows: rows of earlier batches that are kept as neighbours.
        stop_gradient: see `neighbor_consistency`.

    Raises:
        ValueError: a setting out of its range; a batch of no more than k rows.
        TypeError: a last layer that is not `nn.Linear`.

    Example:
        >>> features, logits = torch.eye(4)[[0, 0, 1, 1]], torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
        >>> float(neighbor_consistency(features, logits, neighbors=1)) < 1e-6
        True
    """

    reads = ("output",)
    writes = ("loss",)

    def __init__(
        self,
        last_layer: nn.Module,
        weight: float = 0.5,
        neighbors: int = 10,
        temperature: float = 1.0,
        gamma: float = 1.0,
        warm_up: float = 0.1,
        kept_rows: int = 0,
        stop_gradient: bool = False,
    ) -> None:
        for name, share, top in (("weight", weight, 1.0), ("warm_up", warm_up, 1.0 + 1e-12)):
            if not 0 <= share < top:
                raise ValueError(f"{name} is {share}; it must lie in [0, 1{')' if name == 'weight' else ']'}")
        for name, value, least in (("neighbors", neighbors, 1), ("kept_rows", kept_rows, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
        if not 0 < temperature < float("inf") or not 0 <= gamma < float("inf"):
            raise ValueError(f"temperature is {temperature}, gamma {gamma}; use above 0 and at least 0")
        self.inputs = HeadInputs(last_layer)
        self.weight, self.neighbors, self.temperature, self.gamma = weight, neighbors, temperature, gamma
        self.warm_up, self.room, self.stop_gradient = warm_up, kept_rows, stop_gradient
        self.memory: Memory | None = None
        self._new: Memory | None = None

    def prepare(self, run: Any) -> None:
        """Watch the last layer; ValueError where a full batch has too few rows."""
        if self.weight == 0:
            return
        if run.spec.task != "classes":
            raise ValueError(f"neighbours agree on classes; the task here is {run.spec.task}")
        if self.neighbors >= run.budget.batch_size:
            raise ValueError(
                f"neighbors is {self.neighbors}, and batches have {run.budget.batch_size} rows; give fewer, or larger batches"
            )
        self.inputs.attach(run.model)

    def before_pass(self, run: Any, batch: Any) -> None:
        """What earlier passes saw is let go."""
        self.inputs.begin()

    def loss(self, run: Any, batch: Any, output: Tensor, loss: Tensor) -> Tensor:
        """(1 - weight) loss + weight consistency, after the warm-up."""
        if self.weight == 0:
            return loss
        features = self.inputs.take(len(output), output, ends=False)
        index = batch.index if len(batch.index) == len(output) else None
        if self.room and self._new is None:  # second passes of a step are not kept
            p = (widened(output.detach()) / self.temperature).softmax(dim=1)
            self._new = (features.detach(), p) if index is None else (features.detach(), p, index)
        if run.step < self.warm_up * run.budget.steps or len(output) <= self.neighbors:
            return loss
        own = (self.neighbors, self.temperature, self.gamma, self.memory, self.stop_gradient, index)
        return (1 - self.weight) * loss + self.weight * neighbor_consistency(features, output, *own)

    def step_end(self, run: Any) -> None:
        """Keep the batch's rows, the latest first."""
        if self._new is not None:
            self._remember(*self._new)
            self._new = None

    def finish(self, run: Any) -> None:
        """Leave the model as it was."""
        self.detach()

    def detach(self) -> None:
        """Take off the hook."""
        self.inputs.detach()

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return {"memory": self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.memory = state["memory"]

    def _remember(self, *new: Tensor) -> None:
        old = self.memory
        if old is None or len(old) != len(new):  # numbers of rows are known of all that is kept, or of none
            old = tuple(value[:0] for value in new)  # type: ignore[assignment]
        self.memory = tuple(torch.cat([b, a])[: self.room] for a, b in zip(old, new, strict=True))  # type: ignore
