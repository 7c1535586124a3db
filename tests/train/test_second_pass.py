"""A second look in one step: the loop's own pass at other weights, for methods and for optimizers with a closure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.contracts.method import ordered
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import alone
from probatum.spec import Batch, Data, Part
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import outputs, train, wants_closure
from probatum.train.replica import Replica
from probatum.train.replicas import train_replicas
from probatum.train.rng import derive, generator_for, seeded
from probatum.train.run import Run, buffers_kept

pytestmark = pytest.mark.fast

TRAINING = Training(steps=12, batch_size=16, lr=1e-2)


class Sam:
    """Sharpness-aware minimisation (Foret et al. 2021, eq. 2): the gradient at the worst weights within rho."""

    reads, writes = ("weights",), ("gradients",)

    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho

    @torch.no_grad()
    def gradients(self, run: Run) -> None:
        here = [p for p in run.model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in here]).norm()
        steps = [self.rho * p.grad / (norm + 1e-12) for p in here]
        for p, step in zip(here, steps, strict=True):
            p.add_(step)
        run.second_pass()
        for p, step in zip(here, steps, strict=True):
            p.sub_(step)


class Dropping(nn.Module):
    """A network with dropout and batch norm."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(spec.shape[0], 24), nn.BatchNorm1d(24)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(24, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(F.relu(self.norm(self.first(x)))))


def prepared(
    seed: int, *methods: Any, training: Training = TRAINING, factory: Any = Dropping, double: bool = False
) -> Assembly:
    data = toy("table", "classes")
    if double:
        parts_of = (Part(p.x.double(), p.y, p.rows) for p in (data.train, data.valid, data.test))
        data = Data(data.spec, *parts_of)
    parts = assemble(alone(Recipe(training=training), data, seed, factory=factory))
    if double:
        parts.run.model.double()
    parts.methods.extend(method for _, method in ordered([(type(m).__name__, m) for m in methods]))
    return parts


def run_alone(parts: Assembly, seed: int) -> Run:
    with seeded(seed, "training"):
        train(parts.run, parts.methods, generator_for(seed, "order"), schedule="constant", select="last")
    return parts.run


