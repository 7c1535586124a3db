"""Martingale posterior neural process: functions drawn by imagining further points of the context.

Paper     Lee et al. 2023, "Martingale Posterior Neural Processes", ICLR 2023, arXiv:2304.09431
Computes  a neural process over context points (x, y) and N' points that attention imagines from noise; each noise gives one
          function. Loss: minus (log of the mean over K functions of the likelihood of all targets, plus log-likelihood of the
          context alone, plus that of imagined points alone); numerics.neural_process, with latent and conditional processes
Shapes    data -> predictor with `samples` (S, n, outputs)
Departs   1. wiring of the generator beyond its equations is from the description; queries of attention are embedded places,
             keys and values the representations, so that imagined ones need no place
          2. a table is one task: episodes are random splits of its training rows, and, as a share, draws of a Gaussian process
             at those rows, so that functions other than the one are seen; the context at prediction is the training rows
          3. Adam's rate falls along a half cosine from 2e-3 (the paper's from 5e-4), gradients are clipped at 1; standardised
             inputs are cut at 5
          4. the bootstrapping process, with which the paper compares, is left out
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tensors.columns import varying
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.targets import real_targets
from probatum.spec import Budget, Data, Part, Spec
from probatum.techniques.learner.martingale_posterior_np.neural_process import (
    Context,
    MartingaleProcess,
    NeuralProcess,
    context,
)

CARD = Card(
    paper="arXiv:2304.09431",
    title="Martingale Posterior Neural Processes",
    entry="fit",
    number=93,
    tags=("uncertainty", "posterior", "meta-learning"),
    modalities=("table",),
    tasks=("reals",),
    tiny={"width": 16, "points": 3, "draws": 3, "samples": 4, "steps_times": 8},
    tune={"attention": [True, False], "width": [32, 64, 128], "gp": [0.0, 0.25, 0.5], "lr": (1e-4, 5e-3, "log")},
    tried={"width": [8, 16]},
    claims=("imagined-points-raise-the-likelihood",),
)

Task = Callable[[], tuple[Context, Tensor, Tensor]]
"""A batch: contexts, and target places (B, m, inputs) and values (B, m, outputs)."""


def fit_tasks(
    model: NeuralProcess, task: Task, steps: int, draws: int, lr: float, generator: torch.Generator
) -> NeuralProcess:
    """Train any process on batches of tasks by Adam, in place; left in evaluation mode.

    Args:
        model: see `techniques.learner.martingale_posterior_np.neural_process`.
        task: draws a batch.
        steps: updates.
        draws: functions a task and step, K.
        lr: highest rate.
        generator: of the functions' noise, redrawn every step.

    Raises:
        ValueError: a loss that stopped being finite.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        loss = model.loss(*task(), draws, generator)
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss stopped being finite at step {step} with rate {lr}; use a lower one")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return model.eval()


class Columns:
    """Rows of a table as standardised numbers, codes as indicators.

    Args:
        x: training rows.
        spec: of a table.
    """

    def __init__(self, x: Tensor, spec: Spec) -> None:
        self.spec = spec
        flat = self._flat(x)
        self.kept = varying(flat)
        self.mean, self.scale = flat.mean(dim=0), torch.where(self.kept, flat.std(dim=0), torch.ones_like(flat[0]))
        if not bool(self.kept.any()):
            raise ValueError("no column varies over the training rows; there is nothing to learn from")

    def _flat(self, x: Tensor) -> Tensor:
        numeric = self.spec.numeric
        codes = [F.one_hot(x[:, numeric + i].long(), k) for i, k in enumerate(self.spec.cardinalities)]
        return torch.cat([x[:, :numeric], *codes], dim=1).float()

    def __call__(self, x: Tensor) -> Tensor:
        """(n, columns) -> (n, d), at most 5 in size, so that a far row asks for nothing absurd."""
        return ((self._flat(x) - self.mean) / self.scale)[:, self.kept].clamp(-5, 5)


def process_values(x: Tensor, outputs: int, generator: torch.Generator) -> Tensor:
    """Draws of Gaussian processes at x (B, n, d): (B, n, outputs); lengths of 0.5 to 2 median distances, one a task, noise
    from 0.05 to 0.5."""
    distance = torch.cdist(x.double(), x.double())
    median = distance.flatten(1).median(dim=1).values.clamp_min(1e-3)
    length = median * (0.5 + 1.5 * torch.rand(len(x), generator=generator))
    noise = 0.05 + 0.45 * torch.rand(len(x), 1, 1, generator=generator)
    kernel = (-0.5 * (distance / length[:, None, None]).square()).exp()
    root = torch.linalg.cholesky(kernel + (noise.double().square() + 1e-6) * torch.eye(x.shape[1], dtype=torch.float64))
    return (root @ torch.randn(len(x), x.shape[1], outputs, generator=generator, dtype=torch.float64)).float()


