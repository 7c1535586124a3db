"""Guidance: a badly suited network learns to represent data as a frozen guide of another architecture does.

Paper     Subramaniam et al. 2024, "Training the Untrainable: Introducing Inductive Bias via Representational Alignment",
          arXiv:2410.20035, section 3
Computes  loss + weight * sum over target layers i of 1 - CKA(T_i(x), G_j(x)), j = round(i J / I); CKA is linear, from
          centred Gram matrices of the batch. The guide is trained first, left at random, or (control) fed with noise
Shapes    activations (n, ...) of both networks -> loss (); n at least 8, best 64 or more
Departs   1. the bench's guide is a small residual network of this file, trained on the training rows alone; its passes are
             charged. In plain code any network may guide
          2. Gram matrices are the biased estimate, as in the authors' code; batches under 8 rows are left without guidance on
             the bench and refused in plain code
          3. a layer that gives every row of a batch the same (a dead one) has no alignment: on the bench it is left out for
             that batch and counted, in plain code refused
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.watch import Watch, changed_in_place, choose_layers, hidden_layers
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.targets import real_targets
from probatum.spec import Spec
from probatum.techniques.method.guidance.cka import FEWEST_ROWS, centred_gram, check_rows, cka_of_grams

if TYPE_CHECKING:
    from types import TracebackType

CARD = Card(
    paper="arXiv:2410.20035",
    title="Training the Untrainable: Introducing Inductive Bias via Representational Alignment",
    entry="Guidance",
    number=32,
    tags=("training", "distillation", "representation", "inductive bias"),
    modalities=("table", "image", "text", "series"),
    alone="its alignment reads hidden activations that forward hooks catch",
    neutral={"weight": 0.0},
    tiny={"guide_steps": 4, "width": 4},
    tune={"weight": (0.03, 3.0, "log"), "until": (0.1, 1.0), "guide": ["trained", "random"]},
    claims=("guides-deep-mlp",),
)

GUIDES = ("trained", "random", "noise")


def layer_map(targets: int, guides: int) -> list[int]:
    """For each of the target's layers the guide's layer at the same share of depth: round(i J / I), i from 0."""
    if targets < 1 or guides < 1:
        raise ValueError(f"there are {targets} target layers and {guides} guide layers to be mapped; give one of each")
    return [min(guides - 1, math.floor(i * guides / targets + 0.5)) for i in range(targets)]


class ResidualGuide(nn.Module):
    """A small network with skips for any data: convolutions on images, series and text, linear layers on tables.

    Args:
        spec: of the data.
        width: channels of the first stage; the last of three has four times as many.
    """

    def __init__(self, spec: Spec, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(spec.vocabulary, width, padding_idx=0) if spec.modality == "text" else None
        dims = {"image": 2, "series": 1, "text": 1, "table": 0}[spec.modality]
        inputs = width if self.tokens is not None else spec.shape[0]
        widths = (width, width, 2 * width, 4 * width)
        self.stem = _layer(dims, inputs, widths[0], 1)
        self.blocks = nn.ModuleList(_Residual(dims, a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.tokens is None else self.tokens(x).transpose(1, 2)
        h = self.stem(h).relu()
        for block in self.blocks:
            h = block(h)
        return self.head(h.flatten(2).mean(dim=2) if h.ndim > 2 else h)


class _Residual(nn.Module):
    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 2 if dims and outputs > inputs else 1
        self.first, self.second = _layer(dims, inputs, outputs, stride), _layer(dims, outputs, outputs, 1)
        self.inner, self.outer = nn.ReLU(), nn.ReLU()
        self.skip = _layer(dims, inputs, outputs, stride) if outputs != inputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.second(self.inner(self.first(x))) + self.skip(x))


def _layer(dims: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    if dims == 0:
        return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs))
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dims - 1]
    return nn.Sequential(conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs))


class Guidance:
    """Alignment with a guide for a network in training; in plain code a context, on the bench a method.

    Args:
        weight: of the alignment, >= 0; 0 = the baseline bit for bit.
        until: share of the steps in (0, 1] after which the guide is let go (guided initialisation: 0.1).
        only: leave the task's loss out while the guide acts.
        layers: names of the target's modules; None = all activation modules but the last.
        guide: on the bench: "trained", "random" or "noise" (a random guide that is shown noise).
        guide_steps: updates of the trained guide; None = as many as the target gets.
        guide_rate: AdamW's rate for it.
        width: of the bench's guide.
        generator: for the guide's weights, batches and noise.

    Raises:
        ValueError: a setting outside its range; a batch of fewer than 8 rows; layers without variance.
        KeyError, TypeError: see `choose_layers`.

    Example:
        >>> target = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> guide = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2), nn.ReLU())
        >>> x = torch.linspace(-1, 1, 64).view(16, 4).sin()
        >>> with Guidance(weight=0.5).attach(target, guide, x) as guidance:
        ...     loss = target(x).square().mean() + guidance.alignment_loss(x)
        ...     loss.backward()
        >>> guidance.names, guidance.guide_names, guide[0].weight.grad is None
        (['1'], ['1'], True)
    """

    reads = ("batch", "output")
    writes = ("loss",)

    def __init__(
        self,
        weight: float = 1.0,
        until: float = 1.0,
        only: bool = False,
        layers: Sequence[str] | None = None,
        guide: str = "trained",
        guide_steps: int | None = None,
        guide_rate: float = 4e-3,
        width: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; it must be at least 0")
        if not 0 < until <= 1:
            raise ValueError(f"until is {until}; it is a share of the steps in (0, 1]")
        if guide not in GUIDES:
            raise ValueError(f"guide is {guide!r}; use one of {', '.join(GUIDES)}")
        if guide_steps is not None and guide_steps < 1:
            raise ValueError(f"guide_steps is {guide_steps}; give 1 or more, or guide='random'")
        if width < 1 or not guide_rate > 0:
            raise ValueError(f"width is {width} and guide_rate {guide_rate}; both must be positive")
        self.weight, self.until, self.only, self.layers = weight, until, only, layers
        self.kind, self.guide_steps, self.guide_rate, self.width = guide, guide_steps, guide_rate, width
        self.generator = generator or torch.Generator().manual_seed(0)
        self.model: nn.Module | None = None
        self.guide: nn.Module | None = None
        self.names: list[str] = []
        self.guide_names: list[str] = []
        self.watch: Watch | None = None
        self.similarity: list[float] = []
        self.left_out = 0

    def attach(self, model: nn.Module, guide: nn.Module, example: Tensor) -> Guidance:
        """Map the layers by a few inputs and watch the model's training passes until `detach`; the guide is only looked at."""
        self._map(model, guide, example)
        self._watched().attach()
        return self

    def detach(self) -> nn.Module | None:
        """Take the hooks off; returns the model as it was given (its weights trained), None if there was none."""
        if self.watch is not None:
            self.watch.detach()
        return self.model

    def __enter__(self) -> Guidance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def alignment_loss(self, x: Tensor) -> Tensor:
        """weight * sum of 1 - CKA for the last training pass, which was of these x; the gradient goes to the model only."""
        return self._alignment_loss(x, skip=False)

    def _alignment_loss(self, x: Tensor, skip: bool) -> Tensor:
        """As `alignment_loss`; with `skip`, layers without variance are counted and left out, else they are an error."""
        watch = self._watched()
        if (missing := watch.missing()) is not None:
            raise ValueError(f"layer {missing!r} has not run in training mode since the last alignment loss")
        grams = self.guide_grams(x)
        values = []
        for name, theirs in zip(self.names, self.guide_names, strict=True):
            features = watch.seen[name]
            check_rows(features, x)
            ours = centred_gram(features)
            if skip and not (bool(ours.any()) and bool(grams[theirs].any())):
                self.left_out += 1
                continue
            try:
                values.append(cka_of_grams(ours, grams[theirs]))
            except ValueError as problem:
                raise ValueError(f"layers {name!r} and {theirs!r} of the guide: {problem}") from problem
        watch.seen.clear()
        if not values:
            return torch.zeros((), device=x.device)
        alignment = torch.stack(values)
        self.similarity = alignment.detach().tolist()
        return self.weight * (1 - alignment).sum()

    @torch.no_grad()
    def guide_grams(self, x: Tensor) -> dict[str, Tensor]:
        """Centred Gram matrices (n, n) of the guide's mapped layers."""
        if self.guide is None:
            raise ValueError("nothing is attached; call attach(model, guide, example) first")
        shown = x
        if self.kind == "noise":
            if x.is_floating_point():
                shown = torch.randn(x.shape, generator=self.generator, dtype=x.dtype).to(x.device)
            else:
                shown = torch.randint(1, int(x.max()) + 1, x.shape, generator=self.generator).to(x.device)
        seen = hidden_layers(self.guide, shown)
        return {name: centred_gram(seen[name]) for name in dict.fromkeys(self.guide_names)}

    def state_dict(self) -> dict[str, Any]:
        """The guide's weights, the stream's state and the count of layers left out."""
        guide = {} if self.guide is None else self.guide.state_dict()
        return {"guide": guide, "generator": self.generator.get_state(), "left_out": self.left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, after `attach` or `prepare`."""
        if self.guide is not None:
            self.guide.load_state_dict(state["guide"])
        self.generator.set_state(state["generator"])
        self.left_out = state["left_out"]

    def report(self) -> dict[str, float]:
        """The last batch's alignment, over layers, and how often a layer without variance was left out, if ever."""
        found = {"layers without variance left out": float(self.left_out)} if self.left_out else {}
        if self.similarity:
            found["alignment with the guide"] = sum(self.similarity) / len(self.similarity)
        return found

    def prepare(self, run: Any) -> None:
        """Make the guide, train it if that is its kind, and map the layers."""
        if self.weight == 0:
            return
        x = run.train.x
        with own_draws(self.generator):
            guide = ResidualGuide(run.spec, self.width).to(x.device)
        if self.kind == "trained":
            steps = self.guide_steps or run.budget.steps
            _train_guide(guide, run, steps, self.guide_rate, self.generator)
            run.extra_passes += steps * run.budget.batch_size
        self._map(run.model, guide.eval().requires_grad_(False), x[:FEWEST_ROWS])

    def before_pass(self, run: Any, batch: Any) -> None:
        """Watch the coming pass; the hooks are gone when it ends, also by an exception."""
        if self._acts(run) and len(batch.x) >= FEWEST_ROWS:
            self._watched().attach(once=True)

    def loss(self, run: Any, batch: Any, output: Any, loss: Tensor) -> Tensor:
        """Add the alignment while the guide acts."""
        if not self._acts(run) or self.watch is None or not self.watch.seen:
            return loss
        alignment = self._alignment_loss(batch.x, skip=True)
        run.extra_passes += len(batch.x) / 3  # a forward pass of the guide, about a third of a training pass
        return alignment + 0 * loss if self.only else loss + alignment

    def finish(self, run: Any) -> None:
        """Take everything off."""
        self.detach()

    def _acts(self, run: Any) -> bool:
        return self.weight > 0 and run.step < self.until * run.budget.steps

    def _map(self, model: nn.Module, guide: nn.Module, example: Tensor) -> None:
        if self.watch is not None and self.watch.attached:
            raise ValueError("already attached to a model; call detach() first")
        seen = hidden_layers(guide, example)
        guides = choose_layers(guide, seen, None)
        self.names = choose_layers(model, hidden_layers(model, example), self.layers)
        self.guide_names = [guides[j] for j in layer_map(len(self.names), len(guides))]
        self.model, self.guide = model, guide
        self.watch = Watch(model, self.names, changed_in_place(model, example, self.names))

    def _watched(self) -> Watch:
        if self.watch is None:
            raise ValueError("nothing is attached; call attach(model, guide, example) first")
        return self.watch


def _train_guide(guide: nn.Module, run: Any, steps: int, rate: float, generator: torch.Generator) -> None:
    """Train the guide on the run's training rows with the task's plain loss, by AdamW and a half cosine."""
    x, y = run.train.x, run.train.y
    loss = F.mse_loss if y.is_floating_point() else F.cross_entropy
    optimizer = torch.optim.AdamW(guide.parameters(), lr=rate, weight_decay=1e-2)
    for step in range(steps):
        index = torch.randint(len(x), (run.budget.batch_size,), generator=generator).to(x.device)
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        output = guide(x[index])
        loss(output, real_targets(output, y[index]) if y.is_floating_point() else y[index]).backward()
        optimizer.step()
