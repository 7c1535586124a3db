"""What a layer promises on networks as users have them; see `odd`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from probatum import inject
from probatum.checks.odd import ODD, odd
from probatum.checks.subject import NotThisOneError, Subject, demand
from probatum.train.rng import generator_for, seeded

ROWS = 6
SHAPES: dict[int, tuple[int, ...]] = {1: (6,), 2: (2, 12), 3: (2, 6, 6)}
"""Of a row with so many dimensions: columns, channels and steps, channels and pixels."""
CLOSE = 1e-4
REFUSED = (ValueError, TypeError)
Look = Callable[[str, nn.Module, Tensor, Callable[[], nn.Module]], None]


def check_evaluation_without_gradients_is_the_same(subject: Subject) -> None:
    """In evaluation a network answers alike with and without gradients: torch's encoder layer has a path of its own there."""

    def look(where: str, net: nn.Module, x: Tensor, again: Callable[[], nn.Module]) -> None:
        net.eval()
        wanted = net(x).detach()
        with torch.no_grad():
            found = net(x)
        demand(_near(found, wanted), f"{where}: without gradients the outputs are off by {_gap(found, wanted):.1e}")

    _everywhere(subject, look)


def check_copies_are_their_own(subject: Subject) -> None:
    """A deep copy and a pickled one give the same outputs, and other outputs once their weights are others."""

    def look(where: str, net: nn.Module, x: Tensor, again: Callable[[], nn.Module]) -> None:
        wanted = _answers(net, x)
        twins = {"deep copy": copy.deepcopy(net)}
        if not any(is_parametrized(module) for module in net.modules()):  # torch does not pickle those
            twins["pickled copy"] = _pickled(net, where)
        for how, twin in twins.items():
            demand(_near(_answers(twin, x), wanted), f"{where}: a {how} gives other outputs")
            for value in twin.parameters():
                value.data.mul_(-1.7).add_(0.3)
            demand(_near(_answers(net, x), wanted), f"{where}: changing a {how} changes the network")
            demand(not _near(_answers(twin, x), wanted), f"{where}: a {how} computes with the original's weights")

    _everywhere(subject, look)


def check_weights_go_out_and_in(subject: Subject) -> None:
    """A state dict loaded into another network of the kind gives the same outputs, also after averaging weights by `.data`."""

    def look(where: str, net: nn.Module, x: Tensor, again: Callable[[], nn.Module]) -> None:
        _answers(net, x)  # whatever is cached is cached now
        for value in net.parameters():
            value.data.mul_(0.9).add_(0.01)
        wanted, other = _answers(net, x), again()
        _answers(other, x)
        other.load_state_dict(copy.deepcopy(net.state_dict()))
        demand(
            _near(_answers(other, x), wanted), f"{where}: weights edited by .data or loaded do not reach the outputs"
        )

    _everywhere(subject, look)


def check_frozen_weights_stay_frozen(subject: Subject) -> None:
    """What the user froze is not trained in another guise."""
    for where, net, before in _swapped(subject, "frozen weights"):
        _check_frozen(net, before, where)


def check_shared_modules_stay_shared(subject: Subject) -> None:
    """A module that stands in two places is swapped in both, by one."""
    for where, net, _ in _swapped(subject, "one module in two places"):
        pairs = zip(net.first.modules(), net.second.modules(), strict=True)
        demand(all(a is b for a, b in pairs), f"{where}: it was swapped in one of them")


def check_tied_weights_stay_tied(subject: Subject) -> None:
    """Weights that two modules share are shared afterwards, or are refused."""
    for where, net, before in _swapped(subject, "tied weights"):
        now = dict(net.named_parameters(remove_duplicate=False))
        names = [name for name in now if name.startswith("left.") and name in before]
        apart = [name for name in names if now.get(f"right.{name.removeprefix('left.')}") is not now[name]]
        demand(not apart, f"{where}: {', '.join(apart[:3])} came apart")


