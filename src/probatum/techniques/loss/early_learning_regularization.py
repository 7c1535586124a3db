"""Early-learning regularization: hold predictions to their own running average, so that wrong labels lose their pull.

Paper     Liu et al. 2020, arXiv:2007.00151, section 4, eq. 6 and 9
Computes  t_i <- beta t_i + (1 - beta) p_i / sum(p_i), without gradient; loss = CE(z, y) + lam mean_i log(1 - <p_i, t_i>),
          where p = softmax(z) clamped to [1e-4, 1 - 1e-4]
Shapes    output (n, classes), target (n,) int64 or (n, classes) probabilities, index (n,) -> loss ()
Departs   1. ELR+ (weight averaging, two networks, mixup, ramp-up of lam) is not part of this; soft targets make room for
             mixup, and lam may be changed between steps
          2. lam=0 is cross-entropy bit for bit, and then no averages are kept
          3. 1 - <p, t> is held above 1e-6 before the logarithm, half precision being computed in float32
          4. rows of target -100 are left out altogether
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tensors.precision import WideBuffers, computed_wide
from probatum.numerics.tensors.targets import IGNORED, class_targets

CARD = Card(
    paper="arXiv:2007.00151",
    title="Early-Learning Regularization Prevents Memorization of Noisy Labels",
    entry="EarlyLearningRegularization",
    number=220,
    tags=("noisy labels", "label-noise", "data"),
    tasks=("classes",),
    needs=("index",),
    neutral={"lam": 0.0},
    tiny={"lam": 1.0},
    tune={"lam": (0.5, 10.0, "log"), "beta": [0.5, 0.7, 0.9]},
    expect_fail={
        "gradient_against_finite_differences": "the running target moves with the output but is held fixed in the gradient"
    },
    claims=("withstands-noisy-labels",),
)

FLOOR = 1e-4
LEAST = 1e-6
WRAP = (
    "every batch must carry the row numbers of its examples: wrap the dataset so that its __getitem__(i) also returns i, "
    "and call loss(output, target, index)"
)


def clamped_softmax(output: Tensor) -> Tensor:
    """Softmax of logits (n, classes), clamped to [1e-4, 1 - 1e-4]."""
    return output.softmax(dim=1).clamp(FLOOR, 1 - FLOOR)


def moved_average(average: Tensor, p: Tensor, beta: float) -> Tensor:
    """beta * average + (1 - beta) * p / sum(p), without gradient; both (n, classes)."""
    p = p.detach()
    return beta * average + (1 - beta) * p / p.sum(dim=1, keepdim=True)


def regularizer(p: Tensor, average: Tensor) -> Tensor:
    """log(1 - <p, t>) of every row, (n, classes) twice -> (n,); eq. 6."""
    return (1 - (p * average).sum(dim=1)).clamp_min(LEAST).log()


class EarlyLearningRegularization(WideBuffers, nn.Module):
    """Cross-entropy with early-learning regularization, (output, target, index) -> scalar mean.

    The running averages are a buffer, so they are saved with the loss's `state_dict` and must be: they are what
    remembers the early epochs. All augmented views of an example share its row. In evaluation mode they stay.

    Args:
        num_examples: rows of the training set.
        num_classes: number of classes.
        lam: weight of the regularizer, >= 0 (paper: 3 for CIFAR-10, 7 for CIFAR-100).
        beta: inertia of the averages, in [0, 1) (paper: 0.7 and 0.9).

    Raises:
        ValueError: a setting outside its range; no index; shapes that disagree with `num_classes`.
        IndexError: an index outside 0 .. num_examples - 1.
        TypeError: an index that is not int64.

    Example:
        >>> loss = EarlyLearningRegularization(num_examples=100, num_classes=2, lam=1.0, beta=0.5)
        >>> output, target = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
        >>> round(float(loss(output, target, torch.tensor([42]))), 4)
        1.6244
        >>> loss.average[42]
        tensor([0.4404, 0.0596])
    """

    average: Tensor
    wide = ("average",)

    def __init__(self, num_examples: int, num_classes: int, lam: float = 3.0, beta: float = 0.7) -> None:
        super().__init__()
        if not lam >= 0:
            raise ValueError(f"lam is {lam}; it must be at least 0")
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}; it must lie in [0, 1)")
        if num_examples < 1 or num_classes < 2:
            raise ValueError(f"num_examples is {num_examples} and num_classes {num_classes}; give at least 1 and 2")
        self.lam, self.beta = lam, beta
        self.register_buffer("average", torch.zeros(num_examples, num_classes))

    def forward(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        target = class_targets(output, target, ignored=IGNORED, soft=True)
        if self.lam == 0:
            return F.cross_entropy(output, target)
        return self._regularized(output, target, self._checked(output, index))

    @computed_wide
    def _regularized(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(output, target)
        if target.ndim == 1 and bool((target == IGNORED).any()):
            output, index = output[target != IGNORED], index[(target != IGNORED).to(index.device)]
        p = clamped_softmax(output)
        average = self.average[index].to(p.dtype)
        if self.training:
            average = moved_average(average, p, self.beta)
            self.average[index] = average.to(self.average.dtype)
        return cross_entropy + self.lam * regularizer(p, average).mean()

    def _checked(self, output: Tensor, index: Tensor | None) -> Tensor:
        rows, classes = self.average.shape
        if index is None:
            raise ValueError(f"index is missing; {WRAP}")
        if index.dtype != torch.int64:
            raise TypeError(f"index has dtype {index.dtype}; row numbers are int64")
        if output.ndim != 2 or output.shape[1] != classes:
            raise ValueError(f"output has shape {tuple(output.shape)}; num_classes={classes} needs (n, {classes})")
        if index.shape != output.shape[:1]:
            raise ValueError(f"index has shape {tuple(index.shape)} for {len(output)} examples; {WRAP}")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
            worst = int(index.max()) if int(index.max()) >= rows else int(index.min())
            raise IndexError(f"index {worst} is outside 0 .. {rows - 1} (num_examples={rows}); {WRAP}")
        return index.to(self.average.device)
