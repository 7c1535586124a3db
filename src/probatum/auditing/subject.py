"""The model under audit: a shipped folder, a network of one's own, or an ONNX file, behind one way to ask it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probatum.data.pipeline import Pipeline, load_pipeline
from probatum.errors import InputError
from probatum.numerics.networks.modes import evaluating
from probatum.rooms.kind import kind_of
from probatum.ship.load import opened
from probatum.ship.manifest import check
from probatum.spec import Part

TASKS = ("classes", "reals")
"""Tasks whose models can be audited."""

BATCH = 512


@dataclass(frozen=True)
class Subject:
    """A model that can be asked.

    Attributes:
        name: what reports call it.
        kind: shipped, module or onnx.
        ask: part -> outputs (n, outputs) as the model gives them.
        pipeline: what encodes rows for it; None = it takes the numbers as they are in the data.
        model: the network, where there is one.
        folder: the shipped folder, where there is one.
        by_x: whether the answer is a function of x alone; some learners read the raw text.
        notes: what is to be told of it, a line each.
    """

    name: str
    kind: str
    ask: Callable[[Part], Tensor]
    pipeline: Pipeline | None = None
    model: nn.Module | None = None
    folder: Path | None = None
    by_x: bool = True
    notes: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The network, where there is one."""
        return () if self.model is None else (self.model,)

    def answers(self, part: Part, task: str) -> np.ndarray:
        """Probabilities (n, classes) or values (n, outputs), float64; logits are turned into probabilities.

        Raises:
            InputError: outputs that are no (n, outputs), or not finite.
        """
        with evaluating(*self.networks), torch.no_grad():
            output = self.ask(part)
        if not isinstance(output, Tensor):
            raise InputError(f"{self.name} returns a {type(output).__name__}; it should return a tensor (n, outputs)")
        output = output.detach().cpu().double()
        output = output[:, None] if output.ndim == 1 and task == "reals" else output
        if output.ndim != 2 or len(output) != len(part):
            raise InputError(
                f"{self.name} gives outputs {tuple(output.shape)} for {len(part)} rows; give (n, outputs): a column a class"
            )
        if not torch.isfinite(output).all():
            raise InputError(f"{self.name} gives outputs that are not finite on these rows; look at their inputs")
        if task == "reals":
            return output.numpy()
        if output.shape[1] == 1:
            raise InputError(f"{self.name} gives one column; give two for two classes (logits or probabilities)")
        given = bool((output >= 0).all()) and bool(((output.sum(dim=1) - 1).abs() < 1e-3).all())
        return (output / output.sum(dim=1, keepdim=True) if given else output.softmax(dim=1)).numpy()


def open_subject(
    source: Any, *, trust: bool = False, pipeline: str | Path | None = None, trust_changed: bool = False
) -> Subject:
    """Find out what was given and make it answer.

    Args:
        source: a network; a folder by `probatum ship`; "FILE.py:NAME" of a network or of a function that makes one; a file
            by torch.save(model) (.pt, .pth); or an .onnx file.
        trust: whether a .pt file may be unpickled, which runs whatever code its maker put in.
        pipeline: a shipped folder whose preprocessing encodes the rows; an .onnx file in one uses it without asking.
        trust_changed: open a shipped folder although techniques whose code runs in predictions have changed since.

    Raises:
        InputError: for anything that cannot be asked.
    """
    encoder = None if pipeline is None else _pipeline(Path(pipeline))
    if isinstance(source, nn.Module):
        return _module(source, type(source).__name__, encoder)
    text = str(source)
    if not text.strip():
        raise InputError("no model was given; name a shipped folder, FILE.py:NAME, a .pt or an .onnx file")
    path = Path(text)
    file, _, name = text.rpartition(":")
    if file.endswith(".py") and name:
        return _module(_from_python(Path(file), name), name, encoder)
    if path.is_dir():
        return _shipped(path, trust_changed)
    if path.suffix == ".py":
        raise InputError(
            f"{text}: say which network in it: {text}:NAME, a torch.nn.Module or a function that makes one"
        )
    if not path.is_file():
        raise InputError(f"{text!r} does not exist; name a shipped folder, FILE.py:NAME, a .pt or an .onnx file")
    if path.suffix == ".onnx":
        return _onnx(path, encoder)
    if path.suffix in (".pt", ".pth"):
        return _module(_from_pickle(path, trust), path.stem, encoder)
    raise InputError(f"{text!r} is no model this audit knows; give a shipped folder, FILE.py:NAME, .pt or .onnx")


