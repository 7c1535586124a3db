"""Networks, methods, losses and optimizers that a stack would get wrong: each must equal its own run or be refused."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from probatum.checks.toy import toy
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Data, Part, Spec
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import outputs, train
from probatum.train.replica import Replica
from probatum.train.replicas import Stacked, train_replicas
from probatum.train.rng import derive, generator_for, seeded
from probatum.train.run import Run
from probatum.train.same_step import _without_draws, same_step
from probatum.train.stack import CannotStackError, Stack

SEEDS = (1, 2, 3)
RECIPE = Recipe(training=Training(steps=22, batch_size=16, lr=1e-2))
Ready = Callable[[], list[Assembly]]
Factory = Callable[[Spec], nn.Module]


def prepared(
    factory: Factory | None = None, method: Any = None, *, task: str = "classes", recipe: Recipe = RECIPE
) -> list[Assembly]:
    data, found = toy("table", task), []
    for seed in SEEDS:
        parts = assemble(alone(recipe, _shuffled(data, seed), seed, factory=factory))
        parts.run.model.double()
        parts.methods.extend([] if method is None else [method()])
        found.append(parts)
    return found


def run_alone(parts: list[Assembly]) -> list[Run]:
    for one, seed in zip(parts, SEEDS, strict=True):
        with seeded(seed, "training"):
            train(one.run, one.methods, generator_for(seed, "order"))
    return [one.run for one in parts]


def replicas_of(parts: list[Assembly]) -> list[Replica]:
    return [
        Replica(one.run, one.methods, generator_for(seed, "order"), derive(seed, "training"))
        for one, seed in zip(parts, SEEDS, strict=True)
    ]


def assert_same(wanted: list[Run], found: list[Run]) -> None:
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(outputs(other.model, other.valid.x), outputs(one.model, one.valid.x))
        assert len(other.curve) == len(one.curve)
        for mine, theirs in zip(other.curve, one.curve, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)
        for value, theirs in zip(other.model.state_dict().values(), one.model.state_dict().values(), strict=True):
            torch.testing.assert_close(value, theirs)


def same_or_refused(ready: Ready) -> bool:
    """Whether they were stacked; an AssertionError where they were and came out otherwise than alone."""
    parts = ready()
    try:
        failed = train_replicas(replicas_of(parts))
    except CannotStackError:
        return False
    assert failed == [None] * len(SEEDS)
    assert_same(run_alone(ready()), [one.run for one in parts])
    return True


def _shuffled(data: Data, seed: int) -> Data:
    def turned(part: Part) -> Part:
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        return Part(part.x[order].double(), _double(part.y[order]), part.rows)

    return Data(data.spec, turned(data.train), turned(data.valid), turned(data.test))


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


class Net(nn.Module):
    """Body and head; the networks below differ from it in one thing each."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(spec.shape[0], 8), nn.LayerNorm(8)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(x)).relu()))


class CountsSteps(Net):
    """Changes its behaviour after some steps, by a counter that is no tensor."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return super().forward(x) * (1 if self.steps < 6 else 2)


class KeepsCentre(Net):
    """Subtracts a centre that its earlier batches left; the first batch does not show it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.seen: dict[str, Tensor] = {"centre": torch.zeros(spec.shape[0], dtype=torch.float64)}

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x - self.seen["centre"])
        if self.training:
            self.seen["centre"].lerp_(x.mean(dim=0), 0.1)
        return out


class CouplesInEvaluation(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.training else x - x.mean(dim=0))


class CouplesInTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0) if self.training else x)


class CouplesInSmallBatches(Net):
    """Epochs of 64 rows in batches of 12 end in a batch of 4, and three times 4 is 12."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0) if self.training and len(x) % 12 else x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(8))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.log_scale.exp()


def parametrized_norm(spec: Spec) -> nn.Module:
    """A weight that the norm computes from another; at first it is one."""
    net = Net(spec)
    parametrize.register_parametrization(net.norm, "weight", Scaled())
    return net


class OneSeedIsOther:
    """Every second network has a flag that is no tensor and is not shown by `extra_repr`."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, spec: Spec) -> nn.Module:
        self.made += 1
        net = Gated(spec)
        net.gates = [float(self.made % 2)]
        return net


