"""`hrl-planner experiment`: run the experiment in parts, and report what has been run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrl_planner.cli._runs import INTERRUPTED, cores, runs_bar

if TYPE_CHECKING:
    from agents.evaluate import Failure
    from agents.experiment import Experiment, Results
    from agents.experiment.store import RunStore

app = typer.Typer(
    no_args_is_help=True,
    help="Compare learned planners with all others: many cells, training seeds and traces.",
)

FAILED_RUNS = 1

ConfigOption = Annotated[
    Path,
    typer.Option("--config", help="What to run, as in experiments/experiment.", dir_okay=False),
]
TracesOption = Annotated[
    Path | None,
    typer.Option(
        "--traces",
        help="Folder with recorded traces; without it their cells are left out with a note.",
        exists=True,
        file_okay=False,
    ),
]


class OtherCode(StrEnum):
    """What to do about runs made by other code."""

    refuse = "refuse"
    keep = "keep"
    discard = "discard"


@app.command()
def run(
    config: ConfigOption,
    traces: TracesOption = None,
    entry: Annotated[
        list[str] | None, typer.Option(help="Run only this entry; repeat for more.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Begin no run after so many minutes; call again to go on.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-j",
            min=1,
            help=r"Parallel processes. \[default: one per core]",
            show_default=False,
        ),
    ] = None,
    other_code: Annotated[
        OtherCode,
        typer.Option(
            help="Runs that other code made: refuse to add to them, keep them, or discard those "
            "that this call can run anew."
        ),
    ] = OtherCode.refuse,
) -> None:
    """Run what is missing, as far as time allows.

    Finished runs are lines of files in RESULTS/runs. Call again after Ctrl-C,
    a kill, or with more entries, and only what is missing runs.
    Traces come one after the other over all cells and entries, so that
    parts can be compared. Exit status: 1 if some runs failed, 2 for bad input.
    """
    import time

    from rich.console import Console

    from agents.evaluate.runner import run_cells
    from agents.experiment import ExperimentConfig, prepare
    from agents.experiment.store import RunStore

    console = Console(stderr=True)
    end_s = None if minutes is None else time.monotonic() + 60.0 * minutes
    settings = ExperimentConfig.load(config)
    _check_entries(entry or [], [item.label for item in settings.entries])
    experiment = prepare(
        settings,
        traces=traces,
        compute_needs=True,
        only=entry or [],
        on_source=lambda name: console.print(f"need of {name} ..."),
    )
    for note in experiment.notes:
        console.print(f"[yellow]note[/] {note}", highlight=False)
    store = RunStore(settings.results)
    _settle_code(experiment, store, other_code)
    experiment.keep_keys()
    with runs_bar(console) as bar:
        try:
            failures = run_cells(
                experiment,
                store,
                workers=workers or cores(),
                on_progress=bar,
                stop=lambda: end_s is not None and time.monotonic() > end_s,
            )
        except KeyboardInterrupt:
            bar.bar.stop()
            console.print(f"stopped; {bar.kept} of {bar.total} runs are kept. Call again to go on.")
            raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"{bar.kept} of {bar.total} runs are finished, in {settings.results}")
    _print_failures(failures)


@app.command()
def report(
    config: Annotated[
        list[Path], typer.Option(help="Experiment of the report; repeat for more.", dir_okay=False)
    ],
    traces: TracesOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=r"Where it goes. \[default: the results folder of the first]",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write report.html, README.md and figures from what has been run."""
    from agents.experiment.report import make_section, write_report

    sections = [make_section(_results(path, traces), path) for path in config]
    folder = out or sections[0].results.config.results
    paths = write_report(sections, folder)
    for section in sections:
        # Runs may have been brought from elsewhere; with them, others find what the report shows.
        section.results.experiment.keep_keys()
        typer.echo(f"{section.results.config.name}: {section.done}")
    typer.echo(f"report: {paths[0]}")


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="entries, cells, comparisons, front, groups, ...")],
    config: ConfigOption,
    traces: TracesOption = None,
    subject: Annotated[
        str | None, typer.Option(help="Entry it is about, instead of the configuration's subject.")
    ] = None,
) -> None:
    """Print one table as Markdown."""
    from agents.experiment.tables import TABLES

    _check_name("table", name, list(TABLES))
    functions = {str(key): function for key, function in TABLES.items()}
    results = _results(config, traces)
    if subject is not None:
        results.config = results.config.about_entry(subject)
    made = functions[name](results)
    typer.echo(f"{made.title}\n\n{made.about}\n\n{made.markdown()}")


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="profiles, tightness or fronts")],
    config: ConfigOption,
    out: Annotated[
        Path, typer.Option(help="File to write, as .svg, .png or .pdf.", dir_okay=False)
    ],
    traces: TracesOption = None,
) -> None:
    """Draw one figure."""
    from agents.evaluate.store import write_atomically
    from agents.experiment import ExperimentError
    from agents.experiment.figures import FIGURES, render

    _check_name("figure", name, list(FIGURES))
    key = next(known for known in FIGURES if known == name)
    results = _results(config, traces)
    try:
        image = render(key, results, out.suffix.removeprefix("."))
    except ExperimentError as error:
        raise ExperimentError(f"--out {out}: {error}") from error
    if image is None:
        raise ExperimentError(f"figure {name}: nothing to draw, see: experiment status")
    write_atomically(out, image)
    typer.echo(f"figure: {out}")


