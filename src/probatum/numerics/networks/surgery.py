"""Surgery on a network: modules are swapped by identity, at every place where they stand, all or nothing.

What is decided here for all techniques:

- A module that stands in two places is swapped in both, by the same new module.
- Tied weights stay tied or are refused; parametrised weights are refused; `requires_grad` and `training` carry over.
- `nn.MultiheadAttention` reads the weights of its parts past their `forward`: its parts are never swapped.
- `nn.TransformerEncoderLayer` and `nn.TransformerEncoder` do so in evaluation mode without gradients (their fast path):
  those around a swapped module take the ordinary path for as long as it is there. It gives the same numbers up to rounding,
  but where positions are padded: there the fast path gives zeros and the ordinary one what it computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

FAST_PATHS: tuple[tuple[type[nn.Module], str, Any], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)
"""Who has a fast path, the attribute that it looks at before any weight, and the value at which it is not taken."""


class Place(NamedTuple):
    """Where a module stands: under `name` in `owner`, at `path` from the network."""

    owner: nn.Module
    name: str
    path: str
    module: nn.Module


def places(net: nn.Module) -> list[Place]:
    """Every place below the network where a module stands, in the order of the module tree.

    A module that stands in two places is there twice; the places inside it are told once, under its first path.
    """
    seen: set[int] = set()

    def walk(owner: nn.Module, path: str) -> Iterator[Place]:
        seen.add(id(owner))
        for name, child in owner._modules.items():
            if child is not None:
                here = f"{path}.{name}" if path else name
                yield Place(owner, name, here, child)
                if id(child) not in seen:
                    yield from walk(child, here)

    return list(walk(net, ""))


def paths_of(net: nn.Module, module: nn.Module) -> list[str]:
    """The paths of all places where a module stands."""
    return [place.path for place in places(net) if place.module is module]


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module; of a parametrised one that which it had before."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def layers(net: nn.Module, kinds: Iterable[type[nn.Module]]) -> dict[str, nn.Module]:
    """Modules of exactly these classes by their first path ("" = the network itself), each once, in order.

    Parametrised ones count as what they were; the parts of `nn.MultiheadAttention`, which cannot be swapped, are left out.
    """
    wanted, closed = set(kinds), inside_attention(net)
    return {
        path: module
        for path, module in net.named_modules()
        if kind_of(module) in wanted and id(module) not in closed
    }  # fmt: skip


def inside_attention(net: nn.Module) -> set[int]:
    """Identities of the parts of every `nn.MultiheadAttention`, whose weights are read past their `forward`."""
    heads = [module for module in net.modules() if isinstance(module, nn.MultiheadAttention)]
    return {id(part) for head in heads for part in head.modules() if part is not head}


def check_plain(module: nn.Module, path: str) -> None:
    """TypeError, with its path, for a module whose own weights are computed from others in every pass."""
    found = list(module.parametrizations) if parametrize.is_parametrized(module) else []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            found.append(hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            found.append(hook._tensor_name)
    if found:
        raise TypeError(
            f"{path or type(module).__name__!r} has a parametrised {found[0]}, which every pass computes anew from other "
            "parameters; take the parametrisation off first (torch.nn.utils.parametrize.remove_parametrizations)"
        )


def ties(net: nn.Module) -> dict[int, list[str]]:
    """Parameters that more than one module uses: identity -> the names of all uses, in the order of the module tree."""
    uses: dict[int, list[str]] = {}
    for path, module in net.named_modules():
        for name, value in module._parameters.items():
            if value is not None:
                uses.setdefault(id(value), []).append(f"{path}.{name}" if path else name)
    return {key: names for key, names in uses.items() if len(names) > 1}


def swap(net: nn.Module, new: Mapping[nn.Module, nn.Module], carry: bool = True) -> Swap:
    """Put new modules where old ones stand, at every place and in place; nothing has happened where it raises.

    Modules of a new one that are not the old one's take over its `training` flag.

    Args:
        net: the network.
        new: old module -> what takes its place, which may hold the old one.
        carry: whether parameters of a new module are frozen where those of the old one were: by name, those of other names
            where all of the old one's were.

    Returns:
        What was done: `count` places, and `undo()`.

    Raises:
        ValueError: the network itself (it cannot be swapped in place), a module that is no part of it or a part of
            `nn.MultiheadAttention`, or weights that would come apart from those they are tied to; it names both places.
        TypeError: parametrised weights that would be lost.

    Example:
        >>> relu = nn.ReLU()
        >>> net = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
        >>> done = swap(net, {relu: nn.Tanh()})
        >>> done.count, net[1] is net[3], type(net[3]).__name__
        (2, True, 'Tanh')
        >>> done.undo()
        >>> net[1] is relu and net[3] is relu
        True
    """
    if any(old is net for old in new):
        raise ValueError(
            f"the network is itself the {type(net).__name__} to be replaced, which cannot be done in place; "
            "put it into a network first, e.g. nn.Sequential(net)"
        )
    return Swap(net, new, carry)


def swapped(net: nn.Module, new: Mapping[nn.Module, nn.Module], carry: bool = True) -> nn.Module:
    """`swap`, for callers that hand a network on: the network, or what takes its place where it is itself swapped."""
    inner = {old: made for old, made in new.items() if old is not net}
    if inner:
        swap(net, inner, carry)
    if len(inner) == len(new):
        return net
    made = new[net]
    if not _holds(made, net):
        check_plain(net, "")
    _carry_over(net, made, carry)
    return made


class Swap:
    """A swap that was done; see `swap`.

    Attributes:
        count: places that were changed.
    """

    def __init__(self, net: nn.Module, new: Mapping[nn.Module, nn.Module], carry: bool) -> None:
        made = {id(old): module for old, module in new.items()}
        self._places = [place for place in places(net) if id(place.module) in made]
        self.count = len(self._places)
        self._slow: OffFastPath | None = None
        _check_standing(new, self._places)
        paths = {id(module): path for path, module in net.named_modules()}
        before = list(net.named_modules())
        tied = _uses(net)
        with all_or_nothing(net):
            for place in self._places:
                place.owner._modules[place.name] = made[id(place.module)]
            left = {id(module) for module in net.modules()}
            for path, module in before:
                if id(module) not in left:
                    check_plain(module, path)
            _check_ties(net, new, tied, paths)
            for old, module in new.items():
                _carry_over(old, module, carry)
            self._slow = OffFastPath(net, new.values())

    def undo(self) -> None:
        """Put the old modules back; a second call does nothing."""
        for place in self._places:
            place.owner._modules[place.name] = place.module
        if self._slow is not None:
            self._slow.undo()
        self._places, self._slow = [], None


class OffFastPath:
    """Keeps the transformer encoders around some modules on their ordinary path until `undo`, several holders at once."""

    def __init__(self, net: nn.Module, parts: Iterable[nn.Module]) -> None:
        inside = {id(part) for part in parts}
        self._held: list[tuple[nn.Module, str]] = []
        for module in net.modules() if isinstance(net, nn.Module) else ():  # a function may wrap the network
            for kind, attribute, off in FAST_PATHS:
                if isinstance(module, kind) and any(id(m) in inside for m in module.modules() if m is not module):
                    count, first = module.__dict__.get("_off_fast_path", (0, getattr(module, attribute, off)))
                    module.__dict__["_off_fast_path"] = (count + 1, first)
                    setattr(module, attribute, off)
                    self._held.append((module, attribute))

    def undo(self) -> None:
        """Let them take it again where nobody else keeps them off."""
        for module, attribute in self._held:
            count, first = module.__dict__.pop("_off_fast_path", (1, None))
            if count > 1:
                module.__dict__["_off_fast_path"] = (count - 1, first)
            elif first is not None:
                setattr(module, attribute, first)
        self._held = []


@contextmanager
def all_or_nothing(net: nn.Module) -> Iterator[None]:
    """After an exception: every module, its class, parts, parameters and mode, and every `requires_grad` as they were."""
    switches = ("_off_fast_path", *(attribute for _, attribute, _ in FAST_PATHS))
    saved = [
        (
            module,
            type(module),
            dict(module._modules),
            dict(module._parameters),
            module.training,
            {name: module.__dict__[name] for name in switches if name in module.__dict__},
        )
        for module in net.modules()
    ]
    flags = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    try:
        yield
    except BaseException:
        for module, kind, parts, parameters, training, held in saved:
            if type(module) is not kind:
                module.__class__ = kind
            for table, kept in ((module._modules, parts), (module._parameters, parameters)):
                table.clear()
                table.update(kept)
            module.training = training
            module.__dict__.pop("_off_fast_path", None)
            module.__dict__.update(held)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


def _check_standing(new: Mapping[nn.Module, nn.Module], found: Iterable[Place]) -> None:
    standing = {id(place.module) for place in found}
    for old in new:
        if id(old) not in standing:
            raise ValueError(f"a {type(old).__name__} is no part of the network; give modules that are in it")
    for place in found:
        if isinstance(place.owner, nn.MultiheadAttention):
            raise ValueError(
                f"{place.path!r} is a part of nn.MultiheadAttention, which reads its weights past whatever stands there; "
                "leave it out"
            )


class _Use(NamedTuple):
    module: nn.Module
    name: str
    parameter: nn.Parameter


def _uses(net: nn.Module) -> dict[int, list[_Use]]:
    """Every use of every parameter that has more than one."""
    found: dict[int, list[_Use]] = {}
    for module in net.modules():
        for name, value in module._parameters.items():
            if value is not None:
                found.setdefault(id(value), []).append(_Use(module, name, value))
    return {key: uses for key, uses in found.items() if len(uses) > 1}


def _check_ties(
    net: nn.Module, new: Mapping[nn.Module, nn.Module], tied: Mapping[int, list[_Use]], paths: Mapping[int, str]
) -> None:
    """ValueError where a use of a tied weight went away and what came for it is tied to the other uses no more."""
    still = {(id(module), name, id(value)) for module in net.modules() for name, value in module._parameters.items()}
    heirs = {id(part): made for old, made in new.items() for part in old.modules()}
    before = {id(parameter) for old in new for parameter in old.parameters()}
    for key, uses in tied.items():
        gone = [use for use in uses if (id(use.module), use.name, key) not in still]
        # a new module without parameters has nothing that could come apart, one that holds the weight has kept the tie
        lost = [use for use in gone if (own := _own(heirs[id(use.module)])) and key not in own]
        if not lost:
            continue
        others = [use for use in uses if use not in gone]
        # a parameter that stays, such as the bias of both, is no heir of the one that went
        shared = set.intersection(*(_own(heirs[id(use.module)]) for use in lost)) - before
        if not others and len(lost) == len(gone) and shared:
            continue  # the new modules share a parameter as the old ones did
        names = [f"{paths[id(use.module)]}.{use.name}" for use in (lost[0], next(u for u in uses if u is not lost[0]))]
        raise ValueError(
            f"{names[0]!r} and {names[1]!r} are one tied parameter, which a replacement of the first would take apart; "
            "leave both out, or untie them first by giving each a copy"
        )


def _own(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(inner is part for inner in module.modules())


def _carry_over(old: nn.Module, made: nn.Module, carry: bool) -> None:
    kept = {id(part) for part in old.modules()}
    for module in made.modules():
        if id(module) not in kept:
            module.training = old.training
    if not carry:
        return
    own = dict(old.named_parameters(remove_duplicate=False))
    held = {id(parameter) for parameter in own.values()}
    frozen = bool(own) and not any(parameter.requires_grad for parameter in own.values())
    for name, parameter in made.named_parameters():
        if id(parameter) in held:
            continue
        if name in own:
            parameter.requires_grad_(own[name].requires_grad)
        elif frozen:
            parameter.requires_grad_(False)
