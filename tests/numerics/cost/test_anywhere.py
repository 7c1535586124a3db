"""The counter wherever code may run: products of all kinds, derivatives of derivatives, transforms, modes, errors."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

from probatum.numerics.cost.operations import counted
from probatum.spec import Spec
from probatum.techniques.method.roadblocks import Units, importance, signed_steps

pytestmark = pytest.mark.fast


def total(run: Callable[[], Any]) -> int:
    with counted() as operations:
        run()
    return operations.total


M, K, P, B = 4, 5, 6, 3
A, X, V, W = torch.randn(M, K), torch.randn(K, P), torch.randn(K), torch.randn(M)
AS, XS = torch.randn(B, M, K), torch.randn(B, K, P)
MM, MV, BMM = 2 * M * K * P, 2 * M * K, 2 * B * M * K * P
SPARSE = torch.tensor([[0.0, 1, 0], [2, 0, 3], [0, 0, 0], [0, 4, 5]])  # five numbers
RIGHT = torch.randn(3, 7)
COMPLEX = torch.randn(M, K, dtype=torch.complex64)


def three(y: Tensor) -> Tensor:
    with torch.backends.opt_einsum.flags(enabled=False):  # from left to right
        return torch.einsum("mk,kp,mp->m", A, X, y)


PRODUCTS: list[tuple[str, Callable[[], Any], int]] = [
    ("mm", lambda: A @ X, MM),
    ("mm out", lambda: torch.mm(A, X, out=torch.empty(M, P)), MM),
    ("addmm", lambda: torch.addmm(torch.zeros(P), A, X), MM),
    ("addmm in place", lambda: torch.zeros(M, P).addmm_(A, X), MM),
    ("bmm", lambda: AS @ XS, BMM),
    ("broadcast", lambda: AS @ X, BMM),
    ("baddbmm", lambda: torch.baddbmm(torch.zeros(1), AS, XS), BMM),
    ("baddbmm in place", lambda: torch.zeros(B, M, P).baddbmm_(AS, XS), BMM),
    ("addbmm", lambda: torch.addbmm(torch.zeros(M, P), AS, XS), BMM),
    ("addbmm in place", lambda: torch.zeros(M, P).addbmm_(AS, XS), BMM),
    ("matrix and vector", lambda: A @ V, MV),
    ("vector and matrix", lambda: W @ A, MV),
    ("stack and vector", lambda: AS @ V, B * MV),
    ("addmv", lambda: torch.addmv(torch.zeros(M), A, V), MV),
    ("addmv in place", lambda: torch.zeros(M).addmv_(A, V), MV),
    ("dot", lambda: torch.dot(V, V), 2 * K),
    ("vdot", lambda: torch.vdot(V, V), 2 * K),
    ("inner", lambda: torch.inner(A, A), 2 * M * M * K),
    ("outer is elementwise", lambda: torch.outer(V, W), 0),
    ("einsum", lambda: torch.einsum("bmk,bkp->bmp", AS, XS), BMM),
    ("einsum of three", lambda: three(torch.ones(M, P)), MM + 2 * M * P),
    ("einsum over one", lambda: torch.einsum("mk,k->m", A, V), MV),
    ("tensordot", lambda: torch.tensordot(AS, XS, dims=([0, 2], [0, 1])), 2 * B * M * K * P),
    ("multi_dot", lambda: torch.linalg.multi_dot([A, X, torch.ones(P, 2)]), 2 * K * P * 2 + 2 * M * K * 2),
    ("matrix power", lambda: torch.linalg.matrix_power(torch.eye(M), 4), 2 * 2 * M**3),
    ("complex", lambda: COMPLEX @ COMPLEX.T, 4 * 2 * M * K * M),
    ("complex and conjugate", lambda: COMPLEX @ COMPLEX.mH, 4 * 2 * M * K * M),
    ("complex vector", lambda: torch.vdot(COMPLEX[0], COMPLEX[1]), 4 * 2 * K),
    # real and imaginary part, and their sums: three real convolutions
    ("complex convolution", lambda: F.conv1d(COMPLEX[None], torch.ones(2, M, 3) + 0j), 3 * 2 * 3 * 2 * M * 3),
    ("sparse", lambda: SPARSE.to_sparse() @ RIGHT, 2 * 5 * 7),
    ("sparse rows", lambda: SPARSE.to_sparse_csr() @ RIGHT, 2 * 5 * 7),
    ("torch.sparse.mm", lambda: torch.sparse.mm(SPARSE.to_sparse(), RIGHT), 2 * 5 * 7),
    ("sparse and vector", lambda: SPARSE.to_sparse() @ RIGHT[:, 0], 2 * 5),
    ("dense and sparse", lambda: RIGHT.T @ SPARSE.T.to_sparse(), 2 * 5 * 7),
    # columns of the first with 1, 2 and 2 numbers meet rows of the second with 1, 2 and 2
    ("sparse and sparse", lambda: torch.sparse.mm(SPARSE.to_sparse(), SPARSE.T.to_sparse()), 2 * (1 + 4 + 4)),
    ("integers", lambda: A.long() @ X.long(), MM),
    ("covariance", lambda: torch.cov(A), 2 * M * K * M),
    ("few distances", lambda: torch.cdist(A, A), 2 * M * M * K),
    ("many distances", lambda: torch.cdist(torch.ones(30, K), torch.ones(40, K)), 2 * 30 * 40 * K),
    ("distances in another norm", lambda: torch.cdist(AS, AS, p=1.0), 2 * B * M * M * K),
    ("distances within", lambda: F.pdist(A), 2 * 6 * K),
    (
        "conv_tbc",
        lambda: torch.conv_tbc(torch.ones(9, 2, 3), torch.ones(5, 3, 4), torch.ones(4)),
        2 * 5 * 2 * 5 * 3 * 4,
    ),
    ("embedding", lambda: nn.Embedding(5, 3)(torch.tensor([1, 2])), 0),
    ("embedding bag", lambda: nn.EmbeddingBag(5, 3)(torch.tensor([[1, 2]])), 0),
    ("nested linear", lambda: nn.Linear(K, 2)(torch.nested.nested_tensor([A, A[:2]])), 2 * 6 * K * 2),
    ("jagged linear", lambda: nn.Linear(K, 2)(torch.nested.nested_tensor([A, A[:2]], layout=torch.jagged)), 2 * 6 * 10),
]


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse).*:UserWarning")
@pytest.mark.parametrize(("run", "spent"), [row[1:] for row in PRODUCTS], ids=[row[0] for row in PRODUCTS])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.inference_mode])
def test_products_by_hand(run: Callable[[], Any], spent: int, mode: Any) -> None:
    with mode():
        assert total(run) == spent


BACK: list[tuple[str, Callable[..., Any], tuple[Tensor, ...], int]] = [
    ("mm", lambda a, x: a @ x, (A, X), 2 * MM),
    ("matrix and vector", lambda a, v: a @ v, (A, V), 2 * MV),  # an outer product, and one with the transpose
    ("addmv", lambda a, v: torch.addmv(W, a, v, alpha=3.0), (A, V), 2 * MV),
    ("vector and matrix", lambda w, a: w @ a, (W, A), 2 * MV),
    ("dot", lambda v, w: torch.dot(v, w), (V, V + 1), 0),  # vectors times a number
    ("einsum", lambda a, x: torch.einsum("bmk,bkp->bmp", a, x), (AS, XS), 2 * BMM),
    ("complex", lambda z: (z @ z.T).abs(), (COMPLEX,), 4 * 2 * (2 * M * K * M)),
    ("few distances", lambda a, x: torch.cdist(a, x), (A, A + 1), 2 * 2 * M * M * K),
    ("many distances", lambda a, x: torch.cdist(a, x), (torch.ones(30, K), torch.zeros(40, K)), 2 * 2 * 1200 * K),
    ("dense at sparse", lambda x: torch.sparse.mm(SPARSE.to_sparse(), x), (RIGHT,), 2 * 5 * 7),
    ("conv_tbc", lambda x, w: torch.conv_tbc(x, w, torch.ones(4)), (torch.ones(9, 2, 3), torch.ones(5, 3, 4)), 2400),
]


@pytest.mark.parametrize(("run", "x", "spent"), [row[1:] for row in BACK], ids=[row[0] for row in BACK])
def test_gradients_of_products_by_hand(run: Callable[..., Any], x: tuple[Tensor, ...], spent: int) -> None:
    y = run(*(value.clone().requires_grad_() for value in x)).sum()
    assert total(y.backward) == spent


# One hidden layer: 6 rows, 4 inputs, 5 units, 1 output.
FIRST, SECOND = 2 * 6 * 4 * 5, 2 * 6 * 5 * 1


def network() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 1, bias=False)), torch.randn(6, 4)


def test_gradients_inside_and_of_gradients() -> None:
    net, x = network()
    x.requires_grad_()
    y = net(x).sum()
    assert total(lambda: torch.autograd.grad(y, x, retain_graph=True)) == FIRST + SECOND  # no gradients of weights
    with counted() as operations:
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
    assert operations.total == FIRST + SECOND
    # slope = ((g W2) * tanh') W1: its gradients reach W1, (g W2) and by it W2 (g is constant); tanh' reaches W1 and x again
    assert total(slope.square().sum().backward) == (2 * FIRST) + SECOND + (2 * FIRST)


class Inside(nn.Module):
    """Asks for gradients in its forward pass, as roadblocks and attacks do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x)
        return self.net(x + slope)


