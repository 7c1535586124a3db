"""Validation rows tested too: the best weights by the test rows, kept in the same training, are tested on validation rows.

So every trial tests twice as many rows and trains once, and no row chooses the weights that it tests. Calibrators and what
else is fitted on validation rows is then fitted on test rows. Where a technique looks at validation rows itself they are
none that could test it, and the trial says why it did not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from probatum.data.lazy.few import is_streamed
from probatum.rooms.arena import Work
from probatum.spec import Data, Part
from probatum.train.asked import Asked
from probatum.train.run import Run
from probatum.train.second_choice import SecondChoice

LOOKS = "a technique looks at validation rows itself"
REPLACES = "a technique replaces the network after its training"


class Noting(Data):
    """Data that note whether somebody has asked for the validation rows, by whichever way: they, or a copy of them.

    The rows are not among the attributes that copies are made of, so that there is no other way to them.
    """

    _rows: Held

    def __getattribute__(self, name: str) -> Any:
        held = super().__getattribute__("__dict__").get("_rows") if name == "valid" else None
        if held is not None:  # one that was made of another's fields was asked for by that
            return held.taken()
        return super().__getattribute__(name)

    @property
    def asked_valid(self) -> bool:
        """Whether somebody has."""
        return self._rows.asked.yes

    @classmethod
    def of(cls, data: Data) -> Noting:
        """The same data, noting."""
        found = cls(data.spec, data.train, data.valid, data.test, data.pipeline, data.truth)
        vars(found).pop("valid")
        object.__setattr__(found, "_rows", Held(data.valid))
        return found


class Held:
    """Rows, and whether somebody has taken them.

    Attributes:
        asked: that.
    """

    def __init__(self, part: Part) -> None:
        self.asked = Asked()
        self._part = part

    def taken(self) -> Part:
        """The rows."""
        self.asked.yes = True
        return self._part


@dataclass
class Swap:
    """What a trial knows of weights that test rows chose.

    Attributes:
        reason: why validation rows are not tested; "" = they are.
        state: the weights, None where nothing was chosen, so that the ones that there are serve.
        seen: the data that a learner got.
    """

    reason: str = ""
    state: dict[str, Any] | None = field(default=None, repr=False)
    seen: Noting | None = field(default=None, repr=False)

    def noting(self, data: Data) -> Data:
        """The data for a learner, which may look at their validation rows as long as it predicts."""
        self.seen = Noting.of(data)
        return self.seen

    def why_not(self) -> str:
        """The reason, once everything is predicted that is to be predicted without swapping."""
        if self.seen is not None and self.seen.asked_valid:
            return LOOKS
        return self.reason

    def trained(self, run: Run, network: nn.Module, second: SecondChoice, k: int = 0) -> None:
        """The weights of the k-th run after its training, which began with this network."""
        if run.asked.yes:
            self.reason = LOOKS
        elif run.keep_best:  # else they are those of the last step, or a technique's own
            self.state = second.kept.states[k]
            if self.state is not None and run.model is not network:
                self.reason = REPLACES


def swap_of(work: Work) -> Swap:
    """How a trial begins that may test its validation rows."""
    data = work.data
    if not work.terms.swap:
        return Swap("it was not asked for")
    if work.terms.tune:
        return Swap("settings were tuned on validation rows")
    if work.truth is not None:
        return Swap("in a made world validation rows are not as test rows are")
    if is_streamed(data.valid) or is_streamed(data.test):
        return Swap("the rows are streamed from disk")
    if work.engine.devices > 1:
        return Swap("several devices train the network")
    return Swap()
