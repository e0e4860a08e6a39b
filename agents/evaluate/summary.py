"""From cells to tables: one row per run and class, one row of estimates per policy and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agents.evaluate.bootstrap import FloatArray
from agents.evaluate.metrics import ALL_CLASSES, METRICS, Metric
from agents.evaluate.statistics import Estimate, estimate
from agents.evaluate.store import CellData

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group
    from rich.table import Table

# What the terminal shows; the report and summary.csv have all of METRICS.
HEADLINE = (
    "attainment",
    "value_attainment",
    "goodput_rps",
    "ttft_p95_ms",
    "itl_p95_ms",
    "gpu_hours",
    "cost",
    "cost_per_1k",
    "scaling_actions",
    "reversals",
    "budget_violations",
)

_LONGEST_NAME = 22  # of a trace file in a table


@dataclass(frozen=True)
class Results:
    """All finished runs of an evaluation.

    Attributes:
        frame: one row per run and class: workload, policy, seed, class and every metric.
        cells: the cells the rows came from.
        policies: in the order asked for.
        workloads: labels, in the order asked for.
        classes: names, in spec order.
    """

    frame: pd.DataFrame
    cells: Sequence[CellData]
    policies: tuple[str, ...]
    workloads: tuple[str, ...]
    classes: tuple[str, ...]

    def scores(
        self, policy: str, metric: str, *, of_class: str = ALL_CLASSES, workload: str | None = None
    ) -> FloatArray:
        """Metric of every run as [workloads, seeds]; NaN where a run is missing."""
        frame = self.frame
        rows = frame[(frame["policy"] == policy) & (frame["class"] == of_class)]
        table = rows.pivot(index="workload", columns="seed", values=metric)
        names = list(self.workloads) if workload is None else [workload]
        seeds = sorted(frame["seed"].unique())
        return table.reindex(index=names, columns=seeds).to_numpy(dtype=np.float64)

    def estimate(
        self, policy: str, metric: str, *, of_class: str = ALL_CLASSES, workload: str | None = None
    ) -> Estimate:
        """IQM of a metric over all runs of a policy, with its interval."""
        return estimate(self.scores(policy, metric, of_class=of_class, workload=workload))

    def all_estimates(
        self, metric: str, *, of_class: str = ALL_CLASSES, workload: str | None = None
    ) -> list[Estimate]:
        """The estimate of every policy."""
        return [
            self.estimate(policy, metric, of_class=of_class, workload=workload)
            for policy in self.policies
        ]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a comparison: a metric, and its estimate for every policy."""

    label: str
    metric: Metric
    found: Sequence[Estimate]


