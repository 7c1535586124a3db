"""Deeply-supervised nets: a classifier on every hidden layer adds its loss while training, then is taken off.

Paper     Lee et al. 2015, "Deeply-Supervised Nets", AISTATS, arXiv:1409.5185, eq. 3
Computes  loss + sum over hidden layers m of alpha_m * relu(penalty * |w_m|^2 + l(head_m(Z_m), y) - gamma), where l is
          cross-entropy or the one-vs-all squared hinge; alpha falls by the schedule
Shapes    hidden activations (n, features), (n, channels, ...) or, for text, (n, length, features) -> loss ()
Departs   1. the output keeps the loss it has; only companions take the squared hinge, and the paper's |w_out|^2 is the
             optimizer's weight decay
          2. the paper sums the loss over rows beside |w_m|^2; with the mean loss used here, penalty is 1 / rows
          3. heads on maps see all positions; pool="mean" averages them first, for inputs whose size varies
          4. the published decay multiplies alpha by 0.1 (1 - t/N) anew in every epoch, which ends it after two or three
             (schedule="paper"); the default falls linearly from alpha to 0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.watch import Watch, changed_in_place, choose_layers, hidden_layers, pooled
from probatum.numerics.tensors.precision import computed_wide
from probatum.numerics.tensors.targets import IGNORED, check_codes, class_codes, class_targets

if TYPE_CHECKING:
    from types import TracebackType

CARD = Card(
    paper="arXiv:1409.5185",
    title="Deeply-Supervised Nets",
    entry="DeeplySupervisedNets",
    number=123,
    tags=("training", "regularisation", "depth"),
    alone="its companion heads read hidden activations that forward hooks catch",
    tasks=("classes",),
    neutral={"alpha": 0.0},
    tiny={"alpha": 0.1, "pool": "mean"},
    tune={"alpha": (1e-3, 1.0, "log"), "gamma": (0.0, 0.5), "schedule": ["linear", "constant"]},
    claims=("better-from-little-data",),
)

SCHEDULES = ("linear", "constant", "paper")
OBJECTIVES = ("cross-entropy", "squared-hinge")
BLOCK = 512
"""Rows whose hidden layers are held at once when heads are judged."""


@computed_wide
def squared_hinge(scores: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of sum_{k != y} relu(1 - (s_y - s_k))^2: scores (n, classes), target (n,) int64 -> ()."""
    target = class_targets(scores, target)
    own = scores.gather(1, target[:, None])
    short = (1 - own + scores).relu().square()
    return short.scatter(1, target[:, None], 0.0).sum(dim=1).mean()


def companion(loss: Tensor, head: nn.Linear, penalty: float, gamma: float) -> Tensor:
    """relu(penalty * |w|^2 + loss - gamma): exactly zero, with zero gradient, once the companion is good enough."""
    return (penalty * head.weight.square().sum() + loss - gamma).relu()


def alpha_factor(schedule: str, progress: float, epoch: int, epochs: int) -> float:
    """Factor of alpha after a share `progress` in [0, 1] of training; "paper" is the product of 0.1 (1 - t/N)."""
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    factor = 1.0
    for t in range(1, epoch + 1):
        factor *= 0.1 * (1 - t / epochs)
    return factor


