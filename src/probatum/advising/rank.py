"""The order in which techniques are worth trying: a sum of points, each with its reason.

Points are in margins, the smallest differences that matter: they guess what trying a technique adds to the baseline and to
those that stand before it. A technique has

- `TRAIT` for every trait of the data that its card is tagged with (`TRAITS`), and for being made for such data;
- from -`CLAIM` to +`CLAIM` by the share of its paper's claims that were reproduced here;
- what it added in earlier studies: by how much its gain, cut at `MOST`, exceeds the best on the same data of those before it
  in the order, 0 where it does not, for whoever tries keeps what was best; the mean of that, weighed by how alike the data are and by seeds,
  and drawn towards 0 as if `DOUBT` studies of the same weight as a whole one had found nothing; and where it lost in the
  mean, that loss, cut at `MOST` a study.

So two techniques that gain on the same data are not both advised before one that gains on others: the order is greedy, as
for a portfolio of solvers (Feurer et al., "Auto-Sklearn 2.0", 2022, section 3.2). Equal sums stand in the order of mean gains
in those studies, then of names. Nothing else counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from probatum.advising.evidence import Earlier, Outcome, likeness
from probatum.advising.facts import DataFacts, Fact, Profile
from probatum.card import Card

TRAIT = 0.5
"""Margins that a card's tag is worth where the data show what it was made for."""
CLAIM = 0.25
"""Margins that a reproduced claim is worth."""
MOST = 3.0
"""Margins beyond which a gain or a loss in one study counts as this; a technique that failed has lost as much."""
DOUBT = 1.0
"""Weight of the studies that found nothing and that nobody has made: one study of many seeds on the same sort of data."""
SEEDS = 4
"""Seeds at which a study counts half."""
SAME = 5.0
"""How many studies one of the same data counts for."""
NAMED = 3
"""Data sets named in a reason."""

TRAITS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "noisy-labels": ("noisy labels", ("label-noise", "noisy labels")),
    "imbalance": ("imbalance", ("imbalance", "long-tail")),
    "few-rows": ("few rows", ("few-labels", "few-shot")),
    "missing": ("missing cells", ("missing",)),
    "drift": ("shift", ("shift", "domain shift")),
    "groups": ("groups that are not seen in training", ("groups", "domain shift", "worst-group")),
}
"""Trait -> what a technique is made for, in words, and the tags of its card that say so."""


@dataclass(frozen=True)
class Reason:
    """Some of a technique's points.

    Attributes:
        points: in margins.
        words: why, as a person reads it.
        rests: what it rests on: "card", "claims" or "studies".
        numbers: what the words count, as JSON values.
    """

    points: float
    words: str
    rests: str
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Ranked:
    """One technique in the order.

    Attributes:
        technique: its id.
        points: the sum.
        reasons: what it is the sum of, those that weigh most first.
    """

    technique: str
    points: float
    reasons: tuple[Reason, ...]


def ranked(
    cards: Mapping[str, Card],
    facts: DataFacts,
    earlier: Sequence[Earlier] = (),
    claims: Mapping[str, tuple[int, int]] | None = None,
) -> list[Ranked]:
    """Techniques, the most promising first.

    Args:
        cards: those that can be tried on the data, by id.
        facts: of the data.
        earlier: studies made before.
        claims: technique -> how many claims were reproduced, of how many.
    """
    told = {name: [*by_card(card, facts.traits, facts.profile)] for name, card in cards.items()}
    for name, reasons in told.items():
        reasons += [reason for reason in (by_claims((claims or {}).get(name)),) if reason]
    pasts = {name: past(name, facts, earlier) for name in cards}
    best: dict[str, float] = {}
    found: list[Ranked] = []
    left = sorted(cards)
    while left:
        added = {name: pasts[name].adds(best) + min(0.0, pasts[name].mean()) for name in left}
        sums = {name: sum(reason.points for reason in told[name]) + added[name] for name in left}
        name = min(left, key=lambda one: (-round(sums[one], 9), -round(pasts[one].mean(), 9), one))
        reasons = told[name] + ([by_studies(pasts[name], added[name], facts)] if pasts[name].tried else [])
        reasons.sort(key=lambda reason: -abs(reason.points))
        found.append(Ranked(name, sum(reason.points for reason in reasons), tuple(reasons)))
        best = pasts[name].beaten(best)
        left.remove(name)
    return found


def by_card(card: Card, traits: Mapping[str, Fact], profile: Profile) -> list[Reason]:
    """`TRAIT` for each trait of the data that the card is tagged with, and for data of the only modality it takes."""
    found = []
    for trait, fact in traits.items():
        words, tags = TRAITS[trait]
        mine = [tag for tag in card.tags if tag in tags]
        if mine:
            told = f"{fact.words}; made for {words}"
            found.append(Reason(TRAIT, told, "card", {"trait": trait, "tags": mine, **fact.numbers}))
    sort = profile.modality
    if card.modalities == (sort,) or {sort, f"{sort}s"} & set(card.tags):
        found.append(Reason(TRAIT, f"made for data of this sort ({sort})", "card", {"modality": sort}))
    return found


