"""Many networks of one architecture as one: the replicas' rows are folded into the batch, their weights into one tensor.

Everything a network does row by row (activations, pooling, attention over one row, reshaping) is right as it stands on
folded rows. Only the modules with weights, statistics or random draws need a counterpart that knows which row belongs to
which replica; those of `torch.nn` have one here. A network with weights of its own outside such modules cannot be
stacked, and what couples rows in a way that is not seen here is found by `same_step`, which compares a step.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm


class CannotStackError(Exception):
    """These networks, losses or methods cannot be trained as one; the message says why."""


@dataclass
class Fold:
    """How rows of `count` replicas lie in one batch.

    Attributes:
        count: number of replicas.
        inner: whether the replica is the fast index, (rows, replicas), as grouped convolutions and batch statistics want
            it, or the slow one, (replicas, rows), as matrix products want it.
        generators: each replica's own for dropout; empty outside training.
    """

    count: int
    inner: bool
    generators: list[torch.Generator] = field(default_factory=list)

    def fold(self, parts: Sequence[Tensor]) -> Tensor:
        """(n, ...) of each replica -> (count * n, ...)."""
        return torch.stack(list(parts), dim=1 if self.inner else 0).flatten(0, 1)

    def split(self, folded: Tensor) -> Tensor:
        """(count * n, ...) -> (count, n, ...)."""
        if self.inner:
            return folded.unflatten(0, (-1, self.count)).transpose(0, 1)
        return folded.unflatten(0, (self.count, -1))

    def join(self, parts: Tensor) -> Tensor:
        """(count, n, ...) -> (count * n, ...)."""
        return (parts.transpose(0, 1) if self.inner else parts).flatten(0, 1)


@dataclass
class _View:
    """A stacked tensor, the replicas' own that are views of it, and where these lie."""

    stacked: Tensor
    peers: list[Any]
    addresses: list[int]


