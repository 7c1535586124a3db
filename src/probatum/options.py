"""Options: the fields of what a user may set, as the command line calls them. One table for `probatum try`, its help, and
the command that repeats a study."""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from functools import cache
from typing import Any

from probatum.errors import InputError
from probatum.rooms import find
from probatum.rooms.kind import kinds
from probatum.rooms.rules import rules_of
from probatum.settings import FineTuning, Judging, Reading, Running, documented, told

VALUES: dict[str, type] = {"reading": Reading, "judging": Judging, "running": Running, "fine_tuning": FineTuning}
"""Values of `Study`, by the argument that takes them."""

OWN, RULES = "own", "rules"
"""Options of one kind of data, and rules of one arena: both are found by name."""

EXACT = 2**53
"""Whole numbers below it are their own floats."""

ASIDE = {
    "--store": "where trials are kept; the same study may stand in many stores",
    "--report": "a file that is written",
    "--json": "a file that is written",
    "--workers": "how many trials run side by side; their records are the same",
    "--on": "on which machines trials run; their records are the same",
    "--trial-minutes": "when a trial is stopped; the records of all others are the same",
    "--trial-memory": "what a process may take; the records of trials that end are the same",
}
"""Options of ``probatum try`` that say nothing of what is studied, and why: the command that repeats a study leaves them out."""


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    Attributes:
        group: the argument of `Study` it belongs to, "own" (into `Reading.options`) or "rules".
        holder: the value's class.
        field: the field's name in it.
        flag: as it is written, e.g. ``--pretrain``.
        kind: bool, int, float or str.
        many: whether it may be given several times.
        default: what stands on the command line where it is not given.
        about: what it means.
    """

    group: str
    holder: type
    field: str
    flag: str
    kind: type
    many: bool
    default: Any
    about: str

    @property
    def name(self) -> str:
        """The option as a Python name; ``for_`` for --for."""
        name = self.flag.removeprefix("--").replace("-", "_")
        return f"{name}_" if keyword.iskeyword(name) else name


@cache
def options() -> tuple[Option, ...]:
    """All options, those of the kinds of data and of the arenas among them; kinds from outside join later, see `own_options`."""
    found = [option for group, value in VALUES.items() for option in _of(group, value)]
    outside = {room.name for room in find.added() if room.sort == "kind"}
    own = (kind.options() for kind in kinds() if kind.NAME not in outside)
    found += [option for value in own if value is not None for option in _of(OWN, value)]
    rules = (rules_of(name) for name in find.names("arena"))
    found += [option for value in rules if value is not None for option in _of(RULES, value)]
    return tuple(found)


def _of(group: str, value: type) -> list[Option]:
    about = documented(value)
    found = []
    for one in fields(value):
        flag = one.metadata.get("flag", "--" + one.name.replace("_", "-"))
        if flag:
            kind, many = _kind(one)
            usual = one.metadata.get("usual", _default(one))
            found.append(Option(group, value, one.name, flag, kind, many, usual, about.get(one.name, "")))
    return found


def _kind(one: Field[Any]) -> tuple[type, bool]:
    words = str(one.type)
    if words.startswith("tuple"):
        return str, True
    if words == "bool":
        return bool, False
    if "str" in words or "Any" in words:
        return str, False
    return (float if "float" in words else int), False


def _default(one: Field[Any]) -> Any:
    return one.default if one.default is not MISSING else None


def values_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Study` that these options, by their Python names, stand for.

    Raises:
        InputError: rules of more than one arena.
    """
    by_holder: dict[type, dict[str, Any]] = {}
    for option in options():
        got = given.get(option.name, option.default)
        if got is not None and got != _default(option.holder.__dataclass_fields__[option.field]):  # type: ignore[attr-defined]
            by_holder.setdefault(option.holder, {})[option.field] = tuple(got) if option.many else got
    found: dict[str, Any] = {}
    for group, holder in VALUES.items():
        said = by_holder.pop(holder, {})
        if group == "reading":
            own = {option.holder for option in options() if option.group == OWN}
            said["options"] = {k: v for one in own & set(by_holder) for k, v in by_holder.pop(one).items()}
        found[group] = holder(**said) if said or group != "fine_tuning" else None
    if len(by_holder) > 1:
        names = " and ".join(sorted(getattr(holder, "arena", holder.__name__) for holder in by_holder))
        raise InputError(f"options of the arenas {names} together; give one's")
    found["rules"] = next((holder(**said) for holder, said in by_holder.items()), None)
    return found


def words_for(holder: type, said: Mapping[str, Any]) -> list[str]:
    """The words of the command line that say these fields of a value; what is as usual is not said."""
    words: list[str] = []
    for option in options():
        got = said.get(option.field)
        if option.holder is not holder or option.flag in ASIDE or got is None or got in (option.default, ()):
            continue
        if option.kind is bool:
            words.append(option.flag if got else option.flag.replace("--", "--no-", 1))
            continue
        for one in got if option.many else (got,):
            words += [option.flag, word(one)]
    return words


def word(value: Any) -> str:
    """A value as the command line reads it back to the last digit."""
    if not isinstance(value, float):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < EXACT else float.__repr__(value)


def of_the_study(value: Any) -> dict[str, Any]:
    """What a value says other than usual, as JSON values, but for what lies aside of the study (`ASIDE`)."""
    aside = {option.field for option in options() if option.holder is type(value) and option.flag in ASIDE}
    found = {name: got for name, got in told(value).items() if name not in aside}
    return {name: got for name, got in found.items() if isinstance(got, str | int | float)}


def with_own(values: Mapping[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    """The arguments of `Study` with what `own_options` reads from these texts; InputError where a flag says it as well."""
    own, reading = own_options(texts), values["reading"]
    both = sorted(set(own) & set(reading.options))
    if both:
        raise InputError(f"{both[0]} is said twice, by --{both[0].replace('_', '-')} and by --option; say it once")
    return {**values, "reading": replace(reading, options={**reading.options, **own})}


def own_options(texts: Iterable[str]) -> dict[str, Any]:
    """What ``NAME=VALUE`` says of options that only one kind of data asks, of kinds from outside too; for `Reading.options`.

    Raises:
        InputError: no such form or option, a value of another type, or an option said twice.
    """
    known = {one.name: one for kind in kinds() if (own := kind.options()) is not None for one in fields(own)}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not (name and equals):
            raise InputError(f"--option {text!r}: write NAME=VALUE, e.g. --option size=32")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"--option {text!r}: no kind of data asks {name!r}{hint} (they ask {', '.join(sorted(known))})"
            )
        if name in found:
            raise InputError(f"--option {text!r}: {name} is said twice; say it once")
        found[name] = _read(text, value, *_kind(known[name]))
    return found


def _read(text: str, value: str, kind: type, many: bool) -> Any:
    """A value from its words."""
    if many:
        return tuple(word.strip() for word in value.split(","))
    words = {"true": True, "yes": True, "false": False, "no": False}
    try:
        return words[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError) as problem:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise InputError(f"--option {text!r}: {value!r} is not {wanted}") from problem


def own_holders() -> Iterable[type]:
    """The classes of options that only one kind of data asks."""
    return dict.fromkeys(option.holder for option in options() if option.group == OWN)
