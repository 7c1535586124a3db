"""All probes alike: networks that begin in place, labels that are no classes, labels in a column, half precision, frozen parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from probatum.spec import Data, Part, Spec
from probatum.techniques.probe.benign_oscillation import benign_oscillation
from probatum.techniques.probe.calibration_benchmark import calibration_benchmark
from probatum.techniques.probe.focus_protocol.focus_protocol import focus_protocol
from probatum.techniques.probe.label_noise_dilution import label_noise_dilution
from probatum.techniques.probe.lm_cascade.lm_cascade import lm_cascade
from probatum.techniques.probe.perceptual_score import probe
from probatum.techniques.probe.randomization_tests.randomization_tests import randomization_tests
from small_networks import Begins, WithObjective

pytestmark = pytest.mark.fast

Told = dict[str, float]
Run = Callable[[Callable[[], nn.Module], Data], Told]


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


PROBES: dict[str, Run] = {
    "perceptual": lambda net, data: probe(net, data, stream(), steps=4, repeats=5),
    "oscillation": lambda net, data: benign_oscillation(net, data, stream(), [0.05], steps=4),
    "dilution": lambda net, data: label_noise_dilution(
        net, data, stream(), alphas=[2.0], rows=30, steps=3, sizes=[], rate_multiples=[1.0], batch_multiples=[1]
    ),
    "cascade": lambda net, data: lm_cascade(net, data, stream(), steps=3, rows=40),
    "focus": lambda net, data: focus_protocol(net, data, stream(), steps=4, finetune_steps=2),
    "randomization": lambda net, data: randomization_tests(net, data, stream(), max_steps=3, rows=40),
}
CALIBRATION: Run = lambda net, data: calibration_benchmark(  # noqa: E731  # which makes networks of its own
    data, stream(), depths=[1], widths=[4, 8], activations=["relu"], norms=["batch"], steps=3, bins=[5], main=5
)


def rows(dtype: torch.dtype = torch.float32) -> Data:
    x = torch.randn(40, 4, generator=stream()).to(dtype)
    part = Part(x, (x[:, 0] > 0).long(), torch.arange(40))
    return Data(Spec("table", "classes", (4,), 2, numeric=4), part, part, part)


def network(first: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(first or nn.Identity(), nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))


@pytest.mark.parametrize("run", PROBES.values(), ids=PROBES)
def test_rows_stay_as_they_are_where_a_network_begins_in_place(run: Run) -> None:
    data = rows()
    before = data.train.x.clone()
    run(lambda: network(nn.ReLU(inplace=True)), data)
    assert torch.equal(data.train.x, before)


@pytest.mark.parametrize("run", [*PROBES.values(), CALIBRATION], ids=[*PROBES, "calibration"])
def test_labels_that_are_no_classes_are_named_and_a_column_is_a_row(run: Run) -> None:
    data = rows()
    for wrong in (-100, -1, 2):
        y = data.train.y.clone()
        y[3] = wrong
        part = replace(data.train, y=y)
        with pytest.raises(ValueError, match=f"the label {wrong}"):
            run(network, replace(data, train=part, valid=part, test=part))
    part = replace(data.train, y=data.train.y[:, None])
    assert run(network, replace(data, train=part, valid=part, test=part)) == run(network, data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("run", PROBES.values(), ids=PROBES)
def test_half_precision_is_trained_in_single(run: Run, dtype: torch.dtype) -> None:
    made: list[nn.Module] = []

    def half() -> nn.Module:
        made.append(network().to(dtype))
        return made[-1]

    found = run(half, rows(dtype))
    assert all(math.isfinite(value) for value in found.values())
    assert all(p.dtype == dtype for net in made for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("run", PROBES.values(), ids=PROBES)
def test_rows_and_networks_may_differ_in_precision(run: Run, dtype: torch.dtype) -> None:
    for network_dtype, rows_dtype in ((torch.float32, dtype), (dtype, torch.float32)):
        found = run(lambda to=network_dtype: network().to(to), rows(rows_dtype))  # type: ignore[misc]
        assert all(math.isfinite(value) for value in found.values())


class AlwaysDrawing(nn.Module):
    """Dropout that is never off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.dropout(x, 0.5, True)


@pytest.mark.parametrize("name", ["oscillation", "dilution", "cascade", "randomization"])
def test_networks_that_always_draw_leave_the_global_stream_alone(name: str) -> None:
    told = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        told.append(PROBES[name](lambda: network(AlwaysDrawing()), rows()))
        assert torch.equal(torch.get_rng_state(), before)
    assert told[0] == told[1]


@pytest.mark.parametrize("name", [name for name in PROBES if name != "oscillation"])  # which has a loss of its own
def test_an_objective_sees_the_rows_as_they_came(name: str) -> None:
    same: list[bool] = []
    PROBES[name](lambda: WithObjective(network(Begins()), same.append), rows())
    assert same
    assert all(same)
