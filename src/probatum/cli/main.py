"""The command line. Only what `list`, `show` and `--help` need is imported here; torch comes in with the long commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from probatum.cli.options import with_options
from probatum.cli.stopping import INTERRUPTED, PIPE, buffered, ended, heard, say
from probatum.errors import InputError
from probatum.files import check_folder, check_writable

app = typer.Typer(
    name="probatum",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Try published deep-learning techniques on your own data, at equal budget, with intervals.\n\n"
    "Start with [bold]probatum try --data digits[/bold], or [bold]probatum list[/bold].",
)

UNJUDGED = 4
"""Exit code where nothing could be judged, or no verdict backs what was shipped."""

Kinds = Annotated[
    list[Path] | None,
    typer.Option("--kind", help="A folder of a kind of data of your own; may be given several times."),
]
OwnOption = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=VALUE: what only one kind of data asks; may be given several times."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Technique = Annotated[
    list[Path] | None, typer.Option("--technique", help="A technique file of your own; may be given several times.")
]
TrustChanged = Annotated[
    bool,
    typer.Option(
        "--trust-changed", help="Load although techniques that predictions rest on have changed since shipping."
    ),
]


def main() -> None:
    """Entry point: user mistakes and full disks become one line and exit code 2, being told to stop one line and 128 + the signal."""
    buffered()
    with heard() as stop:
        code = ended(app, stop)
        if code != INTERRUPTED and not stop.signal:
            raise SystemExit(code)
        if stop.signal != PIPE or sys.argv[1:2] == ["try"]:  # as others do that were asked for a few lines only
            say(stop.line())
        raise SystemExit(stop.code())


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from probatum.version import VERSION

        typer.echo(f"probatum {VERSION}")
        raise typer.Exit


@app.command("list")
def list_command(
    slot: Annotated[str | None, typer.Option(help="Only this slot, e.g. loss.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only techniques with this tag.")] = None,
    search: Annotated[str | None, typer.Option(help="Only techniques with all these words.")] = None,
    as_json: JsonFlag = False,
    technique: Technique = None,
) -> None:
    """List the techniques.

    Examples: [dim]probatum list --slot loss[/dim] · [dim]probatum list --search "noisy labels"[/dim]
    """
    from probatum import catalogue
    from probatum.cli import catalogue_view

    _add(technique)
    found = catalogue.find(slot=slot, tag=tag, text=search)
    if as_json:
        typer.echo(json.dumps([catalogue_view.as_json(name) for name in found], indent=1))
    elif found:
        catalogue_view.print_list(found)
    else:
        typer.echo("no technique matches; `probatum list` shows all")


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="A technique's id.")],
    as_json: JsonFlag = False,
    technique: Technique = None,
) -> None:
    """Show one technique: what it computes, its settings, its claims and their evidence.

    Example: [dim]probatum show tabm[/dim]
    """
    from probatum.cli import catalogue_view

    _add(technique)
    if as_json:
        typer.echo(json.dumps([catalogue_view.as_json(id, full=True)], indent=1))
    else:
        catalogue_view.print_one(id)


@app.command("try")
@with_options()
def try_command(
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Techniques: ID, ID(setting=value), ID+ID. None: all that apply.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A file or folder, or the name of a set, e.g. digits.", show_default=False)
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    model: Annotated[str | None, typer.Option(help="A model of the catalogue as the baseline's network.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Paired seeds; verdicts need 6 or more. Without it 8, or at most 24 with --minutes."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows, for every arm.")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps, for every arm.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a gradient step, for every arm.")] = None,
    primary: Annotated[str | None, typer.Option(help="The measure that decides.")] = None,
    margin: Annotated[float | None, typer.Option(help="The smallest difference that matters to you.")] = None,
    tune: Annotated[int, typer.Option(help="Tuner trials for every arm, the baseline too.")] = 0,
    store: Annotated[
        str | None,
        typer.Option(help="Where trials are kept: a file, or postgresql://USER@HOST/DB. The same command resumes."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything found as JSON.")] = None,
    technique: Technique = None,
    kind: Kinds = None,
    option: OwnOption = None,
    said: Any = None,
) -> None:
    """Try techniques against the baseline on your data and print verdicts.

    Exit codes: 0 something was judged; 4 nothing could be judged, and the answer says why; 2 what was asked cannot be
    done; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 where nobody reads the output any more: what has ended
    is stored, and the same command goes on.

    Examples: [dim]probatum try encouraging-loss tabm --data churn.csv --target churned[/dim] ·
    [dim]probatum try --data churn.csv --target churned --minutes 10[/dim] ·
    [dim]probatum try integrated-gradients deeplift --data digits[/dim] ·
    [dim]probatum try flora-tucker --data fashion_mnist --pretrain mnist[/dim] ·
    [dim]probatum try early-learning-regularization --data digits --world label-noise:0.4[/dim] ·
    [dim]probatum try gradient-noise --data book.txt --tokens bpe[/dim] ·
    [dim]probatum try "gradient-noise(eta=0.3)" selu-snn+gradient-noise --data wine --seeds 12[/dim]
    """
    if data is None:
        raise InputError("say which data: --data FILE, FOLDER or the name of a set, e.g. --data digits")
    if epochs is not None and steps is not None:
        raise InputError("give --epochs or --steps, not both")
    file = None if store is None or "://" in store else Path(store)
    for path, flag in ((file, "--store"), (report, "--report"), (json_file, "--json")):
        check_writable(path, flag)
    _add(technique, kind)
    from probatum.cli.try_view import Outputs, run_try
    from probatum.options import values_of, with_own

    basic = {
        "target": target,
        "model": model,
        "seeds": seeds,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "primary": primary,
        "margin": margin,
        "tune": tune,
    }
    arguments = {**basic, **with_own(values_of(said), option or ())}
    _end(run_try(ids or None, data, arguments, Outputs(store, report, json_file)))


@app.command()
@with_options("reading", "own")
def advise(
    data: Annotated[
        str | None, typer.Option(help="A file or folder, or the name of a set, e.g. digits.", show_default=False)
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            help="A store of earlier studies that may tell something; may be given several times. Without it "
            "probatum-runs/store.sqlite, where it is there.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many techniques are advised.")] = 5,
    as_json: JsonFlag = False,
    technique: Technique = None,
    kind: Kinds = None,
    option: OwnOption = None,
    said: Any = None,
) -> None:
    """Say which techniques to try first on your data, and why, before anything is trained.

    Examples: [dim]probatum advise --data churn.csv --target churned[/dim] ·
    [dim]probatum advise --data digits --store probatum-runs/store.sqlite --top 8[/dim]
    """
    if data is None:
        raise InputError("say which data: --data FILE, FOLDER or the name of a set, e.g. --data digits")
    _add(technique, kind)
    from probatum.cli.advise_view import print_advice
    from probatum.options import values_of, with_own

    reading = with_own(values_of(said), option or ())["reading"]
    print_advice(data, target, reading, store, top, as_json=as_json)


@app.command("report")
def report_command(
    store: Annotated[str, typer.Argument(help="A store written by `probatum try`: a file or a database URL.")],
    study: Annotated[str | None, typer.Option(help="Beginning of a study's key; default: the newest.")] = None,
    to: Annotated[Path | None, typer.Option(help="Where the HTML report goes.")] = None,
) -> None:
    """Print a stored study's verdicts again and write its report; exit code 4 where nothing could be judged.

    Example: [dim]probatum report probatum-runs/store.sqlite --to report.html[/dim]
    """
    check_writable(to, "--to")
    from probatum.cli.store_view import print_report

    _end(print_report(store, study, to))


@app.command()
def runs(
    store: Annotated[str, typer.Argument(help="A store written by `probatum try`: a file or a database URL.")],
    as_json: JsonFlag = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Make a new file of all that is readable and right; the old one is kept as STORE.damaged."
        ),
    ] = False,
) -> None:
    """List the studies in a store, or mend its file.

    Examples: [dim]probatum runs probatum-runs/store.sqlite[/dim] ·
    [dim]probatum runs --repair probatum-runs/store.sqlite[/dim]
    """
    from probatum.cli.store_view import print_repair, print_runs

    if repair:
        print_repair(store, as_json=as_json)
    else:
        print_runs(store, as_json=as_json)


@app.command()
def claim(
    id: Annotated[str, typer.Argument(help="A technique's id.")],
    claim: Annotated[str | None, typer.Option(help="Id of one of its claims; default: all.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="E.g. 1-5 or 1,2,7; default: those of the record, from 101.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a paper's claim and say whether it was reproduced here.

    Example: [dim]probatum claim gradient-noise --seeds 1-5[/dim]
    """
    from probatum.cli.claim_view import print_claims

    print_claims(id, as_json=as_json, claim=claim, seeds=seeds)