class Stack:
    """Replicas as one network; their parameters and buffers become views of the stacked ones.

    Args:
        models: networks of one architecture; afterwards they share memory with the stack until `release`.

    Attributes:
        net: the stacked network, (count * n, ...) -> (count * n, outputs).
        parameters: stacked parameters (count, ...) that are trained, each with the replicas' own.

    Raises:
        CannotStackError: a module that has no stacked counterpart, or networks that differ.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self.fold = Fold(
            len(models), any(isinstance(m, _ConvNd | _BatchNorm | _InstanceNorm) for m in models[0].modules())
        )
        self.parameters: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        self._tensors: dict[int, Tensor] = {}
        self._views: list[_View] = []
        self._done: dict[int, tuple[nn.Module, nn.Module]] = {}
        _check_alike(self.models)
        bare = copy.deepcopy(models[0], {id(value): value for value in _tensors(models[0])})
        self.net = self._replaced(bare, "")
        missed = [name for name, value in _named_tensors(models[0]) if id(value) not in self._tensors]
        if missed:
            raise CannotStackError(f"{type(models[0]).__name__} has weights that its modules do not use ({missed[0]})")
        self.net.train(models[0].training)
        self._build = [_build(model) for model in self.models]

    @property
    def draws(self) -> bool:
        """Whether the network draws random numbers in training."""
        return any(isinstance(module, _Dropout) and module.p > 0 for module in self.net.modules())

    def buffers(self) -> list[Tensor]:
        """The stacked buffers."""
        return [view.stacked for view in self._views if not isinstance(view.stacked, nn.Parameter)]

    def memory(self) -> list[Any]:
        """What the network's own modules hold besides weights; after a pass it is as before, or they remember rows."""
        own = [module for module in self.net.modules() if not isinstance(module, _STACKED)]
        return [described({k: v for k, v in vars(module).items() if k not in _SLOTS}) for module in own]

    def check_build(self) -> None:
        """CannotStackError where a method has changed more of a replica's network than the numbers in it."""
        for model, build in zip(self.models, self._build, strict=True):
            if _build(model) != build:
                raise CannotStackError(f"a method changes the modules or settings of {type(model).__name__}")

    def release(self) -> None:
        """Give every replica memory of its own again."""
        for view in self._views:
            for peer in view.peers:
                peer.data = peer.data.clone()
                if isinstance(peer, nn.Parameter):
                    peer.grad = None

    def share_gradients(self) -> None:
        """Let every replica's parameters have their part of the stacked gradient."""
        for stacked, peers in self.parameters:
            parts = [None] * len(peers) if stacked.grad is None else stacked.grad.unbind(0)
            for peer, part in zip(peers, parts, strict=True):
                peer.grad = part

    def absorb_gradients(self) -> None:
        """Add what a loss has sent to the replicas' own parameters, past the stack, to the stacked gradients."""
        for stacked, peers in self.parameters:
            for k, peer in enumerate(peers):
                if peer.grad is None:
                    continue
                if stacked.grad is None:
                    stacked.grad = torch.zeros_like(stacked)
                stacked.grad[k].add_(peer.grad)
                peer.grad = None

    def collect_gradients(self) -> None:
        """Take over gradients that a hook has replaced instead of changing them in place."""
        for stacked, peers in self.parameters:
            for k, peer in enumerate(peers):
                if peer.grad is None or stacked.grad is None:
                    if (peer.grad is None) != (stacked.grad is None):
                        raise CannotStackError("a method gives a gradient to a parameter without one, or takes it away")
                elif peer.grad.data_ptr() != stacked.grad[k].data_ptr():
                    stacked.grad[k].copy_(peer.grad)

    def collect_weights(self) -> None:
        """Take over weights and buffers whose memory a hook has replaced."""
        for view in self._views:
            for k, (peer, address) in enumerate(zip(view.peers, view.addresses, strict=True)):
                if peer.data_ptr() != address:
                    part = view.stacked.data[k]
                    part.copy_(peer.data)
                    peer.data = part

    def _replaced(self, module: nn.Module, path: str) -> nn.Module:
        """The stacked form of a module of the copied skeleton, the same one wherever the module is used."""
        if id(module) not in self._done:
            self._done[id(module)] = (module, self._made(module, path))  # the module, so that its id stays its own
        return self._done[id(module)][1]

    def _made(self, module: nn.Module, path: str) -> nn.Module:
        if _has_hooks(module):
            raise CannotStackError(f"{path or type(module).__name__} has forward or backward hooks")
        own = [name for name, value in (*module._parameters.items(), *module._buffers.items()) if value is not None]
        maker = _MAKERS.get(_kind(module))
        if maker is not None:
            return maker(module, self.fold, lambda name: self._stacked(module, path, name))
        if own:
            raise CannotStackError(f"{type(module).__name__} {path!r} has tensors of its own ({own[0]})")
        if _kind(module) in _DRAWING:
            raise CannotStackError(f"{type(module).__name__} draws random numbers")
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = self._replaced(child, f"{path}.{name}" if path else name)
        return module

    def _stacked(self, module: nn.Module, path: str, name: str) -> Tensor | None:
        """The stacked tensor of one name of one module, made once and shared where the networks share it."""
        value = module._parameters.get(name, module._buffers.get(name))
        if value is None:
            return None
        if id(value) not in self._tensors:
            peers: list[Any] = [getattr(model.get_submodule(path), name) for model in self.models]
            if any(_has_hooks(peer) for peer in peers):
                raise CannotStackError(f"{name} of {type(module).__name__} {path!r} has gradient hooks")
            stacked = torch.stack([peer.detach() for peer in peers])
            if isinstance(value, nn.Parameter):
                stacked = nn.Parameter(stacked, requires_grad=value.requires_grad)
                if value.requires_grad:
                    self.parameters.append((stacked, peers))
            for peer, part in zip(peers, stacked.detach().unbind(0), strict=True):
                peer.data = part
            self._views.append(_View(stacked, peers, [peer.data_ptr() for peer in peers]))
            self._tensors[id(value)] = stacked
        return self._tensors[id(value)]


Take = Callable[[str], Any]
"""Name of a tensor of the module -> its stacked form, or None."""


class _Linear(nn.Module):
    def __init__(self, old: nn.Linear, fold: Fold, take: Take) -> None:
        super().__init__()
        self.fold, self.weight, self.bias = fold, take("weight"), take("bias")

    def forward(self, x: Tensor) -> Tensor:
        middle = x.shape[1:-1]
        rows = self.fold.split(x).reshape(self.fold.count, -1, x.shape[-1])  # (count, n * middle, in)
        out = _Affine.apply(rows, self.weight, self.bias)
        return self.fold.join(out.unflatten(1, (-1, *middle)) if middle else out)


