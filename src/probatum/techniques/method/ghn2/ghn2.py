"""GHN-2: a graph hypernetwork, trained over random architectures, predicts the first weights of the network at hand.

Paper     Knyazev et al. 2021, "Parameter Prediction for Unseen Deep Architectures", arXiv:2110.13100, sections 3 and 4
Computes  h_v from the operation and the sizes; in topological order, then in the reverse one, m_v = sum over edges u -> v of
          MLP(h_u) + sum over u at distance s_uv in 2 .. 50 of MLP_sp(h_u) / s_uv, h_v = GRU(m_v, h_v). A decoder gives tensors of a
          largest size, cut or repeated to (C_out, C_in, k, k), times sqrt(beta / fan_in); norm scales 2 sigmoid(w), biases tanh(w).
          The hypernetwork minimises the loss of `meta_batch` architectures a step, whose norms use the batch's statistics
Shapes    a traceable network -> its parameters by name
Departs   1. slot method: it needs training rows before the first step; the weights are a start, and training goes on. All passes of
             the hypernetwork's training are charged
          2. architectures are random cells of 3 to 10 nodes as in DARTS, few channels, on the rows at hand, in place of DeepNets-1M
          3. nodes of equal depth are updated together, which gives what one by one gives; several graphs run side by side
          4. the decoder is a product of the node's code, of unit mean square, and a table, one for kernels and one for matrices;
             biases and norms start near 0 and 1, the tanh times 0.1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.hypernetworks.hypernet import Layout, Trunk, draw_linear
from probatum.numerics.networks.modes import modes_kept
from probatum.numerics.networks.substitute import call_with
from probatum.numerics.networks.surgery import check_plain
from probatum.numerics.tensors.draws import random_state_kept
from probatum.numerics.tensors.targets import IGNORED
from probatum.spec import Spec
from probatum.techniques.method.ghn2.net_graph import KINDS, SIZES, NetGraph, trace

CARD = Card(
    paper="arXiv:2110.13100",
    title="Parameter Prediction for Unseen Deep Architectures",
    entry="Ghn2",
    number=130,
    tags=("hypernetworks", "initialisation", "architectures", "vision"),
    modalities=("image",),
    tasks=("classes",),
    neutral={"share": 0.0},
    tiny={"steps": 2, "meta_batch": 2, "pool": 3, "channels": (4, 6), "most": 8},
    tune={"steps": [100, 300, 600], "share": (0.2, 1.0), "lr": (3e-4, 1e-2, "log")},
    tried={"steps": [2, 4]},
    claims=("predicts-unseen-networks",),
)

OPERATIONS = ("conv3", "conv1", "separable", "max", "mean", "identity")


class Node(nn.Module):
    """One operation of a random cell, on the sum or the (projected) concatenation of its inputs; all keep the shape."""

    def __init__(self, width: int, operation: str, inputs: int, joined: bool, norm: bool) -> None:
        super().__init__()
        self.join = nn.Conv2d(inputs * width, width, 1, bias=False) if joined and inputs > 1 else None
        if operation in ("max", "mean", "identity"):
            pools = {"max": nn.MaxPool2d(3, 1, 1), "mean": nn.AvgPool2d(3, 1, 1), "identity": nn.Identity()}
            self.body: nn.Module = pools[operation]
            return
        size = 1 if operation == "conv1" else 3
        layers: list[nn.Module] = [nn.Conv2d(width, width, size, padding=size // 2, bias=not norm)]
        if operation == "separable":
            layers = [
                nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                nn.Conv2d(width, width, 1, bias=not norm),
            ]
        self.body = nn.Sequential(*layers, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU())

    def forward(self, values: list[Tensor]) -> Tensor:
        if self.join is not None:
            return self.body(self.join(torch.cat(values, dim=1)))
        total = values[0]
        for value in values[1:]:
            total = total + value
        return self.body(total)


class RandomNet(nn.Module):
    """A stem, a random cell, a pool by two, the cell's like again, and a linear head."""

    def __init__(self, stem: nn.Module, cells: Sequence[tuple[list[Node], list[list[int]]]], head: nn.Linear) -> None:
        super().__init__()
        self.stem, self.head = stem, head
        self.cells = nn.ModuleList(nn.ModuleList(nodes) for nodes, _ in cells)
        self.sources = [sources for _, sources in cells]
        self.shrink, self.pool = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, (nodes, sources) in enumerate(zip(self.cells, self.sources, strict=True)):
            values = [x]
            for node, wanted in zip(nodes, sources, strict=True):
                values.append(node([values[i] for i in wanted]))
            used = {i for wanted in sources for i in wanted}
            loose = [value for i, value in enumerate(values) if i not in used]
            x = loose[0]
            for value in loose[1:]:
                x = x + value
            if number + 1 < len(self.sources):
                x = self.shrink(x)
        return self.head(self.pool(x).flatten(1))


