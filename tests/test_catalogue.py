"""Cards are literals, ids are unique, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from probatum import catalogue
from probatum.card import Card
from probatum.errors import InputError

pytestmark = pytest.mark.fast

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


TUNED = '''"""A loss with a factor.

Paper     nobody
Computes  cross-entropy times a factor
Shapes    (n, classes), (n,) -> ()
Departs   none
"""
from torch.nn import functional as F

from probatum.card import Card

CARD = Card(paper="none", title="FACTOR", entry="scaled", slot="loss", tasks=("classes",))


def scaled(output, target):
    """Cross-entropy of outputs (n, classes) times a factor."""
    return FACTOR * F.cross_entropy(output, target)
'''


def test_a_file_that_is_edited_and_added_again_is_imported_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    file, output, target = tmp_path / "edited_loss.py", torch.zeros(2, 2), torch.tensor([0, 1])
    file.write_text(TUNED.replace("FACTOR", "1"), encoding="utf-8")
    name = catalogue.add_file(file)
    once, before = float(catalogue.entry(name)(output, target)), catalogue.digest(name)
    file.write_text(TUNED.replace("FACTOR", "20"), encoding="utf-8")
    assert float(catalogue.entry(name)(output, target)) == once
    assert catalogue.digest(name) == before, "records say what ran, not what the file says now"
    assert catalogue.add_file(file) == name
    assert catalogue.card(name).title == "20"
    assert float(catalogue.entry(name)(output, target)) == pytest.approx(20 * once)
    assert catalogue.digest(name) != before


def test_a_folder_whose_import_failed_is_imported_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    folder = tmp_path / "two_files"
    folder.mkdir()
    text = TUNED.replace("FACTOR * F", "FACTOR() * F").replace('title="FACTOR"', 'title="x"')
    (folder / "two_files.py").write_text(text.replace("\n\n\ndef", "\nfrom .beside import FACTOR\n\n\ndef", 1))
    (folder / "beside.py").write_text("import nothing_of_that_name\n")
    name = catalogue.add_file(folder)
    with pytest.raises(InputError, match="importing it fails"):
        catalogue.load(name)
    found, output, target = [], torch.zeros(2, 2), torch.tensor([0, 1])
    for factor in (1, 2, 3):  # within a second, and of one size
        (folder / "beside.py").write_text(f"def FACTOR():\n    return {factor}\n")
        catalogue.add_file(folder)
        found.append(float(catalogue.entry(name)(output, target)))
    assert found == pytest.approx([found[0], 2 * found[0], 3 * found[0]])


def test_a_file_of_the_same_id_added_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    one, other = tmp_path / "one" / "same_id.py", tmp_path / "other" / "same_id.py"
    for file, factor in ((one, 1), (other, 5)):
        file.parent.mkdir()
        file.write_text(TUNED.replace("FACTOR", str(factor)))
    output, target, found = torch.zeros(2, 2), torch.tensor([0, 1]), []
    for file in (one, other, one):
        found.append(float(catalogue.entry(catalogue.add_file(file))(output, target)))
        file.write_text(TUNED.replace("FACTOR", "7"))
    assert found == pytest.approx([found[0], 5 * found[0], 7 * found[0]])
