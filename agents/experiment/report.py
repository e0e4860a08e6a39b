"""The report: one page, the same as Markdown, and the figures, all from the runs on disk.

    RESULTS/report.html    one file that opens anywhere and fetches nothing
    RESULTS/README.md      the same tables, for reading in the repository
    RESULTS/figures/*.svg

Every table and figure stands with the command that makes it alone. Experiments that have not been
run, or not in full, are in the report too, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.evaluate.store import write_atomically
from agents.experiment.config import FigureName
from agents.experiment.figures import FIGURES, draw
from agents.experiment.results import Results
from agents.experiment.table import Table
from agents.experiment.tables import TABLES, missing


@dataclass(frozen=True)
class DrawnFigure:
    """A figure and what belongs to it; `svg` is None where nothing has been run."""

    name: FigureName
    about: str
    svg: str | None
    command: str


@dataclass(frozen=True)
class Section:
    """One experiment of the report.

    Attributes:
        results: its runs.
        config_file: as given on the command line.
        tables: with the command of each.
        figures: of the experiment.
        missing: what has not been run.
    """

    results: Results
    config_file: Path
    tables: list[tuple[Table, str]]
    figures: list[DrawnFigure]
    missing: list[str]

    @property
    def run_command(self) -> str:
        """What makes the missing runs."""
        return f"hrl-planner experiment run --config {self.config_file}"

    @property
    def done(self) -> str:
        """How much has been run."""
        every = [self.results.coverage(e.label) for e in self.results.config.entries]
        return f"{sum(c.done for c in every):,} of {sum(c.total for c in every):,} runs"

    @property
    def codes(self) -> str:
        """Which code made the runs."""
        found = self.results.codes.most_common()
        if len(found) <= 1:
            return "".join(f"{code}" for code, _ in found) or "none"
        return ", ".join(f"{count:,} runs by {code}" for code, count in found)


def make_section(results: Results, config_file: Path) -> Section:
    """Everything the report shows of one experiment."""
    config = results.config
    command = "hrl-planner experiment {} {} --config {}"
    return Section(
        results=results,
        config_file=config_file,
        tables=[
            (TABLES[name](results), command.format("table", name, config_file))
            for name in config.tables
        ],
        figures=[
            DrawnFigure(
                name,
                FIGURES[name][1],
                draw(name, results),
                command.format("figure", name, config_file),
            )
            for name in config.figures
        ],
        missing=missing(results),
    )


def write_report(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write page, Markdown and figures; the paths written."""
    paths = [folder / "report.html", folder / "README.md"]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    write_atomically(paths[0], _page(sections))
    write_atomically(paths[1], _markdown(sections))
    for section in sections:
        for figure in section.figures:
            if figure.svg is not None:
                path = folder / figure_file(section, figure)
                write_atomically(path, figure.svg)
                paths.append(path)
    return paths


def figure_file(section: Section, figure: DrawnFigure) -> str:
    """Path of a figure below the results folder."""
    return f"figures/{section.results.config.name}-{figure.name}.svg"


def _page(sections: Sequence[Section]) -> str:
    from importlib.metadata import version

    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("agents.experiment", "."), PackageLoader("agents.evaluate", ".")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("experiment.html.j2")
    return template.render(sections=sections, version=version("hrl-planner"))


def _markdown(sections: Sequence[Section]) -> str:
    lines = ["# Results", ""]
    configs = " ".join(f"--config {section.config_file}" for section in sections)
    lines += [f"Written by `hrl-planner experiment report {configs}`.", ""]
    for section in sections:
        config = section.results.config
        lines += [f"## {config.title}", "", config.about, ""]
        lines += [
            f"{section.done}, {section.results.violations} budget violations, "
            f"{section.results.wall_s / 3600:.1f} hours of one core, code {section.codes}. "
            f"Runs: `{section.run_command}`.",
            "",
        ]
        lines += [f"- {line}" for line in section.missing] + [""] * bool(section.missing)
        for table, command in section.tables:
            lines += [f"### {table.title}", "", table.about, "", table.markdown()]
            lines += [f"`{command}`", ""]
        for figure in section.figures:
            if figure.svg is None:
                lines += [f"*{figure.name}: nothing to draw yet.*", ""]
            else:
                lines += [f"![{figure.name}]({figure_file(section, figure)})", ""]
            lines += [figure.about, "", f"`{figure.command}`", ""]
    return "\n".join(lines)
