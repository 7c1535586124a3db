"""Discrete key-value bottleneck: frozen keys fetch values that alone are trained, so that rows far apart share nothing.

Paper     Träuble et al. 2022, "Discrete Key-Value Bottleneck", ICML 2023, arXiv:2207.11240, sections 3 and 4
Computes  z = encoder(x), frozen; z_c = R_c z for C fixed projections; i_c = the nearest of P keys of codebook c;
          logits = mean over c (and over tokens) of V_c[i_c] / temperature. Keys are moved to moving means of what they are
          nearest to, without labels, and then frozen; values start at zero and learn by plain SGD, so that a row changes only
          what it fetches
Shapes    observe(stage, budget): x (n, ...), y (n,) int64; predict(x) -> logits (n, num_classes), -inf for classes not seen;
          the bottleneck by itself: z (n, d) or (n, tokens, d) -> (n, outputs)
Departs   1. in a stream the keys see the first stage alone, and the encoder too where it is not given; the paper prepares both
             on other data (in plain code: an encoder of one's own, and `prepare` with any features)
          2. values are logits themselves, the paper's decoder without parameters; no trained decoder is offered
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.continual.frozen_features import FrozenFeatures
from probatum.numerics.continual.learners import Settings
from probatum.numerics.continual.stages import check_stage, class_mask, masked, tensor_bytes
from probatum.spec import Budget, Optimisation, Stage
from probatum.techniques.stream.discrete_kv_bottleneck.codebooks import fit_keys, nearest

CARD = Card(
    paper="arXiv:2207.11240",
    title="Discrete Key-Value Bottleneck",
    entry="KeyValueLearner",
    number=37,
    tags=("continual", "lifelong", "memory", "discrete"),
    tasks=("classes",),
    tiny={"codebooks": 8, "pairs": 16, "rounds": 2},
    tune={"rate": (0.1, 100.0, "log"), "codebooks": [16, 32, 64, 128], "key_size": [4, 8, 12, 16]},
    claims=("forgets-less-than-heads",),
)

NUMBER = 4
"""Bytes of a number in float32."""
MOST_PAIRS = 256
"""Pairs of a codebook where nothing is said and the memory allows."""
PROJECTIONS = ("random", "slice")
BATCH = 256


class Bottleneck(nn.Module):
    """C codebooks of P frozen keys and as many trainable values; a row fetches one value of each.

    Args:
        features: d, numbers of a feature vector.
        outputs: numbers of a value.
        generator: draws projections and keys.
        codebooks: C, at least 1.
        pairs: P, at least 2.
        key_size: numbers of a key, at least 1.
        projection: random (Gaussian, scaled to keep lengths) or slice (evenly spaced features, each in one codebook).
        temperature: what the mean of the values is divided by, above 0.

    Attributes:
        keys: (C, P, key_size), frozen once `prepare` has moved them.
        values: (C, P, outputs), zero at first.

    Raises:
        ValueError: numbers out of range, slices beyond the features, features that carry gradients.
        RuntimeError: a forward pass before `prepare`.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> z = torch.randn(60, 12, generator=draws)
        >>> layer = Bottleneck(12, 3, draws, codebooks=4, pairs=16, key_size=3)
        >>> layer.prepare(z, draws)
        >>> loss = F.cross_entropy(layer(z[:5]), torch.tensor([0, 1, 2, 0, 1]))
        >>> loss.backward()
        >>> int(layer.values.grad.abs().sum(2).gt(0).sum()) <= 5 * 4  # no row fetches more than four
        True
    """

    keys: Tensor
    projections: Tensor

    def __init__(
        self,
        features: int,
        outputs: int,
        generator: torch.Generator,
        *,
        codebooks: int = 32,
        pairs: int = 256,
        key_size: int = 8,
        projection: str = "random",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(codebooks, pairs, key_size, projection, temperature)
        if projection == "slice" and codebooks * key_size > features:
            raise ValueError(
                f"{codebooks} slices of {key_size} need {codebooks * key_size} features, and there are {features}; use fewer, "
                "or projection='random'"
            )
        if projection == "slice":
            spread = torch.arange(codebooks * key_size) * features // (codebooks * key_size)
            maps = torch.eye(features)[spread].view(codebooks, key_size, features)
        else:
            maps = torch.randn(codebooks, key_size, features, generator=generator) / math.sqrt(key_size)
        self.temperature = temperature
        self.register_buffer("projections", maps)
        self.register_buffer("keys", torch.zeros(codebooks, pairs, key_size))
        self.register_buffer("ready", torch.tensor(False))
        self.values = nn.Parameter(torch.zeros(codebooks, pairs, outputs))

    @property
    def pairs(self) -> int:
        """P."""
        return self.keys.shape[1]

    def project(self, z: Tensor) -> Tensor:
        """z (..., d) -> (..., C, key_size)."""
        if z.shape[-1] != self.projections.shape[2]:
            raise ValueError(f"features have {z.shape[-1]} numbers; this bottleneck takes {self.projections.shape[2]}")
        return torch.einsum("...d,ckd->...ck", z, self.projections)

    @torch.no_grad()
    def prepare(
        self,
        z: Tensor,
        generator: torch.Generator,
        *,
        start: str = "data",
        decay: float = 0.95,
        dead: float = 0.1,
        rounds: int = 5,
    ) -> None:
        """Draw keys and move them to where features are, without labels; called again, it moves the keys there are.

        Args:
            z: features (n, d) or (n, tokens, d).
            generator: draws of rows.
            start: data (keys are rows, drawn) or gaussian (they are drawn with the rows' mean and deviation).
            decay: of the moving means, in [0, 1).
            dead: share of the mean count below which a key is put elsewhere, at least 0.
            rounds: times that all rows are gone through, 0 = keys stay where they are drawn.
        """
        check_preparation(start, decay, dead, rounds)
        own = self.project(z.reshape(-1, z.shape[-1]))  # (rows, C, key_size)
        if not len(own):
            raise ValueError("there are 0 rows of features; keys need at least one")
        books, pairs, size = self.keys.shape
        keys = self.keys
        if not bool(self.ready):
            noise = torch.randn(books, pairs, size, generator=generator).to(own)
            spread = own.std(dim=0, correction=0)[:, None]
            if start == "gaussian":
                keys = own.mean(dim=0)[:, None] + spread * noise
            else:
                pick = torch.stack([_drawn(len(own), pairs, generator) for _ in range(books)]).to(own.device)
                keys = own[pick, torch.arange(books, device=own.device)[:, None]]
                if pairs > len(own):
                    keys = keys + 0.01 * spread * noise  # rows that are drawn twice
        self.keys = fit_keys(own, keys, generator, decay=decay, dead=dead, rounds=rounds, batch_size=BATCH)
        self.ready.fill_(True)

    def indices(self, z: Tensor) -> Tensor:
        """The keys that rows select: z (n, d) -> (n, C) int64."""
        if not bool(self.ready):
            raise RuntimeError("the keys are not prepared; call prepare(features, generator) first")
        if z.requires_grad:
            raise ValueError("the features carry gradients; freeze the encoder (encoder.requires_grad_(False))")
        return nearest(self.project(z), self.keys)

    def fetch(self, indices: Tensor) -> Tensor:
        """The mean of the values selected: (n, C) -> (n, outputs)."""
        books = torch.arange(self.keys.shape[0], device=indices.device)
        return self.values[books, indices].mean(dim=1) / self.temperature

    def forward(self, z: Tensor) -> Tensor:
        found = self.fetch(self.indices(z.reshape(-1, z.shape[-1])))
        tokens = z.shape[1] if z.ndim == 3 else 1
        return found.view(len(z), tokens, found.shape[1]).mean(dim=1)


def _drawn(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `rows` positions, none twice as long as there are enough."""
    turns = [torch.randperm(rows, generator=generator) for _ in range(math.ceil(count / rows))]
    return torch.cat(turns)[:count]


def check_sizes(codebooks: int, pairs: int, key_size: int, projection: str, temperature: float) -> None:
    """ValueError for numbers that no bottleneck can have."""
    for name, value, least in (("codebooks", codebooks, 1), ("pairs", pairs, 2), ("key_size", key_size, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if projection not in PROJECTIONS:
        raise ValueError(f"projection is {projection!r}; use {' or '.join(PROJECTIONS)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0")


def check_preparation(start: str, decay: float, dead: float, rounds: int) -> None:
    """ValueError for settings of the keys out of range."""
    if start not in ("data", "gaussian"):
        raise ValueError(f"start is {start!r}; use data or gaussian")
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must lie in [0, 1)")
    if not 0 <= dead < math.inf:
        raise ValueError(f"dead is {dead}; it must be at least 0")
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; it must be at least 0")


class KeyValueLearner:
    """A bottleneck on frozen features, shown stages one after another; it keeps keys and values, and no rows.

    Args:
        num_classes: classes in all.
        model_factory: a network that ends in a linear layer; it is called where `encoder` is named.
        generator: draws of projections, keys and batches.
        order: batch orders of the encoder's own training.
        memory: bytes that keys and values may take where `pairs` is not given; None = no bound.
        optimisation: how the encoder is trained where it learns.
        encoder: first-stage (the network learns with four fifths of the first stage's steps), given (it is frozen as it
            comes, pretrained for instance), or a frozen module x -> (n, d) or (n, tokens, d).
        codebooks, key_size, projection, temperature: of the bottleneck.
        pairs: keys of a codebook; None = 256, or as many as the memory holds.
        rate: of plain SGD on the values, above 0; it may be large, as the mean over codebooks makes gradients small.
        start, decay, dead, rounds: how keys are prepared, see `Bottleneck.prepare`.
        frozen_keys: False = keys go on moving in later stages (for comparison; values then mean something else).
        pooling: of tokens: after (the mean of their values) or before (the mean of their features).

    Raises:
        ValueError: settings out of range, an encoder with gradients, a memory that holds no two pairs a codebook.

    Example:
        >>> draws, order = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        >>> x = torch.randn(80, 6, generator=draws)
        >>> y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        >>> learner = KeyValueLearner(4, lambda: nn.Identity(), draws, order, encoder=nn.Identity(), codebooks=8, pairs=20)
        >>> for number, classes in enumerate([(0, 1), (2, 3)]):
        ...     rows = torch.isin(y, torch.tensor(classes))
        ...     learner.observe(Stage(number, classes, x[rows], y[rows]), Budget(50, 16, 3))
        >>> learner.predict(x).shape
        torch.Size([80, 4])
    """

    def __init__(
        self,
        num_classes: int,
        model_factory: Callable[[], nn.Module],
        generator: torch.Generator,
        order: torch.Generator,
        memory: int | None = None,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # a frozen value
        *,
        encoder: str | nn.Module = "first-stage",
        codebooks: int = 32,
        pairs: int | None = None,
        key_size: int = 8,
        projection: str = "random",
        temperature: float = 1.0,
        rate: float = 3.0,
        start: str = "data",
        decay: float = 0.95,
        dead: float = 0.1,
        rounds: int = 5,
        frozen_keys: bool = True,
        pooling: str = "after",
    ) -> None:
        check_sizes(codebooks, 2 if pairs is None else pairs, key_size, projection, temperature)
        check_preparation(start, decay, dead, rounds)
        if not 0 < rate < math.inf:
            raise ValueError(f"rate is {rate}; it must be above 0")
        if pooling not in ("after", "before"):
            raise ValueError(f"pooling is {pooling!r}; use after or before")
        self.codebooks, self.pairs, self.key_size, self.memory = codebooks, pairs, key_size, memory
        self.projection, self.temperature, self.rate = projection, temperature, rate
        self.start, self.decay, self.dead, self.rounds = start, decay, dead, rounds
        self.frozen_keys, self.pooling = frozen_keys, pooling
        self.generator, self.num_classes = generator, num_classes
        self._fitting(0)  # a memory too small is told at once
        self.encoder = FrozenFeatures(
            encoder, Settings(num_classes, model_factory, generator, order, 0, 0, optimisation)
        )
        self.needs_stages = self.encoder.learns
        self.bottleneck: Bottleneck | None = None
        self.seen = torch.zeros(num_classes, dtype=torch.bool)
        self.stages: list[tuple[int, ...]] = []

    @property
    def network(self) -> nn.Module:
        """Encoder and bottleneck."""
        return nn.ModuleList([self.encoder.network, *([self.bottleneck] if self.bottleneck is not None else [])])

    @property
    def passes(self) -> float:
        """Examples passed through the encoder forward and backward; a pass forward counts as a third."""
        return self.encoder.passes

    def prepare(self, x: Tensor) -> None:
        """Prepare the keys on rows without labels, of other data for instance; otherwise the first stage's are taken.

        Raises:
            ValueError: the encoder has yet to learn from the first stage.
        """
        if self.encoder.learns:
            raise ValueError(
                "the encoder learns in the first stage; give encoder='given' or a frozen module to prepare keys"
            )
        if self.bottleneck is None:
            self.encoder.begin(Stage(0, (), x, torch.zeros(len(x), dtype=torch.int64)), Budget(1, 1, 1))
        self._prepare(self._features(self.encoder.learnt(x)))

    def observe(self, stage: Stage, budget: Budget) -> None:
        """Learn one stage: keys in the first, then the values of what its rows fetch; where that fails, it can be shown again."""
        if not len(stage):
            raise ValueError(f"stage {stage.number} has 0 rows; give at least one")
        stage = check_stage(stage, self.num_classes, self.seen.nonzero().flatten().tolist())
        if self.bottleneck is None:
            budget = self.encoder.begin(stage, budget)
        z = self._features(self.encoder.learnt(stage.x))
        before = self.seen, self.stages, self.bottleneck, copy.deepcopy(self.bottleneck)
        self.seen = self.seen.to(stage.y.device) | class_mask(stage.classes, self.num_classes, stage.y.device)
        self.stages = [*self.stages, *([stage.classes] if stage.classes else [])]
        try:
            if self.bottleneck is None or not self.frozen_keys:
                self._prepare(z)
            self.train_values(z, stage.y, budget)
        except BaseException:
            self.seen, self.stages, self.bottleneck, kept = before
            if self.bottleneck is not None and kept is not None:
                self.bottleneck.load_state_dict(kept.state_dict())
            raise

    def train_values(self, z: Tensor, y: Tensor, budget: Budget) -> None:
        """`budget.steps` steps of plain SGD on the values: features z (n, d) or (n, tokens, d), classes y (n,).

        Raises:
            RuntimeError: no keys are prepared yet.
        """
        if self.bottleneck is None:
            raise RuntimeError("the keys are not prepared; observe a stage first")
        tokens = z.reshape(-1, z.shape[-1])
        indices = self.bottleneck.indices(tokens).view(len(z), -1, self.codebooks)  # keys do not move meanwhile
        steps = torch.optim.SGD([self.bottleneck.values], lr=self.rate)
        batches: list[Tensor] = []
        for _ in range(budget.steps):
            if not batches:
                visit = torch.randperm(len(y), generator=self.generator).to(y.device)
                batches = list(visit.split(budget.batch_size))
            rows = batches.pop(0)
            fetched = self.bottleneck.fetch(indices[rows].flatten(0, 1)).view(len(rows), -1, self.num_classes)
            loss = F.cross_entropy(masked(fetched.mean(dim=1), self.seen), y[rows])
            steps.zero_grad()
            loss.backward()
            steps.step()
        self.bottleneck.values.grad = None

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits (n, num_classes), -inf for classes not seen, and for those of other stages where `task` is given."""
        if self.bottleneck is None:
            raise RuntimeError("nothing is learned yet; observe a stage first")
        output = masked(self.bottleneck(self._features(self.encoder(x))), self.seen)
        if task is None:
            return output
        if not 0 <= task < len(self.stages):
            raise ValueError(f"task is {task}; {len(self.stages)} stage(s) have been seen, from 0")
        return masked(output, class_mask(self.stages[task], self.num_classes, output.device))

    def stored_bytes(self) -> int:
        """Keys and values, and the statistics of features; projections are drawn and can be drawn again."""
        if self.bottleneck is None:
            return 0
        return tensor_bytes([self.bottleneck.keys, self.bottleneck.values]) + self.encoder.stored_bytes()

    def _prepare(self, z: Tensor) -> None:
        if self.bottleneck is None:
            self.bottleneck = Bottleneck(
                z.shape[-1], self.num_classes, self.generator, codebooks=self.codebooks,
                pairs=self._fitting(self.encoder.stored_bytes(), z.element_size()), key_size=self.key_size, projection=self.projection,
                temperature=self.temperature,
            ).to(z)  # fmt: skip
        self.bottleneck.prepare(
            z, self.generator, start=self.start, decay=self.decay, dead=self.dead, rounds=self.rounds
        )

    def _fitting(self, taken: int, number: int = NUMBER) -> int:
        """Pairs of a codebook: those given, else as many as fit beside the bytes that are taken."""
        if self.pairs is not None:
            return self.pairs
        if self.memory is None:
            return MOST_PAIRS
        each = self.codebooks * (self.key_size + self.num_classes) * number
        pairs = min(MOST_PAIRS, (self.memory - taken) // each)
        if pairs < 2:
            raise ValueError(
                f"memory is {self.memory} bytes, and {self.codebooks} codebooks take {each} for every pair and {taken} beside; "
                "allow more memory, or give fewer codebooks"
            )
        return pairs

    def _features(self, z: Tensor) -> Tensor:
        """Pooled where tokens are pooled before the bottleneck."""
        return z.mean(dim=1) if z.ndim == 3 and self.pooling == "before" else z
