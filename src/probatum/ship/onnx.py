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
    """Write `path` if the model allows and say what came of it: {"written", "largest_difference", "reason"}.

    Raises:
        OSError: the file could not be written.
    """
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
    unwritten: OSError | None = None
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
            try:
                program.save(str(path))
            except OSError as problem:
                unwritten = problem
                raise
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        worst, where = 0.0, ""
        for what, part in telling_rows(work.data.test.x, masked=work.data.spec.masked).items():
            gap = _difference(served, session, part)
            worst, where = (gap, what) if gap > worst else (worst, where)
    except Exception as problem:  # exporters fail in many ways; shipping goes on without the graph and says why
        _remove(path)
        if problem is unwritten:  # the disk took it not, which is not the exporter's fault
            raise
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        return {"written": False, "reason": f"{type(problem).__name__}: {first[:200]}"}
    if worst > TOLERANCE:
        _remove(path)
        return {
            "written": False,
            "largest_difference": worst,
            "reason": f"outputs in ONNX Runtime differ, most on {where}",
        }
    return {"written": True, "largest_difference": worst, "reason": ""}


def telling_rows(x: Tensor, *, masked: bool = False) -> dict[str, Tensor]:
    """Rows on which an export that goes wrong shows: usual ones, one alone, the extreme, the empty, the longest and shortest.

    Exports have been seen that agree on usual rows and not on these: attention whose queries may see nothing answers with
    the mean of what is hidden (opsets 18 to 22), logsigmoid is -inf from -18 down, recurrent layers keep the traced length
    (torch 2.13.0, ONNX Runtime 1.31.1).

    Args:
        x: rows (n, ...) with n at least 1; whole numbers are tokens, 0 = padding.
        masked: whether the last channel (n, channels, time) marks what was observed.
    """
    found = {"usual rows": x[:64], "one row alone": x[:1], "the last row alone": x[-1:]}
    if not x.is_floating_point():
        length = (x != 0).flatten(1).sum(dim=1)
        found |= {"the longest row": x[length.argmax()][None], "the shortest row": x[length.argmin()][None]}
        one = torch.zeros_like(x[:2])
        one[:, :1] = x[:2, :1]
        return found | {"rows of one token": one, "rows of padding alone": torch.zeros_like(x[:2])}
    found["the smallest and largest values"] = torch.stack([x.amin(dim=0), x.amax(dim=0)])
    if not masked:
        return found
    observed = x[:, -1].sum(dim=1)
    found |= {"the longest row": x[observed.argmax()][None], "the shortest row": x[observed.argmin()][None]}
    first = torch.zeros_like(x[:2])
    first[..., :1] = x[:2, ..., :1]
    return found | {"rows of one step": first, "rows of padding alone": torch.zeros_like(x[:2])}


def _remove(path: Path) -> None:
    """The graph and what a large one keeps beside itself."""
    for one in (path, path.with_name(path.name + ".data")):
        one.unlink(missing_ok=True)


def _difference(served: nn.Module, session: Any, x: Tensor) -> float:
    """The largest difference of outputs; what is not finite on one side alone differs by infinity."""
    with torch.no_grad():
        ours = served(x)
    theirs = torch.from_numpy(session.run(None, {"x": x.contiguous().numpy()})[0])
    apart = (ours - theirs).abs()
    return float(
        torch.where(apart.isnan(), torch.where(ours.isfinite() | theirs.isfinite(), torch.inf, 0.0), apart).max()
    )


@contextlib.contextmanager
def _silent() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
