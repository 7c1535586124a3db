"""Sub-word vocabularies grown from characters by merges, and the best segmentation of a text into their tokens."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

PIECES = re.compile(r"\s?\S+|\s")
RULES = ("likelihood", "bpe", "wordpiece")

Pair = tuple[str, str]


def pieces_of(text: str) -> list[str]:
    """Words with the blank before them, and further blanks: merges do not cross their borders; joined they are the text."""
    return PIECES.findall(text)


def log_likelihood(counts: Mapping[str, int] | Iterable[int]) -> float:
    """Sum of n log(n / N) over tokens with counts n that add up to N: what a unigram model gives its own text, in nats."""
    values = [n for n in (counts.values() if isinstance(counts, Mapping) else counts) if n > 0]
    return sum(map(_xlogx, values)) - _xlogx(sum(values))


def merge_gain(first: int, second: int, both: int, total: int, *, same: bool) -> float:
    """What merging a pair adds to the log-likelihood, the total recomputed.

    Args:
        first, second: counts of the two tokens.
        both: how often they are merged.
        total: tokens in the text before.
        same: whether the two are one token.
    """
    shrunk = _xlogx(first - 2 * both) - _xlogx(first) if same else 0.0
    if not same:
        shrunk = _xlogx(first - both) - _xlogx(first) + _xlogx(second - both) - _xlogx(second)
    return shrunk + _xlogx(both) - _xlogx(total - both) + _xlogx(total)


@dataclass
class Segmented:
    """A text as word types with counts, each cut into tokens, that merges act on.

    Attributes:
        words: tokens of each word type.
        times: how often each occurs.
        counts: how often each token occurs.
        pairs: how often each pair of neighbours would be merged (equal tokens in a row count every second).
    """

    words: list[list[str]]
    times: list[int]
    counts: Counter[str] = field(default_factory=Counter)
    pairs: Counter[Pair] = field(default_factory=Counter)
    where: defaultdict[Pair, set[int]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def of(cls, text: str) -> Segmented:
        """Every word cut into its characters."""
        types = Counter(pieces_of(text))
        made = cls([list(word) for word in types], list(types.values()))
        for number in range(len(made.words)):
            made._count(number, 1)
        return made

    @property
    def total(self) -> int:
        """Number of tokens."""
        return sum(self.counts.values())

    def merge(self, pair: Pair) -> None:
        """Join every occurrence of a pair, from the left."""
        for number in sorted(self.where[pair]):
            self._count(number, -1)
            self.words[number] = _joined(self.words[number], pair)
            self._count(number, 1)

    def _count(self, number: int, sign: int) -> None:
        word, times = self.words[number], sign * self.times[number]
        for token in word:
            self.counts[token] += times
        for pair, n in _pairs_in(word).items():
            self.pairs[pair] += times * n
            if sign > 0:
                self.where[pair].add(number)
            else:
                self.where[pair].discard(number)
                if self.pairs[pair] == 0:
                    del self.pairs[pair]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their log-probabilities under a unigram model, and the merges that made them, in order."""

    logs: Mapping[str, float]
    merges: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.logs)

    def encode(self, text: str) -> list[str]:
        """The most probable segmentation (Viterbi), word by word; an unknown character is a token of its own."""
        known: dict[str, list[str]] = {}
        longest = max(map(len, self.logs))
        found: list[str] = []
        for piece in pieces_of(text):
            if piece not in known:
                known[piece] = self._best(piece, longest)
            found += known[piece]
        return found

    def _best(self, word: str, longest: int) -> list[str]:
        unknown = min(self.logs.values()) - 10.0
        scores, back = [0.0] + [-math.inf] * len(word), [0] * (len(word) + 1)
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - longest), end):
                token = word[start:end]
                log = self.logs.get(token, unknown if end - start == 1 else -math.inf)
                if scores[start] + log > scores[end]:
                    scores[end], back[end] = scores[start] + log, start
        tokens, end = [], len(word)
        while end:
            tokens.append(word[back[end] : end])
            end = back[end]
        return tokens[::-1]

    def encode_by_merges(self, text: str) -> list[str]:
        """The segmentation that the merges give when they are done in their order, as byte-pair encoding does it."""
        rank = {pair: number for number, pair in enumerate(self.merges)}
        known: dict[str, list[str]] = {}
        found: list[str] = []
        for piece in pieces_of(text):
            if piece not in known:
                tokens = list(piece)
                while ranked := [(rank[pair], pair) for pair in itertools.pairwise(tokens) if pair in rank]:
                    tokens = _joined(tokens, min(ranked)[1])
                known[piece] = tokens
            found += known[piece]
        return found


def learn(text: str, size: int, rule: str = "likelihood", refits: int = 2) -> Vocabulary:
    """Grow a vocabulary from the text's characters by merges.

    Args:
        text: to learn from.
        size: tokens at most.
        rule: "likelihood" (the merge with the greatest `merge_gain`, while there is one), "bpe" (the most frequent pair) or
            "wordpiece" (the greatest n_ab / (n_a n_b)).
        refits: how often probabilities are counted again from the best segmentation.

    Raises:
        ValueError: an empty text, a size below its characters, an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; use one of {', '.join(RULES)}")
    state = Segmented.of(text)
    if not text or size < len(state.counts):
        raise ValueError(
            f"size is {size}; the text has {len(state.counts)} characters, and at least as many tokens are needed"
        )
    merges: list[Pair] = []
    tokens = set(state.counts)
    while len(tokens) < size and state.pairs:
        pair, score = _best_pair(state, rule)
        if score <= 0:
            break
        state.merge(pair)
        merges.append(pair)
        tokens.add(pair[0] + pair[1])
    counts = Counter({token: max(1, state.counts[token]) for token in tokens})  # a token that is used up stays usable
    vocabulary = Vocabulary(_logs(counts), tuple(merges))
    for _ in range(refits):
        used = Counter(vocabulary.encode(text))
        vocabulary = Vocabulary(_logs(Counter({token: max(1, used[token]) for token in tokens})), tuple(merges))
    return vocabulary


def _best_pair(state: Segmented, rule: str) -> tuple[Pair, float]:
    total, counts = state.total, state.counts
    scores: dict[str, Callable[[Pair, int], float]] = {
        "likelihood": lambda p, n: merge_gain(counts[p[0]], counts[p[1]], n, total, same=p[0] == p[1]),
        "bpe": lambda p, n: float(n),
        "wordpiece": lambda p, n: n / (counts[p[0]] * counts[p[1]]) if n > 1 else 0.0,
    }
    score = scores[rule]
    return max(((pair, score(pair, n)) for pair, n in state.pairs.items()), key=lambda item: (item[1], item[0]))


def _logs(counts: Counter[str]) -> dict[str, float]:
    total = sum(counts.values())
    return {token: math.log(n / total) for token, n in sorted(counts.items())}


def _pairs_in(word: list[str]) -> Counter[Pair]:
    found: Counter[Pair] = Counter()
    last = -2
    for i, pair in enumerate(itertools.pairwise(word)):
        if pair[0] == pair[1] and last == i - 1 and word[i - 1] == pair[0]:
            continue  # the left one has taken this token already
        found[pair] += 1
        last = i if pair[0] == pair[1] else -2
    return found


def _joined(word: list[str], pair: Pair) -> list[str]:
    found, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            found.append(word[i] + word[i + 1])
            i += 2
        else:
            found.append(word[i])
            i += 1
    return found


def _xlogx(n: float) -> float:
    return n * math.log(n) if n > 0 else 0.0
