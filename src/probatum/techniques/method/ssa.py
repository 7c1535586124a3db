"""SSA: in training every attention layer looks at a random part of the tokens; at test at all, or at many parts in turn.

Paper     Hussain, Zaki and Subramanian 2023, "The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
          arXiv:2306.01705, sections 3 and 4
Computes  each layer and step: uniform: n / r source tokens without replacement, shared by queries and heads; local: sources
          shuffled by random shifts, cut into windows of n / r, each window's queries see the sources that fell into it. A
          query also sees itself, and never what comes later. The last share of the steps is dense. Self-ensemble: the mean
          of probabilities over M subsampled passes
Shapes    q, k, v (n, heads, t, size) -> (n, heads, t, size); scores of t x (t / r + 1) instead of t x t
Departs   1. one draw serves all sequences of a batch
          2. local shifts are normal with a standard deviation of `reach` windows (the exact law of the paper is not known to us)
          3. where itself was not drawn, a query has one score more, its own, so that no causal row is empty
          4. r may fall linearly to 1 over the subsampled steps, at whole numbers of tokens
          5. scores are plain products: fewer of them, but no fused kernel, so that a CPU saves memory and little or no time
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.attention.causal import CausalMixing
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.networks.surgery import Swap, layers, swap
from probatum.numerics.tensors.draws import in_forward
from probatum.numerics.tensors.precision import widened
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:2306.01705",
    title="The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
    entry="SubsampledAttention",
    number=39,
    tags=("attention", "transformers", "language", "regularisation", "ensemble", "efficiency"),
    modalities=("text",),
    tasks=("next-token",),
    alone="it draws tokens inside attention layers, and seeds of a language model are trained one by one",
    neutral={"ratio": 1.0},
    tiny={"ratio": 3.0, "dense_share": 0.2},
    tune={
        "ratio": (2.0, 8.0),
        "kind": ["uniform", "local"],
        "dense_share": (0.0, 0.5),
        "schedule": ["constant", "linear"],
    },
    claims=("subsampled-training-and-self-ensemble",),
)

KINDS = ("uniform", "local")
SCHEDULES = ("constant", "linear")
BLOCKED = float("-inf")


def draw_sources(length: int, ratio: float, generator: torch.Generator, keep: int = 0) -> Tensor:
    """Positions of length / ratio tokens, rounded up, drawn uniformly without replacement.

    Args:
        length: n.
        ratio: r in [1, n].
        generator: what it is drawn from.
        keep: so many tokens at the beginning are always among them (a class token, a virtual node).
    """
    count = min(max(keep + 1, math.ceil(length / ratio)), length)
    drawn = torch.randperm(length - keep, generator=generator, device=generator.device)[: count - keep] + keep
    return torch.cat([torch.arange(keep, device=drawn.device), drawn.sort().values])


def draw_windows(length: int, ratio: float, generator: torch.Generator, reach: float = 0.5) -> Tensor:
    """Sources of each window of queries (windows, size), size = ceil(length / ratio); -1 fills up the last one.

    Sources are sorted by their position plus a normal shift of `reach` sizes; near ones mostly meet, far ones seldom.
    """
    size = math.ceil(length / ratio)
    shift = torch.randn(length, generator=generator, device=generator.device) * reach * size
    order = (torch.arange(length, device=shift.device) + shift).argsort()
    return torch.nn.functional.pad(order, (0, -length % size), value=-1).unflatten(0, (-1, size))


def attend_to(q: Tensor, k: Tensor, v: Tensor, sources: Tensor) -> Tensor:
    """Causal attention to gathered sources (s,) that all queries share, and of each query to itself.

    q, k, v (n, heads, t, size) -> (n, heads, t, size); scores are t x (s + 1), nothing of t x t is made.
    """
    place = torch.arange(q.shape[2], device=q.device)
    hidden = sources > place[:, None]  # (t, s)
    own_drawn = torch.isin(place, sources)
    return _mixed(q, k, v, k[:, :, sources], v[:, :, sources], hidden, own_drawn)


def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, windows: Tensor) -> Tensor:
    """The same where each window of consecutive queries has sources (windows, s) of its own, -1 = none."""
    t, (count, size) = q.shape[2], windows.shape
    place = torch.arange(count * size, device=q.device)
    q, k, v = (_padded(part, count * size) for part in (q, k, v))
    queries, own_k, own_v = (part.unflatten(2, (count, size)) for part in (q, k, v))
    own = place.view(count, size, 1)
    hidden = (windows[:, None] > own) | (windows[:, None] < 0)  # (windows, queries, sources)
    own_drawn = (windows[:, None] == own).any(dim=2)
    found = windows.clamp_min(0)
    mixed = _mixed(queries, own_k, own_v, k[:, :, found], v[:, :, found], hidden, own_drawn)
    return mixed.flatten(2, 3)[:, :, :t]


def score_cost(length: int, ratio: float) -> float:
    """Scores of a layer over those of dense attention, length x length: how much of the scores' work is left."""
    return (math.ceil(length / ratio) + (ratio > 1)) / length