@app.command()
def status(config: ConfigOption, traces: TracesOption = None) -> None:
    """Say how much has been run of every entry."""
    results = _results(config, traces)
    for item in results.config.entries:
        typer.echo(f"{item.label:24} {results.coverage(item.label)}")
    for note in results.experiment.notes:
        typer.echo(f"note: {note}")
    for code, count in results.codes.most_common():
        mine = " (the present code)" if code == results.experiment.code else ""
        typer.echo(f"{count} runs by code {code}{mine}")


def _results(config: Path, traces: Path | None) -> Results:
    from agents.experiment import ExperimentConfig, Results, prepare
    from agents.experiment.store import RunStore

    settings = ExperimentConfig.load(config)
    return Results(prepare(settings, traces=traces), RunStore(settings.results))


def _settle_code(experiment: Experiment, store: RunStore, other_code: OtherCode) -> None:
    """Refuse to add to runs of this experiment that other code made, keep or discard them.

    Where nothing is missing nothing is refused: no run is added. Only what is about to be run
    again is discarded: other experiments share the folder, and what cannot be run here could not be
    brought back.
    """
    from agents.experiment import ExperimentError, Results

    if other_code is OtherCode.discard:
        removed = store.discard(experiment.code, experiment.cells())
        typer.echo(f"{removed} runs made by other code are discarded")
    codes = Results(experiment, store).codes
    others = sum(count for code, count in codes.items() if code != experiment.code)
    missing = sum(not store.has(run) for run in experiment.cells())
    if others and missing and other_code is OtherCode.refuse:
        raise ExperimentError(
            f"{store.folder}: {missing} runs are missing, and {others} were made by other code or "
            "shipped data of simulator or planners; pass --other-code keep if the change does not "
            "touch them (the report says how many there are), or --other-code discard"
        )
    if others and other_code is OtherCode.discard:
        typer.echo(f"{others} that this call does not run anew are kept")


def _check_entries(chosen: list[str], labels: list[str]) -> None:
    for label in chosen:
        _check_name("entry", label, labels)


def _check_name(what: str, name: str, known: list[str]) -> None:
    from agents.experiment import ExperimentError

    if name not in known:
        raise ExperimentError(f"unknown {what} {name!r}; one of {', '.join(known)}")


def _print_failures(failures: list[Failure]) -> None:
    for failure in failures:
        message = failure.message.splitlines()[0] if failure.message else ""
        typer.echo(f"failed: {failure.cell}: {message}\n        details in {failure.log}")
    if failures:
        raise typer.Exit(FAILED_RUNS)
