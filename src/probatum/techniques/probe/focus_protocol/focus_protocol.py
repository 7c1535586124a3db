"""FOCUS: accuracy by how many attributes of an example are uncommon for its class.

Paper     Kattakinda and Feizi 2022, "FOCUS: Familiar Objects in Common and Uncommon Settings", arXiv:2110.03804
Computes  a table of attribute values that are uncommon for each class: declared, or P_train(value | class) < tau; accuracy
          Acc_k of test rows with k uncommon attributes with Wilson intervals, its slope in k, and for each attribute
          Acc(common) - Acc(uncommon) over an equal mix of classes; the gap again without the features that respond most
          to the attribute whatever the class, and Acc_k again after fine-tuning on uncommon validation rows
Shapes    (model_factory, data, generator) -> dict of named numbers
Departs   1. without metadata the attributes are read off the rows: columns of tables, brightness, contrast and balance of
             images, length and words of texts, level, spread and roughness of series, cut at training quantiles
          2. features are ablated by their training mean, at the input of the last linear layer
          3. the network is trained here, plainly, instead of taken from ImageNet; fine labels are mapped to groups by
             `grouped` in plain code
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.copies import copied
from probatum.numerics.networks.last_layer import head_of
from probatum.numerics.networks.watch import last_features, outputs_of
from probatum.numerics.optimisation.fit_network import fit_network
from probatum.numerics.tensors.targets import coded
from probatum.spec import Data
from probatum.techniques.probe.focus_protocol.attributes import (
    Attribute,
    code_attribute,
    commonness,
    measured_attributes,
    uncommon_flags,
)

CARD = Card(
    paper="arXiv:2110.03804",
    title="FOCUS: Familiar Objects in Common and Uncommon Settings",
    entry="focus_protocol",
    number=127,
    tags=("robustness", "shortcut", "groups", "evaluation"),
    tasks=("classes",),
    tiny={"steps": 6, "batch": 16, "finetune_steps": 2},
    claims=("uncommon-settings-cost-accuracy",),
)

Z = 1.959963984540054
"""Of the 95 % intervals."""


class Group(NamedTuple):
    """Rows with one number of uncommon attributes: how many rows, accuracy, ends of the Wilson interval."""

    rows: int
    accuracy: float
    low: float
    high: float


def grouped(probabilities: Tensor, groups: Sequence[int], how: str = "sum") -> Tensor:
    """(n, groups) from probabilities (n, labels) of finer labels.

    Args:
        probabilities: of the fine labels.
        groups: the group of each fine label, -1 for none.
        how: "sum" adds the labels of a group up; "argmax" gives all to the group of the likeliest label (a row whose
            likeliest label has no group gets zeros).

    Raises:
        ValueError: another word, or a number of labels that does not fit.
    """
    if len(groups) != probabilities.shape[1]:
        raise ValueError(f"groups has {len(groups)} entries for {probabilities.shape[1]} labels; give one a label")
    if how not in ("sum", "argmax"):
        raise ValueError(f"how is {how!r}; use sum or argmax")
    place = torch.tensor(list(groups))
    if int(place.max()) < 0:
        raise ValueError("no label has a group; give 0 or more for one at least")
    member = torch.nn.functional.one_hot(place.clamp_min(0), int(place.max()) + 1) * (place >= 0)[:, None]
    if how == "sum":
        return probabilities @ member.to(probabilities.dtype)
    return member[probabilities.argmax(dim=1)].to(probabilities.dtype)


def wilson(right: float, rows: int, z: float = Z) -> tuple[float, float]:
    """Ends of Wilson's interval for `right` of `rows` rows, rows >= 1."""
    share, scale = right / rows, 1 + z * z / rows
    centre = (share + z * z / (2 * rows)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)


def by_count(right: Tensor, k: Tensor) -> dict[int, Group]:
    """Group of each number of uncommon attributes; -1 holds rows with a missing one. The groups partition the rows.

    Args:
        right: (n,) bool.
        k: (n,) int64.
    """
    found = {}
    for value in k.unique().tolist():
        mine = right[k == value]
        hits = int(mine.sum())
        found[int(value)] = Group(len(mine), hits / len(mine), *wilson(hits, len(mine)))
    return found


