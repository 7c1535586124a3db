"""`probatum new`: the files of a technique, a kind of data or an arena, ready to be filled and already passing their checks.

Templates lie in ``templates/``, words in them such as ``@ID@`` are replaced. A slot has two, ``SLOT.py.txt`` and
``test_SLOT.py.txt``, and one for its claim where ``claim.py.txt`` does not do (``claim_SLOT.py.txt``); so a new slot brings its own.
"""

from __future__ import annotations

import ast
import itertools
import keyword
import re
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

from probatum import catalogue, slots
from probatum.errors import InputError
from probatum.files import check_folder, write_together
from probatum.rooms import find

TEMPLATES = Path(__file__).parent / "templates"
SOURCE, TESTS, FRAGMENTS = Path("src/probatum"), Path("tests"), Path("changelog.d")
"""Where things lie in a checkout."""
FOLDER = re.compile(r"[a-z][a-z0-9_]*")
CLAIM = "say-what-it-claims"
BASE = ("kind", "arena")
"""What stands before the slash where no technique is meant."""

RESERVED = ("base", "baseline", "usual", "auto", "all", "none", "kind", "arena", "task")
"""Names that are used for something else: the arm that others are compared with, what kinds have in common, words of options."""

Files = dict[Path, str]


def scaffold(what: str, to: Path) -> list[Path]:
    """Write the files of a technique, ``SLOT/[FOLDER/]NAME``, of a kind of data, ``kind/NAME``, or of an arena, ``arena/NAME``.

    Inside a checkout of this package they go to their places in it; elsewhere a technique goes to ``SLOT/[FOLDER/]NAME.py``,
    claim and test beside, and a kind to a folder ``NAME/``. Nothing is overwritten.

    Returns:
        The paths of all that was written, the main file first.

    Raises:
        InputError: no such slot, a name that is taken or no name, or an arena outside a checkout.
    """
    sort, *folders = what.split("/")
    name = folders.pop() if folders else ""
    inside = (to / SOURCE / "techniques").is_dir()
    if sort not in (*BASE, *slots.names()) or not catalogue.ID_PATTERN.fullmatch(name):
        raise InputError(
            f"{what!r}: give SLOT/NAME, e.g. loss/my-loss or model/tables/my-model, kind/NAME or arena/NAME; slots are "
            f"{', '.join(slots.names())}"
        )
    _check_names(sort, folders, name, inside)
    if sort in BASE and folders:
        raise InputError(f"{what!r}: a {sort} lies in one folder; give {sort}/{name}")
    if sort == "kind":
        files = _kind(name, inside)
    elif sort == "arena":
        files = _arena(name, inside)
    else:
        files = _technique(sort, folders, name, to, inside)
    return _written({to / path: text for path, text in files.items()})


def _check_names(sort: str, folders: list[str], name: str, inside: bool) -> None:
    """InputError for names that Python, a package or this house has for something else."""
    words = _words(name)
    for word in (*folders, words["STEM"], words["CLASS"]):
        if keyword.iskeyword(word) or keyword.issoftkeyword(word):
            raise InputError(f"{word!r} is a word of Python's own; choose another name")
    if name in RESERVED:
        raise InputError(f"{name!r} means something else here; choose another name")
    stem = words["STEM"]
    if not inside and (stem in sys.stdlib_module_names or (sort in BASE and stem in packages_distributions())):
        raise InputError(
            f"{name!r} is the name of a Python module, which a folder of that name would hide; choose another"
        )