class DeeplySupervisedNets:
    """Companion heads for a model in training; in plain code a context, on the bench a method.

    Args:
        alpha: weight of the companions >= 0, one number or one for each layer; 0 = the baseline bit for bit.
        gamma: companion loss below which it is switched off, >= 0.
        objective: "cross-entropy" or "squared-hinge".
        schedule: of alpha: "linear" to 0, "constant", or "paper".
        layers: names of modules; None = all activation modules but the last.
        pool: "flatten" or "mean" (over positions).
        penalty: factor of |w_m|^2; None = 1 / num_examples (0 where that is unknown).
        num_examples: rows of the training set.
        generator: for the heads' first weights.

    Raises:
        ValueError: a setting outside its range; a target that is not classes, or a label that is none of them.
        KeyError, TypeError: see `choose_layers`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, y = torch.linspace(-1, 1, 64).view(16, 4), torch.arange(16) % 3
        >>> with DeeplySupervisedNets(alpha=0.3).attach(net, x, classes=3) as dsn:
        ...     optimizer = torch.optim.SGD([*net.parameters(), *dsn.heads.parameters()], lr=0.1)
        ...     loss = F.cross_entropy(net(x), y) + dsn.companion_loss(y)
        ...     loss.backward()
        >>> dsn.names, len(net[1]._forward_hooks)
        (['1'], 0)
    """

    reads = ("target", "output")
    writes = ("loss", "optimizer")

    def __init__(
        self,
        alpha: float | Sequence[float] = 0.3,
        gamma: float = 0.0,
        objective: str = "cross-entropy",
        schedule: str = "linear",
        layers: Sequence[str] | None = None,
        pool: str = "flatten",
        penalty: float | None = None,
        num_examples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.alpha = (float(alpha),) if isinstance(alpha, int | float) else tuple(float(a) for a in alpha)
        if not self.alpha or not all(a >= 0 for a in self.alpha):
            raise ValueError(f"alpha is {alpha}; every weight must be at least 0")
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}; it must be at least 0")
        if penalty is not None and not penalty >= 0:
            raise ValueError(f"penalty is {penalty}; it must be at least 0, or None for 1 / rows")
        for name, value, allowed in (
            ("objective", objective, OBJECTIVES),
            ("schedule", schedule, SCHEDULES),
            ("pool", pool, ("mean", "flatten")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
        self.gamma, self.schedule, self.layers, self.pool = gamma, schedule, layers, pool
        self.loss_function: Callable[[Tensor, Tensor], Tensor] = (
            F.cross_entropy if objective == "cross-entropy" else squared_hinge
        )
        self.penalty = (1.0 / num_examples if num_examples else 0.0) if penalty is None else penalty
        self.generator = generator
        self.factor = 1.0
        self.tokens, self.classes = False, 0
        self.model: nn.Module | None = None
        self.names: list[str] = []
        self.heads = nn.ModuleList()
        self.watch: Watch | None = None

    def attach(self, model: nn.Module, example: Tensor, classes: int, tokens: bool = False) -> DeeplySupervisedNets:
        """Build a head for each layer from a few inputs and watch the model's training passes until `detach`."""
        self._build(model, example, classes, tokens)
        self._watched().attach()
        return self

    def detach(self) -> nn.Module | None:
        """Take the hooks off; returns the model as it was given (its weights trained), None if there was none."""
        if self.watch is not None:
            self.watch.detach()
        return self.model

    def __enter__(self) -> DeeplySupervisedNets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def weights(self) -> tuple[float, ...]:
        """alpha of every layer at the present point of the schedule."""
        alpha = self.alpha * len(self.names) if len(self.alpha) == 1 else self.alpha
        return tuple(a * self.factor for a in alpha)

    def companion_loss(self, target: Tensor) -> Tensor:
        """Weighted sum of the companions for the last training pass; target (n,) or (n, 1) codes -> (); rows of -100 are left out."""
        if target.dtype != torch.int64 or target.shape not in ((len(target),), (len(target), 1)):
            raise ValueError(
                f"target has dtype {target.dtype} and shape {tuple(target.shape)}; companions are classifiers and need classes "
                "(n,) int64"
            )
        target = target.reshape(-1)
        watch = self._watched()
        if (missing := watch.missing()) is not None:
            raise ValueError(f"layer {missing!r} has not run in training mode since the last companion loss")
        kept = target != IGNORED
        every, some, losses = bool(kept.all()), bool(kept.any()), []
        for name, head, alpha in zip(self.names, self.heads, self.weights(), strict=True):
            scores = self._scores(watch.seen[name], head)
            check_codes(target, scores.shape[1], IGNORED)
            loss = self.loss_function(scores, target) if every else self.loss_function(scores[kept], target[kept])
            losses.append(alpha * companion(loss, head, self.penalty, self.gamma) if some else scores[kept].sum())
        watch.seen.clear()
        return torch.stack(losses).sum()

    def head_accuracy(self, x: Tensor, target: Tensor) -> dict[str, float]:
        """Accuracy of every layer's head, without rows of -100: how early in the network the classes can be told apart.

        Raises:
            ValueError: no row with a label, or labels outside the classes.
        """
        net = self._watched().net
        target = class_codes(target, len(x), self.classes, IGNORED)
        if not bool((target != IGNORED).any()):
            raise ValueError(f"none of {len(x)} rows has a label ({IGNORED} is none); an accuracy needs one at least")
        x, target = x[target != IGNORED], target[target != IGNORED]
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for rows in x.split(BLOCK):
            seen = hidden_layers(net, rows)
            with torch.no_grad():
                for name, head in zip(self.names, self.heads, strict=True):
                    found[name].append(self._scores(seen[name], head).argmax(dim=1))
        return {name: float((torch.cat(told) == target).float().mean()) for name, told in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """The heads' weights."""
        return self.heads.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, after `attach` or `prepare`."""
        self.heads.load_state_dict(state)

    def prepare(self, run: Any) -> None:
        """Build the heads and put their weights into the run's optimizer."""
        self._build(run.model, run.train.x[:2], run.spec.outputs, run.spec.modality == "text")
        if run.train.y.is_floating_point():
            raise ValueError("the target is real-valued; companions are classifiers and need classes")
        run.optimizer.add_param_group({"params": list(self.heads.parameters())})

    def before_pass(self, run: Any, batch: Any) -> None:
        """Watch the coming pass; the hooks are gone when it ends, also by an exception."""
        if any(self.alpha):
            self._watched().attach(once=True)

    def loss(self, run: Any, batch: Any, output: Any, loss: Tensor) -> Tensor:
        """Add the companions at the present alpha."""
        steps = run.budget.steps
        epochs = max(1, -(-steps // run.budget.steps_per_epoch))
        self.factor = alpha_factor(self.schedule, run.step / steps, run.epoch, epochs)
        if not any(self.weights()):
            self._watched().seen.clear()
            return loss
        return loss + self.companion_loss(batch.y)

    def finish(self, run: Any) -> None:
        """Note each head's validation accuracy, where rows have labels, and take the heads out of the optimizer."""
        if bool((run.valid.y != IGNORED).any()):
            for name, value in self.head_accuracy(run.valid.x, run.valid.y).items():
                run.notes[f"head accuracy at {name}"] = value
        own = {id(parameter) for parameter in self.heads.parameters()}
        groups = run.optimizer.param_groups
        groups[:] = [group for group in groups if not any(id(parameter) in own for parameter in group["params"])]
        for parameter in self.heads.parameters():
            run.optimizer.state.pop(parameter, None)
        self.detach()

    def _build(self, model: nn.Module, example: Tensor, classes: int, tokens: bool) -> None:
        if self.watch is not None and self.watch.attached:
            raise ValueError("already attached to a model; call detach() first")
        seen = hidden_layers(model, example)
        names = choose_layers(model, seen, self.layers)
        if len(self.alpha) not in (1, len(names)):
            raise ValueError(f"alpha has {len(self.alpha)} weights for {len(names)} layers: {', '.join(names)}")
        own = self.generator or torch.Generator().manual_seed(0)
        self.model, self.names, self.tokens, self.classes = model, names, tokens, classes
        self.watch = Watch(model, names, changed_in_place(model, example, names))
        self.heads = nn.ModuleList()
        for name in names:
            feature = pooled(seen[name], self.pool, tokens)
            head = nn.utils.skip_init(nn.Linear, feature.shape[1], classes, dtype=feature.dtype)
            bound = feature.shape[1] ** -0.5
            with torch.no_grad():
                head.weight.copy_((2 * torch.rand(head.weight.shape, generator=own) - 1) * bound)
                head.bias.zero_()
            self.heads.append(head.to(feature.device))

    def _scores(self, features: Tensor, head: nn.Module) -> Tensor:
        return head(pooled(features, self.pool, self.tokens))

    def _watched(self) -> Watch:
        if self.watch is None:
            raise ValueError("nothing is attached; call attach(model, example, classes) first")
        return self.watch


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the present weight gradient of every linear and convolution layer, in order of the module tree."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return {
        name: float(module.weight.grad.norm())
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module.weight.grad is not None
    }


def probe_accuracy(features: Tensor, target: Tensor, test_features: Tensor, test_target: Tensor) -> float:
    """Test accuracy of a linear SVM on (scaled) features (n, d), the paper's measure of how discriminative a layer is."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    machine = LinearSVC(C=0.01, dual=False).fit(((features - mean) / std).numpy(), target.numpy())
    return float(machine.score(((test_features - mean) / std).numpy(), test_target.numpy()))
