"""Maestro: factorised layers learn their own rank in training, ordered so that any smaller rank can be cut out.

Paper     Horvath, Laskaridis, Rajput and Wang 2023, "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition",
          arXiv:2308.14929, sections 3.1 to 3.4 and algorithm 1, and the released code's full pass
Computes  W (m, n) = U V^T at full rank, started at U sqrt(S), V sqrt(S) of its singular values. Each step one layer, drawn
          uniformly, runs at a rank b drawn uniformly from 1 .. r. Loss + lasso * sum over layers and b of
          |U[:, b:]|_F + |V[:, b:]|_F. After each epoch ranks whose suffix has |U[:, b:]| |V[:, b:]| below eps are masked; in
          the end tensors are cut, layers that gain nothing become dense again, batch norm is measured anew. With `full_pass`
          each batch runs at all ranks, and once more at the drawn one, towards the first pass's soft outputs
Shapes    any network of linear layers and ungrouped convolutions; convolutions (c_out, c_in, k, k) as c_out x (c_in k k)
Departs   1. eps is relative to the product of the whole norms: under Adam suffixes shrink to the size of its steps, not to 1e-7
          2. the released code draws (layer, rank) pairs evenly and without replacement, large layers therefore more often
          3. `full_pass` is off, as in the scripts of the release; of real targets the full outputs teach by squared error
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks import surgery
from probatum.numerics.networks.modes import evaluating, trained_modules
from probatum.numerics.networks.prefix import kept_units
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import IGNORED

CARD = Card(
    paper="arXiv:2308.14929",
    title="Maestro: Uncovering Low-Rank Structures via Trainable Decomposition",
    entry="Maestro",
    number=183,
    tags=("compression", "low rank", "nested networks"),
    tasks=("classes", "reals", "next-token"),
    alone="it replaces layers, and every seed ends with ranks of its own",
    neutral={"layers": ()},
    tiny={"keep": 0.2},
    tune={"lasso": (1e-6, 1e-3, "log"), "keep": [0.25, 0.5, 1.0]},
    claims=("small-at-no-loss", "cut-further-than-by-svd"),
)

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CALIBRATION = 32
"""Training batches on which batch norm is measured anew."""


def factors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """U sqrt(S) (m, r) and V sqrt(S) (n, r) of a matrix (m, n), r = min(m, n), singular values falling."""
    if not torch.isfinite(weight).all():
        raise ValueError(f"a weight of shape {tuple(weight.shape)} holds values that are not finite; it has no factors")
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s.sqrt()
    return (u * root).to(weight.dtype), (vh.T * root).to(weight.dtype)


@computed_wide
def suffix_norms(columns: Tensor) -> Tensor:
    """|A[:, b:]|_F for b = 0 .. r - 1 of A (m, r) -> (r,); the slope at a norm of zero is zero."""
    squares = columns.square().sum(dim=0).flip(0).cumsum(dim=0).flip(0)
    zero = squares == 0
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def hierarchical_lasso(u: Tensor, v: Tensor) -> Tensor:
    """sum over b of |U[:, b:]|_F + |V[:, b:]|_F -> ()."""
    return suffix_norms(u).sum() + suffix_norms(v).sum()


@computed_wide
def taught(output: Tensor, full: Tensor, target: Tensor) -> Tensor:
    """How far outputs are from those of a full pass, which is not differentiated -> ().

    Args:
        output: of the partial pass, (n, ...) reals or (..., classes).
        full: of the full one, the same shape.
        target: what both were asked for; of floating point, the squared error is taken, else the cross-entropy to the full
            one's probabilities, of positions with a label (not -100).
    """
    full = full.detach()
    if target.is_floating_point():
        return F.mse_loss(output, full)
    kept = target.flatten() != IGNORED
    own, wanted = output.flatten(0, -2)[kept], full.flatten(0, -2)[kept].softmax(dim=-1)
    return -(wanted * own.log_softmax(dim=-1)).sum() / max(len(own), 1)


class LowRank(nn.Module):
    """A linear layer or convolution of which the first `rank` of r rank-one parts run.

    Args:
        old: the dense layer.

    Raises:
        TypeError: neither a linear layer nor a convolution.
        ValueError: a convolution with groups or another padding than zeros.

    Example:
        >>> dense = nn.Linear(6, 4)
        >>> layer = LowRank(dense)
        >>> x = torch.linspace(-1, 1, 12).view(2, 6)
        >>> torch.allclose(layer(x), dense(x), atol=1e-5), layer.full, layer.use(2).plain()[1].weight.shape
        (True, 4, torch.Size([4, 2]))
    """

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        if type(old) is not nn.Linear and type(old) not in CONVOLUTIONS:
            raise TypeError(f"{type(old).__name__} cannot be factorised; linear layers and convolutions can")
        if getattr(old, "groups", 1) != 1 or getattr(old, "padding_mode", "zeros") != "zeros":
            raise ValueError(
                f"a convolution with groups {old.groups} and {old.padding_mode} padding cannot be factorised; leave it out"
            )
        weight: Tensor = old.weight.detach()  # type: ignore[assignment]
        u, v = factors(weight.flatten(1))
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)
        self.bias = old.bias
        self.kernel = weight.shape[1:]
        self.call = CONVOLUTIONS.get(type(old))  # type: ignore[call-overload]
        self.how = () if self.call is None else (old.stride, old.padding, old.dilation)
        self.full = u.shape[1]
        self.rank = self.full
        self.register_buffer("used", torch.tensor(self.full))  # the rank, for the network's own state
        self.sampled: int | None = None

    def use(self, rank: int) -> LowRank:
        """Mask all ranks from this one on, for good."""
        self.rank = rank
        self.used.fill_(rank)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *more)
        self.rank = int(self.used)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sampled": None}  # a copy is no part of the present step

    def forward(self, x: Tensor) -> Tensor:
        b = self.rank if self.sampled is None else self.sampled
        u, v = self.u[:, :b], self.v[:, :b]
        if self.call is None:
            return F.linear(F.linear(x, v.T), u, self.bias)
        inner = self.call(x, v.T.reshape(b, *self.kernel), None, *self.how)
        return self.call(inner, u.reshape(*u.shape, *(1,) * (len(self.kernel) - 1)), self.bias)

    def lasso(self) -> Tensor:
        """Hierarchical group lasso of the ranks in use."""
        return hierarchical_lasso(self.u[:, : self.rank], self.v[:, : self.rank])

    @torch.no_grad()
    def found_rank(self, eps: float) -> int:
        """The first rank whose suffix has a product of norms at most eps times that of the whole, 0 for zero weights."""
        product = suffix_norms(self.u[:, : self.rank]) * suffix_norms(self.v[:, : self.rank])
        small = (product <= eps * product[0]).nonzero()
        return int(small[0]) if len(small) else self.rank

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """Layers of torch: two of the rank in use, or one dense where two would not be smaller; the bias is this one's own."""
        u, v, b = self.u[:, : self.rank], self.v[:, : self.rank], self.rank
        m, n = len(u), len(v)
        if (m + n) * b >= m * n:
            return self._layer((u @ v.T).reshape(m, *self.kernel), self.bias, *self.how)
        first = self._layer(v.T.reshape(b, *self.kernel), None, *self.how)
        ones = (1,) * (len(self.kernel) - 1)
        return nn.Sequential(first, self._layer(u.reshape(m, b, *ones), self.bias))

    def _layer(self, weight: Tensor, bias: nn.Parameter | None, *how: Any) -> nn.Module:
        outs, ins = weight.shape[:2]
        if self.call is None:
            made: Any = nn.utils.skip_init(nn.Linear, ins, outs, bias=False, dtype=weight.dtype)
        else:
            kind = next(kind for kind, call in CONVOLUTIONS.items() if call is self.call)
            made = nn.utils.skip_init(kind, ins, outs, tuple(weight.shape[2:]), *how, bias=False, dtype=weight.dtype)
        made = made.to(weight.device)
        made.weight.copy_(weight)
        made.weight.requires_grad_(self.u.requires_grad)
        made.bias = bias  # itself, so that it stays tied or frozen
        return made


