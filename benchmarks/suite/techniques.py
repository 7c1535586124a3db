"""Techniques beside independent implementations, and beside what they replace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.spec import Spec
from suite.timing import Benchmark, Call, Figures, Measure, Scale, updating, versus

Pair = tuple[Call, Call]
Weighed = tuple[Call, Call, float]


def weighed(make: Callable[[], Weighed]) -> Benchmark:
    """Like `versus`, of a function that also gives our bytes over theirs: the field ``memory``."""
    about = (make.__doc__ or "").splitlines()[0]

    def prepare(scale: Scale) -> Measure:
        ours, theirs, memory = make()

        def pair() -> Pair:
            return ours, theirs

        pair.__name__, pair.__doc__ = make.__name__, about
        timed = versus(pair).prepare(scale)

        def measure() -> dict[str, Figures]:
            return {name: {**figures, "memory": memory} for name, figures in timed().items()}

        return measure

    return Benchmark((make.__name__,), prepare)


def encouraging_loss_vs_cross_entropy() -> Pair:
    """Forward and backward on 4096 x 100 logits, against `F.cross_entropy`."""
    from probatum.techniques.loss.encouraging_loss import EncouragingLoss

    output, target = torch.randn(4096, 100, requires_grad=True), torch.randint(100, (4096,))
    loss = EncouragingLoss()
    return lambda: loss(output, target).backward(), lambda: F.cross_entropy(output, target).backward()


def _updates(make: Callable[[nn.Module], torch.optim.Optimizer], updates: int, width: int = 256) -> Call:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = make(model)
    x, y = torch.randn(64, width), torch.randint(10, (64,))

    def run() -> None:
        for _ in range(updates):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return run


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def _fused(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), fused=True)


def conda_vs_pytorch_optimizer(updates: int) -> Pair:
    """A hundred updates of a 256-wide MLP, among them one that renews the basis, against pytorch-optimizer's Conda."""
    from pytorch_optimizer import Conda as Theirs

    from probatum.techniques.optimizer.conda import Conda

    return (
        _updates(lambda model: Conda(model.parameters(), gap=updates), updates),
        _updates(lambda model: Theirs(model.parameters(), update_proj_gap=updates), updates),
    )


def _conda(updates: int, width: int) -> tuple[Call, Call, Call]:
    from probatum.techniques.optimizer.conda import Conda

    ours = _updates(lambda model: Conda(model.parameters(), gap=updates), updates, width)
    return ours, _updates(_adamw, updates, width), _updates(_fused, updates, width)


def conda_vs_adamw(updates: int) -> tuple[Call, Call, Call]:
    """A hundred updates of a 256-wide MLP, one renewing the basis, against torch's AdamW; against_fused: fused AdamW."""
    return _conda(updates, 256)


def conda_vs_adamw_512(updates: int) -> tuple[Call, Call, Call]:
    """A hundred updates of a 512-wide MLP, one renewing the basis, against torch's AdamW; against_fused: fused AdamW."""
    return _conda(updates, 512)


def _scale(updates: int, width: int) -> tuple[Call, Call, Call]:
    from probatum.techniques.optimizer.scale_optimizer import ScaleOptimizer

    return (
        _updates(ScaleOptimizer.for_model, updates, width),
        _updates(_adamw, updates, width),
        _updates(_fused, updates, width),
    )


def scale_optimizer_vs_adamw(updates: int) -> tuple[Call, Call, Call]:
    """A hundred updates of a 256-wide MLP, against torch's AdamW; against_fused: fused AdamW."""
    return _scale(updates, 256)


def scale_optimizer_vs_adamw_512(updates: int) -> tuple[Call, Call, Call]:
    """A hundred updates of a 512-wide MLP, against torch's AdamW; against_fused: fused AdamW."""
    return _scale(updates, 512)


def _projection(function: Callable[[Tensor], Tensor], rows: int = 512, width: int = 128) -> Call:
    z = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(rows, width)
    return lambda: (function(z) * weight).sum().backward()


def sparsemax_vs_entmax() -> Pair:
    """Forward and backward on 512 x 128 scores, against entmax's sparsemax."""
    from entmax import sparsemax as theirs

    from probatum.techniques.layer.sparsemax.sparsemax import sparsemax

    return _projection(sparsemax), _projection(lambda z: theirs(z, dim=-1))


def sparsemax_vs_softmax() -> Pair:
    """Forward and backward on 512 x 128 scores, against softmax, which it replaces."""
    from probatum.techniques.layer.sparsemax.sparsemax import sparsemax

    return _projection(sparsemax), _projection(lambda z: z.softmax(-1))


def ibn_vs_batch_norm() -> Pair:
    """Forward and backward on 64 x 32 x 16 x 16 maps, against `nn.BatchNorm2d`."""
    from probatum.techniques.layer.ibn_net import IBN

    x = torch.randn(64, 32, 16, 16, requires_grad=True)
    ours, theirs = IBN(32), nn.BatchNorm2d(32)
    return lambda: ours(x).sum().backward(), lambda: theirs(x).sum().backward()


