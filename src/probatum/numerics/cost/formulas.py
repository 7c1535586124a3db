"""What one operation of torch costs in floating-point operations, by its name and the sizes of what it is given.

Every formula takes a `Call`: the operation's arguments under the names of its schema, with its `result`. Sizes alone
are read, never values, so that a count does not depend on a batch's contents. A multiply-add is two operations, one of
complex numbers eight (four products, four sums).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probatum.numerics.cost import factorisations

Call = dict[str, Any]
Formula = Callable[[Call], int]

FACTORS = {
    "_addmm_activation": ("mat1", "mat2"),
    "_int_mm": ("self", "mat2"),
    "_scaled_mm": ("self", "mat2"),
    "_sparse_addmm": ("mat1", "mat2"),
    "_sparse_mm_reduce_impl": ("self", "other"),
    "addbmm": ("batch1", "batch2"),
    "addbmm_": ("batch1", "batch2"),
    "addmm": ("mat1", "mat2"),
    "addmm_": ("mat1", "mat2"),
    "addmv": ("mat", "vec"),
    "addmv_": ("mat", "vec"),
    "baddbmm": ("batch1", "batch2"),
    "baddbmm_": ("batch1", "batch2"),
    "bmm": ("self", "mat2"),
    "dot": ("self", "tensor"),
    "hspmm": ("mat1", "mat2"),
    "mm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "sspaddmm": ("mat1", "mat2"),
    "vdot": ("self", "other"),
}
"""Operations that are one product of two matrices, stacks of them or vectors, and the names of the two."""

CONVOLUTIONS = (
    "_conv_depthwise2d", "_convolution", "_slow_conv2d_forward", "conv_depthwise3d", "convolution",
    "convolution_overrideable", "cudnn_convolution", "cudnn_convolution_add_relu", "cudnn_convolution_relu",
    "miopen_convolution", "miopen_convolution_add_relu", "miopen_convolution_relu", "miopen_depthwise_convolution",
    "mkldnn_convolution", "slow_conv3d_forward", "slow_conv_dilated2d", "slow_conv_dilated3d",
)  # fmt: skip
TRANSPOSED = (
    "cudnn_convolution_transpose", "miopen_convolution_transpose", "slow_conv_transpose2d", "slow_conv_transpose3d",
)  # fmt: skip
ATTENTION = (
    "_scaled_dot_product_attention_math_for_mps", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable",
    "_cudnn_attention", "_efficient_attention", "_flash_attention",
)  # fmt: skip
POSITIONS_FIRST = ("_efficient_attention", "_flash_attention")
"""Take (batch, positions, heads, size), or (positions of all rows, heads, size), where others have heads before positions."""


SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def sparse(x: Tensor) -> bool:
    return x.layout in SPARSE


def size(x: Any) -> int:
    """Numbers that a tensor holds; of a sparse one, those that are stored."""
    if not sparse(x):
        return x.numel()
    return x._values().numel() if x.layout == torch.sparse_coo else x.values().numel()


def complexity(x: Tensor) -> int:
    """Products of real numbers in one product of this tensor's: 4 for complex numbers, else 1."""
    return 4 if x.is_complex() else 1


def product(a: Tensor, b: Tensor) -> int:
    """Of matrices (..., m, k) and (..., k, n), or vectors in their place; sparse ones by the numbers they store."""
    if sparse(a) and sparse(b):
        left, right = a.to_sparse_coo().coalesce(), b.to_sparse_coo().coalesce()
        counts = [torch.bincount(i, minlength=a.shape[1]) for i in (left.indices()[1], right.indices()[0])]
        return 2 * complexity(a) * int((counts[0] * counts[1]).sum())
    if sparse(b):
        return 2 * complexity(a) * math.prod(a.shape[:-1]) * size(b)
    return 2 * complexity(a) * size(a) * (b.shape[-1] if b.dim() > 1 else 1)


