"""NoProp: each block learns alone to denoise a noised label embedding; blocks are chained only to predict.

Paper     Li, Teh and Pascanu 2025, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
          arXiv:2503.24322, sections 2 and 3
Computes  dt: blocks t = 1 .. T map (z_{t-1}, x) to u_hat = softmax(.) U; z_{t-1} is drawn from N(sqrt(a) u_y, 1 - a), so no
          gradient crosses blocks; loss T / 2 eta (SNR_t - SNR_{t-1}) |u_hat - u_y|^2 a block, -log p(y | z_T) and
          KL(q(z_0 | y) || N(0, I)). ct: one block with time, weight SNR'(t), learned schedule, an ODE to predict. fm: velocity
          u_y - z_0 on straight paths and cross-entropy on the extrapolated end
Shapes    data -> predictor of (n, classes); z (n, size of the label embedding)
Departs   1. z is averaged over `samples` chains for a prediction, drawn anew from the same seed every time; the noise of a chain
             is shared by all rows, so that what is said of a row does not hang on those beside it
          2. the learned schedule of ct is piecewise linear in log SNR, with positive slopes
          3. a learned table follows the loss of the last block, of p(y | z_T) and of KL alone, so that blocks stay apart
          4. blocks take 4 x 4 pooled maps of two convolutions for images, one network by kind of data otherwise
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tables.embedded_table import TableEncoder
from probatum.numerics.tensors.draws import own_draws
from probatum.spec import Budget, Data, Part, Spec

CARD = Card(
    paper="arXiv:2503.24322",
    title="NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
    entry="fit",
    number=96,
    tags=("training", "local learning", "diffusion"),
    modalities=("table", "image", "text", "series"),
    tasks=("classes",),
    tiny={"blocks": 2, "width": 64, "rate": 2e-2, "samples": 4},
    tune={
        "blocks": [5, 10, 20],
        "rate": (3e-4, 1e-2, "log"),
        "eta": (0.01, 1.0, "log"),
        "embedding": ["one-hot", "learned"],
    },
    claims=("near-back-propagation",),
)

VARIANTS = ("dt", "ct", "fm")
EMBEDDINGS = ("one-hot", "learned", "prototypes")
FIRST, LAST = 0.01, 0.99
"""abar_0 and abar_T of the cosine schedule: nearly noise, nearly the label."""
KNOTS = 16


def cosine_levels(blocks: int) -> Tensor:
    """abar_0 .. abar_T (T + 1,), rising from 0.01 to 0.99 along sin^2."""
    if blocks < 1:
        raise ValueError(f"blocks is {blocks}; give 1 or more")
    return FIRST + (LAST - FIRST) * torch.sin(torch.linspace(0, math.pi / 2, blocks + 1, dtype=torch.float64)).square()


def check_levels(levels: Sequence[float] | Tensor) -> Tensor:
    """abar as a float64 tensor.

    Raises:
        ValueError: fewer than two, not rising, or outside (0, 1).
    """
    found = torch.as_tensor(levels, dtype=torch.float64)
    if len(found) < 2 or not (found.diff() > 0).all() or not (found[0] > 0 and found[-1] < 1):
        raise ValueError(
            f"noise levels are {[round(v, 4) for v in found.tolist()]}; they must rise strictly within (0, 1)"
        )
    return found


def signal_to_noise(levels: Tensor) -> Tensor:
    """SNR = abar / (1 - abar)."""
    return levels / (1 - levels)


def chain_coefficients(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c (T,) of z_t = a u_hat + b z_{t-1} + sqrt(c) e, by which z_t keeps the law N(sqrt(abar_t) u, 1 - abar_t)."""
    before, after = levels[:-1], levels[1:]
    ratio = before / after
    a = after.sqrt() * (1 - ratio) / (1 - before)
    b = ratio.sqrt() * (1 - after) / (1 - before)
    c = (1 - after) * (1 - ratio) / (1 - before)
    return a, b, c


def noised(u: Tensor, level: Tensor | float, generator: torch.Generator) -> Tensor:
    """A draw from N(sqrt(abar) u, 1 - abar); u (n, d), level () or (n, 1)."""
    level = torch.as_tensor(level, dtype=u.dtype)
    return level.sqrt() * u + (1 - level).sqrt() * torch.randn(u.shape, generator=generator, dtype=u.dtype)


def prior_divergence(u: Tensor, level: float) -> Tensor:
    """KL(N(sqrt(abar) u, 1 - abar) || N(0, I)), mean over rows of u (n, d)."""
    size = u.shape[1]
    return 0.5 * (level * u.square().sum(dim=1) + size * ((1 - level) - 1 - math.log(1 - level))).mean()