def random_net(
    spec: Spec,
    generator: torch.Generator,
    nodes: tuple[int, int] = (3, 10),
    channels: tuple[int, int] = (8, 32),
    norm: bool = True,
    dense: bool = False,
) -> RandomNet:
    """A network of two cells that share a random plan; `dense` lets every node see all before it.

    Args:
        spec: of images (c, h, w), at least 4 pixels a side.
        generator: for plan and weights; torch's own stream is left as it was.
        nodes: fewest and most nodes of a cell.
        channels: fewest and most channels.
        norm: with batch norms.
        dense: every node takes all values before it, at most two otherwise.

    Raises:
        ValueError: smaller images.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    if min(spec.shape[1:]) < 4:
        raise ValueError(f"images are {' x '.join(map(str, spec.shape[1:]))}; random architectures take 4 x 4 or more")
    width, count, side = 2 * draw(math.ceil(channels[0] / 2), channels[1] // 2), draw(*nodes), min(spec.shape[1:])
    operations = ["conv3"] + [OPERATIONS[draw(0, len(OPERATIONS) - 1)] for _ in range(count - 1)]
    sources = [list(range(i + 1)) if dense else sorted({draw(0, i) for _ in range(2)}) for i in range(count)]
    joined = [draw(0, 1) == 1 for _ in range(count)]
    with random_state_kept():
        torch.manual_seed(draw(0, 2**31 - 2))
        shrink: list[nn.Module] = [nn.AvgPool2d(side // 8)] if side >= 16 else []
        stem = nn.Sequential(
            *shrink,
            nn.Conv2d(spec.shape[0], width, 3, padding=1, bias=not norm),
            *([nn.BatchNorm2d(width)] if norm else []),
            nn.ReLU(),
        )
        cells = [
            ([Node(width, operations[i], len(sources[i]), joined[i], norm) for i in range(count)], sources)
            for _ in range(2)
        ]
        return RandomNet(stem, cells, nn.Linear(width, spec.outputs))


class GraphHypernet(nn.Module):
    """Predicts all parameters of networks from their graphs.

    Args:
        most: largest outputs and inputs of the decoded tensors; larger ones repeat them, >= 1.
        kernel: largest kernel side, >= 1.
        width: of the nodes' states, >= 1.
        virtual: with edges to nodes further than one step.
        normalise: by sqrt(beta / fan_in); without it all weights have the scale of the decoder.
        edges: False leaves out all messages: the baseline that sees each node alone.
        generator: for the first parameters; None = torch's own.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> made = GraphHypernet(most=8, generator=torch.Generator().manual_seed(0)).predict([net])[0]
        >>> {name: tuple(value.shape) for name, value in made.items()}
        {'0.weight': (4, 1, 3, 3), '0.bias': (4,), '3.weight': (3, 144), '3.bias': (3,)}
    """

    def __init__(
        self,
        most: int = 64,
        kernel: int = 3,
        width: int = 32,
        virtual: bool = True,
        normalise: bool = True,
        edges: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("most", most), ("kernel", kernel), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.most, self.kernel, self.virtual, self.normalise, self.edges = most, kernel, virtual, normalise, edges
        self.embed = nn.Parameter(torch.randn(len(KINDS), width, generator=generator))
        self.sizes = draw_linear(SIZES, width, 1 / 16 / SIZES, generator)
        self.near, self.far = (Trunk(width, [width], generator=generator) for _ in range(2))
        with random_state_kept():  # it draws as it is built; drawn again below
            self.update = nn.GRUCell(width, width)
        with torch.no_grad():
            for parameter in self.update.parameters():
                parameter.uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
        self.code = Trunk(width, [2 * width], generator=generator)
        self.kernel_code = draw_linear(2 * width, width * kernel**2, 0.5 / width, generator)
        self.matrix_code = draw_linear(2 * width, width, 0.5 / width, generator)
        self.kernels, self.matrices = (
            nn.Parameter(torch.randn(most, most, width, generator=generator) / math.sqrt(width)) for _ in range(2)
        )
        self.vectors = draw_linear(2 * width, 2 * most, 1e-4, generator)

    def states(self, graphs: Sequence[NetGraph]) -> list[Tensor]:
        """h (nodes, width) of each graph after the pass forward and the one back."""
        counts = [len(graph) for graph in graphs]
        kinds, sizes = torch.cat([g.kinds for g in graphs]), torch.cat([g.sizes for g in graphs])
        h = self.embed[kinds] + self.sizes(sizes.to(self.embed))
        if not self.edges:
            alone = torch.zeros_like(h)
            return list(self.update(alone, self.update(alone, h)).split(counts))
        depths = torch.cat([graph.depths for graph in graphs])
        paths = torch.block_diag(*(graph.paths for graph in graphs))
        near = (paths == 1).to(h)
        far = torch.where(paths > 1, 1 / paths.clamp(min=1), 0.0).to(h) * self.virtual
        levels = [(depths == depth).nonzero().flatten().to(h.device) for depth in range(int(depths.max()) + 1)]
        for sources, further, order in ((near.mT, far.mT, levels), (near, far, levels[::-1])):
            close, distant = torch.zeros_like(h), torch.zeros_like(h)
            for rows in order:
                message = sources[rows] @ close + further[rows] @ distant
                own = self.update(message, h[rows])
                h = h.index_copy(0, rows, own)
                close = close.index_copy(0, rows, self.near(own))
                distant = distant.index_copy(0, rows, self.far(own))
        return list(h.split(counts))

    def predict(self, nets: Sequence[nn.Module], graphs: Sequence[NetGraph] | None = None) -> list[dict[str, Tensor]]:
        """All parameters of each network by name, from its graph (traced where none is given).

        Raises:
            TypeError: a network that cannot be traced.
            ValueError: an operation that the graph does not know, or a module with parametrised weights; it is named.
        """
        graphs = [trace(net) for net in nets] if graphs is None else list(graphs)
        return [self._decoded(net, g, h) for net, g, h in zip(nets, graphs, self.states(graphs), strict=True)]

    def _decoded(self, net: nn.Module, graph: NetGraph, h: Tensor) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        codes, known = (
            F.rms_norm(self.code(h), (2 * h.shape[1],)),
            {entry.name: entry for entry in Layout.of(net).entries},
        )
        for v, path in enumerate(graph.modules):
            _check_plain(net, path)
            for own, parameter in net.get_submodule(path).named_parameters(recurse=False) if path else ():
                name = f"{path}.{own}"
                if name not in known:
                    continue  # tied to one that is made under another name
                if known[name].kind == "weight":
                    raw = self._weight(codes[v], tuple(parameter.shape))
                    beta = 2.0 if graph.before_rectifier[v] else 1.0
                    made[name] = raw * math.sqrt(beta / known[name].fan_in) if self.normalise else raw
                else:
                    first = self.most * (own == "weight")
                    raw = repeated(self.vectors(codes[v])[first : first + self.most], (parameter.numel(),))
                    raw = raw.reshape(parameter.shape)
                    made[name] = 2 * raw.sigmoid() if known[name].kind == "scale" else 0.1 * raw.tanh()
        return made

    def _weight(self, code: Tensor, shape: tuple[int, ...]) -> Tensor:
        outputs, inputs = min(shape[0], self.most), min(shape[1], self.most)
        if len(shape) == 2:
            return repeated(self.matrices[:outputs, :inputs] @ self.matrix_code(code), shape)
        parts = self.kernel_code(code).unflatten(0, (-1, self.kernel, self.kernel))
        cuts = [slice((self.kernel - min(k, self.kernel)) // 2, None) for k in shape[2:]]
        if len(shape) == 3:
            parts = parts[:, self.kernel // 2, cuts[0]][..., : shape[2]]
        else:
            parts = parts[:, cuts[0], cuts[1]][:, : shape[2], : shape[3]]
        return repeated(torch.einsum("oic,c...->oi...", self.kernels[:outputs, :inputs], parts), shape)


def _check_plain(net: nn.Module, path: str) -> None:
    try:
        check_plain(net.get_submodule(path), path)
    except TypeError as problem:
        raise ValueError(
            f"the module {path!r} has parametrised weights, which no prediction could be put into; take the parametrisation off "
            "first, with torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm, remove_spectral_norm)"
        ) from problem


def repeated(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor tiled along every dimension up to a shape that is no smaller."""
    times = [math.ceil(wanted / size) for wanted, size in zip(shape, value.shape, strict=True)]
    return value.repeat(times)[tuple(slice(0, wanted) for wanted in shape)]