def test_a_second_pass_gives_the_gradient_at_the_weights_as_they_are() -> None:
    seen: list[tuple[list[Tensor], list[Tensor]]] = []

    class Look:
        reads, writes = ("weights",), ("gradients",)

        def gradients(self, run: Run) -> None:
            with torch.no_grad():
                for p in run.model.parameters():
                    p.mul_(0.9)
            weights = [p.detach().clone() for p in run.model.parameters()]
            run.second_pass()
            seen.append((weights, [p.grad.clone() for p in run.model.parameters()]))

    def plain(spec: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(spec.shape[0], 8), nn.Tanh(), nn.Linear(8, spec.outputs))

    parts = prepared(0, Look(), factory=plain)
    order: list[Tensor] = []

    class Rows:
        reads, writes = ("batch",), ()

        def batch(self, run: Run, batch: Batch) -> Batch:
            order.append(batch.index)
            return batch

    parts.methods.insert(0, Rows())
    run_alone(parts, 0)
    data, net = toy("table", "classes"), plain(parts.run.spec)
    for index, (weights, gradients) in zip(order, seen, strict=True):
        with torch.no_grad():
            for p, value in zip(net.parameters(), weights, strict=True):
                p.copy_(value)
        loss = F.cross_entropy(net(data.train.x[index]), data.train.y[index])
        for got, wanted in zip(gradients, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            torch.testing.assert_close(got, wanted)


def test_it_is_charged_clipped_and_takes_other_methods_along() -> None:
    norms: list[float] = []
    hooked: list[int] = []

    class Penalty:
        reads, writes = ("loss",), ("loss",)

        def loss(self, run: Run, batch: Batch, output: Tensor, loss: Tensor) -> Tensor:
            hooked.append(run.step)
            return 100 * loss

    class Watch:
        reads, writes = ("gradients",), ()

        def gradients(self, run: Run) -> None:
            norms.append(float(torch.stack([p.grad.norm() for p in run.model.parameters()]).norm()))

    training = Training(steps=6, batch_size=16, lr=1e-2, clip=1e-3)
    run = run_alone(prepared(1, Penalty(), Sam(), Watch(), training=training), 1)
    assert run.extra_passes == run.passes == 6 * 16
    assert hooked == sorted([*range(6), *range(6)])  # both passes of every step
    assert max(norms) <= 1e-3 * (1 + 1e-4)


def test_running_statistics_and_the_global_stream_are_not_moved() -> None:
    class Twice:
        reads, writes = ("weights",), ("gradients",)

        def gradients(self, run: Run) -> None:
            before = (
                run.model.norm.running_mean.clone(),
                int(run.model.norm.num_batches_tracked),
                torch.get_rng_state(),
            )
            run.second_pass()
            assert torch.equal(run.model.norm.running_mean, before[0])
            assert int(run.model.norm.num_batches_tracked) == before[1]
            assert torch.equal(torch.get_rng_state(), before[2])
            assert run.model.norm.momentum == 0.1

    run = run_alone(prepared(2, Twice()), 2)
    assert int(run.model.norm.num_batches_tracked) == TRAINING.steps


def test_dropout_of_second_passes_differs_from_step_to_step_and_repeats() -> None:
    losses: list[list[float]] = []

    class Look:
        reads, writes = ("weights",), ("gradients",)

        def gradients(self, run: Run) -> None:
            kept = [p.grad.clone() for p in run.model.parameters()]
            rows = Batch(run.train.x[:16], run.train.y[:16], torch.arange(16))
            losses[-1].append(float(run.second_pass(rows)))
            for p, gradient in zip(run.model.parameters(), kept, strict=True):
                p.grad = gradient

    for _ in range(2):
        losses.append([])
        run_alone(prepared(3, Look(), training=Training(steps=4, batch_size=16, lr=1e-12, weight_decay=0.0)), 3)
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4  # the weights stand still; the masks do not


class Beginning(nn.Module):
    """A network that begins by changing its rows in place."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.begin, self.last = nn.ReLU(inplace=True), nn.Linear(spec.shape[0], spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.begin(x))


@pytest.mark.parametrize("stacked", [False, True])
def test_hooks_and_second_passes_see_the_rows_that_were_given(stacked: bool) -> None:
    class Look(Sam):
        seen: list[bool]

        def loss(self, run: Run, batch: Batch, output: Tensor, loss: Tensor) -> Tensor:
            self.seen.append(torch.equal(batch.x, run.train.x[batch.index]))
            return loss

        def gradients(self, run: Run) -> None:
            super().gradients(run)
            assert run.batch is not None
            self.seen.append(torch.equal(run.batch.x, run.train.x[run.batch.index]))

    methods = [Look(), Look()]
    parts = [prepared(seed, method, factory=Beginning) for seed, method in enumerate(methods)]
    assert bool((parts[0].run.train.x < 0).any())
    for method in methods:
        method.seen = []
    if stacked:
        replicas = [
            Replica(one.run, one.methods, generator_for(seed, "order"), derive(seed, "training"))
            for seed, one in enumerate(parts)
        ]
        assert train_replicas(replicas, schedule="constant", select="last") == [None, None]
    else:
        for seed, one in enumerate(parts):
            run_alone(one, seed)
    assert all(len(method.seen) >= 12 and all(method.seen) for method in methods)


@pytest.mark.parametrize("factory", [Dropping, None])
def test_seeds_of_a_method_with_second_passes_stack(factory: Any) -> None:
    seeds = (3, 4, 5)
    wanted = [run_alone(prepared(seed, Sam(), factory=factory, double=True), seed) for seed in seeds]
    parts = [prepared(seed, Sam(), factory=factory, double=True) for seed in seeds]
    replicas = [
        Replica(one.run, one.methods, generator_for(seed, "order"), derive(seed, "training"))
        for one, seed in zip(parts, seeds, strict=True)
    ]
    assert train_replicas(replicas, schedule="constant", select="last") == [None] * 3
    for one, other in zip(wanted, parts, strict=True):
        x = one.valid.x
        torch.testing.assert_close(outputs(other.run.model, x), outputs(one.model, x), rtol=1e-7, atol=1e-7)
        assert other.run.extra_passes == one.extra_passes


class ClosureSam(torch.optim.SGD):
    """The paper's form: an optimizer whose step looks again."""

    closure = True

    def __init__(self, params: Any, lr: float = 0.05, rho: float = 0.05) -> None:
        super().__init__(params, lr=lr)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        here = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in here]).norm()
        steps = [self.rho * p.grad / (norm + 1e-12) for p in here]
        for p, move in zip(here, steps, strict=True):
            p.add_(move)
        loss = closure()
        for p, move in zip(here, steps, strict=True):
            p.sub_(move)
        super().step()
        return loss


