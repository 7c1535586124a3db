"""Claims of fast and slow learning (arXiv:2011.05438): quicker recall than by back-propagation alone, and rare classes.

Both ways out get 1,500 updates. While they answer, the controllers of the fast one go on learning, episode by episode, from
the labels as they come, which is the point of predicted gradients; the other has no such way. Rates were chosen on the
validation digits of seed 1, out of two for the fast way out on each task by itself (`CHOSEN`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import interval, mean
from probatum.data.open import open_dataset
from probatum.spec import Data, Part, Spec
from probatum.techniques.learner.fast_slow_memory.fast_slow_memory import (
    FastSlow,
    Feedback,
    MemoryNet,
    clipped,
    run_episode,
)
from probatum.train.rng import generator_for, seeded

ITEMS, TIMES, BATCH, STEPS, EPISODES = 2, 3, 32, 1500, 200
WIDTH, SLOTS = 32, 8
CHOSEN = {
    ("recall", "plain"): (3e-3, 0.0),
    ("recall", "fast"): (3e-3, 0.03),
    ("rare", "plain"): (1e-2, 0.0),
    ("rare", "fast"): (1e-2, 0.3),
}
"""Rate of the slow way and of the fast updates."""
RARE, RARE_SHARE = 3, 0.02
NOTE = (
    "What is tried is a reconstruction. Trained through time the memory recalls after 1,500 updates (0.985 at the second "
    "presentation, validation rows of seed 1); with fast updates at rates 0.03 and 0.3 it reached 0.762 and 0.555. Of the rare "
    "class it found 0.216 through time and at best 0.081 with them. That predicted gradients lag behind controllers that move at "
    "every step is the likely cause; untested."
)


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes: x (n, t, features + items), labels y (n, t), how often each item was there before (n, t)."""

    x: Tensor
    y: Tensor
    before: Tensor


def episodes(part: Part, n: int, generator: torch.Generator) -> Episodes:
    """Each shows `ITEMS` digits of different classes `TIMES` times; labels are drawn anew and come one step late."""
    rows, length = part.x.flatten(1), ITEMS * TIMES
    counts = part.y.bincount(minlength=10)
    place = part.y.argsort(stable=True)  # rows class by class
    draw = partial(torch.rand, generator=generator)
    classes, labels = draw(n, 10).argsort(dim=1)[:, :ITEMS], draw(n, ITEMS).argsort(dim=1)
    items = place[(counts.cumsum(0) - counts)[classes] + (draw(n, ITEMS) * counts[classes]).long()]
    order = draw(n, length).argsort(dim=1) % ITEMS
    y = labels.gather(1, order)
    shown = F.one_hot(order, ITEMS)
    before = (shown.cumsum(dim=1) - shown).gather(2, order[:, :, None]).squeeze(2)
    told = F.pad(F.one_hot(y, ITEMS)[:, :-1], (0, 0, 1, 0)).float()
    return Episodes(torch.cat([rows[items.gather(1, order)], told], dim=2), y, before)


Update = Callable[[Tensor, Tensor], float]
Answer = Callable[[Tensor, Tensor], Tensor]


def trainer(
    kind: str, features: int, classes: int, seed: int, rate: float, fast_rate: float
) -> tuple[MemoryNet, Update, Answer]:
    """A memory network, what makes one update of it, "fast" or "plain" (Adam on everything, through time), and what answers."""
    with seeded(seed, "initial weights"):
        net, feedback = MemoryNet(features, classes, WIDTH, SLOTS), Feedback(classes, WIDTH)
    if kind == "fast":
        own = FastSlow(net, feedback, rate, fast_rate)

        def answer(x: Tensor, y: Tensor) -> Tensor:
            """Logits of each step, given before its label is told; the controllers start anew with every episode."""
            found = []
            for row, labels in zip(x, y, strict=True):
                signal = partial(_signal, feedback, labels[None])
                found.append(run_episode(net, row[None], signal, fast_rate).logits.detach())
            return torch.cat(found)

        return net, own.update, answer
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)

    def update(x: Tensor, y: Tensor) -> float:
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return net, update, lambda x, _y: net(x).detach()


