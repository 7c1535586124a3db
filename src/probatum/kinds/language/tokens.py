"""Texts to token ids and back to sizes: characters, or pairs of bytes merged by frequency; fitted on training text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from probatum.errors import InputError
from probatum.kinds.text.encode import UNKNOWN

KINDS = ("char", "bpe")
LENGTHS = {"char": 64, "bpe": 32}
"""Tokens of a window where nothing else is said."""
VOCABULARY = 512
BYTES = 256
MOST_VOCABULARY = 16_384
FIRST = 2
"""The id of the first token behind padding and unknown."""


@dataclass(frozen=True)
class TokenEncoder:
    """Text -> token ids: 0 padding (never used inside windows), 1 unknown, then the training text's tokens.

    Attributes:
        kind: char (every character of the training text is a token; others are unknown) or bpe (byte pairs, no unknowns).
        length: tokens of a window.
        characters: char: the known characters; character i has id i + 2.
        merges: bpe: the trained tokenizer as JSON text, "" for char.
    """

    kind: str
    length: int
    characters: str = ""
    merges: str = ""

    @classmethod
    def fit(cls, texts: Sequence[str], kind: str, length: int, vocabulary: int = VOCABULARY) -> TokenEncoder:
        """Count the characters, or merge byte pairs until there are `vocabulary` ids, of these (training) texts."""
        if kind == "char":
            return cls(kind, length, "".join(sorted(set().union(*texts))))
        return cls(kind, length, merges=_trained(texts, vocabulary))

    @property
    def vocabulary(self) -> int:
        """Number of token ids, padding and unknown included."""
        return FIRST + len(self.characters) if self.kind == "char" else self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids (t,) int64 and where each token begins, (t + 1,) in characters, the last one being the text's length.

        Parts of one character begin where it begins.
        """
        if self.kind == "char":
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            return self._code_of(codes), np.arange(len(text) + 1)
        found = self._tokenizer.encode(text)
        begins = np.array([*(begin for begin, _ in found.offsets), len(text)], dtype=np.int64)
        return np.array(found.ids, dtype=np.int64), begins

    def _code_of(self, codes: np.ndarray) -> np.ndarray:
        known = np.array([ord(letter) for letter in self.characters], dtype=np.uint32)
        where = np.searchsorted(known, codes).clip(max=len(known) - 1)
        return np.where(known[where] == codes, where + FIRST, UNKNOWN).astype(np.int64)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What to save: JSON values and arrays."""
        return vars_of(self), {}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TokenEncoder:
        """Rebuild from `state`."""
        return cls(**meta)

    @cached_property
    def _tokenizer(self) -> Any:
        found = _package().Tokenizer.from_str(self.merges)
        found.encode_special_tokens = True  # the words [PAD] and [UNK] in a text are text
        return found

    def __getstate__(self) -> dict[str, Any]:
        return vars_of(self)  # the tokenizer is made again


def vars_of(encoder: TokenEncoder) -> dict[str, Any]:
    """The fields of an encoder, without what it keeps."""
    return {name: getattr(encoder, name) for name in ("kind", "length", "characters", "merges")}


def check_tokens(kind: str, vocabulary: int | None, length: int | None) -> tuple[str, int, int]:
    """The kind, vocabulary and length that these options mean; InputError where they cannot be used."""
    if kind not in KINDS:
        raise InputError(f"tokens is {kind!r}; use {' or '.join(KINDS)}")
    if length is not None and (not isinstance(length, int) or length < 2):
        raise InputError(f"length is {length}; a window has at least 2 tokens")
    if kind == "char":
        if vocabulary is not None:
            raise InputError("vocabulary is for tokens=bpe (--tokens bpe); characters bring their own")
        return kind, 0, length or LENGTHS[kind]
    _package()
    least = FIRST + BYTES
    if vocabulary is not None and not least <= vocabulary <= MOST_VOCABULARY:
        raise InputError(f"vocabulary is {vocabulary}; use {least} (bytes alone) to {MOST_VOCABULARY}")
    return kind, vocabulary or VOCABULARY, length or LENGTHS[kind]


def _trained(texts: Sequence[str], vocabulary: int) -> str:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2)."""
    package = _package()
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["[PAD]", "[UNK]"],  # ids 0 and 1
        initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as problem:
        raise InputError(
            "tokens=bpe needs the package tokenizers: pip install 'probatum[language]', or use tokens=char"
        ) from problem
    return tokenizers
