"""Looking at the catalogue must not cost an import of torch."""

from __future__ import annotations

import json
import sys

import pytest

from probatum import catalogue
from probatum.cli.options import _looks_up
from processes import ran

pytestmark = pytest.mark.fast

HEAVY = ("torch", "numpy", "scipy", "sklearn", "polars", "pandas", "sqlalchemy")


def loaded_after(code: str) -> set[str]:
    """Which heavy packages are imported once `code` has run in a fresh interpreter."""
    probe = f"import sys\n{code}\nprint('HEAVY:' + ','.join(sorted(m for m in {HEAVY!r} if m in sys.modules)))"
    run = ran(sys.executable, "-c", probe)
    assert run.returncode == 0, run.stderr
    return set(filter(None, run.stdout.rpartition("HEAVY:")[2].strip().split(",")))


def command(*words: str) -> str:
    return (
        f"sys.argv = {['probatum', *words]!r}\n"
        "from probatum.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import probatum",
        "import probatum.catalogue as c; [c.card(n) for n in c.names()]",
        command("--help"),
        command("list"),
        command("list", "--json"),
        command("show", "encouraging-loss"),
        command("try", "--help"),
    ],
    ids=["import", "cards", "help", "list", "list-json", "show", "try-help"],
)
def test_no_heavy_import(code: str) -> None:
    assert loaded_after(code) == set()


def test_the_probe_can_see_a_heavy_import() -> None:
    assert "torch" in loaded_after("import torch")


def test_json_has_the_promised_fields() -> None:
    run = ran(sys.executable, "-m", "probatum", "list", "--json")
    assert run.returncode == 0, run.stderr
    items = json.loads(run.stdout)
    assert [item["id"] for item in items] == catalogue.names()
    for item in items:
        assert {"id", "slot", "number", "title", "paper", "tags", "claims"} <= set(item)
    one = ran(sys.executable, "-m", "probatum", "show", items[0]["id"], "--json")
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)[0]["id"] == items[0]["id"]


def test_public_names_resolve() -> None:
    import probatum

    for name in probatum.__all__:
        assert getattr(probatum, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = probatum.nothing_of_the_kind


@pytest.mark.parametrize(
    ("words", "quick"),
    [
        (["/usr/bin/probatum", "list"], True),
        (["/site-packages/probatum/__main__.py", "show", "tabm"], True),
        (["/usr/bin/probatum", "try", "--data", "iris"], False),
        (["/usr/bin/probatum"], False),
        (["/site-packages/pytest/__main__.py", "list"], False),
        ([], False),
    ],
)
def test_commands_that_look_something_up_do_not_wait_for_the_options_of_others(words: list[str], quick: bool) -> None:
    assert _looks_up(words) is quick
