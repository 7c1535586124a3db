"""The shared plumbing of explainers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.numerics.explanation.attribution import at, per_row, pick, reference_like, require_eval, require_float

pytestmark = pytest.mark.fast


def test_pick_by_loop() -> None:
    output, target = torch.arange(12.0).view(4, 3), torch.tensor([2, 0, 1, 2])
    assert pick(output, target).tolist() == [2.0, 3.0, 7.0, 11.0]
    assert pick(output[:, :1], torch.zeros(4, dtype=torch.int64)).tolist() == [0.0, 3.0, 6.0, 9.0]  # of a single output
    with pytest.raises(ValueError, match=r"the label 3; with 3 classes labels are 0 \.\. 2"):
        pick(output, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"shapes \(4, 3\) and \(3,\)"):
        pick(output, target[:3])


def test_reference_shapes() -> None:
    inputs = torch.rand(5, 2, 3)
    assert not reference_like(inputs, None).any()
    assert reference_like(inputs, 0.5).unique().tolist() == [0.5]
    for shape in ((2, 3), (1, 2, 3), (5, 2, 3)):
        assert torch.equal(reference_like(inputs, torch.ones(shape)), torch.ones(5, 2, 3))
    with pytest.raises(ValueError, match=r"baseline has shape \(4, 2, 3\) for inputs \(5, 2, 3\)"):
        reference_like(inputs, torch.ones(4, 2, 3))


def test_points_stay_what_they_are() -> None:
    points, other = torch.tensor([[-1.0, 2.0]], requires_grad=True), torch.tensor([[3.0, -4.0]])
    output = at(lambda a, b: a.relu_() + b.neg_(), points, other)
    assert output.tolist() == [[-3.0, 6.0]]
    assert points.tolist() == [[-1.0, 2.0]]
    assert other.tolist() == [[3.0, -4.0]]
    assert torch.autograd.grad(output.sum(), points)[0].tolist() == [[0.0, 1.0]]


def test_modes_and_dtypes() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with pytest.raises(ValueError, match="training mode"):
        require_eval(net)
    net.eval()
    require_eval(net)
    net[1].train()
    with pytest.raises(ValueError, match=r"module '1' \(Dropout\)"):
        require_eval(net)
    require_eval(lambda x: x)
    with pytest.raises(TypeError, match=r"torch.int64, which carries no gradient; embed them"):
        require_float(torch.arange(3), "embed them")
    with pytest.raises(ValueError, match=r"shape \(0, 2\)"):
        require_float(torch.zeros(0, 2), "")
    assert per_row(torch.ones(3), torch.ones(3, 4, 5)).shape == (3, 1, 1)