def _module(model: nn.Module, name: str, pipeline: Pipeline | None) -> Subject:
    where = next((tensor for tensor in (*model.parameters(), *model.buffers())), torch.zeros(0))

    def ask(part: Part) -> Tensor:
        try:
            found = [model(x.to(where.device)) for x in part.x.split(BATCH)]
        except (RuntimeError, TypeError, IndexError, ValueError) as problem:
            first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
            shape = f"{tuple(part.x.shape[1:])} ({part.x.dtype})"
            raise InputError(
                f"{name} does not take rows of shape {shape}: {first[:160]}; check the data's form"
            ) from problem

        other = next((output for output in found if not isinstance(output, Tensor) or output.ndim == 0), None)
        if other is not None:
            what = "one number for all rows" if isinstance(other, Tensor) else f"a {type(other).__name__}"
            raise InputError(f"{name} returns {what}; it should return a tensor (n, outputs)")
        return torch.cat(found)

    return Subject(name, "module", ask, pipeline, model)


def _pipeline(folder: Path) -> Pipeline:
    """The preprocessing of a shipped folder, or of one by `save_pipeline`, in which nothing is checked."""
    check(folder)
    return load_pipeline(folder)


def _shipped(folder: Path, trust_changed: bool) -> Subject:
    shipped = opened(folder, trust_changed=trust_changed)
    if shipped.spec.task not in TASKS:
        raise InputError(f"{folder} is of task {shipped.spec.task}; an audit takes models of {' or '.join(TASKS)}")
    kind = kind_of(shipped.spec.modality, shipped.spec.task)
    by_x = shipped.model is not None or kind.facet("audit").ALL_IN_X
    name = f"{folder.name} ({shipped.description['arm']})"
    return Subject(
        name, "shipped", shipped.predict_part, shipped.pipeline, shipped.model, folder, by_x, shipped.notices
    )


def _from_python(path: Path, name: str) -> nn.Module:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    spec = importlib.util.spec_from_file_location(f"probatum_audited_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        if found is None:
            raise InputError(f"{path} defines no {name!r}; name a torch.nn.Module or a function that makes one")
        made = found if isinstance(found, nn.Module) else found()
    except InputError:
        raise
    except Exception as problem:  # whatever the user's own file does
        raise InputError(f"{path}:{name} fails: {type(problem).__name__}: {problem}") from problem
    if not isinstance(made, nn.Module):
        raise InputError(f"{path}:{name} gives a {type(made).__name__}; it must give a torch.nn.Module")
    return made


def _from_pickle(path: Path, trust: bool) -> nn.Module:
    if not trust:
        raise InputError(
            f"{path} would be unpickled, which runs any code that its maker put in; if you trust it, say so by --trust "
            "(trust=True), else give FILE.py:NAME or an .onnx file"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as problem:  # pickles fail in many ways
        raise InputError(f"{path} cannot be loaded: {type(problem).__name__}: {problem}") from problem
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{path} holds a {type(found).__name__}, not a whole network; give FILE.py:NAME that builds and loads it"
        )
    return found


def _onnx(path: Path, pipeline: Pipeline | None) -> Subject:
    try:
        import onnxruntime
    except ImportError as problem:
        raise InputError("onnxruntime is not installed: pip install 'probatum[export]'") from problem
    folder = path.parent if (path.parent / "pipeline.json").is_file() else None
    if folder is not None:
        check(folder)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as problem:  # the runtime's own errors
        raise InputError(f"{path} is no ONNX file that ONNX Runtime opens: {str(problem).splitlines()[0]}") from problem
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InputError(f"{path} has {len(inputs)} inputs; an audit takes models of one input")
    if pipeline is None and folder is not None:
        pipeline = load_pipeline(folder)
    kind = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(int64)": torch.int64}
    dtype, name = kind.get(inputs[0].type, torch.float32), inputs[0].name
    fixed = inputs[0].shape[0] if inputs[0].shape and isinstance(inputs[0].shape[0], int) else None

    def ask(part: Part) -> Tensor:
        try:
            found = [
                torch.from_numpy(np.asarray(session.run(None, {name: x.to(dtype).numpy()})[0]))
                for x in part.x.split(fixed or BATCH)
            ]
        except Exception as problem:  # the runtime's own errors
            first = str(problem).strip().splitlines()[0]
            raise InputError(
                f"{path} does not take rows of shape {tuple(part.x.shape[1:])}: {first[:200]}"
            ) from problem
        return torch.cat(found)

    return Subject(path.name, "onnx", ask, pipeline, None, folder)
