"""Probabilistic self-explainable network: a Gaussian prototype for each class, which a decoder shows with its spread.

Paper     Vadillo, Santana, Lozano and Kwiatkowska 2024, "Uncertainty-Aware Explanations Through Probabilistic
          Self-Explainable Neural Networks", arXiv:2403.13740
Computes  z = f(x); P_k ~ N(mu_k, L_k L_k'), T sets of draws; p(y = k | x) = mean_t softmax_k(-tau |z - P_k^t|^2); loss = -log of that
          + l_rec mean |g(z) - x|^2 + l_near (mean_k min_i |P_k - z_i|^2 + mean_i |z_i - P_y|^2)
Shapes    x (n, channels, height, width) in [0, 1] -> `Output` in training, log-probabilities (n, classes) in evaluation
Departs   1. weights and form of the term that keeps prototypes among codes are reconstructed; it also draws codes to the prototype
             of their own class
          2. the scale tau of squared distances is learned (in 40 dimensions they would saturate the softmax)
          3. deviations have a floor (0.01), so that Gaussians do not collapse to points
          4. evaluation uses the same T draws for predictions and pictures, kept with the weights
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.images.codes import CODE, halvings, make_decoder, make_encoder
from probatum.numerics.tensors.precision import computed_wide
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:2403.13740",
    title="Uncertainty-Aware Explanations Through Probabilistic Self-Explainable Neural Networks",
    entry="build",
    number=11,
    tags=("glassbox", "vision", "prototypes", "explanation", "uncertainty"),
    alone="its prototypes are weights outside any layer, and its objective has terms and draws of its own",
    modalities=("image",),
    tasks=("classes",),
    tiny={"draws": 4, "width": 8},
    tune={"reconstruction": (0.1, 10.0, "log"), "near": (1e-3, 0.1, "log"), "covariance": ["full", "diagonal"]},
    claims=("knows-its-errors",),
)

COVARIANCES = ("full", "diagonal")


class Output(NamedTuple):
    """What training mode returns: log-probabilities (n, K), decoded images, codes (n, D) and the drawn prototypes (T, K, D)."""

    log_p: Tensor
    decoded: Tensor
    code: Tensor
    prototypes: Tensor


class Uncertainty(NamedTuple):
    """Entropy of the mean prediction, mean entropy of the draws' predictions, and their difference, all (n,) in nats."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


class Explanation(NamedTuple):
    """Predicted classes (n,), decoded draws of their prototypes (T, n, ...), and the pictures' variance by pixel (n, ...)."""

    classes: Tensor
    images: Tensor
    variance: Tensor