@app.command()
def check(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids or files of techniques, kind/NAME or folders of kinds of data; none: all.", show_default=False
        ),
    ] = None,
    kind: Kinds = None,
) -> None:
    """Run the contract suite on techniques and kinds of data, your own files included, and say what is still to be done.

    Examples: [dim]probatum check my_loss.py[/dim] · [dim]probatum check kind/table points/[/dim]
    """
    from probatum.cli.check_view import print_checks

    _add(None, kind)
    print_checks(what)


@app.command()
def new(
    what: Annotated[
        str, typer.Argument(help="SLOT/NAME, e.g. loss/my-loss or model/tables/my-model; kind/NAME; arena/NAME.")
    ],
    to: Annotated[Path, typer.Option(help="Folder to write into; a checkout of Probatum, or any other.")] = Path(),
) -> None:
    """Write the files of a new technique (itself, its claim, its test), kind of data or arena.

    Example: [dim]probatum new loss/my-loss[/dim], then [dim]probatum check loss/my_loss.py[/dim], in a checkout
    [dim]probatum check my-loss[/dim]
    """
    from probatum.cli.scaffold import scaffold

    for path in scaffold(what, to):
        typer.echo(path)


@app.command()
def ship(
    store: Annotated[str, typer.Argument(help="A store written by `probatum try`: a file or a database URL.")],
    arm: Annotated[str, typer.Option(help="The arm to ship, e.g. baseline or encouraging-loss.")],
    to: Annotated[Path, typer.Option(help="Folder to write into; it must be new or empty.")],
    study: Annotated[str | None, typer.Option(help="Beginning of a study's key; default: the newest.")] = None,
    technique: Technique = None,
    kind: Kinds = None,
) -> None:
    """Write one arm as a folder: weights, preprocessing, ONNX where the model allows, a model card with the evidence.

    Exit code 4 where no verdict backs the arm; the folder is written all the same, and its card says so.

    Example: [dim]probatum ship probatum-runs/store.sqlite --arm encouraging-loss --to model/[/dim]
    """
    _add(technique, kind)
    from probatum.cli.ship_view import ship_from_store

    _end(ship_from_store(store, study, arm, to))


