"""TabM: one network for tables that predicts like an ensemble of k, by cheap multiplicative adapters.

Paper     Gorishniy, Kotelnikov and Babenko 2025, arXiv:2410.24210 (ICLR 2025), section 3
Computes  member i of a layer: y_i = ((x_i * r_i) W^T) * s_i + b_i with W shared; k separate heads; training loss = mean
          of the members' own losses; prediction = mean of the members' probabilities (classes) or values (reals)
Shapes    x (n, columns) -> (n, k, outputs) in training, (n, outputs) in evaluation (log of the mean probability)
Departs   1. categories go through learned embeddings, whose columns share one starting r_i, instead of one-hot columns
          2. piecewise-linear embeddings cut at quantiles of a standard normal, since the bench's numbers are scaled to it
          3. all members see the same batch; separate permutations a member are left out (the paper finds little in them)
          4. width 192 as in the bench's baseline, for a like-for-like comparison; the paper tunes 64 to 1024
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tables.embedded_table import TableEncoder
from probatum.spec import Spec
from probatum.techniques.model.tables.tabm.number_embeddings import PeriodicNumbers, PiecewiseNumbers, normal_edges

CARD = Card(
    paper="arXiv:2410.24210",
    title="TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling",
    entry="build",
    number=230,
    tags=("tables", "ensemble"),
    alone="its layers hold adapters of their own; its members are stacked already",
    modalities=("table",),
    tiny={"k": 4, "width": 16, "depth": 2},
    tune={"width": [96, 192, 384], "dropout": (0.0, 0.5), "numbers": [None, "piecewise"]},
    claims=("better-than-one-mlp",),
)

VARIANTS = ("naive", "mini", "tabm")
NUMBERS = (None, "piecewise", "periodic")
_LOSSES = {getattr(F, name) for name in dir(F) if name.endswith(("_loss", "_entropy", "_with_logits", "kl_div"))}


class MemberOutputs(Tensor):
    """Outputs of all members (n, k, outputs): an ordinary tensor that an ordinary loss refuses.

    Without that, ``mse_loss`` would broadcast and ``cross_entropy`` take members for classes. Whatever is computed from
    it is a plain tensor again.
    """

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function in _LOSSES:
                shape = tuple(next(value.shape for value in arguments if isinstance(value, MemberOutputs)))
                raise ValueError(
                    f"{function.__name__} got the outputs {shape} of {shape[1]} members, (n, k, outputs); TabM is trained "
                    "on the mean of each member's own loss: use member_loss(output, target, loss) or model.objective"
                )
            return function(*arguments, **(named or {}))


def member_loss(output: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over members of each member's own loss (never the loss of the averaged prediction).

    Args:
        output: (n, k, outputs).
        target: (n,) or (n, outputs).
        loss: (m, outputs), (m, ...) -> scalar mean, or a loss a row (m,).

    Raises:
        ValueError: `output` is not (n, k, outputs) for the n of `target`.
    """
    if output.ndim != 3 or len(output) != len(target):
        raise ValueError(
            f"output has shape {tuple(output.shape)} for {len(target)} targets; give (n, k, outputs), as in training mode"
        )
    return loss(output.flatten(0, 1), target.repeat_interleave(output.shape[1], dim=0)).mean()


def average(output: Tensor, task: str) -> Tensor:
    """The ensemble's prediction: (n, k, outputs) -> (n, outputs), log of the mean probability, or the mean value."""
    if task == "reals":
        return output.mean(dim=1)
    return output.log_softmax(dim=2).logsumexp(dim=1) - math.log(output.shape[1])


def random_scales(k: int, chunks: Sequence[int], kind: str) -> Tensor:
    """Adapters (k, sum of chunks) of ``"ones"``, ``"signs"`` or ``"normal"``, one draw for each chunk of columns."""
    if kind == "ones":
        return torch.ones(k, sum(chunks))
    drawn = torch.randn(k, len(chunks))
    if kind == "signs":
        drawn = torch.where(drawn < 0, -1.0, 1.0)
    return drawn.repeat_interleave(torch.tensor(list(chunks)), dim=1)


class AdaptedLinear(nn.Module):
    """A linear layer shared by k members with their own input scales r, output scales s and biases (n, k, in) -> (n, k, out).

    Args:
        inputs: input width.
        outputs: output width.
        r: starting input scales (k, inputs), or None where members do not scale the input.
        s: starting output scales (k, outputs), or None; without it the bias is shared too.
    """

    def __init__(self, inputs: int, outputs: int, r: Tensor | None, s: Tensor | None) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=s is None)
        self.r = None if r is None else nn.Parameter(r)
        self.s = None if s is None else nn.Parameter(s)
        bound = inputs**-0.5
        self.bias = None
        if s is not None:  # members' biases start equal: only the first adapter tells them apart
            self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound).repeat(len(s), 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x if self.r is None else x * self.r)
        return x if self.s is None else x * self.s + self.bias


