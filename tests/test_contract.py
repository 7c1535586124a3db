"""The contract suite over every technique there is; nobody writes a line here for a new one."""

from __future__ import annotations

import pytest

from probatum import catalogue
from probatum.checks.run import checks_for, run_check
from probatum.checks.subject import Subject

CASES = [(name, check) for name in catalogue.names() for check in checks_for(catalogue.place(name).slot)]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_contract(name: str, check: str) -> None:
    result = run_check(Subject(name), check)
    assert result.status != "failed", f"{name} ({catalogue.card(name).paper}): {result.detail}"


def test_expect_fail_names_known_checks() -> None:
    for name in catalogue.names():
        unknown = set(catalogue.card(name).expect_fail) - set(checks_for(catalogue.place(name).slot))
        assert not unknown, f"{name}: expect_fail names {unknown}"