@app.command()
def seal(folder: Annotated[Path, typer.Argument(help="A folder shipped by a version that wrote no manifest.")]) -> None:
    """Write down what every file of an earlier shipped folder is now, so that altered ones are told from here on.

    Example: [dim]probatum seal model/[/dim]
    """
    from probatum.cli.ship_view import seal_folder

    seal_folder(folder)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A folder written by `probatum ship`.")],
    data: Annotated[str, typer.Option(help="Rows to predict: a file of the same columns.")],
    to: Annotated[Path | None, typer.Option(help="A .csv or .parquet file; default: CSV on standard output.")] = None,
    spreadsheet: Annotated[
        bool,
        typer.Option("--spreadsheet", help="An apostrophe before CSV cells that a spreadsheet would run as formulas."),
    ] = False,
    trust_changed: TrustChanged = False,
    technique: Technique = None,
    kind: Kinds = None,
) -> None:
    """Predict new rows with a shipped model; a folder with altered, cut, missing or foreign files is refused.

    Examples: [dim]probatum predict model/ --data new.csv --to predictions.parquet[/dim] ·
    [dim]probatum predict model/ --data new.csv --to predictions.csv --spreadsheet[/dim]
    """
    check_writable(to, "--to")
    _add(technique, kind)
    from probatum.cli.ship_view import predict_file

    predict_file(folder, data, to, spreadsheet=spreadsheet, trust_changed=trust_changed)


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="A folder written by `probatum ship`.")],
    data: Annotated[str, typer.Option(help="A file of the same columns.")],
    row: Annotated[int, typer.Option(help="Which row, from 0.")] = 0,
    by: Annotated[str, typer.Option(help="A technique of slot explain.")] = "integrated-gradients",
    as_json: JsonFlag = False,
    trust_changed: TrustChanged = False,
    technique: Technique = None,
    kind: Kinds = None,
) -> None:
    """Explain one prediction of a shipped model.

    Example: [dim]probatum explain model/ --data new.csv --row 3 --by integrated-gradients[/dim]
    """
    _add(technique, kind)
    from probatum.cli.ship_view import explain_row

    explain_row(folder, data, row, by, as_json=as_json, trust_changed=trust_changed)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="A shipped folder, FILE.py:NAME, a .pt or an .onnx file.")],
    data: Annotated[str, typer.Option(help="Labelled rows that the model was not trained on.")],
    target: Annotated[str | None, typer.Option(help="Column that holds the label.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Rows like the training rows: for shift, outliers and labels.")
    ] = None,
    groups: Annotated[str | None, typer.Option(help="Columns whose groups are compared, e.g. sex,region.")] = None,
    time: Annotated[str | None, typer.Option(help="Column that orders the rows: later against earlier ones.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column that the model does not take.")] = None,
    task: Annotated[str, typer.Option(help="classes, reals or auto.")] = "auto",
    modality: Annotated[
        str, typer.Option(help="What examples are, as kinds of data call it (table, image, text, series ...), or auto.")
    ] = "auto",
    pipeline: Annotated[Path | None, typer.Option(help="A shipped folder whose preprocessing encodes rows.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="Another limit, e.g. calibration=0.05; may be given several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.html and audit.json.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Unpickle a .pt file, which runs code in it.")] = False,
    trust_changed: TrustChanged = False,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Audit rows seen in training, too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 where a fault is found.")] = False,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    as_json: JsonFlag = False,
    technique: Technique = None,
    kind: Kinds = None,
) -> None:
    """Check a model you already have: calibration, errors, corruption, shift, labels, groups, shortcuts.

    Example: [dim]probatum audit model/ --data new.csv --groups region --out audit[/dim]
    """
    check_folder(out, "--out")
    _add(technique, kind)
    from probatum.cli.audit_view import limits_of, run_audit

    report = run_audit(
        model,
        data,
        out,
        as_json=as_json,
        target=target,
        reference=reference,
        groups=tuple(name.strip() for name in groups.split(",")) if groups else (),
        time=time,
        drop=tuple(drop or ()),
        task=task,
        modality=modality,
        pipeline=pipeline,
        trust=trust,
        trust_changed=trust_changed,
        keep_seen=keep_seen,
        limits=limits_of(limit),
        seed=seed,
    )
    if strict and report.faults:
        raise typer.Exit(1)


def _end(unjudged: str) -> None:
    """End with a code of its own where there is a reason why nothing was judged."""
    if unjudged:
        raise typer.Exit(UNJUDGED)


def _add(techniques: list[Path] | None, kinds: list[Path] | None = None) -> None:
    """Let techniques and kinds of data from outside the package take part."""
    from probatum import catalogue
    from probatum.rooms import find

    for folder in kinds or ():
        find.add(folder)
    for file in techniques or ():
        catalogue.add_file(file)


if __name__ == "__main__":
    main()