class SubsampledMixing(nn.Module):
    """Attention over sources that are drawn anew at every pass: q, k, v (n, heads, t, size) -> the same.

    Args:
        dense: what it stands for; called where the ratio is 1 or the network is not `active`.
        ratio: r, in [1, t].
        kind: one of `KINDS`.
        generator: of the draws.
        reach: of local shifts, in windows, >= 0.
        keep: first tokens that every uniform draw holds, 0 .. t - 1.

    Attributes:
        active: True, False, or None = in training mode only.
    """

    def __init__(
        self,
        dense: nn.Module,
        ratio: float,
        kind: str,
        generator: torch.Generator,
        reach: float = 0.5,
        keep: int = 0,
    ) -> None:
        super().__init__()
        self.dense, self.ratio, self.kind, self.generator = dense, ratio, kind, generator
        self.reach, self.keep = reach, keep
        self.active: bool | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        active = self.training if self.active is None else self.active
        if not active or self.ratio == 1:
            return self.dense(q, k, v)
        length = q.shape[2]
        if self.ratio > length:
            raise ValueError(f"ratio is {self.ratio} for {length} tokens; it must lie in [1, {length}]")
        own = in_forward(self.generator)
        if self.kind == "uniform":
            return attend_to(q, k, v, draw_sources(length, self.ratio, own, self.keep).to(q.device))
        return attend_in_windows(q, k, v, draw_windows(length, self.ratio, own, self.reach).to(q.device))