class Needs(torch.optim.SGD):
    def step(self, closure: Any) -> Any:
        return super().step(closure)


def test_no_buffer_of_the_network_or_the_loss_is_moved() -> None:
    """Running statistics of instance norms, vectors of power iterations and what a loss keeps of its rows."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(output, target)

    class Normed(nn.Module):
        def __init__(self, spec: Any) -> None:
            super().__init__()
            self.first = nn.utils.spectral_norm(nn.Linear(spec.shape[0], 8))
            self.norm = nn.InstanceNorm1d(2, track_running_stats=True)
            self.head = nn.Linear(8, spec.outputs)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.first(x).unflatten(1, (2, 4))).flatten(1))

    class Look:
        reads, writes = (), ("gradients",)

        def gradients(self, run: Run) -> None:
            before = [buffer.clone() for module in (run.model, run.loss) for buffer in module.buffers()]
            run.second_pass()
            after = [buffer for module in (run.model, run.loss) for buffer in module.buffers()]
            assert len(before) == 6  # mean, deviation and count; two vectors; calls
            for a, b in zip(before, after, strict=True):
                assert torch.equal(a, b)

    parts = prepared(2, Look(), factory=Normed)
    parts.run.loss = Keeps()
    assert float(run_alone(parts, 2).loss.calls) == TRAINING.steps  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["deeply-supervised-nets", "guidance", "sorted-net", "batchformer"])
def test_methods_that_act_on_a_pass_act_on_second_ones(name: str) -> None:
    data, widths = toy("image", "classes"), []
    parts = assemble(alone(make_arm(name, Recipe(training=replace(TRAINING, steps=4))).recipe, data, 3))
    technique = parts.methods[0]

    class Widths:
        reads, writes = (), ()

        def loss(self, run: Run, batch: Batch, output: Tensor, loss: Tensor) -> Tensor:
            prefix = getattr(technique, "prefix", None)
            widths.append(None if prefix is None else prefix.share)
            return loss

    found = [*parts.methods, Sam()]
    parts.methods[:] = [method for _, method in ordered([(type(m).__name__, m) for m in found])]
    parts.methods.insert(0, Widths())
    run = run_alone(parts, 3)
    assert run.step == 4
    assert run.extra_passes >= run.passes
    if name == "sorted-net":
        assert widths[::2] == widths[1::2]
        assert len(set(widths)) > 1


def test_buffers_that_are_replaced_made_or_shared_are_as_before() -> None:
    class Odd(nn.Module):
        def __init__(self, spec: Any) -> None:
            super().__init__()
            self.head = nn.Linear(spec.shape[0], spec.outputs)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("late", None)
            self.register_buffer("places", torch.arange(3).expand(4, -1))  # cannot be written to

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            if self.training and self.late is None and self.calls > 3:
                self.late = torch.ones(2)
            return self.head(x)

    class Look:
        reads, writes = (), ("gradients",)

        def gradients(self, run: Run) -> None:
            before = dict(run.model._buffers), run.model.calls.clone()
            run.second_pass()
            assert run.model._buffers.keys() == before[0].keys()
            assert all(run.model._buffers[name] is value for name, value in before[0].items())
            assert torch.equal(run.model.calls, before[1])

    run_alone(prepared(2, Look(), factory=Odd, training=Training(steps=6, batch_size=16)), 2)


def test_a_graph_through_a_buffer_that_nobody_moved_still_goes_backward() -> None:
    norm = nn.BatchNorm1d(3).eval()
    x = torch.randn(5, 3, requires_grad=True)
    output = norm(x).square().sum()
    with buffers_kept(norm):
        norm(x)
    output.backward()
    assert x.grad is not None


def test_several_devices_charge_the_whole_batch() -> None:
    """What one process of two would do, its share of the batch before it."""

    class Half:
        count = 2

        def part(self, batch: Batch) -> Batch:
            n = len(batch.y) // 2
            return Batch(batch.x[:n], batch.y[:n], batch.index[:n])

        def weighted(self, loss: Tensor) -> Tensor:
            return loss

        def average(self, parameters: Any) -> None: ...

        def total(self, loss: Tensor) -> float:
            return float(loss.detach())

        def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
            return outputs(model, x)

    parts = prepared(1, Sam())
    parts.run.shard = Half()
    run = run_alone(parts, 1)
    assert run.extra_passes == run.passes > 0


def test_optimizers_that_promise_a_closure_get_one() -> None:
    net = nn.Linear(2, 2)
    assert wants_closure(ClosureSam(net.parameters()))
    assert wants_closure(Needs(net.parameters(), lr=0.1))
    assert not wants_closure(torch.optim.AdamW(net.parameters()))
    assert wants_closure(torch.optim.LBFGS(net.parameters()))  # whose step torch wraps twice

    class Quiet(torch.optim.SGD):
        @torch.no_grad()
        def step(self, *, closure: Any) -> Any:
            return super().step(closure)

    assert wants_closure(Quiet(net.parameters(), lr=0.1))
    method, closure = prepared(6, Sam()), prepared(6)
    for parts in (method, closure):
        parts.run.optimizer = torch.optim.SGD(parts.run.model.parameters(), lr=0.05)
    closure.run.optimizer = ClosureSam(closure.run.model.parameters())
    one, other = run_alone(method, 6), run_alone(closure, 6)
    assert other.extra_passes == one.extra_passes > 0
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


class Weighted(nn.Module):
    """Cross-entropy with a temperature that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output / self.temperature, target)


