"""h-calibration: fit an order-preserving map to held-out logits by a windowed calibration error over all classes.

Paper     Huang, Cao, Xia, Chen, Wang and Zhang 2025, "h-calibration: Rethinking Classifier Recalibration with Probabilistic
          Error-Bounded Objective", arXiv:2506.17968 (TPAMI), and the released code's loss
Computes  events (p, o) of all rows and classes, sorted by p; T_j = |mean over the window of M + 1 events around j of
          (p - o)|; e_j = relu(T_j - tolerance); mean over 15 k-means clusters of p of the mean e_j in each; averaged
          over the sets that leave out the rows of one class; times 1e5
Shapes    logits (n, classes), target (n,) int64 -> fitted map: logits (m, classes) -> probabilities (m, classes); with
          `leave_out` a step costs n classes^2 (seconds from 100 classes on), without it n classes
Departs   1. at both ends the window is moved inside, so that it always holds M + 1 events; the release pads with zeros
             under a constant divisor, which shrinks T there (boundary="zero")
          2. events with exactly equal p share their mean o, so that the loss does not depend on the order of the rows
          3. k-means starts from evenly spaced centres and empty clusters are left out, so that it draws nothing
          4. the monotone net is integrated once on a grid (positive integrand, linear between grid points), so that
             the map is exactly monotone and costs one pass over the grid, not one quadrature for every logit
          5. the piecewise-linear map's knots cover the log-probabilities seen in `fit`, not a fixed range of 100
          6. classes that no held-out row has leave no set out; sets with fewer events than the window take one window
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import IGNORED, class_targets
from probatum.techniques.posthoc.h_calibration.order_preserving import (
    EnsembleTemperature,
    MonotoneNet,
    PiecewiseLinear,
    Temperature,
)

CARD = Card(
    paper="arXiv:2506.17968",
    title="h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective",
    entry="HCalibration",
    number=13,
    tags=("calibration",),
    tasks=("classes",),
    neutral={"steps": 0},
    tiny={"window": 10, "steps": 3},
    tune={"window": [50, 100, 200, 400], "calibrator": ["temperature", "ensemble", "piecewise", "monotone"]},
    claims=("halves-the-calibration-error",),
)

CALIBRATORS = ("temperature", "ensemble", "piecewise", "monotone")
WEIGHTINGS = ("clusters", "ace", "ece", "density", "mean")


def window_errors(p: Tensor, o: Tensor, window: int, boundary: str = "inside") -> Tensor:
    """T of every event: |mean of p - o over the `window` + 1 events around it|; p (e,) sorted, o (e,) -> (e,)."""
    count, width = len(p), window + 1
    if count < width:
        raise ValueError(f"{count} events are fewer than the window's {width}; lower window to at most {count - 1}")
    sums = F.pad((p - o).cumsum(0), (1, 0))
    centre = torch.arange(count, device=p.device)
    if boundary == "inside":
        start = (centre - window // 2).clamp(0, count - width)
        end = start + width
    else:
        start = (centre - window // 2).clamp(min=0)
        end = (centre - window // 2 + width).clamp(max=count)
    return (sums[end] - sums[start]).abs() / width


def cluster_edges(p: Tensor, clusters: int, rounds: int = 20) -> Tensor:
    """Where the clusters of 1-D k-means begin and end in sorted p (e,): (clusters + 1,) int64, by Lloyd's algorithm."""
    sums = F.pad(p.double().cumsum(0), (1, 0))
    centres = torch.linspace(float(p[0]), float(p[-1]), clusters, dtype=torch.float64, device=p.device)
    edges = torch.zeros(clusters + 1, dtype=torch.int64, device=p.device)
    for _ in range(rounds):
        middle = torch.searchsorted(p.double(), (centres[1:] + centres[:-1]) / 2)
        new = torch.cat([middle.new_zeros(1), middle, middle.new_full((1,), len(p))])
        if torch.equal(new, edges):
            break
        edges = new
        sizes = edges.diff()
        means = (sums[edges[1:]] - sums[edges[:-1]]) / sizes.clamp(min=1)
        centres = torch.where(sizes > 0, means, centres)
    return edges