def product_of(first: str, second: str) -> Formula:
    return lambda call: product(call[first], call[second])


def grouped_product(call: Call) -> int:
    """Products of groups of rows or columns, cut by offsets: each row meets the matrix of its group alone."""
    a, b = call["self"], call["mat2"]
    stack = a.shape[0] if a.dim() == b.dim() == 3 else 1
    return 2 * stack * a.shape[-2] * a.shape[-1] * b.shape[-1]


def products_of_lists(call: Call) -> int:
    return sum(product(a, b) for a, b in zip(call["self"], call["mat2"], strict=True))


def sampled_product(call: Call) -> int:
    """Of two dense matrices, where a sparse one stores numbers only."""
    return 2 * complexity(call["mat1"]) * size(call["self"]) * call["mat1"].shape[-1]


def outer_product(call: Call) -> int:
    """Of the backward pass of matrix @ vector, which torch writes as an elementwise multiplication; others count 0.

    Told by the node of autograd that runs it and by its shapes, (..., n, 1) and (..., k).
    """
    a, b, node = call["self"], call["other"], torch._C._current_autograd_node()
    if node is None or node.name() not in ("MvBackward0", "AddmvBackward0") or not isinstance(b, Tensor):
        return 0
    column = a.dim() > 1 and a.shape[-1] == 1 and (b.dim() < a.dim() or b.shape[-2] == 1)
    return 2 * complexity(a) * call["result"].numel() if column else 0


def linear(call: Call) -> int:
    """Seen whole where autograd is off, and of nested tensors; elsewhere torch makes products of it."""
    x = call["input"] if "input" in call else call["self"]
    return 2 * complexity(call["weight"]) * size(x) * call["weight"].shape[0]


def linear_backward(call: Call) -> int:
    return sum(call["output_mask"][:2]) * linear(call)


def trilinear(call: Call) -> int:
    """Of bilinear layers and their gradients: two products, one after another, for each place along one dimension.

    Where nothing is to be summed a product is elementwise and counts 0, as in torch's own `sumproduct_pair`.
    """
    factors = [call["i1"], call["i2"], call["i3"]]
    absent = [set(call["expand1"]), set(call["expand2"]), set(call["expand3"])]
    unrolled, summed = call.get("unroll_dim", 1), set(call["sumdim"])
    present = [
        [d for d in range(x.dim() + len(gone)) if d not in gone] for x, gone in zip(factors, absent, strict=True)
    ]
    length = {d: n for x, dims in zip(factors, present, strict=True) for d, n in zip(dims, x.shape, strict=True)}
    first = {*present[0], *present[1]} - {unrolled}
    early = (summed & absent[2]) - {unrolled}
    second = (first - early) | set(present[2]) - {unrolled}
    late = summed - absent[2] - {unrolled}
    spent = (math.prod(length[d] for d in dims) for dims, over in ((first, early), (second, late)) if over)
    return 2 * complexity(factors[0]) * length[unrolled] * sum(spent)


def convolution(call: Call, transposed: bool = False) -> int:
    """Every kernel tap at every output position, padding included; transposed ones at every input position."""
    x = call["input"] if "input" in call else call["self"]
    places = x if call.get("transposed", transposed) else call["result"]
    weight = call["weight"]  # holds the inputs of one group for each output, so that groups need no care
    return 2 * complexity(weight) * x.shape[0] * math.prod(places.shape[2:]) * weight.numel()


def convolution_transposed(call: Call) -> int:
    return convolution(call, transposed=True)


def convolution_backward(call: Call) -> int:
    """The forward pass once for each gradient asked for, of the input and of the weights; that of the bias is a sum."""
    return sum(call["output_mask"][:2]) * convolution(call | {"result": call["grad_output"]})


def convolution_tbc(call: Call) -> int:
    positions, rows = call["result"].shape[:2]
    return 2 * positions * rows * call["weight"].numel()


