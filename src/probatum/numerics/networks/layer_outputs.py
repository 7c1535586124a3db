"""Looking into a network's layers: what they put out, their gradients, and what a linear machine reads in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Hardswish, nn.ReLU6,
)  # fmt: skip


def hidden_layers(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Outputs of all inner modules that run on x, by name in order of execution; the model's mode is put back."""
    seen: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output}))
        for name, module in model.named_modules()
        if name
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen


def choose_layers(model: nn.Module, seen: dict[str, Any], layers: Sequence[str] | None) -> list[str]:
    """The layers named, or all activation modules but the last, which feeds the output itself; `seen` is of `hidden_layers`.

    Raises:
        KeyError: a name that is no module of the model, or does not run.
        TypeError: a module that does not return one floating-point tensor with a batch dimension.
        ValueError: nothing to attach to.
    """
    modules = dict(model.named_modules())
    candidates = [name for name, output in seen.items() if _is_feature(output)]
    if layers is None:
        active = [name for name in candidates if isinstance(modules[name], ACTIVATIONS)]
        chosen = active[:-1] if len(active) > 1 else active
        if not chosen:
            raise ValueError(
                f"{type(model).__name__} has no activation module; give layers out of {', '.join(candidates)}"
            )
        return chosen
    for name in layers:
        if name not in seen:
            raise KeyError(f"layer {name!r} is not among the modules that run; candidates: {', '.join(candidates)}")
        if name not in candidates:
            kind = type(seen[name]).__name__
            raise TypeError(
                f"layer {name!r} returns {kind}, not one floating tensor; candidates: {', '.join(candidates)}"
            )
    return list(layers)


def pooled(features: Tensor, pool: str = "flatten", tokens: bool = False) -> Tensor:
    """(n, ...) -> (n, features): maps averaged over positions (over tokens in dim 1 if `tokens`), or flattened."""
    if features.ndim == 2 or pool == "flatten":
        return features.flatten(1)
    return features.mean(dim=1) if tokens and features.ndim == 3 else features.flatten(2).mean(dim=2)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the present weight gradient of every linear and convolution layer, in order of the module tree."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return {
        name: float(module.weight.grad.norm())
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module.weight.grad is not None
    }


def probe_accuracy(features: Tensor, target: Tensor, test_features: Tensor, test_target: Tensor) -> float:
    """Test accuracy of a linear SVM on (scaled) features (n, d), the paper's measure of how discriminative a layer is."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    machine = LinearSVC(C=0.01, dual=False).fit(((features - mean) / std).numpy(), target.numpy())
    return float(machine.score(((test_features - mean) / std).numpy(), test_target.numpy()))


def _is_feature(output: Any) -> bool:
    return isinstance(output, Tensor) and output.is_floating_point() and output.ndim >= 2
