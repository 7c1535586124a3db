"""Layers of every kind against counts derived by hand: forward, backward to the weights, backward to the inputs too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.numerics.cost.operations import counted

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


def total(run: Callable[[], Any]) -> int:
    with counted() as operations:
        run()
    return operations.total


def loss(found: Any) -> Tensor:
    return (found[0] if isinstance(found, tuple) else found).sum()


class Call(nn.Module):
    """A layer called in a way of one's own."""

    def __init__(self, layer: nn.Module, how: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, *x: Tensor) -> Any:
        return self.how(self.layer, *x)


def self_attention(weights: bool) -> nn.Module:
    return Call(nn.MultiheadAttention(8, 2, batch_first=True), lambda layer, x: layer(x, x, x, need_weights=weights))


# What each costs, by hand. A multiply-add is 2. The three numbers: the forward pass; the backward pass where only the
# weights need a gradient, as in the first layer of a network; what the gradients of the inputs add to that.
#
# A dense layer of n rows, a inputs, b outputs multiplies n*a*b times; its weights' gradient (a x n times n x b) and its
# inputs' (n x b times b x a) as often.
DENSE = [
    ("linear", lambda: nn.Linear(3, 4), [(5, 3)], 2 * 5 * 3 * 4, 2 * 5 * 3 * 4, 2 * 5 * 3 * 4),
    ("linear without bias", lambda: nn.Linear(3, 4, bias=False), [(5, 3)], 120, 120, 120),
    ("linear over positions", lambda: nn.Linear(3, 4), [(2, 6, 3)], 2 * 12 * 12, 2 * 12 * 12, 2 * 12 * 12),
    ("linear of one vector", lambda: nn.Linear(3, 4), [(3,)], 2 * 3 * 4, 2 * 3 * 4, 2 * 3 * 4),
    ("linear of one vector, no bias", lambda: nn.Linear(3, 4, bias=False), [(3,)], 24, 24, 24),
    (
        # each of 5 outputs: x W (7 x 3 times 3 x 4), then its 7 rows by those of z (4 products each); a gradient is one
        # product of three factors summed over one index, the other factor being elementwise: 7*3*4 for each output
        "bilinear",
        lambda: nn.Bilinear(3, 4, 5),
        [(7, 3), (7, 4)],
        5 * (2 * 7 * 3 * 4 + 2 * 7 * 4),
        5 * 2 * 7 * 3 * 4,
        2 * 5 * 2 * 7 * 3 * 4,
    ),
    # first layer 6*4*5 products, second 6*5*2; the first one's input gradient is needed only where the inputs' is
    (
        "two layers",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
        [(6, 4)],
        2 * 6 * (20 + 10),
        2 * 6 * (20 + 10 + 10),
        2 * 6 * 20,
    ),
]

