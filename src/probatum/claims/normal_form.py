"""One top-level statement of Python in normal form: what it does, without how it is written, and the names it reaches.

Left out: comments, formatting, docstrings, statements without effect, annotations of arguments, results and variables,
the words of raised errors and failed assertions, what is imported for type checkers alone, and a card but for its `entry`
(its other fields stand apart, for those who read them).
An import is replaced by what it brings: ``np.mean``, ``mean`` from numpy and ``numpy.mean`` are one thing, and a name of
our own package becomes a reference, so that neither paths nor aliases count.

Kept: annotations in the body of a class (they make a dataclass what it is) and of a function that some ``register``
dispatches on; names of definitions, arguments and local variables.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from probatum.card import Card

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
IMPORTS = (ast.Import, ast.ImportFrom)
UNSAID = ("ctx", "kind", "type_comment", "type_params", "type_ignores")
DYNAMIC = ("importlib.import_module", "__import__")
TIMING = {"Claim": "minutes"}
"""What a call says about its cost alone: (name of what is called, argument)."""

FIELDS = frozenset(Card.__dataclass_fields__)
FOR_PEOPLE = frozenset(("paper", "title", "number", "tags"))
"""Fields of cards whose names are common ones: they are read only where a definition names a card as well."""


@dataclass(frozen=True, order=True)
class Target:
    """What a name may stand for: a module (`attribute` None) or one thing in it, by the words of the import."""

    module: str
    attribute: str | None = None


@dataclass(frozen=True, order=True)
class Ref:
    """One top-level statement of our package by its module and position; position `WHOLE` is the module as such."""

    module: str
    position: int


WHOLE = -1
Found = str | Ref
"""What a name turned out to be: the dotted name of something that is not ours, or a statement of ours."""
Resolve = Callable[[list[Target], list[str]], list[tuple[Found, int]]]
"""(targets, attributes behind) -> what each is, and how many of the attributes that took."""


@dataclass
class NormalForm:
    """A statement in normal form.

    Attributes:
        text: the statement, ``@`` where something of ours is named.
        refs: what the ``@`` stand for, in order.
        said: string constants in it.
        imported: modules that it imports when it runs.
        opened: patterns of modules that it imports by a name made at run time; ``*`` is the part that is not known.
        reads_beside: whether it asks where its file lies.
        fields: of a card, each field but `entry`, in normal form.
        asked: fields of cards that it may read: attributes of such names.
    """

    text: str = ""
    refs: list[Ref] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    imported: set[Target] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)
    reads_beside: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)


@dataclass
class Scope:
    """Names bound in a function, a class or a comprehension: None for a variable, targets for an import."""

    names: dict[str, list[Target] | None]
    outer: set[str] = field(default_factory=set)
    of_class: bool = False


def normal_form(
    statement: ast.stmt, module: str, package: str, known: Callable[[str], list[Target] | None], resolve: Resolve
) -> NormalForm:
    """The normal form of one top-level statement.

    Args:
        statement: from the body of a module.
        module: the module's dotted name.
        package: that of the package it is in, for relative imports.
        known: global name -> what it stands for in this module, None where it is nothing of the module's.
        resolve: see `Resolve`.
    """
    writer = _Writer(module, package, known, resolve)
    if is_card(statement):
        writer.card(statement)
    else:
        writer.node(statement)
    writer.found.text = "".join(writer.out)
    if not writer.names_card:
        writer.found.asked -= FOR_PEOPLE
    return writer.found


def is_card(statement: ast.stmt) -> bool:
    """Whether it is a technique's ``CARD = Card(...)``."""
    return "CARD" in assigned_names(statement)


def assigned_names(statement: ast.stmt) -> list[str]:
    """Plain names that an assignment binds; [] for other statements."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    else:
        return []
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def for_type_checkers(statement: ast.stmt) -> bool:
    """Whether it is ``if TYPE_CHECKING:``."""
    if not isinstance(statement, ast.If):
        return False
    test = statement.test
    return (test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")) == "TYPE_CHECKING"


def import_targets(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, Target]:
    """Name -> what an import statement binds it to; ``"*"`` for a star."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.split(".")[0]: Target(alias.name if alias.asname else alias.name.split(".")[0])
            for alias in node.names
        }
    origin = node.module or ""
    if node.level:
        parts = package.split(".")
        origin = ".".join([*parts[: len(parts) - node.level + 1], *([origin] if origin else [])])
    return {alias.asname or alias.name: Target(origin, alias.name) for alias in node.names}


