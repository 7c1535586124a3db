"""Arms of two techniques: named ones and random ones run, and those that cannot be joined are refused by both names."""

from __future__ import annotations

import random
from typing import Any

import pytest

from loosely import study_of
from probatum import catalogue
from probatum.errors import InputError
from probatum.recipe import Recipe, make_arm

SHORT: dict[str, Any] = {"seeds": 1, "steps": 4, "timing": False, "references": False, "confirm": False}
TRIED = ("wine", "digits")
MODALITY = {"wine": "table", "digits": "image"}
WANTED = 10


def arm(*names: str) -> str:
    """The techniques joined, each at its card's small settings."""
    parts = []
    for name in names:
        tiny = catalogue.card(name).tiny
        parts.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in tiny.items())})" if tiny else name)
    return "+".join(parts)


def candidates(data: str) -> list[str]:
    """Techniques of the predict arena that take the data, but learners and calibrators, which train no network."""
    found = []
    for name in catalogue.names():
        card, slot = catalogue.card(name), catalogue.place(name).slot
        fits = MODALITY[data] in card.modalities and "classes" in card.tasks and "pretrained" not in card.needs
        if fits and slot in ("loss", "optimizer", "layer", "model", "method", "compress"):
            found.append(name)
    return found


def legal(first: str, second: str) -> bool:
    """Whether the recipe has room for both."""
    try:
        make_arm(arm(first, second), Recipe())
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("names", "data"),
    [(("selu-snn", "gradient-noise"), "wine"), (("dcls", "deeply-supervised-nets"), "digits")],
)
def test_named_pairs_run(names: tuple[str, str], data: str) -> None:
    trials = study_of(data, [arm(*names)], **SHORT).run().trials
    assert [trial.status for trial in trials] == ["ok", "ok"], [trial.record.get("reason") for trial in trials]


def test_random_legal_pairs_run() -> None:
    draw, done = random.Random(20261121), 0
    refused: list[str] = []
    while done < WANTED and len(refused) < 30:
        data = draw.choice(TRIED)
        first, second = draw.sample(candidates(data), 2)
        if not legal(first, second):
            continue
        try:
            study = study_of(data, [arm(first, second)], **SHORT)
        except InputError as problem:  # methods that clash are known once they are built
            refused.append(f"{first}+{second}: {problem}")
            continue
        trials = study.run().trials
        problems = [trial.record.get("reason") for trial in trials if trial.status != "ok"]
        assert not problems, f"{first}+{second} on {data}: {problems}"
        done += 1
    assert done == WANTED, refused
    for text in refused:
        pair, reason = text.split(": ", 1)
        assert any(name in reason for name in pair.split("+")), text


@pytest.mark.parametrize(
    ("names", "data"),
    [
        (("encouraging-loss", "cnn-svm"), "wine"),
        (("conda", "scale-optimizer"), "wine"),
        (("gbnn", "gradient-noise"), "wine"),
        (("gradual-magnitude-pruning", "sorted-net"), "wine"),
        (("resnet", "prototype-autoencoder"), "digits"),
    ],
)
def test_illegal_pairs_are_refused_by_name(names: tuple[str, str], data: str) -> None:
    with pytest.raises(InputError) as refusal:
        study_of(data, ["+".join(names)], **SHORT)
    assert all(name in str(refusal.value) for name in names), refusal.value


def test_a_pair_over_two_arenas_is_refused() -> None:
    with pytest.raises(InputError, match=r"integrated-gradients plays in explain, selu-snn plays in predict"):
        study_of("digits", ["integrated-gradients+selu-snn"], **SHORT)
