"""The fingerprint of a claim's evidence: what must leave it as it is, and what must not, on small packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from claims.packages import CLAIM, FILES, edited, mark, moved
from probatum.errors import InputError

COUNTS_NOT = {
    "docstring of the technique": ("techniques/loss/mine.py", '"""One step."""', '"""One step, said otherwise."""'),
    "docstring of shared maths": ("numerics/maths.py", '    """x, scaled."""\n', ""),
    "docstring of a class": (
        "train/loop.py",
        '"""A run."""',
        '"""The run.\n\n    Attributes:\n        steps: many.\n    """',
    ),
    "comment": ("train/loop.py", "    run = Run()\n", "    # one run\n    run = Run()  # fresh\n\n"),
    "format": (
        "numerics/maths.py",
        "return _helper(x) * SCALE",
        "return (\n        _helper(x)\n        * SCALE\n    )",
    ),
    "quotes and digits": ("numerics/maths.py", "SCALE = 2.0", "SCALE = 2.00"),
    "annotation of an argument": ("numerics/maths.py", "def scaled(x: float) -> float", "def scaled(x: 'Any') -> int"),
    "annotation of a constant": ("numerics/maths.py", "SCALE = 2.0", "SCALE: float = 2.0"),
    "the card's words": ("techniques/loss/mine.py", 'title="A title"', 'title="Another title", number=3'),
    "words of an error": ("techniques/loss/mine.py", "it must not be negative", "give 0 or more"),
    "an unreached function": ("numerics/maths.py", "return x * OTHER", "return x * OTHER + 1"),
    "a constant that only it uses": ("numerics/maths.py", "OTHER = 3.0", "OTHER = 4.0"),
    "a function of a module that is used": ("numerics/deeper.py", "return 0", "return 1"),
    "an unused helper of claims": ("claims/tools.py", "return 7.0", "return 8.0"),
    "how long a claim takes": ("claims/loss/mine.py", "minutes=1.0", "minutes=2.5"),
    "order of definitions": ("numerics/maths.py", "SCALE = 2.0\nOTHER = 3.0", "OTHER = 3.0\nSCALE = 2.0"),
    "alias of a package": (
        "numerics/maths.py",
        "import numpy as np\n\nSCALE = 2.0\nOTHER = 3.0\n\n\ndef scaled(x: float) -> float:\n"
        '    """x, scaled."""\n    return _helper(x) * SCALE\n\n\ndef _helper(x: float, power: int = 1) -> float:\n'
        "    return np.power",
        "from numpy import power as raised\n\nSCALE = 2.0\nOTHER = 3.0\n\n\ndef scaled(x: float) -> float:\n"
        '    """x, scaled."""\n    return _helper(x) * SCALE\n\n\ndef _helper(x: float, power: int = 1) -> float:\n'
        "    return raised",
    ),
    "imports for type checkers": (
        "train/loop.py",
        "STEPS = 10",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from ours.numerics import maths\n\nSTEPS = 10",
    ),
    "an import where it is used": (
        "claims/tools.py",
        "from ours.train.loop import train\n\n\ndef fit(technique: object, seeds: list[int], name: str) -> float:\n",
        "\n\ndef fit(technique: object, seeds: list[int], name: str) -> float:\n    from ours.train.loop import train\n",
    ),
    "what runs as a program": (
        "lazily.py",
        "return x - 1\n",
        'return x - 1\n\n\nif __name__ == "__main__":\n    late(3)\n',
    ),
    "public names": ("numerics/maths.py", "SCALE = 2.0", '__all__ = ["scaled"]\n\nSCALE = 2.0'),
}
COUNTS = {
    "the technique": ("techniques/loss/mine.py", "+ math.sqrt", "- math.sqrt"),
    "its entry": ("techniques/loss/mine.py", 'entry="Mine"', 'entry="Yours"'),
    "a default in it": ("techniques/loss/mine.py", "rate: float = 0.5", "rate: float = 0.25"),
    "a field of a dataclass": (
        "techniques/loss/mine.py",
        "rate: float = 0.5",
        "rate: float = 0.5\n    more: float = 0",
    ),
    "what kind of field it is": ("techniques/loss/mine.py", "rate: float", "rate: ClassVar[float]"),
    "that it is a dataclass": ("techniques/loss/mine.py", "@dataclass\n", "@dataclass(frozen=True)\n"),
    "the claim": ("claims/loss/mine.py", "Mine(), seeds", "Mine(0.1), seeds"),
    "which function of a package": ("techniques/loss/mine.py", "math.sqrt(x)", "math.cbrt(x)"),
    "a constant of shared maths": ("numerics/maths.py", "SCALE = 2.0", "SCALE = 2.5"),
    "a default argument": ("numerics/maths.py", "power: int = 1", "power: int = 2"),
    "a helper's helper": ("numerics/maths.py", "np.power(x, power)", "np.power(power, x)"),
    "a method": ("train/loop.py", "return 1 / self.steps", "return 2 / self.steps"),
    "a default of a method": ("train/loop.py", "steps: int = STEPS", "steps: int = STEPS + 1"),
    "a constant behind it": ("train/loop.py", "STEPS = 10", "STEPS = 11"),
    "a decorator": ("train/loop.py", "    @cache\n", "    @property\n"),
    "a nested function": ("train/loop.py", "float(seed)", "float(seed + 1)"),
    "a comparison": ("train/loop.py", "len(seeds) > 1", "len(seeds) >= 1"),
    "a function that calls back": ("train/loop.py", "[*seeds, 1]", "[*seeds, 2]"),
    "what is imported lazily": ("lazily.py", "return x - 1", "return x - 2"),
    "what is reached through a module": ("numerics/deeper.py", "return n + 1", "return n - 1"),
    "a statement that acts on import": (
        "lazily.py",
        "def late",
        "import sys\n\nsys.setrecursionlimit(10)\n\n\ndef late",
    ),
    "another function of the same module": ("claims/tools.py", "deeper.depth(2)", "deeper.shallow(2)"),
}


@pytest.mark.parametrize("what", COUNTS_NOT)
def test_what_changes_nothing(tmp_path: Path, what: str) -> None:
    assert mark(tmp_path, edited(*COUNTS_NOT[what])) == mark(tmp_path, FILES)


@pytest.mark.parametrize("what", COUNTS)
def test_what_counts(tmp_path: Path, what: str) -> None:
    assert mark(tmp_path, edited(*COUNTS[what])) != mark(tmp_path, FILES)


def test_moves_change_nothing(tmp_path: Path) -> None:
    before = mark(tmp_path, FILES)
    assert (
        mark(tmp_path, moved("numerics/maths.py", "numerics/room/sums.py", {"numerics.maths": "numerics.room.sums"}))
        == before
    )
    renamed = moved(
        "numerics/deeper.py", "numerics/low.py", {"import deeper": "import low", "deeper.depth": "low.depth"}
    )
    assert mark(tmp_path, renamed) == before
    aliased = edited("claims/tools.py", "import deeper", "import deeper as under")
    assert mark(tmp_path, edited("claims/tools.py", "deeper.depth", "under.depth", aliased)) == before
    named = edited("claims/tools.py", "from ours.numerics import deeper", "from ours.numerics.deeper import depth")
    assert mark(tmp_path, edited("claims/tools.py", "deeper.depth", "depth", named)) == before
    dotted = edited("claims/tools.py", "from ours.numerics import deeper", "import ours.numerics.deeper")
    assert mark(tmp_path, edited("claims/tools.py", "deeper.depth", "ours.numerics.deeper.depth", dotted)) == before
    again = moved("train/loop.py", "train/again.py", {"train.loop": "train"})
    assert mark(tmp_path, {**again, "train/__init__.py": "from ours.train.again import train\n"}) == before


def test_a_technique_as_a_folder_is_the_same(tmp_path: Path) -> None:
    folder = moved(
        "techniques/loss/mine.py", "techniques/loss/mine/mine.py", {"loss.mine import": "loss.mine.mine import"}
    )
    where = {"mine": "techniques/loss/mine/mine.py"}
    assert mark(tmp_path, folder, where) == mark(tmp_path, FILES)
    beside = moved(
        "numerics/maths.py",
        "techniques/loss/mine/maths.py",
        {"ours.numerics.maths": "ours.techniques.loss.mine.maths"},
        folder,
    )
    assert mark(tmp_path, beside, where) == mark(tmp_path, FILES)
    relative = edited("techniques/loss/mine/mine.py", "from ours.techniques.loss.mine.maths", "from .maths", beside)
    assert mark(tmp_path, relative, where) == mark(tmp_path, FILES)
    changed = edited("techniques/loss/mine/maths.py", "SCALE = 2.0", "SCALE = 3.0", beside)
    assert mark(tmp_path, changed, where) != mark(tmp_path, FILES)


def test_a_function_moved_to_another_module_is_the_same(tmp_path: Path) -> None:
    without = edited(
        "numerics/maths.py", "def _helper(x: float, power: int = 1) -> float:\n    return np.power(x, power)\n", ""
    )
    imported = edited("numerics/maths.py", "import numpy as np", "from ours.elsewhere import _helper", without)
    text = "import numpy\n\n\ndef _helper(x, power=1):\n    return numpy.power(x, power)\n"
    assert mark(tmp_path, {**imported, "elsewhere.py": text}) == mark(tmp_path, FILES)
    assert mark(tmp_path, {**imported, "elsewhere.py": text.replace("=1", "=3")}) != mark(tmp_path, FILES)


def test_functions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    both = "from ours.numerics.one import f\nfrom ours.numerics.two import f as g\n\n\ndef late(x):\n    return f(x) - g(x)\n"
    two = {"numerics/one.py": "def f(x):\n    return x\n", "numerics/two.py": "def f(x):\n    return 2 * x\n"}
    files = {**FILES, **two, "lazily.py": both}
    turned = edited("lazily.py", "return f(x) - g(x)", "return g(x) - f(x)", files)
    assert mark(tmp_path, files) != mark(tmp_path, turned)


def test_a_local_name_is_not_the_global_one(tmp_path: Path) -> None:
    shadow = (
        "from ours.numerics.maths import unreached\n\n\ndef late(x):\n    unreached = x\n    return unreached - 1\n"
    )
    files = {**FILES, "lazily.py": shadow}
    assert mark(tmp_path, files) == mark(tmp_path, edited("numerics/maths.py", "x * OTHER", "x + OTHER", files))
    uses = edited(
        "lazily.py", "    unreached = x\n    return unreached - 1", "    return [y for y in unreached(x)]", files
    )
    assert mark(tmp_path, uses) != mark(tmp_path, edited("numerics/maths.py", "x * OTHER", "x + OTHER", uses))
    iterated = edited("lazily.py", "return unreached - 1", "return 0", files)
    iterated = edited("lazily.py", "    unreached = x\n", "    [unreached for unreached in unreached(x)]\n", iterated)
    assert mark(tmp_path, iterated) != mark(tmp_path, edited("numerics/maths.py", "x * OTHER", "x + OTHER", iterated))


@pytest.mark.parametrize(
    "use",
    [
        "from ours.numerics import maths\n\n\ndef late(x):\n    return getattr(maths, 'un' + 'reached')(x)\n",
        "import ours.numerics.maths as maths\n\n\ndef late(x):\n    return vars(maths)['unreached'](x)\n",
        "from ours.numerics.maths import *\n\n\ndef late(x):\n    return unreached(x)\n",
        "import importlib\n\n\ndef late(x):\n    return importlib.import_module('ours.numerics.maths').unreached(x)\n",
        "import importlib\n\n\ndef late(x, which='maths'):\n    return importlib.import_module(f'ours.numerics.{which}').unreached(x)\n",
        "try:\n    from ours.numerics.maths import unreached\nexcept ImportError:\n    unreached = None\n\n\ndef late(x):\n    return unreached(x)\n",
        "def late(x):\n    def inner():\n        from ours.numerics import maths\n\n        return maths.unreached(x)\n\n    return inner()\n",
        "from ours.public import unreached\n\n\ndef late(x):\n    return unreached(x)\n",
        "import ours.public\n\n\nclass late:\n    f = ours.public.unreached\n",
    ],
)
def test_ways_to_reach_a_function(tmp_path: Path, use: str) -> None:
    files = {**FILES, "lazily.py": use, "public.py": PUBLIC}
    assert mark(tmp_path, files) != mark(
        tmp_path, edited("numerics/maths.py", "return x * OTHER", "return x + OTHER", files)
    )


PUBLIC = """from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ours.numerics.maths import unreached