def factorise(net: nn.Module, layers: Sequence[str] | None = None) -> dict[str, LowRank]:
    """Replace linear layers and ungrouped convolutions (or those named) in place by `LowRank`; the name of each with it.

    Those whose weight is frozen or tied to another layer's stay dense unless they are named.

    Raises:
        KeyError: a name that is no such layer.
        ValueError: a convolution with groups, or a tied weight, that is named; a network that is itself the layer.
        TypeError: parametrised weights.
    """
    found = surgery.layers(net, [nn.Linear, *CONVOLUTIONS])
    if layers is None:
        chosen = [name for name, module in found.items() if _factorises(module, surgery.ties(net))]
    else:
        unknown = next((name for name in layers if name not in found), None)
        if unknown is not None:
            raise KeyError(f"layer {unknown!r} is no linear layer or convolution; there are {', '.join(found)}")
        chosen = list(dict.fromkeys(layers))
    for name in chosen:
        surgery.check_plain(found[name], name)
    made = {name: LowRank(found[name]) for name in chosen}
    surgery.swap(net, {found[name]: layer for name, layer in made.items()})
    return made


def _factorises(module: Any, tied: Mapping[int, Any]) -> bool:
    groups, padding = getattr(module, "groups", 1), getattr(module, "padding_mode", "zeros")
    weight = module._parameters.get("weight")
    learns = weight is None or (weight.requires_grad and id(weight) not in tied)  # None = parametrised, refused by name
    return groups == 1 and padding == "zeros" and learns


