"""What is asked when lists of edges are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Lists of edges.

    Attributes:
        nodes: nodes that a graph has room for; the others' edges are left out.
    """

    nodes: int = 8