def test_gradients_in_a_forward_pass() -> None:
    net, x = network()
    once = 2 * (FIRST + SECOND)
    assert total(lambda: Inside(net)(x).sum().backward()) == once + once + (FIRST + SECOND)


def test_roadblocks_can_be_counted() -> None:
    net, spec = nn.Linear(4, 2), Spec("table", "classes", (4,), 2, numeric=4)
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    one = 2 * 6 * 4 * 2
    frozen = net.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    assert (
        total(lambda: importance(frozen, x, y, Units(spec), spec, generator)) == 3 * one
    )  # forward, back, plain answer
    assert total(lambda: signed_steps(frozen, x, y, 0.1, steps=3)) == 3 * 2 * one


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g[0] @ x.T + x.T @ g[0]


@torch.library.custom_op("probatum_tests::twice", mutates_args=())
def twice(x: Tensor, w: Tensor) -> Tensor:
    return x @ w @ w


def test_functions_and_operations_of_ones_own() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    assert total(lambda: Square.apply(x).sum().backward()) == 3 * 2 * 64
    assert total(lambda: twice(x.detach(), x.detach())) == 2 * 2 * 64


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_run_twice(reentrant: bool) -> None:
    net, x = network()
    x.requires_grad_()
    back = 2 * (FIRST + SECOND)
    found = total(lambda: checkpoint(net, x, use_reentrant=reentrant).sum().backward())
    again = FIRST + SECOND if reentrant else FIRST  # the other kind stops when it has what it needs
    assert found == FIRST + SECOND + again + back


