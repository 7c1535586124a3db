"""What methods and compressors promise on networks as users have them, and of what they leave of a step; see `odd`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probatum.checks.odd import ODD, odd, plain
from probatum.checks.subject import NotThisOneError, Subject, demand, fingerprint
from probatum.checks.trained import run_it
from probatum.engine import Engine
from probatum.errors import InputError
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Batch, Data
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import Single
from probatum.train.rng import generator_for, seeded

STEPS = 6


def check_networks_as_users_have_them(subject: Subject) -> None:
    """On networks that are odd in an ordinary way it trains to finite weights or refuses with words; frozen weights do not move,
    a module in two places stays one, a norm counts the loop's passes alone."""
    data, tried = _rows(subject), 0
    for what in ODD:
        parts = _assembled(subject, data, lambda spec, what=what: odd(what, spec.shape, spec.outputs))
        if parts is None:
            continue
        model = parts.run.model
        held = {name: value.detach().clone() for name, value in model.named_parameters() if not value.requires_grad}
        if not _ran(parts):
            continue
        tried += 1
        now = dict(model.named_parameters())
        moved = [name for name, value in held.items() if name in now and not torch.equal(value, now[name])]
        demand(not moved, f"{what}: frozen weights moved: {', '.join(moved[:3])}")
        freed = [name for name in held if name in now and now[name].requires_grad]
        demand(not freed, f"{what}: frozen weights are trainable now: {', '.join(freed[:3])}")
        demand(
            all(bool(torch.isfinite(v).all()) for v in model.state_dict().values()), f"{what}: weights are not finite"
        )
        if what == "one module in two places":
            demand(model.first is model.second, f"{what}: it is two modules now")
        _check_copy(model, parts.run.valid.x[:8], what)
    if not tried:
        raise NotThisOneError("it refuses such networks")


