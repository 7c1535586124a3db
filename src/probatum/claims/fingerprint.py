"""The fingerprint of what a claim's evidence rests on: the technique, its claim, and all of this package that they reach.

It is a hash over top-level definitions in normal form (`probatum.claims.normal_form`), so that comments, docstrings,
formatting and moves of modules and definitions leave it as it is, and a change of anything reached does not.

**What is reached.** The start is every statement of the technique's own file and of its claim's file. A name in them is
followed, through imports (also those within functions), to the definition that it stands for: a function, a class, an
assignment; then the names in that, and so on. ``module.name`` is followed to that name; where a module is used in any
other way, or the name is not found in it, all of the module counts. What is imported for type checkers alone does not
count. Files that lie in the technique's folder, or that reached code reads beside itself, count by their bytes.

**What acts on import** counts as soon as something reached imports the module: statements other than imports, definitions
and assignments, and any statement that stores into something or calls something meanwhile, be it in the body of a class, a
default, a decorator, a test or on the right of an assignment. Calls that only make a value do not act: those named in
`probatum.claims.module_text`, and of classes of ours whose constructors at most check. A class acts whose base keeps a list of
its heirs (``__init_subclass__``, a metaclass). The body of ``if __name__ == "__main__"`` never runs on import; its else does.

**Of a card** `entry` counts, and each other field where something that counts reads an attribute of that name.

**What is found by name when it runs** counts where its name is said, as a string constant in what is reached:

- *A technique*, where a claim says its id: ``"tabm(k=16)"``, ``"selu-snn+gradient-noise(eta=0.3)"``. Its file counts whole.
- *A module that `import_module` gets* by a name of which parts are known (``f"probatum.arenas.{name}"``), where the other
  parts are said. It counts whole.
- *A member of a room.* The code that opens a package as a room says its dotted name as a constant (``"probatum.kinds"``):
  that is all it takes. Which member is meant, the claim's side says: claims, techniques, and files ``sets.py`` that count.
  A member is meant by what it or a class in it calls itself, ``KIND = "label-noise"`` by ``"label-noise:0.4"``; a folder
  also by its own name, and by any word in its file ``sets.py`` that no other folder's has, such as the name of a data set.
  Of a folder's files count ``sets.py`` and those whose names are said by whatever is reached (``load("kind", ...)``).

So a claim on ``"digits"`` rests on images, and not on what is known of texts. A member that nobody says, being chosen by
looking at the data alone, is not seen; `tests/claims` holds that what runs is what counts.

A file that counts whole counts to its last constant, since its names may be asked for by any word (``getattr(how, name)``).

**Not seen** either:

- names looked up in ``globals()``, and definitions that nothing reached names and a ``vars()`` or ``dir()`` finds;
- what happens on import without a call that is written: operators, subscripts and attributes of objects that do more than they
  look like, ``__set_name__``, ``__class_getitem__``, annotations where they are evaluated;
- what calls that count as quiet do with functions that they are given, such as a ``default_factory``;
- imports of other packages for their effect alone, the versions of other packages, and the order in which modules run;
- ``__all__``, by which a star import chooses; a card read as a whole (``asdict(card)``); the slot of a technique, its folder;
- the environment, the machine, and the data under PROBATUM_DATA.

Nothing is imported to find all this: ``python -m probatum.claims.fingerprint TECHNIQUE`` lists what counts.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from probatum import catalogue
from probatum.catalogue import Place
from probatum.claims import module_text
from probatum.claims import normal_form as form
from probatum.claims.module_text import Module, own_names, parsed
from probatum.claims.normal_form import WHOLE, Found, NormalForm, Ref, Target
from probatum.errors import InputError

DEPTH = 3
"""How far a definition's label looks along its references; two definitions of one name and text differ by it."""
NOT_ROOMS = ("techniques", "claims")
SETS = "sets"
"""The file of a folder in a room whose words stand for the folder: names of what can be opened there."""
DOCUMENTS = (".md", ".rst")


@dataclass
class Reach:
    """What counts: statements of the package, and data files."""

    refs: set[Ref] = field(default_factory=set)
    data: set[Path] = field(default_factory=set)


