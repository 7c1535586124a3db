"""What worlds do with tables: a number more for each class as its mark, noise with codes that exist."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from probatum.errors import InputError
from probatum.spec import Data, Part, Spec

WORD = "evidence"


def marked_spec(spec: Spec) -> Spec:
    """The description of rows with one more number a class, behind the numbers that they have."""
    names = tuple(f"{WORD} {k}" for k in range(spec.outputs))
    cut = spec.numeric if len(spec.features) == spec.shape[0] else len(spec.features)
    return replace(
        spec,
        shape=(spec.shape[0] + spec.outputs,),
        numeric=spec.numeric + spec.outputs,
        features=(*spec.features[:cut], *names, *spec.features[cut:]) if spec.features else (),
    )


def marked(part: Part, codes: Tensor, spec: Spec) -> Part:
    """Rows in which the number of the class `codes` says is 1; `spec` is that of the rows as they come."""
    x = part.x
    mark = torch.nn.functional.one_hot(codes, spec.outputs).to(x.dtype)
    return replace(part, x=torch.cat([x[:, : spec.numeric], mark, x[:, spec.numeric :]], dim=1))


def noise(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """As many rows as test rows: normal numbers and random codes."""
    spec = data.spec
    drawn = torch.randn(data.test.x.shape, generator=generator)
    for column, size in enumerate(spec.cardinalities, start=spec.numeric):
        drawn[:, column] = torch.randint(size, (len(drawn),), generator=generator).float()
    return drawn, None


def check_other_set(spec: Spec, world: str) -> None:
    """InputError: other tables have other columns."""
    raise InputError(f"world {world}: tables of other data have other columns; use ood:shuffled or held-out")