def attention_parts(call: Call, positions_first: bool) -> tuple[int, int]:
    """(queries x keys, weights x values), whatever the mask hides."""
    query, key, value = call["query"], call["key"], call["value"]
    keys = key.shape[1] if positions_first else key.shape[-2]
    if (positions_first and query.dim() == 3) or call.get("cum_seq_k", call.get("cu_seqlens_k")) is not None:
        keys = next(call[name] for name in ("max_k", "max_seqlen_k") if name in call)  # rows of unequal lengths, padded
    pairs = query.numel() // max(1, query.shape[-1]) * int(keys)
    return 2 * pairs * query.shape[-1], 2 * pairs * value.shape[-1]


def attention(positions_first: bool) -> Formula:
    return lambda call: sum(attention_parts(call, positions_first))


def attention_backward(name: str, positions_first: bool) -> Formula:
    """What is needed for the gradients asked for; a kernel that computes the weights again is not charged for that."""

    def formula(call: Call) -> int:
        scores, values = attention_parts(call, positions_first)
        query, key, value = wanted(name, 3)
        return values * (value + (query or key)) + scores * (query + key)

    return formula


def multihead(query_tokens: int, key_tokens: int, pairs: int, width: int) -> int:
    """Projections of queries, keys, values and results, and attention over so many pairs of positions in all heads."""
    return 2 * width * width * (2 * query_tokens + 2 * key_tokens) + 4 * pairs * width


def tokens_and_pairs(x: Tensor, padded: tuple[int, int] | None) -> tuple[int, int]:
    """Positions of all rows, and pairs of them within a row; of nested tensors by the padded size where it is known."""
    if x.is_nested and padded is None:
        lengths = [int(length) for length in x._nested_tensor_size()[:, 0]]
        return sum(lengths), sum(length * length for length in lengths)
    rows, length = padded or x.shape[:2]
    return rows * length, rows * length * length


def native_attention(call: Call) -> int:
    """The fused `nn.MultiheadAttention` of inference."""
    width = call["embed_dim"]
    if call["query"].is_nested:
        tokens, pairs = tokens_and_pairs(call["query"], None)
        return multihead(tokens, tokens, pairs, width)
    (rows, queries), keys = call["query"].shape[:2], call["key"].shape[1]
    return multihead(rows * queries, rows * keys, rows * queries * keys, width)


def encoder_layer(call: Call) -> int:
    """The fused `nn.TransformerEncoderLayer` of inference."""
    tokens, pairs = tokens_and_pairs(call["src"], call.get("padded"))
    feed = call["ffn_weight_1"].numel() + call["ffn_weight_2"].numel()
    return multihead(tokens, tokens, pairs, call["embed_dim"]) + 2 * tokens * feed


def onednn_rnn(call: Call) -> int:
    """One layer of a recurrent network in one direction, on CPUs; the gates' own arithmetic is elementwise."""
    steps, rows = call["input"].shape[:2]
    return 2 * steps * rows * (call["weight0"].numel() + call["weight1"].numel())


def onednn_rnn_backward(call: Call) -> int:
    """As of the same layer step by step: the first step's state needs a gradient only if it was asked for."""
    steps, rows = call["input"].shape[:2]
    onto, through = 2 * rows * call["weight1"].numel(), 2 * rows * call["weight2"].numel()
    x, w_input, w_state, _, _, state, _ = wanted("mkldnn_rnn_layer_backward", 7)
    return steps * onto * (x + w_input) + through * (steps * w_state + steps - (not state))


def fused_rnn(call: Call) -> int:
    """All layers and directions at once, on GPUs; packed rows by the steps they have."""
    return 2 * rnn_rows(call)[0] * sum(w.numel() for w in call["weight"] if w.dim() > 1)


