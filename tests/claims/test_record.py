"""Claims run and recorded: on which seeds, what is refused, what is told, and when evidence is stale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from probatum.claims import chosen, record
from probatum.claims.base import Claim, Evidence
from probatum.claims.chosen import choose, claims_of, in_turn, minutes_of, read_seeds, seeds_in_words
from probatum.errors import InputError

pytestmark = pytest.mark.fast

RUN: list[tuple[str, tuple[int, ...]]] = []


def made(id: str, **fields: object) -> Claim:
    def run(seeds: Sequence[int]) -> Evidence:
        RUN.append((id, tuple(seeds)))
        return Evidence(True, {"share": 0.123456789}, note="as said")

    return Claim(id=id, says="It works.", threshold="1 of 1", data="none", run=run, **fields)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _two_claims(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Claims that cost nothing in place of conda's, and an evidence file of its own."""
    RUN.clear()
    two = (made("quick", minutes=2.0), made("few", seeds=(101, 102, 103)))
    monkeypatch.setattr(chosen, "claims_of", lambda name: two)
    monkeypatch.setattr(record, "EVIDENCE", tmp_path / "evidence.json")
    monkeypatch.setattr(record.evidence, "__defaults__", (tmp_path / "evidence.json",))
    monkeypatch.setattr(record.record, "__defaults__", (tmp_path / "evidence.json",))


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1-5", (1, 2, 3, 4, 5)),
        ("1,2,7", (1, 2, 7)),
        (" 3 - 4, 9", (3, 4, 9)),
        ("0", (0,)),
        ("101-105", tuple(range(101, 106))),
    ],
)
def test_seeds_are_read(text: str, seeds: tuple[int, ...]) -> None:
    assert read_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read ''; write e.g. 1-5 or 1,2,7"),
        ("a", "cannot read 'a'"),
        ("1-", "cannot read '1-'"),
        ("-3", "cannot read '-3'"),
        ("1,,2", "cannot read ''"),
        ("1.5", "cannot read '1.5'"),
        ("1-2-3", "cannot read '1-2-3'"),
        ("5-1", "5-1 goes down; write 1-5"),
        ("1-3,2", "says 2 twice"),
        ("1-1001", "more than 1000 seeds"),
        ("1-600,2001-2600", "more than 1000 seeds"),
        ("99999999999999", "cannot read"),
    ],
)
def test_other_seeds_are_refused(text: str, says: str) -> None:
    with pytest.raises(InputError) as problem:
        read_seeds(text)
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)


def test_the_most_seeds_are_taken() -> None:
    assert len(read_seeds(f"1-{chosen.MOST_SEEDS}")) == chosen.MOST_SEEDS


def test_seeds_in_words() -> None:
    assert seeds_in_words([1, 2, 3, 7]) == "1-3, 7"
    assert seeds_in_words([1, 2]) == "1, 2"
    assert seeds_in_words(range(101, 106)) == "101-105"


def test_one_claim_is_chosen_by_its_id() -> None:
    assert [(name, claim.id) for name, claim in choose(["conda"])] == [("conda", "quick"), ("conda", "few")]
    assert [claim.id for _, claim in choose(["conda"], "few")] == ["few"]
    with pytest.raises(InputError, match="conda has no claim 'other'; it has quick, few"):
        choose(["conda"], "other")
    with pytest.raises(InputError, match="--claim few is one technique's"):
        choose(["conda", "tabm"], "few")


def test_a_technique_without_a_claim_file_is_told() -> None:
    with pytest.raises(InputError, match="unknown technique 'nothing'"):
        claims_of("nothing")


def test_the_way_through_the_work_is_told() -> None:
    lines = [(seeds, line) for _, _, seeds, line in in_turn(choose(["conda"]), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10))]
    assert [seeds for seeds, _ in lines] == [tuple(range(1, 11))] * 2
    assert lines[0][1] == "claim 1 of 2: conda/quick on seeds 1-10, about 4 min; 0:00 passed"
    assert lines[1][1].startswith("claim 2 of 2: conda/few on seeds 1-10, about 3.3 min; ")
    assert minutes_of(made("half", minutes=4.0), (1,)) == pytest.approx(0.8)


def test_claims_are_recorded_on_their_own_seeds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record.main(["conda"])
    assert RUN == [("quick", (101, 102, 103, 104, 105)), ("few", (101, 102, 103))]
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert set(found) == {"conda/quick", "conda/few"}
    entry = found["conda/few"]
    assert entry["fingerprint"] == record.fingerprint("conda")
    assert "source" not in entry
    assert (entry["verdict"], entry["seeds"], entry["measured"]) == ("reproduced", [101, 102, 103], {"share": 0.12346})
    told = capsys.readouterr()
    assert "conda/few: reproduced in" in told.out
    assert "claim 2 of 2: conda/few on seeds 101-103, about 1 min; 0:00 passed" in told.err


def test_the_record_is_made_on_no_other_seeds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        record.main(["conda", "--seeds", "1-5"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "error: seeds 1-5 are not those of the record: conda/quick is recorded on 101-105, for seeds 101 on are for the "
        "record; add --dry to run on others\n"
    )
    with pytest.raises(SystemExit):
        record.main(["conda", "--seeds", "101-105"])  # not all of its claims are recorded on these
    assert "conda/few is recorded on 101-103" in capsys.readouterr().err
    assert not RUN
    assert not (tmp_path / "evidence.json").exists()
    record.main(["conda", "--claim", "quick", "--seeds", "101-105"])
    assert RUN == [("quick", (101, 102, 103, 104, 105))]


def test_a_dry_run_says_its_seeds_and_records_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record.main(["conda", "--dry", "--seeds", "1,2,7"])
    assert RUN == [("quick", (1, 2, 7)), ("few", (1, 2, 7))]
    assert capsys.readouterr().out.startswith("dry: nothing is recorded; spends seeds 1, 2, 7\n")
    record.main(["conda", "--dry"])
    assert capsys.readouterr().out.startswith("dry: nothing is recorded; spends seeds 101-105\n")
    assert not (tmp_path / "evidence.json").exists()


def test_only_stale_claims_are_run_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.main(["conda", "--stale"])
    assert [id for id, _ in RUN] == ["quick", "few"]
    RUN.clear()
    record.main(["conda", "--stale"])
    assert not RUN
    assert "nothing is stale" in capsys.readouterr().out
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert not record.is_stale("conda", found["conda/few"])
    found["conda/few"]["source"] = found["conda/few"].pop("fingerprint")
    assert record.is_stale("conda", found["conda/few"])
    (tmp_path / "evidence.json").write_text(json.dumps(found))
    record.main(["conda", "--stale"])
    assert [id for id, _ in RUN] == ["few"]
    monkeypatch.setattr(record, "fingerprint", lambda name: "another")
    assert record.is_stale("conda", found["conda/quick"])


def test_what_is_not_recorded_is_told_with_the_command() -> None:
    with pytest.raises(
        InputError, match=r"conda/quick has no recorded evidence; run `python -m probatum.claims.record conda`"
    ):
        record.recorded("conda", "quick", {})
    assert record.recorded("conda", "quick", {"conda/quick": {"seconds": 1}}) == {"seconds": 1}