class ProcessPredictor:
    """Functions of one context at new rows.

    Args:
        model: the trained process.
        columns: rows -> its inputs.
        given: the context, one task.
        noise: of the functions, (S, 1, N', width), fixed, so that all targets share them.
        passes: examples seen.
    """

    def __init__(
        self, model: MartingaleProcess, columns: Columns, given: Context, noise: Tensor, passes: float
    ) -> None:
        self.model, self.columns, self.given, self.draws, self.passes = model, columns, given, noise, passes
        self.told: dict[str, float] = {}

    @torch.no_grad()
    def _functions(self, part: Part) -> tuple[Tensor, Tensor]:
        unused = torch.Generator()
        found = [
            self.model.functions(self.given, self.columns(x)[None], len(self.draws), unused, self.draws)
            for x in part.x.split(256)
        ]
        return torch.cat([f.mean[:, 0] for f in found], dim=1), torch.cat([f.scale[:, 0] for f in found], dim=1)

    def samples(self, part: Part) -> Tensor:
        """Means of every function, (S, n, outputs)."""
        return self._functions(part)[0]

    def noise(self, part: Part) -> Tensor:
        """Standard deviation of an observation by every function, (S, n, outputs)."""
        return self._functions(part)[1]

    def predict(self, part: Part) -> Tensor:
        """Mean of `samples`."""
        return self.samples(part).mean(dim=0)

    def report(self) -> dict[str, float]:
        """Named numbers."""
        return self.told


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    attention: bool = True,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    points: int = 10,
    in_data: bool = False,
    draws: int = 5,
    samples: int = 50,
    tasks: int = 4,
    gp: float = 0.25,
    most: int = 512,
    lr: float = 2e-3,
    steps_times: int = 1,
) -> ProcessPredictor:
    """Train on episodes from data.train and condition on its rows.

    Args:
        data: one split of a table with real targets.
        budget: its steps; a step has `tasks` episodes of up to batch_size context rows and all rows of it as targets.
        generator: of all draws.
        attention: over the context, else its mean.
        width, depth, heads: of the network; heads divide the width.
        points: imagined points a function, >= 1. in_data: as (x', y') instead of representations.
        draws, samples: functions a step, and at prediction, >= 1.
        tasks: episodes a step, >= 1.
        gp: share of episodes whose values are draws of a Gaussian process, in [0, 1].
        most: context rows at prediction; of more training rows a random part is taken.
        lr: highest rate.
        steps_times: the budget is multiplied by it.

    Raises:
        ValueError: a setting outside its range, other data than such a table, fewer than 4 training rows.

    Example:
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> part = Part(x, x.sin(), torch.arange(40))
        >>> data = Data(Spec("table", "reals", (1,), 1, numeric=1), part, part, part)
        >>> found = fit(data, Budget(20, 20, 2), torch.Generator().manual_seed(0), width=16, samples=6)
        >>> tuple(found.samples(part).shape)
        (6, 40, 1)
    """
    spec = data.spec
    if spec.modality != "table" or spec.task != "reals":
        raise ValueError(f"{spec.task} of a {spec.modality}; contexts are rows of tables with real targets")
    counts = {"width": width, "depth": depth, "heads": heads, "points": points, "draws": draws, "samples": samples}
    for name, value in (counts | {"tasks": tasks, "most": most, "steps_times": steps_times}).items():
        if value < 1:
            raise ValueError(f"{name} is {value}; use 1 or more")
    if not 0 <= gp <= 1 or not 0 < lr < 1:
        raise ValueError(f"gp is {gp} and lr {lr}; use [0, 1] and (0, 1)")
    if len(data.train) < 4:
        raise ValueError(f"there are {len(data.train)} training rows; episodes need 4 or more")
    columns = Columns(data.train.x, spec)
    x = columns(data.train.x)
    y = real_targets(x[:, :1].expand(-1, spec.outputs), data.train.y).float()
    rows, steps = len(x), steps_times * budget.steps
    size = min(2 * budget.batch_size, rows)

    def episode() -> tuple[Context, Tensor, Tensor]:
        index = torch.stack([torch.randperm(rows, generator=generator)[:size] for _ in range(tasks)])
        places, values = x[index], y[index]
        if gp:
            drawn = torch.rand(tasks, 1, 1, generator=generator) < gp
            values = torch.where(drawn, process_values(places, spec.outputs, generator), values)
        n = torch.randint(1, size, (tasks, 1), generator=generator)
        return Context(places, values, torch.arange(size) < n), places, values

    with own_draws(generator):  # initial weights
        model = MartingaleProcess(
            x.shape[1], spec.outputs, attention=attention, width=width, depth=depth, heads=heads, points=points,
            in_data=in_data,
        )  # fmt: skip
    fit_tasks(model, episode, steps, draws, lr, generator)
    chosen = torch.randperm(rows, generator=generator)[:most]
    given = context(x[chosen][None], y[chosen][None])
    passes = float(steps * tasks * size)
    found = ProcessPredictor(model, columns, given, model.noise(1, samples, generator), passes)
    found.told = {"context-rows": float(len(chosen)), "spread": float(found.samples(data.valid).std(dim=0).mean())}
    return found
