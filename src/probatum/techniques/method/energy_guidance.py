"""Energy guidance: a loss on the attribution map draws a classifier's evidence into given boxes or masks.

Paper     Rao, Boehle, Parchami-Araghi and Schiele 2023, "Studying How to Efficiently and Effectively Guide Models with
          Explanations", ICCV, arXiv:2303.11932
Computes  L + weight * L_loc; energy: 1 - sum of A+ inside over sum of A+; RRR: sum outside of A^2; L1: mean |A+ / max - M|; PPCE:
          cross-entropy of A+ / max inside against 1; A is input x gradient, integrated gradients or Grad-CAM of the row's class,
          summed over channels
Shapes    attribution (n, h, w), mask (n, h, w) -> (n,); images (n, c, h, w)
Departs   1. slot method, not explain: it acts in training. On the bench boxes are told by row (`boxes`), or one box holds for all
             images (`region`), of which a share is used (`annotated`)
          2. attributions are of one layer: the input, or one named; the layer's map is compared with the mask resized to it
          3. B-cos networks are not offered
          4. integrated gradients (Sundararajan et al. 2017) go from black by a few midpoints, whose number is a setting
          5. maps are taken in evaluation mode, so that the annotated rows, seen twice, do not move batch norm's statistics
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from probatum.card import Card
from probatum.numerics.networks.last_layer import named_module
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.networks.watch import pass_through
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import IGNORED, class_targets

CARD = Card(
    paper="arXiv:2303.11932",
    title="Using Explanations to Guide Models",
    entry="EnergyGuidance",
    number=163,
    tags=("shortcut", "explain", "robustness", "vision"),
    modalities=("image",),
    tasks=("classes",),
    neutral={"weight": 0.0},
    tiny={"region": [0.0, 0.0, 1.0, 0.5], "annotated": 1.0},
    tune={"weight": (0.01, 10.0, "log"), "loss": ["energy", "rrr", "l1", "ppce"]},
    claims=("boxes-against-a-patch",),
)

LOSSES = ("energy", "rrr", "l1", "ppce")
LEAST = 1e-7
"""Maps with less positive attribution than this say nothing and are left out."""


def check_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (n, 4) as x0, y0, x1, y1 in pixels, right and lower edge not included.

    Raises:
        ValueError: with the offending row: outside the image, empty, or in units of 0 to 1.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have shape {tuple(boxes.shape)}; give (n, 4): x0, y0, x1, y1 in pixels")
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        if max(x0, y0, x1, y1) <= 1 and (x1 - x0 < 1 or y1 - y0 < 1) and min(height, width) > 1:
            raise ValueError(f"box {i} is {[x0, y0, x1, y1]}: these look like shares of the image; give pixels")
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"box {i} is {[x0, y0, x1, y1]}, outside the image of {width} x {height} or empty")
    return boxes


def masks_of(boxes: Tensor, rows: Tensor, count: int, height: int, width: int) -> Tensor:
    """Unions (count, h, w) of the boxes (k, 4) that belong to each image, `rows` (k,) saying to which.

    Edges are rounded to pixels; a box in which nothing would be left is the row or column of pixels its middle lies in.

    Raises:
        ValueError: as `check_boxes`; or not one row for every box.
    """
    if len(rows) != len(boxes):
        raise ValueError(
            f"there are {len(boxes)} boxes and {len(rows)} rows; say of each box which image it belongs to"
        )
    return _filled(check_boxes(boxes, height, width), rows, count, height, width)


def _filled(boxes: Tensor, rows: Tensor, count: int, height: int, width: int) -> Tensor:
    out = torch.zeros(count, height, width)
    for (x0, y0, x1, y1), row in zip(boxes.tolist(), rows.tolist(), strict=True):
        out[row, _pixels(y0, y1), _pixels(x0, x1)] = 1.0
    return out


def _pixels(low: float, high: float) -> slice:
    """The pixels between two edges, at least one."""
    if round(low) == round(high):
        middle = math.floor((low + high) / 2)
        return slice(middle, middle + 1)
    return slice(round(low), round(high))


def _positive(attribution: Tensor) -> tuple[Tensor, Tensor]:
    """A+ over its largest value, (n, h, w), and which rows have enough of it, (n,)."""
    positive = attribution.clamp(min=0)
    there = positive.flatten(1).sum(dim=1) >= LEAST
    top = positive.flatten(1).amax(dim=1).clamp(min=LEAST)
    return positive / top[:, None, None], there


@computed_wide
def localisation_losses(attribution: Tensor, mask: Tensor, loss: str = "energy") -> tuple[Tensor, Tensor]:
    """The loss of every map and which of them count.

    Args:
        attribution: (n, h, w).
        mask: (n, h, w) in [0, 1], resized here where its size differs.
        loss: "energy", "rrr", "l1" or "ppce".

    Returns:
        (n,) losses, 0 where a map does not count, and (n,) bool.

    Raises:
        ValueError: an unknown loss, or a mask of another number of rows.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; use one of {', '.join(LOSSES)}")
    if len(mask) != len(attribution):
        raise ValueError(f"there are {len(mask)} masks for {len(attribution)} maps")
    mask = mask.to(attribution)
    if mask.shape[1:] != attribution.shape[1:]:
        mask = F.interpolate(mask[:, None], size=attribution.shape[1:], mode="area")[:, 0]
    if loss == "rrr":
        return (attribution.square() * (1 - mask)).flatten(1).sum(dim=1), torch.ones(len(mask), dtype=torch.bool)
    if loss == "energy":
        positive = attribution.clamp(min=0).flatten(1)
        total = positive.sum(dim=1)
        there = total >= LEAST
        inside = (positive * mask.flatten(1)).sum(dim=1)
        return torch.where(there, 1 - inside / total.clamp(min=LEAST), 0.0), there
    scaled, there = _positive(attribution)
    if loss == "l1":
        each = (scaled - mask).abs().flatten(1).mean(dim=1)
    else:
        logs = -scaled.clamp(min=1e-6).log().flatten(1)
        each = (logs * mask.flatten(1)).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp(min=1)
    return torch.where(there, each, 0.0), there


