"""`probatum ship`, `seal`, `predict` and `explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from probatum import catalogue, inject
from probatum.bench.context import Context
from probatum.bench.making import read_again
from probatum.bench.pretrained_start import start_again
from probatum.bench.splits import Splits
from probatum.bench.stored import find_study, results_of
from probatum.cli.spreadsheet import as_csv, formulas, write_table
from probatum.cli.store_view import open_existing
from probatum.errors import InputError
from probatum.rooms.kind import kind_of, takes
from probatum.ship.card import sameness, unbacked
from probatum.ship.load import Shipped, opened
from probatum.ship.manifest import seal
from probatum.ship.place import check_target
from probatum.ship.write import ship
from probatum.train.adapt import own_part


def ship_from_store(path: str, beginning: str | None, arm: str, to: Path) -> str:
    """Ship an arm of a stored study, whose data must be the same; return why no verdict backs it, "" where one does."""
    check_target(to)
    console = Console(stderr=True)
    with open_existing(path) as store:
        study = find_study(store, beginning)
        results = results_of(store, study)
        source = results.summary["source"]
        if source is None:
            raise InputError("this study's data were handed over in Python; ship it there: study.ship(arm, folder)")
        if own_part(results.plan.model):
            raise InputError("this study's network was handed over in Python; ship it there: study.ship(arm, folder)")
        dataset = read_again(source)
        if dataset.fingerprint != results.plan.data.fingerprint:
            raise InputError(f"{dataset.name} has changed since the study; run `probatum try` on it again")
        with console.status(f"training {arm} once more ..."):
            factory = None
            if results.plan.pretrained:
                plan = results.plan
                start = start_again(plan.model, plan.pretrained, dataset, plan.base, store)
                dataset, factory = start.dataset, start.factory
            plan = results.plan
            context = Context(plan, Splits(dataset, plan.data.fractions, plan.data.splits == "folds"), factory)
            folder = ship(context, results, arm, to)
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    console.print(Text(f"{folder}: {arm}, {sameness(description)}"), soft_wrap=True)
    onnx = description["onnx"]
    told = (
        f"ONNX: largest difference {onnx['largest_difference']:.1e}"
        if onnx["written"]
        else f"no ONNX: {onnx['reason']}"
    )
    console.print(Text(told, style="dim"))
    without = unbacked(results, description["arm"])
    if without:
        console.print(Text(f"no verdict backs it: {without}", style="yellow"), soft_wrap=True)
    return without


def seal_folder(folder: Path) -> None:
    """Write the manifest that a folder of an earlier version lacks."""
    path = seal(folder)
    count = len(json.loads(path.read_text(encoding="utf-8"))["files"])
    Console(stderr=True).print(
        Text(f"{path}: {count} files as they are now; from here on altered ones are told"), soft_wrap=True
    )


def predict_file(folder: Path, data: str, to: Path | None, *, spreadsheet: bool, trust_changed: bool) -> None:
    """Predictions as CSV on standard output, or as a .csv or .parquet file."""
    if to is not None and to.suffix not in (".csv", ".parquet"):
        raise InputError(f"--to {to}: name a .csv or .parquet file")
    if spreadsheet and to is not None and to.suffix != ".csv":
        raise InputError(f"--spreadsheet is for CSV; {to} keeps cells as they are")
    frame = _opened(folder, trust_changed).predict(data)
    if not spreadsheet and (to is None or to.suffix == ".csv"):
        _note(formulas(frame))
    if to is None:
        sys.stdout.write(as_csv(frame, spreadsheet=spreadsheet))
    else:
        write_table(frame, to, spreadsheet=spreadsheet)


def _opened(folder: Path, trust_changed: bool) -> Shipped:
    """The shipped model; what is to be told of it goes to standard error."""
    shipped = opened(folder, trust_changed=trust_changed)
    for notice in shipped.notices:
        _note(notice)
    return shipped


def _note(said: str) -> None:
    if said:
        Console(stderr=True).print(Text(f"note: {said}", style="yellow"), soft_wrap=True)


def explain_row(folder: Path, data: str, row: int, by: str, *, as_json: bool, trust_changed: bool) -> None:
    """Contributions of one row's features to its predicted class."""
    if catalogue.place(by).slot != "explain":
        raise InputError(f"--by {by}: give a technique of slot explain ({', '.join(catalogue.names('explain'))})")
    shipped = _opened(folder, trust_changed)
    part, _ = shipped.encode(data)
    if not 0 <= row < len(part):
        raise InputError(f"--row {row}: the data have rows 0 to {len(part) - 1}")
    if shipped.model is None:
        raise InputError(f"{shipped.description['arm']} is a learner without gradients; explainers need a network")
    card = catalogue.card(by)
    why = takes(card, shipped.spec.modality, shipped.spec.task)
    if why:
        raise InputError(f"{by} {why}")
    x = part.x[row : row + 1]
    with torch.no_grad():
        output = shipped.model(x)
    target = output.argmax(dim=1)
    found = inject.call(
        by, catalogue.entry(by), {}, {"spec": shipped.spec}, model=shipped.model, inputs=x, target=target
    )
    values = found.values[0].detach()
    answer = shipped.spec.classes[int(target)] if shipped.spec.classes else str(int(target))
    rows = _named(shipped, x[0], values)
    if as_json:
        gap = None if found.gap is None else float(found.gap[0])
        print(json.dumps({"row": row, "by": by, "predicted": answer, "gap": gap, "contributions": rows}, indent=1))
        return
    console, table = Console(), Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("feature", overflow="fold")
    table.add_column("value (encoded)", justify="right")
    table.add_column("contribution", justify="right")
    for item in rows[:20]:
        style = "green" if item["contribution"] > 0 else "red"
        table.add_row(item["feature"], f"{item['value']:.4g}", Text(f"{item['contribution']:+.4g}", style=style))
    console.print(f"row {row}: predicted [bold]{answer}[/bold], explained by {by}", highlight=False)
    console.print(table)


def _named(shipped: Shipped, x: torch.Tensor, values: torch.Tensor) -> list[dict[str, Any]]:
    """Features by size of contribution: columns of tables, pixels and steps by position."""
    spec = shipped.spec
    names = kind_of(spec.modality, spec.task).facet("pictures").place_names(spec)
    flat, raw = values.flatten(), x.flatten()
    order = flat.abs().argsort(descending=True)
    return [{"feature": names[i], "value": float(raw[i]), "contribution": float(flat[i])} for i in order.tolist()]
