"""The command line in this process: its exit code and what it says, without the seconds that an interpreter's start takes."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from probatum import catalogue
from probatum.cli.main import main


def told(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """``probatum WORDS`` in a folder, with these variables; techniques that it adds are gone afterwards."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["probatum", *words])
        patch.setattr(catalogue, "_added", dict(catalogue._added))
        if cwd is not None:
            patch.chdir(cwd)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())
