"""What the runs say: estimates per entry, differences per cell, normalised scores, comparisons.

The statistics themselves are in `agents.evaluate.statistics`; here they are put to the experiment's
questions. Differences are always between paired runs that both sides have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.evaluate.bootstrap import can_be_redrawn
from agents.evaluate.statistics import (
    Estimate,
    bootstrap_p,
    estimate,
    holm,
    interval,
    mean_estimate,
    probability_of_improvement,
    row_mean,
    workload_means,
)
from agents.experiment.results import Coverage, Results, in_common, paired

FloatArray = NDArray[np.float64]

_P_DRAWS = 10_000  # means are cheap, and small p-values need many draws


@dataclass(frozen=True, slots=True)
class EntryEstimates:
    """One line of the main table.

    Attributes:
        label: of the entry.
        coverage: how much of it was run.
        attainment: value-weighted attainment, IQM.
        gpu_hours: IQM.
        cost: IQM.
        normalised: IQM of the normalised score.
        chance: probability of improvement over the baseline in value-weighted attainment.
        gain_iqm: IQM of the paired difference to the baseline.
        gain_mean: mean of the paired difference.
        saved: mean of the relative paired difference in GPU-hours, positive for fewer.
    """

    label: str
    coverage: Coverage
    attainment: Estimate
    gpu_hours: Estimate
    cost: Estimate
    normalised: Estimate
    chance: Estimate
    gain_iqm: Estimate
    gain_mean: Estimate
    saved: Estimate


def estimate_entry(results: Results, label: str, cells: list[int] | None = None) -> EntryEstimates:
    """All estimates of an entry, over all cells or some."""
    at = list(range(len(results.cells))) if cells is None else cells
    baseline = results.config.baseline
    own, other = paired(results.scores(label)[:, at], results.scores(baseline)[:, at])
    hours, base_hours = paired(
        results.scores(label, "gpu_hours")[:, at], results.scores(baseline, "gpu_hours")[:, at]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        saved = np.where(base_hours > 0, 1.0 - hours / base_hours, np.nan)
    days = results.days.of(at)
    return EntryEstimates(
        label=label,
        coverage=results.coverage(label, at),
        attainment=estimate(results.scores(label)[:, at], days=days),
        gpu_hours=estimate(results.scores(label, "gpu_hours")[:, at], days=days),
        cost=estimate(results.scores(label, "cost")[:, at], days=days),
        normalised=estimate(normalised(results, label)[:, at], days=days),
        chance=probability_of_improvement(own, other, days=days),
        gain_iqm=estimate(own - other, days=days),
        gain_mean=mean_estimate(own - other, days=days),
        saved=mean_estimate(saved, days=days),
    )


@dataclass(frozen=True, slots=True)
class Anchors:
    """What 0 and 1 mean in each cell.

    Attributes:
        zero: mean value-weighted attainment of the best static split, (cells,).
        one: of perfect foresight under the setting that is best in the cell, (cells,).
        usable: where the two are far enough apart, (cells,).
    """

    zero: FloatArray
    one: FloatArray
    usable: NDArray[np.bool_]


def anchors(results: Results) -> Anchors | None:
    """Anchors of the normalised score; None where the experiment names none."""
    zero, ones = results.config.zero, results.config.one
    if zero is None or not ones:
        return None
    begun = [label for label in ones if label in results.started] or ones[:1]
    common = in_common(*(results.scores(label) for label in (zero, *begun)))
    means = np.stack([workload_means(scores, draws=1)[0] for scores in common])
    low_mean, high_mean = means[0], means[1:].max(axis=0)
    with np.errstate(invalid="ignore"):
        usable = high_mean - low_mean >= results.config.least_gap
    return Anchors(low_mean, high_mean, np.asarray(usable))


def normalised(results: Results, label: str) -> FloatArray:
    """(x - best static) / (perfect foresight - best static), run by run.

    The numerator is taken pair by pair, the denominator is the cell's mean gap, held fixed as
    normalising scores are. NaN in cells whose gap is too small, and where a run is missing.
    """
    found = anchors(results)
    scores = results.scores(label)
    if found is None or results.config.zero is None:
        return np.full(scores.shape, np.nan)
    own, static = paired(scores, results.scores(results.config.zero))
    gap = np.where(found.usable, found.one - found.zero, np.nan)
    return np.asarray((own - static) / gap[None, :, None])


@dataclass(frozen=True, slots=True)
class CellDifference:
    """Mean paired difference of an entry to another in one cell; NaN where nothing was run."""

    cell: str
    difference: Estimate
    coverage: Coverage


def cell_differences(results: Results, label: str, baseline: str) -> list[CellDifference]:
    """The difference in value-weighted attainment in every cell."""
    own, other = paired(results.scores(label), results.scores(baseline))
    gaps = own - other
    return [
        CellDifference(
            name,
            mean_estimate(gaps[:, i : i + 1], days=results.days.of([i])),
            results.coverage(label, [i]),
        )
        for i, name in enumerate(results.cells)
    ]


@dataclass(frozen=True, slots=True)
class NeverWorse:
    """Whether an entry loses more than the tolerance to the baseline in any cell.

    Attributes:
        worst: the cell with the lowest mean difference; None without runs.
        worst_seed: the lowest mean difference of any single training seed in any cell.
        below: cells whose mean difference is below the tolerance.
        unsure: cells whose mean is within, but whose interval reaches below the tolerance.
        cells: cells with runs.
    """

    worst: CellDifference | None
    worst_seed: float
    below: tuple[str, ...]
    unsure: tuple[str, ...]
    cells: int


def never_worse(results: Results) -> NeverWorse:
    """The check of the subject against the baseline."""
    config = results.config
    found = [
        cell
        for cell in cell_differences(results, config.subject, config.baseline)
        if cell.difference.runs
    ]
    if not found:
        return NeverWorse(None, float("nan"), (), (), 0)
    own, other = paired(results.scores(config.subject), results.scores(config.baseline))
    present = ~np.isnan(own - other)
    counts = present.sum(axis=2)
    sums = np.where(present, own - other, 0.0).sum(axis=2)
    per_seed = sums[counts > 0] / counts[counts > 0]
    limit = -config.tolerance
    return NeverWorse(
        worst=min(found, key=lambda cell: cell.difference.value),
        worst_seed=float(per_seed.min()),
        below=tuple(c.cell for c in found if c.difference.value < limit),
        unsure=tuple(c.cell for c in found if c.difference.low < limit <= c.difference.value),
        cells=len(found),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of the comparisons chosen beforehand.

    Attributes:
        against: the other entry.
        difference: mean over cells of the mean paired difference in value-weighted attainment.
        chance: probability of improvement.
        p_value: of no difference, two-sided.
        adjusted: after Holm's correction over all comparisons.
        cells: cells that both have run at least in part.
    """

    against: str
    difference: Estimate
    chance: Estimate
    p_value: float
    adjusted: float
    cells: int


def comparisons(results: Results) -> list[Comparison]:
    """The subject against each entry named beforehand; each cell counts the same."""
    rows = []
    for label in results.config.against:
        own, other = paired(results.scores(results.config.subject), results.scores(label))
        (gaps,) = in_common(own - other)
        means, draws = workload_means(gaps, days=results.days, draws=_P_DRAWS)
        run = ~np.isnan(means)
        of_all = np.array([])
        if run.any() and can_be_redrawn(gaps, results.days):
            of_all = row_mean(draws[:, run])
        value = float(means[run].mean()) if run.any() else float("nan")
        rows.append(
            (
                label,
                Estimate(value, *interval(of_all), int((~np.isnan(gaps)).sum())),
                probability_of_improvement(own, other, days=results.days),
                bootstrap_p(of_all),
                int(run.sum()),
            )
        )
    adjusted = holm([row[3] for row in rows])
    return [
        Comparison(label, difference, chance, p_value, corrected, cells)
        for (label, difference, chance, p_value, cells), corrected in zip(
            rows, adjusted, strict=True
        )
    ]
