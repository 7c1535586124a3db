"""Martingale posterior neural process as a learner: its draws, its context, its training, and what it refuses."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from probatum.data.open import open_dataset
from probatum.spec import Budget, Data, Part, Spec
from probatum.techniques.learner.martingale_posterior_np.martingale_posterior_np import (
    Columns,
    fit,
    fit_tasks,
    process_values,
)
from probatum.techniques.learner.martingale_posterior_np.neural_process import Context, MartingaleProcess, NeuralProcess

PARTS = ("train", "valid", "test")
SMALL: dict[str, Any] = {"width": 16, "points": 4, "draws": 3, "samples": 7}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wave(n: int = 80) -> Data:
    x = torch.rand(3 * n, 1, generator=stream(9)) * 4 - 2
    y = (2 * x).sin() + 0.1 * torch.randn(3 * n, 1, generator=stream(8))
    parts = [Part(x[rows], y[rows], rows) for rows in torch.arange(3 * n).split(n)]
    return Data(Spec("table", "reals", (1,), 1, numeric=1), *parts)


@pytest.mark.parametrize("attention", [True, False])
def test_it_learns_and_its_draws_are_what_is_predicted(attention: bool) -> None:
    data = wave()
    found = fit(data, Budget(150, 32, 3), stream(), attention=attention, lr=5e-3, tasks=2, **SMALL)
    error = (found.predict(data.test) - data.test.y).square().mean()
    assert float(error) < 0.4 * float(data.test.y.var())
    samples, noise = found.samples(data.test), found.noise(data.test)
    assert samples.shape == noise.shape == (7, 80, 1)
    assert float(noise.min()) >= 0.1
    assert float(samples.std(dim=0).min()) > 0
    assert torch.equal(samples.mean(dim=0), found.predict(data.test))
    assert torch.equal(samples, found.samples(data.test))
    one = Part(data.test.x[:1], data.test.y[:1], data.test.rows[:1])
    torch.testing.assert_close(found.samples(one), samples[:, :1], atol=1e-5, rtol=1e-5)
    assert found.report()["context-rows"] == 80


def test_same_stream_same_result_and_test_rows_are_not_read() -> None:
    data = wave()
    first = fit(data, Budget(5, 16, 3), stream(), **SMALL)
    other = replace(data, test=Part(data.test.x * 9, data.test.y + 7, data.test.rows))
    again = fit(other, Budget(5, 16, 3), stream(), **SMALL)
    assert torch.equal(first.predict(data.valid), again.predict(data.valid))
    assert not torch.equal(
        first.predict(data.valid), fit(data, Budget(5, 16, 3), stream(1), **SMALL).predict(data.valid)
    )


def test_process_episodes_do_not_know_the_targets_and_the_context_does() -> None:
    data = wave()
    turned = replace(data, train=replace(data.train, y=-data.train.y))
    first, second = (fit(one, Budget(5, 16, 3), stream(), gp=1.0, **SMALL) for one in (data, turned))
    weights = second.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.model.state_dict().items())
    assert torch.equal(first.given.y, -second.given.y)
    assert not torch.equal(first.predict(data.test), second.predict(data.test))


def test_targets_in_a_row_and_other_precisions_are_the_same_task() -> None:
    data, draws = wave(), []
    for x_of, y_of in (
        (lambda x: x, lambda y: y),
        (lambda x: x, lambda y: y[:, 0]),
        (lambda x: x.double(), lambda y: y.double()),
    ):
        given = replace(data, **{n: replace(p, x=x_of(p.x), y=y_of(p.y)) for n, p in vars(data).items() if n in PARTS})
        found = pickle.loads(pickle.dumps(fit(given, Budget(5, 16, 3), stream(), **SMALL)))
        draws.append(found.samples(given.test))
    assert torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws[0], draws[2], atol=1e-4, rtol=1e-4)


def test_most_limits_the_context() -> None:
    found = fit(wave(), Budget(2, 16, 3), stream(), most=10, **SMALL)
    assert found.given.x.shape == (1, 10, 1)
    assert found.passes == 2 * 4 * 32


def test_tables_with_codes_and_several_targets() -> None:
    data = wave()
    codes = torch.randint(3, (80, 1), generator=stream()).float()
    part = Part(torch.cat([data.train.x, codes], dim=1), data.train.y.repeat(1, 2), data.train.rows)
    spec = Spec("table", "reals", (2,), 2, numeric=1, cardinalities=(3,))
    found = fit(Data(spec, part, part, part), Budget(3, 16, 3), stream(), **SMALL)
    assert found.samples(part).shape == (7, 80, 2)
    columns = Columns(part.x, spec)(part.x)
    assert columns.shape == (80, 4)
    torch.testing.assert_close(columns.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)


def test_values_of_the_process_have_its_moments() -> None:
    x = torch.linspace(-1, 1, 5)[None, :, None].expand(4000, -1, -1)
    found = process_values(x, 1, stream())[:, :, 0]
    variance = found.var(dim=0)  # 1, and the mean square of a noise from 0.05 to 0.5
    torch.testing.assert_close(variance, torch.full((5,), 1 + (0.5**3 - 0.05**3) / (3 * 0.45)), atol=0.09, rtol=0)
    close, far = (found[:, 0] * found[:, 1]).mean(), (found[:, 0] * found[:, 4]).mean()
    assert 0.5 < float(close) < 1
    assert float(far) < 0.7 * float(close)


def test_values_of_a_process_by_hand() -> None:
    x = torch.tensor([[[0.0], [1.0], [3.0]], [[0.0], [2.0], [2.5]]])
    draw = stream(5)
    length = torch.tensor([[1.0], [0.5]]) * (0.5 + 1.5 * torch.rand(2, 1, generator=draw))  # medians of 9 distances
    noise = 0.05 + 0.45 * torch.rand(2, 1, 1, generator=draw)[:, 0]
    normal = torch.randn(2, 3, 1, generator=draw, dtype=torch.float64)
    found = process_values(x, 1, stream(5))
    for k in range(2):
        place = x[k, :, 0].double()
        kernel = (-0.5 * ((place[:, None] - place) / length[k].double()) ** 2).exp()
        root = torch.linalg.cholesky(kernel + torch.eye(3, dtype=torch.float64) * (noise[k].double() ** 2 + 1e-6))
        torch.testing.assert_close(found[k].double(), root @ normal[k], rtol=1e-5, atol=1e-6)


def test_far_rows_are_cut_and_still_columns_left_out() -> None:
    x = torch.tensor([[0.0, 7.0, 1.0], [1.0, 7.0, 3.0], [2.0, 7.0, 5.0]])
    columns = Columns(x, Spec("table", "reals", (3,), 1, numeric=3))
    assert columns(torch.tensor([[100.0, 9.0, 3.0], [1.0, 7.0, -100.0]])).tolist() == [[5.0, 0.0], [0.0, -5.0]]
    with pytest.raises(ValueError, match="no column varies"):
        Columns(torch.ones(4, 2), Spec("table", "reals", (2,), 1, numeric=2))


def test_a_model_is_trained_in_training_mode() -> None:
    modes: list[bool] = []

    class Told(NeuralProcess):
        def loss(self, given: Context, x: Tensor, y: Tensor, draws: int, generator: torch.Generator) -> Tensor:
            modes.append(self.training)
            return super().loss(given, x, y, draws, generator)

    x = torch.zeros(1, 3, 1)
    model = Told(1, 1, width=8).eval()
    fit_tasks(model, lambda: (Context(x, x, torch.ones(1, 3, dtype=torch.bool)), x, x), 2, 1, 1e-3, stream())
    assert modes == [True, True]
    assert not model.training


def test_training_tasks_alone() -> None:
    def task() -> tuple[Context, Tensor, Tensor]:
        x = torch.rand(4, 12, 1, generator=own)
        y = torch.rand(4, 1, 1, generator=own).expand(-1, 12, -1)  # constant functions
        return Context(x, y, torch.arange(12) < torch.randint(1, 12, (4, 1), generator=own)), x, y

    for kind in (NeuralProcess, MartingaleProcess):
        own = stream()
        torch.manual_seed(0)
        model = kind(1, 1, width=16)
        fit_tasks(model, task, 300, 3, 3e-3, stream(1))
        given, x, y = task()
        with torch.no_grad():
            assert float((model(given, x).mean - y).abs().mean()) < 0.08
    assert not model.training


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"points": 0}, "points is 0"),
        ({"gp": 1.5}, "gp is 1.5"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"width": 15}, "width is 15"),
        ({"samples": -1}, "samples is -1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        fit(wave(), Budget(2, 16, 3), stream(), **(SMALL | settings))


def test_other_data_are_refused() -> None:
    data = wave()
    few = Part(data.train.x[:3], data.train.y[:3], data.train.rows[:3])
    with pytest.raises(ValueError, match="3 training rows"):
        fit(replace(data, train=few), Budget(2, 16, 3), stream())
    with pytest.raises(ValueError, match="classes of a table"):
        fit(open_dataset("iris").prepare(0), Budget(2, 16, 3), stream())
    flat = replace(data, train=replace(data.train, x=torch.zeros(80, 1)))
    with pytest.raises(ValueError, match="no column varies"):
        fit(flat, Budget(2, 16, 3), stream())
    with pytest.raises(ValueError, match="use a lower one"):
        fit_tasks(NeuralProcess(1, 1, width=8), lambda: _endless(data), 1, 1, 1e-3, stream())


def _endless(data: Data) -> tuple[Context, Tensor, Tensor]:
    x = data.train.x[None]
    return Context(x, x * float("inf"), torch.ones(1, 80).bool()), x, x


def test_columns_in_small_units_are_kept() -> None:
    x = torch.randn(50, 3, generator=stream())
    x[:, 2] = 1e12
    spec = Spec("table", "classes", (3,), 2, numeric=3)
    found = [Columns(given, spec)(given) for given in (x, x * torch.tensor([1e-9, 1.0, 1.0]))]
    assert found[0].shape == (50, 2)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
