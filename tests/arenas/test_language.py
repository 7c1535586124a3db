"""Language models in arena predict: bits by hand, n-grams that sum to one, fair arms, resumed and shipped studies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loosely import study_of
from probatum import catalogue
from probatum.arenas.predict import arena as predict
from probatum.arenas.predict.fit import steps_for
from probatum.bench.plan import key_of
from probatum.errors import InputError
from probatum.kinds.language import look as language
from probatum.kinds.language import ngrams
from probatum.kinds.language.corpus import corpus
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.settings import Judging, Running
from probatum.ship.load import load
from probatum.spec import Data, Part
from probatum.study import Study
from probatum.train.loop import outputs

WORDS = ["the ", "quick ", "brown ", "fox ", "jumps ", "over ", "a ", "lazy ", "dög.\n"]


@pytest.fixture(scope="module")
def text() -> str:
    rng = np.random.default_rng(0)
    return "".join(WORDS[i] for i in rng.integers(len(WORDS), size=3000))


@pytest.fixture(scope="module")
def data(text: str) -> Data:
    return corpus(text, length=16).prepare(0)


def work_of(data: Data, arm: str | None = None, steps: int = 12) -> Work:
    base = Recipe(training=Training(steps=steps, batch_size=8, lr=5e-3, select="log-loss"))
    made = Arm("baseline", base) if arm is None else make_arm(arm, base)
    return Work(made, "" if arm else "baseline", Terms(base=base, primary="bits-per-character"), data, 0)


def test_bits_a_character_against_a_hand_count(data: Data) -> None:
    work = work_of(data)
    fitted = predict.fit(work)
    found = predict.measured(work, fitted, 0.0).measures
    with torch.no_grad():
        log_p = outputs(fitted.model, data.test.x).double().log_softmax(dim=2)
    nats, letters, size = 0.0, 0, 0
    for row in range(len(data.test)):
        for place, token in enumerate(data.test.y[row].tolist()):
            nats -= float(log_p[row, place, token])
        letters += len(data.test.text[row])
        size += len(data.test.text[row].encode())
    assert letters == data.test.y.numel() < size
    assert found["bits-per-character"] == pytest.approx(nats / math.log(2) / letters, rel=1e-5)
    assert found["bits-per-byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / letters), rel=1e-5)
    right = (log_p.argmax(dim=2) == data.test.y).double().mean()
    assert found["next-token-accuracy"] == pytest.approx(float(right))
    assert found["parameters"] == sum(p.numel() for p in fitted.model.parameters())
    assert set(found) <= set(predict.measures(data.spec))
    assert set(predict.measures(data.spec)) - set(found) == {"step-time-ratio", "latency-ratio"}


def test_rows_of_a_corpus_are_its_windows(data: Data) -> None:
    for name in (None, ngrams.NAMES[0]):
        work = work_of(data)
        found = predict.trial(work if name is None else replace(work, builtin=name))
        assert set(found.rows) == set(language.MEASURES)
        for measure, values in found.rows.items():
            assert values.shape == (len(data.test),)
            assert values.mean() == pytest.approx(found.measures[measure], abs=1e-9)


def test_byte_pairs_are_measured_by_their_characters(text: str) -> None:
    pytest.importorskip("tokenizers", reason="byte pairs need it")
    split = corpus(text, tokens="bpe", vocabulary=300, length=8).prepare(0)
    found = predict.trial(work_of(split)).measures
    letters = sum(map(len, split.test.text))
    bits = math.log2(found["perplexity"]) * split.test.y.numel()
    assert letters > split.test.y.numel()
    assert found["bits-per-character"] == pytest.approx(bits / letters, rel=1e-6)


def test_predictions_are_held_a_few_windows_at_a_time(data: Data) -> None:
    sizes = []

    def predict_part(part: Part) -> Tensor:
        sizes.append(len(part))
        return torch.full((*part.x.shape, data.spec.outputs), -math.log(data.spec.outputs))

    seen = language.look(predict_part, data.train)
    assert max(sizes) == 64
    assert sum(sizes) == len(data.train) == len(seen.log_p)
    torch.testing.assert_close(seen.confidence, torch.full_like(seen.confidence, 1 / data.spec.outputs))


def test_a_model_of_the_wrong_shape_is_named(data: Data) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(data.spec.vocabulary, data.spec.outputs)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(x[:, -1])

    with pytest.raises(InputError, match=r"Last gives outputs of shape .* for task next-token it should give"):
        predict.trial(replace(work_of(data), factory=lambda spec: Last()))


def test_n_grams_sum_to_one_and_look_back_only(data: Data) -> None:
    model = ngrams.NGram.fit(data.train, data.spec.vocabulary, 4)
    x = data.test.x[:5].numpy().copy()
    p = model.probabilities(x)
    np.testing.assert_allclose(p.sum(axis=2), 1.0, atol=1e-12)
    assert p.min() > 0
    x[:, 9:] = 2
    np.testing.assert_array_equal(model.probabilities(x)[:, :9], p[:, :9])
    strange = np.ones((1, 16), dtype=np.int64)  # a context that was never seen falls back on shorter ones
    np.testing.assert_allclose(model.probabilities(strange)[0, 3], model.shortened(0).probabilities(strange)[0, 0])


def test_n_grams_against_a_hand_count() -> None:
    """Two windows a b a | b a a with ids a = 2, b = 3 of a vocabulary of four."""
    ids = torch.tensor([[2, 3, 2, 3], [3, 2, 2, 2]])
    part = Part(ids[:, :-1], ids[:, 1:], torch.arange(2), ("", ""))
    model = ngrams.NGram.fit(part, 4, 1)
    # targets b a b a a a: a four times, b twice, two kinds
    p_a, p_b, p_other = (4 + 2 / 4) / 8, (2 + 2 / 4) / 8, (2 / 4) / 8
    np.testing.assert_allclose(model.shortened(0).probabilities(np.array([[3]]))[0, 0], [p_other, p_other, p_a, p_b])
    # behind a: b, b, a, a; behind b: a, a
    behind_a = [2 * p_other / 6, 2 * p_other / 6, (2 + 2 * p_a) / 6, (2 + 2 * p_b) / 6]
    behind_b = [p_other / 3, p_other / 3, (2 + p_a) / 3, p_b / 3]
    np.testing.assert_allclose(model.probabilities(np.array([[2, 3]]))[0], [behind_a, behind_b])


def test_n_gram_is_better_than_unigram(data: Data) -> None:
    found = {}
    for name in predict.references(data.spec):
        work = replace(work_of(data), builtin=name)
        found[name] = predict.trial(work).measures["bits-per-character"]
    assert list(found) == ["unigram", "n-gram"]
    assert found["n-gram"] < found["unigram"] - 1


@pytest.mark.parametrize("arm", ["gradient-noise(eta=0.0)", "encouraging-loss(log_end=None)"])
def test_a_neutral_technique_is_the_baseline_bit_for_bit(data: Data, arm: str) -> None:
    assert predict.trial(work_of(data, arm)).digest == predict.trial(work_of(data)).digest


def test_tuning_takes_the_validation_windows(data: Data) -> None:
    work = work_of(data, steps=4).on(tune=2)
    hidden = replace(data, test=replace(data.test, x=data.test.x[:0], y=data.test.y[:0], rows=data.test.rows[:0]))
    assert predict.fit(replace(work, data=hidden)).model is not None


def test_equal_compute_and_timings(data: Data) -> None:
    work = work_of(data, "gradient-noise", steps=40).on(equal_compute=True)
    assert steps_for(work, work.recipe) in (39, 40)  # noise costs no matrix products
    assert set(predict.timings(work)) == {"step-time-ratio", "latency-ratio"}


def test_a_study_resumes_ships_and_predicts(text: str, tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    options = {"seeds": 6, "steps": 6, "batch_size": 8, "running": Running(timing=False), "store": store}
    study = study_of(corpus(text, length=16, name="book"), ["gradient-noise"], **options)
    assert study.plan.primary == "bits-per-character"
    assert study.plan.references == ("unigram", "n-gram")
    first = study.run()
    assert all(trial.status == "ok" for trial in first.trials)
    ran: list[str] = []

    class Listener:
        def planned(self, jobs: list, done: int) -> None:
            ran.append(f"{done} of {len(jobs)}")

        def started(self, job: object) -> None:
            raise AssertionError("nothing is left to run")

        def stepped(self, step: int, steps: int) -> None: ...

        def ended(self, job: object, trial: object) -> None: ...

    again = study_of(corpus(text, length=16, name="book"), ["gradient-noise"], **options)
    assert key_of(again.plan.describe()) == key_of(study.plan.describe())
    second = again.run(Listener())
    assert ran[0] == "24 of 24"
    assert [t.record["measures"] for t in second.trials] == [t.record["measures"] for t in first.trials]
    page = study.report(tmp_path / "report.html").read_text()
    assert "bits-per-character" in page
    assert f"{len(text)} characters" in page

    folder = study.ship("gradient-noise", tmp_path / "model")
    shipped = load(folder)
    assert shipped.description["digest"] == shipped.description["digest_in_study"]
    assert shipped.description["onnx"]["written"] or "not installed" in shipped.description["onnx"]["reason"]
    new = text[500:700]
    told = shipped.predict([new, new[:3]])
    assert told["characters"].to_list() == [200, 3]
    ids = torch.from_numpy(shipped.pipeline.features.encode(new[:3])[0])[None]
    with torch.no_grad():
        log_p = shipped.model(ids[:, :-1]).log_softmax(dim=2).gather(2, ids[:, 1:, None])
    assert told["bits-per-character"][1] == pytest.approx(-float(log_p.sum()) / math.log(2) / 2, rel=1e-5)
    (tmp_path / "new.txt").write_text(new, encoding="utf-8")
    assert shipped.predict(tmp_path / "new.txt")["bits-per-character"][0] == pytest.approx(
        told["bits-per-character"][0]
    )
    with pytest.raises(InputError, match=r"no \.txt"):
        shipped.predict(tmp_path / "new.csv")
    with pytest.raises(InputError, match="two tokens or more"):
        shipped.predict(["a"])


def test_stacking_is_left_and_changes_nothing(text: str) -> None:
    found = []
    for stack in ("always", "never"):
        study = Study(
            corpus(text, length=16),
            ["gradient-noise"],
            seeds=2,
            steps=4,
            judging=Judging(references=False, confirm=False),
            running=Running(timing=False, stack=stack),
        )
        found.append({(t.arm, t.seed): t.record["measures"]["bits-per-character"] for t in study.run().trials})
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_techniques_of_other_tasks_say_so(text: str) -> None:
    with pytest.raises(InputError, match="cnn-svm needs task classes; the task here is next-token"):
        Study(corpus(text, length=16), ["cnn-svm"])
    named = [name for name in catalogue.names() if "next-token" in catalogue.card(name).tasks]
    assert len(named) >= 6
