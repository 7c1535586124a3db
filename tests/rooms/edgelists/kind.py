"""Lists of edges: a graph a row. No part of the package; `test_kind_from_outside.py` brings it from a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor, nn

from probatum.data.dataset import Dataset, make_dataset
from probatum.data.target import Target, read_target
from probatum.recipe import Training
from probatum.rooms.kind import Kind, NamedSet, Toy
from probatum.spec import Spec

from .encode import GraphEncoder, RawGraphs, raw_graphs, read_lines
from .network import GraphNet
from .options import Options
from .toy import toy


class Edgelists(Kind):
    """Graphs of a few nodes."""

    NAME = "edgelists"
    MODALITY = "edgelist"
    TASKS = ("classes", "reals", "medians")
    ABOUT = "graphs, as a .edges file with a line label<TAB>0-1 1-2 for each, or arrays (n, nodes, nodes)"
    UNIT = "graphs"
    NEW = "new.edges"
    EXAMPLE = "toy-edgelists"

    def options(self) -> type:
        return Options

    def sets(self) -> Mapping[str, NamedSet]:
        return {"toy-edgelists": NamedSet(lambda reading: drawn(), embedded=True)}

    def opens(self, door: Any) -> bool:
        return door.asked(self) and (door.ends(".edges") or door.reading.modality != "auto")

    def open(self, door: Any) -> Dataset:
        if door.arrays is not None:
            values = door.arrays.targets(door.reading.task, small_integers=True)
            return make_dataset(door.name, self.modality, raw_graphs(door.arrays.x), values, door.arrays.target)
        edges, labels = read_lines(door.path, door.options.get("nodes") or Options.nodes)
        if door.reading.task == "medians":
            values = Target("medians", ("value",), np.array(labels, dtype=np.float64)[:, None])
        else:
            values = read_target(labels, door.reading.target or "label", door.reading.task)
        return make_dataset(door.name, self.modality, raw_graphs(edges), values, values.names[0])

    def read_new(self, path: Path) -> np.ndarray:
        return read_lines(path, Options.nodes)[0]

    def fit(self, raw: RawGraphs) -> GraphEncoder:
        return GraphEncoder.fit(raw)

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> GraphEncoder:
        return GraphEncoder(**meta)

    def describe(self, encoder: GraphEncoder) -> dict[str, Any]:
        return {"shape": (encoder.nodes, encoder.nodes)}

    def new_rows(self, encoder: Any, source: Any, exclude: Sequence[str] = ()) -> tuple[RawGraphs, pl.DataFrame]:
        raw = raw_graphs(source)
        return raw, pl.DataFrame({"row": np.arange(len(raw))})

    def as_new(self, raw: RawGraphs) -> np.ndarray:
        return raw.edges

    def training(self, task: str) -> Training:
        return Training(epochs=20, least_steps=100, batch_size=16, lr=1e-2)

    def network(self, spec: Spec) -> nn.Module:
        return GraphNet(spec)

    def toy(self, hidden: Tensor, generator: Any) -> Toy:
        return toy(hidden, generator)


def drawn(n: int = 150, nodes: int = 8) -> Dataset:
    """Graphs with many or few edges."""
    rng = np.random.Generator(np.random.PCG64(3))
    labels = np.arange(n) % 2
    upper = np.triu(rng.random((n, nodes, nodes)) < 0.25 + 0.25 * labels[:, None, None], k=1)
    values = read_target(["few" if code == 0 else "many" for code in labels], "edges", "classes")
    return make_dataset("toy-edgelists", "edgelist", raw_graphs(upper | upper.transpose(0, 2, 1)), values, "edges")


KIND = Edgelists()
