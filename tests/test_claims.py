"""Every claim has its evidence, and the evidence is of the code as it stands."""

from __future__ import annotations

import math

import pytest

from probatum import catalogue
from probatum.claims.chosen import claims_of
from probatum.claims.record import evidence, is_stale, recorded

pytestmark = pytest.mark.fast

RECORDED = evidence()
CLAIMS = [(name, claim.id) for name in catalogue.names() for claim in claims_of(name)]


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_claim_is_recorded_and_fresh(name: str, claim: str) -> None:
    entry = recorded(name, claim, RECORDED)
    assert not is_stale(name, entry), (
        f"{name}/{claim}: what its evidence rests on changed since (`python -m probatum.claims.fingerprint {name}` lists "
        f"it); run `python -m probatum.claims.record {name}`"
    )
    assert entry["verdict"] in ("reproduced", "not reproduced here")
    assert entry["measured"]
    assert all(math.isfinite(value) for value in entry["measured"].values())
    assert min(entry["seeds"]) > 100, "seeds up to 100 are for choosing settings"


def test_nothing_is_recorded_that_no_longer_exists() -> None:
    gone = set(RECORDED) - {f"{name}/{claim}" for name, claim in CLAIMS}
    assert not gone, f"evidence.json holds claims that are no more: {', '.join(sorted(gone))}; take them out"
