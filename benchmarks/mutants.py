"""Small mutations of techniques and of the numerics they share, each held against its own tests.

A mutant is one changed expression: a sign, ``1 - share`` for ``share``, a comparison turned round, a rule that is not
applied, a gradient that is not cut. Messages of errors, type hints, guards that only raise and the card are left alone.
A mutant is killed when the tests of its own file fail; what survives is either a hole in the tests or, with a reason, an
entry of ``mutants.toml``.

    python benchmarks/mutants.py gradient-noise           a technique, by id
    python benchmarks/mutants.py numerics/tensors/draws   a shared file, by its place
    python benchmarks/mutants.py                          everything; --record writes mutants.json

torch is imported once and each mutant runs in a fork of that process, on a copy of ``src`` of its own.
"""

from __future__ import annotations

import argparse
import ast
import collections
import compileall
import copy
import fcntl
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path.cwd() if (Path.cwd() / "src" / "probatum").is_dir() else Path(__file__).resolve().parents[1]
EXCUSED = ROOT / "benchmarks" / "mutants.toml"
RECORD = ROOT / "benchmarks" / "mutants.json"
PER_FILE = 24
IMPORTERS = 4
"""Test files that are taken for a shared file without its own, at most."""
SMALL = 1e-3
"""Constants below it are tolerances and floors."""
TURNED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
OTHERWISE = {
    "max": "min",
    "min": "max",
    "amax": "amin",
    "amin": "amax",
    "argmax": "argmin",
    "argmin": "argmax",
    "sum": "mean",
    "mean": "sum",
    "ceil": "floor",
    "floor": "ceil",
    "cos": "sin",
    "sin": "cos",
    "exp": "expm1",
    "log": "log1p",
    "any": "all",
    "all": "any",
}
WITHOUT = ("detach", "abs", "sqrt", "square", "clamp", "clamp_min", "clamp_max", "neg", "mT", "relu", "sigmoid", "tanh")
WARM = (
    "torch.fx",
    "torch.func",
    "torch.testing",
    "torch.distributed.tensor",
    "torch.utils.flop_counter",
    "scipy.stats",
    "sklearn.linear_model",
    "hypothesis",
    "xdist.plugin",
    "_pytest.terminal",
)
"""Libraries that tests import, read once."""
NOT_STATED = ("register_buffer", "append", "validate", "warn", "__init__")


@dataclass(frozen=True)
class Target:
    """What is mutated, and the tests that must notice."""

    name: str
    files: tuple[Path, ...]
    tests: tuple[Path, ...]


@dataclass(frozen=True)
class Mutant:
    """One changed place: the file, the function it stands in, the line, before and after."""

    file: str
    function: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        return f"{self.file}::{self.function}: {self.before} -> {self.after}"


def targets() -> dict[str, Target]:
    """Every technique and every shared file that has tests, by name."""
    package, found = ROOT / "src" / "probatum", {}
    for file in sorted((package / "techniques").rglob("*.py")):
        if file.name == "__init__.py" or "CARD" not in file.read_text(encoding="utf-8"):
            continue
        inside = file.relative_to(package / "techniques").with_suffix("")
        folder = inside.parent.name == inside.name
        files = tuple(f for f in sorted(file.parent.glob("*.py")) if f.name != "__init__.py") if folder else (file,)
        home = ROOT / "tests" / "techniques" / (inside.parent if folder else inside.parent / f"test_{inside.name}.py")
        found[inside.name.replace("_", "-")] = Target(inside.name.replace("_", "-"), files, (home,))
    for file in sorted((package / "numerics").rglob("*.py")):
        inside = file.relative_to(package).with_suffix("")
        home = ROOT / "tests" / inside.parent / f"test_{inside.name}.py"
        if file.name != "__init__.py":
            found[str(inside)] = Target(
                str(inside), (file,), (home,) if home.exists() else _importers(inside) or (home,)
            )
    return found


def _importers(inside: Path) -> tuple[Path, ...]:
    """The tests that import a shared file which has none of its own."""
    words = f"from probatum.{'.'.join(inside.parts)} import"
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    return tuple(file for file in tests if words in file.read_text(encoding="utf-8"))[:IMPORTERS]


