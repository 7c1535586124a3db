"""Claims of gzip and nearest neighbours (arXiv:2212.09410): with five texts a class, above a small network.

Everything is scored on 200 test texts with honest counting (one neighbour); the published way of counting ties is listed
apart. The network (TextCNN, vectors of width 64, 32 filters, 300 steps at rate 3e-3, its last weights) was set on seeds 1
and 2. The TF-IDF classifiers have scikit-learn's default settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.library import library
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.settings import Reading
from probatum.spec import Data
from probatum.techniques.learner.gzip_knn import GzipKNN, accuracies

NETWORK = "text-cnn(width=64, filters=32)"
TRAINING = Training(steps=300, batch_size=20, lr=3e-3, select="last")
TEST = 200


def few_shot(whole: Data, shots: int, seed: int) -> Data:
    """`shots` training texts a class, as many again to validate, and 200 test texts; the vocabulary is the training's."""
    part = whole.train
    random = np.random.default_rng(seed)
    y = part.y.numpy()
    drawn = [random.permutation(np.flatnonzero(y == c))[: 2 * shots] for c in range(whole.spec.outputs)]
    train = np.concatenate([own[:shots] for own in drawn])
    valid = np.concatenate([own[shots:] for own in drawn])
    test = random.permutation(len(whole.test))[:TEST]
    texts = [part.text[i] for i in (*train, *valid)] + [whole.test.text[i] for i in test]
    labels = [f"{y[i]}" for i in (*train, *valid)] + [f"{whole.test.y[i]}" for i in test]
    split = ["train"] * len(train) + ["valid"] * len(valid) + ["test"] * len(test)
    return open_dataset((texts, labels), Reading(modality="text", split=split)).prepare(seed)


def network_accuracy(data: Data, seed: int) -> float:
    """Test accuracy of the small network from scratch."""
    return accuracy(fit(NETWORK, data, seed, training=TRAINING).model, data.test)


def _scores(data: Data, seed: int) -> dict[str, float]:
    train, test = data.train, data.test
    y, truth = train.y.numpy(), test.y.numpy()
    model = GzipKNN(k=2).fit(train.text, y)
    tfidf = TfidfVectorizer()
    x, seen = tfidf.fit_transform(train.text), tfidf.transform(test.text)
    return {
        **{f"gzip_{name}": value for name, value in accuracies(model.distances(test.text), y, truth, k=2).items()},
        "text_cnn": network_accuracy(data, seed),
        "tfidf_linear": float(LogisticRegression(max_iter=1000).fit(x, y).score(seen, truth)),
        "tfidf_neighbour": float(KNeighborsClassifier(1, metric="cosine").fit(x, y).score(seen, truth)),
    }


def _run(seeds: Sequence[int]) -> Evidence:
    dataset = library("ag_news")
    rows = []
    for seed in seeds:
        whole = dataset.prepare(seed)
        for shots in (5, 50):
            data = few_shot(whole, shots, seed)
            rows.append({"seed": float(seed), "shots": float(shots)} | _scores(data, seed))
    names = [name for name in rows[0] if name not in ("seed", "shots")]
    measured = {
        f"{name}_{shots}": mean([row[name] for row in rows if row["shots"] == shots])
        for shots in (5, 50)
        for name in names
    }
    gzip = measured["gzip_one_neighbour_5"]
    holds = gzip >= 0.25 + 0.10 and gzip > measured["text_cnn_5"]
    note = (
        "TF-IDF with a linear model is listed because it is the baseline to beat; gzip_k_ties_counted_right is the way of "
        "counting of the published evaluation, which is top-2 accuracy for k = 2."
    )
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="few-shot-above-a-small-network",
        says="Without any parameter, compression distance classifies from a few texts better than a network from scratch.",
        threshold="AG News, 5 texts a class: mean accuracy at least 10 points above chance and above TextCNN's",
        data="AG News, 5 and 50 texts a class, 200 test texts",
        run=_run,
        minutes=1.5,
        needs_library=True,
    ),
)
