"""Redrawing runs: how often each counts in a bootstrap draw.

Two things are drawn with replacement, independently of each other, and a run counts as often as
its own two were drawn, multiplied (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics
2007):

* training seeds, because every trained policy meets every day;
* days, within each group of workloads. Workloads of a group play the same days, the same requests
  under another budget for instance, so a day is drawn for all of them at once: drawn workload by
  workload they would count as independent, and intervals would be too narrow.

Groups are strata: nothing is drawn across them (Agarwal et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_CHUNK_VALUES = 4_000_000  # counts held at a time


@dataclass(frozen=True)
class Days:
    """Which runs share a day.

    Attributes:
        group: of every workload; those of one group play the same days, (workloads,).
        day: of every run; within a group, equal numbers are the same day, (workloads, seeds).
    """

    group: IntArray
    day: IntArray

    @classmethod
    def apart(cls, n_workloads: int, n_seeds: int) -> Days:
        """Return days that nothing shares."""
        return cls(np.arange(n_workloads), np.tile(np.arange(n_seeds), (n_workloads, 1)))

    def of(self, workloads: Sequence[int]) -> Days:
        """Return the days of some workloads."""
        at = list(workloads)
        return Days(self.group[at], self.day[at])

    def strata(self, present: BoolArray) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield each group's workloads and the days that any of them has run.

        Args:
            present: runs that there are, (workloads, seeds).
        """
        for name in np.unique(self.group):
            rows = np.flatnonzero(self.group == name)
            days = np.unique(self.day[rows][present[rows]])
            if days.size:
                yield rows, days


def as_cube(scores: FloatArray) -> FloatArray:
    """Return scores as [training seeds, workloads, seeds], without training seeds never run."""
    cube = np.atleast_2d(scores)
    cube = cube[None] if cube.ndim == 2 else cube
    begun = ~np.isnan(cube).all(axis=(1, 2))
    return cube[begun] if begun.any() else cube[:1]


def can_be_redrawn(scores: FloatArray, days: Days | None = None) -> bool:
    """Whether a bootstrap says anything: there are two training seeds, or two days in a group."""
    cube = as_cube(scores)
    present = np.asarray(~np.isnan(cube).all(axis=0))
    if not present.any():
        return False
    days = days or Days.apart(*present.shape)
    return cube.shape[0] > 1 or any(found.size > 1 for _, found in days.strata(present))


def day_counts(
    present: BoolArray, days: Days, generator: np.random.Generator, draws: int
) -> FloatArray:
    """Draw how often each run's day is drawn, (draws, workloads, seeds).

    Args:
        present: runs that there are, (workloads, seeds).
        days: which of them share a day.
        generator: draws.
        draws: how many.
    """
    counts = np.zeros((draws, *present.shape))
    for rows, found in days.strata(present):
        times = generator.multinomial(found.size, np.full(found.size, 1.0 / found.size), size=draws)
        place = np.searchsorted(found, days.day[rows]).clip(max=found.size - 1)
        known = found[place] == days.day[rows]
        counts[:, rows] = times[:, place] * known
    return counts


def seed_counts(trained: int, draws: int, entropy: Sequence[int]) -> FloatArray:
    """Draw how often each training seed is drawn, (draws, trained)."""
    generator = np.random.default_rng(list(entropy))
    counts = generator.multinomial(trained, np.full(trained, 1.0 / trained), size=draws)
    return counts.astype(np.float64)


def counts_of_runs(
    cube: FloatArray, days: Days | None, seed: int, draws: int
) -> Iterator[FloatArray]:
    """Draw how often every run counts, as chunks of rows with one draw per row.

    Args:
        cube: [training seeds, workloads, seeds]; NaN marks a run that is missing.
        days: which runs share a day; None if none do.
        seed: of the bootstrap; arrays of one shape are redrawn alike under one seed.
        draws: rows in all.

    Yields:
        (some draws, runs that there are), in the order of `cube[~np.isnan(cube)]`.
    """
    there = ~np.isnan(cube)
    present = np.asarray(there.any(axis=0))
    days = days or Days.apart(*present.shape)
    # Drawn for all rows at once: the chunks must not change the numbers.
    which = day_counts(present, days, np.random.default_rng(seed), draws)
    who = seed_counts(cube.shape[0], draws, [seed, 1])
    step = max(1, _CHUNK_VALUES // cube.size)
    for start in range(0, draws, step):
        part = slice(start, start + step)
        yield (who[part, :, None, None] * which[part, None])[:, there]
