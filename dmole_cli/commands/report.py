"""`dmole report`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.artifacts.labels import base_method
from dmole_cli.cli import console
from dmole_cli.cli.completion import of_choices, of_shelf
from dmole_cli.cli.derive import OUTPUT, WHAT
from dmole_cli.cli.shared_options import MethodsOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.figures.base import Source
    from dmole_cli.reports.collect import MethodReport

SETTINGS = ("evaluate.split", "shared")
WRITES = False
REPORTS = ("overview", "means", "last", "avg", "bwt", "fwt", "forgetting", "matrix", "knowledge", "cost")
FIRST = REPORTS[0]


NameArgument = Annotated[
    str | None,
    typer.Argument(
        help=f"One of {', '.join(REPORTS)}. [default: {FIRST}]",
        metavar="REPORT",
        autocompletion=of_choices(REPORTS),
        show_default=False,
    ),
]
RescoredOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Metric of `dmole rescore` whose scores replace the original ones; repeatable.",
        rich_help_panel=WHAT,
        autocompletion=of_shelf("metrics"),
    ),
]
HTML = "Write one page with all tables, figures and case studies; --run may be the folder of a comparison."
HtmlOption = Annotated[Path | None, typer.Option(help=HTML, metavar="FILE", rich_help_panel=OUTPUT)]
FIGURES = "Write each figure as SVG and PNG, with its numbers as CSV."
FiguresOption = Annotated[Path | None, typer.Option(help=FIGURES, metavar="DIR", rich_help_panel=OUTPUT)]
PREDICTIONS = "Write all predictions as a table, .csv or .parquet."
PredictionsOption = Annotated[Path | None, typer.Option(help=PREDICTIONS, metavar="FILE", rich_help_panel=OUTPUT)]
LATEX = "Print the paper's table in LaTeX."
LatexOption = Annotated[bool, typer.Option("--latex", help=LATEX, rich_help_panel=OUTPUT)]
CSV = "Print every value as CSV, one per line."
CsvOption = Annotated[bool, typer.Option("--csv", help=CSV, rich_help_panel=OUTPUT)]
BENCH = "bench.json of pipelines/bench/run.py --only ranks, for the figure of the runtime by rank."
BenchOption = Annotated[Path | None, typer.Option(help=BENCH, metavar="FILE", rich_help_panel=WHAT)]
CITE = "Print what a paper needs: versions, seeds, digests, and the papers of the methods."
CiteOption = Annotated[bool, typer.Option("--cite", help=CITE, rich_help_panel=OUTPUT)]


def run(
    work: Workspace,
    name: NameArgument = None,
    *,
    method: MethodsOption = None,
    rescored: RescoredOption = None,
    html: HtmlOption = None,
    figures: FiguresOption = None,
    predictions: PredictionsOption = None,
    latex: LatexOption = False,
    as_csv: CsvOption = False,
    cite: CiteOption = False,
    bench: BenchOption = None,
) -> None:
    """Report stored evaluations; missing entries stay missing."""
    require_report(name)
    if name == "cost" and (method or rescored):
        raise typer.BadParameter("the report of costs has no --method and no --rescored")
    if bench and not (html or figures):
        raise typer.BadParameter("--bench belongs to --html and --figures: pass one of them")
    printed = [flag for flag, typed in (("--latex", latex), ("--csv", as_csv), ("--cite", cite)) if typed]
    shown = [*printed, *([f"the report {name or 'as JSON'}"] if name or work.json else [])]
    if len(shown) > 1:
        raise typer.BadParameter(f"{' and '.join(shown)} would be printed together: choose one of them")
    written = {"html": html, "figures": figures, "predictions": predictions}
    if name or work.json or not (printed or any(written.values())):
        show_report(work, name or FIRST, method, rescored=rescored or ())
    if printed or any(written.values()):
        from dmole_cli.pages.outputs import Outputs

        source = replace(_source(work, method, rescored or ()), benchmarks=bench)
        outputs = Outputs(source, work.track)
        for kind, path in written.items():
            if path is not None:
                console.say(outputs.write(kind, path))
        if printed:
            print(outputs.text(printed[0].removeprefix("--")), end="")


def _source(work: Workspace, methods: Sequence[str] | None, rescored: Sequence[str]) -> Source:
    """What the page, the figures and the exports are made from: the run directory, or the comparison at its place."""
    from dmole_cli.pages.source import is_comparison, source_of_comparison, source_of_run

    if is_comparison(work.run.root):
        if methods or rescored:
            raise typer.BadParameter("a comparison has no --method and no --rescored: all of its methods are shown")
        return source_of_comparison(work.run.root)
    _require_rescored(work, rescored)
    if methods:
        _require_evaluations(work, methods)
    elif not work.run.root.is_dir():
        raise DmoleError(
            f"there is no run directory {work.run.root}", f"run a stage first: dmole profile{where(work, split=False)}"
        )
    return source_of_run(work.run, work.settings, data=work.data, methods=methods, rescored=rescored)


def require_report(name: str | None) -> None:
    """Refuse an unknown report."""
    if name is not None and name not in REPORTS:
        raise typer.BadParameter(f"unknown report {name}: expected one of {', '.join(REPORTS)}")


def show_report(work: Workspace, name: str, methods: Sequence[str] | None, *, rescored: Sequence[str] = ()) -> None:
    """Print a report of stored evaluations.

    Raises:
        DmoleError: there is nothing to report.
    """
    from dmole_cli.reports import collect, layout, stream, tables

    if name == "cost":
        _show_costs(work)
        return
    tasks, split = work.settings.tasks, work.settings.evaluate.split
    methods = list(dict.fromkeys(methods)) if methods else None
    _require_evaluations(work, methods)
    _require_rescored(work, rescored)
    reports = collect.collect(work.run, tasks=tasks, methods=methods, split=split, rescored=rescored)
    if name == "knowledge":
        _require_likelihoods(work, reports)
    if note := stream.explanation([one for report in reports for one in report.left_out], tasks):
        console.say(note)
    if work.json:
        console.data(collect.as_json(reports))
        return
    for grid in tables.for_report(reports, name):
        layout.show(grid)


def _show_costs(work: Workspace) -> None:
    from dmole_cli.reports import costs, layout, tables

    rows = costs.cost_rows(work.run)
    if not rows:
        raise DmoleError(f"no costs in {work.run.root}", f"run a stage first: dmole profile{where(work, split=False)}")
    console.data(rows) if work.json else layout.show(tables.cost_table(rows))


def _require_evaluations(work: Workspace, methods: Sequence[str] | None) -> None:
    """Refuse a report without any evaluation, and a method that is unknown or has none."""
    from dmole_cli.methods.base import load_method
    from dmole_cli.reports.evaluations import methods_on_disk

    split = work.settings.evaluate.split
    found = methods_on_disk(work.run, split)
    missing = [label for label in methods or () if label not in found]
    for label in missing:
        load_method(base_method(label))  # an unknown name has an error of its own
    if missing or not found:
        what = f"no evaluations of {', '.join(missing)}" if missing else "no evaluations"
        message = f"{what} in {work.run.evaluations(split)}"
        if found:
            message += f" (there are those of {', '.join(found)})"
        raise DmoleError(message, f"run: {_command(work, 'evaluate', *_evaluating(missing))}")


def _require_rescored(work: Workspace, metrics: Sequence[str]) -> None:
    """Refuse a metric that is unknown, or by which nothing was scored again."""
    from dmole_cli.metrics.base import load_metric
    from dmole_cli.reports.evaluations import methods_on_disk

    for metric in metrics:
        load_metric(metric)
        if not methods_on_disk(work.run.rescored(metric), work.settings.evaluate.split):
            message = f"no evaluation was scored again by {metric} in {work.run.root}"
            raise DmoleError(message, f"run: {_command(work, 'rescore', metric)}")


def _require_likelihoods(work: Workspace, reports: Sequence[MethodReport]) -> None:
    """Refuse a report of likelihoods without any of them."""
    known = (value for report in reports for values in report.knowledge.values() for value in values.values())
    if all(value is None for value in known) and not any(report.left_out for report in reports):
        methods = _evaluating([report.method for report in reports])
        raise DmoleError(
            f"no likelihoods in {work.run.likelihoods(work.settings.evaluate.split)}",
            f"run: {_command(work, 'evaluate', '--likelihood', *methods)}",
        )


def _evaluating(labels: Sequence[str]) -> list[str]:
    """The arguments of `dmole evaluate` for the first of these folders of evaluations, whose routing the others may lack."""
    if not labels:
        return []
    name, *routing = labels[0].split("@")
    same = dict.fromkeys(base_method(label) for label in labels if label.split("@")[1:] == routing)
    options = ["--threshold-scale" if text.replace(".", "").isdecimal() else "--routing" for text in routing]
    pairs = [*(("--method", method) for method in same or [name]), *zip(options, routing, strict=True)]
    return [word for pair in pairs for word in pair]


def _command(work: Workspace, name: str, *words: str) -> str:
    """A command of the same run directory, configuration and split."""
    return shlex.join(["dmole", name, *words]) + where(work)


def where(work: Workspace, *, split: bool = True) -> str:
    """The options that were typed for run directory, configuration and split, to be appended to another command."""
    keys = (*(["evaluate.split"] if split else []), "run", "config", "shared")
    return "".join(f" {work.typed[key]}" for key in keys if key in work.typed)
