"""A module of our package as text: its statements that do something, what its names are bound to, what it runs.

Importing a module runs more than its plain statements: bodies of classes, defaults of arguments, decorators, tests, and
whatever stands on the right of an assignment. What is called there may do anything, unless it is known to do nothing
beyond making a value (`QUIET`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from probatum.claims import normal_form as form
from probatum.claims.normal_form import Target
from probatum.errors import InputError

QUIET = """
    abs all any bool bytes complex dict dict.fromkeys dir enumerate float frozenset getattr hasattr int isinstance len list max
    min object range repr reversed round set slice sorted str sum super tuple zip
    collections.namedtuple collections.OrderedDict dataclasses.field functools.partial operator.attrgetter operator.itemgetter
    pathlib.Path re.compile threading.local types.MappingProxyType typing.NewType typing.ParamSpec typing.TypeVar typing.cast
    torch.arange torch.device torch.finfo torch.linspace torch.ones torch.tensor torch.zeros
    numpy.arange numpy.array numpy.dtype numpy.finfo numpy.linspace numpy.ones numpy.zeros

    classmethod property staticmethod abc.abstractmethod contextlib.contextmanager dataclasses.dataclass functools.cache
    functools.cached_property functools.lru_cache functools.singledispatch functools.total_ordering functools.wraps
    torch.enable_grad torch.inference_mode torch.no_grad torch.autograd.function.once_differentiable
    typing.final typing.overload typing.runtime_checkable
"""
"""What may be called while a module is imported: it makes a value, or wraps a function, and keeps and changes nothing else."""
QUIET_METHODS = """
    copy deleter encode endswith format fullmatch get getter items join keys lower match removeprefix removesuffix replace
    resolve search setter split startswith strip upper values with_name with_suffix
"""
"""The same of methods of literals, of results and of our own tables."""
QUIET_BASES = "object abc.ABC enum.Enum typing.Generic typing.NamedTuple typing.Protocol"
"""Classes from outside that add nothing to how one of ours is made."""
MAKING = ("__init__", "__new__", "__post_init__")
_QUIET, _QUIET_METHODS, _QUIET_BASES = (frozenset(words.split()) for words in (QUIET, QUIET_METHODS, QUIET_BASES))


@dataclass
class Module:
    """One parsed module: its statements that do something, and what its names are bound to.

    Attributes:
        name: dotted.
        package: that of the package it is in, or is.
        path: its file.
        statements: those of its body that do something, imports left out.
        positions: name -> which statements bind it.
        imports: name -> what imports bind it to.
        typing: the same of imports for type checkers.
        stars: modules whose names are all imported.
        acting: statements that act when the module is imported.
        called: statement -> what it calls when the module is imported.
        derived: statement -> what the classes in it are derived from, metaclasses included.
        runs: what is imported with it.
    """

    name: str
    package: str
    path: Path
    statements: list[ast.stmt] = field(default_factory=list)
    positions: dict[str, list[int]] = field(default_factory=dict)
    imports: dict[str, list[Target]] = field(default_factory=dict)
    typing: dict[str, Target] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    acting: list[int] = field(default_factory=list)
    called: dict[int, list[ast.expr]] = field(default_factory=dict)
    derived: dict[int, list[ast.expr]] = field(default_factory=dict)
    runs: set[Target] = field(default_factory=set)


def parsed(name: str, path: Path) -> Module:
    """The module in this file; InputError where it is not Python."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as problem:
        raise InputError(f"{path}, line {problem.lineno}: not Python: {problem.msg}") from problem
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _indexed(Module(name, package, path), tree)