class Gated(Net):
    gates: list[float]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.gates[0])


class OneForAll:
    """Gives the same network every time."""

    def __init__(self) -> None:
        self.net: nn.Module | None = None

    def __call__(self, spec: Spec) -> nn.Module:
        self.net = self.net or Net(spec)
        return self.net


@pytest.mark.parametrize(
    "make",
    [
        lambda: CountsSteps,
        lambda: KeepsCentre,
        lambda: CouplesInEvaluation,
        lambda: CouplesInSmallBatches,
        lambda: parametrized_norm,
        OneSeedIsOther,
    ],
    ids=["counter", "centre", "evaluation", "small batch", "parametrized", "flag"],
)
def test_networks_that_hide_something_are_not_stacked_wrongly(make: Callable[[], Factory]) -> None:
    recipe = Recipe(training=Training(steps=22, batch_size=12, lr=1e-2))
    factory = make()
    assert not same_or_refused(lambda: prepared(factory, recipe=recipe))


def test_networks_that_share_weights_with_one_another_are_refused() -> None:
    with pytest.raises(CannotStackError, match="share"):
        train_replicas(replicas_of(prepared(OneForAll())))


class Method:
    reads, writes = (), ("weights",)


class Freezes(Method):
    def epoch_end(self, run: Run) -> None:
        run.model.body.requires_grad_(run.epoch < 1)


class Anneals(Method):
    def epoch_end(self, run: Run) -> None:
        run.model.drop.p *= 0.5


class Hooks(Method):
    def epoch_end(self, run: Run) -> None:
        if run.epoch == 1:
            run.model.head.register_forward_hook(lambda module, given, out: 2 * out)


class Replaces(Method):
    def epoch_end(self, run: Run) -> None:
        if run.epoch == 1:
            run.model.head.weight = nn.Parameter(run.model.head.weight.detach() * 0.5)


class DrawsGlobally(Method):
    writes = ("loss",)

    def loss(self, run: Run, batch: Any, output: Tensor, loss: Tensor) -> Tensor:
        return loss + 0.1 * (torch.rand_like(output) * output).mean()


class MovesWeightsBeforeTheStep(Method):
    def gradients(self, run: Run) -> None:
        run.model.head.weight.data = run.model.head.weight.data * 0.9


class Relabels(Method):
    def epoch_end(self, run: Run) -> None:
        run.train.y[:10] = 0


class Ignores(Method):
    """Some labels are not to be counted."""

    writes = ("batch",)

    def batch(self, run: Run, batch: Any) -> Any:
        return batch._replace(y=batch.y.masked_fill(batch.index % (3 + run.step % 2) == 0, -100))


class MasksGradients(Method):
    def prepare(self, run: Run) -> None:
        def mask(value: Tensor) -> None:
            value.grad[0] = 0

        run.model.body.weight.register_post_accumulate_grad_hook(mask)


class FewerRows(Method):
    def prepare(self, run: Run) -> None:
        run.train = Part(run.train.x[:40], run.train.y[:40], run.train.rows[:40])


@pytest.mark.parametrize(
    "method",
    [
        Freezes,
        Anneals,
        Hooks,
        Replaces,
        DrawsGlobally,
        MovesWeightsBeforeTheStep,
        Relabels,
        Ignores,
        MasksGradients,
        FewerRows,
    ],
)
def test_methods_that_change_more_than_numbers_are_not_stacked_wrongly(method: Any) -> None:
    same_or_refused(lambda: prepared(Net, method))


def test_a_stack_leaves_the_global_stream_alone() -> None:
    class LayerDrop(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if torch.rand(()) < 0.999 else 0 * x)

    before = torch.get_rng_state()
    with pytest.raises(CannotStackError, match="draws"):
        train_replicas(replicas_of(prepared(LayerDrop)))
    assert torch.equal(torch.get_rng_state(), before)


