"""The order by hand, on evidence made for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probatum.advising import rank
from probatum.advising.evidence import Earlier, Outcome, in_margins, likeness, once
from probatum.advising.facts import DataFacts, Fact, Profile, profile
from probatum.advising.rank import ranked
from probatum.card import Card

HERE = Profile("table", "classes", 1000, 2, 1.0)
NOISY = Fact("labels", "12 % of labels look wrong", {"share": 0.12}, "noisy-labels")


def data(*facts: Fact, mine: Profile = HERE) -> DataFacts:
    return DataFacts("mine", "f0", mine, facts)


def card(*tags: str, modalities: tuple[str, ...] = ()) -> Card:
    return Card(paper="none", title="none", entry="X", tags=tags, modalities=modalities)


def study(name: str, where: Profile = HERE, **outcomes: Outcome) -> Earlier:
    return Earlier(name, name, where, f"store, study {name}", outcomes)


def gained(gain: float, seeds: int = 4, word: str = "undecided") -> Outcome:
    return Outcome(word, gain, seeds)


def order(*found: rank.Ranked) -> dict[str, float]:
    return {one.technique: round(one.points, 6) for one in found}


def test_a_step_halves_the_likeness() -> None:
    assert likeness(HERE, HERE) == 1
    assert likeness(HERE, replace(HERE, n=10_000)) == pytest.approx(1 / 2)
    assert likeness(HERE, replace(HERE, classes=8)) == pytest.approx(1 / 2)
    assert likeness(HERE, replace(HERE, rarest=0.1)) == pytest.approx(1 / 2)
    assert likeness(HERE, replace(HERE, modality="image")) == pytest.approx(1 / 4)
    assert likeness(HERE, profile("table", "reals", 1000)) == pytest.approx(1 / 4)
    assert likeness(HERE, replace(HERE, n=10, classes=4, rarest=0.01)) == pytest.approx(2**-4.5)


def test_a_profile_from_counts() -> None:
    assert profile("table", "classes", 100, (90, 10)) == Profile("table", "classes", 100, 2, 0.2)
    assert profile("table", "reals", 100) == Profile("table", "reals", 100, 0, 1.0)


def test_tags_count_where_the_data_show_what_they_are_for() -> None:
    cards = {"plain": card("training"), "robust": card("label-noise", "noisy labels"), "even": card("imbalance")}
    first, *others = ranked(cards, data(NOISY))
    assert (first.technique, first.points) == ("robust", 0.5)  # two tags for one trait count once
    assert first.reasons[0].words == "12 % of labels look wrong; made for noisy labels"
    assert first.reasons[0].numbers["share"] == 0.12
    assert order(*others) == {"even": 0.0, "plain": 0.0}
    assert [one.technique for one in others] == ["even", "plain"]  # equal sums by name


def test_data_of_ones_own_sort() -> None:
    cards = {"a": card(modalities=("table",)), "b": card("tables"), "c": card(modalities=("table", "image"))}
    assert order(*ranked(cards, data())) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_claims_count_by_their_share() -> None:
    claims = {"all": (2, 2), "half": (1, 2), "none": (0, 3)}
    found = ranked({name: card() for name in ("all", "half", "none", "unknown")}, data(), (), claims)
    assert [(one.technique, one.points) for one in found] == [
        ("all", 0.25),
        ("half", 0.0),
        ("unknown", 0.0),
        ("none", -0.25),
    ]
    assert found[0].reasons[0].words == "2 of 2 claims of its paper reproduced here"


def test_studies_by_hand() -> None:
    far = replace(HERE, n=10_000)
    earlier = [
        study("near", a=gained(2.0, seeds=4, word="helps"), b=gained(-1.0, seeds=4)),
        study("far", far, a=gained(8.0, seeds=12), b=Outcome("failed", None, 4)),
    ]
    # weights: near 1 * 4/8 = 0.5; far 0.5 * 12/16 = 0.375 for a, 0.5 * 4/8 = 0.25 for b; 8 is cut to 3, a failure is -3
    a = (0.5 * 2 + 0.375 * 3) / (0.5 + 0.375 + 1)
    b = (0.5 * -1 + 0.25 * -3) / (0.5 + 0.25 + 1)
    found = ranked({"a": card(), "b": card()}, data(), earlier)
    assert order(*found) == {"a": round(a, 6), "b": round(b, 6)}
    assert found[0].reasons[0].words == (
        "helped on 1, undecided on 1 of 2 earlier studies (near, far); middle gain +5.0 times what matters"
    )
    assert "failed on 1 of 2 earlier studies (near, far); middle gain -1.0" in found[1].reasons[0].words
    weights = [one["weight"] for one in found[0].reasons[0].numbers["studies"]]
    assert weights == [0.5, 0.375]


def test_what_gains_where_those_before_it_do_not_comes_next() -> None:
    earlier = [
        study("x", a=gained(3.0), b=gained(2.0), c=gained(0.0), d=gained(0.5)),
        study("y", a=gained(0.0), b=gained(0.0), c=gained(1.0), d=gained(0.25)),
    ]
    found = ranked({name: card() for name in "abcd"}, data(), earlier)
    # each study weighs a half; b gains more than c in the mean, but nothing where a was tried; of equals the larger mean
    assert [(one.technique, one.points) for one in found] == [("a", 0.75), ("c", 0.25), ("b", 0.0), ("d", 0.0)]


def test_what_gains_on_the_same_data_in_another_study_adds_nothing() -> None:
    """Two studies of one table, each of one technique, and a third of another table."""
    again = replace(study("one", b=gained(2.5)), source="store, another")
    studies = [study("one", a=gained(3.0)), again, study("other", c=gained(1.0))]
    cards = {name: card() for name in "abc"}
    found = ranked(cards, data(), studies)
    assert order(*found) == {"a": 1.0, "c": round(0.5 * 1.0 / 1.5, 6), "b": 0.0}
    assert [one.technique for one in found] == ["a", "c", "b"]


def test_what_lost_in_the_mean_is_not_saved_by_its_card() -> None:
    earlier = [study("x", a=gained(-2.0), b=gained(0.0)), study("y", a=gained(-2.0), b=gained(0.0))]
    found = ranked({"a": card("label-noise"), "b": card()}, data(NOISY), earlier)
    assert [(one.technique, one.points) for one in found] == [("b", 0.0), ("a", 0.5 - 1.0)]


def test_a_study_of_the_same_data_counts_for_five() -> None:
    earlier = [replace(study("x", a=gained(1.0)), fingerprint="f0"), study("y", a=gained(-1.0))]
    (one,) = ranked({"a": card()}, data(), earlier)
    assert one.points == pytest.approx(2.5 / (2.5 + 0.5 + 1))  # who tries it on y keeps the baseline
    assert one.reasons[0].numbers["mean"] == pytest.approx((2.5 - 0.5) / (2.5 + 0.5 + 1))
    assert "(these data, y)" in one.reasons[0].words


def test_points_are_the_sum_of_the_reasons() -> None:
    earlier = [study("x", a=gained(1.0))]
    (one,) = ranked({"a": card("label-noise", "tables")}, data(NOISY), earlier, {"a": (1, 1)})
    assert one.points == pytest.approx(0.5 + 0.5 + 0.25 + 0.5 / 1.5)
    assert [reason.rests for reason in one.reasons] == ["card", "card", "studies", "claims"]


def test_a_technique_counts_once_for_each_data_set() -> None:
    short, long = study("x", a=gained(1.0, 3), b=gained(1.0, 3)), study("x", a=gained(2.0, 6))
    found = once([short, long, study("y", a=gained(0.0, 3))])
    assert [sorted(one.outcomes) for one in found] == [["b"], ["a"], ["a"]]
    assert found[1].outcomes["a"].gain == 2.0


def test_gains_in_margins() -> None:
    assert in_margins(0.02, 0.01) == 2
    assert in_margins(float("nan"), 0.01) is None
    assert in_margins(0.02, 0.0) is None


def test_every_trait_has_tags_in_the_catalogue_or_is_for_techniques_to_come() -> None:
    from probatum import catalogue

    tags = {tag for name in catalogue.names() for tag in catalogue.card(name).tags}
    without = {trait for trait, (_, its) in rank.TRAITS.items() if not tags & set(its)}
    assert without == {"missing"}
