"""Prototype autoencoder: classify by distances to learned prototypes that a decoder can show as images.

Paper     Li, Liu, Chen and Rudin 2018, AAAI, arXiv:1710.04806, sections 3 and 4
Computes  z = f(x); d_j = |z - p_j|^2; logits W d without bias; loss = l_class CE + l_rec mean |g(f(x)) - x|^2 + l_1 R1 +
          l_2 R2, R1 = mean_j min_i |p_j - f(x_i)|^2, R2 = mean_i min_j |f(x_i) - p_j|^2
Shapes    x (n, channels, height, width) in [0, 1] -> `Output` in training, logits (n, classes) in evaluation
Departs   1. as many stride-2 convolutions as bring the image to about 2 x 2 (four for 28 x 28 as in the paper, two for 8 x 8)
          2. elastic deformation keeps the paper's size relative to the image: sigma 4 s / 28, alpha 20 (s / 28)^2
          3. the smallest distance of R1 may also run over a bank of recent codes, for batches that are small against the
             number of prototypes; off by default
          4. ReLU between the convolutions by default (sigmoid as in the paper by `act`): the paper trains 1500 epochs
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.images.codes import ACTS, CODE, halvings, make_decoder, make_encoder
from probatum.numerics.tensors.precision import computed_wide
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:1710.04806",
    title="Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its Predictions",
    entry="build",
    number=84,
    tags=("glassbox", "vision", "prototypes", "explanation"),
    alone="its prototypes are weights outside any layer, and its objective has four terms of its own",
    modalities=("image",),
    tasks=("classes",),
    tiny={"prototypes": 5, "width": 8},
    tune={"prototypes": [15, 30], "class_weight": (1.0, 50.0, "log"), "width": [16, 32, 64]},
    claims=("as-accurate-and-legible",),
)


class Output(NamedTuple):
    """What training mode returns: logits (n, K), decoded images, distances (n, m) and codes (n, q)."""

    logits: Tensor
    decoded: Tensor
    distances: Tensor
    code: Tensor


@computed_wide
def squared_distances(z: Tensor, p: Tensor) -> Tensor:
    """|z_i - p_j|^2 by expansion, cut at 0 where rounding would make it negative: (n, q), (m, q) -> (n, m)."""
    return ((z * z).sum(1, keepdim=True) - 2 * z @ p.T + (p * p).sum(1)).clamp_min(0)


LOOKS = 100
"""Batches on an accelerator after which the range of the images is looked at, which waits for the device."""


def elastic(x: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Deform images (n, channels, height, width) along smooth random displacements (Simard et al. 2003).

    Args:
        x: images.
        generator: the displacements are drawn from it.
        strength: factor on the paper's displacement, at least 0.
    """
    n, _, height, width = x.shape
    size = min(height, width)
    sigma, alpha = 4 * size / 28, 20 * (size / 28) ** 2 * strength
    field = 2 * torch.rand(2 * n, 1, height, width, generator=generator).to(x) - 1
    reach = max(1, min(math.ceil(3 * sigma), size - 1))
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    field = F.conv2d(F.pad(field, (reach, reach, 0, 0)), kernel.view(1, 1, 1, -1))
    field = F.conv2d(F.pad(field, (0, 0, reach, reach)), kernel.view(1, 1, -1, 1))
    shift = alpha * field.view(n, 2, height, width).movedim(1, 3)  # in pixels
    shift = shift * torch.tensor([2 / width, 2 / height]).to(x)
    identity = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(n, 2, 3)
    grid = F.affine_grid(identity, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid + shift, padding_mode="border", align_corners=False)


