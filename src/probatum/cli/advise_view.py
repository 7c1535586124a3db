"""`probatum advise`: facts of the data, the techniques to try first with their reasons, and the command that tries them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from probatum.advising.advise import Advice, advise, why
from probatum.cli.try_view import RUNS
from probatum.settings import Reading

USUAL = RUNS / "store.sqlite"
"""Where `probatum try` keeps trials."""


def print_advice(
    data: str, target: str | None, reading: Reading, stores: Sequence[str] | None, top: int, *, as_json: bool
) -> None:
    """Look at the data and print what to try first."""
    if stores is None:
        stores = [str(USUAL)] if USUAL.is_file() else []
    console = Console(stderr=as_json)
    with console.status(f"looking at {data} ..."):
        advice = advise(data, target=target, reading=reading, stores=stores, top=top)
    if as_json:
        print(json.dumps(advice.as_json(), indent=1))
    else:
        show(console, advice)


def show(console: Console, advice: Advice) -> None:
    """The advice as text and a table."""
    profile = advice.facts.profile
    console.print(Text(f"{advice.facts.name}: {profile.modality}, task {profile.task}", style="bold"))
    for notice in advice.facts.notices:
        console.print(Text(f"  note: {notice}", style="yellow"))
    for fact in advice.facts.facts:
        console.print(Text(f"  {fact.words}", style="yellow" if fact.trait else ""))
    for note in advice.notes:
        console.print(Text(f"  note: {note}", style="dim"))
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("try first", style="cyan", overflow="fold")
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for place, one in enumerate(advice.advised, 1):
        table.add_row(f"{place}", one.technique, f"{one.points:+.2f}", Text(why(one)))
    console.print(table)
    left = len(advice.order) - len(advice.advised)
    told = f"{left} more can be tried, {len(advice.unfit)} cannot (--json tells all); "
    console.print(Text(f"{told}points guess the gain, in smallest differences that matter", style="dim"))
    console.print()
    console.print(Text(advice.rests))
    console.print(Text(advice.measured))
    console.print(Text(f"\n{advice.shell}", style="bold", overflow="fold"), soft_wrap=True)