class SubsampledAttention:
    """Training with subsampled attention: a method on the bench, `attach` and `detach` in plain code.

    It takes the place of every `numerics.attention.causal.CausalMixing` of a network and gives it back at the end.

    Args:
        ratio: r, tokens over sources, in [1, tokens]; 1 = dense, bit for bit.
        kind: "local", the paper's for language, or "uniform".
        dense_share: share of the steps, at the end, that are dense, in [0, 1].
        schedule: "constant", or "linear": the ratio falls to 1 over the subsampled steps.
        reach: spread of local shifts, in windows, >= 0.
        keep: kind uniform: first tokens that every draw holds, such as a class token; at least 0, below the number of tokens.
        spec: of the data, so that too high a ratio is refused at once.
        total_steps: of the training to come.
        generator: for all draws; None = always the same.

    Raises:
        ValueError: a setting outside its range.
        TypeError: a network without such attention.

    Example:
        >>> from probatum.numerics.attention.causal import CausalSelfAttention
        >>> net = nn.Sequential(CausalSelfAttention(16, 4))
        >>> ssa = SubsampledAttention(ratio=4.0).attach(net)
        >>> x = torch.ones(2, 8, 16).cumsum(dim=1)
        >>> dense, sparse = net.eval()(x), net.train()(x)
        >>> ssa.detach()
        >>> torch.equal(net(x), dense), torch.equal(sparse, dense), score_cost(128, 4.0)
        (True, False, 0.2578125)
    """

    reads = ("model",)
    writes = ("model",)

    def __init__(
        self,
        ratio: float = 4.0,
        kind: str = "local",
        dense_share: float = 0.2,
        schedule: str = "constant",
        reach: float = 0.5,
        keep: int = 0,
        spec: Spec | None = None,
        total_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        length = None if spec is None else spec.shape[0]
        if not 1 <= ratio <= (length or float("inf")):
            raise ValueError(f"ratio is {ratio}; it must lie in [1, {length or 'number of tokens'}]")
        if not 0 <= dense_share <= 1:
            raise ValueError(f"dense_share is {dense_share}; it must lie in [0, 1]")
        if not reach >= 0:
            raise ValueError(f"reach is {reach}; it must be at least 0")
        if not 0 <= keep < (length or float("inf")):
            raise ValueError(f"keep is {keep}; it must be at least 0 and below the number of tokens")
        if keep and kind == "local":
            raise ValueError(
                f"keep is {keep}, but local windows have no sources that all queries share; use kind='uniform'"
            )
        for name, word, allowed in (("kind", kind, KINDS), ("schedule", schedule, SCHEDULES)):
            if word not in allowed:
                raise ValueError(f"{name} is {word!r}; use one of {', '.join(allowed)}")
        self.ratio, self.kind, self.dense_share, self.schedule, self.reach = ratio, kind, dense_share, schedule, reach
        self.keep, self.total_steps = keep, total_steps
        self.generator = generator or torch.Generator().manual_seed(0)
        self.step = 0
        self._spent = 0.0
        self._length = length
        self._swap: Swap | None = None
        self.mixings: list[SubsampledMixing] = []

    def attach(self, model: nn.Module) -> SubsampledAttention:
        """Subsample the model's attention from now on, whenever it is in training mode."""
        if self._swap is not None:
            raise ValueError("already attached to a network; call detach() first")
        found = layers(model, [CausalMixing])
        if not found:
            raise TypeError(
                f"{type(model).__name__} has no attention that can be subsampled; build it with "
                "numerics.attention.CausalSelfAttention, or call its CausalMixing where scores are made"
            )
        own = (self.ratio, self.kind, self.generator, self.reach, self.keep)
        new = {dense: SubsampledMixing(dense, *own) for dense in found.values()}
        self._swap, self.mixings = swap(model, new), list(new.values())
        return self

    def detach(self) -> None:
        """Give the network its own attention back."""
        if self._swap is not None:
            self._swap.undo()
        self._swap, self.mixings = None, []

    def ratio_at(self, step: int) -> float:
        """The ratio of a step, 1 in the dense phase; the full one where the number of steps is not known."""
        if self.total_steps is None:
            return self.ratio
        sparse = round((1 - self.dense_share) * self.total_steps)
        if step >= sparse:
            return 1.0
        return self.ratio if self.schedule == "constant" else 1 + (self.ratio - 1) * (1 - step / sparse)

    def prepare(self, run: Any) -> None:
        """Attach to the run's network."""
        self.attach(run.model)
        self._set()

    def step_end(self, run: Any) -> None:
        """Count the step and set the next one's ratio."""
        self._spent += score_cost(self._length, self.ratio_at(self.step)) if self._length else 0.0
        self.step += 1
        self._set()

    def finish(self, run: Any) -> None:
        """Detach: prediction is dense."""
        self.detach()

    def report(self) -> dict[str, float]:
        """How much of the work on attention scores was left in training."""
        return {"ssa: attention scores over dense ones": self._spent / self.step} if self.step and self._length else {}

    def state_dict(self) -> dict[str, Any]:
        """Steps so far and the state of the draws."""
        return {"step": self.step, "spent": self._spent, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.step, self._spent = state["step"], state["spent"]
        self.generator.set_state(state["generator"])
        self._set()

    def _set(self) -> None:
        for mixing in self.mixings:
            mixing.ratio = self.ratio_at(self.step)


@torch.no_grad()
def self_ensemble(
    model: nn.Module,
    x: Tensor,
    passes: int = 16,
    ratio: float = 4.0,
    kind: str = "local",
    reach: float = 0.5,
    generator: torch.Generator | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
    keep: int = 0,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of predictions over subsampled passes in evaluation mode; the network is left as it was.

    Args:
        model: a network of `CausalMixing`.
        x: a batch.
        passes: M, at least 1.
        ratio, kind, reach: as in `SubsampledAttention`.
        generator: for the draws; None = always the same.
        read: outputs -> what is averaged; None = softmax over the last dimension. The identity for regression.
        keep: as in `SubsampledAttention`.

    Returns:
        Mean and standard deviation (over M, not M - 1), both of the shape and precision of what is averaged.

    Raises:
        ValueError: `passes` below 1, or a setting outside its range.
        TypeError: a network without such attention.
    """
    if passes < 1:
        raise ValueError(f"passes is {passes}; it must be at least 1")
    method = SubsampledAttention(ratio, kind, reach=reach, keep=keep, generator=generator).attach(model)
    moments = _Moments()
    try:
        with evaluating(model):
            for mixing in method.mixings:
                mixing.active = True
            for _ in range(passes):
                output = model(x.clone())  # which may begin by changing it in place
                moments.add(output.softmax(dim=-1) if read is None else read(output))
    finally:
        method.detach()
    return moments.mean_and_deviation()


class _Moments:
    """Mean and deviation of tensors given one by one: deviations from the first, so that an offset costs no digits."""

    def __init__(self) -> None:
        self.count, self.first = 0, torch.zeros(())
        self.total = self.sums = self.squares = torch.zeros(())

    def add(self, found: Tensor) -> None:
        if not self.count:
            self.first, self.total = found, torch.zeros_like(widened(found))
            self.sums = self.squares = torch.zeros_like(found, dtype=torch.float64)
        away = found.double() - self.first.double()
        self.count, self.total = self.count + 1, self.total + found
        self.sums, self.squares = self.sums + away, self.squares + away.square()

    def mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        variance = self.squares / self.count - (self.sums / self.count).square()
        return (self.total / self.count).to(self.first), variance.clamp_min(0).sqrt().to(self.first)


def _padded(x: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[2]))


def _mixed(q: Tensor, own_k: Tensor, own_v: Tensor, k: Tensor, v: Tensor, hidden: Tensor, own_drawn: Tensor) -> Tensor:
    """Softmax over sources and, where it was not drawn, the query's own position, which is never hidden."""
    scale = q.shape[-1] ** -0.5
    scores = (q * scale @ k.transpose(-1, -2)).masked_fill(hidden, BLOCKED)
    own = ((q * own_k).sum(dim=-1) * scale).masked_fill(own_drawn, BLOCKED)
    weights = torch.cat([scores, own.unsqueeze(-1)], dim=-1).softmax(dim=-1)
    return weights[..., :-1] @ v + weights[..., -1:] * own_v