def mutants(file: Path, most: int, seed: int) -> list[Mutant]:
    """Up to `most` mutants of a file, drawn so that every function is met before one is met twice as often."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    by_function: dict[str, list[Mutant]] = collections.defaultdict(list)
    for function, node in _functions(tree):
        for position, _ in enumerate(_places(node)):
            for kind in range(2):
                mutant = _mutated(tree, file, function, node, position, kind)
                if mutant is not None and not any(mutant.key == known.key for known in by_function[function]):
                    by_function[function].append(mutant)
    draw = random.Random(f"{file.name}-{seed}")
    for held in by_function.values():
        draw.shuffle(held)
    rounds = max(map(len, by_function.values()), default=0)
    in_turn = [held[i] for i in range(rounds) for held in by_function.values() if i < len(held)]
    return in_turn[:most]


def _functions(tree: ast.AST) -> Iterator[tuple[str, ast.FunctionDef]]:
    for owner in ast.walk(tree):
        for node in getattr(owner, "body", []) if isinstance(owner, (ast.Module, ast.ClassDef)) else []:
            if isinstance(node, ast.FunctionDef) and node.name not in ("__repr__", "extra_repr", "__reduce__"):
                yield (f"{owner.name}." if isinstance(owner, ast.ClassDef) else "") + node.name, node


def _places(function: ast.FunctionDef) -> list[ast.AST]:
    """Nodes that may be mutated, in a fixed order."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)):
            return
        if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip and map: it only raises
            return
        if isinstance(node, ast.If) and all(isinstance(s, ast.Raise) for s in node.body):
            for later in node.orelse:
                visit(later)
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                visit(node.value)
            return
        found.append(node)
        children: Sequence[ast.AST] = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.FunctionDef):
            children = node.body
        for child in children:
            visit(child)

    visit(function)
    return found


def _mutated(
    tree: ast.AST, file: Path, function: str, node: ast.FunctionDef, position: int, kind: int
) -> Mutant | None:
    changed = copy.deepcopy(tree)
    twin = next(n for name, n in _functions(changed) if name == function and n.lineno == node.lineno)
    place = _places(twin)[position]
    if not hasattr(place, "lineno"):
        return None
    before = _short(place)
    new = _change(place, kind)
    if new is None:
        return None
    if new is not place:
        _replace(twin, place, new)
    ast.fix_missing_locations(changed)
    after = "(left out)" if isinstance(new, ast.Pass) else _short(new)
    if before == after:
        return None
    where = file.relative_to(ROOT / "src" / "probatum").as_posix()
    return Mutant(where, function, place.lineno, before, after, ast.unparse(changed))


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) <= 110 else text[:107] + "..."


def _replace(parent: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for holder in ast.walk(parent):
        for name, value in ast.iter_fields(holder):
            if value is old:
                setattr(holder, name, new)
                return
            if isinstance(value, list) and any(v is old for v in value):
                setattr(holder, name, [new if v is old else v for v in value])
                return


def _change(node: ast.AST, kind: int) -> ast.AST | None:
    """The mutated node, None where this kind of mutation does not apply."""
    if isinstance(node, ast.BinOp):
        return _binary(node, kind)
    if kind == 0:
        return _first(node)
    if isinstance(node, ast.If) and not node.orelse:
        return ast.copy_location(ast.If(ast.Constant(False), node.body, []), node)
    return None


def _binary(node: ast.BinOp, kind: int) -> ast.AST | None:
    one_less = isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Constant) and node.left.value in (1, 1.0)
    if kind == 1:
        return node.right if one_less else None
    if isinstance(node.op, ast.Pow):
        return node.left
    if type(node.op) in TURNED:
        node.op = TURNED[type(node.op)]()
        return node
    return None


