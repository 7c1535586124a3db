"""Difference-from-reference propagation with separate positive and negative streams, over a traced network.

Every activation carries its value, its value at the reference, and a positive and a negative part of their difference.
Going forward the parts follow the layers; going backward so do one multiplier for each part (Shrikumar et al. 2017,
arXiv:1704.02685, sections 3.3 to 3.5). The graph comes from `torch.fx`, so a module that runs twice is two nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

SMALL = 1e-7
"""Differences below this are taken as none; the multiplier is then the derivative."""

ELEMENTWISE = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.hardtanh, F.hardswish,
    torch.relu, torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, "relu", "tanh", "sigmoid",
}  # fmt: skip
STRUCTURAL = {
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.ZeroPad1d, nn.ZeroPad2d,
    F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    torch.flatten, torch.cat, torch.mean, torch.sum, torch.squeeze, torch.unsqueeze, torch.transpose, torch.permute,
    torch.reshape, torch.add, operator.add, operator.iadd, operator.getitem,
    "view", "reshape", "flatten", "mean", "sum", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "add",
}  # fmt: skip
"""Linear with weights that are not negative, besides constants."""
MAXIMA = {nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d, "amax", torch.amax}
SUMS = {torch.add, "add"}
DIFFERENCES = {operator.sub, operator.isub, torch.sub, "sub"}
DROPOUTS = {F.dropout: True, F.dropout1d: True, F.dropout2d: True, F.dropout3d: True, F.alpha_dropout: False}
"""Dropout as a function, and whether it drops where it is not told `training`; where it does not it is left out."""
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
SOFTMAX = {nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, torch.softmax, "softmax", "log_softmax"}
SHAPES = {"size", "dim", getattr, "long", "float"}


@dataclass(frozen=True)
class Activation:
    """Values at the inputs and at the reference, and the parts of the difference (all of one shape)."""

    value: Tensor
    reference: Tensor
    plus: Tensor
    minus: Tensor

    @property
    def delta(self) -> Tensor:
        """value - reference."""
        return self.value - self.reference


Backward = Callable[[Tensor, Tensor], list[tuple[Tensor, Tensor]]]
"""Multipliers of the output's parts -> multipliers of the parts of every argument."""
UseReveal = Callable[[Tensor], bool]
"""Whether a nonlinearity with this input takes the RevealCancel rule instead of Rescale."""


IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, torch.relu_: torch.relu,
    **{f"{name}_": name for name in ("relu", "tanh", "sigmoid", "add", "sub", "mul", "neg", "div")},
}  # fmt: skip
"""Operations that change their first argument, and those that leave it as it is."""