def _attention_with_second_derivatives(needed: bool) -> AbstractContextManager[None]:
    """Torch's attention in the form whose backward pass can be differentiated; its fused forms (2.13.0, CPU) cannot."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()


def _own_logits(output: Tensor, target: Tensor) -> Tensor:
    return output.gather(1, class_targets(output, target, least=1)[:, None]).sum()


def _on_path(x: Tensor, points: int) -> Tensor:
    """Images (points * n, ...) at the midpoints of so many equal parts of the way from black, or as they are."""
    if not points:
        return x
    shares = (torch.arange(points, dtype=x.dtype, device=x.device) + 0.5) / points
    return (shares.view(-1, *[1] * x.ndim) * x).flatten(0, 1)


def attribution(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    layer: str | nn.Module | None = None,
    create_graph: bool = False,
    points: int = 0,
) -> Tensor:
    """Input x gradient of the target's logit, summed over channels; of a layer: Grad-CAM's weighted sum of its maps, signed.

    With `points`, the gradient is its mean over the path from black to the image: what a slope that is flat at the image alone hides.

    Args:
        model: (n, c, h, w) -> logits (n, classes).
        x, target: images and the classes to explain, (n,).
        layer: None = the input; else a module, or its name, whose output is (n, channels, h, w).
        create_graph: whether the map is to be differentiated itself.
        points: midpoints of integrated gradients' path; 0 = the gradient at the image. Of the input alone.

    Returns:
        (n, h, w).

    Raises:
        ValueError: labels that are no classes of the network, a layer whose output is no map, or a path for a layer.
    """
    if points and layer is not None:
        raise ValueError(f"points is {points} for layer {layer!r}; integrated gradients are of the input alone")
    with torch.enable_grad():
        if layer is None:
            at = _on_path(x.detach(), points).requires_grad_()
            with _attention_with_second_derivatives(create_graph):
                own = _own_logits(model(at.clone()), target.reshape(-1).repeat(max(1, points)))
            (slope,) = torch.autograd.grad(own, at, create_graph=create_graph)
            if points:
                slope = slope.unflatten(0, (points, len(x))).mean(dim=0)
            return ((x.detach() if points else at) * slope).sum(dim=1)
        with _attention_with_second_derivatives(create_graph):
            output, seen = pass_through(model, x, named_module(model, layer))
        own = _own_logits(output, target)
        if len(seen) != 1 or seen[0].ndim != 4:
            raise ValueError(
                f"layer {layer!r} gives {[tuple(s.shape) for s in seen]}; one map (n, channels, h, w) is needed"
            )
        (slope,) = torch.autograd.grad(own, seen[0], create_graph=create_graph)
        return (seen[0] * slope.mean(dim=(2, 3), keepdim=True)).sum(dim=1)


def box_iou(attribution: Tensor, mask: Tensor, share: float = 0.5) -> Tensor:
    """Intersection over union of the mask and where A+ is at least `share` of its largest value, (n,)."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")
    scaled, _ = _positive(attribution)
    hot, box = scaled >= share, mask > 0.5
    return (hot & box).flatten(1).sum(dim=1) / (hot | box).flatten(1).sum(dim=1).clamp(min=1)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of (quality, localisation) pairs that no other one beats in both, best quality first."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    found, best = [], float("-inf")
    for i in order:
        if points[i][1] > best:
            found.append(i)
            best = points[i][1]
    return found


