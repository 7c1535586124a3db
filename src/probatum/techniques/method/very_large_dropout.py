"""Fine-tuning with very large dropout: 90 % of the last representation dropped, so that redundant features stay in use.

Paper     Zhang and Bottou 2024, "Fine-tuning with Very Large Dropout", arXiv:2403.00946
Computes  in training the last layer sees m * phi(x) / (1 - p), every entry of m kept with probability 1 - p; afterwards phi(x)
Shapes    phi(x) (..., width): whatever the last layer takes; masks have its shape
Departs   1. the representation is what enters the last layer, which in a residual network is the pooled sum of its blocks
          2. one mask entry a unit and example, drawn from the method's own stream
          3. where heads are concatenated or added, what enters each of them is dropped, by a mask of its own
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.last_layer import last_layers, named_module
from probatum.numerics.networks.watch import by_place
from probatum.numerics.tensors.draws import in_forward
from probatum.numerics.tensors.precision import widened

CARD = Card(
    paper="arXiv:2403.00946",
    title="Fine-tuning with Very Large Dropout",
    entry="VeryLargeDropout",
    number=206,
    tags=("transfer", "fine-tuning", "dropout", "domain shift", "robustness"),
    needs=("pretrained",),
    alone="it drops units by a hook on the last layer",
    neutral={"p": 0.0},
    tiny={"p": 0.5},
    tune={"p": (0.5, 0.95)},
    claims=("redundant-features",),
)

NARROW = 32
"""Units below which a mask of 90 % leaves too little of a representation."""


def drop(features: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """m * features / (1 - p), m drawn on the generator's device with P(m = 1) = 1 - p, every entry by itself."""
    kept = torch.empty(features.shape, device=generator.device).bernoulli_(1 - p, generator=generator)
    wide = widened(features)
    return (wide * (kept.to(wide) / (1 - p))).to(features.dtype)  # 1 / (1 - p) is not rounded to half precision


def expected_excess(weight: Tensor, features: Tensor, p: float) -> Tensor:
    """What dropout adds to the expected squared loss of a linear head (1/2 not included), summed over outputs.

    weight (outputs, width), features (n, width) -> p / (1 - p) * sum_j w_j^2 mean(phi_j^2): a ridge penalty whose weights
    are the features' energies.
    """
    return p / (1 - p) * (weight.square() * features.square().mean(dim=0)).sum()


def energy_rank(features: Tensor, share: float = 0.9) -> int:
    """How many singular values of features (n, width) hold this share of their energy: how rich a representation is."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")
    energy = torch.linalg.svdvals(features.double()).square().cumsum(0)
    return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1


@torch.no_grad()
def accuracy_of_half(
    head: nn.Module, features: Tensor, target: Tensor, draws: int, generator: torch.Generator
) -> float:
    """Mean accuracy when random halves of the representation's units are taken away (the others doubled)."""
    width = features.shape[-1]
    total = 0.0
    for _ in range(draws):
        keep = torch.zeros(width)
        keep[torch.randperm(width, generator=generator)[: width - width // 2]] = 2.0
        total += float((head(features * keep.to(features)).argmax(dim=1) == target).float().mean())
    return total / draws


def soup(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts of one architecture, fine-tuned from the same weights; whole numbers as in the first."""
    if not states:
        raise ValueError("no states are given; a soup needs at least one")
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value.clone()
        for name, value in states[0].items()
    }


class VeryLargeDropout:
    """Dropout of the representation that enters the last layer, in training only; all layers are trained.

    In plain code `attach` it before training and `detach` it afterwards; on the bench it is a method.

    Args:
        p: share of units dropped, in [0, 1); 0 = nothing is done, bit for bit.
        zero_head: start from a last layer of zeros.
        last_layer: the layer whose input is dropped, or its name; None = all that the output comes from (see `last_layers`).
        pretrained: whether the network is; on one from scratch so large a dropout mostly fails, which is warned of.
        generator: the masks' own stream.

    Raises:
        ValueError: p outside [0, 1); a network without a last layer, or without the one that is named; attached twice; a
            last layer whose weight is computed and cannot be zero, with `zero_head`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> dropout = VeryLargeDropout(p=0.9).attach(net)
        >>> x = torch.ones(3, 4)
        >>> torch.equal(net.train()(x), net(x)), torch.equal(net.eval()(x), net(x))
        (False, True)
        >>> dropout.detach()
    """

    reads = ("model",)
    writes = ("output",)

    def __init__(
        self,
        p: float = 0.9,
        zero_head: bool = False,
        last_layer: nn.Module | str | None = None,
        pretrained: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p is {p}; it must lie in [0, 1), e.g. 0.9")
        self.p, self.zero_head, self.last_layer, self.pretrained = p, zero_head, last_layer, pretrained
        self.generator = generator or torch.Generator().manual_seed(0)
        self._handles: list[Any] = []
        self._width = math.nan

    def attach(self, model: nn.Module, x: Tensor | None = None) -> VeryLargeDropout:
        """Drop what enters the model's last layer from now on, whenever that layer is in training mode.

        Args:
            model: the network.
            x: rows that it takes, on which the layer that runs last is seen; needed where neither a plain sequence nor a trace
                of the code tells it.
        """
        if self._handles:
            raise ValueError("already attached to a network; call detach() first")
        heads = last_layers(model, x) if self.last_layer is None else [named_module(model, self.last_layer)]
        if not heads:
            raise ValueError(f"{type(model).__name__} has no linear layer or convolution; give last_layer")
        self._width = getattr(heads[-1], "in_features", getattr(heads[-1], "in_channels", math.nan))
        if self.zero_head:
            for head in heads:
                _zero(head)
        if self.p > 0:
            self._warn()
            self._handles = [head.register_forward_pre_hook(self._dropped, with_kwargs=True) for head in heads]
        return self

    def detach(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def prepare(self, run: Any) -> None:
        """Attach to the run's network."""
        self.attach(run.model, run.train.x[torch.arange(min(2, len(run.train)))])

    def finish(self, run: Any) -> None:
        """Detach from it."""
        self.detach()

    def report(self) -> dict[str, float]:
        """How many units the representation has."""
        return {"very-large-dropout: units of the representation": float(self._width)}

    def state_dict(self) -> dict[str, Any]:
        """State of the masks' stream."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.generator.set_state(state["generator"])

    def _dropped(self, head: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not head.training:
            return None
        given, left = by_place(head, inputs, named)
        return (drop(given[0], self.p, in_forward(self.generator)), *given[1:]), left

    def _warn(self) -> None:
        if self._width < NARROW and self.p >= 0.9:
            warnings.warn(
                f"the representation has {self._width} units, of which p={self.p} leaves {(1 - self.p) * self._width:.1f} "
                "at a time; use a lower p or a wider network",
                stacklevel=3,
            )
        if not self.pretrained:
            warnings.warn(
                f"dropout of p={self.p} is for pretrained networks; from scratch features hardly form", stacklevel=3
            )


@torch.no_grad()
def _zero(head: nn.Module) -> None:
    """Zeros in place of a layer's parameters; ValueError where its weight is computed from them and is then no number."""
    before = [(parameter, parameter.clone()) for parameter in head.parameters()]
    for parameter, _ in before:
        parameter.zero_()
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and not bool((weight == 0).all()):
        for parameter, value in before:
            parameter.copy_(value)
        raise ValueError(
            f"zero_head is set, but the weight of {type(head).__name__} is computed and cannot be made zero; leave it off"
        )
