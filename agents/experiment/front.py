"""The comparison at equal GPU-hours: how far an entry lies from the front of others.

A planner that attains more with more GPUs has shown nothing that a less thrifty setting of the
baseline would not. So the baseline is run under several settings, and in each cell their means
form a front: for every amount of GPU-hours the most value any of them attains, straight lines
between those that no other beats. Above its last point the front is flat, since GPUs can be held
idle; below its first nothing is known.

Every point of the front is the best of several noisy means, which favours the front a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.evaluate.bootstrap import can_be_redrawn
from agents.evaluate.statistics import Estimate, interval, row_mean, workload_means
from agents.experiment.results import Results, in_common

FloatArray = NDArray[np.float64]

_DRAWS = 1000
_NAN = float("nan")


def pareto(hours: FloatArray, attained: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Points that no other beats in both, by rising hours; attainment rises strictly along them.

    >>> pareto(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.5, 0.4]))
    (array([1., 3.]), array([0.5, 0.9]))
    """
    known = ~(np.isnan(hours) | np.isnan(attained))
    hours, attained = hours[known], attained[known]
    order = np.lexsort((-attained, hours))
    hours, attained = hours[order], attained[order]
    best = np.maximum.accumulate(attained)
    kept = np.append(True, attained[1:] > best[:-1]) if len(best) else np.zeros(0, np.bool_)
    return hours[kept], attained[kept]


def attained_at(hours: FloatArray, attained: FloatArray, at_hours: float) -> float:
    """What a front attains with so many GPU-hours; NaN below its first point."""
    if not len(hours) or np.isnan(at_hours) or at_hours < hours[0]:
        return _NAN
    return float(np.interp(at_hours, hours, attained))


def hours_for(hours: FloatArray, attained: FloatArray, wanted: float, slack: float = 0.0) -> float:
    """GPU-hours with which a front attains so much; NaN for more than it ever attains.

    What lies above the front by no more than `slack` counts as its last point: where all attain
    nearly everything, a hair more must not make the savings incomparable.
    """
    if not len(hours) or np.isnan(wanted) or wanted > attained[-1] + slack:
        return _NAN
    return float(np.interp(wanted, attained, hours))


@dataclass(frozen=True, slots=True)
class FrontCell:
    """An entry against the front in one cell.

    Attributes:
        cell: label.
        hours: GPU-hours of the points of the front.
        attained: their value-weighted attainment.
        own_hours: GPU-hours of the entry.
        own_attained: its attainment.
        gain: attainment above the front at the entry's GPU-hours.
        saved: share of the front's GPU-hours that the entry needs less for its attainment.
    """

    cell: str
    hours: FloatArray
    attained: FloatArray
    own_hours: float
    own_attained: float
    gain: Estimate
    saved: Estimate


@dataclass(frozen=True, slots=True)
class FrontComparison:
    """All cells, and the means over those that can be compared.

    Attributes:
        cells: one by one.
        gain: mean attainment at equal GPU-hours above the front.
        saved: mean share of GPU-hours saved at equal attainment.
        gain_cells: cells in the mean of `gain`; in others the entry needs fewer GPU-hours than
            any point of the front.
        saved_cells: cells in the mean of `saved`; in others the entry attains more than any point.
    """

    cells: tuple[FrontCell, ...]
    gain: Estimate
    saved: Estimate
    gain_cells: int
    saved_cells: int


def compare_with_front(results: Results, label: str, metric: str = "gpu_hours") -> FrontComparison:
    """Distances of an entry to the experiment's front in every cell.

    Args:
        results: the runs.
        label: of the entry; where it is part of the front itself it is left out of it.
        metric: what is spent, "gpu_hours" or "cost".
    """
    front = [name for name in results.config.front if name != label and name in results.started]
    names = [label, *front]
    scores = in_common(*(results.scores(name) for name in names))
    spent = in_common(*(results.scores(name, metric) for name in names))
    attained, hours = (
        [workload_means(s, days=results.days, draws=_DRAWS, stream=i) for i, s in enumerate(every)]
        for every in (scores, spent)
    )
    # Row 0 is the estimate itself, the others are bootstrap draws: [1 + draws, names, cells].
    met = np.stack([np.vstack([mean, draws]) for mean, draws in attained], axis=1)
    used = np.stack([np.vstack([mean, draws]) for mean, draws in hours], axis=1)
    if not any(can_be_redrawn(one, results.days) for one in scores):
        met, used = met[:1], used[:1]
    gains, saved = _distances(used, met, results.config.tolerance)
    runs = (~np.isnan(scores[0])).sum(axis=(0, 2))
    cells = [
        FrontCell(
            name,
            *pareto(used[0, 1:, c], met[0, 1:, c]),
            own_hours=float(used[0, 0, c]),
            own_attained=float(met[0, 0, c]),
            gain=_summary(gains[:, c], int(runs[c])),
            saved=_summary(saved[:, c], int(runs[c])),
        )
        for c, name in enumerate(results.cells)
    ]
    comparable = ~np.isnan(gains[0])
    both = ~np.isnan(saved[0])
    return FrontComparison(
        tuple(cells),
        _summary(row_mean(gains[:, comparable]), int(runs[comparable].sum())),
        _summary(row_mean(saved[:, both]), int(runs[both].sum())),
        int(comparable.sum()),
        int(both.sum()),
    )


def _distances(used: FloatArray, met: FloatArray, slack: float) -> tuple[FloatArray, FloatArray]:
    """Gain and saved share per draw and cell; entry 0 against the front of the others."""
    draws, _, n_cells = used.shape
    gains = np.full((draws, n_cells), np.nan)
    saved = np.full((draws, n_cells), np.nan)
    for draw in range(draws):
        for c in range(n_cells):
            hours, attained = pareto(used[draw, 1:, c], met[draw, 1:, c])
            own_hours, own = float(used[draw, 0, c]), float(met[draw, 0, c])
            gains[draw, c] = own - attained_at(hours, attained, own_hours)
            saved[draw, c] = 1.0 - own_hours / hours_for(hours, attained, own, slack)
    return gains, saved


def _summary(values: FloatArray, runs: int) -> Estimate:
    """Estimate from a value, first, and its draws."""
    if not runs or np.isnan(values[0]):
        return Estimate(_NAN, _NAN, _NAN, 0)
    low, high = interval(values[1:])
    return Estimate(float(values[0]), low, high, runs)
