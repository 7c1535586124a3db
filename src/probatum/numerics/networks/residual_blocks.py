"""Residual blocks and stages of a convolutional network, found in its module tree."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import fx, nn

Kind = TypeVar("Kind", bound=nn.Module)


class Pair(NamedTuple):
    """A convolution and the batch norm that takes what it gives: who owns the norm, and under which name."""

    owner: nn.Module
    name: str
    path: str
    convolution: nn.Conv2d
    norm: nn.BatchNorm2d


class Block(NamedTuple):
    """A residual block (or, in a plain stack, a single pair): its module, the pairs inside in order, its width."""

    module: nn.Module | None
    path: str
    pairs: tuple[Pair, ...]
    width: int


ADDITIONS = {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.isub,
    torch.add,
    torch.sub,
    torch.subtract,
    torch.rsub,
    torch.addcmul,
    torch.lerp,
} | {f"{name}{end}" for name in ("add", "sub", "subtract", "addcmul", "lerp") for end in ("", "_")}
SUMS = {torch.sum, torch.mean, "sum", "mean"}
"""Additions where what they take is stacked."""
SIZES = {"size", "dim", "ndimension", "numel", "nelement", "stride", "shape", "ndim"}
"""What tells of a tensor's form and not of its values, as for padding up to another's size."""


def adds(module: nn.Module) -> bool | None:
    """Whether a module's own code adds what went through different children of it, or was given apart, as a residual step does.

    By itself or by a child that adds what it is given. None where the code cannot be followed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(_Tracer().trace(module).nodes)
    except Exception:  # whatever a user's code does with a value that is none
        return None
    # what was given, and children that it has gone through; not of constants
    passed: dict[fx.Node, frozenset[str]] = {}
    for node in nodes:
        terms = [passed[value] for value in node.all_input_nodes if value in passed]
        if node.target in SIZES or (node.target is getattr and node.args[1] in SIZES):
            continue
        if node.op == "placeholder":
            passed[node] = frozenset([node.name])
        elif terms:
            passed[node] = frozenset().union(*terms, [str(node.target)] if node.op == "call_module" else [])
        if node.op == "call_module":
            sums = len(terms) > 1 and adds(module.get_submodule(str(node.target))) is not False
        elif node.target in SUMS and node.args and isinstance(stack := node.args[0], fx.Node):
            terms = [passed[value] for value in stack.all_input_nodes if value in passed]
            sums = stack.target is torch.stack
        else:
            sums = node.op != "placeholder" and node.target in ADDITIONS
        if sums and len(set(terms)) > 1:
            return True
    return False


def step_of(net: nn.Module, block: Block, blocks: Sequence[Block]) -> Block | None:
    """The block as the module that adds what goes into it to what comes out: itself, or one around it alone.

    None where there is no such module. Code that cannot be followed is taken to add.
    """
    path = block.path
    while block.module is not None and path:
        module = net.get_submodule(path)
        plain = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if sum(other.path == path or other.path.startswith(f"{path}.") for other in blocks) > 1:
            return None
        if not plain and adds(module) is not False:
            return block._replace(module=module, path=path)
        path = path.rpartition(".")[0]
    return None


def pairs_in(net: nn.Module) -> list[Pair]:
    """All Conv2d -> BatchNorm2d among the children of one module, in the order of the module tree; see `followers`."""
    found = []
    for path, owner in net.named_modules():
        seen: set[nn.Module] = set()
        for first, name, second in followers(owner, nn.Conv2d):
            if type(second) is nn.BatchNorm2d and second not in seen:
                seen.add(second)
                found.append(Pair(owner, name, f"{path}.{name}" if path else name, first, second))
    return found


def followers(owner: nn.Module, kind: type[Kind]) -> list[tuple[Kind, str, nn.Module]]:
    """Children of a module that take what a child of this kind gives: (that child, name, child), in the order they stand.

    Where the module's own code can be followed it says who takes what; else who is registered right behind it.
    """
    children = {name: child for name, child in owner._modules.items() if child is not None}
    if not any(isinstance(child, kind) for child in children.values()):
        return []
    given = None if isinstance(owner, nn.Sequential | nn.ModuleList) else _by_code(owner, children)
    if given is None:
        given = {second: first for first, second in pairwise(children)}
    return [
        (first, name, child)
        for name, child in children.items()
        if isinstance(first := children.get(given.get(name, "")), kind)
    ]


class _Tracer(fx.Tracer):
    """Follows one module's own code and none of its children's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _by_code(owner: nn.Module, children: Mapping[str, nn.Module]) -> dict[str, str] | None:
    """Name of a child -> name of the child whose output it takes first; None where the code cannot be followed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(_Tracer().trace(owner).nodes)
    except Exception:  # whatever a user's code does with a value that is none
        return None
    calls = [node for node in nodes if node.op == "call_module" and node.args]
    taken = {str(node.target): node.args[0] for node in calls}
    if not set(taken) & set(children):
        return None
    return {
        name: str(source.target)
        for name, source in taken.items()
        if isinstance(source, fx.Node) and source.op == "call_module"
    }


def blocks_in(net: nn.Module) -> list[Block]:
    """The blocks of a network in order, without its stem and shortcuts.

    A block is the innermost module with a forward of its own (not the network, not a Sequential) that holds two pairs or
    more, side by side or in one Sequential. A network without any is a plain stack: each of its pairs is one.
    """
    blocks: list[Block] = []
    for path, module in net.named_modules():
        if module is net or isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            continue
        pairs = pairs_in(module)
        owners: dict[int, list[Pair]] = {}
        for pair in pairs:
            owners.setdefault(id(pair.owner), []).append(pair)
        inner = [child for child in module.modules() if child is not module and _is_block(child)]
        if inner or not _is_block(module):
            continue
        body = max(owners.values(), key=len)
        kept = tuple(pair._replace(path=f"{path}.{pair.path}") for pair in body)
        blocks.append(Block(module, path, kept, body[-1].convolution.out_channels))
    if blocks:
        return blocks
    return [Block(None, pair.path, (pair,), pair.convolution.out_channels) for pair in pairs_in(net)]


def stages_of(blocks: Sequence[Block]) -> list[list[Block]]:
    """Runs of blocks of equal width."""
    stages: list[list[Block]] = []
    for block in blocks:
        if stages and stages[-1][-1].width == block.width:
            stages[-1].append(block)
        else:
            stages.append([block])
    return stages


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    near = [module, *(child for child in module.children() if isinstance(child, nn.Sequential))]
    counts = [sum(pair.owner is owner for pair in pairs_in(module)) for owner in near]
    return max(counts) >= 2
