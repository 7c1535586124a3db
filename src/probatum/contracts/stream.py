"""Slot `stream`: a class built with what it asks for by parameter name, which is shown stages one after another.

What it may ask for beside its settings: `spec`, `num_classes`, `batch_size`, `model_factory` (fresh baseline networks
with `spec.outputs` outputs; the first one has the baseline's initial weights, and a user's pretrained network comes with
what it has learned, so that a frozen encoder is what stands before its last layer), `memory` (bytes that it may keep),
`order` (generator of the batch orders that all arms of a seed share), `generator` (its own), `optimisation` (the
baseline's rate, decay and schedule).

- ``observe(stage, budget)`` learns from the stage's rows with `budget.steps` updates of `budget.batch_size` rows. Rows of
  earlier stages are never handed again: a learner that wants them keeps them.
- ``predict(x, task=None)`` gives logits (n, num_classes), -inf for classes not seen so far. `task` is the number of the
  stage that the rows belong to where tasks are told at prediction, else None.
- ``stored_bytes()`` is what is kept between stages beyond one plain baseline network: exemplars in the bytes they really
  take (`numerics.continual.stages.Exemplars`), further weights, statistics. What can be worked out again from these does not
  count, nor what lives only while a stage is learned. A trial in which it exceeds the memory after a stage has failed.

Optional: the attribute ``network`` (an `nn.Module`, whose numbers are counted as parameters, frozen ones too),
``passes`` (examples passed forward and backward so far; a pass forward alone is a third of one), and ``needs_stages``
(True: it cannot learn from a stream cut into chunks without boundaries, in which `stage.classes` may be empty and classes
come again). Bad values raise ValueError with the remedy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from probatum.spec import Budget, Stage

ARENA = "stream"
TRAINED = False
FIXED: tuple[str, ...] = ()
OFFERED: tuple[str, ...] = ("memory", "order", "optimisation")


class Learner(Protocol):
    """Learns from stages one after another."""

    def observe(self, stage: Stage, budget: Budget) -> None: ...

    def predict(self, x: Tensor, task: int | None = None) -> Tensor: ...

    def stored_bytes(self) -> int: ...
