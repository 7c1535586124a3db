"""`probatum claim`: run a paper's claim and show what was measured."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from probatum.claims.record import claims_of, run_claim


def print_claims(name: str, *, as_json: bool) -> None:
    """Run all claims of a technique; nothing is recorded (`make claims` does that)."""
    console = Console(stderr=as_json)
    entries: list[dict[str, Any]] = []
    for claim in claims_of(name):
        console.print(Text(f"{name}/{claim.id}: {claim.says}"))
        console.print(
            Text(
                f"  threshold: {claim.threshold}\n  on {claim.data}, seeds {list(claim.seeds)}, about {claim.minutes:g} min",
                style="dim",
            )
        )
        with console.status("running ..."):
            entry = run_claim(name, claim)
        entries.append(entry)
        style = "bold green" if entry["verdict"] == "reproduced" else "bold yellow"
        console.print(Text(f"  {entry['verdict']} ({entry['seconds']} s)", style=style))
        for key, value in entry["measured"].items():
            console.print(Text(f"  {key} = {value}"))
        if entry["note"]:
            console.print(Text(f"  {entry['note']}", style="dim"))
    if as_json:
        print(json.dumps(entries, indent=1))
