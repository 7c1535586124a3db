"""A pretrained network as the start of every seed: what is copied, what is new, and what has to be stored afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import InputError
from probatum.numerics.networks.frozen import freeze
from probatum.spec import Spec
from probatum.train import baselines
from probatum.train.run import last_layer

HEAD_ONLY, FROM_SCRATCH = "head only", "from scratch"
REFERENCES = (HEAD_ONLY, FROM_SCRATCH)
"""Built-in arms of a fine-tuning study: the body frozen, and nothing pretrained."""

MEASURES = ("trainable-parameters", "stored-parameters")
"""What a fine-tuning study measures besides."""

LEAST = 0.5
"""The share of the body's parameters that must be there in the pretrained weights."""

COLOURS = (1, 3)


@dataclass(frozen=True)
class Copied:
    """What of a network came from pretrained weights.

    Attributes:
        names: tensors that were copied.
        fresh: tensors that were not, the head's among them, each with its shape.
        converted: kernels turned from grey to colour or back.
        share: copied parameters over those of the body (all but the head).
    """

    names: tuple[str, ...]
    fresh: Mapping[str, tuple[int, ...]]
    converted: tuple[str, ...]
    share: float


@dataclass(frozen=True, eq=False)
class Adapted:
    """A factory of networks that start from pretrained weights, with a new head.

    Attributes:
        state: the pretrained network's state dict, on the CPU.
        make: builds the network without weights, None = the built-in one of the modality.
        start: "pretrained" (all is trained on), or one of `REFERENCES`.
    """

    state: Mapping[str, Tensor]
    make: Callable[[Spec], nn.Module] | None = None
    start: str = "pretrained"

    def __call__(self, spec: Spec) -> nn.Module:
        return self.adapt((self.make or baselines.build)(spec))

    def adapt(self, net: nn.Module) -> nn.Module:
        """Put the pretrained weights into a network that was just drawn; its last layer stays as drawn."""
        if self.start == FROM_SCRATCH:
            return net
        copy_body(net, self.state)
        if self.start == HEAD_ONLY:
            freeze(net, [last_layer(net)])
        return net

    def playing(self, builtin: str) -> Adapted:
        """The factory of a built-in arm: itself but for the two references."""
        return replace(self, start=builtin) if builtin in REFERENCES else self

    def sizes(self, net: nn.Module) -> dict[str, float]:
        """The measures `trainable-parameters` and `stored-parameters` of a trained network."""
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        return dict(zip(MEASURES, (float(trained), float(stored(net, self.state))), strict=True))


def copy_body(net: nn.Module, state: Mapping[str, Tensor]) -> Copied:
    """Copy every tensor whose name and shape agree, but for the last layer's, in place.

    Kernels of a network that saw one channel are spread over three, and the other way round, such that a grey image
    gives what it gave.

    Raises:
        InputError: less than half of the body's parameters are in `state`; it names two shapes that differ.
    """
    head = last_layer(net)
    heads = {id(value) for value in (*head.parameters(), *head.buffers())}
    own = _tensors(net)
    names, fresh, converted, differ = [], {}, [], []
    with torch.no_grad():
        for name, value in own.items():
            given = state.get(name)
            if id(value) not in heads and given is not None:
                fitting = given if given.shape == value.shape else _other_channels(given, value.shape)
                if fitting is not None:
                    value.copy_(fitting)
                    names.append(name)
                    if fitting is not given:
                        converted.append(name)
                    continue
                differ.append(f"{name} is {_words(value.shape)} here and {_words(given.shape)} there")
            fresh[name] = tuple(value.shape)
    body = {name: p.numel() for name, p in net.named_parameters() if id(p) not in heads}
    share = sum(body.get(name, 0) for name in names) / max(1, sum(body.values()))
    if share < LEAST:
        if not differ:
            here = next(iter(own), "nothing")
            differ = [f"no tensor has a name of this network's, such as {here}; there are {', '.join(list(state)[:3])}"]
        raise InputError(
            f"only {100 * share:.0f} % of the body of {type(net).__name__} are in the pretrained weights: {differ[0]}; "
            "pretrain the same network on data of the same shape"
        )
    return Copied(tuple(names), fresh, tuple(converted), share)


def stored(net: nn.Module, state: Mapping[str, Tensor]) -> int:
    """How many numbers of a network are not to be had from the pretrained weights.

    A tensor is to be had if one of the pretrained tensors has its shape and its bits, whatever its name: surgery may have
    moved it. Each of these stands for one of the network's. Shared tensors count once.
    """
    known: dict[bytes, int] = {}
    for value in state.values():
        known[_bits(value)] = known.get(_bits(value), 0) + 1
    total = 0
    for value in {id(value): value for value in _tensors(net).values()}.values():
        bits = _bits(value)
        if known.get(bits, 0):
            known[bits] -= 1
        else:
            total += value.numel()
    return total


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """A network's state as tensors of their own on the CPU."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in net.state_dict().items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and bits."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(name.encode() + _bits(value))
    return found.hexdigest()[:16]


def own_part(identity: str) -> str:
    """Of a study's `model`, what stands for a network handed over in Python; "" where it is one of Probatum's."""
    return identity.partition("+")[2] if identity.startswith("pretrained:") else identity


def identity_of(state: Mapping[str, Tensor], own: str) -> str:
    """A study's `model`: pretrained:<digest>, and +<identity> of the user's own network."""
    return f"pretrained:{digest(state)}" + (f"+{own}" if own else "")


def _other_channels(given: Tensor, shape: torch.Size) -> Tensor | None:
    """An image kernel for one channel instead of three or the other way round; None where that is not the difference."""
    if given.ndim != 4 or len(shape) != 4 or (given.shape[0], *given.shape[2:]) != (shape[0], *shape[2:]):
        return None
    if {given.shape[1], shape[1]} != set(COLOURS):
        return None
    return given.sum(dim=1, keepdim=True) if shape[1] == 1 else given.expand(shape) / shape[1]


def _tensors(net: nn.Module) -> dict[str, Any]:
    kept = set(net.state_dict())
    found: dict[str, Any] = dict(net.named_parameters(remove_duplicate=False))
    found |= dict(net.named_buffers(remove_duplicate=False))
    return {name: value for name, value in found.items() if name in kept}


def _bits(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous()
    return f"{flat.dtype}{tuple(flat.shape)}".encode() + flat.reshape(-1).view(torch.uint8).numpy().tobytes()


def _words(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a number"
