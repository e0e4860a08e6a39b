"""The figures of the report as SVG: small, still, and the same file for the same numbers.

They are drawn once by matplotlib and stand both in the page and beside the Markdown, so that a
results folder can be read where nothing runs. Colours and words are those of evaluation reports.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.evaluate.statistics import performance_profile
from agents.evaluate.theme import GRID, INK, MUTED, TARGET, policy_colours
from agents.experiment.analysis import cell_differences, normalised
from agents.experiment.config import ExperimentError, FigureName
from agents.experiment.front import compare_with_front
from agents.experiment.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_THRESHOLDS = np.linspace(-1.0, 1.5, 126)
_COLUMNS = 4  # of small multiples
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hrl-planner",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#c4ccd4",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.0,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def profiles(results: Results) -> Figure | None:
    """Performance profiles: share of runs above every normalised score."""
    drawn = [(label, normalised(results, label)) for label in _drawn(results)]
    drawn = [(label, scores) for label, scores in drawn if not np.isnan(scores).all()]
    if not drawn:
        return None
    figure, panels = _panels(1, 1, 7.6, 4.2)
    colours = _colours(results)
    for label, scores in drawn:
        value, low, high = performance_profile(scores, _THRESHOLDS, days=results.days, draws=500)
        wide = 2.4 if label == results.config.subject else 1.3
        panels[0].plot(_THRESHOLDS, 100 * value, color=colours[label], lw=wide, label=label)
        panels[0].fill_between(
            _THRESHOLDS, 100 * low, 100 * high, color=colours[label], alpha=0.12, lw=0
        )
    for anchor in (0.0, 1.0):
        panels[0].axvline(anchor, color=MUTED, lw=0.8, ls=":")
    panels[0].set(xlabel="normalised score", ylabel="runs above it, %", ylim=(0, 101))
    panels[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def tightness(results: Results) -> Figure | None:
    """Difference to the baseline over the tightness of the budget, one panel per workload."""
    config, cells = results.config, results.experiment.all_cells
    found = cell_differences(results, config.subject, config.baseline)
    workloads = list(dict.fromkeys((cell.group, cell.source.label) for cell in cells))
    if not any(one.difference.runs for one in found):
        return None
    figure, panels = _panels(
        len(workloads), min(_COLUMNS, len(workloads)), 2.7, 2.0, same_scale=True
    )
    colour = _colours(results)[config.subject]
    for panel, (group, workload) in zip(panels, workloads, strict=True):
        line = [
            (cell.tightness, one.difference)
            for cell, one in zip(cells, found, strict=True)
            if (cell.group, cell.source.label) == (group, workload) and one.difference.runs
        ]
        line.sort(key=lambda point: point[0])
        x = [factor for factor, _ in line]
        y = np.array([100 * one.value for _, one in line])
        ends = np.array([[100 * one.low, 100 * one.high] for _, one in line]).reshape(-1, 2)
        errors = np.nan_to_num(np.abs(ends.T - y))
        panel.errorbar(x, y, errors, color=colour, marker="o", ms=4, lw=1.4, capsize=2)
        panel.axhline(0.0, color=MUTED, lw=0.8)
        panel.axhline(-100 * config.tolerance, color=TARGET, lw=0.8, ls=":")
        panel.set_title(f"{group}: {workload}" if group else workload)
        panel.set_xticks(sorted({cell.tightness for cell in cells}))
    figure.supxlabel("budget over clairvoyant need", color=MUTED, fontsize=9)
    figure.supylabel(f"{config.subject} - {config.baseline}, points", color=MUTED, fontsize=9)
    return figure


def fronts(results: Results) -> Figure | None:
    """Value attainment against GPU-hours, the front and every other entry, one panel per cell."""
    config = results.config
    shown = [label for label in _drawn(results) if label not in config.front]
    found = {label: compare_with_front(results, label) for label in shown}
    at = [
        i
        for i in range(len(results.cells))
        if any(not np.isnan(one.cells[i].own_hours) for one in found.values())
    ]
    if not at or not any(label in results.started for label in config.front):
        return None
    figure, panels = _panels(len(at), min(_COLUMNS, len(at)), 2.7, 2.3)
    colours = _colours(results)
    for panel, i in zip(panels, at, strict=True):
        for label, one in found.items():
            cell = one.cells[i]
            panel.plot(
                cell.own_hours, 100 * cell.own_attained, ls="", marker="o", ms=5,
                color=colours[label], label=label, zorder=3,
            )  # fmt: skip
        # The front of the traces that the subject has run too, where it has.
        line = found[config.subject if config.subject in found else shown[0]].cells[i]
        panel.plot(
            line.hours, 100 * line.attained, color=INK, lw=1.2, marker=".", label="front", zorder=2
        )
        panel.set_title(results.cells[i])
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=6)
    figure.supxlabel("GPU-hours per run", color=MUTED, fontsize=9)
    figure.supylabel("value-weighted attainment, %", color=MUTED, fontsize=9)
    return figure


FIGURES: dict[FigureName, tuple[Callable[[Results], Figure | None], str]] = {
    "profiles": (
        profiles,
        "Share of runs that score above each normalised score, with 95 % bands: 0 is the best "
        "static split, 1 is perfect foresight. Higher is better everywhere.",
    ),
    "tightness": (
        tightness,
        "Mean paired difference to the baseline over the tightness of the budget; the dotted line "
        "is the loss that counts as none.",
    ),
    "fronts": (
        fronts,
        "Each cell's front of the baseline's settings, and where the others lie: above the line is "
        "more value for the same GPU-hours, left of it the same value for fewer.",
    ),
}


def draw(name: FigureName, results: Results) -> str | None:
    """A figure as SVG text for a page; None where there is nothing to draw yet."""
    image = render(name, results, "svg")
    if image is None:
        return None
    svg = image.decode()
    # Without the declarations that may not stand inside a page.
    return svg[svg.index("<svg") :]


def render(name: FigureName, results: Results, form: str) -> bytes | None:
    """A figure as a file's content; None where there is nothing to draw yet.

    Args:
        name: of the figure.
        results: to draw.
        form: name of a format that matplotlib writes: svg, png, pdf and others.

    Raises:
        ExperimentError: there is no such format.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as NewFigure

    known = NewFigure().canvas.get_supported_filetypes()
    if form not in known:
        raise ExperimentError(f"no such kind of picture: {form!r}; one of {', '.join(known)}")
    with mpl.rc_context(_STYLE):
        figure = FIGURES[name][0](results)
        if figure is None:
            return None
        image = io.BytesIO()
        # The same numbers shall give the same file; only SVG tells the time unless asked not to.
        still = {"Date": None, "Creator": None} if form == "svg" else None
        figure.savefig(image, format=form, dpi=130, metadata=still)
    return image.getvalue()


def _panels(
    count: int, columns: int, width: float, height: float, *, same_scale: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples; with `same_scale` all of them share their vertical axis."""
    from matplotlib.figure import Figure as NewFigure

    rows = -(-count // columns)
    figure = NewFigure(figsize=(width * columns, height * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False, sharey=same_scale)
    panels: list[Axes] = list(axes.ravel())
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _colours(results: Results) -> dict[str, str]:
    """Colours of all planners; subject and baseline have the first, whatever their places."""
    config = results.config
    labels = [entry.label for entry in config.entries if not entry.bound]
    labels.sort(key=lambda label: label in config.front)
    labels.sort(key=lambda label: label not in (config.subject, config.baseline))
    return policy_colours(labels)


def _drawn(results: Results) -> list[str]:
    """Entries of a figure: no bounds, and of the front only the baseline."""
    config = results.config
    return [
        e.label
        for e in config.entries
        if e.label in results.started
        and not e.bound
        and (e.label not in config.front or e.label == config.baseline)
    ]
