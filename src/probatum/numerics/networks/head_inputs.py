"""What the last linear layer saw in the last training pass, with its gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class HeadInputs:
    """Keeps the input of a linear layer in training mode; `attach` before training, `detach` after.

    Args:
        head: the layer.

    Raises:
        TypeError: it is no `nn.Linear`.
    """

    def __init__(self, head: nn.Module) -> None:
        if not isinstance(head, nn.Linear):
            raise TypeError(f"the last layer is {type(head).__name__}; features are read before an nn.Linear")
        self.head = head
        self._seen: Tensor | None = None
        self._handle: Any = None

    def attach(self) -> None:
        """Begin to watch."""
        self.detach()
        self._handle = self.head.register_forward_pre_hook(self._watch)

    def detach(self) -> None:
        """Stop, and let go of what was seen."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._seen = None

    def take(self, rows: int) -> Tensor:
        """The features (rows, d) of the last training pass, once.

        Raises:
            ValueError: the layer did not run since, or did not see one vector a row.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            raise ValueError(f"the last layer {self.head} did not run in this training pass; its features are needed")
        if seen.ndim != 2 or len(seen) != rows:
            raise ValueError(f"the last layer saw {tuple(seen.shape)} for {rows} rows; one vector a row is needed")
        return seen

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            self._seen = inputs[0]
