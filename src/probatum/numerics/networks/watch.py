"""Watching layers: what chosen modules take in and give, read in one look or kept while a network trains.

Hooks are taken off again, after an exception too; a look changes no mode, no statistics and no random stream. What a later
module changes in place (`nn.ReLU(inplace=True)` and its kin) is copied before; a look costs nothing more where nobody does so.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.networks.surgery import OffFastPath, inside_attention
from probatum.numerics.tensors.draws import random_state_kept
from probatum.numerics.tensors.precision import as_weights

ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Hardswish, nn.ReLU6,
)  # fmt: skip
CALL = ":"
"""Before the number of a run, in the name of a layer that runs more than once: act, act:2, act:3."""

Before = Callable[[str, tuple[Any, ...]], Any]
After = Callable[[str, tuple[Any, ...], Any], Any]
Found = TypeVar("Found")


@contextmanager
def hooked(
    net: nn.Module, modules: Mapping[str, nn.Module], after: After | None = None, before: Before | None = None
) -> Iterator[None]:
    """A block in which `before(name, inputs)` and `after(name, inputs, output)` are called around every run of the modules.

    What they return, if not None, takes the place of inputs and output. Inputs given by name are told by place. Transformer
    encoders around the modules do not take their fast path meanwhile, which would pass them by.
    """
    slow, handles = OffFastPath(net, modules.values()), []

    def enter(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        given, left = by_place(module, inputs, named)
        found = None if before is None else before(name, given)
        return None if found is None else (found if isinstance(found, tuple) else (found,), left)

    def leave(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        return None if after is None else after(name, by_place(module, inputs, named)[0], output)

    try:
        for name, module in modules.items():
            if before is not None:
                hook = functools.partial(enter, name)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if after is not None:
                handles.append(module.register_forward_hook(functools.partial(leave, name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        slow.undo()


def by_place(
    module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a call, those given by name put in their places, and what can be given by name alone."""
    if not named:
        return inputs, {}
    bound = inspect.signature(module.forward).bind(*inputs, **named)
    return bound.args, bound.kwargs


def look(
    net: nn.Module,
    x: Tensor,
    modules: Mapping[str, nn.Module],
    after: After | None = None,
    before: Before | None = None,
) -> Any:
    """The network's output for x in evaluation mode and without gradients, `hooked` meanwhile; nothing of it or of x changes.

    Rows go in as `as_weights` gives them: a network of half precision can be asked about rows that are not, or the other way round.
    """
    with hooked(net, modules, after, before), evaluating(net), random_state_kept(), torch.no_grad():
        return net(as_weights(net, x.clone()))


def outputs_of(net: nn.Module, x: Tensor, block: int = 512) -> Tensor:
    """The network's outputs for all rows, `block` at once, in evaluation mode and without gradients; nothing of it changes.

    Rows go in as `as_weights` gives them, as for `look`.
    """
    with evaluating(net), random_state_kept(), torch.no_grad():
        return torch.cat([net(as_weights(net, rows.clone())) for rows in x.split(block)])