@pytest.mark.parametrize("reentrant", [True, False])
def test_fused_kernels_in_checkpoints(reentrant: bool) -> None:
    q, pairs = torch.randn(2, 3, 4, 8, requires_grad=True), 2 * 2 * 3 * 4 * 4 * 8
    layer, x = nn.LSTM(3, 4), torch.randn(6, 2, 3, requires_grad=True)
    forward, through, onto = 2 * 12 * 7 * 16, 2 * 12 * 4 * 16, 2 * 12 * 3 * 16

    def run(part: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
        return lambda: checkpoint(part, x, use_reentrant=reentrant).sum().backward()

    assert total(run(lambda q: 2 * F.scaled_dot_product_attention(q, q, q), q)) == (2 + 2 + 4) * pairs
    assert total(run(lambda x: 2 * layer(x)[0], x)) == 3 * forward + through * 5 // 6 + onto


@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_of_gradients_of_convolutions(groups: int) -> None:
    layer, x = nn.Conv1d(4, 4, 3, groups=groups), torch.randn(2, 4, 9, requires_grad=True)
    one = 2 * 2 * 7 * 4 * (4 // groups) * 3
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    # the slope, a transposed convolution of 2 y, needs the gradients of y and of the weights; y those of x and of the weights
    assert total(slope.square().sum().backward) == 4 * one


def test_transforms() -> None:
    net, x = network()
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, weights, (x,)).sum()

    forward, back = FIRST + SECOND, FIRST + 2 * SECOND  # x needs no gradient
    assert total(lambda: grad(loss)(weights, x)) == forward + back
    assert total(lambda: vmap(grad(loss), (None, 0))(weights, x)) == forward + back  # a gradient a row
    stacked = {name: value.expand(3, *value.shape).clone() for name, value in weights.items()}
    assert total(lambda: vmap(grad(loss), (0, None))(stacked, x)) == 3 * (forward + back)
    # torch multiplies by the tangent of the weights as well, which is zero
    assert total(lambda: jvp(lambda x: net(x), (x,), (x,))) == 3 * forward
    assert total(lambda: jacrev(net)(x[0])) == (2 * forward) // 6
    assert total(lambda: vmap(lambda a: A @ a)(torch.randn(7, K))) == 7 * MV
    assert total(lambda: vmap(grad(lambda a, v: (a @ v).sum(), argnums=(0, 1)))(AS, torch.randn(B, K))) == B * 3 * MV
    assert total(lambda: vmap(lambda a, x: a @ x)(AS, XS)) == BMM


def test_transformed_convolutions_and_attention() -> None:
    layer, x = nn.Conv1d(4, 8, 3, groups=2), torch.randn(5, 4, 10)
    one = 2 * 8 * 8 * (2 * 3)  # of one row
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    stacked = {name: value.expand(3, *value.shape).clone() for name, value in weights.items()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,)).sum()

    assert total(lambda: vmap(grad(loss), (None, 0))(weights, x[:, None])) == 2 * 5 * one
    assert total(lambda: vmap(grad(loss), (0, None))(stacked, x)) == 2 * 3 * 5 * one
    assert total(lambda: vmap(grad(loss, argnums=(0, 1)))(stacked, torch.randn(3, 5, 4, 10))) == 3 * 3 * 5 * one
    q = torch.randn(2, 3, 4, 8)
    pairs = 2 * 2 * 3 * 4 * 4 * 8

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v).sum()

    assert total(lambda: grad(attend)(q, q, q)) == 4 * pairs
    assert total(lambda: grad(attend, argnums=(0, 1, 2))(q, q, q)) == 6 * pairs