class EnergyGuidance:
    """The localisation loss in training.

    Args:
        weight: lambda, at least 0; 0 = the baseline bit for bit.
        loss: "energy", "rrr", "l1" or "ppce".
        boxes: row of the dataset (`Part.rows`) -> box (x0, y0, x1, y1) in pixels.
        region: instead, one box for all images, as shares of width and height: [x0, y0, x1, y1] in [0, 1].
        annotated: share of the training rows whose box is used, in (0, 1].
        layer: a module's name; None = the input.
        points: of integrated gradients, at least 0; 0 = input x gradient. More than 0 only where `layer` is None.
        scale_up: whether the loss is divided by the share of annotated rows in the batch (few boxes then weigh as many).
        generator: which rows are annotated.

    Raises:
        ValueError: settings out of range, both or neither of boxes and region (unless weight is 0), boxes outside the images.

    Example:
        >>> a, m = torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
        >>> localisation_losses(a, m)[0].tolist()
        [0.25]
    """

    reads = ("batch", "target")
    writes = ("loss",)

    def __init__(
        self,
        generator: torch.Generator,
        weight: float = 1.0,
        loss: str = "energy",
        boxes: Mapping[int, Sequence[float]] | None = None,
        region: Sequence[float] | None = None,
        annotated: float = 1.0,
        layer: str | None = None,
        scale_up: bool = True,
        points: int = 0,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight is {weight}; it must be at least 0")
        if loss not in LOSSES:
            raise ValueError(f"loss is {loss!r}; use one of {', '.join(LOSSES)}")
        if points < 0 or (points and layer is not None):
            raise ValueError(f"points is {points} and layer {layer!r}; use 0 or more, and more than 0 without a layer")
        if not 0 < annotated <= 1:
            raise ValueError(f"annotated is {annotated}; it must lie in (0, 1]")
        if weight and (boxes is None) == (region is None):
            raise ValueError("give boxes by row, or one region for all images, e.g. region=[0.25, 0.25, 0.75, 0.75]")
        if region is not None and not (
            len(region) == 4 and 0 <= region[0] < region[2] <= 1 and 0 <= region[1] < region[3] <= 1
        ):
            raise ValueError(f"region is {list(region)}; give x0 < x1 and y0 < y1 as shares in [0, 1]")
        self.generator, self.weight, self.kind, self.boxes, self.region = generator, weight, loss, boxes, region
        self.annotated, self.layer, self.scale_up, self.points = annotated, layer, scale_up, points
        self.mask: Tensor | None = None
        self.used: Tensor | None = None

    def prepare(self, run: Any) -> None:
        """Masks of the training rows, and which of them are used."""
        if not self.weight:
            return
        height, width = run.spec.shape[1:]
        rows = run.train.rows.tolist()
        have = torch.ones(len(rows), dtype=torch.bool)
        if self.region is not None:
            x0, y0, x1, y1 = self.region
            box = torch.tensor([[x0 * width, y0 * height, x1 * width, y1 * height]])
            self.mask = _filled(box, torch.tensor([0]), 1, height, width).expand(len(rows), -1, -1)
        else:
            given = self.boxes or {}
            have = torch.tensor([row in given for row in rows])
            if not have.any():
                raise ValueError(f"boxes name {len(given)} rows, none of which is a training row here")
            known = have.nonzero().squeeze(1)
            stacked = torch.tensor([list(given[rows[i]]) for i in known.tolist()], dtype=torch.float64)
            self.mask = masks_of(stacked, known, len(rows), height, width)
        drawn = have.nonzero().squeeze(1)
        count = max(1, round(self.annotated * len(drawn)))
        kept = drawn[torch.randperm(len(drawn), generator=self.generator)[:count]]
        self.used = torch.zeros(len(rows), dtype=torch.bool).index_fill(0, kept, True)
        run.notes["rows-with-boxes"] = float(count)

    def loss(self, run: Any, batch: Any, output: Tensor, loss: Tensor) -> Tensor:
        """The loss and the mean localisation loss of the annotated rows of the batch."""
        if self.mask is None or self.used is None:
            return loss
        index = batch.index.cpu()
        there = self.used[index]
        if not batch.y.is_floating_point():
            there &= batch.y.cpu().reshape(-1) != IGNORED  # no class whose evidence could be drawn into the box
        mine = there.nonzero().squeeze(1)
        if not len(mine):
            return loss
        run.extra_passes += len(mine) * max(1, self.points)
        place = mine.to(batch.x.device)
        with evaluating(run.model):
            found = attribution(run.model, batch.x[place], batch.y[place], self.layer, True, self.points)
        each, there = localisation_losses(found, self.mask[index[mine]].to(found), self.kind)
        if not there.any():
            return loss
        local = each[there].mean()
        return loss + self.weight * (local if self.scale_up else local * len(mine) / len(index))

    def state_dict(self) -> dict[str, Any]:
        """Which rows are annotated, and the state of the stream they were drawn from."""
        return {"used": self.used, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, after `prepare`."""
        self.used = state["used"]
        self.generator.set_state(state["generator"])

    def finish(self, run: Any) -> None:
        """Let go of the masks."""
        self.mask = self.used = None