def fused_rnn_backward(call: Call) -> int:
    steps, first = rnn_rows(call)
    x, state, _, weights = call["output_mask"]
    each = call["weight_stride0"]
    groups = [call["weight"][i : i + each] for i in range(0, len(call["weight"]), each)]
    total = fused_rnn(call) if weights else 0
    for number, group in enumerate(groups):
        onto, through, *project = (w.numel() for w in group if w.dim() > 1)
        inner = number >= (2 if call["bidirectional"] else 1)  # their inputs are another layer's outputs
        total += 2 * steps * (onto * (inner or x) + sum(project)) + 2 * through * (steps - first * (not state))
    return total


def rnn_rows(call: Call) -> tuple[int, int]:
    """(steps of all rows, rows at the first step)."""
    if len(call["batch_sizes"]):
        return sum(call["batch_sizes"]), call["batch_sizes"][0]
    steps, rows = call["input"].shape[:2]
    return steps * rows, steps if call["batch_first"] else rows


def distances(call: Call) -> int:
    """Between all rows of two matrices: a multiply-add a coordinate, whichever way and norm."""
    return 2 * call["result"].numel() * call["x1"].shape[-1]


def distances_backward(call: Call) -> int:
    return 2 * call["grad"].numel() * call["x1"].shape[-1]


def distances_within(call: Call) -> int:
    return 2 * call["result"].numel() * call["self"].shape[-1]


def distances_within_backward(call: Call) -> int:
    return 2 * call["grad"].numel() * call["self"].shape[-1]


def wanted(name: str, count: int) -> list[bool]:
    """Which of the first inputs of a fused operation the backward pass now running needs gradients of; all if unknown.

    The operation itself gives all of them and does not say; autograd's graph does.
    """
    node = torch._C._current_autograd_node()
    if node is None or node.name().rstrip("0123456789").lower() != name.replace("_", ""):
        return [True] * count
    return [edge is not None and _runs(edge) for edge, _ in node.next_functions[:count]]


def _runs(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf that `autograd.grad` was asked for
        return True


def _formulas() -> dict[str, Formula]:
    found: dict[str, Formula] = {name: product_of(*factors) for name, factors in FACTORS.items()}
    found |= {"_grouped_mm": grouped_product, "_scaled_grouped_mm": grouped_product, "_foreach_mm": products_of_lists}
    found |= {"_sparse_sparse_matmul": product_of("self", "other"), "sparse_sampled_addmm": sampled_product}
    found |= {"mul": outer_product, "linear": linear, "linear_backward": linear_backward, "_trilinear": trilinear}
    found |= {"mkldnn_linear": linear, "mkldnn_linear_backward": linear_backward}
    found |= dict.fromkeys(CONVOLUTIONS, convolution) | dict.fromkeys(TRANSPOSED, convolution_transposed)
    found |= dict.fromkeys(("convolution_backward", "convolution_backward_overrideable"), convolution_backward)
    found |= {"conv_tbc": convolution_tbc}
    for name in ATTENTION:
        first = name in POSITIONS_FIRST
        found[name if name.startswith("_scaled") else name + "_forward"] = attention(first)
        if "math" not in name:
            found[name + "_backward"] = attention_backward(name + "_backward", first)
    found |= {"_native_multi_head_attention": native_attention, "_transformer_encoder_layer_fwd": encoder_layer}
    found |= {"mkldnn_rnn_layer": onednn_rnn, "mkldnn_rnn_layer_backward": onednn_rnn_backward}
    found |= {"_cudnn_rnn": fused_rnn, "_cudnn_rnn_backward": fused_rnn_backward}
    found |= {"miopen_rnn": fused_rnn, "miopen_rnn_backward": fused_rnn_backward}
    found |= {"_cdist_forward": distances, "_euclidean_dist": distances, "_cdist_backward": distances_backward}
    found |= {"_pdist_forward": distances_within, "_pdist_backward": distances_within_backward}
    return found | factorisations.FORMULAS


FORMULAS = {f"aten::{name}": formula for name, formula in _formulas().items()}
"""By the name of the operation; what is not named counts nothing."""