# A convolution multiplies, at each of its output positions and for each output channel, the kernel's taps of the input
# channels in its group. A transposed one does so at each input position, for each input channel, with the output
# channels of its group. Each gradient pairs the same numbers once more.
CONVOLUTIONS = [
    ("conv1d", lambda: nn.Conv1d(3, 4, 5), [(2, 3, 9)], 2 * (2 * 5) * 4 * (3 * 5)),
    ("conv1d without bias", lambda: nn.Conv1d(3, 4, 5, bias=False), [(2, 3, 9)], 2 * (2 * 5) * 4 * (3 * 5)),
    ("conv1d of one example", lambda: nn.Conv1d(3, 4, 5), [(3, 9)], 2 * 5 * 4 * (3 * 5)),
    # 16 wide, kernel 5, padding 2, stride 2: 8 wide
    ("conv2d", lambda: nn.Conv2d(3, 8, 5, stride=2, padding=2), [(2, 3, 16, 16)], 2 * (2 * 8 * 8) * 8 * (3 * 25)),
    # 9 wide, taps 0, 2, 4: 5 wide
    ("dilated", lambda: nn.Conv2d(2, 3, 3, dilation=2), [(4, 2, 9, 9)], 2 * (4 * 25) * 3 * (2 * 9)),
    ("pointwise", lambda: nn.Conv2d(6, 4, 1), [(2, 6, 5, 5)], 2 * (2 * 25) * 4 * 6),
    ("grouped", lambda: nn.Conv2d(6, 9, 3, groups=3), [(2, 6, 5, 5)], 2 * (2 * 9) * 9 * (2 * 9)),
    ("depthwise", lambda: nn.Conv1d(16, 16, 7, padding=3, groups=16), [(2, 16, 20)], 2 * (2 * 20) * 16 * 7),
    ("depthwise with a multiplier", lambda: nn.Conv1d(4, 8, 3, groups=4), [(2, 4, 10)], 2 * (2 * 8) * 8 * 3),
    ("conv3d", lambda: nn.Conv3d(2, 4, 3), [(2, 2, 5, 6, 7)], 2 * (2 * 3 * 4 * 5) * 4 * (2 * 27)),
    ("conv3d in groups", lambda: nn.Conv3d(4, 4, 3, groups=4), [(1, 4, 5, 5, 5)], 2 * 27 * 4 * 27),
    ("circular", lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), [(2, 3, 9)], 2 * (2 * 9) * 4 * 9),
    ("transposed 1d", lambda: nn.ConvTranspose1d(3, 4, 5), [(2, 3, 9)], 2 * (2 * 9) * 3 * (4 * 5)),
    (
        "transposed 2d, stride and output padding",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
        [(2, 4, 5, 5)],
        2 * (2 * 25) * 4 * (6 * 9),
    ),
    ("transposed 2d in groups", lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), [(2, 4, 5, 5)], 2 * 50 * 4 * (3 * 9)),
    ("transposed 3d", lambda: nn.ConvTranspose3d(2, 3, 2), [(1, 2, 3, 3, 3)], 2 * 27 * 2 * (3 * 8)),
    ("transposed, dilated", lambda: nn.ConvTranspose1d(2, 3, 3, dilation=2), [(4, 2, 6)], 2 * (4 * 6) * 2 * (3 * 3)),
]

# Attention over s positions, width e, n rows: four projections of n*s*e*e products; scores and mixing n*s*s*e each, over
# all heads together. Backward: the weights of the projections, the inputs of the last one, and twice the attention; the
# inputs of the first three only where x needs a gradient.
N, S, E, H = 3, 5, 8, 16
PROJECTION, PAIRS = 2 * N * S * E * E, 2 * 2 * N * S * S * E
FEED = 2 * N * S * E * H
QUERIES = 2  # of the cross-attention: n rows of 2 positions that look at 5
CROSS = 2 * N * E * E * (2 * QUERIES + 2 * S) + 2 * 2 * N * QUERIES * S * E
ATTENTION = [
    ("attention with weights", lambda: self_attention(True), [(N, S, E)], 4 * PROJECTION + PAIRS),
    ("attention without", lambda: self_attention(False), [(N, S, E)], 4 * PROJECTION + PAIRS),
    (
        "causal attention",
        lambda: CausalSelfAttention(E, 2),
        [(N, S, E)],
        4 * PROJECTION + PAIRS,
    ),
]
ATTENTION = [(*row, row[3] + PAIRS + PROJECTION, 3 * PROJECTION) for row in ATTENTION]
ATTENTION += [
    (
        "cross-attention",
        lambda: Call(nn.MultiheadAttention(E, 2, batch_first=True), lambda layer, q, k: layer(q, k, k)),
        [(N, QUERIES, E), (N, S, E)],
        CROSS,
        # the weights; the last projection's inputs; attention once more
        CROSS + 2 * N * E * E * QUERIES + 2 * 2 * N * QUERIES * S * E,
        2 * N * E * E * (QUERIES + 2 * S),
    ),
    (
        "encoder layer",
        lambda: nn.TransformerEncoderLayer(E, 2, H, batch_first=True),
        [(N, S, E)],
        4 * PROJECTION + PAIRS + 2 * FEED,
        (4 * PROJECTION + 2 * FEED) + (PROJECTION + 2 * FEED) + 2 * PAIRS,
        3 * PROJECTION,
    ),
    (
        # x looks at itself and at the memory; only the projections of x and of the memory can do without input gradients
        "decoder layer",
        lambda: nn.TransformerDecoderLayer(E, 2, H, batch_first=True),
        [(N, S, E), (N, S, E)],
        8 * PROJECTION + 2 * PAIRS + 2 * FEED,
        (8 * PROJECTION + 2 * FEED) + (3 * PROJECTION + 2 * FEED) + 4 * PAIRS,
        3 * PROJECTION + 2 * PROJECTION,
    ),
]