def _signal(feedback: Feedback, labels: Tensor, name: str, u: Tensor, t: int) -> Tensor:
    with torch.no_grad():
        return clipped(feedback(name, u, labels[:, t]))


def recall(kind: str, data: Data, seed: int, rate: float, fast_rate: float, held: Part) -> list[float]:
    """Accuracy on held-out digits at the first, second, ... presentation after training on episodes."""
    _, update, answer = trainer(kind, 64 + ITEMS, ITEMS, seed, rate, fast_rate)
    draw = generator_for(seed, "episodes")
    for _ in range(STEPS):
        shown = episodes(data.train, BATCH, draw)
        update(shown.x, shown.y)
    asked = episodes(held, EPISODES, generator_for(seed, "held-out episodes"))
    right = answer(asked.x, asked.y).argmax(dim=2) == asked.y
    return [float(right[asked.before == k].float().mean()) for k in range(TIMES)]


def rare_data(seed: int) -> Data:
    """digits as sequences of four pairs of rows, one class cut to 2 % of the training rows."""
    data = open_dataset("digits").prepare(seed)
    spec = Spec("series", "classes", (8, 4), 10)

    def rows(part: Part) -> Part:
        return replace(part, x=part.x.squeeze(1).unflatten(1, (4, 2)).mean(dim=2).transpose(1, 2))

    train = rows(data.train)
    own = (train.y == RARE).nonzero().squeeze(1)
    others = (train.y != RARE).nonzero().squeeze(1)
    kept = torch.cat([others, own[: max(1, round(RARE_SHARE * len(others)))]])
    cut = Part(train.x[kept], train.y[kept], train.rows[kept])
    return replace(data, spec=spec, train=cut, valid=rows(data.valid), test=rows(data.test))


def rare_recall(kind: str, data: Data, seed: int, rate: float, fast_rate: float, held: Part) -> tuple[float, float]:
    """Recall of the rare class and accuracy; the label is asked for at every step and told by the last answer alone."""
    net, update, _ = trainer(kind, 8, 10, seed, rate, fast_rate)
    x, y, draw = data.train.x.transpose(1, 2), data.train.y, generator_for(seed, "order")
    for _ in range(STEPS):
        index = torch.randint(len(y), (BATCH,), generator=draw)
        update(x[index], y[index][:, None].expand(-1, x.shape[1]).contiguous())
    with torch.no_grad():
        right = net(held.x.transpose(1, 2))[:, -1].argmax(dim=1) == held.y
    return float(right[held.y == RARE].float().mean()), float(right.float().mean())


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data, rare = open_dataset("digits").prepare(seed), rare_data(seed)
        row: dict[str, float] = {"seed": float(seed)}
        for kind in ("plain", "fast"):
            for k, value in enumerate(recall(kind, data, seed, *CHOSEN["recall", kind], data.test)):
                row[f"{kind}_presentation_{k + 1}"] = value
            found = rare_recall(kind, rare, seed, *CHOSEN["rare", kind], rare.test)
            row[f"{kind}_rare_recall"], row[f"{kind}_accuracy"] = found
        rows.append(row)
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    second = interval([row["fast_presentation_2"] - row["plain_presentation_2"] for row in rows])
    rare_gain = interval([row["fast_rare_recall"] - row["plain_rare_recall"] for row in rows])
    measured |= {**second.told("second_gain"), **rare_gain.told("rare_gain"), "chance": 1 / ITEMS}
    learnt = interval([row["plain_presentation_2"] - 1 / ITEMS for row in rows])
    controls = {"the network trained through time recalls better than chance": learnt.low > 0.1}
    return Evidence(second.low > 0 and rare_gain.low > 0, measured, tuple(rows), NOTE, controls)


CLAIMS = (
    Claim(
        id="fast-recall",
        says="Controllers that learn at once from predicted gradients recall sooner and keep rare classes better.",
        threshold=(
            "90 % intervals of both gains over the same memory trained through time, at equal updates, are above 0: of the accuracy "
            "at the second presentation, and of the recall of a class of 2 % of the rows"
        ),
        data="episodes of digits with labels drawn anew; digits as sequences with a rare class",
        run=_run,
        minutes=5.0,
        seeds=tuple(range(201, 204)),
    ),
)
