"""The built-in baseline of each kind of data: a network and the training settings it is used with."""

from __future__ import annotations

from torch import nn

from probatum.recipe import Training
from probatum.rooms.kind import kind_of
from probatum.spec import Spec


def training_for(modality: str, task: str) -> Training:
    """The settings that the baseline of these data is trained with."""
    return kind_of(modality, task).training(task)


def build(spec: Spec) -> nn.Module:
    """The baseline network for these data."""
    return kind_of(spec.modality, spec.task).network(spec)
