"""Task next-token: the token after each one of a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from probatum.kinds.language import ngrams
from probatum.kinds.language.look import MEASURES, WINDOWS, look, measured
from probatum.rooms.arena import Work
from probatum.rooms.task import Looked, Task, check_shape
from probatum.spec import Data, Part, Spec


class NextToken(Task):
    """Logits (n, length, vocabulary); y (n, length) int64; every position counts."""

    NAME = "next-token"
    STACKS = False
    SELECT = "log-loss"

    def loss(self) -> nn.Module:
        """Cross-entropy."""
        return nn.CrossEntropyLoss()

    def shape(self, spec: Spec) -> tuple[int, ...]:
        """One row of logits a position."""
        return (*spec.shape, spec.outputs)

    def as_rows(self, output: Any, target: Tensor) -> tuple[Any, Tensor]:
        """Every position is a row: (n * length, vocabulary) and (n * length,)."""
        return output.flatten(0, -2), target.flatten()

    def errors(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Share of tokens that are wrong, and log-loss in nats a token."""
        rows, y = output.flatten(0, 1), target.flatten()
        wrong = (rows.argmax(dim=1) != y).float().mean().item()
        return {"error": wrong, "log_loss": F.cross_entropy(rows, y).item()}

    def look(self, predict: Callable[[Part], Tensor], part: Part) -> dict[str, float]:
        """As `errors`, by windows: logits are never held for all of them at once."""
        wrong, loss = 0.0, 0.0
        for start in range(0, len(part), WINDOWS):
            rows = slice(start, start + WINDOWS)
            y = part.y[rows].flatten()
            output = predict(Part(part.x[rows], part.y[rows], part.rows[rows])).flatten(0, 1)
            wrong += float((output.argmax(dim=1) != y).sum())
            loss += float(F.cross_entropy(output, y, reduction="sum"))
        return {"error": wrong / part.y.numel(), "log_loss": loss / part.y.numel()}

    def score(self, errors: Mapping[str, float], select: str) -> tuple[float, ...]:
        """The log-loss, or the error first."""
        return (errors["log_loss"],) if select == "log-loss" else (errors["error"], errors["log_loss"])

    def tuned_by(self, errors: Mapping[str, float], primary: str) -> float:
        """The log-loss."""
        return errors["log_loss"]

    def predicted(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """Natural logarithms of probabilities (n, length, vocabulary)."""
        return output.log_softmax(dim=2)

    def served(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities."""
        return (output / temperature).softmax(dim=-1)

    def measures(self, spec: Spec) -> tuple[str, ...]:
        """Bits a character first."""
        return MEASURES

    def references(self, spec: Spec) -> tuple[str, ...]:
        """Counts of tokens."""
        return ngrams.NAMES

    def reference(self, name: str, data: Data, seed: int) -> Any:
        """One of them, counted on the training text."""
        return ngrams.fit(name, data)

    def measured(self, work: Work, fitted: Any) -> Looked:
        """What the tokens of the test windows say, a few windows at a time."""
        return measured(self._seen(work, fitted), work.data.test)

    def looked_at(self, work: Work, fitted: Any) -> Tensor:
        """Log p of the tokens that came."""
        return self._seen(work, fitted).log_p

    def for_timing(self, data: Data) -> Data:
        """Few validation windows, so that steps are timed and not the look at validation that ends them."""
        few = data.valid
        return replace(data, valid=Part(few.x[:8], few.y[:8], few.rows[:8], few.text[:8] if few.text else None))

    def _seen(self, work: Work, fitted: Any) -> Any:
        spec, who = work.data.spec, work.arm.name
        return look(fitted.predict, work.data.test, lambda log_p, rows: check_shape(log_p, rows, spec, who))


TASK = NextToken()