# A recurrent layer of t steps, n rows, a inputs, b units, g gates: each step multiplies n*a*g*b and n*b*g*b times. The
# weights' gradients take as many; gradients go back through all steps but the first, whose state needs none; inputs'
# gradients take n*t*a*g*b.
T, R, A, U = 6, 2, 3, 4  # steps, rows, inputs, units


def recurrent(gates: int, inputs: int = A, units: int = U) -> tuple[int, int, int]:
    onto, through = 2 * T * R * inputs * gates * units, 2 * T * R * units * gates * units
    return onto + through, onto + through + through * (T - 1) // T, onto


def added(*parts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*parts, strict=True))


def inner(part: tuple[int, int, int]) -> tuple[int, int, int]:
    """A layer above another one: the gradient of its inputs is needed in any case."""
    return part[0], part[1] + part[2], 0


# projections: states of 2 numbers; each step n*(3+2)*16 products and n*4*2 onto the state, whose gradients are one product
# for the weights and one for the cell, at every step
LSTM_PROJECTED = (
    2 * T * R * ((A + 2) * 16 + 8),
    2 * T * R * ((A + 2) * 16 + 8) + 2 * R * ((T - 1) * 2 * 16 + T * 8),
    2 * T * R * A * 16,
)
STEPS = [(T, R, A)]
ROWS_FIRST = [(R, T, A)]
RECURRENT = [
    ("rnn", lambda: nn.RNN(A, U), STEPS, *recurrent(1)),
    ("rnn relu", lambda: nn.RNN(A, U, nonlinearity="relu"), STEPS, *recurrent(1)),
    ("gru", lambda: nn.GRU(A, U), STEPS, *recurrent(3)),
    ("lstm", lambda: nn.LSTM(A, U), STEPS, *recurrent(4)),
    ("lstm without bias", lambda: nn.LSTM(A, U, bias=False), STEPS, *recurrent(4)),
    ("lstm, rows first", lambda: nn.LSTM(A, U, batch_first=True), ROWS_FIRST, *recurrent(4)),
    ("lstm, both directions", lambda: nn.LSTM(A, U, bidirectional=True), STEPS, *added(recurrent(4), recurrent(4))),
    ("gru, both directions", lambda: nn.GRU(A, U, bidirectional=True), STEPS, *added(recurrent(3), recurrent(3))),
    ("lstm, two layers", lambda: nn.LSTM(A, U, 2), STEPS, *added(recurrent(4), inner(recurrent(4, U)))),
    ("gru, two layers", lambda: nn.GRU(A, U, 2), STEPS, *added(recurrent(3), inner(recurrent(3, U)))),
    (
        "lstm, three layers, both directions",
        lambda: nn.LSTM(A, U, 3, bidirectional=True),
        STEPS,
        *added(*[recurrent(4)] * 2, *[inner(recurrent(4, 2 * U))] * 4),
    ),
    ("lstm with projections", lambda: nn.LSTM(A, U, proj_size=2), STEPS, *LSTM_PROJECTED),
    # one step from a state of zeros, which needs no gradient
    ("lstm cell", lambda: nn.LSTMCell(A, U), [(R, A)], 2 * R * 7 * 16, 2 * R * 7 * 16, 2 * R * 3 * 16),
    ("gru cell", lambda: nn.GRUCell(A, U), [(R, A)], 2 * R * 7 * 12, 2 * R * 7 * 12, 2 * R * 3 * 12),
    ("rnn cell", lambda: nn.RNNCell(A, U), [(R, A)], 2 * R * 7 * 4, 2 * R * 7 * 4, 2 * R * 3 * 4),
]

