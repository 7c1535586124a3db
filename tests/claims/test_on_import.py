"""What runs when a module is imported counts for all who import it, unless it does nothing to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from claims.packages import FILES, edited, mark

STARTED = "import atexit\nimport torch\n\nfrom ours.listed import Base, Listed, Meta, Plain, enter\n\n\n"
LISTED = """LIST = []


def enter(x, *more):
    LIST.append(x)
    return x


class Plain:
    def __init__(self, x=1):
        if x < 0:
            raise ValueError(f"x is {print(x)}")
        self.x = float(x)


class Heir(Plain):
    pass


class Listed:
    def __post_init__(self):
        LIST.append(self)


class Base:
    def __init_subclass__(cls):
        LIST.append(cls)


class Meta(type):
    pass
"""
ACTS = {
    "else of a program": 'if __name__ == "__main__":\n    A = 1\nelse:\n    torch.set_default_dtype(1)\n',
    "elif of a program": 'if __name__ == "__main__":\n    A = 1\nelif True:\n    torch.set_default_dtype(1)\n',
    "another name": 'if __name__ == "ours.started":\n    torch.set_default_dtype(1)\n',
    "not the program": 'if __name__ != "__main__":\n    torch.set_default_dtype(1)\n',
    "body of a class": "class A:\n    torch.set_default_dtype(1)\n",
    "a store in a class": "class A:\n    torch.backends.fast = 1\n",
    "a class in a class": "class A:\n    class B:\n        x = torch.set_default_dtype(1)\n",
    "a loop in a class": "class A:\n    for i in range(2):\n        torch.x = i\n",
    "a field of a class": "class A:\n    x: int = torch.set_default_dtype(1)\n",
    "a default": "def f(x=torch.set_default_dtype(1)):\n    pass\n",
    "a default by name": "def f(*, x=torch.set_default_dtype(1)):\n    pass\n",
    "a default of a method": "class A:\n    def f(self, x=torch.set_default_dtype(1)):\n        pass\n",
    "a default of a lambda": "f = lambda x=torch.set_default_dtype(1): x\n",
    "a test": "if torch.set_default_dtype(1) is None:\n    A = 1\n",
    "a comprehension": "A = [torch.set_default_dtype(i) for i in (1,)]\n",
    "an assignment": "A = torch.set_default_dtype(1)\n",
    "one under another": "A = tuple(float(torch.set_default_dtype(1)) for i in range(1))\n",
    "an annotated assignment": "A: int = torch.set_default_dtype(1)\n",
    "in a branch": "try:\n    A = torch.set_default_dtype(1)\nexcept ValueError:\n    A = 1\n",
    "a store": "A = torch.x = 1\n",
    "a decorator": "@atexit.register\ndef f():\n    return 1\n",
    "a decorator of a method": "class A:\n    @atexit.register\n    def f():\n        return 1\n",
    "a decorator of a class": "@atexit.register\nclass A:\n    x = 1\n",
    "a decorator that is made": "@torch.register(1)\ndef f():\n    return 1\n",
    "a function of ours": "A = enter(1)\n",
    "a decorator of ours in a class": "class A:\n    @enter\n    def f():\n        return 1\n",
    "a class that is listed": "A = Listed(1)\n",
    "a base that lists": "class A(Base):\n    x = 1\n",
    "a metaclass": "class A(metaclass=Meta):\n    x = 1\n",
    "a key": "A = sorted([1], key=enter)\n",
    "a map": "A = list(map(enter, [1]))\n",
    "a lambda called": "A = (lambda: torch.set_default_dtype(1))()\n",
    "by getattr": "A = getattr(torch, 'set_default_dtype')(1)\n",
    "a method of a result": "A = torch.nn.Linear(1, 1).double()\n",
    "a base class that is made": "class A(torch.made(1)):\n    x = 1\n",
}
ACTS_NOT = {
    "a program": 'if __name__ == "__main__":\n    torch.set_default_dtype(1)\n',
    "a function": "def f():\n    torch.set_default_dtype(1)\n",
    "a method": "class A:\n    def f(self):\n        torch.set_default_dtype(1)\n",
    "a lambda": "f = lambda: torch.set_default_dtype(1)\n",
    "an annotation": "class A:\n    x: torch.made(1)\n",
    "a constant": "A = 1\n",
    "a table": "A = tuple(sorted({'b': 1, 'a': 2}.items()))\n",
    "a dataclass": (
        "from dataclasses import dataclass, field\n\n\n@dataclass(frozen=True)\nclass A:\n    x: list = field(default_factory=list)\n"
    ),
    "a cache": "import functools\n\n\n@functools.cache\ndef f():\n    return 1\n",
    "a property": (
        "class A:\n    @property\n    def f(self):\n        return 1\n\n    @f.setter\n    def f(self, x):\n        self.x = 1\n"
    ),
    "no gradients": "@torch.no_grad()\ndef f():\n    return 1\n",
    "a pattern": "import re as r\n\nA = r.compile('1')\n",
    "a path": "from pathlib import Path\n\nA = Path('1').with_name('table')\n",
    "words": "A = 'a 1'.split()\n",
    "a number": "import math\n\nA = math.log(1)\n",
    "an object of ours": "A = Plain(1)\n",
    "one of an heir": "from ours.listed import Heir\n\nA = Heir(1)\n",
    "an heir": "class A(Plain):\n    x = 1\n",
    "an unused function under it": "def f(x=1, *, y=(1,)):\n    return x\n",
}


def both(text: str) -> tuple[dict[str, str | bytes], dict[str, str | bytes]]:
    """The package with a module that nobody but an import names, and with another digit or nothing in it."""
    files = edited("numerics/deeper.py", "def depth", "from ours import started\n\n\ndef depth")
    files |= {"listed.py": LISTED}
    return {**files, "started.py": STARTED + text}, {**files, "started.py": STARTED}


@pytest.mark.parametrize("what", ACTS)
def test_what_acts_on_import_counts(tmp_path: Path, what: str) -> None:
    with_it, without = both(ACTS[what])
    assert mark(tmp_path, with_it) != mark(tmp_path, without)
    with_it["started.py"] = STARTED + ACTS[what].replace("1", "2")
    assert "1" not in ACTS[what] or mark(tmp_path, with_it) != mark(tmp_path, both(ACTS[what])[0])
    nobody = {**FILES, "listed.py": LISTED}
    assert mark(tmp_path, {**nobody, "started.py": STARTED + ACTS[what]}) == mark(tmp_path, nobody)


@pytest.mark.parametrize("what", ACTS_NOT)
def test_what_only_makes_things_does_not(tmp_path: Path, what: str) -> None:
    with_it, without = both(ACTS_NOT[what])
    assert mark(tmp_path, with_it) == mark(tmp_path, without)


def test_what_a_constructor_does_is_looked_at(tmp_path: Path) -> None:
    files = both("A = Plain(1)\n")[0]
    assert mark(tmp_path, files) == mark(tmp_path, edited("started.py", "Plain(1)", "Plain(2)", files))
    for does in (
        "LIST.append(x)",
        "x.y = 1",
        "LIST[0] = 1",
        "global LIST\n        LIST = 1",
        "self.run()",
        "import os",
    ):
        files["listed.py"] = LISTED.replace("self.x = float(x)", does)
        assert mark(tmp_path, files) != mark(tmp_path, edited("started.py", "Plain(1)", "Plain(2)", files)), does


def test_imports_in_bodies_of_classes_run_modules(tmp_path: Path) -> None:
    files = edited("numerics/deeper.py", "def depth", "from ours import started\n\n\ndef depth")
    files |= {"started.py": "class A:\n    from ours import later\n", "later.py": "print(1)\n"}
    assert mark(tmp_path, files) != mark(tmp_path, {**files, "later.py": "print(2)\n"})
    files["started.py"] = "def f():\n    from ours import later\n"
    assert mark(tmp_path, files) == mark(tmp_path, {**files, "later.py": "print(2)\n"})
