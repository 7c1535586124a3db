"""What the example studies share: their options, and a table and a report in the end."""

from __future__ import annotations

import argparse

from rich.console import Console

from probatum import Study
from probatum.cli.try_view import print_results


def options(about: str | None, *, report: str, steps: int) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--report", default=report)
    parser.add_argument("--store", default=None, help="file in which trials are kept; the same command then resumes")
    parser.add_argument("--no-timing", dest="timing", action="store_false", help="speed is not measured")
    return parser.parse_args()


def finish(study: Study, report: str) -> None:
    """Run, print verdicts, write the report."""
    study.run()
    print_results(Console(), study.results)
    print(f"report: {study.report(report)}")