# Elementwise, sums and look-ups.
FREE = [
    ("batch norm", lambda: nn.BatchNorm1d(6), [(5, 6)]),
    ("layer norm", lambda: nn.LayerNorm(6), [(5, 6)]),
    ("group norm", lambda: nn.GroupNorm(2, 6), [(5, 6, 4)]),
    ("activations", lambda: nn.Sequential(nn.GELU(), nn.PReLU(), nn.Softmax(1)), [(5, 6)]),
    ("pooling", lambda: nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)), [(2, 3, 8, 8)]),
    ("dropout and interpolation", lambda: nn.Sequential(nn.Dropout(), nn.Upsample(scale_factor=2)), [(2, 3, 8, 8)]),
    ("cosine similarity", lambda: nn.CosineSimilarity(), [(5, 6), (5, 6)]),
]

LAYERS = [
    *DENSE,
    *((name, make, shapes, spent, spent, spent) for name, make, shapes, spent in CONVOLUTIONS),
    *ATTENTION,
    *RECURRENT,
    *((name, make, shapes, 0, 0, 0) for name, make, shapes in FREE),
]


@pytest.fixture(params=["fused kernels", "plain kernels"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """The count is one of the arithmetic, not of who does it."""
    if request.param == "fused kernels":
        yield
        return
    before = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mkldnn.enabled = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.enabled = before[0]
        torch.backends.mha.set_fastpath_enabled(before[1])


@pytest.mark.parametrize(
    ("make", "shapes", "forward", "weights", "inputs"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS]
)
@pytest.mark.usefixtures("kernels")
def test_layers_by_hand(
    make: Callable[[], nn.Module], shapes: list[tuple[int, ...]], forward: int, weights: int, inputs: int
) -> None:
    layer = make()
    for asked in (False, True):
        x = [torch.randn(shape, requires_grad=asked) for shape in shapes]
        with counted() as operations:
            y = loss(layer(*x))
        assert operations.total == forward
        if y.requires_grad:
            assert total(y.backward) == weights + inputs * asked


@pytest.mark.parametrize(("make", "shapes", "forward"), [row[1:4] for row in LAYERS], ids=[row[0] for row in LAYERS])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_forward_is_the_same_without_gradients_and_in_other_precisions(
    make: Callable[[], nn.Module], shapes: list[tuple[int, ...]], forward: int, mode: Any, dtype: torch.dtype
) -> None:
    layer = make().to(dtype).eval()
    x = [torch.randn(shape, dtype=dtype) for shape in shapes]
    with mode():
        assert total(lambda: layer(*x)) == forward
        with torch.autocast("cpu", enabled=dtype == torch.float32):
            assert total(lambda: layer(*x)) == forward


# Only some gradients: a query's and a key's each take the products for the weights' gradient (once) and their own.
ONE = 2 * 2 * 3 * 4 * 5 * 8  # 2 rows, 3 heads, 4 queries, 5 keys, size 8


@pytest.mark.parametrize(
    ("asked", "spent"), [("qkv", 4), ("q", 2), ("k", 2), ("v", 1), ("qk", 3), ("qv", 3)], ids=lambda value: str(value)
)
@pytest.mark.usefixtures("kernels")
def test_attention_counts_the_gradients_asked_for(asked: str, spent: int) -> None:
    def made() -> dict[str, Tensor]:
        return {name: torch.randn(2, 3, 4 if name == "q" else 5, 8) for name in "qkv"}

    x = {name: value.requires_grad_(name in asked) for name, value in made().items()}
    assert total(lambda: F.scaled_dot_product_attention(**named(x))) == 2 * ONE
    y = F.scaled_dot_product_attention(**named(x)).sum()
    assert total(y.backward) == spent * ONE
    x = {name: value.requires_grad_() for name, value in made().items()}
    y = F.scaled_dot_product_attention(**named(x)).sum()
    assert total(lambda: torch.autograd.grad(y, [x[name] for name in asked])) == spent * ONE


def named(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x[name[0]] for name in ("query", "key", "value")}


@pytest.mark.usefixtures("kernels")
def test_recurrent_layers_count_the_gradients_asked_for() -> None:
    onto, through = 2 * T * R * A * 16, 2 * T * R * U * 16  # of the whole sequence
    back = through * (T - 1) // T
    layer, x = nn.LSTM(A, U), torch.randn(T, R, A, requires_grad=True)
    state = torch.zeros(1, R, U, requires_grad=True)
    for asked, spent in [
        ((x,), onto + back),
        ((layer.weight_ih_l0,), onto + back),
        ((layer.weight_hh_l0,), through + back),
        ((layer.bias_ih_l0,), back),
        ((state,), through),  # now back through the first step too
        ((x, state, *layer.parameters()), 2 * onto + 2 * through),
    ]:
        y = loss(layer(x, (state, torch.zeros(1, R, U))))
        assert total(lambda y=y, asked=asked: torch.autograd.grad(y, asked)) == spent
    layer.requires_grad_(False)
    assert total(loss(layer(x)).backward) == onto + back


def test_attention_forms() -> None:
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 5)
    spent = 2 * (2 * 4 * 6 * 7 * 8) + 2 * (2 * 4 * 6 * 7 * 5)  # values narrower than keys
    mask = torch.ones(6, 7, dtype=torch.bool).tril()
    attend = F.scaled_dot_product_attention
    assert total(lambda: attend(q, k, v)) == spent
    assert total(lambda: attend(q, k, v, attn_mask=mask)) == spent
    assert total(lambda: attend(q, k, v, attn_mask=torch.zeros(6, 7))) == spent
    assert total(lambda: attend(q, k, v, is_causal=True, dropout_p=0.5)) == spent
    assert total(lambda: attend(q[:, 0], k[:, 0], v[:, 0])) == spent // 4  # no heads
    shared = k[:, :2], v[:, :2]  # two heads of keys for four of queries
    assert total(lambda: attend(q, *shared, enable_gqa=True)) == spent
    assert total(lambda: attend(q[..., :5], v, v)) == 2 * 2 * (2 * 4 * 6 * 7 * 5)


LENGTHS = torch.arange(S) >= torch.tensor([[5], [2], [4]])
MASKS = [torch.zeros(N, S, dtype=torch.bool), LENGTHS, LENGTHS & (torch.arange(S) > 2), LENGTHS.flip(1)]


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("mask", [None, *MASKS], ids=["none", "all", "lengths", "others", "left"])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_encoder_counts_padded_positions_whatever_the_mask(mask: Tensor | None, mode: Any) -> None:
    layer = nn.TransformerEncoderLayer(E, 2, H, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 3).eval(), torch.randn(N, S, E)
    with mode():
        assert total(lambda: encoder(x, src_key_padding_mask=mask)) == 3 * (4 * PROJECTION + PAIRS + 2 * FEED)


# The two cases of a study at equal compute: 64 series of 60 steps and 3 channels, two classes.
class Last(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.recurrent, self.out = kind(3, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x.transpose(1, 2))[0][:, -1])


def depthwise(width: int, kernel: int) -> nn.Module:
    mixing = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
    pooled = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 2))
    return nn.Sequential(nn.Conv1d(3, width, 1), nn.ReLU(), mixing, nn.ReLU(), *pooled)