def slope(groups: Mapping[int, Group]) -> float | None:
    """dAcc/dk by least squares weighted with the groups' rows; None with fewer than two known k."""
    known = [(k, group) for k, group in groups.items() if k >= 0]
    total = sum(group.rows for _, group in known)
    if len(known) < 2:
        return None
    mean_k = sum(k * g.rows for k, g in known) / total
    mean_a = sum(g.accuracy * g.rows for _, g in known) / total
    across = sum(g.rows * (k - mean_k) * (g.accuracy - mean_a) for k, g in known)
    return across / sum(g.rows * (k - mean_k) ** 2 for k, g in known)


def gap(right: Tensor, y: Tensor, uncommon: Tensor, known: Tensor) -> float | None:
    """Acc(common) - Acc(uncommon), each the mean over the classes that have rows of both kinds; None where no class has.

    Args:
        right: (n,) bool.
        y: (n,) classes.
        uncommon: (n,) bool, of one attribute.
        known: (n,) bool; other rows are left out.
    """
    gaps = []
    for k in y.unique().tolist():
        mine = known & (y == k)
        common, rare = right[mine & ~uncommon], right[mine & uncommon]
        if len(common) and len(rare):
            gaps.append(float(common.double().mean() - rare.double().mean()))
    return sum(gaps) / len(gaps) if gaps else None


def responding_units(features: Tensor, y: Tensor, uncommon: Tensor, known: Tensor) -> Tensor:
    """(d,) how much each feature differs between uncommon and common rows whatever the class, in deviations; absolute.

    The difference is averaged over the classes that have both kinds of rows; zeros where none has.
    """
    differences = []
    for k in y.unique().tolist():
        mine = known & (y == k)
        rare, common = features[mine & uncommon], features[mine & ~uncommon]
        if len(rare) and len(common):
            differences.append(rare.mean(dim=0) - common.mean(dim=0))
    if not differences:
        return torch.zeros(features.shape[1])
    return torch.stack(differences).mean(dim=0).abs() / features.std(dim=0, correction=0).clamp_min(1e-6)


