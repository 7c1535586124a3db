"""CNN-SVM: end a network in a linear support vector machine, trained end to end, instead of softmax cross-entropy.

Paper     Agarap 2017, arXiv:1712.03541, section 2.2 (after Tang 2013, arXiv:1306.0239)
Computes  reg/2 |W|^2 + C mean_i sum_k max(0, 1 - y'_ik s_ik)^2 with y' = +1 for the own class and -1 else, W the last
          layer's weights; also the plain (L1) hinge, and Crammer-Singer's sum_{k != y} max(0, 1 + s_k - s_y)^2
Shapes    output (n, classes) scores, or (n,) for two classes with one score; target (n,) int64 -> loss ()
Departs   1. the paper's factor 1/p of |W|^2 is the setting `reg`; its published code has reg=1, as here
          2. the published code averages the hinge over classes too; the sum is Tang's, and differs by a factor in C
          3. scores are no log-probabilities: `probabilistic` is False, and they need a temperature before log-loss or ECE
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.tensors.precision import computed_wide, widened
from probatum.numerics.tensors.targets import IGNORED, class_codes, class_targets

CARD = Card(
    paper="arXiv:1712.03541",
    title="An Architecture Combining Convolutional Neural Network (CNN) and Support Vector Machine (SVM) for Image "
    "Classification",
    entry="L2SVM",
    number=102,
    tags=("margin", "vision", "training"),
    tasks=("classes",),
    tiny={"C": 1.0},
    tune={"C": (0.1, 1000.0, "log"), "kind": ["squared", "l1", "crammer-singer"]},
    claims=("close-to-softmax",),
)

KINDS = ("squared", "l1", "crammer-singer")


def signs(target: Tensor, classes: int) -> Tensor:
    """+1 at the own class and -1 elsewhere: (n,) -> (n, classes)."""
    return 2.0 * nn.functional.one_hot(target, classes) - 1.0


@computed_wide
def hinge(scores: Tensor, target: Tensor, kind: str = "squared") -> Tensor:
    """Hinge loss of every example, summed over classes.

    Args:
        scores: (n, classes), or (n,) where two classes share one score (positive = class 1).
        target: classes (n,) int64; the loss of rows of -100 is 0.
        kind: "squared" or "l1", one against the rest; or "crammer-singer" (squared).

    Raises:
        ValueError: one column of scores, a label outside the classes or not one label a row, an unknown kind.
        TypeError: labels that are not int64.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
    codes = _codes(scores, target)
    kept = codes != IGNORED
    target = torch.where(kept, codes, 0)
    return torch.where(kept, _hinge(scores, target, kind), 0.0)


def _codes(scores: Tensor, target: Tensor) -> Tensor:
    """Class codes (n,) of scores (n, classes), or (n,) for two classes with one score; -100 is let through."""
    if scores.ndim == 1:
        return class_codes(target, len(scores), 2, IGNORED)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"output has shape {tuple(scores.shape)}; give (n, classes) with two classes or more, or one score (n,) for two"
        )
    return class_targets(scores, target, ignored=IGNORED)


def _hinge(scores: Tensor, target: Tensor, kind: str) -> Tensor:
    if scores.ndim == 1:
        short = (1 - (2 * target - 1) * scores).relu()
        return short if kind == "l1" else short.square()
    if kind == "crammer-singer":
        own = scores.gather(1, target[:, None])
        short = (1 + scores - own).scatter(1, target[:, None], 0.0).relu()
    else:
        short = (1 - signs(target, scores.shape[1]).to(scores.dtype) * scores).relu()
    return (short if kind == "l1" else short.square()).sum(dim=1)


def refit_head(head: nn.Linear, features: Tensor, target: Tensor, C: float = 1.0, reg: float = 1.0) -> None:
    """Put the exact optimum of the squared hinge for frozen features (n, d) into `head`, by liblinear's one-vs-rest.

    It minimises what `L2SVM(C, reg, penalise_bias=True)` does: liblinear counts the intercept among the weights. Classes
    without rows get the optimum for being nowhere.

    Raises:
        ValueError: no rows, labels outside the head's outputs or not one a row, C or reg not above 0.
    """
    target = class_codes(target, len(features), head.out_features).cpu()
    if not len(target) or not C > 0 or not reg > 0:
        raise ValueError(
            f"there are {len(target)} rows, C is {C} and reg {reg}; give a row or more and positive numbers"
        )
    x = features.detach().double().cpu().numpy()
    biased, strength = head.bias is not None, C / reg / len(target)
    solved = np.tile(_nowhere(x, strength, biased), (head.out_features, 1))
    present = target.unique().numpy()
    if len(present) == 1:
        solved[present] *= -1  # everywhere is the mirror image of nowhere
    else:
        settings: dict[str, Any] = {"fit_intercept": biased, "dual": "auto", "tol": 1e-8, "max_iter": 20000}
        machine = LinearSVC(C=strength, **settings).fit(x, target.numpy())
        found = machine.coef_
        if biased:
            found = np.concatenate([found, machine.intercept_[:, None]], axis=1)
        solved[present] = np.concatenate([-found, found]) if len(present) == 2 else found
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(solved[:, : x.shape[1]]))
        if head.bias is not None:
            head.bias.copy_(torch.as_tensor(solved[:, -1]))


