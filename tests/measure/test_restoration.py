"""Peak signal-to-noise ratio by hand."""

from __future__ import annotations

import math

import pytest
import torch

from probatum.measure.restoration import CEILING, MEASURES, psnr

pytestmark = pytest.mark.fast


def test_psnr_by_hand() -> None:
    true = torch.zeros(2, 3)
    assert psnr(true + 0.1, true) == pytest.approx(20.0, abs=1e-5)
    found = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.0, 0.2]])
    assert psnr(found, true) == pytest.approx(-10 * math.log10(0.05 / 6), abs=1e-5)
    assert psnr(true, true) == CEILING


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\), the true ones \(3, 2\)"):
        psnr(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="not finite"):
        psnr(torch.tensor([math.nan]), torch.zeros(1))


def test_measures_share_a_margin_and_a_direction() -> None:
    assert [m.name for m in MEASURES] == ["psnr-denoise", "psnr-inpaint", "psnr-blur"]
    assert all(m.higher_is_better and m.margin == 0.2 and m.unit == "dB" for m in MEASURES)