def weighted_error(error: Tensor, p: Tensor, top: Tensor, weighting: str, clusters: int) -> Tensor:
    """Combine the errors (e,) of events sorted by p: one number.

    "clusters" and "ace" average bins (k-means, or of equal width) with equal weight, "ece" weighs bins of equal width
    by their share of top-label probabilities `top`, "density" weighs by the distance to the neighbours, "mean" not at all.
    """
    if weighting == "mean":
        return error.mean()
    if weighting == "density":
        reach = F.pad(p, (1, 1), value=0.0)
        reach[-1] = 1.0
        return (error * (reach[2:] - reach[:-2]) / 2).sum()
    if weighting == "clusters":
        edges = cluster_edges(p, clusters)
    else:
        inner = torch.linspace(0, 1, clusters + 1, dtype=p.dtype, device=p.device)[1:-1]
        cut = torch.searchsorted(p, inner)
        edges = torch.cat([cut.new_zeros(1), cut, cut.new_full((1,), len(p))])
    sizes = edges.diff()
    sums = F.pad(error.cumsum(0), (1, 0))
    means = (sums[edges[1:]] - sums[edges[:-1]]) / sizes.clamp(min=1)
    if weighting == "ece":
        share = torch.histc(top, clusters, 0.0, 1.0) / len(top)
        return (means * share).sum()
    return means[sizes > 0].mean()


@computed_wide
def h_calibration_loss(
    p: Tensor,
    target: Tensor,
    *,
    window: int = 200,
    tolerance: float = 0.0,
    clusters: int = 15,
    weighting: str = "clusters",
    leave_out: bool = True,
    boundary: str = "inside",
    scale: float = 1e5,
) -> Tensor:
    """The h-calibration loss: probabilities p (n, classes), target (n,) int64 -> ().

    Args:
        window: M; every event is judged with the M nearest ones in order of p.
        tolerance: error below which nothing is lost.
        clusters: number of probability ranges that weigh equally.
        weighting: one of `WEIGHTINGS`, see `weighted_error`.
        leave_out: average over the sets without the rows of one class, a pass over all events for each; else use all rows
            once, which for many classes is the only way to be quick.
        boundary: "inside" moves windows inside at both ends, "zero" pads with zeros.
        scale: factor.

    Raises:
        ValueError: fewer events (n times classes) than M + 1.
    """
    target = class_targets(p, target)
    n, classes = p.shape
    if n * classes < window + 1:
        raise ValueError(
            f"{n} rows x {classes} classes = {n * classes} events are fewer than the window's {window + 1}; "
            f"lower window to at most {n * classes - 1} or bring more held-out rows"
        )
    flat, rank = p.flatten().sort(stable=True)
    occurred = F.one_hot(target, classes).to(p.dtype).flatten()[rank]
    label = target.repeat_interleave(classes)[rank]
    present = [int(c) for c in target.unique()]
    losses = []
    for left in present if leave_out and len(present) > 1 else [-1]:
        kept = label != left
        events, o = flat[kept], _shared(flat[kept].detach(), occurred[kept])
        error = window_errors(events, o, min(window, len(events) - 1), boundary)
        top = p[target != left].detach().amax(dim=1)
        losses.append(weighted_error((error - tolerance).relu(), events.detach(), top, weighting, clusters))
    return scale * torch.stack(losses).mean()


def _shared(p: Tensor, o: Tensor) -> Tensor:
    """o with the mean over every group of equal p: (e,), (e,) -> (e,)."""
    _, group, sizes = p.unique_consecutive(return_inverse=True, return_counts=True)
    return (torch.zeros(len(sizes), dtype=o.dtype, device=o.device).index_add_(0, group, o) / sizes)[group]


