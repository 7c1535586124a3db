"""Checks of the file itself: card, header, imports, size. They apply to every slot and need no torch."""

from __future__ import annotations

import ast

from probatum import catalogue, inject, slots
from probatum.checks.subject import Subject, demand
from probatum.rooms.kind import kinds, modalities

ALLOWED = ("probatum.card", "probatum.spec", "probatum.errors", "probatum.numerics")
MOST_LINES = 500


def check_header(subject: Subject) -> None:
    """The docstring has a summary and the four fields."""
    header = catalogue.header(subject.name)
    demand(header.summary.endswith("."), "end the summary line with a full stop")
    demand(len(header.summary) <= 120, "keep the summary line within 120 characters")


def check_card_equals_the_imported_one(subject: Subject) -> None:
    """The literal that discovery reads is the object Python makes."""
    module = catalogue.load(subject.name)
    demand(catalogue.card(subject.name) == module.CARD, "the card in the text differs from the module's CARD")


def check_card_is_complete(subject: Subject) -> None:
    """Title, paper, tags; modalities and tasks from the known ones; settings that exist."""
    card = subject.card
    demand(bool(card.title and card.paper and card.tags), "give title, paper and at least one tag")
    tasks = tuple(dict.fromkeys(task for kind in kinds() for task in kind.TASKS))
    demand(set(card.modalities) <= set(modalities()), f"modalities are {', '.join(modalities())}, () = any")
    demand(set(card.tasks) <= set(tasks) and bool(card.tasks), f"tasks are {', '.join(tasks)}")
    demand(subject.slot in slots.names(), f"slots are {', '.join(slots.names())}")
    for modality in card.modalities:
        fits = any(modality == pair[0] for pair in subject.pairs())
        demand(fits, f"{modality} data have none of its tasks; take {modality} out of the card's modalities")
    entry = getattr(subject.entry, "for_model", subject.entry)
    known = inject.settings_of(entry)
    for field in ("neutral", "tiny", "tune", "tried"):
        unknown = set(getattr(card, field) or {}) - set(known)
        demand(not unknown, f"the card's {field} names {sorted(unknown)}, which {card.entry} does not take")
    idle = set(card.tried) - set(card.tune)
    demand(not idle, f"the card's tried names {sorted(idle)}, which its tune does not")
    few = [name for name, values in card.tried.items() if len(values) < 2]
    demand(not few, f"the card's tried gives fewer than two values for {few}")


def check_imports(subject: Subject) -> None:
    """A technique imports the card, the spec, errors and numerics of this package, never the bench or another technique."""
    where = catalogue.place(subject.name)
    own = where.module.rpartition(".")[0] + "." if where.folder is not None else None
    for file in where.files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.suffix == ".py" else ():
            line = f"{file.name}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                demand(all(alias.name != "*" for alias in node.names), f"{line}: no star imports")
                outside = where.module.startswith(catalogue.ADDED)
                beside = outside and own is not None and node.level == 1
                demand(node.level == 0 or beside, f"{line}: relative imports reach a technique's own folder only")
            else:
                continue
            for name in names:
                if name.split(".")[0] == "probatum":
                    known = name.startswith(ALLOWED) or (own is not None and name.startswith(own))
                    demand(known, f"{line}: a technique may not import {name}")


def check_size(subject: Subject) -> None:
    """One sitting's read."""
    for file in catalogue.place(subject.name).files():
        if file.suffix == ".py":
            lines = file.read_text(encoding="utf-8").count("\n")
            demand(lines <= MOST_LINES, f"{file.name} has {lines} lines; keep a file within {MOST_LINES}")