def effective(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block that do something: no docstrings, no ``pass``; of ``if TYPE_CHECKING`` the else."""
    for statement in body:
        if isinstance(statement, ast.Pass) or _is_constant(statement):
            continue
        if for_type_checkers(statement):
            yield from effective(statement.orelse)  # type: ignore[attr-defined]
        else:
            yield statement


def dotted(node: ast.expr) -> tuple[str, list[str]]:
    """``root.a.b`` as root and attributes; the root is "" where it is no plain name."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.insert(0, node.attr)
        node = node.value
    return (node.id if isinstance(node, ast.Name) else ""), words


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def bound_names(nodes: Iterable[ast.AST], package: str) -> Scope:
    """The names that these statements bind in their own scope."""
    scope, stack = Scope({}), list(nodes)
    while stack:
        node = stack.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            scope.names[node.name] = None
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, COMPREHENSIONS):  # a scope of its own, but for what := binds
            stack += [inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
            continue
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                scope.names.setdefault(node.id, None)
        elif isinstance(node, IMPORTS):
            for name, target in import_targets(node, package).items():
                scope.names[name] = [*(scope.names.get(name) or []), target]
        elif isinstance(node, ast.Global):
            scope.outer |= set(node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            scope.names[node.name] = None
        elif isinstance(node, ast.MatchMapping) and node.rest:
            scope.names[node.rest] = None
        if isinstance(node, ast.Nonlocal):
            for name in node.names:
                scope.names.pop(name, None)
        elif isinstance(node, ast.If) and for_type_checkers(node):
            stack += node.orelse
        else:
            stack += ast.iter_child_nodes(node)
    return scope


class _Writer:
    """Walks one statement and writes its normal form."""

    def __init__(
        self, module: str, package: str, known: Callable[[str], list[Target] | None], resolve: Resolve
    ) -> None:
        self.module, self.package, self.known, self.resolve = module, package, known, resolve
        self.out: list[str] = []
        self.found = NormalForm()
        self.scopes: list[Scope] = []
        self.refers, self.speaks, self.names_card = True, True, False

    def card(self, statement: ast.stmt) -> None:
        value = statement.value  # type: ignore[attr-defined]
        entry = [word.value for word in getattr(value, "keywords", ()) if word.arg == "entry"]
        self.out.append("Card(")
        self.each(entry)
        self.out.append(")")
        kept, self.refers, self.speaks = self.out, False, False  # a card's words choose nothing
        for word in getattr(value, "keywords", ()):
            if word.arg not in (None, "entry"):
                self.out = []
                self.node(word.value)
                self.found.fields[word.arg] = "".join(self.out)
        self.out, self.refers, self.speaks = kept, True, True

    def node(self, node: ast.AST) -> None:
        special = getattr(self, f"on_{type(node).__name__}", None)
        if special is not None:
            special(node)
        else:
            self.plain(node)

    def plain(self, node: ast.AST, without: tuple[str, ...] = ()) -> None:
        self.out.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or value == [] or name in UNSAID or name in without:
                continue
            self.out.append(f"{name}=")
            self.value(value)
        self.out.append(")")

    def value(self, value: object) -> None:
        if isinstance(value, ast.AST):
            self.node(value)
        elif isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            self.block(value)
        elif isinstance(value, list):
            self.each(value)
        else:
            self.out.append(f"{value!r},")

    def each(self, values: Iterable[object]) -> None:
        self.out.append("[")
        for value in values:
            self.value(value)
        self.out.append("]")

    def block(self, body: list[ast.stmt]) -> None:
        self.out.append("[")
        for statement in effective(body):
            self.node(statement)
        self.out.append("]")

    # names

    def lookup(self, name: str) -> list[Target] | None:
        """What a name stands for: None for a variable or a builtin."""
        for scope in reversed(self.scopes):
            if scope.of_class and scope is not self.scopes[-1]:
                continue
            if name in scope.outer:
                break
            if name in scope.names:
                return scope.names[name]
        return self.known(name)

    def on_Name(self, node: ast.Name) -> None:  # noqa: N802
        self.chain(node.id, [], isinstance(node.ctx, ast.Load))

    def on_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802
        names, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            names.append(root.attr)
            root = root.value
        of_own = isinstance(root, ast.Name) and root.id == "self"
        self.found.asked |= FIELDS.intersection(names[:-1] if of_own else names)
        self.names_card |= any("card" in name.lower() for name in names)
        if isinstance(root, ast.Name):
            self.chain(root.id, names[::-1], True)
        else:
            self.plain(node)

    def chain(self, root: str, attributes: list[str], loads: bool) -> None:
        """``root.a.b``, as what it is outside, as a reference inside, or as it stands."""
        self.names_card |= "card" in root.lower()
        if root == "__file__":
            self.found.reads_beside = True
        targets = self.lookup(root) if loads or self.scopes else None
        if not targets:
            self.out.append(f"<{'.'.join([root, *attributes])}>")
            return
        for found, taken in self.resolve(targets, attributes):
            rest = "".join(f".{name}" for name in attributes[taken:])
            if isinstance(found, str):
                self.out.append(f"<{found}{rest}>")
            elif self.refers:
                self.found.refs.append(found)
                self.out.append(f"<@{rest}>")
            else:
                self.out.append(f"<{[root, *attributes][taken]}{rest}>")

    def outside(self, node: ast.expr) -> str:
        """The dotted name of something that is not ours; "" where it is not one."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        targets = self.lookup(node.id)
        if targets is None:
            return node.id if not names else ""
        found, taken = self.resolve(targets, names)[0]
        return ".".join([found, *names[taken:]]) if isinstance(found, str) else ""

    # scopes

    def on_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:  # noqa: N802
        self.out.append(f"{type(node).__name__}({node.name},")
        self.each(node.decorator_list)
        dispatched = any(getattr(getattr(one, "func", one), "attr", "") == "register" for one in node.decorator_list)
        self.arguments(node.args, annotated=dispatched)
        if dispatched and node.returns is not None:
            self.node(node.returns)
        self.scopes.append(self.inner(node.args, node.body))
        self.block(node.body)
        self.scopes.pop()
        self.out.append(")")

    on_AsyncFunctionDef = on_FunctionDef  # noqa: N815

    def on_Lambda(self, node: ast.Lambda) -> None:  # noqa: N802
        self.out.append("Lambda(")
        self.arguments(node.args, annotated=False)
        self.scopes.append(self.inner(node.args, [node.body]))
        self.node(node.body)
        self.scopes.pop()
        self.out.append(")")

    def inner(self, arguments: ast.arguments, body: Iterable[ast.AST]) -> Scope:
        scope = bound_names(body, self.package)
        for argument in ast.walk(arguments):
            if isinstance(argument, ast.arg):
                scope.names[argument.arg] = None
        return scope

    def arguments(self, given: ast.arguments, annotated: bool) -> None:
        for kind in ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg"):
            several = getattr(given, kind)
            self.out.append(f"{kind}[")
            for one in several if isinstance(several, list) else filter(None, [several]):
                self.out.append(f"{one.arg},")
                if annotated and one.annotation is not None:
                    self.node(one.annotation)
            self.out.append("]")
        self.each(given.defaults)
        self.each(given.kw_defaults)

    def on_ClassDef(self, node: ast.ClassDef) -> None:  # noqa: N802
        self.out.append(f"ClassDef({node.name},")
        self.each(node.decorator_list)
        self.each(node.bases)
        self.each(node.keywords)
        scope = bound_names(node.body, self.package)
        scope.of_class = True
        self.scopes.append(scope)
        self.block(node.body)
        self.scopes.pop()
        self.out.append(")")

    def comprehension(self, node: ast.AST) -> None:
        stored = (one for part in node.generators for one in ast.walk(part.target))  # type: ignore[attr-defined]
        names: dict[str, list[Target] | None] = {one.id: None for one in stored if isinstance(one, ast.Name)}
        self.node(node.generators[0].iter)  # type: ignore[attr-defined]  # looked up outside, whatever it binds inside
        self.scopes.append(Scope(names))
        self.plain(node)
        self.scopes.pop()

    on_ListComp = on_SetComp = on_DictComp = on_GeneratorExp = comprehension  # noqa: N815

    # statements

    def on_Import(self, node: ast.Import | ast.ImportFrom) -> None:  # noqa: N802
        """What it brings stands where it is used; here it only says which modules run."""
        if isinstance(node, ast.Import):
            self.found.imported |= {Target(alias.name) for alias in node.names}
        else:
            self.found.imported |= set(import_targets(node, self.package).values())

    on_ImportFrom = on_Import  # noqa: N815

    def on_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: N802
        in_class = bool(self.scopes) and self.scopes[-1].of_class
        self.out.append("Assign(targets=[" if node.value is not None and not in_class else "AnnAssign([")
        self.node(node.target)
        self.out.append("]")
        if in_class:
            before, self.refers, self.speaks = (self.refers, self.speaks), False, False
            self.node(node.annotation)
            self.refers, self.speaks = before
        if node.value is not None:
            self.out.append("value=")
            self.node(node.value)
        self.out.append(")")

    def on_Raise(self, node: ast.Raise) -> None:  # noqa: N802
        before, self.speaks = self.speaks, False
        self.plain(node)
        self.speaks = before

    def on_Assert(self, node: ast.Assert) -> None:  # noqa: N802
        self.plain(node, without=("msg",))

    # expressions

    def on_Constant(self, node: ast.Constant) -> None:  # noqa: N802
        if isinstance(node.value, str):
            if not self.speaks:
                self.out.append("''" if self.refers else repr(node.value))
                return
            self.found.said.add(node.value)
        self.out.append(f"{node.value!r},")

    def on_Call(self, node: ast.Call) -> None:  # noqa: N802
        called = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        if called in TIMING:
            words = [word for word in node.keywords if word.arg != TIMING[called]]
            node = ast.Call(func=node.func, args=node.args, keywords=words)
        if called == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            self.found.asked |= FIELDS & {node.args[1].value}
        if called in ("import_module", "__import__") and node.args and self.outside(node.func) in DYNAMIC:
            self.found.opened.add(self.pattern(node.args[0]))
        self.plain(node)

    def pattern(self, name: ast.expr) -> str:
        """The module's name that an expression makes, ``*`` for what is only known when it runs."""
        if isinstance(name, ast.JoinedStr):
            return "".join(self.pattern(part) for part in name.values)
        if isinstance(name, ast.FormattedValue):
            return self.pattern(name.value)
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return name.value
        if isinstance(name, ast.Name) and name.id in ("__package__", "__name__"):
            return self.package if name.id == "__package__" else self.module
        return "*"