class HCalibration(nn.Module):
    """An order-preserving recalibration map fitted by the h-calibration loss; accuracy cannot change.

    Args:
        calibrator: "temperature", "ensemble" (of temperatures), "piecewise" (linear) or "monotone" (net).
        window: M >= 1, the events averaged around each one.
        tolerance: tolerated error >= 0.
        clusters: probability ranges that weigh equally, >= 1.
        weighting: how errors are combined, see `weighted_error`.
        leave_out: average over the sets without one class.
        boundary: "inside" or "zero", see `h_calibration_loss`.
        steps: full-batch Adam steps; 0 = plain softmax (for "temperature").
        lr: their learning rate.
        generator: for the first weights of the monotone net.

    Raises:
        ValueError: a setting outside its range; in `fit`, probabilities instead of logits or too few events.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> honest = torch.randn(500, 3, generator=generator)
        >>> target = torch.multinomial(honest.softmax(1), 1, generator=generator).squeeze(1)
        >>> calibrate = HCalibration(window=100).fit(5 * honest, target)
        >>> 4.0 < float((-calibrate.map.log_scale).exp()) < 6.0
        True
    """

    keeps_argmax = True

    def __init__(
        self,
        calibrator: str = "temperature",
        window: int = 200,
        tolerance: float = 0.0,
        clusters: int = 15,
        weighting: str = "clusters",
        leave_out: bool = True,
        boundary: str = "inside",
        steps: int = 200,
        lr: float = 0.03,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("calibrator", calibrator, CALIBRATORS),
            ("weighting", weighting, WEIGHTINGS),
            ("boundary", boundary, ("inside", "zero")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
        for name, value, least in (("window", window, 1), ("clusters", clusters, 1), ("steps", steps, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance is {tolerance}; it must not be negative")
        if not lr > 0:
            raise ValueError(f"lr is {lr}; it must be above 0")
        self.calibrator, self.steps, self.lr, self.generator = calibrator, steps, lr, generator
        self.window, self.tolerance, self.clusters = window, tolerance, clusters
        self.weighting, self.leave_out, self.boundary = weighting, leave_out, boundary
        self.map: nn.Module = self._fresh(1.0, None)  # of the right kind for `load_state_dict`
        self.best = math.inf

    def objective(self, p: Tensor, target: Tensor) -> Tensor:
        """This calibrator's loss of probabilities (n, classes) and target (n,)."""
        return h_calibration_loss(
            p,
            target,
            window=self.window,
            tolerance=self.tolerance,
            clusters=self.clusters,
            weighting=self.weighting,
            leave_out=self.leave_out,
            boundary=self.boundary,
        )

    def fit(self, logits: Tensor, target: Tensor) -> HCalibration:
        """Fit to held-out logits (n, classes) and target (n,), rows of -100 left out; keeps the weights of lowest loss."""
        z = logits.detach().double()
        target = class_targets(z, target, ignored=IGNORED)
        z, target = z[target != IGNORED], target[target != IGNORED]
        if not len(z):
            raise ValueError(f"logits {tuple(logits.shape)} have no row with a label; there must be n > 0 of them")
        if bool((z >= 0).all()) and torch.allclose(z.sum(dim=1), torch.ones_like(z[:, 0]), atol=1e-4):
            raise ValueError("the rows are probabilities (each sums to 1); pass the logits, or probabilities.log()")
        if not bool(torch.isfinite(z).all()):
            raise ValueError("logits hold values that are not finite; look at the rows that produce them")
        self.map = self._fresh(float(-z.log_softmax(dim=1).min()), self.generator).to(logits.device)
        if self.steps == 0:
            return self
        optimizer = torch.optim.Adam(self.map.parameters(), lr=self.lr)
        self.best, kept = math.inf, self.map.state_dict()
        with torch.enable_grad():
            for step in range(self.steps + 1):
                loss = self.objective(self.map(z), target)
                if loss.item() < self.best:
                    self.best = loss.item()
                    kept = {name: value.clone() for name, value in self.map.state_dict().items()}
                if step < self.steps:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        self.map.load_state_dict(kept)
        self.map.requires_grad_(False)
        return self

    def forward(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (m, classes) of logits (m, classes)."""
        return self._mapped(logits)

    @computed_wide
    def _mapped(self, logits: Tensor) -> Tensor:
        return self.map(logits)

    def _fresh(self, reach: float, generator: torch.Generator | None) -> nn.Module:
        reach = max(1.0, reach)
        if self.calibrator == "temperature":
            return Temperature()
        if self.calibrator == "ensemble":
            return EnsembleTemperature()
        if self.calibrator == "piecewise":
            return PiecewiseLinear(reach=reach)
        return MonotoneNet(reach=reach, generator=generator)