class _Affine(torch.autograd.Function):
    """x (k, n, in), weight (k, out, in), bias (k, out) or None -> (k, n, out).

    By hand, since the products that autograd makes of `baddbmm` come out transposed and are copied once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = torch.bmm(x, weight.transpose(1, 2))
        return out if bias is None else out.add_(bias.unsqueeze(1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            torch.bmm(gradient, weight) if wants_x else None,
            torch.bmm(gradient.transpose(1, 2), x) if wants_weight else None,
            gradient.sum(dim=1) if wants_bias else None,
        )


class _Conv(nn.Module):
    def __init__(self, old: Any, fold: Fold, take: Take) -> None:
        super().__init__()
        if old.padding_mode != "zeros":
            raise CannotStackError(f"{type(old).__name__} pads by {old.padding_mode}")
        self.fold, self.weight, self.bias = fold, take("weight"), take("bias")
        self.call = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[old.weight.ndim - 2]
        self.stride, self.padding, self.dilation, self.groups = old.stride, old.padding, old.dilation, old.groups

    def forward(self, x: Tensor) -> Tensor:
        count = self.fold.count
        bias = None if self.bias is None else self.bias.flatten()
        wide = _widened(x, count)  # (n, count * in, ...)
        groups = count * self.groups
        out = self.call(wide, self.weight.flatten(0, 1), bias, self.stride, self.padding, self.dilation, groups)
        return out.reshape(-1, out.shape[1] // count, *out.shape[2:])


class _Norm(nn.Module):
    """Batch norm and instance norm; their statistics are per channel, and a replica's channels are its own."""

    def __init__(self, old: Any, fold: Fold, take: Take) -> None:
        super().__init__()
        self.fold, self.eps, self.momentum = fold, old.eps, old.momentum
        self.instance = isinstance(old, _InstanceNorm)
        self.still = getattr(old, "still", False)  # frozen: it stays in evaluation mode
        self.weight, self.bias = take("weight"), take("bias")
        self.mean, self.var, self.seen = take("running_mean"), take("running_var"), take("num_batches_tracked")
        if self.instance and self.mean is not None:
            raise CannotStackError("instance norm with running statistics")

    def forward(self, x: Tensor) -> Tensor:
        wide = _widened(x, self.fold.count)
        weight, bias, mean, var = (
            None if value is None else value.flatten() for value in (self.weight, self.bias, self.mean, self.var)
        )
        if self.instance:
            return F.instance_norm(wide, None, None, weight, bias, True, 0.0, self.eps).reshape(x.shape)
        factor = 0.0 if self.momentum is None else self.momentum
        training = self.training and not self.still
        if training and self.seen is not None:
            self.seen.add_(1)
            factor = 1.0 / float(self.seen[0]) if self.momentum is None else factor
        return F.batch_norm(wide, mean, var, weight, bias, training or mean is None, factor, self.eps).reshape(x.shape)


class _LayerNorm(nn.Module):
    def __init__(self, old: nn.LayerNorm, fold: Fold, take: Take) -> None:
        super().__init__()
        self.fold, self.shape, self.eps, self.weight, self.bias = (
            fold,
            old.normalized_shape,
            old.eps,
            take("weight"),
            take("bias"),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.fold.split(F.layer_norm(x, self.shape, None, None, self.eps))
        middle = (1,) * (out.ndim - 1 - len(self.shape))
        for value, apply in ((self.weight, torch.mul), (self.bias, torch.add)):
            if value is not None:
                out = apply(out, value.view(self.fold.count, *middle, *self.shape))
        return self.fold.join(out)


class _GroupNorm(nn.Module):
    def __init__(self, old: nn.GroupNorm, fold: Fold, take: Take) -> None:
        super().__init__()
        self.fold, self.groups, self.eps, self.weight, self.bias = (
            fold,
            old.num_groups,
            old.eps,
            take("weight"),
            take("bias"),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.fold.split(F.group_norm(x, self.groups, None, None, self.eps))
        for value, apply in ((self.weight, torch.mul), (self.bias, torch.add)):
            if value is not None:
                out = apply(out, value.view(self.fold.count, 1, -1, *(1,) * (x.ndim - 2)))
        return self.fold.join(out)


class _Embedding(nn.Module):
    def __init__(self, old: nn.Embedding, fold: Fold, take: Take) -> None:
        super().__init__()
        if old.max_norm is not None or old.sparse or old.scale_grad_by_freq:
            raise CannotStackError("an embedding with max_norm, sparse or scale_grad_by_freq")
        self.fold, self.weight, padding = fold, take("weight"), old.padding_idx
        if padding is not None and self.weight.requires_grad:
            self.weight.register_hook(
                lambda gradient: gradient.index_fill(1, gradient.new_tensor([padding], dtype=torch.long), 0)
            )

    def forward(self, ids: Tensor) -> Tensor:
        count, size, width = self.weight.shape
        shift = torch.arange(count, device=ids.device) * size
        moved = self.fold.split(ids) + shift.view(count, *(1,) * ids.ndim)
        return F.embedding(self.fold.join(moved), self.weight.view(count * size, width))


class _Dropout(nn.Module):
    """Dropout and alpha dropout with every replica's own draws, the same it would get alone."""

    def __init__(self, old: Any, fold: Fold, take: Take) -> None:
        super().__init__()
        self.fold, self.p, self.alpha = fold, old.p, isinstance(old, nn.AlphaDropout)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        shape = (len(x) // self.fold.count, *x.shape[1:])
        keep, dim = 1 - self.p, 1 if self.fold.inner else 0
        draws = [
            torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep, generator=g)
            for g in self.fold.generators
        ]
        mask = torch.stack(draws, dim=dim).view(x.shape)
        if not self.alpha:
            return x * mask.div_(keep)
        low = 1.7580993408473766  # SELU's scale * alpha
        a = 1 / math.sqrt((low * low * self.p + 1) * keep)
        return x * (mask * a) + (mask - 1) * (low * a) + low * a * self.p


_MAKERS: dict[type, Callable[[Any, Fold, Take], nn.Module]] = {
    nn.Linear: _Linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _Conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _Norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _Norm),
    nn.LayerNorm: _LayerNorm,
    nn.GroupNorm: _GroupNorm,
    nn.Embedding: _Embedding,
    nn.Dropout: _Dropout,
    nn.AlphaDropout: _Dropout,
}
_STACKED = (_Linear, _Conv, _Norm, _LayerNorm, _GroupNorm, _Embedding, _Dropout)
DROPOUTS = (_Dropout, nn.Dropout, nn.AlphaDropout)
_SLOTS = ("_parameters", "_buffers", "_modules", "training")
_DRAWING = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout, nn.RReLU)