def _nowhere(x: np.ndarray, strength: float, biased: bool) -> np.ndarray:
    """The weights of a class that no row belongs to, the last one of a constant where `biased`; x (n, d) -> (d or d + 1,)."""
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1) if biased else x

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        short = np.maximum(1 + rows @ w, 0)
        return 0.5 * w @ w + strength * short @ short, w + 2 * strength * (short @ rows)

    start = np.zeros(rows.shape[1])
    return minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 0, "gtol": 1e-10}
    ).x


class _Layer:
    """A layer that a loss looks at without owning it.

    Copied with the network it is the copy's layer. Copied alone it is the layer itself, for the copy, which nobody trains,
    is gone once the copying is done.
    """

    def __init__(self, layer: nn.Module | None) -> None:
        self.layer = layer
        self.copied: weakref.ref[nn.Module] | None = None

    def get(self) -> nn.Module | None:
        copied = None if self.copied is None else self.copied()
        return self.layer if copied is None else copied

    def __deepcopy__(self, memo: dict[int, Any]) -> _Layer:
        made, layer = _Layer(self.get()), self.get()
        made.copied = None if layer is None else weakref.ref(copy.deepcopy(layer, memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.get(), "copied": None}


class L2SVM(nn.Module):
    """Squared-hinge support vector machine as a loss, (output, target) -> scalar.

    Args:
        C: weight of the hinge, > 0.
        reg: weight of half the squared norm of the last layer, >= 0.
        kind: "squared", "l1" or "crammer-singer".
        penalise_bias: whether the last layer's bias counts in its norm.
        weight: factor per class (classes,), applied to the examples of the class.
        last_layer: the layer whose weights are regularised; None = no such term.

    Raises:
        ValueError: a setting outside its range; labels outside the classes; one column of scores.

    Example:
        >>> head = nn.Linear(2, 3, bias=False)
        >>> _ = nn.init.ones_(head.weight)
        >>> loss = L2SVM(C=2.0, last_layer=head)
        >>> scores = torch.tensor([[2.0, -0.5, -3.0]])
        >>> loss(scores, torch.tensor([0])).item()  # 0.5 * 6 + 2 * 0.5 ** 2
        3.5
    """

    probabilistic = False

    def __init__(
        self,
        C: float = 1.0,
        reg: float = 1.0,
        kind: str = "squared",
        penalise_bias: bool = False,
        weight: Tensor | None = None,
        last_layer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not C > 0:
            raise ValueError(f"C is {C}; it must be above 0")
        if not reg >= 0:
            raise ValueError(f"reg is {reg}; it must be at least 0")
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
        self.C, self.reg, self.kind, self.penalise_bias = C, reg, kind, penalise_bias
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self._last_layer = _Layer(last_layer)  # no module, so that its weights do not count as the loss's own

    def regularizer(self) -> Tensor | float:
        """reg/2 |W|^2 of the last layer, or 0.0 without one."""
        layer = self._last_layer.get()
        if layer is None or self.reg == 0:
            return 0.0
        norm = widened(layer.weight).square().sum()
        if self.penalise_bias and layer.bias is not None:
            norm = norm + widened(layer.bias).square().sum()
        return 0.5 * self.reg * norm

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self._loss(output, target)

    @computed_wide
    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss, codes = hinge(output, target, self.kind), _codes(output, target)
        kept = codes != IGNORED
        if self.weight is not None:
            loss = loss * self.weight[torch.where(kept, codes, 0)]
        # the mean over the rows that count, as torch's cross-entropy has it
        mean = loss.mean() if bool(kept.all()) else loss.sum() / kept.sum()
        return self.regularizer() + self.C * mean
