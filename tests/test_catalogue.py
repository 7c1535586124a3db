"""Cards are literals, ids are unique, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from probatum import catalogue
from probatum.card import Card
from probatum.errors import InputError

GOOD = '''"""A thing: it does something.

Paper     nobody
Computes  x
Shapes    (n,) -> (n,)
Departs   none
"""
from probatum.card import Card

CARD = Card(
    paper="none",
    title="A (bracketed) title",
    entry="Thing",
    slot="loss",
    tags=("own",),
    tiny={"a": (1, 2)},
)


class Thing:
    pass
'''


@pytest.fixture(autouse=True)
def _no_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})


def write(folder: Path, text: str, name: str = "a_thing.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_outside_file_joins(tmp_path: Path) -> None:
    name = catalogue.add_file(write(tmp_path, GOOD))
    assert name == "a-thing"
    assert "a-thing" in catalogue.names("loss")
    assert catalogue.card("a-thing") == catalogue.load("a-thing").CARD
    assert isinstance(catalogue.card("a-thing"), Card)
    assert catalogue.header("a-thing").fields["Shapes"] == "(n,) -> (n,)"


def test_folder_gives_the_slot(tmp_path: Path) -> None:
    folder = tmp_path / "optimizer"
    folder.mkdir()
    name = catalogue.add_file(write(folder, GOOD.replace('    slot="loss",\n', "")))
    assert catalogue.place(name).slot == "optimizer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('    slot="loss",\n', ""), "say which slot"),
        (('tags=("own",)', 'tags=tuple("own")'), "literals by keyword"),
        (('paper="none",\n', ""), "literals by keyword"),
        (("CARD = ", "OTHER = "), "CARD = Card"),
        (("Departs   none\n", ""), "lacks Departs"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(InputError, match=message) as error:
        catalogue.header(catalogue.add_file(path))
    assert "a_thing.py" in str(error.value)


def test_a_file_may_not_take_a_known_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is taken by"):
        catalogue.add_file(write(tmp_path, GOOD, "encouraging_loss.py"))


def test_unknown_id_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean encouraging-loss"):
        catalogue.place("encoraging-los")


def test_find_by_slot_tag_and_words() -> None:
    assert "encouraging-loss" in catalogue.find(slot="loss", tag="imbalance", text="well-classified UNDERESTIMATED")
    assert catalogue.find(text="no such words anywhere") == []
    with pytest.raises(InputError, match="no slot"):
        catalogue.find(slot="losses")


def test_numbers_and_titles_agree_with_the_catalogue_of_papers() -> None:
    table = Path(__file__).parents[2] / "shared" / "catalogue.tsv"
    if not table.is_file():
        pytest.skip("the table of papers is not on this machine")
    rows = {row.split("\t")[0]: row.split("\t") for row in table.read_text(encoding="utf-8").splitlines()[1:]}
    for name in catalogue.names():
        card = catalogue.card(name)
        if card.number is not None:
            row = rows[f"{card.number:03d}"]
            assert row[1] == name
            assert row[5].strip().lower() == card.title.strip().lower()
