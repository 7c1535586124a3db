"""`probatum list` and `probatum show`: the cards as tables and as JSON; no torch, no numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from probatum import catalogue

EVIDENCE = Path(__file__).parents[1] / "claims" / "evidence.json"


def as_json(name: str, *, full: bool = False) -> dict[str, Any]:
    """One technique as JSON values."""
    card, header, place = catalogue.card(name), catalogue.header(name), catalogue.place(name)
    found: dict[str, Any] = {
        "id": name,
        "slot": place.slot,
        "number": card.number,
        "title": card.title,
        "paper": card.paper,
        "summary": header.summary,
        "tags": list(card.tags),
        "modalities": list(card.modalities),
        "tasks": list(card.tasks),
        "claims": list(card.claims),
    }
    if full:
        found |= {
            **{field.lower(): text for field, text in header.fields.items()},
            "entry": card.entry,
            "neutral": dict(card.neutral) if card.neutral is not None else None,
            "tune": dict(card.tune),
            "file": str(place.path),
            "evidence": _evidence(name),
        }
    return found


def print_list(names: list[str]) -> None:
    """A table of techniques, as wide as the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True, style="cyan")
    table.add_column("slot", no_wrap=True)
    table.add_column("no.", justify="right", no_wrap=True)
    table.add_column("what it is")
    for name in sorted(names, key=lambda n: (catalogue.place(n).slot, n)):
        card = catalogue.card(name)
        summary = catalogue.header(name).summary.split(": ", 1)[-1]
        table.add_row(name, catalogue.place(name).slot, f"{card.number or ''}", Text(summary))
    console = Console()
    console.print(table)
    console.print(
        f"\n{len(names)} technique(s); `probatum show ID` tells more, `probatum try ID --data ...` tries one.",
        style="dim",
    )


def print_one(name: str) -> None:
    """Everything the card and the header say, and the recorded evidence."""
    card, header, place = catalogue.card(name), catalogue.header(name), catalogue.place(name)
    console = Console()
    console.print(Text(header.summary, style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = {
        "id": name,
        "slot": place.slot,
        "paper": f"{card.title} ({card.paper})",
        "number": f"{card.number}" if card.number is not None else "",
        "computes": header.fields["Computes"],
        "shapes": header.fields["Shapes"],
        "departs": header.fields["Departs"],
        "takes": f"{', '.join(card.modalities) or 'any kind of data'}; {' or '.join(card.tasks)}",
        "neutral at": ", ".join(f"{key}={value!r}" for key, value in card.neutral.items()) if card.neutral else "",
        "tuned over": ", ".join(f"{key}: {value}" for key, value in card.tune.items()),
        "tags": ", ".join(card.tags),
        "alone": f"from {place.module} import {card.entry}",
        "file": str(place.path),
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, Text(value))
    console.print(table)
    for entry in _evidence(name):
        style = "green" if entry["verdict"] == "reproduced" else "yellow"
        console.print(Text(f"\nclaim {entry['claim']}: {entry['verdict']}", style=style))
        console.print(
            Text(f"  {entry['says']}\n  threshold: {entry['threshold']}\n  on {entry['data']}, seeds {entry['seeds']}")
        )
        for key, value in entry["measured"].items():
            console.print(Text(f"  {key} = {value}"))
        for control, held in entry.get("controls", {}).items():
            console.print(Text(f"  control: {control}: {'held' if held else 'FAILED'}", style="" if held else "yellow"))
        if entry["note"]:
            console.print(Text(f"  {entry['note']}", style="dim"))
    missing = set(card.claims) - {entry["claim"] for entry in _evidence(name)}
    for claim in sorted(missing):
        console.print(Text(f"\nclaim {claim}: not run yet (`probatum claim {name}`)", style="dim"))


def _evidence(name: str) -> list[dict[str, Any]]:
    known = json.loads(EVIDENCE.read_text(encoding="utf-8")) if EVIDENCE.exists() else {}
    return [entry for entry in known.values() if entry["technique"] == name]