class Deform(nn.Module):
    """`elastic` in training mode, nothing in evaluation; its random stream is part of the state dict."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self.stream: Tensor
        seed = int(torch.randint(2**62, ()))
        self.register_buffer("stream", torch.Generator().manual_seed(seed).get_state())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.strength == 0:
            return x
        generator = torch.Generator()
        generator.set_state(self.stream.cpu())  # a model on another device carries its stream along
        deformed = elastic(x, generator, self.strength)
        self.stream.copy_(generator.get_state())
        return deformed


class PrototypeAutoencoder(nn.Module):
    """Images (n, channels, height, width) in [0, 1] -> logits (n, classes), through distances to prototypes alone.

    Args:
        shape: of one image.
        classes: number of classes K.
        prototypes: number of prototypes m, at least K.
        class_weight: l_class.
        reconstruction: l_rec.
        near_example: l_1, draws every prototype to some example's code.
        near_prototype: l_2, draws every code to some prototype.
        width: channels of the convolutions.
        act: ``"relu"`` or ``"sigmoid"`` between them.
        deform: strength of elastic deformation in training (1 = the paper's); the clean image is reconstructed.
        bank: recent codes that R1's minimum runs over beside the batch.

    Raises:
        ValueError: a setting outside its range, or training images outside [0, 1].

    Example:
        >>> model = PrototypeAutoencoder((1, 8, 8), classes=3, prototypes=6, width=8)
        >>> x, y = torch.rand(20, 1, 8, 8), torch.randint(3, (20,))
        >>> model.objective(x, model(x), y, F.cross_entropy).backward()
        >>> seen = explain(model.eval(), x[:2])
        >>> tuple(seen.images.shape), tuple(model(x).shape)
        ((2, 3, 1, 8, 8), (20, 3))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        prototypes: int = 15,
        class_weight: float = 20.0,
        reconstruction: float = 1.0,
        near_example: float = 1.0,
        near_prototype: float = 1.0,
        width: int = 32,
        act: str = "relu",
        deform: float = 1.0,
        bank: int = 0,
    ) -> None:
        super().__init__()
        if prototypes < classes:
            raise ValueError(f"prototypes is {prototypes}; with {classes} classes there must be at least {classes}")
        weights = {"class_weight": class_weight, "reconstruction": reconstruction, "near_example": near_example}
        weights |= {"near_prototype": near_prototype, "deform": deform, "bank": bank}
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if act not in ACTS:
            raise ValueError(f"act is {act!r}; use relu or sigmoid")
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        self.class_weight, self.reconstruction = class_weight, reconstruction
        self.near_example, self.near_prototype = near_example, near_prototype
        self.deform = Deform(deform)
        self.encoder = make_encoder(shape, width, act)
        self.decoder = make_decoder(shape, width, act)
        size = halvings(*shape[1:])[-1]
        self.prototypes = nn.Parameter(torch.rand(prototypes, CODE * size[0] * size[1]))
        self.head = nn.Linear(prototypes, classes, bias=False)
        self._first = True  # only the first batch is looked at: an epoch's last one may be short
        self._span: Tensor | None = None
        self._batches = 0
        self.bank: Tensor
        self.register_buffer("bank", torch.full((bank, self.prototypes.shape[1]), float("inf")))

    def forward(self, x: Tensor) -> Output | Tensor:
        code = self.encoder(self.deform(x))
        distances = squared_distances(code, self.prototypes)
        logits = self.head(distances)
        return Output(logits, self.decoder(code), distances, code) if self.training else logits

    def objective(self, x: Tensor, output: Output, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The weighted sum of the four terms; one with weight 0 takes no part. x (n, ...) is the clean batch."""
        if isinstance(output, Tensor):
            raise TypeError("output is a tensor of logits, as in evaluation; call model.train() before model(x)")
        total = self.class_weight * loss(output.logits, target)
        if self.reconstruction:
            self._check_range(x)
            total = total + self.reconstruction * (output.decoded - x).square().flatten(1).sum(1).mean()
        if self.near_example:
            total = total + self.near_example * self._nearest_example(output).mean()
        if self.near_prototype:
            total = total + self.near_prototype * output.distances.amin(dim=1).mean()
        return total

    def _check_range(self, x: Tensor) -> None:
        """ValueError for images outside [0, 1]; on an accelerator the range stays there and is looked at now and then."""
        span = torch.stack([x.detach().amin(), x.detach().amax()])
        if self._span is not None and self._span.device == span.device:
            low, high = torch.minimum(self._span[0], span[0]), torch.maximum(self._span[1], span[1])
            span = torch.stack([low, high])
        self._span, self._batches = span, self._batches + 1
        if span.device.type != "cpu" and self._batches % LOOKS != 1:
            return
        low, high = span.tolist()
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # also where they are not numbers
            self._span = None
            raise ValueError(f"images reach from {low:g} to {high:g}; the decoder ends in a sigmoid, scale to [0, 1]")

    def _nearest_example(self, output: Output) -> Tensor:
        """min_i |p_j - f(x_i)|^2 for every prototype (m,), over the batch and the bank."""
        nearest = output.distances.amin(dim=0)
        if len(self.bank) == 0:
            first, self._first = self._first, False
            if first and len(output.code) < 2 * len(self.prototypes):
                warnings.warn(
                    f"a batch of {len(output.code)} for {len(self.prototypes)} prototypes biases R1; use larger batches "
                    "or a bank of recent codes (bank=256)",
                    stacklevel=3,
                )
            return nearest
        known = self.bank[self.bank.isfinite().all(dim=1)]
        if len(known):
            nearest = torch.minimum(nearest, squared_distances(known, self.prototypes).amin(dim=0))
        with torch.no_grad():
            self.bank.copy_(torch.cat([output.code.detach(), self.bank])[: len(self.bank)])
        return nearest

    def prototype_images(self) -> Tensor:
        """The decoded prototypes (m, channels, height, width)."""
        return self.decoder(self.prototypes)

    def prototype_classes(self) -> Tensor:
        """The class each prototype stands for (m,): where its weight is most negative."""
        return self.head.weight.argmin(dim=0)


class Case(NamedTuple):
    """Why: for each of n inputs the k nearest prototypes, nearest first.

    `index` (n, k), `distances` (n, k), `classes` (n, k) they stand for, `weights` (n, k, K) = their columns of W, `images`
    (n, k, channels, height, width) decoded.
    """

    index: Tensor
    distances: Tensor
    classes: Tensor
    weights: Tensor
    images: Tensor


@torch.no_grad()
def explain(model: PrototypeAutoencoder, x: Tensor, k: int = 3) -> Case:
    """The prototypes that decide about x (n, channels, height, width); ValueError unless 1 <= k <= m."""
    if not 1 <= k <= len(model.prototypes):
        raise ValueError(f"k is {k}; the model has {len(model.prototypes)} prototypes")
    distances = squared_distances(model.encoder(x), model.prototypes)
    nearest, index = distances.topk(k, dim=1, largest=False)
    weights = model.head.weight.T[index]
    return Case(index, nearest, model.prototype_classes()[index], weights, model.prototype_images()[index])


@torch.no_grad()
def prototype_report(model: PrototypeAutoencoder, x: Tensor, alike: float = 0.05) -> dict[str, object]:
    """Dead prototypes (nearest to no row of x), and pairs whose decoded images differ by at most `alike` (root mean
    square)."""
    nearest = squared_distances(model.encoder(x), model.prototypes).argmin(dim=1)
    used = nearest.bincount(minlength=len(model.prototypes))
    flat = model.prototype_images().flatten(1)
    apart = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    pairs = [(i, j) for i, j in (apart <= alike).nonzero().tolist() if i < j]
    return {"dead": (used == 0).nonzero().flatten().tolist(), "alike": pairs, "examples": used.tolist()}


def build(
    spec: Spec,
    prototypes: int = 15,
    class_weight: float = 20.0,
    reconstruction: float = 1.0,
    near_example: float = 1.0,
    near_prototype: float = 1.0,
    width: int = 32,
    act: str = "relu",
    deform: float = 1.0,
    bank: int = 0,
) -> PrototypeAutoencoder:
    """`PrototypeAutoencoder` for image classes; settings as there, ValueError where one is out of its range."""
    channels, height, size = spec.shape
    return PrototypeAutoencoder(
        (channels, height, size),
        spec.outputs,
        prototypes=prototypes,
        class_weight=class_weight,
        reconstruction=reconstruction,
        near_example=near_example,
        near_prototype=near_prototype,
        width=width,
        act=act,
        deform=deform,
        bank=bank,
    )
