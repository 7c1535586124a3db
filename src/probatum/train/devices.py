"""One network trained by several processes, each on its share of every batch, through Lightning Fabric.

All processes have the seed of the trial and all rows, draw the same orders and run the same hooks on whole batches; then
each takes its slice. Losses are weighted so that the averaged gradient is that of the whole batch. Every trial starts its
processes anew, which takes seconds: this is for networks whose training takes hours.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from probatum import catalogue
from probatum.engine import Engine
from probatum.errors import InputError
from probatum.numerics.networks.modes import evaluating
from probatum.recipe import Recipe
from probatum.rooms import find
from probatum.rooms.arena import TrainingFailed, Work
from probatum.spec import Batch
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import train
from probatum.train.rng import derive, generator_for, seeded

LOOK_SECONDS = 0.05
LARGE = 2**20
"""Numbers in a block of a network from which fsdp gathers it by itself."""

REFUSED = {"ddp": ("model", "optimizer"), "fsdp": ("weights", "gradients", "model", "optimizer")}
"""What a method must not write (ddp), or neither read nor write (fsdp: every process holds a piece of it only)."""


@dataclass
class Shard:
    """One process's share of every batch.

    Attributes:
        rank: which process, from 0.
        count: how many there are.
        share: rows of the last batch that are this process's, times `count` over all its rows.
    """

    rank: int
    count: int
    share: float = 1.0

    def part(self, batch: Batch) -> Batch:
        """This process's rows; where there are fewer rows than processes, some get one that counts nothing."""
        n = len(batch.y)
        first, last = (n * r // self.count for r in (self.rank, self.rank + 1))
        self.share = (last - first) * self.count / n
        mine = slice(first, last) if last > first else slice(0, 1)
        return Batch(batch.x[mine], batch.y[mine], batch.index[mine])

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss of this share, whose mean over processes is that of the whole batch."""
        return loss * self.share

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of what is no part of the network, such as a loss's own parameters: their mean over the processes."""
        for parameter in parameters:
            if parameter.requires_grad:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(grad)
                parameter.grad = grad / self.count

    def total(self, loss: Tensor) -> float:
        """The loss of the whole last batch, the same in all processes."""
        value = loss.detach().clone()
        dist.all_reduce(value)
        return value.item() / self.count

    @torch.no_grad()
    def outputs(self, model: nn.Module, x: Tensor, batch_size: int = 1024) -> Tensor:
        """Outputs (n, outputs) in evaluation mode, each process taking equally many rows; all get all of them."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
        each = math.ceil(len(x) / self.count)
        rows = torch.arange(self.rank * each, (self.rank + 1) * each).clamp_max(len(x) - 1)
        with evaluating(model):
            mine = torch.cat([model(x[index]) for index in rows.split(batch_size)]).contiguous()
        found = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(found, mine)
        return torch.cat(found)[: len(x)]


def check_fabric() -> None:
    """InputError where Lightning Fabric is not installed."""
    if importlib.util.find_spec("lightning_fabric") is None:
        raise InputError(
            "several devices train one network through Lightning Fabric, which is not installed: "
            "pip install 'probatum[cluster]', or use --devices 1"
        )


def check_shared(name: str, recipe: Recipe, engine: Engine) -> None:
    """InputError, naming the technique, where an arm cannot be trained by several processes."""
    if engine.devices == 1 or recipe.learner is not None:
        return
    if recipe.training.batch_size < engine.devices:
        raise InputError(
            f"{name}: {engine.devices} devices cannot share batches of {recipe.training.batch_size} rows; "
            "use fewer devices or larger batches"
        )
    alone = "try it with --devices 1"
    if recipe.loss is not None and not catalogue.card(recipe.loss.id).separable:
        raise InputError(
            f"{recipe.loss.id} is not a mean of terms of one row each (its card says so with separable=True), so that the "
            f"devices' losses do not add up to that of the batch; {alone}"
        )
    if engine.strategy == "fsdp" and recipe.optimizer is not None:
        raise InputError(f"{recipe.optimizer.id} needs whole matrices, of which fsdp holds pieces; use ddp, or {alone}")
    uses = [*recipe.method, *([recipe.compress] if recipe.compress is not None else [])]
    for use in uses:
        entry = catalogue.entry(use.id)
        touched = set(getattr(entry, "writes", ()))
        if engine.strategy == "fsdp":
            touched |= set(getattr(entry, "reads", ()))
        hit = [thing for thing in REFUSED[engine.strategy] if thing in touched]
        if hit:
            other = "use ddp, or " if not set(getattr(entry, "writes", ())) & set(REFUSED["ddp"]) else ""
            raise InputError(
                f"{use.id} touches the {' and the '.join(hit)}, which {engine.devices} devices by {engine.strategy} "
                f"cannot keep in step; {other}{alone}"
            )


def train_on_devices(work: Work, recipe: Recipe | None = None, steps: int | None = None) -> Assembly:
    """What `assemble` and then `train` give, with the training done by `work.engine.devices` processes.

    Equal to training on one device to float tolerance for networks without batch statistics and dropout. Batch statistics
    are taken over all devices on CUDA, else over each process's share; dropout draws differ from those on one device.

    Args:
        work: data, seed, factory and engine.
        recipe: what fills which slot; None = the arm's own.
        steps: as in `assemble`.

    Raises:
        InputError: the arm cannot be trained so, or something in it cannot be sent to other processes.
        TrainingFailed: the loss is not finite.
        RuntimeError: a process failed or died; the message says why.
    """
    check_fabric()
    recipe = recipe or work.recipe
    check_shared("the arm", recipe, work.engine)
    files = [str(catalogue.place(use.id).path) for use in recipe.uses()]
    rooms = [str(room.folder) for room in find.added()]
    with tempfile.TemporaryDirectory(prefix="probatum-devices-") as name:
        folder = Path(name)
        try:
            job = cloudpickle.dumps((replace(work, progress=None, truth=None), recipe, steps))
        except Exception as problem:  # what pickling raises depends on what is pickled
            raise InputError(
                f"the trial cannot be sent to other processes ({type(problem).__name__}: {problem}); use --devices 1, "
                "or give as model a function that builds the network from nothing"
            ) from problem
        (folder / "job").write_bytes(pickle.dumps((files, rooms, torch.get_num_threads(), job)))
        _run_processes(folder, work.engine.devices, work.progress)
        found = torch.load(folder / "result", weights_only=True)
    parts = assemble(work, recipe, steps)
    run = parts.run
    run.model.load_state_dict(found["model"])
    run.loss.load_state_dict(found["loss"])
    run.model.eval()
    run.step, run.epoch, run.passes, run.extra_passes = (
        found[name] for name in ("step", "epoch", "passes", "extra_passes")
    )
    run.curve, run.notes = found["curve"], found["notes"]
    return Assembly(run, [_Reported(report) for report in found["reports"]], parts.swaps)


@dataclass(frozen=True)
class _Reported:
    """What is left of a method whose training was elsewhere."""

    found: dict[str, float]

    def report(self) -> dict[str, float]:
        return self.found


def _run_processes(folder: Path, count: int, progress: Callable[[int, int], None] | None) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    code = f"import sys; sys.path[:] = {sys.path!r}; from probatum.train.devices import serve; serve({str(folder)!r})"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            with (folder / f"said-{rank}").open("wb") as said:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", code],
                        env={**environment, "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,  # closes when this process ends, and they end with it
                        stdout=said,
                        stderr=said,
                        process_group=0,  # a terminal's Ctrl-C reaches this process alone
                    )
                )
        told = ""
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                break
            with suppress(OSError, ValueError):
                now = (folder / "progress").read_text()
                if progress is not None and now != told:
                    step, steps = (int(word) for word in now.split())
                    told = now
                    progress(step, steps)
            time.sleep(LOOK_SECONDS)
        for rank, process in enumerate(processes):
            if process.returncode:
                raise _why(folder, rank, process.returncode)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _why(folder: Path, rank: int, code: int) -> Exception:
    with suppress(OSError, ValueError):
        kind, _, text = (folder / f"failed-{rank}").read_text().partition("\n")
        known = {"TrainingFailed": TrainingFailed, "InputError": InputError}
        return known[kind](text) if kind in known else RuntimeError(f"on device {rank}: {kind}: {text}")
    said = (folder / f"said-{rank}").read_text(errors="replace").strip().splitlines()
    return RuntimeError(f"the process of device {rank} ended with exit code {code}: {said[-1] if said else 'no word'}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve(name: str) -> None:
    """What the process of one device does: train its share of the job in this folder, and end with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, rank = Path(name), int(os.environ["LOCAL_RANK"])
    try:
        _serve(folder, rank)
    except Exception as problem:  # told to the parent, which ends the other processes
        temporary = folder / f"failing-{rank}"
        temporary.write_text(f"{type(problem).__name__}\n{problem}")
        temporary.rename(folder / f"failed-{rank}")
        sys.stdout.flush()
        os._exit(1)
    dist.destroy_process_group()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _serve(folder: Path, rank: int) -> None:
    work, recipe, steps = _job(folder)
    kind, engine = torch.device(work.engine.device).type, work.engine
    fabric = _fabric(engine, kind)
    own = replace(engine, device=f"cuda:{rank}" if kind == "cuda" else kind, devices=1)
    parts = assemble(work.on(engine=own), recipe, steps)
    _share(parts, fabric, engine.strategy, kind)
    run, training, salt = parts.run, recipe.training, work.arm.salt
    run.shard = Shard(rank, engine.devices)
    if rank:  # nor in second passes
        run.draws = derive(run.draws, f"device {rank}")

    def progress(step: int, steps: int) -> None:
        if rank == 0:
            (folder / "progress.part").write_text(f"{step} {steps}")
            (folder / "progress.part").rename(folder / "progress")

    draws = (salt,) if rank == 0 else (salt, f"device {rank}")  # dropout must not repeat itself on every share
    with seeded(work.seed, "training", *draws):
        order = generator_for(work.seed, "order", salt)
        train(run, parts.methods, order, schedule=training.schedule, select=training.select, progress=progress)
    _hand_back(folder, rank, parts)
    dist.barrier()


def _job(folder: Path) -> tuple[Work, Recipe, int | None]:
    """The job of this folder, once what it is made of has joined the catalogue."""
    files, rooms, threads, job = pickle.loads((folder / "job").read_bytes())
    torch.set_num_threads(threads)
    known = {str(catalogue.place(name).path) for name in catalogue.names()}
    for file in files:
        if file not in known:
            catalogue.add_file(Path(file))
    for room in rooms:
        find.add(room)
    try:
        return pickle.loads(job)
    except (ImportError, AttributeError) as problem:
        raise InputError(
            f"the processes of the devices cannot import what the network is made of ({problem}); define it in the script "
            "itself, or put its module on PYTHONPATH"
        ) from problem


def _hand_back(folder: Path, rank: int, parts: Assembly) -> None:
    """Write what came of the training; every process takes part in gathering the network, one writes."""
    run = parts.run
    model = {name: _full(value) for name, value in run.model.state_dict().items()}  # a collective call under fsdp
    if rank == 0:
        found = {
            "model": model,
            "loss": {name: value.cpu() for name, value in run.loss.state_dict().items()},
            "step": run.step,
            "epoch": run.epoch,
            "passes": run.passes,
            "extra_passes": run.extra_passes,
            "curve": run.curve,
            "notes": run.notes,
            "reports": [_plain(getattr(method, "report", dict)()) for method in parts.methods],
        }
        torch.save(found, folder / "result")


def _fabric(engine: Engine, kind: str) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    strategy: Any = DDPStrategy()
    if engine.strategy == "fsdp":
        strategy = ModelParallelStrategy(_in_pieces, data_parallel_size=engine.devices, tensor_parallel_size=1)
    fabric = Fabric(
        accelerator="cuda" if kind == "cuda" else "cpu",
        devices=engine.devices,
        strategy=strategy,
        plugins=[LightningEnvironment()],
    )
    fabric.launch()
    return fabric


def _share(parts: Assembly, fabric: Any, strategy: str, kind: str) -> None:
    """Make the run's network one of several: copies whose gradients are averaged, or pieces of one."""
    run = parts.run
    if any(isinstance(module, _BatchNorm) for module in run.model.modules()):
        if kind == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(run.model)
        else:
            run.notes["batch statistics are of each device's share"] = 1.0
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    wrapped = fabric.setup_module(run.model, move_to_device=False)
    if strategy == "fsdp":
        pieces = dict(run.model.named_parameters())
        for group in run.optimizer.param_groups:
            group["params"] = [pieces[names[id(parameter)]] for parameter in group["params"]]
    run.forward = wrapped if run.forward is None else run.engine.forward(wrapped)


def _in_pieces(model: nn.Module, mesh: Any) -> nn.Module:
    """Cut the large blocks of a network, then the rest of it, into pieces over the devices."""
    from torch.distributed.fsdp import fully_shard

    rows = mesh["data_parallel"]
    blocks = [child for module in model.modules() for child in _listed(module)]
    for block in reversed(blocks):
        if sum(parameter.numel() for parameter in block.parameters()) >= LARGE:
            fully_shard(block, mesh=rows)
    fully_shard(model, mesh=rows)
    return model


def _listed(module: nn.Module) -> list[nn.Module]:
    return list(module.children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []


def _full(value: Tensor) -> Tensor:
    whole = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.detach().cpu()


def _plain(report: dict[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in report.items()}
