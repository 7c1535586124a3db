"""Where a learner on frozen features takes them from: a network trained on the same rows, one pretrained elsewhere, or the
inputs themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.watch import last_features, outputs_of
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.spec import Budget, Data, Optimisation

SOURCES = ("auto", "network", "pretrained", "raw")


@dataclass
class Backbone:
    """Rows (n, ...) -> features (n, d), detached.

    Attributes:
        network: the frozen network in evaluation mode; None = the inputs, flattened.
        passes: examples that it was trained on here, with repetition.
        head: its last linear layer, before which features are read; None = found on the first rows.
    """

    network: nn.Module | None
    passes: float = 0.0
    head: nn.Linear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.network is None:
            flat = x.flatten(1)
            return flat if flat.dtype == torch.float64 else flat.float()
        self.head = self.head or head_of(self.network, x)
        return last_features(self.network, x, self.head, ends=False).features

    def logits(self, x: Tensor) -> Tensor:
        """What the network itself says, (n, outputs); ValueError without one."""
        if self.network is None:
            raise ValueError("raw features have no network that could say anything; use another source")
        return outputs_of(self.network, x)


def backbone(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Callable[[], nn.Module],
    optimisation: Optimisation,
    pretrained: bool,
    source: str = "auto",
) -> Backbone:
    """The features' source, trained where it has to be.

    Args:
        data: one split; only training rows are used.
        budget: steps and batch size of a network trained here.
        generator: its batch orders.
        model_factory: networks (n, ...) -> (n, outputs) with a linear last layer.
        optimisation: its learning rate is used.
        pretrained: whether `model_factory` gives networks that were trained elsewhere.
        source: "network" (trained on these rows), "pretrained" (as it comes), "raw" (numbers as they are), or "auto":
            pretrained where there is such a network, else network.

    Raises:
        ValueError: an unknown source, "pretrained" without such a network, or "raw" for token ids.
    """
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; use one of {', '.join(SOURCES)}")
    if source == "raw":
        if not data.train.x.is_floating_point():
            raise ValueError("source is 'raw', but token ids are no features; use 'network'")
        return Backbone(None)
    if source == "pretrained" and not pretrained:
        raise ValueError(
            "source is 'pretrained', but no pretrained network was given; give data or weights to start from"
        )
    net = model_factory()
    head = head_of(net, data.train.x)
    if pretrained and source != "network":
        return Backbone(net.eval().requires_grad_(False), head=head)
    fit_network(net, data.train.x, data.train.y, budget.steps, budget.batch_size, optimisation.lr, generator)
    return Backbone(net.requires_grad_(False), float(budget.steps * budget.batch_size), head)
