"""Shared: one small finished study, made once; one torch thread everywhere; which tests stay together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from holding import Holding
from probatum import Study
from probatum.checks import fresh

CONTRACT = "test_contract.py"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``--dist loadgroup``: a file stays on one worker, of the contract suite the cases of one technique.

    Small groups come last, so that no worker is idle for long in the end.
    """
    order: dict[str, int] = {}
    for item in items:
        file = str(item.path.relative_to(item.config.rootpath))
        technique = item.callspec.params["name"] if item.path.name == CONTRACT and hasattr(item, "callspec") else ""
        item.add_marker(pytest.mark.xdist_group(f"{file}:{technique}"))
        last = 2 if item.get_closest_marker("fast") is not None else int(item.path.name == CONTRACT)
        order[item.nodeid] = last
    items.sort(key=lambda item: order[item.nodeid])


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


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
