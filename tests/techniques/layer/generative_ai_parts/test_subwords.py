"""Sub-words: gains against a recount, segmentations against all possible ones, byte-pair encoding against a plain one."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from probatum.techniques.layer.generative_ai_parts.subwords import (
    RULES,
    Segmented,
    learn,
    log_likelihood,
    merge_gain,
    pieces_of,
)

pytestmark = pytest.mark.fast

TEXT = "she sells sea shells by the sea shore; the shells she sells are sea shells, hmmmm, aaaa and aaa.\n" * 3


def test_pieces_join_to_the_text() -> None:
    text = "  two  words,\n\tand more "
    assert "".join(pieces_of(text)) == text


def test_log_likelihood_by_hand() -> None:
    counts = Counter("abracadabra")
    expected = sum(n * math.log(n / 11) for n in counts.values())
    assert log_likelihood(counts) == pytest.approx(expected)


def test_gain_by_the_formula_is_that_of_a_recount() -> None:
    state = Segmented.of(TEXT)
    for _ in range(12):
        before = log_likelihood(state.counts)
        gains = {
            pair: merge_gain(state.counts[pair[0]], state.counts[pair[1]], n, state.total, same=pair[0] == pair[1])
            for pair, n in state.pairs.items()
        }
        for pair in list(gains)[:10]:
            again = Segmented(list(state.words), state.times)
            for number in range(len(again.words)):
                again._count(number, 1)
            again.merge(pair)
            assert log_likelihood(again.counts) - before == pytest.approx(gains[pair], abs=1e-6), pair
        state.merge(max(gains, key=lambda pair: gains[pair]))


def test_counts_are_kept_while_merging() -> None:
    state = Segmented.of(TEXT)
    for _ in range(10):
        state.merge(state.pairs.most_common(1)[0][0])
        fresh: Counter[str] = Counter()
        for word, times in zip(state.words, state.times, strict=True):
            for token in word:
                fresh[token] += times
        assert fresh == +state.counts
        assert "".join(token for word in state.words for token in word) == "".join(Counter(pieces_of(TEXT)))


def test_byte_pair_encoding_by_a_plain_one() -> None:
    words = Counter(pieces_of(TEXT))
    cut = {word: list(word) for word in words}
    merges = []
    for _ in range(15):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, tokens in cut.items():
            for (a, b), _group in itertools.groupby(itertools.pairwise(tokens)):
                length = len(list(_group))
                pairs[a, b] += words[word] * ((length + 1) // 2 if a == b else length)
        best = max(pairs.items(), key=lambda item: (item[1], item[0]))[0]
        merges.append(best)
        for word, tokens in cut.items():
            out, i = [], 0
            while i < len(tokens):
                if tuple(tokens[i : i + 2]) == best:
                    out.append("".join(best))
                    i += 2
                else:
                    out.append(tokens[i])
                    i += 1
            cut[word] = out
    size = len(set(TEXT)) + 15
    assert list(learn(TEXT, size, "bpe").merges) == merges


@pytest.mark.parametrize("rule", RULES)
def test_segmentation_is_the_best_of_all(rule: str) -> None:
    vocabulary = learn(TEXT, len(set(TEXT)) + 12, rule)
    for word in sorted(set(pieces_of(TEXT)))[:12]:
        best = -math.inf
        for cuts in itertools.product([False, True], repeat=len(word) - 1):
            tokens, start = [], 0
            for i, cut in enumerate(cuts, start=1):
                if cut:
                    tokens.append(word[start:i])
                    start = i
            tokens.append(word[start:])
            if all(token in vocabulary.logs for token in tokens):
                best = max(best, sum(vocabulary.logs[token] for token in tokens))
        found = vocabulary.encode(word)
        assert "".join(found) == word
        assert sum(vocabulary.logs[token] for token in found) == pytest.approx(best)


def test_probabilities_add_up_and_texts_come_back() -> None:
    for rule in RULES:
        vocabulary = learn(TEXT, 40, rule)
        assert sum(math.exp(log) for log in vocabulary.logs.values()) == pytest.approx(1)
        assert len(vocabulary) <= 40
        other = "shells? Ünknown!\n"
        assert "".join(vocabulary.encode(other)) == other
        assert "".join(vocabulary.encode_by_merges(other)) == other


def test_the_likelihood_rule_stops_without_a_gain() -> None:
    assert len(learn("ab", 50)) < 50


def test_misuse() -> None:
    with pytest.raises(ValueError, match="rule is 'x'"):
        learn(TEXT, 40, "x")
    with pytest.raises(ValueError, match="size is 3"):
        learn(TEXT, 3)
    with pytest.raises(ValueError, match="size is 5"):
        learn("", 5)
