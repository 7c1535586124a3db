"""Residual blocks and stages of a convolutional network, found in its module tree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import nn


class Pair(NamedTuple):
    """A convolution and the batch norm right behind it in the module tree: who owns the norm, and under which name."""

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


def pairs_in(net: nn.Module) -> list[Pair]:
    """All Conv2d -> BatchNorm2d neighbours among the children of one module, in the order of the module tree."""
    found = []
    for path, owner in net.named_modules():
        children = list(owner.named_children())
        for (_, first), (name, second) in pairwise(children):
            if isinstance(first, nn.Conv2d) and type(second) is nn.BatchNorm2d:
                found.append(Pair(owner, name, f"{path}.{name}" if path else name, first, second))
    return found


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