def _first(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        return None if isinstance(node.operand, ast.Constant) else node.operand
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in TURNED:
        node.ops[0] = TURNED[type(node.ops[0])]()
        return node
    if isinstance(node, ast.BoolOp):
        node.op = TURNED[type(node.op)]()
        return node
    if isinstance(node, ast.AugAssign) and type(node.op) in TURNED:
        node.op = TURNED[type(node.op)]()
        return node
    if isinstance(node, ast.Constant):
        return _constant(node)
    if isinstance(node, ast.IfExp):
        node.body, node.orelse = node.orelse, node.body
        return node
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        name = getattr(node.value.func, "attr", getattr(node.value.func, "id", ""))
        told = any(name.startswith(word) for word in ("check", "_check", "require", "demand", "refuse", "_refuse"))
        return None if told or name in NOT_STATED else ast.copy_location(ast.Pass(), node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in OTHERWISE and (name not in ("any", "all") or not node.args):
            node.func.attr = OTHERWISE[name]
            return node
        if name in WITHOUT and not isinstance(node.func.value, ast.Name):
            return node.func.value
        if (
            name in WITHOUT
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id not in ("torch", "F", "math", "np")
        ):
            return node.func.value
    return None


def _constant(node: ast.Constant) -> ast.AST | None:
    value = node.value
    if isinstance(value, bool):
        node.value = not value
    elif isinstance(value, int) and value in (0, 1, 2):
        node.value = value + 1
    elif isinstance(value, float) and abs(value) >= SMALL and value not in (float("inf"),):
        node.value = 1.5 * value
    else:
        return None
    return node


class Workshop:
    """A copy of the package in which one mutant at a time is tried by forks of this process."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="mutants-"))
        shutil.copytree(ROOT / "src", self.home / "src", ignore=shutil.ignore_patterns("*.egg-info"))
        compileall.compile_dir(self.home / "src", quiet=2)
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self.home / "src"))
        os.environ |= {"PYTHONPATH": str(self.home / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

    def close(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def passes(self, tests: Sequence[Path], limit: float) -> tuple[bool, float]:
        """Whether the tests pass in a fork, and the seconds it took; beyond the limit they do not."""
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            _run_tests(tests)
        while time.perf_counter() - start < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) == 0, time.perf_counter() - start
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False, limit

    def unmutated(self, target: Target, tests: Sequence[Path]) -> tuple[bool, float]:
        """Whether the tests pass on files that were read and written back, as mutants are, with nothing changed in them."""
        places = [self.home / "src" / file.relative_to(ROOT / "src") for file in target.files]
        kept = [place.read_text(encoding="utf-8") for place in places]
        for place, text in zip(places, kept, strict=True):
            place.write_text(ast.unparse(ast.parse(text)), encoding="utf-8")
        try:
            return self.passes(tests, 300)
        finally:
            for place, text in zip(places, kept, strict=True):
                place.write_text(text, encoding="utf-8")

    def survives(self, mutant: Mutant, tests: Sequence[Path], limit: float) -> bool:
        """Whether the tests pass with the mutant in place."""
        place = self.home / "src" / "probatum" / mutant.file
        kept = place.read_text(encoding="utf-8")
        place.write_text(mutant.source, encoding="utf-8")
        try:
            return self.passes(tests, limit)[0]
        finally:
            place.write_text(kept, encoding="utf-8")


def _run_tests(tests: Sequence[Path]) -> None:
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    code = 3
    try:
        import pytest

        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "xdist.plugin",
            "-n",
            "0",
            "--assert=plain",
            "--rootdir",
            str(ROOT),
        ]
        code = int(pytest.main([*options, "-o", f"pythonpath={ROOT / 'tests'}", *map(str, tests)]))
    finally:
        os._exit(code)


def _warm() -> None:
    """Import what every test imports and forget the package itself, which forks read anew."""
    import pytest
    import torch

    torch.set_num_threads(1)
    importlib.import_module("probatum.study")
    for library in WARM:
        importlib.import_module(library)
    for name in [name for name in sys.modules if name.partition(".")[0] == "probatum"]:
        del sys.modules[name]
    del pytest


def excused() -> dict[str, str]:
    """Reasons by key: mutants that change nothing, or nothing that matters."""
    if not EXCUSED.exists():
        return {}
    known = tomllib.loads(EXCUSED.read_text(encoding="utf-8"))
    return {entry["mutant"]: entry["reason"] for entry in known.get("excused", [])}


def tried(target: Target, shop: Workshop, most: int, seed: int, told: bool) -> dict[str, object]:
    """Run the mutants of a target; tells survivors as they come."""
    tests = [path for path in target.tests if path.exists()]
    if not tests:
        print(f"{target.name}: no tests of its own ({', '.join(str(t.relative_to(ROOT)) for t in target.tests)})")
        return {"mutants": 0, "killed": 0, "survived": [], "tests": 0}
    well, seconds = shop.unmutated(target, tests)
    if not well:
        print(f"{target.name}: its tests fail unmutated; run them first")
        return {"mutants": 0, "killed": 0, "survived": ["unmutated tests fail"]}
    known = excused()
    found = [mutant for file in target.files for mutant in mutants(file, most, seed)]
    counted = [mutant for mutant in found if mutant.key not in known]
    survivors = [mutant for mutant in counted if shop.survives(mutant, tests, 3 * seconds + 10)]
    killed = len(counted) - len(survivors)
    print(f"{target.name}: {killed} of {len(counted)} killed, {len(found) - len(counted)} excused", flush=True)
    for mutant in survivors if told else []:
        print(f'  line {mutant.line}\n[[excused]]\nmutant = {json.dumps(mutant.key)}\nreason = ""', flush=True)
    return {"mutants": len(counted), "killed": killed, "survived": [mutant.key for mutant in survivors]}


def _record(results: dict[str, dict[str, object]]) -> None:
    """Put these counts beside those on record; several processes may do so."""
    with (Path(tempfile.gettempdir()) / "probatum-mutants.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        RECORD.write_text(json.dumps(dict(sorted((kept | results).items())), indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Try mutants of the named techniques and shared files (all without a name) against their own tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*")
    parser.add_argument("--per-file", type=int, default=PER_FILE, help="mutants drawn from each file")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--record", action="store_true", help="write the counts to mutants.json")
    parser.add_argument("--quiet", action="store_true", help="counts alone, no survivors")
    asked = parser.parse_args(arguments)
    known = targets()
    unknown = set(asked.name) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    shop = Workshop()
    try:
        _warm()
        results = {}
        for name in asked.name or known:
            results[name] = tried(known[name], shop, asked.per_file, asked.seed, not asked.quiet)
            if asked.record:  # at once, so that nothing is lost when it is stopped
                _record({name: results[name]})
    finally:
        shop.close()
    total = sum(int(result["mutants"]) for result in results.values())  # type: ignore[call-overload]
    killed = sum(int(result["killed"]) for result in results.values())  # type: ignore[call-overload]
    print(f"{killed} of {total} killed")


if __name__ == "__main__":
    main()