def collect(
    cells: Sequence[CellData],
    policies: tuple[str, ...],
    workloads: tuple[str, ...],
    classes: tuple[str, ...],
) -> Results:
    """Tidy table of all runs."""
    import pandas as pd

    rows = [
        {key: cell[key] for key in ("workload", "policy", "seed")}
        | row
        | {"wall_s": cell["wall_s"]}
        for cell in cells
        for row in cell["rows"]
    ]
    return Results(pd.DataFrame(rows), cells, policies, workloads, classes)


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Write results.parquet, results.csv and summary.csv; the paths written."""
    paths = [folder / name for name in ("results.parquet", "results.csv", "summary.csv")]
    results.frame.to_parquet(paths[0], index=False)
    results.frame.to_csv(paths[1], index=False)
    summary_frame(results).to_csv(paths[2], index=False)
    return paths


def columns_of(results: Results, of_class: str) -> list[str]:
    """Metric columns that exist for a class, GPU-hours per type included."""
    per_type = [name for name in results.frame.columns if name.startswith("gpu_hours_")]
    names = [*METRICS, *per_type]
    if of_class != ALL_CLASSES:
        names = [name for name in names if name in METRICS and METRICS[name].per_class]
    return names


def metric_of(name: str) -> Metric:
    """How a column is shown; GPU-hours of one type are shown as GPU-hours."""
    if name in METRICS:
        return METRICS[name]
    gpu_type = name.removeprefix("gpu_hours_")
    return Metric(name, f"GPU-hours {gpu_type}", "h", -1, 1, False, f"GPU-hours on {gpu_type}.")


def summary_frame(results: Results) -> pd.DataFrame:
    """One row per policy and class: IQM, low and high of every metric."""
    import pandas as pd

    rows = []
    for policy in results.policies:
        for of_class in (ALL_CLASSES, *results.classes):
            row: dict[str, float | str] = {"policy": policy, "class": of_class}
            for name in columns_of(results, of_class):
                found = results.estimate(policy, name, of_class=of_class)
                row["runs"] = found.runs
                row[name] = found.value
                row[f"{name}_low"] = found.low
                row[f"{name}_high"] = found.high
            rows.append(row)
    return pd.DataFrame(rows)


def interval_text(metric: Metric, found: Estimate) -> str:
    """The interval as text, "" where one run gives none or all runs agree."""
    if np.isnan(found.low) or found.low == found.high:
        return ""
    return f"{metric.number(found.low)} to {metric.number(found.high)}"


def comparison_lines(results: Results, names: Sequence[str]) -> list[Line]:
    """Lines of a comparison: metrics of all runs, then attainment split by class and workload."""
    lines = [Line(metric_of(n).label, metric_of(n), results.all_estimates(n)) for n in names]
    split = METRICS["attainment"]
    parts = [
        Line(f"  {name}", split, results.all_estimates("attainment", of_class=name))
        for name in results.classes
    ]
    if len(results.workloads) > 1:
        parts += [
            Line(
                f"  on {_shortened(name)}",
                split,
                results.all_estimates("attainment", workload=name),
            )
            for name in results.workloads
        ]
    at = list(names).index("attainment") + 1
    return [*lines[:at], *parts, *lines[at:]]


def terminal_table(results: Results, width: int) -> Group:
    """The comparison for the terminal: metrics down, policies across, best in bold.

    Args:
        results: the runs.
        width: of the terminal; intervals are left out where they do not fit, and policies that do
            not fit beside the others follow below.
    """
    from rich.console import Group

    lines = comparison_lines(results, HEADLINE)
    intervals = [[_short_interval(line.metric, one) for one in line.found] for line in lines]
    longest = max((len(text) for row in intervals for text in row), default=0)
    labels = [line.label + (f", {line.metric.unit}" if line.metric.unit else "") for line in lines]
    left = width - max(map(len, labels)) - 3
    names = [min(len(policy), _LONGEST_NAME) for policy in results.policies]
    fits = sum(max(name, longest) + 3 for name in names) <= left
    numbers = max(len(line.metric.number(one.value)) for line in lines for one in line.found)
    blocks = _side_by_side([max(name, numbers) + 3 for name in names], left)
    runs = max(one.runs for one in lines[0].found)
    where = "below" if fits else "in summary.csv and in the report"
    title = f"IQM over {runs} run{'s' if runs > 1 else ''} per policy"
    title += f"; 95 % intervals {where}" if runs > 1 else ""
    shown = intervals if fits else None
    return Group(title, *(_block(results, lines, labels, shown, block) for block in blocks))


def _side_by_side(widths: Sequence[int], room: int) -> list[range]:
    """Return which columns stand beside each other, one at least."""
    blocks, first, used = [], 0, 0
    for index, width in enumerate(widths):
        if index > first and used + width > room:
            blocks.append(range(first, index))
            first, used = index, 0
        used += width
    return [*blocks, range(first, len(widths))]


def _block(
    results: Results,
    lines: Sequence[Line],
    labels: Sequence[str],
    intervals: Sequence[Sequence[str]] | None,
    policies: range,
) -> Table:
    """Return the table of some policies."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for index in policies:
        table.add_column(
            results.policies[index], justify="right", max_width=_LONGEST_NAME, overflow="fold"
        )
    for row, (label, line) in enumerate(zip(labels, lines, strict=True)):
        best = best_index(line.metric, line.found)
        cells = []
        for index in policies:
            text = line.metric.number(line.found[index].value)
            text = f"[bold green]{text}[/]" if index == best else text
            interval = "" if intervals is None else intervals[row][index]
            cells.append(f"{text}\n[dim]{interval}[/]" if interval else text)
        table.add_row(label, *cells)
    return table


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _short_interval(metric: Metric, found: Estimate) -> str:
    return interval_text(metric, found).replace(" to ", "..")


def best_index(metric: Metric, found: Sequence[Estimate]) -> int | None:
    """Which policy has the best estimate; None if the metric has no direction or all tie."""
    values = np.array([one.value for one in found])
    if metric.better == 0 or np.isnan(values).all() or np.nanmin(values) == np.nanmax(values):
        return None
    return int(np.nanargmax(values) if metric.better > 0 else np.nanargmin(values))
