"""Every claim has its evidence, the evidence is of the code as it stands, and a rotating one is run again."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from probatum import catalogue
from probatum.claims.chosen import claims_of
from probatum.claims.record import evidence, is_stale, recorded, run_claim

RECORDED = evidence()
CLAIMS = [(name, claim.id) for name in catalogue.names() for claim in claims_of(name)]
QUICK_SECONDS = 25


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


def test_a_rotating_claim_comes_out_as_recorded() -> None:
    quick = [
        (name, claim)
        for name in catalogue.names()
        for claim in claims_of(name)
        if not claim.needs_library and recorded(name, claim.id, RECORDED)["seconds"] <= QUICK_SECONDS
    ]
    assert quick, "no claim is quick enough to be run here"
    name, claim = quick[datetime.now(UTC).toordinal() % len(quick)]
    assert run_claim(name, claim)["verdict"] == recorded(name, claim.id, RECORDED)["verdict"], name