def _technique(slot: str, folders: list[str], name: str, to: Path, inside: bool) -> Files:
    """Technique, claim and test; inside a checkout a fragment of the changelog, too."""
    if name in catalogue.names():
        raise InputError(f"{name} is taken by {catalogue.place(name).path}; choose another name")
    bad = [folder for folder in folders if not FOLDER.fullmatch(folder)]
    if bad:
        raise InputError(
            f"{bad[0]!r} is no name of a folder; use lower-case letters, digits and underscores, e.g. tables"
        )
    stem, home = name.replace("-", "_"), Path(slot, *folders)
    template = _read(f"{slot}.py.txt")
    measure, better = _measure(slot)
    words = {
        **_words(name),
        "SLOT": slot,
        "ARENA": slots.arena_of(slot),
        "MEASURE": measure,
        "BETTER": better,
        "CLAIMS": f'claims=("{CLAIM}",),' if inside else "",
        "SUITE": "",
    }
    text = _filled(_with_modalities(template, folders), words)
    words |= {"ENTRY": _entry(text), "SUITE": _filled(_read("suite.py.txt"), words), "DATA": _data_for(text)}
    if inside:
        main = SOURCE / "techniques" / home / f"{stem}.py"
        _check_own_folder(main, to)
        words["IMPORT"] = f"from {'.'.join(main.with_suffix('').parts[1:])} import {words['ENTRY']}"
        claim, test = SOURCE / "claims" / home / f"{stem}.py", TESTS / "techniques" / home / f"test_{stem}.py"
    else:
        main, claim, test = (home / f"{prefix}{stem}.py" for prefix in ("", "claim_", "test_"))
        words["IMPORT"] = "from pathlib import Path\nfrom probatum import catalogue"
        load = f'catalogue.entry(catalogue.add_file(Path(__file__).with_name("{stem}.py")))'
        words["SUITE"] = f"{words['ENTRY']} = {load}\n\n{words['SUITE']}"
    special = f"claim_{slot}.py.txt"
    claims = special if (TEMPLATES / special).is_file() else "claim.py.txt"
    files = {main: text, claim: _filled(_read(claims), words), test: _filled(_read(f"test_{slot}.py.txt"), words)}
    if not inside:
        return files
    inits = {
        SOURCE / room / Path(*home.parts[:depth]) / "__init__.py": ""
        for room in ("techniques", "claims")
        for depth in range(2, len(home.parts) + 1)
    }
    about = f"`{name}` (slot {slot}): say in a sentence what it does for a user."
    return files | _fragment(name, about, "technique") | inits


def _kind(name: str, inside: bool) -> Files:
    """The folder of a kind of data, and its test."""
    if name in find.names("kind"):
        raise InputError(f"{name} is taken by {find.room('kind', name).folder}; choose another name")
    stem = name.replace("-", "_")
    package = f"probatum.kinds.{stem}"
    beside = f"Its files import one another by their full names, {package}.FILE."
    if not inside:
        beside = (
            "Its files import one another relatively, ``from .encode import ...``: a folder that joins by `--kind`, or by\n"
            "`probatum.rooms.find.add`, has no name of its own that Python could import."
        )
    words = {**_words(name), "HERE": package if inside else "", "HOW": beside, "IMPORT": "", "SETUP": ""}
    if not inside:
        words["IMPORT"] = "from probatum.rooms import find"
        words["SETUP"] = f'find.add(Path(__file__).with_name("{stem}"))\n'
    home = SOURCE / "kinds" / stem if inside else Path(stem)
    parts = ("kind", "read", "encode", "network", "toy", "sets")
    files = {home / f"{part}.py": _filled(_read(f"kind/{part}.py.txt"), words) for part in parts}
    files[home / "__init__.py"] = ""
    test = TESTS / "kinds" / f"test_{stem}.py" if inside else Path(f"test_{stem}.py")
    files[test] = _filled(_read("kind/test.py.txt"), words)
    about = f"Data of kind `{name}`: say in a sentence what a row is and in which files it comes."
    return files | (_fragment(name, about) if inside else {})


def _arena(name: str, inside: bool) -> Files:
    """An arena with the slot that plays in it."""
    if not inside:
        raise InputError(
            f"arena/{name}: an arena brings a slot, whose contract, checks and templates lie in this package; write it in a "
            "checkout of Probatum (--to CHECKOUT)"
        )
    stem = name.replace("-", "_")
    if name in find.names("arena") or stem in (*slots.names(), *BASE):
        sort = "an arena" if name in find.names("arena") else "a slot"
        raise InputError(f"there is {sort} called {name} already; choose another name")
    words, templates = _words(name), SOURCE / "cli" / "templates"
    files = {
        SOURCE / "arenas" / stem / "arena.py": "arena.py.txt",
        SOURCE / "contracts" / f"{stem}.py": "contract.py.txt",
        SOURCE / "checks" / f"{stem}.py": "checks.py.txt",
        TESTS / "arenas" / f"test_{stem}.py": "test.py.txt",
    }
    found = {path: _filled(_read(f"arena/{template}"), words) for path, template in files.items()}
    found |= {  # these are templates again
        templates / f"{stem}.py.txt": _read("arena/technique.py.txt"),
        templates / f"test_{stem}.py.txt": _read("arena/technique_test.py.txt"),
    }
    rooms = (Path("arenas", stem), Path("techniques", stem), Path("claims", stem))
    about = f"Arena `{name}` with slot `{stem}`: say in a sentence who wins."
    return found | {SOURCE / room / "__init__.py": "" for room in rooms} | _fragment(name, about)