def trace(model: nn.Module) -> fx.GraphModule:
    """The model, which is changed, as a graph without operations in place; ValueError where control flow depends on values."""
    try:
        return _functional(fx.symbolic_trace(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as problem:
        name = type(model).__name__
        raise ValueError(
            f"{name} cannot be traced ({problem}); take control flow on values out of forward"
        ) from problem


def _functional(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with every operation in place made anew, and its result where the changed tensor is used afterwards."""
    modules, seen = dict(graph.named_modules()), set()
    for node in list(graph.graph.nodes):
        seen.add(node)
        if node.target in DROPOUTS and node.args and not _argument(node, 2, "training", DROPOUTS[node.target]):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            continue
        kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        inside = node.op == "call_module" and bool(getattr(modules[node.target], "inplace", False))
        if not (inside or node.kwargs.get("inplace") or (node.op != "output" and node.target in IN_PLACE)):
            node.kwargs = kwargs
            continue
        node.target, node.kwargs = IN_PLACE.get(node.target, node.target), kwargs
        changed: Any = node.args[0]
        for user in list(changed.users) if isinstance(changed, fx.Node) else ():
            if user not in seen:
                user.replace_input_with(changed, node)
    for module in modules.values():
        if getattr(module, "inplace", False):
            module.inplace = False
    return graph


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def multipliers(
    graph: fx.GraphModule, inputs: Tensor, reference: Tensor, seed: Callable[[Tensor], Tensor], reveal: UseReveal
) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions of every input to an output.

    Args:
        graph: from `trace`, in evaluation mode, with one input and one output (n, outputs); a softmax at its end is left out.
        inputs: (n, ...), of the graph's dtype.
        reference: (n, ...).
        seed: output values (n, outputs) -> weights of the outputs (n, outputs) in what is explained.
        reveal: which nonlinearities take RevealCancel.

    Returns:
        contributions (n, ...), the explained output's value at the inputs (n,), and at the reference (n,).

    Raises:
        TypeError: an operation without a rule, with the list of those that have one.
    """
    known: dict[fx.Node, Any] = {}
    back: dict[fx.Node, tuple[list[fx.Node], Backward]] = {}
    modules = dict(graph.named_modules())
    start: fx.Node | None = None
    end: fx.Node | None = None
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            if start is not None:
                raise TypeError(f"the model takes several inputs ({start.name}, {node.name}); wrap it to take one")
            start, delta = node, inputs - reference
            known[node] = Activation(inputs, reference, delta.relu(), -(-delta).relu())
        elif node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(graph)
        elif node.op == "output":
            end = node.args[0]
        else:
            key = type(modules[node.target]) if node.op == "call_module" else node.target
            if key in SOFTMAX and all(user.op == "output" for user in node.users):
                known[node] = known[node.all_input_nodes[0]]
                back[node] = ([node.all_input_nodes[0]], lambda p, m: [(p, m)])
                continue
            known[node], back[node] = _step(node, key, modules, known, reveal)
    if start is None or not isinstance(end, fx.Node) or not isinstance(known[end], Activation):
        raise TypeError("the model must return one tensor that depends on its input")
    found: dict[fx.Node, tuple[Tensor, Tensor]] = {end: (seed(known[end].value),) * 2}
    weights = found[end][0]
    for node in reversed(list(graph.graph.nodes)):
        if node in back and node in found:
            arguments, backward = back[node]
            for argument, (plus, minus) in zip(arguments, backward(*found[node]), strict=True):
                before = found.get(argument)
                found[argument] = (plus, minus) if before is None else (before[0] + plus, before[1] + minus)
    first = known[start]
    plus, minus = found.get(start, (torch.zeros_like(inputs), torch.zeros_like(inputs)))
    values = plus * first.plus + minus * first.minus
    return values, (weights * known[end].value).sum(dim=1), (weights * known[end].reference).sum(dim=1)


def _step(
    node: fx.Node, key: Any, modules: dict[str, nn.Module], known: dict[fx.Node, Any], reveal: UseReveal
) -> tuple[Any, tuple[list[fx.Node], Backward]]:
    """The node's activation (or constant), its arguments that are activations, and the way back to them."""
    arguments = [n for n in node.all_input_nodes if isinstance(known[n], Activation)]
    acts = [known[n] for n in arguments]

    def apply(*tensors: Any) -> Any:
        given = dict(zip(arguments, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: given.get(n, known[n]))
        if node.op == "call_module":
            return modules[node.target](*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        return getattr(args[0], node.target)(*args[1:], **kwargs)

    if not acts:
        return apply(), ([], lambda p, m: [])
    module = modules[node.target] if node.op == "call_module" else None
    alpha = node.kwargs.get("alpha", 1)
    falls = isinstance(alpha, int | float) and alpha < 0  # a + (-1) b is a - b, whose parts swap
    if isinstance(module, LINEAR):
        found = _linear(module, acts[0])
    elif isinstance(module, NORMS):
        found = _scaled(apply, acts[0], _norm_scale(module, acts[0].value))
    elif isinstance(module, nn.Embedding):
        found = _lookup(apply, acts[0])
    elif key in ELEMENTWISE:
        use = reveal(acts[0].value)
        found = _reveal_cancel(apply, acts[0]) if use else _scaled(apply, acts[0], _slope(apply, acts[0]))
    elif key in MAXIMA:
        found = _maximum(node, key, module, apply, acts[0])
    elif key in SHAPES:
        value = apply(acts[0].value)
        if not isinstance(value, Tensor):
            return value, ([], lambda p, m: [])
        found = acts[0], lambda p, m: [(p, m)]
    elif key in (DIFFERENCES if falls else STRUCTURAL):
        found = _structural(apply, acts)
    elif key in (SUMS if falls else DIFFERENCES):
        found = _difference(node, apply, acts, arguments)
    elif (
        key in (operator.mul, operator.truediv, operator.neg, torch.mul, torch.neg, "mul", "neg", "div")
        and sum(argument is arguments[0] for argument in node.args) == 1  # x times itself is not linear
        and (key not in (operator.truediv, "div") or node.args[0] is arguments[0])  # nor is a constant over x
    ):
        zero = torch.zeros_like(acts[0].value)
        found = _scaled(apply, acts[0], apply(zero + 1) - apply(zero))
    else:
        name = key.__name__ if callable(key) else key
        rules = sorted({k if isinstance(k, str) else k.__name__ for k in ELEMENTWISE | STRUCTURAL | MAXIMA})
        raise TypeError(
            f"{name} (node {node.name!r}) has no rule; there are rules for Linear, Conv, BatchNorm, {', '.join(rules)}"
        )
    activation, backward = found
    return activation, (arguments, backward)


def _vjp(function: Callable[..., Tensor], points: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [point.detach().requires_grad_() for point in points]
        gradients = torch.autograd.grad(function(*leaves), leaves, cotangent, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(points, gradients, strict=True)]


def _linear(module: Any, act: Activation) -> tuple[Activation, Backward]:
    """Linear rule: terms w * delta go to the positive part where they are positive, to the negative part otherwise."""

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight) if isinstance(module, nn.Linear) else module._conv_forward(x, weight, None)

    up, down = module.weight.clamp(min=0), module.weight.clamp(max=0)
    delta = act.delta
    high, low = delta.relu(), -(-delta).relu()
    plus, minus = run(high, up) + run(low, down), run(low, up) + run(high, down)

    def backward(p: Tensor, m: Tensor) -> list[tuple[Tensor, Tensor]]:
        def pull(weight: Tensor, cotangent: Tensor) -> Tensor:
            return _vjp(lambda x: run(x, weight), [delta], cotangent)[0]

        rising = pull(up, p) + pull(down, m)
        falling = pull(up, m) + pull(down, p)
        both = torch.where(delta > 0, rising, torch.where(delta < 0, falling, (rising + falling) / 2))
        return [(both, both)]

    return Activation(module(act.value), module(act.reference), plus, minus), backward


def _scaled(apply: Callable[..., Tensor], act: Activation, scale: Tensor) -> tuple[Activation, Backward]:
    """Element by element times `scale`, which may broadcast; a negative factor swaps the parts."""
    up, down = scale.clamp(min=0), scale.clamp(max=0)
    plus, minus = up * act.plus + down * act.minus, up * act.minus + down * act.plus
    after = Activation(apply(act.value), apply(act.reference), plus, minus)
    shape = act.value.shape
    return after, lambda p, m: [((up * p + down * m).sum_to_size(shape), (up * m + down * p).sum_to_size(shape))]


def _slope(apply: Callable[..., Tensor], act: Activation) -> Tensor:
    """Rescale: difference of outputs over difference of inputs, the derivative where there is none."""
    delta = act.delta
    still = delta.abs() < SMALL
    rise = (apply(act.value) - apply(act.reference)) / torch.where(still, 1.0, delta)
    derivative = _vjp(apply, [act.value], torch.ones_like(delta))[0]
    return torch.where(still, derivative, rise)


def _reveal_cancel(apply: Callable[..., Tensor], act: Activation) -> tuple[Activation, Backward]:
    """RevealCancel: what each part adds, averaged over adding it before and after the other; its limit where a part is 0."""
    x0, up, down = act.reference, act.plus, act.minus
    base, with_up, with_down, whole = apply(x0), apply(x0 + up), apply(x0 + down), apply(act.value)
    plus = ((with_up - base) + (whole - with_down)) / 2
    minus = ((with_down - base) + (whole - with_up)) / 2
    ones = torch.ones_like(x0)
    first, after_up, after_down = (_vjp(apply, [point], ones)[0] for point in (x0, x0 + up, x0 + down))
    no_up, no_down = up.abs() < SMALL, down.abs() < SMALL  # there, what a small part would add per unit
    gain = torch.where(no_up, (first + after_down) / 2, plus / torch.where(no_up, 1.0, up))
    loss = torch.where(no_down, (first + after_up) / 2, minus / torch.where(no_down, 1.0, down))
    return Activation(whole, base, plus, minus), lambda p, m: [(gain * p, loss * m)]


def _structural(apply: Callable[..., Tensor], acts: list[Activation]) -> tuple[Activation, Backward]:
    zero = apply(*[torch.zeros_like(act.value) for act in acts])
    plus = apply(*[act.plus for act in acts]) - zero
    minus = apply(*[act.minus for act in acts]) - zero
    after = Activation(apply(*[a.value for a in acts]), apply(*[a.reference for a in acts]), plus, minus)
    points = [act.value for act in acts]
    return after, lambda p, m: list(zip(_vjp(apply, points, p), _vjp(apply, points, m), strict=True))


def _difference(
    node: fx.Node, apply: Callable[..., Tensor], acts: list[Activation], arguments: list[fx.Node]
) -> tuple[Activation, Backward]:
    """a - b: the parts of b swap."""
    swapped = [argument is node.args[1] and argument is not node.args[0] for argument in arguments]
    zero = apply(*[torch.zeros_like(act.value) for act in acts])
    plus = apply(*[a.minus if s else a.plus for a, s in zip(acts, swapped, strict=True)]) - zero
    minus = apply(*[a.plus if s else a.minus for a, s in zip(acts, swapped, strict=True)]) - zero
    after = Activation(apply(*[a.value for a in acts]), apply(*[a.reference for a in acts]), plus, minus)
    points = [act.value for act in acts]

    def backward(p: Tensor, m: Tensor) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(_vjp(apply, points, p), _vjp(apply, points, m), swapped, strict=True)
        return [(b, a) if s else (a, b) for a, b, s in pairs]

    return after, backward


def _maximum(
    node: fx.Node, key: Any, module: Any, apply: Callable[..., Tensor], act: Activation
) -> tuple[Activation, Backward]:
    """Maxima over windows: the winners at the inputs and at the reference share the rise by their Shapley values."""
    shape = act.value.shape
    if key in ("amax", torch.amax):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if not isinstance(dim, int):
            raise TypeError(f"amax (node {node.name!r}) runs over dim={dim}; give it one dimension")
        keep = bool(node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False))
        places = torch.arange(act.value.numel(), device=act.value.device).view(shape)

        def winners(x: Tensor) -> Tensor:
            found = places.gather(dim, x.argmax(dim=dim, keepdim=True))
            return (found if keep else found.squeeze(dim)).flatten()
    else:
        pool = F.max_pool1d if key in (nn.MaxPool1d, F.max_pool1d) else F.max_pool2d
        spatial = 1 if pool is F.max_pool1d else 2
        if module is not None:
            setting = {n: getattr(module, n) for n in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
        else:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            setting = {
                **dict(zip(names, node.args[1:], strict=False)),
                **{k: v for k, v in node.kwargs.items() if k in names},
            }
        maps = shape[: len(shape) - spatial].numel()
        size = shape[len(shape) - spatial :].numel()

        def winners(x: Tensor) -> Tensor:
            _, index = pool(x, **setting, return_indices=True)
            offset = torch.arange(maps, device=x.device).view(*shape[: len(shape) - spatial], *([1] * spatial)) * size
            return (index + offset).flatten()

    after, before = apply(act.value), apply(act.reference)
    a, b = winners(act.value), winners(act.reference)
    x, x0 = act.value.flatten(), act.reference.flatten()
    share_a = ((torch.maximum(x[a], x0[b]) - x0[b]) + (x[a] - torch.maximum(x0[a], x[b]))) / 2
    share_b = (x[a] - x0[b]) - share_a
    share_a, share_b = torch.where(a == b, x[a] - x0[b], share_a), torch.where(a == b, 0.0, share_b)
    delta = x - x0

    def per_input(share: Tensor, index: Tensor) -> Tensor:
        still = delta[index].abs() < SMALL
        return torch.where(still, 0.0, share / torch.where(still, 1.0, delta[index]))

    m_a, m_b = per_input(share_a, a), per_input(share_b, b)
    m_a = torch.where((a == b) & (delta[a].abs() < SMALL), 1.0, m_a)
    parts = [(m_a * part.flatten()[a] + m_b * part.flatten()[b]).view(after.shape) for part in (act.plus, act.minus)]

    def pull(cotangent: Tensor) -> Tensor:
        flat = cotangent.flatten()
        total = torch.zeros_like(x).index_add_(0, a, m_a * flat).index_add_(0, b, m_b * flat)
        return total.view(shape)

    return Activation(after, before, parts[0], parts[1]), lambda p, m: [(pull(p), pull(m))]


def _lookup(apply: Callable[..., Tensor], act: Activation) -> tuple[Activation, Backward]:
    """An embedding: all that its vectors change is the doing of the code that changed."""
    value, reference = apply(act.value.long()), apply(act.reference.long())
    delta = value - reference
    plus, minus = delta.relu(), -(-delta).relu()
    change = act.delta
    still = change.abs() < SMALL

    def backward(p: Tensor, m: Tensor) -> list[tuple[Tensor, Tensor]]:
        whole = (p * plus + m * minus).sum(dim=-1)
        ratio = torch.where(still, 0.0, whole / torch.where(still, 1.0, change))
        return [(ratio, ratio)]

    return Activation(value, reference, plus, minus), backward


def _norm_scale(module: Any, like: Tensor) -> Tensor:
    if module.running_var is None:
        raise TypeError(f"{type(module).__name__} keeps no running statistics, so rows depend on each other")
    scale = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight
    return scale.view(1, -1, *([1] * (like.ndim - 2))).expand_as(like)
