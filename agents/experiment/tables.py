"""The tables of the report, each a function from results to rows; as Markdown or for the page.

`TABLES` lists them by the name that `hrl-planner experiment table` knows. A table of an experiment
that has not been run says so in its rows; nothing is averaged over what is missing without a word.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agents.evaluate.statistics import mean_estimate
from agents.experiment.analysis import (
    anchors,
    cell_differences,
    comparisons,
    estimate_entry,
    never_worse,
)
from agents.experiment.config import TableName
from agents.experiment.front import compare_with_front
from agents.experiment.results import Results
from agents.experiment.table import DASH, Table, Value, measured, plain, points

_AS_TRAINED = "as in training"
_MOST_NAMED = 3


def missing(results: Results, labels: tuple[str, ...] | None = None) -> list[str]:
    """What has been run of the entries that are not complete, a line for those alike."""
    names = labels or tuple(entry.label for entry in results.config.entries)
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        coverage = results.coverage(name)
        if not coverage.complete:
            alike.setdefault(str(coverage), []).append(name)
    return [f"Run so far, {', '.join(names)}: {text}." for text, names in alike.items()]


def entries(results: Results) -> Table:
    """Every entry over all cells."""
    base = results.config.baseline
    rows = []
    for entry in results.config.entries:
        found = estimate_entry(results, entry.label)
        same = entry.label == base
        rows.append(
            (
                entry.label + ("" if found.coverage.complete else " \N{DAGGER}"),
                [
                    measured("value_attainment", found.attainment),
                    measured("gpu_hours", found.gpu_hours),
                    measured("cost", found.cost),
                    plain(found.normalised),
                    Value(DASH) if same else plain(found.chance),
                    Value(DASH) if same else points(found.gain_iqm),
                    Value(DASH) if same else points(found.gain_mean),
                    Value(DASH) if same else plain(found.saved, 1, 100.0, " %"),
                ],
            )
        )
    unusable = _not_normalisable(results)
    return Table(
        "entries",
        "All planners",
        "Interquartile means over all runs (training seed x cell x trace) with 95 % stratified "
        f"bootstrap intervals. P(better) and differences are to {base} on the same trace; the "
        "mean difference is shown beside the IQM because the IQM leaves out the worst quarter. "
        "Entries marked with a dagger are not complete: compare them only by their differences.",
        (
            "planner",
            "value attainment, %",
            "GPU-hours",
            "cost, $",
            "normalised score",
            f"P(better than {base})",
            "IQM difference, points",
            "mean difference, points",
            "fewer GPU-hours",
        ),
        rows,
        [*missing(results), *unusable],
    )


def _not_normalisable(results: Results) -> list[str]:
    found = anchors(results)
    if found is None:
        return []
    known = ~np.isnan(found.zero) & ~np.isnan(found.one)
    narrow = [
        cell
        for cell, usable, there in zip(results.cells, found.usable, known, strict=True)
        if there and not usable
    ]
    lines = []
    if narrow:
        lines.append(
            f"Not normalisable, {len(narrow)} of {len(results.cells)} cells: perfect foresight is "
            f"less than {100 * results.config.least_gap:g} points above the best static split in "
            f"{', '.join(narrow)}."
        )
    absent = int((~known).sum())
    if absent:
        lines.append(f"Not normalised for want of runs of the two anchors: {absent} cells.")
    return lines


def cells(results: Results) -> Table:
    """Subject against baseline, workload by tightness."""
    config = results.config
    found = cell_differences(results, config.subject, config.baseline)
    by_place = {
        (cell.group, cell.source.label, cell.tightness): one
        for cell, one in zip(results.experiment.all_cells, found, strict=True)
    }
    factors = sorted({cell.tightness for cell in results.experiment.all_cells})
    workloads = dict.fromkeys((group, workload) for group, workload, _ in by_place)
    rows = []
    for group, workload in workloads:
        values = []
        for factor in factors:
            one = by_place.get((group, workload, factor))
            value = Value("") if one is None else points(one.difference)
            if one is not None and one.coverage.done and not one.coverage.complete:
                value = Value(f"{value.text} \N{DAGGER}", value.small, value.shade)
            values.append(value)
        rows.append((f"{group}: {workload}" if group else workload, values))
    return Table(
        "cells",
        f"{config.subject} against {config.baseline}, cell by cell",
        "Mean paired difference in value-weighted attainment, in points, with 95 % intervals; "
        f"green where {config.subject} attains more. Columns are budget over clairvoyant need.",
        ("workload", *(f"tightness {factor:g}" for factor in factors)),
        rows,
        [_never_worse_line(results), *missing(results, (config.subject, config.baseline))],
    )


def _never_worse_line(results: Results) -> str:
    config, found = results.config, never_worse(results)
    limit = f"{100 * config.tolerance:g} points"
    question = f"Never worse than {config.baseline} by more than {limit} in any cell"
    if found.worst is None:
        return f"{question}: not known, nothing to compare has been run."
    worst = (
        f"lowest mean {100 * found.worst.difference.value:+.2f} points, in {found.worst.cell}; "
        f"lowest of any training seed {100 * found.worst_seed:+.2f}"
    )
    scope = f"{found.cells} of {len(results.cells)} cells"
    if found.below:
        return f"{question}: no, in {_few(found.below)} ({worst}; {scope})."
    if found.unsure:
        return (
            f"{question}: by the means, but intervals reach below in {_few(found.unsure)} "
            f"({worst}; {scope})."
        )
    return f"{question}: yes, intervals included ({worst}; {scope})."


def _few(names: tuple[str, ...]) -> str:
    """Names, or their number where the table above shows them better."""
    return ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)} cells"


def compared(results: Results) -> Table:
    """The comparisons chosen beforehand."""
    rows = []
    for one in comparisons(results):
        p_values = [DASH if np.isnan(p) else f"{p:.4f}" for p in (one.p_value, one.adjusted)]
        rows.append(
            (
                one.against,
                [
                    points(one.difference),
                    plain(one.chance),
                    *map(Value, p_values),
                    Value(f"{one.cells} of {len(results.cells)}"),
                ],
            )
        )
    return Table(
        "comparisons",
        "Comparisons chosen beforehand",
        f"{results.config.subject} against each: mean over cells of the paired difference in "
        "value-weighted attainment, two-sided bootstrap p-value, and the same after Holm's "
        "correction for making all of these comparisons.",
        ("against", "difference, points", "P(better)", "p", "p (Holm)", "cells"),
        rows,
        missing(results, (results.config.subject, *results.config.against)),
    )


def front(results: Results) -> Table:
    """Every entry outside the front at equal GPU-hours and equal attainment."""
    config = results.config
    rows = []
    for entry in config.entries:
        if entry.bound or (entry.label in config.front and entry.label != config.baseline):
            continue
        found = compare_with_front(results, entry.label)
        priced = compare_with_front(results, entry.label, "cost")
        rows.append(
            (
                entry.label,
                [
                    points(found.gain),
                    plain(found.saved, 1, 100.0, " %"),
                    points(priced.gain),
                    plain(priced.saved, 1, 100.0, " %"),
                    Value(f"{found.gain_cells} and {found.saved_cells}"),
                ],
            )
        )
    return Table(
        "front",
        "At equal GPU-hours",
        f"Distances to the front of {', '.join(config.front)} in each cell, averaged over cells: "
        "value-weighted attainment above the front at the entry's own GPU-hours (or cost), and "
        "GPU-hours (or cost) saved at the entry's own attainment. Where the entry holds fewer GPUs "
        "than every point of the front, nothing is said of the gain, and where it attains more "
        f"than every point (by over {100 * config.tolerance:g} points), nothing of the savings: "
        f"the last column counts the cells, of {len(results.cells)}, that do say something.",
        (
            "planner",
            "gain at equal GPU-hours, points",
            "GPU-hours saved",
            "gain at equal cost, points",
            "cost saved",
            "cells with gain and savings",
        ),
        rows,
        missing(results),
    )


def groups(results: Results) -> Table:
    """Subject, baseline and anchors, group by group."""
    config = results.config
    settings = [label for label in config.front if label != config.baseline]
    shown = [e.label for e in config.entries if not e.bound and e.label not in settings]
    rows = []
    for group in results.groups:
        at = results.cells_of(group)
        values = [
            measured("value_attainment", estimate_entry(results, label, at).attainment)
            for label in shown
        ]
        subject = estimate_entry(results, config.subject, at)
        coverage = subject.coverage
        rows.append(
            (
                group or _AS_TRAINED,
                [
                    points(subject.gain_mean),
                    plain(subject.chance),
                    plain(subject.normalised),
                    *values,
                    Value("all" if coverage.complete else f"{coverage.done} of {coverage.total}"),
                ],
            )
        )
    abouts = {g.group or _AS_TRAINED: g.about for g in config.cells if g.about}
    return Table(
        "groups",
        "Generalisation",
        f"Per group of cells: mean paired difference of {config.subject} to {config.baseline} in "
        "points, probability of improvement, normalised score, and the IQM of value-weighted "
        "attainment of every planner in percent. "
        + " ".join(f"{group}: {about}" for group, about in abouts.items()),
        (
            "group",
            f"difference to {config.baseline}",
            "P(better)",
            "normalised score",
            *shown,
            f"runs of {config.subject}",
        ),
        rows,
        missing(results),
    )


def seeds(results: Results) -> Table:
    """All training seeds of all entries that were trained, one by one."""
    rows, days = [], results.days
    for entry in results.config.entries:
        if entry.seeds == 1:
            continue
        base = results.scores(results.config.baseline)
        trained = base.shape[0] > 1
        scores, hours = results.scores(entry.label), results.scores(entry.label, "gpu_hours")
        for seed in range(entry.seeds):
            own = scores[seed : seed + 1]
            # Of a baseline that was trained too, the same seed's; there may be none.
            met = base[seed : seed + 1] if trained else base
            gaps = own - met if len(met) else np.full(own.shape, np.nan)
            done = int((~np.isnan(own)).sum())
            rows.append(
                (
                    f"{entry.label}, seed {seed}",
                    [
                        measured("value_attainment", mean_estimate(own, days=days)),
                        measured("gpu_hours", mean_estimate(hours[seed : seed + 1], days=days)),
                        points(mean_estimate(gaps, days=days)),
                        Value(f"{done} of {own.size}"),
                    ],
                )
            )
    return Table(
        "seeds",
        "Every training seed",
        "Means over all cells and traces of each trained policy; none is left out.",
        (
            "policy",
            "value attainment, %",
            "GPU-hours",
            f"difference to {results.config.baseline}, points",
            "runs",
        ),
        rows,
    )


def needs(results: Results) -> Table:
    """What the budgets are, and the two ends of the normalised score."""
    found = anchors(results)
    rows = []
    for index, cell in enumerate(results.experiment.all_cells):
        need = results.experiment.needs.get(cell.label)
        ends = [DASH] * 3
        if found is not None and not np.isnan(found.zero[index]):
            zero, one = found.zero[index], found.one[index]
            usable = "yes" if found.usable[index] else "no"
            ends = [f"{100 * zero:.1f}", DASH if np.isnan(one) else f"{100 * one:.1f}", usable]
        budget = DASH if need is None else f"{need * cell.tightness:.2f}"
        shown = DASH if need is None else f"{need:.2f}"
        rows.append((cell.label, [Value(text) for text in (shown, budget, *ends)]))
    return Table(
        "needs",
        "Budgets and anchors",
        "Need and budget as factors on the budget of the spec; mean value-weighted attainment of "
        "the best static split and of perfect foresight, and whether the score is normalised.",
        ("cell", "need", "budget", "best static, %", "perfect foresight, %", "normalised"),
        rows,
    )


TABLES: dict[TableName, Callable[[Results], Table]] = {
    "entries": entries,
    "cells": cells,
    "comparisons": compared,
    "front": front,
    "groups": groups,
    "seeds": seeds,
    "needs": needs,
}
