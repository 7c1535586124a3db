"""A module of our package as text: its statements that do something, what its names are bound to, what it runs."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from probatum.claims import normal_form as form
from probatum.claims.normal_form import Target
from probatum.errors import InputError


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
        decorated: definitions under decorators.
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
    decorated: list[int] = field(default_factory=list)
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
    for statement in form.effective(tree.body):
        if isinstance(statement, form.IMPORTS):
            for name, target in form.import_targets(statement, module.package).items():
                if name == "*":
                    module.stars.append(target.module)
                else:
                    module.imports.setdefault(name, []).append(target)
            module.runs |= _imported(statement, module.package)
        elif not (_runs_as_program(statement) or _binds_nothing(statement)):
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
    if isinstance(statement, (*form.FUNCTIONS, ast.ClassDef)):
        if statement.decorator_list:
            module.decorated.append(position)
    else:
        if not all(_only_binds(inner) for inner in _flat(statement)):
            module.acting.append(position)
        for inner in ast.walk(statement):
            if isinstance(inner, form.IMPORTS):
                module.runs |= _imported(inner, module.package)


def _imported(statement: ast.Import | ast.ImportFrom, package: str) -> set[Target]:
    if isinstance(statement, ast.Import):
        return {Target(alias.name) for alias in statement.names}
    return set(form.import_targets(statement, package).values())


def _runs_as_program(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test).startswith("__name__ ==")


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
    """Whether a statement does nothing beyond giving names to things."""
    if isinstance(statement, (*form.IMPORTS, *form.FUNCTIONS, ast.ClassDef, ast.Pass)):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    inner = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.expr)]
    plain = all(isinstance(node, ast.Name | ast.Tuple | ast.List | ast.Starred) for node in inner)
    return plain and "_" not in form.assigned_names(statement)
