"""Wrong labels: laws against brute force, exact rates, the margin rule."""

from __future__ import annotations

import pytest
import torch

from probatum.numerics.labels import noise as label_noise

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_laws_are_laws() -> None:
    assert torch.equal(label_noise.pair_law(3), torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]).double())
    assert label_noise.symmetric_law(5)[2].tolist() == [0.25, 0.25, 0.0, 0.25, 0.25]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 1.0])
def test_rate_is_exact_and_the_law_is_followed(rate: float) -> None:
    y = torch.arange(6000) % 3
    law = torch.tensor([[0.0, 0.8, 0.2], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]).double()
    noisy = label_noise.wrong_labels(y, law, rate, generator())
    wrong = noisy != y
    assert int(wrong.sum()) == round(rate * len(y))
    if rate > 0:
        to_one = float((noisy[wrong & (y == 0)] == 1).double().mean())
        n = int((wrong & (y == 0)).sum())
        assert abs(to_one - 0.8) < 4 * (0.16 / n) ** 0.5
        assert bool((noisy[wrong & (y == 2)] == 0).all())
    assert torch.equal(y, torch.arange(6000) % 3)


def test_instance_noise_hangs_on_the_row_and_keeps_its_mean_rate() -> None:
    x, y = torch.randn(4000, 6, generator=generator(1)), torch.arange(4000) % 4
    law = label_noise.instance_law(x, y, 4, 0.3, generator(2))
    torch.testing.assert_close(law.sum(dim=1), torch.ones(4000, dtype=torch.float64))
    own = law.gather(1, y[:, None]).squeeze(1)
    assert float(own.mean()) == pytest.approx(0.7, abs=0.01)
    assert float(own.std()) == pytest.approx(label_noise.INSTANCE_SPREAD, abs=0.01)
    again = label_noise.instance_law(x.repeat(2, 1), y.repeat(2), 4, 0.3, generator(2))
    wrong = law.scatter(1, y[:, None], 0.0)
    assert float(wrong[y == 0].std(dim=0).max()) > 0.03  # rows of one class differ in where they go
    assert again.shape == (8000, 4)


def test_confusion_law_finds_the_neighbour() -> None:
    y = torch.arange(900) % 3
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 10.0]])
    x = centres[y] + 0.3 * torch.randn(900, 2, generator=generator())
    law = label_noise.confusion_law((x - x.mean(0)) / x.std(0), y, 3, generator(1))
    torch.testing.assert_close(law.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert float(law.diagonal().abs().max()) == 0.0
    assert float(law[0, 1]) > 0.9
    assert float(law[1, 0]) > 0.9


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0, 20.0])
def test_margin_rule_agrees_with_the_mixture(alpha: float) -> None:
    p = torch.rand(3000, 5, generator=generator(), dtype=torch.float64).softmax(dim=1)
    r = (3 * torch.rand(3000, 5, generator=generator(1), dtype=torch.float64)).softmax(dim=1)
    mixed = label_noise.diluted_law(p, r, alpha)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(3000, dtype=torch.float64))
    same = mixed.argmax(dim=1) == p.argmax(dim=1)
    assert torch.equal(label_noise.survives(p, r, alpha), same)
    even = torch.full_like(p, 0.2)
    assert bool(label_noise.survives(p, even, 1e3 * alpha).all())


def test_bad_numbers_are_named() -> None:
    y, law = torch.tensor([0, 1]), label_noise.symmetric_law(2)
    with pytest.raises(ValueError, match="alpha is -1"):
        label_noise.diluted_law(law, law, -1)
    with pytest.raises(ValueError, match=r"row 0 of the noise matrix sums to 1\.5"):
        label_noise.wrong_labels(y, torch.tensor([[0.0, 1.5], [1.0, 0.0]]), 0.5, generator())
    with pytest.raises(ValueError, match=r"rate is 1\.5"):
        label_noise.wrong_labels(y, law, 1.5, generator())
    with pytest.raises(ValueError, match="right label a chance"):
        label_noise.wrong_labels(y, torch.full((2, 2), 0.5), 0.5, generator())
    with pytest.raises(ValueError, match="1 class"):
        label_noise.pair_law(1)


def test_labels_that_are_no_classes_are_told() -> None:
    """A negative one would be counted from the end."""
    for wrong in (-1, -100, 3):
        y = torch.tensor([0, wrong, 1])
        with pytest.raises(ValueError, match=f"the label {wrong}"):
            label_noise.wrong_labels(y, label_noise.pair_law(3), 1.0, generator())
        with pytest.raises(ValueError, match=f"the label {wrong}"):
            label_noise.instance_law(torch.zeros(3, 2), y, 3, 0.3, generator())
    with pytest.raises(ValueError, match=r"the noise matrix is \(2, 3\)"):
        label_noise.wrong_labels(torch.tensor([0, 1]), torch.full((2, 3), 1 / 3), 1.0, generator())


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_flip_rates_out_of_range_are_told(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate is {rate}"):
        label_noise.instance_law(torch.zeros(50, 2), torch.arange(50) % 3, 3, rate, generator())


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_outermost_flip_rates_suffice_for_all_rows(rate: float) -> None:
    y = torch.arange(3000) % 3
    law = label_noise.instance_law(torch.zeros(3000, 2), y, 3, rate, generator())
    own = law.gather(1, y[:, None])
    assert abs(float(own.mean()) - (1 - rate)) == pytest.approx(
        0.1 * (2 / torch.pi) ** 0.5, abs=0.01
    )  # of half a normal


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_laws_in_half_precision(dtype: torch.dtype) -> None:
    clean, noise = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([[0.25, 0.75]], dtype=dtype)
    mixed = label_noise.diluted_law(clean, noise, 1e6)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed, noise)
    clean = torch.tensor([[0.50390625, 0.49609375]], dtype=dtype)  # the margin 1 / 128, at which noise of 1 / 64 wins
    for alpha in (0.01562, 0.01563):
        assert bool(label_noise.survives(clean, noise, alpha)) == (alpha * 0.5 < 0.0078125)