def focus_protocol(
    model_factory: Callable[[], nn.Module],
    data: Data,
    generator: torch.Generator,
    *,
    attributes: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    uncommon: Mapping[str, Tensor] | None = None,
    columns: Sequence[str] | None = None,
    tau: float = 0.05,
    smoothing: float = 1.0,
    most: int = 3,
    bins: int = 3,
    units: float = 0.1,
    steps: int = 600,
    batch: int = 64,
    lr: float = 2e-3,
    finetune_steps: int = 0,
) -> dict[str, float]:
    """Train a network and say what its accuracy is by the number of uncommon attributes.

    Args:
        model_factory: gives a fresh network.
        data: classes.
        generator: all that is drawn.
        attributes: "train", "test" (and "valid" for fine-tuning) -> name -> one value a row; None, NaN, NA, NaT and
            "" are missing, and a value that neither training nor test rows have is so in validation rows. None = read off
            the rows.
        uncommon: declared: name -> (classes, values) bool, values in sorted order; None = estimated on training rows.
        columns: tables: which columns are the attributes; None = the first ones.
        tau: a value is uncommon for a class below this share, in (0, 1); none is where no training row of the class has a
            known one.
        smoothing: Laplace's count, at least 0.
        most, bins: attributes that are read off the rows, and values of each.
        units: share of features that are ablated, in (0, 1).
        steps, batch, lr: of the training.
        finetune_steps: updates on the uncommon validation rows afterwards; 0 = none.

    Returns:
        "accuracy"; by k "accuracy with K uncommon", its "low" and "high", "rows with K uncommon" (K = "unknown" for rows with
        a missing attribute); "slope"; by attribute "gap NAME", "gap NAME without its features", "rows with NAME missing",
        "classes without NAME", "uncommon pairs of NAME"; after fine-tuning the accuracies again, "rows to fine-tune on" and
        "validation rows with NAME missing".

    Raises:
        ValueError: attributes of another length or not for both parts, a table that does not fit, settings out of range.

    Example:
        >>> from probatum.spec import Part, Spec
        >>> y = torch.arange(60) % 2
        >>> place = torch.where(torch.arange(60) < 54, y, 1 - y)  # class 0 on land and class 1 at sea, but for a few
        >>> part = Part(torch.stack([y, place], dim=1).float(), y, torch.arange(60))
        >>> data = Data(Spec("table", "classes", (2,), 2, numeric=2), part, part, part)
        >>> words = {"place": [("land", "sea")[i] for i in place.tolist()]}
        >>> found = focus_protocol(
        ...     lambda: nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)), data,
        ...     torch.Generator().manual_seed(0), attributes={"train": words, "test": words}, tau=0.2, steps=20)
        >>> found["uncommon pairs of place"], found["rows with 0 uncommon"], found["rows with 1 uncommon"]
        (2.0, 54.0, 6.0)
    """
    _check(data, tau, units, steps, batch, lr, finetune_steps)
    data = coded(data)
    classes = data.spec.outputs
    known = _attributes(data, attributes, columns, most, bins)
    tables = _tables(data, known["train"], uncommon, tau, smoothing)
    model = fit_network(model_factory(), data.train.x, data.train.y, steps, batch, lr, generator)
    test, y = data.test, data.test.y
    result: dict[str, float] = {}
    flags, there = uncommon_flags(y, known["test"], tables)
    k = torch.where(there.all(dim=1), flags.sum(dim=1), torch.full((len(y),), -1))
    right = _predicted(model, test.x).eq(y)
    _tell(result, right, k, "")
    for j, attribute in enumerate(known["test"]):
        result[f"uncommon pairs of {attribute.name}"] = float(tables[attribute.name].sum())
        result[f"rows with {attribute.name} missing"] = float((~there[:, j]).sum())
        absent = [c for c in range(classes) if not bool((known["train"][j].codes[data.train.y == c] >= 0).any())]
        result[f"classes without {attribute.name}"] = float(len(absent))
        found = gap(right, y, flags[:, j], there[:, j])
        if found is not None:
            result[f"gap {attribute.name}"] = found
    _without_features(result, model, data, known, tables, units)
    if finetune_steps:
        flags_valid, there_valid = uncommon_flags(data.valid.y, known["valid"], tables)
        rare = (flags_valid & there_valid).any(dim=1)
        result["rows to fine-tune on"] = float(rare.sum())
        for j, attribute in enumerate(known["valid"]):
            result[f"validation rows with {attribute.name} missing"] = float((~there_valid[:, j]).sum())
        if int(rare.sum()) > 1:
            tuned = copied(model)
            fit_network(tuned, data.valid.x[rare], data.valid.y[rare], finetune_steps, batch, lr / 10, generator)
            _tell(result, _predicted(tuned, test.x).eq(y), k, "fine-tuned ")
    return result


def _attributes(
    data: Data,
    given: Mapping[str, Mapping[str, Sequence[Any]]] | None,
    columns: Sequence[str] | None,
    most: int,
    bins: int,
) -> dict[str, list[Attribute]]:
    names = ("train", "test", "valid")
    if given is None:
        parts = [data.train.x, data.test.x, data.valid.x]
        return dict(zip(names, measured_attributes(parts, data.spec, most, bins, columns), strict=True))
    for part in ("train", "test"):
        if not given.get(part):
            raise ValueError(f"attributes has no {part!r}; give name -> values for train and test")
    found: dict[str, list[Attribute]] = {name: [] for name in names}
    for name, values in given["train"].items():
        for part in ("test", *(("valid",) if "valid" in given else ())):
            if name not in given[part]:
                raise ValueError(f"attribute {name!r} is given for train and not for {part}; give it for both")
        every = code_attribute(name, [*values, *given["test"][name]]).values
        for part in names:
            mine = given.get(part, {}).get(name)
            rows = len(getattr(data, part))
            if mine is None:
                mine = [None] * rows
            if len(mine) != rows:
                raise ValueError(f"attribute {name!r} has {len(mine)} values for {rows} {part} rows; give one a row")
            found[part].append(code_attribute(name, mine, every))
    return found


