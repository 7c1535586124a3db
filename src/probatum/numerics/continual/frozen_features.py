"""Frozen features for continual learners: an encoder that learns from the first stage at most, and no more after it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from probatum.numerics.continual.learners import FORWARD, Settings
from probatum.numerics.continual.stages import Split, class_mask, evaluate, seen_loss, tensor_bytes, train_stage
from probatum.numerics.networks.frozen import freeze
from probatum.numerics.tensors.precision import widened
from probatum.spec import Budget, Stage

ENCODERS = ("first-stage", "given")
"""The baseline learns the first stage and is frozen; or it is frozen as it comes (pretrained, or with its initial weights)."""
SHARE = 0.8
"""Share of the first stage's steps that the encoder takes where it learns, where nothing else is said."""
LEAST_SCALE = 1e-6


class FrozenFeatures:
    """What stands before the last linear layer of a network, frozen; or a frozen encoder of one's own.

    Features of the named encoders are standardised by means and deviations of the first stage; those of one's own encoder
    are left as they are. Features of half precision are given in float32.

    Args:
        encoder: first-stage, given, or a module x -> features (n, d) or (n, tokens, d) whose parameters need no gradients.
        settings: what the learner works with; `model_factory` is called where the encoder is named.
        share: of the first stage's steps that an encoder takes that learns, in (0, 1).

    Attributes:
        passes: examples passed forward and backward so far.

    Raises:
        ValueError: an unknown encoder, or one that would be trained.
    """

    def __init__(self, encoder: str | nn.Module, settings: Settings, share: float = SHARE) -> None:
        self.settings, self.share, self.passes = settings, share, 0.0
        self.learns, self._learnt = encoder == "first-stage", False
        self.mean = self.scale = torch.zeros(0)
        if isinstance(encoder, nn.Module):
            if any(p.requires_grad for p in encoder.parameters()):
                raise ValueError(
                    "the encoder has parameters that require gradients; call encoder.requires_grad_(False)"
                )
            self.network: nn.Module = encoder
        elif encoder in ENCODERS:
            self.network = Split(settings.model_factory(), settings.num_classes)
        else:
            raise ValueError(f"encoder is {encoder!r}; use {' or '.join(ENCODERS)}, or a frozen module")
        self.standardises = not isinstance(encoder, nn.Module)

    def begin(self, stage: Stage, budget: Budget) -> Budget:
        """Learn from the first stage and freeze; returns what of the budget is left."""
        left = budget
        if self.learns and isinstance(self.network, Split):
            steps = min(budget.steps - 1, math.ceil(self.share * budget.steps)) if budget.steps > 1 else budget.steps
            if not self._learnt:  # a first stage that failed later is shown again
                seen = class_mask(stage.classes, self.settings.num_classes, stage.y.device)
                self.passes += train_stage(
                    self.network, stage.x, stage.y, replace(budget, steps=steps), self.settings.optimisation,
                    self.settings.order, seen_loss(self.network, seen),
                )  # fmt: skip
                self._learnt = True
            left = replace(budget, steps=max(1, budget.steps - steps))
        freeze(self.network)
        if self.standardises:
            found = evaluate(self._raw, stage.x)
            self.mean = found.mean(dim=0)
            self.scale = found.std(dim=0, correction=0).clamp_min(LEAST_SCALE)
            rounding = 8 * torch.finfo(found.dtype).eps * self.mean.abs()
            live = self.scale > rounding.clamp_min(LEAST_SCALE)  # a constant feature would explode in a later stage
            self.scale = torch.where(live, self.scale, torch.ones_like(self.scale))
        return left

    def __call__(self, x: Tensor) -> Tensor:
        """Features (n, d), or (n, tokens, d) of one's own encoder, without gradients."""
        self.network.eval()
        found = evaluate(self._raw, x)
        return (found - self.mean) / self.scale if self.standardises else found

    def learnt(self, x: Tensor) -> Tensor:
        """The features of rows to learn from, charged as passes forward."""
        self.passes += FORWARD * len(x)
        return self(x)

    def stored_bytes(self) -> int:
        """Means and deviations."""
        return tensor_bytes([self.mean, self.scale])

    def _raw(self, x: Tensor) -> Tensor:
        network = self.network
        return widened((network.features(x) if isinstance(network, Split) else network(x)).detach())
