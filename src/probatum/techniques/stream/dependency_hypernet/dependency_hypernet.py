"""Dependency-preserving hypernetwork: an LSTM makes a task's weights chunk after chunk and is held to those of old tasks.

Paper     Chandra, Varshney, Srijith and Gupta 2023, "Continual Learning with Dependency Preserving Hypernetworks",
          WACV 2023, arXiv:2209.07712; von Oswald et al. 2020, arXiv:1906.00695, for the regulariser and the chunked MLP
Computes  s_l = LSTM([e_t; d_l], s_(l-1)), chunk l of task t's weights = O s_l; trained by the task's cross-entropy plus
          beta mean_t ||theta_t* - theta_t||^2 + beta_hidden mean_t ||s_t* - s_t||^2 over old tasks t, starred as they were
          before the task, the others after a look-ahead step of the task's own gradient
Shapes    observe(stage, budget): x (n, ...), y (n,) int64; predict(x, task) -> logits (n, num_classes) of the task's
          network, -inf for other classes; predict(x): each row by the network that is surest of it
Departs   1. the paper's regulariser for recurrent networks is taken to be that of the hidden states; its rule of growth is
             reconstructed: units are added before a task if the last one's loss or the old weights' drift stayed too high
          2. values are scaled by what a fresh layer's weights would be; the paper draws them otherwise
          3. statistics of batch norms are kept for each task
          4. networks of half precision are given weights that are made, held and kept in float32
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.continual.stages import (
    check_stage,
    class_mask,
    evaluate,
    masked,
    module_bytes,
    seen_loss,
    tensor_bytes,
    train_stage,
)
from probatum.numerics.hypernetworks.hypernet import Layout, call
from probatum.numerics.tensors.precision import widened
from probatum.spec import Batch, Budget, Optimisation, Stage
from probatum.techniques.stream.dependency_hypernet.recurrent import (
    Chunks,
    IndependentChunks,
    RecurrentChunks,
    independent_size,
    recurrent_size,
)

CARD = Card(
    paper="arXiv:2209.07712",
    title="Continual Learning with Dependency Preserving Hypernetworks",
    entry="DependencyHypernet",
    number=107,
    tags=("continual", "lifelong", "hypernetworks", "regularisation"),
    tasks=("classes",),
    tiny={"hidden": 8, "task_size": 4, "chunk_size": 4},
    tune={"beta": (1e-3, 1.0, "log"), "hidden": [16, 32, 64]},
    claims=("dependency-helps",),
)

CELLS = ("lstm", "mlp")
CHUNKS = range(16, 65)
"""How many chunks there may be where their size is not given."""
FAR = 20.0
"""What is taken from the log-probabilities of tasks that a row is not taken to belong to."""


def fitting_chunk(numel: int, allowed: int, size: Callable[[int], int]) -> int:
    """Values made at one time: the most that keep the hypernetwork, of size(chunk) numbers, within those allowed.

    Where none does, the chunk of the smallest hypernetwork.
    """
    choices = [math.ceil(numel / count) for count in CHUNKS]
    fitting = [chunk for chunk in choices if size(chunk) <= allowed]
    return fitting[0] if fitting else min(choices, key=size)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's softmax (n,) in nats: logits (n, classes), -inf for classes that do not count."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs.masked_fill(logs == -math.inf, 0.0)).sum(dim=1)


class Emitter(nn.Module):
    """A network whose weights a hypernetwork makes: x -> outputs with the weights of the task at hand.

    Attributes:
        chunks: the hypernetwork.
        tasks: embeddings of the tasks so far.
        now: the task at hand.
        others: old tasks whose weights are made in the same pass, for the regulariser.
        made: their weights and states in the last pass.
    """

    def __init__(self, target: nn.Module, layout: Layout, chunks: Chunks) -> None:
        super().__init__()
        self._target = (target,)  # its own weights are no parameters of this module
        self.layout, self.chunks = layout, chunks
        self.tasks = nn.ParameterList()
        self.statistics: list[dict[str, Tensor]] = []
        self.now, self.others = 0, torch.zeros(0, dtype=torch.int64)
        self.made: tuple[Tensor, Tensor] | None = None
        self.first = {name: value.detach().clone() for name, value in target.named_buffers()}
        self.kinds = {name: value.dtype for name, value in target.named_parameters()}

    @property
    def target(self) -> nn.Module:
        """The network that is given weights."""
        return self._target[0]

    def train(self, mode: bool = True) -> Emitter:
        """The mode of the target too."""
        self.target.train(mode)
        return super().train(mode)

    def add_task(self, size: int, generator: torch.Generator) -> None:
        """Another embedding, N(0, 1), and fresh statistics."""
        self.tasks.append(nn.Parameter(torch.randn(size, generator=generator).to(self.chunks.bias)))
        self.statistics.append({name: value.clone() for name, value in self.first.items()})

    def drop_tasks(self, count: int) -> None:
        """Leave `count` tasks, the first ones."""
        self.tasks, self.statistics = nn.ParameterList(list(self.tasks)[:count]), self.statistics[:count]

    def run(self, flat: Tensor, task: int, x: Tensor) -> Tensor:
        """The target's outputs with weights of one vector (numel,) and a task's statistics."""
        weights = {name: value.to(self.kinds[name]) for name, value in self.layout.unflatten(flat).items()}
        return call(self.target, {**weights, **self.statistics[task]}, x)

    def embeddings(self, tasks: list[int]) -> Tensor:
        """(len(tasks), task_size)."""
        return torch.stack([self.tasks[t] for t in tasks])

    def forward(self, x: Tensor) -> Tensor:
        values, states = self.chunks(self.embeddings([self.now, *self.others.tolist()]))
        self.made = (values[1:], states[1:]) if len(self.others) else None
        return self.run(values[0], self.now, x)


class DependencyHypernet:
    """Task after task, one hypernetwork for the weights of all, which keeps no rows.

    Args:
        num_classes: classes in all.
        model_factory: a network with `num_classes` outputs; its form alone is used, and what its buffers hold at first.
        generator: draws of the hypernetwork, of embeddings, and of old tasks where these are sampled.
        order: batch orders.
        memory: bytes beyond those of one network, which decide the size of a chunk where it is not given; None = none.
        optimisation: rate, decay, schedule of every task.
        cell: lstm, or mlp: every chunk by itself from an MLP of two layers, no smaller than the LSTM.
        task_size, chunk_size: numbers of the embeddings of tasks and chunks, at least 1.
        hidden: units of the LSTM at first, at least 1.
        chunk: values made at one time; None = as many as the bytes allow, in 16 to 64 chunks.
        beta: of the weights' regulariser, at least 0; it is a sum over all weights.
        beta_hidden: of the hidden states' regulariser, at least 0.
        lookahead: length of the look-ahead step on the task's gradient, at least 0; 0 = the weights of now.
        sampled: old tasks that are regularised in a step, drawn anew; 0 = all.
        train_old: whether embeddings of old tasks go on learning.
        growth: units added before a task where the last one went badly; 0 = none.
        grow_loss: mean loss of a task's last quarter above which it went badly, above 0.
        grow_drift: mean squared change of old tasks' weights above which it went badly, above 0.
        inference: how a row's task is found where it is not told: entropy (the lowest), or off.

    Raises:
        ValueError: settings out of range. KeyError: prediction for a task not seen, or for none with inference off.

    Example:
        >>> draws, order = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        >>> x = torch.randn(80, 6, generator=draws)
        >>> y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        >>> network = lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> learner = DependencyHypernet(4, network, draws, order, hidden=16, chunk=32)
        >>> for number, classes in enumerate([(0, 1), (2, 3)]):
        ...     rows = torch.isin(y, torch.tensor(classes))
        ...     learner.observe(Stage(number, classes, x[rows], y[rows]), Budget(50, 16, 3))
        >>> learner.predict(x, task=1).isfinite().sum(dim=1).unique()
        tensor([2])
    """

    needs_stages = True

    def __init__(
        self,
        num_classes: int,
        model_factory: Callable[[], nn.Module],
        generator: torch.Generator,
        order: torch.Generator,
        memory: int | None = None,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # a frozen value
        *,
        cell: str = "lstm",
        task_size: int = 32,
        chunk_size: int = 32,
        hidden: int = 32,
        chunk: int | None = None,
        beta: float = 0.01,
        beta_hidden: float = 0.0,
        lookahead: float = 0.0,
        sampled: int = 0,
        train_old: bool = False,
        growth: int = 0,
        grow_loss: float = 0.5,
        grow_drift: float = 0.01,
        inference: str = "entropy",
    ) -> None:
        if cell not in CELLS or inference not in ("entropy", "off"):
            raise ValueError(f"cell is {cell!r} and inference {inference!r}; use {' or '.join(CELLS)}, entropy or off")
        for name, value in (("task_size", task_size), ("chunk_size", chunk_size), ("hidden", hidden), ("chunk", chunk)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        least = {"beta": beta, "beta_hidden": beta_hidden, "lookahead": lookahead, "sampled": sampled, "growth": growth}
        for name, number in least.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} is {number}; it must be at least 0")
        if not grow_loss > 0 or not grow_drift > 0:
            raise ValueError(f"grow_loss is {grow_loss} and grow_drift {grow_drift}; both must be above 0")
        if growth and cell != "lstm":
            raise ValueError(f"growth is {growth} with cell {cell!r}; only cell='lstm' grows")
        self.num_classes, self.generator, self.order = num_classes, generator, order
        self.optimisation, self.task_size, self.inference = optimisation, task_size, inference
        self.beta, self.beta_hidden, self.lookahead = beta, beta_hidden, lookahead
        self.sampled, self.train_old = sampled, train_old
        self.growth, self.grow_loss, self.grow_drift = growth, grow_loss, grow_drift
        self.emitter = self._build(model_factory(), memory or 0, cell, chunk_size, hidden, chunk)
        self.stages: list[tuple[int, ...]] = []
        self.passes = 0.0
        self.badly = False
        self.chosen = torch.zeros(0, dtype=torch.int64)

    @property
    def network(self) -> nn.Module:
        """The hypernetwork and the tasks' embeddings."""
        return self.emitter

    def _build(
        self, target: nn.Module, memory: int, cell: str, chunk_size: int, hidden: int, chunk: int | None
    ) -> Emitter:
        layout = Layout.of(target)
        numel, task_size = layout.numel, self.task_size
        number = widened(next(target.parameters())).element_size()  # bytes of one of the hypernetwork
        statistics = -(-tensor_bytes(target.buffers()) // number)

        def size(chunk: int) -> int:
            each = task_size * self.num_classes + statistics * (
                self.num_classes - 1
            )  # as many tasks as classes at most
            return recurrent_size(numel, task_size, hidden, chunk, chunk_size) + each

        chunk = chunk or fitting_chunk(numel, (tensor_bytes(target.parameters()) + memory) // number, size)
        values, embed = (layout.centres(), layout.deviations(), task_size), (chunk, chunk_size, self.generator)
        if cell == "lstm":
            chunks: Chunks = RecurrentChunks(*values, hidden, *embed, grows=self.growth > 0)
        else:
            wanted = recurrent_size(numel, task_size, hidden, chunk, chunk_size)
            width = hidden
            while independent_size(numel, task_size, width, chunk, chunk_size) < wanted:
                width += 1
            chunks = IndependentChunks(*values, (width, width), *embed)
        for parameter in target.parameters():
            parameter.requires_grad_(False)
        return Emitter(target, layout, chunks.to(widened(next(target.parameters()))))

    def observe(self, stage: Stage, budget: Budget) -> None:
        """Learn one task: its weights from the hypernetwork, which is held to what it made for the old ones."""
        stage = check_stage(stage, self.num_classes)
        if not stage.classes:
            raise ValueError(f"stage {stage.number} names no class; a task needs at least one")
        emitter, old = self.emitter, len(self.stages)
        if self.badly and self.growth and isinstance(emitter.chunks, RecurrentChunks):
            emitter.chunks.grow(self.growth, self.generator)
            self.badly = False
        emitter.add_task(self.task_size, self.generator)
        try:
            self._learn(stage, budget)
        except BaseException:  # the stage can be shown again
            emitter.drop_tasks(old)
            emitter.made = None
            raise

    def _learn(self, stage: Stage, budget: Budget) -> None:
        emitter, old, classes = self.emitter, len(self.stages), stage.classes
        emitter.now = old
        for number, embedding in enumerate(emitter.tasks):
            embedding.requires_grad_(self.train_old or number == old)
        with torch.no_grad():
            held = emitter.chunks(emitter.embeddings(list(range(old)))) if old else None
        plain = seen_loss(emitter, class_mask(classes, self.num_classes, stage.y.device))
        late: list[Tensor] = []

        def loss(batch: Batch, output: Any) -> Tensor:
            value = plain(batch, output)
            late.append(value.detach())
            if held is not None and len(self.chosen):
                value = value + self.held_loss(held, value)
            self._choose(old)
            return value

        self._choose(old)
        self.passes += train_stage(emitter, stage.x, stage.y, budget, self.optimisation, self.order, loss)
        emitter.made = None
        self._choose(0)
        self.stages.append(tuple(classes))
        if self.growth:
            drift = self.drift(held[0]) if held is not None else 0.0
            end = torch.stack(late[-max(1, len(late) // 4) :])
            self.badly = float(end.mean()) > self.grow_loss or drift > self.grow_drift

    def held_loss(self, held: tuple[Tensor, Tensor], task_loss: Tensor) -> Tensor:
        """The regulariser of one step: distance of the old tasks' weights (tasks, numel) and states from those held."""
        emitter = self.emitter
        made = emitter.made
        if self.lookahead:
            weights = dict(emitter.chunks.named_parameters())
            slopes = torch.autograd.grad(task_loss, list(weights.values()), retain_graph=True, allow_unused=True)
            ahead = {
                name: value - self.lookahead * (torch.zeros_like(value) if slope is None else slope.detach())
                for (name, value), slope in zip(weights.items(), slopes, strict=True)
            }
            made = call(emitter.chunks, ahead, emitter.embeddings(self.chosen.tolist()))
        if made is None:
            raise ValueError("no old task's weights were made; choose tasks to be held before the pass")
        total = task_loss.new_zeros(())
        for strength, now, before in zip((self.beta, self.beta_hidden), made, held, strict=True):
            if strength:
                total = total + strength * (now - before[self.chosen]).square().sum() / len(now)
        return total

    @torch.no_grad()
    def drift(self, held: Tensor) -> float:
        """Mean squared change of the old tasks' weights (tasks, numel) since they were held."""
        now = self.emitter.chunks(self.emitter.embeddings(list(range(len(held)))))[0]
        return float((now - held).square().mean())

    @torch.no_grad()
    def task_logits(self, x: Tensor, task: int) -> Tensor:
        """Logits (n, num_classes) of one task's network, -inf for classes that are not its own.

        Raises:
            KeyError: no such task.
        """
        if isinstance(task, bool) or not hasattr(task, "__index__") or not 0 <= operator.index(task) < len(self.stages):
            raise KeyError(f"task {task!r} is unknown; {len(self.stages)} task(s) have been seen, from 0")
        task = operator.index(task)
        emitter = self.emitter
        emitter.eval()
        flat = emitter.chunks(emitter.embeddings([task]))[0][0]
        found = evaluate(lambda part: emitter.run(flat, task, part), x)
        return masked(found, class_mask(self.stages[task], self.num_classes, found.device))

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits (n, num_classes): of the task told; else, for each row, log-probabilities of the task whose entropy is lowest,
        and those of the other tasks far below them."""
        if task is not None:
            return self.task_logits(x, task)
        if self.inference == "off":
            raise KeyError("the task is not told, and inference is off; tell it, or set inference='entropy'")
        if not self.stages:
            raise KeyError("no task has been seen yet; observe a stage first")
        each = torch.stack([self.task_logits(x, number) for number in range(len(self.stages))])  # (tasks, n, classes)
        chosen = torch.stack([entropy(one) for one in each]).argmin(dim=0)
        logs = each.log_softmax(dim=2)
        own = chosen == torch.arange(len(each), device=chosen.device)[:, None]
        return (logs - FAR * (~own)[..., None]).amax(dim=0)

    def stored_bytes(self) -> int:
        """What the hypernetwork, embeddings and statistics take beyond one network."""
        emitter = self.emitter
        scales = tensor_bytes([emitter.chunks.centres, emitter.chunks.deviations])  # told by the network's form
        kept = module_bytes(emitter) - scales + sum(tensor_bytes(one.values()) for one in emitter.statistics)
        plain = tensor_bytes(emitter.target.parameters()) + tensor_bytes(emitter.first.values())
        return max(0, kept - plain)

    def _choose(self, old: int) -> None:
        """Which old tasks the next step is held to; without look-ahead their weights are made in its own pass."""
        none = torch.zeros(0, dtype=torch.int64)
        if not old or not (self.beta or self.beta_hidden):
            self.chosen = none
        elif self.sampled and self.sampled < old:
            self.chosen = torch.randperm(old, generator=self.generator)[: self.sampled]
        else:
            self.chosen = torch.arange(old)
        self.emitter.others = none if self.lookahead else self.chosen
