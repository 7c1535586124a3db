"""Fast and slow learning: a memory network whose controllers learn at every step from gradients that are predicted.

Paper     Fernando, Denman, Sridharan and Fookes 2020, "Fast & Slow Learning: Incorporating Synthetic Gradients in Neural
          Memory Controllers", arXiv:2011.05438
Computes  memory M (slots, width): q = read LSTM(e(x)), a = softmax(M q), m = a M, c = compose MLP([q, m]), h = write LSTM(c),
          M <- M (1 - a 1^T) + a h^T, output = head([c, m]). A feedback net S_u predicts dL/du for u in {q, c, h} from u and the
          label; fast: each controller takes theta <- theta - rate (du / dtheta)^T S_u at once; slow: encoder, head and first
          memory follow the true loss, S_u the squared distance to the true dL/du, or to the next step's predicted ones, brought
          back one step, and what the memory hands on
Shapes    x (n, t, features), labels (n, t) or (n,) -> logits (n, t, classes)
Departs   1. the equations are a reconstruction: the paper's text was not at hand
          2. u of an LSTM is its output and its cell, without which predicted gradients could never add up to the true ones
          3. predicted gradients are clipped to the norm of 1 a row, or a wrong S in early steps drives the controllers off
          4. series longer than `longest` steps are averaged over stretches
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tensors.draws import own_draws
from probatum.spec import Budget, Data, Part, Spec
from probatum.techniques.learner.fast_slow_memory.memory_network import (
    Feedback,
    MemoryNet,
    State,
    check_sequence,
)

CARD = Card(
    paper="arXiv:2011.05438",
    title="Fast & Slow Learning: Incorporating Synthetic Gradients in Neural Memory Controllers",
    entry="fit",
    number=87,
    tags=("memory", "synthetic gradients", "lifelong", "few-shot"),
    modalities=("series", "text"),
    tasks=("classes",),
    tiny={"slots": 4, "rate": 3e-2, "longest": 16},
    tune={"rate": (1e-3, 3e-2, "log"), "fast_rate": (1e-3, 1.0, "log"), "slots": [8, 16, 32]},
    tried={"slots": [4, 8]},
    claims=("fast-recall",),
)

CONTROLLERS = ("read", "compose", "write")
TARGETS = ("true", "bootstrapped")

Predicted = Callable[[str, Tensor, int], Tensor]
"""(controller, its output u, step) -> the gradient that its update is made from."""


def controllers_of(net: MemoryNet) -> dict[str, dict[str, Tensor]]:
    """The controllers' weights as tensors of their own, by controller; frozen ones take no gradients."""
    return {
        name: {
            key: value.detach().clone().requires_grad_(value.requires_grad)
            for key, value in getattr(net, name).named_parameters()
        }
        for name in CONTROLLERS
    }


class Episode(NamedTuple):
    """A pass with fast updates: logits (n, t, classes), each step's outputs u, and the controllers' weights at its end.

    `starts` holds the state and the controllers' weights with which each step began.
    """

    logits: Tensor
    outputs: list[dict[str, Tensor]]
    weights: dict[str, dict[str, Tensor]]
    starts: list[tuple[State, dict[str, dict[str, Tensor]]]]


def run_episode(
    net: MemoryNet, x: Tensor, predicted: Predicted, fast_rate: float, *, one_step: bool = False
) -> Episode:
    """Pass a batch of sequences while the controllers learn at every step.

    Args:
        net: gives the first weights; it is not changed.
        x: (n, t, features).
        predicted: where the gradients come from; they are divided by n.
        fast_rate: of the fast updates.
        one_step: cut the graph between steps, as bootstrapped targets want it.
    """
    check_sequence(x)
    fast, state = controllers_of(net), net.begin(len(x))
    logits, outputs, starts = [], [], []
    for t in range(x.shape[1]):
        if one_step and t:
            state = State(*(part.detach().requires_grad_() for part in state))
        done = net.step(x[:, t], state, fast, _in_graph)
        logits.append(done.logits)
        outputs.append(done.outputs)
        starts.append((state, fast))
        fast = fast_update(done.outputs, fast, lambda name, u, t=t: predicted(name, u, t), fast_rate)
        state = done.state
    return Episode(torch.stack(logits, dim=1), outputs, fast, starts)


