"""`probatum claim`: run a paper's claim and show what was measured."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from probatum.claims.chosen import choose, in_turn, read_seeds
from probatum.claims.record import run_claim


def print_claims(name: str, *, as_json: bool, claim: str | None = None, seeds: str | None = None) -> None:
    """Run the claims of a technique, or one of them; nothing is recorded (`make claims` does that).

    Args:
        name: the technique's id.
        as_json: print the entries as JSON, and all else to standard error.
        claim: id of one claim.
        seeds: e.g. ``"1-5"`` or ``"1,2,7"``; None = those that the claim is recorded on.

    Raises:
        InputError: an unknown technique or claim, or seeds that cannot be read.
    """
    console = Console(stderr=as_json)
    entries: list[dict[str, Any]] = []
    chosen, wanted = choose([name], claim), None if seeds is None else read_seeds(seeds)
    for _, its, its_seeds, line in in_turn(chosen, wanted):
        console.print(Text(line))
        console.print(Text(f"  {its.says}\n  threshold: {its.threshold}\n  on {its.data}", style="dim"))
        with console.status("running ..."):
            entry = run_claim(name, its, its_seeds)
        entries.append(entry)
        style = "bold green" if entry["verdict"] == "reproduced" else "bold yellow"
        console.print(Text(f"  {entry['verdict']} ({entry['seconds']} s)", style=style))
        for key, value in entry["measured"].items():
            console.print(Text(f"  {key} = {value}"))
        for control, held in entry.get("controls", {}).items():
            console.print(Text(f"  control: {control}: {'held' if held else 'FAILED'}", style="" if held else "yellow"))
        if entry["note"]:
            console.print(Text(f"  {entry['note']}", style="dim"))
    if as_json:
        print(json.dumps(entries, indent=1))