class Block(nn.Module):
    """(z, x[, t]) -> the embedding expected, softmax(logits) U, or a plain vector for velocities.

    Args:
        spec: of the data.
        size: of z.
        width: of its layers.
        timed: whether it is given t.
        outputs: of the last layer: classes, or the size of z.
    """

    def __init__(self, spec: Spec, size: int, width: int, timed: bool, outputs: int) -> None:
        super().__init__()
        self.look = _encoder(spec, width)
        self.label = nn.Sequential(nn.Linear(size + 2 * timed, width), nn.ReLU(), nn.Linear(width, width))
        self.fuse = nn.Sequential(nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, z: Tensor, x: Tensor, t: Tensor | None = None) -> Tensor:
        x = x.to(z.dtype) if x.is_floating_point() else x
        if t is not None:
            z = torch.cat([z, t, (math.pi * t).cos()], dim=1)
        return self.fuse(torch.cat([self.look(x), self.label(z)], dim=1))


class Schedule(nn.Module):
    """A learned abar(t) on [0, 1]: log SNR is piecewise linear with positive slopes."""

    def __init__(self) -> None:
        super().__init__()
        low, high = (math.log(v / (1 - v)) for v in (FIRST, LAST))
        self.low = nn.Parameter(torch.tensor(low))
        self.raw = nn.Parameter(torch.full((KNOTS,), math.log(math.expm1((high - low) / KNOTS))))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t (n, 1) in [0, 1] -> abar, its slope and the slope of the SNR, all (n, 1)."""
        steps = F.softplus(self.raw)
        place = (t * KNOTS).clamp(0, KNOTS - 1e-4)
        knot = place.long()
        levels = torch.cat([self.low[None], self.low + steps.cumsum(dim=0)])
        gamma, slope = levels[knot] + (place - knot) * steps[knot], KNOTS * steps[knot]
        level = gamma.sigmoid()
        return level, slope * level * (1 - level), slope * gamma.exp()


class NoProp(nn.Module):
    """Blocks, label embedding and the head that reads z.

    Args:
        spec: of the data, of task classes.
        variant: "dt", "ct" or "fm".
        blocks: T of dt; steps of the solver otherwise.
        embedding: "one-hot", "learned" or "prototypes" (an example of each class, as pixels).
        width: of the blocks' layers.
        levels: abar_0 .. abar_T of dt; None = cosine.
        prototypes: (classes, features) for that embedding.

    Raises:
        ValueError: a setting outside its range, a real target, prototypes that are missing.

    Example:
        >>> spec = Spec("table", "classes", (4,), 3, numeric=4)
        >>> net, generator = NoProp(spec, blocks=3), torch.Generator().manual_seed(0)
        >>> x, y = torch.ones(5, 4), torch.arange(5) % 3
        >>> losses = list(net.block_losses(x, y, generator))
        >>> len(losses), tuple(net.probabilities(x, generator, samples=2).shape)
        (3, (5, 3))
    """

    def __init__(
        self,
        spec: Spec,
        variant: str = "dt",
        blocks: int = 10,
        embedding: str = "one-hot",
        width: int = 64,
        levels: Sequence[float] | Tensor | None = None,
        eta: float = 0.1,
        prototypes: Tensor | None = None,
    ) -> None:
        super().__init__()
        if spec.task != "classes":
            raise ValueError(f"the task is {spec.task!r}; noised labels need classes")
        for name, value, allowed in (("variant", variant, VARIANTS), ("embedding", embedding, EMBEDDINGS)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
        if width < 1 or not eta > 0:
            raise ValueError(f"width is {width} and eta {eta}; both must be positive")
        self.variant, self.eta = variant, eta
        self.levels: Tensor
        self.register_buffer("levels", check_levels(cosine_levels(blocks) if levels is None else levels))
        self.steps = len(self.levels) - 1
        table = torch.eye(spec.outputs)
        if embedding == "prototypes":
            if prototypes is None:
                raise ValueError(
                    "embedding is 'prototypes'; give an example of each class, prototypes (classes, features)"
                )
            table = prototypes - prototypes.mean(dim=0)
            table = table / table.norm(dim=1, keepdim=True).mean().clamp_min(1e-6)
        elif embedding == "learned":
            table = torch.nn.init.orthogonal_(torch.empty(spec.outputs, max(spec.outputs, min(20, width))))
        self.table = nn.Parameter(table.clone(), requires_grad=embedding == "learned")
        size = table.shape[1]
        outputs = size if variant == "fm" else spec.outputs
        count = self.steps if variant == "dt" else 1
        self.blocks = nn.ModuleList(Block(spec, size, width, variant != "dt", outputs) for _ in range(count))
        self.schedule = Schedule() if variant == "ct" else None
        self.head = nn.Linear(size, spec.outputs)

    def expected(self, logits: Tensor, *, learn: bool = True) -> Tensor:
        """softmax(logits) U, with a gradient for a learned U if `learn`."""
        return logits.softmax(dim=1) @ (self.table if learn else self.table.detach())

    def block_losses(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """The loss of each block and of what goes with the labels (in the last one, for dt): no gradient crosses blocks.

        A block passes forward when its loss is asked for: who takes one step after the other holds one block's activations.
        """
        u = self.table[y]
        if self.variant == "dt":
            yield from self._discrete(x, y, u, generator)
            return
        t = torch.rand(len(y), 1, generator=generator)
        if self.variant == "ct":
            yield self._continuous(x, y, u, t, generator)
            return
        start = torch.randn(u.shape, generator=generator)
        z = t * u + (1 - t) * start
        velocity = self.blocks[0](z, x, t)
        end = z + (1 - t) * velocity
        fit = (velocity - (u - start).detach()).square().sum(dim=1).mean()
        yield fit + F.cross_entropy(self.head(end), y)

    def _discrete(self, x: Tensor, y: Tensor, u: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        ratios = signal_to_noise(self.levels)
        for t, block in enumerate(self.blocks):
            learn = t + 1 == self.steps  # the table belongs to the last loss
            z = noised(u, float(self.levels[t]), generator).detach()
            gap = (self.expected(block(z, x), learn=learn) - (u if learn else u.detach())).square().sum(dim=1).mean()
            loss = 0.5 * self.steps * self.eta * float(ratios[t + 1] - ratios[t]) * gap
            if learn:
                last = noised(u, float(self.levels[-1]), generator)
                loss = loss + F.cross_entropy(self.head(last), y) + prior_divergence(u, float(self.levels[0]))
            del gap  # whoever has taken the loss holds the graph alone
            yield loss
            del loss

    def _continuous(self, x: Tensor, y: Tensor, u: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        schedule = self.schedule
        if schedule is None:
            raise TypeError("variant ct has a schedule")
        level, _, slope = schedule(t)
        z = level.sqrt() * u + (1 - level).sqrt() * torch.randn(u.shape, generator=generator)
        gap = (self.expected(self.blocks[0](z, x, t)) - u).square().sum(dim=1, keepdim=True)
        first, last = (schedule(torch.full((1, 1), float(end)))[0] for end in (0, 1))
        clear = last.sqrt() * u + (1 - last).sqrt() * torch.randn(u.shape, generator=generator)
        size = u.shape[1]
        prior = 0.5 * (first * u.square().sum(dim=1) + size * (-first - (1 - first).log())).mean()
        return 0.5 * self.eta * (slope * gap).mean() + F.cross_entropy(self.head(clear), y) + prior

    @torch.no_grad()
    def end(self, x: Tensor, generator: torch.Generator, apart: bool = False) -> Tensor:
        """z at the end of one chain from noise, the same noise for all rows; of a chain for each row if `apart`."""
        shape = (len(x) if apart else 1, self.table.shape[1])
        z = self._draw(shape, generator).expand(len(x), -1)
        if self.variant == "dt":
            for t, (a, b, c) in enumerate(zip(*(v.float() for v in chain_coefficients(self.levels)), strict=True)):
                z = a * self.expected(self.blocks[t](z, x)) + b * z + c.sqrt() * self._draw(shape, generator)
            return z
        for k in range(self.steps):
            t = torch.full((len(x), 1), k / self.steps)
            z = z + self.slope(z, x, t) / self.steps
        return z

    def _draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=self.table.dtype)

    def slope(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """dz/dt: the velocity of fm; of ct, that by which z = sqrt(abar) u_hat + sqrt(1 - abar) e keeps its e."""
        if self.schedule is None:
            return self.blocks[0](z, x, t)
        level, slope, _ = self.schedule(t)
        hat = self.expected(self.blocks[0](z, x, t))
        return slope * (0.5 * hat / level.sqrt() - 0.5 * (z - level.sqrt() * hat) / (1 - level))

    def probabilities(self, x: Tensor, generator: torch.Generator, samples: int = 8) -> Tensor:
        """Probabilities (n, classes), the mean of `samples` chains."""
        return torch.stack([self.head(self.end(x, generator)).softmax(dim=1) for _ in range(samples)]).mean(dim=0)


class NoPropPredictor:
    """A trained network; predictions draw from the same seed every time."""

    def __init__(self, net: NoProp, samples: int, seed: int) -> None:
        self.net, self.samples, self.seed = net.eval(), samples, seed

    @torch.no_grad()
    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes)."""
        found = []
        for x in part.x.split(1024):  # every block of rows by the same chains
            found.append(self.net.probabilities(x, torch.Generator().manual_seed(self.seed), self.samples))
        return torch.cat(found)


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    variant: str = "dt",
    blocks: int = 10,
    embedding: str = "one-hot",
    width: int = 64,
    rate: float = 1e-3,
    weight_decay: float = 1e-3,
    eta: float = 0.1,
    levels: Sequence[float] | None = None,
    samples: int = 8,
) -> NoPropPredictor:
    """Train on data.train for budget.steps batches, each block by an AdamW of its own.

    Args:
        data: one split, of task classes.
        budget: updates and rows of each.
        generator: for weights, batches and noise.
        variant, blocks, embedding, width, eta, levels: see `NoProp`.
        rate, weight_decay: AdamW's.
        samples: chains a prediction is averaged over, >= 1.

    Raises:
        ValueError: a setting outside its range; real targets.
    """
    if not rate > 0 or samples < 1 or not weight_decay >= 0:
        raise ValueError(
            f"rate is {rate}, samples {samples}, weight_decay {weight_decay}; need rate > 0, samples >= 1, decay >= 0"
        )
    with own_draws(generator):
        shown = class_examples(data) if embedding == "prototypes" else None
        net = NoProp(data.spec, variant, blocks, embedding, width, levels, eta, shown)
    x, y = data.train.x, data.train.y
    optimizers = [
        torch.optim.AdamW(group, lr=rate, weight_decay=weight_decay, fused=True) for group in local_parameters(net)
    ]
    size = min(budget.batch_size, len(y))
    order: list[Tensor] = []
    for _ in range(budget.steps):
        if not order:
            order = [batch for batch in torch.randperm(len(y), generator=generator).split(size) if len(batch) == size]
        index = order.pop()
        update(net, optimizers, x[index], y[index], generator)
    return NoPropPredictor(net, samples, int(torch.randint(2**62, (), generator=generator)))


