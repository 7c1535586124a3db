"""Shared: one small finished study, made once; one torch thread everywhere; which tests stay together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from holding import Holding
from probatum import Study, catalogue
from probatum.checks import fresh
from probatum.rooms import find

CONTRACT = "test_contract.py"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``--dist loadgroup``: what stays on one worker; small groups come last, so that no worker is idle for long."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=lambda item: 2 if item.get_closest_marker("fast") else int(item.path.name == CONTRACT))


def group_of(item: pytest.Item) -> str:
    """The file; of the contract suite the cases of one technique; and all that looks at the one finished study."""
    if "small_study" in getattr(item, "fixturenames", ()):
        return "small_study"
    file = item.path.relative_to(item.config.rootpath).as_posix()
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return f"{file}-{parameters.get('name', '')}" if item.path.name == CONTRACT else file


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _what_joined_leaves() -> Iterator[None]:
    """Techniques and rooms that the tests of a file brought from outside are gone with its last test."""
    techniques, rooms = dict(catalogue._added), dict(find._added)
    yield
    for known, before in ((catalogue._added, techniques), (find._added, rooms)):
        known.clear()
        known.update(before)  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="session")
def _one_fresh_process() -> Iterator[None]:
    """The interpreter that contract checks compare with is started once, when it is first asked."""
    with fresh.kept():
        yield


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Holding]:
    """A technique that holds a study in the middle of a training; in the end nothing is held."""
    found = Holding(tmp_path)
    yield found
    found.let_go()


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two arms on wine with everything switched on, run to its end."""
    folder: Path = tmp_path_factory.mktemp("study")
    arms = ["encouraging-loss", "h-calibration(window=20, steps=20)"]
    study = Study("wine", arms, seeds=6, epochs=4, batch_size=32, store=folder / "store.sqlite")
    study.run()
    return study