class Assigns(torch.optim.Optimizer):
    """Gives weights new memory in every step."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-2})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                value.data = value.data - group["lr"] * value.grad


@pytest.mark.parametrize(
    "optimizer",
    [
        Assigns,
        lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.5),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.5, 0.9), weight_decay=0.3),
    ],
    ids=["new memory", "adagrad", "rmsprop", "sgd", "adam", "adamw"],
)
def test_optimizers_in_a_stack(optimizer: Any) -> None:
    def ready() -> list[Assembly]:
        found = prepared(Net)
        for parts in found:
            parts.run.optimizer = optimizer(parts.run.model.parameters())
        return found

    assert same_or_refused(ready)


def test_rates_that_differ_by_seed_are_kept() -> None:
    def ready() -> list[Assembly]:
        found = prepared(Net)
        for k, parts in enumerate(found):
            parts.run.optimizer.param_groups[0]["lr"] = 1e-3 * (k + 1)
        return found

    assert same_or_refused(ready)


class Prior(nn.Module):
    """Separable, but with a setting of its own for every seed."""

    def __init__(self, prior: float) -> None:
        super().__init__()
        self.prior = torch.tensor([prior, 0.0, 0.0], dtype=torch.float64)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output + self.prior, target)


def test_a_separable_loss_with_settings_of_the_seed() -> None:
    def ready() -> list[Assembly]:
        found = prepared(Net)
        for k, parts in enumerate(found):
            parts.run.loss = Prior(float(k))
        return found

    parts = ready()
    replicas = replicas_of(parts)
    for replica in replicas:
        replica.separable = True
    train_replicas(replicas)
    assert_same(run_alone(ready()), [one.run for one in parts])


@pytest.mark.parametrize("rows", [17, 33, 16, 5, 2])
def test_last_batches_and_batches_larger_than_the_data(rows: int) -> None:
    def ready() -> list[Assembly]:
        data, found = toy("table", "reals"), []
        for seed in SEEDS:
            whole = _shuffled(data, seed)
            few = Part(whole.train.x[:rows], whole.train.y[:rows], whole.train.rows[:rows])
            found.append(assemble(alone(RECIPE, Data(whole.spec, few, whole.valid, whole.test), seed, factory=Net)))
            found[-1].run.model.double()
        return found

    assert same_or_refused(ready)


class Odd(nn.Module):
    """A block used twice, a module under two names, a nested list, a frozen norm, in-place sums, shared tables."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.lift = nn.Linear(spec.shape[0], 8)
        block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList([block, nn.ModuleList([block, nn.ModuleDict({"last": nn.Linear(8, 8)})])])
        self.again, self.frozen = self.lift, nn.BatchNorm1d(8)
        self.end, self.head = nn.Identity(), nn.Linear(16, spec.outputs)

    def train(self, mode: bool = True) -> Odd:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = self.again(x).mul_(0.5)
        h += self.blocks[1][0](self.blocks[0](self.lift(x)))
        h = torch.stack([self.frozen(h), self.blocks[1][1]["last"](h)], dim=2)  # (n, 8, 2)
        return self.end(self.head(h.flip(1).reshape(len(x), -1)))


def test_odd_but_honest_networks_are_stacked() -> None:
    assert same_or_refused(lambda: prepared(Odd))


def test_best_weights_take_the_memory_of_one_network_each() -> None:
    parts = prepared(Net)
    train_replicas(replicas_of(parts))
    kept: list[int] = []

    class Looks(Method):
        def finish(self, run: Run) -> None:
            gc.collect()
            sizes = {
                value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
                for value in gc.get_objects()
                if type(value) is Tensor and value.shape == run.model.body.weight.shape and not value.requires_grad
            }
            kept.append(max(sizes.values()))

    parts = prepared(Net, Looks)
    train_replicas(replicas_of(parts))
    own = parts[0].run.model.body.weight
    assert max(kept) == own.numel() * own.element_size()
    assert all(value.untyped_storage().nbytes() == value.numel() * 8 for value in parts[1].run.model.parameters())


