"""What an audit asks of texts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from probatum.errors import InputError
from probatum.kinds.usual.audit import Plain
from probatum.spec import Spec

FRAMED = True
ALL_IN_X = False
NO_PARTS = "words have no fixed place whose content could be permuted"


def plain(dataset: Any) -> Plain:
    """InputError: only a pipeline knows how texts become tokens."""
    raise InputError("how texts become tokens is not known; audit texts with a model from `probatum ship`")


def facts(x: Tensor, spec: Spec) -> dict[str, Tensor]:
    """The length."""
    return {"length": (x != 0).sum(dim=1).double()}