def _explained() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    return model, torch.randn(32, 64), torch.randint(10, (32,))


def integrated_gradients_vs_captum() -> Pair:
    """Fifty midpoints on 32 rows of an MLP, against captum."""
    from captum.attr import IntegratedGradients

    from probatum.techniques.explain.integrated_gradients import integrated_gradients

    model, x, y = _explained()
    theirs = IntegratedGradients(model)
    return (
        lambda: integrated_gradients(model, x, y, steps=50, tolerance=None),
        lambda: theirs.attribute(x, target=y, n_steps=50, method="riemann_middle", return_convergence_delta=True),
    )


def deeplift_vs_captum() -> Pair:
    """Rescale on 32 rows of an MLP, against captum."""
    from captum.attr import DeepLift

    from probatum.techniques.explain.deeplift.deeplift import deeplift

    model, x, y = _explained()
    theirs = DeepLift(model)
    return lambda: deeplift(model, x, y, rule="rescale"), lambda: theirs.attribute(
        x, target=y, return_convergence_delta=True
    )


def tabm_vs_tabm() -> Pair:
    """A training step of k = 32 members, three layers of 192, on 256 rows, against the authors' package."""
    from tabm import TabM as Theirs

    from probatum.techniques.model.tables.tabm.tabm import build

    spec = Spec("table", "classes", (30,), 2, numeric=30)
    ours = build(spec, k=32, width=192, depth=3)
    theirs = Theirs(
        n_num_features=30,
        d_out=2,
        k=32,
        n_blocks=3,
        d_block=192,
        dropout=0.1,
        arch_type="tabm",
        start_scaling_init="random-signs",
    )
    x, y = torch.randn(256, 30), torch.randint(2, (256,))

    def our_step() -> None:
        ours.objective(x, ours(x), y, F.cross_entropy).backward()

    def their_step() -> None:
        output = theirs(x)
        F.cross_entropy(output.flatten(0, 1), y.repeat_interleave(32)).backward()

    return our_step, their_step


def temperature_vs_netcal() -> Pair:
    """Fitting one temperature to 2000 x 10 logits, against netcal."""
    from netcal.scaling import TemperatureScaling

    from probatum.numerics.calibration.temperature import fit_temperature

    logits = 3 * torch.randn(2000, 10)
    target = (logits / 3).softmax(1).multinomial(1).squeeze(1)
    probabilities, labels = logits.softmax(1).numpy(), target.numpy()
    return lambda: fit_temperature(logits, target), lambda: TemperatureScaling().fit(probabilities, labels)


def _kept(run: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, inputs among them."""
    sizes: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        output = run()
    del output  # until here nothing was freed, so that no address was met twice
    return sum(sizes.values())


def _trained(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> Weighed:
    """Forward and backward of two functions, and what the first keeps in between over what the second does."""
    return lambda: ours().sum().backward(), lambda: theirs().sum().backward(), _kept(ours) / _kept(theirs)


def _heads(length: int, size: int = 32) -> list[Tensor]:
    return [torch.randn(4, 4, length, size, requires_grad=True) for _ in range(3)]


def power_norm_vs_layer_norm() -> Weighed:
    """Forward and backward on 16 x 128 x 256, past the warm-up, against `nn.LayerNorm`; memory: kept for backward."""
    from probatum.techniques.layer.power_norm import PowerNorm

    x = torch.randn(16, 128, 256, requires_grad=True)
    ours, theirs = PowerNorm(256, warmup=1), nn.LayerNorm(256)
    ours(x)
    return _trained(lambda: ours(x), lambda: theirs(x))


def idw_attention_vs_scaled_dot_product() -> Weighed:
    """Causal, forward and backward on 4 x 4 x 128 x 32, against torch's scaled dot product; memory: kept for backward."""
    from probatum.techniques.layer.idw_attention import idw_attention

    q, k, v = _heads(128)
    return _trained(
        lambda: idw_attention(q, k, v, causal=True),
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    )


def ssa_vs_dense_attention_512() -> Weighed:
    """Causal, a quarter of 512 tokens, forward and backward, against torch's fused attention; memory: kept for backward."""
    from probatum.techniques.method.ssa import attend_to, draw_sources

    q, k, v = _heads(512)
    generator = torch.Generator().manual_seed(0)
    return _trained(
        lambda: attend_to(q, k, v, draw_sources(512, 4.0, generator)),
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    )


def ssa_vs_plain_attention_512() -> Weighed:
    """The same against dense attention in plain operations, softmax(q k / sqrt(d)) v; memory: kept for backward."""
    from probatum.techniques.method.ssa import attend_to, draw_sources

    q, k, v = _heads(512)
    generator = torch.Generator().manual_seed(0)
    later = torch.ones(512, 512, dtype=torch.bool).triu(1)

    def dense() -> Tensor:
        scores = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).masked_fill(later, float("-inf"))
        return scores.softmax(dim=-1) @ v

    return _trained(lambda: attend_to(q, k, v, draw_sources(512, 4.0, generator)), dense)


