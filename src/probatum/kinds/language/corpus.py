"""Long texts for language modelling: blocks of text drawn to train, valid and test, cut into windows of tokens."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from probatum.data.dataset import FRACTIONS
from probatum.data.folds import draw_folds
from probatum.data.library import VARIABLE, root
from probatum.data.pipeline import Pipeline
from probatum.data.split import PART_NAMES, TEST, TRAIN, SplitPlan, draw_split
from probatum.data.target import TargetCoder
from probatum.errors import InputError
from probatum.kinds.language.tokens import TokenEncoder, check_tokens
from probatum.rooms.kind import Kind, NamedSet, kind_of
from probatum.settings import Reading, told
from probatum.spec import Data, Part, Spec

TASK = "next-token"
LANGUAGE = ("tokens", "vocabulary", "length")
SUFFIXES = (".txt", ".txt.gz")
EMBEDDED = "python-topics"
EMBEDDED_CHARACTERS = 400_000
LIBRARY: dict[str, dict[str, int]] = {
    "tiny_shakespeare": {"tiny_shakespeare.txt.gz": TRAIN},
    "republic": {"republic_clean.txt.gz": TRAIN},
    "wikitext2": {"valid.txt.gz": TRAIN, "test.txt.gz": TEST},
}
"""Corpora under PROBATUM_DATA: their files, and the part each file is for; of WikiText-2 the files without its training
text, so that its validation text is split into train and valid."""
BLOCK = 20
"""Windows in a block of text that goes to one part."""
FEWEST_BLOCKS = 12
FEWEST_WINDOWS = 4
"""Windows of the smallest block; its first may be dropped as the gap to the block before."""
CHARACTERS = {"char": 1, "bpe": 3}
"""Characters that a token is taken for when blocks and gaps are measured."""
MOST = {"train": None, "valid": 1024, "test": 4096}
"""Windows of a part that are used; more are drawn from by the seed."""


class Span(NamedTuple):
    """Characters `begin` to `end` of one of the texts."""

    text: int
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts for language modelling; stands where a `probatum.data.Dataset` stands.

    Attributes:
        name: what it is called in reports.
        texts: the texts.
        given: the part of each text by the source, TRAIN being what the seed may split; None = the seed splits all.
        tokens: char or bpe.
        vocabulary: bpe: number of token ids; 0 for char.
        length: tokens of a window.
        fingerprint: sha256 over all of the above but the name.
        notices: one-line warnings found on reading.
    """

    name: str
    texts: tuple[str, ...] = field(repr=False)
    given: tuple[int, ...] | None
    tokens: str
    vocabulary: int
    length: int
    fingerprint: str
    notices: tuple[str, ...] = ()
    about: dict[str, Any] = field(repr=False, default_factory=dict)

    modality: ClassVar[str] = "text"
    task: ClassVar[str] = TASK
    target: ClassVar[str] = "next token"
    classes: ClassVar[tuple[str, ...]] = ()
    streamed: ClassVar[bool] = False
    memory: ClassVar[None] = None
    world: ClassVar[None] = None

    @property
    def kind(self) -> Kind:
        """What kind of data these are."""
        return kind_of(self.modality, self.task)

    @property
    def n(self) -> int:
        """Number of characters."""
        return sum(map(len, self.texts))

    @property
    def fixed_split(self) -> bool:
        """Whether the source gives the test text."""
        return self.given is not None

    @property
    def grouped(self) -> bool:
        """Texts are cut at their own ends, and have no groups of the user's."""
        return False

    def split(
        self, seed: int, fractions: Sequence[float] = FRACTIONS, *, folds: bool = False
    ) -> tuple[list[Span], list[Span], list[Span]]:
        """Spans of train, valid and test text, in order.

        Blocks are drawn to parts by the seed, at random or in repeated `folds`. Neighbouring blocks of one part are one span; a span behind one of another
        part lacks its first window, so that no window straddles or touches a boundary.
        """
        window = self.length * CHARACTERS[self.tokens]
        blocks, given = self._blocks(window)
        draw = draw_folds if folds else draw_split
        parts = draw(SplitPlan(None, np.arange(len(blocks)), given=given), seed, fractions)
        part_of = np.full(len(blocks), -1)  # folds may leave a block in no part
        for part, rows in enumerate(parts):
            part_of[rows] = part
        found: tuple[list[Span], list[Span], list[Span]] = ([], [], [])
        for i, block in enumerate(blocks):
            if part_of[i] < 0:
                continue
            mine, follows = found[part_of[i]], i > 0 and blocks[i - 1].text == block.text
            if follows and part_of[i - 1] == part_of[i]:
                mine[-1] = mine[-1]._replace(end=block.end)
            else:
                mine.append(block._replace(begin=block.begin + window) if follows else block)
        return found

    def _blocks(self, window: int) -> tuple[list[Span], np.ndarray | None]:
        """Blocks of equal size of every text, the last taking what is left, and the parts the source gives them."""
        free = sum(len(t) for i, t in enumerate(self.texts) if self.given is None or self.given[i] != TEST)
        size = window * max(FEWEST_WINDOWS, min(BLOCK, free // (window * FEWEST_BLOCKS)))
        blocks: list[Span] = []
        for number, text in enumerate(self.texts):
            count = max(1, len(text) // size)
            ends = [size * (i + 1) for i in range(count - 1)] + [len(text)]
            blocks += [Span(number, size * i, end) for i, end in enumerate(ends)]
        if self.given is None:
            return blocks, None
        return blocks, np.array([self.given[block.text] for block in blocks], dtype=np.int64)

    def prepare(self, seed: int, *, fractions: Sequence[float] = FRACTIONS, folds: bool = False) -> Data:
        """Split by seed, fit the tokens on the training text, cut windows; a pure function of its arguments.

        Windows of a part follow one another without overlap: y of a window is x shifted by one token, `text` the
        characters of y, `rows` the position of x in the corpus in characters. Of many windows some are drawn (`MOST`).
        """
        spans = self.split(seed, fractions, folds=folds)
        encoder = TokenEncoder.fit([self._of(s) for s in spans[TRAIN]], self.tokens, self.length, self.vocabulary)
        size = encoder.vocabulary
        spec = Spec(self.modality, TASK, (self.length,), size, vocabulary=size, features=("text",))
        nothing = TargetCoder(TASK, (self.target,), (), np.zeros(0), np.ones(0))
        rng = np.random.Generator(np.random.PCG64(seed))
        train, valid, test = (
            self._part(encoder, mine, rng, name) for mine, name in zip(spans, PART_NAMES, strict=True)
        )
        return Data(spec, train, valid, test, Pipeline(spec, encoder, nothing))

    def _of(self, span: Span) -> str:
        return self.texts[span.text][span.begin : span.end]

    def _part(self, encoder: TokenEncoder, spans: list[Span], rng: np.random.Generator, name: str) -> Part:
        starts = np.cumsum([0, *map(len, self.texts)])
        pieces = [windows(encoder, self._of(span), int(starts[span.text]) + span.begin) for span in spans]
        x, y, rows = (np.concatenate(arrays) for arrays in list(zip(*pieces, strict=True))[:3])
        texts = [text for piece in pieces for text in piece[3]]
        if not len(x):
            raise InputError(f"{self.name!r} leaves no window of {self.length} tokens for {name}; bring a longer text")
        most = MOST[name]
        if most is not None and len(x) > most:
            kept = np.sort(rng.permutation(len(x))[:most])
            x, y, rows, texts = x[kept], y[kept], rows[kept], [texts[i] for i in kept]
        return Part(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(rows), tuple(texts))

    def summary(self, data: Data | None = None) -> dict[str, Any]:
        """What the command line and reports show, as JSON values; `data` is the split of seed 0, if it is there."""
        if "shown" not in self.about:
            data = data or self.prepare(0)
            letters = len(set().union(*self.texts))
            self.about["shown"] = {
                "columns": [{"name": "text", "kind": "characters", "missing": 0, "n_unique": letters}],
                "shape": list(data.spec.shape),
                "split": {part: len(getattr(data, part)) for part in PART_NAMES},
                "vocabulary": data.spec.vocabulary,
            }
        return {
            "name": self.name,
            "n": self.n,
            "unit": "characters",
            "modality": self.modality,
            "task": self.task,
            "target": self.target,
            "tokens": self.tokens,
            "fingerprint": self.fingerprint,
            "fixed_split": self.fixed_split,
            "notices": list(self.notices),
            **self.about["shown"],
        }


Windows = tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]


def windows(encoder: TokenEncoder, text: str, first: int = 0) -> Windows:
    """x (n, length), y (n, length), positions of x in characters from `first`, and the characters of each y.

    A rest shorter than a window, and the token before the first target, belong to no target.
    """
    ids, begins = encoder.encode(text)
    length = encoder.length
    count = max(0, len(ids) - 1) // length
    x, y = (ids[shift : count * length + shift].reshape(count, length) for shift in (0, 1))
    ends = begins[1 : count * length + 2 : length] if count else begins[:0]
    texts = [text[a:b] for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    return x, y, first + begins[: count * length : length], texts


def corpus(
    texts: str | Sequence[str],
    *,
    name: str = "text",
    tokens: str = "char",
    vocabulary: int | None = None,
    length: int | None = None,
    given: Sequence[int] | None = None,
) -> Corpus:
    """Texts as data of task next-token.

    Args:
        texts: one long text, or several.
        name: what to call them.
        tokens: char, or bpe (byte pairs; needs the package tokenizers).
        vocabulary: bpe: number of token ids, 258 to 16 384; None = 512.
        length: tokens of a window, 2 or more; None = 64 characters or 32 byte pairs.
        given: the part of each text, 2 for test text and 0 for what the seed splits into train and valid; None = the
            seed splits all.

    Raises:
        InputError: for options that cannot be used, and texts that are too short or no text.
    """
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    kind, size, window = check_tokens(tokens, vocabulary, length)
    if given is not None and (len(given) != len(texts) or not set(given) <= {TRAIN, TEST}):
        raise InputError(
            f"given is {list(given)} for {len(texts)} texts; give {TRAIN} (the seed splits it) or {TEST} (test) for each"
        )
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{name!r} holds a {type(text).__name__}; give texts as str")
        try:
            text.encode()
        except UnicodeEncodeError as problem:
            raise InputError(f"{name!r} is no text that UTF-8 can hold ({problem.reason}); mend it") from problem
    least = FEWEST_BLOCKS * FEWEST_WINDOWS * window * CHARACTERS[kind]
    free = sum(len(text) for i, text in enumerate(texts) if given is None or given[i] != TEST)
    if free < least:
        raise InputError(
            f"{name!r} has {free} characters; windows of {window} {kind} tokens need {least} for a split: bring a longer "
            "text, or a smaller length (--length)"
        )
    parts = None if given is None else tuple(given)
    sha = hashlib.sha256(json.dumps([TASK, kind, size, window, parts, [len(t) for t in texts]]).encode())
    for text in texts:
        sha.update(text.encode())
    return Corpus(name, texts, parts, kind, size, window, sha.hexdigest())


def sets() -> dict[str, NamedSet]:
    """Every corpus that can be opened by its name."""
    anything = (*Reading.__dataclass_fields__, *LANGUAGE, "text", "size")  # what does not fit is named by open_corpus
    found = {}
    for name in corpus_names():
        found[name] = NamedSet(partial(open_corpus, name), anything, name == EMBEDDED, False)
    return found


def corpus_names() -> tuple[str, ...]:
    """Names of the corpora that can be opened: the embedded one, and those under PROBATUM_DATA."""
    folder = root()
    held = [name for name, files in LIBRARY.items() if folder and all((folder / name / f).is_file() for f in files)]
    return (EMBEDDED, *held)


def open_corpus(source: Any, reading: Reading) -> Corpus:
    """A corpus by name or from a .txt or .txt.gz file; InputError where there is none, or more is said than it takes."""
    if reading.task not in ("auto", TASK):
        raise InputError(f"{str(source)!r} is one long text, for task next-token; the task given is {reading.task}")
    said = {**told(reading), **reading.options}
    unfit = [
        name for name in said if name not in (*LANGUAGE, "task", "name", "test", "options") and said[name] != "text"
    ]
    if unfit:
        raise InputError(f"language modelling takes no {', '.join(unfit)}; leave them out")
    given: list[int] | None = None
    if _is_name(source):
        if reading.test is not None:
            raise InputError(f"{source!r} is known by its name and takes no test; give its text as a file")
        texts, given = _named(source)
        name = reading.name or source
    elif isinstance(source, str | Path) and str(source).lower().endswith(SUFFIXES):
        texts = [read_text(Path(source))]
        if reading.test is not None:
            if not isinstance(reading.test, str | Path):
                raise InputError(f"test is a {type(reading.test).__name__}; give a text file as the data are")
            texts, given = [*texts, read_text(Path(reading.test))], [TRAIN, TEST]
        name = reading.name or Path(source).name.split(".")[0]
    else:
        what = repr(str(source)) if isinstance(source, str | Path) else f"a {type(source).__name__}"
        raise InputError(f"task next-token takes {' or '.join(SUFFIXES)} or {', '.join(corpus_names())}, not {what}")
    tokens, vocabulary, length = (reading.options.get(name) for name in LANGUAGE)
    return corpus(texts, name=name, tokens=tokens or "char", vocabulary=vocabulary, length=length, given=given)


def _is_name(source: Any) -> bool:
    return isinstance(source, str) and source in (EMBEDDED, *LIBRARY) and not Path(source).exists()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, gzipped or not; InputError where it cannot be read."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist; check the path")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as problem:
        raise InputError(f"{str(path)!r} is no UTF-8 text ({problem}); convert it") from problem


def _named(name: str) -> tuple[list[str], list[int] | None]:
    """The texts of a named corpus and the parts its source gives them."""
    if name == EMBEDDED:
        try:
            topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        except ImportError as problem:
            raise InputError(
                f"{name!r} is the text of pydoc_data.topics, which this Python lacks; name a .txt file instead"
            ) from problem
        return ["\n\n".join(topics[key] for key in sorted(topics))[:EMBEDDED_CHARACTERS]], None
    folder = root()
    if folder is None or name not in corpus_names():
        raise InputError(f"{name!r} is not there; set {VARIABLE} to the folder that holds it")
    files = LIBRARY[name]
    texts = [read_text(folder / name / file) for file in files]
    return texts, list(files.values()) if TEST in files.values() else None
