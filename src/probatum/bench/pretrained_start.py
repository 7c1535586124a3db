"""Where a fine-tuning study starts: a network pretrained here or handed over, found again by whoever resumes or ships."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from probatum.bench.context import quiet
from probatum.bench.plan import key_of, versions
from probatum.bench.store import Store
from probatum.data.dataset import Dataset
from probatum.data.open import open_dataset
from probatum.engine import PLAIN, Engine
from probatum.errors import InputError
from probatum.numerics.tensors.draws import random_state_kept
from probatum.recipe import Recipe
from probatum.rooms.arena import ModelFactory, Work, alone
from probatum.rooms.kind import Kind
from probatum.rooms.task import task
from probatum.settings import FineTuning
from probatum.train.adapt import Adapted, copy_body, identity_of, own_part, state_of
from probatum.train.assemble import network_of
from probatum.train.pretrain import SEED, SOURCE_FRACTIONS, pretrain, source_training

TASKS = ("classes", "reals")
"""Tasks that a pretrained network can be adapted to."""

STATE, ABOUT = "pretrained state", "pretrained about"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Start:
    """What a study needs to adapt a pretrained network.

    Attributes:
        dataset: the target's data; tables and texts are encoded as the source's were.
        factory: builds networks that start from the pretrained one.
        identity: the study's `model`.
        about: where the weights come from and what was copied, JSON values, the same on every run.
    """

    dataset: Any
    factory: Adapted
    identity: str
    about: dict[str, Any]


def find_start(
    dataset: Any,
    recipe: Recipe,
    store: Store,
    tuning: FineTuning,
    *,
    factory: ModelFactory | None = None,
    own: str = "",
    engine: Engine = PLAIN,
    threads: int = 1,
    progress: Progress | None = None,
) -> Start:
    """Pretrain (unless the store holds it already) or read weights, and see that they fit the target's network.

    Args:
        dataset: the target.
        recipe: the baseline's.
        store: where a pretrained network is kept.
        tuning: data to pretrain on, or weights.
        factory: builds the user's own network, `own` is its identity.
        engine: where to pretrain, on this many `threads`.
        progress: called as (step, steps) while it is pretrained.

    Raises:
        InputError: both or neither given, data of another modality or columns, weights that do not fit.
    """
    steps = tuning.steps
    if tuning.source is not None and tuning.weights is not None:
        raise InputError("give pretrain (data to pretrain on) or pretrained (weights), not both")
    if task(dataset.task).NAME not in TASKS:
        raise InputError(f"fine-tuning takes task {' or '.join(TASKS)}; a {dataset.task} target is not among them")
    if tuning.source is None:
        if steps is not None:
            raise InputError("pretrain steps go with data to pretrain on; add --pretrain DATA")
        dataset.kind.check_weights_alone(dataset)
        state, about = _read(tuning.weights)
        return _fitted(dataset, recipe, factory, own, state, about)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise InputError(f"pretrain steps are {steps!r}; give a whole number of updates, 1 or more")
    origin = _opened(tuning.source, dataset)
    training = source_training(origin.kind.training(origin.task), round(SOURCE_FRACTIONS[0] * origin.n), steps)
    training = replace(training, select=task(origin.task).SELECT)
    pretraining = Recipe(training=training, model=recipe.model)
    data = origin.prepare(SEED, fractions=SOURCE_FRACTIONS)
    quick = replace(engine, devices=1, compile=False)
    work = replace(alone(pretraining, data, SEED, factory=factory, engine=quick), progress=progress)
    state, about = _kept(store, _key(origin, pretraining, own, threads, engine), origin.name, work, threads)
    shared = _shared_rows(origin, dataset)
    about |= {"shared_rows": shared} if shared else {}
    if isinstance(tuning.source, str | Path):
        place = str(Path(tuning.source).resolve()) if Path(tuning.source).exists() else str(tuning.source)
        about["again"] = {"source": place, "steps": steps, "threads": threads, "engine": engine.plan()}
    return _fitted(_encoded_alike(dataset, data.pipeline.features), recipe, factory, own, state, about)


def _key(origin: Dataset, recipe: Recipe, own: str, threads: int, engine: Engine) -> str:
    """Under which a pretrained network is kept: everything that it depends on."""
    found: dict[str, Any] = {
        "source": origin.fingerprint,
        "task": origin.task,
        "recipe": recipe.plan(),
        "own": own,
        "seed": SEED,
        "fractions": list(SOURCE_FRACTIONS),
        "threads": threads,
        "engine": engine.plan(),
        "versions": versions(),
    }
    return key_of({"kind": "pretraining", **found})


def _kept(store: Store, key: str, name: str, work: Work, threads: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The pretrained network and what is told of it, from the store; it is trained where the store lacks it."""

    @cache
    def trained() -> tuple[dict[str, Tensor], dict[str, Any]]:
        with quiet(threads):
            return pretrain(work)

    def described() -> bytes:
        told = {"on": name, "rows": len(work.data.train), "steps": work.recipe.training.steps, **trained()[1]}
        return json.dumps(told).encode()

    state = store.settled(key, STATE, lambda: save(trained()[0]), _read_state)
    return state, store.settled(key, ABOUT, described, lambda kept: dict(json.loads(kept)))


