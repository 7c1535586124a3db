"""`probatum check`: the contract suite on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from probatum import catalogue
from probatum.checks.run import KIND, check
from probatum.rooms import find

STYLES = {
    "passed": "green",
    "failed": "bold red",
    "not applicable": "dim",
    "expected to fail": "yellow",
    "to do": "cyan",
}
TOLD = ("failed", "to do")
"""What is told also where everything is checked."""


def print_checks(what: list[str] | None) -> None:
    """Check the named techniques, files or kinds of data (without a name all of them); exit code 1 where a check fails.

    What is still to be done, such as evidence that was not recorded yet, is told and counted, and is no failure.
    """
    console, failures = Console(), 0
    for name in what or [*catalogue.names(), *(f"{KIND}{kind}" for kind in find.names("kind"))]:
        results = check(name)
        count = {status: sum(result.status == status for result in results) for status in STYLES}
        failures += count["failed"]
        told = f": {count['passed']} passed, {count['failed']} failed" + (
            f", {n} to do" if (n := count["to do"]) else ""
        )
        console.print(Text.assemble((name, "bold"), told))
        for result in results:
            if what or result.status in TOLD:
                console.print(
                    Text(f"  {result.status:16} ", style=STYLES[result.status])
                    + Text(result.check.replace("_", " "))
                    + Text(f"  {result.detail}" if result.detail else "", style="dim")
                )
    if failures:
        raise SystemExit(1)
