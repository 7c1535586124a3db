"""Recipes and arms: which technique fills which slot, with which settings, as frozen values."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from probatum import catalogue, slots
from probatum.errors import InputError

SINGLE = ("model", "loss", "optimizer", "learner", "posthoc", "compress")
MANY = ("layer", "method")
PLAYER = "player"
"""Where a technique of an arena other than predict stands: it plays alone."""


@dataclass(frozen=True)
class Use:
    """One technique with its settings: what ``label(alpha=0.1)`` means on the command line."""

    id: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.settings:
            return self.id
        return f"{self.id}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def plan(self) -> dict[str, Any]:
        """Everything that identifies it, for a trial's key."""
        return {
            "id": self.id,
            "slot": catalogue.place(self.id).slot,
            "settings": dict(self.settings),
            "source": catalogue.digest(self.id),
        }


@dataclass(frozen=True)
class Training:
    """How the loop trains where no technique says otherwise.

    Attributes:
        epochs: passes over the training rows (ignored where `steps` is given).
        steps: gradient steps; None = epochs times steps per epoch, but no fewer than `least_steps`.
        least_steps: what small data are trained for although their epochs are short.
        batch_size: examples a step.
        lr: learning rate of the built-in AdamW.
        weight_decay: its decoupled weight decay.
        schedule: ``"cosine"`` (5 % linear warm-up, then to zero) or ``"constant"``; multiplies any optimizer's rate.
        clip: global gradient norm to clip at, or None.
        select: validation measure by which the best weights are kept: accuracy, log-loss, rmse, another that the task can
            choose by (`probatum.rooms.task.Task.CHOOSES`), or "last".
    """

    epochs: int = 20
    steps: int | None = None
    least_steps: int = 0
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    clip: float | None = None
    select: str = "accuracy"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}; it must be at least 1")
        if not self.lr > 0:
            raise InputError(f"lr is {self.lr}; it must be above 0")
        if self.schedule not in ("cosine", "constant"):
            raise InputError(f"schedule is {self.schedule!r}; use 'cosine' or 'constant'")


@dataclass(frozen=True)
class Recipe:
    """How a predictor is made: one entry per slot of arena predict, None or () where the baseline stands.

    Attributes:
        training: how the loop trains.
        player: the technique of another arena, which plays alone.
    """

    training: Training = Training()
    model: Use | None = None
    loss: Use | None = None
    optimizer: Use | None = None
    layer: tuple[Use, ...] = ()
    method: tuple[Use, ...] = ()
    learner: Use | None = None
    posthoc: Use | None = None
    compress: Use | None = None
    player: Use | None = None

    def filled(self, use: Use) -> Recipe:
        """This recipe with one technique more; InputError, naming both, where its slot is taken."""
        slot = catalogue.place(use.id).slot
        present = getattr(self, field_of(slot))
        if slot in MANY and any(other.id == use.id for other in present):
            raise InputError(f"{use.id} stands twice in one arm")
        if slot not in MANY and present is not None:
            raise InputError(f"{present.id} and {use.id} both fill the slot {slot!r}; an arm has room for one of them")
        if self.learner is not None and slot != "posthoc":
            raise InputError(
                f"{self.learner.id} replaces gradient training, so {use.id} ({slot}) has nothing to act on"
            )
        if slot == "learner" and self.uses():
            raise InputError(f"{use.id} replaces gradient training, so {self.uses()[0].id} has nothing to act on")
        return self.placed(use, slot)

    def placed(self, use: Use, slot: str) -> Recipe:
        """This recipe with `use` in `slot`, without asking whether that is allowed."""
        filled: dict[str, Any] = {field_of(slot): (*getattr(self, slot), use) if slot in MANY else use}
        return replace(self, **filled)

    def uses(self) -> tuple[Use, ...]:
        """All techniques in it, in slot order."""
        single = [getattr(self, slot) for slot in (*SINGLE, PLAYER)]
        return tuple(use for use in (*single, *self.layer, *self.method) if use is not None)

    def plan(self) -> dict[str, Any]:
        """Everything that identifies it, JSON-able."""
        return {"training": asdict(self.training), "techniques": [use.plan() for use in self.uses()]}


def field_of(slot: str) -> str:
    """The field of a recipe that holds a slot's technique."""
    return slot if slot in (*SINGLE, *MANY) else PLAYER


@dataclass(frozen=True)
class Arm:
    """A recipe that takes part in a study. `salt` re-draws its training streams, for A/A checks."""

    name: str
    recipe: Recipe
    salt: str = ""


def make_arm(text: str, base: Recipe) -> Arm:
    """The arm that ``"selu-snn+gradient-noise(eta=0.3)"`` means, on top of the baseline's recipe."""
    recipe = base
    uses = parse_arm(text)
    alone = sorted({slot for use in uses if slots.arena_of(slot := catalogue.place(use.id).slot) != slots.PREDICT})
    if alone and len(uses) > 1:
        raise InputError(f"{text}: a technique of slot {alone[0]!r} plays alone; try its parts one by one")
    for use in uses:
        if catalogue.place(use.id).slot == "model" and recipe.model is base.model:
            recipe = replace(recipe, model=None)  # the arm's own model replaces the one that --model chose
        recipe = recipe.filled(use)
    return Arm(" + ".join(str(use) for use in uses), recipe)


def parse_arm(text: str) -> tuple[Use, ...]:
    """Split an arm's text at ``+`` outside parentheses and read each technique with its settings."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "+" and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    parts.append(current)
    return tuple(_parse_use(part.strip(), text) for part in parts)


def _parse_use(text: str, whole: str) -> Use:
    match = re.fullmatch(r"([A-Za-z0-9_-]+)\s*(?:\((.*)\))?", text, flags=re.DOTALL)
    if match is None:
        raise InputError(f"cannot read {text!r} in {whole!r}; write ID, ID(name=value) or ID+ID")
    name, inside = match.group(1), match.group(2)
    catalogue.place(name)
    if not inside:
        return Use(name)
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("write every setting as name=value")
        settings = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as problem:
        raise InputError(f"cannot read the settings of {text!r}: {problem}; write e.g. {name}(rate=0.1)") from problem
    return Use(name, settings)


def _value(node: ast.expr) -> Any:
    """A literal, or a bare word as its own name: a shell's quotes are enough for ``id(method=replay)``."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
