"""The measures describe themselves, are found without a list, and cost nothing to import."""

from __future__ import annotations

import sys

import pytest

from probatum.measure.base import Measure, all_measures
from processes import ran

pytestmark = pytest.mark.fast


def test_every_measure_is_found_and_says_what_it_is() -> None:
    found = all_measures()
    assert {"accuracy", "rmse", "ece", "latency-ratio", "corrupted-accuracy", "parameters"} <= found.keys()
    for name, measure in found.items():
        assert name == measure.name
        assert measure.about
        assert set(measure.tasks) <= {"classes", "reals", "next-token"}
        assert measure.margin > 0


def test_a_name_declared_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from probatum.measure import calibration, quality

    monkeypatch.setattr(calibration, "MEASURES", quality.MEASURES[:1])
    with pytest.raises(ValueError, match="'accuracy' is declared twice"):
        all_measures()


@pytest.mark.parametrize(("margin", "kind"), [(-0.1, "difference"), (float("nan"), "difference"), (0.1, "log")])
def test_bad_measures_are_refused(margin: float, kind: str) -> None:
    with pytest.raises(ValueError, match="measure m"):
        Measure("m", "quality", True, margin, kind)


def test_base_is_light() -> None:
    code = "import sys, probatum.measure.base; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sklearn')))"
    assert ran(sys.executable, "-c", code).returncode == 0
