"""Speed side by side: our time over theirs, measured A B A B in one process, as ratios with 95 % intervals.

    python benchmarks/run.py [NAME ...]        # writes benchmarks/latest.json and prints a table

A ratio below 1 means that ours is faster. Timings on a shared machine are noisy; only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.measure.cost import interleave
from probatum.spec import Budget, Part, Spec
from probatum.train.loop import train
from probatum.train.run import Run

HERE = Path(__file__).parent
Call = Callable[[], Any]
Pair = tuple[Call, Call]


def ratio(ours: Call, theirs: Call, pairs: int = 25, warmup: int = 3) -> dict[str, float]:
    """Our time over theirs: geometric mean over pairs and the interval of that mean."""
    logs = np.array(interleave(ours, theirs, pairs=pairs, warmup=warmup).log_ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    middle = float(np.median(logs))
    return {"ratio": math.exp(middle), "low": math.exp(middle - half), "high": math.exp(middle + half), "pairs": pairs}


def loop_overhead() -> Pair:
    """Our loop with no techniques against a hand-written one: digits MLP 64-128-128-10, batch 64, AdamW."""
    from sklearn.datasets import load_digits

    x, y = (torch.as_tensor(v) for v in load_digits(return_X_y=True))
    x, y = (x / 16).float(), y.long()
    part, steps = Part(x[:1280], y[:1280], torch.arange(1280)), 100
    spec = Spec("table", "classes", (64,), 10, numeric=64)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def adamw(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def ours() -> None:
        model = network()
        run = Run(model, nn.CrossEntropyLoss(), adamw(model), spec, part, part, Budget(steps, 64, 10**6))
        train(run, [], torch.Generator().manual_seed(0), schedule="constant", select="last")

    def theirs() -> None:
        model = network()
        optimizer, loss = adamw(model), nn.CrossEntropyLoss()
        generator = torch.Generator().manual_seed(0)
        done = 0
        while done < steps:
            for index in torch.randperm(len(part.x), generator=generator).split(64):
                output = loss(model(part.x[index]), part.y[index])
                optimizer.zero_grad(set_to_none=True)
                output.backward()
                optimizer.step()
                done += 1
                if done == steps:
                    break

    return ours, theirs


def encouraging_loss_vs_cross_entropy() -> Pair:
    """Forward and backward on 4096 x 100 logits, against `F.cross_entropy`."""
    from probatum.techniques.loss.encouraging_loss import EncouragingLoss

    output, target = torch.randn(4096, 100, requires_grad=True), torch.randint(100, (4096,))
    loss = EncouragingLoss()
    return lambda: loss(output, target).backward(), lambda: F.cross_entropy(output, target).backward()


def _steps(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Call:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = make(model)
    x, y = torch.randn(64, 256), torch.randint(10, (64,))

    def run() -> None:
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return run


def conda_vs_pytorch_optimizer() -> Pair:
    """Twenty updates of a 256-wide MLP, basis renewed every 100, against pytorch-optimizer's Conda."""
    from pytorch_optimizer import Conda as Theirs

    from probatum.techniques.optimizer.conda import Conda

    return (
        _steps(lambda model: Conda(model.parameters(), gap=100)),
        _steps(lambda model: Theirs(model.parameters(), update_proj_gap=100)),
    )


def conda_vs_adamw() -> Pair:
    """The same against torch's AdamW."""
    from probatum.techniques.optimizer.conda import Conda

    return _steps(lambda m: Conda(m.parameters(), gap=100)), _steps(lambda m: torch.optim.AdamW(m.parameters()))


def scale_optimizer_vs_adamw() -> Pair:
    """Twenty updates of a 256-wide MLP, against torch's AdamW."""
    from probatum.techniques.optimizer.scale_optimizer import ScaleOptimizer

    return _steps(ScaleOptimizer.for_model), _steps(lambda m: torch.optim.AdamW(m.parameters()))


def _projection(function: Callable[[Tensor], Tensor], rows: int = 512, width: int = 128) -> Call:
    z = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(rows, width)
    return lambda: (function(z) * weight).sum().backward()


def sparsemax_vs_entmax() -> Pair:
    """Forward and backward on 512 x 128 scores, against entmax's sparsemax."""
    from entmax import sparsemax as theirs

    from probatum.techniques.layer.sparsemax import sparsemax

    return _projection(sparsemax), _projection(lambda z: theirs(z, dim=-1))


def sparsemax_vs_softmax() -> Pair:
    """The same against softmax, which it replaces."""
    from probatum.techniques.layer.sparsemax import sparsemax

    return _projection(sparsemax), _projection(lambda z: z.softmax(-1))


def ibn_vs_batch_norm() -> Pair:
    """Forward and backward on 64 x 32 x 16 x 16 maps, against `nn.BatchNorm2d`."""
    from probatum.techniques.layer.ibn_net import IBN

    x = torch.randn(64, 32, 16, 16, requires_grad=True)
    ours, theirs = IBN(32), nn.BatchNorm2d(32)
    return lambda: ours(x).sum().backward(), lambda: theirs(x).sum().backward()