class Keeper:
    """Takes tensors in and tells whether one of them was changed in place since; copies of them if it is told to."""

    def __init__(self, copies: bool) -> None:
        self.copies = copies
        self._seen: list[tuple[Tensor, int]] = []

    def keep(self, value: Any) -> Any:
        """The value, or its copy; tuples and lists tensor by tensor."""
        if isinstance(value, tuple | list):
            parts = [self.keep(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if not isinstance(value, Tensor):
            return value
        if self.copies or value.is_inference():  # inference tensors count no changes
            return value.clone()
        self._seen.append((value, value._version))
        return value

    @property
    def spoiled(self) -> bool:
        """Whether something kept is no longer what it was."""
        return any(value._version != version for value, version in self._seen)


def unspoiled(read: Callable[[Keeper], Found]) -> Found:
    """What `read` finds by one pass, once more with copies where a later module had changed in place what was kept."""
    keeper = Keeper(copies=False)
    found = read(keeper)
    return read(Keeper(copies=True)) if keeper.spoiled else found


def pass_through(net: nn.Module, x: Tensor, module: nn.Module, inputs: bool = False) -> tuple[Any, list[Any]]:
    """One pass in the modes and with the gradients that are in force: the output, and what the module gave at each run.

    With `inputs` what it took in, its first argument. What follows goes on with a copy, in the graph too, so that nothing
    changes in place what was seen, and no second pass moves statistics or draws again. Rows go in as for `look`.

    Raises:
        ValueError: a part of `nn.MultiheadAttention`, which reads the weights of its parts without running them.
    """
    check_runs(net, [module])
    seen: list[Any] = []

    def note(_name: str, given: tuple[Any, ...], output: Any = None) -> Any:
        seen.append(given[0] if inputs else output)
        kept = Keeper(copies=True).keep(seen[-1])
        return (kept, *given[1:]) if inputs else kept

    with hooked(net, {"": module}, None if inputs else note, note if inputs else None):
        return net(as_weights(net, x.clone())), seen  # a network may begin by changing x in place


def check_runs(net: nn.Module, modules: Iterable[nn.Module]) -> None:
    """ValueError for a part of `nn.MultiheadAttention`, which reads the weights of its parts without running them."""
    closed = inside_attention(net)
    for module in modules:
        if id(module) in closed:
            name = next(name for name, part in net.named_modules() if part is module)
            raise ValueError(
                f"{name!r} is a part of nn.MultiheadAttention, which reads its weights without running it; watch the "
                "attention itself"
            )


def hidden_layers(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Outputs of all inner modules that run on x, by name in order of execution, in evaluation mode and without gradients.

    The second and later runs of a module have names of their own, ``act:2`` and so on.
    """
    return unspoiled(lambda keeper: _hidden(model, x, keeper))


def _hidden(model: nn.Module, x: Tensor, keeper: Keeper) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def note(name: str, _inputs: tuple[Any, ...], output: Any) -> None:
        seen[_run_name(name, seen)] = keeper.keep(output)

    look(model, x, {name: module for name, module in model.named_modules() if name}, note)
    return seen


def _run_name(name: str, seen: Mapping[str, Any]) -> str:
    turn = 1
    while (name if turn == 1 else f"{name}{CALL}{turn}") in seen:
        turn += 1
    return name if turn == 1 else f"{name}{CALL}{turn}"


def choose_layers(model: nn.Module, seen: Mapping[str, Any], layers: Sequence[str] | None) -> list[str]:
    """The layers named, or all activation modules but the last, which feeds the output itself; `seen` is of `hidden_layers`.

    Raises:
        KeyError: a name that is no module of the model, or does not run.
        TypeError: a module that does not return one floating-point tensor with a batch dimension.
        ValueError: nothing to attach to.
    """
    modules = dict(model.named_modules())
    candidates = [name for name, output in seen.items() if _is_feature(output)]
    if layers is None:
        active = [name for name in candidates if isinstance(modules[name.partition(CALL)[0]], ACTIVATIONS)]
        chosen = active[:-1] if len(active) > 1 else active
        if not chosen:
            raise ValueError(
                f"{type(model).__name__} has no activation module; give layers out of {', '.join(candidates)}"
            )
        return chosen
    for name in layers:
        if name not in seen:
            raise KeyError(f"layer {name!r} is not among the modules that run; candidates: {', '.join(candidates)}")
        if name not in candidates:
            kind = type(seen[name]).__name__
            raise TypeError(
                f"layer {name!r} returns {kind}, not one floating tensor; candidates: {', '.join(candidates)}"
            )
    return list(layers)


def _is_feature(output: Any) -> bool:
    return isinstance(output, Tensor) and output.is_floating_point() and output.ndim >= 2


def pooled(features: Tensor, pool: str = "flatten", tokens: bool = False) -> Tensor:
    """(n, ...) -> (n, features): maps averaged over positions (over tokens in dim 1 if `tokens`), or flattened."""
    if features.ndim == 2 or pool == "flatten":
        return features.flatten(1)
    return features.mean(dim=1) if tokens and features.ndim == 3 else features.flatten(2).mean(dim=2)


class Seen(NamedTuple):
    """Inputs of the last linear layer (n, d) and the network's outputs (n, outputs), both detached."""

    features: Tensor
    logits: Tensor


def last_features(
    model: nn.Module, x: Tensor, head: nn.Linear | None = None, block: int = 512, ends: bool = True
) -> Seen:
    """Features before the last linear layer and outputs, in evaluation mode and without gradients.

    Args:
        model: (n, ...) -> (n, outputs); nothing of it changes.
        x: rows.
        head: the layer whose inputs are read; None = the `nn.Linear` that runs last.
        block: rows at once.
        ends: whether the outputs must be what that layer gives; without, the network may go on behind it.

    Raises:
        ValueError: no such layer, one that does not run once, one that does not see one vector a row, or outputs that it
            does not give.
    """
    head = head or head_of(model, x)
    blocks = [unspoiled(lambda keeper, rows=rows: _block(model, rows, head, keeper, ends)) for rows in x.split(block)]
    blocks = blocks if len(x) else []
    features = torch.cat([found.features for found in blocks]) if blocks else x.new_zeros(0, head.in_features)
    if features.ndim != 2 or len(features) != len(x):
        raise ValueError(f"the last layer sees {tuple(features.shape)} for {len(x)} rows; one vector a row is needed")
    return Seen(features, torch.cat([b.logits for b in blocks]) if blocks else x.new_zeros(0, head.out_features))


def _block(model: nn.Module, rows: Tensor, head: nn.Module, keeper: Keeper, ends: bool) -> Seen:
    given: list[tuple[Tensor, Tensor]] = []

    def note(_name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        given.append((keeper.keep(inputs[0].detach()), keeper.keep(output)))

    output = look(model, rows, {"": head}, note)
    if len(given) != 1:
        raise ValueError(f"the last layer of {type(model).__name__} ran {len(given)} times for one block of rows")
    features, own = given[0]
    if ends and not keeper.spoiled and not is_output(own, output):
        raise ValueError(
            f"{type(model).__name__} goes on behind its last linear layer {head}: its outputs are not what that layer gives; "
            "let the network end in it"
        )
    return Seen(features, output)


def is_output(own: Any, output: Any) -> bool:
    """Whether a network's output is what a layer gave, in another precision perhaps."""
    if own is output:
        return True
    if not isinstance(output, Tensor) or not isinstance(own, Tensor) or own.shape != output.shape:
        return False
    if own.dtype == output.dtype:
        return torch.equal(own, output) or torch.allclose(own, output, equal_nan=True)
    narrow = min((own.dtype, output.dtype), key=lambda dtype: torch.finfo(dtype).bits)
    return torch.allclose(own.to(narrow), output.to(narrow), equal_nan=True)


class Watch:
    """Keeps what layers give in training passes, gradients and all, between `attach` and `detach`.

    A copy or a pickle of the network made meanwhile is watched by a copy of this.

    Args:
        net: the network.
        names: of its layers, as `hidden_layers` tells them.
        copies: of which of them to keep copies, since a later module changes them in place; see `changed_in_place`.

    Attributes:
        seen: name -> output of the last pass of the network in training mode; layers that are kept in evaluation count too.

    Raises:
        ValueError: a part of `nn.MultiheadAttention`, which reads the weights of its parts without running them.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], copies: Collection[str] = ()) -> None:
        self.net, self.names, self.copies = net, list(names), set(copies)
        self.seen: dict[str, Tensor] = {}
        self._turns: dict[str, int] = {}
        self._handles: list[Any] = []
        self._slow: OffFastPath | None = None

    @property
    def attached(self) -> bool:
        """Whether it watches."""
        return bool(self._handles)

    def attach(self, once: bool = False) -> Watch:
        """Watch from now on, or, with `once`, until the network's next pass has ended, well or by an exception."""
        self._take_off()
        modules = dict(self.net.named_modules())
        chosen = dict.fromkeys(name.partition(CALL)[0] for name in self.names)
        check_runs(self.net, [modules[path] for path in chosen])
        self._slow = OffFastPath(self.net, [modules[path] for path in chosen])
        self._turns.clear()
        self._handles = [
            modules[path].register_forward_hook(functools.partial(self._keep, path)) for path in chosen
        ]  # fmt: skip
        if once:
            self._handles.append(self.net.register_forward_hook(self._end, always_call=True))
        else:
            self._handles.append(self.net.register_forward_pre_hook(self._begin))
        return self

    def detach(self) -> None:
        """Stop, and let go of what was seen."""
        self._take_off()
        self.seen.clear()

    def missing(self) -> str | None:
        """The first layer that has not run in training mode since the last `seen.clear()`."""
        return next((name for name in self.names if name not in self.seen), None)

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._slow is not None:
            self._slow.undo()
        self._slow = None

    def _begin(self, _net: nn.Module, _inputs: Any) -> None:
        self._turns.clear()

    def _keep(self, path: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if not self.net.training:
            return
        turn = self._turns[path] = self._turns.get(path, 0) + 1
        name = path if turn == 1 else f"{path}{CALL}{turn}"
        if name in self.names:
            self.seen[name] = output.clone() if name in self.copies else output

    def _end(self, _net: nn.Module, _inputs: Any, _output: Any) -> None:
        self._take_off()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": {}, "_turns": {}}  # what was seen belongs to one pass and one graph


def changed_in_place(model: nn.Module, x: Tensor, names: Sequence[str]) -> set[str]:
    """Which of these layers' outputs a later module may change in place, judged by one look at x.

    All, where something acts in training alone, which a look does not see: a dropout in place, or code that asks for the mode.
    """
    if any(_acts_by_mode(module) for module in model.modules()):
        return set(names)
    keepers: dict[str, Keeper] = {}

    def note(name: str, _inputs: tuple[Any, ...], output: Any) -> None:
        keeper = keepers[_run_name(name, keepers)] = Keeper(copies=False)
        keeper.keep(output)

    modules = dict(model.named_modules())
    look(model, x, {path: modules[path] for path in dict.fromkeys(name.partition(CALL)[0] for name in names)}, note)
    return {name for name in names if name in keepers and keepers[name].spoiled}


def _acts_by_mode(module: nn.Module) -> bool:
    """Whether it is a dropout in place, or of a class not of torch whose functions ask for the mode."""
    if getattr(module, "inplace", False) and isinstance(module, nn.modules.dropout._DropoutNd):
        return True
    own = (kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch."))
    codes = (getattr(value, "__code__", None) for kind in own for value in vars(kind).values())
    return any("training" in code.co_names for code in codes if code is not None)


class HeadInputs:
    """Keeps the input of a linear layer in training passes; `attach` before training, `detach` after.

    Other methods may pass rows through the network within a step. What the pass in question saw is found by the output that
    it ended in; without an output, or with one that no pass gave, it is the first since `begin`.

    Args:
        head: the layer.

    Raises:
        TypeError: it is no `nn.Linear`.
    """

    def __init__(self, head: nn.Module) -> None:
        if not isinstance(head, nn.Linear):
            raise TypeError(f"the last layer is {type(head).__name__}; features are read before an nn.Linear")
        self.head = head
        self._net: nn.Module = head
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._handle: Any = None

    def attach(self, net: nn.Module | None = None) -> None:
        """Begin to watch passes in which `net` is in training mode; None = the layer itself, which may be kept in evaluation."""
        self.detach()
        self._net = self.head if net is None else net
        self._handle = self.head.register_forward_hook(self._watch, with_kwargs=True)

    def begin(self) -> None:
        """A new pass: what was seen before it is let go."""
        self._seen.clear()

    def detach(self) -> None:
        """Stop, and let go of what was seen."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self._seen.clear()

    def take(self, rows: int, output: Any = None, ends: bool = True) -> Tensor:
        """The features (rows, d) of a training pass, once; of the pass whose end gave `output`, if that is told.

        Args:
            rows: how many there must be.
            output: the network's.
            ends: whether the layer must have given that output; without, the network may go on behind it.

        Raises:
            ValueError: the layer did not run since, did not see one vector a row, or did not give that output.
        """
        seen, self._seen = self._seen, []
        if not seen:
            raise ValueError(f"the last layer {self.head} did not run in this training pass; its features are needed")
        own = None
        if isinstance(output, Tensor) and (ends or len(seen) > 1):
            own = next((pair for pair in seen if is_output(pair[1].detach(), output.detach())), None)
            if own is None and ends:
                raise ValueError("the model goes on behind its last layer; the classifier has to be its end")
        features = (own or seen[0])[0]
        if features.ndim != 2 or len(features) != rows:
            raise ValueError(f"the last layer saw {tuple(features.shape)} for {rows} rows; one vector a row is needed")
        return features

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        if self._net.training:
            self._seen.append((by_place(module, inputs, named)[0][0], output))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": []}