def __getattr__(name):
    raise AttributeError(name)
"""


def test_what_is_done_on_import_counts_where_it_is_imported(tmp_path: Path) -> None:
    files = edited("numerics/deeper.py", "def depth", "from ours.started import TABLE\n\n\ndef depth")
    started = "TABLE = []\nTABLE.append(1)\n"
    assert mark(tmp_path, {**files, "started.py": started}) != mark(
        tmp_path, {**files, "started.py": started.replace("1", "2")}
    )
    nobody = {**FILES, "started.py": started}
    assert mark(tmp_path, nobody) == mark(tmp_path, {**nobody, "started.py": started.replace("1", "2")})


def test_what_our_own_decorators_enter_counts(tmp_path: Path) -> None:
    own = "from ours.listed import enter\n\n\n@enter\ndef entered():\n    return 1\n\n\ndef plain():\n    return 5\n"
    files = edited("numerics/deeper.py", "def depth", "from ours import entered\n\n\ndef depth")
    files |= {"listed.py": "LIST = []\n\n\ndef enter(f):\n    LIST.append(f)\n    return f\n", "entered.py": own}
    assert mark(tmp_path, files) != mark(tmp_path, edited("entered.py", "return 1", "return 2", files))
    assert mark(tmp_path, files) == mark(tmp_path, edited("entered.py", "return 5", "return 6", files))


def test_what_a_registering_decorator_dispatches_on_counts(tmp_path: Path) -> None:
    text = "from functools import singledispatch\n\n\n@singledispatch\ndef late(x):\n    return x\n\n\n"
    files = {**FILES, "lazily.py": text + "@late.register\ndef _(x: int):\n    return 1\n"}
    assert mark(tmp_path, files) != mark(tmp_path, edited("lazily.py", "x: int", "x: str", files))
    assert mark(tmp_path, files) != mark(tmp_path, edited("lazily.py", "return 1", "return 2", files))


ASKED = "def late(x):\n    return x - 1 if asks(x) else x\n\n\ndef asks(x):\n    return {}\n"


@pytest.mark.parametrize(
    ("asks", "field", "counts"),
    [
        ("card(x).separable", "separable=True", True),
        ("card(x).separable", "tune={'a': (1, 2)}", False),
        ("card(x).tune.items()", "tune={'a': (1, 2)}", True),
        ("x.tasks", "tasks=('next-token',)", True),
        ("getattr(x, 'tasks')", "tasks=('next-token',)", True),
        ("x.needs", "needs=('index',)", True),
        ("x", "needs=('index',)", False),
        ("x", "separable=True", False),
        ("x.title", "number=3", False),
        ("x.number", "number=3", False),
        ("card(x).number", "number=3", True),
    ],
)
def test_fields_of_a_card_count_where_they_are_read(tmp_path: Path, asks: str, field: str, counts: bool) -> None:
    files = {**FILES, "lazily.py": ASKED.format(asks)}
    after = edited("techniques/loss/mine.py", 'entry="Mine"', f'entry="Mine", {field}', files)
    assert (mark(tmp_path, files) != mark(tmp_path, after)) is counts


def test_fields_of_a_card_count_for_their_technique(tmp_path: Path) -> None:
    files = {**FILES, "lazily.py": ASKED.format("card(x).separable")}
    files["claims/loss/mine.py"] = CLAIM.replace('"mine"', '"theirs"')
    own = "CARD = Card(entry='build', separable={})\n\n\ndef build():\n    return {}\n"
    where = {"mine": "techniques/loss/mine.py", "theirs": "techniques/loss/theirs.py"}

    def found(mine: bool, theirs: bool) -> str:
        its = {"techniques/loss/mine.py": own.format(mine, 1), "techniques/loss/theirs.py": own.format(theirs, 2)}
        return mark(tmp_path, {**files, **its}, where)

    assert found(True, False) != found(False, True)


def test_words_of_a_card_choose_nothing(tmp_path: Path) -> None:
    rooms = {**FILES, **ROOMS, "worlds/shift.py": ROOMS["worlds/shift.py"] + "\n\nASKS = 'x'.tasks\n"}
    said = edited("techniques/loss/mine.py", 'entry="Mine"', 'entry="Mine", tasks=("shift",)', rooms)
    assert mark(tmp_path, said) == mark(tmp_path, edited("worlds/shift.py", "return 1", "return 2", said))


def test_data_files_count_by_their_bytes(tmp_path: Path) -> None:
    folder = moved(
        "techniques/loss/mine.py", "techniques/loss/mine/mine.py", {"loss.mine import": "loss.mine.mine import"}
    )
    where = {"mine": "techniques/loss/mine/mine.py"}
    files: dict[str, str | bytes] = {**folder, "techniques/loss/mine/weights.npz": b"\x00\x01"}
    assert mark(tmp_path, files, where) != mark(tmp_path, folder, where)
    assert mark(tmp_path, files, where) != mark(tmp_path, {**files, "techniques/loss/mine/weights.npz": b"\x00"}, where)
    assert mark(tmp_path, files, where) == mark(tmp_path, {**files, "techniques/loss/mine/notes.md": "words"}, where)
    reads = (
        "from pathlib import Path\n\n\ndef late(x):\n    return Path(__file__).with_name('table.bin').read_bytes()\n"
    )
    files = {**FILES, "lazily.py": reads, "table.bin": b"1", "other.bin": b"1"}
    assert mark(tmp_path, files) != mark(tmp_path, {**files, "table.bin": b"2"})
    assert mark(tmp_path, files) == mark(tmp_path, {**files, "other.bin": b"2"})


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ('"theirs"', True),
        ('"theirs(k=16)"', True),
        ('"mine+theirs(eta=0.3)"', True),
        ('f"theirs(k={len(seeds)})"', True),
        ('f"mine+theirs(k={len(seeds)})"', True),
        ('"theirs-too"', False),
        ('"what theirs does"', False),
        ('"mine"', False),
    ],
)
def test_techniques_that_a_claim_names_count(tmp_path: Path, said: str, counts: bool) -> None:
    files = edited("claims/loss/mine.py", 'seeds, "mine"', f"seeds, {said}")
    files["techniques/loss/theirs.py"] = "CARD = Card(entry='f')\n\n\ndef f():\n    return 1\n"
    where = {"mine": "techniques/loss/mine.py", "theirs": "techniques/loss/theirs.py"}
    after = mark(tmp_path, edited("techniques/loss/theirs.py", "return 1", "return 2", files), where)
    assert (mark(tmp_path, files, where) != after) is counts


ROOMS = {
    "rooms.py": (
        "import importlib\n\nHOMES = {'kind': 'ours.kinds', 'world': 'ours.worlds', 'task': 'ours.tasks'}\n\n\n"
        "def load(sort, name, file):\n    return importlib.import_module('.'.join((HOMES[sort], name, file)))\n"
    ),
    "lazily.py": "from ours.rooms import load\n\n\ndef late(x):\n    return load('kind', x, 'kind').KIND.read(x)\n",
    "kinds/image/kind.py": "from ours.kinds.image.read import read\n\nKIND = read\n",
    "kinds/image/read.py": "def read(x):\n    return x + 'image'\n",
    "kinds/image/sets.py": "def sets():\n    return {'digits': 1, 'shared': 1}, 'many:classes'\n",
    "kinds/image/show.py": "def show(x):\n    return x + 'shown'\n",
    "kinds/text/kind.py": "class Text:\n    NAME = 'words'\n    OTHER = 'else'\n\n    def read(x):\n        return x\n",
    "kinds/text/sets.py": "def sets():\n    return {'topics': 1, 'shared': 1}\n",
    "tasks/classes/kind.py": "def KIND():\n    return 1\n",
    "tasks/reals/kind.py": "def KIND():\n    return 1\n",
    "worlds/labels.py": "class Noise:\n    KIND = 'label-noise'\n\n    def apply(self):\n        return 1\n",
    "worlds/shift.py": "class Shift:\n    KIND = 'shift'\n\n    def apply(self):\n        return 1\n",
}


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ('"digits"', {"kinds/image/kind.py", "kinds/image/read.py", "tasks/classes/kind.py"}),
        ('"image"', {"kinds/image/kind.py", "kinds/image/read.py", "tasks/classes/kind.py"}),
        ('"topics"', {"kinds/text/kind.py"}),
        ('"words"', {"kinds/text/kind.py"}),
        ('"else"', set()),
        ('"shared"', set()),
        ('"label-noise:0.4"', {"worlds/labels.py"}),
        ('"labels"', set()),
        ('f"shift:{len(seeds)}"', {"worlds/shift.py"}),
    ],
)
def test_members_of_rooms_count_where_they_are_said(tmp_path: Path, said: str, counted: set[str]) -> None:
    files = edited("claims/loss/mine.py", 'seeds, "mine"', f"seeds, {said}", {**FILES, **ROOMS})
    before = mark(tmp_path, files)
    for path in ROOMS:
        if "/" in path and not path.endswith("sets.py"):
            text = files[path]
            assert isinstance(text, str)
            changed = text.replace("return", "return 0,").replace("KIND = read", "KIND = read, 0")
            assert (mark(tmp_path, {**files, path: changed}) != before) is (path in counted), path
    assert mark(tmp_path, edited("rooms.py", "import_module('.'", "import_module(','", files)) != before


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine has no claim file; expected ours/claims/loss/other\.py"):
        mark(tmp_path, FILES, claim="loss.other")
    with pytest.raises(InputError, match=r"lazily.py, line 1: not Python"):
        mark(tmp_path, {**FILES, "lazily.py": "def late(:\n"})
