"""The fingerprint held against what a claim runs: everything that runs counts, and one token changed in it is seen."""

from __future__ import annotations

import ast
import random
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType

import pytest

import probatum
from probatum import catalogue
from probatum.claims.base import Claim
from probatum.claims.chosen import claims_of
from probatum.claims.fingerprint import WHOLE, Sources, claim_module
from probatum.claims.record import evidence, recorded
from probatum.data import library

ROOT = Path(probatum.__file__).parent
QUICK_SECONDS = 25
MUTATED = "integrated-gradients"
MUTATIONS = 40
OTHER_OPERATOR: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def sources() -> Sources:
    return Sources(ROOT, "probatum", {name: catalogue.place(name) for name in catalogue.names()})


def ran(work: Callable[[], object]) -> set[tuple[str, str]]:
    """(module, top-level definition) of everything of this package that a piece of work runs."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    found = set()
    for code in (code for code in seen if code.co_flags & CO_OPTIMIZED):  # functions, not bodies of classes on import
        path, name = Path(code.co_filename), code.co_qualname.split(".")[0]
        if ROOT in path.parents and not name.startswith("<"):
            found.add((".".join(("probatum", *path.relative_to(ROOT).with_suffix("").parts)), name))
    return found


def counted(text: Sources, name: str) -> set[tuple[str, str]]:
    reach = text.reach(name, claim_module(name))
    return {(ref.module, one) for ref in reach.refs if ref.position != WHOLE for one in text.name_of(ref).split(", ")}


@cache
def _names_of_sets() -> set[tuple[str, str]]:
    return ran(library.sets)


def asked(module: str, name: str) -> bool:
    """Whether it runs for whatever data, since every kind of data is asked whether they are its own, and by what names it
    knows some."""
    is_kind = module.startswith("probatum.kinds.") and module.endswith(".kind")
    return is_kind or (module, name) in _names_of_sets()


def quick() -> list[tuple[str, Claim]]:
    known = evidence()
    found = [(name, claim) for name in catalogue.names() for claim in claims_of(name) if not claim.needs_library]
    return [(name, claim) for name, claim in found if recorded(name, claim.id, known)["seconds"] <= QUICK_SECONDS]


def test_all_that_a_rotating_claim_runs_counts() -> None:
    claims = quick()
    name, claim = claims[(datetime.now(UTC).toordinal() + 1) % len(claims)]
    left_out = {pair for pair in ran(lambda: claim.run((1,))) - counted(sources(), name) if not asked(*pair)}
    assert not left_out, f"{name}/{claim.id} runs what its evidence does not rest on: {sorted(left_out)}"


def test_claims_on_data_say_which_kind() -> None:
    """A claim that opens data rests on a kind of data; one that names none must say it, e.g. modality="series"."""
    text, opening = sources(), 0
    for name in catalogue.names():
        reached = counted(text, name)
        if ("probatum.data.library", "open_named") in reached:
            modules = {module for module, _ in reached}
            kinds = [module for module in modules if module.startswith("probatum.kinds.") and module.endswith(".kind")]
            assert kinds, f"{name} opens data, but says nothing by which their kind is known"
            opening += 1
    assert opening > len(catalogue.names()) / 2


def test_a_claim_on_images_rests_on_no_other_kind_of_data() -> None:
    rooms = {
        tuple(module.split(".")[1:3]) for module, _ in counted(sources(), "gradient-noise") if module.count(".") > 1
    }
    assert {kind for room, kind in rooms if room == "kinds"} == {"image", "usual"}
    assert ("tasks", "classes") in rooms
    assert not [room for room, _ in rooms if room in ("worlds", "arenas")]


class _WithOneFile(Sources):
    """The package with another text in place of one file's."""

    def __init__(self, text: Sources, module: str, path: Path) -> None:
        super().__init__(text.root, text.name, text.techniques)
        self._modules = {name: one for name, one in text._modules.items() if name != module}
        self._forms = {ref: one for ref, one in text._forms.items() if ref.module != module and ref.position != WHOLE}
        self._paths[module] = path


def _sites(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(node, field) of the tokens that may be changed: not in annotations, docstrings and words of errors."""
    if isinstance(node, ast.Raise | ast.Assert | ast.arg):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        yield node, "value"
    if isinstance(node, ast.Attribute):
        yield node, "attr"
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OTHER_OPERATOR:
        yield node, "op"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER_OPERATOR:
        yield node, "ops"
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, ast.AST):
                    yield from _sites(inner)


def _change(node: ast.AST, name: str) -> None:
    old = getattr(node, name)
    if name == "ops":
        setattr(node, name, [OTHER_OPERATOR[type(old[0])](), *old[1:]])
    elif name == "op":
        setattr(node, name, OTHER_OPERATOR[type(old)]())
    else:
        setattr(node, name, f"{old}_" if isinstance(old, str) else old + 1)


def _redocumented(tree: ast.Module) -> ast.Module:
    """The module with other words in every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Expr(ast.Constant("Something else."))
    return ast.fix_missing_locations(tree)


@pytest.fixture(scope="module")
def run_by_one() -> list[tuple[str, str]]:
    """What the claim `MUTATED` runs of shared maths, training and data."""
    (claim,) = claims_of(MUTATED)
    found = {pair for pair in ran(lambda: claim.run((1,))) if not asked(*pair)}
    return sorted(pair for pair in found if pair[0].split(".")[1] in ("numerics", "train", "data", "kinds"))


def test_one_token_changed_in_what_runs_is_seen_and_docstrings_are_not(
    tmp_path: Path, run_by_one: list[tuple[str, str]]
) -> None:
    text, draw = sources(), random.Random(0)
    before = text.fingerprint(MUTATED, claim_module(MUTATED))
    file, changed = tmp_path / "changed.py", set()
    for module, name in draw.sample(run_by_one, MUTATIONS):
        source = text._paths[module].read_text(encoding="utf-8")
        tree = ast.parse(source)
        sites = [site for node in tree.body if getattr(node, "name", "") == name for site in _sites(node)]
        if not sites:
            continue
        kind = draw.choice(sorted({field for _, field in sites}))
        _change(*draw.choice([site for site in sites if site[1] == kind]))
        file.write_text(ast.unparse(tree), encoding="utf-8")
        after = _WithOneFile(text, module, file).fingerprint(MUTATED, claim_module(MUTATED))
        assert after != before, f"{module}: a change of {kind} in {name} is not seen"
        changed.add((module, name))
        file.write_text(ast.unparse(_redocumented(ast.parse(source))), encoding="utf-8")
        same = _WithOneFile(text, module, file).fingerprint(MUTATED, claim_module(MUTATED))
        assert same == before, f"{module}: other docstrings are seen"
    assert len(changed) >= 30
    assert {module.split(".")[1] for module, _ in changed} >= {"numerics", "train"}
