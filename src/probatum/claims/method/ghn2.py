"""A graph hypernetwork trained on random networks for digits: predicted weights as they are, as a start, and as a ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.open import open_dataset
from probatum.spec import Data
from probatum.techniques.method.ghn2.ghn2 import GraphHypernet, put, random_net, run_with, train_hypernet
from probatum.train.rng import generator_for

POOL, STEPS, META_BATCH, BATCH, RATE = 100, 600, 4, 48, 3e-3
CHANNELS, NODES = (8, 16), (3, 5)
UNSEEN, OTHERS = 6, 3
EPOCHS = 4
SPLITS: dict[str, dict[str, Any]] = {
    "alike": {},
    "wide": {"channels": (24, 32)},
    "deep": {"nodes": (8, 10)},
    "dense": {"dense": True},
    "without_norms": {"norm": False},
}
FINE_RATE = 3e-3
NOTE = (
    "The hypernetworks are trained once, on the first seed's split; the seeds are of unseen networks and batches. Steps and rate come "
    "from seed 1, where the training loss was 2.0 after 100 steps, 0.7 after 300 and 0.4 after 600, and eight unseen networks had 0.79 "
    "at once; rate 0.01 learned nothing in 120 steps. Fine-tuning has one rate for both starts, not tuned for either. A first run of "
    "this claim gave the same figures without this sentence: what is not reproduced is the ranking (tau 0.09), and messages along edges "
    "did not help (0.85 with, 0.87 without). Accuracies after four epochs do differ (standard deviation 0.10 over the 30 networks), "
    "those with predicted weights half as much (0.05) and hardly in the same order; why was not tested. Wide networks need rows of "
    "the decoder that training never used (0.13)."
)


def accuracy_with(net: nn.Module, values: Mapping[str, Tensor], data: Data) -> float:
    """On test rows, norms with the statistics of them all."""
    with torch.no_grad():
        return float((run_with(net, values, data.test.x).argmax(dim=1) == data.test.y).float().mean())


def tuned(net: nn.Module, data: Data, epochs: int, order: torch.Generator) -> list[float]:
    """Test accuracy after the first and after the last epoch of Adam."""
    optimizer, found = torch.optim.Adam(net.parameters(), lr=FINE_RATE), []
    for epoch in range(epochs):
        for i in torch.randperm(len(data.train), generator=order).split(BATCH):
            if len(i) > 1:
                loss = F.cross_entropy(net.train()(data.train.x[i]), data.train.y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        if epoch in (0, epochs - 1):
            found.append(accuracy_with(net, dict(net.named_parameters()), data))
    return found


def trained(data: Data, seed: int, edges: bool = True) -> GraphHypernet:
    """A hypernetwork trained on the pool."""
    own = generator_for(seed, "pool")
    nets = [random_net(data.spec, own, NODES, CHANNELS) for _ in range(POOL)]
    hyper = GraphHypernet(most=32, edges=edges, generator=generator_for(seed, "hypernetwork"))
    train_hypernet(hyper, nets, data.train.x, data.train.y, STEPS, generator_for(seed, "meta"), META_BATCH, BATCH, RATE)
    return hyper


def zero_shot(hyper: GraphHypernet, nets: list[nn.Module], data: Data) -> list[float]:
    """Test accuracy of each network with predicted weights."""
    with torch.no_grad():
        return [accuracy_with(net, values, data) for net, values in zip(nets, hyper.predict(nets), strict=True)]


def row_of(hyper: GraphHypernet, alone: GraphHypernet, data: Data, seed: int) -> dict[str, list[float]]:
    """Unseen networks of this seed: accuracies at once, after one epoch and after longer training from ordinary weights."""
    own, row = generator_for(seed, "unseen"), {}
    for split, settings in SPLITS.items():
        chosen: dict[str, Any] = {"nodes": NODES, "channels": CHANNELS, **settings}
        nets = [random_net(data.spec, own, **chosen) for _ in range(UNSEEN if split == "alike" else OTHERS)]
        row[f"{split}_zero_shot"] = zero_shot(hyper, nets, data)
        row[f"{split}_random"] = [accuracy_with(net, dict(net.named_parameters()), data) for net in nets]
        if split != "alike":
            continue
        row["alike_zero_shot_without_edges"] = zero_shot(alone, nets, data)
        predicted, ordinary, last = [], [], []
        with torch.no_grad():
            made = hyper.predict(nets)
        for net, values in zip(nets, made, strict=True):
            state = {name: value.clone() for name, value in net.state_dict().items()}
            first, end = tuned(net, data, EPOCHS, generator_for(seed, "order"))
            net.load_state_dict(state)
            put(net, values)
            predicted.append(tuned(net, data, 1, generator_for(seed, "order"))[0])
            ordinary.append(first)
            last.append(end)
        row |= {"one_epoch_predicted": predicted, "one_epoch_random": ordinary, "trained_random": last}
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    data = open_dataset("digits").prepare(seeds[0])  # one split, on which the hypernetworks are trained once
    hyper, alone = trained(data, seeds[0]), trained(data, seeds[0], edges=False)
    found = [row_of(hyper, alone, data, seed) for seed in seeds]
    rows = [
        {"seed": float(seed), **{name: mean(v) for name, v in row.items()}}
        for seed, row in zip(seeds, found, strict=True)
    ]
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["share_of_seeds_better_after_an_epoch"] = mean(
        [float(row["one_epoch_predicted"] > row["one_epoch_random"]) for row in rows]
    )
    at_once, trained_long = ([v for row in found for v in row[name]] for name in ("alike_zero_shot", "trained_random"))
    measured["kendall_tau"] = float(kendalltau(at_once, trained_long).statistic)
    for name, values in (("at_once", at_once), ("trained", trained_long)):
        measured[f"spread_{name}"] = float(torch.tensor(values).std())
    holds = (
        measured["alike_zero_shot"] >= 0.5
        and measured["share_of_seeds_better_after_an_epoch"] >= 0.8
        and measured["kendall_tau"] > 0.2
    )
    return Evidence(holds, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="predicts-unseen-networks",
        says="A graph hypernetwork predicts weights of unseen networks that work at once, start training well and rank networks.",
        threshold="unseen networks with predicted weights: mean accuracy of 50 % or more; after one epoch better than from ordinary "
        "weights on 4 of 5 seeds; Kendall's tau of first and trained accuracy above 0.2 over all unseen networks",
        data="digits; random cells of 3 to 5 nodes and 8 to 16 channels",
        run=_run,
        minutes=3.5,
    ),
)
