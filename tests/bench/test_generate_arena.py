"""Arena generate: damage alike for all arms, labels and test rows unused, answers checked, what users see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from probatum import Study, catalogue
from probatum.arenas.generate import arena, denoiser
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.report.write import render
from probatum.rooms.arena import Work
from probatum.spec import Data, Part, Spec

BASE = Recipe(training=Training(steps=15, batch_size=32))
BUILTIN = (arena.BASELINE, arena.DEGRADED, arena.VARIATION, arena.GAUSSIAN)

OWN = '''"""Restores as a test tells it to.

Paper     none
Computes  fixed answers
Shapes    rows -> rows
Departs   none
"""

from probatum.card import Card

CARD = Card(paper="none", title="own", entry="fit", slot="generate", tags=("own",), modalities=("table", "image"))
SEEN = []


class Prior:
    def __init__(self, how):
        self.how = how

    def denoise(self, y):
        return self.restore(y, None)

    def restore(self, b, operator):
        SEEN.append((operator, b.clone()))
        if self.how == "in place":
            return b.mul_(0.5)
        return {"as it is": b, "short": b[..., :1], "not finite": b / 0.0}[self.how]


def fit(x, noise, budget, parameters, *, how="as it is"):
    SEEN.append((x, noise, budget, parameters))
    return Prior(how)
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    file = tmp_path / "own_prior.py"
    file.write_text(OWN)
    catalogue.add_file(file)


@pytest.fixture(scope="module")
def digits() -> Data:
    data = open_dataset("digits").prepare(0)
    return replace(data, test=Part(data.test.x[:24], data.test.y[:24], data.test.rows[:24]))


def work(name: str, data: Data, seed: int = 0) -> Work:
    builtin = name if name in BUILTIN else ""
    arm = Arm(name, BASE) if builtin else make_arm(name, BASE)
    return Work(arm, builtin, BASE, data, seed)


def seen() -> list[tuple]:
    return catalogue.entry("own-prior").__globals__["SEEN"]


def test_all_arms_of_a_seed_restore_the_same_damage(digits: Data) -> None:
    handed = arena.trial(work("own-prior", digits))
    degraded = arena.trial(work(arena.DEGRADED, digits))
    assert handed.measures == degraded.measures
    assert handed.digest == degraded.digest
    other = arena.trial(work(arena.DEGRADED, digits, seed=1))
    assert other.digest != degraded.digest
    assert degraded.measures["psnr-denoise"] == pytest.approx(20.0, abs=0.5)  # noise of 0.1


def test_labels_and_test_rows_are_not_learned_from(digits: Data) -> None:
    arena.trial(work("own-prior", digits))
    x, noise, budget, parameters = seen()[0]
    assert torch.equal(x, digits.train.x)
    assert noise == 0.1
    assert (budget.steps, budget.batch_size) == (15, 32)
    assert parameters == denoiser.PARAMETERS
    train = replace(digits.train, y=torch.zeros_like(digits.train.y))
    for name in (arena.BASELINE, arena.VARIATION):
        before, after = (arena.trial(work(name, d)) for d in (digits, replace(digits, train=train)))
        assert before.digest == after.digest


def test_every_way_to_restore_beats_what_was_handed_over(digits: Data) -> None:
    found = {name: arena.trial(work(name, digits)).measures for name in BUILTIN[1:]}
    for name in (arena.VARIATION, arena.GAUSSIAN):
        for measure, value in found[name].items():
            assert value > found[arena.DEGRADED][measure], (name, measure)
    longer = Recipe(training=Training(steps=150, batch_size=32))
    baseline = replace(work(arena.BASELINE, digits), arm=Arm(arena.BASELINE, longer))
    for measure, value in arena.trial(baseline).measures.items():
        assert value > found[arena.DEGRADED][measure], measure


def test_a_trial_is_a_function_of_its_plan(digits: Data) -> None:
    state = torch.get_rng_state()
    first, second = (arena.trial(work(arena.BASELINE, digits)) for _ in range(2))
    assert first.measures == second.measures
    assert first.digest == second.digest
    assert torch.equal(state, torch.get_rng_state())


def test_inpainting_loses_half_of_the_places_of_every_row_in_all_channels() -> None:
    x = torch.rand(5, 3, 4, 6)
    operator, b = arena.damage(x, "inpaint", 0.01, torch.Generator().manual_seed(0))
    kept = operator.apply(torch.ones_like(x))
    assert (kept.sum(dim=(2, 3)) == 12).all()
    assert torch.equal(kept[:, 0], kept[:, 2])
    assert not torch.equal(kept[0], kept[1])
    assert float((b - kept * x).std()) == pytest.approx(0.01, rel=0.2)


def test_tables_give_their_numbers_in_units_of_their_spread() -> None:
    spec = Spec("table", "reals", (4,), 1, numeric=3, cardinalities=(5,))
    x = torch.cat([3 * torch.randn(80, 3) + 7, torch.randint(5, (80, 1)).float()], dim=1)
    x[:, 2] = 1.0
    part = Part(x, torch.zeros(80, 1), torch.arange(80))
    rows = arena.rows_of(Data(spec, part, part, part))
    assert rows.spec.shape == (3,)
    assert rows.spec.cardinalities == ()
    torch.testing.assert_close(rows.train[:, :2].std(dim=0), torch.ones(2))
    assert not rows.train[:, 2].any()
    assert arena.measures(spec) == ("psnr-denoise", "psnr-inpaint")
    assert arena.references(spec) == (arena.DEGRADED, arena.GAUSSIAN)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec("text", "classes", (9,), 2, vocabulary=20), "texts have none"),
        (Spec("series", "classes", (2, 9), 2, masked=True), "these are padded"),
        (Spec("table", "classes", (3,), 2, numeric=1, cardinalities=(4, 4)), "there are 1"),
    ],
)
def test_data_without_rows_to_restore_are_refused(spec: Spec, words: str) -> None:
    part = Part(torch.zeros(4, *spec.shape), torch.zeros(4), torch.arange(4))
    with pytest.raises(InputError, match=words):
        arena.contest(spec, part)


@pytest.mark.parametrize(
    ("how", "words"),
    [("short", "restores rows of shape"), ("not finite", "not finite"), ("in place", "in place")],
)
def test_answers_that_cannot_be_used_are_named(digits: Data, how: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        arena.rehearse(work(f"own-prior(how={how!r})", digits))


@pytest.mark.parametrize("shape", [(6,), (100,), (2, 24), (1, 8, 8), (3, 16, 16)])
def test_the_baseline_has_the_weights_that_are_offered(shape: tuple[int, ...]) -> None:
    wanted = denoiser.parameters_for(shape)
    network = denoiser.Denoiser(shape, wanted)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(wanted, rel=0.06)
    assert network(torch.zeros(2, *shape)).shape == (2, *shape)


def test_a_study_from_plan_to_report() -> None:
    study = Study("wine", ["own-prior"], seeds=6, steps=20, confirm=False, timing=False)
    assert study.plan.contest == {"noise": 0.3, "kept": 0.5}
    assert study.plan.primary == "psnr-denoise"
    results = study.run()
    assert all(t.status == "ok" for t in results.trials)
    assert {v.arm for v in results.primary_verdicts()} == {"own-prior"}
    page = render(results)
    assert "psnr-inpaint" in page
    assert "share of places kept" in page
    with pytest.raises(InputError, match="tune is 3"):
        Study("wine", ["own-prior"], seeds=6, tune=3)
