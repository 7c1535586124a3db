"""Kernels that no CPU has, on sizes alone, against the same layers elsewhere; factorisations against the textbook."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.cost.formulas import ATTENTION, CONVOLUTIONS, FACTORS, FORMULAS, TRANSPOSED
from probatum.numerics.cost.operations import counted

pytestmark = pytest.mark.fast


def total(run: Callable[[], Any]) -> int:
    with counted() as operations:
        run()
    return operations.total


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("projected", [0, 2])
@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_recurrent_layers_of_gpus_cost_what_those_of_cpus_do(
    bidirectional: bool, projected: int, rows_first: bool
) -> None:
    layer = nn.LSTM(3, 4, 2, batch_first=rows_first, bidirectional=bidirectional, proj_size=projected)
    x, directions = torch.randn(2, 6, 3) if rows_first else torch.randn(6, 2, 3), 1 + bidirectional
    call = {"input": x, "weight": list(layer.parameters()), "weight_stride0": 4 + bool(projected)}
    call |= {"bidirectional": bidirectional, "batch_first": rows_first, "batch_sizes": []}
    assert FORMULAS["aten::_cudnn_rnn"](call) == total(lambda: layer(x))
    for inputs, state, weights in itertools.product((True, False), repeat=3):
        if not (inputs or state or weights):
            continue
        layer.requires_grad_(weights)
        h = torch.zeros(2 * directions, 2, projected or 4, requires_grad=state)
        y = layer(x.clone().requires_grad_(inputs), (h, torch.zeros(2 * directions, 2, 4)))[0].sum()
        call["output_mask"] = [inputs, state, False, weights]
        assert FORMULAS["aten::_cudnn_rnn_backward"](call) == total(y.backward)


def test_packed_rows_of_gpus() -> None:
    lengths, layer = torch.tensor([5, 3, 2]), nn.GRU(3, 4)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 3), lengths)
    assert total(lambda: layer(packed)) == 2 * 10 * 3 * 4 * (3 + 4)
    sizes = {"input": packed.data, "batch_sizes": packed.batch_sizes.tolist(), "batch_first": False}
    weights = {"weight": list(layer.parameters()), "weight_stride0": 4, "bidirectional": False}
    assert FORMULAS["aten::_cudnn_rnn"](sizes | weights) == 2 * 10 * 3 * 4 * (3 + 4)
    back = FORMULAS["aten::_cudnn_rnn_backward"](sizes | weights | {"output_mask": [False, False, False, True]})
    assert back == 2 * 10 * 3 * 4 * (3 + 4) + 2 * 7 * 3 * 4 * 4  # of ten steps three are first ones


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_kernels(name: str) -> None:
    sizes = [(2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 7)]  # rows, heads, positions, size
    if name in ("_flash_attention", "_efficient_attention"):
        sizes = [(a, c, b, d) for a, b, c, d in sizes]
    call: dict[str, Any] = dict(zip(("query", "key", "value"), (empty(*shape) for shape in sizes), strict=True))
    scores, values = 2 * 2 * 3 * 4 * 5 * 8, 2 * 2 * 3 * 4 * 5 * 7
    forward = f"aten::{name}" if name.startswith("_scaled") else f"aten::{name}_forward"
    assert FORMULAS[forward](call) == scores + values
    if "math" not in name:  # whose backward pass is made of products
        assert FORMULAS[f"aten::{name}_backward"](call) == 2 * (scores + values)


def test_attention_over_rows_of_unequal_lengths_counts_the_padded_ones() -> None:
    packed = {name: empty(9, 3, 8) for name in ("query", "key", "value")} | {"max_q": 6, "max_k": 6}
    assert FORMULAS["aten::_flash_attention_forward"](packed) == 2 * 2 * 9 * 3 * 6 * 8


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *TRANSPOSED])
def test_convolution_kernels(name: str) -> None:
    back = name in TRANSPOSED
    x, y, weight = empty(2, 4, 9, 9), empty(2, 6, 7, 7), empty(6, 2, 3, 3)
    call = {"self": y, "result": x, "weight": weight} if back else {"self": x, "result": y, "weight": weight}
    assert FORMULAS[f"aten::{name}"](call) == 2 * 2 * 49 * 6 * 2 * 9


def test_products_of_groups_and_lists() -> None:
    grouped = FORMULAS["aten::_grouped_mm"]
    assert grouped({"self": empty(10, 4), "mat2": empty(3, 4, 5)}) == 2 * 10 * 4 * 5  # rows in groups
    assert grouped({"self": empty(3, 6, 4), "mat2": empty(3, 4, 5)}) == 2 * 3 * 6 * 4 * 5
    assert grouped({"self": empty(6, 10), "mat2": empty(10, 5)}) == 2 * 6 * 10 * 5  # what is summed over, in groups
    lists = {"self": [empty(2, 3), empty(4, 5)], "mat2": [empty(3, 4), empty(5, 6)]}
    assert FORMULAS["aten::_foreach_mm"](lists) == 2 * (2 * 3 * 4 + 4 * 5 * 6)
    sampled = {"self": torch.eye(4).to_sparse(), "mat1": empty(4, 7), "mat2": empty(7, 4)}
    assert FORMULAS["aten::sparse_sampled_addmm"](sampled) == 2 * 4 * 7


def test_names_and_arguments_are_torchs() -> None:
    known = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert set(FORMULAS) - known <= {"aten::_scaled_grouped_mm", "aten::_foreach_mm"}
    for name, arguments in FACTORS.items():
        packet = getattr(torch.ops.aten, name)
        schema = getattr(packet, packet.overloads()[0])._schema
        assert {*arguments} <= {argument.name for argument in schema.arguments}


# Golub and Van Loan, 4th edition: sections 3.2 (LU, 2n^3/3), 4.2 (Cholesky, n^3/3), 3.1 (triangular, n^2 a column), 5.2
# (Householder, 2n^2(m - n/3), and as much for the vectors), 8.3 (symmetric, 4n^3/3 and 9n^3), 8.6 (singular values,
# 4mn^2 - 4n^3/3, and 14mn^2 + 8n^3 with thin vectors).
SYMMETRIC, TALL = torch.eye(6), torch.randn(12, 6)
STACK = torch.eye(6).expand(3, 6, 6).contiguous()
FACTORISED: list[tuple[str, Callable[[], Any], int]] = [
    ("cholesky", lambda: torch.linalg.cholesky(SYMMETRIC), 72),
    ("a stack of them", lambda: torch.linalg.cholesky(STACK), 3 * 72),
    ("complex", lambda: torch.linalg.cholesky(SYMMETRIC + 0j), 4 * 72),
    ("cholesky solve", lambda: torch.cholesky_solve(torch.ones(6, 2), SYMMETRIC), 2 * 36 * 2),
    ("cholesky inverse", lambda: torch.cholesky_inverse(SYMMETRIC), 144),
    ("triangular", lambda: torch.linalg.solve_triangular(SYMMETRIC, torch.ones(6, 2), upper=True), 36 * 2),
    (
        "triangular from the right",
        lambda: torch.linalg.solve_triangular(SYMMETRIC, torch.ones(2, 6), upper=True, left=False),
        36 * 2,
    ),
    ("lu", lambda: torch.linalg.lu_factor(SYMMETRIC), 144),
    ("determinant", lambda: torch.linalg.det(SYMMETRIC), 144),
    ("logarithm of it", lambda: torch.linalg.slogdet(SYMMETRIC), 144),
    ("solve", lambda: torch.linalg.solve(SYMMETRIC, torch.ones(6, 2)), 144 + 2 * 36 * 2),
    ("solve for a vector", lambda: torch.linalg.solve(SYMMETRIC, torch.ones(6)), 144 + 2 * 36),
    ("inverse", lambda: torch.linalg.inv(SYMMETRIC), 2 * 216),
    ("qr", lambda: torch.linalg.qr(TALL), 2 * 2 * 36 * 10),
    ("r alone", lambda: torch.linalg.qr(TALL, mode="r"), 2 * 36 * 10),
    ("least squares", lambda: torch.linalg.lstsq(TALL, torch.ones(12, 1)), 2 * 36 * 10 + 4 * 12 * 6 - 36),
    # inside any dispatch mode torch computes the vectors too
    ("eigenvalues", lambda: torch.linalg.eigvalsh(SYMMETRIC), 9 * 216),
    ("eigenvectors", lambda: torch.linalg.eigh(SYMMETRIC), 9 * 216),
    ("unsymmetric", lambda: torch.linalg.eig(SYMMETRIC), 25 * 216),
    ("its eigenvalues", lambda: torch.linalg.eigvals(SYMMETRIC), 25 * 216),
    ("singular values", lambda: torch.linalg.svdvals(TALL), 14 * 12 * 36 + 8 * 216),
    ("nothing but them", lambda: torch.ops.aten._linalg_svd(TALL, compute_uv=False), 4 * 12 * 36 - 288),
    ("nothing but eigenvalues", lambda: torch.ops.aten._linalg_eigh(SYMMETRIC, compute_v=False), 288),
    ("nor vectors here", lambda: torch.ops.aten._linalg_eigvals(SYMMETRIC), 10 * 216),
    ("singular vectors", lambda: torch.linalg.svd(TALL.T, full_matrices=False), 14 * 12 * 36 + 8 * 216),
    ("all of them", lambda: torch.linalg.svd(TALL), 4 * 144 * 6 + 8 * 12 * 36 + 9 * 216),
    ("fourier", lambda: torch.fft.fft(torch.ones(3, 16) + 0j), 5 * 3 * 16 * 4),
    ("two dimensions", lambda: torch.fft.fft2(torch.ones(3, 8, 4) + 0j), 5 * 3 * 32 * 5),
    ("real fourier", lambda: torch.fft.rfft(torch.ones(3, 16)), 5 * 3 * 16 * 4 // 2),
    ("and back", lambda: torch.fft.irfft(torch.ones(3, 9) + 0j, n=16), 5 * 3 * 16 * 4 // 2),
]


@pytest.mark.parametrize(("run", "spent"), [row[1:] for row in FACTORISED], ids=[row[0] for row in FACTORISED])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_factorisations_by_the_textbook(run: Callable[[], Any], spent: int, mode: Any) -> None:
    with mode():
        assert total(run) == spent
