"""A network run with other tensors in place of its parameters and buffers, and put back as it was.

As `torch.func.functional_call`, which writes a weight over for good where one module stands in two places: it puts the new
tensor in twice, and the second time takes the first for what is to be put back; and which leaves on the module what torch's
older norms of weights have made of the lent ones, and in the cache of parametrizations what others have made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from probatum.numerics.tensors.precision import HALF

TORCHS_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


class Substitute:
    """Runs a network with other tensors; tied ones are replaced wherever they are used.

    Args:
        net: the network; parts that are put into it later are not known here.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> run = Substitute(nn.Sequential(layer, nn.Flatten()))
        >>> run({"0.weight": torch.tensor([[1.0, 2.0]])}, torch.ones(1, 2)).tolist()
        [[3.0]]
        >>> isinstance(layer.weight, nn.Parameter)
        True
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        first: dict[int, str] = {}
        self._uses: dict[str, list[tuple[nn.Module, str, bool]]] = {}
        for path, module in net.named_modules():  # each once, wherever it stands
            for held in (module._parameters, module._buffers):
                for key, value in held.items():
                    if value is not None:
                        name = f"{path}.{key}" if path else key
                        own = first.setdefault(id(value), name)
                        self._uses.setdefault(own, []).append((module, key, held is module._parameters))
        self._computed = [  # weights that torch's older norms compute before each pass and leave on the module
            (module, hook.name)
            for module in net.modules()
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, WeightNorm | SpectralNorm)
        ]
        self._writing = [vars(module) for module in net.modules() if _may_write(module)]
        named = chain(net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False))
        self._aliases = {name: first[id(value)] for name, value in named}

    def __call__(self, values: Mapping[str, Tensor], *inputs: Any) -> Any:
        """The output of the network for `inputs`, tensors of these names replaced; others stay.

        Raises:
            KeyError: a name that is neither a parameter nor a buffer.
        """
        return self.bound({})(values, *inputs)

    def bound(self, values: Mapping[str, Tensor]) -> Callable[..., Any]:
        """This, as a function of more values and the inputs, the places of `values` looked up once.

        Raises:
            KeyError: a name that is neither a parameter nor a buffer.
        """
        always = [(held, key, value) for name, value in values.items() for held, key in self._places(name)]
        net = self.net

        def run(more: Mapping[str, Tensor], *inputs: Any) -> Any:
            before: list[tuple[dict[str, Any], str, Any]] = [(held, key, held[key]) for held, key in self._left()]
            cached, parametrize._cache_enabled = parametrize._cache_enabled, 0
            try:
                for held, key, value in always:
                    before.append((held, key, held[key]))
                    held[key] = value
                for name, value in more.items():
                    for held, key in self._places(name):
                        before.append((held, key, held[key]))
                        held[key] = value
                return net(*inputs)
            finally:
                parametrize._cache_enabled = cached
                for held, key, old in reversed(before):
                    held[key] = old

        return run

    def _places(self, name: str) -> Iterator[tuple[dict[str, Any], str]]:
        if name not in self._aliases:
            raise KeyError(f"{type(self.net).__name__} has no parameter and no buffer {name!r}")
        for module, key, parameter in self._uses[self._aliases[name]]:
            yield (module._parameters if parameter else module._buffers), key

    def _left(self) -> list[tuple[dict[str, Any], str]]:
        """Where computed weights lie now: on a copy's own modules, and not where a norm has been taken off."""
        return [(vars(module), name) for module, name in self._computed if name in vars(module)]

    @contextmanager
    def forgetful(self) -> Iterator[Callable[[], None]]:
        """A block after which, and whenever what it gives is called, the modules' plain attributes are as they were before.

        So what a pass keeps of its tensors, as weights that are computed once, is no one else's. Lists, dictionaries and
        sets among the attributes are emptied of what came in; what lies deeper stays.
        """
        before = [(own, {k: v for k, v in own.items() if k not in TORCHS_OWN}) for own in self._writing]
        kinds = (list, dict, set)
        filled = [(v, v.copy()) for _, found in before for v in found.values() if type(v) in kinds]

        def forget() -> None:
            for own, found in before:
                for key in own.keys() - found.keys() - TORCHS_OWN:
                    del own[key]
                own.update(found)
            for value, was in filled:
                value.clear()
                value.extend(was) if isinstance(value, list) else value.update(was)

        try:
            yield forget
        finally:
            forget()

    def in_turn(
        self, values: Sequence[Mapping[str, Tensor]], forgets: bool = True
    ) -> Callable[[Callable[[int], Any]], list[Any]]:
        """A function that gives its outputs with each of these sets of tensors in turn, what belongs where looked up once.

        Args:
            values: the sets, all of the same names.
            forgets: whether every pass begins with the plain attributes that the modules have now (see `forgetful`).

        Returns:
            (k -> the inputs of the k-th set) -> outputs.

        Raises:
            KeyError: a name that is neither a parameter nor a buffer.
        """
        places = [(held, key, name) for name in (values[0] if values else ()) for held, key in self._places(name)]
        lent = [[(held, key, one[name]) for held, key, name in places] for one in values]
        net = self.net

        def run(rows: Callable[[int], Any], forget: Callable[[], None] | None = None) -> list[Any]:
            before = [(held, key, held[key]) for held, key, _ in places]
            before += [(held, key, held[key]) for held, key in self._left()]
            cached, parametrize._cache_enabled = parametrize._cache_enabled, 0
            found = []
            try:
                for k, one in enumerate(lent):
                    if forget is not None and k:
                        forget()
                    for held, key, value in one:
                        held[key] = value
                    found.append(net(rows(k)))
            finally:
                parametrize._cache_enabled = cached
                for held, key, old in before:
                    held[key] = old
            return found

        def run_forgetting(rows: Callable[[int], Any]) -> list[Any]:
            with self.forgetful() as forget:
                return run(rows, forget)

        return run_forgetting if forgets and self._writing else run


def _may_write(module: nn.Module) -> object:
    """Whether a pass may leave something on this module: torch's own layers leave nothing, what they are hooked with may."""
    own = module.__dict__
    hooked = own["_forward_pre_hooks"] or own["_forward_hooks"] or "forward" in own
    return hooked or not type(module).__module__.startswith("torch.")


def call_with(net: nn.Module, values: Mapping[str, Tensor], *inputs: Any) -> Any:
    """The network's output with `values` in place of the parameters and buffers of these names; the network is as before.

    Args:
        net: the network.
        values: by names of `named_parameters()` and `named_buffers()`; what is not named stays the network's own.
        inputs: of its `forward`.

    Raises:
        KeyError: a name that is neither a parameter nor a buffer.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> net = nn.Sequential(layer, layer)
        >>> call_with(net, {"0.weight": 2 * torch.eye(2)}, torch.ones(1, 2))
        tensor([[4., 4.]])
        >>> [name for name, _ in net.named_parameters()], isinstance(layer.weight, nn.Parameter)
        (['0.weight'], True)
    """
    return Substitute(net)(values, *inputs)


def wide_values(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of half precision by name, detached and in float32, to be lent to the network; {} where there are none.

    Rows have to be widened, too. Squares of gradients are beyond float16 where gradients are above 256 or below 2e-4.
    """
    named = chain(net.named_parameters(), net.named_buffers())
    return {name: value.detach().float() for name, value in named if value.dtype in HALF}