def check_norms_count_the_training_passes(subject: Subject) -> None:
    """Batch norms have seen as many batches as the loop has passed, extra passes or not."""
    parts = _assembled(subject, _rows(subject), lambda spec: plain(spec.shape, spec.outputs))
    if parts is None or not _ran(parts):
        raise NotThisOneError("it refuses such networks")
    counts = [
        int(m.num_batches_tracked) for m in parts.run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    demand(
        all(count <= STEPS for count in counts),
        f"after {STEPS} steps a norm has seen {counts} batches; keep extra passes away from running statistics",
    )


def check_attached_networks_can_be_copied(subject: Subject) -> None:
    """A deep copy made in the middle of training gives the network's outputs, and computes with weights of its own."""
    parts = _assembled(subject, _rows(subject), lambda spec: plain(spec.shape, spec.outputs))
    if parts is None:
        raise NotThisOneError("it refuses such networks")
    seen: list[str] = []

    class Look:
        reads, writes = ("model",), ()

        def step_end(self, run: Any) -> None:
            if run.step == STEPS // 2:
                seen.extend(_copy_problems(run.model, run.valid.x[:8]))

    parts.methods.append(Look())
    run_it(parts)
    demand(not seen, f"in the middle of training {'; '.join(seen)}")


def check_batches_are_not_changed(subject: Subject) -> None:
    """The batch that the loop hands on is read only: a hook that wants other rows returns another batch."""
    with _first_step(subject) as step:
        batch = step.batch
        before = fingerprint([batch.x, batch.y, batch.index])
        step.whole()
        demand(fingerprint([batch.x, batch.y, batch.index]) == before, "it changed the batch in place")


def check_losses_add_up(subject: Subject) -> None:
    """A `loss` hook keeps what came before it: one more on the loss is one more on what it returns."""
    if not hasattr(subject.entry, "loss"):
        raise NotThisOneError("it has no loss hook")
    for settings in subject.variants():
        found = []
        for more in (0.0, 1.0):
            with _first_step(subject, settings) as step:
                found += [] if step is None else [step.hooked(more)]
        grown = found[-1] - found[0] if len(found) == 2 else 1.0
        demand(
            abs(grown - 1.0) < 1e-3,
            f"{_own(subject, settings)}: with 1 more on the loss before it, what it returns is {grown:.4g} more; "
            "a loss hook adds to what other methods and the model's objective gave",
        )


def check_hooks_write_what_they_say(subject: Subject) -> None:
    """Weights, gradients and batches change in a hook only where `writes` names them."""
    writes = set(getattr(subject.entry, "writes", ()))
    with _first_step(subject) as step:
        for hook, changed in step.changes():
            for thing in changed - writes:
                demand(False, f"its hook {hook} changes {thing}, which its writes {tuple(sorted(writes))} do not name")


def check_hooks_read_what_they_say(subject: Subject) -> None:
    """What it does in `gradients` does not hang on gradients that neither `reads` nor `writes` names."""
    named = {*getattr(subject.entry, "reads", ()), *getattr(subject.entry, "writes", ())}
    if not hasattr(subject.entry, "gradients") or "gradients" in getattr(subject.entry, "reads", ()):
        raise NotThisOneError("it has no gradients hook, or says that it reads gradients")
    found = []
    for factor in (1.0, -1.0):
        with _first_step(subject) as step:
            found.append(step.gradients_after(factor))
    if not found[0]:
        raise NotThisOneError("no gradients to look at")
    same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    sums = all(torch.allclose(a, -b, atol=1e-12) for a, b in zip(*found, strict=True))
    added = "gradients" in named and all(  # noise that is added is the same whatever the gradients are
        torch.allclose(a - b, 2 * raw, atol=1e-5) for a, b, raw in zip(*found, step.raw, strict=True)
    )
    demand(
        same or sums or added,
        "what it leaves in the gradients hangs on the gradients it finds; say so: reads = ('gradients', ...)",
    )


def check_extra_passes_are_charged(subject: Subject) -> None:
    """Rows that it passes through the network beyond the loop's own are counted in `run.extra_passes`."""
    data = _rows(subject)
    for settings in subject.variants():
        parts = _assembled(subject, data, lambda spec: plain(spec.shape, spec.outputs), settings)
        if parts is None:
            continue
        rows = _rows_passed(parts)
        if rows is None:
            continue
        run = parts.run
        beyond = rows - run.passes
        demand(
            beyond <= run.extra_passes + 2 * run.budget.batch_size,
            f"{_own(subject, settings)}: {beyond:.0f} rows beyond the loop's were passed through the network (one without "
            f"gradients is a third), and run.extra_passes says {run.extra_passes:.0f}; add what you pass to it",
        )


def check_bf16_and_fused_optimizers(subject: Subject) -> None:
    """Under bf16 autocast, with a fused optimizer, it trains to finite weights and near where float32 ends."""
    data = _rows(subject)
    for settings in subject.variants():
        ends = []
        for engine in (Engine(), Engine(precision="bf16")):
            parts = _assembled(subject, data, lambda spec: plain(spec.shape, spec.outputs), settings, engine)
            if parts is None or not _ran(parts):
                break
            ends.append(torch.cat([value.detach().flatten() for value in parts.run.model.parameters()]))
        if len(ends) < 2 or ends[0].shape != ends[1].shape:
            continue
        told = _own(subject, settings)
        demand(bool(torch.isfinite(ends[1]).all()), f"{told}: weights are not finite under bf16")
        gap = float((ends[0] - ends[1]).norm() / ends[0].norm())
        demand(gap < 0.25, f"{told}: under bf16 it ends {gap:.0%} of the weights' norm from where float32 ends")


class Step:
    """The first step of a run, hook by hook."""

    def __init__(self, parts: Assembly) -> None:
        self.parts, self.run, self.method = parts, parts.run, parts.methods[0]
        self.session = Single(parts.run, parts.methods, generator_for(2, "order"))
        index = self.session.epoch()[0]
        rows = parts.run.train
        self.batch = Batch(rows.x[index].clone(), rows.y[index].clone(), index)
        self.raw: list[Tensor] = []

    def whole(self) -> None:
        """Batch hook, forward pass with hooks, backward pass."""
        batch = self.method.batch(self.run, self.batch) if hasattr(self.method, "batch") else self.batch
        self.run.batch, self.run.whole = batch, len(batch.y)
        self.run.passes += len(batch.y)
        loss = self.run.loss_of(batch)
        self.run.optimizer.zero_grad(set_to_none=True)
        self.run.backward(loss)

    def hooked(self, more: float) -> float:
        """What the loss hook makes of the objective plus a constant, from the same state and stream."""
        run = self.run
        batch = self.method.batch(run, self.batch) if hasattr(self.method, "batch") else self.batch
        run.batch, run.whole = batch, len(batch.y)
        kept = run.loss_hooks
        run.loss_hooks = [lambda run, batch, output, loss: loss + more, *kept]
        try:
            with seeded(0, "check", "hooked"):
                return float(run.loss_of(batch))
        finally:
            run.loss_hooks = kept

    def changes(self) -> Iterator[tuple[str, set[str]]]:
        """Hooks of the step in order, and which of weights and gradients each changed."""
        model = self.run.model
        weights = _weights(model)
        self.whole()
        yield "loss", _moved(weights, model)
        if hasattr(self.method, "gradients"):
            grads = _hash(p.grad for p in model.parameters())
            self.method.gradients(self.run)
            changed = {"gradients"} if _hash(p.grad for p in model.parameters()) != grads else set()
            yield "gradients", changed | _moved(weights, model)
        self.run.optimizer.step()
        self.run.step += 1
        if hasattr(self.method, "step_end"):
            weights = _weights(model)
            self.method.step_end(self.run)
            yield "step_end", _moved(weights, model)

    def gradients_after(self, factor: float) -> list[Tensor]:
        """Gradients after the hook, where it finds `factor` times those of the first pass."""
        with seeded(0, "check", "gradients"):
            self.whole()
            self.raw = [p.grad.clone() for p in self.run.model.parameters() if p.grad is not None]
            for p in self.run.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(factor)
            self.method.gradients(self.run)
        return [p.grad.clone() for p in self.run.model.parameters() if p.grad is not None]


class _first_step:  # noqa: N801  (a context manager, used as a function)
    def __init__(self, subject: Subject, settings: Mapping[str, Any] | None = None) -> None:
        self.subject, self.settings = subject, settings
        self.parts: Assembly | None = None

    def __enter__(self) -> Any:
        parts = _assembled(
            self.subject, _rows(self.subject), lambda spec: plain(spec.shape, spec.outputs), self.settings
        )
        if parts is None:
            if self.settings is None:
                raise NotThisOneError("it refuses such networks")
            return None
        self.parts = parts
        self.seeding = seeded(2, "training")
        self.seeding.__enter__()
        return Step(parts)

    def __exit__(self, *problem: Any) -> None:
        if self.parts is None:
            return
        self.seeding.__exit__(*problem)
        for method in self.parts.methods:
            if hasattr(method, "detach"):
                method.detach()


def _rows(subject: Subject) -> Data:
    return subject.numbers(1, 3, 2)[0]


def _assembled(
    subject: Subject,
    data: Data,
    factory: Any,
    settings: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
) -> Assembly | None:
    """A short run on a network; None where the technique refuses it with words."""
    base = Recipe(training=Training(steps=STEPS, batch_size=16, lr=1e-2))
    recipe = base.filled(subject.use(settings))
    try:
        with seeded(0, "check", "network"):
            parts = assemble(alone(recipe, data, 2, factory=factory, engine=engine or Engine()))
    except (InputError, ValueError, TypeError) as problem:
        _worded(problem)
        return None
    parts.run.keep_best = False
    return parts


def _ran(parts: Assembly) -> bool:
    """Train; False where the technique refuses the network before the first step."""
    try:
        run_it(parts)
    except (InputError, ValueError, TypeError) as problem:
        demand(parts.run.step == 0, f"it fails in step {parts.run.step + 1}: {type(problem).__name__}: {problem}")
        _worded(problem)
        return False
    return True


def _worded(problem: Exception) -> None:
    demand(len(str(problem).split()) > 4, f"it refuses a network with {str(problem)!r}; say what to do")


def _rows_passed(parts: Assembly) -> float | None:
    """Rows that went through the network while training, a third where without gradients; looks at validation rows aside."""
    count = 0.0
    model = parts.run.model
    valid = {len(parts.run.valid.x)}

    def seen(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal count
        if args and isinstance(args[0], Tensor) and len(args[0]) not in valid:
            count += len(args[0]) / (1 if torch.is_grad_enabled() else 3)

    handle = model.register_forward_hook(seen)
    try:
        return count if _ran(parts) else None
    finally:
        handle.remove()


def _check_copy(model: nn.Module, x: Tensor, what: str) -> None:
    problems = _copy_problems(model, x)
    demand(not problems, f"{what}: after training {'; '.join(problems)}")


def _copy_problems(model: nn.Module, x: Tensor) -> list[str]:
    """What is wrong with a deep copy of a network."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            wanted, twin = model.eval()(x), copy.deepcopy(model).eval()
            if not torch.allclose(twin(x), wanted, atol=1e-5):
                return ["a deep copy gives other outputs"]
            for value in twin.parameters():
                value.data.mul_(-1.7).add_(0.3)
            if torch.allclose(twin(x), wanted, atol=1e-5):
                return ["a deep copy computes with the original's weights"]
            if not torch.allclose(model(x), wanted, atol=1e-5):
                return ["changing a deep copy changes the network"]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return []


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _moved(before: Mapping[str, Tensor], model: nn.Module) -> set[str]:
    """Whether weights are others by more than rounding: a method may move them and put them back."""
    now = dict(model.named_parameters())
    same = set(now) == set(before) and all(torch.allclose(now[n], v, rtol=1e-5, atol=1e-6) for n, v in before.items())
    return set() if same else {"weights"}


def _hash(values: Any) -> str:
    return fingerprint([torch.zeros(0) if value is None else value for value in values])


def _own(subject: Subject, settings: Mapping[str, Any]) -> str:
    tiny = subject.card.tiny
    return ", ".join(f"{k}={v!r}" for k, v in settings.items() if k not in tiny or tiny[k] != v) or "tiny settings"
