"""The card: what a technique says about itself, as literals at the top of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """Literal metadata of one technique, read from its file without importing it.

    The id and the slot come from the path, the one-line summary from the docstring; nothing is said twice.

    Attributes:
        paper: where the technique was published, e.g. ``"arXiv:2110.06537"`` or ``"NeurIPS 2020"``.
        title: the paper's title.
        number: its number in Probatum's catalogue; None for a technique of your own.
        entry: the name in the module that *is* the technique (a class, or a function such as ``build``).
        slot: only in files outside the package, where no folder says it.
        tags: themes, lower case: ``("imbalance", "vision")``.
        modalities: what it can take (`Spec.modality`): table, image, text, series, ...; () = whatever is one tensor a row.
        tasks: which tasks it can take: classes, reals, next-token, ...; losses and methods meet the positions of next-token as
            rows of classes, methods the network's outputs (n, length, outputs).
        needs: what the bench must supply beyond the slot's usual arguments: ``"index"`` (row numbers, for losses
            with per-example state), ``"pretrained"`` (a network that starts from pretrained weights), or an extra such as
            ``"captum"``.
        alone: why seeds of it cannot be trained as one stacked computation; "" = they can, and a check holds it to that.
        separable: losses: a mean of terms of one row each, without state, so that one call serves all stacked seeds.
        neutral: settings at which it equals doing nothing, bit for bit; None where no such settings exist.
        tiny: settings for the contract suite: small and fast.
        tune: search space for ``--tune``: name -> (low, high), (low, high, "log") or a list of choices.
        tried: values that the contract suite tries in place of some of `tune`, where the tuner's are slow or do not fit a few
            rows: name -> a list of at least two. Every entry of `tune` must matter at two of them.
        expect_fail: check name -> reason, strict: a check that passes must be taken out.
        claims: ids of the claims that ``claims/<slot>/<name>.py`` runs.
    """

    paper: str
    title: str
    entry: str
    number: int | None = None
    slot: str | None = None
    tags: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("classes", "reals")
    needs: tuple[str, ...] = ()
    alone: str = ""
    separable: bool = False
    neutral: Mapping[str, Any] | None = None
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Any] = field(default_factory=dict)
    tried: Mapping[str, Any] = field(default_factory=dict)
    expect_fail: Mapping[str, str] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