def run_with(net: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs with predicted parameters; batch norms use the batch's statistics and their running ones are left alone."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with modes_kept(net):
        for module in net.modules():
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
        return call_with(net, {**values, **buffers}, x)


def train_hypernet(
    hyper: GraphHypernet,
    nets: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    steps: int,
    generator: torch.Generator,
    meta_batch: int = 8,
    batch: int = 64,
    lr: float = 1e-3,
    clip: float = 5.0,
) -> list[float]:
    """Minimise the cross-entropy of `meta_batch` of the networks a step by Adam, its rate falling to 0 as a cosine; losses by step.

    Rows of -100 are left out.

    Raises:
        ValueError: no row with a label.
    """
    labelled = (y != IGNORED).nonzero().flatten()
    if not len(labelled):
        raise ValueError(f"none of {len(y)} rows has a label; the hypernetwork needs one at least")
    x, y = (x, y) if len(labelled) == len(y) else (x[labelled], y[labelled])
    graphs = [trace(net) for net in nets]
    optimizer = torch.optim.Adam(hyper.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    found = []
    for _ in range(steps):
        rows = torch.randint(len(y), (min(batch, len(y)),), generator=generator).to(y.device)
        chosen = torch.randperm(len(nets), generator=generator)[:meta_batch].tolist()
        made = hyper.predict([nets[i] for i in chosen], [graphs[i] for i in chosen])
        losses = [
            F.cross_entropy(run_with(nets[i], values, x[rows].to(hyper.embed.dtype)), y[rows])
            for i, values in zip(chosen, made, strict=True)
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(hyper.parameters(), clip)
        optimizer.step()
        schedule.step()
        found.append(float(loss.detach()))
    return found


@torch.no_grad()
def put(net: nn.Module, values: Mapping[str, Tensor], share: float = 1.0) -> None:
    """Move the parameters of `net` that are not frozen by `share` of the way to the predicted ones, in place."""
    for name, parameter in net.named_parameters():
        if name in values and parameter.requires_grad:
            parameter.lerp_(values[name].to(parameter), share)


class Ghn2:
    """Start the network from weights predicted by a graph hypernetwork that is trained first, on other architectures.

    Args:
        steps: of the hypernetwork's training, >= 1.
        meta_batch: architectures a step, >= 1.
        pool: random architectures in all, >= 1.
        lr: of Adam, > 0.
        share: of the way from the ordinary first weights to the predicted ones, in [0, 1]; 0 does nothing.
        channels: fewest and most channels of the architectures.
        most: largest outputs and inputs of decoded tensors, >= 1.
        virtual: with edges to nodes further than one step.
        normalise: weights by sqrt(beta / fan_in).
        pretrained: whether the network is: its weights would be lost, which is refused unless share is 0.
        generator: for architectures, hypernetwork and batches.

    Raises:
        ValueError: a setting outside its range, a pretrained network, or one with an operation it does not know.
        TypeError: a network that cannot be traced.

    Example:
        >>> Ghn2(steps=10, share=0.5).writes
        ('weights',)
    """

    reads: tuple[str, ...] = ()
    writes = ("weights",)

    def __init__(
        self,
        steps: int = 300,
        meta_batch: int = 4,
        pool: int = 100,
        lr: float = 3e-3,
        share: float = 1.0,
        channels: tuple[int, int] = (8, 24),
        most: int = 64,
        virtual: bool = True,
        normalise: bool = True,
        pretrained: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, number in (("steps", steps), ("meta_batch", meta_batch), ("pool", pool), ("most", most)):
            if number < 1:
                raise ValueError(f"{name} is {number}; it must be at least 1")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr is {lr}; it must be a finite number above 0")
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must lie in [0, 1]")
        if not 2 <= channels[0] <= channels[1]:
            raise ValueError(f"channels is {channels}; give fewest and most, at least 2")
        if pretrained and share > 0:
            raise ValueError(
                f"the network is pretrained and share is {share}: predicted weights would take the place of those it has; "
                "leave this out of fine-tuning, or set share=0.0"
            )
        self.steps, self.meta_batch, self.pool, self.lr, self.share = steps, meta_batch, pool, lr, share
        self.channels, self.most, self.virtual, self.normalise = channels, most, virtual, normalise
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)

    def prepare(self, run: Any) -> None:
        """Train the hypernetwork on the training rows and put its prediction into the network; passes are charged."""
        if self.share == 0:
            return
        graph, device = trace(run.model), run.train.y.device
        nets = [random_net(run.spec, self.generator, channels=self.channels).to(device) for _ in range(self.pool)]
        hyper = GraphHypernet(self.most, virtual=self.virtual, normalise=self.normalise, generator=self.generator)
        losses = train_hypernet(
            hyper.to(device), nets, run.train.x, run.train.y, self.steps, self.generator,
            min(self.meta_batch, self.pool), run.budget.batch_size, self.lr,
        )  # fmt: skip
        with torch.no_grad():
            put(run.model, hyper.predict([run.model], [graph])[0], self.share)
        rows = min(run.budget.batch_size, int((run.train.y != IGNORED).sum()))
        run.extra_passes += self.steps * min(self.meta_batch, self.pool) * rows
        run.notes["hypernetwork's last loss"] = losses[-1]

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream; what was predicted is in the network."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.generator.set_state(state["generator"])
