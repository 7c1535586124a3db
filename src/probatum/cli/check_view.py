"""`probatum check`: the contract suite on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from probatum import catalogue
from probatum.checks.run import check

STYLES = {"passed": "green", "failed": "bold red", "not applicable": "dim", "expected to fail": "yellow"}


def print_checks(what: list[str] | None) -> None:
    """Check the named techniques or files (all without a name); exit code 1 where a check fails."""
    console, failures = Console(), 0
    for name in what or catalogue.names():
        results = check(name)
        failed = [result for result in results if result.status == "failed"]
        failures += len(failed)
        passed = sum(result.status == "passed" for result in results)
        console.print(Text.assemble((name, "bold"), f": {passed} passed, {len(failed)} failed"))
        for result in results if what else failed:
            mark = Text(f"  {result.status:16} ", style=STYLES[result.status])
            console.print(
                mark
                + Text(result.check.replace("_", " "))
                + Text(f"  {result.detail}" if result.detail else "", style="dim")
            )
    if failures:
        raise SystemExit(1)