class Convolutions(nn.Module):
    """Deep enough for a rounding to switch a ReLU somewhere, which moves gradients by a hundredth."""

    def __init__(self, spec: Spec, coupled: bool = False) -> None:
        super().__init__()
        widths, self.coupled = (spec.shape[0], 16, 16, 32, 32, 32), coupled
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(widths[-1], spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.drop(x.mean(dim=(2, 3)))
        return self.head(x - 1e-3 * x.mean(dim=0) if self.coupled else x)


@pytest.mark.parametrize("coupled", [False, True])
def test_roundings_are_told_from_differences(coupled: bool) -> None:
    """In single precision, some of many seeds always differ by more than their outputs' roundings."""
    spec, replicas = Spec("image", "classes", (3, 12, 12), 10), []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 3, 12, 12, generator=generator)
        part = Part(x, torch.randint(10, (64,), generator=generator), torch.arange(64))
        parts = assemble(alone(RECIPE, Data(spec, part, part, part), seed, factory=lambda s: Convolutions(s, coupled)))
        replicas.append(Replica(parts.run, parts.methods, generator_for(seed, "order"), derive(seed, "training")))
    if coupled:
        with pytest.raises(CannotStackError, match="other outputs or gradients"):
            Stacked(replicas)
    else:
        Stacked(replicas)


def test_without_draws_networks_are_as_before_afterwards_and_what_couples_rows_is_still_found() -> None:
    parts = prepared(Net)
    stack = Stack([one.run.model for one in parts])
    with _without_draws(stack):
        assert not stack.draws
        before = torch.get_rng_state()
        same_step(stack, replicas_of(parts))
        assert torch.equal(torch.get_rng_state(), before)
    assert stack.draws
    assert {one.run.model.drop.p for one in parts} == {0.2}
    coupled = prepared(CouplesInTraining)
    stack = Stack([one.run.model for one in coupled])
    with _without_draws(stack), pytest.raises(CannotStackError, match="other outputs"):
        same_step(stack, replicas_of(coupled))


def test_a_frozen_table_shared_by_all_networks_is_refused() -> None:
    shared = nn.Linear(3, 3)
    shared.requires_grad_(False)
    with pytest.raises(CannotStackError, match="share"):
        Stack([nn.Sequential(nn.Linear(3, 3), shared) for _ in range(3)])


def test_making_a_session_does_not_change_what_the_networks_hold() -> None:
    parts = prepared(Odd)
    before = [copy.deepcopy(one.run.model.state_dict()) for one in parts]
    session = Stacked(replicas_of(parts))
    session.close()
    for one, state in zip(parts, before, strict=True):
        for name, value in one.run.model.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_an_interrupt_detaches_methods_and_is_not_swallowed() -> None:
    left: list[int] = []

    class Interrupts(Method):
        def step_end(self, run: Run) -> None:
            if run.step == 7:
                raise KeyboardInterrupt

        def detach(self) -> None:
            left.append(1)

    with pytest.raises(KeyboardInterrupt):
        train_replicas(replicas_of(prepared(Net, Interrupts)))
    assert len(left) == len(SEEDS)


def test_one_bad_seed_does_not_touch_the_others_where_the_loss_is_shared() -> None:
    def ready(bad: bool) -> list[Assembly]:
        found = prepared(Net)
        for parts in found:
            parts.run.loss = Prior(0.0)
        if bad:
            part = found[1].run.train
            found[1].run.train = Part(part.x * float("inf"), part.y, part.rows)
        return found

    parts = ready(True)
    replicas = replicas_of(parts)
    for replica in replicas:
        replica.separable = True
    failed = train_replicas(replicas)
    assert [problem is None for problem in failed] == [True, False, True]
    wanted = run_alone(ready(False))
    assert_same([wanted[0], wanted[2]], [parts[0].run, parts[2].run])
