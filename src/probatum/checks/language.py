"""Checks of techniques whose card names task next-token: they train a language model, and it does not see ahead."""

from __future__ import annotations

import torch

from probatum.checks.subject import NotThisOneError, Subject, demand
from probatum.rooms.arena import alone
from probatum.slots import contract
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded


def check_language_model_trains(subject: Subject) -> None:
    """A short training of a language model with it ends with finite weights and outputs (n, length, vocabulary)."""
    parts = _assembled(subject)
    with seeded(2, "training"):
        train(parts.run, parts.methods, generator_for(2, "order"), schedule="constant", select="log-loss")
    finite = all(bool(torch.isfinite(value).all()) for value in parts.run.model.state_dict().values())
    demand(finite, "the weights of a language model are not finite")
    x = parts.run.valid.x[:3]
    with torch.no_grad():
        shape = tuple(parts.run.model(x).shape)
    demand(shape == (*x.shape, parts.run.spec.outputs), f"a language model gives logits of shape {shape}")


def check_language_model_looks_back_only(subject: Subject) -> None:
    """With it, logits at a position do not move when later tokens change."""
    if subject.slot not in ("layer", "model"):
        raise NotThisOneError("it is no part of the network")
    parts = _assembled(subject)
    model, x = parts.run.model.eval(), parts.run.valid.x[:4].clone()
    with torch.no_grad():
        before = model(x)
        for place in range(1, x.shape[1]):
            other = x.clone()
            other[:, place:] = 2 + (other[:, place:] + 1) % (parts.run.spec.vocabulary - 2)
            moved = float((model(other)[:, :place] - before[:, :place]).abs().max())
            demand(moved < 1e-5, f"logits before position {place} move by {moved:.1e} when tokens from there on change")


def _assembled(subject: Subject) -> Assembly:
    if "next-token" not in subject.card.tasks:
        raise NotThisOneError("it is not for language models")
    if not contract(subject.slot).TRAINED:
        raise NotThisOneError("it is not trained by the loop")
    return assemble(alone(subject.recipe(), subject.data(task="next-token"), 2))