def _written(files: Mapping[Path, str]) -> list[Path]:
    """Write files that are not there; packages that are there already are left as they are."""
    new = {path: text for path, text in files.items() if not (path.name == "__init__.py" and path.exists())}
    taken = [path for path in new if path.exists()]
    if taken:
        raise InputError(f"{taken[0]} exists already; choose another name or folder")
    for path in new:
        check_folder(path.parent, "the files of")
    write_together(new)
    return list(new)


def _fragment(name: str, text: str, sort: str = "added") -> Files:
    return {FRAGMENTS / f"{name}.{sort}.md": text + "\n"}


def _words(name: str) -> dict[str, str]:
    return {
        "ID": name,
        "STEM": name.replace("-", "_"),
        "CLASS": "".join(part.capitalize() for part in name.split("-")),
        "TITLE": name.replace("-", " ").capitalize(),
    }


def _read(template: str) -> str:
    path = TEMPLATES / template
    if not path.is_file():
        raise InputError(f"there is no template {template}; write {path}")
    return path.read_text(encoding="utf-8")


def _filled(text: str, words: Mapping[str, str]) -> str:
    """A template with its words replaced, imports in order, lines that became empty left out."""
    for word, value in words.items():
        text = re.sub(rf"^ *@{word}@\n", "", text, flags=re.MULTILINE) if not value else text
        text = text.replace(f"@{word}@", value)
    return _arranged(text)


def _with_modalities(template: str, folders: list[str]) -> str:
    """The template's ``@MODALITIES a b@``: one kind's where a folder is named after it, else those named there; none = any."""
    from probatum.rooms.kind import modalities

    named = [modality for modality in modalities() for folder in folders if folder.startswith(modality)]

    def line(match: re.Match[str]) -> str:
        usual = match.group(1).split()
        taken = named[:1] if named and (not usual or named[0] in usual) else usual
        words = ", ".join(f'"{modality}"' for modality in taken) + ("," if len(taken) == 1 else "")
        return f"    modalities=({words}),\n" if taken else ""

    return re.sub(r"^ *@MODALITIES((?: \w+)*)@\n", line, template, flags=re.MULTILINE)


def _measure(slot: str) -> tuple[str, str]:
    """The measure that decides in the slot's arena on a table of classes, and the sign of what is better."""
    from probatum.measure.base import all_measures
    from probatum.rooms.arena import arena
    from probatum.spec import Spec

    name = arena(slots.arena_of(slot)).measures(Spec("table", "classes", (13,), 3, numeric=13))[0]
    return name, ">" if all_measures()[name].higher_is_better else "<"


def _data_for(text: str) -> str:
    """An embedded set that a technique of this text takes: of its first modality, a small table where it takes those."""
    from probatum.rooms.kind import kind_of

    taken = re.findall(r'"([^"]+)"', found.group(1)) if (found := re.search(r"modalities=\((.*?)\)", text)) else []
    return "wine" if not taken or "table" in taken else kind_of(taken[0], "classes").EXAMPLE


def _entry(text: str) -> str:
    """The card's entry in a technique's text."""
    found = re.search(r'entry="(\w+)"', text)
    assert found is not None
    return found.group(1)


def _check_own_folder(main: Path, to: Path) -> None:
    """InputError where the folder belongs to one technique, which has it to itself."""
    for folder in main.parents:
        if (to / folder / f"{folder.name}.py").is_file():
            raise InputError(f"{folder} is the folder of one technique, {folder.name}; choose another folder")


def _arranged(text: str) -> str:
    """The imports at the top of a file in sorted blocks: of the standard library, of others, of this package, relative ones."""
    lines = text.split("\n")
    tops = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    tops = [node for node in tops if getattr(node, "module", "") != "__future__"]
    if not tops:
        return text
    found: list[tuple[int, bool, str, str]] = []
    for node in tops:
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        module = node.names[0].name if isinstance(node, ast.Import) else node.module or ""
        top = module.split(".")[0]
        block = 3 if relative else 2 if top == "probatum" else 0 if top in sys.stdlib_module_names else 1
        line = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        found.append((block, isinstance(node, ast.ImportFrom), module, line))
    blocks = ("\n".join(one[3] for one in group) for _, group in itertools.groupby(sorted(found), lambda one: one[0]))
    return "\n".join([*lines[: tops[0].lineno - 1], "\n\n".join(blocks), *lines[tops[-1].end_lineno :]])
