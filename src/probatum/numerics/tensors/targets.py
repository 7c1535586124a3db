"""Outputs and targets that go together: shapes that would broadcast in silence are reshaped or refused, codes are looked at."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probatum.spec import Data

IGNORED = -100
"""Class code of rows that are left out, as in torch's cross-entropy."""


def class_targets(
    output: Tensor, target: Tensor, *, ignored: int | None = None, soft: bool = False, least: int = 2
) -> Tensor:
    """Targets for outputs (n, classes): codes (n,) int64, of (n,) or (n, 1); or, if `soft`, probabilities (n, classes).

    Values are looked at on the CPU alone, where it costs no waiting for a device; elsewhere torch's indexing asserts.

    Args:
        output: one row of numbers a row of targets.
        target: of any whole-number type, or of floating point where `soft`.
        ignored: a code outside the classes that is let through; None = none.
        soft: whether probabilities are taken too.
        least: classes there must be.

    Raises:
        ValueError: shapes that do not go together (it names both), too few classes, a code outside 0 .. classes - 1.
        TypeError: targets that are neither.

    Example:
        >>> class_targets(torch.zeros(3, 2), torch.tensor([[0], [1], [0]]))
        tensor([0, 1, 0])
    """
    if output.ndim != 2 or output.shape[1] < least:
        raise ValueError(
            f"output has shape {tuple(output.shape)}; give (n, classes) with {'two classes' if least == 2 else 'one class'} or "
            "more"
        )
    if target.is_floating_point():
        if not soft:
            raise TypeError(f"target has dtype {target.dtype}; class numbers are needed, int64")
        if target.shape != output.shape:
            raise ValueError(f"{_shapes(output, target)}; expected probabilities of the outputs' shape")
        return target
    if target.shape not in (output.shape[:1], (len(output), 1)):
        raise ValueError(f"{_shapes(output, target)}; expected (n, classes) and (n,), one label a row")
    return class_codes(target, len(output), output.shape[1], ignored)


def class_codes(target: Tensor, rows: int, classes: int, ignored: int | None = None) -> Tensor:
    """Codes (n,) int64 of so many rows and classes, from (n,) or (n, 1) of any whole-number type; see `class_targets`."""
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target has dtype {target.dtype}; class numbers are needed, int64")
    if target.shape not in ((rows,), (rows, 1)):
        raise ValueError(f"target has shape {tuple(target.shape)} for {rows} rows; expected (n,), one label a row")
    codes = target.reshape(-1).long()
    check_codes(codes, classes, ignored)
    return codes


def check_codes(codes: Tensor, classes: int, ignored: int | None = None) -> None:
    """ValueError for a code outside 0 .. classes - 1 (and `ignored`) on the CPU; it names the first."""
    if codes.device.type != "cpu":
        return
    outside = (codes < 0) | (codes >= classes)
    if ignored is not None:
        outside &= codes != ignored
    if bool(outside.any()):
        first = int(codes[outside][0])
        raise ValueError(f"target holds the label {first}; with {classes} classes labels are 0 .. {classes - 1}")


def token_codes(target: Tensor, shape: tuple[int, ...], tokens: int) -> Tensor:
    """Codes int64 of this shape, (n, length), from any whole-number type; all count, so that none may be missing (-100)."""
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target has dtype {target.dtype}; token numbers are needed, int64")
    if target.shape != shape:
        raise ValueError(f"target has shape {tuple(target.shape)}; expected {tuple(shape)}, one token a place")
    codes = target.long()
    check_codes(codes, tokens)
    return codes


def coded(data: Data) -> Data:
    """Data whose labels are codes int64 in every part; of other whole-number types they are made so.

    Of classes they are (n,), and (n, 1) is taken for it; of next-token (n, length), as many as there are places.

    Raises:
        ValueError: a label that is no class or token, a missing one (-100) among them; it names the part.
        TypeError: labels that are no whole numbers.
    """
    for name in ("train", "valid", "test"):
        part = getattr(data, name)
        try:
            if data.spec.task == "next-token":
                y = token_codes(part.y, tuple(part.x.shape), data.spec.outputs)
            else:
                y = class_codes(part.y, len(part), data.spec.outputs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; leave rows without a label out") from error
        if y.shape != part.y.shape or y.dtype != part.y.dtype:
            data = replace(data, **{name: replace(part, y=y)})
    return data


def real_targets(output: Tensor, target: Tensor) -> Tensor:
    """Targets in the shape of the outputs, (n,) and (n, 1) taken for the same.

    Raises:
        ValueError: any other difference, which would broadcast to (n, n) or repeat a target; it names both shapes.

    Example:
        >>> real_targets(torch.zeros(3, 1), torch.ones(3)).shape
        torch.Size([3, 1])
    """
    if output.shape == target.shape:
        return target
    if output.shape[:1] == target.shape[:1] and output.shape[1:].numel() == target.shape[1:].numel() == 1:
        return target.reshape(output.shape)  # a tensor without a dimension has no rows, and its shape is no one else's
    raise ValueError(f"{_shapes(output, target)}; expected one target for each output")


def _shapes(output: Tensor, target: Tensor) -> str:
    return f"output and target have shapes {tuple(output.shape)} and {tuple(target.shape)}"
