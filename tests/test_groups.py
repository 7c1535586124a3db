"""Tests that share what is dear to set up run in one process."""

from __future__ import annotations

import os

import pytest

from conftest import group_of

pytestmark = pytest.mark.fast


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
def test_the_groups_are_known_to_whom_hands_tests_out(request: pytest.FixtureRequest) -> None:
    """pytest 9.2.0 hides them from pytest-xdist 3.8.0, which then sets every shared fixture up in each process."""
    if not request.config.getoption("loadgroup"):
        pytest.skip("without --dist loadgroup")
    assert request.node.nodeid.endswith(f"@{group_of(request.node)}"), "install the pytest of constraints.txt"