def finish_plain(net: nn.Module) -> nn.Module:
    """Cut all `LowRank` layers to the ranks in use, in place; what is left are layers of torch."""
    found = [module for module in net.modules() if isinstance(module, LowRank)]
    surgery.swap(net, {module: module.plain() for module in found}, carry=False)
    return net


def keep_share(layers: dict[str, LowRank], share: float) -> None:
    """Use a share in (0, 1] of each layer's rank, at least one."""
    for layer in layers.values():
        layer.use(kept_units(share, layer.rank))


def keep_greedily(layers: dict[str, LowRank], budget: int, loss: Callable[[], float], by: int = 1) -> int:
    """Take `by` ranks off the layer where `loss()` then is least, until the factors have at most `budget` numbers.

    Returns:
        How many they have.

    Raises:
        ValueError: a budget below that of rank one everywhere.
    """

    def size(layer: LowRank, rank: int) -> int:
        return min((len(layer.u) + len(layer.v)) * rank, len(layer.u) * len(layer.v))

    least = sum(size(layer, 1) for layer in layers.values())
    if budget < least:
        raise ValueError(f"budget is {budget}; rank one everywhere takes {least} numbers already")
    while (total := sum(size(layer, layer.rank) for layer in layers.values())) > budget:
        tried: list[tuple[float, str]] = []
        for name, layer in layers.items():
            if layer.rank == 1:
                continue
            before = layer.rank
            layer.use(max(1, before - by))
            tried.append((loss(), name))
            layer.use(before)
        chosen = layers[min(tried)[1]]
        chosen.use(max(1, chosen.rank - by))
    return total


