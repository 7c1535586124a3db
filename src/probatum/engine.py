"""Where and how a network is trained: device, precision, memory format, compilation, and over how many devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from probatum.errors import InputError
from probatum.spec import Part, Rows

PRECISIONS = ("float32", "bf16")
STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Engine:
    """How training is computed; the default is a plain loop on the CPU.

    Weights are drawn on the CPU and stay float32, and the streams that techniques get are the CPU's, so that a seed means
    the same on every device (dropout, which draws where the network is, excepted). Sums on accelerators may differ in
    their last digits from run to run.

    Attributes:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        precision: ``"float32"``, or ``"bf16"``: training passes under autocast; predictions are always float32.
        channels_last: weights of 2-d convolutions, and with them the images, channels last in memory.
        compile: training passes through `torch.compile`, or plainly where it cannot take the network.
        devices: how many devices train one network.
        strategy: ``"ddp"`` (copies of the network) or ``"fsdp"`` (its pieces), where devices > 1.
    """

    device: str = "cpu"
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    devices: int = 1
    strategy: str = "ddp"

    @property
    def stacks(self) -> bool:
        """Whether many seeds can be trained as one computation with these settings."""
        return self == Engine(device=self.device)

    def plan(self) -> dict[str, Any]:
        """What differs from the default, as JSON values."""
        usual = asdict(PLAIN)
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    def words(self) -> str:
        """The settings in a line, e.g. ``cuda, bf16``."""
        found = [self.device, self.precision]
        found += [name.replace("_", "-") for name in ("channels_last", "compile") if getattr(self, name)]
        return ", ".join(found) + (f", {self.devices} devices by {self.strategy}" if self.devices > 1 else "")

    def network(self, module: nn.Module) -> nn.Module:
        """Move a network or a loss, in place, to where it is trained."""
        if self.device != "cpu":
            module.to(torch.device(self.device))
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

    def home(self, module: nn.Module) -> nn.Module:
        """Move a network back, in place, to where it is measured and kept."""
        if self.channels_last:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if self.device != "cpu":
            module.to(torch.device("cpu"))
        return module

    def part(self, part: Part) -> Part:
        """The part with x and y where training reads them: tensors moved once, streamed rows batch by batch."""
        if self.device == "cpu":
            return part
        device = torch.device(self.device)
        x = part.x.to(device) if isinstance(part.x, Tensor) else cast(Tensor, Moved(part.x, device))
        return replace(part, x=x, y=part.y.to(device))

    def forward(self, model: nn.Module) -> Callable[[Tensor], Any] | None:
        """What training passes call instead of the network itself; None where it is called itself."""
        if self.compile:
            return _whole(_Compiled(model))
        return _whole(model) if self.precision == "bf16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a training pass and its loss."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


PLAIN = Engine()


class Moved:
    """Streamed rows (`probatum.spec.Rows`) read to another device."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self.shape, self.dtype = rows.shape, rows.dtype
        self.device = torch.empty(0, device=device).device  # with its number

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Rows at these positions, on the device."""
        found = self._rows[index if isinstance(index, slice) else index.cpu()]
        if self.device.type == "cuda":
            return found.pin_memory().to(self.device, non_blocking=True)
        return found.to(self.device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._rows, name)  # refuses what would need all rows at once

    def order(self, generator: torch.Generator) -> Tensor:
        """All positions, shuffled."""
        return self._rows.order(generator)

    def ahead(self, batches: Sequence[Tensor]) -> None:
        """Announce the batches that will be asked for."""
        self._rows.ahead(batches)

    def close(self) -> None:
        """Stop reading ahead."""
        self._rows.close()


def checked_engine(
    device: str = "cpu", precision: str = "float32", devices: int = 1, strategy: str = "ddp", *, workers: int = 1
) -> Engine:
    """The engine that these settings ask for; ``"auto"`` becomes the device that is there.

    Raises:
        InputError: a word that is not known, a device that is not there, or devices that cannot be shared.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; use auto, {' or '.join(PRECISIONS)}")
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}; use {' or '.join(STRATEGIES)}")
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise InputError(f"devices is {devices!r}; give how many devices train one network, 1 or more")
    found = Engine(_present(device), precision, devices=devices, strategy=strategy)
    if devices == 1:
        return found
    if workers != 1:
        raise InputError(
            f"devices is {devices} and workers {workers}; either several devices train one network, or several workers "
            "train one each: leave one of them out"
        )
    kind, _, number = found.device.partition(":")
    if number:
        raise InputError(f"device is {device!r} and devices {devices}; give the kind without a number, e.g. {kind}")
    if kind == "mps":
        raise InputError(f"--devices {devices}: there is one mps device; use --devices 1")
    if kind == "cuda" and torch.cuda.device_count() < devices:
        raise InputError(
            f"--devices {devices}: {torch.cuda.device_count()} CUDA device(s) are visible; ask for that many at most"
        )
    return found


def _present(device: str) -> str:
    kind, _, number = device.partition(":")
    known = kind in ("auto", "cpu", "cuda", "mps") and (not number or (kind == "cuda" and number.isdecimal()))
    if not known or (":" in device and not number):
        raise InputError(f"device is {device!r}; use auto, cpu, cuda, cuda:NUMBER or mps")
    mps = torch.backends.mps.is_available()
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if kind == "mps" and not mps:
        raise InputError("--device mps: no MPS device is visible; use --device cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise InputError(f"--device {device}: no CUDA device is visible; use --device cpu")
        if number and int(number) >= count:
            raise InputError(f"--device {device}: the visible CUDA devices are cuda:0 to cuda:{count - 1}")
    return device


def _whole(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The same with outputs in float32, so that losses are not rounded."""

    def forward(x: Tensor) -> Any:
        return tree_map(lambda v: v.float() if isinstance(v, Tensor) and v.dtype == torch.bfloat16 else v, call(x))

    return forward


class _Compiled:
    """A network's training pass, compiled; the plain one for good once the compiler cannot take it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.quick: Any = torch.compile(model)

    def __call__(self, x: Tensor) -> Any:
        if self.quick is not None:
            from torch._dynamo.exc import TorchDynamoException

            try:
                return self.quick(x)
            except TorchDynamoException:
                self.quick = None
        return self.model(x)
