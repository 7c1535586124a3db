"""A study's context as bytes, for other processes and machines: plan, data, the user's own network and technique files."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import cloudpickle

from probatum import catalogue
from probatum.bench.context import Context, Job
from probatum.bench.plan import StudyPlan, versions
from probatum.errors import InputError
from probatum.rooms import find

TechniqueFile = tuple[str, str, str, dict[str, bytes]]
"""Id, slot, path and the files, by their paths beside it, of a technique that is not part of an installed package."""


def pack(context: Context) -> bytes:
    """Everything `unpack` needs to make the context again elsewhere; InputError where something in it cannot travel."""
    context.study_key()  # worked out once, here, where the files are
    for name in outsiders_of(context.plan):
        if catalogue.edited(name):
            raise InputError(
                f"{catalogue.place(name).path} was edited while the study was made or run; the same command goes on with it as "
                "it is now"
            )
    try:
        return cloudpickle.dumps((_files(context.plan), _rooms(), cloudpickle.dumps(context)))
    except Exception as problem:  # what pickling raises depends on what is pickled
        raise InputError(
            f"the study cannot be sent to other processes ({type(problem).__name__}: {problem}); "
            "leave out workers and on, or give as model a function that builds the network from nothing"
        ) from problem


def unpack(parcel: bytes) -> Context:
    """The context that `pack` was given; its technique files and rooms join first."""
    files, rooms, rest = cloudpickle.loads(parcel)
    for file in files:
        catalogue.add_file(_placed(file))
    for sort, path, package, contents in rooms:
        find.add(_at(Path(path), contents), sort, package=package)
    try:
        return cloudpickle.loads(rest)
    except (ImportError, AttributeError) as problem:
        raise InputError(
            f"a worker cannot import what the study's network is made of ({problem}); define it in the script itself, "
            "or put its module on PYTHONPATH"
        ) from problem


def check_versions(jobs: Sequence[Job]) -> None:
    """InputError where this process runs other versions than those the jobs' records will be filed under."""
    here = versions()
    for job in jobs:
        wanted = job.plan["versions"]
        if wanted != here:
            unlike = ", ".join(f"{n} {here.get(n)} instead of {wanted[n]}" for n in wanted if wanted[n] != here.get(n))
            raise InputError(f"a worker has {unlike}; it must have what the study was started with")


def _files(plan: StudyPlan) -> list[TechniqueFile]:
    """Technique files of the user's that take part; those of installed packages are everywhere already."""
    places = [catalogue.place(name) for name in outsiders_of(plan)]
    return [(place.id, place.slot, str(place.path), _contents(place)) for place in places]


def outsiders_of(plan: StudyPlan) -> list[str]:
    """Ids of the files that take part."""
    ids = {use.id for recipe in (plan.base, *(arm.recipe for arm in plan.arms)) for use in recipe.uses()}
    return [name for name in sorted(ids) if catalogue.place(name).module.startswith(catalogue.ADDED)]


def _contents(place: catalogue.Place) -> dict[str, bytes]:
    return {str(file.relative_to(place.path.parent)): file.read_bytes() for file in place.files()}


def _rooms() -> list[tuple[str, str, str, dict[str, bytes]]]:
    """Sort, folder, package and files of kinds of data (and other rooms) that are no part of an installed package."""
    found = {}
    for room in find.added():
        if room.sort != "task" or not (room.folder / "kind.py").is_file():
            files = {str(f.relative_to(room.folder)): f.read_bytes() for f in find.files(room.folder)}
            found[room.folder] = (room.sort, str(room.folder), room.package, files)
    return list(found.values())


def _placed(file: TechniqueFile) -> Path:
    """The technique where it came from, or a copy where it is not there or is another one."""
    _, slot, path, contents = file
    original = Path(path)
    return _at(original.parent, contents, Path(slot) / (original.stem if len(contents) > 1 else "")) / original.name


def _at(folder: Path, contents: Mapping[str, bytes], beneath: Path | None = None) -> Path:
    """The folder itself, where it holds these files as they are; else a new one with copies of them."""
    with suppress(OSError):
        if all((folder / name).read_bytes() == content for name, content in contents.items()):
            return folder
    made = Path(tempfile.mkdtemp(prefix="probatum-"))  # nobody else's to write in
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    home = made / (folder.name if beneath is None else beneath)
    for name, content in contents.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    return home