class Maestro:
    """Learns ranks while a network trains; a compressor on the bench, in plain code through `attach`.

    Args:
        lasso: weight of the hierarchical group lasso, >= 0.
        eps: relative size below which the rest of a layer's ranks is masked, in [0, 1).
        keep: share in (0, 1] of the learned ranks that is deployed on the bench.
        layers: names of layers to factorise; None = all that can be; () = none, the baseline bit for bit.
        full_pass: on the bench, pass every batch at all ranks too, and let the drawn rank learn from those outputs.
        generator: for layers and ranks.

    Raises:
        ValueError: a setting outside its range; a layer that loses all its ranks.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> maestro = Maestro(lasso=1e-3).attach(net)
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        >>> for _ in range(3):
        ...     maestro.sample()
        ...     loss = net(torch.ones(4, 8)).square().mean() + maestro.penalty()
        ...     loss.backward()
        ...     optimizer.step()
        >>> maestro.shrink()
        >>> [type(layer).__name__ for layer in maestro.finish_plain()]
        ['Linear', 'ReLU', 'Linear']
    """

    reads = ("batch",)
    writes = ("loss", "model", "weights", "optimizer")

    def __init__(
        self,
        lasso: float = 1e-5,
        eps: float = 1e-3,
        keep: float = 1.0,
        layers: Sequence[str] | None = None,
        full_pass: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if not lasso >= 0:
            raise ValueError(f"lasso is {lasso}; it must be at least 0")
        if not 0 <= eps < 1:
            raise ValueError(f"eps is {eps}; it must lie in [0, 1)")
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; it must lie in (0, 1]")
        self.lasso, self.eps, self.keep, self.names = lasso, eps, keep, layers
        self.full_pass = full_pass
        self.generator = generator or torch.Generator().manual_seed(0)
        self.layers: dict[str, LowRank] = {}
        self.net: nn.Module | None = None
        self.parameters = 0
        self._drawn: tuple[LowRank, int] | None = None

    def attach(self, net: nn.Module) -> Maestro:
        """Factorise the network's layers in place; make the optimizer afterwards.

        Raises:
            ValueError: they are factorised by this object already.
        """
        if any(layer is module for layer in self.layers.values() for module in net.modules()):
            raise ValueError("the network is attached already; call finish_plain() first")
        self.net, self.layers = net, factorise(net, self.names)
        return self

    def sample(self) -> None:
        """Before a training pass: one layer at a rank drawn, the others at theirs."""
        self._draw()
        self._apply()

    def release(self) -> None:
        """After it: all layers at their ranks."""
        for layer in self.layers.values():
            layer.sampled = None

    def penalty(self) -> Tensor:
        """lasso * sum over layers of the hierarchical group lasso -> (); 0 where nothing is factorised."""
        if not self.layers:
            return torch.zeros(())
        return self.lasso * torch.stack([layer.lasso() for layer in self.layers.values()]).sum()

    def shrink(self) -> None:
        """After an epoch: mask the ranks that have vanished."""
        self.release()
        for name, layer in self.layers.items():
            rank = layer.found_rank(self.eps)
            if rank == 0:
                raise ValueError(f"all ranks of layer {name!r} have vanished; lasso is {self.lasso}: give less")
            layer.use(rank)

    def finish_plain(self) -> nn.Module:
        """Cut the tensors; the network is of torch's own layers again."""
        if self.net is None:
            raise ValueError("nothing is attached; call attach(net) first")
        return finish_plain(self.net)

    def ranks(self) -> dict[str, int]:
        """The rank in use of each layer."""
        return {name: layer.rank for name, layer in self.layers.items()}

    def report(self) -> dict[str, float]:
        """Parameters that are left, and the mean share of rank that each layer keeps."""
        found = {"parameters": float(self.parameters)}
        if self.layers:
            shares = [layer.rank / layer.full for layer in self.layers.values()]
            found["mean share of rank"] = sum(shares) / len(shares)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Ranks in use and the stream's state; factors are in the network's own state."""
        return {"ranks": self.ranks(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, after `attach` or `prepare`."""
        for name, rank in state["ranks"].items():
            if name in self.layers:
                self.layers[name].use(rank)
        self.generator.set_state(state["generator"])

    def prepare(self, run: Any) -> None:
        """Hook: factorise, and give the factors to the optimizer in the place of the dense weights."""
        if self.names is not None and not self.names:
            return
        old = {name: module.weight for name, module in run.model.named_modules() if hasattr(module, "weight")}
        self.attach(run.model)
        run.keep_best = False
        gone = {id(old[name]): (name, layer) for name, layer in self.layers.items()}
        for group in run.optimizer.param_groups:
            names = group.get("param_names", [""] * len(group["params"]))
            kept: list[tuple[str, nn.Parameter]] = []
            for own, parameter in zip(names, group["params"], strict=True):
                name, layer = gone.get(id(parameter), ("", None))
                kept += [(own, parameter)] if layer is None else [(f"{name}.u", layer.u), (f"{name}.v", layer.v)]
            group["params"] = [parameter for _, parameter in kept]
            if "param_names" in group:
                group["param_names"] = [own for own, _ in kept]

    def batch(self, run: Any, batch: Any) -> Any:
        """Hook: draw the layer and the rank of the step."""
        self._draw()
        return batch

    def before_pass(self, run: Any, batch: Any) -> None:
        """Hook: let the coming pass run at it, a second one as well; a full pass at all ranks."""
        self.release()
        if not self.full_pass:
            self._apply()

    def loss(self, run: Any, batch: Any, output: Any, loss: Tensor) -> Tensor:
        """Hook: add what the drawn rank has yet to learn from the full pass, and the penalty."""
        if self.full_pass and self.layers:
            self._apply()
            loss = loss + taught(run.model(batch.x), output, batch.y)
            run.extra_passes += len(batch.y)
        self.release()
        return loss + self.penalty() if self.layers and self.lasso else loss

    def epoch_end(self, run: Any) -> None:
        """Hook: `shrink`."""
        self.shrink()

    def finish(self, run: Any) -> None:
        """Hook: cut to the ranks (or the share of them that is kept), and measure batch norm anew."""
        if self.layers:
            self.shrink()
            keep_share(self.layers, self.keep)
            self.finish_plain()
            x, size = run.train.x, run.budget.batch_size
            starts = range(0, min(len(x), CALIBRATION * size), size)
            recalibrate(run.model, [x[start : start + size] for start in starts])
        self.parameters = sum(value.numel() for value in run.model.parameters())

    def detach(self) -> None:
        """Hook: training was broken off; leave layers of torch."""
        self.release()
        if self.net is not None:
            self.finish_plain()

    def _draw(self) -> None:
        if self.layers:
            names = list(self.layers)
            layer = self.layers[names[self._below(len(names))]]
            self._drawn = (layer, 1 + self._below(layer.rank))

    def _apply(self) -> None:
        self.release()
        if self._drawn is not None:
            layer, rank = self._drawn
            layer.sampled = rank

    def _below(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Sequence[Tensor]) -> None:
    """Batch norm's running statistics as plain averages over these batches (of two rows or more); the mode is put back.

    Those that are kept in evaluation go on with the statistics they were trained with.
    """
    moving = [module for _, module in trained_modules(net) if isinstance(module, BATCH_NORMS)]
    norms = [norm for norm in moving if norm.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(net):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for batch in batches:
                if len(batch) > 1:
                    net(batch.clone())  # which may begin by changing it in place
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
