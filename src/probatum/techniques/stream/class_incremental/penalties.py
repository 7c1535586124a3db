"""What holds a network to what it knew: Fisher information, path integrals, distillation, projected gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrize

from probatum.numerics.continual.stages import masked
from probatum.numerics.networks.substitute import call_with, wide_values
from probatum.numerics.tensors.precision import widened

Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """Copies of the parameters that require gradients, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def fisher_diagonal(model: nn.Module, x: Tensor, seen: Tensor, generator: torch.Generator, chunk: int = 32) -> Weights:
    """Diagonal of the Fisher information in evaluation mode: mean squared gradient of log p(y), y drawn from the model.

    Args:
        model: x (n, ...) -> logits (n, classes).
        x: rows.
        seen: classes that take part (classes,) bool.
        generator: the draws of y.
        chunk: rows at a time.

    Returns:
        One tensor a parameter that requires gradients, none negative; in float32 for networks of half precision.
    """
    model.eval()
    wide, x = wide_values(model), widened(x)
    weights = {name: wide.pop(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad}

    def log_loss(values: Weights, row: Tensor, label: Tensor) -> Tensor:
        output = call_with(model, {**values, **wide}, row[None].clone())  # a network may begin by changing x in place
        return F.cross_entropy(masked(output, seen), label[None])

    each = vmap(grad(log_loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for rows in x.split(chunk):
        with torch.no_grad():
            p = masked(call_with(model, {**weights, **wide}, rows.clone()), seen).softmax(dim=1).cpu()
        labels = torch.multinomial(p, 1, generator=generator).squeeze(1).to(rows.device)
        for name, found in each(weights, rows, labels).items():
            total[name] += found.square().sum(dim=0)
    return {name: value / len(x) for name, value in total.items()}


def quadratic(model: nn.Module, reference: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> Tensor:
    """Half the sum of importance * (weight - reference)^2 over the named parameters, a scalar."""
    named = dict(model.named_parameters())
    terms = [(importance[name] * (named[name] - reference[name]).square()).sum() for name in importance]
    return torch.stack(terms).sum() / 2


class PathIntegral:
    """Synaptic intelligence: how much each weight's own path lowered the loss, per squared distance travelled.

    Zenke, Poole and Ganguli 2017, equations 3 to 5: omega = -sum gradient * update, and importance grows by
    max(omega, 0) / (distance^2 + damping) at the end of a stage. `importance` is what lasts; None before the first end.

    Args:
        damping: keeps importances of weights finite that hardly moved, above 0.
    """

    def __init__(self, damping: float = 1e-3) -> None:
        if not damping > 0:
            raise ValueError(f"damping is {damping}; it must be above 0")
        self.damping = damping
        self.importance: Weights | None = None
        self._start: Weights = {}
        self._omega: Weights = {}
        self._gradient: Weights = {}
        self._before: Weights = {}

    def begin(self, model: nn.Module) -> None:
        """A stage begins: the path starts here."""
        self._start = weights_of(model)
        self._omega = {name: torch.zeros_like(widened(value)) for name, value in self._start.items()}

    def before(self, model: nn.Module, strength: float) -> None:
        """Before an update: note the task's gradients, then add those of strength * sum importance * (weight - start)^2."""
        for name, p in model.named_parameters():
            if name not in self._start or p.grad is None:
                continue
            self._gradient[name] = p.grad.detach().clone()
            self._before[name] = p.detach().clone()
            if self.importance is not None:
                p.grad += 2 * strength * self.importance[name] * (p.detach() - self._start[name])

    def after(self, model: nn.Module) -> None:
        """After an update: what the step along the task's gradient was worth."""
        for name, p in model.named_parameters():
            if name in self._gradient:
                self._omega[name] -= self._gradient[name] * (p.detach() - self._before[name])
        self._gradient, self._before = {}, {}

    def end(self, model: nn.Module) -> None:
        """The stage ends: importances grow, and the path is forgotten."""
        named = dict(model.named_parameters())
        gain = {
            name: omega.clamp(min=0) / ((named[name].detach() - self._start[name]).square() + self.damping)
            for name, omega in self._omega.items()
        }
        known = self.importance or {name: torch.zeros_like(value) for name, value in gain.items()}
        self.importance = {name: known[name] + value for name, value in gain.items()}
        self._start, self._omega = {}, {}


def distillation(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature^2 * KL(teacher | output) of softened logits (n, classes), mean over rows; 0 where they agree."""
    student = (output / temperature).log_softmax(dim=1)
    target = (teacher / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(student, target, log_target=True, reduction="batchmean")


def project(gradient: Tensor, memory: Tensor, margin: float = 0.0) -> Tensor:
    """The nearest vector to a gradient that has a non-negative product with every memory gradient (GEM, eq. 8 to 11).

    The dual, min |memory' v + gradient|^2 with v >= margin, is solved as non-negative least squares on the Gram matrix.

    Args:
        gradient: (p,).
        memory: (tasks, p).
        margin: least dual value, 0 or more; above 0 it leans towards the memories.

    Returns:
        (p,); the gradient itself where it hurts no memory, or where there is a value that is not finite.
    """
    products = memory @ gradient
    if bool((products >= 0).all()) or not bool(products.isfinite().all()):
        return gradient
    rows = memory.double()
    gram, product = (rows @ rows.T).cpu(), (rows @ gradient.double()).cpu()
    jitter = 1e-10 * gram.diagonal().mean().clamp_min(1e-30)
    factor = torch.linalg.cholesky(gram + jitter * torch.eye(len(gram), dtype=gram.dtype))
    shifted = product + margin * gram.sum(dim=1)  # v = u + margin
    target = torch.linalg.solve_triangular(factor, -shifted[:, None], upper=False).squeeze(1)
    dual = torch.from_numpy(nnls(factor.T.numpy(), target.numpy())[0]) + margin
    return (gradient.double() + dual.to(rows.device) @ rows).to(gradient.dtype)


@torch.no_grad()
def align(head: nn.Linear, old: Tensor, new: Tensor) -> float:
    """Scale the rows of new classes so that their mean norm is that of the old ones (WA, eq. 7); returns the factor.

    Args:
        head: the classifier, changed in place.
        old, new: rows (outputs,) bool.
    """
    norms = head.weight.norm(dim=1)
    factor = float(norms[old].mean() / norms[new].mean().clamp_min(1e-12))
    put_weight(head, torch.where(new[:, None], head.weight * factor, head.weight))
    return factor


@torch.no_grad()
def put_weight(head: nn.Linear, value: Tensor) -> None:
    """Set a layer's weight in place, through its parametrisation where it has one."""
    if parametrize.is_parametrized(head, "weight"):
        head.weight = value  # type: ignore[assignment]
    else:
        head.weight.copy_(value)