def update(
    net: NoProp, optimizers: Sequence[torch.optim.Optimizer], x: Tensor, y: Tensor, generator: torch.Generator
) -> None:
    """One step of every block on rows (n, ...) with classes (n,), one block after the other; see `local_parameters`."""
    for loss, optimizer in zip(net.block_losses(x, y, generator), optimizers, strict=True):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def local_parameters(net: NoProp) -> list[list[nn.Parameter]]:
    """The parameters of each loss: a block's own, and with the last one the head, the table and the schedule."""
    groups = [list(block.parameters()) for block in net.blocks]
    own = [*net.head.parameters(), net.table, *(net.schedule.parameters() if net.schedule is not None else ())]
    groups[-1] += [parameter for parameter in own if parameter.requires_grad]
    return groups


def class_examples(data: Data) -> Tensor:
    """For each class the training row with the least median distance to the others of its class, flat: (classes, features).

    Raises:
        ValueError: token ids, which have no distances.
    """
    if not data.train.x.is_floating_point():
        raise ValueError("embedding is 'prototypes'; token ids cannot be embeddings: use 'one-hot' or 'learned'")
    rows, found = data.train.x.flatten(1), []
    for c in range(data.spec.outputs):
        own = rows[data.train.y == c][:500]
        found.append(own[torch.cdist(own, own).median(dim=1).values.argmin()])
    return torch.stack(found)


def _encoder(spec: Spec, width: int) -> nn.Module:
    """x -> (n, width)."""
    if spec.modality == "table":
        encoder = TableEncoder(spec.numeric, spec.cardinalities)
        return nn.Sequential(encoder, nn.Linear(encoder.width, width), nn.ReLU(), nn.Linear(width, width))
    if spec.modality == "image":
        small = max(4, width // 8)
        layers = (nn.Conv2d(spec.shape[0], small, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        more = (nn.Conv2d(small, 2 * small, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        return nn.Sequential(*layers, *more, nn.Linear(32 * small, width))
    if spec.modality == "series":
        layers1 = (
            nn.Conv1d(spec.shape[0], width, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2),
            nn.ReLU(),
        )
        return nn.Sequential(*layers1, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, width))
    return nn.Sequential(nn.EmbeddingBag(spec.vocabulary, width, mode="mean", padding_idx=0), nn.Linear(width, width))
