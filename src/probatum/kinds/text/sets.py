"""Texts that are known by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from probatum.data.dataset import Dataset
from probatum.data.frame import framed
from probatum.data.library import root
from probatum.data.read import read_table
from probatum.kinds.text.read import from_framed
from probatum.rooms.kind import NamedSet
from probatum.settings import Reading

SEED = 20_240_601
SENTENCES = ("mr", "subj", "cr", "mpqa", "sst2", "sst5", "trec")
TOPICS = {
    "astronomy": "star planet orbit telescope galaxy comet moon eclipse nebula crater asteroid rocket lunar sky solar",
    "cooking": "butter oven garlic flour recipe simmer onion dough spice broth roast sauce whisk pepper kitchen lemon",
    "finance": "bank loan interest stock market bond credit profit tax fund price debt invest capital budget share",
    "sport": "match goal coach league runner medal team season score player race stadium champion ball training final",
}
SHARED = (
    "the a of and to in was for with on it that this is from by at after before over new old first last great small "
    "people year day time found made said good long high light hot cold field point record world house water report "
    "heat rise fall open close cut deep rich net round ring plate base free best hand side part set"
)
TOPIC_SHARE, OTHER_SHARE = 0.16, 0.08
"""How often a word of a document comes from its own topic, and from any topic."""


def sets() -> dict[str, NamedSet]:
    """Every set of texts that can be opened by its name."""
    found = {"toy-topics": NamedSet(lambda reading: toy_topics(), embedded=True)}
    folder = root()
    if folder is None:
        return found
    makers: dict[str, Callable[[Path], pl.DataFrame]] = {"ag_news": _ag_news, "sms_spam": _sms_spam}
    for name, make in makers.items():
        if (folder / name).is_dir():
            found[name] = NamedSet(partial(_labelled, make, folder / name), ("task",))
    for last in SENTENCES:
        path = folder / "sentence_sets" / f"{last}.csv.gz"
        if path.is_file():
            takes = ("task", "target") if last == "trec" else ("task",)
            found[f"sentence_sets/{last}"] = NamedSet(partial(_sentences, path, last), takes)
    return found


def toy_topics(n: int = 1200) -> Dataset:
    """Documents of 6 to 24 words: mostly shared words, some of their topic, some of any topic; 4 classes."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    names = list(TOPICS)
    vocabularies = [TOPICS[name].split() for name in names]
    shared = SHARED.split()
    weights = 1.0 / np.arange(1, len(shared) + 1)
    weights /= weights.sum()
    texts, labels = [], []
    for i in range(n):
        topic = i % len(names)
        words = []
        for kind in rng.random(int(rng.integers(6, 25))):
            if kind < TOPIC_SHARE + OTHER_SHARE:
                source = vocabularies[topic if kind < TOPIC_SHARE else int(rng.integers(len(names)))]
                words.append(source[int(rng.integers(len(source)))])
            else:
                words.append(shared[int(rng.choice(len(shared), p=weights))])
        texts.append(" ".join(words))
        labels.append(names[topic])
    order = rng.permutation(n)
    frame = pl.DataFrame({"text": [texts[i] for i in order], "topic": [labels[i] for i in order]})
    return _texts(frame, "toy-topics", "topic")


def _ag_news(folder: Path) -> pl.DataFrame:
    frame = read_table(folder / "ag_news_test.csv.gz")
    return frame.select("label", text=pl.col("title") + ". " + pl.col("description"))


def _sms_spam(folder: Path) -> pl.DataFrame:
    return read_table(folder / "sms_spam.csv.gz")


def _labelled(make: Callable[[Path], pl.DataFrame], folder: Path, reading: Reading) -> Dataset:
    return _texts(make(folder), folder.name, "label")


def _sentences(path: Path, last: str, reading: Reading) -> Dataset:
    target = reading.target or ("coarse" if last == "trec" else "label")
    return _texts(read_table(path).select("text", target, "split"), last, target, split="split")


def _texts(frame: pl.DataFrame, name: str, target: str, split: str | None = None) -> Dataset:
    full = frame.filter(pl.col("text").str.strip_chars() != "")
    reading = Reading(target=target, task="classes", split=split, options={"text": "text"})
    return from_framed(framed(full, name, reading), reading)