def _swapped(subject: Subject, what: str) -> Iterator[tuple[str, nn.Module, dict[str, nn.Parameter]]]:
    """Networks of a kind with the layer in them, which run, and their parameters before."""
    for shape, x in _inputs(subject):
        net = odd(what, shape, 3)
        before = dict(net.named_parameters(remove_duplicate=False))
        if _applied(subject, net, subject.card.tiny) not in (None, 0):
            net(x)
            yield f"{what}, rows {shape}", net, before


def _check_frozen(net: nn.Module, before: Mapping[str, nn.Parameter], where: str) -> None:
    now = dict(net.named_parameters())
    held = {id(value) for value in now.values()}
    for name, value in before.items():
        if value.requires_grad:
            continue
        if id(value) in held:
            demand(not value.requires_grad, f"{where}: {name} is trained now")
            continue
        place = name.rpartition(".")[0]
        trained = [other for other, p in now.items() if other.startswith(f"{place}.") and p.requires_grad]
        demand(not trained, f"{where}: {name} was replaced by {', '.join(trained[:3])}, which is trained")


def _everywhere(subject: Subject, look: Look) -> None:
    """On every odd network at the tiny settings, and at every tuned value on the plainest and on torch's encoder layer."""
    seen = 0
    for shape, x in _inputs(subject):
        for settings in subject.variants():
            tiny = settings == dict(subject.card.tiny)
            for what in ODD if tiny else ("activations in place", "torch's encoder layer"):
                again = partial(_made, subject, settings, what, shape)
                net, count = again(0)
                if count in (None, 0):
                    continue
                seen += 1
                _trained_a_little(net, x)
                look(
                    f"{what}, rows {shape}{'' if tiny else f' at {settings}'}", net, x, lambda again=again: again(1)[0]
                )
    if not seen:
        raise NotThisOneError("it finds nothing to swap in small networks of convolutions, linear and norm layers")


def _made(
    subject: Subject, settings: Mapping[str, Any], what: str, shape: tuple[int, ...], seed: int
) -> tuple[nn.Module, int | None]:
    net = odd(what, shape, 3, seed)
    return net, _applied(subject, net, settings)


def _inputs(subject: Subject) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Shapes of rows of the modalities it takes, and rows."""
    draw = torch.Generator().manual_seed(5)
    for rank in sorted({len(data.spec.shape) for data in subject.numbers(*SHAPES)}):
        yield SHAPES[rank], torch.randn(ROWS, *SHAPES[rank], generator=draw)


def _applied(subject: Subject, net: nn.Module, settings: Mapping[str, Any]) -> int | None:
    """How many places were swapped; None where the technique refuses such a network, with an error that says why."""
    try:
        offer = {"generator": generator_for(0, "check", subject.name)}
        return int(inject.call(subject.name, subject.entry, dict(settings), offer, net=net))
    except REFUSED as problem:
        demand(len(str(problem).split()) > 4, f"it refuses a network with {str(problem)!r}; say what to do")
        return None


def _trained_a_little(net: nn.Module, x: Tensor) -> None:
    """A few updates in training mode, so that statistics and caches are in use."""
    weights = [p for p in net.parameters() if p.requires_grad]
    with seeded(0, "check", "a few updates"):
        for _ in range(2):
            loss = net.train()(x).square().mean()
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            with torch.no_grad():
                for weight, grad in zip(weights, grads, strict=True):
                    if grad is not None:
                        weight.sub_(0.05 * grad)


def _answers(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.eval()(x)


def _pickled(net: nn.Module, where: str) -> nn.Module:
    held = io.BytesIO()
    try:
        torch.save(net, held)
    except (pickle.PicklingError, AttributeError, TypeError) as problem:
        demand(False, f"{where}: the network cannot be pickled: {problem}")
    held.seek(0)
    return torch.load(held, weights_only=False)


def _near(a: Tensor, b: Tensor) -> bool:
    return _gap(a, b) <= CLOSE * max(1.0, float(b.abs().max()))


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
