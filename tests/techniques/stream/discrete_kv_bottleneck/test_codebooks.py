"""Codebooks: against searches by hand, k-means at rest, and counts by hand."""

from __future__ import annotations

import pytest
import torch

from probatum.techniques.stream.discrete_kv_bottleneck.codebooks import fit_keys, nearest, overlap, touched

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nearest_equals_the_distances_by_hand_however_it_is_cut() -> None:
    z = torch.randn(50, 3, 4, generator=generator(), dtype=torch.float64)
    keys = torch.randn(3, 17, 4, generator=generator(1), dtype=torch.float64)
    expected = (z[:, :, None] - keys[None]).square().sum(dim=3).argmin(dim=2)
    for most in (1, 200, 10**6):
        assert torch.equal(nearest(z, keys, most), expected)
    assert nearest(z[:0], keys).shape == (0, 3)


@pytest.mark.parametrize(("offset", "wide"), [(0.0, 1.0), (1e4, 1.0), (1e6, 1e3)])
def test_an_offset_of_the_features_changes_no_choice(offset: float, wide: float) -> None:
    z = torch.randn(400, 3, 8, generator=generator()) + offset
    z[..., 0] = wide * torch.randn(400, 3, generator=generator(2)) + offset  # one column with a scale of its own
    keys = z[:64].transpose(0, 1) + torch.randn(3, 64, 8, generator=generator(1))
    expected = (z.double()[:, :, None] - keys.double()[None]).square().sum(dim=3).argmin(dim=2)
    assert float((nearest(z, keys) == expected).float().mean()) > 0.999


def test_in_half_precision_the_search_is_that_of_float32() -> None:
    z, keys = torch.randn(60, 2, 6, generator=generator()), torch.randn(2, 40, 6, generator=generator(1))
    for dtype in (torch.bfloat16, torch.float16):
        low, near = z.to(dtype), keys.to(dtype)
        assert torch.equal(nearest(low, near), nearest(low.float(), near.float()))


def test_keys_settle_at_the_means_of_separate_groups() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    z = (centres.repeat(100, 1) + 0.1 * torch.randn(300, 2, generator=generator()))[:, None]
    start = z[:3].transpose(0, 1)
    keys = fit_keys(z, start, generator(), decay=0.9, rounds=80, batch_size=300)
    means = torch.stack([z[k::3, 0].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(keys[0], means, atol=2e-3, rtol=0)


def test_a_key_that_nothing_is_near_to_is_put_at_a_row() -> None:
    z = torch.randn(200, 1, 2, generator=generator())
    start = torch.tensor([[[0.0, 0.0], [500.0, 500.0]]])
    left = fit_keys(z, start, generator(), dead=0.0, rounds=3)
    assert float(left[0, 1].norm()) > 100
    keys = fit_keys(z, start, generator(), decay=0.5, dead=0.3, rounds=20)
    assert float(keys.norm()) < 10
    assert bool((torch.bincount(nearest(z, keys)[:, 0], minlength=2) > 20).all())


def test_one_step_by_hand() -> None:
    z = torch.tensor([[[1.0]], [[3.0]], [[9.0]]])
    keys = fit_keys(z, torch.tensor([[[0.0], [10.0]]]), generator(), decay=0.5, smoothing=0.0, rounds=1, batch_size=3)
    # counts 0.5 + 0.5 * (2, 1), sums 0.5 * (0, 10) + 0.5 * (4, 9)
    torch.testing.assert_close(keys, torch.tensor([[[2.0 / 1.5], [9.5]]]))


def test_no_round_moves_nothing() -> None:
    start = torch.randn(2, 5, 3, generator=generator())
    assert torch.equal(fit_keys(torch.randn(9, 2, 3, generator=generator(1)), start, generator(), rounds=0), start)


def test_touched_and_overlap() -> None:
    first, second = touched(torch.tensor([[0, 1], [0, 2]]), 4), touched(torch.tensor([[0, 3]]), 4)
    assert first.tolist() == [[True, False, False, False], [False, True, True, False]]
    assert overlap(first, second) == 1 / 4
    assert overlap(first, first) == 1.0
    assert overlap(first & ~first, first & ~first) == 0.0


@pytest.mark.parametrize("offset", [1e3, 3e4])
def test_keys_move_as_beside_no_offset(offset: float) -> None:
    z = torch.randn(800, 2, 4, generator=generator(), dtype=torch.float64).mul(256).round() / 256  # exact beside 3e4
    near = fit_keys(z, z[:32].transpose(0, 1), generator(1))
    far = fit_keys((z + offset).float(), (z[:32].transpose(0, 1) + offset).float(), generator(1))
    torch.testing.assert_close(far.double() - offset, near, atol=0.02, rtol=0)
