"""The shared AdamW step and what optimizers keep, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.numerics.optimisation.adamw import adamw_update, dense_real, load_wide, state_bytes

pytestmark = pytest.mark.fast


def matrix(rows: int = 6, columns: int = 4) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_adamw_update_matches_torch() -> None:
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    theirs, ours, state = nn.Parameter(matrix()), matrix(), {}
    optimizer = torch.optim.AdamW([theirs], **settings)
    for i in range(6):
        theirs.grad = matrix().cos() * (i + 1)
        adamw_update(ours, theirs.grad, state, **settings)
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_sparse_and_complex_gradients_are_refused() -> None:
    with pytest.raises(TypeError, match=r"\(3, 2\) is sparse"):
        dense_real(torch.eye(3)[:, :2].to_sparse(), torch.Size((3, 2)))
    with pytest.raises(TypeError, match="is complex"):
        dense_real(torch.zeros(3, dtype=torch.complex64), torch.Size((3,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_half_precision_are_wide(dtype: torch.dtype) -> None:
    """A second moment shrinks by a thousandth a step, which eight bits cannot tell."""
    state: dict[str, object] = {}
    weight, wide = torch.ones(3, dtype=dtype), torch.ones(3)
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    adamw_update(weight, torch.ones(3, dtype=dtype), state, **settings)
    adamw_update(wide, torch.ones(3), {}, **settings)
    assert torch.equal(weight, wide.to(dtype))
    for _ in range(499):
        adamw_update(weight, torch.zeros(3, dtype=dtype), state, **settings)
    assert state["exp_avg_sq"].dtype == torch.float32
    torch.testing.assert_close(state["exp_avg_sq"], torch.full((3,), 1e-3 * 0.999**499))


def test_state_is_loaded_wide_and_is_a_copy() -> None:
    saved = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    first = torch.optim.SGD(saved)
    first.state[saved[0]] = {"exp_avg": torch.tensor([1.001, 2.0]), "codes": torch.tensor([3, 4], dtype=torch.uint8)}
    given = first.state_dict()
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        mine = [nn.Parameter(p.detach().to(dtype)) for p in saved]
        second = torch.optim.SGD(mine)
        load_wide(second, given)
        state = second.state[mine[0]]
        assert (state["exp_avg"].dtype, state["codes"].dtype) == (expected, torch.uint8)
        torch.testing.assert_close(state["exp_avg"].float(), torch.tensor([1.001, 2.0]))
        state["codes"].zero_()
        assert given["state"][0]["codes"].tolist() == [3, 4]
        assert not second.state.get(mine[1])


def test_bytes_of_a_state() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    optimizer.state[weight] = {
        "step": torch.tensor(1.0),
        "a": torch.ones(3),
        "b": torch.ones(2, dtype=torch.uint8),
        "c": 7,
    }
    assert state_bytes(optimizer) == 14
