"""Graphs: raw adjacency matrices, how they are read, and the encoder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probatum.errors import InputError

WEIGHTS = Path(__file__).with_name("weight.txt")
"""A file of data beside the code, which travels with it."""


@dataclass(frozen=True)
class RawGraphs:
    """Adjacency (n, nodes, nodes) uint8, symmetric."""

    edges: np.ndarray

    def __len__(self) -> int:
        return len(self.edges)

    def take(self, rows: np.ndarray) -> RawGraphs:
        return RawGraphs(self.edges[rows])

    def digest(self, sha: hashlib._Hash) -> None:
        sha.update(str(self.edges.shape).encode() + np.ascontiguousarray(self.edges).tobytes())

    def row_keys(self) -> list[bytes]:
        return [row.tobytes() for row in self.edges]

    def describe(self) -> list[dict[str, Any]]:
        return [{"name": "edges", "kind": "graph", "missing": 0, "n_unique": None}]


def raw_graphs(edges: Any) -> RawGraphs:
    found = np.asarray(edges)
    if found.ndim != 3 or found.shape[1] != found.shape[2] or not np.isin(found, (0, 1)).all():
        raise InputError(f"graphs have shape {found.shape}; give 0 and 1 in (n, nodes, nodes)")
    return RawGraphs(np.ascontiguousarray(found.astype(np.uint8)))


def read_lines(path: Path, nodes: int) -> tuple[np.ndarray, list[str]]:
    """Adjacency (n, nodes, nodes) and labels of lines ``label<TAB>0-1 1-2``."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    found = np.zeros((len(lines), nodes, nodes), dtype=np.uint8)
    for row, (_, edges) in enumerate(lines):
        for edge in edges.split():
            a, b = map(int, edge.split("-"))
            if max(a, b) < nodes:
                found[row, a, b] = found[row, b, a] = 1
    return found, [label for label, _ in lines]


@dataclass(frozen=True)
class GraphEncoder:
    """Adjacency -> (n, nodes, nodes) float32, weighed by a number in a file beside."""

    nodes: int
    weight: float

    @classmethod
    def fit(cls, raw: RawGraphs) -> GraphEncoder:
        return cls(raw.edges.shape[1], float(WEIGHTS.read_text()))

    def encode(self, raw: RawGraphs) -> Tensor:
        if raw.edges.shape[1] != self.nodes:
            raise InputError(f"graphs have {raw.edges.shape[1]} nodes; the model takes {self.nodes}")
        return self.weight * torch.from_numpy(raw.edges.astype(np.float32))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"nodes": self.nodes, "weight": self.weight}, {}
