"""Export a network with its softmax to ONNX and compare its outputs in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probatum.arenas.predict.fit import Predictor
from probatum.rooms.arena import Work
from probatum.rooms.task import task

TOLERANCE = 1e-4


class _Served(nn.Module):
    """x -> what the task serves: probabilities (the temperature applied), or values."""

    def __init__(self, model: nn.Module, task: str, temperature: float) -> None:
        super().__init__()
        self.model, self.task, self.temperature = model, task, temperature

    def forward(self, x: Tensor) -> Tensor:
        return task(self.task).served(self.model(x), self.temperature)


def export_onnx(fitted: Predictor, work: Work, path: Path) -> dict[str, Any]:
    """Write `path` if the model allows and say what came of it: {"written", "largest_difference", "reason"}."""
    if fitted.model is None:
        return {"written": False, "reason": "the arm is a learner, not a network"}
    if fitted.calibrator is not None:
        return {"written": False, "reason": "the calibrator is fitted again on loading and is not part of a graph"}
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (the exporter needs it)
    except ImportError as problem:
        return {"written": False, "reason": f"{problem.name} is not installed: pip install 'probatum[export]'"}
    served = _Served(fitted.model, work.data.spec.task, fitted.temperature).eval()
    x = work.data.test.x[:3].contiguous()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            _silent(),
        ):
            warnings.simplefilter("ignore")
            rows = torch.export.Dim("rows", min=1)
            program = torch.onnx.export(
                served,
                (x,),
                input_names=["x"],
                output_names=["output"],
                dynamic_shapes=({0: rows},),
                dynamo=True,
                verbose=False,
            )
            if program is None:
                raise RuntimeError("the exporter returned nothing")
            program.save(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        worst = 0.0
        for part in (work.data.test.x[:64], work.data.test.x[:1]):
            with torch.no_grad():
                ours = served(part)
            theirs = torch.from_numpy(session.run(None, {"x": part.numpy()})[0])
            worst = max(worst, float((ours - theirs).abs().max()))
    except Exception as problem:  # exporters fail in many ways; shipping goes on without the graph and says why
        path.unlink(missing_ok=True)
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        return {"written": False, "reason": f"{type(problem).__name__}: {first[:200]}"}
    if worst > TOLERANCE:
        path.unlink(missing_ok=True)
        return {"written": False, "largest_difference": worst, "reason": "outputs in ONNX Runtime differ"}
    return {"written": True, "largest_difference": worst, "reason": ""}


@contextlib.contextmanager
def _silent() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