LOSS = '''"""A loss that learns a temperature.

Paper     nobody
Computes  cross-entropy of output / temperature
Shapes    (n, classes), (n,) -> ()
Departs   none
"""
import torch
from torch import nn
from torch.nn import functional as F

from probatum.card import Card

CARD = Card(paper="none", title="Tempered", entry="Tempered", slot="loss", tasks=("classes",))


class Tempered(nn.Module):
    """Cross-entropy of outputs divided by a temperature that is learned with the network."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return F.cross_entropy(output / self.temperature, target)
'''


def test_a_loss_with_parameters_is_trained_or_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from probatum import catalogue
    from probatum.recipe import make_arm

    monkeypatch.setattr(catalogue, "_added", {})
    (tmp_path / "tempered.py").write_text(LOSS)
    name = catalogue.add_file(tmp_path / "tempered.py")
    base = Recipe(training=TRAINING)
    parts = assemble(alone(make_arm(name, base).recipe, toy("table", "classes"), 0))
    run = run_alone(parts, 0)
    assert float(run.loss.temperature.detach()) != 1.0
    by_role = next(n for n in catalogue.names("optimizer") if hasattr(catalogue.entry(n), "for_model"))
    with pytest.raises(InputError, match=f"{name} has parameters of its own, and {by_role} treats"):
        assemble(alone(make_arm(f"{name}+{by_role}", base).recipe, toy("table", "classes"), 0))


def test_torch_s_lbfgs_runs_alone_and_stacked() -> None:
    def ready(seed: int) -> Assembly:
        whole = replace(TRAINING, batch_size=1000, steps=8)  # it remembers gradients, which must be of the same rows
        parts = prepared(seed, training=whole, double=True, factory=lambda spec: nn.Linear(spec.shape[0], spec.outputs))
        parts.run.optimizer = torch.optim.LBFGS(parts.run.model.parameters(), lr=0.1, max_iter=3)
        return parts

    alone_runs = [run_alone(ready(seed), seed) for seed in (1, 2)]
    assert alone_runs[0].curve[-1]["train_loss"] < alone_runs[0].curve[0]["train_loss"]
    assert all(run.extra_passes > 0 for run in alone_runs)
    both = [ready(seed) for seed in (1, 2)]
    replicas = [
        Replica(one.run, one.methods, generator_for(seed, "order"), derive(seed, "training"))
        for one, seed in zip(both, (1, 2), strict=True)
    ]
    assert train_replicas(replicas, schedule="constant", select="last") == [None, None]
    for one, other in zip(alone_runs, both, strict=True):
        for a, b in zip(one.model.parameters(), other.run.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