class Sources:
    """A package as text: every file is parsed once, when it is first reached.

    Args:
        root: the package's folder.
        name: the package's name.
        techniques: by id.
    """

    def __init__(self, root: Path, name: str, techniques: Mapping[str, Place]) -> None:
        self.root, self.name, self.techniques = root, name, techniques
        self._modules: dict[str, Module] = {}
        self._forms: dict[Ref, NormalForm] = {}
        self._labels: dict[tuple[Ref, int], str] = {}
        self._running: dict[str, frozenset[str]] = {}

    def fingerprint(self, technique: str, claim: str) -> str:
        """The fingerprint of a technique (its id) together with its claim (the claim's module)."""
        reach = self.reach(technique, claim)
        parts = {self._label(ref, DEPTH) for ref in reach.refs if ref.position != WHOLE}
        parts |= {*self._of_cards(reach.refs), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in reach.data)}
        return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]

    def reach(self, technique: str, claim: str) -> Reach:
        """All that the technique and its claim reach; InputError where there is no such claim file."""
        if claim not in self._paths:
            raise InputError(f"{technique} has no claim file; expected {claim.replace('.', '/')}.py")
        found, said = Reach(), _Said()
        pending = [Ref(claim, WHOLE), *self._technique(technique, found)]
        running: set[str] = set()
        while pending:
            while pending:
                ref = pending.pop()
                if ref in found.refs:
                    continue
                found.refs.add(ref)
                its = self._form(ref)
                pending += its.refs
                by_claim = self._within(ref.module, "claims")
                said.hear(its, by_claim=by_claim, on_its_side=by_claim or self._within(ref.module, "techniques"))
                running |= self._run_with(ref.module, its.imported)
                if its.reads_beside:
                    beside = self._module(ref.module).path.parent
                    found.data |= {path for word in its.said if "." in word and (path := beside / word).is_file()}
            acting = {ref for module in running for ref in self._acting(module)}
            named = {ref for name in said.ids(self.techniques) for ref in self._technique(name, found)}
            by_name: set[Ref] = set()
            while (found_now := self._found_by_name(said)) != by_name:  # what is found may name more
                by_name = found_now
                said.chosen |= self._spoken(ref.module for ref in by_name if ref.module.endswith(f".{SETS}"))
            pending += (acting | named | by_name) - found.refs
        return found

    def name_of(self, ref: Ref) -> str:
        """What a statement defines, for people to read."""
        module = self._module(ref.module)
        names = [name for name, positions in module.positions.items() if ref.position in positions]
        return ", ".join(names) or ("(all)" if ref.position == WHOLE else f"statement {ref.position}")

    # modules

    @cached_property
    def _paths(self) -> dict[str, Path]:
        found = {}
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            found[".".join((self.name, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
        return found

    @cached_property
    def _folders(self) -> set[str]:
        return {name.rpartition(".")[0] for name in self._paths}

    def _is_package(self, name: str) -> bool:
        return name in self._folders or self._paths[name].name == "__init__.py"

    def _within(self, module: str, *rooms: str) -> bool:
        return any(module == f"{self.name}.{room}" or module.startswith(f"{self.name}.{room}.") for room in rooms)

    def _module(self, name: str) -> Module:
        if name not in self._modules:
            self._modules[name] = parsed(name, self._paths[name])
        return self._modules[name]

    def _technique(self, name: str, found: Reach) -> list[Ref]:
        """A technique's file whole; its data files are put to what was found."""
        place = self.techniques[name]
        files = (path for path in place.files() if path.suffix not in (".py", *DOCUMENTS))
        found.data |= {path for path in files if not path.name.startswith(".")}
        return [Ref(place.module, WHOLE)]

    # names

    def _known(self, module: Module, name: str) -> list[Target] | None:
        if name in module.positions or name in module.imports:
            return [Target(module.name, name)]
        for star in module.stars:
            if star in self._paths and self._known(self._module(star), name):
                return [Target(star, name)]
        return None

    def _resolve(self, targets: list[Target], attributes: list[str]) -> list[tuple[Found, int]]:
        found: list[tuple[Found, int]] = []
        for target in targets:
            first = [] if target.attribute is None else [target.attribute]
            for what, taken in self._follow(target.module, [*first, *attributes], ()):
                pair = (what, max(0, taken - len(first)))
                if pair not in found:
                    found.append(pair)
        return found

    def _follow(self, name: str, words: list[str], seen: tuple[tuple[str, str], ...]) -> list[tuple[Found, int]]:
        """What ``name.word.word`` is, and how many words that took."""
        if name not in self._paths:
            if words and name in self._folders:
                return [(what, taken + 1) for what, taken in self._follow(f"{name}.{words[0]}", words[1:], seen)]
            return [(".".join([name, *words]), len(words))]
        if not words or (name, words[0]) in seen:
            return [(Ref(name, WHOLE), 0)]
        module, word, seen = self._module(name), words[0], (*seen, (name, words[0]))
        targets = module.imports.get(word, [])
        found: list[tuple[Found, int]] = [(Ref(name, position), 1) for position in module.positions.get(word, ())]
        if not found and not targets:
            if f"{name}.{word}" in self._paths:
                targets = [Target(f"{name}.{word}")]
            elif star := self._known(module, word):
                return self._follow(star[0].module, words, seen)
            elif "__getattr__" in module.positions and word in module.typing:
                targets = [module.typing[word]]
            else:
                return [(Ref(name, WHOLE), 0)]
        for target in targets:
            first = [] if target.attribute is None else [target.attribute]
            for what, taken in self._follow(target.module, [*first, *words[1:]], seen):
                found.append((what, max(0, taken - len(first)) + 1))
        return found

    # definitions

    def _form(self, ref: Ref) -> NormalForm:
        if ref not in self._forms:
            module = self._module(ref.module)
            if ref.position == WHOLE:
                made = NormalForm("module", [*self._contents(module)])
            else:
                statement = module.statements[ref.position]
                made = form.normal_form(
                    statement, module.name, module.package, lambda name: self._known(module, name), self._resolve
                )
            self._forms[ref] = made
        return self._forms[ref]

    def _contents(self, module: Module) -> Iterator[Ref]:
        """All statements of a module, and the definitions that it imports."""
        for position in range(len(module.statements)):
            yield Ref(module.name, position)
        for targets in module.imports.values():
            for found, _ in self._resolve(targets, []):
                if isinstance(found, Ref) and found.position != WHOLE:
                    yield found

    def _label(self, ref: Ref, depth: int) -> str:
        if (ref, depth) not in self._labels:
            its = self._form(ref)
            labels = [self._label(other, depth - 1) for other in its.refs] if depth else []
            parts = [its.text, *(sorted(labels) if ref.position == WHOLE else labels)]
            self._labels[ref, depth] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return self._labels[ref, depth]

    def _of_cards(self, refs: Iterable[Ref]) -> Iterator[str]:
        """The fields of the cards that count which something that counts may read."""
        forms = {ref: self._form(ref) for ref in refs}
        asked = set().union(*(its.asked for its in forms.values()))
        for ref, its in forms.items():
            for name in its.fields.keys() & asked:
                yield f"{self._label(Ref(ref.module, WHOLE), 1)} {name}={its.fields[name]}"

    # what runs on import

    def _run_with(self, module: str, imported: Iterable[Target]) -> frozenset[str]:
        """All modules of ours that run when this one is imported and then those."""
        found = self._run_by(module)
        for target in imported:
            for name in self._named(target):
                found |= self._run_by(name)
        return found

    def _run_by(self, module: str) -> frozenset[str]:
        if module not in self._running:
            seen, stack = set(), [module]
            while stack:
                name = stack.pop()
                if name not in seen and name in self._paths:
                    seen.add(name)
                    stack += [name.rpartition(".")[0], *(n for t in self._module(name).runs for n in self._named(t))]
            self._running[module] = frozenset(seen)
        return self._running[module]

    def _named(self, target: Target) -> list[str]:
        """Modules of ours that an import names."""
        names = [target.module, f"{target.module}.{target.attribute}"]
        return [name for name in names if name in self._paths]

    @cache  # noqa: B019  # one object of this class is made a process
    def _acting(self, name: str) -> frozenset[Ref]:
        module = self._module(name)
        acting = set(module.acting)
        acting |= {at for at, called in module.called.items() if any(self._acts(module, one) for one in called)}
        acting |= {at for at, bases in module.derived.items() if any(self._enters(module, one) for one in bases)}
        return frozenset(Ref(name, position) for position in acting)

    def _acts(self, module: Module, called: ast.expr) -> bool:
        """Whether a call of this, while the module is imported, may do more than make a value."""
        root, words = form.dotted(called)
        targets = self._known(module, root) if root else None
        if targets is None:  # a builtin, a name within a class, or a method of whatever stands before it
            return not (module_text.is_quiet(".".join([root, *words])) or module_text.is_quiet_method(words))
        for found, taken in self._resolve(targets, words):
            if isinstance(found, str):
                quiet = module_text.is_quiet(".".join([found, *words[taken:]]))
            else:
                quiet = module_text.is_quiet_method(words[taken:]) if words[taken:] else self._made_quietly(found)
            if not quiet:
                return True
        return False

    @cache  # noqa: B019
    def _made_quietly(self, ref: Ref) -> bool:
        """Whether to make an object of ours does nothing beyond that."""
        its, bases = self._class(ref)
        for one in its.body if its is not None else ():
            if isinstance(one, ast.FunctionDef) and one.name in module_text.MAKING:
                checks, called = module_text.only_checks(one)
                if not checks or any(self._acts(self._module(ref.module), inner) for inner in called):
                    return False
        is_quiet = module_text.is_quiet_base
        return its is not None and all(
            is_quiet(base) if isinstance(base, str) else self._made_quietly(base) for base in bases
        )

    def _enters(self, module: Module, base: ast.expr) -> bool:
        """Whether to derive a class from this runs our code, which may enter it in a list."""
        return any(isinstance(one, Ref) and self._told_of_classes(one) for one in self._based_on(module, base))

    @cache  # noqa: B019
    def _told_of_classes(self, ref: Ref) -> bool:
        its, bases = self._class(ref)
        if its is None:
            return False
        own = "type" in bases or "__init_subclass__" in form.bound_names(its.body, "").names
        return own or any(isinstance(base, Ref) and self._told_of_classes(base) for base in bases)

    def _class(self, ref: Ref) -> tuple[ast.ClassDef | None, list[Found]]:
        """A class of ours and what it is derived from; None where the statement is no class."""
        module = self._module(ref.module)
        its = module.statements[ref.position] if ref.position != WHOLE else None
        if not isinstance(its, ast.ClassDef):
            return None, []
        nodes = (*its.bases, *(word.value for word in its.keywords))
        return its, [found for node in nodes for found in self._based_on(module, node)]

    def _based_on(self, module: Module, base: ast.expr) -> list[Found]:
        root, words = form.dotted(base.value if isinstance(base, ast.Subscript) else base)  # Base[T] is Base
        targets = self._known(module, root) if root else None
        return [found for found, _ in self._resolve(targets, words)] if targets else [".".join([root, *words])]

    # what is found by name

    def _found_by_name(self, said: _Said) -> set[Ref]:
        found, rooms = set(), set()
        for name in (said.words | said.opened) & self._paths.keys():
            if name == self.name or self._within(name, *NOT_ROOMS):
                continue
            if self._is_package(name):
                rooms.add(name)
            else:
                found.add(Ref(name, WHOLE))
        for room in rooms:
            if room.rpartition(".")[0] not in rooms:
                found |= {Ref(name, WHOLE) for name in self._members(room, said)}
        for pattern in said.opened:
            for name, parts in self._fitting(pattern):
                if set(map(_token, parts)) <= said.tokens:
                    found.add(Ref(name, WHOLE))
        return found

    def _members(self, room: str, said: _Said) -> Iterator[str]:
        """The modules of a room that count."""
        for name in self._paths:
            member, _, files = name.removeprefix(f"{room}.").partition(".")
            if not name.startswith(f"{room}.") or self._within(name, *NOT_ROOMS):
                continue
            meant = f"{room}.{member}" in said.words or self._words(room, member) & said.chosen
            if meant and {_token(file) for file in files.split(".")} - {"", SETS} <= said.tokens:
                yield name

    def _spoken(self, modules: Iterable[str]) -> set[str]:
        """The tokens that modules say, all of their statements taken."""
        refs = (Ref(name, i) for name in modules for i in range(len(self._module(name).statements)))
        return _tokens(word for ref in refs for word in self._form(ref).said)

    @cache  # noqa: B019
    def _fitting(self, pattern: str) -> list[tuple[str, tuple[str, ...]]]:
        """Modules that a pattern fits, and their parts in place of its stars."""
        if "*" not in pattern or not pattern.startswith(f"{self.name}."):
            return []
        shape = re.compile(re.escape(pattern).replace(r"\*", r"([^.]+)"))
        matches = {name: shape.fullmatch(name) for name in self._paths if not self._within(name, *NOT_ROOMS)}
        return [(name, match.groups()) for name, match in matches.items() if match is not None]

    @cache  # noqa: B019
    def _words(self, room: str, member: str) -> frozenset[str]:
        """By which words a member of a room is meant: those by which it calls itself and, for a folder, its name and what
        its file `SETS` says and that of no other folder."""
        own = [word for name in self._inside(f"{room}.{member}") for word in own_names(self._module(name).statements)]
        if not self._is_package(f"{room}.{member}"):
            return frozenset(_tokens(own))
        mine = f"{room}.{member}.{SETS}"
        sets = [name for name in self._inside(room) if name.endswith(f".{SETS}") and name.count(".") == mine.count(".")]
        others = self._spoken(name for name in sets if name != mine)
        return frozenset(_tokens([*own, member]) | (self._spoken(name for name in sets if name == mine) - others))

    def _inside(self, name: str) -> list[str]:
        return [one for one in self._paths if one == name or one.startswith(f"{name}.")]


@dataclass
class _Said:
    """String constants in what is reached.

    Attributes:
        words: all of them.
        tokens: their parts that may name something.
        chosen: those of them that stand in claims, in techniques and in files `SETS` that count.
        by_claims: strings in claims.
        opened: names of modules that are imported when they are known, see `NormalForm`.
    """

    words: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)
    by_claims: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)

    def hear(self, its: NormalForm, *, by_claim: bool, on_its_side: bool) -> None:
        """Take in what one statement says."""
        self.words |= its.said
        self.opened |= its.opened
        tokens = _tokens(its.said)
        self.tokens |= tokens
        if on_its_side:
            self.chosen |= tokens
        if by_claim:
            self.by_claims |= its.said

    def ids(self, techniques: Mapping[str, Place]) -> set[str]:
        """Techniques that claims name: an id at the beginning or behind ``+``, and then the end, ``(`` or ``+``."""
        found = {id for word in self.by_claims for id in re.findall(r"(?:^|\+)\s*([a-z0-9-]+)\s*(?=$|\(|\+)", word)}
        return found & techniques.keys()


def _tokens(said: Iterable[str]) -> set[str]:
    """The parts of words that may name something; prose names nothing."""
    return {_token(part) for word in said if " " not in word for part in re.split(r"[:(+/,]", word)} - {""}


def _token(word: str) -> str:
    return word.strip().replace("-", "_")


@cache
def _package() -> Sources:
    root = Path(catalogue.__file__).parent
    places = {name: catalogue.place(name) for name in catalogue.names()}
    return Sources(root, "probatum", {name: place for name, place in places.items() if place.inside is not None})


def claim_module(name: str) -> str:
    """The module that holds a technique's claims; InputError where the technique comes from outside the package."""
    where = catalogue.place(name)
    if where.inside is None:
        raise InputError(f"{name} comes from outside the package ({where.path}) and brings no recorded claim")
    return ".".join(("probatum", "claims", *where.inside.parts))


@cache
def fingerprint(name: str) -> str:
    """The fingerprint of a technique and its claims, of the files as they were when this process first read them."""
    return _package().fingerprint(name, claim_module(name))


def counted(name: str) -> list[str]:
    """What the evidence of a technique rests on: ``module: definition, ...`` lines, and data files."""
    sources = _package()
    reach = sources.reach(name, claim_module(name))
    by_module: dict[str, list[str]] = {}
    for ref in sorted(reach.refs):
        if ref.position != WHOLE:
            by_module.setdefault(ref.module, []).append(sources.name_of(ref))
    return [*(f"{module}: {', '.join(names)}" for module, names in by_module.items()), *map(str, sorted(reach.data))]


if __name__ == "__main__":
    for technique in sys.argv[1:]:
        print(technique, fingerprint(technique), *counted(technique), sep="\n  ")