def by_claims(counted: tuple[int, int] | None) -> Reason | None:
    """From -`CLAIM`, no claim reproduced, to +`CLAIM`, all of them; None where none was run."""
    if counted is None or not counted[1]:
        return None
    good, of = counted
    words = f"{good} of {of} claims of its paper reproduced here"
    return Reason(CLAIM * (2 * good / of - 1), words, "claims", {"reproduced": good, "run": of})


@dataclass(frozen=True)
class Past:
    """What earlier studies found of a technique, those first that weigh most.

    Attributes:
        tried: the studies that tried it, and what it came to in each.
        weights: of each.
        gains: of each, cut.
    """

    tried: tuple[tuple[Earlier, Outcome], ...]
    weights: tuple[float, ...]
    gains: tuple[float, ...]

    def adds(self, best: Mapping[str, float]) -> float:
        """What it adds in the mean to the best gains found before, by fingerprints of data, drawn towards 0."""
        return self._mean([max(0.0, gain - best.get(data, 0.0)) for data, gain in self._by_data()])

    def mean(self) -> float:
        """Its gain in the mean, drawn towards 0."""
        return self._mean(self.gains)

    def beaten(self, best: Mapping[str, float]) -> dict[str, float]:
        """The best gains, its own counted."""
        return {**best, **{data: max(gain, best.get(data, 0.0)) for data, gain in self._by_data()}}

    def _by_data(self) -> list[tuple[str, float]]:
        return [(study.fingerprint, gain) for (study, _), gain in zip(self.tried, self.gains, strict=True)]

    def _mean(self, values: Sequence[float]) -> float:
        return sum(w * v for w, v in zip(self.weights, values, strict=True)) / (sum(self.weights) + DOUBT)


def past(name: str, facts: DataFacts, earlier: Sequence[Earlier]) -> Past:
    """What earlier studies say of a technique on data with these facts."""
    tried = [(study, study.outcomes[name]) for study in earlier if name in study.outcomes]
    weighed = [(weight(study, outcome, facts), study, outcome) for study, outcome in tried]
    weighed.sort(key=lambda one: -one[0])
    return Past(
        tuple((study, outcome) for _, study, outcome in weighed),
        tuple(its for its, _, _ in weighed),
        tuple(cut(outcome) for _, _, outcome in weighed),
    )


def by_studies(known: Past, added: float, facts: DataFacts) -> Reason:
    """What it adds to those before it, with the studies that say so."""
    numbers = {
        "studies": [
            {
                "data": study.data,
                "source": study.source,
                "word": outcome.word,
                "gain": gain,
                "seeds": outcome.seeds,
                "weight": its,
            }
            for (study, outcome), gain, its in zip(known.tried, known.gains, known.weights, strict=True)
        ],
        "mean": known.mean(),
    }
    return Reason(added, _studies_in_words(facts, known.tried), "studies", numbers)


def weight(study: Earlier, outcome: Outcome, facts: DataFacts) -> float:
    """How much a study counts: likeness of the data, times seeds / (seeds + `SEEDS`), times `SAME` for the same data."""
    alike = likeness(facts.profile, study.profile) * (SAME if study.fingerprint == facts.fingerprint else 1.0)
    return alike * outcome.seeds / (outcome.seeds + SEEDS)


def cut(outcome: Outcome) -> float:
    """A gain in margins between -`MOST` and `MOST`."""
    return -MOST if outcome.gain is None else max(-MOST, min(MOST, outcome.gain))


def _studies_in_words(facts: DataFacts, tried: Sequence[tuple[Earlier, Outcome]]) -> str:
    words = Counter(outcome.word for _, outcome in tried)
    counted = [f"{TOLD.get(word, word)} on {words[word]}" for word in dict.fromkeys((*TOLD, *words)) if words[word]]
    names = list(dict.fromkeys(_named(study, facts) for study, _ in tried))
    shown = ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
    many = "1 earlier study" if len(tried) == 1 else f"{len(tried)} earlier studies"
    ended = [outcome.gain for _, outcome in tried if outcome.gain is not None]
    told = f"; middle gain {median(ended):+.1f} times what matters" if ended else ""
    return f"{', '.join(counted)} of {many} ({shown}){told}"


TOLD = {
    "helps": "helped",
    "hurts": "hurt",
    "no material difference": "made no difference",
    "undecided": "undecided",
    "failed": "failed",
}
"""Words of verdicts, as they are counted."""


def _named(study: Earlier, facts: DataFacts) -> str:
    return "these data" if study.fingerprint == facts.fingerprint else study.data
