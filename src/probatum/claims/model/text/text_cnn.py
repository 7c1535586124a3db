"""Claims of TextCNN (arXiv:1408.5882): better than averaged words, and helped by vectors from unlabelled text.

Word vectors have width 100 and there are 64 filters a window. The learning rate of each arm was chosen from the same three
(1e-3, 3e-3, 1e-2) by validation accuracy on seeds 1 and 2 (3e-2 was tried too for averaged words).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probatum.bench.statistics import paired
from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import accuracy, fit, mean
from probatum.data.library import library
from probatum.recipe import Training
from probatum.spec import Data, Part, Spec
from probatum.techniques.model.text.text_cnn.text_cnn import build
from probatum.techniques.model.text.text_cnn.word_vectors import ppmi_vectors
from probatum.train.rng import generator_for

WIDTH, FILTERS = 100, 64
ARM = f"text-cnn(width={WIDTH}, filters={FILTERS})"
RATES = {"cnn": 3e-3, "averaged": 1e-2, "rand": 3e-3, "non-static": 3e-3}


class AveragedWords(nn.Module):
    """The mean of a text's word vectors, dropout 0.5, a linear layer: ids (n, length) -> (n, outputs)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.words = nn.Embedding(spec.vocabulary, WIDTH, padding_idx=0)
        nn.init.uniform_(self.words.weight, -0.25, 0.25)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        seen = (x != 0).unsqueeze(2)
        return self.head(self.dropout((self.words(x) * seen).sum(dim=1) / seen.sum(dim=1)))


def trec_models(data: Data, seed: int, rates: dict[str, float]) -> dict[str, nn.Module]:
    """Both networks after the same number of steps."""
    trainings = {name: Training(epochs=8, batch_size=50, lr=rate) for name, rate in rates.items()}
    return {
        "cnn": fit(ARM, data, seed, training=trainings["cnn"]).model,
        "averaged": fit(None, data, seed, training=trainings["averaged"], factory=AveragedWords).model,
    }


def movie_data(seed: int) -> tuple[Data, Tensor]:
    """1000 labelled training sentences, 500 to validate, the test part, and the ids of all sentences."""
    whole = library("sentence_sets/mr").prepare(seed)
    tokens = torch.cat([part.x for part in (whole.train, whole.valid, whole.test)])
    return Data(whole.spec, _first(whole.train, 1000, seed), _first(whole.valid, 500, seed), whole.test), tokens


def movie_models(data: Data, tokens: Tensor, seed: int, rates: dict[str, float]) -> dict[str, nn.Module]:
    """`rand` from scratch, and `non-static` from vectors of all sentences without their labels."""
    trainings = {name: Training(epochs=15, batch_size=50, lr=rate) for name, rate in rates.items()}
    vectors = ppmi_vectors(tokens, data.spec.vocabulary, WIDTH, generator_for(seed, "word vectors"))

    def tuned(spec: Spec) -> nn.Module:
        return build(spec, "non-static", vectors, filters=FILTERS)

    return {
        "rand": fit(ARM, data, seed, training=trainings["rand"]).model,
        "non-static": fit(None, data, seed, training=trainings["non-static"], factory=tuned).model,
    }


def _first(part: Part, n: int, seed: int) -> Part:
    kept = torch.randperm(len(part), generator=generator_for(seed, "labels"))[:n]
    text = None if part.text is None else tuple(part.text[i] for i in kept.tolist())
    return Part(part.x[kept], part.y[kept], part.rows[kept], text)


def _questions(seeds: Sequence[int]) -> Evidence:
    dataset, rows = library("sentence_sets/trec"), []
    for seed in seeds:
        data = dataset.prepare(seed)
        models = trec_models(data, seed, RATES)
        rows.append({"seed": float(seed)} | {name: accuracy(model, data.test) for name, model in models.items()})
    gain = paired([row["cnn"] - row["averaged"] for row in rows], test_fraction_ratio=None)
    measured = {name: mean([row[name] for row in rows]) for name in ("cnn", "averaged")}
    measured |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    return Evidence(gain.mean >= 0.02, measured, tuple(rows))


def _movies(seeds: Sequence[int]) -> Evidence:
    rows = []
    for seed in seeds:
        data, tokens = movie_data(seed)
        models = movie_models(data, tokens, seed, RATES)
        rows.append({"seed": float(seed)} | {name: accuracy(model, data.test) for name, model in models.items()})
        ratio = len(data.test) / len(data.train)
    gain = paired([row["non-static"] - row["rand"] for row in rows], test_fraction_ratio=ratio)
    measured = {name: mean([row[name] for row in rows]) for name in ("rand", "non-static")}
    measured |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    note = "The vectors are PPMI-SVD of 10 662 sentences; the paper's come from 100 billion words of news."
    return Evidence(gain.low > -0.01, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="better-than-averaged-words",
        says="One layer of convolutions with max-over-time pooling is a strong sentence classifier from scratch.",
        threshold="TREC: mean accuracy at least 2 points above averaged word vectors at equal budget",
        data="TREC, six classes, the given test part",
        run=_questions,
        minutes=2.0,
        needs_library=True,
    ),
    Claim(
        id="vectors-from-unlabelled-text",
        says="Tuning word vectors learned from unlabelled text is no worse than learning them from the labels.",
        threshold="MR with 1000 labels: corrected 95 % paired interval of the accuracy gain above -1 point",
        data="MR, 1000 labelled sentences, vectors from all sentences",
        run=_movies,
        minutes=2.0,
        needs_library=True,
    ),
)
