"""Engines: words that are refused, settings that are off by default, and training on a device that is not the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from probatum.arenas.predict import arena as predict
from probatum.bench.plan import StudyPlan, key_of, plan_from
from probatum.data.lazy.rows import HeldRows, TooLarge
from probatum.data.open import open_dataset
from probatum.engine import Engine, Moved, checked_engine
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Outcome, Terms, Work, alone
from probatum.settings import Running
from probatum.study import Study
from probatum.train.assemble import assemble
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded
from processes import ran

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
BASE = Recipe(training=Training(steps=12, batch_size=16, lr=4e-3))


def outcome(data: str, engine: Engine, technique: str = "", steps: int = 12) -> Outcome:
    base = Recipe(training=Training(steps=steps, batch_size=16, lr=4e-3))
    arm = make_arm(technique, base) if technique else Arm("baseline", base)
    split = open_dataset(data).prepare(0)
    return predict.trial(Work(arm, "" if technique else "baseline", Terms(base=base, engine=engine), split, 0))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"device": "gpu"}, "use auto, cpu, cuda, cuda:NUMBER or mps"),
        ({"device": "cuda:"}, "use auto, cpu"),
        ({"device": "cpu:1"}, "use auto, cpu"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"strategy": "dp"}, "strategy is 'dp'"),
        ({"devices": 0}, "devices is 0"),
        ({"devices": True}, "devices is True"),
        ({"devices": 2, "workers": 2}, "devices is 2 and workers 2"),
    ],
)
def test_refused(given: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        checked_engine(**given)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: no CUDA device is visible; use --device cpu"):
        Study("iris", ["encouraging-loss"], running=Running(device="cuda"))
    with pytest.raises(InputError, match="no MPS device"):
        checked_engine("mps")
    assert checked_engine("auto").device == "cpu"


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_engine("auto").device == "cuda"
    assert checked_engine("cuda:1").device == "cuda:1"
    with pytest.raises(InputError, match="cuda:0 to cuda:1"):
        checked_engine("cuda:2")
    with pytest.raises(InputError, match="2 CUDA device"):
        checked_engine("cuda", devices=3)
    with pytest.raises(InputError, match="without a number"):
        checked_engine("cuda:1", devices=2)


def study_plan(precision: str = "float32") -> StudyPlan:
    return Study("iris", ["encouraging-loss"], seeds=2, epochs=1, running=Running(precision=precision)).plan


def test_the_default_leaves_trials_as_they_were_and_others_have_keys_of_their_own() -> None:
    plain, half = study_plan(), study_plan(precision="bf16")
    arm = plain.arms[0]
    assert "engine" not in plain.trial(arm, "", 0)
    assert half.trial(arm, "", 0)["engine"] == {"precision": "bf16"}
    assert key_of(plain.trial(arm, "", 0)) != key_of(half.trial(arm, "", 0))
    assert plan_from(half.describe()).engine == Engine(precision="bf16")
    old = {name: value for name, value in plain.describe().items() if name not in ("engine", "speed")}
    assert plan_from(old) == plan_from(plain.describe())


def test_precision_auto_needs_the_probe() -> None:
    with pytest.raises(InputError, match="add --speed auto"):
        Study("iris", ["encouraging-loss"], running=Running(precision="auto"))


def test_everything_runs_elsewhere_with_the_same_bits() -> None:
    """Baselines and techniques of every modality on a pretended device that refuses operands on two devices."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import faraway
faraway.join()
import torch
from probatum.engine import Engine
from probatum.settings import Running
from probatum.rooms.arena import Terms
from probatum.rooms.arena import alone
from test_engine import outcome
torch.set_num_threads(1)
cases = [("digits", ""), ("toy-topics", "early-learning-regularization"), ("cbf", ""), ("diabetes", "gradient-noise")]
for data, technique in cases:
    here, there = (outcome(data, Engine(device=d), technique, steps=4) for d in ("cpu", faraway.NAME))
    assert here.digest == there.digest and here.measures == there.measures, (data, technique)
print("the same")
"""
    run = ran(sys.executable, "-W", "ignore", "-c", code, cwd=Path(__file__).parent)
    assert run.stdout.strip() == "the same", run.stderr[-2000:]


def test_bf16_rounds_training_passes_only() -> None:
    data = open_dataset("diabetes").prepare(0)
    seen: list[torch.dtype] = []

    class Watch:
        def loss(self, run: object, batch: object, output: Tensor, loss: Tensor) -> Tensor:
            seen.extend([output.dtype, loss.dtype])
            return loss

    models = []
    for engine in (Engine(), Engine(precision="bf16")):
        parts = assemble(alone(BASE, data, 0, engine=engine))
        inner: list[torch.dtype] = []
        handle = parts.run.model.head.register_forward_hook(lambda m, i, o, inner=inner: inner.append(o.dtype))
        with seeded(0, "training"):
            train(parts.run, [Watch()], generator_for(0, "order"), select="rmse")
        handle.remove()
        assert inner[0] is (torch.float32 if engine == Engine() else torch.bfloat16)
        assert inner[-1] is torch.float32  # the last pass was validation
        models.append(parts.run.model)
    assert set(seen) == {torch.float32}
    plain, half = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    assert half.dtype == torch.float32
    assert not torch.equal(plain, half)
    torch.testing.assert_close(plain, half, rtol=0, atol=5e-2)


def test_channels_last_changes_the_layout_and_not_the_network() -> None:
    plain, other = (outcome("digits", Engine(channels_last=last)) for last in (False, True))
    assert other.measures["log-loss"] == pytest.approx(plain.measures["log-loss"], abs=1e-2)
    data = open_dataset("digits").prepare(0)
    engine = Engine(channels_last=True)
    model = assemble(alone(BASE, data, 0, engine=engine)).run.model
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    engine.home(model)
    assert all(p.is_contiguous() for p in model.parameters())


def test_a_network_that_cannot_be_compiled_is_trained_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    calls = []

    def refuse(model: nn.Module) -> object:
        def quick(x: Tensor) -> Tensor:
            calls.append(len(x))
            raise TorchDynamoException("no compiler")

        return quick

    monkeypatch.setattr(torch, "compile", refuse)
    assert outcome("iris", Engine(compile=True)).digest == outcome("iris", Engine()).digest
    assert len(calls) == 1


def test_streamed_rows_are_moved_batch_by_batch() -> None:
    x = torch.arange(400.0).view(100, 4)
    moved = Moved(HeldRows(x, 1e12, 16), torch.device("cpu"))
    index = torch.tensor([7, 3, 99])
    assert torch.equal(moved[index], x[index])
    assert torch.equal(moved[:5], x[:5])
    assert (len(moved), moved.shape, moved.device) == (100, x.shape, torch.device("cpu"))
    with pytest.raises(TooLarge):
        moved.mean()


@no_cuda
@pytest.mark.parametrize("data", ["digits", "wine", "toy-topics"])
def test_cuda_agrees_with_the_cpu(data: str) -> None:
    split = open_dataset(data).prepare(0)
    recipe = Recipe(training=Training(steps=50, batch_size=32, lr=1e-3))
    losses = []
    for device in ("cpu", "cuda"):
        parts = assemble(alone(recipe, split, 0, engine=Engine(device=device)))
        for module in parts.run.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # draws of the two devices differ
        with seeded(0, "training"):
            train(parts.run, [], generator_for(0, "order"), select="log-loss")
        losses.append([point["valid_log_loss"] for point in parts.run.curve])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