def _read_state(kept: bytes) -> dict[str, Tensor]:
    """Weights out of the store; ValueError where they are none."""
    try:
        return load(kept)
    except SafetensorError as problem:
        raise ValueError(str(problem)) from problem


def start_again(plan_model: str, about: Mapping[str, Any], dataset: Any, recipe: Recipe, store: Store) -> Start:
    """The start of a stored study, for shipping; InputError where it cannot be had again, or is another one now."""
    if own_part(plan_model) or "again" not in about:
        raise InputError("this study's network was handed over in Python; ship it there: study.ship(arm, folder)")
    again = about["again"]
    tuning = FineTuning(again.get("source"), again.get("steps"), again.get("weights"))
    engine, threads = Engine(**again.get("engine", {})), again.get("threads", 1)
    found = find_start(dataset, recipe, store, tuning, engine=engine, threads=threads)
    if found.identity != plan_model:
        raise InputError("the pretrained weights are not those of the study; run `probatum try` again")
    return found


def _fitted(
    dataset: Any,
    recipe: Recipe,
    factory: ModelFactory | None,
    own: str,
    state: Mapping[str, Tensor],
    about: dict[str, Any],
) -> Start:
    spec = dataset.prepare(0).spec
    with random_state_kept():
        net = network_of(recipe, spec, factory)
    copied = copy_body(net, state)
    found = {
        **about,
        "copied": round(copied.share, 4),
        "numbers": sum(value.numel() for value in state.values()),
        "fresh": {name: list(shape) for name, shape in copied.fresh.items()},
        "converted": list(copied.converted),
    }
    return Start(dataset, Adapted(state, factory), identity_of(state, own), found)


def _opened(source: Any, target: Any) -> Dataset:
    origin = open_dataset(source)
    if origin.modality != target.modality:
        raise InputError(
            f"{origin.name} is {origin.modality} data and {target.name} is {target.modality}; "
            "pretrain on data of the same modality"
        )
    if not isinstance(origin, Dataset) or origin.task not in TASKS:
        raise InputError(f"{origin.name} cannot be pretrained on: give data with a target, classes or reals")
    if origin.fingerprint == target.fingerprint:
        raise InputError(
            f"{origin.name} is the target itself, whose test rows pretraining would see; pretrain on other data"
        )
    return origin


def _encoded_alike(target: Dataset, features: Any) -> Dataset:
    """The target encoded as the source was, where codes and token ids are the network's own."""
    kind = target.kind
    if target.streamed and type(kind).adapted is not Kind.adapted:
        raise InputError(f"{target.name} is streamed from disk; a {target.modality} to adapt to must fit into memory")
    return kind.adapted(target, features)


def _shared_rows(origin: Dataset, target: Dataset) -> int:
    """Rows of the target that stand in the source too; 0 where rows cannot be compared across data."""
    if origin.streamed or target.streamed:
        return 0
    return target.kind.shared_rows(origin.raw, target.raw)


def _read(weights: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(weights, nn.Module):
        return state_of(weights), {"on": f"a {type(weights).__name__} handed over"}
    if isinstance(weights, str | Path):
        path = Path(weights)
        if not path.is_file():
            raise InputError(f"pretrained weights {str(path)!r} do not exist; check the path")
        return _state(_from_file(path), path.name), {"on": path.name, "again": {"weights": str(path.resolve())}}
    return _state(weights, "pretrained"), {"on": "weights handed over"}


def _from_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # what a broken file raises depends on how it is broken
        line = (str(problem).strip().splitlines() or [""])[0]
        raise InputError(
            f"{path.name} cannot be read as weights ({type(problem).__name__}: {line[:160]}); "
            "write it by torch.save(net.state_dict(), path)"
        ) from problem


def _state(found: Any, what: str) -> dict[str, Tensor]:
    """The state dict itself, or the one under "state_dict" in a checkpoint; the prefix of parallel wrappers is taken off."""
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(
            f"{what} holds no state dict (names -> tensors); write it by torch.save(net.state_dict(), path)"
        )
    return {str(name).removeprefix("module."): value.detach().cpu().clone() for name, value in found.items()}
