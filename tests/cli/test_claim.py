"""`probatum claim`: which claim, on which seeds; mistakes are one line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from probatum.cli import claim_view
from probatum.cli.main import app, main

pytestmark = pytest.mark.fast

ASKED: list[tuple[str, str, tuple[int, ...]]] = []


@pytest.fixture(autouse=True)
def _nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims cost nothing: what is asked of them is written down."""

    def run(name: str, claim: object, seeds: tuple[int, ...]) -> dict[str, object]:
        ASKED.append((name, claim.id, seeds))  # type: ignore[attr-defined]
        return {"verdict": "reproduced", "seconds": 0.1, "measured": {"gain": 0.5}, "note": "", "seeds": list(seeds)}

    ASKED.clear()
    monkeypatch.setattr(claim_view, "run_claim", run)


def test_seeds_and_claim_are_asked_for() -> None:
    found = CliRunner().invoke(app, ["claim", "hypernet-kit", "--claim", "noise-calibrates", "--seeds", "1-2"])
    assert found.exit_code == 0, found.output
    assert ASKED == [("hypernet-kit", "noise-calibrates", (1, 2))]
    assert "claim 1 of 1: hypernet-kit/noise-calibrates on seeds 1, 2" in " ".join(found.output.split())
    assert "gain = 0.5" in found.output


def test_without_seeds_those_of_the_record_are_taken() -> None:
    found = CliRunner().invoke(app, ["claim", "conda", "--json"])
    assert found.exit_code == 0, found.output
    (one,) = json.loads(found.stdout)
    assert one["seeds"] == [101, 102, 103, 104, 105]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["conda", "--seeds", "5-1"], "error: --seeds '5-1': 5-1 goes down; write 1-5\n"),
        (["conda", "--seeds", "one"], "error: --seeds 'one': cannot read 'one'; write e.g. 1-5 or 1,2,7\n"),
        (
            ["hypernet-kit", "--claim", "x"],
            "error: hypernet-kit has no claim 'x'; it has one-generator-for-five-tasks, noise-calibrates\n",
        ),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["probatum", "claim", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == says
    assert not ASKED
