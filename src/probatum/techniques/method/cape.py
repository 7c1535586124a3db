"""Calibrated probability estimation: an early-stopped network is tuned towards the frequencies of its own groups.

Paper     Liu et al. 2022, "Deep Probability Estimation", ICML 2022, arXiv:2111.10734, section 5 and algorithm 1
Computes  stage 1: the training as it is, until the validation log-loss has not fallen for some epochs; its best weights are
          put back. Stage 2: every (m + 1)-th epoch begins by predicting all training rows in evaluation mode; the epoch's
          targets are q_i = mean label of row i's group of equal count ("bin"), or sum_j K(p_i - p_j) y_j / sum_j K over the
          500 rows on either side in the order of p, K Gaussian ("kde"); other epochs have the labels. The weights of lowest
          validation log-loss are kept
Shapes    p (n,), y (n,) in {0, 1} -> q (n,); batch: y (b,) int64 -> (b, 2) probabilities
Departs   1. the learning rate follows the loop's schedule; the release halves it where the validation loss stands still
          2. both stages share the budget: stage 2 begins at the latest after `share` of the steps
          3. one_vs_rest=True makes q class by class and divides by their sum, for more than two classes
          4. an m of None keeps labels in all epochs: the training with its best weights by log-loss, and no targets
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.watch import outputs_of
from probatum.numerics.tensors.precision import computed_wide

CARD = Card(
    paper="arXiv:2111.10734",
    title="Deep Probability Estimation",
    entry="Cape",
    number=35,
    tags=("calibration", "probabilities", "binary", "training"),
    tasks=("classes",),
    tiny={"labels_between": 1, "bins": 4, "share": 0.3, "one_vs_rest": True},
    tune={"labels_between": [1, 3, 5], "grouping": ["bin", "kde"], "share": [0.3, 0.5, 0.7]},
    claims=("true-probabilities",),
    expect_fail={"settings_matter": "a dozen steps hold one relabelling; its own tests hold the distance of two"},
)

GROUPINGS = ("bin", "kde")
NEIGHBOURS = 500
CHUNK = 512


@computed_wide
def bin_targets(p: Tensor, y: Tensor, bins: int = 10) -> Tensor:
    """Mean label of each row's group, groups of equal count in the order of p; bins = rows gives the labels back.

    Args:
        p: (n,) predictions.
        y: (n,) labels 0 or 1.
        bins: groups, between 1 and n; ties in p are broken by the rows' order.

    Raises:
        ValueError: bins out of range, shapes that do not fit, predictions that are not finite, labels that are not 0 or 1.
    """
    y = _labels(p, y)
    if not 1 <= bins <= len(p):
        raise ValueError(f"bins is {bins} for {len(p)} rows; use between 1 and {len(p)}")
    order = p.argsort(stable=True)
    q = torch.empty_like(y)
    for group in order.tensor_split(bins):
        q[group] = y[group].mean()
    return q


@computed_wide
def kde_targets(p: Tensor, y: Tensor, bandwidth: float = 0.1, neighbours: int = NEIGHBOURS) -> Tensor:
    """Kernel-weighted mean label of the rows nearest in the order of p, the row itself among them.

    Args:
        p: (n,) predictions.
        y: (n,) labels 0 or 1.
        bandwidth: standard deviation of the Gaussian, above 0.
        neighbours: rows on either side, at least 1.

    Raises:
        ValueError: settings out of range, shapes that do not fit, predictions that are not finite, labels that are not 0 or 1.
    """
    y = _labels(p, y)
    if not (bandwidth > 0 and math.isfinite(bandwidth)) or neighbours < 1:
        raise ValueError(f"bandwidth is {bandwidth} and neighbours {neighbours}; use above 0 and at least 1")
    order = p.argsort(stable=True)
    sorted_p, sorted_y = p[order].double(), y[order].double()
    n, found = len(p), []
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        low, high = max(0, start - neighbours), min(n, stop + neighbours)
        away = torch.arange(start, stop)[:, None] - torch.arange(low, high)[None]
        gap = (sorted_p[start:stop, None] - sorted_p[None, low:high]) / bandwidth
        weight = torch.exp(-0.5 * gap.square()).masked_fill(away.abs().to(gap.device) > neighbours, 0.0)
        found.append((weight @ sorted_y[low:high]) / weight.sum(dim=1))
    q = torch.empty_like(y)
    q[order] = torch.cat(found).to(y.dtype)
    return q


class Cape:
    """Acts in the loop; alone, `targets` gives the soft targets of a whole training set by row number.

    Args:
        labels_between: epochs with labels between two with targets (the paper's m = 5), at least 1 (targets alone take
            the classes apart no more); None = labels always.
        grouping: "bin" or "kde".
        bins: groups of "bin".
        bandwidth: of "kde".
        patience: epochs without a lower validation log-loss after which stage 1 ends.
        share: share of the steps after which stage 1 ends at the latest, in (0, 1).
        one_vs_rest: take more than two classes, class by class.

    Raises:
        ValueError: a setting outside its range; more than two classes without one_vs_rest; soft labels.

    Example:
        >>> cape = Cape(bins=2)
        >>> cape.targets(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0, 1, 1, 1]))
        tensor([0.5000, 0.5000, 1.0000, 1.0000])
    """

    writes = ("target", "weights")

    def __init__(
        self,
        labels_between: int | None = 5,
        grouping: str = "bin",
        bins: int = 10,
        bandwidth: float = 0.1,
        patience: int = 3,
        share: float = 0.5,
        one_vs_rest: bool = False,
    ) -> None:
        if labels_between is not None and labels_between < 1:
            raise ValueError(f"labels_between is {labels_between}; use 1 or more: with targets alone classes collapse")
        if grouping not in GROUPINGS:
            raise ValueError(f"grouping is {grouping!r}; use one of {', '.join(GROUPINGS)}")
        if bins < 1 or patience < 1:
            raise ValueError(f"bins is {bins} and patience {patience}; both must be at least 1")
        if not (bandwidth > 0 and math.isfinite(bandwidth)):
            raise ValueError(f"bandwidth is {bandwidth}; it must be above 0 and finite")
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; it must lie between 0 and 1")
        self.labels_between, self.grouping, self.bins, self.bandwidth = labels_between, grouping, bins, bandwidth
        self.patience, self.share, self.one_vs_rest = patience, share, one_vs_rest
        self.begun: int | None = None
        self.best, self.waited = math.inf, 0
        self.weights: dict[str, Tensor] | None = None
        self.soft: Tensor | None = None
        self.rounds = 0

    def targets(self, p: Tensor, y: Tensor) -> Tensor:
        """Soft targets (n,) of all rows from predictions (n,) and labels (n,) in {0, 1}."""
        if self.grouping == "kde":
            return kde_targets(p, y, self.bandwidth)
        return bin_targets(p, y, min(self.bins, len(p)))

    def prepare(self, run: Any) -> None:
        """Check the labels; from here on the method keeps the best weights itself."""
        y, outputs = run.train.y, run.spec.outputs
        if y.is_floating_point():
            raise ValueError(
                "labels are soft already; give hard labels 0 and 1, of which the groups' frequencies are made"
            )
        if outputs != 2 and not self.one_vs_rest:
            raise ValueError(
                f"there are {outputs} classes; the method is for two: set one_vs_rest=True to go class by class"
            )
        run.keep_best = False

    def order(self, run: Any, order: Tensor) -> Tensor:
        """At the start of an epoch: end stage 1 if it is time, and make targets where it is their turn."""
        if self.begun is None and self.labels_between is not None and self._stage_one_is_over(run):
            self.begun = run.epoch
            if self.weights is not None:
                run.model.load_state_dict(self.weights)
        self.soft = None
        if self.begun is None or self.labels_between is None:
            return order
        if (run.epoch - self.begun) % (self.labels_between + 1) == 0:
            self.soft = self._soft(run)
        return order

    def batch(self, run: Any, batch: Any) -> Any:
        """Put the targets in the labels' place, by row number."""
        if self.soft is None:
            return batch
        index = getattr(batch, "index", None)
        if index is None or len(index) != len(batch.y):
            raise ValueError("batches must carry the row numbers of their examples: targets are kept by row")
        return batch._replace(y=self.soft[index.to(self.soft.device)].to(batch.x.device))

    def epoch_end(self, run: Any) -> None:
        """Keep the weights of lowest validation log-loss."""
        loss = float(F.cross_entropy(outputs_of(run.model, run.valid.x, 1024), run.valid.y))
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.weights = copy.deepcopy(run.model.state_dict())
        else:
            self.waited += 1

    def finish(self, run: Any) -> None:
        """Put the best weights back, those of the last step among them."""
        self.epoch_end(run)
        if self.weights is not None:
            run.model.load_state_dict(self.weights)
        self.soft = None

    def state_dict(self) -> dict[str, Any]:
        """The stage, the best weights and their log-loss, the epochs waited, and the targets of the epoch in hand."""
        kept = {"begun": self.begun, "best": self.best, "waited": self.waited, "rounds": self.rounds, "soft": self.soft}
        return {**kept, "weights": copy.deepcopy(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.begun, self.best, self.waited = state["begun"], state["best"], state["waited"]
        self.rounds, self.soft, self.weights = state["rounds"], state["soft"], copy.deepcopy(state["weights"])

    def report(self) -> dict[str, float]:
        """The epoch at which stage 2 began (-1 = never), the epochs with targets, and the lowest validation log-loss."""
        begun = -1.0 if self.begun is None else float(self.begun)
        return {"stage 2 began": begun, "epochs with targets": float(self.rounds), "best log-loss": self.best}

    def _stage_one_is_over(self, run: Any) -> bool:
        return self.waited >= self.patience or run.step >= self.share * run.budget.steps

    def _soft(self, run: Any) -> Tensor:
        """(n, classes) targets of all training rows; the pass over them is charged."""
        if not isinstance(run.train.x, Tensor):
            raise ValueError("targets need a pass over all training rows, which are streamed here; use data in memory")
        p = outputs_of(run.model, run.train.x, 1024).softmax(dim=1)
        run.extra_passes += len(p) / 3  # forward alone, about a third of a pass
        self.rounds += 1
        y, classes = run.train.y, p.shape[1]
        if classes == 2:
            q = self.targets(p[:, 1], y)
            return torch.stack([1 - q, q], dim=1)
        each = [self.targets(p[:, k], (y == k).long()) for k in range(classes)]
        q = torch.stack(each, dim=1)
        return q / q.sum(dim=1, keepdim=True).clamp_min(1e-12)


def _labels(p: Tensor, y: Tensor) -> Tensor:
    if p.ndim != 1 or y.shape not in (p.shape, (len(p), 1)) or not len(p):
        raise ValueError(f"p is {tuple(p.shape)} and y {tuple(y.shape)}; give (n,) each, n >= 1")
    if not bool(torch.isfinite(p).all()):
        row = int((~torch.isfinite(p)).nonzero()[0])
        raise ValueError(f"the prediction of row {row} is {float(p[row])}; groups are made in the order of finite ones")
    if not bool(((y == 0) | (y == 1)).all()):
        raise ValueError("y holds other values than 0 and 1; give hard labels of two classes")
    return y.reshape(-1).to(p.dtype)
