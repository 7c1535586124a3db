"""Kernel calibration penalty: train scores to mean what they say, those of detected boxes or of classes.

Paper     Popordanoska, Tiulpin and Blaschko 2024, "Beyond Classification: Definition and Density-based Estimation of
          Calibration in Object Detection", WACV 2024, arXiv:2312.06645, sections 3 and 4
Computes  CE = mean_i |m_i - s_i|^p with the leave-one-out ratio m_i = sum_j k(s_i; s_j) y_j / sum_j k(s_i; s_j) over j != i,
          k a Beta density at s_i with parameters s_j/h + 1, (1 - s_j)/h + 1. Of a detector: y = overlap with the matched box
          (identity link), or 1 where the overlap reaches t and the class is right, CE averaged over t = 0.5 .. 0.95. Of
          classes: s = largest probability, y = whether it is right. Loss = cross-entropy + weight CE
Shapes    output (n, classes), target (n,) int64 -> loss (); detector: scores (n,), overlap (n,), right class (n,) -> ()
Departs   1. in the loss slot the detector's own loss is cross-entropy and every row is a matched prediction; a detector adds
             `detection_penalty` to its loss
          2. whether a row is right carries no gradient; the scores do, in both arguments of the kernel and in the residual
          3. scores are kept 1e-6 from 0 and 1, half precision is computed in float32; a batch of one row has no penalty, and
             rows of target -100 have no part in it
          4. weight=0 is cross-entropy bit for bit
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.calibration.kernel import best_bandwidth, conditional_mean, kernel_calibration_error
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import IGNORED, class_targets

CARD = Card(
    paper="arXiv:2312.06645",
    title="Beyond Classification: Definition and Density-based Estimation of Calibration in Object Detection",
    entry="KernelCalibrationLoss",
    number=207,
    tags=("calibration", "detection", "training"),
    tasks=("classes",),
    neutral={"weight": 0.0},
    tiny={"weight": 0.5, "bandwidth": 0.1},
    tune={"weight": (0.1, 5.0, "log"), "bandwidth": [0.02, 0.05, 0.1, 0.2]},
    claims=("calibrated-boxes",),
)

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
LINKS = ("threshold", "identity")


@computed_wide
def detection_penalty(
    scores: Tensor,
    overlap: Tensor,
    right_class: Tensor,
    *,
    link: str = "threshold",
    thresholds: Sequence[float] = THRESHOLDS,
    bandwidth: float | None = None,
    power: int = 1,
) -> Tensor:
    """Calibration error of boxes that were matched one to one, differentiable in the scores.

    Args:
        scores: (n,) confidences in [0, 1]; n >= 2.
        overlap: (n,) IoU with the matched box in [0, 1], 0 = matched to none.
        right_class: (n,) bool, whether the class is that of the matched box; the identity link, as released, does not look at
            it: give overlap * right_class where a box of another class is worth nothing.
        link: "threshold" (mean of the errors at all thresholds) or "identity".
        thresholds: of the overlap.
        bandwidth: of the kernel; None = by leave-one-out likelihood.
        power: p >= 1.

    Raises:
        ValueError: fewer than two predictions, scores or overlaps outside [0, 1], an unknown link, bad settings.

    Example:
        >>> scores = torch.tensor([0.9, 0.9, 0.9, 0.9])
        >>> overlap, right = torch.tensor([0.95, 0.95, 0.2, 0.0]), torch.ones(4, dtype=torch.bool)
        >>> round(float(detection_penalty(scores, overlap, right, thresholds=[0.5], bandwidth=0.1)), 3)
        0.4
    """
    if scores.ndim != 1 or not overlap.shape == right_class.shape == scores.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)}, overlap {tuple(overlap.shape)}, right_class {tuple(right_class.shape)}; give (n,) each"
        )
    overlap = overlap.detach()
    if len(overlap) and not (float(overlap.min()) >= 0 and float(overlap.max()) <= 1 + 1e-6):
        raise ValueError(f"overlaps span {float(overlap.min()):.4g} to {float(overlap.max()):.4g}; IoU lies in [0, 1]")
    if link not in LINKS:
        raise ValueError(f"link is {link!r}; use one of {', '.join(LINKS)}")
    _check(1.0, bandwidth, power)
    if link == "identity":
        return kernel_calibration_error(scores, overlap, bandwidth, power)
    if not thresholds:
        raise ValueError("thresholds is empty; give one or more in [0, 1]")
    reached = overlap[:, None] >= overlap.new_tensor(list(thresholds))[None]
    hits = torch.logical_and(reached, right_class[:, None]).to(scores.dtype)  # (n, thresholds)
    kernel_calibration_error(scores.detach(), hits[:, 0], 1.0)  # says what is wrong with scores, if anything is
    width = best_bandwidth(scores) if bandwidth is None else bandwidth
    return ((conditional_mean(scores, hits, width) - scores[:, None]).abs() ** power).mean()


class KernelCalibrationLoss(nn.Module):
    """Cross-entropy plus the kernel calibration error of the batch, (output, target) -> scalar mean.

    Args:
        weight: of the penalty, >= 0.
        bandwidth: of the kernel, above 0; None = by leave-one-out likelihood, batch by batch.
        per_class: penalise the calibration of every class's probability (a Dirichlet kernel on the whole vector) instead of
            that of the likeliest class.
        power: p >= 1.

    Raises:
        ValueError: a setting outside its range; outputs that are no (n, classes).

    Example:
        >>> loss = KernelCalibrationLoss(weight=1.0, bandwidth=0.1)
        >>> output = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> plain = F.cross_entropy(output, torch.tensor([0, 1, 0, 1]))
        >>> bool(loss(output, torch.tensor([0, 1, 0, 1])) > plain)
        True
    """

    def __init__(
        self, weight: float = 0.5, bandwidth: float | None = 0.05, per_class: bool = False, power: int = 1
    ) -> None:
        super().__init__()
        _check(weight, bandwidth, power)
        self.weight, self.bandwidth, self.per_class, self.power = weight, bandwidth, per_class, power

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        target = class_targets(output, target, ignored=IGNORED, soft=True)
        return F.cross_entropy(output, target) if self.weight == 0 else self._penalised(output, target)

    @computed_wide
    def _penalised(self, output: Tensor, target: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(output, target)
        if target.ndim == 1 and bool((target == IGNORED).any()):
            output, target = output[target != IGNORED], target[target != IGNORED]  # neither right nor wrong
        if len(output) < 2:
            return cross_entropy
        p = output.softmax(dim=1)
        classes = target.argmax(dim=1) if target.is_floating_point() else target
        if self.per_class:
            scores, truth = p, F.one_hot(classes, output.shape[1]).to(p.dtype)
        else:
            scores, truth = p.amax(dim=1), (output.argmax(dim=1) == classes).to(p.dtype)
        error = kernel_calibration_error(scores.clamp(0, 1), truth, self.bandwidth, self.power)
        return cross_entropy + self.weight * error


def _check(weight: float, bandwidth: float | None, power: int) -> None:
    if not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"weight is {weight}; it must be finite and at least 0")
    if bandwidth is not None and not 1e-4 <= bandwidth <= 10:
        raise ValueError(f"bandwidth is {bandwidth}; use a number from 0.0001 to 10, or None")
    if not 1 <= power <= 4:
        raise ValueError(f"power is {power}; use 1 to 4")
