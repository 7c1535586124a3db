"""Encoded rows that stay on disk: what techniques may ask of them, and what is refused because it would not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor

from probatum.data.lazy.memory import told
from probatum.errors import InputError


class TooLarge(InputError):
    """Rows that do not fit in memory were asked for as one tensor."""


class LazyRows:
    """Base of `probatum.spec.Rows`: slices and batches are tensors; whatever needs all rows at once is refused by name.

    Args:
        shape: rows, then the shape of one example.
        most: bytes that may be asked for at once.
        whole: bytes of the decoded data, for the remedy in errors.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, shape: Sequence[int], most: int, whole: float) -> None:
        self.shape = torch.Size(shape)
        self._most = most
        self.whole = whole

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def size(self, axis: int | None = None) -> Any:
        """Shape, or one length of it."""
        return self.shape if axis is None else self.shape[axis]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Encoded rows at these positions, in the order asked; TooLarge where they are too many, or asked one by one."""
        n = len(self)
        if isinstance(index, slice):
            first, last, step = index.indices(n)
            if step != 1:
                return self[torch.arange(first, last, step)]
            self._check(max(0, last - first), index == slice(None))
            return self.read_slice(first, max(first, last))
        if not isinstance(index, Tensor):
            self._refuse(f"row by row ([{index!r}])")
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        self._check(len(index), False)
        if len(index) and (int(index.max()) >= n or int(index.min()) < -n):
            raise IndexError(f"position {int(index.max())} is outside of {n} rows")
        return self.read_index(index)

    def read_slice(self, first: int, last: int) -> Tensor:
        """Rows first .. last - 1."""
        raise NotImplementedError

    def read_index(self, index: Tensor) -> Tensor:
        """Rows at these positions."""
        raise NotImplementedError

    def order(self, generator: Generator) -> Tensor:
        """All positions, shuffled."""
        return torch.randperm(len(self), generator=generator)

    def ahead(self, batches: Sequence[Tensor]) -> None:
        """Announce the batches that will be asked for; nothing is read ahead here."""

    def close(self) -> None:
        """Free what is held; nothing is held here."""

    def _check(self, rows: int, everything: bool) -> None:
        row = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        if rows * row > self._most:
            self._refuse(f"{rows} of {len(self)} rows at once")

    def _refuse(self, how: str) -> NoReturn:
        raise TooLarge(
            f"the data are streamed from disk and cannot be read {how}; "
            f"allow them in memory (memory= or --memory above {told(self.whole)}), bring fewer rows, or leave this out"
        )

    def __iter__(self) -> NoReturn:
        self._refuse("row by row")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("as one array")

    def __dlpack__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("as one tensor")

    def __dlpack_device__(self) -> NoReturn:
        self._refuse("as one tensor")  # asked for first by torch.as_tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        found = next((a for a in (*args, *(kwargs or {}).values()) if isinstance(a, LazyRows)), None)
        name = getattr(function, "__name__", "an operation of torch")
        if found is None:  # inside a list of tensors
            raise TooLarge(f"the data are streamed from disk: {name} cannot take all rows; leave this out")
        found._refuse(f"as a whole ({name})")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Tensor, name):
            self._refuse(f"as a whole (.{name})")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


class HeldRows(LazyRows):
    """A small tensor that behaves as rows on disk do, by which a rehearsal finds who asks for all of them."""

    def __init__(self, x: Tensor, whole: float, batch: int) -> None:
        super().__init__(x.shape, 0, whole)
        self._x, self._batch = x, batch
        self.dtype = x.dtype

    def read_slice(self, first: int, last: int) -> Tensor:
        return self._x[first:last]

    def read_index(self, index: Tensor) -> Tensor:
        if 2 * len(index) >= len(self) and len(index) > self._batch:
            self._refuse(f"{len(index)} of {len(self)} rows at once")
        return self._x[index]

    def _check(self, rows: int, everything: bool) -> None:
        if everything:
            self._refuse("with [:]")
