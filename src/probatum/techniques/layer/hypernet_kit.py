"""Hypernetworks along five axes: another network makes the weights, all at once, by heads, by components or by chunks.

Paper     Chauhan et al. 2023, "A Brief Review of Hypernetworks in Deep Learning", arXiv:2306.06955; first variances after Chang
          et al. 2020 (hyperfan-in); chunks after von Oswald et al. 2020
Computes  theta = base + s * H(c; phi), y = f(x; theta): only phi (and c, if learned) is trained. H is an MLP of c with one output
          layer or one a tensor; or it is run once a piece (a chunk of a tensor, or the weights of one output unit) on c and the
          piece's embedding, with a convolution, a GRU or attention over the pieces if wished. s is the wanted standard deviation,
          sqrt(2 / fan_in) for weights, and H starts at unit variance over conditions; or base is the ordinary start and H is 0
Shapes    c (inputs,) -> theta (numel,), one set of weights for all rows of x; c (n, inputs) -> one set a row, through vmap
Departs   1. chunks do not run over the end of a tensor, so that each has one scale; the values left over are cut off
          2. `apply` has one condition: a learned vector, or noise drawn anew every pass, whose predictions are averaged over
             `draws` fixed vectors in evaluation (probabilities for classes, values for reals); biases and norms stay ordinary
          3. the base of "once" and "heads" is the output layer's bias and trained; that of pieces is not (it would be as large as
             what it replaces)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from probatum.card import Card
from probatum.numerics.hypernetworks.hypernet import (
    Layout,
    Supplier,
    Trunk,
    call,
    call_each,
    draw_linear,
    hyperfan_in,
    layer_weights,
    supply,
)
from probatum.numerics.tensors.draws import random_state_kept
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:2306.06955",
    title="A Brief Review of Hypernetworks in Deep Learning",
    entry="apply",
    number=88,
    tags=("hypernetworks", "compression", "uncertainty", "conditioning"),
    tasks=("classes", "reals", "next-token"),
    alone="the network's weights come from a network of its own",
    tiny={"width": 16, "chunk": 64, "embedding": 4, "inputs": 4},
    tune={
        "head": ["chunks", "components", "heads"],
        "width": [16, 32, 64],
        "chunk": [64, 256, 1024],
        "start": ["fan-in", "ordinary"],
        "condition": ["static", "noise"],
    },
    claims=("one-generator-for-five-tasks", "noise-calibrates"),
)

HEADS = ("once", "heads", "components", "chunks")
BODIES = ("mlp", "cnn", "rnn", "attention")
STARTS = ("fan-in", "ordinary")
CONDITIONS = ("static", "noise")
PLACES = ("learned", "coded")
PROBES = 64
"""Conditions on which the first variance is measured."""


def pieces_of(layout: Layout, head: str, chunk: int) -> tuple[Tensor, Tensor, int]:
    """How a layout falls into pieces: (entry, share of the entry before it) of each (P, 2), places of values, size.

    The places (numel,) are those of the layout's values in the (P * size) values made. A piece is a chunk, or with
    "components" the weights of one output unit (slice of a tensor's first dimension), as long as the longest.
    """
    lengths = [chunk if head == "chunks" else max(1, e.numel // e.shape[0] if e.shape else 1) for e in layout.entries]
    size, where, places = max(lengths), [], []
    for number, (entry, length) in enumerate(zip(layout.entries, lengths, strict=True)):
        count = math.ceil(entry.numel / length)
        first = len(where)
        where += [(float(number), i / count) for i in range(count)]
        value = torch.arange(entry.numel)
        places.append((first + value // length) * size + value % length)
    return torch.tensor(where), torch.cat(places), size


class Mixer(nn.Module):
    """Lets the pieces (..., P, width) see one another: h + convolution, GRU or attention over them; "mlp" leaves them apart."""

    def __init__(self, body: str, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.body = body
        if body == "cnn":
            self.net: nn.Module = nn.utils.skip_init(nn.Conv1d, width, width, 3, padding=1)
        elif body == "rnn":
            with random_state_kept():  # it draws as it is built; drawn again below
                self.net = nn.GRU(width, width, batch_first=True)
        elif body == "attention":
            self.net = draw_linear(width, 3 * width, 1 / width, generator)
        if body in ("cnn", "rnn"):
            with torch.no_grad():
                for parameter in self.net.parameters():
                    parameter.zero_()
                    if parameter.ndim > 1:
                        parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)

    def forward(self, h: Tensor) -> Tensor:
        if self.body == "mlp":
            return h
        flat = h.reshape(-1, *h.shape[-2:])  # (batch, P, width)
        if self.body == "cnn":
            mixed = self.net(flat.mT).mT
        elif self.body == "rnn":
            mixed, _ = self.net(flat)
        else:
            mixed = F.scaled_dot_product_attention(*self.net(flat).chunk(3, dim=-1))
        return h + mixed.reshape(h.shape)


class WeightGenerator(nn.Module):
    """H: a condition to the weights of a layout.

    Args:
        layout: of the parameters to make.
        inputs: size of the condition c, >= 1; its entries should be of the order of 1.
        head: "once" (one output layer), "heads" (one a tensor), "components" (one run an output unit), "chunks" (one a chunk).
        width: hidden units of H, >= 1.
        depth: hidden layers, >= 1.
        chunk: values a run of "chunks", >= 1.
        embedding: size of the embeddings of pieces, >= 2.
        body: "mlp", or what runs over the pieces: "cnn", "rnn", "attention".
        start: "fan-in" (fresh weights of the wanted variance) or "ordinary" (`ordinary` whatever the condition).
        ordinary: (numel,) weights for that start.
        places: embeddings "learned", or "coded" from the place, which serve other layouts too.
        generator: for the first parameters; None = torch's own.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3))
        >>> maker = WeightGenerator(Layout.of(net), inputs=2, width=8, chunk=16, generator=torch.Generator().manual_seed(0))
        >>> tuple(maker(torch.zeros(5, 2)).shape), maker.layout.numel
        ((5, 163), 163)
    """

    def __init__(
        self,
        layout: Layout,
        inputs: int,
        head: str = "chunks",
        width: int = 32,
        depth: int = 2,
        chunk: int = 256,
        embedding: int = 16,
        body: str = "mlp",
        start: str = "fan-in",
        ordinary: Tensor | None = None,
        places: str = "learned",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(head, body, start, places, inputs, width, depth, chunk, embedding)
        if start == "ordinary" and (ordinary is None or ordinary.shape != (layout.numel,)):
            found = None if ordinary is None else tuple(ordinary.shape)
            raise ValueError(f"ordinary is {found}; start='ordinary' needs the ({layout.numel},) weights to start from")
        self.layout, self.inputs, self.head, self.chunk, self.places = layout, inputs, head, chunk, places
        base = layout.centres() if ordinary is None or start == "fan-in" else ordinary.detach().clone()
        split = head in ("components", "chunks")
        probes = torch.randn(PROBES, inputs, generator=generator)
        if split:
            where, index, self.size = pieces_of(layout, head, chunk)
            self.register_buffer("index", index, persistent=False)
            table = (
                torch.randn(len(where), embedding, generator=generator)
                if places == "learned"
                else codes(where, embedding)
            )
            self.register_buffer("base", base, persistent=start == "ordinary")
            if places == "learned":
                self.embeddings: Tensor = nn.Parameter(table)
            else:
                self.register_buffer("embeddings", table, persistent=False)
            sizes = [self.size]
        else:
            self.base: Tensor = nn.Parameter(base)
            sizes = [e.numel for e in layout.entries] if head == "heads" else [layout.numel]
        self.register_buffer("scale", layout.deviations(), persistent=False)
        self.trunk = Trunk(inputs + split * embedding, [width] * depth, generator=generator)
        self.mixer = Mixer(body, width, generator)
        self.last = nn.ModuleList(draw_linear(width, size, 1.0, generator) for size in sizes)
        with torch.no_grad():
            hidden = self._hidden(probes)
            for layer in self.last:
                hyperfan_in(layer, hidden, 1.0 if start == "fan-in" else 0.0, generator)
        for layer in self.last:
            if not split:
                layer.register_parameter("bias", None)  # the base is that bias

    def forward(self, condition: Tensor, layout: Layout | None = None) -> Tensor:
        """c (*batch, inputs) -> theta (*batch, numel); with coded places also for another layout.

        Raises:
            ValueError: a condition of another size, or another layout where places are learned or its rows are too long.
        """
        if condition.shape[-1] != self.inputs:
            raise ValueError(f"the condition has {condition.shape[-1]} values; this hypernetwork takes {self.inputs}")
        if layout is None:
            made = torch.cat([layer(self._hidden(condition)) for layer in self.last], dim=-1)
            raw = made if self.head in ("once", "heads") else made.flatten(-2)[..., self.index]
            return self.base + self.scale * raw
        if self.head in ("once", "heads") or self.places == "learned":
            raise ValueError(
                f"head={self.head!r}, places={self.places!r} knows one layout; use chunks and places='coded'"
            )
        where, index, size = pieces_of(layout, self.head, self.chunk)
        if size > self.size:
            raise ValueError(f"the layout has rows of {size} values; this hypernetwork makes {self.size} at most")
        table = codes(where, self.embeddings.shape[1]).to(condition)
        index = (index // size) * self.size + index % size
        raw = self.last[0](self._hidden(condition, table)).flatten(-2)[..., index.to(condition.device)]
        return layout.centres().to(raw) + layout.deviations().to(raw) * raw

    def _hidden(self, condition: Tensor, table: Tensor | None = None) -> Tensor:
        if self.head in ("once", "heads"):
            return self.trunk(condition)
        table = self.embeddings if table is None else table
        each = condition[..., None, :].expand(*condition.shape[:-1], len(table), -1)
        both = torch.cat([each, table.expand(*each.shape[:-1], -1)], dim=-1)  # (*batch, P, inputs + embedding)
        return self.mixer(self.trunk(both))


def codes(where: Tensor, size: int) -> Tensor:
    """Sines and cosines of entry and place in it (P, 2) -> (P, size), second moment about 1."""
    rates = 2.0 ** torch.arange(math.ceil(size / 4))
    angles = torch.cat([where[:, :1] / rates, math.pi * where[:, 1:] * rates], dim=1)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)[:, :size]


class Hypernetwork(nn.Module):
    """A module whose weights are made anew for every condition.

    Args:
        net: the module; parameters not in the generator's layout stay its own and are trained.
        maker: makes the weights.
        statistics: how many sets of buffers (running statistics of norms) to keep, one a task.

    Example:
        >>> net = nn.Linear(4, 3)
        >>> both = Hypernetwork(net, WeightGenerator(Layout.of(net), inputs=2, head="once"))
        >>> shared, each = both(torch.zeros(5, 4), torch.zeros(2)), both(torch.zeros(5, 4), torch.zeros(5, 2))
        >>> tuple(shared.shape), tuple(each.shape)
        ((5, 3), (5, 3))
    """

    def __init__(self, net: nn.Module, maker: WeightGenerator, statistics: int = 1) -> None:
        super().__init__()
        if statistics < 1:
            raise ValueError(f"statistics is {statistics}; keep at least 1 set")
        known = dict(net.named_parameters())
        missing = [name for name in maker.layout.names if name not in known]
        if missing:
            raise ValueError(f"{type(net).__name__} has no parameters {missing}; it has {', '.join(known)}")
        self.net, self.maker, self.sets = net, maker, statistics
        for name in maker.layout.names:
            known[name].requires_grad_(False)  # never used
        self._names = [name for name, _ in net.named_buffers()] if statistics > 1 else []
        for i, name in enumerate(self._names):
            buffer = net.get_buffer(name)
            self.register_buffer(f"kept{i}", buffer.expand(statistics, *buffer.shape).clone())

    def forward(self, x: Tensor, condition: Tensor, which: int = 0) -> Any:
        """x (n, ...) and c (inputs,) for all rows or (n, inputs) for each; `which` set of running statistics to use."""
        if not 0 <= which < self.sets:
            raise ValueError(f"which is {which}; there are {self.sets} sets of statistics, 0 .. {self.sets - 1}")
        weights = self.maker.layout.unflatten(self.maker(condition))
        if condition.ndim == 1:
            return call(self.net, weights | self._own(which), x)
        return call_each(self.net, weights, x)

    @torch.no_grad()
    def plain(self, condition: Tensor, which: int = 0) -> nn.Module:
        """A copy of the net with the weights of one condition (inputs,), for use without the hypernetwork."""
        made = copy.deepcopy(self.net)
        state = {**self.maker.layout.unflatten(self.maker(condition)), **self._own(which)}
        made.load_state_dict({**made.state_dict(), **state})
        return made

    def _own(self, which: int) -> dict[str, Tensor]:
        return {name: getattr(self, f"kept{i}")[which] for i, name in enumerate(self._names)}


class SetEncoder(nn.Module):
    """A condition from data: rows (m, features) -> c (inputs,), whatever their order; with `each` one a row (m, inputs)."""

    def __init__(
        self, features: int, inputs: int, width: int = 32, each: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.trunk, self.each = Trunk(features, [width], generator=generator), each
        self.last = draw_linear(width, inputs, 1 / width, generator)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.trunk(rows.flatten(1))
        return self.last(hidden if self.each else hidden.mean(dim=0))


def output_penalty(maker: WeightGenerator, conditions: Tensor, targets: Tensor) -> Tensor:
    """Mean |H(c_k) - theta_k|^2 over old tasks: what keeps their weights while a new one is learned (von Oswald et al. 2020).

    Args:
        maker: H.
        conditions: (K, inputs), of the old tasks.
        targets: (K, numel), what H made of them before.
    """
    return (maker(conditions) - targets).square().sum(dim=1).mean()


class InPlace(Supplier):
    """H and its condition on a network; `source` draws noise in training, `fixed` (draws, inputs) is seen in evaluation."""

    def __init__(
        self, maker: WeightGenerator, condition: str, draws: int, classes: bool, source: torch.Generator | None
    ) -> None:
        super().__init__(maker.layout)
        self.maker, self.condition, self.classes, self.source = maker, condition, classes, source
        first = torch.randn(draws if condition == "noise" else 1, maker.inputs, generator=source)
        if condition == "noise":
            self.register_buffer("fixed", first)
        else:
            self.fixed: Tensor = nn.Parameter(first)
        self._again = False
        self._turn = 0
        self._given: tuple[Any, Any] = ((), {})

    def theta(self) -> Tensor:
        if self.condition == "noise" and self.training:
            device = self.source.device if self.source is not None else self.fixed.device
            drawn = torch.randn(self.maker.inputs, generator=self.source, device=device)
            return self.maker(drawn.to(self.fixed))
        return self.maker(self.fixed[self._turn])

    def state_of_theta(self) -> Any:
        split = self.maker.head in (
            "components",
            "chunks",
        )  # else the weights cost no more than to look at the parameters
        return "static" if split and self.condition == "static" else None

    def begin(self, net: nn.Module, args: Any, kwargs: Any) -> None:
        super().begin(net, args, kwargs)
        if not (self._again or self.training or len(self.fixed) == 1):
            self._given = _copies((args, kwargs))  # for the other draws: a network may begin in place

    def end(self, net: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        super().end(net, args, kwargs, output)
        if self._again or self.training or len(self.fixed) == 1:
            return None
        given, self._given = self._given, ((), {})
        if not isinstance(output, Tensor):
            return None
        outputs, self._again = [output], True
        try:
            for turn in range(1, len(self.fixed)):
                self._turn = turn
                again, named = _copies(given)
                outputs.append(net(*again, **named))
        finally:
            self._again, self._turn = False, 0
        every = torch.stack(outputs)
        return every.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(every)) if self.classes else every.mean(dim=0)


def _copies(values: Any) -> Any:
    """The same with every tensor copied, in tuples, lists and mappings too."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)


def apply(
    net: nn.Module,
    head: str = "chunks",
    condition: str = "static",
    inputs: int = 16,
    width: int = 32,
    depth: int = 2,
    chunk: int = 256,
    embedding: int = 16,
    body: str = "mlp",
    start: str = "fan-in",
    draws: int = 5,
    names: Sequence[str] | None = None,
    spec: Spec | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Let one hypernetwork make the weights of a network's linear maps and convolutions, in place.

    Args:
        net: the network; `numerics.hypernetworks.hypernet.withdraw` puts the made weights back as ordinary ones.
        head: "once", "heads", "components" or "chunks", as in `WeightGenerator`.
        condition: "static", one learned vector; "noise", N(0, 1) drawn every training pass.
        inputs: its size, >= 1.
        width: hidden units, >= 1.
        depth: hidden layers, >= 1.
        chunk: values a chunk, >= 1.
        embedding: size of the pieces' embeddings, >= 2.
        body: "mlp", "cnn", "rnn" or "attention" over the pieces.
        start: "fan-in", or "ordinary" for the weights that the network has.
        draws: noise vectors whose predictions are averaged in evaluation, >= 1.
        names: parameters to make instead of those found.
        spec: of the data; probabilities are averaged for classes, outputs otherwise.
        generator: for the first parameters and the noise; None = torch's own.

    Returns:
        How many parameters are made.

    Raises:
        ValueError: a setting outside its range, or a name that is no parameter (the message lists those there are).

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        >>> apply(net, width=16, chunk=128), tuple(net(torch.zeros(5, 64)).shape), tuple(net[0].weight.shape)
        (2, (5, 10), (128, 64))
        >>> sum(p.numel() for p in net.parameters())  # of 9610 before
        4314
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition is {condition!r}; use one of {', '.join(CONDITIONS)}")
    if draws < 1:
        raise ValueError(f"draws is {draws}; average at least 1")
    _check(head, body, start, "learned", inputs, width, depth, chunk, embedding)
    chosen = layer_weights(net) if names is None else list(names)
    if not chosen:
        return 0
    layout, parameters = Layout.of(net, chosen), dict(net.named_parameters())
    ordinary = layout.flatten({name: parameters[name].detach() for name in layout.names})
    maker = WeightGenerator(
        layout, inputs, head, width, depth, chunk, embedding, body, start, ordinary.cpu(), generator=generator
    ).to(ordinary)
    supplier = InPlace(maker, condition, draws, spec is not None and spec.task != "reals", generator).to(ordinary)
    return supply(net, supplier.train(net.training))


def _check(
    head: str, body: str, start: str, places: str, inputs: int, width: int, depth: int, chunk: int, embedding: int
) -> None:
    for name, value, known in (
        ("head", head, HEADS),
        ("body", body, BODIES),
        ("start", start, STARTS),
        ("places", places, PLACES),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; use one of {', '.join(known)}")
    for name, number, least in (
        ("inputs", inputs, 1),
        ("width", width, 1),
        ("depth", depth, 1),
        ("chunk", chunk, 1),
        ("embedding", embedding, 2),
    ):
        if number < least:
            raise ValueError(f"{name} is {number}; it must be at least {least}")
    if body != "mlp" and head in ("once", "heads"):
        raise ValueError(f"body is {body!r} with head={head!r}; it runs over pieces: use head='chunks' or 'components'")