class MemberHeads(nn.Module):
    """k separate linear layers in one product: (n, k, inputs) -> (n, k, outputs)."""

    def __init__(self, k: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(k, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(k, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nki,kio->nko", x, self.weight) + self.bias


class TabM(nn.Module):
    """k members over one table: x (n, columns) -> (n, k, outputs) in training, their average (n, outputs) in evaluation.

    Args:
        numeric: how many leading columns are numbers.
        cardinalities: sizes of the category columns behind them.
        outputs: classes or real targets.
        task: classes or reals.
        k: members, the same in training and evaluation.
        width: hidden width.
        depth: hidden layers.
        dropout: in [0, 1).
        variant: ``"tabm"`` (all adapters, only the first random), ``"mini"`` (only the first), ``"naive"`` (all random).
        numbers: embedding of numbers: None, ``"piecewise"`` or ``"periodic"``; both start the first adapter normal.
        number_width: size of a number's vector.
        bins: pieces of the piecewise embedding.
        edges: their edges (numeric, bins + 1) for numbers that are not scaled to a standard normal.

    Raises:
        ValueError: a setting outside its range, or no columns.

    Example:
        >>> model = TabM(numeric=3, outputs=2, k=8, width=16)
        >>> x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
        >>> output = model(x)  # one prediction a member
        >>> member_loss(output, y, F.cross_entropy).backward()
        >>> tuple(output.shape), tuple(model.eval()(x).shape)
        ((5, 8, 2), (5, 2))
    """

    def __init__(
        self,
        numeric: int,
        cardinalities: Sequence[int] = (),
        outputs: int = 1,
        *,
        task: str = "classes",
        k: int = 32,
        width: int = 192,
        depth: int = 3,
        dropout: float = 0.1,
        variant: str = "tabm",
        numbers: str | None = None,
        number_width: int = 12,
        bins: int = 16,
        edges: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check(k=k, width=width, depth=depth, number_width=number_width, bins=bins, outputs=outputs)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; use one of {', '.join(VARIANTS)}")
        if numbers not in NUMBERS:
            raise ValueError(f"numbers is {numbers!r}; use None, 'piecewise' or 'periodic'")
        if numeric + len(cardinalities) == 0:
            raise ValueError("the table has no columns; TabM needs numeric or cardinalities")
        self.task, self.k = task, k
        self.encoder = TableEncoder(numeric, cardinalities)
        self.numbers: nn.Module | None = None
        if numbers == "piecewise" and numeric:
            self.numbers = PiecewiseNumbers(
                normal_edges(bins).repeat(numeric, 1) if edges is None else edges, number_width
            )
        elif numbers == "periodic" and numeric:
            self.numbers = PeriodicNumbers(numeric, number_width)
        chunks = [1 if self.numbers is None else number_width] * numeric
        chunks += [table.embedding_dim for table in self.encoder.embeddings]
        kind = "signs" if self.numbers is None else "normal"
        layers: list[nn.Module] = []
        for depth_now in range(depth):
            inputs = sum(chunks) if depth_now == 0 else width
            layers += [_layer(inputs, width, chunks, k, kind, variant, depth_now == 0), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = MemberHeads(k, width, outputs)

    def members(self, x: Tensor) -> Tensor:
        """Every member's output (n, k, outputs) for x (n, columns), in either mode."""
        features = self.encoder(x)
        if self.numbers is not None:
            count = self.encoder.numeric
            features = torch.cat([self.numbers(features[:, :count]).flatten(1), features[:, count:]], dim=1)
        return self.head(self.body(features.unsqueeze(1).expand(-1, self.k, -1)))

    def forward(self, x: Tensor) -> Tensor:
        output = self.members(x)
        return output.as_subclass(MemberOutputs) if self.training else average(output, self.task)

    def objective(self, x: Tensor, output: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The training loss: `member_loss` of the output that training mode gave."""
        return member_loss(output, target, loss)


def build(
    spec: Spec,
    k: int = 32,
    width: int = 192,
    depth: int = 3,
    dropout: float = 0.1,
    variant: str = "tabm",
    numbers: str | None = None,
) -> TabM:
    """`TabM` for a table's spec; settings as there, ValueError where one is out of its range."""
    return TabM(
        spec.numeric,
        spec.cardinalities,
        spec.outputs,
        task=spec.task,
        k=k,
        width=width,
        depth=depth,
        dropout=dropout,
        variant=variant,
        numbers=numbers,
    )


def _layer(
    inputs: int, width: int, chunks: Sequence[int], k: int, kind: str, variant: str, first: bool
) -> AdaptedLinear:
    """One hidden layer: which adapters it has and how they start is all that tells the variants apart."""
    own = chunks if first else [1] * inputs
    if variant == "mini":
        return AdaptedLinear(inputs, width, random_scales(k, own, kind) if first else None, None)
    r = random_scales(k, own, kind if first or variant == "naive" else "ones")
    s = random_scales(k, [1] * width, kind if variant == "naive" else "ones")
    return AdaptedLinear(inputs, width, r, s)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
