"""Arms as text, and what may stand together."""

from __future__ import annotations

import pytest

from probatum.contracts.method import ordered
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, make_arm, parse_arm

pytestmark = pytest.mark.fast


def test_settings_and_combinations() -> None:
    first, second = parse_arm("encouraging-loss(log_end=0.5, smoothing=0.1)+gradient-noise(eta=0.3)")
    assert (first.id, dict(first.settings)) == ("encouraging-loss", {"log_end": 0.5, "smoothing": 0.1})
    assert str(second) == "gradient-noise(eta=0.3)"


@pytest.mark.parametrize(
    "text", ["encouraging-loss(0.5)", "encouraging-loss(log_end=)", "encouraging-loss(", "a b", "", "+"]
)
def test_unreadable_arms(text: str) -> None:
    with pytest.raises(InputError):
        parse_arm(text)


def test_two_of_one_slot_clash_by_name() -> None:
    with pytest.raises(InputError, match="encouraging-loss and cnn-svm both fill the slot 'loss'"):
        make_arm("encouraging-loss+cnn-svm", Recipe())


def test_the_same_method_twice() -> None:
    with pytest.raises(InputError, match="stands twice"):
        make_arm("gradient-noise+gradient-noise", Recipe())


def test_learner_leaves_nothing_to_act_on() -> None:
    with pytest.raises(InputError, match="replaces gradient training"):
        make_arm("gbnn+encouraging-loss", Recipe())
    with pytest.raises(InputError, match="replaces gradient training"):
        make_arm("encouraging-loss+gbnn", Recipe())


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"steps": 0}, {"batch_size": 0}, {"lr": -1.0}, {"schedule": "odd"}])
def test_training_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Training(**bad)  # type: ignore[arg-type]


class _Touches:
    def __init__(self, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        self.reads, self.writes = reads, writes


def test_methods_are_ordered_by_what_they_touch() -> None:
    reader, writer = ("reader", _Touches(("gradients",), ())), ("writer", _Touches((), ("gradients",)))
    assert [name for name, _ in ordered([reader, writer])] == ["writer", "reader"]
    assert [name for name, _ in ordered([writer, reader])] == ["writer", "reader"]


def test_clashing_methods_are_named() -> None:
    one, other = ("one", _Touches((), ("order",))), ("other", _Touches((), ("order",)))
    with pytest.raises(InputError, match="one and other both write order"):
        ordered([one, other])
    first, second = ("first", _Touches(("loss",), ("batch",))), ("second", _Touches(("batch",), ("loss",)))
    with pytest.raises(InputError, match="first and second each read what the other writes"):
        ordered([first, second])
    with pytest.raises(InputError, match="odd declares 'nonsense'"):
        ordered([("odd", _Touches((), ("nonsense",)))])
