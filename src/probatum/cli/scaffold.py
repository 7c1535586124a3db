"""`probatum new SLOT/NAME`: the three files of a technique, ready to be filled and already passing their checks."""

from __future__ import annotations

from pathlib import Path

from probatum import catalogue, slots
from probatum.errors import InputError

TEMPLATES = Path(__file__).parent / "templates"


def scaffold(what: str, to: Path) -> list[Path]:
    """Write technique, claim and test for ``slot/name`` and return their paths.

    Inside a checkout of this package they go to their places in it; elsewhere to ``slot/name.py`` and so on under `to`.
    Nothing is overwritten.
    """
    slot, _, name = what.partition("/")
    if slot not in slots.names() or not catalogue.ID_PATTERN.fullmatch(name):
        raise InputError(f"{what!r}: give SLOT/NAME, e.g. loss/my-loss; slots are {', '.join(slots.names())}")
    if name in catalogue.names():
        raise InputError(f"{name} is taken by {catalogue.place(name).path}; choose another name")
    stem = name.replace("-", "_")
    words = {
        "ID": name,
        "STEM": stem,
        "SLOT": slot,
        "CLASS": "".join(part.capitalize() for part in name.split("-")),
        "TITLE": name.replace("-", " ").capitalize(),
    }
    inside = (to / "src" / "probatum" / "techniques").is_dir()
    places = {
        f"{slot}.py.txt": to / "src/probatum/techniques" / slot / f"{stem}.py" if inside else to / slot / f"{stem}.py",
        "claim.py.txt": to / "src/probatum/claims" / slot / f"{stem}.py" if inside else to / slot / f"claim_{stem}.py",
        "test.py.txt": to / "tests/techniques" / slot / f"test_{stem}.py" if inside else to / slot / f"test_{stem}.py",
    }
    words["IMPORT"] = f"probatum.techniques.{slot}.{stem}" if inside else stem
    taken = [path for path in places.values() if path.exists()]
    if taken:
        raise InputError(f"{taken[0]} exists already; choose another name or folder")
    for template, path in places.items():
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(places.values())
