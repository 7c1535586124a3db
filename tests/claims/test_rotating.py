"""Every day another of the quick claims is run again and comes out as recorded."""

from __future__ import annotations

from datetime import UTC, datetime

from probatum import catalogue
from probatum.claims.chosen import claims_of
from probatum.claims.record import evidence, recorded, run_claim

QUICK_SECONDS = 25


def test_a_rotating_claim_comes_out_as_recorded() -> None:
    known = evidence()
    quick = [
        (name, claim)
        for name in catalogue.names()
        for claim in claims_of(name)
        if not claim.needs_library and recorded(name, claim.id, known)["seconds"] <= QUICK_SECONDS
    ]
    assert quick, "no claim is quick enough to be run here"
    name, claim = quick[datetime.now(UTC).toordinal() % len(quick)]
    assert run_claim(name, claim)["verdict"] == recorded(name, claim.id, known)["verdict"], name