@pytest.mark.filterwarnings("ignore:.*batching rule.*:UserWarning")
def test_attention_row_by_row() -> None:
    q = torch.randn(2, 3, 1, 4, 8)
    assert total(lambda: vmap(F.scaled_dot_product_attention)(q, q, q)) == 2 * 2 * 2 * 3 * 4 * 4 * 8


def test_control_flow() -> None:
    x = torch.randn(M, M)
    assert total(lambda: torch.cond(torch.tensor(True), lambda x: x @ x @ x, lambda x: x @ x, (x,))) == 2 * 2 * M**3


def test_counters_nest_and_can_be_read_meanwhile() -> None:
    with counted() as outer:
        A @ X
        with counted() as inner:
            A @ X
            assert (inner.total, outer.total) == (MM, 2 * MM)
        A @ X
    A @ X
    assert (inner.total, outer.total) == (MM, 3 * MM)
    assert outer.counts == {"aten::mm": 3 * MM}


def flags() -> tuple[Any, ...]:
    backends = torch.backends
    sdp = backends.cuda.math_sdp_enabled(), backends.cuda.flash_sdp_enabled(), backends.cuda.mem_efficient_sdp_enabled()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return (
        sdp,
        backends.mkldnn.enabled,
        backends.mha.get_fastpath_enabled(),
        modes,
        len(_get_current_dispatch_mode_stack()),
    )


def test_an_error_leaves_nothing_behind() -> None:
    before = flags()
    for run in (lambda: A @ A, lambda: nn.LSTM(3, 4)(A), lambda: twice(A, A), lambda: twice(A, V.to_sparse())):
        for mode in (contextlib.nullcontext, torch.inference_mode, lambda: torch.autocast("cpu")):
            with mode(), counted() as operations:
                A @ X
                inside = flags()
                with pytest.raises(RuntimeError):
                    run()
                assert flags() == inside
                A @ X
            assert operations.total == 2 * MM
    with contextlib.suppress(KeyError), counted() as operations:
        A @ X
        raise KeyError
    assert operations.total == MM
    assert flags() == before
    assert total(lambda: A @ X) == MM


class Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_other_modes_outside_and_inside() -> None:
    with Log() as outside, counted() as operations, Log() as inside:
        A @ X
        nn.functional.scaled_dot_product_attention(AS[None], AS[None], AS[None])
    assert operations.total == MM + 2 * 2 * B * M * M * K
    assert outside.seen.count("aten::mm") == inside.seen.count("aten::mm") == 1


class Wrapped(Tensor):
    """Holds another tensor and works on that."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapped:
        found = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=held.device)
        found.held = held
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls(func(*(x.held if isinstance(x, cls) else x for x in args), **(kwargs or {})))


class Below(Tensor):
    """Runs everything below the modes."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs or {})


def test_subclasses_of_tensors() -> None:
    assert total(lambda: Wrapped(A) @ X) == MM
    assert total(lambda: A.as_subclass(Below) @ X) == MM
    assert total(lambda: A.as_subclass(type("Plain", (Tensor,), {})) @ X) == MM
    assert total(lambda: nn.Parameter(A) @ X) == MM


def test_sizes_without_numbers() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def run() -> None:
        nn.Linear(4, 5)(torch.randn(6, 4)).sum().backward()
        nn.LSTM(3, 4)(torch.randn(5, 2, 3))

    spent = 2 * FIRST + 2 * 5 * 2 * 7 * 16
    with FakeTensorMode():
        assert total(run) == spent
    with counted() as operations, FakeTensorMode():
        run()
    assert operations.total == spent
    with torch.device("meta"):
        assert total(lambda: nn.Linear(4, 5)(torch.empty(6, 4))) == FIRST


def test_compiled_functions_count() -> None:
    net, x = network()
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    assert total(lambda: compiled(x)) == FIRST + SECOND


def test_another_thread_counts_for_itself() -> None:
    with counted() as operations:
        worker = threading.Thread(target=lambda: A @ X)
        worker.start()
        worker.join()
    assert operations.total == 0


@pytest.mark.parametrize("optimizer", ["foreach", "fused", "plain"])
def test_updates_are_elementwise(optimizer: str) -> None:
    net, x = network()
    kind = {} if optimizer == "plain" else {optimizer: True}
    steps = torch.optim.AdamW(net.parameters(), **kind), torch.optim.SGD(net.parameters(), momentum=0.9, **kind)
    net(x).sum().backward()
    assert total(lambda: [step.step() for step in steps]) == 0


def test_counts_hang_on_sizes_alone() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    other = nn.LSTM(8, 4)
    found = set()
    for fill in (torch.zeros, torch.ones, torch.randn, lambda *shape: torch.full(shape, float("nan"))):
        x = fill(3, 5, 8)
        found.add(total(lambda x=x: (layer(x).sum() + other(x)[0].sum()).backward()))
    assert len(found) == 1


class Several(nn.Module):
    """Much of what has kernels of its own, or works otherwise under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.bilinear = nn.LSTM(8, 8), nn.GRU(8, 8), nn.Bilinear(8, 8, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.convolution, self.norm = nn.Conv1d(30, 30, 3, padding=1, groups=30), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.lstm(x)[0], self.gru(x)[0], self.bilinear(x, x), self.encoder(x), self.convolution(x)]
        found += [
            torch.cdist(x, x[:1]),
            torch.einsum("tni,tmi->tnm", x, x),
            self.norm(x),
            F.cosine_similarity(x, x + 1),
        ]
        return [
            *found,
            F.scaled_dot_product_attention(x, x, x),
            F.cross_entropy(x[0], torch.zeros(30, dtype=torch.long)),
        ]


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_results_are_those_of_a_usual_run_to_the_bit(mode: Any, autocast: bool, training: bool) -> None:
    torch.manual_seed(0)
    net, x = Several().train(training), torch.randn(30, 30, 8)

    def run() -> list[Tensor]:
        mine, z = copy.deepcopy(net), x.clone().requires_grad_(mode is contextlib.nullcontext)
        torch.manual_seed(1)
        with mode(), torch.autocast("cpu", enabled=autocast):
            found = mine(z)
        if mode is contextlib.nullcontext:
            torch.stack([y.float().square().mean() for y in found]).sum().backward()
            found += [z.grad, *(p.grad for p in mine.parameters())]
        return found

    plain = run()
    with counted(), counted():
        watched = run()
    assert [y.dtype for y in plain] == [y.dtype for y in watched]
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