HEAD = 2 * 64 * 256 * 2  # forward; weights; inputs
STEP_LSTM = 2 * 64 * 4 * 256 * (60 * (3 + 256) * 2 + 59 * 256) + 3 * HEAD
STEP_GRU = 2 * 64 * 3 * 256 * (60 * (3 + 256) * 2 + 59 * 256) + 3 * HEAD
STEP_DEPTHWISE = 2 * (2 * 64 * 60 * 3 * 256) + 3 * (2 * 64 * 60 * 256 * 31) + 3 * HEAD
STEP_DENSE = 2 * (2 * 64 * 180 * 256) + 3 * HEAD


@pytest.mark.parametrize(
    ("make", "spent"),
    [
        (lambda: Last(nn.LSTM, 256), STEP_LSTM),
        (lambda: Last(nn.GRU, 256), STEP_GRU),
        (lambda: depthwise(256, 31), STEP_DEPTHWISE),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(180, 256), nn.ReLU(), nn.Linear(256, 2)), STEP_DENSE),
    ],
    ids=["lstm", "gru", "depthwise", "dense"],
)
def test_steps_of_training_stand_in_the_right_ratio(make: Callable[[], nn.Module], spent: int) -> None:
    net, x, y = make(), torch.randn(64, 3, 60), torch.randint(0, 2, (64,))
    optimizer = torch.optim.AdamW(net.parameters(), foreach=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()  # elementwise

    assert total(step) == spent


def test_causal_attention_of_any_length() -> None:
    for width, length in ((64, 16), (16, 64)):
        net, x = CausalSelfAttention(width, 4), torch.randn(2, length, width)
        projections, pairs = 4 * 2 * (2 * length) * width**2, 2 * 2 * 2 * length**2 * width
        # backward: all weights, the inputs of the last projection of four, attention twice
        assert total(lambda net=net, x=x: net(x).sum().backward()) == 2 * projections + projections // 4 + 3 * pairs


@pytest.mark.parametrize(
    "row", [row for row in LAYERS if row[0].split(",")[0] in ("linear", "conv1d", "conv2d", "dilated", "conv3d")]
)
def test_torchs_own_counter_agrees_where_it_is_right(row: Any) -> None:
    layer, x = row[1](), [torch.randn(shape, requires_grad=True) for shape in row[2]]

    def run() -> None:
        layer(*x).sum().backward()

    with FlopCounterMode(display=False) as witness:
        run()
    assert total(run) == witness.get_total_flops() == sum(row[3:])


class Halves(Tensor):
    """Rows held in two parts, so that what is asked of it is run on either."""

    parts: tuple[Tensor, Tensor]

    @staticmethod
    def __new__(cls, first: Tensor, second: Tensor) -> Halves:
        made = Tensor._make_wrapper_subclass(cls, (len(first) + len(second), *first.shape[1:]), dtype=first.dtype)
        made.parts = first, second
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = [func(*(a.parts[k] if isinstance(a, cls) else a for a in args), **(kwargs or {})) for k in (0, 1)]
        return torch.cat(found)


def test_what_a_subclass_really_runs_is_counted() -> None:
    assert total(lambda: torch.mm(Halves(torch.randn(3, 4), torch.randn(9, 4)), torch.randn(4, 5))) == 2 * 12 * 4 * 5
    padded = Halves(torch.randn(3, 4), torch.randn(3, 4))
    padded.parts = torch.randn(3, 4), torch.randn(30, 4)  # shows 6 rows and computes 33
    assert total(lambda: torch.mm(padded, torch.randn(4, 5))) == 2 * 33 * 4 * 5