def _kind(module: nn.Module) -> type:
    """The class of `torch.nn` whose forward the module runs; its own class where it has a forward of its own."""
    for known in (*_MAKERS, *_DRAWING):
        if isinstance(module, known) and type(module).forward is known.forward:  # type: ignore[attr-defined]
            return known
    return type(module)


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_post_accumulate_grad_hooks",
)


def _widened(x: Tensor, count: int) -> Tensor:
    """(n * count, channels, ...) with the replica as the fast index -> (n, count * channels, ...)."""
    return x.reshape(-1, count * x.shape[1], *x.shape[2:])


def described(value: Any, tensor: Callable[[Tensor], Any] | None = None, depth: int = 6) -> Any:
    """A value in terms that can be compared later; what is not known, or lies too deep, by its identity.

    Args:
        tensor: what stands for a tensor; None = which it is, and how often it was changed in place.
    """
    if isinstance(value, Tensor):
        return (id(value), value._version) if tensor is None else tensor(value)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if depth == 0 or isinstance(value, nn.Module) or callable(value):
        return id(value)
    if isinstance(value, dict):
        return [(described(key, tensor, depth - 1), described(item, tensor, depth - 1)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return [described(item, tensor, depth - 1) for item in value]
    if type(value).__module__ == "builtins":
        return repr(value)
    return [id(value), described(getattr(value, "__dict__", {}), tensor, depth - 1)]


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [value for _, value in _named_tensors(model)]


def _has_hooks(holder: Any) -> bool:
    return any(len(getattr(holder, kind, None) or ()) for kind in _HOOKS)


def _check_alike(models: Sequence[nn.Module]) -> None:
    if len(models) < 2:
        raise CannotStackError("there is one network only")
    first, seen = _anatomy(models[0]), set[int]()
    for model in models:
        if _anatomy(model) != first:
            raise CannotStackError("the networks differ in their modules, settings or shapes")
        places = {value.untyped_storage().data_ptr() for value in _tensors(model) if value.numel()}
        if seen & places:
            raise CannotStackError("the networks share weights with one another")
        seen |= places


def _anatomy(model: nn.Module) -> list[tuple[Any, ...]]:
    modules = [(name, type(module), module.extra_repr(), _settings(module)) for name, module in model.named_modules()]
    return [
        *modules,
        *((name, tuple(v.shape), v.dtype, str(v.device), v.requires_grad) for name, v in _named_tensors(model)),
    ]


def _settings(module: nn.Module) -> list[tuple[str, str]]:
    """Numbers and words among a module's attributes, whether it is in training mode included."""
    return [(name, repr(value)) for name, value in vars(module).items() if isinstance(value, int | float | str)]


def _build(model: nn.Module) -> list[Any]:
    """All of a network but the numbers in it, and which objects these are in."""
    hooked = [_has_hooks(holder) for holder in (*model.modules(), *model.parameters())]
    return [_anatomy(model), hooked, [id(value) for value in _tensors(model)]]
