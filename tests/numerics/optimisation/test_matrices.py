"""Matrix normalisations and parameter roles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.roles import parameter_roles
from probatum.numerics.optimisation.matrices import as_matrix, normalise, rms_normalise

pytestmark = pytest.mark.fast


def matrix(rows: int = 6, columns: int = 4) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_each_line_has_unit_rms() -> None:
    assert torch.allclose(normalise(matrix(), "row").square().mean(dim=1), torch.ones(6).double())
    assert torch.allclose(normalise(matrix(), "column").square().mean(dim=0), torch.ones(4).double())


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_singular_values_become_equal_and_the_rms_one(shape: tuple[int, int]) -> None:
    result = normalise(matrix(*shape), "singular")
    values = torch.linalg.svdvals(result)
    torch.testing.assert_close(values, values[0].expand_as(values))
    assert float(result.square().mean()) == pytest.approx(1.0)


def test_sign_max_and_none() -> None:
    x = matrix()
    assert torch.equal(normalise(x, "sign"), x.sign())
    assert float(normalise(x, "max").abs().max()) == 1.0
    assert torch.equal(normalise(x, "none"), x)
    with pytest.raises(ValueError, match="normalisation is 'l2'; use one of row"):
        normalise(x, "l2")


@pytest.mark.parametrize("how", ["row", "column", "sign", "max", "singular"])
def test_zeros_stay_zero(how: str) -> None:
    assert torch.equal(normalise(torch.zeros(3, 2), how), torch.zeros(3, 2))


def test_half_precision_does_not_overflow() -> None:
    x = torch.full((2, 4), 300.0, dtype=torch.float16)  # its square is infinite in float16
    assert torch.equal(rms_normalise(x, 1), torch.ones(2, 4, dtype=torch.float16))


def test_as_matrix() -> None:
    assert as_matrix(torch.zeros(8, 3, 5, 5)).shape == (8, 75)
    with pytest.raises(ValueError, match="two dimensions or more"):
        as_matrix(torch.zeros(3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def test_roles() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    assert parameter_roles(net) == {
        "0.weight": "matrix",
        "0.bias": "vector",
        "1.weight": "vector",
        "1.bias": "vector",
        "3.weight": "last",
        "3.bias": "vector",
    }
    assert find_last_layer(nn.Sequential(nn.ReLU())) is None
    assert find_last_layer(net[:2]) is net[0]


def test_tied_weights_named_layers_and_overrides() -> None:
    roles = parameter_roles(Tied())
    assert roles["embed.weight"] == "last"
    assert "head.weight" not in roles
    assert parameter_roles(Tied(), "inner") == {**roles, "embed.weight": "embedding", "inner.weight": "last"}
    assert parameter_roles(Tied(), override={"inner.weight": "embedding"})["inner.weight"] == "embedding"
    with pytest.raises(ValueError, match="last_layer is 'out'; the model has embed, norm"):
        parameter_roles(Tied(), "out")
    with pytest.raises(ValueError, match="no part of the model"):
        parameter_roles(Tied(), nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"roles names 'w'; trainable parameters are embed\.weight"):
        parameter_roles(Tied(), override={"w": "last"})
    with pytest.raises(ValueError, match="the role 'middle'"):
        parameter_roles(Tied(), override={"inner.weight": "middle"})


def test_frozen_parameters_have_no_role() -> None:
    net = Tied()
    net.inner.weight.requires_grad_(False)
    assert "inner.weight" not in parameter_roles(net)


def test_what_is_not_finite_stays_visible() -> None:
    x = torch.eye(3)
    x[1, 2] = float("inf")
    assert normalise(x, "singular").isnan().all()


def test_floors_and_what_is_below_them() -> None:
    x = torch.tensor([[3e-9, 4e-9], [3.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(rms_normalise(x, 1)[0], x[0] / 1e-8)
    torch.testing.assert_close(normalise(x, "row", floor=10.0), x / 10)
    torch.testing.assert_close(normalise(x, "max", floor=10.0), x / 10)
    torch.testing.assert_close(normalise(x, "max"), x / 4)
    thin = torch.diag(torch.tensor([2.0, 1e-9], dtype=torch.float64))
    torch.testing.assert_close(normalise(thin, "singular"), torch.tensor([[2**0.5, 0.0], [0.0, 0.0]]).double())