def _tables(
    data: Data, train: Sequence[Attribute], declared: Mapping[str, Tensor] | None, tau: float, smoothing: float
) -> dict[str, Tensor]:
    tables, classes = {}, data.spec.outputs
    for attribute in train:
        if declared is None:
            told = torch.zeros(classes, 1, dtype=torch.bool)
            told[data.train.y[attribute.codes >= 0]] = True  # of other classes smoothing alone would speak
            tables[attribute.name] = told & (commonness(data.train.y, attribute, classes, smoothing) < tau)
            continue
        table = None if declared.get(attribute.name) is None else torch.as_tensor(declared[attribute.name])
        good = table is not None and tuple(table.shape) == (classes, len(attribute.values))
        if table is None or not good or not bool(((table == 0) | (table == 1)).all()):  # shares would all count as True
            shape = None if table is None else f"{table.dtype} {tuple(table.shape)}"
            raise ValueError(
                f"uncommon has {shape} for {attribute.name!r}; give a bool table {(classes, len(attribute.values))} of "
                f"classes and the values {', '.join(attribute.values)}"
            )
        tables[attribute.name] = table.bool()
    return tables


def _tell(result: dict[str, float], right: Tensor, k: Tensor, prefix: str) -> None:
    groups = by_count(right, k)
    result[f"{prefix}accuracy"] = float(right.double().mean())
    for count, group in groups.items():
        name = "unknown" if count < 0 else str(count)
        result[f"{prefix}accuracy with {name} uncommon"] = group.accuracy
        if not prefix:
            result[f"low with {name} uncommon"], result[f"high with {name} uncommon"] = group.low, group.high
            result[f"rows with {name} uncommon"] = float(group.rows)
    found = slope(groups)
    if found is not None:
        result[f"{prefix}slope"] = found


def _without_features(
    result: dict[str, float],
    model: nn.Module,
    data: Data,
    known: Mapping[str, list[Attribute]],
    tables: Mapping[str, Tensor],
    units: float,
) -> None:
    """The gap of each attribute without the features that respond most to it; nothing for networks without a linear head."""
    try:
        head = head_of(model, data.train.x)
        seen, tested = last_features(model, data.train.x, head), last_features(model, data.test.x, head)
    except ValueError:
        return
    if head.out_features != data.spec.outputs:
        return
    flags, there = uncommon_flags(data.train.y, known["train"], tables)
    test_flags, test_there = uncommon_flags(data.test.y, known["test"], tables)
    count = max(1, round(units * seen.features.shape[1]))
    for j, attribute in enumerate(known["train"]):
        top = responding_units(seen.features, data.train.y, flags[:, j], there[:, j]).topk(count).indices
        changed = tested.features.clone()
        changed[:, top] = seen.features.mean(dim=0)[top]
        with torch.no_grad():
            right = head(changed).argmax(dim=1).eq(data.test.y)
        found = gap(right, data.test.y, test_flags[:, j], test_there[:, j])
        if found is not None:
            result[f"gap {attribute.name} without its features"] = found


def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    return outputs_of(model, x, 1024).argmax(dim=1)


def _check(data: Data, tau: float, units: float, steps: int, batch: int, lr: float, finetune_steps: int) -> None:
    if data.spec.task != "classes":
        raise ValueError(f"the task is {data.spec.task!r}; settings common for a class need classes")
    if not 0 < tau < 1 or not 0 < units < 1:
        raise ValueError(f"tau is {tau} and units {units}; both are shares between 0 and 1")
    if steps < 1 or batch < 2 or finetune_steps < 0 or not lr > 0:
        raise ValueError(
            f"steps {steps}, batch {batch}, finetune_steps {finetune_steps}, lr {lr}; at least 1, 2, 0, and above 0"
        )
    if len(data.train) < 2:
        raise ValueError(f"there are {len(data.train)} training rows; 2 or more are needed")
