"""The learner with tuned priors: its posterior where it is known, what its sampler sees, and what it refuses."""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import pytest
import torch

from probatum.spec import Budget, Data, Part, Spec
from probatum.techniques.learner.functional_gp_prior.functional_gp_prior import (
    Inputs,
    fit,
    process_for,
    sample_posterior,
)
from probatum.techniques.learner.functional_gp_prior.functional_prior import (
    GaussianPrior,
    HierarchicalPrior,
    Perceptron,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


QUICK: dict[str, Any] = {
    "prior_steps": 4,
    "critic_steps": 4,
    "points": 12,
    "functions": 16,
    "width": 24,
    "steps_times": 4,
}


def data(task: str) -> Data:
    def part(n: int, seed: int) -> Part:
        x = torch.cat([torch.randn(n, 2, generator=generator(seed)), torch.randint(3, (n, 1)).float()], dim=1)
        value = x[:, :1] + 0.3 * torch.randn(n, 1, generator=generator(seed + 10))
        return Part(x, value if task == "reals" else (value[:, 0] > 0).long(), torch.arange(n))

    outputs = 1 if task == "reals" else 2
    spec = Spec("table", task, (3,), outputs, numeric=2, cardinalities=(3,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Data(spec, part(200, 0), part(60, 1), part(60, 2))


def test_the_sampler_finds_the_closed_posterior_with_the_priors_own_scales() -> None:
    n, noise = 60, 0.5
    x = torch.randn(n, 2, generator=generator())
    y = x @ torch.tensor([[1.0], [-0.5]]) + noise * torch.randn(n, 1, generator=generator(1))
    net = Perceptron((2, 1))
    prior = GaussianPrior(net)
    with torch.no_grad():
        prior.raw.copy_(torch.tensor([-0.5, -2.0]))  # a narrow one, so that it matters
    scales = prior.requires_grad_(False).scales().double()
    features = torch.cat([x / 2**0.5, torch.ones(n, 1)], dim=1).double()
    covariance = torch.linalg.inv(features.T @ features / noise**2 + torch.diag(scales**-2))
    mean = covariance @ features.T @ y.double()[:, 0] / noise**2
    draws = sample_posterior(
        net, prior, x, y, noise, 4000, n, generator(2), chains=32, draws=400, rate=0.05, friction=0.1
    )
    flat = draws.flatten(0, 1).double()
    spread = covariance.diagonal().sqrt()
    assert float(((flat.mean(0) - mean) / spread).abs().max()) < 0.15
    assert float((flat.T.cov() - covariance).norm() / covariance.norm()) < 0.15


@pytest.mark.parametrize("task", ["classes", "reals"])
@pytest.mark.parametrize("prior", ["gaussian", "hierarchical", "fixed"])
def test_it_learns(task: str, prior: str) -> None:
    held = data(task)
    before = torch.get_rng_state()
    found = fit(held, Budget(300, 32, 7), generator(), prior=prior, **QUICK)
    assert torch.equal(before, torch.get_rng_state())
    draws, output = found.samples(held.test), found.predict(held.test)
    assert draws.shape == (20, 60, held.spec.outputs)
    torch.testing.assert_close(output, draws.mean(0))
    assert found.passes == 4 * 300 * 32
    assert found.report()["prior-steps"] == (0 if prior == "fixed" else 4)
    if task == "classes":
        assert float((output.argmax(1) == held.test.y).float().mean()) > 0.75
    else:
        assert float((output - held.test.y).square().mean().sqrt()) < 0.6
        assert 0.1 < found.noise < 0.6


def test_inputs_are_standardised_and_codes_one_hot() -> None:
    held = data("reals")
    inputs = Inputs(held.train.x, held.spec)
    x = inputs(held.train.x)
    assert x.shape == (200, 5)
    torch.testing.assert_close(x.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(5), atol=1e-4, rtol=0)
    constant = torch.cat([held.train.x[:, :2], torch.zeros(200, 1)], dim=1)
    assert Inputs(constant, held.spec)(constant).shape == (200, 2)


def test_the_process_of_reals_finds_the_noise() -> None:
    held = data("reals")
    _, noise = process_for(Inputs(held.train.x, held.spec)(held.train.x), held.train.y, 1.0)
    assert noise == pytest.approx(0.3, rel=0.25)


def test_the_process_of_classes_has_the_amplitude_and_the_median_distance() -> None:
    x = torch.randn(30, 2, generator=generator())
    kernel, noise = process_for(x, torch.zeros(30).long(), 2.5)
    length = torch.pdist(x).median()
    torch.testing.assert_close(
        kernel(x[:1], x[1:2])[0, 0], 6.25 * (-0.5 * ((x[0] - x[1]) / length).square().sum()).exp()
    )
    assert noise == 1.0
    same, _ = process_for(torch.ones(5, 2), torch.zeros(5).long(), 1.0)  # rows that are all the same
    near = torch.tensor([[1.0, 1.0], [1.002, 1.0]], dtype=torch.float64)
    assert float(same(near[:1], near[1:])) == pytest.approx(math.exp(-2), rel=1e-3)  # a length of 0.001


def test_inputs_of_images_and_of_several_codes() -> None:
    image = torch.randn(6, 1, 2, 3, generator=generator())
    inputs = Inputs(image, Spec("image", "classes", (1, 2, 3), 2))
    flat = image.flatten(1)
    torch.testing.assert_close(inputs(image), (flat - flat.mean(0)) / flat.std(0))
    table = torch.tensor([[0.5, 0.0, 1.0], [1.5, 1.0, 0.0], [0.0, 1.0, 2.0]])
    codes = Inputs(table, Spec("table", "classes", (3,), 2, numeric=1, cardinalities=(2, 3)))
    plain = torch.tensor([[0.5, 1, 0, 0, 1, 0], [1.5, 0, 1, 1, 0, 0], [0.0, 0, 1, 0, 0, 1]])
    torch.testing.assert_close(codes(table), (plain - plain.mean(0)) / plain.std(0))
    with pytest.raises(ValueError, match="no input varies"):
        Inputs(torch.ones(5, 2), Spec("table", "classes", (2,), 2, numeric=2))


def test_what_a_fit_tells() -> None:
    held, how = data("reals"), (Budget(120, 32, 7), generator())
    found = fit(held, *how, prior="hierarchical", **QUICK).report()
    assert "prior variance 0" in found
    assert found["rhat-median"] > 0.9
    assert {"distance-first", "distance-last"} <= set(found)
    found = fit(held, *how, prior="gaussian", **{**QUICK, "draws": 3}).report()
    assert "prior scale 0" in found
    assert "rhat-median" not in found  # of three draws a chain
    assert "rhat-median" not in fit(held, *how, prior="fixed", **{**QUICK, "chains": 1}).report()


def test_targets_in_a_row_wider_ones_and_pickles() -> None:
    held = data("reals")
    kinds = ((lambda t: t), (lambda t: t[:, 0]), (lambda t: t.double()))
    draws = []
    for kind in kinds:
        given = Data(held.spec, *(Part(p.x, kind(p.y), p.rows) for p in (held.train, held.valid, held.test)))
        found = fit(given, Budget(60, 32, 7), generator(), **QUICK)
        draws.append(pickle.loads(pickle.dumps(found)).samples(held.test))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_kinds_of_priors_tell_their_scales() -> None:
    net = Perceptron((2, 3, 1))
    assert list(GaussianPrior(net).told().values()) == pytest.approx([1.0] * 4)
    assert list(HierarchicalPrior(net, 0.5).told().values()) == pytest.approx([0.25] * 4)


def test_bad_settings_are_named() -> None:
    held, how = data("classes"), (Budget(8, 30, 4), generator())
    for settings, message in (
        ({"prior": "flow"}, "prior is 'flow'; use one of gaussian, hierarchical, fixed"),
        ({"amplitude": 0.0}, "amplitude is 0.0"),
        ({"friction": 2.0}, "friction is 2.0"),
        ({"chains": 0}, "chains 0"),
        ({"prior_steps": 0}, "steps 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            fit(held, *how, **{**QUICK, **settings})
    text = Spec("text", "classes", (4,), 2, vocabulary=9)
    with pytest.raises(ValueError, match="token ids"):
        Inputs(torch.ones(3, 4).long(), text)
    with pytest.raises(ValueError, match="diverged at rate"):
        fit(held, *how, prior="fixed", rate=1e30)
