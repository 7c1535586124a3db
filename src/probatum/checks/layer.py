"""What every layer promises when it is swapped into a network."""

from __future__ import annotations

import torch
from torch import nn

from probatum import inject
from probatum.checks.layer_networks import (  # noqa: F401  (promises of a layer)
    check_copies_are_their_own,
    check_evaluation_without_gradients_is_the_same,
    check_frozen_weights_stay_frozen,
    check_shared_modules_stay_shared,
    check_tied_weights_stay_tied,
    check_weights_go_out_and_in,
)
from probatum.checks.subject import Subject, demand
from probatum.checks.trained import draws, exercise, neutral  # noqa: F401  (a layer is tried in a training)
from probatum.rooms.task import task
from probatum.train.rng import generator_for


def check_swaps_somewhere(subject: Subject) -> None:
    """On the built-in network of at least one of its modalities it changes something, and it says how many places."""
    counts = {modality: swap(subject, modality)[1] for modality in subject.modalities()}
    demand(
        all(isinstance(count, int) and count >= 0 for count in counts.values()), f"apply must return a count: {counts}"
    )
    demand(max(counts.values()) > 0, f"it changed nothing in any built-in network: {counts}")


def check_outputs_keep_their_shape(subject: Subject) -> None:
    """After the swap the network gives finite outputs of the same shape and trains."""
    for modality in subject.modalities():
        net, _ = swap(subject, modality)
        data = subject.data(modality=modality)
        output = net(data.train.x[:8])
        right = (8, *task(data.spec.task).shape(data.spec))
        demand(output.shape == right, f"{modality}: outputs of shape {tuple(output.shape)}")
        demand(bool(torch.isfinite(output).all()), f"{modality}: outputs are not finite")
        output.square().sum().backward()
        missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
        demand(not missing, f"{modality}: no gradient reaches {', '.join(missing[:3])}")


def check_nothing_to_swap_is_said(subject: Subject) -> None:
    """On a network with nothing to swap it returns 0 and leaves the weights alone."""
    net = nn.Sequential(nn.Identity())
    count = inject.call(subject.name, subject.entry, dict(subject.card.tiny), offer(subject), net=net)
    demand(count == 0, f"it claims {count} swaps in an empty network")


def swap(subject: Subject, modality: str) -> tuple[nn.Module, int]:
    """The built-in network of a modality with the layer applied, and the count."""
    data = subject.data(modality=modality)
    net = subject.model(data)
    return net, inject.call(subject.name, subject.entry, dict(subject.card.tiny), offer(subject), net=net)


def offer(subject: Subject) -> dict[str, torch.Generator]:
    """What the bench has to give a layer."""
    return {"generator": generator_for(0, "check", subject.name)}