def fast_update(
    outputs: Mapping[str, Tensor],
    fast: Mapping[str, dict[str, Tensor]],
    predicted: Callable[[str, Tensor], Tensor],
    fast_rate: float,
) -> dict[str, dict[str, Tensor]]:
    """theta - rate (du / dtheta)^T predicted / n for each controller, its inputs held fixed; frozen weights stay.

    Args:
        outputs: u (n, size) of each controller in one step that `fast`, used in that step alone, has taken.
        fast: the controllers' weights.
        predicted: gradient of a controller's u.
        fast_rate: of the update.
    """
    found = {}
    for name in CONTROLLERS:
        u, own = outputs[name], fast[name]
        signal = predicted(name, u.detach())
        free = {key: value for key, value in own.items() if value.requires_grad}
        gradients = torch.autograd.grad(u, list(free.values()), signal / len(u), retain_graph=True) if free else ()
        found[name] = dict(own) | {
            key: (value.detach() - fast_rate * g).requires_grad_()
            for (key, value), g in zip(free.items(), gradients, strict=True)
        }
    return found


def _in_graph(_name: str, u: Tensor) -> Tensor:
    """u, of which gradients can be asked for where everything before it is frozen, too."""
    return u if u.requires_grad else u.detach().requires_grad_()


def true_gradients(loss: Tensor, outputs: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """dL/du of every step and controller, through all later steps; the graph is kept."""
    flat = [(t, name, step[name]) for t, step in enumerate(outputs) for name in CONTROLLERS]
    found = torch.autograd.grad(loss, [u for _, _, u in flat], retain_graph=True, allow_unused=True)
    result: list[dict[str, Tensor]] = [{} for _ in outputs]
    for (t, name, u), g in zip(flat, found, strict=True):
        result[t][name] = torch.zeros_like(u) if g is None else g.detach()
    return result


def bootstrapped_gradients(
    net: MemoryNet, x: Tensor, episode: Episode, losses: Callable[[Tensor, int], Tensor], predicted: Predicted
) -> list[dict[str, Tensor]]:
    """dL/du of every step and controller where dL/du of the next step is what is predicted there.

    What a step leaves in the memory acts on all later steps by itself, so that it is followed to the end, through the
    memories alone. With true gradients in place of predicted ones these are the true gradients.

    Args:
        net: the network.
        x: (n, t, features).
        episode: a run on them.
        losses: (logits (n, classes), step) -> that step's share of the loss.
        predicted: gradients of the controllers' outputs.
    """
    result: list[dict[str, Tensor]] = []
    later: tuple[Tensor | None, ...] = (None, None, None)
    for t in reversed(range(len(episode.outputs))):
        state, fast = episode.starts[t]
        state = State(*(part.detach().requires_grad_() for part in state))
        before: dict[str, Tensor] = {}
        after: dict[str, Tensor] = {}

        def cut(name: str, u: Tensor, before: dict[str, Tensor] = before, after: dict[str, Tensor] = after) -> Tensor:
            before[name] = u
            after[name] = u.detach().requires_grad_()
            return after[name]

        done = net.step(x[:, t].detach(), state, fast, cut)
        loss, memory = losses(done.logits, t), done.state.memory
        wanted = {name: torch.zeros_like(u) for name, u in after.items()}
        for name, seen in (("read", later[1]), ("write", later[2])):
            if seen is not None:
                wanted[name] = wanted[name] + seen
        for name in reversed(CONTROLLERS):  # what a later one takes in counts as that of an earlier one
            ends = [(loss, None), (memory, later[0])] + [(before[n], wanted[n]) for n in after if n != name]
            wanted[name] = wanted[name] + _back(ends, after[name])
        told = {name: predicted(name, after[name].detach(), t).detach() for name in CONTROLLERS}
        later = tuple(
            _back([(loss, None), (memory, later[0])] + [(before[n], told[n]) for n in CONTROLLERS], part)
            for part in state
        )
        result.append(wanted)
    return result[::-1]


def _back(ends: Sequence[tuple[Tensor, Tensor | None]], at: Tensor) -> Tensor:
    """Sum over ends of the gradient at `at`, each weighed by what is given beside it; None = 1 for a number, else 0."""
    found = torch.zeros_like(at)
    for end, weight in ends:
        if weight is not None or not end.ndim:
            (slope,) = torch.autograd.grad(end, at, weight, retain_graph=True, allow_unused=True)
            found = found if slope is None else found + slope
    return found


class FastSlow:
    """Trains one memory network or several that share a feedback net.

    Args:
        net: the memory network.
        feedback: S; give the same one to several trainers to share what it knows.
        rate: Adam's, of encoder, head, first memory and S.
        fast_rate: of the controllers' fast updates; 0 leaves them as they are.
        targets: "true" or "bootstrapped".

    Raises:
        ValueError: a setting outside its range; a network whose slow weights are all frozen.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = MemoryNet(3, 2, width=8, slots=4)
        >>> trainer = FastSlow(net, Feedback(2, 8))
        >>> x, y = torch.randn(4, 5, 3), torch.zeros(4, 5, dtype=torch.int64)
        >>> first, last = trainer.update(x, y), [trainer.update(x, y) for _ in range(10)][-1]
        >>> last < first
        True
    """

    def __init__(
        self, net: MemoryNet, feedback: Feedback, rate: float = 3e-3, fast_rate: float = 0.1, targets: str = "true"
    ) -> None:
        if not rate > 0 or not fast_rate >= 0:
            raise ValueError(f"rate is {rate} and fast_rate {fast_rate}; need rate > 0 and fast_rate >= 0")
        if targets not in TARGETS:
            raise ValueError(f"targets is {targets!r}; use one of {', '.join(TARGETS)}")
        self.net, self.feedback, self.fast_rate, self.targets = net, feedback, fast_rate, targets
        slow = [*net.encoder.parameters(), *net.head.parameters(), net.first]
        self.slow = [value for value in slow if value.requires_grad]
        if not self.slow:
            raise ValueError(
                "encoder, head and first memory are all frozen; nothing is left that follows the true loss"
            )
        self.optimizer = torch.optim.Adam(self.slow, lr=rate)
        self.feedback_optimizer = torch.optim.Adam(feedback.parameters(), lr=rate)
        self._warned = False

    def update(self, x: Tensor, y: Tensor, counted: Tensor | None = None) -> float:
        """One episode: x (n, t, features), y (n, t) or (n,) labels, counted (n, t) bool = steps whose loss counts; the loss."""
        y = y[:, None].expand(-1, x.shape[1]) if y.ndim == 1 and x.ndim == 3 else y
        check_labels(self.net, y)
        if not self._warned:
            self._warned = True
            warn_of_few_slots(self.net.slots, most_items(y))
        kind = self.net.first.dtype
        weight = torch.ones_like(y, dtype=kind) if counted is None else counted.to(kind)

        def predicted(name: str, u: Tensor, t: int) -> Tensor:
            with torch.no_grad():
                return clipped(self.feedback(name, u, y[:, t]))

        one_step = self.targets == "bootstrapped"
        episode = run_episode(self.net, x, predicted, self.fast_rate, one_step=one_step)
        terms = F.cross_entropy(episode.logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape) * weight
        counts = weight.sum().clamp_min(1)
        per_row = terms.sum(dim=0) / counts * len(y)  # times n: gradients u of single rows are of size 1
        if one_step:

            def own(logits: Tensor, t: int) -> Tensor:
                return (F.cross_entropy(logits, y[:, t], reduction="none") * weight[:, t]).sum() / counts * len(y)

            wanted = bootstrapped_gradients(self.net, x, episode, own, predicted)
        else:
            wanted = true_gradients(per_row.sum(), episode.outputs)
        loss = per_row.sum() / len(y)
        self.optimizer.zero_grad()
        for p, g in zip(self.slow, torch.autograd.grad(loss, self.slow, allow_unused=True), strict=True):
            p.grad = g
        self.optimizer.step()
        gaps = [
            (self.feedback(n, step[n].detach(), y[:, t]) - wanted[t][n]).square().sum(dim=1).mean()
            for t, step in enumerate(episode.outputs)
            for n in CONTROLLERS
        ]
        self.feedback_optimizer.zero_grad()
        torch.stack(gaps).mean().backward()
        self.feedback_optimizer.step()
        with torch.no_grad():
            for name, values in episode.weights.items():
                for key, value in getattr(self.net, name).named_parameters():
                    value.copy_(values[key])
        return float(loss.detach())


def clipped(signal: Tensor) -> Tensor:
    """Rows (n, size) with norms of at most 1."""
    return signal / signal.norm(dim=1, keepdim=True).clamp_min(1.0)


def check_labels(net: MemoryNet, y: Tensor) -> None:
    """ValueError for a label that is none of the network's classes."""
    low, high, classes = int(y.min()), int(y.max()), net.head.out_features
    if low < 0 or high >= classes:
        raise ValueError(f"labels reach from {low} to {high}; they must lie in 0 .. {classes - 1}")


def most_items(y: Tensor) -> int:
    """The largest number of different labels in one of the episodes (n, t)."""
    return int((y.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1).max()) + 1


def warn_of_few_slots(slots: int, items: int) -> None:
    """Warn where an episode has more distinct items than the memory has rows."""
    if slots < items:
        warnings.warn(
            f"the memory has {slots} slots for {items} distinct items an episode; some will be overwritten",
            stacklevel=2,
        )


class FastSlowPredictor(nn.Module):
    """Reads encoded rows of series or text as sequences, by a memory network trained for it."""

    def __init__(self, spec: Spec, width: int, slots: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.tokens = nn.Embedding(spec.vocabulary, width, padding_idx=0) if spec.modality == "text" else None
        self.net = MemoryNet(width if self.tokens is not None else spec.shape[0], spec.outputs, width, slots)

    def sequence(self, x: Tensor) -> Tensor:
        """Encoded rows -> (n, at most `longest`, features)."""
        found = self.tokens(x).transpose(1, 2) if self.tokens is not None else x
        if found.shape[2] > self.longest:
            found = F.adaptive_avg_pool1d(found, self.longest)
        return found.transpose(1, 2)

    @torch.no_grad()
    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes), the mean of those of the second half of the steps."""
        return torch.cat([self.late(self.net(self.sequence(x))).softmax(dim=2).mean(dim=1) for x in part.x.split(1024)])

    @staticmethod
    def late(found: Tensor) -> Tensor:
        """The second half of (n, t, ...) in time, which has seen enough to tell."""
        return found[:, found.shape[1] // 2 :]


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    width: int = 32,
    slots: int = 16,
    rate: float = 3e-3,
    fast_rate: float = 0.1,
    targets: str = "true",
    longest: int = 32,
) -> FastSlowPredictor:
    """Train on data.train for budget.steps batches; the label is asked for in the second half of the steps.

    Args:
        data: one split of series or text, task classes.
        budget: updates and rows of each.
        generator: for weights and batches.
        width, slots: of the memory network.
        rate, fast_rate, targets: see `FastSlow`.
        longest: steps a row is averaged down to, at least 2.

    Raises:
        ValueError: a setting outside its range; data without sequences or without classes.
    """
    spec = data.spec
    if spec.modality not in ("series", "text") or spec.task != "classes":
        raise ValueError(
            f"the data are {spec.modality} of task {spec.task}; a memory reads sequences, series or text, of classes"
        )
    if longest < 2:
        raise ValueError(f"longest is {longest}; give 2 steps or more")
    with own_draws(generator):
        model = FastSlowPredictor(spec, width, slots, longest)
        trainer = FastSlow(model.net, Feedback(spec.outputs, width), rate, fast_rate, targets)
    words = None if model.tokens is None else torch.optim.Adam(model.tokens.parameters(), lr=rate)
    x, y = data.train.x, data.train.y
    for _ in range(budget.steps):
        index = torch.randint(len(y), (min(budget.batch_size, len(y)),), generator=generator)
        rows = model.sequence(x[index])
        labels = y[index][:, None].expand(-1, rows.shape[1])
        counted = torch.zeros_like(labels, dtype=torch.bool)
        model.late(counted).fill_(True)
        if words is not None:  # embeddings follow the true loss of the present weights, as the encoder does
            words.zero_grad()
            F.cross_entropy(model.late(model.net(rows)).flatten(0, 1), model.late(labels).flatten()).backward()
            words.step()
            model.net.zero_grad()
        trainer.update(rows.detach(), labels, counted)
    return model.eval()