def diffqkv_vs_full_heads() -> Weighed:
    """32 steps of decoding after 1000 tokens, 8 heads of 32, against as many keys and values as queries; memory: cache."""
    from probatum.techniques.layer.diffqkv import Cache, DiffQKVAttention

    x, tokens = torch.randn(1, 1000, 256), torch.randn(32, 1, 1, 256)

    def decoding(query_heads: int, key_heads: int, value_heads: int) -> tuple[Call, int]:
        torch.manual_seed(0)
        layer, cache = DiffQKVAttention(256, query_heads, key_heads, value_heads, key_size=32), Cache()
        with torch.no_grad():
            _, keys, values = layer.parts(x)
            cache.add(keys, values)

        @torch.no_grad()
        def steps() -> None:
            for token in tokens:
                layer.step(token, cache)
            cache.length = 1000

        return steps, cache.bytes

    (ours, small), (theirs, large) = decoding(12, 2, 4), decoding(8, 8, 8)
    return ours, theirs, small / large


def dct_low_rank_vs_adamw() -> Weighed:
    """A hundred updates of a 256-wide MLP at a quarter of the rank, against torch's AdamW; memory: optimizer state."""
    from probatum.techniques.optimizer.dct_low_rank import DctLowRank

    held: list[torch.optim.Optimizer] = []

    def keeping(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Call:
        def made(model: nn.Module) -> torch.optim.Optimizer:
            held.append(make(model))
            return held[-1]

        return _updates(made, 100)

    ours, theirs = keeping(DctLowRank.for_model), keeping(_adamw)
    ours()
    theirs()
    sizes = [sum(_tensor_bytes(state) for state in optimizer.state.values()) for optimizer in held]
    return ours, theirs, sizes[0] / sizes[1]


def _tensor_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(one) for one in value.values())
    return sum(_tensor_bytes(one) for one in value) if isinstance(value, list | tuple) else 0


def dcls_vs_convolution() -> Weighed:
    """Forward and backward on 32 x 16 x 28 x 28, nine taps in a window of 7, against 3 x 3; memory: kept for backward."""
    from probatum.techniques.layer.dcls import apply

    torch.manual_seed(0)
    x = torch.randn(32, 16, 28, 28, requires_grad=True)
    plain, net = nn.Conv2d(16, 16, 3, padding=1), nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Identity())
    apply(net, window=7, generator=torch.Generator().manual_seed(0))
    return _trained(lambda: net(x), lambda: plain(x))


def stepnet_vs_residual_network() -> Weighed:
    """Forward and backward of the image baseline on 64 x 1 x 14 x 14, against it without; memory: kept for backward."""
    from probatum.spec import Spec
    from probatum.techniques.layer.stepnet import apply
    from probatum.train.baselines import build

    spec = Spec("image", "classes", (1, 14, 14), 10)
    torch.manual_seed(0)
    ours, theirs = build(spec), build(spec)
    apply(ours)
    x = torch.randn(64, 1, 14, 14, requires_grad=True)
    return _trained(lambda: ours(x), lambda: theirs(x))


def distance_slopes_vs_scaled_dot_product() -> Weighed:
    """Causal, forward and backward on 4 x 4 x 512 x 32, harmonic slopes, against torch's fused attention; memory: kept."""
    from probatum.techniques.layer.generative_ai_parts.generative_ai_parts import PartsMixing

    q, k, v = _heads(512)
    mixing = PartsMixing(4, "harmonic", None, 16, True, None, 32, torch.Generator())
    return _trained(lambda: mixing(q, k, v), lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))


BENCHMARKS = (
    versus(encouraging_loss_vs_cross_entropy),
    updating(conda_vs_pytorch_optimizer),
    updating(conda_vs_adamw),
    updating(conda_vs_adamw_512),
    updating(scale_optimizer_vs_adamw),
    updating(scale_optimizer_vs_adamw_512),
    versus(sparsemax_vs_entmax),
    versus(sparsemax_vs_softmax),
    versus(ibn_vs_batch_norm),
    versus(integrated_gradients_vs_captum),
    versus(deeplift_vs_captum),
    versus(tabm_vs_tabm),
    versus(temperature_vs_netcal),
    weighed(power_norm_vs_layer_norm),
    weighed(idw_attention_vs_scaled_dot_product),
    weighed(ssa_vs_dense_attention_512),
    weighed(ssa_vs_plain_attention_512),
    weighed(diffqkv_vs_full_heads),
    weighed(dct_low_rank_vs_adamw),
    weighed(dcls_vs_convolution),
    weighed(stepnet_vs_residual_network),
    weighed(distance_slopes_vs_scaled_dot_product),
)
