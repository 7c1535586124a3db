"""Sets that need no file: five from scikit-learn, four drawn by a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from probatum.data.arrays import from_arrays
from probatum.data.dataset import Dataset
from probatum.data.frame import from_frame

SEED = 20_240_601
CBF_STEPS = 128
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


def digits() -> Dataset:
    """1797 handwritten digits, images 1 x 8 x 8, values / 16; 10 classes (UCI optical recognition, test part)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = (source.images / 16.0).astype(np.float32)
    return from_arrays(images[:, None], source.target, name="digits", target="digit", task="classes", modality="image")


def breast_cancer() -> Dataset:
    """569 tumours, 30 numbers, 2 classes (UCI Wisconsin diagnostic)."""
    from sklearn.datasets import load_breast_cancer

    return _from_sklearn(load_breast_cancer(), "breast-cancer", "diagnosis", "classes")


def wine() -> Dataset:
    """178 wines, 13 numbers, 3 cultivars (UCI)."""
    from sklearn.datasets import load_wine

    return _from_sklearn(load_wine(), "wine", "cultivar", "classes")


def iris() -> Dataset:
    """150 flowers, 4 numbers, 3 species (Fisher 1936)."""
    from sklearn.datasets import load_iris

    return _from_sklearn(load_iris(), "iris", "species", "classes")


def diabetes() -> Dataset:
    """442 patients, 10 numbers, disease progression after a year (Efron et al. 2004)."""
    from sklearn.datasets import load_diabetes

    return _from_sklearn(load_diabetes(scaled=False), "diabetes", "progression", "reals")


def _from_sklearn(source: Any, name: str, target: str, task: str) -> Dataset:
    classes: Sequence[str] = source.target_names if task == "classes" else ()
    return from_arrays(
        source.data,
        source.target,
        name=name,
        target=target,
        task=task,
        modality="table",
        classes=classes,
        feature_names=source.feature_names,
    )


def moons(n: int = 1000, noise: float = 0.25) -> Dataset:
    """Two interleaved half circles in the plane with Gaussian noise, 2 classes."""
    from sklearn.datasets import make_moons

    x, y = make_moons(n, noise=noise, random_state=SEED)
    return from_arrays(x, y, name="moons", target="moon", task="classes", modality="table")


def friedman(n: int = 1000, noise: float = 1.0) -> Dataset:
    """Friedman's first function (1991): 10 uniform numbers of which 5 matter, reals."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(n, noise=noise, random_state=SEED)
    return from_arrays(x, y, name="friedman", target="response", task="reals", modality="table")


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
    return from_frame(
        frame,
        name="toy-topics",
        target="topic",
        task="classes",
        modality="text",
        group=None,
        time=None,
        split=None,
        text="text",
        drop=(),
    )


def cbf(n: int = 930) -> Dataset:
    """Cylinder, bell, funnel: 128 steps, 3 classes (Saito 1994).

    On [a, b], a ~ U{16..32}, b - a ~ U{32..96}, the series is (6 + eta) times 1, (t - a)/(b - a) or (b - t)/(b - a);
    elsewhere 0; eta and the noise of every step are standard normal.
    """
    rng = np.random.Generator(np.random.PCG64(SEED))
    t = np.arange(1, CBF_STEPS + 1)
    labels = rng.permutation(np.arange(n) % 3)
    x = np.empty((n, 1, CBF_STEPS), dtype=np.float32)
    for i, kind in enumerate(labels):
        a = int(rng.integers(16, 33))
        b = a + int(rng.integers(32, 97))
        inside = (t >= a) & (t <= b)
        shape = (np.ones(CBF_STEPS), (t - a) / (b - a), (b - t) / (b - a))[kind]
        x[i, 0] = (6 + rng.standard_normal()) * inside * shape + rng.standard_normal(CBF_STEPS)
    classes = ("cylinder", "bell", "funnel")
    return from_arrays(x, labels, name="cbf", target="shape", task="classes", modality="series", classes=classes)


MAKERS: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "breast-cancer": breast_cancer,
    "wine": wine,
    "iris": iris,
    "diabetes": diabetes,
    "moons": moons,
    "friedman": friedman,
    "toy-topics": toy_topics,
    "cbf": cbf,
}
