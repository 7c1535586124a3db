"""Where the time of a training step goes: the plain loop, and ten stacked replicas, phase by phase and operation by operation.

    python benchmarks/profile_step.py [--steps 100] [mlp128 mlp256 cnn ...]

Phases are processor time (time.process_time), which other programs on the machine disturb less than wall time;
operations are torch.profiler's own times. Everything with one thread. Microseconds are those of one step of one network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from suite.replicas import assembled, cnn, mlp, works_of
from torch.profiler import ProfilerActivity, profile

from probatum.rooms.arena import ModelFactory, Work
from probatum.spec import Batch
from probatum.train.loop import batch_order, batches_of, rate_factor, train
from probatum.train.replica import Replica
from probatum.train.replicas import Stacked
from probatum.train.rng import derive, generator_for, seeded

NETWORKS: dict[str, tuple[str, ModelFactory | None]] = {
    **{f"mlp{width}": ("digits", mlp(width)) for width in (64, 128, 256, 512, 1024)},
    "cnn": ("digits", cnn),
    "resnet": ("digits", None),
    "table": ("breast-cancer", None),
}
COUNT = 10
ROWS = 12
"""Operations shown."""


class Phases:
    """Processor time by phase."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.last = time.process_time()

    def start(self) -> None:
        """What went before belongs to no phase."""
        self.last = time.process_time()

    def end(self, name: str) -> None:
        """What has passed since the last call belongs to this phase."""
        now = time.process_time()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.last
        self.last = now

    def lines(self, steps: int) -> str:
        """Microseconds a step and network."""
        parts = [f"{name} {1e6 * spent / steps:.0f}" for name, spent in self.spent.items()]
        return f"{1e6 * sum(self.spent.values()) / steps:7.1f} = " + " + ".join(parts)


def plain(work: Work, steps: int) -> Phases:
    """The loop's own statements, timed."""
    parts, order, phases = assembled(work, steps), generator_for(work.seed, "order"), Phases()
    run, step = parts.run, 0
    run.model.train()
    phases.start()
    while step < steps:
        batches = batches_of(batch_order(run.train, order), run.budget.batch_size)
        phases.end("epoch")
        for index in batches:
            batch = Batch(run.train.x[index], run.train.y[index], index)
            phases.end("rows")
            with run.engine.autocast():
                output = run.model(batch.x)
                phases.end("forward")
                loss = run.objective(batch, output)
            phases.end("loss")
            run.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            phases.end("backward")
            for group in run.optimizer.param_groups:
                group["lr"] = 1e-3 * rate_factor(step, steps, "constant")
            run.optimizer.step()
            phases.end("update")
            step += 1
            if step == steps:
                break
    return phases


def session_of(works: list[Work], steps: int) -> Stacked:
    """Replicas ready to step."""
    replicas = []
    for work in works:
        parts = assembled(work, steps)
        replicas.append(
            Replica(parts.run, parts.methods, generator_for(work.seed, "order"), derive(work.seed, "training"))
        )
    return Stacked(replicas)


def stacked(works: list[Work], steps: int) -> Phases:
    """`Stacked.step`'s own statements, timed."""
    session, phases, step = session_of(works, steps), Phases(), 0
    phases.start()
    while step < steps:
        batches = session.epoch()
        phases.end("epoch")
        for index in batches:
            batch = session.rows.batch(index.T)
            phases.end("rows")
            output = session.stack.net(batch.x)
            phases.end("forward")
            losses = session.loss_of(batch, output, each=False)
            phases.end("loss")
            session.update.zero_grad()
            losses.sum().backward()
            phases.end("backward")
            session.update.step(1.0)
            phases.end("update")
            step += 1
            if step == steps:
                break
    return phases


def operations(call: Callable[[], object], steps: int) -> str:
    """torch.profiler's table of where `call` spends its own time, microseconds a step and network."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    lines = [
        f"    {row.key[:52]:52} {row.self_cpu_time_total / steps:8.1f} {row.self_cpu_time_total / whole:6.1%}"
        f" {row.count / steps:7.2f} calls"
        for row in rows[:ROWS]
    ]
    return "\n".join(lines)


def stepped(session: Stacked, steps: int) -> None:
    """So many steps."""
    done = 0
    while done < steps:
        for index in session.epoch():
            session.step(index, 1.0, each=False)
            done += 1
            if done == steps:
                return


def trained(work: Work, steps: int) -> None:
    """The plain loop over so many steps."""
    parts = assembled(work, steps)
    with seeded(work.seed, "training"):
        train(parts.run, [], generator_for(work.seed, "order"), schedule="constant", select="last")


def main() -> None:
    """Print phases and operations of every network asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", default=["mlp128", "mlp256", "cnn"], help=", ".join(NETWORKS))
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.network:
        if name not in NETWORKS:
            raise SystemExit(f"no network {name}; there are {', '.join(NETWORKS)}")
        works, steps = works_of(*NETWORKS[name], COUNT), given.steps
        plain(works[0], 10), stacked(works, 10)
        print(f"{name}: microseconds a step and network")
        alone = min((plain(works[0], steps) for _ in range(3)), key=lambda phases: sum(phases.spent.values()))
        ten = min((stacked(works, steps) for _ in range(3)), key=lambda phases: sum(phases.spent.values()))
        print("  plain   " + alone.lines(steps))
        print(operations(lambda works=works: trained(works[0], given.steps), steps))
        print("  stacked " + ten.lines(steps * COUNT))
        session = session_of(works, steps)
        print(operations(lambda session=session: stepped(session, given.steps), steps * COUNT), flush=True)


if __name__ == "__main__":
    main()
