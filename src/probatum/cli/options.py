"""The options of `probatum try` and `probatum advise`, made from the fields of what a user may set (`probatum.options`)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from probatum.options import Option

PANELS = {
    "reading": "How data are read",
    "own": "Data of one kind",
    "judging": "What is compared, and when it counts",
    "running": "Where and how it runs",
    "fine_tuning": "Fine-tuning",
    "rules": "Rules of one arena",
}


QUICK = ("list", "show")
"""Commands that look something up: a fifth of their time would go into options which they do not have."""


def with_options(*groups: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: of these groups of options, all where none is named.

    A command whose last parameter, ``said``, takes them by name becomes one of which Typer sees one option each.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [one for one in own.parameters.values() if one.name != "said"]

        def run(**given: Any) -> None:
            explicit = {one.name: given.pop(one.name) for one in parameters}
            command(**explicit, said=given)

        made = [] if _looks_up(sys.argv) else _parameters(groups)
        run.__signature__ = inspect.Signature([*parameters, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*parameters, *made)}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _looks_up(words: list[str]) -> bool:
    """Whether this process was started, as ``probatum`` or ``python -m probatum``, for one of the quick commands."""
    program = Path(words[0]) if words else Path()
    ours = program.name == "probatum" or program.parts[-2:] == ("probatum", "__main__.py")
    return ours and words[1:2] != [] and words[1] in QUICK


def _parameters(groups: tuple[str, ...]) -> list[inspect.Parameter]:
    from probatum.options import options

    return [_parameter(option) for option in options() if not groups or option.group in groups]


def _parameter(option: Option) -> inspect.Parameter:
    flags = [option.flag]
    if option.kind is bool:
        flags = [f"{option.flag}/{option.flag.replace('--', '--no-', 1)}"]
    about = option.about[:1].upper() + option.about[1:]
    info = typer.Option(*flags, help=about, rich_help_panel=PANELS[option.group], show_default=_shown(option))
    kind: Any = list[option.kind] if option.many else option.kind  # type: ignore[name-defined]
    if option.default is None or option.many:
        kind = kind | None
    default = None if option.many else option.default
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _shown(option: Option) -> bool:
    return option.default is not None and not option.many