def _explained() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    return model, torch.randn(32, 64), torch.randint(10, (32,))


def integrated_gradients_vs_captum() -> Pair:
    """Fifty midpoints on 32 rows of an MLP, against captum."""
    from captum.attr import IntegratedGradients

    from probatum.techniques.explain.integrated_gradients import integrated_gradients

    model, x, y = _explained()
    theirs = IntegratedGradients(model)
    return (
        lambda: integrated_gradients(model, x, y, steps=50, tolerance=None),
        lambda: theirs.attribute(x, target=y, n_steps=50, method="riemann_middle", return_convergence_delta=True),
    )


def deeplift_vs_captum() -> Pair:
    """Rescale on 32 rows of an MLP, against captum."""
    from captum.attr import DeepLift

    from probatum.techniques.explain.deeplift import deeplift

    model, x, y = _explained()
    theirs = DeepLift(model)
    return lambda: deeplift(model, x, y, rule="rescale"), lambda: theirs.attribute(
        x, target=y, return_convergence_delta=True
    )


def tabm_vs_tabm() -> Pair:
    """A training step of k = 32 members, three layers of 192, on 256 rows, against the authors' package."""
    from tabm import TabM as Theirs

    from probatum.techniques.model.tables.tabm import build

    spec = Spec("table", "classes", (30,), 2, numeric=30)
    ours = build(spec, k=32, width=192, depth=3)
    theirs = Theirs(
        n_num_features=30,
        d_out=2,
        k=32,
        n_blocks=3,
        d_block=192,
        dropout=0.1,
        arch_type="tabm",
        start_scaling_init="random-signs",
    )
    x, y = torch.randn(256, 30), torch.randint(2, (256,))

    def our_step() -> None:
        ours.objective(x, ours(x), y, F.cross_entropy).backward()

    def their_step() -> None:
        output = theirs(x)
        F.cross_entropy(output.flatten(0, 1), y.repeat_interleave(32)).backward()

    return our_step, their_step


def temperature_vs_netcal() -> Pair:
    """Fitting one temperature to 2000 x 10 logits, against netcal."""
    from netcal.scaling import TemperatureScaling

    from probatum.numerics.temperature import fit_temperature

    logits = 3 * torch.randn(2000, 10)
    target = (logits / 3).softmax(1).multinomial(1).squeeze(1)
    probabilities, labels = logits.softmax(1).numpy(), target.numpy()
    return lambda: fit_temperature(logits, target), lambda: TemperatureScaling().fit(probabilities, labels)


def start_of_list_vs_import_torch() -> Pair:
    """`probatum list` in a fresh interpreter, against `import torch`."""

    def spawn(*words: str) -> Call:
        return lambda: subprocess.run([sys.executable, *words], capture_output=True, check=True)

    return spawn("-m", "probatum", "list"), spawn("-c", "import torch")


SLOW = {"start_of_list_vs_import_torch": 5, "temperature_vs_netcal": 8}
BENCHMARKS: tuple[Callable[[], Pair], ...] = (
    loop_overhead,
    encouraging_loss_vs_cross_entropy,
    conda_vs_pytorch_optimizer,
    conda_vs_adamw,
    scale_optimizer_vs_adamw,
    sparsemax_vs_entmax,
    sparsemax_vs_softmax,
    ibn_vs_batch_norm,
    integrated_gradients_vs_captum,
    deeplift_vs_captum,
    tabm_vs_tabm,
    temperature_vs_netcal,
    start_of_list_vs_import_torch,
)


def run(chosen: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run the benchmarks and return their figures by name; one whose rival is not installed is left out, and said."""
    known = {benchmark.__name__: benchmark for benchmark in BENCHMARKS}
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"no benchmark {unknown[0]}; there are {', '.join(known)}")
    found: dict[str, dict[str, Any]] = {}
    for name, benchmark in known.items():
        if chosen and name not in chosen:
            continue
        try:
            ours, theirs = benchmark()
        except ImportError as problem:
            print(f"{name}: left out, {problem.name} is not installed", file=sys.stderr)
            continue
        about = (benchmark.__doc__ or "").splitlines()[0]
        found[name] = {**ratio(ours, theirs, SLOW.get(name, 25), 1 if name in SLOW else 3), "about": about}
    return found


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description="speed side by side")
    parser.add_argument("name", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = run(arguments.name)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    table.add_column("ours/theirs", justify="right")
    table.add_column("interval", justify="right")
    for name, figures in found.items():
        table.add_row(name, f"{figures['ratio']:.2f}", f"{figures['low']:.2f} to {figures['high']:.2f}")
    Console().print(table)
    if not arguments.name:
        machine = {"torch": torch.__version__, "python": sys.version.split()[0], "threads": 1}
        (HERE / "latest.json").write_text(json.dumps({**found, "machine": machine}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