@computed_wide
def log_mean_softmax(code: Tensor, prototypes: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """log of the mean over T of softmax_k(-scale |z - P_k^t|^2), (n, K), and the draws' own log-probabilities (T, n, K).

    Args:
        code: (n, D).
        prototypes: (T, K, D).
        scale: positive.
    """
    square = torch.cdist(
        code.expand(len(prototypes), -1, -1), prototypes, compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    each = (-scale * square).log_softmax(dim=2)
    return each.logsumexp(dim=0) - math.log(len(prototypes)), each


@computed_wide
def apart(code: Tensor, prototypes: Tensor, own: Tensor) -> Tensor:
    """mean_k min_i |P_k - z_i|^2 + mean_i |z_i - P_own|^2: codes (n, D), prototypes (K, D), own (n,) -> a scalar."""
    to_codes = torch.cdist(prototypes, code).square().amin(dim=1).mean()
    return to_codes + (code - prototypes[own]).square().sum(dim=1).mean()


def split_entropy(each: Tensor) -> Uncertainty:
    """Total, aleatoric and epistemic entropy of the draws' log-probabilities (T, n, K).

    Raises:
        ValueError: a single draw, which has no epistemic part.
    """
    if len(each) < 2:
        raise ValueError(f"there is {len(each)} draw of the prototypes; uncertainty of the explanation needs 2 or more")
    mean = (each.logsumexp(dim=0) - math.log(len(each))).exp()
    total = torch.special.entr(mean).sum(dim=1)
    aleatoric = torch.special.entr(each.exp()).sum(dim=2).mean(dim=0)
    return Uncertainty(total, aleatoric, total - aleatoric)


class ProbPSENN(nn.Module):
    """Images (n, channels, height, width) in [0, 1] -> log-probabilities (n, classes).

    Args:
        shape: of one image.
        classes: number of classes K, at least 2.
        draws: T sets of prototypes for each prediction, at least 1.
        covariance: "full" (a Cholesky factor a class) or "diagonal".
        reconstruction: weight of the mean squared error of decoded images, at least 0.
        near: weight of the term that keeps prototypes among codes, at least 0.
        floor: least standard deviation of a code under its prototype, above 0; 0 allows points.
        width: channels of the convolutions.

    Raises:
        ValueError: a setting outside its range; targets outside the classes.

    Example:
        >>> model = ProbPSENN((1, 8, 8), classes=3, draws=5, width=8)
        >>> x, y = torch.rand(20, 1, 8, 8), torch.randint(3, (20,))
        >>> model.objective(x, model(x), y, F.nll_loss).backward()
        >>> tuple(model.eval()(x).shape), tuple(model.explain(x[:2]).images.shape)
        ((20, 3), (5, 2, 1, 8, 8))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        draws: int = 20,
        covariance: str = "full",
        reconstruction: float = 1.0,
        near: float = 0.01,
        floor: float = 0.01,
        width: int = 32,
    ) -> None:
        super().__init__()
        for name, count, least in (("classes", classes, 2), ("draws", draws, 1), ("width", width, 1)):
            if not isinstance(count, int) or count < least:
                raise ValueError(f"{name} is {count!r}; give a whole number of at least {least}")
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance is {covariance!r}; use one of {', '.join(COVARIANCES)}")
        for name, value in (("reconstruction", reconstruction), ("near", near), ("floor", floor)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0")
        self.draws, self.reconstruction, self.near, self.floor = draws, reconstruction, near, floor
        self.encoder = make_encoder(shape, width, "relu", bounded=False)
        self.decoder = make_decoder(shape, width, "relu")
        size = halvings(*shape[1:])[-1]
        code = CODE * size[0] * size[1]
        self.mean = nn.Parameter(torch.randn(classes, code))
        self.raw_scale = nn.Parameter(torch.full((classes, code), math.log(math.expm1(0.3))))
        self.lower = nn.Parameter(torch.zeros(classes, code, code)) if covariance == "full" else None
        self.log_tau = nn.Parameter(torch.tensor(-math.log(code)))
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(draws, classes, code))
        self.stream: Tensor
        seed = int(torch.randint(2**62, ()))
        self.register_buffer("stream", torch.Generator().manual_seed(seed).get_state())

    def factor(self) -> Tensor:
        """L_k (K, D, D), lower triangular with a positive diagonal."""
        diagonal = torch.diag_embed(F.softplus(self.raw_scale) + self.floor)
        return diagonal if self.lower is None else diagonal + self.lower.tril(-1)

    def drawn(self, noise: Tensor) -> Tensor:
        """mu_k + L_k eps, (T, K, D), of standard normal noise (T, K, D)."""
        return self.mean + torch.einsum("kij,tkj->tki", self.factor(), noise)

    def forward(self, x: Tensor) -> Tensor | Output:
        code = self.encoder(x)
        if not self.training:
            return log_mean_softmax(code, self.drawn(self.noise), self.log_tau.exp())[0]
        generator = torch.Generator()
        generator.set_state(self.stream.cpu())
        noise = torch.randn(self.noise.shape, generator=generator).to(self.noise)
        self.stream.copy_(generator.get_state())
        prototypes = self.drawn(noise)
        log_p, _ = log_mean_softmax(code, prototypes, self.log_tau.exp())
        return Output(log_p, self.decoder(code), code, prototypes)

    def objective(self, x: Tensor, output: Output, target: Tensor, loss: nn.Module) -> Tensor:
        """The recipe's loss of the log-probabilities, reconstruction, and nearness of prototypes and codes."""
        classes = len(self.mean)
        if target.min() < 0 or target.max() >= classes:
            raise ValueError(
                f"targets run from {int(target.min())} to {int(target.max())}, and there are prototypes of {classes} classes"
            )
        total = loss(output.log_p, target)
        if self.reconstruction:
            total = total + self.reconstruction * (output.decoded - x).square().mean()
        if self.near:
            total = total + self.near * apart(output.code, output.prototypes[0], target)
        return total

    @torch.no_grad()
    def each(self, x: Tensor, draws: int | None = None) -> Tensor:
        """Log-probabilities of every draw (T, n, K): the draws kept with the weights, or so many of them, at most T."""
        if draws is not None and not 1 <= draws <= self.draws:
            raise ValueError(f"draws is {draws}; the network keeps {self.draws}, ask for 1 to as many")
        noise = self.noise if draws is None else self.noise[:draws]
        return log_mean_softmax(self.encoder(x), self.drawn(noise), self.log_tau.exp())[1]

    def uncertainty(self, x: Tensor, draws: int | None = None) -> Uncertainty:
        """The split entropy of predictions, of at least two draws."""
        return split_entropy(self.each(x, draws))

    @torch.no_grad()
    def explain(self, x: Tensor) -> Explanation:
        """What the predicted class's prototype looks like in each draw, and where the pictures differ."""
        prototypes = self.drawn(self.noise)
        code = self.encoder(x)
        classes = log_mean_softmax(code, prototypes, self.log_tau.exp())[0].argmax(dim=1)
        told, place = classes.unique(return_inverse=True)  # a class is decoded once, however many rows are told as it
        flat = self.decoder(prototypes[:, told].flatten(0, 1))
        images = flat.reshape(len(prototypes), len(told), *flat.shape[1:])[:, place]
        return Explanation(classes, images, images.var(dim=0, correction=0))


def rejected(score: Tensor, valid_score: Tensor, share: float) -> Tensor:
    """Which rows (n,) have an uncertainty above the quantile that would reject this share of validation rows (m,)."""
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1)")
    return score > valid_score.double().quantile(1 - share).to(score)


def build(
    spec: Spec,
    *,
    draws: int = 20,
    covariance: str = "full",
    reconstruction: float = 1.0,
    near: float = 0.01,
    floor: float = 0.01,
    width: int = 32,
) -> ProbPSENN:
    """The network for these data; arguments as `ProbPSENN`."""
    shape = (spec.shape[0], spec.shape[1], spec.shape[2])
    own = {"draws": draws, "covariance": covariance, "reconstruction": reconstruction, "near": near, "floor": floor}
    return ProbPSENN(shape, spec.outputs, width=width, **own)  # type: ignore[arg-type]