def own_names(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """By what names a module or its classes call themselves: ``KIND = "label-noise"``, ``NAME = "image"``."""
    for statement in statements:
        if isinstance(statement, ast.ClassDef):
            yield from own_names(statement.body)
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
            said = statement.value.value
            if isinstance(said, str) and set(form.assigned_names(statement)) & {"KIND", "NAME"}:
                yield said


def _indexed(module: Module, tree: ast.Module) -> Module:
    """The module with what its statements bind, and which of them act."""
    for statement in tree.body:
        if form.for_type_checkers(statement):
            for inner in ast.walk(statement):
                if isinstance(inner, form.IMPORTS):
                    module.typing |= form.import_targets(inner, module.package)
    for statement in _run_on_import(tree.body):
        if isinstance(statement, form.IMPORTS):
            for name, target in form.import_targets(statement, module.package).items():
                if name == "*":
                    module.stars.append(target.module)
                else:
                    module.imports.setdefault(name, []).append(target)
            module.runs |= _imported(statement, module.package)
        elif not _binds_nothing(statement):
            _place(module, statement)
    return module


def _place(module: Module, statement: ast.stmt) -> None:
    position = len(module.statements)
    module.statements.append(statement)
    for name, targets in form.bound_names([statement], module.package).names.items():
        module.positions.setdefault(name, []).append(position)
        module.imports.setdefault(name, []).extend(targets or ())
        if not module.imports[name]:
            del module.imports[name]
    executed = list(_executed(statement))
    if any(map(_stores, executed)) or not all(_only_binds(inner) for inner in _flat(statement)):
        module.acting.append(position)
    if called := [one for node in executed for one in _calls(node)]:
        module.called[position] = called
    classes = [node for node in executed if isinstance(node, ast.ClassDef)]
    if derived := [one for node in classes for one in (*node.bases, *(word.value for word in node.keywords))]:
        module.derived[position] = derived
    for inner in executed:
        if isinstance(inner, form.IMPORTS):
            module.runs |= _imported(inner, module.package)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs when a statement is met on import: of functions their decorators and defaults, and no annotations."""
    if isinstance(node, (*form.FUNCTIONS, ast.Lambda)):
        inner: Iterable[ast.AST | None] = (*node.args.defaults, *node.args.kw_defaults)
        if not isinstance(node, ast.Lambda):
            yield node
            inner = (*node.decorator_list, *inner)
    else:
        yield node
        inner = (node.target, node.value) if isinstance(node, ast.AnnAssign) else ast.iter_child_nodes(node)
    for one in inner:
        if one is not None:
            yield from _executed(one)


def _calls(node: ast.AST) -> Iterator[ast.expr]:
    """What this node calls, and what it gives away to be called at once."""
    if isinstance(node, ast.Call):
        yield node.func
        yield from (word.value for word in node.keywords if word.arg == "key")
    elif isinstance(node, (*form.FUNCTIONS, ast.ClassDef)):
        yield from (one for one in node.decorator_list if not isinstance(one, ast.Call))


def is_quiet(name: str) -> bool:
    """Whether a call of this, no thing of ours, does nothing beyond making a value; "" is no name."""
    return name in _QUIET or name.startswith("math.")


def is_quiet_method(words: list[str]) -> bool:
    """Whether ``.word.word`` of something ends in a method that does nothing beyond making a value."""
    return bool(words) and words[-1] in _QUIET_METHODS


def is_quiet_base(name: str) -> bool:
    """Whether a class from outside adds nothing to how one of ours that is derived from it is made."""
    return name in _QUIET_BASES


def only_checks(function: ast.FunctionDef) -> tuple[bool, list[ast.expr]]:
    """Whether a constructor does nothing but check, and set what belongs to its object, and what it calls meanwhile.

    What it raises does not count: then nothing is imported.
    """
    own, called = {one.arg for one in function.args.args[:1]}, []
    stack: list[ast.AST] = [*function.body]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise):
            continue
        its = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in own
        if isinstance(node, (*form.IMPORTS, ast.Global, ast.Nonlocal, ast.Delete)) or (_stores(node) and not its):
            return False, []
        called += _calls(node)
        stack += ast.iter_child_nodes(node)
    return True, called


def _stores(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)


def _imported(statement: ast.Import | ast.ImportFrom, package: str) -> set[Target]:
    if isinstance(statement, ast.Import):
        return {Target(alias.name) for alias in statement.names}
    return set(form.import_targets(statement, package).values())


def _run_on_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module that do something when it is imported: of ``if __name__ == "__main__"`` the else."""
    for statement in form.effective(body):
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
            yield from _run_on_import(statement.orelse)
        else:
            yield statement


def _binds_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    return form.assigned_names(statement) == ["__all__"]


def _flat(statement: ast.stmt) -> Iterator[ast.stmt]:
    """A statement, or those of its branches where it has some."""
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody", "handlers")]
    inner = [one for block in blocks for one in block]
    if not isinstance(statement, ast.If | ast.Try):
        yield statement
        return
    for one in inner:
        if isinstance(one, ast.ExceptHandler):
            for handled in one.body:
                yield from _flat(handled)
        else:
            yield from _flat(one)


def _only_binds(statement: ast.stmt) -> bool:
    """Whether a statement does nothing beyond giving names to things, but for what it calls meanwhile."""
    if isinstance(statement, ast.ClassDef):
        return all(_only_binds(inner) for one in statement.body for inner in _flat(one))
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, (*form.IMPORTS, *form.FUNCTIONS, ast.Pass, ast.Assign, ast.AnnAssign))
