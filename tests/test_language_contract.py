"""The contract suite holds attention techniques to what a language model needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from probatum.checks.run import check

pytestmark = pytest.mark.fast

SOURCE = '''"""Attention over the last few positions.

Paper     none
Computes  softmax over scores of positions whose distance is below `most`
Shapes    q, k, v (n, heads, t, size) -> (n, heads, t, size)
Departs   nothing
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.attention.causal import CausalSelfAttention

CARD = Card(
    paper="none",
    title="Attention over the last few positions",
    entry="apply",
    slot="layer",
    tags=("attention",),
    modalities=("text",),
    tasks=("next-token",),
)


class Window(nn.Module):
    """Softmax over positions whose distance is allowed."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(q.shape[2], device=q.device)
        distance = place[:, None] - place
        scores = (q @ k.transpose(2, 3)) / q.shape[3] ** 0.5
        return scores.masked_fill((distance < LEAST) | (distance >= self.most), float("-inf")).softmax(dim=-1) @ v


def apply(net: nn.Module, most: int = 4) -> int:
    """Replace the mixing of every `CausalSelfAttention` of `net` by a window of `most` positions, at least 1."""
    if most < 1:
        raise ValueError(f"most is {most}; give 1 or more positions")
    found = [module for module in net.modules() if isinstance(module, CausalSelfAttention)]
    for attention in found:
        attention.attend = Window(most)
    return len(found)
'''


@pytest.mark.parametrize("least", [0, -1])
def test_a_window_may_not_reach_ahead(least: int, tmp_path: Path) -> None:
    file = tmp_path / f"window_{abs(least)}.py"
    file.write_text(SOURCE.replace("LEAST", str(least)), encoding="utf-8")
    results = {result.check: result for result in check(str(file))}
    failed = {name: result.detail for name, result in results.items() if result.status == "failed"}
    assert results["language_model_trains"].status == "passed"
    assert results["swaps_somewhere"].status == "passed"
    assert results["seeds_stack"].status == "not applicable"
    if least == 0:
        assert not failed
    else:
        assert list(failed) == ["language_model_looks_back_only"]
        assert "when tokens from there on change" in failed["language_model_looks_back_only"]
